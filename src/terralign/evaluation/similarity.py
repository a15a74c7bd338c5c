"""Cosine similarities of two sets of vectors: exact, in tiles, in bounded memory.

Q queries, G gallery items, D embedding dimensions, B a block's rows.

Unit vectors are rounded to multiples of 2**-26, float32's own resolution between 1/4 and 1/2. A
product of two entries is then a multiple of 2**-52, and no partial sum exceeds 1 by more than
rounding, so float64 holds every step of a dot product exactly: equal vectors tie exactly, and no
result depends on the block size, on the order of the gallery or on the order in which a BLAS adds.

Products in float32 take less than half the time. `Similarities.count` and `nearest` ask them first:
they are off by no more than a proven bound, so they decide all comparisons but the close ones,
which float64 decides. The answers are those of float64 throughout.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from terralign.errors import DataError
from terralign.evaluation.bootstrap import Floats

ROW_CHUNK = 4096
"""Rows normalised at once."""

GRID = 2.0**26
"""Entries of unit vectors are multiples of 1 / GRID."""

BLOCK = 2048
"""Rows of a block; a tile of similarities takes BLOCK * BLOCK * 8 bytes."""

MOST_OPEN = 1 / 32
"""Share of a tile's pairs above which all are computed in float64: one by one they cost more."""

MOST_HELD = 1 / 64
"""The same for the share of the gallery held for a query; these are normalised one by one too."""

PAIRS_AT_ONCE = 128
"""Pairs computed one by one are gathered in parts that fit a core's cache."""

ROUNDING = 2.0**-24
"""Largest relative error of rounding a number to float32."""


Indices = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, slots=True)
class GalleryPenalty:
    """What is taken off the cosine to each gallery item before ranking; see `hubness.py`.

    `values`: (G,) float64, finite, in units of cosine. `queries`: (Q,) bool, True for the queries
    whose cosines are penalised; None: all of them.
    """

    values: Floats
    queries: NDArray[np.bool_] | None = None

    def of(self, queries: Indices, items: Indices) -> Floats:
        """What each of `queries` loses on its own one of `items`; both broadcast."""
        values = self.values[items]
        return values if self.queries is None else np.where(self.queries[queries], values, 0.0)


