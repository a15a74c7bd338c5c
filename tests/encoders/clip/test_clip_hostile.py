"""Damaged and hostile open_clip folders: refused in one line, and without taking memory."""

from __future__ import annotations

import json
import resource
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from terralign.encoders.clip.load import CONFIG_NAME, WEIGHTS_NAME, ClipModel, load_clip, save_clip
from terralign.encoders.clip.weights import write_state_dict
from terralign.encoders.space import load
from terralign.errors import ModelError


def write_folder(folder: Path, clip: ClipModel, **model_cfg: Any) -> Path:
    """An open_clip folder whose configuration is changed after the weights were written."""
    folder.mkdir()
    save_clip(clip, folder)
    config = json.loads((folder / CONFIG_NAME).read_text())
    for key, value in model_cfg.items():
        if isinstance(value, dict):
            config["model_cfg"][key].update(value)
        else:
            config["model_cfg"][key] = value
    (folder / CONFIG_NAME).write_text(json.dumps(config))
    return folder


def test_a_folder_without_its_parts_is_told(tiny_clip: ClipModel, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=f"{CONFIG_NAME} not found"):
        load_clip(str(tmp_path))
    (tmp_path / CONFIG_NAME).write_text('{"embed_dim": 3}')
    with pytest.raises(ModelError, match="no model_cfg with vision_cfg and text_cfg"):
        load_clip(str(tmp_path))
    save_clip(tiny_clip, tmp_path)
    (tmp_path / WEIGHTS_NAME).unlink()
    with pytest.raises(ModelError, match=f"lacks its weights, {WEIGHTS_NAME}"):
        load_clip(str(tmp_path))


def test_a_configuration_nested_deeply_is_told(tiny_clip: ClipModel, tmp_path: Path) -> None:
    save_clip(tiny_clip, tmp_path)
    deep = "[" * 500 + "]" * 500
    config = json.loads((tmp_path / CONFIG_NAME).read_text())
    config["model_cfg"]["x"] = 0
    (tmp_path / CONFIG_NAME).write_text(json.dumps(config).replace('"x": 0', f'"x": {deep}'))
    with pytest.raises(ModelError, match=f"{CONFIG_NAME} is nested in"):
        load_clip(str(tmp_path))


@pytest.mark.parametrize("value", [100.0, -200.0])
def test_a_scale_of_logits_that_no_clip_has_is_refused(
    tiny_clip: ClipModel, tmp_path: Path, value: float
) -> None:
    save_clip(tiny_clip, tmp_path)
    state = tiny_clip.model.state_dict() | {"logit_scale": torch.tensor(value)}
    write_state_dict(tmp_path / WEIGHTS_NAME, state)
    with pytest.raises(ModelError, match=r"its logit_scale is (inf|0) \(exp of the weight\)"):
        load_clip(str(tmp_path))


@pytest.mark.parametrize(
    ("weight", "what"), [("text_projection", "the text tower"), ("visual.proj", "tower 'rgb'")]
)
def test_finite_weights_whose_embeddings_are_not_are_told(
    tiny_clip: ClipModel, tmp_path: Path, weight: str, what: str
) -> None:
    save_clip(tiny_clip, tmp_path)
    state = tiny_clip.model.state_dict()
    write_state_dict(tmp_path / WEIGHTS_NAME, state | {weight: state[weight].sign() * 3e38})
    space = load(tmp_path)
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (9, 9, 3), np.uint8))
    with pytest.raises(ModelError, match=f"{what} gives embeddings that are not finite"):
        space.classify(picture, ["forest", "river"])


