"""Hits, and whole indexes, as files for maps: GeoJSON, GeoPackage and GeoParquet."""

from __future__ import annotations

import datetime as dt
import json
import sqlite3
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import shapely

from terralign.encoders.answers import Hits, check_geojson
from terralign.encoders.vectors import as_utf8
from terralign.errors import DataError, StorageError, first_line
from terralign.files import atomic_path

_APPLICATION_ID = 0x47504B47
"""Of a GeoPackage ("GPKG"), and `_USER_VERSION`: of version 1.2 (OGC 12-128r15)."""
_USER_VERSION = 10200

_TABLE = "windows"
_MARK = "terralign"
"""The identifier by which a GeoPackage of ours is known again."""

_WGS84 = (
    'GEOGCS["WGS 84",DATUM["WGS_1984",SPHEROID["WGS 84",6378137,298.257223563]],'
    'PRIMEM["Greenwich",0],UNIT["degree",0.0174532925199433],AUTHORITY["EPSG","4326"]]'
)


def check_output(path: Path) -> None:
    """Raise before a long search: `StorageError` for an unknown ending, or a file that terralign
    did not write."""
    if path.suffix.lower() not in _WRITERS:
        raise StorageError(f"{path}: choose a name that ends in {', '.join(sorted(_WRITERS))}")
    if path.suffix.lower() in (".geojson", ".json"):
        check_geojson(path)
    elif path.exists() and not _is_ours(path):
        raise StorageError(f"{path} exists and was not written by terralign; choose another name")


def _is_ours(path: Path) -> bool:
    try:
        if path.suffix.lower() == ".parquet":
            return b"terralign_hits" in (pq.read_schema(path).metadata or {})
        connection = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
        try:
            query = "SELECT description FROM gpkg_contents WHERE table_name = ?"
            found = connection.execute(query, (_TABLE,)).fetchone()
        finally:
            connection.close()
        return found is not None and found[0] == _MARK
    except (pa.ArrowException, OSError, sqlite3.Error):
        return False


def save_hits(hits: Hits, path: str | Path) -> Path:
    """Write hits by the ending of the name: .geojson, .json, .gpkg or .parquet (GeoParquet 1.1).

    Whole, or not at all. `StorageError` where another file has the name, or the disk is full.
    """
    path = Path(path)
    check_output(path)
    return _WRITERS[path.suffix.lower()](hits, path)


def _rows(hits: Hits) -> list[dict[str, Any]]:
    """What files state of each hit beside its outline; every row has the same names."""
    return [
        {
            "rank": hit.rank,
            "key": as_utf8(hit.key),
            "score": round(hit.score, 6),
            "tower": hit.tower,
            "source": None if hit.place.source is None else as_utf8(hit.place.source),
            "datetime": hit.place.datetime,
            **{name: as_utf8(one) if isinstance(one, str) else one
               for name, one in hit.facts.items()},
            "query": as_utf8(hits.query),
        }
        for hit in hits
    ]  # fmt: skip


def _write_geojson(hits: Hits, path: Path) -> Path:
    return hits.save_geojson(path)


def _write_geoparquet(hits: Hits, path: Path) -> Path:
    rows, shapes = _rows(hits), np.array([hit.place.shape for hit in hits], dtype=object)
    names = list(rows[0]) if rows else ["rank", "key", "score"]
    columns: dict[str, Any] = {name: pa.array([row[name] for row in rows]) for name in names}
    bounds = shapely.bounds(shapes).reshape(len(rows), 4)
    columns["geometry"] = pa.array(shapely.to_wkb(shapes), pa.binary())
    corners = ("xmin", "ymin", "xmax", "ymax")
    columns["bbox"] = pa.StructArray.from_arrays(
        [pa.array(bounds[:, n], pa.float64()) for n in range(4)], names=list(corners)
    )
    geometry = {
        "encoding": "WKB",
        "geometry_types": sorted({str(one.geom_type) for one in shapes}),
        "covering": {"bbox": {name: ["bbox", name] for name in corners}},
    }
    geo = {"version": "1.1.0", "primary_column": "geometry", "columns": {"geometry": geometry}}
    table = pa.table(columns).replace_schema_metadata(
        {"geo": json.dumps(geo), "terralign_hits": json.dumps({"query": as_utf8(hits.query)})}
    )
    with atomic_path(path) as partial:
        pq.write_table(table, partial, compression="zstd")
    return path


_SQL_TYPES = {bool: "BOOLEAN", int: "INTEGER", float: "REAL", dt.datetime: "DATETIME"}


def _write_geopackage(hits: Hits, path: Path) -> Path:
    """One layer, `windows`, without a spatial index, which QGIS offers to add."""
    rows = _rows(hits)
    names = list(rows[0]) if rows else ["rank", "key", "score"]
    kinds = {name: _sql_type([row[name] for row in rows]) for name in names}
    shapes = [hit.place.shape for hit in hits]
    bounds = shapely.total_bounds(shapes).tolist() if shapes else [0.0, 0.0, 0.0, 0.0]
    with atomic_path(path) as partial:
        partial.unlink(missing_ok=True)
        try:
            connection = sqlite3.connect(partial)
            try:
                _make_tables(connection, kinds, bounds)
                marks = ", ".join("?" for _ in range(len(names) + 1))
                quoted = ", ".join(f'"{name}"' for name in names)
                connection.executemany(
                    f'INSERT INTO "{_TABLE}" (geom, {quoted}) VALUES ({marks})',
                    (
                        (_geometry(shape), *(_sql_value(row[name]) for name in names))
                        for shape, row in zip(shapes, rows, strict=True)
                    ),
                )
                connection.commit()
            finally:
                connection.close()
        except sqlite3.Error as error:
            raise StorageError(f"cannot write {path}: {first_line(error)}") from error
    return path


