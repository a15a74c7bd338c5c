"""Every kind of model that open_clip builds is a space: it loads, saves, and is what it was."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
import torch.nn.functional as F
from open_clip import factory, pretrained
from torch import Tensor

from terralign.encoders.clip.config import check_model_cfg, meta_shapes
from terralign.encoders.clip.hub import Hub
from terralign.encoders.clip.load import ClipModel, load_clip, new_clip, save_clip
from terralign.encoders.clip.text_tower import TEXT_CONFIG_NAME, read_text_config
from terralign.encoders.space import EmbeddingSpace
from terralign.encoders.zeroshot import PromptSet, embed_text, zero_shot_weights
from terralign.errors import ModelError
from tiny_hub import MODEL_CFGS, TEXT_CONFIGS, serve, write_hub, write_reference

TEXTS = ["a forest", "a satellite image of the river by the city"]
PREPROCESS = {"mean": [0.5] * 3, "std": [0.25] * 3}
TAG = pretrained._pcfg(hf_hub="someone/model/")


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_hub(tmp_path_factory.mktemp("hub"))


def embed(model: Any, tokenizer: Any, size: int) -> tuple[Tensor, Tensor]:
    """Normalised embeddings of two pictures and of TEXTS."""
    pictures = torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        return (
            F.normalize(model.encode_image(pictures), dim=-1),
            F.normalize(model.encode_text(tokenizer(TEXTS)), dim=-1),
        )


def assert_same(first: tuple[Tensor, Tensor], second: tuple[Tensor, Tensor]) -> None:
    for one, other in zip(first, second, strict=True):
        assert one.shape[0] == 2
        assert not torch.allclose(one[0], one[1], atol=1e-4)  # two inputs, two outputs
        torch.testing.assert_close(one, other, atol=1e-6, rtol=0)


def embed_ours(clip: ClipModel) -> tuple[Tensor, Tensor]:
    return embed(clip.model, clip.tokenizer, clip.input_spec.size)


@pytest.mark.parametrize("kind", MODEL_CFGS)
def test_a_text_longer_than_the_context_is_warned_of_with_every_tokenizer(
    kind: str, hub: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    serve(hub, monkeypatch)
    clip = new_clip(MODEL_CFGS[kind], PREPROCESS, seed=0)
    embed_text(clip, ["a river", "the city by the river"])
    assert caplog.records == []
    embed_text(clip, ["a river", "forest " * 150, "city " * 200])
    (record,) = caplog.records
    assert "and 1 more" in record.getMessage()
    (count,) = re.findall(r"\((\d+) tokens\)", record.getMessage())
    assert int(count) >= 150


@pytest.mark.parametrize("kind", MODEL_CFGS)
def test_every_kind_is_what_open_clip_makes_of_it_and_survives_saving(
    kind: str, hub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    serve(hub, monkeypatch)
    theirs = write_reference(tmp_path / "theirs", kind, hub)
    clip = load_clip(str(tmp_path / "theirs"))
    tokenizer = open_clip.get_tokenizer(f"local-dir:{tmp_path / 'theirs'}")
    expected = embed(theirs, tokenizer, clip.input_spec.size)
    assert torch.equal(clip.tokenizer(TEXTS), tokenizer(TEXTS))
    assert_same(embed_ours(clip), expected)

    names = ["forest", "river", "city"]
    templates = ("a photo of a {}", "the {}")
    weights = zero_shot_weights(clip, names, PromptSet(name="two", templates=templates))
    expected_weights = open_clip.build_zero_shot_classifier(
        theirs, tokenizer, names, [lambda c, t=t: t.format(c) for t in templates], device="cpu"
    )
    torch.testing.assert_close(weights, expected_weights.T, atol=1e-6, rtol=0)

    (tmp_path / "saved").mkdir()
    written = save_clip(clip, tmp_path / "saved")
    assert sorted(written) == sorted(path.name for path in (tmp_path / "saved").iterdir())
    by_open_clip = open_clip.create_model(f"local-dir:{tmp_path / 'saved'}").eval()
    assert_same(embed(by_open_clip, tokenizer, clip.input_spec.size), expected)
    asked = serve(None, monkeypatch)
    again = load_clip(str(tmp_path / "saved"))
    assert asked == []
    assert_same(embed_ours(again), expected)
    assert (again.anchor_id(), again.text_id()) == (clip.anchor_id(), clip.text_id())
    assert again.preprocess_cfg["mean"] == [0.5, 0.4, 0.3]


@pytest.mark.parametrize("kind", ["coca", "roberta", "siglip"])
def test_files_tags_and_hub_ids_give_the_same_towers(
    kind: str, hub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    serve(hub, monkeypatch)
    write_reference(tmp_path / "theirs", kind, hub)
    expected = load_clip(str(tmp_path / "theirs"))
    monkeypatch.setattr(factory, "_MODEL_CONFIGS", {**factory._MODEL_CONFIGS})
    monkeypatch.setitem(factory._MODEL_CONFIGS, "Tiny", MODEL_CFGS[kind])
    quick = bool(MODEL_CFGS[kind].get("quick_gelu"))
    monkeypatch.setitem(pretrained._PRETRAINED, "Tiny", {"mine": {**TAG, "quick_gelu": quick}})
    monkeypatch.setattr(
        pretrained,
        "hf_hub_download",
        lambda repo_id, filename, **_: str(tmp_path / "theirs" / filename),
    )
    weights = tmp_path / "theirs" / "open_clip_model.safetensors"
    for source in (f"Tiny:{weights}", "Tiny:mine", "hf-hub:someone/model"):
        loaded = load_clip(source)
        assert loaded.source == source
        assert_same(embed_ours(loaded), embed_ours(expected))
        assert loaded.text_id() == expected.text_id()


def test_of_a_captioning_model_the_towers_are_kept_and_patched(
    hub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    serve(hub, monkeypatch)
    theirs = write_reference(tmp_path / "theirs", "coca", hub)
    assert any(key.startswith("text_decoder.") for key in theirs.state_dict())
    space = EmbeddingSpace.load(tmp_path / "theirs")
    state = space.clip.model.state_dict()
    assert not any(key.startswith("text_decoder.") for key in state)
    pixels = torch.rand(2, 3, 32, 32)
    assert space.clip.visual(pixels).shape == (2, 32)
    other = {key: value + 0.01 for key, value in space.clip.visual.state_dict().items()}
    patched = EmbeddingSpace(space.clip.with_visual(other, source="patched"))
    assert patched.space_id != space.space_id
    assert patched.clip.text_id() == space.clip.text_id()
    patched.save(tmp_path / "patched")
    again = EmbeddingSpace.load(tmp_path / "patched")
    assert again.space_id == patched.space_id
    first, second = (one.encode_image(pixels, "rgb", units="physical") for one in (again, patched))
    torch.testing.assert_close(first, second, atol=1e-6, rtol=0)


def test_a_space_with_a_text_tower_of_transformers_needs_no_network(
    hub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = serve(hub, monkeypatch)
    space = EmbeddingSpace(new_clip(MODEL_CFGS["roberta"], PREPROCESS, seed=0))
    assert set(asked) == {"someone/roberta"}
    space.save(tmp_path / "space")
    asked = serve(None, monkeypatch)
    again = EmbeddingSpace.load(tmp_path / "space")
    assert asked == []
    assert again.space_id == space.space_id
    assert torch.equal(again.encode_text(TEXTS), space.encode_text(TEXTS))
    for name in (TEXT_CONFIG_NAME, "tokenizer.json", "tokenizer_config.json"):
        path = tmp_path / "space" / name
        content = path.read_bytes()
        path.write_bytes(content + b" ")
        with pytest.raises(ModelError, match=f"{name} was changed"):
            EmbeddingSpace.load(tmp_path / "space")
        path.write_bytes(content)


def test_what_the_weights_do_not_say_of_a_text_tower_is_part_of_its_name(
    hub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    serve(hub, monkeypatch)
    clip = new_clip(MODEL_CFGS["roberta"], PREPROCESS, seed=0)
    save_clip(clip, tmp_path)
    config = json.loads((tmp_path / TEXT_CONFIG_NAME).read_text())
    (tmp_path / TEXT_CONFIG_NAME).write_text(json.dumps({**config, "hidden_act": "gelu"}))
    other = load_clip(str(tmp_path))
    assert not torch.allclose(embed_ours(other)[1], embed_ours(clip)[1], atol=1e-5)
    assert other.anchor_id() != clip.anchor_id()
    assert other.text_id() != clip.text_id()


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("roberta-ViT-B-32:laion2b_s12b_b32k", r"the text tower of roberta-ViT-B-32 needs"),
        ("ViT-B-16-SigLIP2:webli", r"the tokenizer of ViT-B-16-SigLIP2 needs"),
    ],
)
def test_where_transformers_is_missing_the_extra_is_named(
    source: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = serve(None, monkeypatch)
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ModelError, match=said + r".*terralign\[transformers\]") as told:
        load_clip(source)
    assert "\n" not in str(told.value)
    assert asked == []


def test_a_text_tower_that_the_hub_does_not_give_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    serve(None, monkeypatch)
    with pytest.raises(ModelError, match=r"cannot load roberta-base from the hub: .*saved space"):
        load_clip("roberta-ViT-B-32:laion2b_s12b_b32k")


@pytest.mark.slow
@pytest.mark.parametrize("architecture", open_clip.list_models())
def test_every_architecture_of_open_clip_can_be_built(
    architecture: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the meta device; text towers of transformers are tiny ones of the same kind."""
    cfg = open_clip.get_model_config(architecture)
    name = cfg["text_cfg"].get("hf_model_name")
    if name:
        kinds = {"nllb": "m2m_100", "mt5": "mt5", "xlm": "xlm-roberta", "roberta": "roberta"}
        kind = next(kind for part, kind in kinds.items() if part in name)
        (tmp_path / name).mkdir(parents=True)
        config = {"model_type": kind, **TEXT_CONFIGS[kind]}
        (tmp_path / name / "config.json").write_text(json.dumps(config))
        serve(tmp_path, monkeypatch)
    check_model_cfg(cfg, architecture)
    text_config = read_text_config(cfg["text_cfg"], folder=None, hub=Hub(), what=architecture)
    shapes = meta_shapes(cfg, text_config, architecture)
    assert any(key.startswith("visual.") for key in shapes)
    for tag in open_clip.list_pretrained_tags_by_model(architecture):
        if open_clip.get_pretrained_cfg(architecture, tag).get("quick_gelu"):
            quick = architecture.removesuffix("-quickgelu") + "-quickgelu"
            assert tag in open_clip.list_pretrained_tags_by_model(quick)
