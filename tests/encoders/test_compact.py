"""Spaces in few bytes: rounded once, pinned by hash, found by name, and as good as before."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from imagery import S2, space_of
from terralign.encoders import sources
from terralign.encoders.clip.compact import compact_state, expand_state
from terralign.encoders.clip.load import ClipModel, load_compact_clip
from terralign.encoders.compact import as_compact, save_compact
from terralign.encoders.space import EmbeddingSpace
from terralign.errors import ModelError, StorageError
from terralign.files import read_json, write_json
from terralign.runs.recipe import BaseRecipe, load_recipe
from terralign.runs.run import load_base
from terralign.toml_paths import TomlPaths

BANDS = ("B02", "B03", "B04", "B08")
TEXTS = ["a river", "a town", "fields"]


@pytest.fixture
def starter(tiny_starter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the small starter in its place, to be changed."""
    monkeypatch.setattr(sources, "STARTER", shutil.copytree(tiny_starter, tmp_path / "starter"))
    return sources.STARTER


def test_a_compact_space_gives_nearly_the_vectors_of_the_one_that_it_was_made_of(
    tiny_clip: ClipModel, starter: Path
) -> None:
    space, loaded = space_of(tiny_clip), EmbeddingSpace.load("starter")
    pixels = torch.randint(1, 4000, (3, 4, 32, 32), generator=torch.Generator().manual_seed(0))
    for one, other in (
        (space.encode_text(TEXTS), loaded.encode_text(TEXTS)),
        *(
            tuple(
                each.encode_image(pixels, S2.name, BANDS, units="dn", dn_offset=0, tower=tower)
                for each in (space, loaded)
            )
            for tower in ("rgb", "s2")
        ),
    ):
        assert (one * other).sum(1).min() > 0.999
        assert not torch.equal(one, other), "rounded, so that another id is right"
    assert loaded.space_id != space.space_id
    assert loaded.provenance["compact_of"] == space.space_id


def test_both_models_are_found_by_name_and_share_the_text_tower(
    tiny_clip: ClipModel, starter: Path
) -> None:
    space, base = EmbeddingSpace.load("starter"), EmbeddingSpace.load("starter:base")
    assert (space.source, space.tower_names) == ("starter", ("rgb", "s2"))
    assert (base.source, base.tower_names) == ("starter:base", ("rgb",))
    assert space.clip.text_id() == base.clip.text_id()
    assert space.space_id != base.space_id
    assert space.space_id == as_compact(space_of(tiny_clip)).space_id
    stored = load_file(starter / "text.safetensors")
    assert stored["token_embedding.weight"].dtype == torch.int8
    assert {one.dtype for one in load_file(starter / "rgb.safetensors").values()} == {torch.float16}


def test_rounding_a_rounded_space_changes_no_bit(tiny_clip: ClipModel) -> None:
    once = as_compact(space_of(tiny_clip))
    twice = as_compact(once)
    assert twice.space_id == once.space_id
    assert twice.tower_id("s2") == once.tower_id("s2")


def test_the_starter_is_saved_as_any_space_and_loads_again(starter: Path, tmp_path: Path) -> None:
    space = EmbeddingSpace.load("starter")
    again = EmbeddingSpace.load(space.save(tmp_path / "mine"))
    assert again.space_id == space.space_id
    assert again.tower_id("s2") == space.tower_id("s2")
    assert torch.equal(again.encode_text(TEXTS), space.encode_text(TEXTS))


def test_no_folder_of_the_same_name_hides_the_starter(
    tiny_clip: ClipModel, starter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    EmbeddingSpace(tiny_clip).save(tmp_path / "other" / "starter")
    monkeypatch.chdir(tmp_path / "other")
    assert "s2" in EmbeddingSpace.load("starter").tower_names
    resolved = TomlPaths.here().resolve({"model": "starter", "initial": "starter:base"})
    assert resolved == {"model": "starter", "initial": "starter:base"}


def test_a_recipe_starts_from_the_starters_base(starter: Path, tmp_path: Path) -> None:
    recipe = load_recipe("quickstart").model_copy(update={"base": BaseRecipe(model="starter:base")})
    assert load_base(recipe, tmp_path).source == "starter:base"


def changed(folder: Path) -> None:
    path = folder / "rgb.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def removed(folder: Path) -> None:
    (folder / "towers" / "s2.safetensors").unlink()


def gone(folder: Path) -> None:
    (folder / "space.json").unlink()


def unlisted(folder: Path) -> None:
    values = read_json(folder / "space.json")
    write_json(folder / "space.json", {**values, "anchor": ["../text.safetensors"]})


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (changed, "rgb.safetensors was changed or truncated .*; install terralign again"),
        (removed, "lacks towers/s2.safetensors; install terralign again"),
        (gone, "starter comes with terralign, but .* is not found; install terralign again"),
        (unlisted, "the files of its text and RGB towers are not all listed"),
    ],
)
def test_a_damaged_starter_is_one_line(
    starter: Path, damage: Callable[[Path], None], message: str
) -> None:
    damage(starter)
    with pytest.raises(ModelError, match=message):
        EmbeddingSpace.load("starter")


def test_pins_have_no_effect_on_the_starter(starter: Path) -> None:
    with pytest.raises(ModelError, match="sha256 has no effect on starter"):
        EmbeddingSpace.load("starter", sha256="0" * 64)
    with pytest.raises(ModelError, match="revisions has no effect on starter"):
        EmbeddingSpace.load("starter", revisions={"org/name": "main"})


def test_a_base_of_another_text_tower_is_refused(tiny_clip: ClipModel, tmp_path: Path) -> None:
    other = EmbeddingSpace(
        replace(tiny_clip, model_cfg={**tiny_clip.model_cfg, "quick_gelu": True})
    )
    with pytest.raises(ModelError, match="not the unpatched base"):
        save_compact(space_of(tiny_clip), tmp_path / "new", base=other)
    with pytest.raises(StorageError, match="exists"):
        save_compact(space_of(tiny_clip), tmp_path, base=EmbeddingSpace(tiny_clip))


def test_weights_that_float16_cannot_hold_are_refused() -> None:
    with pytest.raises(ModelError, match="which float16 cannot store"):
        compact_state({"visual.weight": torch.tensor([1e6])})


@pytest.mark.parametrize("scale", [torch.ones(3), torch.ones(4, 1), torch.ones(4)])
def test_scales_that_fit_no_weight_are_refused(scale: torch.Tensor) -> None:
    rows = torch.ones(4, 2, dtype=torch.int8 if scale.shape != (4,) else torch.float16)
    with pytest.raises(ModelError, match=r"expected t as torch\.int8 with as many rows"):
        expand_state({"t": rows, "t.row_scale": scale}, what="file")
    with pytest.raises(ModelError, match="found none"):
        expand_state({"t.row_scale": scale}, what="file")


def test_a_weight_in_two_files_is_refused(starter: Path, tmp_path: Path) -> None:
    state = load_file(starter / "rgb.safetensors")
    save_file(state, starter / "again.safetensors")
    names = ["text.safetensors", "rgb.safetensors", "again.safetensors"]
    with pytest.raises(ModelError, match="which another file of the same model holds too"):
        load_compact_clip(starter, names)
