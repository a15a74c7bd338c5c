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
from terralign.evaluation.average_precision import random_average_precision
from terralign.evaluation.bootstrap import Floats, mean_statistic
from terralign.evaluation.metrics import (
    MetricResult,
    Outcomes,
    check_labels,
    hit_probability,
    measure,
)
from terralign.evaluation.similarity import (
    BLOCK,
    GalleryPenalty,
    Nearest,
    Similarities,
    row_slices,
)

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
    `random_average_precision`.
    """
    ks = _check_ks(ks)
    tiles = Similarities(query, gallery, exclude_self=exclude_self, block=block, penalty=penalty)
    if (target is None) == (query_labels is None and gallery_labels is None):
        raise DataError("give either target (instance-level) or query_labels and gallery_labels")
    if target is not None:
        hits = _recall(tiles, target, ks)
        chances = [min(1.0, k / tiles.num_candidates) for k in ks]
        return MetricResult(
            metrics=measure(
                [f"recall@{k}" for k in ks],
                mean_statistic(hits),
                chances,
                len(hits),
                num_bootstrap=num_bootstrap,
                seed=seed,
            ),
            outcomes=by_column([f"recall@{k}" for k in ks], hits),
        )
    relevance = _relevance(tiles, query_labels, gallery_labels)
    precisions, num_relevant = _average_precision(tiles, relevance, ks)
    kept = num_relevant > 0
    num_left_out = int(len(kept) - kept.sum())
    note = f"{num_left_out} of {len(kept)} queries have no relevant gallery item and are left out."
    return MetricResult(
        metrics=measure(
            [f"map@{k}" for k in ks],
            mean_statistic(precisions[kept]),
            [
                float(random_average_precision(num_relevant[kept], tiles.num_candidates, k).mean())
                for k in ks
            ],
            int(kept.sum()),
            num_bootstrap=num_bootstrap,
            seed=seed,
        ),
        num_queries_left_out=num_left_out,
        notes=(note,) if num_left_out else (),
        outcomes=by_column([f"map@{k}" for k in ks], precisions),
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


def by_column(names: Sequence[str], values: Floats) -> Outcomes:
    """Outcomes of values (N, M), a column for each name."""
    return {name: values[:, column].copy() for column, name in enumerate(names)}


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

    def count(self, rows: slice, tiles: Similarities) -> NDArray[np.int64]:
        """(B,) how many gallery items that queries `rows` may find are relevant to them."""
        count = np.zeros(rows.stop - rows.start, dtype=np.int64)
        for columns in row_slices(len(self.gallery), tiles.block):
            count += np.count_nonzero(self._tile(rows, columns), axis=1)
        if tiles.exclude_self:
            own = np.arange(rows.start, rows.stop)
            count -= self.pairs(own, own[:, None])[:, 0]
        return count

    def pairs(self, queries: NDArray[np.int64], items: NDArray[np.int64]) -> NDArray[np.bool_]:
        """(B, W) bool, True where each of a query's own items (B, W) is relevant to it."""
        if not self.sets:
            return np.asarray(self.query[queries, None] == self.gallery[items])
        relevant = np.empty(items.shape, dtype=np.bool_)
        for row, (labels, own) in enumerate(zip(self.query[queries], items, strict=True)):
            relevant[row] = self.gallery[own[:, None], np.flatnonzero(labels)].any(axis=1)
        return relevant

    def _tile(self, rows: slice, columns: slice) -> NDArray[np.bool_]:
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
    above = np.empty(len(target), dtype=np.int64)
    tied = np.full(len(target), -1, dtype=np.int64)  # the pair ties with itself
    for rows in tiles.query_slices():
        units = tiles.unit_queries(rows)
        pair = tiles.pairs(rows, units, target[rows])[:, 0]
        above[rows], num_tied = tiles.count(rows, units, pair)
        tied[rows] += num_tied
    return np.stack([hit_probability(above, tied, k) for k in ks], axis=1)


def _average_precision(
    tiles: Similarities, relevance: _Relevance, ks: Sequence[int]
) -> tuple[Floats, NDArray[np.int64]]:
    """Expected AP@k (Q, M), NaN where nothing is relevant; numbers of relevant items (Q,)."""
    depth = min(max(ks), tiles.num_candidates)
    precisions = np.full((len(tiles.query), len(ks)), np.nan)
    num_relevant = np.zeros(len(tiles.query), dtype=np.int64)
    for rows in tiles.query_slices():
        num_relevant[rows] = relevance.count(rows, tiles)
        for near in tiles.nearest(rows, tiles.unit_queries(rows), depth):
            hits = relevance.pairs(near.queries, near.items) & (near.similarity > -np.inf)
            sums = np.cumsum(_expected_gains(near, hits), axis=1)
            for column, k in enumerate(ks):
                best = np.maximum(np.minimum(k, num_relevant[near.queries]), 1)
                precisions[near.queries, column] = sums[:, min(k, depth) - 1] / best
    precisions[num_relevant == 0] = np.nan
    if not num_relevant.any():
        raise DataError("no query has a relevant item in the gallery; check the labels")
    return precisions, num_relevant


def _expected_gains(near: Nearest, hits: NDArray[np.bool_]) -> Floats:
    """Expected relevant_i * precision_i at each rank i, (B, depth).

    `hits`: (B, W) whether the nearest items are relevant. Of those that share the lowest of the
    `depth` values, which ones are among the first `depth` is arbitrary, so they are counted.
    """
    first_held = near.similarity.shape[1] - near.depth
    best = np.argpartition(near.similarity, first_held, axis=1)[:, first_held:]
    values = np.take_along_axis(near.similarity, best, axis=1)
    best = np.take_along_axis(best, np.argsort(-values, axis=1), axis=1)
    values = np.take_along_axis(near.similarity, best, axis=1)
    tied = near.similarity == values[:, -1:]
    num_tied = np.count_nonzero(tied, axis=1, keepdims=True)
    tied_hits = np.count_nonzero(tied & hits, axis=1, keepdims=True)
    hits = np.take_along_axis(hits, best, axis=1)
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
    sizes = np.where(lowest, num_tied, ends - starts)
    group_hits = np.take_along_axis(found, ends, axis=1) - before
    group_hits = np.where(lowest, tied_hits, group_hits)
    inside = (ranks - starts) * (group_hits - 1) / np.maximum(sizes - 1, 1)
    return np.asarray(group_hits / sizes * (before + 1 + inside) / (ranks + 1))


def _check_ks(ks: Sequence[int]) -> tuple[int, ...]:
    if not ks or min(ks) < 1:
        raise DataError(f"ks is {tuple(ks)}; expected at least one k, each 1 or more")
    return tuple(sorted(set(ks)))
