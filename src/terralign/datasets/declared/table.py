"""Data sets that a table lists: a CSV, Parquet or GeoParquet file with one row per sample.

name = "fields"
reader = "table"
table = "fields/samples.parquet"   # beside this file, or in the data root
root = "fields/images"             # what paths are relative to; left out, the table's own folder

[sensors.sentinel2-l2a]
column = "s2"                      # the column of paths
dn_offset = -1000

[sensors.sentinel1-grd]
column = "s1"
bands = ["VV", "VH"]

[labels]
form = "single"                    # or "list", "separated", "columns"
column = "crop"

[classes]                          # value in the table -> class in prompts
1 = "a wheat field"

[columns]                          # each may be left out
key = "id"
split = "fold"
date = "acquired"
captions = "text"
footprint = "geometry"

[splits]                           # split -> its values in the column
train = ["a", "b"]
"""

from __future__ import annotations

import codecs
import logging
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator

from terralign.chips import PixelLayout
from terralign.datasets.class_folders import require_inside
from terralign.datasets.declared.columns import Columns, LabelForm, first_true
from terralign.datasets.declared.declaration import (
    Declaration,
    LabelKind,
    PixelSettings,
    find_inside,
    pixels_of,
    sensors_of,
)
from terralign.datasets.declared.footprints import read_footprints
from terralign.datasets.file_set import Decode, PathSet
from terralign.datasets.fingerprint import sampled_sizes
from terralign.datasets.image_files import is_new
from terralign.datasets.parquet import read_columns
from terralign.errors import DataError, first_line, nearest, quoted
from terralign.files import hash_file, not_found, read_text
from terralign.limits import limit, require
from terralign.scenes.pictures import Size, describe_size

logger = logging.getLogger(__name__)

MAX_PATH = 4096
"""Bytes of the longest path or key: a system opens no longer one."""

_OUTSIDE = r"^[/\\~]|^.?:|\\|\x00|(?:^|/)\.\.(?:/|$)"
"""Paths that `require_inside` refuses, to find one among millions."""


class TableSensor(PixelSettings):
    """`[sensors.*]` of a table."""

    column: str
    """The column of its paths."""


class TableLabels(BaseModel):
    """`[labels]` of a table."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    form: LabelForm
    """One value in a column; a column of lists; texts with a separator between values; or one
    column of 0 and 1 per class, named as in [classes]."""
    column: str | None = None
    """The column, of every form but "columns"."""
    separator: str | None = Field(default=None, min_length=1)
    """Of "separated": what stands between values; spaces around them do not count."""

    @model_validator(mode="after")
    def _settings_have_an_effect(self) -> TableLabels:
        for key, needed in (
            ("column", self.form != "columns"),
            ("separator", self.form == "separated"),
        ):
            if needed and getattr(self, key) is None:
                raise ValueError(f'form "{self.form}" needs {key}')
            if not needed and getattr(self, key) is not None:
                raise ValueError(f'{key} has no effect on form "{self.form}"; leave it out')
        return self


class TableColumns(BaseModel):
    """`[columns]`: what other columns hold."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    key: str | None = None
    """The name of a sample, unique among them; left out, the first sensor's path."""
    split: str | None = None
    """The values that [splits] names."""
    date: str | None = None
    """When a sample was taken: a date, a time or an ISO text, UTC where it names no zone."""
    captions: str | None = None
    """A caption, or a list of captions."""
    footprint: str | None = None
    """Where a sample lies: geometries or boxes of a GeoParquet file; left out, its rasters'."""


