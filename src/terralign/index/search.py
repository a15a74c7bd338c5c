"""Search over a folder of parts.

Filters first; then the cosine of every row that is left, in float32, block by block on the space's
device; then the best k. Where the folder has an index (`approximate`), and many rows are left, the
cosines are those of its candidates alone (`planner`). N rows, D dimensions, P parts, T towers.
"""

from __future__ import annotations

import datetime as dt
import logging
import math
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from terralign.chips import Window
from terralign.cores import available_cores
from terralign.encoders.answers import Changes, Hit, Hits
from terralign.encoders.space import EmbeddingSpace
from terralign.encoders.tables import Shown, Table
from terralign.encoders.vectors import Footprint, check_same_space
from terralign.encoders.zeroshot import Prompts
from terralign.errors import DataError, StorageError, counted, nearest, shown
from terralign.index.approximate import Approximate, open_approximate
from terralign.index.filters import (
    Day,
    Filters,
    check_apart,
    days_of,
    make_filters,
    outlines_of,
    period_of,
    rows_meeting,
    why_none,
)
from terralign.index.overlaps import without_overlaps
from terralign.index.pairs import MIN_SHARE, best_partners, outline_shares
from terralign.index.parts import PartFacts, window_id
from terralign.index.planner import COLLAPSED, Step, TowerRows, plan_step
from terralign.index.query import Term, Terms, name_of, query_vector, terms_of
from terralign.index.store import NO_TIME, Store, open_store, stamp_of

logger = logging.getLogger(__name__)

MAX_K = 100_000

_BLOCK_BYTES = 512 * 1024
"""Of float32 vectors that are compared at a time on a CPU: they fit into its cache."""

_DEVICE_ROWS = 65_536
"""Rows that are compared at a time on another device."""

_NUM_FOR_MOMENTS = 8192
"""Rows of a tower, evenly spaced, that mean and spread of its cosines are taken from."""

_MIN_SPREAD = 1e-4
"""The least standard deviation of a tower's cosines to a query, as of equal vectors."""

BACKGROUND = (
    *("a satellite image", "an aerial photo", "land", "vegetation", "bare ground", "water"),
    *("forest", "farmland", "grassland", "a town", "clouds", "mountains"),
)
"""Texts that a relevance cut holds the query against."""

_MAX_ALIKE = 0.9
"""Background texts with a greater cosine to the query mean the same, and are left out."""


def open_index(folder: str | Path) -> Index:
    """The index of a folder that `embed_scenes` filled; new parts are read into its cache.

    `DataError` where the folder has no parts or a damaged one, `SpaceMismatchError` where its parts
    are of several spaces.
    """
    folder = Path(folder)
    return Index(folder, open_store(folder))


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class _Ranking:
    """Rows of the index that were compared (None: all), their cosines to the query, and what they
    are ranked by, each (n,)."""

    numbers: NDArray[np.int64] | None
    scores: NDArray[np.float32]
    ranked_by: NDArray[np.float32]

    def number(self, places: NDArray[np.int64]) -> NDArray[np.int64]:
        return places if self.numbers is None else self.numbers[places]

    def __getitem__(self, places: NDArray[Any]) -> _Ranking:
        assert self.numbers is not None
        return _Ranking(
            numbers=self.numbers[places],
            scores=self.scores[places],
            ranked_by=self.ranked_by[places],
        )


