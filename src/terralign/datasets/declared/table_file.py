"""Columns of a CSV or Parquet file, as texts, lists of texts and times. N rows.

Nothing of a CSV is taken for a number or a date unless it is asked for as one, so that `007` stays
what it is.
"""

from __future__ import annotations

import codecs
import datetime as dt
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
from numpy.typing import NDArray

from terralign.errors import DataError, first_line, nearest
from terralign.files import MAX_JSON_BYTES, read_text

MAX_ROWS = 200_000_000
MAX_TABLE_BYTES = 16 * 1024**3
"""A table with more rows, or whose columns would take more memory, is refused before it is read."""

_UTC = pa.timestamp("us", "UTC")


@dataclass(frozen=True, kw_only=True, slots=True)
class TableFile:
    """Rows of some columns of a table, each of one chunk.

    `numbers`: (N,) int64, which rows of the file these are, from 1, the header apart. `geo`: the
    text of GeoParquet's metadata.
    """

    path: Path
    columns: Mapping[str, pa.Array]
    numbers: NDArray[np.int64]
    geo: bytes | None = None

    def __len__(self) -> int:
        return len(self.numbers)

    def take(self, rows: NDArray[np.int64]) -> TableFile:
        """These rows, counted from 0."""
        columns = {name: column.take(pa.array(rows)) for name, column in self.columns.items()}
        return replace(self, columns=columns, numbers=self.numbers[rows])

    def tell(self, row: int) -> str:
        """How an error names a row: by its number in the file."""
        return f"{self.path}: row {self.numbers[row]}"

    def texts(self, column: str) -> pa.Array:
        """A column of texts, whole numbers or truth values as N strings, null where it is empty."""
        values = self.columns[column]
        kind = values.type
        if not (
            pa.types.is_string(kind)
            or pa.types.is_large_string(kind)
            or pa.types.is_integer(kind)
            or pa.types.is_boolean(kind)
            or pa.types.is_null(kind)
        ):
            raise DataError(
                f"{self.path}: column {column!r} is of type {kind}; expected texts or whole numbers"
            )
        return values.cast(pa.string())

    def full_texts(self, column: str) -> pa.Array:
        """`texts`; a row without one is an error that names it."""
        values = self.texts(column)
        empty = pc.fill_null(pc.equal(values, ""), True)
        if pc.any(empty).as_py():
            raise DataError(f"{self.tell(first_true(empty))} has nothing in column {column!r}")
        return values

    def holds_lists(self, column: str) -> bool:
        """Whether a column is one of lists."""
        kind = self.columns[column].type
        return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind))

    def text_lists(self, column: str) -> pa.Array:
        """A column of lists of texts or whole numbers as N lists of strings."""
        values = self.columns[column]
        kind = values.type
        if not self.holds_lists(column):
            raise DataError(
                f"{self.path}: column {column!r} is of type {kind}; expected lists, which CSV lacks"
            )
        try:
            return values.cast(pa.list_(pa.string()))
        except pa.ArrowException as error:
            raise DataError(
                f"{self.path}: column {column!r} is of type {kind}; expected lists of texts"
            ) from error

    def times(self, column: str) -> pa.Array:
        """A column of dates, times or ISO texts as N timestamps in UTC, null where it is empty.

        Those that name no zone are UTC.
        """
        values = self.columns[column]
        kind = values.type
        if pa.types.is_timestamp(kind):
            return values.cast(pa.timestamp("us", kind.tz), False).cast(_UTC)
        if pa.types.is_date(kind):
            return values.cast(pa.timestamp("us")).cast(_UTC)
        texts = self.texts(column)
        for written in (pa.timestamp("us"), _UTC):  # none of them names a zone, or all of them
            with suppress(pa.ArrowInvalid):
                return pc.if_else(pc.equal(texts, ""), None, texts).cast(written).cast(_UTC)
        times = []
        for row, text in enumerate(texts.to_pylist()):
            try:
                times.append(parse_time(text))
            except ValueError as error:
                raise DataError(
                    f"{self.tell(row)} has {text!r} in column {column!r}; expected an ISO date "
                    "as 2024-05-31 or 2024-05-31T10:20:30Z"
                ) from error
        return pa.array(times, _UTC)


def parse_time(text: str | None) -> dt.datetime | None:
    """A time in ISO 8601, UTC where it names no zone; None for an empty one. `ValueError` if none.

    All digits without separators are refused: they may be a number of seconds as well.
    """
    text = (text or "").strip()
    if not text:
        return None
    if text.isdigit() and len(text) != len("YYYYMMDD"):
        raise ValueError(text)
    time = dt.datetime.fromisoformat(text)
    return time.replace(tzinfo=dt.UTC) if time.tzinfo is None else time.astimezone(dt.UTC)