def _sql_type(values: list[Any]) -> str:
    known = next((one for one in values if one is not None), "")
    return next((kind for one, kind in _SQL_TYPES.items() if isinstance(known, one)), "TEXT")


def _sql_value(value: Any) -> Any:
    if isinstance(value, dt.datetime):
        return value.astimezone(dt.UTC).strftime("%Y-%m-%dT%H:%M:%S.") + (
            f"{value.microsecond // 1000:03d}Z"
        )
    return value


def _geometry(shape: Any) -> bytes:
    """A geometry as GeoPackage has it: a header with its bounds, then WKB, little-endian."""
    west, south, east, north = shape.bounds
    header = struct.pack("<2sBBi4d", b"GP", 0, 0b0000_0011, 4326, west, east, south, north)
    wkb: bytes = shapely.to_wkb(shape, byte_order=1)
    return header + wkb


def _make_tables(
    connection: sqlite3.Connection, kinds: Mapping[str, str], bounds: list[float]
) -> None:
    columns = ", ".join(f'"{name}" {kind}' for name, kind in kinds.items())
    connection.executescript(
        f"""
        PRAGMA application_id = {_APPLICATION_ID};
        PRAGMA user_version = {_USER_VERSION};
        CREATE TABLE gpkg_spatial_ref_sys (
            srs_name TEXT NOT NULL, srs_id INTEGER NOT NULL PRIMARY KEY,
            organization TEXT NOT NULL, organization_coordsys_id INTEGER NOT NULL,
            definition TEXT NOT NULL, description TEXT);
        CREATE TABLE gpkg_contents (
            table_name TEXT NOT NULL PRIMARY KEY, data_type TEXT NOT NULL,
            identifier TEXT UNIQUE, description TEXT DEFAULT '',
            last_change DATETIME NOT NULL DEFAULT '1970-01-01T00:00:00.000Z',
            min_x DOUBLE, min_y DOUBLE, max_x DOUBLE, max_y DOUBLE, srs_id INTEGER,
            CONSTRAINT fk_gc_r_srs_id FOREIGN KEY (srs_id)
                REFERENCES gpkg_spatial_ref_sys(srs_id));
        CREATE TABLE gpkg_geometry_columns (
            table_name TEXT NOT NULL, column_name TEXT NOT NULL, geometry_type_name TEXT NOT NULL,
            srs_id INTEGER NOT NULL, z TINYINT NOT NULL, m TINYINT NOT NULL,
            CONSTRAINT pk_geom_cols PRIMARY KEY (table_name, column_name),
            CONSTRAINT fk_gc_tn FOREIGN KEY (table_name) REFERENCES gpkg_contents(table_name),
            CONSTRAINT fk_gc_srs FOREIGN KEY (srs_id) REFERENCES gpkg_spatial_ref_sys(srs_id));
        CREATE TABLE "{_TABLE}" (
            fid INTEGER PRIMARY KEY AUTOINCREMENT NOT NULL, geom GEOMETRY, {columns});
        """
    )
    connection.executemany(
        "INSERT INTO gpkg_spatial_ref_sys VALUES (?, ?, ?, ?, ?, ?)",
        [
            ("Undefined cartesian", -1, "NONE", -1, "undefined", None),
            ("Undefined geographic", 0, "NONE", 0, "undefined", None),
            ("WGS 84", 4326, "EPSG", 4326, _WGS84, "longitude/latitude in degrees"),
        ],
    )
    connection.execute(
        "INSERT INTO gpkg_contents (table_name, data_type, identifier, description, min_x, min_y, "
        "max_x, max_y, srs_id) VALUES (?, 'features', ?, ?, ?, ?, ?, ?, 4326)",
        (_TABLE, _TABLE, _MARK, *bounds),
    )
    connection.execute(
        "INSERT INTO gpkg_geometry_columns VALUES (?, 'geom', 'GEOMETRY', 4326, 0, 0)", (_TABLE,)
    )


_WRITERS: dict[str, Callable[[Hits, Path], Path]] = {
    ".geojson": _write_geojson,
    ".json": _write_geojson,
    ".gpkg": _write_geopackage,
    ".parquet": _write_geoparquet,
}


def weighted(text: str) -> str | tuple[str, float]:
    """A text of the command line with its weight, as "0.5*clouds"; else the text.

    `DataError` for a weight that is no number above 0.
    """
    number, star, rest = text.partition("*")
    try:
        weight = float(number)
    except ValueError:
        return text
    if not star:
        return text
    if not (0 < weight < 1e6 and rest.strip()):
        raise DataError(f"{text!r}: expected WEIGHT*TEXT with a number above 0, as in 0.5*clouds")
    return rest.strip(), weight
