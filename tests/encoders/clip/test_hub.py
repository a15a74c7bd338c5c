"""What is fetched from a hub may be pinned, and is recorded with the space."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import open_clip.pretrained as pretrained
import pytest
import torch
from click.testing import CliRunner

from terralign.cli import main
from terralign.encoders.clip.load import CONFIG_NAME, WEIGHTS_NAME, ClipModel, load_clip, save_clip
from terralign.encoders.clip.weights import write_state_dict
from terralign.encoders.space import EmbeddingSpace, load
from terralign.errors import ModelError, RecipeError
from terralign.files import hash_file
from terralign.runs.recipe import parse_recipe, single_stage

OLD, NEW = "a" * 40, "b" * 40
TINY = "hf-hub:someone/tiny"


@pytest.fixture
def hub(tiny_clip: ClipModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A hub with two commits of `someone/tiny`, the newer with other weights; its cache."""
    folder = tmp_path / "hub" / "snapshots"
    for commit, factor in ((OLD, 1.0), (NEW, 2.0)):
        (folder / commit).mkdir(parents=True)
        save_clip(tiny_clip, folder / commit)
        state = tiny_clip.model.state_dict()
        state["visual.conv1.weight"] = state["visual.conv1.weight"] * factor
        write_state_dict(folder / commit / WEIGHTS_NAME, state)

    def download(repo_id: str, filename: str, revision: str | None = None, **_: Any) -> str:
        path = folder / (revision or NEW) / filename
        if repo_id != "someone/tiny" or not path.is_file():
            raise OSError(f"the hub has no {repo_id}/{filename} of {revision}")
        return str(path)

    monkeypatch.setattr(pretrained, "hf_hub_download", download)
    return folder


def first_weights(clip: ClipModel) -> torch.Tensor:
    return clip.model.state_dict()["visual.conv1.weight"]


def test_a_revision_is_what_is_loaded(tiny_clip: ClipModel, hub: Path) -> None:
    by_name = load_clip(f"{TINY}@{OLD}")
    by_table = load_clip(TINY, revisions={"someone/tiny": OLD})
    for one in (by_name, by_table):
        assert one.anchor_id() == tiny_clip.anchor_id()
        assert one.fetched is not None
        assert one.fetched["someone/tiny"]["revision"] == OLD
    assert torch.equal(first_weights(load_clip(TINY)), 2 * first_weights(tiny_clip))


def test_what_was_fetched_is_kept_with_the_space_and_shown(hub: Path, tmp_path: Path) -> None:
    expected = {
        "someone/tiny": {
            "revision": NEW,
            "files": {name: hash_file(hub / NEW / name) for name in (CONFIG_NAME, WEIGHTS_NAME)},
        }
    }
    space = load(TINY)
    assert space.provenance["fetched"] == expected
    path = space.save(tmp_path / "space")
    again = EmbeddingSpace.load(path)
    assert again.provenance["fetched"] == expected
    # A space that is made of it, as a run makes one, keeps it.
    assert EmbeddingSpace(again.clip, provenance={"alpha": 1}).provenance["fetched"] == expected
    told = CliRunner().invoke(main, ["info", str(path), "--json"])
    assert json.loads(told.stdout)["provenance"]["fetched"] == expected


def test_weights_are_held_to_their_hash_before_they_are_read(
    tiny_clip: ClipModel, hub: Path, tmp_path: Path
) -> None:
    right, wrong = hash_file(hub / NEW / WEIGHTS_NAME), "0" * 64
    assert load_clip(TINY, sha256=right.upper()).source == TINY
    space = load(TINY).save(tmp_path / "space")
    broken = tmp_path / "broken.pt"
    broken.write_bytes(b"not even a checkpoint")
    for source in (TINY, str(space), str(hub / OLD), f"ViT-B-32:{broken}"):
        with pytest.raises(ModelError, match=rf"SHA-256 [0-9a-f]{{64}}, expected {wrong}; fetch"):
            load(source, sha256=wrong)


