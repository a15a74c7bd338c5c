"""Sensor towers: students that start as their teacher, and students from published checkpoints."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from terralign.chips import PixelLayout
from terralign.encoders.clip.load import ClipModel, load_clip
from terralign.encoders.clip.weights import write_state_dict
from terralign.encoders.sensor import (
    SensorTower,
    TowerConfig,
    build_tower,
    inflate,
    load_initial_weights,
    load_tower,
)
from terralign.errors import ModelError
from terralign.preprocess import InputSpec, make_ready, scale_bands, scale_composite
from terralign.sensors import SENSORS

L2A = SENSORS["sentinel2-l2a"]
STRETCH = L2A.composite().stretch
THREE = ("B04", "B08", "B02")


def config(
    clip: ClipModel, bands: tuple[str, ...], backbone: str = "inflate", size: int = 0, **more: Any
) -> TowerConfig:
    """A tower that keeps the composite's stretch and the CLIP's mean and std on visible bands."""
    rgb = clip.input_spec
    order = L2A.composite().bands
    where = [order.index(band) if band in order else None for band in bands]
    return TowerConfig(
        name="s2",
        backbone=backbone,
        embed_dim=clip.dim,
        input=InputSpec(
            sensors=(L2A.name,),
            bands=bands,
            ranges={L2A.name: tuple((0.0, 1.0 if i is None else STRETCH) for i in where)},
            mean=tuple(0.5 if i is None else rgb.mean[i] for i in where),
            std=tuple(0.25 if i is None else rgb.std[i] for i in where),
            size=size or rgb.size,
        ),
        **more,
    )


def read_as(bands: tuple[str, ...]) -> PixelLayout:
    return PixelLayout(
        sensor=L2A, bands=bands, units="dn", dn_offset=0.0, composite=L2A.composite()
    )


def student_and_teacher(clip: ClipModel, tower: SensorTower, bands: tuple[str, ...]) -> Any:
    size = clip.input_spec.size
    raw = torch.randint(1, 2500, (4, len(bands), size, size), dtype=torch.int32)
    spec = tower.config.input
    with torch.inference_mode():
        student = tower.eval()(make_ready(scale_bands(raw, read_as(bands), spec), spec))
        picture = scale_composite(raw, read_as(bands))
        teacher = clip.visual(make_ready(picture, clip.input_spec))
    return student, teacher


ORDERS = [
    ("B04", "B03", "B02"),
    ("B02", "B03", "B04", "B08"),
    L2A.band_names,
    tuple(reversed(L2A.band_names)),
]


@pytest.mark.parametrize("bands", ORDERS)
def test_an_inflated_tower_starts_as_its_teacher(
    tiny_clip: ClipModel, bands: tuple[str, ...]
) -> None:
    tower = inflate(config(tiny_clip, bands), tiny_clip, L2A.composite())
    student, teacher = student_and_teacher(tiny_clip, tower, bands)
    torch.testing.assert_close(student, teacher, atol=1e-5, rtol=0)
    assert all(parameter.requires_grad for parameter in tower.parameters())
    assert not any(parameter.requires_grad for parameter in tiny_clip.model.parameters())


@pytest.mark.realdata
@pytest.mark.parametrize("bands", ORDERS[2:])
def test_an_inflated_micro_clip_starts_as_its_teacher(
    real_data: Path, bands: tuple[str, ...]
) -> None:
    clip = load_clip(str(real_data / "micro-clip"))
    tower = inflate(config(clip, bands), clip, L2A.composite())
    student, teacher = student_and_teacher(clip, tower, bands)
    torch.testing.assert_close(student, teacher, atol=1e-4, rtol=1e-4)
    assert F.cosine_similarity(student, teacher).min() > 0.9999


def first_filters(module: nn.Module) -> Tensor:
    conv: Any = next(one for one in module.modules() if isinstance(one, nn.Conv2d))
    weight: Tensor = conv.weight
    return weight.detach()


def test_invisible_bands_start_at_zero_or_at_the_filters_mean(tiny_clip: ClipModel) -> None:
    bands = ("B08", "B04", "B03", "B02")
    rgb = first_filters(tiny_clip.visual)
    starts: dict[Literal["zero", "mean"], Tensor] = {
        "zero": torch.zeros_like(rgb[:, 0]),
        "mean": rgb.mean(1) / 4,
    }
    for others, expected in starts.items():
        tower = inflate(config(tiny_clip, bands), tiny_clip, L2A.composite(), others=others)
        filters = first_filters(tower.backbone)
        torch.testing.assert_close(filters[:, 0], expected)
        assert torch.equal(filters[:, 1:], rgb)


@pytest.mark.parametrize("bands", [("B05", "B06", "B07", "B8A", "B11", "B12"), ("B08",)])
def test_a_tower_without_visible_bands_sees_grey_as_its_teacher_does(
    tiny_clip: ClipModel, bands: tuple[str, ...]
) -> None:
    tower = inflate(config(tiny_clip, bands), tiny_clip, L2A.composite())
    without_composite = inflate(config(tiny_clip, bands), tiny_clip, None)
    assert tower.tower_id() == without_composite.tower_id()
    grey = torch.rand(3, 1, 32, 32)
    with torch.inference_mode():
        student = tower.eval()(grey.expand(-1, len(bands), -1, -1))
        teacher = tiny_clip.visual(grey.expand(-1, 3, -1, -1))
    torch.testing.assert_close(student, teacher, atol=1e-5, rtol=0)


def test_inflating_leaves_the_clip_as_it_is(tiny_clip: ClipModel) -> None:
    before = tiny_clip.anchor_id()
    tower = inflate(config(tiny_clip, ("B04", "B11")), tiny_clip, L2A.composite())
    with torch.no_grad():
        for parameter in tower.parameters():
            parameter.add_(1.0)
    assert tiny_clip.anchor_id() == before


@pytest.mark.parametrize("backbone", ["resnet10t", "vit_tiny_patch16_224", "mobilenetv3_small_050"])
def test_a_timm_backbone_takes_any_number_of_bands(tiny_clip: ClipModel, backbone: str) -> None:
    bands = ("B02", "B03", "B04", "B08", "B11")
    wanted = config(tiny_clip, bands, backbone, size=48)
    tower = build_tower(wanted, tiny_clip, seed=3)
    out = tower(torch.rand(2, 5, 48, 48))
    assert out.shape == (2, 32)
    assert tower.tower_id() == build_tower(wanted, tiny_clip, seed=3).tower_id()
    assert tower.tower_id() != build_tower(wanted, tiny_clip, seed=4).tower_id()


@pytest.mark.parametrize(
    ("backbone", "more", "said"),
    [
        ("resnet10x", {}, "unknown timm model 'resnet10x'; near it: .*resnet10t"),
        ("hf-hub:someone/model", {}, "unknown timm model"),
        ("vgg11", {"drop_path": 0.2}, "timm cannot build 'vgg11' .*drop_path_rate"),
        ("inflate", {"drop_path": 0.2}, "drop_path has no effect on an inflated tower"),
        ("resnet10t", {"embed_dim": 33}, "has D 33, the space 32"),
    ],
)
def test_a_tower_that_cannot_be_built_is_told(
    tiny_clip: ClipModel, backbone: str, more: dict[str, Any], said: str
) -> None:
    wanted = config(tiny_clip, ("B04",), backbone).model_copy(update=more)
    with pytest.raises(ModelError, match=said) as told:
        build_tower(wanted, tiny_clip)
    assert "\n" not in str(told.value)


def test_tower_id_changes_with_weights_and_with_configuration(tiny_clip: ClipModel) -> None:
    wanted = config(tiny_clip, THREE)
    tower = inflate(wanted, tiny_clip, L2A.composite())
    before = tower.tower_id()
    spec = wanted.input.model_copy(update={"missing": "zero"})
    other = SensorTower(wanted.model_copy(update={"input": spec}), tower.backbone, tower.projection)
    assert other.tower_id() != before
    with torch.no_grad():
        next(tower.parameters()).view(-1)[0].add_(0.01)
    assert tower.tower_id() != before


def test_a_tower_loads_from_its_file_and_from_no_other(
    tiny_clip: ClipModel, tmp_path: Path
) -> None:
    tower = inflate(config(tiny_clip, THREE), tiny_clip, L2A.composite())
    write_state_dict(tmp_path / "a.safetensors", tower.state_dict())
    loaded = load_tower(tower.config, tiny_clip, tmp_path / "a.safetensors")
    assert loaded.tower_id() == tower.tower_id()
    with pytest.raises(ModelError, match=r"conv1.weight is \(64, 3, 8, 8\), expected \(64, 1, 8"):
        load_tower(config(tiny_clip, ("B04",)), tiny_clip, tmp_path / "a.safetensors")
    big = config(tiny_clip, THREE, "vit_giant_patch14_224", size=4088)
    with pytest.raises(ModelError, match="does not fit its architecture"):
        load_tower(big, tiny_clip, tmp_path / "a.safetensors")


# Initial weights: checkpoints in the formats that are published, made here with random weights

VIT, NET = "vit_tiny_patch16_224", "resnet10t"
GIVEN = ("B01", "B02", "B03", "B04", "B08")


def published(backbone: str, size: int = 32) -> dict[str, Tensor]:
    """The state dict of a pretrained backbone over the bands `GIVEN`."""
    options: dict[str, Any] = {"in_chans": len(GIVEN), "num_classes": 0}
    if backbone == VIT:
        options["img_size"] = size
    state = timm.create_model(backbone, **options).state_dict()
    return {
        key: torch.full_like(value, 7) if value.ndim == 0 else torch.randn_like(value)
        for key, value in state.items()
    }


def prefixed(prefix: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {prefix + key: value for key, value in state.items()}


def moco(state: dict[str, Tensor]) -> dict[str, Any]:
    keys = {
        **prefixed("module.base_encoder.", state),
        **prefixed("module.momentum_encoder.", state),
        "module.base_encoder.head.0.weight": torch.zeros(2, 2),
        "module.predictor.0.weight": torch.zeros(2, 2),
    }
    return {"epoch": 1, "state_dict": keys, "optimizer": {"lr": 1.0}}


def moco_queue(state: dict[str, Tensor]) -> dict[str, Any]:
    keys = {
        **prefixed("module.encoder_q.", state),
        **prefixed("module.encoder_k.", state),
        "module.encoder_q.fc.0.weight": torch.zeros(2, 2),
        "module.queue": torch.zeros(2, 2),
        "module.queue_ptr": torch.zeros(1),
    }
    return {"state_dict": keys}


def dino(state: dict[str, Tensor]) -> dict[str, Any]:
    keys = {
        **prefixed("module.backbone.", state),
        "module.head.mlp.0.weight": torch.zeros(2, 2),
    }
    return {"student": {"x": torch.zeros(1)}, "teacher": keys, "epoch": 1}


def mae(state: dict[str, Tensor]) -> dict[str, Any]:
    keys = {
        **state,
        "mask_token": torch.zeros(1, 1, 4),
        "decoder_embed.weight": torch.zeros(2, 2),
        "decoder_pos_embed": torch.zeros(1, 5, 2),
    }
    return {"model": keys, "epoch": 1}


@pytest.mark.parametrize(
    ("backbone", "wrap", "num_left_out"),
    [
        (VIT, moco, 2),
        (NET, moco_queue, 3),
        (VIT, dino, 1),
        (VIT, mae, 3),
        (VIT, dict, 0),
        (NET, dict, 0),
    ],
    ids=["moco-v3", "moco-v2", "dino", "mae", "plain-vit", "plain-resnet"],
)
def test_published_checkpoints_load_with_bands_by_name(
    tiny_clip: ClipModel, tmp_path: Path, backbone: str, wrap: Any, num_left_out: int
) -> None:
    state = published(backbone)
    torch.save(wrap(state), tmp_path / "a.pth")
    wanted = ("B08", "B02", "B04")
    tower = build_tower(config(tiny_clip, wanted, backbone, size=32), tiny_clip)
    report = load_initial_weights(tower, tmp_path / "a.pth", bands=GIVEN)
    assert report["not_loaded"] == ["projection.weight"]
    momentum = len(state) if wrap in (moco, moco_queue) else 0
    assert len(report["left_out"]) == num_left_out + momentum
    own = tower.backbone.state_dict()
    first = "patch_embed.proj.weight" if backbone == VIT else "conv1.0.weight"
    assert torch.equal(own[first], state[first][:, [4, 1, 3]])
    for key in own.keys() - {first}:
        assert torch.equal(own[key], state[key]), key


@pytest.mark.parametrize(
    "prefix", ["_orig_mod.", "module._orig_mod.", "model.model.", "net.", "module.net.backbone."]
)
def test_a_prefix_of_any_name_is_removed_from_a_checkpoint(
    tiny_clip: ClipModel, tmp_path: Path, prefix: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    state = published(VIT)
    keys = prefixed(prefix, {**state, "head.weight": torch.zeros(2, 2)})
    torch.save({"state_dict": keys}, tmp_path / "a.pth")
    tower = build_tower(config(tiny_clip, GIVEN, VIT), tiny_clip)
    report = load_initial_weights(tower, tmp_path / "a.pth", bands=GIVEN)
    assert report["not_loaded"] == ["projection.weight"]
    assert [key.endswith("head.weight") for key in report["left_out"]] == [True]
    assert all(torch.equal(one, state[key]) for key, one in tower.backbone.state_dict().items())
    assert f"prefix {prefix!r} is removed" in caplog.text or "names of weights are" in caplog.text


def test_a_weight_under_two_prefixes_is_refused(tiny_clip: ClipModel, tmp_path: Path) -> None:
    state = published(VIT)
    torch.save({**state, **prefixed("backbone.", state)}, tmp_path / "a.pth")
    tower = build_tower(config(tiny_clip, GIVEN, VIT), tiny_clip)
    with pytest.raises(ModelError, match="under several prefixes"):
        load_initial_weights(tower, tmp_path / "a.pth", bands=GIVEN)


def test_what_did_not_load_is_reported(tiny_clip: ClipModel, tmp_path: Path) -> None:
    state = published(VIT)
    del state["norm.weight"], state["norm.bias"]
    torch.save(state, tmp_path / "a.pth")
    tower = build_tower(config(tiny_clip, GIVEN, VIT), tiny_clip)
    report = load_initial_weights(tower, tmp_path / "a.pth", bands=GIVEN)
    assert report["not_loaded"] == ["norm.bias", "norm.weight", "projection.weight"]


def test_positions_of_another_picture_size_are_resampled(
    tiny_clip: ClipModel, tmp_path: Path
) -> None:
    state = published(VIT, size=64)
    state["pos_embed"] = torch.ones_like(state["pos_embed"])
    state["pos_embed"][:, 0] = 9.0
    torch.save(state, tmp_path / "a.pth")
    tower = build_tower(config(tiny_clip, GIVEN, VIT, size=32), tiny_clip)
    load_initial_weights(tower, tmp_path / "a.pth", bands=GIVEN)
    positions = tower.backbone.state_dict()["pos_embed"]
    assert positions.shape == (1, 5, 192)
    np.testing.assert_allclose(positions[:, 0], 9.0)
    np.testing.assert_allclose(positions[:, 1:], 1.0, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "bands", "said"),
    [
        ({"surprise.weight": torch.zeros(1)}, GIVEN, "1 keys that .* lacks, such as 'surprise"),
        ({"norm.weight": torch.zeros(3)}, GIVEN, r"norm.weight is \(3,\), .* has \(192,\)"),
        ({"pos_embed": torch.zeros(1, 4, 192)}, GIVEN, "pos_embed is .* cannot be resampled"),
        ({"norm.weight": "text"}, GIVEN, "'norm.weight' is not a tensor"),
        ({3: torch.zeros(1)}, GIVEN, "3 is not a tensor"),
        ({}, GIVEN[:4], "but 4 band names were given"),
        ({}, ("B01", "B02", "B03", "B05", "B06"), "knows no band B04, B08"),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_told(
    tiny_clip: ClipModel,
    tmp_path: Path,
    change: dict[Any, Any],
    bands: tuple[str, ...],
    said: str,
) -> None:
    torch.save({**published(VIT), **change}, tmp_path / "a.pth")
    tower = build_tower(config(tiny_clip, GIVEN, VIT), tiny_clip)
    before = tower.tower_id()
    with pytest.raises(ModelError, match=said) as told:
        load_initial_weights(tower, tmp_path / "a.pth", bands=bands)
    assert "\n" not in str(told.value)
    assert tower.tower_id() == before
