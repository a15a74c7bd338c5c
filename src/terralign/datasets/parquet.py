"""Parquet files of others: opened, and bounded while they are read."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from terralign.errors import DataError, first_line
from terralign.limits import limit, require

BATCH_ROWS = 4096
_LEAST_ROWS = 256
"""Rows that are decoded before their size is checked, and those of texts that repeat the beginning
of the one before (DELTA_BYTE_ARRAY): a few bytes may stand for gigabytes."""


@contextmanager
def open_parquet(path: Path, columns: Sequence[str], *, todo: str) -> Iterator[pq.ParquetFile]:
    """An open Parquet file with these columns.

    `DataError`, with the remedy `todo`, where it lacks one, is damaged, or is no such file.
    """
    try:
        _require_file(path)
        with pq.ParquetFile(path) as file:
            missing = [name for name in columns if name not in file.schema_arrow.names]
            if missing:
                raise DataError(f"{path} has no column {', '.join(missing)}; {todo}")
            yield file
    except (pa.ArrowException, OSError) as error:
        raise DataError(
            f"{path} is not a readable Parquet file ({first_line(error)}); {todo}"
        ) from error


Room = Callable[[], int]
"""Bytes that a table may take beyond the limits, asked for where it is beyond them."""


def read_columns(
    path: Path,
    columns: Sequence[str],
    *,
    check: Callable[[Sequence[str]], None],
    room: Room = lambda: 0,
) -> pa.Table:
    """Columns of a Parquet file, each as one checked chunk without dictionaries.

    A few bytes of a dictionary, or of a run of equal values, may stand for gigabytes: what the file
    declares is bounded first, then what is decoded. `check` raises where the names of all columns
    lack some. `DataError` beyond a limit, pyarrow's errors where the file is damaged.
    """
    _require_file(path)
    _require_small_footer(path)
    with pq.ParquetFile(path) as file:
        schema = file.schema_arrow
        check(schema.names)
        parts: dict[str, list[pa.Array]] = {name: [] for name in columns}
        num_bytes = 0
        for batch in _batches(path, file, columns, room):
            for name, part in parts.items():
                num_bytes += _decoded_bytes(batch.column(name))
                _require_room("table_bytes", num_bytes, path, room)
                part.append(_decode(batch.column(name)))
    arrays = {}
    for name in columns:
        found = parts.pop(name)
        array = pa.concat_arrays(found) if found else pa.array([], schema.field(name).type)
        array.validate(full=True)
        arrays[name] = array
    return pa.table(arrays).replace_schema_metadata(schema.metadata)


_ENTRY_BYTES = {"table_rows": 64, "table_values": 64, "table_bytes": 1}
"""What an entry takes at least, in Python too."""


def _require_room(name: str, given: int, path: Path, room: Room) -> None:
    if given > limit(name) and given * _ENTRY_BYTES[name] > room():
        require(name, given, f"table {path} has", todo="split it")


def _batches(
    path: Path, file: pq.ParquetFile, columns: Sequence[str], room: Room
) -> Iterator[pa.RecordBatch]:
    """The rows of a file, of which columns whose texts may be too large come as dictionaries."""
    metadata, wanted = file.metadata, list(columns)
    names = _repeating(path, metadata, columns, room)
    if not names:
        yield from file.iter_batches(_batch_rows(metadata, columns), columns=wanted)
        return
    with pq.ParquetFile(path, read_dictionary=names, metadata=metadata) as compact:
        for group in range(metadata.num_row_groups):
            try:
                yield from list(compact.iter_batches(row_groups=[group], columns=wanted))
            except pa.ArrowNotImplementedError:  # lists of texts, some of them in no dictionary
                yield from file.iter_batches(_LEAST_ROWS, row_groups=[group], columns=wanted)


def _require_file(path: Path) -> None:
    """Raise `OSError` for a named pipe or a device, which opening would wait for."""
    if path.exists() and not path.is_file():
        raise OSError("it is no regular file")


def _require_small_footer(path: Path) -> None:
    """Raise `DataError` where what a footer says of columns takes more than the limit."""
    with open(path, "rb") as file:
        file.seek(max(0, path.stat().st_size - 8))
        num_bytes = int.from_bytes(file.read(4), "little")
    if num_bytes < path.stat().st_size:  # else it is damaged
        require("parquet_footer_bytes", num_bytes, f"table {path} has a footer of")


def _chunks(metadata: pq.FileMetaData, columns: Sequence[str]) -> Iterator[pq.ColumnChunkMetaData]:
    wanted = [
        position
        for position in range(metadata.num_columns)
        if metadata.schema.column(position).path.split(".")[0] in columns
    ]
    for group in range(metadata.num_row_groups):
        row_group = metadata.row_group(group)
        for position in wanted:
            yield row_group.column(position)


def _repeating(
    path: Path, metadata: pq.FileMetaData, columns: Sequence[str], room: Room
) -> list[str]:
    """The columns whose texts might decode to more than the limit, to be read as dictionaries."""
    _require_room("table_rows", metadata.num_rows, path, room)
    num_values = num_bytes = 0
    most: dict[str, int] = {}
    for chunk in _chunks(metadata, columns):
        num_bytes += chunk.total_uncompressed_size
        if chunk.physical_type == "BYTE_ARRAY":
            num_values += chunk.num_values
            name = chunk.path_in_schema
            if chunk.has_dictionary_page or "DICTIONARY" in str(chunk.encodings):
                size = min(chunk.total_uncompressed_size, limit("table_bytes"))
                most[name] = most.get(name, 0) + chunk.num_values * size
        elif "." in chunk.path_in_schema:
            num_values += chunk.num_values
    _require_room("table_values", num_values, path, room)
    _require_room("table_bytes", num_bytes, path, room)
    names = [name for name, size in most.items() if size > limit("table_bytes")]
    if not names:
        return []
    longest = _longest_of_dictionaries(path, metadata, names)
    return [name for name in names if longest[name] * num_values > limit("table_bytes")]


def _longest_of_dictionaries(
    path: Path, metadata: pq.FileMetaData, names: Sequence[str]
) -> dict[str, int]:
    """Bytes of the longest text in the dictionaries of these columns, each of which is read."""
    longest = dict.fromkeys(names, 0)
    with pq.ParquetFile(path, read_dictionary=list(names), metadata=metadata) as file:
        for group in range(metadata.num_row_groups):
            batch = next(file.iter_batches(1, row_groups=[group], columns=list(names)), None)
            if batch is None:
                continue
            for name in names:
                values = _leaves(batch.column(name.split(".")[0]))
                if pa.types.is_dictionary(values.type):
                    size = pc.max(pc.binary_length(values.dictionary)).as_py() or 0
                    longest[name] = max(longest[name], size)
    return longest


def _batch_rows(metadata: pq.FileMetaData, columns: Sequence[str]) -> int:
    repeats = any("DELTA_BYTE_ARRAY" in chunk.encodings for chunk in _chunks(metadata, columns))
    return _LEAST_ROWS if repeats else BATCH_ROWS


def _is_list(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind))


def _leaves(array: pa.Array) -> pa.Array:
    while _is_list(array.type):
        array = array.flatten()
    return array


def _decoded_bytes(array: pa.Array) -> int:
    """Bytes that an array takes once its dictionary is replaced by its values."""
    values = _leaves(array)
    if not pa.types.is_dictionary(values.type):
        return int(array.nbytes)
    kind = values.type.value_type
    # The dictionary, which all batches of a row group share, is not of this one.
    num_bytes = int(array.nbytes) - int(values.nbytes) + 8 * len(values)
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_binary(kind)):
        return num_bytes
    lengths = pc.binary_length(values.dictionary).take(values.indices)
    return num_bytes + (pc.sum(lengths.cast(pa.int64())).as_py() or 0)


def _decode(array: pa.Array) -> pa.Array:
    """An array, or a list of arrays, with its values in place of a dictionary."""
    kind = array.type
    if pa.types.is_dictionary(kind):
        return array.dictionary_decode()
    if _is_list(kind) and pa.types.is_dictionary(kind.value_type):
        return array.cast(pa.list_(kind.value_type.value_type))
    return array.cast(pa.string()) if pa.types.is_string_view(kind) else array


def require_small(
    file: pq.ParquetFile, groups: Iterable[int], columns: Sequence[str], limit: int, origin: object
) -> None:
    """Raise `DataError` where columns of row groups need more memory than `limit`, by the file."""
    num_bytes = 0
    for group in groups:
        row_group = file.metadata.row_group(group)
        chunks = [row_group.column(index) for index in range(row_group.num_columns)]
        num_bytes += sum(
            chunk.total_uncompressed_size
            for chunk in chunks
            if chunk.path_in_schema.split(".")[0] in columns
        )
    if num_bytes > limit:
        raise DataError(
            f"{origin}: {', '.join(columns)} take {num_bytes / 2**20:.0f} MiB, more than the "
            f"limit of {limit / 2**20:.0f} MiB"
        )