class Similarities:
    """Exact cosine similarities of two checked sets of vectors, tile by tile.

    `query`: (Q, D), `gallery`: (G, D), any floating-point vectors; they are L2-normalised here.
    `exclude_self`: query i and gallery item i are the same item, which no query may find. With a
    `penalty` every similarity is the penalised one. Raises `DataError`.
    """

    def __init__(
        self,
        query: Floats,
        gallery: Floats,
        *,
        exclude_self: bool = False,
        block: int = BLOCK,
        penalty: GalleryPenalty | None = None,
    ) -> None:
        if block < 1:
            raise DataError(f"block is {block}; expected at least 1")
        self.query, self.gallery = query, gallery
        self.query_norms = row_norms(query, name="query")
        self.gallery_norms = row_norms(gallery, name="gallery")
        self.exclude_self, self.block, self.penalty = exclude_self, block, penalty
        if query.shape[1] != gallery.shape[1]:
            raise DataError(
                f"query has {query.shape[1]} dimensions, gallery has {gallery.shape[1]}; "
                "both must come from one embedding space"
            )
        if exclude_self and len(query) != len(gallery):
            raise DataError(
                f"exclude_self needs query and gallery to be the same items; there are "
                f"{len(query)} queries and {len(gallery)} gallery items"
            )
        if self.num_candidates < 1:
            raise DataError("exclude_self leaves no gallery item to find; give at least two items")
        if penalty is not None:
            _check_penalty(penalty, len(query), len(gallery))
        self.error_bound = _error_bound(query.shape[1], penalty)

    @property
    def num_candidates(self) -> int:
        """Gallery items that a query may find."""
        return len(self.gallery) - self.exclude_self

    def query_slices(self) -> Iterator[slice]:
        """The queries in blocks."""
        return row_slices(len(self.query), self.block)

    def unit_queries(self, rows: slice | Indices) -> Floats:
        """Unit vectors of these queries, (B, D) float64 on the grid."""
        return _unit(self.query[rows], self.query_norms[rows])

    def unit_gallery(self, rows: slice | Indices) -> Floats:
        """Unit vectors of these gallery items, (B, D) float64 on the grid."""
        return _unit(self.gallery[rows], self.gallery_norms[rows])

    def pairs(self, rows: slice, units: Floats, target: Indices) -> Floats:
        """Similarity (B, 1) of each query of `rows` to its own gallery item `target` (B,)."""
        similarity = np.einsum("id,id->i", units, self.unit_gallery(target))
        return self._ranked_by(similarity, _indices(rows), target)[:, None]

    def tiles(self, rows: slice, units: Floats) -> Iterator[tuple[slice, Floats]]:
        """For queries `rows`: gallery slices with similarities (B, B'), -inf at excluded items."""
        return self._tiles(_indices(rows), units)

    def count(self, rows: slice, units: Floats, level: Floats) -> tuple[Indices, Indices]:
        """How many items are above each query's `level` (B,) and how many at it, (B,) each."""
        queries = _indices(rows)
        above, tied = np.zeros_like(queries), np.zeros_like(queries)
        for columns, gallery, rough in self._rough_tiles(queries, units):
            clear = rough > _float32_beyond(level + self.error_bound, np.inf)
            open_ = clear != (rough >= _float32_beyond(level - self.error_bound, -np.inf))
            if np.count_nonzero(open_) > MOST_OPEN * open_.size:
                similarity = self._tile(queries, columns, units, gallery)
                above += np.count_nonzero(similarity > level[:, None], axis=1)
                tied += np.count_nonzero(similarity == level[:, None], axis=1)
                continue
            own, place = np.divmod(np.flatnonzero(open_), open_.shape[1])
            close: Floats = np.empty(len(own))
            for part in row_slices(len(own), PAIRS_AT_ONCE):
                close[part] = np.einsum("id,id->i", units[own[part]], gallery[place[part]])
            close = self._ranked_by(close, queries[own], place + columns.start)
            above += np.count_nonzero(clear, axis=1)
            above += np.bincount(own[close > level[own]], minlength=len(queries))
            tied += np.bincount(own[close == level[own]], minlength=len(queries))
        return above, tied

    def nearest(self, rows: slice, units: Floats, depth: int) -> Iterator[Nearest]:
        """The nearest items of queries `rows`, in parts: each query is in one of them.

        Where so many items tie that they could not be held, or `depth` is a large share of the
        gallery, a part is a few queries with all items.
        """
        depth = min(depth, self.num_candidates)
        queries = _indices(rows)
        most = min(int(MOST_HELD * len(self.gallery)), self.block)
        wide = np.ones(len(queries), dtype=np.bool_)
        if depth <= most and np.isfinite(self.error_bound):
            items, found, wide = self._roughly_nearest(queries, units, depth, most)
            own = np.flatnonzero(~wide)
            if own.size:
                items = items[own]
                similarity = self._similarity_to(queries[own], units[own], items)
                similarity[~found[own]] = -np.inf
                yield Nearest(queries=queries[own], items=items, similarity=similarity, depth=depth)
        own = np.flatnonzero(wide)
        for part in row_slices(len(own), max(1, self.block**2 // len(self.gallery))):
            tiles = self._tiles(queries[own[part]], units[own[part]])
            similarity = np.concatenate([tile for _, tile in tiles], axis=1)
            items = np.broadcast_to(np.arange(len(self.gallery)), similarity.shape)
            yield Nearest(
                queries=queries[own[part]], items=items, similarity=similarity, depth=depth
            )

    def top(self, rows: slice, units: Floats, depth: int) -> TopValues:
        """The `depth` highest similarities of each query of `rows`."""
        depth = min(depth, self.num_candidates)
        values = np.empty((len(units), depth))
        tied = np.empty(len(units), dtype=np.int64)
        for near in self.nearest(rows, units, depth):
            own = near.top
            values[near.queries - rows.start] = own.values
            tied[near.queries - rows.start] = own.tied
        return TopValues(values=values, tied=tied)

    def _tiles(self, queries: Indices, units: Floats) -> Iterator[tuple[slice, Floats]]:
        for columns in row_slices(len(self.gallery), self.block):
            yield columns, self._tile(queries, columns, units, self.unit_gallery(columns))

    def _rough_tiles(
        self, queries: Indices, units: Floats
    ) -> Iterator[tuple[slice, Floats, Floats]]:
        """Gallery slices, their unit vectors in float64, and similarities (B, B') in float32.

        These are off by at most `error_bound`.
        """
        rough_units = units.astype(np.float32)
        for columns in row_slices(len(self.gallery), self.block):
            gallery = self.unit_gallery(columns)
            rough = self._tile(queries, columns, rough_units, gallery.astype(np.float32))
            yield columns, gallery, rough

    def _tile(self, queries: Indices, columns: slice, units: Floats, gallery: Floats) -> Floats:
        """Similarities (B, B') in the dtype of the unit vectors."""
        return self._ranked_by(units @ gallery.T, queries[:, None], _indices(columns)[None])

    def _ranked_by(self, cosines: Floats, queries: Indices, items: Indices) -> Floats:
        """The cosines of these pairs, less the penalty, or -inf; changed in place."""
        if self.penalty is not None:
            with np.errstate(over="ignore"):  # where float32 overflows, `error_bound` is infinite
                cosines -= self.penalty.of(queries, items).astype(cosines.dtype)
        if self.exclude_self:
            cosines[queries == items] = -np.inf
        return cosines

    def _similarity_to(self, queries: Indices, units: Floats, items: Indices) -> Floats:
        """Similarities (B, W) float64 of each query to its own items (B, W)."""
        similarity = np.empty(items.shape)
        for part in row_slices(len(items), max(1, PAIRS_AT_ONCE // items.shape[1])):
            gallery = self.unit_gallery(items[part].ravel()).reshape(*items[part].shape, -1)
            similarity[part] = (gallery @ units[part, :, None])[:, :, 0]
        return self._ranked_by(similarity, queries[:, None], items)

    def _roughly_nearest(
        self, queries: Indices, units: Floats, depth: int, most: int
    ) -> tuple[Indices, NDArray[np.bool_], NDArray[np.bool_]]:
        """Items (B, W), in gallery order, that hold all which may reach the `depth`-th similarity.

        Also (B, W) whether there is an item in the place, and (B,) True for queries that have more
        than `most` such items, which are not all held.

        `depth` items seen have a float32 similarity of `lowest` or more, so the true one to reach
        is at least `lowest` less the bound, and nothing reaches it that float32 puts below `edge`,
        `lowest` less twice the bound.
        """
        rough = np.empty((len(queries), 0), dtype=np.float32)
        items = np.empty((len(queries), 0), dtype=np.int64)
        wide = np.zeros(len(queries), dtype=np.bool_)
        edge = np.full((len(queries), 1), -np.inf, dtype=np.float32)
        for columns, _, tile in self._rough_tiles(queries, units):
            if columns.start == 0:
                edge = self._edge(tile, depth)
            own, place, num_places = _places(tile >= edge)
            new = np.full((len(queries), num_places.max()), -np.inf, dtype=np.float32)
            new_items = np.zeros(new.shape, dtype=np.int64)
            column = np.arange(len(own)) - np.repeat(num_places.cumsum() - num_places, num_places)
            new[own, column] = tile[own, place]
            new_items[own, column] = place + columns.start
            rough = np.concatenate([rough, new], axis=1)
            items = np.concatenate([items, new_items], axis=1)
            edge = self._edge(rough, depth)
            counts = np.count_nonzero(rough >= edge, axis=1)
            wide |= counts > most
            edge[wide] = np.inf
            width = max(depth, counts[~wide].max(initial=0))
            if width < rough.shape[1]:
                best = np.argpartition(rough, rough.shape[1] - width, axis=1)[:, -width:]
                rough = np.take_along_axis(rough, best, axis=1)
                items = np.take_along_axis(items, best, axis=1)
        order = np.argsort(items, axis=1)
        found = np.take_along_axis(rough, order, axis=1) > -np.inf
        return np.take_along_axis(items, order, axis=1), found, wide

    def _edge(self, rough: Floats, depth: int) -> Floats:
        """(B, 1) float32 below which no item of `rough` (B, W) or a later one is needed."""
        num = rough.shape[1]
        if num < depth:
            return np.full((len(rough), 1), -np.inf, dtype=np.float32)
        lowest = np.partition(rough, num - depth, axis=1)[:, num - depth]
        return _float32_beyond(lowest.astype(np.float64) - 2 * self.error_bound, -np.inf)


@dataclass(frozen=True, kw_only=True, slots=True)
class TopValues:
    """The highest similarities of B queries.

    `values`: (B, depth), unordered. `tied`: (B,) how many gallery items share the lowest of them,
    whether their values are held or not.
    """

    values: Floats
    tied: Indices

    @property
    def lowest(self) -> Floats:
        """The lowest value held, (B,)."""
        return np.asarray(self.values.min(axis=1))

    @property
    def descending(self) -> Floats:
        """The values from the highest to the lowest, (B, depth)."""
        return np.asarray(-np.sort(-self.values, axis=1))


@dataclass(frozen=True, kw_only=True, slots=True)
class Nearest:
    """The gallery items with the `depth` highest similarities to each of B queries.

    `queries`: (B,) indices. `items`: (B, W) indices in rising order, `similarity`: (B, W) float64,
    -inf where a place is empty. All items that tie for the last of the `depth` are there, and there
    may be lower ones.
    """

    queries: Indices
    items: Indices
    similarity: Floats
    depth: int

    @property
    def top(self) -> TopValues:
        """The similarities of the `depth` items."""
        first = self.similarity.shape[1] - self.depth
        values = np.partition(self.similarity, first, axis=1)[:, first:]
        tied = np.count_nonzero(self.similarity == values.min(axis=1, keepdims=True), axis=1)
        return TopValues(values=values, tied=tied)


def row_slices(length: int, step: int = ROW_CHUNK) -> Iterator[slice]:
    """0 to `length` in slices of at most `step`."""
    for start in range(0, length, step):
        yield slice(start, min(start + step, length))


def row_norms(vectors: Floats, *, name: str) -> Floats:
    """L2 norms (N,) float64 of vectors (N, D); `DataError` where one is zero or not finite.

    A row's norm does not depend on which rows stand beside it.
    """
    if vectors.ndim != 2 or not np.issubdtype(vectors.dtype, np.floating):
        raise DataError(
            f"{name} is {vectors.shape} {vectors.dtype}; expected (N, D) floating-point vectors"
        )
    if not vectors.size:
        raise DataError(f"{name} is empty ({vectors.shape}); there is nothing to measure")
    norms = np.empty(len(vectors))
    for rows in row_slices(len(vectors)):
        chunk = vectors[rows].astype(np.float64, order="C")
        with np.errstate(over="ignore", invalid="ignore"):
            norms[rows] = np.sqrt(np.square(chunk).sum(axis=1))
    bad = np.flatnonzero(~np.isfinite(norms) | (norms == 0))
    if bad.size:
        what = "all zeros" if norms[bad[0]] == 0 else "not finite"
        raise DataError(f"row {bad[0]} of {name} is {what} ({bad.size} such rows of {len(norms)})")
    return norms


def _check_penalty(penalty: GalleryPenalty, num_queries: int, num_gallery: int) -> None:
    values, queries = penalty.values, penalty.queries
    if values.shape != (num_gallery,) or not np.isfinite(values).all():
        raise DataError(
            f"the penalty's values are {values.shape} {values.dtype}; expected ({num_gallery},) "
            "finite numbers, one per gallery item"
        )
    if queries is not None and (queries.shape != (num_queries,) or queries.dtype != np.bool_):
        raise DataError(
            f"the penalty's queries are {queries.shape} {queries.dtype}; expected "
            f"({num_queries},) bool, one per query"
        )


def _error_bound(num_dims: int, penalty: GalleryPenalty | None) -> float:
    """How far a similarity computed in float32 may be from the float64 one.

    In any order of adding, with or without fused multiply-add, a dot product of D terms whose
    factors were rounded too is off by at most gamma(D + 2) |x| |y|, gamma(n) = n u / (1 - n u)
    (Higham, Accuracy and Stability of Numerical Algorithms, section 3.1); nothing underflows, for
    entries are 0 or at least 1 / GRID. 1.001 covers that |x| |y| may exceed 1 by some
    sqrt(D) / GRID. A penalty is rounded, and so is the difference: less than 4 (1 + largest) u.
    """
    terms = (num_dims + 2) * ROUNDING
    largest = 0.0 if penalty is None else float(np.abs(penalty.values).max())
    if terms > 0.5 or largest > 2.0**64:
        return np.inf  # nothing is decided in float32
    bound = 1.001 * terms / (1 - terms)
    return bound if penalty is None else bound + 4 * (1 + largest) * ROUNDING


def _float32_beyond(values: Floats, towards: float) -> Floats:
    """Float32 numbers (B, 1) on the side `towards`, an infinity, of float64 ones (B,)."""
    return np.asarray(np.nextafter(values.astype(np.float32), np.float32(towards))[:, None])


def _indices(rows: slice) -> Indices:
    return np.arange(rows.start, rows.stop, dtype=np.int64)


def _places(mask: NDArray[np.bool_]) -> tuple[Indices, Indices, Indices]:
    """Row and column of each True, row by row, and how many there are in each row."""
    row, column = np.divmod(np.flatnonzero(mask), mask.shape[1])
    return row, column, np.bincount(row, minlength=len(mask))


def _unit(vectors: Floats, norms: Floats) -> Floats:
    unit = np.asarray(vectors / norms[:, None])
    unit *= GRID
    np.rint(unit, out=unit)
    unit /= GRID
    return unit.astype(np.float64, copy=False)
