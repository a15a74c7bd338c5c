"""Rows of rasters, each decoded once; windows of a scene through them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from band_folders import NAME, write_band
from numpy.typing import NDArray

from terralign.chips import Window
from terralign.errors import DataError
from terralign.scenes import scene as scene_module
from terralign.scenes.rows import RowBuffer
from terralign.scenes.scene import open_scene
from terralign.scenes.windows import cut_windows

Pair = tuple[NDArray[np.int64], NDArray[np.bool_]]


def test_rows_are_decoded_once_from_the_top_to_the_bottom() -> None:
    whole = np.arange(100)[:, None] * np.ones(3, int)
    decoded: list[tuple[int, int]] = []

    def read(first: int, stop: int) -> Pair:
        decoded.append((first, stop))
        return whole[first:stop], whole[first:stop] >= 0

    buffer = RowBuffer(read, step=16, height=100)
    for first, stop in [(0, 10), (5, 15), (10, 40), (10, 40), (39, 50), (90, 100)]:
        pixels, valid = buffer.rows(first, stop)
        np.testing.assert_array_equal(pixels, whole[first:stop])
        assert valid.shape == pixels.shape
    assert decoded == [(0, 16), (16, 32), (32, 48), (48, 64), (80, 96), (96, 100)]
    np.testing.assert_array_equal(buffer.rows(3, 5)[0], whole[3:5])  # back again


def write_scene(root: Path) -> Path:
    rng = np.random.default_rng(0)
    how = {"tiled": True, "blockxsize": 64, "blockysize": 64}
    for name, factor in {"B02": 1, "B04": 1, "B05": 2, "B01": 6}.items():
        pixels = rng.integers(1, 3000, (240 // factor, 360 // factor))
        pixels[rng.random(pixels.shape) < 0.1] = 0
        write_band(root / NAME / f"{name}.tif", pixels, size=10 * factor, **how)
    return root / NAME


@pytest.mark.parametrize(("size", "stride"), [(50, 50), (50, 20), (200, 200)])
@pytest.mark.parametrize("strip_bytes", [2**27, 40_000])
def test_windows_through_rows_are_those_read_one_by_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int, stride: int, strip_bytes: int
) -> None:
    monkeypatch.setattr(scene_module, "MAX_STRIP_BYTES", strip_bytes)
    scene = open_scene(write_scene(tmp_path))
    windows = cut_windows(scene.height, scene.width, size, stride=stride)
    for number, (window, chip) in enumerate(zip(windows, scene.read_windows(windows), strict=True)):
        if number % 11:  # reading one alone opens every file
            continue
        alone = scene.read(window)
        np.testing.assert_array_equal(chip.pixels, alone.pixels)
        np.testing.assert_array_equal(chip.valid, alone.valid)
        assert chip.grid == alone.grid


def test_windows_that_go_back_or_take_too_much_are_read_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene = open_scene(write_scene(tmp_path))
    windows = cut_windows(scene.height, scene.width, 100)
    whole = scene.read()

    def check(windows: list[Window]) -> None:
        for window, chip in zip(windows, scene.read_windows(windows), strict=True):
            rows = slice(window.row, window.row + window.height)
            columns = slice(window.column, window.column + window.width)
            np.testing.assert_array_equal(chip.pixels, whole.pixels[:, rows, columns])

    check(windows[::-1])
    monkeypatch.setattr(scene_module, "MAX_HELD_BYTES", 1)
    check(windows)


def test_reading_that_is_given_up_ends(tmp_path: Path) -> None:
    scene = open_scene(write_scene(tmp_path))
    for _ in scene.read_windows(cut_windows(scene.height, scene.width, 50)):
        break


def test_damage_that_is_met_on_the_way_is_reported(tmp_path: Path) -> None:
    folder = write_scene(tmp_path)
    scene = open_scene(folder)
    path = folder / "B04.tif"
    path.write_bytes(path.read_bytes()[:-60_000])
    with pytest.raises(DataError, match=r"B04.tif is damaged"):
        list(scene.read_windows(cut_windows(scene.height, scene.width, 50)))
