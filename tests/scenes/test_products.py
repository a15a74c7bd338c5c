"""Products with a file per band: their names, what identifies them, and what contradicts."""

from __future__ import annotations

import datetime as dt
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from band_folders import NAME, NEW_NAME, write_band, write_product

from terralign.errors import DataError, SensorError
from terralign.scenes.places import product_datetime
from terralign.scenes.product_names import band_of_name
from terralign.scenes.products import find_product, is_product
from terralign.scenes.scene import open_scene
from terralign.sensors import SENSORS

HLS_L30 = "HLS.L30.T19LDD.2022165T144027.v2.0"
HLS_S30 = "HLS.S30.T19LDD.2022165T144027.v2.0"
LANDSAT = "LC08_L2SP_001062_20201031_20201106_02_T2"
TILE = "T33XWJ_20220413T150759"


@pytest.mark.parametrize(
    ("sensor", "stem", "product", "band", "gsd_m"),
    [
        ("sentinel2-l2a", "B04", "", "B04", None),
        ("sentinel2-l2a", "B4", "", "B04", None),
        ("sentinel2-l2a", "red", "", "B04", None),
        ("sentinel2-l2a", "rededge1", "", "B05", None),
        ("sentinel2-l2a", "nir08", "", "B8A", None),
        ("sentinel2-l2a", "B04_10m", "", "B04", 10),
        ("sentinel2-l2a", f"{TILE}_B8A_20m", TILE, "B8A", 20),
        ("sentinel2-l1c", f"{TILE}_B10", TILE, "B10", None),
        ("sentinel2-l2a", f"{NAME}_26_57_B12", f"{NAME}_26_57", "B12", None),
        ("hls-l30", f"{HLS_L30}.B05", HLS_L30, "B05", None),
        ("hls-s30", f"{HLS_S30}.B8A", HLS_S30, "B8A", None),
        ("landsat-oli-l2", f"{LANDSAT}_SR_B4", LANDSAT, "B4", None),
        ("sentinel1-grd", "Sigma0_VV_db", "", "VV", None),
        ("sentinel1-grd", "S1A_IW_GRDH_1SDV_20170613T165043_33UUP_70_48_VH", None, "VH", None),
        (
            "sentinel2-l2a",
            "2018-12-01-00_00_2018-12-01-23_59_Sentinel-2_L2A_B04_(Raw)",
            None,
            "B04",
            None,
        ),
    ],
)
def test_a_files_name_says_its_band(
    sensor: str, stem: str, product: str | None, band: str, gsd_m: int | None
) -> None:
    found = band_of_name(stem, SENSORS[sensor])
    assert found is not None
    assert (found.band, found.gsd_m) == (band, gsd_m)
    assert product in (None, found.product)


@pytest.mark.parametrize(
    "stem",
    [
        *("cloud_mask", "thumbnail", f"{TILE}_SCL_20m", f"{TILE}_TCI_10m", f"{TILE}_AOT_10m"),
        *("MSK_DETFOO_B04", f"{LANDSAT}_QA_PIXEL", f"{HLS_S30}.Fmask", "B4.hidden", "visual"),
        *("scene", "River_1", "B99"),
    ],
)
def test_other_files_are_no_bands(stem: str) -> None:
    for sensor in SENSORS.values():
        if sensor.name != "rgb":
            assert band_of_name(stem, sensor) is None


def write_safe(root: Path, name: str, files: dict[str, int]) -> Path:
    images = root / f"{name}.SAFE" / "GRANULE" / "L2A_T33NZA_A1_2" / "IMG_DATA"
    write_product(images, files, least=1100)
    return root / f"{name}.SAFE"


