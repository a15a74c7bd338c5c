"""A part: the windows of one scene as one tower sees them, in a GeoParquet 1.1 file.

Its rows lie along a Hilbert curve; its footer has three entries of JSON: `geo` (GeoParquet), `emb`
(the STAC extension for embeddings) and `terralign` (`PartFacts`). The bytes follow from the
contents alone. N windows, D dimensions.
"""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import shapely
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from terralign.chips import Window
from terralign.encoders.vectors import as_utf8
from terralign.errors import DataError, first_line, shown
from terralign.files import atomic_path
from terralign.index.grids import hilbert_numbers, majortom_cells
from terralign.limits import limit, require
from terralign.precision import Precision
from terralign.preprocess.spec import ALL_CELLS

FORMAT_VERSION = 1

VectorType = Literal["float16", "float32", "int8"]
"""How numbers of vectors are stored; whole numbers of `int8` are multiples of the part's scale."""

VECTOR_TYPES: tuple[VectorType, ...] = ("float16", "float32", "int8")

_ROW_GROUP_BYTES = 128 * 1024**2
"""Vectors of a row group; readers skip groups whose `bbox` is elsewhere."""

MAX_DIM = 65_536

_NUMBER_TYPES = {"float16": pa.float16(), "float32": pa.float32(), "int8": pa.int8()}

_EPSG_4326 = {
    "$schema": "https://proj.org/schemas/v0.7/projjson.schema.json",
    "type": "GeographicCRS",
    "name": "WGS 84",
    "datum_ensemble": {
        "name": "World Geodetic System 1984 ensemble",
        "members": [
            {"name": f"World Geodetic System 1984 ({name})", "id": {"authority": "EPSG", "code": n}}
            for name, n in (
                *(("Transit", 1166), ("G730", 1152), ("G873", 1153), ("G1150", 1154)),
                *(("G1674", 1155), ("G1762", 1156), ("G2139", 1309)),
            )
        ],
        "ellipsoid": {
            "name": "WGS 84",
            "semi_major_axis": 6378137,
            "inverse_flattening": 298.257223563,
        },
        "accuracy": "2.0",
        "id": {"authority": "EPSG", "code": 6326},
    },
    "coordinate_system": {
        "subtype": "ellipsoidal",
        "axis": [
            {
                "name": "Geodetic latitude",
                "abbreviation": "Lat",
                "direction": "north",
                "unit": "degree",
            },
            {
                "name": "Geodetic longitude",
                "abbreviation": "Lon",
                "direction": "east",
                "unit": "degree",
            },
        ],
    },
    "id": {"authority": "EPSG", "code": 4326},
}
"""EPSG:4326 as PROJJSON; in GeoParquet x is the longitude, whatever the order of the axes here."""


_Coefficient = Annotated[float, Field(ge=-1e12, le=1e12, allow_inf_nan=False)]


