"""Makes the index beside a folder of parts, brings it up to date, and removes it.

The tables are written first, `state.json` last: a process that is killed leaves the index as it
was, and tables that the next one removes. One process at a time writes; others wait.
"""

from __future__ import annotations

import logging
import math
import os
import secrets
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from terralign.encoders.space import EmbeddingSpace
from terralign.encoders.vectors import as_unit, check_same_space
from terralign.errors import DataError, DiskFullError, StorageError, counted, shown
from terralign.files import check_free_space, claimed, write_text
from terralign.index.ann import Kind, Table, folder_bytes, is_address, is_table_folder
from terralign.index.approximate import (
    FOLDER,
    FORMAT,
    Approximate,
    Held,
    State,
    TowerIndex,
    read_state,
)
from terralign.index.names import part_paths
from terralign.index.probes import NO_TOWER, Queries, choose_probes, made_queries, text_queries
from terralign.index.store import Store, open_store
from terralign.progress import Progress

logger = logging.getLogger(__name__)

MIN_ROWS = 200_000
"""Windows of a tower from which on an index is worth its disk: fewer are compared in some 20 ms."""

_LEAST_ROWS = 32
"""Fewer are never indexed."""

_LEAST_ROWS_OF_CODES = 4096
"""The codes of `pq` are learnt from some of the vectors: 256 for each number."""

_MAX_CHANGED = 0.3
"""Rows that are new or gone, of those that the clusters were made from, up to which an index is
changed; beyond it is made again, with new clusters."""

Load = Callable[[str, str], EmbeddingSpace | None]

