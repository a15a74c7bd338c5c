"""The index beside a folder of parts (`.index`): what it holds, and the rows that it finds.

`state.json` names the tables, one for each tower, and the parts that they hold; it is written last
and replaced whole. The index gives candidates alone: their cosines are taken from the same vectors
as those of an exact search, and rows of parts that have changed, are gone, or are not in the state
are left out. So an index that is stale, or that a process was killed in, costs time, and never
gives a wrong hit.

N rows, D dimensions.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from terralign.errors import StorageError, shown
from terralign.files import read_text
from terralign.index.ann import (
    EXTRA,
    TABLE_NAME,
    Kind,
    Table,
    Tables,
    folder_bytes,
    is_address,
    is_installed,
)
from terralign.index.planner import Probes, TowerRows
from terralign.index.store import Store

logger = logging.getLogger(__name__)

FOLDER = ".index"
FORMAT = 1

REFINE: dict[Kind, int] = {"flat": 2, "pq": 10}
"""Candidates for each hit, whose cosines are then taken: by vectors of rounded length, or by codes,
the best hits are not just the first."""

Stamp = tuple[str, int, int]
"""Name, size and time of change of a part."""


class Held(BaseModel):
    """A part whose rows are in a table, with the keys from `first` on."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    size: int
    mtime_ns: int
    identity: str
    first: int = Field(ge=0)
    num_rows: int = Field(ge=0)

    @property
    def stamp(self) -> Stamp:
        return self.name, self.size, self.mtime_ns


class TowerIndex(BaseModel):
    """The table of a tower's vectors, and what was measured of its index."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    tower: str
    table: str = Field(pattern=f"^{TABLE_NAME}$")
    version: int = Field(ge=1)
    kind: Kind
    partitions: int = Field(ge=1)
    trained: int = Field(ge=1)
    """Rows that the clusters were made from."""
    parts: tuple[Held, ...]
    """In the order of their keys."""
    measured: tuple[Probes, ...]
    texts: str
    """What the queries were that probes were measured with."""
    num_bytes: int = Field(ge=0)
    seconds: float = Field(ge=0)
    """What its building took."""

    @property
    def num_rows(self) -> int:
        """Rows in the table."""
        return sum(one.num_rows for one in self.parts)


class State(BaseModel):
    """What `state.json` holds."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    format: int
    owner: str = Field(pattern=r"^[0-9a-f]{16}$")
    """In the names of this folder's tables."""
    place: str | None
    """Where the tables are; None: in the folder itself."""
    generation: int = Field(ge=0)
    space_id: str
    dim: int = Field(ge=1)
    recall: float = Field(gt=0, le=1)
    """The recall that was asked for."""
    towers: tuple[TowerIndex, ...]

    def tables(self, folder: Path) -> Tables:
        """The place of the tables, opened."""
        return Tables(self.place or str(folder / FOLDER))


def read_state(folder: Path) -> State | None:
    """The state of a folder's index; None where it has none. `StorageError` for a damaged one."""
    path = folder / FOLDER / "state.json"
    if not path.is_file():
        return None
    text = read_text(path, what="the index", size="json_bytes")
    try:
        state = State.model_validate_json(text)
    except ValidationError as error:
        raise StorageError(f"{shown(path)} is damaged ({error.error_count()} faults)") from error
    if state.format != FORMAT:
        raise StorageError(
            f"{shown(path)} has format {state.format}; this terralign reads {FORMAT}"
        )
    return state


@dataclass(frozen=True, slots=True, eq=False)
class _Tower:
    """A tower's table, joined with a store. Of each part that it holds (p,): `firsts`, its first
    key; `lengths`, its rows, 0 where it is gone or has changed; `shifts`, what is added to a key
    for the row of the store. `parts`: those of the store that are in the index."""

    index: TowerIndex
    firsts: NDArray[np.int64]
    lengths: NDArray[np.int64]
    shifts: NDArray[np.int64]
    parts: frozenset[int]

    def rows(self, keys: NDArray[np.int64]) -> NDArray[np.int64]:
        """(n,) the rows of the store that have these keys, in their order, without those of parts
        that are gone."""
        owner = np.searchsorted(self.firsts, keys, side="right") - 1
        kept = (owner >= 0) & (keys - self.firsts[owner] < self.lengths[owner])
        found: NDArray[np.int64] = keys[kept] + self.shifts[owner[kept]]
        return found