class SceneGrid(BaseModel):
    """The pixel grid of the scene of a part."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    crs: str = Field(max_length=100_000)
    """An authority code, or WKT."""
    transform: tuple[
        _Coefficient, _Coefficient, _Coefficient, _Coefficient, _Coefficient, _Coefficient
    ]
    """From column and row to map units, as `Grid` has it."""
    height: int = Field(ge=1, le=2**31 - 1)
    width: int = Field(ge=1, le=2**31 - 1)


class PartFacts(BaseModel):
    """What the footer of a part states of all its rows (its entry `terralign`)."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    format: int = Field(ge=1)
    key: str = Field(pattern=r"^[0-9a-f]{8,64}$")
    """Names source and settings: a part of the same key replaces this one."""
    identity: str = Field(pattern=r"^[0-9a-f]{8,64}$")
    """Names all that the rows depend on: the key, the files' stamps, and the tower's weights."""
    stamps: str
    """Hash of the sizes and times, or etags, of the scene's files."""
    source: str
    """Path or address of the scene."""
    scene: str
    """Its name."""
    sensor: str
    bands: tuple[str, ...]
    """Of the scene, by canonical name."""
    dn_offset: float | None
    """What was added to its digital numbers; None: physical numbers."""
    notes: tuple[str, ...] = ()
    """What was concluded of the scene rather than declared."""
    space_id: str
    tower: str
    tower_id: str
    model: str
    """What the space was loaded from."""
    dim: int = Field(ge=1, le=MAX_DIM)
    vector_type: VectorType
    scale: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    """What stored numbers are multiplied by; 1 unless they are `int8`."""
    precision: Precision = "fp32"
    """What the tower computed in."""
    normalisation: Literal["unit"] = "unit"
    """Vectors have unit length, but for the rounding of their type."""
    logit_scale: float = Field(gt=0, allow_inf_nan=False)
    """What cosines of the space are multiplied by to become logits."""
    self_check: tuple[float, ...]
    """(D,) the tower's vector of a fixed picture (see `embed.self_check`): another implementation
    of the tower must give the same."""
    window_px: int = Field(ge=1)
    """Side of a window in the tower's pixels."""
    stride_px: int = Field(ge=1)
    """From one window to the next, in the tower's pixels."""
    gsd_m: float | None
    """Size of the tower's pixels, metres; None: unknown, the scene's own."""
    scene_gsd_m: float | None
    """Size of the scene's pixels, metres."""
    min_valid: float
    max_cloud: float | None
    num_windows: int = Field(ge=0)
    """Windows that the scene was cut into."""
    num_invalid: int = Field(ge=0)
    """Left out, since less than `min_valid`, or nothing, of them is valid."""
    num_cloudy: int = Field(ge=0)
    """Left out, since more than `max_cloud` of them is cloud."""
    grid: SceneGrid | None = None
    """Of the scene; None in parts of early versions, which lack the column `valid_cells` too."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class PartRows:
    """What the rows of a part hold, N each.

    `shapes`: polygons in degrees of WGS84, several where they cross the antimeridian. `centres`:
    (N, 2) longitude and latitude. `clouds`: (N,) share of cloud and shadow, NaN where unknown.
    `vectors`: (N, D) float32 of unit length. `datetime`: of all of them, None where unknown.
    `valid_cells`: (N,) which of 8x8 cells have a valid number (see `preprocess.spec.valid_cells`);
    None: all.
    """

    windows: Sequence[Window]
    shapes: NDArray[np.object_]
    centres: NDArray[np.float64]
    valid_shares: NDArray[np.float32]
    clouds: NDArray[np.float32]
    vectors: NDArray[np.floating[Any]]
    datetime: dt.datetime | None
    valid_cells: NDArray[np.uint64] | None = None

    def __len__(self) -> int:
        return len(self.windows)


_WINDOW = ("row", "column", "height", "width")


def write_part(path: Path, rows: PartRows, facts: PartFacts) -> PartFacts:
    """Write a part, whole or not at all; returns the facts as written, with the scale.

    Columns: id, scene, source, sensor, tower, window_row, window_column, window_height,
    window_width, datetime, valid_share, cloud_share, valid_cells, cell (Major-TOM), geometry
    (WKB), bbox (xmin, ymin, xmax, ymax), vector. `StorageError` where the disk is full.
    """
    order = _hilbert_order(rows)
    stored, scale = as_stored(np.asarray(rows.vectors)[order], facts.vector_type)
    facts = facts.model_copy(update={"scale": scale})
    windows = [rows.windows[row] for row in order.tolist()]
    shapes, centres = rows.shapes[order], rows.centres[order]
    num = len(windows)
    bounds = shapely.bounds(shapes).reshape(num, 4)
    corners = ("xmin", "ymin", "xmax", "ymax")
    clouds = rows.clouds[order].astype(np.float32)
    cells = np.full(num, ALL_CELLS, np.uint64)
    if rows.valid_cells is not None:
        cells = rows.valid_cells[order]
    columns: dict[str, Any] = {
        "id": pa.array([window_id(facts.identity, one) for one in windows], pa.string()),
        "scene": pa.array([as_utf8(facts.scene)] * num, pa.string()),
        "source": pa.array([as_utf8(facts.source)] * num, pa.string()),
        "sensor": pa.array([facts.sensor] * num, pa.string()),
        "tower": pa.array([facts.tower] * num, pa.string()),
        **{
            f"window_{name}": pa.array([getattr(one, name) for one in windows], pa.int32())
            for name in _WINDOW
        },
        "datetime": pa.array([rows.datetime] * num, pa.timestamp("us", tz="UTC")),
        "valid_share": pa.array(rows.valid_shares[order].astype(np.float32), pa.float32()),
        "cloud_share": pa.array(clouds, pa.float32(), mask=np.isnan(clouds)),
        "valid_cells": pa.array(cells, pa.uint64()),
        "cell": pa.array(majortom_cells(centres[:, 0], centres[:, 1]), pa.string()),
        "geometry": pa.array(shapely.to_wkb(shapes), pa.binary()),
        "bbox": pa.StructArray.from_arrays(
            [pa.array(bounds[:, n], pa.float64()) for n in range(4)], names=list(corners)
        ),
        "vector": pa.FixedSizeListArray.from_arrays(
            pa.array(stored.reshape(-1), _NUMBER_TYPES[facts.vector_type]), facts.dim
        ),
    }
    footer = {"geo": _geo(shapes, bounds), "emb": _emb(facts), "terralign": facts.model_dump()}
    table = pa.table(columns).replace_schema_metadata(
        {name: json.dumps(value, sort_keys=True) for name, value in footer.items()}
    )
    row_bytes = facts.dim * stored.dtype.itemsize
    with atomic_path(path) as partial:
        pq.write_table(
            table,
            partial,
            compression="zstd",
            row_group_size=max(1, _ROW_GROUP_BYTES // row_bytes),
            use_dictionary=["scene", "source", "sensor", "tower", "cell"],
            write_statistics=[name for name in table.column_names if name != "vector"],
            write_page_checksum=True,
        )
    return facts


def window_id(identity: str, window: Window) -> str:
    """The id of a window: the part's identity, and the corner in pixels of the scene."""
    return f"{identity}-{window.row}-{window.column}"


