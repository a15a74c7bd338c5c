"""Footprints in a GeoParquet column: well-known binary geometries, or boxes in a struct.

Source: GeoParquet 1.1 (metadata key `geo`, columns' `crs`, bounding-box columns).
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import shapely

from terralign.errors import DataError, first_line
from terralign.scenes.places import Bounds, is_geographic, wgs84_bounds

BOX_FIELDS = ("xmin", "ymin", "xmax", "ymax")

MAX_WKB_BYTES = 64 * 1024
"""A larger geometry is read only where it holds no others: GEOS reads those by recursion, and ends
the process where tens of thousands are nested."""
_SIMPLE = (1, 2, 3)
"""Well-known binary's numbers of a point, a line and a polygon."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Footprints:
    """Sample -> its WGS84 bounds, None where it has no footprint.

    `values`: N geometries or boxes; `crs`: None for degrees of WGS84, else PROJJSON; `origin`: how
    an error names them.
    """

    values: pa.Array
    crs: str | None
    origin: str

    def __call__(self, index: int) -> Bounds | None:
        value = self.values[index].as_py()
        if value is None:
            return None
        origin = f"{self.origin}, sample {index}"
        try:
            in_degrees = self.crs is None or is_geographic(self.crs)
            box = box_of(value, in_degrees=in_degrees)
            if box is not None:
                _check_bounds(box, in_degrees=in_degrees)
        except (
            *(shapely.errors.ShapelyError, TypeError, ValueError, OverflowError),
            *(NotImplementedError, MemoryError),
        ) as error:
            raise DataError(
                f"{origin}: its geometry is damaged ({first_line(error)}); write its box instead"
            ) from error
        if box is None or self.crs is None:
            return box
        return wgs84_bounds(box, self.crs, origin=origin)


def read_footprints(path: Path, column: str, values: pa.Array, geo: bytes | None) -> Footprints:
    """The footprints in a column of the GeoParquet file `path`; `DataError` where it holds none.

    `geo`: the file's metadata. The reference system is the column's own there, or that of the
    primary geometry for a column of boxes; degrees of WGS84 where it is left out (GeoParquet).
    """
    kind = values.type
    is_box = pa.types.is_struct(kind) and {field.name for field in kind} >= set(BOX_FIELDS)
    if not (is_box or pa.types.is_binary(kind) or pa.types.is_large_binary(kind)):
        raise DataError(
            f"{path}: column {column!r} is of type {kind}; expected well-known binary "
            f"geometries or boxes ({', '.join(BOX_FIELDS)}) of a GeoParquet file"
        )
    crs = None if geo is None else _crs_of(path, column, geo)
    return Footprints(values=values, crs=crs, origin=f"{path}, column {column!r}")


def _crs_of(path: Path, column: str, geo: bytes) -> str | None:
    try:
        metadata = json.loads(geo)
        columns = metadata["columns"]
        described = columns.get(column) or columns[metadata["primary_column"]]
        encoding, crs = described.get("encoding", "WKB"), described.get("crs", "absent")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DataError(
            f"{path}: its GeoParquet metadata are damaged ({first_line(error)}); write it again"
        ) from error
    if encoding != "WKB" and column in columns:
        raise DataError(f"{path}: column {column!r} is encoded as {encoding!s:.100}; expected WKB")
    if crs is None:
        raise DataError(f"{path}: column {column!r} has no reference system; set one")
    return None if crs == "absent" else json.dumps(crs)


def box_of(value: Any, *, in_degrees: bool) -> Bounds | None:
    """The bounds of a struct's box or of a geometry in well-known binary; None of an empty one.

    West is greater than east for parts in degrees that were cut at the antimeridian.
    """
    if isinstance(value, dict):
        west, south, east, north = (value[name] for name in BOX_FIELDS)
        is_empty = all(one is None or one != one for one in (west, south, east, north))
        return None if is_empty else (float(west), float(south), float(east), float(north))
    if len(value) > MAX_WKB_BYTES and _wkb_kind(value) not in _SIMPLE:
        raise ValueError(
            f"{len(value)} bytes of several parts, more than the limit of {MAX_WKB_BYTES}; "
            "simplify it, or write its box"
        )
    geometry = shapely.from_wkb(value)
    if geometry.is_empty:
        return None
    west, south, east, north = geometry.bounds
    touches = max(abs(west + 180), abs(east - 180)) < 1e-6
    if in_degrees and touches and geometry.geom_type.startswith("Multi"):
        parts = [part.bounds for part in geometry.geoms]
        eastern = [part[0] for part in parts if part[0] >= 0]
        western = [part[2] for part in parts if part[0] < 0]
        if western and eastern and max(western) < min(eastern):
            return (min(eastern), south, max(western), north)
    return (west, south, east, north)


def _check_bounds(box: Bounds, *, in_degrees: bool) -> None:
    """`ValueError` for bounds that no place on earth has."""
    limits = (180, 90, 180, 90) if in_degrees else (math.inf,) * 4
    inside = all(
        math.isfinite(v) and abs(v) < most + 1e-6 for v, most in zip(box, limits, strict=True)
    )
    if not inside or box[1] > box[3]:
        unit = "degrees" if in_degrees else "finite numbers"
        raise ValueError(f"bounds {box}; expected west, south, east, north in {unit}")


def _wkb_kind(value: bytes) -> int:
    """The number of a geometry's kind, without marks of more dimensions or a reference system."""
    order: Literal["little", "big"] = "little" if value[0] else "big"
    return (int.from_bytes(value[1:5], order) & 0xFFFF) % 1000
