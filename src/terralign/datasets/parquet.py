"""Parquet files of published archives: opened, and bounded before they are read."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from terralign.errors import DataError, first_line


@contextmanager
def open_parquet(path: Path, columns: Sequence[str], *, todo: str) -> Iterator[pq.ParquetFile]:
    """An open Parquet file with these columns.

    `DataError`, with the remedy `todo`, where it lacks one, is damaged, or is no such file.
    """
    try:
        with pq.ParquetFile(path) as file:
            missing = [name for name in columns if name not in file.schema_arrow.names]
            if missing:
                raise DataError(f"{path} has no column {', '.join(missing)}; {todo}")
            yield file
    except (pa.ArrowException, OSError) as error:
        raise DataError(
            f"{path} is not a readable Parquet file ({first_line(error)}); {todo}"
        ) from error


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
