"""Of windows that show the same place, the best alone."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

MIN_OVERLAP = 0.25
"""Share of the smaller of two windows from which on they count as one place. The bounds, in
degrees, of neighbours that only touch overlap by less."""


def without_overlaps(boxes: NDArray[np.float64]) -> NDArray[np.int64]:
    """Numbers of boxes (n, 4: west, south, east, north) that overlap with no earlier one kept.

    West is greater than east across the antimeridian.
    """
    west, south, north = boxes[:, 0], boxes[:, 1], boxes[:, 3]
    width = np.where(boxes[:, 2] >= west, boxes[:, 2] - west, boxes[:, 2] + 360 - west)
    height = north - south
    side = max(1e-9, float(width.max(initial=0)), float(height.max(initial=0)))
    num_across = max(1, math.floor(360 / side))
    kept: list[int] = []
    cells: dict[tuple[int, int], list[int]] = {}
    columns = np.floor((west + 180) / 360 * num_across).astype(np.int64) % num_across
    rows = np.floor(south / side).astype(np.int64)
    for number, (column, row) in enumerate(zip(columns.tolist(), rows.tolist(), strict=True)):
        near = [
            other
            for dx in (-1, 0, 1)
            for dy in (-1, 0, 1)
            for other in cells.get(((column + dx) % num_across, row + dy), ())
        ]
        if near:
            others = np.unique(near)
            east_by = (west[others] - west[number] + 180) % 360 - 180
            across = np.minimum(width[number], east_by + width[others]) - np.maximum(0, east_by)
            along = np.minimum(north[number], north[others]) - np.maximum(
                south[number], south[others]
            )
            shared = across.clip(0) * along.clip(0)
            smaller = np.minimum(width[number] * height[number], width[others] * height[others])
            if (shared >= MIN_OVERLAP * smaller).any():
                continue
        kept.append(number)
        cells.setdefault((column, row), []).append(number)
    return np.array(kept, dtype=np.int64)
