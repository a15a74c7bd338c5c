"""Loading and saving CLIPs: what comes back is what was saved, and strangers' files do no harm."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from open_clip import factory, pretrained
from safetensors.torch import save_file
from torch import Tensor

from terralign.encoders.clip.load import (
    CONFIG_NAME,
    WEIGHTS_NAME,
    ClipModel,
    load_clip,
    new_clip,
    save_clip,
)
from terralign.errors import ModelError

PREPROCESS = {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6], "interpolation": "bilinear"}
TEXTS = ["a forest", "a river from above"]


def outputs(model: Any, clip: ClipModel) -> tuple[Tensor, Tensor]:
    size = clip.input_spec.size
    pictures = torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        return model.encode_image(pictures), model.encode_text(clip.tokenizer(TEXTS))


def assert_same_outputs(first: tuple[Tensor, Tensor], second: tuple[Tensor, Tensor]) -> None:
    for one, other in zip(first, second, strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=0)


@pytest.fixture
def architecture(
    tiny_clip_config: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> str:
    """`Tiny-ViT` as an architecture that open_clip knows."""
    monkeypatch.setattr(factory, "_MODEL_CONFIGS", dict(factory._MODEL_CONFIGS))
    monkeypatch.setattr(factory, "_MODEL_CONFIG_PATHS", list(factory._MODEL_CONFIG_PATHS))
    (tmp_path / "Tiny-ViT.json").write_text(json.dumps(tiny_clip_config))
    (tmp_path / "Tiny-ViT-quickgelu.json").write_text(
        json.dumps({**tiny_clip_config, "quick_gelu": True})
    )
    open_clip.add_model_config(tmp_path / "Tiny-ViT.json")
    open_clip.add_model_config(tmp_path / "Tiny-ViT-quickgelu.json")
    return "Tiny-ViT"


# Folders


def test_a_saved_clip_comes_back_the_same(tiny_clip_config: dict[str, Any], tmp_path: Path) -> None:
    clip = new_clip(tiny_clip_config, PREPROCESS, seed=1)
    assert sorted(save_clip(clip, tmp_path)) == sorted([CONFIG_NAME, WEIGHTS_NAME])
    loaded = load_clip(str(tmp_path))
    assert loaded.anchor_id() == clip.anchor_id()
    assert loaded.text_id() == clip.text_id()
    assert loaded.input_spec == clip.input_spec
    assert loaded.dim == 32
    assert loaded.logit_scale == pytest.approx(1 / 0.07)
    assert not loaded.model.training
    assert_same_outputs(outputs(loaded.model, loaded), outputs(clip.model, clip))


def test_open_clip_itself_loads_a_saved_clip(tiny_clip: ClipModel, tmp_path: Path) -> None:
    save_clip(tiny_clip, tmp_path)
    theirs = open_clip.create_model(f"local-dir:{tmp_path}").eval()
    assert_same_outputs(outputs(theirs, tiny_clip), outputs(tiny_clip.model, tiny_clip))
    preprocess_cfg = open_clip.get_model_preprocess_cfg(theirs)
    assert list(preprocess_cfg["mean"]) == tiny_clip.preprocess_cfg["mean"]


def test_size_mean_and_std_come_from_the_configuration(
    tiny_clip_config: dict[str, Any], tmp_path: Path
) -> None:
    save_clip(new_clip(tiny_clip_config, {**PREPROCESS, "resize_mode": "squash"}, seed=0), tmp_path)
    spec = load_clip(str(tmp_path)).input_spec
    assert (spec.size, spec.mean, spec.std) == (32, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    assert (spec.interpolation, spec.resize_mode) == ("bilinear", "squash")


@pytest.mark.realdata
def test_micro_clip_loads_with_its_own_size_mean_and_std(real_data: Path) -> None:
    clip = load_clip(str(real_data / "micro-clip"))
    spec = clip.input_spec
    assert (clip.dim, spec.size, spec.mean, spec.std) == (256, 64, (0.5,) * 3, (0.5,) * 3)
    assert next(clip.model.parameters()).dtype == torch.float32
    image, text = outputs(clip.model, clip)
    assert image.shape == text.shape == (2, 256)
    assert clip.tokenizer(TEXTS).shape == (2, 32)


def test_quick_gelu_survives_saving(tiny_clip_config: dict[str, Any], tmp_path: Path) -> None:
    plain = new_clip(tiny_clip_config, PREPROCESS, seed=0)
    quick = new_clip({**tiny_clip_config, "quick_gelu": True}, PREPROCESS, seed=0)
    assert not torch.equal(outputs(plain.model, plain)[0], outputs(quick.model, quick)[0])
    assert plain.anchor_id() != quick.anchor_id()
    save_clip(quick, tmp_path)
    loaded = load_clip(str(tmp_path))
    assert_same_outputs(outputs(loaded.model, loaded), outputs(quick.model, quick))
    assert loaded.anchor_id() == quick.anchor_id()


def test_new_clips_of_one_seed_are_equal_and_leave_the_generator_alone(
    tiny_clip: ClipModel, tiny_clip_config: dict[str, Any]
) -> None:
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    again = new_clip(tiny_clip_config, tiny_clip.preprocess_cfg, seed=0)
    assert torch.equal(torch.rand(1), expected)
    assert again.anchor_id() == tiny_clip.anchor_id()
    other = new_clip(tiny_clip_config, tiny_clip.preprocess_cfg, seed=1)
    assert other.anchor_id() != tiny_clip.anchor_id()


def test_with_visual_swaps_the_rgb_tower_and_keeps_the_text_tower(
    tiny_clip: ClipModel, tiny_clip_config: dict[str, Any]
) -> None:
    before = tiny_clip.anchor_id()
    other = new_clip(tiny_clip_config, PREPROCESS, seed=7)
    patched = tiny_clip.with_visual(other.visual.state_dict(), source="patched")
    assert tiny_clip.anchor_id() == before
    assert patched.text_id() == tiny_clip.text_id()
    assert patched.anchor_id() != before
    pictures = torch.rand(1, 3, 32, 32)
    assert torch.equal(patched.visual(pictures), other.visual(pictures))
    state = other.visual.state_dict()
    del state["proj"]
    with pytest.raises(ModelError, match=r"patched does not fit .*such as proj"):
        tiny_clip.with_visual(state, source="patched")


# Names


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("ViT-B-32:openai", r"trained with QuickGELU.*use ViT-B-32-quickgelu:openai"),
        ("ViT-L-14-quickgelu:laion2b_s32b_b82k", "has no weights tagged"),
        ("ViT-B-32-quickgelu:opanai", "did you mean 'openai'"),
        ("ViT-B-33:openai", "unknown architecture 'ViT-B-33'.*did you mean 'ViT-B-32"),
        ("ViT-B-32", r"names no weights; write ViT-B-32:TAG with TAG of openai"),
        (
            "nowhere",
            "no model at 'nowhere': expected a name of `terralign info models`, a space",
        ),
        ("ViT-B-32:nowhere.pt", "no checkpoint at nowhere.pt"),
    ],
)
def test_a_wrong_name_is_told_with_the_remedy(source: str, said: str) -> None:
    with pytest.raises(ModelError, match=said) as told:
        load_clip(source)
    assert "\n" not in str(told.value)


def test_a_file_without_its_architecture_is_told(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    path.write_bytes(b"")
    with pytest.raises(ModelError, match=r"name its architecture too, as in ViT-B-32:"):
        load_clip(str(path))


# Files


@pytest.mark.parametrize(
    "wrapping", ["plain", "training", "compiled", "lightning", "safetensors", "half", "siglip"]
)
def test_a_state_dict_with_its_architecture_named_loads(
    tiny_clip: ClipModel, architecture: str, tmp_path: Path, wrapping: str
) -> None:
    state = tiny_clip.model.state_dict()
    path = tmp_path / ("a.safetensors" if wrapping == "safetensors" else "a.pt")
    if wrapping == "safetensors":
        save_file({key: value.contiguous() for key, value in state.items()}, path)
    elif wrapping == "training":
        wrapped = {"module." + key: value for key, value in state.items()}
        torch.save({"epoch": 1, "state_dict": wrapped}, path)
    elif wrapping in ("compiled", "lightning"):
        prefix = {"compiled": "module._orig_mod.", "lightning": "model.clip."}[wrapping]
        torch.save({"state_dict": {prefix + key: value for key, value in state.items()}}, path)
    elif wrapping == "siglip":
        torch.save({**state, "logit_bias": torch.tensor(-10.0)}, path)
    elif wrapping == "half":
        torch.save({key: value.half() for key, value in state.items()}, path)
    else:
        torch.save(state, path)
    loaded = load_clip(f"{architecture}:{path}")
    tolerance = 1e-2 if wrapping == "half" else 0.0
    for ours, theirs in zip(
        outputs(loaded.model, loaded), outputs(tiny_clip.model, tiny_clip), strict=True
    ):
        torch.testing.assert_close(ours, theirs, atol=tolerance, rtol=0)
    assert next(loaded.model.parameters()).dtype == torch.float32
    assert loaded.input_spec.mean == pytest.approx(open_clip.OPENAI_DATASET_MEAN)
    assert loaded.input_spec.size == 32


def test_the_named_architecture_decides_the_activation(
    tiny_clip: ClipModel, architecture: str, tmp_path: Path
) -> None:
    torch.save(tiny_clip.model.state_dict(), tmp_path / "a.pt")
    quick = load_clip(f"{architecture}-quickgelu:{tmp_path / 'a.pt'}")
    save_clip(quick, tmp_path / "saved")
    again = load_clip(str(tmp_path / "saved"))
    assert_same_outputs(outputs(again.model, again), outputs(quick.model, quick))
    assert not torch.equal(outputs(again.model, again)[0], outputs(tiny_clip.model, tiny_clip)[0])


def test_preprocessing_of_a_file_is_that_of_the_published_weights_of_its_architecture(
    tiny_clip: ClipModel, architecture: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tags = {"one": pretrained._slpcfg(hf_hub="a/b/"), "two": pretrained._slpcfg(hf_hub="a/c/")}
    monkeypatch.setitem(pretrained._PRETRAINED, architecture, tags)
    torch.save(tiny_clip.model.state_dict(), tmp_path / "a.pt")
    spec = load_clip(f"{architecture}:{tmp_path / 'a.pt'}").input_spec
    assert (spec.mean, spec.resize_mode) == ((0.5, 0.5, 0.5), "squash")
    tags["three"] = pretrained._pcfg(hf_hub="a/d/")
    spec = load_clip(f"{architecture}:{tmp_path / 'a.pt'}").input_spec
    assert spec.mean == pytest.approx(open_clip.OPENAI_DATASET_MEAN)


def test_weights_of_another_architecture_are_refused(
    tiny_clip: ClipModel, architecture: str, tmp_path: Path
) -> None:
    state = tiny_clip.model.state_dict()
    state["visual.proj"] = torch.zeros(64, 16)
    torch.save(state, tmp_path / "a.pt")
    with pytest.raises(ModelError, match=r"visual.proj is \(64, 16\), expected \(64, 32\)"):
        load_clip(f"{architecture}:{tmp_path / 'a.pt'}")


# Hubs and tags: the real code path, with the network's last step replaced by a local folder


@pytest.fixture
def hub(
    tiny_clip: ClipModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[Path, list[str]]:
    """A hub with one model, `someone/tiny`; and the list of what was asked of it."""
    folder = tmp_path / "hub"
    folder.mkdir()
    save_clip(tiny_clip, folder)
    asked: list[str] = []

    def download(repo_id: str, filename: str, **_: Any) -> str:
        asked.append(f"{repo_id}/{filename}")
        if repo_id != "someone/tiny" or not (folder / filename).is_file():
            raise OSError(f"the hub has no {repo_id}/{filename}")
        return str(folder / filename)

    monkeypatch.setattr(pretrained, "hf_hub_download", download)
    return folder, asked


def test_a_hub_model_loads(tiny_clip: ClipModel, hub: tuple[Path, list[str]]) -> None:
    loaded = load_clip("hf-hub:someone/tiny")
    assert loaded.anchor_id() == tiny_clip.anchor_id()
    assert loaded.source == "hf-hub:someone/tiny"
    assert set(hub[1]) == {f"someone/tiny/{name}" for name in (CONFIG_NAME, WEIGHTS_NAME)}
    assert_same_outputs(outputs(loaded.model, loaded), outputs(tiny_clip.model, tiny_clip))


def test_a_hub_model_that_is_not_there_is_told(hub: tuple[Path, list[str]]) -> None:
    with pytest.raises(
        ModelError, match=r"cannot load hf-hub:someone/else: .*local folder"
    ) as told:
        load_clip("hf-hub:someone/else")
    assert "\n" not in str(told.value)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"vision_cfg": {"timm_model_name": "hf-hub:evil/model"}}, "points outside"),
        ({"text_cfg": {"width": 2 * 10**6}}, r"has \d+ weights, .* only \d+ bytes"),
    ],
)
def test_a_hostile_hub_model_is_refused(
    hub: tuple[Path, list[str]], changes: dict[str, Any], said: str
) -> None:
    folder, _ = hub
    config = json.loads((folder / CONFIG_NAME).read_text())
    for part, values in changes.items():
        config["model_cfg"][part].update(values)
    (folder / CONFIG_NAME).write_text(json.dumps(config))
    with pytest.raises(ModelError, match=said):
        load_clip("hf-hub:someone/tiny")


def test_a_tag_loads_with_the_preprocessing_of_its_tag(
    tiny_clip: ClipModel,
    architecture: str,
    hub: tuple[Path, list[str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tag = {**pretrained._pcfg(hf_hub="someone/tiny/"), "mean": (0.3, 0.3, 0.3)}
    quick = {**pretrained._pcfg(hf_hub="someone/tiny/"), "quick_gelu": True}
    monkeypatch.setitem(pretrained._PRETRAINED, architecture, {"mine": tag, "quick": quick})
    monkeypatch.setitem(pretrained._PRETRAINED, f"{architecture}-quickgelu", {"quick": quick})
    loaded = load_clip(f"{architecture}:mine")
    assert loaded.input_spec.mean == (0.3, 0.3, 0.3)
    assert loaded.source == f"{architecture}:mine"
    assert_same_outputs(outputs(loaded.model, loaded), outputs(tiny_clip.model, tiny_clip))
    with pytest.raises(ModelError, match="use Tiny-ViT-quickgelu:quick"):
        load_clip(f"{architecture}:quick")
    quick_loaded = load_clip(f"{architecture}-quickgelu:quick")
    assert not torch.equal(
        outputs(quick_loaded.model, loaded)[0], outputs(tiny_clip.model, tiny_clip)[0]
    )


def test_a_tag_without_a_network_is_told(
    architecture: str, hub: tuple[Path, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    tag = pretrained._pcfg(hf_hub="someone/else/")
    monkeypatch.setitem(pretrained._PRETRAINED, architecture, {"mine": tag})
    with pytest.raises(ModelError, match=r"cannot load Tiny-ViT:mine: .*local folder or file"):
        load_clip(f"{architecture}:mine")


def test_a_folder_of_another_layout_is_named(tiny_clip: ClipModel, tmp_path: Path) -> None:
    def refused() -> str:
        with pytest.raises(ModelError) as told:
            load_clip(str(tmp_path))
        return str(told.value)

    (tmp_path / "config.json").write_text('{"model_type": "clip"}')
    assert "that of Hugging Face's transformers" in refused()
    snapshot = tmp_path / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    save_clip(tiny_clip, snapshot)
    assert f"did you mean {snapshot}?" in refused()
    for path in snapshot.iterdir():
        path.rename(tmp_path / path.name)
    (tmp_path / "open_clip_model.safetensors").rename(tmp_path / "model-1-of-2.safetensors")
    assert "it holds model-1-of-2.safetensors" in refused()