_Keep = Callable[[_Ranking, NDArray[np.int64]], NDArray[np.int64]]
"""Of places in a ranking, best first, those that may be hits."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Scores:
    """Rows of an index, ascending, and their cosines to a query, (n,) each."""

    numbers: NDArray[np.int64]
    scores: NDArray[np.float32]


class Index(Shown):
    """Windows of scenes with their vectors, on disk.

    `facts`: of each part. `space_id`: of the space that made all vectors.
    """

    def __init__(self, folder: Path, store: Store) -> None:
        self.folder, self._store = folder, store
        self._approximate: Approximate | None = None
        self._looked_for_index = False
        self._moments: dict[str, tuple[NDArray[np.float64], NDArray[np.float64]]] = {}

    @property
    def facts(self) -> tuple[PartFacts, ...]:
        """What the footers of the parts state, in the order of their rows."""
        return self._store.facts

    @property
    def store(self) -> Store:
        """The rows and vectors on disk."""
        return self._store

    @property
    def space_id(self) -> str:
        """Of the space that made the vectors."""
        return self._store.facts[0].space_id

    @property
    def model(self) -> str:
        """What the space was loaded from."""
        return self._store.facts[0].model

    @property
    def dim(self) -> int:
        """D."""
        return self._store.facts[0].dim

    @cached_property
    def towers(self) -> tuple[str, ...]:
        """The towers that made vectors, sorted."""
        return tuple(sorted({one.tower for one in self._store.facts}))

    @cached_property
    def sensors(self) -> tuple[str, ...]:
        """The sensors of the scenes, sorted."""
        return tuple(sorted({one.sensor for one in self._store.facts}))

    def __len__(self) -> int:
        return len(self._store.rows)

    def _title(self) -> str:
        return (
            f"Index {shown(self.folder)}: {counted(len(self), 'window')} of "
            f"{counted(len({one.source for one in self.facts}), 'scene')}, {self.dim} dimensions, "
            f"towers: {', '.join(self.towers)}, space {self.space_id}"
        )

    def table(self) -> Table:
        """Scene, sensor, tower and number of windows of each part."""
        lengths = np.diff(self._store.firsts)
        return Table.of_rows(
            len(self.facts),
            [
                ("scene", lambda row: self.facts[row].scene),
                ("sensor", lambda row: self.facts[row].sensor),
                ("tower", lambda row: self.facts[row].tower),
                ("windows", lambda row: f"{lengths[row]:,}"),
            ],
        )

    def search(
        self,
        space: EmbeddingSpace,
        query: Terms = None,
        k: int = 10,
        *,
        against: Terms = None,
        like: str | Sequence[str] = (),
        unlike: str | Sequence[str] = (),
        prompts: Prompts | None = None,
        bbox: Sequence[float] | None = None,
        polygon: Any = None,
        start: Any = None,
        end: Any = None,
        max_cloud: float | None = None,
        min_valid: float | None = None,
        sensors: str | Sequence[str] | None = None,
        towers: str | Sequence[str] | None = None,
        collapse: bool = False,
        cut: float | None = None,
        centre: bool | None = None,
        exact: bool | None = None,
    ) -> Hits:
        """The k best windows, best first; the same as `space.search(index, ...)`.

        `query`, `against`: a text, a picture or chip of any sensor (path, `Chip`, `Embeddings`), a
        list of these, each alone or with its weight: `[("a river", 2), "a lake"]`; `against` counts
        half. `like`, `unlike`: ids of windows, as hits have them. `k`: 1 to 100,000; slices of the
        hits are pages.

        `bbox`: west, south, east, north in degrees; `polygon`: shapely, or GeoJSON (mapping, text,
        file); `start`, `end`: days, both included; `max_cloud`, `min_valid`: shares (0-1);
        `sensors`, `towers`: names. `collapse`: of windows that overlap by a quarter or more only
        the best is kept, of whatever date and tower. `cut`: keeps hits for which the query is at
        least so probable (0-1) among background texts. `centre`: rank by how many standard
        deviations the cosine is above the mean of its tower's, so that no tower has an advantage;
        by default where windows of several towers are compared. `score` is the cosine in any case,
        `ranked_by` what decided.

        `exact`: True compares all rows that meet the conditions; False demands the index that
        `terralign index` makes; by default it is used where the folder has one and many rows are
        left. `Hits.how` states what was done, and the recall to expect.

        Raises `SpaceMismatchError` for another space, `DataError` for what makes no sense.
        """
        check_same_space(space.space_id, self.space_id, "the index's vectors")
        _check_k(k)
        if cut is not None and not 0 <= cut <= 1:
            raise DataError(f"cut is {cut!r}; expected a probability from 0 to 1")
        filters = make_filters(
            bbox=bbox, polygon=polygon, start=start, end=end, max_cloud=max_cloud,
            min_valid=min_valid, sensors=sensors, towers=towers,
        )  # fmt: skip
        positive = [*terms_of(space, query, prompts=prompts), *self._windows(like)]
        negative = [*terms_of(space, against, prompts=prompts), *self._windows(unlike)]
        vector = query_vector(positive, negative)
        clock = [time.perf_counter()]
        numbers = rows_meeting(self._store, filters)
        clock.append(time.perf_counter())
        counts = self._counts(numbers)
        centred = len(self._towers_with(counts)) > 1 if centre is None else centre

        def keep(ranking: _Ranking, places: NDArray[np.int64]) -> NDArray[np.int64]:
            return self._kept(space, places, ranking, positive, cut=cut, collapse=collapse)

        def rank(rows: NDArray[np.int64] | None) -> _Ranking:
            return self._rank(space, vector, rows, centred=centred)

        wanted = k * COLLAPSED if collapse else k
        ranking, places, steps = self._best_rows(
            vector, numbers, counts, k, wanted, rank, keep, exact=exact
        )
        clock.append(time.perf_counter())
        hits = self._hits(ranking, places)
        clock.append(time.perf_counter())
        filtering, searching, reading = (round(1e3 * one, 3) for one in np.diff(clock).tolist())
        nothing = {} if hits else {"nothing": self._why_nothing(filters, int(counts.sum()), cut)}
        return Hits(
            query=name_of(positive, negative),
            hits=hits,
            num_searched=int(counts.sum()),
            how={
                "windows": len(self),
                "meeting": int(counts.sum()),
                "ranked_by": "standard deviations" if centred else "cosine",
                "steps": [one.describe() for one in steps],
                "recall": min((one.recall for one in steps), default=1.0),
                "filter_ms": filtering,
                "search_ms": searching,
                "read_ms": reading,
                **nothing,
            },
        )

    def _why_nothing(self, filters: Filters, num_meeting: int, cut: float | None) -> str:
        """Why a search has no hits: no rows that meet the conditions, or the cut."""
        if num_meeting and cut is not None:
            return f"none of {counted(num_meeting, 'window')} passes cut={cut:g}; lower it"
        return why_none(self._store, filters) if len(self) else "the folder has no windows"

    def scores(
        self,
        space: EmbeddingSpace,
        query: Terms = None,
        *,
        against: Terms = None,
        like: str | Sequence[str] = (),
        unlike: str | Sequence[str] = (),
        prompts: Prompts | None = None,
        **conditions: Any,
    ) -> Scores:
        """The score of every window that meets the conditions, for maps of the whole.

        Arguments as for `search`; `conditions`: bbox, polygon, start, end, max_cloud, min_valid,
        sensors, towers.
        """
        check_same_space(space.space_id, self.space_id, "the index's vectors")
        filters = make_filters(**conditions)
        positive = [*terms_of(space, query, prompts=prompts), *self._windows(like)]
        negative = [*terms_of(space, against, prompts=prompts), *self._windows(unlike)]
        numbers = rows_meeting(self._store, filters)
        vector = query_vector(positive, negative)
        scores = cosines(self._store.vectors, vector, numbers, device=space.device)
        every = np.arange(len(self), dtype=np.int64) if numbers is None else numbers
        return Scores(numbers=every, scores=scores)

    def compare(
        self,
        space: EmbeddingSpace,
        query: Terms,
        before: Day | Sequence[Day],
        after: Day | Sequence[Day],
        k: int = 10,
        *,
        against: Terms = None,
        like: str | Sequence[str] = (),
        unlike: str | Sequence[str] = (),
        prompts: Prompts | None = None,
        bbox: Sequence[float] | None = None,
        polygon: Any = None,
        max_cloud: float | None = None,
        min_valid: float | None = None,
        sensors: str | Sequence[str] | None = None,
        towers: str | Sequence[str] | None = None,
        collapse: bool = False,
        centre: bool | None = None,
    ) -> Changes:
        """The k places whose score rose most from one date to another, most first.

        `before`, `after`: a day, or a first and a last one (a pair, or "2022-07-01/2022-07-31");
        swap them for what fell. A window of `after` is compared with the window of `before` by the
        same tower that has the largest area in common with it, at least half of the larger of both;
        of equal ones with the latest. `centre`: rank by the rise in standard deviations of the
        tower's cosines; by default where several towers are compared. Everything else as for
        `search`.

        Raises `DataError` where the periods overlap, or no window lies over another.
        """
        check_same_space(space.space_id, self.space_id, "the index's vectors")
        _check_k(k)
        first, last = (
            make_filters(
                bbox=bbox, polygon=polygon, start=start, end=end, max_cloud=max_cloud,
                min_valid=min_valid, sensors=sensors, towers=towers,
            )
            for start, end in (period_of(before, "before"), period_of(after, "after"))
        )  # fmt: skip
        check_apart(first, last)
        positive = [*terms_of(space, query, prompts=prompts), *self._windows(like)]
        negative = [*terms_of(space, against, prompts=prompts), *self._windows(unlike)]
        vector = query_vector(positive, negative)
        earlier, later = self._pairs(first, last)
        self._check_paired(len(later), first, last)
        centred = len(self.towers_of(later)) > 1 if centre is None else centre
        old = self._rank(space, vector, earlier, centred=centred)
        new = self._rank(space, vector, later, centred=centred)
        rises = _Ranking(
            numbers=later, scores=new.scores - old.scores, ranked_by=new.ranked_by - old.ranked_by
        )

        def keep(places: NDArray[np.int64]) -> NDArray[np.int64]:
            shares = outline_shares(
                np.array(outlines_of(self._store, earlier[places]), dtype=object),
                np.array(outlines_of(self._store, later[places]), dtype=object),
            )
            places = places[shares >= MIN_SHARE]
            return self._kept(space, places, rises, positive, cut=None, collapse=collapse)

        places = _best(rises.ranked_by, k, keep)
        self._check_paired(len(places), first, last)
        return Changes(
            query=name_of(positive, negative),
            hits=tuple(
                _change(hit, partner)
                for hit, partner in zip(
                    self._hits(rises, places), self._hits(old, places), strict=True
                )
            ),
            num_searched=len(later),
        )

    def _pairs(self, first: Filters, last: Filters) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Rows (p,) of the earlier period and of the later one, by the same tower over the same
        place."""
        earlier, later = self._rows_of(first), self._rows_of(last)
        rows = self._store.rows
        pairs = [(np.zeros(0, np.int64), np.zeros(0, np.int64))]
        for tower in self.towers:
            mine = np.array([one.tower == tower for one in self._store.facts])
            old, new = (found[mine[rows["part"][found]]] for found in (earlier, later))
            numbers, partners = best_partners(
                _boxes(rows[new]), _boxes(rows[old]), rows["time"][old]
            )
            pairs.append((old[partners], new[numbers]))
        return np.concatenate([one for one, _ in pairs]), np.concatenate([one for _, one in pairs])

    def _check_paired(self, num: int, first: Filters, last: Filters) -> None:
        """`DataError` unless two periods have pairs."""
        if not num:
            towers = [", ".join(self.towers_of(self._rows_of(one))) for one in (first, last)]
            raise DataError(
                f"{shown(self.folder)}: nothing to compare: no window of {last.period} (towers: "
                f"{towers[1]}) has half of its area in common with one of {first.period} (towers: "
                f"{towers[0]}) by the same tower; embed scenes of one place by one tower (tower=)"
            )

    def _rows_of(self, filters: Filters) -> NDArray[np.int64]:
        """The rows of a period; `DataError` where it has no rows."""
        found = rows_meeting(self._store, filters)
        assert found is not None  # a period is a condition
        if not len(found):
            raise DataError(
                f"{shown(self.folder)}: nothing to compare: no window of {filters.period} meets "
                f"the conditions; it has windows of {days_of(self._store)}"
            )
        return found

    # The index

    @property
    def approximate(self) -> Approximate | None:
        """The index beside the parts; None unless the folder has one that can be used."""
        if not self._looked_for_index:
            self._approximate = open_approximate(self.folder, self._store)
            self._looked_for_index = True
        return self._approximate

    def _why_exact(self, exact: bool | None) -> str:
        """Why no index is asked; "" where one is. `DataError` where it was demanded."""
        if exact:
            return "asked for"
        if self.approximate is None and exact is False:
            raise DataError(
                f"{shown(self.folder)} has no index that can be used (exact=False demands it); "
                f"make it: terralign index {shown(self.folder)}"
            )
        return "" if self.approximate is not None else "no index"

    @cached_property
    def _parts_of(self) -> dict[str, list[int]]:
        """The numbers of each tower's parts."""
        found: dict[str, list[int]] = {name: [] for name in self.towers}
        for number, one in enumerate(self._store.facts):
            found[one.tower].append(number)
        return found

    def _counts(self, numbers: NDArray[np.int64] | None) -> NDArray[np.int64]:
        """(P,) rows of each part, of those numbered (ascending; None: all)."""
        firsts = self._store.firsts
        return np.diff(firsts if numbers is None else np.searchsorted(numbers, firsts))

    def _towers_with(self, counts: NDArray[np.int64]) -> list[str]:
        return [name for name, parts in self._parts_of.items() if counts[parts].any()]

    def _plan(
        self,
        index: Approximate | None,
        counts: NDArray[np.int64],
        wanted: int,
        *,
        no_index: str = "",
    ) -> list[Step]:
        """The way of each tower that has rows. `index`: the one that may be asked."""
        steps = []
        for name in self._towers_with(counts):
            parts = self._parts_of[name]
            if index is None:
                rows = int(counts[parts].sum())
                given = TowerRows.without_index(name, rows)
            else:
                given = index.rows_of(name, counts, parts)
            steps.append(plan_step(given, wanted, no_index=no_index))
        return steps

    def _best_rows(
        self,
        vector: NDArray[np.float32],
        numbers: NDArray[np.int64] | None,
        counts: NDArray[np.int64],
        k: int,
        wanted: int,
        rank: Callable[[NDArray[np.int64] | None], _Ranking],
        keep: _Keep,
        *,
        exact: bool | None,
    ) -> tuple[_Ranking, NDArray[np.int64], list[Step]]:
        """A ranking, the places of the k best in it, and how they were found: through the index
        and the rows that it lacks, or by comparing all. `wanted`: hits that the index is asked for
        at first; more where too few of them are kept."""
        why, is_again = self._why_exact(exact), False
        while True:
            index = None if why else self.approximate  # other threads may open or close it
            steps = self._plan(index, counts, wanted, no_index=why)
            if index is None or all(one.way == "exact" for one in steps):
                ranking = rank(numbers)
                return ranking, _best(ranking.ranked_by, k, partial(keep, ranking)), steps
            try:
                near = self._candidates(index, vector, numbers, steps, rank)
            except StorageError as error:
                # Another process may have changed the index since it was opened.
                self._looked_for_index = is_again
                if is_again or self.approximate is None:
                    logger.warning("%s; all rows are compared", error)
                    self._approximate, why = None, "the index cannot be read"
                is_again = True
                continue
            places = _best(near.ranked_by, k, partial(keep, near))
            if len(places) >= k:
                return near, places, steps
            wanted *= 4

    def _candidates(
        self,
        index: Approximate,
        vector: NDArray[np.float32],
        numbers: NDArray[np.int64] | None,
        steps: Sequence[Step],
        rank: Callable[[NDArray[np.int64] | None], _Ranking],
    ) -> _Ranking:
        """The rows that may be among the best: of each tower those that are compared one by one,
        and those that the index gives. Below the last hit of an index its better rows may be
        missing, so that nothing that ranks lower is kept."""
        found, horizon, one_by_one = [], -math.inf, []
        for step in steps:
            parts = self._parts_of[step.tower]
            if step.way == "index":
                near = rank(index.nearest(step.tower, vector, depth=step.depth, probes=step.probes))
                last = min(step.depth, len(near.ranked_by))
                horizon = max(
                    horizon, float(-np.partition(-near.ranked_by, last - 1)[last - 1])
                ) if last else math.inf  # fmt: skip
                assert near.numbers is not None
                found.append(near if numbers is None else near[_among(near.numbers, numbers)])
                indexed = index.towers[step.tower].parts
                parts = [one for one in parts if one not in indexed]
            one_by_one += parts
        rows = self._rows_of_parts(one_by_one, numbers)
        if len(rows):
            found.append(rank(rows))
        together = _Ranking(
            numbers=np.concatenate([one.numbers for one in found if one.numbers is not None]),
            scores=np.concatenate([one.scores for one in found]),
            ranked_by=np.concatenate([one.ranked_by for one in found]),
        )
        assert together.numbers is not None
        kept = np.flatnonzero(together.ranked_by >= horizon)
        return together[kept[np.argsort(together.numbers[kept])]]

    def _rows_of_parts(
        self, parts: Sequence[int], numbers: NDArray[np.int64] | None
    ) -> NDArray[np.int64]:
        """The rows of some parts, of those numbered (ascending; None: all)."""
        firsts = self._store.firsts
        if numbers is None:
            spans = [np.arange(firsts[one], firsts[one + 1]) for one in sorted(parts)]
        else:
            places = np.searchsorted(numbers, firsts)
            spans = [numbers[places[one] : places[one + 1]] for one in sorted(parts)]
        return np.concatenate([np.zeros(0, np.int64), *spans])

    # The parts of a search

    def _windows(self, ids: str | Sequence[str]) -> list[Term]:
        """Windows of the index, by id, as terms."""
        found = []
        for name in [ids] if isinstance(ids, str) else ids:
            number = self.row_of(name)
            vector = self._store.vectors[number].astype(np.float32)
            tower = self._store.facts[self._store.rows["part"][number]].tower
            vector /= max(1e-12, float(np.linalg.norm(vector)))
            found.append(Term(name=name, vector=vector, weight=1.0, tower=tower))
        return found

    @cached_property
    def _parts_by_identity(self) -> dict[str, int]:
        return {one.identity: number for number, one in enumerate(self._store.facts)}

    def row_of(self, window_id: str) -> int:
        """The row of a window's id; `DataError` where the index has no such window."""
        identity, _, corner = str(window_id).partition("-")
        part = self._parts_by_identity.get(identity)
        row, _, column = corner.partition("-")
        if part is not None and row.isdecimal() and column.isdecimal():
            first, end = (int(one) for one in self._store.firsts[part : part + 2])
            corners = self._store.rows["window"][first:end, :2]
            found = np.flatnonzero((corners == (int(row), int(column))).all(1))
            if len(found):
                return int(first) + int(found[0])
        raise DataError(
            f"no window {str(window_id)[:100]!r} in {shown(self.folder)}; give an id as hits have "
            "it" + (f": {nearest(identity, self._parts_by_identity)}" if part is None else "")
        )

    def window_of(self, row: int) -> Window:
        """The pixels of its scene that a row is of."""
        top, left, height, width = (int(one) for one in self._store.rows["window"][row])
        return Window(row=top, column=left, height=height, width=width)

    def facts_of(self, window_id: str) -> PartFacts:
        """What the part of a window states, by the window's id."""
        return self._store.facts[int(self._store.rows["part"][self.row_of(window_id)])]

    def towers_of(self, numbers: NDArray[np.int64] | None) -> list[str]:
        """The towers that made the vectors of rows (None: of all), sorted."""
        if numbers is None:
            return list(self.towers)
        parts = np.unique(self._store.rows["part"][numbers])
        return sorted({self._store.facts[part].tower for part in parts.tolist()})

    def moments_of(self, tower: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """(D,) mean and (D, D) covariance of a tower's vectors, from up to 8,192 of them, evenly
        spaced: from these follow mean and spread of its cosines to any query."""
        if tower not in self._moments:
            mine = np.array([one.tower == tower for one in self._store.facts])
            numbers = np.flatnonzero(mine[self._store.rows["part"]])
            chosen = numbers[:: max(1, len(numbers) // _NUM_FOR_MOMENTS)]
            sample = self._store.vectors[chosen].astype(np.float64)
            mean = sample.mean(0) if len(sample) else np.zeros(self.dim)
            away = sample - mean
            self._moments[tower] = (mean, away.T @ away / max(1, len(sample)))
        return self._moments[tower]

    def _rank(
        self,
        space: EmbeddingSpace,
        vector: NDArray[np.float32],
        numbers: NDArray[np.int64] | None,
        *,
        centred: bool,
    ) -> _Ranking:
        scores = cosines(self._store.vectors, vector, numbers, device=space.device)
        ranked_by = scores
        if centred:
            usual = {}
            for tower in self.towers:
                mean, covariance = self.moments_of(tower)
                spread = math.sqrt(max(0.0, float(vector @ covariance @ vector)))
                usual[tower] = (float(vector @ mean), max(spread, _MIN_SPREAD))
            of_part = np.array([usual[one.tower] for one in self._store.facts], dtype=np.float32)
            parts = self._store.rows["part"]
            of_row = of_part[parts if numbers is None else parts[numbers]]
            ranked_by = (scores - of_row[:, 0]) / of_row[:, 1]
        return _Ranking(numbers=numbers, scores=scores, ranked_by=ranked_by)

    def _kept(
        self,
        space: EmbeddingSpace,
        places: NDArray[np.int64],
        ranking: _Ranking,
        positive: Sequence[Term],
        *,
        cut: float | None,
        collapse: bool,
    ) -> NDArray[np.int64]:
        """Those places, best first, that pass the cut and do not overlap with better ones."""
        if cut is not None and len(places):
            places = places[self._probabilities(space, ranking, places, positive) >= cut]
        if collapse and len(places):
            rows = self._store.rows[ranking.number(places)]
            places = places[without_overlaps(_boxes(rows))]
        return places

    def _probabilities(
        self,
        space: EmbeddingSpace,
        ranking: _Ranking,
        places: NDArray[np.int64],
        positive: Sequence[Term],
    ) -> NDArray[np.float64]:
        """(n,) of the query among the background texts, by softmax of the logits."""
        texts = space.encode_text(BACKGROUND).numpy()
        for one in positive:
            if one.tower is None:
                texts = texts[texts @ one.vector < _MAX_ALIKE]
        vectors = self._store.vectors[ranking.number(places)].astype(np.float32)
        logits = np.concatenate([ranking.scores[places][:, None], vectors @ texts.T], axis=1)
        logits = logits.astype(np.float64) * space.clip.logit_scale
        powers = np.exp(logits - logits.max(1, keepdims=True))
        chances: NDArray[np.float64] = powers[:, 0] / powers.sum(1)
        return chances

    def _hits(self, ranking: _Ranking, places: NDArray[np.int64]) -> tuple[Hit, ...]:
        numbers = ranking.number(places)
        rows = self._store.rows[numbers]
        self._check_there(np.unique(rows["part"]))
        cells = self._store.outlines["cell"][numbers].tolist()
        shapes = outlines_of(self._store, numbers)
        found = []
        for rank, (place, row, shape, cell) in enumerate(
            zip(places.tolist(), rows, shapes, cells, strict=True), start=1
        ):
            facts = self._store.facts[row["part"]]
            place_of = dict(zip(_WINDOW, row["window"].tolist(), strict=True))
            window = Window(**place_of)
            found.append(
                Hit(
                    rank=rank,
                    key=window_id(facts.identity, window),
                    score=float(ranking.scores[place]),
                    place=Footprint(
                        source=facts.source, window=window, shape=shape, datetime=_time_of(row)
                    ),
                    tower=facts.tower,
                    facts=_facts_of(facts, row, cell.decode(), float(ranking.ranked_by[place])),
                )
            )
        return tuple(found)

    def _check_there(self, parts: NDArray[np.int32]) -> None:
        """`DataError` where parts of hits changed, or were removed, since the index was opened."""
        for part in parts.tolist():
            path = self._store.paths[part]
            try:
                is_same = stamp_of(path) == self._store.stamps[part]
            except OSError:
                is_same = False
            if not is_same:
                raise DataError(f"{shown(path)} is gone or has changed; open the index again")

    def places(self) -> Hits:
        """Every window in the order of the rows, as hits without a score: for maps of the whole."""
        every = np.arange(len(self), dtype=np.int64)
        nothing = np.zeros(len(self), dtype=np.float32)
        ranking = _Ranking(numbers=None, scores=nothing, ranked_by=nothing)
        return Hits(query="", hits=self._hits(ranking, every), num_searched=0)


_WINDOW = ("row", "column", "height", "width")


def _time_of(row: Any) -> dt.datetime | None:
    microseconds = int(row["time"])
    if microseconds == NO_TIME:
        return None
    return dt.datetime(1970, 1, 1, tzinfo=dt.UTC) + dt.timedelta(microseconds=microseconds)


def _facts_of(facts: PartFacts, row: Any, cell: str, ranked_by: float) -> dict[str, Any]:
    cloud = float(row["cloud"])
    return {
        "scene": facts.scene,
        "sensor": facts.sensor,
        "valid_share": round(float(row["valid"]), 4),
        "cloud_share": None if math.isnan(cloud) else round(cloud, 4),
        "cell": cell or None,
        "ranked_by": round(ranked_by, 6),
    }


def _among(rows: NDArray[np.int64], numbers: NDArray[np.int64]) -> NDArray[np.bool_]:
    """(n,) whether rows are among those numbered, ascending."""
    if not len(numbers):
        return np.zeros(len(rows), dtype=bool)
    places = np.searchsorted(numbers, rows).clip(max=len(numbers) - 1)
    found: NDArray[np.bool_] = numbers[places] == rows
    return found


def _check_k(k: Any) -> None:
    if isinstance(k, bool) or not isinstance(k, int | np.integer) or not 1 <= k <= MAX_K:
        raise DataError(f"k must be a whole number, 1 to {MAX_K:,}, not {k!r}")


def _boxes(rows: NDArray[Any]) -> NDArray[np.float64]:
    """(n, 4) west, south, east, north of rows."""
    return np.stack([rows[name] for name in ("west", "south", "east", "north")], axis=1)


def _change(new: Hit, old: Hit) -> Hit:
    """A window, with what is known of the earlier one over the same place."""
    when = old.place.datetime
    return replace(
        new,
        before=old,
        facts={
            **new.facts,
            "score_before": round(old.score, 6),
            "score_after": round(old.score + new.score, 6),
            "key_before": old.key,
            "scene_before": old.facts["scene"],
            "source_before": old.place.source,
            "datetime_before": None if when is None else when.isoformat(),
        },
    )


def _best(ranked_by: NDArray[np.float32], k: int, keep: Any) -> NDArray[np.int64]:
    """Places of the k greatest numbers that `keep` leaves, greatest first, equal ones in order."""
    num = len(ranked_by)
    wanted = min(num, max(k, 16))
    while True:
        if wanted < num:
            chosen = np.argpartition(-ranked_by, wanted - 1)[:wanted]
            # Equal numbers at the end: all of them, so that the first ones can be taken.
            chosen = np.flatnonzero(ranked_by >= ranked_by[chosen].min())
        else:
            chosen = np.arange(num)
        order = chosen[np.lexsort((chosen, -ranked_by[chosen]))]
        found: NDArray[np.int64] = keep(order)
        if len(found) >= k or len(chosen) == num:
            return found[:k]
        wanted = min(num, 4 * wanted)


def cosines(
    vectors: NDArray[Any],
    query: NDArray[np.float32],
    numbers: NDArray[np.int64] | None,
    *,
    device: torch.device | str = "cpu",
) -> NDArray[np.float32]:
    """(n,) float32 products of a query (D,) with rows of vectors (N, D), all or those numbered.

    Vectors are turned into float32 block by block, so that memory does not grow with their number.
    """
    device = torch.device(device)
    num = len(vectors) if numbers is None else len(numbers)
    found = torch.empty(num, dtype=torch.float32, device="cpu")
    block = _DEVICE_ROWS
    if device.type == "cpu":
        block = max(16, _BLOCK_BYTES // (4 * vectors.shape[1]))
    wanted = torch.from_numpy(np.ascontiguousarray(query)).to(device)

    def compare(span: tuple[int, int]) -> None:
        buffer = torch.empty(block, vectors.shape[1], dtype=torch.float32, device=device)
        for start in range(*span, block):
            end = min(span[1], start + block)
            rows = vectors[start:end] if numbers is None else _rows(vectors, numbers[start:end])
            numbers_in = buffer[: end - start]
            numbers_in.copy_(torch.from_numpy(rows))
            found[start:end] = numbers_in @ wanted

    workers = available_cores() if device.type == "cpu" else 1
    share = max(block, math.ceil(num / workers / block) * block)
    spans = [(start, min(num, start + share)) for start in range(0, num, share)]
    with torch.inference_mode(), ThreadPoolExecutor(max(1, len(spans))) as pool:
        list(pool.map(compare, spans))
    return found.numpy()


def _rows(vectors: NDArray[Any], numbers: NDArray[np.int64]) -> NDArray[Any]:
    """The vectors of rows (n,), not copied where they follow each other."""
    first, last = int(numbers[0]), int(numbers[-1])
    if last - first == len(numbers) - 1 and (np.diff(numbers) == 1).all():
        return vectors[first : last + 1]
    found: NDArray[Any] = vectors[numbers]
    return found


def describe_index(index: Index) -> dict[str, Any]:
    """Plain values of an index, for `--json`."""
    times = index._store.rows["time"]
    known = times[times != np.iinfo(np.int64).min]
    days = [
        (dt.datetime(1970, 1, 1, tzinfo=dt.UTC) + dt.timedelta(microseconds=int(one))).isoformat()
        for one in ((known.min(), known.max()) if len(known) else ())
    ]
    return {
        "folder": str(index.folder),
        "windows": len(index),
        "parts": len(index.facts),
        "dimensions": index.dim,
        "space_id": index.space_id,
        "towers": list(index.towers),
        "sensors": list(index.sensors),
        "dates": days,
    }
