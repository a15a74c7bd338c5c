"""Scenes read on demand: the same numbers as whole reads, only what is asked for, in bounds."""

from __future__ import annotations

import datetime as dt
import resource
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import rasterio
from band_folders import NAME, NEW_NAME, REPROCESSED, write_band, write_product
from PIL import Image

from imagery import read_chip
from terralign.chips import Window
from terralign.errors import DataError, SensorError, UnknownOffsetError
from terralign.scenes import scene as scene_module
from terralign.scenes.scene import Scene, open_scene
from terralign.scenes.windows import cut_windows
from terralign.sensors import SENSORS, Band, Sensor

STACK = ("B02", "B03", "B04", "B8A")


def write_stack(path: Path, side: int = 40, **how: object) -> Path:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 3000, (4, side, side))
    return write_band(path, pixels, descriptions=STACK, **how)  # type: ignore[arg-type]


def cut(pixels: np.ndarray, window: Window) -> np.ndarray:
    rows = slice(window.row, window.row + window.height)
    return pixels[:, rows, window.column : window.column + window.width]


@pytest.mark.parametrize(
    "how",
    [
        {},
        {"nodata": 500},
        {"dtype": "float32", "nodata": np.nan, "scale": (1e-4, 0.0)},
        {"dtype": "int16", "scale": (2e-4, 0.05)},
        {"crs": None},
    ],
)
def test_windows_of_a_file_are_parts_of_the_whole(tmp_path: Path, how: dict[str, object]) -> None:
    path = write_stack(tmp_path / NAME / "scene.tif", **how)
    scene = open_scene(str(path), sensor="sentinel2-l2a")
    chip = scene.read()
    for window in cut_windows(40, 40, 16):
        part = scene.read(window, bands=["B8A", "B02"])
        expected = chip.select_bands(["B8A", "B02"])
        np.testing.assert_array_equal(part.pixels, cut(expected.pixels, window))
        np.testing.assert_array_equal(part.valid, cut(expected.valid, window))


def test_a_picture_is_one_whole_scene(tmp_path: Path) -> None:
    path = tmp_path / "picture.png"
    pixels = np.random.default_rng(0).integers(0, 255, (20, 30, 3), np.uint8)
    Image.fromarray(pixels).save(path)
    scene = open_scene(path)
    assert scene.is_picture
    assert (scene.height, scene.width) == (20, 30)
    np.testing.assert_array_equal(scene.read().pixels, read_chip(path).pixels)
    window = Window(row=3, column=5, height=4, width=6)
    np.testing.assert_array_equal(scene.read(window).pixels, pixels[3:7, 5:11].transpose(2, 0, 1))
    with pytest.raises(DataError, match="is a picture"):
        open_scene(path, sensor="sentinel2-l2a")


def test_an_eight_bit_tiff_is_a_picture_where_it_lies_nowhere(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (3, 8, 8))
    for crs, is_picture in ((None, True), ("EPSG:32633", False)):
        path = write_band(
            tmp_path / f"{is_picture}.tif", pixels, dtype="uint8", crs=crs, photometric="RGB"
        )
        assert open_scene(path).is_picture is is_picture


def test_bands_of_a_folder_come_onto_the_finest_grid(tmp_path: Path) -> None:
    folder = write_product(
        tmp_path / NAME, {"B04.tif": 1, "B05.tif": 2, "B01.tif": 6, "B02.tif": 1}
    )
    write_band(folder / "cloud_mask.tif", 1, dtype="uint8")
    (folder / "thumbnail.png").write_bytes(b"")
    scene = open_scene(str(folder))
    assert scene.bands == ("B01", "B02", "B04", "B05")
    assert (scene.layout.dn_offset, scene.layout.units) == (0, "dn")
    assert scene.datetime == dt.datetime(2020, 7, 6, 8, 56, 11, tzinfo=dt.UTC)
    chip = scene.read()
    assert (chip.grid, chip.datetime) == (scene.grid, scene.datetime)
    assert chip.pixels.shape == (4, 12, 12)
    assert chip.valid.all()
    for band in ("B02", "B04"):
        with rasterio.open(folder / f"{band}.tif") as file:
            np.testing.assert_array_equal(chip.select_bands([band]).pixels[0], file.read(1))
    with rasterio.open(folder / "B05.tif") as file:
        coarse = file.read(1).astype(np.float64)
    # The middle of a fine pixel lies a quarter of a coarse one from its coarse pixel's.
    expected = 0.75 * (0.75 * coarse[1, 1] + 0.25 * coarse[1, 0]) + 0.25 * (
        0.75 * coarse[0, 1] + 0.25 * coarse[0, 0]
    )
    assert abs(chip.select_bands(["B05"]).pixels[0, 2, 2] - expected) <= 1