def _hilbert_order(rows: PartRows) -> NDArray[np.int64]:
    numbers = hilbert_numbers(rows.centres[:, 0], rows.centres[:, 1])
    corners = np.array([(one.row, one.column) for one in rows.windows], dtype=np.int64)
    corners = corners.reshape(len(rows), 2)
    return np.lexsort((corners[:, 1], corners[:, 0], numbers))


def as_stored(vectors: NDArray[np.floating[Any]], kind: VectorType) -> tuple[NDArray[Any], float]:
    """Vectors (N, D) in a storage type, and the scale that brings them back.

    `int8`: one scale for all, so that the largest number becomes 127.
    """
    if kind != "int8":
        return vectors.astype(kind, copy=False), 1.0
    largest = float(np.abs(vectors).max(initial=0.0))
    scale = float(np.float32(largest / 127)) if largest > 0 else 1.0
    return np.rint(vectors / scale).clip(-127, 127).astype(np.int8), scale


def _geo(shapes: NDArray[np.object_], bounds: NDArray[np.float64]) -> dict[str, Any]:
    """The entry `geo` of GeoParquet 1.1."""
    column: dict[str, Any] = {
        "encoding": "WKB",
        "geometry_types": sorted({str(one.geom_type) for one in shapes.tolist()}),
        "crs": _EPSG_4326,
        "edges": "planar",
        "covering": {"bbox": {name: ["bbox", name] for name in ("xmin", "ymin", "xmax", "ymax")}},
    }
    if len(bounds):
        low, high = bounds[:, :2].min(0), bounds[:, 2:].max(0)
        column["bbox"] = [*low.tolist(), *high.tolist()]
    return {"version": "1.1.0", "primary_column": "geometry", "columns": {"geometry": column}}


def chip_layout(window_px: int, stride_px: int) -> dict[str, Any]:
    """The field `emb:chip_layout`; windows of a smaller stride than their size overlap."""
    return {
        "layout_type": "regular_grid",
        "chip_size": [window_px] * 2,
        "stride": [stride_px] * 2,
    }


def quantization(facts: PartFacts) -> dict[str, Any] | None:
    """The field `emb:quantization`; None where numbers are stored as they are."""
    if facts.vector_type != "int8":
        return None
    return {
        "method": "linear",
        "original_dtype": "float32",
        "quantized_dtype": "int8",
        "scale": [facts.scale],
        "offset": [0.0],
    }


def _emb(facts: PartFacts) -> dict[str, Any]:
    """The entry `emb`: fields of the STAC extension `embeddings` 0.0.1."""
    found: dict[str, Any] = {
        "emb:type": "chip",
        "emb:dimensions": facts.dim,
        "data_type": facts.vector_type,
        "emb:chip_layout": chip_layout(facts.window_px, facts.stride_px),
        "emb:temporal_resolution": "single_acquisition",
        "emb:postprocessing": {"format": "text", "expression": "l2_normalize"},
        "terralign:space_id": facts.space_id,
        "terralign:tower_id": facts.tower_id,
    }
    if (stored := quantization(facts)) is not None:
        found["emb:quantization"] = stored
    return found


# Reading