class Approximate:
    """The index of a folder, as far as it is of the rows that a store holds."""

    def __init__(self, folder: Path, state: State, store: Store) -> None:
        self.folder, self.state = folder, state
        numbers = {stamp: number for number, stamp in enumerate(store.stamps)}
        self.towers = {one.tower: _joined(one, numbers, store) for one in state.towers}
        self._open: dict[str, Table] = {}

    @cached_property
    def _tables(self) -> Tables:
        return self.state.tables(self.folder)

    def rows_of(self, tower: str, counts: NDArray[np.int64], mine: Sequence[int]) -> TowerRows:
        """Of the rows of a tower's parts (`mine`), how many the index has; `counts`: (P,) rows of
        each part of the store that meet the conditions."""
        found = self.towers.get(tower)
        rows = int(counts[list(mine)].sum())
        if found is None:
            return TowerRows.without_index(tower, rows)
        return TowerRows(
            tower=tower,
            rows=rows,
            indexed=int(counts[sorted(found.parts)].sum()),
            in_index=found.index.num_rows,
            partitions=found.index.partitions,
            measured=found.index.measured,
        )

    def nearest(
        self, tower: str, query: NDArray[np.float32], *, depth: int, probes: int
    ) -> NDArray[np.int64]:
        """(n,) rows of the store near to a query (D,), ascending: the `depth` nearest in the
        clusters that are looked into, or those of more that are nearest by their codes.
        `StorageError` where the table cannot be read."""
        one = self.towers[tower]
        if tower not in self._open:
            self._open[tower] = self._tables.open(one.index.table)
        keys = self._open[tower].nearest(query, num=depth * REFINE[one.index.kind], probes=probes)
        return np.unique(one.rows(keys))


def _joined(index: TowerIndex, numbers: dict[Stamp, int], store: Store) -> _Tower:
    firsts = np.array([one.first for one in index.parts], dtype=np.int64)
    lengths, shifts, parts = np.zeros_like(firsts), np.zeros_like(firsts), set()
    for place, one in enumerate(index.parts):
        number = numbers.get(one.stamp)
        if number is not None and _is(store, number, one, index.tower):
            lengths[place], shifts[place] = one.num_rows, int(store.firsts[number]) - one.first
            parts.add(number)
    return _Tower(
        index=index, firsts=firsts, lengths=lengths, shifts=shifts, parts=frozenset(parts)
    )


def _is(store: Store, number: int, held: Held, tower: str) -> bool:
    """Whether a part of a store is one that a tower's table holds."""
    facts = store.facts[number]
    same = (facts.identity, facts.tower) == (held.identity, tower)
    return same and len(store.rows_of(number)) == held.num_rows


def open_approximate(folder: Path, store: Store) -> Approximate | None:
    """The index of a folder for searches of a store; None, with a warning where there is one that
    cannot be used, where all rows are to be compared."""
    try:
        state = read_state(folder)
    except StorageError as error:
        logger.warning("%s; all rows are compared. Make it again: terralign index %s", error,
                       shown(folder))  # fmt: skip
        return None
    if state is None:
        return None
    if (state.space_id, state.dim) != (store.facts[0].space_id, store.facts[0].dim):
        logger.warning(
            "the index of %s is of another space than its parts; all rows are compared. Make it "
            "again: terralign index %s", shown(folder), shown(folder),
        )  # fmt: skip
        return None
    if not is_installed():
        logger.warning(
            "the index of %s needs LanceDB; all rows are compared. Install it: pip install "
            "'terralign[%s]'", shown(folder), EXTRA,
        )  # fmt: skip
        return None
    return Approximate(folder, state, store)


def describe_approximate(folder: Path, store: Store) -> dict[str, Any] | None:
    """Plain values of a folder's index, for `terralign info`; None where it has none."""
    state = read_state(folder)
    if state is None:
        return None
    joined = Approximate(folder, state, store)
    every = {one.tower for one in store.facts}
    found: dict[str, Any] = {
        "place": state.place or str(folder / FOLDER),
        "recall asked for": state.recall,
        "bytes": sum(one.num_bytes for one in state.towers),
        "towers": {},
    }
    if state.place is None or not is_address(state.place):
        found["bytes"] = folder_bytes(Path(found["place"]))
    for tower in sorted(every | joined.towers.keys()):
        mine = [n for n, one in enumerate(store.facts) if one.tower == tower]
        rows = sum(len(store.rows_of(n)) for n in mine)
        one = joined.towers.get(tower)
        if one is None:
            found["towers"][tower] = {"rows": rows, "indexed": 0}
            continue
        indexed = sum(len(store.rows_of(n)) for n in one.parts)
        found["towers"][tower] = {
            "rows": rows,
            "indexed": indexed,
            "of parts gone or changed": one.index.num_rows - indexed,
            "kind": one.index.kind,
            "clusters": one.index.partitions,
            "queries": one.index.texts,
            "measured": [
                f"{m.depth} best: {m.probes} probes, recall {m.recall:.3f} of texts (at least "
                f"{m.low:.3f}), {m.recall_like:.3f} of windows, {m.milliseconds:.1f} ms"
                for m in one.index.measured
            ],
        }
    return found
