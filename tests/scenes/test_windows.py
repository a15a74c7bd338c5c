"""Windows cover every pixel, are whole, and come row by row."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from terralign.chips import Grid, Window
from terralign.errors import DataError
from terralign.scenes.windows import cut_windows


@given(height=st.integers(1, 60), width=st.integers(1, 60), size=st.integers(1, 70), data=st.data())
def test_windows_cover_every_pixel_and_have_full_size(
    height: int, width: int, size: int, data: st.DataObject
) -> None:
    stride = data.draw(st.none() | st.integers(1, size))
    covered = np.zeros((height, width), dtype=int)
    windows = cut_windows(height, width, size, stride=stride)
    for one in windows:
        assert (one.height, one.width) == (min(size, height), min(size, width))
        covered[one.row : one.row + one.height, one.column : one.column + one.width] += 1
    assert covered.min() >= 1
    assert len({(one.row, one.column) for one in windows}) == len(windows)
    assert windows == sorted(windows, key=lambda one: (one.row, one.column))
    if stride is None and height % size == width % size == 0:
        assert covered.max() == 1


def test_edge_windows_are_shifted_inwards() -> None:
    corners = [(one.row, one.column) for one in cut_windows(10, 64, 32)]
    assert corners == [(0, 0), (0, 32)]
    assert [one.row for one in cut_windows(100, 32, 32)] == [0, 32, 64, 68]


@pytest.mark.parametrize(("size", "stride"), [(8, 9), (8, 0), (0, None), (-1, None)])
def test_a_stride_that_leaves_pixels_out_is_refused(size: int, stride: int | None) -> None:
    with pytest.raises(DataError, match="so that every pixel is covered"):
        cut_windows(20, 20, size, stride=stride)


def test_a_window_of_a_grid_lies_where_its_pixels_do() -> None:
    grid = Grid(crs="EPSG:32633", transform=(10, 1, 500, 2, -10, 900), height=40, width=50)
    part = grid.window(Window(row=3, column=7, height=4, width=5))
    assert part.transform == (10, 1, 500 + 70 + 3, 2, -10, 900 + 14 - 30)
    assert (part.height, part.width, part.crs) == (4, 5, grid.crs)
    with pytest.raises(DataError, match="does not lie within 40x50"):
        grid.window(Window(row=38, column=0, height=4, width=5))
    with pytest.raises(DataError, match="a corner from 0"):
        Window(row=-1, column=0, height=4, width=5)
