"""LanceDB: tables of vectors with an inverted index over them. No other module imports it.

A table has two columns: `key`, a whole number that its caller gives, and `vector`. Every write
makes a new version. LanceDB is imported at the first use, which takes 2 seconds.

N rows, D dimensions.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from terralign.errors import (
    DataError,
    DiskFullError,
    StorageError,
    TerralignError,
    first_line,
    shown,
)

Kind = Literal["flat", "pq"]
"""What an index stores of a vector: all numbers, or a code of a byte for every 8 of them."""

EXTRA = "index"

_NUMBERS_A_CODE = 8
_SAMPLE_RATE = 64
"""Vectors for each centre of the clusters, that these are found from."""
_ITERATIONS = 20

METRIC: Any = "l2"
"""Clusters by Euclidean distance need fewer probes than clusters by inner product for the same
recall. Vectors of unit length have the same order by both, up to the rounding of their length."""

_AT_ONCE = timedelta(milliseconds=1)
"""Age beyond which `change` removes older versions: all of them."""

_FULL = ("No space left", "os error 28", "os error 122", "Disk quota", "os error 27")
"""How messages of LanceDB name a full disk, a full quota and a file that is too large."""


def is_installed() -> bool:
    """Whether LanceDB can be imported; it is not imported."""
    from importlib.util import find_spec

    return find_spec("lancedb") is not None


def is_address(place: str) -> bool:
    """Whether a place is object storage, as `s3://bucket/folder`, and not a local folder."""
    return re.match(r"[a-z0-9+]+://", place) is not None


TABLE_NAME = r"terralign_[0-9a-f]{16}_\d+_\d+"
"""Of this project's tables: their owner, a generation and a number."""


def is_table_folder(name: str) -> bool:
    """Whether a local folder is called as LanceDB calls that of one of these tables."""
    return re.fullmatch(TABLE_NAME + r"\.lance", name) is not None


class Tables:
    """The tables at a place: a local folder, or object storage (`s3://bucket/folder`, `gs://`,
    `az://`), whose credentials LanceDB takes from the environment.

    Every method raises `StorageError` where the disk is full or the place cannot be reached.
    """

    def __init__(self, place: str) -> None:
        self.place = place
        if not is_installed():
            raise DataError(
                "the index of vectors needs LanceDB, which is not installed; install it: pip "
                f"install 'terralign[{EXTRA}]'"
            )
        os.environ.setdefault("LANCEDB_LOG", "error")  # its warnings are for those who write it
        import lancedb

        with self._faults("open"):
            self._database: Any = lancedb.connect(place)

    @contextmanager
    def _faults(self, what: str) -> Iterator[None]:
        """LanceDB's faults as ours. It raises what Rust raised as RuntimeError, ValueError or
        OSError, with a message of several lines."""
        try:
            yield
        except TerralignError:
            raise
        except BaseException as error:
            if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
                raise  # as Ctrl-C is; what Rust calls a panic is no Exception
            text = str(error)
            if any(sign in text for sign in _FULL):
                raise DiskFullError(
                    f"no space left while writing {shown(self.place)}; free some space and run "
                    "the same command again"
                ) from error
            raise StorageError(
                f"cannot {what} the index at {shown(self.place)}: {_short(first_line(error))}"
            ) from error

    def names(self, prefix: str) -> list[str]:
        """The tables whose name begins with `prefix`."""
        found: list[str] = []
        with self._faults("list"):
            page: str | None = None
            while True:
                answer = self._database.list_tables(page_token=page)
                found += [one for one in answer.tables if one.startswith(prefix)]
                page = answer.page_token
                if not page:
                    return found

    def write(
        self, name: str, dim: int, batches: Iterable[tuple[NDArray[np.int64], NDArray[Any]]]
    ) -> Table:
        """A new table of batches: keys (n,), vectors (n, D) float16 or float32."""
        rows = iter(batches)
        first = next(rows)
        schema = _schema(dim, first[1].dtype)

        def every() -> Iterator[pa.RecordBatch]:
            yield _batch(schema, *first)
            for one in rows:
                yield _batch(schema, *one)

        with self._faults("write"):
            table = self._database.create_table(name, every(), schema=schema, mode="create")
        return Table(self, name, table)

    def open(self, name: str) -> Table:
        """A table at its newest version; `StorageError` where no table has this name."""
        with self._faults("open"):
            return Table(self, name, self._database.open_table(name))

    def drop(self, name: str) -> None:
        """Remove a table, if it exists."""
        with self._faults("remove"):
            self._database.drop_table(name, ignore_missing=True)


