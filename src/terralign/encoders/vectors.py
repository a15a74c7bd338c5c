"""Vectors, and what they are of: keys, space, towers, places. N vectors, D embedding."""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import shapely
from numpy.typing import ArrayLike, DTypeLike, NDArray

from terralign.chips import Window
from terralign.encoders.geodata import geodataframe
from terralign.encoders.tables import Shown, Table, short_keys
from terralign.errors import (
    DataError,
    SensorError,
    SpaceMismatchError,
    StorageError,
    TerralignError,
    counted,
    first_line,
    shown,
)
from terralign.files import atomic_path, not_found, parse_json
from terralign.limits import beyond, limit, require

if TYPE_CHECKING:
    import geopandas

_GEO_VERSION = "1.1.0"


@dataclass(frozen=True, kw_only=True, slots=True)
class Footprint:
    """Where and when an embedded chip was taken.

    `source`: its file or folder, None for numbers in memory. `window`: its pixels of that source,
    None where it is the whole. `shape`: a polygon, or several, in degrees of WGS84, None where the
    source is not georeferenced. `datetime`: acquisition, None where unknown.
    """

    source: str | None = None
    window: Window | None = None
    shape: Any = None
    datetime: dt.datetime | None = None

    @property
    def geometry(self) -> dict[str, Any] | None:
        """The shape as GeoJSON."""
        return None if self.shape is None else dict(shapely.geometry.mapping(self.shape))

    @property
    def bounds(self) -> tuple[float, float, float, float] | None:
        """(west, south, east, north) in degrees; west > east where it crosses the antimeridian."""
        if self.shape is None:
            return None
        west, south, east, north = self.shape.bounds
        if self.shape.geom_type == "MultiPolygon" and (west, east) == (-180, 180):
            # Two sides of the antimeridian; around a pole they meet elsewhere too.
            sides = [part.bounds for part in self.shape.geoms]
            first = min(side[0] for side in sides if side[0] != -180)
            last = max(side[2] for side in sides if side[2] != 180)
            if first > last:
                west, east = first, last
        return (west, south, east, north)

    def describe(self) -> dict[str, Any]:
        """Plain values, for JSON and the properties of GeoJSON."""
        window, bounds = self.window, self.bounds
        return {
            "window": None if window is None else asdict(window),
            "bounds": None if bounds is None else list(bounds),
            "datetime": None if self.datetime is None else self.datetime.isoformat(),
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class Fault:
    """One input that could not be read; `error` is one line that names it and the reason."""

    key: str
    error: str
    kind: type[TerralignError] = DataError

    def as_error(self) -> TerralignError:
        """The same as an exception."""
        return self.kind(self.error)


def as_fault(key: str, error: Exception) -> Fault:
    """What went wrong with an input, in one line that names it."""
    text = str(error)
    if isinstance(error, OSError):
        text = error.strerror or text
    text = " ".join(text.split())
    name = shown(key if "://" in key else Path(key))
    kind = SensorError if isinstance(error, SensorError) else DataError
    return Fault(key=key, error=text if name in text else f"{name}: {text}", kind=kind)


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Embeddings(Shown):
    """N vectors of one space, with what each is of.

    `vectors`: (N, D) float32 of unit length. `keys`: (N,) names, by which hits are found again.
    `towers`: (N,) the tower that made each; `tower_ids`: tower -> the id of its weights.
    `space_id`: vectors are comparable exactly when theirs is the same. `places`: (N,).
    `valid_shares`: (N,) the share (0-1) of valid numbers in what the tower saw. `faults`: inputs
    that could not be read. `model`: what the space was loaded from.

    `np.asarray` gives the vectors; `embeddings[rows]` (a number, slice, list or mask) the same for
    some of them; `a + b` those of both.
    """

    keys: tuple[str, ...]
    vectors: NDArray[np.float32]
    space_id: str
    towers: tuple[str, ...]
    tower_ids: Mapping[str, str]
    places: tuple[Footprint, ...]
    valid_shares: NDArray[np.float32]
    faults: tuple[Fault, ...] = field(default=())
    model: str = ""

    def __post_init__(self) -> None:
        rows = {len(getattr(self, name)) for name in _PER_ROW}
        if self.vectors.ndim != 2 or len(rows) != 1:
            raise DataError(
                f"vectors are {self.vectors.shape} for {len(self.keys)} keys, {len(self.towers)} "
                f"towers and {len(self.places)} places; expected (N, D) and N of each"
            )

    def require_numbers(self, dim: int) -> None:
        """`DataError` unless the vectors are (N, dim) of unit length; zero has no direction, and
        is as far from everything."""
        if self.dim != dim:
            raise SpaceMismatchError(f"vectors of {self.dim} dimensions, the space has {dim}")
        wrong = self._off_length
        if len(wrong):
            raise DataError(
                f"{len(wrong)} of {len(self)} vectors, such as that of {self.keys[wrong[0]]!r}, "
                "are not of unit length; embed the imagery again"
            )

    @cached_property
    def _off_length(self) -> NDArray[np.int64]:
        """Rows that are neither of unit length nor zero; found once, not at every search."""
        squares = np.einsum("nd,nd->n", self.vectors, self.vectors, dtype=np.float64)
        lengths = np.sqrt(squares)  # in float64, without a copy of all vectors
        right = (np.abs(lengths - 1) < _MAX_OFF_LENGTH) | (lengths == 0)
        return np.flatnonzero(~right)

    @property
    def dim(self) -> int:
        """The number of dimensions, D."""
        return int(self.vectors.shape[1])

    @property
    def tower_id(self) -> str:
        """The id of the one tower that made all vectors; `SpaceMismatchError` where several did."""
        if len(self.tower_ids) != 1:
            raise SpaceMismatchError(
                f"these vectors are of {len(self.tower_ids)} towers "
                f"({', '.join(self.tower_ids) or 'none'}); see tower_ids and towers"
            )
        return next(iter(self.tower_ids.values()))

    def __len__(self) -> int:
        return len(self.keys)

    def __array__(self, dtype: DTypeLike | None = None, copy: bool | None = None) -> NDArray[Any]:
        return np.array(self.vectors, dtype=dtype, copy=copy)

    def __iter__(self) -> Iterator[Embeddings]:
        return (self[row] for row in range(len(self)))

    def __getitem__(self, rows: Any) -> Embeddings:
        chosen = choose_rows(len(self), rows)
        return replace(
            self,
            keys=tuple(self.keys[row] for row in chosen),
            vectors=self.vectors[chosen],
            towers=(towers := tuple(self.towers[row] for row in chosen)),
            tower_ids={name: one for name, one in self.tower_ids.items() if name in towers},
            places=tuple(self.places[row] for row in chosen),
            valid_shares=self.valid_shares[chosen],
            faults=(),
        )

    def __add__(self, other: Embeddings) -> Embeddings:
        if not isinstance(other, Embeddings):
            return NotImplemented
        check_same_space(self.space_id, other.space_id, "the second vectors")
        if self.dim != other.dim:
            raise SpaceMismatchError(f"vectors of {self.dim} and of {other.dim} dimensions")
        for name, one in other.tower_ids.items():
            if self.tower_ids.get(name, one) != one:
                raise SpaceMismatchError(
                    f"both have vectors of a tower {name!r}, but of different weights "
                    f"({self.tower_ids[name]} and {one}); embed one of them again"
                )
        return replace(
            self,
            keys=self.keys + other.keys,
            vectors=np.concatenate([self.vectors, other.vectors]),
            towers=self.towers + other.towers,
            tower_ids={**self.tower_ids, **other.tower_ids},
            places=self.places + other.places,
            valid_shares=np.concatenate([self.valid_shares, other.valid_shares]),
            faults=self.faults + other.faults,
        )

    def _title(self) -> str:
        towers = ", ".join(self.tower_ids) or "none"
        return (
            f"Embeddings: {counted(len(self), 'vector')} of {self.dim} dimensions, "
            f"towers: {towers}, space {self.space_id}{not_read(self.faults)}"
        )

    def table(self) -> Table:
        """Key, tower, valid share and the first numbers of each vector."""
        keys = short_keys(self.keys)
        return Table.of_rows(
            len(self),
            [
                ("key", lambda row: keys[row]),
                ("tower", lambda row: self.towers[row]),
                ("valid", lambda row: f"{100 * float(self.valid_shares[row]):.1f} %"),
                ("vector", lambda row: _beginning(self.vectors[row])),
            ],
        )

    def to_geodataframe(self) -> geopandas.GeoDataFrame:
        """One row per vector in EPSG:4326: key, source, datetime, tower, valid_share.

        `vectors` has the same order. `DataError` where geopandas is not installed.
        """
        names = ("key", "source", "datetime", "tower", "valid_share")
        rows = zip(self.keys, self.places, self.towers, self.valid_shares.tolist(), strict=True)
        return geodataframe(
            [
                dict(zip(names, (key, one.source, one.datetime, tower, valid), strict=True))
                for key, one, tower, valid in rows
            ],
            [place.shape for place in self.places],
            names,
        )

    # Files

    def save(self, path: str | Path) -> Path:
        """Write one GeoParquet file (1.1), which geopandas, DuckDB and `Embeddings.load` read.

        Columns: key, source, window_row, window_column, window_height, window_width, datetime,
        tower, valid_share, geometry (WKB, degrees), vector (D float32). The footer's entry
        `terralign` has `space_id` and `tower_ids`. An earlier file of terralign's is replaced.
        `StorageError` where another file has the name, or the disk is full.
        """
        path = Path(path)
        if path.suffix != ".parquet":
            raise StorageError(f"{path}: vectors are written as .parquet; choose such a name")
        check_parquet(path)
        windows = [place.window for place in self.places]
        columns: dict[str, Any] = {
            "key": pa.array(map(as_utf8, self.keys), pa.string()),
            "source": pa.array(
                [None if one.source is None else as_utf8(one.source) for one in self.places],
                pa.string(),
            ),
            **{
                f"window_{name}": pa.array(
                    [None if one is None else getattr(one, name) for one in windows], pa.int32()
                )
                for name in _WINDOW
            },
            "datetime": pa.array(
                [place.datetime for place in self.places], pa.timestamp("us", tz="UTC")
            ),
            "tower": pa.array(self.towers, pa.string()),
            "valid_share": pa.array(self.valid_shares, pa.float32()),
            "geometry": pa.array(
                shapely.to_wkb(np.array([place.shape for place in self.places], dtype=object)),
                pa.binary(),
            ),
            "vector": pa.FixedSizeListArray.from_arrays(
                pa.array(self.vectors.reshape(-1), pa.float32()), max(self.dim, 1)
            ),
        }
        kinds = sorted({str(p.shape.geom_type) for p in self.places if p.shape is not None})
        metadata = {
            "geo": {
                "version": _GEO_VERSION,
                "primary_column": "geometry",
                "columns": {"geometry": {"encoding": "WKB", "geometry_types": kinds}},
            },
            "terralign": {
                "space_id": self.space_id,
                "tower_ids": dict(self.tower_ids),
                "model": self.model,
            },
        }
        table = pa.table(columns).replace_schema_metadata(
            {name: json.dumps(value) for name, value in metadata.items()}
        )
        with atomic_path(path) as partial:
            pq.write_table(table, partial, compression="zstd", write_page_checksum=True)
        return path

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Vectors that `save` wrote. `DataError` for a file that is damaged, or none of these."""
        path = Path(path)
        if not path.is_file():
            raise DataError(f"{not_found(path)}; expected a .parquet file of vectors")
        try:
            return cls._read(path)
        except _FAULTS as error:
            raise DataError(
                f"{shown(path)} is damaged, or no file of vectors: {first_line(error)}"
            ) from error

    @classmethod
    def _read(cls, path: Path) -> Self:
        with open(path, "rb") as opened:
            opened.seek(max(0, path.stat().st_size - 8))
            footer_bytes = int.from_bytes(opened.read(4), "little")
        if footer_bytes < path.stat().st_size:  # else it is damaged
            require("parquet_footer_bytes", footer_bytes, f"{shown(path)} has a footer of")
        file = pq.ParquetFile(
            path, page_checksum_verification=True, read_dictionary=list(_DICTIONARIES)
        )
        footer = file.schema_arrow.metadata or {}
        if b"terralign" not in footer:
            raise DataError(
                f"{path} has no vectors of terralign; write them by `terralign embed` or "
                "Embeddings.save"
            )
        ids = parse_json(footer[b"terralign"].decode(), name=f"the footer of {path}")
        kind = file.schema_arrow.field("vector").type
        if not pa.types.is_fixed_size_list(kind) or kind.value_type != pa.float32():
            raise DataError(f"{path}: vector is {kind}; expected a fixed-size list of float32")
        table = _read_bounded(file, path)
        vectors = np.asarray(table["vector"].combine_chunks().flatten(), dtype=np.float32)
        columns = {name: table[name].to_pylist() for name in _COLUMN_TYPES}
        if any(
            one and len(one) > _MAX_WKB_BYTES and one[1:5] != _POLYGON
            for one in columns["geometry"]
        ):
            raise ValueError("it has geometries of more parts than a place has")
        columns["geometry"] = shapely.from_wkb(np.array(columns["geometry"], object)).tolist()
        rows = (dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True))
        found = cls(
            keys=tuple(columns["key"]),
            vectors=vectors.reshape(len(table), kind.list_size),
            space_id=str(ids["space_id"]),
            towers=tuple(columns["tower"]),
            tower_ids={str(name): str(one) for name, one in dict(ids["tower_ids"]).items()},
            places=tuple(_place_of(row) for row in rows),
            valid_shares=np.asarray(columns["valid_share"], dtype=np.float32),
            model=str(ids.get("model", "")),
        )
        if None in found.keys or not set(found.towers) <= set(found.tower_ids):
            raise ValueError("its keys and towers are not those that it lists")
        found.require_numbers(kind.list_size)
        return found


def _place_of(row: Mapping[str, Any]) -> Footprint:
    window = {name: row[f"window_{name}"] for name in _WINDOW}
    return Footprint(
        source=row["source"],
        window=None if None in window.values() else Window(**window),
        shape=row["geometry"],
        datetime=row["datetime"],
    )


def not_read(faults: Sequence[Fault]) -> str:
    """How titles end that have faults."""
    if not faults:
        return ""
    return f", {counted(len(faults), 'input')} not read"


def check_parquet(path: Path) -> None:
    """`StorageError` for a file that exists and has no vectors of terralign's."""
    if not path.exists():
        return
    try:
        ours = b"terralign" in (pq.read_schema(path).metadata or {})
    except (pa.ArrowException, OSError):
        ours = False
    if not ours:
        raise StorageError(f"{path} exists and was not written by terralign; choose another name")


def _beginning(vector: NDArray[np.float32]) -> str:
    return "[" + ", ".join(f"{value:.3f}" for value in vector[:3].tolist()) + ", ...]"


_MAX_OFF_LENGTH = 1e-3
_FAULTS = (
    *(pa.ArrowException, OSError, ValueError, LookupError, TypeError, AttributeError),
    *(OverflowError, RecursionError, shapely.errors.ShapelyError),
)
_ROW_BYTES = 1000
"""What the key, place and time of a row take in Python."""

_MAX_WKB_BYTES = 16 * 1024
_POLYGON = b"\x03\0\0\0"
"""Geometries of parts may hold each other; GEOS follows them until the process is killed."""

_MOST_DECODED = 4
"""A file that is as large as its vectors is read, however large: so many times its size."""

_DICTIONARIES = ("key", "source", "tower", "geometry")
"""Columns in which one long text may stand for many rows."""

_WINDOW = ("row", "column", "height", "width")
_COLUMN_TYPES = {
    "key": pa.string(),
    "source": pa.string(),
    "datetime": pa.timestamp("us", tz="UTC"),
    "tower": pa.string(),
    "valid_share": pa.float32(),
    "geometry": pa.binary(),
    **{f"window_{name}": pa.int32() for name in _WINDOW},
}


def _read_bounded(file: pq.ParquetFile, path: Path) -> pa.Table:
    """The columns, decoded in batches until they take more memory than the limit."""
    schema = file.schema_arrow
    for name, kind in _COLUMN_TYPES.items():
        found = schema.field(name).type
        if (found.value_type if pa.types.is_dictionary(found) else found) != kind:
            raise ValueError(f"column {name} is {found}; expected {kind}")
    most = max(limit("vector_bytes"), _MOST_DECODED * path.stat().st_size)
    groups = [file.metadata.row_group(index) for index in range(file.metadata.num_row_groups)]
    encoded = sum(one.total_byte_size for one in groups)
    per_row = schema.field("vector").type.list_size * 4 + _ROW_BYTES
    num_bytes = max(encoded, file.metadata.num_rows * per_row)
    columns, batches = [*_COLUMN_TYPES, "vector"], []
    for batch in [] if num_bytes > most else file.iter_batches(1024, columns=columns):
        num_bytes += sum(_decoded_bytes(batch[name]) for name in _DICTIONARIES)
        if num_bytes > most:
            break
        batches.append(batch)
    if num_bytes > most:
        raise DataError(beyond("vector_bytes", num_bytes, f"{shown(path)} takes", todo="split it"))
    wanted = pa.schema([schema.field(name) for name in columns])
    return pa.Table.from_batches(batches, schema=batches[0].schema if batches else wanted)


def _decoded_bytes(column: pa.DictionaryArray) -> int:
    """What a column of repeated texts takes once each row has its own."""
    lengths = np.asarray(pc.fill_null(pc.binary_length(column.dictionary), 0), dtype=np.int64)
    rows = np.asarray(column.indices.drop_null(), dtype=np.int64)
    return int(lengths[rows].sum())


_PER_ROW = ("keys", "vectors", "towers", "places", "valid_shares")


def as_utf8(text: str) -> str:
    """A text that UTF-8 can hold: bytes of names in another encoding are shown escaped."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def choose_rows(size: int, rows: Any) -> NDArray[np.int64]:
    """Row numbers that an index of a value with `size` rows means, always as an array."""
    try:
        indices = np.arange(size)[rows]
    except (IndexError, TypeError, ValueError) as error:
        raise DataError(
            f"no rows {rows!r} among {size}; give a number, a slice, a list or a mask"
        ) from error
    if indices.ndim > 1:
        raise DataError(f"rows have {indices.ndim} dimensions; give a list or a mask of {size}")
    return np.atleast_1d(indices)


def check_same_space(expected: str, found: str, what: str) -> None:
    """`SpaceMismatchError` where vectors are of another space."""
    if expected != found:
        raise SpaceMismatchError(
            f"{what} are of space {found}, not of {expected}: vectors of different spaces cannot "
            "be compared; embed the imagery with this space"
        )


def as_unit(vectors: ArrayLike) -> NDArray[np.float32]:
    """Vectors (N, D) as float32 of unit length; zero stays zero."""
    numbers = np.asarray(vectors, dtype=np.float32)
    lengths = np.linalg.norm(numbers, axis=-1, keepdims=True)
    return (numbers / np.where(lengths > 0, lengths, 1)).astype(np.float32)
