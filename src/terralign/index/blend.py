"""Values of overlapping windows as one map: a weighted mean at every pixel of it.

N windows, K values of each, H W pixels of the map.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, partial

import numpy as np
from numpy.typing import NDArray

from terralign.preprocess.spec import ALL_CELLS, NUM_CELLS

_STRIP_BYTES = 64 * 1024**2
"""Of the sums of one strip of the map, which is finished before the next."""

_LEAST_WEIGHT = 1e-6
"""At the very edge of a window, where a map pixel may be centred that only edges meet in."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Blend:
    """Windows of a scene that are blended into a map.

    `windows`: (N, 4) row, column, height and width in pixels of the scene. `cells`: (N,) which of
    8x8 cells of each have a valid number (see `preprocess.spec.valid_cells`). `height`, `width`: of
    the scene. `pixel_px`: pixels of the scene along a side of a pixel of the map.

    The weight of a window falls off linearly from 1 at its centre to 0 at its edges, along rows
    times along columns: (1 - |2u - 1|) (1 - |2v - 1|), where u and v from 0 to 1 say where in the
    window the centre of the map's pixel lies. With windows half of which overlap, the blend is the
    bilinear interpolation between their centres. Where the cell of a window has no valid number,
    its weight is 0; where all weights are, the map has none: NaN.
    """

    windows: NDArray[np.int64]
    cells: NDArray[np.uint64]
    height: int
    width: int
    pixel_px: int

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of the map."""
        return math.ceil(self.height / self.pixel_px), math.ceil(self.width / self.pixel_px)

    def strips(
        self, num_values: int, values_of: Callable[[NDArray[np.int64]], NDArray[np.floating]]
    ) -> Iterator[tuple[int, NDArray[np.float32]]]:
        """The map from the top, strip by strip: the first row, and (K, h, W) values.

        `values_of`: (n, K) values of some windows by number; those at the border of two strips are
        asked for twice. Memory is bounded by a strip's.
        """
        num_rows, num_columns = self.shape
        step = max(1, _STRIP_BYTES // (8 * num_columns * (num_values + 1)))
        ys, xs = self._centres(self.height, num_rows), self._centres(self.width, num_columns)
        order = np.argsort(self.windows[:, 0], kind="stable")
        tops = self.windows[order, 0]
        tallest = int(self.windows[:, 2].max(initial=1))
        for first in range(0, num_rows, step):
            rows = ys[first : first + step]
            low = np.searchsorted(tops, rows[0] - tallest, side="left")
            high = np.searchsorted(tops, rows[-1], side="right")
            numbers = order[low:high]
            sums = np.zeros((num_values, len(rows), num_columns))
            weights = np.zeros((len(rows), num_columns))
            if len(numbers):
                self._add(sums, weights, rows, xs, numbers, values_of(numbers))
            with np.errstate(invalid="ignore"):  # 0 / 0 is NaN
                yield first, (sums / weights).astype(np.float32)

    def _centres(self, length: int, num: int) -> NDArray[np.float64]:
        """Where the map's pixels are centred, in pixels of the scene; the last one extends beyond
        its edge, and is centred in what it has of the scene."""
        starts = np.arange(num) * self.pixel_px
        return (starts + np.minimum(starts + self.pixel_px, length)) / 2

    def _add(
        self,
        sums: NDArray[np.float64],
        weights: NDArray[np.float64],
        ys: NDArray[np.float64],
        xs: NDArray[np.float64],
        numbers: NDArray[np.int64],
        values: NDArray[np.floating],
    ) -> None:
        """Add windows to the sums (K, h, W) and weights (h, W) of the rows centred at `ys`."""
        along, across = (cache(partial(_falling_off, centres)) for centres in (ys, xs))
        for box, cells, value in zip(
            self.windows[numbers].tolist(), self.cells[numbers].tolist(), values, strict=True
        ):
            rows, row_weights, row_cells = along(box[0], box[2])
            columns, column_weights, column_cells = across(box[1], box[3])
            weight = np.outer(row_weights, column_weights)
            if cells != ALL_CELLS:
                weight *= _unpacked(cells)[np.ix_(row_cells, column_cells)]
            sums[:, rows, columns] += value[:, None, None] * weight
            weights[rows, columns] += weight


def _falling_off(
    centres: NDArray[np.float64], start: int, length: int
) -> tuple[slice, NDArray[np.float64], NDArray[np.int64]]:
    """The pixels along one side of a window, their weights, and the cells that they lie in."""
    first = np.searchsorted(centres, start, side="left")
    last = np.searchsorted(centres, start + length, side="right")
    place = (centres[first:last] - start) / length
    weights = np.maximum(1 - np.abs(2 * place - 1), _LEAST_WEIGHT)
    cells = np.minimum((place * NUM_CELLS).astype(np.int64), NUM_CELLS - 1)
    return slice(first, last), weights, cells


def _unpacked(cells: int) -> NDArray[np.bool_]:
    """(8, 8) of the bits of a window's cells."""
    data = np.frombuffer(int(cells).to_bytes(NUM_CELLS**2 // 8, "little"), np.uint8)
    return np.unpackbits(data, bitorder="little").reshape(NUM_CELLS, NUM_CELLS).astype(bool)
