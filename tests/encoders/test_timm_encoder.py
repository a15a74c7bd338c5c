"""Plain timm encoders: their features are timm's own, their bands are named."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import timm
import torch

from terralign.chips import PixelLayout
from terralign.encoders.timm_encoder import load_timm_encoder
from terralign.errors import ModelError
from terralign.sensors import SENSORS

NAME = "test_vit"


def save(path: Path, num_bands: int, *, prefix: str = "") -> torch.nn.Module:
    torch.manual_seed(0)
    model = timm.create_model(NAME, num_classes=0, in_chans=num_bands).eval()
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
    with pytest.raises(ModelError, match="sentinel1-grd"):
        load_timm_encoder(f"{NAME}@sentinel1-grd:{tmp_path / 'w.pth'}")
