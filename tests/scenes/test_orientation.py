"""South-up files are read north-up; other grids that are not north-up are warned of."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
import rasterio
from band_folders import NAME, write_band
from numpy.typing import NDArray
from rasterio import Affine

from imagery import read_chip
from terralign.chips import Grid
from terralign.scenes.declared import Declared
from terralign.scenes.orientation import is_south_up, reversed_rows
from terralign.scenes.scene import open_scene, read_geotiff
from terralign.scenes.windows import cut_windows
from terralign.sensors import find_sensor

BANDS = ("B02", "B03", "B04")
NORTH_UP = Affine(10, 0, 500_000, 0, -10, 5_000_000)
L2A = "sentinel2-l2a"


def numbers(side: int, seed: int = 0) -> NDArray[np.int64]:
    found = np.random.default_rng(seed).integers(100, 3000, (3, side, side + 10))
    found[:, :3, :7] = 0  # no data in the north-west
    return found


def with_transform(path: Path, transform: Affine, crs: str = "EPSG:32633") -> Path:
    with rasterio.open(path, "r+") as file:
        file.crs = crs
        file.transform = transform
    return path


def south_up(side: int, size: float = 10) -> Affine:
    return Affine(size, 0, 500_000, 0, size, 5_000_000 - side * size)


def twins(folder: Path) -> tuple[Path, Path]:
    """The same scene north-up and south-up."""
    pixels = numbers(40)
    north = write_band(folder / NAME / "north.tif", pixels, descriptions=BANDS)
    south = write_band(folder / NAME / "south.tif", pixels[:, ::-1], descriptions=BANDS)
    return north, with_transform(south, south_up(40))


def test_a_south_up_file_is_its_north_up_twin(tmp_path: Path) -> None:
    north, south = (open_scene(path, sensor=L2A) for path in twins(tmp_path))
    assert south.grid == north.grid
    windows = cut_windows(40, 50, 16)
    for window in [None, *windows]:
        one, other = south.read(window), north.read(window)
        np.testing.assert_array_equal(one.pixels, other.pixels)
        np.testing.assert_array_equal(one.valid, other.valid)
        assert one.grid == other.grid
        assert one.pixels.flags.c_contiguous
    strips = zip(south.read_windows(windows), north.read_windows(windows), strict=True)
    for one, other in strips:
        np.testing.assert_array_equal(one.pixels, other.pixels)
        assert one.grid == other.grid


def test_it_is_read_whole_the_same_way(tmp_path: Path) -> None:
    one, other = (read_chip(path, sensor=L2A) for path in twins(tmp_path))
    np.testing.assert_array_equal(one.pixels, other.pixels)
    np.testing.assert_array_equal(one.valid, other.valid)
    assert one.grid == other.grid


def test_files_of_data_sets_are_read_the_same_way_and_nothing_is_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        declared = Declared(sensor=find_sensor(L2A))
        one, other = (read_geotiff(path, declared) for path in twins(tmp_path))
    np.testing.assert_array_equal(one.pixels, other.pixels)
    assert one.grid == other.grid
    assert not caplog.records


def test_a_south_up_product_with_coarse_bands_is_its_north_up_twin(tmp_path: Path) -> None:
    folders = tmp_path / "north" / NAME, tmp_path / "south" / NAME
    for name, factor in (("B04", 1), ("B05", 2), ("B01", 6)):
        side = 60 // factor
        pixels = np.random.default_rng(factor).integers(100, 3000, (side, side))
        write_band(folders[0] / f"{name}.tif", pixels, size=10 * factor)
        south = write_band(folders[1] / f"{name}.tif", pixels[::-1], size=10 * factor)
        with_transform(south, south_up(side, 10 * factor))
    north, south_scene = (open_scene(folder) for folder in folders)
    assert south_scene.grid == north.grid
    for window in [None, *cut_windows(60, 60, 16)]:
        one, other = south_scene.read(window), north.read(window)
        np.testing.assert_allclose(one.pixels, other.pixels, rtol=0, atol=1)
        np.testing.assert_array_equal(one.valid, other.valid)


def test_reversing_rows_twice_gives_the_grid() -> None:
    grid = Grid(crs="EPSG:32633", transform=(10, 0, 500_000, 0, 10, 4_000_000), height=40, width=30)
    assert is_south_up(grid)
    assert not is_south_up(reversed_rows(grid))
    assert reversed_rows(grid).bounds == grid.bounds
    assert reversed_rows(reversed_rows(grid)) == grid


@pytest.mark.parametrize("crs", [None, "EPSG:32633", 'LOCAL_CS["x",UNIT["metre",1]]'])
def test_rows_without_georeferencing_run_downwards(crs: str | None) -> None:
    """As GDAL gives them; a local system's may run either way."""
    grid = Grid(crs=crs, transform=(1, 0, 0, 0, 1, 0), height=4, width=4)
    assert not is_south_up(grid)


@pytest.mark.parametrize(
    ("transform", "how"),
    [
        (NORTH_UP @ Affine.rotation(30), "rotated by 30 degrees"),
        (NORTH_UP @ Affine.rotation(180), "mirrored"),
        (NORTH_UP @ Affine.scale(-1, 1), "mirrored"),
    ],
)
def test_other_grids_that_are_not_north_up_are_warned_of(
    tmp_path: Path, transform: Affine, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = write_band(tmp_path / NAME / "a.tif", numbers(40), descriptions=BANDS)
    before = open_scene(path, sensor=L2A).read()
    with_transform(path, transform)
    with caplog.at_level(logging.WARNING):
        scene = open_scene(path, sensor=L2A)
    (record,) = caplog.records
    assert f"a.tif: its grid is {how}" in record.getMessage()
    assert "gdalwarp" in record.getMessage()
    np.testing.assert_array_equal(scene.read().pixels, before.pixels)


def test_a_slight_rotation_is_not_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = write_band(tmp_path / NAME / "a.tif", numbers(40), descriptions=BANDS)
    open_scene(with_transform(path, NORTH_UP @ Affine.rotation(0.2)), sensor=L2A)
    assert not caplog.records
