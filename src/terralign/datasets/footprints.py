"""Footprints in a GeoParquet column: well-known binary geometries, or boxes in a struct.

Sources: GeoParquet 1.1 (metadata key `geo`, columns' `crs`, bounding-box columns); OGC Simple
Features for well-known binary, with the flags of its extended form.
"""

from __future__ import annotations

import json
import math
import struct
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from terralign.datasets.table_file import TableFile
from terralign.errors import DataError
from terralign.scenes.places import Bounds, wgs84_bounds

BOX_FIELDS = ("xmin", "ymin", "xmax", "ymax")
MAX_DEPTH = 8
"""A geometry nested deeper than this is refused."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Footprints:
    """The footprints of N rows; `crs`: None for degrees of WGS84, else PROJJSON."""

    values: pa.Array
    crs: str | None

    def bounds(self, row: int, origin: str) -> Bounds | None:
        """WGS84 bounds of one row's footprint, None where it has none."""
        value = self.values[row].as_py()
        if value is None:
            return None
        try:
            box = _box_of(value)
        except (ValueError, struct.error) as error:
            raise DataError(f"{origin}: its geometry is damaged: {error}") from error
        if box is None or self.crs is None:
            return box
        return wgs84_bounds(box, self.crs, origin=origin)


def read_footprints(table: TableFile, column: str) -> Footprints:
    """The footprints in a column of a GeoParquet file; `DataError` where it holds none.

    The reference system is the column's own in the file's metadata, or that of the primary geometry
    for a column of boxes; degrees of WGS84 where the metadata leave it out, as GeoParquet has it.
    """
    values = table.columns[column]
    kind = values.type
    is_box = pa.types.is_struct(kind) and {field.name for field in kind} >= set(BOX_FIELDS)
    if not (is_box or pa.types.is_binary(kind) or pa.types.is_large_binary(kind)):
        raise DataError(
            f"{table.path}: column {column!r} is of type {kind}; expected well-known binary "
            f"geometries or boxes ({', '.join(BOX_FIELDS)}) of a GeoParquet file"
        )
    return Footprints(values=values, crs=_crs_of(table, column))


def _crs_of(table: TableFile, column: str) -> str | None:
    if table.geo is None:
        return None
    try:
        geo = json.loads(table.geo)
        described = geo["columns"].get(column) or geo["columns"][geo["primary_column"]]
        encoding, crs = described.get("encoding", "WKB"), described.get("crs", "absent")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{table.path}: its GeoParquet metadata are damaged: {error}") from error
    if encoding != "WKB" and column in geo["columns"]:
        raise DataError(f"{table.path}: column {column!r} is encoded as {encoding}; expected WKB")
    if crs is None:
        raise DataError(f"{table.path}: column {column!r} has no reference system; set one")
    return None if crs == "absent" else json.dumps(crs)


def _box_of(value: Any) -> Bounds | None:
    if isinstance(value, dict):
        west, south, east, north = (value[name] for name in BOX_FIELDS)
        return None if west is None else (west, south, east, north)
    points = _Points(value)
    points.read_geometry(0)
    if not points.found:
        return None
    lows = np.min([low for low, _ in points.found], axis=0)
    highs = np.max([high for _, high in points.found], axis=0)
    return (float(lows[0]), float(lows[1]), float(highs[0]), float(highs[1]))


class _Points:
    """Reads through one well-known binary geometry; `found`: (lows, highs) of its point lists."""

    def __init__(self, content: bytes) -> None:
        self.content, self.place = content, 0
        self.found: list[tuple[Any, Any]] = []

    def read_geometry(self, depth: int) -> None:
        if depth > MAX_DEPTH:
            raise ValueError("it is nested too deep")
        order = {0: ">", 1: "<"}.get(self._unpack("B"))
        if order is None:
            raise ValueError("its byte order is unknown")
        code = self._unpack(f"{order}I")
        if code & 0x20000000:
            self._unpack(f"{order}I")  # the reference system's number of the extended form
        thousands, kind = divmod(code & 0x0FFFFFFF, 1000)
        has_z = bool(code & 0x80000000) or thousands in (1, 3)
        has_m = bool(code & 0x40000000) or thousands in (2, 3)
        num_axes = 2 + has_z + has_m
        if kind == 1:
            self._read_points(order, 1, num_axes)
        elif kind == 2:
            self._read_points(order, self._unpack(f"{order}I"), num_axes)
        elif kind in (3, 17):
            for _ in range(self._unpack(f"{order}I")):
                self._read_points(order, self._unpack(f"{order}I"), num_axes)
        elif kind in (4, 5, 6, 7):
            for _ in range(self._unpack(f"{order}I")):
                self.read_geometry(depth + 1)
        else:
            raise ValueError(f"its type {kind} is unknown")

    def _unpack(self, form: str) -> int:
        (value,) = struct.unpack_from(form, self.content, self.place)
        self.place += struct.calcsize(form)
        return int(value)

    def _read_points(self, order: str, count: int, num_axes: int) -> None:
        points = np.frombuffer(self.content, f"{order}f8", count * num_axes, self.place)
        self.place += points.nbytes
        flat = points.reshape(count, num_axes)[:, :2]
        if count and not math.isnan(flat[0, 0]):  # an empty point is written as NaN
            self.found.append((flat.min(axis=0), flat.max(axis=0)))
