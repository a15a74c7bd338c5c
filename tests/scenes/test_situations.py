"""Situations of public bug reports: numbers, names and places that look right and are not."""

from __future__ import annotations

import datetime as dt
import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from numpy.typing import NDArray
from rasterio import Affine
from rasterio.control import GroundControlPoint
from rasterio.crs import CRS

from imagery import NEW_PRODUCT, read_chip, write_geotiff, write_product
from terralign.chips import make_layout
from terralign.errors import DataError, NumbersError, SensorError, UnknownOffsetError
from terralign.files import find_missing
from terralign.scenes.pictures import decode_rgb
from terralign.scenes.plausible import check_numbers
from terralign.scenes.scene import open_scene
from terralign.sensors import SENSORS, Sensor

RNG = np.random.default_rng(0)
L1C, L2A, S1 = SENSORS["sentinel2-l1c"], SENSORS["sentinel2-l2a"], SENSORS["sentinel1-grd"]
FOUR = ("B02", "B03", "B04", "B08")


def reflectance(num_bands: int, side: int = 40) -> NDArray[np.float64]:
    """Dark in the first band, brighter from band to band."""
    level = np.linspace(1, 2, num_bands)[:, None, None]
    return RNG.uniform(0.012, 0.15, (num_bands, side, side)) * level


def dn(num_bands: int = 4, offset: int = 0) -> NDArray[np.uint16]:
    return (np.round(reflectance(num_bands) * 1e4) + offset).astype(np.uint16)


def check(pixels: NDArray[Any], sensor: Sensor, bands: Any = (), **how: Any) -> None:
    layout = make_layout(sensor, bands or sensor.band_names, **how)
    check_numbers([(pixels, np.isfinite(pixels))], layout, origin=f"{id(pixels)}/scene.tif")


# Numbers


def test_numbers_below_zero_that_wrapped_around_are_refused() -> None:
    wrapped = dn() - np.uint16(1000)
    with pytest.raises(NumbersError, match=r"just below 65535.*subtract in int32"):
        check(wrapped, L2A, FOUR, units="dn")
    saturated = dn()
    saturated[:, :9] = 65535
    check(saturated, L2A, FOUR, units="dn")


@pytest.mark.parametrize("sensor", ["landsat-oli-l1", "landsat-oli-l2"])
def test_dn_of_landsat_read_as_those_of_sentinel2_are_warned_of(
    sensor: str, caplog: pytest.LogCaptureFixture
) -> None:
    landsat = SENSORS[sensor]
    numbers = np.round((reflectance(4) - landsat.add) / landsat.dn_scale).astype(np.uint16)
    check(numbers, L2A, FOUR, units="dn")
    assert "hardly a number is a reflectance below 0.5" in caplog.text


def test_reflectance_with_the_offset_left_in_is_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    physical = RNG.uniform(0.002, 0.3, (4, 40, 40)).astype(np.float32)
    check(physical, L2A, FOUR, units="physical")
    assert not caplog.records
    check(physical + np.float32(0.1), L2A, FOUR, units="physical")
    assert "lie between 0.10" in caplog.text
    assert "subtract 0.1" in caplog.text


def test_numbers_stretched_from_0_to_1_are_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    low, high = (one((1, 2), keepdims=True) for one in (reflectance(4).min, reflectance(4).max))
    numbers = reflectance(4).clip(low, high)
    low, high = numbers.min((1, 2), keepdims=True), numbers.max((1, 2), keepdims=True)
    check((numbers - low) / (high - low), L2A, FOUR, units="physical")
    assert "every band reaches from exactly 0 to exactly 1" in caplog.text


def test_bands_in_another_order_are_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    spectrum = dict.fromkeys(L1C.band_names, 1200) | {"B09": 400, "B10": 12, "B11": 2000}
    last = [*(name for name in L1C.band_names if name != "B8A"), "B8A"]
    noise = RNG.integers(0, 9, (13, 40, 40))

    def of(names: Any) -> NDArray[Any]:
        found: NDArray[Any] = noise + np.array([spectrum[name] for name in names])[:, None, None]
        found[:, :2] //= 4
        return found

    check(of(L1C.band_names), L1C, units="dn")
    assert not caplog.records
    check(of(last), L1C, units="dn")
    assert "B10 is brighter than B09" in caplog.text