_COLUMNS = {
    "id": pa.string(),
    "scene": pa.string(),
    "source": pa.string(),
    "sensor": pa.string(),
    "tower": pa.string(),
    **{f"window_{name}": pa.int32() for name in _WINDOW},
    "datetime": pa.timestamp("us", tz="UTC"),
    "valid_share": pa.float32(),
    "cloud_share": pa.float32(),
    "cell": pa.string(),
    "geometry": pa.binary(),
}

_FAULTS = (
    *(pa.ArrowException, OSError, ValueError, KeyError, TypeError, AttributeError),
    *(OverflowError, RecursionError, shapely.errors.ShapelyError),
)


class Part:
    """An open part: `facts`, and its rows in batches; `DataError` for any other or damaged file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: Any = None
        try:
            self._open()
        except BaseException:
            self.close()
            raise

    def _open(self) -> None:
        path = self.path
        try:
            self._file = pq.ParquetFile(
                path,
                page_checksum_verification=True,
                thrift_string_size_limit=limit("parquet_footer_bytes"),
            )
            entry = (self._file.schema_arrow.metadata or {}).get(b"terralign")
            if entry is None or b"identity" not in entry:
                raise DataError(
                    f"{shown(path)} is no part of embedded scenes; move it out of the folder, or "
                    "give the folder that `terralign embed --out` made"
                )
            self.facts = PartFacts.model_validate_json(entry)
            self._check_columns()
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(map(str, first["loc"]))
            raise DataError(
                f"{shown(path)} is damaged: its footer has {place}: {first['msg']}; embed its "
                "scene again"
            ) from error
        except _FAULTS as error:
            raise self._damaged(error) from error

    def _check_columns(self) -> None:
        if self.facts.format != FORMAT_VERSION:
            raise DataError(
                f"{shown(self.path)} has format {self.facts.format}; this terralign reads "
                f"{FORMAT_VERSION}. Update terralign, or embed its scene again"
            )
        require("part_rows", self.num_rows, f"{shown(self.path)} holds")
        schema = self._file.schema_arrow
        wanted = {
            **_COLUMNS,
            **({} if self.facts.grid is None else {"valid_cells": pa.uint64()}),
            "vector": pa.list_(_NUMBER_TYPES[self.facts.vector_type], self.facts.dim),
        }
        for name, kind in wanted.items():
            found = schema.field(name).type if name in schema.names else None
            if found is not None and pa.types.is_dictionary(found):
                found = found.value_type
            if found != kind:
                raise DataError(
                    f"{shown(self.path)} is damaged: its column {name} is {found or 'missing'}, "
                    f"expected {kind}; embed its scene again"
                )

    def _damaged(self, error: Exception) -> DataError:
        return DataError(
            f"{shown(self.path)} is truncated or damaged ({first_line(error)}); remove it and "
            "embed its scene again"
        )

    @property
    def num_rows(self) -> int:
        """N."""
        return int(self._file.metadata.num_rows)

    def batches(self, columns: Sequence[str], *, size: int = 16_384) -> Iterator[pa.RecordBatch]:
        """The rows of some columns, in order, `size` at a time."""
        try:
            yield from self._file.iter_batches(batch_size=size, columns=list(columns))
        except _FAULTS as error:
            raise self._damaged(error) from error

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()


def vectors_of(batch: pa.RecordBatch, facts: PartFacts) -> NDArray[Any]:
    """(n, D) stored numbers of a batch with the column `vector`."""
    column = batch.column(batch.schema.get_field_index("vector"))
    if column.null_count or column.flatten().null_count:
        raise DataError(f"the part of {facts.source} is damaged: vectors without numbers")
    numbers = np.asarray(column.flatten())
    return numbers.reshape(len(batch), facts.dim)


def shapes_of(outlines: Sequence[bytes | None], origin: str) -> NDArray[np.object_]:
    """(n,) outlines of windows, shapely in degrees, from the column `geometry`; `DataError`, which
    begins with `origin`, for what is no WKB."""
    try:
        found: NDArray[np.object_] = shapely.from_wkb(np.array(outlines, dtype=object))
    except (shapely.errors.ShapelyError, TypeError, ValueError) as error:
        raise DataError(
            f"{origin} is damaged: an outline is no WKB ({first_line(error)}); embed its scene "
            "again"
        ) from error
    return found


def facts_of(path: Path) -> PartFacts:
    """What a part states, from its footer alone."""
    part = Part(path)
    part.close()
    return part.facts
