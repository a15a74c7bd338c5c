"""Windows of two dates over the same place, as pairs.

n windows of the later date, m of the earlier one.
"""

from __future__ import annotations

import numpy as np
import shapely
from numpy.typing import NDArray

MIN_SHARE = 0.5
"""Of the larger of two windows, that both must have in common to be of one place."""

_SAME_SHARE = 3
"""Decimal places to which shares are compared: of equal ones the time decides."""

_CHUNK = 2048
"""Windows whose partners are looked for at a time, which bounds memory."""


def best_partners(
    boxes: NDArray[np.float64], others: NDArray[np.float64], times: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Numbers (p,) of windows, ascending, and of the partner of each among the others.

    `boxes`, `others`: (n, 4) and (m, 4) west, south, east, north in degrees, west greater than east
    across the antimeridian. `times`: (m,) of the others. The partner is the one with the greatest
    shared area, at least half of the larger of both; of equals the latest.
    """
    where, copies = _with_copies(others)
    tree = shapely.STRtree(shapely.box(*copies.T))
    mine = _unwrapped(boxes)
    numbers, partners = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    for first in range(0, len(mine), _CHUNK):
        some = mine[first : first + _CHUNK]
        left, right = tree.query(shapely.box(*some.T))
        shares = _shares(some[left], copies[right])
        enough = shares >= MIN_SHARE
        left, right, shares = left[enough], right[enough], shares[enough]
        order = np.lexsort((times[where[right]], shares.round(_SAME_SHARE), left))
        last = np.flatnonzero(np.diff(left[order], append=-1))
        numbers.append(first + left[order][last])
        partners.append(where[right[order][last]])
    return np.concatenate(numbers), np.concatenate(partners)


def _unwrapped(boxes: NDArray[np.float64]) -> NDArray[np.float64]:
    """Boxes whose east is always greater than their west."""
    found = boxes.copy()
    found[:, 2] += np.where(found[:, 2] < found[:, 0], 360, 0)
    return found


def _with_copies(boxes: NDArray[np.float64]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Boxes, those at the antimeridian also as seen from its other side, with their numbers."""
    plain = _unwrapped(boxes)
    widest = float((plain[:, 2] - plain[:, 0]).max(initial=0))
    east, west = plain[:, 2] > 180 - widest, plain[:, 0] < -180 + widest
    turn = np.array([360, 0, 360, 0])
    numbers = np.arange(len(plain))
    return (
        np.concatenate([numbers, numbers[east], numbers[west]]),
        np.concatenate([plain, plain[east] - turn, plain[west] + turn]),
    )


def _shares(one: NDArray[np.float64], two: NDArray[np.float64]) -> NDArray[np.float64]:
    """(p,) the area that boxes have in common, of the larger of both."""
    sides = np.minimum(one[:, 2:], two[:, 2:]) - np.maximum(one[:, :2], two[:, :2])
    areas = [np.prod(box[:, 2:] - box[:, :2], axis=1) for box in (one, two)]
    found: NDArray[np.float64] = sides.clip(0).prod(1) / np.maximum(*areas).clip(1e-30)
    return found


def outline_shares(one: NDArray[np.object_], two: NDArray[np.object_]) -> NDArray[np.float64]:
    """(p,) the same of outlines (shapely, degrees)."""
    common = shapely.area(shapely.intersection(one, two))
    found: NDArray[np.float64] = common / np.maximum(shapely.area(one), shapely.area(two))
    return found