def first_true(flags: pa.Array) -> int:
    """The position of the first true of some flags."""
    return int(np.flatnonzero(flags.to_numpy(zero_copy_only=False))[0])


def read_table_file(
    path: Path, columns: Sequence[str], *, delimiter: str | None = None
) -> TableFile:
    """Read `columns` of a Parquet file, or of a CSV with a header line.

    `delimiter`: that of a CSV; None for a comma. Raises `DataError` where the file is missing,
    damaged, too large or no table, where it lacks a column (with the nearest one) or has no
    row.
    """
    if not path.is_file():
        raise DataError(f"table {path} is not there")
    with open(path, "rb") as file:
        start = file.read(4)
    try:
        if start == b"PAR1":
            if delimiter is not None:
                raise DataError(f"{path} is Parquet: delimiter has no effect on it; leave it out")
            table, geo = _read_parquet(path, columns)
        elif path.suffix.lower() in (".csv", ".tsv", ".txt"):
            table, geo = _read_csv(path, columns, delimiter or ","), None
        else:
            raise DataError(f"table {path} is neither Parquet nor a .csv; convert it to one")
    except (pa.ArrowException, OSError, ValueError, KeyError) as error:
        raise DataError(f"table {path} is damaged: {first_line(error)}") from error
    if not table.num_rows:
        raise DataError(f"table {path} has no rows")
    return TableFile(
        path=path,
        columns={name: _one_array(table.column(name)) for name in columns},
        numbers=np.arange(1, table.num_rows + 1, dtype=np.int64),
        geo=geo,
    )


def _one_array(column: pa.ChunkedArray) -> pa.Array:
    array = column.combine_chunks()
    if isinstance(array, pa.ChunkedArray):
        array = array.chunk(0) if array.num_chunks else pa.array([], array.type)
    return array.dictionary_decode() if pa.types.is_dictionary(array.type) else array


def _read_parquet(path: Path, columns: Sequence[str]) -> tuple[pa.Table, bytes | None]:
    with pq.ParquetFile(path) as file:
        metadata, schema = file.metadata, file.schema_arrow
        _require_columns(path, columns, schema.names)
        wanted = [
            position
            for position in range(metadata.num_columns)
            if metadata.schema.column(position).path.split(".")[0] in columns
        ]
        num_bytes = sum(
            metadata.row_group(group).column(position).total_uncompressed_size
            for group in range(metadata.num_row_groups)
            for position in wanted
        )
        _require_size(path, metadata.num_rows, num_bytes)
        table = file.read(columns=list(columns))
    return table, (schema.metadata or {}).get(b"geo")


def _read_csv(path: Path, columns: Sequence[str], delimiter: str) -> pa.Table:
    _require_size(path, 0, path.stat().st_size)
    parse: Any = pa_csv.ParseOptions(delimiter=delimiter, newlines_in_values=True)
    texts: Any = pa_csv.ConvertOptions(
        include_columns=list(columns),
        column_types=dict.fromkeys(columns, pa.string()),
        strings_can_be_null=False,
    )
    source: Any = path
    with open(path, "rb") as file:
        if file.read(2) in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):  # Arrow reads UTF-8 alone
            text = read_text(path, what="table", fault=DataError, max_bytes=MAX_JSON_BYTES)
            source = pa.py_buffer(text.encode())
    try:
        with pa_csv.open_csv(_opened(source), parse_options=parse) as reader:
            names = reader.schema.names
        _require_columns(path, columns, names)
        return pa_csv.read_csv(_opened(source), parse_options=parse, convert_options=texts)
    except pa.ArrowException as error:
        if "UTF8" in str(error) and path.stat().st_size <= MAX_JSON_BYTES:  # which line, then
            read_text(path, what="table", fault=DataError, max_bytes=MAX_JSON_BYTES)
        raise DataError(
            f"table {path} cannot be read with {delimiter!r} between columns: {first_line(error)}"
        ) from error


def _opened(source: Any) -> Any:
    return pa.BufferReader(source) if isinstance(source, pa.Buffer) else source


def _require_columns(path: Path, columns: Sequence[str], there: Sequence[str]) -> None:
    for name in columns:
        if there.count(name) != 1:
            fault = "has several columns" if name in there else "has no column"
            raise DataError(f"table {path} {fault} {name!r}; {nearest(name, there)}")


def _require_size(path: Path, num_rows: int, num_bytes: int) -> None:
    if num_rows > MAX_ROWS or num_bytes > MAX_TABLE_BYTES:
        raise DataError(
            f"table {path} has {num_rows} rows and {num_bytes / 2**30:.1f} GiB, more than the "
            f"limit of {MAX_ROWS} rows and {MAX_TABLE_BYTES / 2**30:.0f} GiB; split it"
        )
