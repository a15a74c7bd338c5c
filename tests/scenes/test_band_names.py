"""Names of bands in files: understood where they can mean one band, else quoted, never guessed."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from rasterio import Affine
from rasterio.enums import ColorInterp

from imagery import read_chip
from terralign.errors import DataError
from terralign.scenes.declared import Declared
from terralign.scenes.scene import read_geotiff
from terralign.sensors import SENSORS

L2A, S1, RGB = (SENSORS[name] for name in ("sentinel2-l2a", "sentinel1-grd", "rgb"))
LANDSAT = SENSORS["landsat-oli-l2"]
GEE = ("B1", "B2", "B3", "B4", "B5", "B6", "B7", "B8", "B8A", "B9", "B11", "B12")


def write(
    path: Path,
    names: Sequence[str],
    tags: Sequence[dict[str, Any]] = (),
    dtype: str = "uint16",
    **profile: Any,
) -> Path:
    """A GeoTIFF whose band n is full of 10 n."""
    count = max(len(names), len(tags))
    pixels = np.repeat(np.arange(1, count + 1) * 10, 16).reshape(count, 4, 4).astype(dtype)
    with rasterio.open(
        path, "w", driver="GTiff", count=count, height=4, width=4, dtype=dtype, crs="EPSG:32633",
        transform=Affine(10, 0, 500_000, 0, -10, 5_000_000), **profile,
    ) as file:  # fmt: skip
        file.write(pixels)
        for index, name in enumerate(names, start=1):
            if name:
                file.set_band_description(index, name)
        for index, one in enumerate(tags, start=1):
            file.update_tags(index, **one)
    return path


def levels(path: Path, **reading: Any) -> dict[str, int]:
    """Band -> its level, which shows where in the file it came from."""
    how = {"sensor": L2A, "dn_offset": 0, "units": "dn"} | reading
    chip = read_geotiff(path, Declared(**how))
    return dict(zip(chip.bands, chip.pixels[:, 0, 0].astype(int).tolist(), strict=True))


@pytest.mark.parametrize(
    ("names", "bands"),
    [
        (["B4", "B03", "b8a"], ["B04", "B03", "B8A"]),
        ([" B4 ", "blue", "NIR"], ["B04", "B02", "B08"]),
        (["B4, central wavelength 665 nm", "B8A, central wavelength 865 nm"], ["B04", "B8A"]),
        (["B04_10m", "B11_20m"], ["B04", "B11"]),
        (["B1", "B2", "B3", "B8"], ["B01", "B02", "B03", "B08"]),
    ],
)
def test_names_of_other_programs_are_understood(
    tmp_path: Path, names: list[str], bands: list[str]
) -> None:
    found = levels(write(tmp_path / "a.tif", names))
    assert found == {band: 10 * n for n, band in enumerate(bands, start=1)}


@pytest.mark.parametrize("key", ["BANDNAME", "BAND_NAME", "band", "Name"])
def test_names_in_tags_are_understood(tmp_path: Path, key: str) -> None:
    tags = [{key: "B4", "WAVELENGTH": "665"}, {key: "B3"}]
    assert levels(write(tmp_path / "a.tif", [], tags)) == {"B04": 10, "B03": 20}
    assert levels(write(tmp_path / "b.tif", ["Band 1", "Band 2"], tags)) == {"B04": 10, "B03": 20}
    other = [{key: "%s reflectance"}, {key: "other"}]
    assert levels(write(tmp_path / "d.tif", ["B4", "B2"], other)) == {"B04": 10, "B02": 20}
    with pytest.raises(DataError, match=r"band 1 'B4' and 'B3'|band 1 'B3' and 'B4'"):
        levels(write(tmp_path / "c.tif", ["B3", "B4"], tags))


@pytest.mark.parametrize("name", ["Sigma0_{}_db", "Sigma0_{}", "sigma0 {}", "Gamma0_{}_dB", "{}"])
def test_names_of_backscatter_name_the_polarisation(
    tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    names = [name.format("VV"), name.format("VH")]
    path = write(tmp_path / "a.tif", names, dtype="float32")
    assert levels(path, sensor=S1, units=None, dn_offset=None) == {"VV": 10, "VH": 20}
    assert ("is gamma0" in caplog.text) == name.startswith("Gamma")


@pytest.mark.parametrize(
    "names",
    [
        ["Intensity_VV", "Intensity_VH"],
        ["Beta0_VV", "Beta0_VH"],
        ["Sigma0_VV_mst_20Mar2020", "Sigma0_VV_slv1_01Apr2020"],
    ],
)
def test_other_quantities_of_radar_are_quoted(tmp_path: Path, names: list[str]) -> None:
    path = write(tmp_path / "a.tif", names, dtype="float32")
    with pytest.raises(DataError, match=rf"called '{names[0]}', '{names[1]}': .* is not known"):
        read_chip(path, sensor=S1)


@pytest.mark.parametrize(
    "extra",
    [
        *("QA60", "SCL", "MSK_CLDPRB", "AOT", "WVP", "dataMask", "SCL, Scene Classification"),
        "cloud, in %d",
    ],
)
def test_bands_that_measure_nothing_are_left_out_with_one_warning(
    tmp_path: Path, extra: str, caplog: pytest.LogCaptureFixture
) -> None:
    paths = [write(tmp_path / f"{n}.tif", [extra, *GEE], dtype="float64") for n in range(2)]
    for path in paths:
        found = levels(path)
        assert list(found) == list(L2A.band_names)
        assert list(found.values()) == [10 * n for n in range(2, 14)]
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert f"0.tif: {extra!r} is no band of sensor 'sentinel2-l2a', left out" in record.getMessage()


def test_only_the_bands_that_are_read_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The type, the memory and the mask are those of the bands, not of a mask beside them."""
    path = tmp_path / "a.tif"
    pixels = np.full((3, 4, 4), 50, np.uint16)
    pixels[2] = 0
    with rasterio.open(
        path, "w", driver="GTiff", count=3, height=4, width=4, dtype="uint16", crs="EPSG:32633",
        transform=Affine(10, 0, 500_000, 0, -10, 5_000_000),
    ) as file:  # fmt: skip
        file.write(pixels)
        file.descriptions = ("B4", "B3", "QA60")
    monkeypatch.setenv("TERRALIGN_LIMITS", "chip_bytes=192")
    chip = read_chip(path, sensor=L2A, dn_offset=0)
    assert chip.valid.all()
    assert chip.pixels.shape == (2, 4, 4)