class Table:
    """A table, open at the version that was the newest."""

    def __init__(self, tables: Tables, name: str, table: Any) -> None:
        self._tables, self.name, self._table = tables, name, table

    @property
    def version(self) -> int:
        """The version that is open."""
        with self._tables._faults("read"):
            return int(self._table.version)

    def __len__(self) -> int:
        with self._tables._faults("read"):
            return int(self._table.count_rows())

    def build(self, kind: Kind, num_partitions: int, dim: int) -> None:
        """Cluster the vectors, and index them; a new version."""
        from lancedb.index import IvfFlat, IvfPq

        common: dict[str, Any] = {
            "distance_type": METRIC,
            "num_partitions": num_partitions,
            "sample_rate": _SAMPLE_RATE,
            "max_iterations": _ITERATIONS,
        }
        config: Any = IvfFlat(**common)
        if kind == "pq":
            config = IvfPq(**common, num_sub_vectors=max(1, dim // _NUMBERS_A_CODE))
        with self._tables._faults("build"):
            self._table.create_index("vector", config=config, replace=True)

    def change(
        self,
        version: int,
        gone: Iterable[tuple[int, int]],
        batches: Iterable[tuple[NDArray[np.int64], NDArray[Any]]],
    ) -> None:
        """As it was at a version, without the rows of ranges of keys (first, end), with those of
        batches; indexed, compacted, and all other versions removed. `StorageError` where there is
        no such version. For a process that alone writes to the table."""
        with self._tables._faults("change"):
            self._table.checkout(version)
            self._table.restore()  # without what a process wrote that was killed
            for first, end in gone:
                self._table.delete(f"key >= {int(first)} AND key < {int(end)}")
            schema = self._table.schema
            for one in batches:
                self._table.add(pa.Table.from_batches([_batch(schema, *one)]))
            for _ in range(2):  # old files are removed before new ones take their place
                self._table.optimize(cleanup_older_than=_AT_ONCE, delete_unverified=True)

    def num_unindexed(self) -> int:
        """Rows that the index does not hold."""
        with self._tables._faults("read"):
            found = self._table.list_indices()
            if not found:
                return len(self)
            return int(self._table.index_stats(found[0].name).num_unindexed_rows)

    def nearest(self, query: NDArray[np.float32], *, num: int, probes: int) -> NDArray[np.int64]:
        """(n,) keys of at most `num` vectors nearest to a query (D,), nearest first, in the
        `probes` clusters that are nearest to it."""
        with self._tables._faults("search"):
            found = (
                self._table.search(query)
                .distance_type(METRIC)
                .nprobes(probes)
                .limit(num)
                .select(["key", "_distance"])
                .fast_search()
                .to_arrow()
            )
            keys: NDArray[np.int64] = found.column("key").to_numpy()
        return keys

    def num_bytes(self) -> int:
        """Of the newest version: vectors and index."""
        with self._tables._faults("read"):
            indices = self._table.list_indices()
            return int(self._table.stats()["total_bytes"]) + sum(
                int(one.size_bytes or 0) for one in indices
            )


def _schema(dim: int, dtype: Any) -> pa.Schema:
    numbers = pa.from_numpy_dtype(np.dtype(dtype))
    return pa.schema([("key", pa.int64()), ("vector", pa.list_(numbers, dim))])


def _batch(schema: pa.Schema, keys: NDArray[np.int64], vectors: NDArray[Any]) -> pa.RecordBatch:
    kind = schema.field("vector").type
    numbers = pa.array(np.ascontiguousarray(vectors).reshape(-1))
    columns = [pa.array(keys), pa.FixedSizeListArray.from_arrays(numbers, kind.list_size)]
    return pa.record_batch(columns, schema=schema)


def _short(text: str) -> str:
    """A message of Rust without the source files that it names."""
    return re.sub(r",?\s*\S+\.rs:\d+:\d+", "", text)[:200]


def folder_bytes(folder: Path) -> int:
    """Bytes of all files below a folder."""
    total = 0
    for parent, _, files in os.walk(folder):
        for name in files:
            try:
                total += os.lstat(os.path.join(parent, name)).st_size
            except OSError:  # removed since it was listed
                continue
    return total