def test_l2a_with_b8a_last_is_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    spectrum = dict.fromkeys(L2A.band_names, 900) | {"B8A": 3000, "B11": 1800, "B12": 900}
    last = [*(name for name in L2A.band_names if name != "B8A"), "B8A"]
    noise = RNG.integers(0, 900, (12, 40, 40))
    for names, num_warned in ((L2A.band_names, 0), (last, 1)):
        level = np.array([spectrum[name] for name in names])[:, None, None]
        check(noise + level - 700, L2A, units="dn")
        assert len(caplog.records) == num_warned
    assert "B12 is brighter than B11" in caplog.text


def test_exchanged_polarisations_are_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    decibel = np.stack([RNG.normal(-10, 3, (40, 40)), RNG.normal(-17, 3, (40, 40))])
    check(decibel, S1, units="physical")
    assert not caplog.records
    check(decibel[::-1], S1, units="physical")
    assert "VH is brighter than VV" in caplog.text


def test_decibels_declared_as_linear_power_are_refused(tmp_path: Path) -> None:
    decibel = RNG.normal(-12, 3, (2, 20, 20)).astype(np.float32)
    path = write_geotiff(tmp_path / "a.tif", decibel, ("VV", "VH"))
    with pytest.raises(NumbersError, match=r"a.tif: units='linear' .* are negative, as dB are"):
        open_scene(path, sensor=S1, units="linear")
    power = write_geotiff(tmp_path / "b.tif", 10 ** (decibel / 10), ("VV", "VH"))
    chip = read_chip(power, sensor=S1, units="linear")
    np.testing.assert_allclose(chip.pixels, decibel, atol=1e-4)


@pytest.mark.parametrize("is_picture", [True, False])
def test_alpha_counts_beside_a_no_data_number(tmp_path: Path, is_picture: bool) -> None:
    pixels = RNG.integers(1, 200, (4, 20, 20)) * (1 if is_picture else 10)
    pixels[0, :5] = pixels[1, :5] = pixels[2, :5] = 0
    pixels[3] = 255
    pixels[3, :, :4] = 0
    path = write_geotiff(
        tmp_path / "a.tif", pixels.astype(np.uint8 if is_picture else np.uint16), nodata=0
    )
    with rasterio.open(path, "r+") as file:
        kind = rasterio.enums.ColorInterp
        file.colorinterp = (kind.red, kind.green, kind.blue, kind.alpha)
    how: Any = {} if is_picture else {"sensor": L2A, "bands": ["B04", "B03", "B02"], "dn_offset": 0}
    expected = np.zeros((20, 20), bool)
    expected[5:, 4:] = True
    assert (read_chip(path, **how).valid == expected).all()
    if is_picture:
        assert (np.isfinite(decode_rgb(path)).all(0) == expected).all()


@pytest.mark.parametrize("name", ["dataMask", "valid_mask"])
def test_a_band_that_marks_data_masks_the_others(tmp_path: Path, name: str) -> None:
    pixels = np.concatenate([reflectance(4), np.ones((1, 40, 40))]).astype(np.float32)
    pixels[:, :10] = 0
    path = write_geotiff(tmp_path / "a.tif", pixels, (*FOUR, name))
    chip = read_chip(path, sensor=L2A, units="physical")
    assert chip.bands == FOUR
    assert (chip.valid == (np.arange(40) >= 10)[:, None]).all()


# Names


@pytest.mark.parametrize(
    ("name", "sensor", "said"),
    [
        ("S2A_MSIL1C_20200101T105441_N0208_R051_T31UDQ_20200101T111111", "sentinel2-l2a", "l1c"),
        ("LC08_L1TP_039037_20170817_20200903_02_T1", "landsat-oli-l2", "landsat-oli-l1"),
        ("LT05_L2SP_039037_20100817_20200903_02_T1", "landsat-oli-l2", "Landsat 1 to 7"),
        ("LE07_L1TP_039037_20100817_20200903_02_T1", "landsat-oli-l1", "Landsat 1 to 7"),
    ],
)
def test_a_name_of_another_product_than_declared_is_refused(
    tmp_path: Path, name: str, sensor: str, said: str
) -> None:
    bands = SENSORS[sensor].band_names[1:5]
    one = write_geotiff(tmp_path / f"{name}.tif", dn(), bands)
    for band, channel in zip(bands, dn(), strict=True):
        write_geotiff(tmp_path / name / f"{name}_{band}.TIF", channel[None])
    item = tmp_path / "item.json"
    assets = {"a": {"href": one.name, "eo:bands": [{"name": band} for band in bands]}}
    values = {"type": "Feature", "id": name, "properties": {}, "assets": assets}
    item.write_text(json.dumps(values), encoding="utf-8")
    for path in (one, tmp_path / name, item):
        with pytest.raises(SensorError, match=f"is a product of .*{said}"):
            open_scene(path, sensor=SENSORS[sensor])