def test_windows_of_a_folder_are_parts_of_the_whole(tmp_path: Path) -> None:
    folder = write_product(tmp_path / NAME, {"B04.tif": 1, "B05.tif": 2, "B01.tif": 6}, side=60)
    scene = open_scene(folder)
    whole = scene.read()
    windows = cut_windows(60, 60, 17, stride=11)
    for window, together in zip(windows, scene.read_windows(windows), strict=True):
        alone = scene.read(window)
        expected = cut(whole.pixels, window).astype(int)
        assert np.abs(alone.pixels.astype(int) - expected).max() <= 1  # ties of bilinear weights
        assert np.abs(together.pixels.astype(int) - expected).max() <= 1
        assert alone.grid == together.grid == scene.grid.window(window)


def test_windows_come_in_the_order_asked_for(tmp_path: Path) -> None:
    scene = open_scene(write_stack(tmp_path / NAME / "scene.tif"), sensor="sentinel2-l2a")
    windows = [
        Window(row=3, column=30, height=5, width=4),
        Window(row=3, column=0, height=5, width=20),
        Window(row=3, column=2, height=5, width=4),
        Window(row=0, column=0, height=40, width=40),
    ]
    for window, chip in zip(windows, scene.read_windows(windows), strict=True):
        np.testing.assert_array_equal(chip.pixels, scene.read(window).pixels)


def test_no_data_of_a_folder_is_not_mixed_into_its_neighbours(tmp_path: Path) -> None:
    coarse = np.full((6, 6), 1000)
    coarse[2, 2] = 0
    write_band(tmp_path / NAME / "B05.tif", coarse, size=20)
    write_band(tmp_path / NAME / "B04.tif", 1000)
    chip = open_scene(tmp_path / NAME).read(bands=["B05"])
    assert not chip.valid[0, 4:6, 4:6].any()
    assert set(np.unique(chip.pixels[chip.valid])) == {1000}


def test_grids_may_share_pixel_centres_instead_of_corners(tmp_path: Path) -> None:
    # As SSL4EO's patches and Landsat's panchromatic band do: the coarse grid begins half a fine
    # pixel further out.
    rows = np.arange(12.0)
    write_band(tmp_path / NAME / "B04.tif", np.add.outer(100 * rows, rows) + 1000)
    centres = np.arange(6.0) * 2  # in fine pixels
    write_band(
        tmp_path / NAME / "B05.tif",
        np.add.outer(100 * centres, centres) + 1000,
        size=20,
        corner=(500_000 - 5, 5_000_000 + 5),
    )
    chip = open_scene(tmp_path / NAME).read()
    inside = chip.pixels[:, :10, :10].astype(int)
    assert np.abs(inside[0] - inside[1]).max() <= 1


def test_only_the_bands_asked_for_are_read(tmp_path: Path) -> None:
    folder = write_product(tmp_path / NAME, {"B04.tif": 1, "B03.tif": 1})
    scene = open_scene(folder)
    (folder / "B03.tif").write_bytes(b"damaged")
    assert scene.read(bands=["B04"]).bands == ("B04",)
    with pytest.raises(SensorError, match="has bands B03, B04; missing B11"):
        scene.read(bands=["B11"])
    with pytest.raises(DataError, match=r"B03\.tif is not a readable GeoTIFF"):
        scene.read()


def test_a_selection_keeps_its_composite_only_with_its_three_bands(tmp_path: Path) -> None:
    names = {"B02.tif": 1, "B03.tif": 1, "B04.tif": 1, "B08.tif": 1}
    scene = open_scene(write_product(tmp_path / NAME, names), composite="eurosat")
    assert scene.read(bands=["B04", "B03", "B02"]).layout.composite == scene.layout.composite
    assert scene.read(bands=["B04", "B08"]).layout.composite is None