def test_a_safe_folder_gives_each_band_in_its_native_resolution(tmp_path: Path) -> None:
    tile = "T33NZA_20220706T085611"
    files = {f"R10m/{tile}_B04_10m.tif": 1, f"R20m/{tile}_B04_20m.tif": 2}
    files |= {f"R20m/{tile}_B01_20m.tif": 2, f"R60m/{tile}_B01_60m.tif": 6}
    files |= {f"R20m/{tile}_SCL_20m.tif": 2, f"R60m/{tile}_B04_60m.tif": 6}
    root = write_safe(tmp_path, NEW_NAME, files)
    product = find_product(root, None)
    assert product.sensor == SENSORS["sentinel2-l2a"]
    assert [file.path.name for file in product.files] == [
        f"{tile}_B01_60m.tif",
        f"{tile}_B04_10m.tif",
    ]
    scene = open_scene(root)
    assert scene.layout.dn_offset == -1000
    assert scene.datetime == dt.datetime(2022, 7, 6, 8, 56, 11, tzinfo=dt.UTC)
    granule = next((root / "GRANULE").iterdir())
    assert open_scene(granule).layout == open_scene(granule / "IMG_DATA").layout == scene.layout


def test_jpeg_2000_is_read(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(1100, 3000, (64, 64), np.uint16)
    folder = tmp_path / NEW_NAME
    folder.mkdir()
    with rasterio.open(
        folder / "B04.jp2",
        "w",
        driver="JP2OpenJPEG",
        count=1,
        height=64,
        width=64,
        dtype="uint16",
        crs="EPSG:32633",
        transform=rasterio.Affine(10, 0, 500_000, 0, -10, 5_000_000),
        quality="100",
        reversible="yes",
    ) as file:
        file.write(pixels, 1)
    np.testing.assert_array_equal(open_scene(folder).read().pixels[0], pixels)


def test_tiles_of_aws_lie_in_folders_of_one_resolution(tmp_path: Path) -> None:
    folder = write_product(tmp_path / "34VEL", {"R10m/B02.tif": 1, "R20m/B05.tif": 2})
    write_band(folder / "R20m" / "B02.tif", side=6, size=20)
    scene = open_scene(folder, sensor="sentinel2-l2a", dn_offset=0)
    assert (scene.bands, scene.height) == (("B02", "B05"), 12)


@pytest.mark.parametrize(("name", "sensor"), [(HLS_L30, "hls-l30"), (HLS_S30, "hls-s30")])
def test_hls_is_known_by_its_names(tmp_path: Path, name: str, sensor: str) -> None:
    files = {f"{name}.{band}.tif": 3 for band in ("B02", "B03", "B04")}
    write_product(tmp_path / "x", files, dtype="int16", nodata=-9999)
    hole = np.full((4, 4), 700)
    hole[0, 0] = -9999
    write_band(tmp_path / "x" / f"{name}.B07.tif", hole, size=30, dtype="int16", nodata=-9999)
    write_band(tmp_path / "x" / f"{name}.Fmask.tif", 3, side=4, size=30, dtype="uint8")
    scene = open_scene(tmp_path / "x")
    assert (scene.sensor.name, scene.bands) == (sensor, ("B02", "B03", "B04", "B07"))
    assert scene.datetime == dt.datetime(2022, 6, 14, 14, 40, 27, tzinfo=dt.UTC)
    chip = scene.read(bands=["B07"])
    assert chip.pixels.dtype == np.int16
    assert chip.valid.sum() == 15


def test_hls_counts_bands_as_its_guide_does() -> None:
    l30, s30 = SENSORS["hls-l30"], SENSORS["hls-s30"]
    assert l30.band_names == ("B01", "B02", "B03", "B04", "B05", "B06", "B07", "B09")
    assert l30.band("B05").center_nm == SENSORS["landsat-oli-l2"].band("nir").center_nm
    assert l30.band("cirrus").name == "B09"
    assert s30.band_names == SENSORS["sentinel2-l1c"].band_names
    for sensor in (l30, s30):
        assert (sensor.dn_scale, sensor.add, sensor.nodata) == (1e-4, 0, -9999)
        assert {band.gsd_m for band in sensor.bands} == {30}


def test_exports_of_eo_browser_are_reflectance_of_16_bits(tmp_path: Path) -> None:
    prefix = "2018-12-01-00_00_2018-12-01-23_59_Sentinel-2_L2A_"
    reflectance = np.linspace(0.01, 0.4, 144).reshape(12, 12)
    mask = np.ones((12, 12))
    mask[0] = 0
    for band in ("B03", "B04"):
        both = np.stack([reflectance * 65535, mask])
        write_band(tmp_path / "x" / f"{prefix}{band}_(Raw).tiff", both)
    chip = open_scene(tmp_path / "x").read()
    assert not chip.valid[:, 0].any()
    assert chip.valid[:, 1:].all()
    layout = chip.layout
    assert layout.dn_offset == 0
    physical = chip.pixels[:, 1:] * layout.dn_scale + layout.add
    np.testing.assert_allclose(physical[0], reflectance[1:], atol=2e-5)
    alone = tmp_path / "x" / f"{prefix}B04_(Raw).tiff"
    read = open_scene(alone, sensor="sentinel2-l2a", bands=["B04", "-"])
    assert read.layout.dn_scale == layout.dn_scale
    write_band(tmp_path / "y" / f"{prefix}B04_(Raw).tiff", 100, dtype="uint8")
    with pytest.raises(DataError, match="export the raw bands as TIFF of 16 bits"):
        open_scene(tmp_path / "y")


def test_radar_in_db_is_read_and_amplitude_is_not(tmp_path: Path) -> None:
    name = "S1A_IW_GRDH_1SDV_20170613T165043_20170613T165108_017018_01C5CA_0A1B"
    for band in ("VV", "VH"):
        write_band(tmp_path / name / f"{band}.tif", -12.5, dtype="float32")
    scene = open_scene(tmp_path / name)
    assert (scene.sensor.name, scene.bands) == ("sentinel1-grd", ("VV", "VH"))
    write_band(tmp_path / f"{name}x" / f"{name}_VV.tif", 300)
    with pytest.raises(DataError, match=r"10 \* log10"):
        open_scene(tmp_path / f"{name}x")
    safe = tmp_path / f"{name}.SAFE"
    (safe / "annotation").mkdir(parents=True)
    (safe / "manifest.safe").touch()
    with pytest.raises(DataError, match="uncalibrated amplitude"):
        open_scene(safe)


def refused(folder: Path, match: str, error: type[Exception] = DataError, **how: Any) -> None:
    with pytest.raises(error, match=match) as caught:
        open_scene(folder, **how)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("dtype", "numbers", "how"),
    [
        ("uint8", 120, {}),
        ("float32", 0.2, {"units": "dn"}),
        ("float32", 0.2, {"units": "physical"}),
    ],
)
def test_bands_of_another_kind_of_number_are_refused(
    tmp_path: Path, dtype: str, numbers: float, how: dict[str, Any]
) -> None:
    folder = write_product(tmp_path / NAME, {"B02.tif": 1, "B03.tif": 1, "B08.tif": 1})
    write_band(folder / "B04.tif", numbers, dtype=dtype)
    refused(folder, rf"B04 has {dtype} numbers, B02 has uint16; .* one kind", **how)
    bands = ["B02", "B03", "B08"]
    how = {"units": "dn"} if how else {}
    assert open_scene(folder, bands=bands, **how).bands == tuple(bands)


