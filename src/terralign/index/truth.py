"""Polygons of classes as the ground truth of a search: how much of each window they cover.

N rows of the index.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import shapely
from numpy.typing import NDArray

from terralign.errors import DataError, shown
from terralign.files import read_json
from terralign.index.filters import (
    check_polygon,
    crs_of,
    geometry_of,
    make_filters,
    outlines_of,
    rows_meeting,
)
from terralign.index.search import Index
from terralign.index.store import Store

UNNAMED = "polygons"
"""The class of polygons in a file that names no classes."""

_ROWS = 65_536
"""Rows that are compared with polygons at a time."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Truth:
    """`name`: of the file, for messages. `shapes`: class -> its polygons, shapely, in degrees."""

    name: str
    shapes: Mapping[str, Any]


def read_truth(path: str | Path, *, class_property: str = "class") -> Truth:
    """The polygons of a GeoJSON file by class, in the file's order.

    Features are polygons; their property `class_property` names the class. Where no feature has it,
    all are of one class, "polygons". Coordinates are degrees of WGS84, or of the file's member
    `crs`. `DataError`, naming the feature, for what is no polygon, crosses itself, or has no class.
    """
    path = Path(path)
    name = f"truth {shown(path)}"
    value = read_json(path, what="truth", fault=DataError)
    features = value.get("features") if isinstance(value, Mapping) else None
    if not isinstance(features, list) or not all(isinstance(one, Mapping) for one in features):
        raise DataError(f"{name} is no GeoJSON FeatureCollection of polygons")
    if not features:
        raise DataError(f"{name} has no features; draw at least one polygon")
    crs = crs_of(value, name)
    classes = [
        _class_of(one, class_property, f"{name}: feature {number}")
        for number, one in enumerate(features, start=1)
    ]
    if not any(classes):
        classes = [UNNAMED] * len(features)
    shapes: dict[str, list[Any]] = {}
    for number, (feature, label) in enumerate(zip(features, classes, strict=True), start=1):
        what = f"{name}: feature {number}" + (f" ({label})" if label not in ("", UNNAMED) else "")
        if not label:
            raise DataError(
                f"{what} has no text as property {class_property!r}, which other features have; "
                "name its class"
            )
        shapes.setdefault(label, []).append(_polygon_of(feature, crs, what))
    unions = {label: shapely.union_all(found) for label, found in shapes.items()}
    return Truth(name=shown(path), shapes=unions)


def _class_of(feature: Mapping[str, Any], class_property: str, what: str) -> str:
    properties = feature.get("properties")
    found = properties.get(class_property) if isinstance(properties, Mapping) else None
    if not isinstance(found, str | None):
        raise DataError(
            f"{what} has {shown(found)} as property {class_property!r}; expected a text, the name "
            "of its class"
        )
    return (found or "").strip()


def _polygon_of(feature: Mapping[str, Any], crs: str | None, what: str) -> Any:
    if not isinstance(feature.get("geometry"), Mapping):
        raise DataError(f"{what} has no geometry; draw a polygon, or leave it out")
    return check_polygon(geometry_of(feature["geometry"], crs, what), what)


def covers(
    index: Index, shapes: Mapping[str, Any], **filters: Any
) -> tuple[NDArray[np.int64], dict[str, NDArray[np.float64]]]:
    """Which rows of an index a search with these filters looks at, and how much of each polygons
    cover: rows (N,), and class -> share of the window's area (N,), 0-1.

    `shapes`: as in `Truth`. `filters`: as in `Index.search`.
    """
    numbers = rows_meeting(index.store, make_filters(**filters))
    if numbers is None:
        numbers = np.arange(len(index), dtype=np.int64)
    return numbers, {
        label: np.concatenate(
            [
                np.zeros(0),
                *(
                    _shares(index.store, numbers[start : start + _ROWS], shape)
                    for start in range(0, len(numbers), _ROWS)
                ),
            ]
        )
        for label, shape in shapes.items()
    }


def _shares(store: Store, numbers: NDArray[np.int64], shape: Any) -> NDArray[np.float64]:
    """(n,) share of each window's area that a shape covers; degrees do, within one window."""
    pieces = shapely.get_parts(shape)  # of a union, so they do not overlap
    tree = shapely.STRtree(pieces)
    rows = store.rows[numbers]
    across = rows["west"] > rows["east"]
    west, east = np.where(across, -180, rows["west"]), np.where(across, 180, rows["east"])
    found = np.zeros(len(numbers))
    near = np.unique(tree.query(shapely.box(west, rows["south"], east, rows["north"]))[0])
    outlines = np.array(outlines_of(store, numbers[near]), dtype=object)
    if not len(near):
        return found
    inside, _ = tree.query(outlines, predicate="within")
    shares = np.zeros(len(near))
    windows, covered = tree.query(outlines, predicate="intersects")
    partly = ~np.isin(windows, inside)
    windows, covered = windows[partly], covered[partly]
    areas = shapely.area(shapely.intersection(outlines[windows], pieces[covered]))
    np.add.at(shares, windows, areas / shapely.area(outlines[windows]))
    shares[inside] = 1
    found[near] = shares.clip(0, 1)
    return found
