"""Chips as others publish them: what names its bands is read by name, what does not is declared."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import rasterio

from imagery import read_chip
from terralign.datasets.class_folders import open_folder
from terralign.datasets.pixels import Pixels
from terralign.errors import DataError, SensorError
from terralign.sensors import SENSORS

pytestmark = pytest.mark.realdata

L1C, L2A, S1 = (SENSORS[name] for name in ("sentinel2-l1c", "sentinel2-l2a", "sentinel1-grd"))


def test_sen1floods11_names_its_bands(real_data: Path) -> None:
    path = real_data / "formats" / "sen1floods11" / "S2" / "Spain_7370579_S2Hand.tif"
    chip = read_chip(path, sensor=L1C, dn_offset=0)
    assert chip.bands == L1C.band_names
    assert chip.bands[8] == "B8A"
    with rasterio.open(path) as file:
        np.testing.assert_array_equal(chip.pixels, file.read())
    np.testing.assert_array_equal(chip.valid, chip.pixels != 0)
    with pytest.raises(SensorError, match=r"Spain_7370579_S2Hand.tif.*offset unknown"):
        read_chip(path, sensor=L1C)
    with pytest.raises(DataError, match=r"called 'B1', 'B2', .*'B10' is not known"):
        read_chip(path, sensor=L2A, dn_offset=0)


def test_sen1floods11_radar_is_in_decibel(real_data: Path) -> None:
    path = real_data / "formats" / "sen1floods11" / "S1" / "Spain_7370579_S1Hand.tif"
    chip = read_chip(path, sensor=S1)
    assert (chip.bands, chip.layout.units) == (("VV", "VH"), "physical")
    np.testing.assert_array_equal(chip.valid, np.isfinite(chip.pixels))
    vv, vh = (np.nanmean(band) for band in chip.pixels)
    assert -25 < vh < vv < 0


def test_sen1floods11_in_a_class_folder(real_data: Path, tmp_path: Path) -> None:
    folder = real_data / "formats" / "sen1floods11"
    (tmp_path / "flood").mkdir()
    (tmp_path / "flood" / "spain.tif").symlink_to(folder / "S2" / "Spain_7370579_S2Hand.tif")
    samples = open_folder(
        tmp_path,
        name="floods",
        split="all",
        classes={"flood": "a flooded field"},
        class_list="floods",
        pixels=Pixels(sensor=L1C, dn_offset=0.0),
    )
    assert samples.layouts["sentinel2-l1c"].bands == L1C.band_names
    assert samples.read(np.array([0]))["sentinel2-l1c"].shape == (1, 13, 512, 512)


def test_chips_that_do_not_name_their_bands_are_declared(real_data: Path) -> None:
    paths = sorted((real_data / "formats" / "s2_l2a_224").glob("*.tif"))
    with pytest.raises(DataError, match=r"has 12 band\(s\) and does not name them"):
        read_chip(paths[0], sensor=L2A, dn_offset=0)
    for path in paths:
        chip = read_chip(path, sensor=L2A, bands=L2A.band_names, dn_offset=0)
        assert (chip.pixels.shape, chip.pixels.dtype) == ((12, 224, 224), np.int16)
        assert chip.layout.units == "dn"
        steps = np.abs(np.diff(chip.pixels.astype(float), axis=2)).mean((1, 2))
        roughness = steps / chip.pixels.std((1, 2))
        smoothest = {chip.bands[index] for index in np.argsort(roughness)[:2]}
        assert smoothest == {"B01", "B09"}, "the bands of 60 m"
