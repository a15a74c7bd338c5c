"""Plain timm encoders: their features are timm's own, their bands are named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch

from terralign.chips import PixelLayout
from terralign.encoders.timm_encoder import TimmEncoder, load_timm_encoder
from terralign.errors import ModelError, SensorError
from terralign.sensors import SENSORS

NAME, RESNET = "test_vit", "test_resnet"
L1C, L2A = SENSORS["sentinel2-l1c"], SENSORS["sentinel2-l2a"]
B10 = L1C.band_names.index("B10")


def save(path: Path, num_bands: int, *, prefix: str = "", name: str = NAME) -> torch.nn.Module:
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=0, in_chans=num_bands).eval()
    torch.save({f"{prefix}{key}": value for key, value in model.state_dict().items()}, path)
    return model


def test_features_of_pictures_are_timms(tmp_path: Path) -> None:
    model = save(tmp_path / "w.pth", 3)
    encoder = load_timm_encoder(f"{NAME}:{tmp_path / 'w.pth'}")
    assert encoder.tower_names == ("rgb",)
    size = encoder.input_spec().size
    pixels = np.random.default_rng(0).integers(0, 256, (2, 3, size, size)).astype(np.uint8)
    rgb = SENSORS["rgb"]
    layout = PixelLayout(sensor=rgb, bands=rgb.band_names, units="dn", composite=rgb.composite())
    found = encoder.encode_layout(torch.from_numpy(pixels), layout, tower="rgb")
    cfg = model.pretrained_cfg
    mean, std = (torch.tensor(cfg[key])[:, None, None] for key in ("mean", "std"))
    with torch.inference_mode():
        wanted = model((torch.from_numpy(pixels) / 255 - mean) / std)
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=0)


def test_bands_of_a_sensor_are_taken_by_name(tmp_path: Path) -> None:
    sensor = SENSORS["sentinel2-l1c"]
    model = save(tmp_path / "w.pth", 13, prefix="module.")
    encoder = load_timm_encoder(f"{NAME}@{sensor.name}:{tmp_path / 'w.pth'}")
    assert encoder.tower_names == (sensor.name,)
    size = encoder.input_spec().size
    pixels = np.random.default_rng(0).integers(1, 10_000, (2, 13, size, size)).astype(np.int32)
    shuffled = [*sensor.band_names[5:], *sensor.band_names[:5]]
    layout = PixelLayout(sensor=sensor, bands=tuple(shuffled), units="dn")
    order = [sensor.band_names.index(band) for band in shuffled]
    found = encoder.encode_layout(torch.from_numpy(pixels[:, order]), layout, tower=sensor.name)
    with torch.inference_mode():
        wanted = model(torch.from_numpy(pixels) / 10_000)
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=0)


def numbers(encoder: TimmEncoder, num_bands: int) -> torch.Tensor:
    """DN (2, C, size, size) int32, above and below what an offset leaves in 0-1."""
    size = encoder.input_spec().size
    generator = torch.Generator().manual_seed(0)
    shape = (2, num_bands, size, size)
    return torch.randint(1, 13_000, shape, generator=generator, dtype=torch.int32)


@pytest.mark.parametrize("name", [NAME, RESNET])
@pytest.mark.parametrize("offset", [0.0, -1000.0])
def test_an_encoder_over_l1c_takes_l2a_with_b10_at_zero(
    tmp_path: Path, name: str, offset: float
) -> None:
    model = save(tmp_path / "w.pth", 13, name=name)
    encoder = load_timm_encoder(f"{name}@{L1C.name}:{tmp_path / 'w.pth'}")
    pixels = numbers(encoder, 12)
    layout = PixelLayout(sensor=L2A, bands=L2A.band_names, units="dn", dn_offset=offset)
    found = encoder.encode_layout(pixels, layout, tower=L1C.name)

    # By hand: reflectance of the twelve bands by their own offset, an empty plane before B11.
    bands = ((pixels.float() + offset) / 10_000).clamp(0, 1)
    by_hand = torch.cat([bands[:, :B10], torch.zeros_like(bands[:, :1]), bands[:, B10:]], 1)
    with torch.inference_mode():
        wanted = model(by_hand)
        shifted = model(torch.cat([bands, torch.zeros_like(bands[:, :1])], 1))
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=0)
    assert (found - shifted).abs().max() > 1e-2  # the place of the empty plane matters


def test_an_encoder_over_l1c_still_sees_b10_of_l1c(tmp_path: Path) -> None:
    save(tmp_path / "w.pth", 13)
    encoder = load_timm_encoder(f"{NAME}@{L1C.name}:{tmp_path / 'w.pth'}")
    pixels = numbers(encoder, 13)
    changed = pixels.clone()
    changed[:, B10] = 1
    layout = PixelLayout(sensor=L1C, bands=L1C.band_names, units="dn")
    seen, other = (encoder.encode_layout(p, layout, tower=L1C.name) for p in (pixels, changed))
    assert (seen - other).abs().max() > 1e-2


@pytest.mark.parametrize("offset", [0.0, -1000.0])
def test_an_encoder_over_l2a_takes_l1c_without_b10(tmp_path: Path, offset: float) -> None:
    model = save(tmp_path / "w.pth", 12)
    encoder = load_timm_encoder(f"{NAME}@{L2A.name}:{tmp_path / 'w.pth'}")
    pixels = numbers(encoder, 13)
    layout = PixelLayout(sensor=L1C, bands=L1C.band_names, units="dn", dn_offset=offset)
    found = encoder.encode_layout(pixels, layout, tower=L2A.name)
    kept = [index for index in range(13) if index != B10]
    with torch.inference_mode():
        wanted = model(((pixels[:, kept].float() + offset) / 10_000).clamp(0, 1))
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=0)


def test_radar_and_optical_data_do_not_meet(tmp_path: Path) -> None:
    save(tmp_path / "two.pth", 2)
    with pytest.raises(ModelError, match=r"how sentinel1-grd is scaled .* is not known"):
        load_timm_encoder(f"{NAME}@sentinel1-grd:{tmp_path / 'two.pth'}")
    save(tmp_path / "w.pth", 13)
    encoder = load_timm_encoder(f"{NAME}@{L1C.name}:{tmp_path / 'w.pth'}")
    radar = SENSORS["sentinel1-grd"]
    layout = PixelLayout(sensor=radar, bands=radar.band_names, units="physical")
    with pytest.raises(
        SensorError,
        match=r"^tower takes sentinel2-l1c, sentinel2-l2a; the pixels are of sensor "
        r"'sentinel1-grd'$",
    ):
        encoder.encode_layout(torch.zeros(1, 2, 32, 32), layout, tower=L1C.name)


def test_faults_are_told(tmp_path: Path) -> None:
    save(tmp_path / "w.pth", 3)
    with pytest.raises(ModelError, match="unknown timm model 'vit_nothing'"):
        load_timm_encoder("vit_nothing")
    with pytest.raises(ModelError, match="name a file"):
        load_timm_encoder(f"{NAME}@sentinel2-l1c")
    with pytest.raises(ModelError, match=r"first layer of shape .* 13 band names"):
        load_timm_encoder(f"{NAME}@sentinel2-l1c:{tmp_path / 'w.pth'}")
    with pytest.raises(ModelError, match="no checkpoint at"):
        load_timm_encoder(f"{NAME}:{tmp_path / 'none.pth'}")
    save(tmp_path / "w13.pth", 13)
    with pytest.raises(ModelError, match=r"12 band names .* \(with 13: sentinel2-l1c, hls-s30\)$"):
        load_timm_encoder(f"{NAME}@sentinel2-l2a:{tmp_path / 'w13.pth'}")


def test_published_weights_are_taken_at_the_commit_that_is_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[object] = []
    create = timm.create_model

    def fetching(name: str, *, pretrained: bool, pretrained_cfg_overlay: object, **how: Any) -> Any:
        asked.append(pretrained_cfg_overlay if pretrained else "nothing")
        return create(name, **how)

    monkeypatch.setattr(timm, "create_model", fetching)
    commit = "0123456789abcdef" * 2 + "01234567"
    assert load_timm_encoder(f"{NAME}@{commit}").tower_names == ("rgb",)
    load_timm_encoder(NAME)
    assert asked == [{"hf_hub_id": f"timm/test_vit.r160_in1k@{commit}"}, None]
    with pytest.raises(ModelError, match=r"has no model on the hub; leave the revision out"):
        load_timm_encoder(f"coatnet_0_224@{commit}")
    with pytest.raises(SensorError, match="unknown sensor"):
        load_timm_encoder(f"{NAME}@{commit[:-1]}:file.pth")