class TableDeclaration(Declaration):
    """The TOML file of a table."""

    reader: Literal["table"]
    table: str = Field(min_length=1)
    """The table."""
    root: str | None = Field(default=None, min_length=1)
    """The folder that paths are relative to; left out, the table's folder."""
    delimiter: str | None = Field(default=None, min_length=1, max_length=1)
    """Of a CSV: what stands between columns; left out, a comma."""
    sensors: dict[str, TableSensor] = Field(min_length=1)
    labels: TableLabels | None = None
    columns: TableColumns = TableColumns()
    splits: dict[str, str | tuple[str, ...]] | None = Field(default=None, min_length=1)
    """Split -> its value, or values, in the split column."""

    @model_validator(mode="after")
    def _settings_have_an_effect(self) -> TableDeclaration:
        self.require_classes(labelled=self.labels is not None, remedy="see [labels]")
        if (self.splits is None) != (self.columns.split is None):
            raise ValueError("[splits] and columns.split have an effect only together")
        return self

    @property
    def label_kind(self) -> LabelKind:
        if self.labels is not None:
            return "single" if self.labels.form == "single" else "multi"
        return "none" if self.columns.captions is None else "captions"

    @property
    def location(self) -> str:
        return self.table

    def column_names(self) -> list[str]:
        """All columns that are read, every one once."""
        names = [sensor.column for sensor in self.sensors.values()]
        if self.labels is not None:
            assert self.classes is not None
            names += self.classes if self.labels.column is None else [self.labels.column]
        names += [name for name in self.columns.model_dump().values() if name is not None]
        return list(dict.fromkeys(names))


def open_table(
    declaration: TableDeclaration,
    path: Path,
    data_root: Path,
    split: str,
    *,
    size: Size | None = None,
) -> PathSet:
    """Open one split of the data set that a table lists; `path`: the declaration's file.

    Files are opened when they are read. The fingerprint holds the hash of the whole table, and the
    sizes and bytes of some files: pixels that change while the table stays are noticed by those.
    """
    table_path = find_inside(declaration.table, path, data_root, what="table")
    table = read_table(table_path, declaration.column_names(), delimiter=declaration.delimiter)
    rows = _rows_of(declaration, path, table, split)
    columns = table.take(rows)
    root = table_path.parent
    if declaration.root is not None:
        root = find_inside(declaration.root, path, data_root, what="root")
    layouts: dict[str, PixelLayout] = {}
    decoders: dict[str, Decode] = {}
    files: dict[str, list[str]] = {}
    for sensor, settings in sensors_of(declaration.sensors, path, data_root):
        pixels = pixels_of(sensor, settings, size=size, origin=f"{path}: sensors.{sensor.name}")
        paths = files[sensor.name] = _paths(columns, settings.column)
        layouts[sensor.name], decoders[sensor.name] = pixels.open(root / paths[0])
    given, footprints = declaration.columns, None
    if (place := given.footprint) is not None:
        footprints = read_footprints(table_path, place, columns.arrays[place], table.geo)
    return PathSet(
        name=declaration.name,
        split=split,
        layouts=layouts,
        keys=_keys(columns, rows, given.key, next(iter(declaration.sensors.values())).column),
        root=root,
        files=files,
        decoders=decoders,
        content=[
            describe_size(size) if "rgb" in layouts else None,
            hash_file(table_path),
            *(_sizes(root, paths) for paths in files.values()),
        ],
        labels=columns.labels(declaration.labels, declaration, path, split),
        captions=None if given.captions is None else columns.captions(given.captions),
        prompts=declaration.prompts,
        dates=None if given.date is None else columns.times(given.date),
        bounds_of=footprints,
    )


def _rows_of(
    declaration: TableDeclaration, path: Path, table: Table, split: str
) -> NDArray[np.int64]:
    """The rows of a split, in the table's order."""
    rows = np.arange(table.num_rows, dtype=np.int64)
    wanted = declaration.find_split(split, path)
    if wanted is None or declaration.columns.split is None:
        return rows
    values = (wanted,) if isinstance(wanted, str) else wanted
    column = table.take(rows).texts(declaration.columns.split)
    for value in values:
        if not pc.any(pc.equal(column, value)).as_py():
            raise DataError(
                f"{path}: splits.{split}: no row of {table.path} has {value!r} in column "
                f"{declaration.columns.split!r}"
            )
    _warn_of_unlisted(declaration, table.path, column)
    return rows[_is_in(column, values)]


def _is_in(column: pa.Array, values: Sequence[str]) -> NDArray[np.bool_]:
    chosen = pc.fill_null(pc.is_in(column, pa.array(values, pa.string())), False)
    mask: NDArray[np.bool_] = chosen.to_numpy(zero_copy_only=False)
    return mask