def test_signed_and_unsigned_bands_go_together(tmp_path: Path) -> None:
    folder = write_product(tmp_path / NAME, {"B02.tif": 1, "B03.tif": 1})
    write_band(folder / "B04.tif", 1200, dtype="int16")
    assert open_scene(folder).read().pixels.max() < 3000


def test_pixels_of_no_size_are_refused(tmp_path: Path) -> None:
    folder = write_product(tmp_path / NAME, {"B02.tif": 1})
    write_band(folder / "B03.tif", 1200, size=1e-200)
    refused(folder, r"pixels of size 0 by its bands' georeferencing")


def test_the_sensor_is_asked_for_where_no_name_says_it(tmp_path: Path) -> None:
    folder = write_product(tmp_path / "mine", {"red.tif": 1, "green.tif": 1})
    refused(folder, r"name the sensor \(sensor=\)", SensorError)
    assert open_scene(folder, sensor="hls-l30").bands == ("B03", "B04")
    named = write_product(tmp_path / NAME, {"B04.tif": 1})
    refused(
        named, "is a product of sensor 'sentinel2-l2a' by its names", SensorError, sensor="hls-s30"
    )


def test_the_sensor_is_known_from_esas_metadata(tmp_path: Path) -> None:
    folder = write_product(tmp_path / "mine", {"B04.tif": 1})
    (folder / "MTD_MSIL1C.xml").write_text(
        "<a><PROCESSING_BASELINE>03.01</PROCESSING_BASELINE></a>"
    )
    scene = open_scene(folder)
    assert (scene.sensor.name, scene.layout.dn_offset) == ("sentinel2-l1c", 0)