def test_a_picture_or_a_sensor_of_your_own_may_come_from_any_product(tmp_path: Path) -> None:
    picture = write_geotiff(
        tmp_path / "S2A_MSIL1C_20200101T105441_N0208_R051_T31UDQ_20200101T111111.tif",
        RNG.integers(0, 255, (3, 9, 9)).astype(np.uint8),
    )
    assert open_scene(picture, sensor="rgb", bands=["red", "green", "blue"]).sensor.name == "rgb"


@pytest.mark.parametrize(
    "address",
    ["s3:/bucket/a.tif", "/vsizip/a.zip/b.tif", "file:/a.tif", "NETCDF:a.nc:B4", "zip:/a.zip!b"],
)
def test_what_is_no_path_is_said_to_be_none(address: str) -> None:
    assert "expected a path of this machine" in str(find_missing(address))


# The DN offset


def test_a_scale_alone_does_not_overrule_the_products_name(tmp_path: Path) -> None:
    path = write_geotiff(tmp_path / f"{NEW_PRODUCT}.tif", dn(offset=1000), FOUR)
    with rasterio.open(path, "r+") as file:
        file.scales = (1e-4,) * 4
    with pytest.raises(UnknownOffsetError, match=r"product name means -1000, but its bands state"):
        read_chip(path)
    assert read_chip(path, dn_offset=0).layout.dn_offset == 0
    with rasterio.open(path, "r+") as file:
        file.offsets = (-0.1,) * 4
    assert read_chip(path).layout.dn_offset == -1000
    plain = path.rename(tmp_path / "plain.tif")
    with rasterio.open(plain, "r+") as file:
        file.offsets = (0.0,) * 4
    assert read_chip(plain, sensor=L2A).layout.dn_offset == 0


# Places and times


def test_a_mask_of_clouds_that_lies_elsewhere_is_refused(tmp_path: Path) -> None:
    folder = write_product(tmp_path / NEW_PRODUCT, np.full((12, 12, 12), 2000, np.uint16))
    path = write_geotiff(folder / "SCL.tif", np.full((1, 6, 6), 9, np.uint8), gsd_m=20)
    assert read_chip_with_clouds(folder) == 1
    with rasterio.open(path, "r+") as file:
        file.transform = Affine(20, 0, 600_000, 0, -20, 5_000_000)
    with pytest.raises(DataError, match=r"SCL.tif: the mask of clouds lies elsewhere"):
        read_chip_with_clouds(folder)


def read_chip_with_clouds(folder: Path) -> float | None:
    return open_scene(folder, dn_offset=-1000).read(clouds=True).cloud_share


def test_control_points_alone_are_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "a.tif"
    points = [
        GroundControlPoint(row, column, 15 + column / 1e4, 45 - row / 1e4)
        for row in (0, 40)
        for column in (0, 40)
    ]
    with (
        warnings.catch_warnings(action="ignore"),
        rasterio.open(
            path, "w", driver="GTiff", count=4, height=40, width=40, dtype="uint16"
        ) as file,
    ):
        file.write(dn())
        file.descriptions = FOUR
        file.gcps = (points, CRS.from_epsg(4326))
    open_scene(path, sensor=L2A, dn_offset=0)
    assert "placed on the globe by ground control points only" in caplog.text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2020-01-01t10:00:00z", dt.datetime(2020, 1, 1, 10, tzinfo=dt.UTC)),
        ("9999-12-31T23:59:59-05:00", dt.datetime(2019, 5, 5, tzinfo=dt.UTC)),
        ("0001-01-01T00:00:00+05:00", dt.datetime(2019, 5, 5, tzinfo=dt.UTC)),
    ],
)
def test_an_item_is_read_whatever_its_date(
    tmp_path: Path, text: str, expected: dt.datetime
) -> None:
    write_geotiff(tmp_path / "a b.tif", dn(), FOUR)
    bands = [{"name": name} for name in FOUR]
    item = tmp_path / "item.json"
    values = {
        "type": "Feature",
        "id": "a",
        "collection": "sentinel-2-l2a",
        "geometry": None,
        "bbox": [179.5, -18, -179.5, -17],
        "properties": {"datetime": text, "start_datetime": "2019-05-05T00:00:00Z"},
        "assets": {"a": {"href": "a%20b.tif", "eo:bands": bands}},
    }
    item.write_text(json.dumps(values), encoding="utf-8")
    scene = open_scene(item, dn_offset=0)
    assert scene.datetime == expected
    assert scene.footprint is not None
    assert scene.footprint["type"] == "MultiPolygon"  # on both sides of the antimeridian