def _warn_of_unlisted(declaration: TableDeclaration, table: Path, column: pa.Array) -> None:
    """Name once in a process the rows that belong to no declared split."""
    entries = (declaration.splits or {}).values()
    listed = [one for entry in entries for one in ([entry] if isinstance(entry, str) else entry)]
    others = ~_is_in(column, listed)
    if not others.any():
        return
    values = sorted({value or "" for value in column.filter(pa.array(others)).to_pylist()})
    shown = ", ".join(map(quoted, values[:5])) + ", ..." * (len(values) > 5)
    found = f"{others.sum():,} rows are in no split: {declaration.columns.split} is {shown}"
    if is_new(table, found):
        logger.warning("data set %r: %s; [splits] lists the others", declaration.name, found)


def _paths(columns: Columns, column: str) -> list[str]:
    """A column of paths below the root, with forward slashes."""
    paths = columns.short_texts(column, MAX_PATH)
    outside = pc.match_substring_regex(paths, _OUTSIDE)
    if pc.any(outside).as_py():
        row = first_true(outside)
        require_inside(paths[row].as_py(), origin=f"{columns.name_of(row)}, column {column!r}")
    found: list[str] = paths.to_pylist()
    return found


def _keys(
    columns: Columns, rows: NDArray[np.int64], column: str | None, path_column: str
) -> tuple[str, ...]:
    """The samples' names: those of `column`, else their paths without the ending."""
    texts = columns.short_texts(column or path_column, MAX_PATH)
    keys: list[str] = texts.to_pylist()
    if column is None:
        stems = pc.replace_substring_regex(texts, r"\.[A-Za-z0-9]+$", "").to_pylist()
        keys = stems if len(set(stems)) == len(stems) else keys
    if len(set(keys)) < len(keys):
        seen: dict[str, int] = {}
        for position, key in enumerate(keys):
            if key in seen:
                raise DataError(
                    f"{columns.name_of(position)} has {quoted(key)} in column "
                    f"{column or path_column!r}, "
                    f"as row {rows[seen[key]] + 1} has; every sample needs a unique name "
                    "(columns.key)"
                )
            seen[key] = position
    return tuple(keys)