@pytest.mark.parametrize("baseline", ["0209", "0400"])
def test_the_product_is_known_from_earth_engines_metadata(tmp_path: Path, baseline: str) -> None:
    # As SSL4EO's patches have it; the harmonised images of later baselines carry no offset.
    folder = tmp_path / "20200604T054639_20200604T054831_T43RCP"
    write_band(folder / "B4.tif", 1500)
    name = f"S2B_MSIL1C_20200604T054639_N{baseline}_R048_T43RCP_20200604T083537"
    (folder / "metadata.json").write_text(json.dumps({"PRODUCT_ID": name}))
    if baseline == "0400":
        refused(folder, "offset unknown", SensorError)
        return
    scene = open_scene(folder)
    assert (scene.sensor.name, scene.layout.dn_offset) == ("sentinel2-l1c", 0)
    assert scene.datetime == dt.datetime(2020, 6, 4, 5, 46, 39, tzinfo=dt.UTC)
    (folder / "metadata.json").write_text("[" * 100_000)
    refused(folder, "name the sensor", SensorError)


def test_two_products_in_a_folder_are_refused(tmp_path: Path) -> None:
    files = {"T33NZA_20220706T085611_B04_10m.tif": 1, "T33NZA_20220806T085611_B03_10m.tif": 1}
    refused(write_product(tmp_path / "dates", files), "bands of 2 products")
    one = write_product(tmp_path / NAME, {"T33NZA_20210706T085611_B04_10m.tif": 1})
    refused(one, "its files are of tile 33NZA, day 20210706")
    mixed = write_product(tmp_path / "mixed", {f"{HLS_S30}.B04.tif": 3, f"{HLS_L30}.B03.tif": 3})
    refused(mixed, "contradict each other")


def test_a_band_twice_is_refused(tmp_path: Path) -> None:
    twice = write_product(tmp_path / NAME, {"B04.tif": 1, "B4.tif": 1})
    refused(twice, r"band B04 twice \('B04.tif', 'B4.tif'\)")


def test_bands_of_different_grids_are_refused(tmp_path: Path) -> None:
    def product(number: int, **how: Any) -> Path:
        folder = tmp_path / str(number) / NAME
        write_band(folder / "B04.tif")
        write_band(folder / "B03.tif", **how)
        return folder

    refused(product(1, crs="EPSG:32634"), "B03 is in EPSG:32634, B04 in EPSG:32633")
    refused(product(2, side=8, size=15), "do not nest")
    refused(product(3, corner=(500_010, 5_000_000)), "do not nest")
    refused(product(4, side=3, size=20), "do not nest")


def test_bands_that_state_different_scales_or_offsets_are_refused(tmp_path: Path) -> None:
    folder = tmp_path / "a" / NAME
    write_band(folder / "B03.tif", 3000)
    write_band(folder / "B04.tif", 3000, scale=(1e-4, -0.1))
    refused(folder, "B03 states no scale, B04 states scale 0.0001 and offset -0.1")
    write_band(folder / "B03.tif", 3000, scale=(1e-4, -0.1))
    assert open_scene(folder).layout.dn_offset == -1000


def test_descriptions_are_held_against_names(tmp_path: Path) -> None:
    folder = tmp_path / NAME
    write_band(folder / "B04.tif", descriptions=["B4, central wavelength 665 nm"])
    write_band(folder / "B03.tif", descriptions=["Band 1"])
    assert open_scene(folder).bands == ("B03", "B04")
    write_band(folder / "B03.tif", descriptions=["B4, central wavelength 665 nm"])
    refused(folder, "which is B04, but its name says B03")
    write_band(folder / "B03.tif", np.ones((3, 12, 12)))
    refused(folder, "has 3 bands; in a product with a file per band")


