"""Cosine similarities of two sets of vectors: exact, in tiles, in bounded memory.

Q queries, G gallery items, D embedding dimensions, B a block's rows.

Unit vectors are rounded to multiples of 2**-26, float32's own resolution between 1/4 and 1/2. A
product of two entries is then a multiple of 2**-52, and no partial sum exceeds 1 by more than
rounding, so float64 holds every step of a dot product exactly: equal vectors tie exactly, and no
result depends on the block size, on the order of the gallery or on the order in which a BLAS adds.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from terralign.errors import DataError
from terralign.evaluate.metrics import Floats, row_norms, row_slices

GRID = 2.0**26
"""Entries of unit vectors are multiples of 1 / GRID."""

BLOCK = 2048
"""Rows of a block; a tile of similarities takes BLOCK * BLOCK * 8 bytes."""


@dataclass(frozen=True, kw_only=True, slots=True)
class GalleryPenalty:
    """What is taken off the cosine to each gallery item before ranking; see `hubness.py`.

    `values`: (G,) float64, finite, in units of cosine. `queries`: (Q,) bool, True for the queries
    whose cosines are penalised; None: all of them.
    """

    values: Floats
    queries: NDArray[np.bool_] | None = None

    def of(self, rows: slice, items: NDArray[np.int64]) -> Floats:
        """(B,) what each query of `rows` loses on its own one of `items` (B,)."""
        values = self.values[items]
        return values if self.queries is None else np.where(self.queries[rows], values, 0.0)

    def tile(self, rows: slice, columns: slice) -> Floats:
        """(B or 1, B') what queries `rows` lose on gallery items `columns`."""
        values = self.values[None, columns]
        return values if self.queries is None else np.where(self.queries[rows, None], values, 0.0)


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

    @property
    def num_candidates(self) -> int:
        """Gallery items that a query may find."""
        return len(self.gallery) - self.exclude_self

    def query_slices(self) -> Iterator[slice]:
        """The queries in blocks."""
        return row_slices(len(self.query), self.block)

    def unit_queries(self, rows: slice) -> Floats:
        """Unit vectors of these queries, (B, D) float64 on the grid."""
        return _unit(self.query[rows], self.query_norms[rows])

    def unit_gallery(self, rows: slice | NDArray[np.int64]) -> Floats:
        """Unit vectors of these gallery items, (B, D) float64 on the grid."""
        return _unit(self.gallery[rows], self.gallery_norms[rows])

    def pairs(self, rows: slice, units: Floats, target: NDArray[np.int64]) -> Floats:
        """Similarity (B, 1) of each query of `rows` to its own gallery item `target` (B,)."""
        similarity = (units * self.unit_gallery(target)).sum(axis=1, keepdims=True)
        if self.penalty is not None:
            similarity -= self.penalty.of(rows, target)[:, None]
        return np.asarray(similarity)

    def tiles(self, rows: slice, units: Floats) -> Iterator[tuple[slice, Floats]]:
        """For queries `rows`: gallery slices with similarities (B, B'), -inf at excluded items."""
        for columns in row_slices(len(self.gallery), self.block):
            similarity = units @ self.unit_gallery(columns).T
            if self.penalty is not None:
                similarity -= self.penalty.tile(rows, columns)
            if self.exclude_self:
                same = np.arange(
                    max(rows.start, columns.start), min(rows.stop, columns.stop), dtype=np.int64
                )
                similarity[same - rows.start, same - columns.start] = -np.inf
            yield columns, similarity

    def top(self, rows: slice, units: Floats, depth: int) -> TopValues:
        """The `depth` highest similarities of each query of `rows`."""
        top = TopValues(len(units), min(depth, self.num_candidates))
        for _, similarity in self.tiles(rows, units):
            top.add(similarity)
        return top


class TopValues:
    """The highest similarities of B queries over the gallery seen so far.

    `values`: (B, depth), unordered. `tied`: (B,) how many items seen share the lowest of them,
    whether their values are held or not.
    """

    def __init__(self, num_queries: int, depth: int) -> None:
        self.values = np.full((num_queries, depth), -np.inf)
        self.tied = np.full(num_queries, depth, dtype=np.int64)

    def add(self, similarity: Floats) -> None:
        """Take in a tile (B, B') of further gallery items."""
        depth = self.values.shape[1]
        old = self.lowest
        unheld = self.tied - np.count_nonzero(self.values == old[:, None], axis=1)
        values = np.concatenate([self.values, similarity], axis=1)
        self.values = np.partition(values, values.shape[1] - depth, axis=1)[:, -depth:]
        # Items that were dropped count on only where they still tie with the lowest value held.
        self.tied = np.count_nonzero(values == self.lowest[:, None], axis=1)
        self.tied += np.where(self.lowest == old, unheld, 0)

    @property
    def lowest(self) -> Floats:
        """The lowest value held, (B,)."""
        return np.asarray(self.values.min(axis=1))

    @property
    def descending(self) -> Floats:
        """The values from the highest to the lowest, (B, depth)."""
        return np.asarray(-np.sort(-self.values, axis=1))


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


def _unit(vectors: Floats, norms: Floats) -> Floats:
    return np.asarray(np.rint(vectors / norms[:, None] * GRID) / GRID)