def test_whole_numbers_without_a_no_data_number_become_floating_point(tmp_path: Path) -> None:
    mine = Sensor(
        name="mine", bands=(Band(name="red"), Band(name="nir")), unit="reflectance", dn_scale=1e-4
    )
    write_band(tmp_path / "s_red.tif", 1000, nodata=1000)
    write_band(tmp_path / "s_nir.tif", 1000)
    chip = open_scene(tmp_path, sensor=mine).read()
    assert chip.bands == ("red", "nir")
    assert chip.pixels.dtype == np.float32
    assert np.isnan(chip.pixels[0]).all()
    assert (chip.pixels[1] == 1000).all()


# The DN offset


def test_an_offset_that_the_pixels_leave_alone_is_concluded(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    names = {"B02.tif": 1, "B03.tif": 1, "B04.tif": 1}
    scene = open_scene(write_product(tmp_path / REPROCESSED, names))
    assert scene.layout.dn_offset == 0
    (note,) = scene.notes
    assert "the pixels rule out -1000" in note
    assert "using 0" in note
    assert note in caplog.text
    assert open_scene(write_product(tmp_path / NAME, names)).notes == ()


def test_an_offset_that_the_pixels_leave_open_is_asked_for(tmp_path: Path) -> None:
    folder = tmp_path / REPROCESSED
    write_band(folder / "B04.tif", 1500)
    with pytest.raises(UnknownOffsetError, match="declare it"):
        open_scene(folder)
    assert open_scene(folder, dn_offset=-1000).layout.dn_offset == -1000
    write_band(tmp_path / NEW_NAME / "B04.tif", 1500)
    assert open_scene(tmp_path / NEW_NAME).layout.dn_offset == -1000


def test_an_offset_of_a_single_file_is_asked_for(tmp_path: Path) -> None:
    path = write_stack(tmp_path / "scene.tif")
    with pytest.raises(UnknownOffsetError, match="declare it"):
        open_scene(path, sensor="sentinel2-l2a")
    assert open_scene(path, sensor="sentinel2-l2a", dn_offset=0).notes == ()


# What is declared, and bounds


def test_what_is_declared_is_checked_once_on_samples(tmp_path: Path) -> None:
    folder = write_product(tmp_path / NAME, {"B04.tif": 1, "B03.tif": 1})
    with pytest.raises(DataError, match=r"lie outside .* reflectance"):
        open_scene(folder, units="physical")
    with pytest.raises(SensorError, match="units must be"):
        open_scene(folder, units="per cent")  # type: ignore[arg-type]


def write_large(path: Path, side: int = 10_980) -> Path:
    """A tiled file of which only some pixels of the middle are stored."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with rasterio.open(
        path,
        "w",
        driver="GTiff",
        count=4,
        height=side,
        width=side,
        dtype="uint16",
        crs="EPSG:32633",
        transform=rasterio.Affine(10, 0, 500_000, 0, -10, 5_000_000),
        tiled=True,
        blockxsize=256,
        blockysize=256,
        sparse_ok=True,
        interleave="band",
    ) as file:
        file.descriptions = STACK
        middle = rasterio.windows.Window(5_000, 5_000, 300, 300)
        file.write(np.full((4, 300, 300), 1234, np.uint16), window=middle)
    return path


def test_windows_of_a_large_scene_take_little_memory(tmp_path: Path) -> None:
    path = write_large(tmp_path / NAME / "large.tif")  # 920 MiB of pixels
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    scene = open_scene(path, sensor="sentinel2-l2a")
    window = Window(row=5_100, column=5_100, height=64, width=64)
    assert (scene.read(window).pixels == 1234).all()
    assert scene.read(Window(row=0, column=0, height=64, width=64)).valid_share == 0
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300 * 1024  # kB


def test_a_scene_larger_than_memory_allows_is_refused_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene = open_scene(write_large(tmp_path / NAME / "large.tif", 40_000), sensor="sentinel2-l2a")
    with pytest.raises(DataError, match=r"more than the limit of 1.25 GiB; read it in windows"):
        scene.read()
    with pytest.raises(DataError, match="does not lie within 40000x40000 pixels"):
        scene.read(Window(row=39_990, column=0, height=64, width=64))


def test_a_large_window_is_read_by_rows_as_it_is_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = [tmp_path / name / NAME / "a.tif" for name in ("plain", "south-up", "marked")]
    write_stack(paths[0], nodata=500)
    write_stack(paths[1])
    with rasterio.open(paths[1], "r+") as file:
        file.transform = rasterio.Affine(10, 0, 500_000, 0, 10, 5_000_000)
    mine = Sensor(
        name="mine", bands=tuple(Band(name=one) for one in STACK), unit="reflectance", dn_scale=1e-4
    )
    gap = np.full((4, 40, 40), 7)
    gap[:, 30:] = 500
    write_band(paths[2], gap, descriptions=STACK, nodata=500)  # float32 from row 30 on
    folder = write_product(tmp_path / NAME, {"B04.tif": 1, "B05.tif": 2, "SCL.tif": 2}, side=40)
    scenes = [open_scene(path, sensor="sentinel2-l2a") for path in paths[:2]]
    scenes += [open_scene(paths[2], sensor=mine), open_scene(folder)]
    window = Window(row=3, column=2, height=35, width=31)
    expected = [[scene.read(one, clouds=True) for one in (None, window)] for scene in scenes]
    monkeypatch.setattr(scene_module, "STEP_BYTES", 7 * 40 * 4 * 3)  # seven rows of the stacks
    monkeypatch.setattr(scene_module, "STEP_COPIES", 0)
    with monkeypatch.context() as patch:
        patch.setattr(scene_module, "limit", lambda _: 0)
        found = [[scene.read(one, clouds=True) for one in (None, window)] for scene in scenes]
    for one, other in zip(chain(*found), chain(*expected), strict=True):
        np.testing.assert_array_equal(one.pixels, other.pixels)
        np.testing.assert_array_equal(one.valid, other.valid)
        np.testing.assert_array_equal(one.clouds, other.clouds)
        assert (one.grid, one.pixels.dtype) == (other.grid, other.pixels.dtype)
    kept = expected[0][0].pixels.nbytes + expected[0][0].valid.nbytes
    monkeypatch.setenv("TERRALIGN_LIMITS", f"chip_bytes={kept}")
    assert scenes[0].read().pixels.shape == (4, 40, 40)
    monkeypatch.setenv("TERRALIGN_LIMITS", f"chip_bytes={kept - 1}")
    with pytest.raises(DataError, match=r"needs .* more than the limit"):
        scenes[0].read()


def test_windows_of_a_file_that_changed_are_new(tmp_path: Path) -> None:
    path = tmp_path / NAME / "B04.tif"
    write_band(path, 1000)
    scene, window = open_scene(path.parent), Window(row=0, column=0, height=2, width=2)
    assert (scene.read(window).pixels == 1000).all()
    write_band(path, 2000, compress="deflate")
    assert (scene.read(window).pixels == 2000).all()


def test_a_scene_says_what_it_is(tmp_path: Path) -> None:
    scene = open_scene(write_product(tmp_path / NAME, {"B04.tif": 1, "B03.tif": 1}))
    assert repr(scene) == (
        f"Scene({NAME}: sentinel2-l2a B03, B04; 12x12 pixels of 10 m, EPSG:32633; 2020-07-06)"
    )


@pytest.mark.realdata
def test_the_offset_of_a_reprocessed_real_scene_is_concluded(real_data: Path) -> None:
    folder = next((real_data / "scenes").glob("S2B_*_N9999_*_T48QUE_*"))
    scene = open_scene(folder)
    assert scene.layout.dn_offset == 0
    assert "the pixels rule out -1000" in scene.notes[0]
    assert scene.bands == SENSORS["sentinel2-l2a"].band_names
    assert (scene.height, scene.width) == (1068, 1068)
    assert scene.read(cut_windows(1068, 1068, 64)[20]).valid.all()


@pytest.mark.realdata
def test_the_offset_of_a_real_scene_is_in_its_name(real_data: Path) -> None:
    scene = open_scene(next((real_data / "scenes").glob("S2A_*_N0400_*")))
    assert (scene.layout.dn_offset, scene.notes) == (-1000, ())


def test_samples_of_a_scene_lie_within_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scene_module, "SAMPLE_SIDE", 4)
    monkeypatch.setattr(scene_module, "MAX_CHECKED_WHOLE", 1)
    scene: Scene = open_scene(
        write_stack(tmp_path / NAME / "scene.tif", side=11), sensor="sentinel2-l2a"
    )
    assert scene.height == 11