def test_what_is_no_product_says_so(tmp_path: Path) -> None:
    empty = tmp_path / NAME
    empty.mkdir()
    refused(empty, "no GeoTIFF or JPEG 2000 file; expected a file per band, such as B01.tif")
    (empty / "scene.tif").touch()
    refused(empty, r"1 GeoTIFF or JPEG 2000 file\(s\) \('scene.tif'\), but none named after a band")
    safe = tmp_path / f"{NAME}.SAFE"
    (safe / "GRANULE" / "L2A_x").mkdir(parents=True)
    refused(safe, "holds no image data")
    for granule in ("L2A_x", "L2A_y"):
        (safe / "GRANULE" / granule / "IMG_DATA").mkdir(parents=True)
    refused(safe, "holds 2 granules")
    refused(tmp_path / "nothing", "not")
    damaged = tmp_path / "d" / NAME
    damaged.mkdir(parents=True)
    (damaged / "B04.tif").write_bytes(b"<VRTDataset/>")
    refused(damaged, r"B04\.tif is not a readable GeoTIFF")


def test_hostile_folders_end_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERRALIGN_LIMITS", "product_files=20")
    odd = tmp_path / "odd\nname\x1b[31m"
    odd.mkdir()
    refused(odd, r"odd\\nname\\x1b\[31m", SensorError)
    full = tmp_path / "full"
    full.mkdir()
    for number in range(21):
        (full / f"{number}.tif").touch()
    refused(full, "has at least 21 files, more than the limit of 20", sensor="sentinel2-l2a")


@pytest.mark.parametrize(
    ("folder", "files", "expected"),
    [
        ("x", ["B04.tif", "B03.tif"], True),
        ("x", ["B04.tif"], False),
        (NAME, ["B04.tif"], True),
        (NAME, ["tile_1.tif", "tile_2.tif"], False),
        ("x", ["R10m/B02.jp2", "R20m/B05.jp2"], True),
        ("x", ["Forest_1.tif", "Forest_2.tif"], False),
        ("x", ["a.jpg", "b.png"], False),
        ("x", ["s_VV.tif", "s_VH.tif"], True),
        ("x.SAFE", ["manifest.safe"], True),
    ],
)
def test_a_product_is_known_by_its_names(
    tmp_path: Path, folder: str, files: list[str], expected: bool
) -> None:
    for name in files:
        (tmp_path / folder / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / folder / name).touch()
    assert is_product(tmp_path / folder) is expected


def test_times_are_read_from_the_names_of_products() -> None:
    assert product_datetime(f"{HLS_S30}.B04.tif") == dt.datetime(
        2022, 6, 14, 14, 40, 27, tzinfo=dt.UTC
    )
    assert product_datetime(f"{TILE}_B04_10m.jp2") == dt.datetime(
        2022, 4, 13, 15, 7, 59, tzinfo=dt.UTC
    )


@pytest.mark.realdata
@pytest.mark.parametrize(
    ("pattern", "sensor", "num_bands", "offset"),
    [
        ("formats/safe/S2A_MSIL1C_20220125*", "sentinel2-l1c", 2, -1000),
        ("formats/landsat/LC08*", "landsat-oli-l2", 4, 0),
        ("formats/bigearthnet_v2/BigEarthNet-S2/*/*", "sentinel2-l2a", 12, 0),
        ("formats/bigearthnet_v2/BigEarthNet-S1/*/*", "sentinel1-grd", 2, 0),
        ("formats/ssl4eo_s12/s2c/*/*", "sentinel2-l1c", 13, 0),
        ("formats/ssl4eo_s12/s2a/*/*", "sentinel2-l2a", 12, 0),
        ("formats/ssl4eo_s12/s1/*/*", "sentinel1-grd", 2, 0),
        ("scenes/sentinelhub_Australia_2019*", "sentinel2-l2a", 10, 0),
    ],
)
def test_real_products_say_what_they_are(
    real_data: Path, pattern: str, sensor: str, num_bands: int, offset: float
) -> None:
    scene = open_scene(sorted(real_data.glob(pattern))[0])
    assert (scene.sensor.name, len(scene.bands)) == (sensor, num_bands)
    assert scene.layout.dn_offset == offset
    assert scene.read().valid_share > 0.5