def test_a_folder_with_truncated_weights_is_told(tiny_clip: ClipModel, tmp_path: Path) -> None:
    save_clip(tiny_clip, tmp_path)
    content = (tmp_path / WEIGHTS_NAME).read_bytes()
    (tmp_path / WEIGHTS_NAME).write_bytes(content[:-1000])
    with pytest.raises(ModelError, match="is not a whole safetensors file"):
        load_clip(str(tmp_path))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"vision_cfg": {"timm_model_name": "hf-hub:someone/model"}}, "points outside"),
        ({"vision_cfg": {"timm_model_name": "local-dir:elsewhere"}}, "points outside"),
        ({"text_cfg": {"hf_model_name": "../model"}}, "not the name of a model on the hub"),
        ({"text_cfg": {"hf_model_name": "/etc"}}, "not the name of a model on the hub"),
        ({"text_cfg": {"hf_model_name": ["a"]}}, "not the name of a model on the hub"),
        ({"text_cfg": {"hf_tokenizer_name": "https://x/y"}}, "not the name of a model on the hub"),
        ({"text_cfg": {"tokenizer_kwargs": {"trust_remote_code": True}}}, "tokenizer_kwargs may"),
        ({"multimodal_cfg": 3}, "multimodal_cfg is 3, expected a table"),
        ({"vision_cfg": {"layers": 10**9}}, "'layers' of 1,000,000,000 layers, more than"),
        ({"text_cfg": {"layers": "12"}}, "layers is '12', expected a whole number"),
        ({"embed_dim": 10**9}, "'embed_dim' of 1,000,000,000 numbers, more than"),
        ({"embed_dim": 10**7}, "expected .*10000000"),
        ({"text_cfg": {"context_length": 10**6}}, "'context_length' of 1,000,000 tokens, more"),
        ({"text_cfg": {"context_length": 8000}}, "beside its weights, have 64,000,000 numbers"),
        ({"text_cfg": {"width": 10**7}}, "does not fit"),
        ({"text_cfg": {"vocab_size": 1e30}}, "'vocab_size' of .* numbers, more than the limit"),
        ({"vision_cfg": {"image_size": 10**6}}, "its pictures have .* patches, more than"),
        ({"vision_cfg": {"image_size": 2**14, "patch_size": 1}}, "pictures have .* patches, more"),
        ({"vision_cfg": {"widht": 64}}, "cannot build this model_cfg .*widht"),
        ({"vision_cfg": {"head_width": 0}}, "cannot build this model_cfg"),
        ({"quick_gelu": True, "surprise": 1}, "cannot build this model_cfg .*surprise"),
    ],
)
def test_a_hostile_configuration_is_refused_without_taking_memory(
    tiny_clip: ClipModel, tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    folder = write_folder(tmp_path / "m", tiny_clip, **changes)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ModelError, match=said) as told:
        load_clip(str(folder))
    assert "\n" not in str(told.value)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # KiB


@pytest.mark.parametrize(
    ("preprocess", "said"),
    [
        ({"mean": ["a", "b", "c"]}, "unusable preprocess_cfg"),
        ({"std": [0.1, 0.1]}, "unusable preprocess_cfg"),
        (
            {"std": [0.0, 0.1, 0.1]},
            r"unusable preprocess_cfg \(ValidationError: std must be positive\)",
        ),
        ({"mean": [123.7, 116.3, 103.5]}, "divide mean and std by 255"),
        ({"resize_mode": "longest"}, "resize_mode 'longest' is not supported"),
        ({"interpolation": "nearest"}, "interpolation 'nearest' is not supported"),
    ],
)
def test_preprocessing_that_cannot_be_used_is_told_when_loading(
    tiny_clip: ClipModel, tmp_path: Path, preprocess: dict[str, Any], said: str
) -> None:
    folder = write_folder(tmp_path / "m", tiny_clip)
    config = json.loads((folder / CONFIG_NAME).read_text())
    config["preprocess_cfg"].update(preprocess)
    (folder / CONFIG_NAME).write_text(json.dumps(config))
    with pytest.raises(ModelError, match=said) as told:
        load_clip(str(folder))
    assert "\n" not in str(told.value)


def test_a_tokenizer_that_cannot_be_had_is_told(tiny_clip: ClipModel, tmp_path: Path) -> None:
    """A hub tokenizer's files are looked for in the folder alone, and are not there."""
    folder = write_folder(
        tmp_path / "m", tiny_clip, text_cfg={"hf_tokenizer_name": "someone/tokenizer"}
    )
    with pytest.raises(ModelError, match="cannot load the tokenizer of"):
        load_clip(str(folder))
