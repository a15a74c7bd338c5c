"""Files as people have them: undeclared zeros, items of other tools, one bad file among many."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from numpy.typing import NDArray
from rasterio import Affine

from imagery import read_chip
from terralign.chips import make_layout
from terralign.datasets.catalog import open_dataset
from terralign.errors import DataError, NumbersError, SensorError
from terralign.scenes.pictures import decode_rgb
from terralign.scenes.plausible import check_numbers, check_sample
from terralign.sensors import SENSORS, parse_sensor

RNG = np.random.default_rng(0)
FOUR = ("B02", "B03", "B04", "B08")
LANDSAT = ("B2", "B3", "B4", "B5")
OWN = parse_sensor(
    {
        "name": "mine",
        "unit": "reflectance",
        "dn_scale": 1e-4,
        "bands": [{"name": name} for name in FOUR],
    }
)


def write(path: Path, pixels: NDArray[Any], names: tuple[str, ...] = (), **more: Any) -> Path:
    items = more.pop("items", {})
    of_bands = more.pop("of_bands", [])
    shape = {"count": len(pixels), "height": pixels.shape[1], "width": pixels.shape[2]}
    with rasterio.open(
        path, "w", driver="GTiff", dtype=pixels.dtype, crs="EPSG:32633",
        transform=Affine(10, 0, 5e5, 0, -10, 5e6), **shape, **more,
    ) as file:  # fmt: skip
        file.write(pixels)
        if names:
            file.descriptions = names
        file.update_tags(**items)
        for position, tags in enumerate(of_bands, start=1):
            file.update_tags(position, **tags)
    return path


def reflectance(num_bands: int = 4) -> NDArray[Any]:
    return RNG.uniform(0.02, 0.3, (num_bands, 64, 64)).astype(np.float32)


def decibels() -> NDArray[Any]:
    means = np.array([-10, -17])[:, None, None]
    return (means + RNG.normal(0, 3, (2, 64, 64))).astype(np.float32)


def half(pixels: NDArray[Any], number: float) -> NDArray[Any]:
    pixels = pixels.copy()
    pixels[:, :, :32] = number
    return pixels


@pytest.mark.parametrize(
    ("sensor", "pixels", "units"),
    [
        ("sentinel1-grd", half(decibels(), 0), "physical"),
        ("sentinel2-l2a", half(reflectance(), 0), "physical"),
        ("landsat-oli-l2", half(reflectance(), 0), "physical"),
        ("mine", half(np.round(reflectance() * 1e4), 0), "dn"),
    ],
)
def test_zeros_that_no_one_declared_are_warned_of(
    sensor: str, pixels: NDArray[Any], units: Any, caplog: pytest.LogCaptureFixture
) -> None:
    found = OWN if sensor == "mine" else SENSORS[sensor]
    layout = make_layout(found, found.band_names[: len(pixels)], units=units)
    check_numbers([(pixels, np.isfinite(pixels))], layout, origin="a.tif")
    assert "50 % of the pixels are exactly 0 in every band" in caplog.text


def test_a_dark_band_or_a_declared_zero_is_not_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    pixels = reflectance()
    pixels[3] = 0
    layout = make_layout(SENSORS["sentinel2-l2a"], FOUR, units="physical")
    check_numbers([(pixels, np.isfinite(pixels))], layout, origin="a.tif")
    dn = half(np.round(reflectance() * 1e4), 0)
    layout = make_layout(SENSORS["sentinel2-l2a"], FOUR, units="dn")
    check_numbers([(dn, np.isfinite(dn))], layout, origin="a.tif")
    assert not caplog.records


def test_eight_bits_in_wider_numbers_are_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    pixels = (reflectance() / 0.3 * 255).astype(np.uint16)
    layout = make_layout(SENSORS["sentinel2-l2a"], FOUR, units="dn")
    check_numbers([(pixels, pixels > 0)], layout, origin="a.tif")
    assert "check units and scale" in caplog.text


def test_offsets_of_a_wrong_sign_or_in_reflectance(caplog: pytest.LogCaptureFixture) -> None:
    dn = np.round(reflectance() * 1e4)
    layout = make_layout(OWN, FOUR, units="dn", dn_offset=1000)
    check_numbers([(dn, dn > 0)], layout, origin="a.tif")
    assert "removed by a negative one" in caplog.text
    with pytest.raises(SensorError, match="0, or -1000"):
        make_layout(SENSORS["sentinel2-l2a"], FOUR, units="dn", dn_offset=-0.1)


def test_radar_amplitudes_are_refused_with_the_formula() -> None:
    layout = make_layout(SENSORS["sentinel1-grd"], ("VV", "VH"), units="physical")
    amplitude = (500 * 10 ** (decibels() / 20)).astype(np.uint16)
    with pytest.raises(NumbersError, match=r"no dB. .*20 \* log10\(amplitude\)"):
        check_numbers([(amplitude, amplitude > 0)], layout, origin="a.tif")


@pytest.mark.parametrize("key", ["_FillValue", "missing_value"])
@pytest.mark.parametrize("where", ["items", "of_bands"])
def test_a_fill_value_in_an_item_is_no_data(tmp_path: Path, key: str, where: str) -> None:
    pixels = half(np.round(reflectance() * 1e4), -9999).astype(np.int16)
    items: Any = {key: "-9999"} if where == "items" else [{key: "-9999"}] * 4
    path = write(tmp_path / "a.tif", pixels, FOUR, **{where: items})
    chip = read_chip(path, sensor=SENSORS["sentinel2-l2a"], dn_offset=0)
    assert chip.valid_share == 0.5


def test_items_of_scale_count_in_any_case(tmp_path: Path) -> None:
    pixels = np.round(reflectance() * 1e4).astype(np.int16)
    upper = {"SCALE_FACTOR": "0.0001", "ADD_OFFSET": "0.0"}
    path = write(tmp_path / "a.tif", pixels, LANDSAT, items=upper)
    assert read_chip(path, sensor=SENSORS["landsat-oli-l2"]).layout.dn_scale == 1e-4
    alone = write(tmp_path / "b.tif", pixels, FOUR, items={"add_offset": "-0.1"})
    with pytest.raises(NumbersError, match="scale or offset"):
        read_chip(alone, sensor=SENSORS["sentinel2-l2a"], dn_offset=0)


@pytest.mark.parametrize("key", ["long_name", "NETCDF_VARNAME"])
def test_names_of_netcdf_name_bands(tmp_path: Path, key: str) -> None:
    pixels = np.round(reflectance() * 1e4).astype(np.int16)
    path = write(tmp_path / "a.tif", pixels, of_bands=[{key: name} for name in FOUR])
    assert read_chip(path, sensor=SENSORS["sentinel2-l2a"], dn_offset=0).bands == FOUR


def test_a_band_called_alpha_is_left_out(tmp_path: Path) -> None:
    pixels = np.round(reflectance(5) * 1e4).astype(np.uint16)
    path = write(tmp_path / "a.tif", pixels, (*FOUR, "alpha"))
    assert read_chip(path, sensor=SENSORS["sentinel2-l2a"], dn_offset=0).bands == FOUR


def test_a_black_channel_is_masked_alike_by_classify_and_by_data_sets(tmp_path: Path) -> None:
    pixels = RNG.integers(1, 255, (3, 64, 64), dtype=np.uint8)
    pixels[0, :20] = 0
    pixels[:, 40:] = 0
    path = write(tmp_path / "a.tif", pixels, photometric="RGB", nodata=0)
    decoded = decode_rgb(path)
    valid = np.isfinite(decoded)
    assert valid[:, :40].all()
    assert not valid[:, 40:].any()
    np.testing.assert_array_equal(read_chip(path).valid, valid)


def folder(root: Path, files: list[NDArray[Any]], names: tuple[str, ...], text: str) -> str:
    (root / "x").mkdir()
    for number, pixels in enumerate(files):
        write(root / f"x/{number:03}.tif", pixels, names)
    declaration = root / "d.toml"
    declaration.write_text(f'name = "d"\nreader = "folder"\nroot = "x"\nunlabelled = true\n{text}')
    return str(declaration)


DN = np.round(reflectance() * 1e4).astype(np.uint16)
ODD = {
    "reflectance among DN": (
        DN, reflectance(), FOUR, 'sensor = "sentinel2-l2a"\ndn_offset = 0\nunits = "dn"', "fraction"
    ),
    "8 bits among 16": (
        DN, (DN // 40).astype(np.uint8), FOUR, 'sensor = "sentinel2-l2a"\ndn_offset = 0', "uint8"
    ),
    "DN without offset among others": (
        DN + 1000, DN // 8 + 1, FOUR, 'sensor = "sentinel2-l2a"\ndn_offset = -1000', "contradicts"
    ),
    "linear power among dB": (
        decibels(), 10 ** (decibels() / 10), ("VV", "VH"), 'sensor = "sentinel1-grd"', "dB"
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", ODD)
@pytest.mark.parametrize("place", [0, 45])
def test_one_file_of_other_numbers_among_many_is_refused(
    tmp_path: Path, kind: str, place: int
) -> None:
    usual, odd, names, text, reason = ODD[kind]
    files = [usual] * 60
    files[place] = odd
    declaration = folder(tmp_path, files, names, text)

    def read() -> None:
        samples = open_dataset(declaration, data_root=tmp_path, split="all")
        samples.read(np.arange(len(samples)))

    with pytest.raises(NumbersError, match=f"{place:03}.tif.*{reason}"):
        read()


def test_what_differs_between_files_is_named(tmp_path: Path) -> None:
    declaration = folder(tmp_path, [DN, DN], FOUR, 'sensor = "sentinel2-l2a"\ndn_offset = 0\n')
    with rasterio.open(tmp_path / "x/001.tif", "r+") as file:
        file.scales, file.offsets = (1e-3,) * 4, (0.0,) * 4
    samples = open_dataset(declaration, data_root=tmp_path, split="all")
    with pytest.raises(DataError, match=r"stated scale 0\.001 and offset 0"):
        samples.read(np.arange(2))


def test_a_few_dead_pixels_of_a_sample_are_let_through() -> None:
    layout = make_layout(SENSORS["sentinel1-grd"], ("VV", "VH"), units="physical")
    pixels = decibels()
    pixels[0, 0, 0] = -9999
    check_sample(pixels, layout, origin="a.tif")
    check_sample(pixels * np.nan, layout, origin="a.tif")
