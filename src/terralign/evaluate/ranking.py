"""Retrieval metrics: exact, in blocks, with ties at their expected value.

Q queries, G gallery items, D embedding dimensions, K classes, B a block's rows.

Similarity is the cosine as `similarity.py` computes it: equal vectors tie exactly, and no result
depends on the block size or on the order of the gallery.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from terralign.errors import DataError
from terralign.evaluate.metrics import (
    Floats,
    MetricResult,
    check_labels,
    hit_probability,
    mean_metrics,
)
from terralign.evaluate.similarity import BLOCK, GalleryPenalty, Similarities

DEFAULT_KS = (1, 5, 10, 20, 50)
"""The cut-offs that the paper reports (arXiv 2402.09816)."""


def retrieval_metrics(
    query: Floats,
    gallery: Floats,
    *,
    target: NDArray[np.int64] | None = None,
    query_labels: NDArray[Any] | None = None,
    gallery_labels: NDArray[Any] | None = None,
    ks: Sequence[int] = DEFAULT_KS,
    exclude_self: bool = False,
    penalty: GalleryPenalty | None = None,
    block: int = BLOCK,
    num_bootstrap: int = 1000,
    seed: int = 0,
) -> MetricResult:
    """Rank the gallery for every query by cosine similarity.

    `query`: (Q, D), `gallery`: (G, D), any floating-point vectors; they are L2-normalised here.
    `exclude_self`: query i and gallery item i are the same item, which no query may find.
    `penalty`: rank by penalised cosines instead, see `hubness.py`. Memory beyond the inputs is
    some 6 * block * block * 8 bytes. Intervals resample queries; the gallery stays. Raises
    `DataError`. Exactly one of these is given:

    `target`: (Q,) the gallery item paired with each query. Gives `recall@k`, the share of queries
    whose pair is among the first k. A pair that `a` items outrank and `t` others tie with has a
    rank that is uniform over a + 1 to a + t + 1, so it counts clip((k - a) / (t + 1), 0, 1).
    Chance: min(1, k / G).

    `query_labels`, `gallery_labels`: (Q,) and (G,) integers, relevant means the same class; or
    (Q, K) and (G, K) bool, relevant means at least one class in common. Gives `map@k`, the mean
    over queries of

        AP@k = sum over i <= k of relevant_i * precision_i / min(k, R),

    R the number of relevant items in the gallery; queries with R = 0 are left out and counted. In
    a group of n tied items, r of them relevant, that begins after s items, p of them relevant,
    the item at rank s + j adds its expected value r / n * (p + 1 + (j - 1) * (r - 1) / (n - 1)) /
    (s + j) (McSherry & Najork 2008). Chance: the same over one group of all G items,
    R / (G * m') * (H + (R - 1) / (G - 1) * (m - H)), m = min(k, G), m' = min(k, R), H the m-th
    harmonic number.
    """
    ks = _check_ks(ks)
    tiles = Similarities(query, gallery, exclude_self=exclude_self, block=block, penalty=penalty)
    if (target is None) == (query_labels is None and gallery_labels is None):
        raise DataError("give either target (instance-level) or query_labels and gallery_labels")
    if target is not None:
        hits = _recall(tiles, target, ks)
        chances = [min(1.0, k / tiles.num_candidates) for k in ks]
        return MetricResult(
            metrics=mean_metrics(
                [f"recall@{k}" for k in ks], hits, chances, num_bootstrap=num_bootstrap, seed=seed
            )
        )
    relevance = _relevance(tiles, query_labels, gallery_labels)
    precisions, num_relevant = _average_precision(tiles, relevance, ks)
    kept = num_relevant > 0
    num_left_out = int(len(kept) - kept.sum())
    note = f"{num_left_out} of {len(kept)} queries have no relevant gallery item and are left out."
    return MetricResult(
        metrics=mean_metrics(
            [f"map@{k}" for k in ks],
            precisions[kept],
            [_map_chance(num_relevant[kept], tiles.num_candidates, k) for k in ks],
            num_bootstrap=num_bootstrap,
            seed=seed,
        ),
        num_queries_left_out=num_left_out,
        notes=(note,) if num_left_out else (),
    )


def recall_per_query(
    query: Floats,
    gallery: Floats,
    target: NDArray[np.int64],
    *,
    ks: Sequence[int] = DEFAULT_KS,
    exclude_self: bool = False,
    penalty: GalleryPenalty | None = None,
    block: int = BLOCK,
) -> Floats:
    """Each query's share in `recall@k` of `retrieval_metrics`: (Q, M) float64, a column per k.

    The ks are taken in rising order. For comparing two models on the same queries.
    """
    tiles = Similarities(query, gallery, exclude_self=exclude_self, block=block, penalty=penalty)
    return _recall(tiles, target, _check_ks(ks))


def average_precision_per_query(
    query: Floats,
    gallery: Floats,
    query_labels: NDArray[Any],
    gallery_labels: NDArray[Any],
    *,
    ks: Sequence[int] = DEFAULT_KS,
    exclude_self: bool = False,
    penalty: GalleryPenalty | None = None,
    block: int = BLOCK,
) -> Floats:
    """Each query's AP@k of `retrieval_metrics`: (Q, M) float64, a column per k in rising order.

    NaN for queries that no gallery item is relevant to. For comparing two models on the same
    queries.
    """
    tiles = Similarities(query, gallery, exclude_self=exclude_self, block=block, penalty=penalty)
    relevance = _relevance(tiles, query_labels, gallery_labels)
    precisions, _ = _average_precision(tiles, relevance, _check_ks(ks))
    return precisions


class _Relevance:
    """Which gallery items are relevant to which queries, tile by tile."""

    def __init__(
        self,
        query_labels: NDArray[Any],
        gallery_labels: NDArray[Any],
        num_queries: int,
        num_gallery: int,
    ) -> None:
        self.sets = query_labels.ndim == 2
        if self.sets:
            for name, labels, count in (
                ("query_labels", query_labels, num_queries),
                ("gallery_labels", gallery_labels, num_gallery),
            ):
                wanted = (count, query_labels.shape[1])
                if labels.shape != wanted or labels.dtype != np.bool_:
                    raise DataError(
                        f"{name} is {labels.shape} {labels.dtype}; expected {wanted} bool"
                    )
            self.query, self.gallery = query_labels, gallery_labels
        else:
            highest = np.iinfo(np.int64).max
            self.query = check_labels(query_labels, num_queries, highest, name="query_labels")
            self.gallery = check_labels(gallery_labels, num_gallery, highest, name="gallery_labels")

    def tile(self, rows: slice, columns: slice) -> NDArray[np.bool_]:
        """(B, B') bool, True where the gallery item is relevant to the query."""
        if self.sets:
            common = (
                self.query[rows].astype(np.float32) @ self.gallery[columns].astype(np.float32).T
            )
            return np.asarray(common > 0)
        return np.asarray(self.query[rows, None] == self.gallery[None, columns])


def _relevance(
    tiles: Similarities, query_labels: NDArray[Any] | None, gallery_labels: NDArray[Any] | None
) -> _Relevance:
    if query_labels is None or gallery_labels is None:
        missing = "query_labels" if query_labels is None else "gallery_labels"
        raise DataError(f"{missing} is missing; class-level retrieval needs both sides' labels")
    return _Relevance(query_labels, gallery_labels, len(tiles.query), len(tiles.gallery))


def _recall(tiles: Similarities, target: NDArray[np.int64], ks: Sequence[int]) -> Floats:
    """Probability (Q, M) that each query's pair is among the first k, a column per k."""
    target = check_labels(target, len(tiles.query), len(tiles.gallery), name="target")
    if tiles.exclude_self:
        own = np.flatnonzero(target == np.arange(len(target)))
        if own.size:
            raise DataError(
                f"target[{own[0]}] is the query itself, which exclude_self rules out "
                f"({own.size} such targets)"
            )
    above = np.zeros(len(target), dtype=np.int64)
    tied = np.full(len(target), -1, dtype=np.int64)  # the pair ties with itself
    for rows in tiles.query_slices():
        units = tiles.unit_queries(rows)
        pair = tiles.pairs(rows, units, target[rows])
        for _, similarity in tiles.tiles(rows, units):
            above[rows] += np.count_nonzero(similarity > pair, axis=1)
            tied[rows] += np.count_nonzero(similarity == pair, axis=1)
    return np.stack([hit_probability(above, tied, k) for k in ks], axis=1)


def _average_precision(
    tiles: Similarities, relevance: _Relevance, ks: Sequence[int]
) -> tuple[Floats, NDArray[np.int64]]:
    """Expected AP@k (Q, M), NaN where nothing is relevant; numbers of relevant items (Q,)."""
    depth = min(max(ks), tiles.num_candidates)
    precisions = np.full((len(tiles.query), len(ks)), np.nan)
    num_relevant = np.empty(len(tiles.query), dtype=np.int64)
    for rows in tiles.query_slices():
        top = _TopRanks(rows.stop - rows.start, depth)
        units = tiles.unit_queries(rows)
        for columns, similarity in tiles.tiles(rows, units):
            top.add(similarity, relevance.tile(rows, columns) & (similarity > -np.inf))
        num_relevant[rows] = top.num_relevant
        sums = np.cumsum(top.expected_gains(), axis=1)
        for column, k in enumerate(ks):
            best = np.maximum(np.minimum(k, top.num_relevant), 1)
            precisions[rows, column] = sums[:, min(k, depth) - 1] / best
    precisions[num_relevant == 0] = np.nan
    if not num_relevant.any():
        raise DataError("no query has a relevant item in the gallery; check the labels")
    return precisions, num_relevant


class _TopRanks:
    """The highest similarities of B queries over the gallery seen so far.

    `values`: (B, depth), unordered; `hits`: whether they are relevant. Of the items that share
    the lowest of these values, which ones are held is arbitrary, so they are counted instead:
    `tied` (B,) of them were seen, `tied_hits` of those relevant.
    """

    def __init__(self, num_queries: int, depth: int) -> None:
        self.values = np.full((num_queries, depth), -np.inf)
        self.hits = np.zeros((num_queries, depth), dtype=bool)
        self.tied = np.full(num_queries, depth, dtype=np.int64)
        self.tied_hits = np.zeros(num_queries, dtype=np.int64)
        self.num_relevant = np.zeros(num_queries, dtype=np.int64)

    def add(self, similarity: Floats, relevant: NDArray[np.bool_]) -> None:
        """Take in a tile (B, B') of further gallery items."""
        self.num_relevant += np.count_nonzero(relevant, axis=1)
        old = self.values.min(axis=1)
        held = self.values == old[:, None]
        unheld = self.tied - np.count_nonzero(held, axis=1)
        unheld_hits = self.tied_hits - np.count_nonzero(held & self.hits, axis=1)

        values = np.concatenate([self.values, similarity], axis=1)
        hits = np.concatenate([self.hits, relevant], axis=1)
        depth = self.values.shape[1]
        best = np.argpartition(values, values.shape[1] - depth, axis=1)[:, -depth:]
        self.values = np.take_along_axis(values, best, axis=1)
        self.hits = np.take_along_axis(hits, best, axis=1)

        lowest = self.values.min(axis=1)
        same = lowest == old  # else whatever ties at the new lowest value is still held
        equal = values == lowest[:, None]
        self.tied = np.count_nonzero(equal, axis=1) + np.where(same, unheld, 0)
        self.tied_hits = np.count_nonzero(equal & hits, axis=1) + np.where(same, unheld_hits, 0)

    def expected_gains(self) -> Floats:
        """Expected relevant_i * precision_i at each rank i, (B, depth)."""
        order = np.argsort(-self.values, axis=1, kind="stable")
        values = np.take_along_axis(self.values, order, axis=1)
        hits = np.take_along_axis(self.hits, order, axis=1)
        ranks = np.arange(values.shape[1])
        first = np.ones(values.shape, dtype=bool)
        first[:, 1:] = values[:, 1:] != values[:, :-1]
        last = np.roll(first, -1, axis=1)  # the first rank always starts a group: so it wraps right
        starts = np.maximum.accumulate(np.where(first, ranks, 0), axis=1)
        ends = np.where(last, ranks + 1, values.shape[1])
        ends = np.minimum.accumulate(ends[:, ::-1], axis=1)[:, ::-1]

        found = np.concatenate([np.zeros((len(hits), 1), dtype=np.int64), hits.cumsum(axis=1)], 1)
        before = np.take_along_axis(found, starts, axis=1)
        lowest = values == values[:, -1:]
        sizes = np.where(lowest, self.tied[:, None], ends - starts)
        group_hits = np.take_along_axis(found, ends, axis=1) - before
        group_hits = np.where(lowest, self.tied_hits[:, None], group_hits)
        inside = (ranks - starts) * (group_hits - 1) / np.maximum(sizes - 1, 1)
        return np.asarray(group_hits / sizes * (before + 1 + inside) / (ranks + 1))


def _map_chance(num_relevant: NDArray[np.int64], num_candidates: int, k: int) -> float:
    depth = min(k, num_candidates)
    harmonic = float(np.sum(1 / np.arange(1, depth + 1)))
    others = (num_relevant - 1) / max(num_candidates - 1, 1)
    gains = num_relevant / num_candidates * (harmonic + others * (depth - harmonic))
    return float(np.mean(gains / np.minimum(k, num_relevant)))


def _check_ks(ks: Sequence[int]) -> tuple[int, ...]:
    if not ks or min(ks) < 1:
        raise DataError(f"ks is {tuple(ks)}; expected at least one k, each 1 or more")
    return tuple(sorted(set(ks)))