def _sizes(root: Path, paths: Sequence[str]) -> list[int | None]:
    """Bytes of about a thousand of the files: a million are not all asked for theirs."""
    return sampled_sizes([root / one for one in paths[:: max(1, len(paths) // 1000)]])


# The file


@dataclass(frozen=True, kw_only=True, slots=True)
class Table:
    """The columns that were read of a file, each of one checked chunk; `geo`: GeoParquet's
    metadata."""

    path: Path
    arrays: Mapping[str, pa.Array]
    geo: bytes | None = None

    @property
    def num_rows(self) -> int:
        return len(next(iter(self.arrays.values())))

    def take(self, rows: NDArray[np.int64]) -> Columns:
        """These rows, counted from 0; errors count them from 1, the header apart."""
        arrays = self.arrays
        if len(rows) < self.num_rows:
            arrays = {name: one.take(pa.array(rows)) for name, one in arrays.items()}
        return Columns(
            origin=self.path,
            arrays=arrays,
            name_of=lambda position: f"{self.path}: row {rows[position] + 1}",
        )


def read_table(path: Path, columns: Sequence[str], *, delimiter: str | None = None) -> Table:
    """Read `columns` of a Parquet file, or of a CSV with a header line.

    `delimiter`: that of a CSV; None for a comma. Raises `DataError` where the file is missing,
    damaged, too large or no table, where it lacks a column (with the nearest one) or has no row.
    """
    if not path.is_file():
        raise DataError(f"table {not_found(path)}")
    with open(path, "rb") as file:
        start = file.read(4)
    try:
        if start == b"PAR1":
            if delimiter is not None:
                raise DataError(f"{path} is Parquet: delimiter has no effect on it; leave it out")
            table = read_columns(path, columns, check=partial(_require_columns, path, columns))
        elif path.suffix.lower() in (".csv", ".tsv", ".txt"):
            table = _read_csv(path, columns, delimiter or ",", start)
        else:
            raise DataError(f"table {path} is neither Parquet nor a .csv; convert it to one")
    except (pa.ArrowException, MemoryError, OSError, ValueError, KeyError) as error:
        raise DataError(f"table {path} is damaged: {first_line(error)}; copy it again") from error
    if not table.num_rows:
        raise DataError(f"table {path} has no rows")
    arrays = {name: table[name].combine_chunks() for name in columns}
    return Table(path=path, arrays=arrays, geo=(table.schema.metadata or {}).get(b"geo"))


def _read_csv(path: Path, columns: Sequence[str], delimiter: str, start: bytes) -> pa.Table:
    is_utf16 = start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    options: dict[str, Any] = {
        "read_options": pa_csv.ReadOptions(encoding="utf-16" if is_utf16 else "utf8"),
        "parse_options": pa_csv.ParseOptions(delimiter=delimiter, newlines_in_values=True),
    }
    texts = pa_csv.ConvertOptions(
        include_columns=list(columns),
        column_types=dict.fromkeys(columns, pa.string()),
        strings_can_be_null=False,
    )
    try:
        with pa_csv.open_csv(path, **options) as reader:
            names = reader.schema.names
        _require_columns(path, columns, names)
        table = _read_rows(path, texts, options)
    except pa.ArrowException as error:
        _require_closed_quotes(path, delimiter, is_utf16=is_utf16)
        if "UTF8" in str(error) and path.stat().st_size <= limit("json_bytes"):  # names the line
            read_text(path, what="table", fault=DataError, size="json_bytes")
        raise DataError(
            f"table {path} cannot be read with {delimiter!r} between columns: {_csv_fault(error)}"
        ) from error
    _require_closed_quotes(path, delimiter, is_utf16=is_utf16)
    return table


def _read_rows(path: Path, texts: pa_csv.ConvertOptions, options: Mapping[str, Any]) -> pa.Table:
    """The rows of a CSV, whose number and size are checked as they come."""
    batches, num_rows, num_bytes = [], 0, 0
    with pa_csv.open_csv(path, convert_options=texts, **options) as reader:
        for batch in reader:
            num_rows, num_bytes = num_rows + batch.num_rows, num_bytes + batch.nbytes
            require("table_rows", num_rows, f"table {path} has", todo="split it")
            require("table_bytes", num_bytes, f"table {path} has", todo="split it")
            batches.append(batch)
        return pa.Table.from_batches(batches, reader.schema)


def _csv_fault(error: pa.ArrowException) -> str:
    if "straddling" in str(error):
        return "a row is longer than 1 MiB; shorten it"
    return first_line(error)


def _require_closed_quotes(path: Path, delimiter: str, *, is_utf16: bool) -> None:
    """Raise `DataError` with the line of a quote that is never closed: it takes in all that follows
    as one value."""
    quote = '"'.encode("utf-16-le") if is_utf16 else b'"'
    with open(path, "rb") as file:
        num_quotes = sum(part.count(quote) for part in iter(lambda: file.read(2**20), b""))
    if num_quotes % 2 == 0 or path.stat().st_size > limit("json_bytes"):
        return
    text = read_text(path, what="table", fault=DataError, size="json_bytes")
    begins = rf"(?:\A|(?<=[{re.escape(delimiter)}\n]))"
    for value in re.finditer(begins + r'"(?:[^"]++|"")*+("?)', text):
        if not value[1]:
            line = text.count("\n", 0, value.start()) + 1
            raise DataError(f"table {path}: the quote in line {line} is not closed; close it")


def _require_columns(path: Path, columns: Sequence[str], found: Sequence[str]) -> None:
    counts = Counter(found)
    for name in columns:
        if counts[name] > 1:
            raise DataError(f"table {path} has several columns {quoted(name)}; rename the others")
        if name not in counts:
            raise DataError(f"table {path} has no column {quoted(name)}; {nearest(name, found)}")
