"""GeoTIFFs and pictures into chips, as rasterio and Pillow read them; mute ones are refused."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from PIL import Image
from rasterio import Affine
from rasterio.enums import ColorInterp

from imagery import read_chip
from terralign.chips import make_layout
from terralign.errors import DataError, SensorError
from terralign.sensors import SENSORS

L1C, L2A, S1 = (SENSORS[name] for name in ("sentinel2-l1c", "sentinel2-l2a", "sentinel1-grd"))


def write_geotiff(
    path: Path, pixels: np.ndarray, *, descriptions: Sequence[str] = (), **profile: Any
) -> Path:
    settings: dict[str, Any] = {
        "driver": "GTiff",
        "count": len(pixels),
        "height": pixels.shape[1],
        "width": pixels.shape[2],
        "dtype": pixels.dtype,
        "crs": "EPSG:32633",
        "transform": Affine(10, 0, 500_000, 0, -10, 5_000_000),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    with rasterio.open(path, "w", **(settings | profile)) as file:
        file.write(pixels)
        for index, text in enumerate(descriptions, start=1):
            file.set_band_description(index, text)
    return path


def dn(num_bands: int, low: int = 1) -> np.ndarray:
    return np.random.default_rng(0).integers(low, 9000, (num_bands, 6, 8), dtype=np.uint16)


def test_pixels_grid_and_bands_are_the_files(tmp_path: Path) -> None:
    pixels = dn(3, low=1100)
    path = write_geotiff(tmp_path / "a.tif", pixels)
    chip = read_chip(path, sensor=L2A, bands=["B4", "b8a", "red edge 1"], dn_offset=-1000)
    np.testing.assert_array_equal(chip.pixels, pixels)
    assert chip.pixels.dtype == np.uint16
    assert chip.bands == ("B04", "B8A", "B05")
    assert (chip.layout.units, chip.layout.dn_offset) == ("dn", -1000.0)
    assert chip.layout.composite is None
    assert chip.valid.all()
    assert chip.grid is not None
    assert chip.grid.crs == "EPSG:32633"
    assert chip.grid.bounds == (500_000, 4_999_940, 500_080, 5_000_000)


def test_bands_come_from_descriptions_that_resolve(tmp_path: Path) -> None:
    path = write_geotiff(tmp_path / "a.tif", dn(4), descriptions=["B8A", "B2", "B3", "B4"])
    chip = read_chip(path, sensor=L2A, dn_offset=0)
    assert chip.bands == ("B8A", "B02", "B03", "B04")
    assert chip.layout.composite == L2A.composite("paper-l2a")
    assert read_chip(path, sensor=L2A, dn_offset=0, composite="eurosat").layout.composite == (
        L2A.composite("eurosat")
    )


def test_descriptions_that_contradict_the_declaration_are_an_error(tmp_path: Path) -> None:
    path = write_geotiff(tmp_path / "a.tif", dn(2), descriptions=["B2", "B3"])
    with pytest.raises(DataError, match=r"calls its bands B02, B03, but B03, B02 was declared"):
        read_chip(path, sensor=L2A, bands=["B03", "B02"], dn_offset=0)


def test_descriptions_that_only_count_are_no_names(tmp_path: Path) -> None:
    counted = [f"Band {number}" for number in range(1, 13)]
    path = write_geotiff(tmp_path / "a.tif", dn(12), descriptions=counted)
    with pytest.raises(DataError, match="does not name them"):
        read_chip(path, sensor=L1C, dn_offset=0)


def test_a_mute_file_is_refused_with_the_remedy(tmp_path: Path) -> None:
    path = write_geotiff(tmp_path / "mute.tif", dn(12))
    with pytest.raises(DataError, match=r"mute.tif has 12 band\(s\) of uint16.*Name the sensor"):
        read_chip(path)
    with pytest.raises(DataError, match=r"has 12 band\(s\).*has 12 \(B01, .*Give bands="):
        read_chip(path, sensor=L2A, dn_offset=0)


def test_a_wrong_number_of_bands_is_an_error(tmp_path: Path) -> None:
    path = write_geotiff(tmp_path / "a.tif", dn(4))
    with pytest.raises(DataError, match=r"has 4 band\(s\), but 3 were declared \(B04, B03, B02\)"):
        read_chip(path, sensor=L2A, bands=["B04", "B03", "B02"], dn_offset=0)


def test_the_offset_is_declared_or_in_the_name_of_file_or_folder(tmp_path: Path) -> None:
    product = "S2A_MSIL2A_20220706T085611_N0400_R007_T33NZA_20220706T153419"
    old = "S2A_MSIL2A_20170706T085611_N0205_R007_T33NZA_20170706T153419"

    def offset(name: str, declared: float | None = None) -> float:
        path = write_geotiff(tmp_path / name, dn(1, low=1100))
        chip = read_chip(path, sensor=L2A, bands=["B04"], dn_offset=declared)
        return chip.layout.dn_offset

    assert offset(f"{product}/B04.tif") == -1000
    assert offset(f"{product}.tif") == -1000
    assert offset(f"{old}/B04.tif") == 0
    assert offset(f"{product}/B04.tif", declared=0) == 0
    with pytest.raises(SensorError, match=r"20230706.tif.*offset unknown.*declare it"):
        offset("20230706.tif")
    with pytest.raises(SensorError, match="N9999"):
        offset(f"{product.replace('N0400', 'N9999')}/B04.tif")


def test_nodata_of_sensor_and_file_and_nan_are_invalid(tmp_path: Path) -> None:
    pixels = dn(2)
    pixels[0, 0, 0], pixels[1, 2, 3] = 0, 65535
    path = write_geotiff(tmp_path / "a.tif", pixels, nodata=65535)
    chip = read_chip(path, sensor=L2A, bands=["B04", "B03"], dn_offset=0)
    assert np.argwhere(~chip.valid).tolist() == [[0, 0, 0], [1, 2, 3]]

    decibel = np.full((2, 4, 4), -12.5, dtype=np.float32)
    decibel[1, 1, 1], decibel[0, 2, 2], decibel[0, 3, 3] = np.nan, 0.0, -np.inf
    path = write_geotiff(tmp_path / "s1.tif", decibel, descriptions=["VV", "VH"], nodata=np.nan)
    chip = read_chip(path, sensor=S1)
    assert chip.layout.units == "physical"
    assert np.argwhere(~chip.valid).tolist() == [[0, 3, 3], [1, 1, 1]]


def test_units_of_fractions_must_be_declared(tmp_path: Path) -> None:
    path = write_geotiff(tmp_path / "a.tif", np.full((1, 4, 4), 0.25, np.float32))
    with pytest.raises(DataError, match="units='dn' or units='physical'"):
        read_chip(path, sensor=L2A, bands=["B04"], dn_offset=0)
    chip = read_chip(path, sensor=L2A, bands=["B04"], units="physical")
    assert (chip.layout.units, chip.layout.dn_offset) == ("physical", 0.0)
    with pytest.raises(DataError, match="no effect"):
        read_chip(path, sensor=L2A, bands=["B04"], units="physical", dn_offset=-1000)


def test_only_a_marked_rgb_file_speaks_for_itself(tmp_path: Path) -> None:
    pixels = dn(3).astype(np.uint8)
    rgb = write_geotiff(tmp_path / "rgb.tif", pixels, photometric="RGB")
    chip = read_chip(rgb)
    assert chip.sensor == SENSORS["rgb"]
    np.testing.assert_array_equal(chip.pixels, pixels)
    assert read_chip(rgb, sensor=SENSORS["rgb"]).bands == ("red", "green", "blue")

    grey = write_geotiff(tmp_path / "grey.tif", pixels, photometric="MINISBLACK")
    with pytest.raises(DataError, match="3 band"):
        read_chip(grey)
    swapped = write_geotiff(tmp_path / "bgr.tif", pixels, photometric="MINISBLACK")
    with rasterio.open(swapped, "r+") as file:
        file.colorinterp = (ColorInterp.blue, ColorInterp.green, ColorInterp.red)
    with pytest.raises(DataError, match="3 band"):
        read_chip(swapped)


def test_a_file_without_georeference_reads_quietly(tmp_path: Path) -> None:
    path = tmp_path / "plain.tif"
    Image.fromarray(np.zeros((4, 5, 3), np.uint8)).save(path)
    chip = read_chip(path)
    assert chip.grid is not None
    assert chip.grid.crs is None
    assert chip.pixels.shape == (3, 4, 5)


def test_size_is_checked_before_memory_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "huge.tif"
    huge = {"count": 12, "height": 60_000, "width": 60_000, "dtype": "uint16"}
    settings = {"driver": "GTiff", "tiled": True, "SPARSE_OK": True}
    with rasterio.open(path, "w", transform=Affine(10, 0, 0, 0, -10, 0), **settings, **huge):
        pass
    with pytest.raises(DataError, match=r"needs 12\d.\d GiB, .*limit of 1.25 GiB"):
        read_chip(path, sensor=L2A, bands=L2A.band_names, dn_offset=0)
    small = write_geotiff(tmp_path / "small.tif", dn(1))
    monkeypatch.setenv("TERRALIGN_LIMITS", "chip_bytes=288")
    assert read_chip(small, sensor=L2A, bands=["B04"], dn_offset=0).valid.all()
    monkeypatch.setenv("TERRALIGN_LIMITS", "chip_bytes=287")
    with pytest.raises(DataError, match="more than the limit"):
        read_chip(small, sensor=L2A, bands=["B04"], dn_offset=0)


def test_a_truncated_file_is_named(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(1, 9000, (2, 200, 200), dtype=np.uint16)
    path = write_geotiff(tmp_path / "cut.tif", noise, compress="deflate")
    path.write_bytes(path.read_bytes()[:20_000])
    with pytest.raises(DataError, match=r"cut.tif is (damaged|not a readable GeoTIFF)"):
        read_chip(path, sensor=L2A, bands=["B04", "B03"], dn_offset=0)


def test_what_is_no_geotiff_is_named(tmp_path: Path) -> None:
    text = tmp_path / "text.tif"
    text.write_text("not a picture")
    with pytest.raises(DataError, match=r"text.tif is not an image: it is no JPEG"):
        read_chip(text)
    with pytest.raises(DataError, match=r"missing.tif not found"):
        read_chip(tmp_path / "missing.tif")


def test_a_file_cannot_make_gdal_open_another(tmp_path: Path) -> None:
    target = write_geotiff(tmp_path / "a.tif", dn(1))
    link = tmp_path / "virtual.tif"
    link.write_text(
        '<VRTDataset rasterXSize="8" rasterYSize="6">'
        "<GeoTransform>0, 10, 0, 0, 0, -10</GeoTransform>"
        '<VRTRasterBand dataType="UInt16" band="1">'
        f"<SimpleSource><SourceFilename>{target}</SourceFilename></SimpleSource>"
        "</VRTRasterBand></VRTDataset>"
    )
    with rasterio.open(link) as source:  # GDAL itself would
        assert source.driver == "VRT"
    with pytest.raises(DataError, match="is a VRT file, which is not read"):
        read_chip(link, sensor=L2A, bands=["B04"], dn_offset=0)


def test_content_not_ending_decides_how_a_file_is_read(tmp_path: Path) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    png = tmp_path / "picture.tif"
    Image.fromarray(picture).save(png, format="PNG")
    chip = read_chip(png)
    np.testing.assert_array_equal(chip.pixels, picture.transpose(2, 0, 1))
    assert chip.sensor == SENSORS["rgb"]
    raster = write_geotiff(tmp_path / "raster.jpg", dn(1))
    assert read_chip(raster, sensor=L2A, bands=["B04"], dn_offset=0).bands == ("B04",)


@pytest.mark.parametrize("fault", ["cut short", "overwritten"])
def test_a_damaged_part_is_named(tmp_path: Path, fault: str) -> None:
    pixels = np.random.default_rng(0).integers(100, 3000, (1, 200, 200), np.uint16)
    path = write_geotiff(tmp_path / "a.tif", pixels, compress="deflate")
    content = path.read_bytes()
    half = len(content) // 2
    path.write_bytes(content[:half] + b"\xff" * half if fault == "overwritten" else content[:half])
    undecoded = r"some of its pixels cannot be decoded \(ZIPDecode"
    reason = undecoded if fault == "overwritten" else "it ends too early"
    with pytest.raises(DataError, match=rf"a.tif is damaged: {reason}.*copy it again") as caught:
        read_chip(path, sensor=L2A, bands=["B04"], dn_offset=0)
    assert "previous exception" not in str(caught.value)


@pytest.mark.parametrize("tiled", [False, True])
def test_a_file_that_is_cut_short_is_explained_in_words(tmp_path: Path, tiled: bool) -> None:
    layout = {"tiled": tiled, "blockxsize": 16, "blockysize": 16} if tiled else {}
    path = write_geotiff(tmp_path / "a.tif", np.full((1, 64, 64), 500, np.uint16), **layout)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(
        DataError, match=r"it ends too early.*; download or copy it again"
    ) as caught:
        read_chip(path, sensor=L2A, bands=["B04"], dn_offset=0)
    assert "4294967295" not in str(caught.value)


def test_a_name_that_is_not_utf8_is_to_be_changed(tmp_path: Path) -> None:
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.tif"))
    shutil.move(write_geotiff(tmp_path / "a.tif", dn(1)), path)
    with pytest.raises(DataError, match=r"caf\\udce9.tif: its name, .* is not UTF-8.*rename it"):
        read_chip(path, sensor=L2A, bands=["B04"], dn_offset=0)


@pytest.mark.parametrize("name", ["B04\n\x1b[31m.tif", "B04_\x07.tif"])
def test_names_are_shown_in_one_line(tmp_path: Path, name: str) -> None:
    path = write_geotiff(tmp_path / name, dn(2), descriptions=["B04", "what"])
    for how in ({"dn_offset": 0}, {"bands": ["B04"]}, {"bands": ["B04", "B03"]}):
        with pytest.raises((DataError, SensorError)) as caught:
            read_chip(path, sensor=L2A, **how)  # type: ignore[arg-type]
        assert str(caught.value).isprintable()
        assert str(caught.value).count(str(tmp_path)) == 1


def test_a_file_that_is_no_geotiff_is_named_once(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    path.write_bytes(b"II*\0hello")
    with pytest.raises(DataError, match="is not a readable GeoTIFF: ") as caught:
        read_chip(path, sensor=L2A)
    assert str(caught.value).count("a.tif") == 1


def test_a_picture_is_of_no_other_sensor(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    Image.new("RGB", (4, 4)).save(path)
    with pytest.raises(DataError, match=r"sensor 'rgb', not 'sentinel2-l2a'"):
        read_chip(path, sensor=L2A)
    with pytest.raises(DataError, match="leave out bands"):
        read_chip(path, bands=["red"])
    assert read_chip(path).pixels.shape == (3, 4, 4)


def test_a_composite_needs_its_bands() -> None:
    with pytest.raises(SensorError, match=r"composite 'paper-l2a' needs B02"):
        make_layout(L2A, ["B04", "B03"], units="dn", composite="paper-l2a")
    assert make_layout(L2A, ["B04", "B03"], units="dn").composite is None


@pytest.mark.realdata
def test_a_real_scene_has_its_offset_by_its_folder(real_data: Path) -> None:
    folder = next((real_data / "scenes").glob("S2A_MSIL2A_*_N0400_*"))
    chip = read_chip(folder / "B04.tif", sensor=L2A, bands=["B04"])
    assert chip.layout.dn_offset == -1000
    with rasterio.open(folder / "B04.tif") as source:
        np.testing.assert_array_equal(chip.pixels, source.read())


@pytest.mark.realdata
def test_real_files_that_name_their_bands_are_read_by_them(real_data: Path) -> None:
    floods = real_data / "formats" / "sen1floods11"
    radar = read_chip(next((floods / "S1").glob("*.tif")), sensor=S1)
    assert radar.bands == ("VV", "VH")
    assert np.isfinite(radar.pixels[radar.valid]).all()
    optical = read_chip(next((floods / "S2").glob("*.tif")), sensor=L1C, dn_offset=0)
    assert optical.bands == L1C.band_names
    patch = next((real_data / "formats" / "s2_l2a_224").glob("*.tif"))
    with pytest.raises(DataError, match="does not name them"):
        read_chip(patch, sensor=L2A, dn_offset=0)


def test_paths_and_sensors_may_be_text(tmp_path: Path) -> None:
    path = write_geotiff(tmp_path / "a.tif", dn(2), descriptions=["B04", "B03"])
    chip = read_chip(str(path), sensor="sentinel2-l2a", dn_offset=0)
    assert chip.sensor == L2A
    with pytest.raises(SensorError, match="did you mean 'sentinel2-l2a'"):
        read_chip(str(path), sensor="sentinel2-L2A", dn_offset=0)
    alone = write_geotiff(tmp_path / "B04.tif", dn(1))
    with pytest.raises(DataError, match="of a product with a file per band, give the folder"):
        read_chip(str(alone), sensor="sentinel2-l2a", dn_offset=0)


def test_a_standard_product_name_says_the_sensor(tmp_path: Path) -> None:
    name = "S2A_MSIL1C_20200706T085611_N0209_R007_T33NZA_20200706T153419"
    path = write_geotiff(tmp_path / f"{name}.tif", dn(2), descriptions=["B04", "B03"])
    assert read_chip(path).sensor == L1C
    other = write_geotiff(tmp_path / name / "S2A_MSIL2A_20200706T085611_x.tif", dn(2))
    with pytest.raises(DataError, match="contradict each other"):
        read_chip(other)