def test_large_files_of_the_cache_are_hashed_when_fetched_and_when_pinned(
    hub: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights, wrong = hub / NEW / WEIGHTS_NAME, "0" * 64
    blob = hub.parent / "blobs" / wrong  # as huggingface_hub names it, by what the hub states
    blob.parent.mkdir()
    content = weights.read_bytes()
    right = hash_file(weights)
    weights.rename(blob)
    weights.symlink_to(blob)
    with pytest.raises(ModelError, match=rf"came damaged: .*{right}, the hub states {wrong}; run"):
        load_clip(TINY)
    assert not blob.exists()  # or the next load would take it
    blob.write_bytes(content)
    hour = 3600 * 10**9
    monkeypatch.setattr("time.time_ns", lambda now=time.time_ns: now() + hour)  # it was there
    fetched = load_clip(TINY).fetched
    assert fetched is not None
    assert fetched["someone/tiny"]["files"][WEIGHTS_NAME] == wrong
    with pytest.raises(ModelError, match=f"SHA-256 {right}, expected {wrong}"):
        load_clip(TINY, sha256=wrong)
    assert load_clip(TINY, sha256=right).source == TINY


@pytest.mark.parametrize(
    ("source", "revisions", "said"),
    [
        (f"{TINY}@{OLD}", {"someone/tiny": NEW}, "leave one out"),
        (TINY, {"someone/else": NEW}, "someone/else, which this model does not fetch; .*tiny"),
        (TINY, {"../x": NEW}, "expected the name of a model on the hub"),
        (TINY, {"someone/tiny": "--x"}, "a commit, tag or branch"),
        (f"{TINY}@", None, "a commit, tag or branch of the model after @"),
        (f"{TINY}@{'c' * 40}", None, "cannot load hf-hub:someone/tiny@ccc"),
    ],
)
def test_a_pin_that_cannot_hold_is_told(
    hub: Path, source: str, revisions: dict[str, str] | None, said: str
) -> None:
    with pytest.raises(ModelError, match=said) as told:
        load_clip(source, revisions=revisions)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("written", ["safetensors", "bin"])
def test_hub_weights_that_are_not_finite_are_refused(
    tiny_clip: ClipModel, hub: Path, written: str
) -> None:
    state = {**tiny_clip.model.state_dict(), "logit_scale": torch.tensor(np.nan)}
    (hub / NEW / WEIGHTS_NAME).unlink()
    if written == "bin":
        torch.save(state, hub / NEW / "open_clip_pytorch_model.bin")
    else:
        write_state_dict(hub / NEW / WEIGHTS_NAME, state)
    with pytest.raises(ModelError, match=r"tiny.* logit_scale .*(not finite|is nan)"):
        load_clip(TINY)


def test_a_hostile_pickle_of_a_hub_is_refused(hub: Path) -> None:
    (hub / NEW / WEIGHTS_NAME).unlink()
    (hub / NEW / "open_clip_pytorch_model.bin").write_bytes(
        b"\x80\x02cbuiltins\nbytearray\n\x8a\x06" + (10**11).to_bytes(6, "little") + b"\x85R."
    )
    with pytest.raises(ModelError, match=r"than tensors and plain values \(builtins.bytearray"):
        load_clip(TINY)


def test_a_recipe_pins_its_base() -> None:
    base = {"model": TINY, "sha256": "0" * 64, "revisions": {"someone/tiny": OLD}}
    recipe = parse_recipe({"name": "a", "base": base}, origin="a")
    assert recipe.base.sha256 == "0" * 64
    with pytest.raises(RecipeError, match="no patch stage"):
        single_stage(recipe, "patch", base=TINY)
    for wrong in ({"sha256": "abc"}, {"revisions": {"a": 3}}):
        with pytest.raises(RecipeError, match=next(iter(wrong))):
            parse_recipe({"name": "a", "base": {**base, **wrong}}, origin="a")
    del base["model"]
    cfg = {"embed_dim": 8, "vision_cfg": {"image_size": 32}, "text_cfg": {}}
    pretrain = {"architecture": cfg}
    with pytest.raises(RecipeError, match="sha256 and revisions have no effect with pretrain"):
        parse_recipe({"name": "a", "base": {**base, "pretrain": pretrain}}, origin="a")