@pytest.mark.parametrize(
    "names",
    [
        ["B1", "B2", "B3", "B4"],
        ["Band 1", "Band 2", "Band 3", "Band 4"],
        ["band_1", "band_2", "band_3", "band_4"],
        ["Layer 1", "Layer 2"],
        ["1", "2", "3"],
        ["band_0", "band_1", "band_2"],
        ["b01", "b02"],
        ["B1"],
        [*(f"B{n}" for n in range(1, 13))],
    ],
)
def test_positions_are_no_names(tmp_path: Path, names: list[str]) -> None:
    path = write(tmp_path / "a.tif", names)
    with pytest.raises(DataError, match=rf"'{names[0]}'.* only positions; .*bands="):
        levels(path)
    wanted = L2A.band_names[::-1][: len(names)]
    assert levels(path, bands=wanted) == {band: 10 * n for n, band in enumerate(wanted, start=1)}


def test_the_names_of_a_whole_sensor_in_its_order_are_names(tmp_path: Path) -> None:
    reading: dict[str, Any] = {"sensor": LANDSAT, "dn_offset": None}
    path = write(tmp_path / "a.tif", LANDSAT.band_names)
    assert list(levels(path, **reading)) == list(LANDSAT.band_names)
    counted = write(tmp_path / "b.tif", [f"Band {n}" for n in range(1, 8)])
    with pytest.raises(DataError, match="only positions"):
        levels(counted, **reading)
    fewer = write(tmp_path / "c.tif", LANDSAT.band_names[:4])
    with pytest.raises(DataError, match="only positions"):
        levels(fewer, **reading)


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["B4", "", "B2"], r"called 'B4', \(no name\), 'B2': band 2 has no name"),
        (["B4", "red"], "called 'B4', 'red': two of them are B04"),
        (["B4", "NDVI"], "'NDVI' is not known"),
        (["665 nm", "560 nm"], "'665 nm' is not known"),
        (["B4, central wavelength 865 nm", "B3"], "'B4, central wavelength 865 nm' is not known"),
        (["SCL", "QA60"], "called 'SCL', 'QA60': none measures"),
    ],
)
def test_what_is_not_understood_is_quoted(tmp_path: Path, names: list[str], said: str) -> None:
    with pytest.raises(DataError, match=said):
        levels(write(tmp_path / "a.tif", names))


def test_bands_are_left_out_or_picked_by_name(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tif", ["B2", "B3", "NDVI", "B8"])
    assert levels(path, bands=["B02", "B03", "-", "B08"]) == {"B02": 10, "B03": 20, "B08": 40}
    assert levels(path, bands=["B8", "skip", "-", "SKIP"][:1]) == {"B08": 40}
    assert levels(path, bands=["B08", "B02"]) == {"B08": 40, "B02": 10}
    mute = write(tmp_path / "mute.tif", ["", "", ""])
    assert levels(mute, bands=["-", "B04", "-"]) == {"B04": 20}
    with pytest.raises(DataError, match=r"has 3 band\(s\), but 1 were declared \(B04\).*'-' for"):
        levels(mute, bands=["B04"])
    with pytest.raises(DataError, match=r"called 'B2', .* but 2 were declared"):
        levels(path, bands=["B02", "B04"])
    with pytest.raises(DataError, match="every band was declared as left out"):
        levels(path, bands=["-"] * 4)


def test_names_that_contradict_the_declaration_are_an_error_one_by_one(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tif", ["B4, central wavelength 665 nm", "NDVI", "B2"])
    with pytest.raises(DataError, match="calls its bands B04, B02, but B02, B04 was declared"):
        levels(path, bands=["B02", "-", "B04"])


def test_alpha_is_no_band(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tif", [""] * 4, dtype="uint8", photometric="RGB", alpha="YES")
    with rasterio.open(path) as file:
        assert file.colorinterp[3] == ColorInterp.alpha
    assert read_chip(path).bands == RGB.band_names
    assert levels(path, bands=["B04", "B03", "B02"]) == {"B04": 10, "B03": 20, "B02": 30}
    assert len(levels(path, bands=["B04", "B03", "B02", "B08"])) == 4


def test_names_that_are_no_text_are_told(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tif", ["B2", "B3", "B4"])
    data = path.read_bytes()
    assert data.count(b">B3<") == 1
    path.write_bytes(data.replace(b">B3<", b">\xff3<"))
    with pytest.raises(DataError, match=r"a.tif is damaged: 'utf-8' codec can't decode"):
        read_chip(path, sensor=SENSORS["sentinel2-l2a"], dn_offset=0)
