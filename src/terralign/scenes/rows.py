"""Rows of rasters, each decoded once, for windows that are read from the top to the bottom.

H W pixels; rasters are stored in blocks, and a row of blocks is decoded as a whole.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

LEAST_STEP = 256
"""Rows that are decoded at a time where blocks are lower."""

Pair = tuple[NDArray[Any], NDArray[np.bool_]]
"""Pixels and valid, (..., rows, W) each."""


def block_step(source: Any) -> int:
    """Rows of an open dataset to decode at a time: whole blocks, and at least `LEAST_STEP`."""
    block_rows: int = source.block_shapes[0][0]
    return block_rows * -(-LEAST_STEP // block_rows)


class RowBuffer:
    """Rows `first` to `stop` of a raster at a time, from the top to the bottom.

    `read(first, stop)`: decodes rows; it is asked for `step` of them at a time, from a multiple of
    `step` on, so that no block is decoded twice while requests do not go back. Holds the rows from
    the last request's first one on, and at most `step` more than were asked for.
    """

    def __init__(self, read: Callable[[int, int], Pair], *, step: int, height: int) -> None:
        self._read, self._step, self._height = read, step, height
        self._top = self._stop = 0
        self._held: Pair | None = None

    def rows(self, first: int, stop: int) -> Pair:
        """Pixels and valid of these rows; views, which the next request leaves as they are."""
        if first < self._top or first >= self._stop:
            self._held, self._top = None, first - first % self._step
            self._stop = self._top
        parts = [] if self._held is None else [_cut(self._held, first - self._top, None)]
        if self._held is not None:
            self._top = first
        while self._stop < stop:
            end = min(self._stop + self._step, self._height)
            parts.append(self._read(self._stop, end))
            self._stop = end
        self._held = parts[0] if len(parts) == 1 else _joined(parts)
        return _cut(self._held, first - self._top, stop - self._top)


def _cut(pair: Pair, first: int, stop: int | None) -> Pair:
    pixels, valid = pair
    return pixels[..., first:stop, :], valid[..., first:stop, :]


def _joined(parts: list[Pair]) -> Pair:
    return (
        np.concatenate([pixels for pixels, _ in parts], axis=-2),
        np.concatenate([valid for _, valid in parts], axis=-2),
    )
