"""What is declared is held against the numbers: impossible is refused, unlikely warned of once."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from numpy.typing import NDArray
from rasterio import Affine

from imagery import read_chip
from terralign.chips import PixelLayout, make_layout
from terralign.errors import DataError, NumbersError, SensorError
from terralign.scenes import plausible
from terralign.scenes.plausible import check_numbers, sentinel2_offset_verdict
from terralign.scenes.scene import open_scene
from terralign.sensors import SENSORS, Sensor, describe_sensor, parse_sensor

RNG = np.random.default_rng(0)
MINE = replace(SENSORS["landsat-oli-l2"], name="mine", dn_scale=1e-4, add=0.0, composites=())


def layout_of(sensor: Sensor, **how: Any) -> PixelLayout:
    return make_layout(sensor, sensor.band_names, **how)


def check(pixels: NDArray[Any], layout: PixelLayout) -> None:
    check_numbers([(pixels, np.isfinite(pixels))], layout, origin="scene.tif")


def reflectance(sensor: Sensor) -> NDArray[Any]:
    """(C, 32, 32): dark water to bright soil."""
    return RNG.uniform(0.01, 0.45, (len(sensor.bands), 32, 32)).astype(np.float32)


OPTICAL = [*(one for one in SENSORS.values() if one.unit == "reflectance"), MINE]


@pytest.mark.parametrize("sensor", OPTICAL, ids=lambda one: one.name)
def test_right_declarations_of_reflectance_pass_without_a_word(
    sensor: Sensor, caplog: pytest.LogCaptureFixture
) -> None:
    physical = reflectance(sensor)
    check(physical, layout_of(sensor, units="physical"))
    dn = np.round((physical - sensor.add) / sensor.dn_scale)
    check(dn.astype(np.uint16), layout_of(sensor, units="dn"))
    check(dn.astype(np.float64), layout_of(sensor, units="dn"))
    if sensor.offset_varies:
        check((dn + 1000).astype(np.int16), layout_of(sensor, units="dn", dn_offset=-1000.0))
    assert not caplog.records


def test_one_band_of_fractions_among_dn_is_refused() -> None:
    layout = make_layout(SENSORS["sentinel2-l2a"], ["B02", "B03", "B04"], units="dn")
    pixels = np.random.default_rng(0).integers(200, 3000, (3, 20, 20)).astype(np.float32)
    check(pixels, layout)
    pixels[2] *= 1e-4
    with pytest.raises(NumbersError, match=r"fractions from .* in B04 are declared to be DN"):
        check(pixels, layout)


@pytest.mark.parametrize("sensor", OPTICAL, ids=lambda one: one.name)
def test_numbers_of_another_unit_are_refused_for_every_optical_sensor(sensor: Sensor) -> None:
    physical = reflectance(sensor)
    dn = np.round((physical - sensor.add) / sensor.dn_scale).astype(np.uint16)
    with pytest.raises(DataError, match=r"scene.tif: .*lie outside.*units='dn'"):
        check(dn, layout_of(sensor, units="physical"))
    with pytest.raises(DataError, match=r"fractions from .* units='physical'"):
        check(physical, layout_of(sensor, units="dn"))
    with pytest.raises(DataError, match=r"uint8 numbers reach 255.*cannot hold them"):
        check((physical * 255).astype(np.uint8), layout_of(sensor, units="dn"))
    with pytest.raises(DataError, match="per cent"):
        check(100 * physical, layout_of(sensor, units="physical"))


@pytest.mark.parametrize("sensor", OPTICAL, ids=lambda one: one.name)
def test_an_undeclared_no_data_number_is_refused(sensor: Sensor) -> None:
    physical = reflectance(sensor)
    physical[:, :4] = -9999
    with pytest.raises(
        DataError, match=r"12\.\d % .* such as -9999; declare the number that marks"
    ):
        check(physical, layout_of(sensor, units="physical"))


def test_another_scale_than_the_sensors_is_refused() -> None:
    hls = np.round(reflectance(MINE) * 1e4).astype(np.int16)
    with pytest.raises(DataError, match=r"reflectance below .*scale or offset"):
        check(hls, layout_of(SENSORS["landsat-oli-l2"], units="dn"))


@pytest.mark.parametrize("offset", [1000.0, 1.0, 1e9, -20000.0])
def test_an_offset_that_no_sentinel2_product_has_is_refused(offset: float) -> None:
    for name in ("sentinel2-l1c", "sentinel2-l2a"):
        with pytest.raises(SensorError, match=r"0, or -1000 for processing baseline"):
            layout_of(SENSORS[name], units="dn", dn_offset=offset)
    with pytest.raises(SensorError, match="have no offset of their own"):
        layout_of(SENSORS["landsat-oli-l1"], units="dn", dn_offset=offset)


def scene(dark: float, offset: float) -> NDArray[Any]:
    """DN (3, 64, 64) of a scene whose darkest reflectance is `dark`."""
    values = dark + RNG.gamma(2.0, 0.05, (3, 64, 64))
    return np.round(values * 1e4 - offset)


def test_the_offsets_three_verdicts() -> None:
    assert sentinel2_offset_verdict(scene(0.005, 0), 0) == "agrees"
    assert sentinel2_offset_verdict(scene(0.005, 0), -1000) == "contradicts"
    assert sentinel2_offset_verdict(scene(0.005, -1000), -1000) == "agrees"
    hazy = scene(0.15, 0)
    assert sentinel2_offset_verdict(hazy, 0) == "undecidable"
    assert sentinel2_offset_verdict(hazy, -1000) == "undecidable"


def test_slightly_negative_pixels_of_esas_own_products_are_let_through() -> None:
    dn = scene(0.005, -1000)
    dn[:, :20] -= 150  # down to a reflectance of about -0.01
    layout = make_layout(
        SENSORS["sentinel2-l2a"], ("B02", "B03", "B04"), units="dn", dn_offset=-1000.0
    )
    check(dn, layout)
    with pytest.raises(DataError, match=r"offset of -1000 contradicts the pixels.*dn_offset=0"):
        check(scene(0.005, 0), layout)


def test_an_offset_left_in_is_warned_of_once(caplog: pytest.LogCaptureFixture) -> None:
    sensor = SENSORS["sentinel2-l2a"]
    dn = np.round(1e4 * RNG.gamma(2.0, 0.08, (12, 64, 64)) + 1003)
    for _ in range(2):
        check(dn, layout_of(sensor, units="dn", dn_offset=0.0))
    assert len(caplog.records) == 1
    assert "declare the offset: -1000 (dn_offset=, --dn-offset)" in caplog.text
    layout = layout_of(sensor, units="dn", dn_offset=0.0)
    check_numbers([(dn, dn > 0)], layout, origin="data set 'other', split 'all'")
    assert len(caplog.records) == 2  # another data set is warned of, too


@pytest.mark.parametrize(
    ("floors", "is_warned"),
    [
        ({"B09": 1770}, True),  # as of a real file
        ({"B09": 1770, "B08": 1500}, True),
        ({"B09": 1770, "B08": 1500, "B07": 1450}, False),
        ({"B11": 700}, False),
        (dict.fromkeys(SENSORS["sentinel2-l2a"].band_names, 1200), False),
    ],
)
def test_an_offset_left_in_shows_in_most_bands(
    caplog: pytest.LogCaptureFixture, floors: dict[str, float], is_warned: bool
) -> None:
    sensor = SENSORS["sentinel2-l2a"]
    least = np.array([floors.get(name, 1080) for name in sensor.band_names])[:, None, None]
    dn = np.round(np.linspace(0, 2000, 4096).reshape(64, 64) + least)
    check(dn, layout_of(sensor, units="dn", dn_offset=0.0))
    assert ("declare the offset: -1000 (dn_offset=, --dn-offset)" in caplog.text) == is_warned


def test_a_bright_scene_takes_three_bands_quantiles(monkeypatch: pytest.MonkeyPatch) -> None:
    sensor = SENSORS["sentinel2-l2a"]
    taken: list[float] = []
    quantile = np.quantile

    def count(values: NDArray[Any], share: Any) -> Any:
        taken.extend([share] if share == plausible._FLOOR else [])
        return quantile(values, share)

    monkeypatch.setattr(np, "quantile", count)
    dn = np.full((12, 64, 64), 5000.0) + RNG.integers(0, 9, (12, 64, 64))
    check(dn, layout_of(sensor, units="dn", dn_offset=0.0))
    assert len(taken) == 3


@pytest.mark.realdata
def test_only_the_file_that_carries_the_offset_is_warned_of(
    real_data: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bands = [name for name in SENSORS["sentinel2-l2a"].band_names if name != "B10"]
    files = sorted((real_data / "formats" / "s2_l2a_224").glob("*.tif"))
    for path in files:
        open_scene(path, sensor="sentinel2-l2a", bands=bands, dn_offset=0)
    warned = [one.getMessage() for one in caplog.records if "offset of 1000" in one.getMessage()]
    assert len(files) == 5
    assert [Path(one.split(": ")[0]).name[:9] for one in warned] == ["433D_629L"]


@pytest.mark.realdata
@pytest.mark.parametrize(
    ("product", "verdicts"),
    [
        ("*N0400*T33NZA*", ("undecidable", "undecidable")),
        ("*N9999*T48QUE*", ("agrees", "contradicts")),
    ],
)
def test_verdicts_on_real_scenes(real_data: Path, product: str, verdicts: tuple[str, str]) -> None:
    (folder,) = (real_data / "scenes").glob(product)
    bands = []
    for name in ("B02", "B03", "B04"):
        with rasterio.open(folder / f"{name}.tif") as file:
            bands.append(file.read(1).astype(float))
    found = tuple(sentinel2_offset_verdict(np.stack(bands), offset) for offset in (0, -1000))
    assert found == verdicts


def decibels() -> NDArray[Any]:
    return np.stack([RNG.normal(-10, 3, (40, 40)), RNG.normal(-17, 3, (40, 40))])


RADAR = [SENSORS["sentinel1-grd"], replace(SENSORS["sentinel1-grd"], name="my-radar")]


@pytest.mark.parametrize("sensor", RADAR, ids=lambda one: one.name)
def test_radar_that_is_not_in_decibels_is_refused(
    sensor: Sensor, caplog: pytest.LogCaptureFixture
) -> None:
    layout = layout_of(sensor, units="physical")
    decibel = decibels()
    check(decibel, layout)
    assert not caplog.records
    for wrong in (10 ** (decibel / 10), 10 ** (decibel / 20), -decibel.clip(max=-0.1)):
        with pytest.raises(DataError, match=r"dB is mostly negative. Linear power becomes dB"):
            check(wrong, layout)
    with pytest.raises(DataError, match="lie outside -100 to 60 dB"):
        check((10 ** (decibel / 20) * 4000).astype(np.uint16), layout)
    with pytest.raises(DataError, match="declare the number that marks no data"):
        check(np.where(decibel > -8, decibel, -9999), layout)
    check((decibel + 13) / 10, layout)
    assert "are they normalised or linear" in caplog.text


def test_pictures_that_are_not_of_eight_bits_are_refused() -> None:
    rgb = SENSORS["rgb"]
    eight = RNG.integers(0, 256, (3, 20, 20))
    check(eight.astype(np.uint8), layout_of(rgb, units="dn"))
    check(eight / 255, layout_of(rgb, units="physical"))
    for wrong in (eight.astype(np.uint16) * 257, np.minimum(eight * 12, 3000), eight - 128.0):
        with pytest.raises(DataError, match="RGB numbers are 8-bit, 0 to 255"):
            check(wrong, layout_of(rgb, units="dn"))
    with pytest.raises(DataError, match=r"physical RGB is 0-1"):
        check(eight.astype(np.float32), layout_of(rgb, units="physical"))
    with pytest.raises(DataError, match=r"fractions|units='physical'"):
        check((eight / 255).astype(np.float32), layout_of(replace(rgb, name="x"), units="dn"))


def test_a_sensor_of_your_own_says_what_is_possible() -> None:
    thermal = parse_sensor(
        {"name": "thermal", "bands": [{"name": "T1"}], "unit": "other", "possible": [200, 350]}
    )
    assert parse_sensor(describe_sensor(thermal)) == thermal
    kelvin = RNG.uniform(260, 320, (1, 10, 10))
    check(kelvin, layout_of(thermal, units="physical"))
    with pytest.raises(DataError, match="lie outside 200 to 350 other, such as"):
        check(kelvin - 273.15, layout_of(thermal, units="physical"))
    with pytest.raises(SensorError, match=r"possible = \[350.0, 200.0\]: expected"):
        parse_sensor(
            {"name": "t", "bands": [{"name": "T"}], "unit": "other", "possible": [350, 200]}
        )


def test_what_is_masked_is_not_judged() -> None:
    sensor = SENSORS["sentinel2-l2a"]
    dn = np.round(reflectance(sensor) * 1e4).astype(np.uint16)
    dn[:, :16] = 65535
    valid = np.ones(dn.shape, bool)
    valid[:, :16] = False
    check_numbers([(dn, valid)], layout_of(sensor, units="dn"), origin="x")
    check_numbers([(dn, np.zeros_like(valid))], layout_of(sensor, units="dn"), origin="x")


# The scale and offset that a file states


def write(path: Path, pixels: NDArray[Any], names: tuple[str, ...], **more: Any) -> Path:
    scale = more.pop("scale", None)
    with rasterio.open(
        path, "w", driver="GTiff", count=len(pixels), height=pixels.shape[1],
        width=pixels.shape[2], dtype=pixels.dtype, crs="EPSG:32633",
        transform=Affine(10, 0, 500_000, 0, -10, 5_000_000), **more,
    ) as file:  # fmt: skip
        file.write(pixels)
        file.descriptions = names
        if scale is not None:
            file.scales, file.offsets = ((scale[0],) * len(names), (scale[1],) * len(names))
    return path


STATED = [
    (SENSORS["landsat-oli-l2"], (1e-4, 0.0), "int16"),
    (SENSORS["landsat-oli-l1"], (1e-4, 0.0), "uint16"),
    (SENSORS["sentinel2-l2a"], (2.75e-5, -0.2), "uint16"),
    (SENSORS["sentinel2-l2a"], (1e-4, -0.1), "uint16"),
    (MINE, (2e-4, -0.05), "uint16"),
    (MINE, (1e-4, 0.0), "float32"),
]


@pytest.mark.parametrize(("sensor", "scale", "dtype"), STATED, ids=lambda one: str(one)[:20])
def test_the_scale_and_offset_of_the_bands_count_for_every_sensor(
    tmp_path: Path, sensor: Sensor, scale: tuple[float, float], dtype: str
) -> None:
    import torch

    from terralign.preprocess import to_physical

    physical = reflectance(sensor)
    dn = np.round((physical - scale[1]) / scale[0]).astype(dtype)
    path = write(tmp_path / "a.tif", dn, sensor.band_names, scale=scale)
    chip = read_chip(path, sensor=sensor)
    assert chip.layout.units == "dn"
    found, valid = to_physical(torch.from_numpy(chip.pixels)[None], chip.layout)
    np.testing.assert_allclose(found[0].numpy(), physical, atol=2 * scale[0])
    assert valid.all()
    with pytest.raises(DataError, match=r"units='physical' was declared, but its bands state"):
        read_chip(path, sensor=sensor, units="physical")
    if not sensor.offset_varies:
        with pytest.raises(SensorError, match=r"dn_offset=-7 was declared, but its bands state"):
            read_chip(path, sensor=sensor, dn_offset=-7)


def test_radar_in_hundredths_of_decibels_is_scaled(tmp_path: Path) -> None:
    import torch

    from terralign.preprocess import to_physical

    sensor = SENSORS["sentinel1-grd"]
    decibel = decibels()
    path = write(
        tmp_path / "a.tif", np.round(decibel * 100).astype(np.int16), ("VV", "VH"),
        scale=(0.01, 0.0), nodata=-32768,
    )  # fmt: skip
    chip = read_chip(path, sensor=sensor)
    found, _ = to_physical(torch.from_numpy(chip.pixels)[None], chip.layout)
    np.testing.assert_allclose(found[0].numpy(), decibel, atol=0.01)


def test_items_of_scale_count_as_hls_writes_them(tmp_path: Path) -> None:
    sensor = SENSORS["landsat-oli-l2"]
    dn = np.round(reflectance(sensor) * 1e4).astype(np.int16)
    path = write(tmp_path / "a.tif", dn, sensor.band_names)
    with rasterio.open(path, "r+") as file:
        file.update_tags(scale_factor="0.0001", add_offset="0.0")
    assert read_chip(path, sensor=sensor).layout.stated_scale == (1e-4, 0.0)
    with rasterio.open(path, "r+") as file:
        file.scales, file.offsets = (2.75e-5,) * 7, (-0.2,) * 7
    with pytest.raises(DataError, match=r"state scale and offset 2.75e-05 and -0.2, 0.0001 and 0"):
        read_chip(path, sensor=sensor)
