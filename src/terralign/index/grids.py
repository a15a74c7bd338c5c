"""Orders and names of places: the Hilbert curve, and the cells of the Major-TOM grid.

N places throughout, in degrees of WGS84.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

_BITS = 24
"""Of each coordinate of a Hilbert number: steps of two metres at the equator."""

_RADIUS_KM = 6378.137
_CELL_KM = 10.0
"""The Major-TOM grid: a sphere of the Earth's equatorial radius, in cells of 10 km (Francis and
Czerkawski 2024, *Major TOM: Expandable Datasets for Earth Observation*)."""

_NUM_ROWS = math.ceil(math.pi * _RADIUS_KM / _CELL_KM)
_ROW_DEGREES = 180 / _NUM_ROWS


def hilbert_numbers(
    longitudes: NDArray[np.float64], latitudes: NDArray[np.float64]
) -> NDArray[np.int64]:
    """(N,) positions on a Hilbert curve over the globe: places close on it are close on the map."""
    top = (1 << _BITS) - 1
    x = np.clip((longitudes + 180) / 360 * top, 0, top).astype(np.int64)
    y = np.clip((latitudes + 90) / 180 * top, 0, top).astype(np.int64)
    found = np.zeros(len(x), dtype=np.int64)
    side = 1 << (_BITS - 1)
    while side:
        right, upper = (x & side) > 0, (y & side) > 0
        found += side * side * ((3 * right) ^ upper)
        turned, flipped = ~upper, ~upper & right
        x, y = np.where(flipped, top - x, x), np.where(flipped, top - y, y)
        x, y = np.where(turned, y, x), np.where(turned, x, y)
        side >>= 1
    return found


def majortom_cells(longitudes: NDArray[np.float64], latitudes: NDArray[np.float64]) -> list[str]:
    """The cell of the 10 km Major-TOM grid that each place lies in, as "215U_986R"."""
    rows = np.floor(latitudes / _ROW_DEGREES).astype(np.int64)
    around = np.cos(np.radians(rows * _ROW_DEGREES)) * 2 * math.pi * _RADIUS_KM
    num_columns = np.maximum(1, np.ceil(around / _CELL_KM)).astype(np.int64)
    columns = np.floor(longitudes * num_columns / 360).astype(np.int64)
    # With an odd number of cells one of them lies across the antimeridian: the last to the right.
    last_left = -((num_columns - 1) // 2)
    across = (num_columns % 2 == 1) & (columns < last_left)
    columns = np.where(across, (num_columns - 1) // 2, columns)
    return [
        f"{abs(row)}{'U' if row >= 0 else 'D'}_{abs(column)}{'R' if column >= 0 else 'L'}"
        for row, column in zip(rows.tolist(), columns.tolist(), strict=True)
    ]