_BATCH_BYTES = 32 * 1024**2
_NUM_SAMPLED = 4096
_DISK_FACTOR = 2.2
"""Disk that an index takes, of its vectors: they are in the table, and by clusters in the index."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Indexed:
    """What `index_folder` did. `state`: the index as it is now. `done`: tower -> "made", "changed",
    "measured" (again), "kept", or why it has none. `num_bytes`: on disk."""

    folder: Path
    state: State
    done: dict[str, str]
    num_bytes: int
    seconds: float

    def describe(self) -> dict[str, Any]:
        """Plain values, for `--json`."""
        return {
            "folder": str(self.folder),
            "place": self.state.place or str(self.folder / FOLDER),
            "recall": self.state.recall,
            "bytes": self.num_bytes,
            "seconds": round(self.seconds, 2),
            "towers": {
                name: {"done": done, **self._tower(name)} for name, done in self.done.items()
            },
        }

    def _tower(self, name: str) -> dict[str, Any]:
        for one in self.state.towers:
            if one.tower == name:
                return {
                    "rows": one.num_rows,
                    "kind": one.kind,
                    "clusters": one.partitions,
                    "queries": one.texts,
                    "measured": [probes.model_dump() for probes in one.measured],
                }
        return {}


def index_folder(
    folder: str | Path,
    *,
    space: EmbeddingSpace | Load | None = None,
    recall: float | None = None,
    kind: Kind | None = None,
    force: bool = False,
    place: str | None = None,
) -> Indexed:
    """Make the index of a folder of parts, or bring it up to date with them.

    `space`: whose text tower makes the queries that probes are measured with, or a function that
    gives it for the name of the vectors' model and their space id, called where it is needed;
    without it they are made of the vectors. `recall`: the share of the best hits of a text that a
    search is to find (0-1, below 1); default 0.95, or as before. `kind`: "flat", or "pq" for codes
    of a 16th of the size and candidates compared exactly; default flat, or as before. `force`: also
    of towers with less than 200,000 windows. `place`: of the tables, a folder or `s3://...`;
    default: `.index` in the folder, or as before.

    Raises `DataError` without LanceDB or for a folder without parts, `StorageError` where the disk
    is full or the place cannot be reached, `SpaceMismatchError` for another space.
    """
    start = time.monotonic()
    folder = Path(folder)
    if recall is not None and not 0 < recall < 1:
        raise DataError(
            f"recall is {recall!r}; expected a share above 0 and below 1 (1: exact search, which "
            "needs no index)"
        )
    if not part_paths(folder):
        open_store(folder)  # which raises what is wrong
    _check_plain(folder / FOLDER)
    with claimed(folder / FOLDER, begins_with={"state.json"}, wait=True):
        store = open_store(folder)
        old = _old_state(folder, store)
        if place is not None and not is_address(place):
            place = os.path.abspath(place)
        state = State(
            format=FORMAT,
            owner=old.owner if old else secrets.token_hex(8),
            place=place or (old.place if old else None),
            generation=old.generation if old else 0,
            space_id=store.facts[0].space_id,
            dim=store.facts[0].dim,
            recall=recall or (old.recall if old else 0.95),
            towers=(),
        )
        if old is None:
            _write(folder, state)  # so that a next process knows the owner of the tables
        found = _Work(folder, store, state, old, space, kind, force).run(start)
        if not found.state.towers:
            _remove_own(folder / FOLDER)
        return found


def drop_index(folder: str | Path) -> int:
    """Remove the index of a folder; bytes that were freed in the folder. The parts stay.

    `DataError` where it has none.
    """
    folder = Path(folder)
    inner = folder / FOLDER
    if not inner.is_dir():
        raise DataError(f"{shown(folder)} has no index")
    num_bytes = folder_bytes(inner)
    _check_plain(inner)
    with claimed(inner, wait=True):
        state = None
        try:
            state = read_state(folder)
        except StorageError as error:
            logger.warning("%s; it is removed", error)
        if state is not None and state.place is not None:
            tables = state.tables(folder)
            for name in tables.names(_prefix(state)):
                tables.drop(name)
        _remove_own(inner)
    return num_bytes


def _remove_own(inner: Path) -> None:
    """Remove what terralign wrote into the folder of an index, and the folder where it is empty."""
    for path in inner.iterdir():
        if is_table_folder(path.name):
            shutil.rmtree(path)
        elif path.name in ("state.json", ".lock"):
            path.unlink()
    with suppress(OSError):
        inner.rmdir()


def _check_plain(inner: Path) -> None:
    """`StorageError` for links: what is removed or written through them would lie elsewhere."""
    linked = [inner] if inner.is_symlink() else []
    for parent, folders, files in os.walk(inner):
        linked += [path for name in (*folders, *files) if (path := Path(parent, name)).is_symlink()]
    if linked:
        raise StorageError(
            f"{shown(linked[0])} is a link; remove it (terralign index --at FOLDER keeps the index "
            "elsewhere)"
        )


def _old_state(folder: Path, store: Store) -> State | None:
    try:
        old = read_state(folder)
    except StorageError as error:
        logger.warning("%s; the index is made again", error)
        return None
    if old is not None and (old.space_id, old.dim) != (store.facts[0].space_id, store.facts[0].dim):
        return old.model_copy(update={"towers": ()})
    return old


def _prefix(state: State) -> str:
    return f"terralign_{state.owner}_"


def _write(folder: Path, state: State) -> None:
    write_text(folder / FOLDER / "state.json", state.model_dump_json(indent=1) + "\n")


class _Work:
    """One run of `index_folder`, which has the folder's lock."""

    def __init__(
        self,
        folder: Path,
        store: Store,
        state: State,
        old: State | None,
        space: EmbeddingSpace | Load | None,
        kind: Kind | None,
        force: bool,
    ) -> None:
        self.folder, self.store, self.state, self.old = folder, store, state, old
        self.space, self.kind, self.force = space, kind, force
        self.tables = state.tables(folder)
        self.parts: dict[str, list[int]] = {}
        for number, one in enumerate(store.facts):
            self.parts.setdefault(one.tower, []).append(number)

    def run(self, start: float) -> Indexed:
        here = self.old is not None and self.old.place == self.state.place
        before = {one.tower: one for one in self.old.towers} if self.old and here else {}
        self._remove_others(one.table for one in before.values())
        done, towers = {}, []
        for name in sorted(self.parts):
            done[name], index = self._tower(name, before.get(name))
            towers += [] if index is None else [index]
        generation = self.state.generation + 1
        self.state = self.state.model_copy(
            update={"towers": tuple(towers), "generation": generation}
        )
        _write(self.folder, self.state)
        self._remove_others(one.table for one in towers)
        if self.old is not None and not here:
            self._remove_from(self.old)
        return Indexed(
            folder=self.folder,
            state=self.state,
            done=done,
            num_bytes=self._num_bytes(),
            seconds=time.monotonic() - start,
        )

    def _num_bytes(self) -> int:
        if is_address(self.tables.place):
            return sum(one.num_bytes for one in self.state.towers)
        return folder_bytes(Path(self.tables.place))

    def _remove_others(self, kept: Iterable[str]) -> None:
        """Remove this folder's tables but some: old ones, and those of killed processes."""
        for name in set(self.tables.names(_prefix(self.state))) - set(kept):
            self.tables.drop(name)

    def _remove_from(self, old: State) -> None:
        try:
            tables = old.tables(self.folder)
            for name in tables.names(_prefix(old)):
                tables.drop(name)
        except StorageError as error:
            logger.warning("%s; its tables stay there", error)

    def _tower(self, name: str, before: TowerIndex | None) -> tuple[str, TowerIndex | None]:
        """What is done for a tower, and its index."""
        rows = sum(len(self.store.rows_of(one)) for one in self.parts[name])
        if rows < _LEAST_ROWS or (rows < MIN_ROWS and before is None and not self.force):
            why = f"{counted(rows, 'window')}: compared one by one, which is quick enough"
            return why, None
        kind = self.kind or (before.kind if before else "flat")
        if kind == "pq" and rows < _LEAST_ROWS_OF_CODES:
            raise DataError(
                f"{shown(self.folder)}: tower {name} has {counted(rows, 'window')}, too few to "
                f"learn codes from; pq needs {_LEAST_ROWS_OF_CODES:,}, flat does not"
            )
        start = time.monotonic()
        if before is not None and before.kind == kind:
            found = self._kept(name, before, start)
            if found is not None:
                return found
        return "made", self._made(name, rows, kind, start)

    def _kept(self, name: str, before: TowerIndex, start: float) -> tuple[str, TowerIndex] | None:
        """The index as it is, or with the rows that changed; None where it is to be made again."""
        joined = Approximate(self.folder, self._with(before), self.store).towers[name]
        there = {self.store.stamps[one] for one in joined.parts}
        gone = [one for one in before.parts if one.stamp not in there]
        new = [one for one in self.parts[name] if one not in joined.parts]
        num_new = sum(len(self.store.rows_of(one)) for one in new)
        changed = num_new + sum(one.num_rows for one in gone)
        if changed > _MAX_CHANGED * before.trained:
            return None
        try:
            table = self.tables.open(before.table)
            is_same = self.old is not None and self.old.recall == self.state.recall
            if before.texts.endswith(NO_TOWER) and self._text_space() is not None:
                is_same = False  # it can be measured better now
            if not changed and is_same:
                return "kept", before
            parts = [one for one in before.parts if one.stamp in there]
            if changed:
                end = max((one.first + one.num_rows for one in before.parts), default=0)
                added = self._held(new, end)
                self._check_space(num_new)
                table.change(
                    before.version,
                    [(one.first, one.first + one.num_rows) for one in gone],
                    self._batches(name, zip(new, added, strict=True)),
                )
                parts += added
                if table.num_unindexed() or len(table) != sum(one.num_rows for one in parts):
                    return None
        except DiskFullError:  # where the whole again does not fit either
            raise
        except StorageError as error:
            logger.warning("%s; it is made again", error)
            return None
        index = before.model_copy(update={"parts": tuple(parts), "version": table.version})
        return ("changed" if changed else "measured"), self._measured(index, table, start)

    def _made(self, name: str, rows: int, kind: Kind, start: float) -> TowerIndex:
        self._check_space(rows)
        number = sorted(self.parts).index(name)
        table_name = f"{_prefix(self.state)}{self.state.generation + 1}_{number}"
        held = self._held(self.parts[name], 0)
        table = self.tables.write(
            table_name,
            self.state.dim,
            self._batches(name, zip(self.parts[name], held, strict=True)),
        )
        partitions = num_partitions(rows)
        logger.info("%s: %s into %s", name, counted(rows, "vector"), counted(partitions, "cluster"))
        table.build(kind, partitions, self.state.dim)
        index = TowerIndex(
            tower=name, table=table_name, version=table.version, kind=kind, partitions=partitions,
            trained=rows, parts=tuple(held), measured=(), texts="", num_bytes=0, seconds=0,
        )  # fmt: skip
        return self._measured(index, table, start)

    def _check_space(self, rows: int) -> None:
        if not is_address(self.tables.place):
            needed = rows * self.state.dim * self.store.vectors.itemsize
            check_free_space(Path(self.tables.place), int(_DISK_FACTOR * needed))

    def _held(self, parts: Sequence[int], first: int) -> list[Held]:
        """Parts of the store as a table has them, with keys from `first` on."""
        found = []
        for one in parts:
            name, size, mtime_ns = self.store.stamps[one]
            rows = len(self.store.rows_of(one))
            found.append(
                Held(
                    name=name, size=size, mtime_ns=mtime_ns,
                    identity=self.store.facts[one].identity, first=first, num_rows=rows,
                )
            )  # fmt: skip
            first += rows
        return found

    def _batches(
        self, name: str, parts: Iterable[tuple[int, Held]]
    ) -> Iterator[tuple[NDArray[np.int64], NDArray[Any]]]:
        """Keys and vectors of parts."""
        parts = list(parts)
        size = max(1, _BATCH_BYTES // (self.state.dim * self.store.vectors.itemsize))
        total = sum(held.num_rows for _, held in parts)
        with Progress(f"write vectors of {name}", total=total, unit="vector") as progress:
            for part, held in parts:
                rows = self.store.rows_of(part)
                for first in range(0, len(rows), size):
                    some = rows[first : first + size]
                    keys = np.arange(first, first + len(some), dtype=np.int64) + held.first
                    yield keys, self.store.vectors[some.start : some.stop]
                    progress.advance(len(some))

    def _with(self, index: TowerIndex) -> State:
        return self.state.model_copy(update={"towers": (index,)})

    def _measured(self, index: TowerIndex, table: Table, start: float) -> TowerIndex:
        """With the probes that reach the recall asked for."""
        joined = Approximate(self.folder, self._with(index), self.store).towers[index.tower]
        spans = [self.store.rows_of(one) for one in sorted(joined.parts)]
        queries = self._queries(spans)

        def ask(query: NDArray[np.float32], num: int, probes: int) -> NDArray[np.int64]:
            return joined.rows(table.nearest(query, num=num, probes=probes))

        measured = choose_probes(
            ask, queries, self.store.vectors, spans,
            partitions=index.partitions, kind=index.kind, recall=self.state.recall,
        )  # fmt: skip
        return index.model_copy(
            update={
                "measured": measured,
                "texts": queries.name,
                "num_bytes": table.num_bytes(),
                "seconds": round(time.monotonic() - start, 2),
            }
        )

    def _queries(self, spans: Sequence[range]) -> Queries:
        ends = np.cumsum([len(one) for one in spans], dtype=np.int64)
        rng = np.random.default_rng(0)
        chosen = np.sort(rng.choice(ends[-1], min(_NUM_SAMPLED, int(ends[-1])), replace=False))
        place = np.searchsorted(ends, chosen, side="right")
        starts = np.array([one.start for one in spans])
        rows = starts[place] + chosen - (ends[place] - np.array([len(spans[n]) for n in place]))
        sample = as_unit(self.store.vectors[rows].astype(np.float32))
        sample = sample[rng.permutation(len(sample))]
        space = self._text_space()
        return made_queries(sample) if space is None else text_queries(space, sample)

    def _text_space(self) -> EmbeddingSpace | None:
        """The space that makes queries by text, loaded where it is first needed."""
        if self.space is not None and not isinstance(self.space, EmbeddingSpace):
            self.space = self.space(self.store.facts[0].model, self.state.space_id)
        if self.space is not None:
            check_same_space(self.space.space_id, self.state.space_id, "the folder's vectors")
        return self.space


def num_partitions(rows: int) -> int:
    """Clusters of so many vectors."""
    return max(1, min(4096, round(2 * math.sqrt(rows)), rows // 16))
