"""Retrieval metrics over the whole gallery, in blocks, with ties at their expected value.

Q queries, G gallery items, D embedding dimensions, K classes, B a block's queries, M cut-offs k.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from terralign.errors import DataError
from terralign.evaluation.average_precision import random_average_precision
from terralign.evaluation.bootstrap import Floats, mean_statistic
from terralign.evaluation.metrics import (
    MetricResult,
    Outcomes,
    check_label_sets,
    check_labels,
    hit_probability,
    measure,
)
from terralign.evaluation.similarity import GalleryPenalty, Indices, similarity_blocks

DEFAULT_KS = (1, 5, 10, 20, 50)
"""The cut-offs that the paper reports (arXiv 2402.09816)."""


def recall_metrics(
    query: Floats,
    gallery: Floats,
    *,
    query_owners: Indices | None = None,
    gallery_owners: Indices | None = None,
    ks: Sequence[int] = DEFAULT_KS,
    penalty: GalleryPenalty | None = None,
    num_bootstrap: int = 1000,
    seed: int = 0,
) -> MetricResult:
    """`recall@k`: the share of queries with an item of their own sample among the first k.

    `query`: (Q, D), `gallery`: (G, D), ranked by cosine. `query_owners`: (Q,), `gallery_owners`:
    (G,) the samples that rows belong to, by default row i to sample i. A sample may own several
    rows, as an image has several captions; the best-ranked one counts (the protocol of
    CLIP_benchmark, RemoteCLIP and others). Other samples' equal rows, such as the same caption, tie
    with it: `hit_probability`. Chance: the same where all items tie. `penalty`: rank by penalised
    cosines instead. Intervals resample samples with all their queries, which are not independent;
    the gallery stays. `outcomes` are what each sample adds to the mean. Raises `DataError`.
    """
    ks = _check_ks(ks)
    query_owners = _check_owners(query_owners, len(query), "query_owners")
    gallery_owners = _check_owners(gallery_owners, len(gallery), "gallery_owners")
    above, tied, own, num_right = _rank_own(query, gallery, query_owners, gallery_owners, penalty)
    hits = np.stack([hit_probability(above, tied, k, own) for k in ks], axis=1)
    num_wrong, none = len(gallery) - num_right, np.zeros_like(above)
    chances = [float(hit_probability(none, num_wrong, k, num_right).mean()) for k in ks]
    names = [f"recall@{k}" for k in ks]
    sums, sizes = _sum_by_owner(hits, query_owners)
    metrics = measure(
        names,
        mean_statistic(sums, sizes),
        chances,
        len(sums),
        num_bootstrap=num_bootstrap,
        seed=seed,
    )
    return MetricResult(
        metrics=tuple(replace(metric, num_samples=len(query)) for metric in metrics),
        outcomes=_by_column(names, sums * (len(sums) / len(query))),
    )


def map_metrics(
    query: Floats,
    gallery: Floats,
    query_labels: NDArray[Any],
    gallery_labels: NDArray[Any],
    *,
    ks: Sequence[int] = DEFAULT_KS,
    exclude_self: bool = False,
    penalty: GalleryPenalty | None = None,
    num_bootstrap: int = 1000,
    seed: int = 0,
) -> MetricResult:
    """`map@k`: the mean over queries of the average precision of the k nearest items.

    `query`: (Q, D), `gallery`: (G, D), ranked by cosine. `query_labels`, `gallery_labels`: (Q,) and
    (G,) integers, relevant means the same class; or (Q, K) and (G, K) bool, relevant means at least
    one class in common. `exclude_self`, `penalty`: see `similarity_blocks`.

        AP@k = sum over i <= k of relevant_i * precision_i / min(k, R),

    R the number of relevant items in the gallery; queries with R = 0 are left out and counted. In
    a group of n tied items, r of them relevant, that begins after s items, p of them relevant,
    the item at rank s + j adds its expected value r / n * (p + 1 + (j - 1) * (r - 1) / (n - 1)) /
    (s + j) (McSherry & Najork 2008). Chance: the same over one group of all G items,
    `random_average_precision`. Intervals resample queries; the gallery stays. Raises `DataError`.
    """
    ks = _check_ks(ks)
    query_labels = _check_relevance(query_labels, len(query), "query_labels")
    gallery_labels = _check_relevance(gallery_labels, len(gallery), "gallery_labels")
    if query_labels.shape[1:] != gallery_labels.shape[1:]:
        raise DataError(
            f"query_labels is {query_labels.shape}, gallery_labels is {gallery_labels.shape}; "
            "expected classes on both sides, or sets of the same classes"
        )
    blocks = similarity_blocks(query, gallery, exclude_self=exclude_self, penalty=penalty)
    precisions, num_relevant = _average_precisions(blocks, query_labels, gallery_labels, ks)
    kept = num_relevant > 0
    if not kept.any():
        raise DataError("no query has a relevant item in the gallery; check the labels")
    num_candidates = len(gallery) - exclude_self
    num_left_out = int(np.count_nonzero(~kept))
    note = f"{num_left_out} of {len(kept)} queries have no relevant gallery item and are left out."
    names = [f"map@{k}" for k in ks]
    metrics = measure(
        names,
        mean_statistic(precisions[kept]),
        [float(random_average_precision(num_relevant[kept], num_candidates, k).mean()) for k in ks],
        len(kept) - num_left_out,
        num_bootstrap=num_bootstrap,
        seed=seed,
    )
    return MetricResult(
        metrics=metrics,
        notes=(note,) if num_left_out else (),
        outcomes=_by_column(names, precisions),
    )


def outcomes_by_owner(outcomes: Outcomes, query_owners: Indices) -> Outcomes:
    """What each sample adds to the means over queries (Q,) that it owns, as in `recall_metrics`."""
    sums, _ = _sum_by_owner(np.stack([*outcomes.values()], axis=1), query_owners)
    return _by_column([*outcomes], sums * (len(sums) / len(query_owners)))


def _rank_own(
    query: Floats,
    gallery: Floats,
    query_owners: Indices,
    gallery_owners: Indices,
    penalty: GalleryPenalty | None,
) -> tuple[Indices, Indices, Indices, Indices]:
    """Of each query (Q,): how many items outrank its best own one, how many others' items and how
    many of its own tie there, and how many are its own in all."""
    above, tied, own, num_right = (np.empty(len(query), dtype=np.int64) for _ in range(4))
    for rows, similarity in similarity_blocks(query, gallery, penalty=penalty):
        queries, items = np.nonzero(query_owners[rows, None] == gallery_owners)
        count = num_right[rows] = np.bincount(queries, minlength=len(similarity))
        if not count.all():
            lost = rows.start + int(np.argmin(count))
            raise DataError(f"query {lost} has no item of its own sample in the gallery")
        values = similarity[queries, items]
        best = np.maximum.reduceat(values, np.cumsum(count) - count)
        own[rows] = np.bincount(queries, weights=values == best[queries])
        above[rows] = np.count_nonzero(similarity > best[:, None], axis=1)
        tied[rows] = np.count_nonzero(similarity == best[:, None], axis=1) - own[rows]
    return above, tied, own, num_right


def _average_precisions(
    blocks: Iterator[tuple[slice, Floats]],
    query_labels: NDArray[Any],
    gallery_labels: NDArray[Any],
    ks: Sequence[int],
) -> tuple[Floats, Indices]:
    """Expected AP@k (Q, M), NaN where nothing is relevant, and numbers of relevant items (Q,)."""
    precisions = np.empty((len(query_labels), len(ks)))
    num_relevant = np.empty(len(query_labels), dtype=np.int64)
    for rows, similarity in blocks:
        found = similarity > -np.inf
        depth = min(max(ks), int(np.count_nonzero(found[0])))
        relevant = _relevant(query_labels[rows], gallery_labels) & found
        num_relevant[rows] = np.count_nonzero(relevant, axis=1)
        gains = np.cumsum(_expected_gains(similarity, relevant, depth), axis=1)
        for column, k in enumerate(ks):
            best = np.maximum(np.minimum(k, num_relevant[rows]), 1)
            precisions[rows, column] = gains[:, min(k, depth) - 1] / best
    precisions[num_relevant == 0] = np.nan
    return precisions, num_relevant


def _expected_gains(similarity: Floats, relevant: NDArray[np.bool_], depth: int) -> Floats:
    """Expected relevant_i * precision_i at each of the first ranks i, (B, depth).

    `similarity`, `relevant`: (B, G). Of the items that share the lowest of the `depth` highest
    similarities, which ones are among the first `depth` is arbitrary, so they are counted.
    """
    first_held = similarity.shape[1] - depth
    best = np.argpartition(similarity, first_held, axis=1)[:, first_held:]
    values = np.take_along_axis(similarity, best, axis=1)
    order = np.argsort(-values, axis=1)
    best = np.take_along_axis(best, order, axis=1)
    values = np.take_along_axis(values, order, axis=1)
    at_lowest = similarity == values[:, -1:]
    num_tied = np.count_nonzero(at_lowest, axis=1, keepdims=True)
    tied_hits = np.count_nonzero(at_lowest & relevant, axis=1, keepdims=True)
    hits = np.take_along_axis(relevant, best, axis=1)
    ranks = np.arange(depth)
    first = np.ones(values.shape, dtype=bool)
    first[:, 1:] = values[:, 1:] != values[:, :-1]
    last = np.roll(first, -1, axis=1)  # the first rank always starts a group: so it wraps right
    starts = np.maximum.accumulate(np.where(first, ranks, 0), axis=1)
    ends = np.where(last, ranks + 1, depth)
    ends = np.minimum.accumulate(ends[:, ::-1], axis=1)[:, ::-1]

    found = np.concatenate([np.zeros((len(hits), 1), dtype=np.int64), hits.cumsum(axis=1)], 1)
    before = np.take_along_axis(found, starts, axis=1)
    lowest = values == values[:, -1:]
    sizes = np.where(lowest, num_tied, ends - starts)
    group_hits = np.take_along_axis(found, ends, axis=1) - before
    group_hits = np.where(lowest, tied_hits, group_hits)
    inside = (ranks - starts) * (group_hits - 1) / np.maximum(sizes - 1, 1)
    return np.asarray(group_hits / sizes * (before + 1 + inside) / (ranks + 1))


def _relevant(query_labels: NDArray[Any], gallery_labels: NDArray[Any]) -> NDArray[np.bool_]:
    """(B, G) bool: whether items are of the class of the queries, or share one with them."""
    if query_labels.ndim == 2:
        return np.asarray(query_labels @ gallery_labels.T > 0)
    return np.asarray(query_labels[:, None] == gallery_labels)


def _sum_by_owner(values: Floats, owners: Indices) -> tuple[Floats, Indices]:
    """Sums (S, M) of values (Q, M) over the queries of each sample, and their numbers (S,)."""
    _, members = np.unique(owners, return_inverse=True)
    sums = [np.bincount(members, weights=column) for column in values.T]
    return np.stack(sums, axis=1), np.bincount(members)


def _by_column(names: Sequence[str], values: Floats) -> Outcomes:
    return {name: values[:, column].copy() for column, name in enumerate(names)}


def _check_ks(ks: Sequence[int]) -> tuple[int, ...]:
    if not ks or min(ks) < 1:
        raise DataError(f"ks is {tuple(ks)}; expected at least one k, each 1 or more")
    return tuple(sorted(set(ks)))


def _check_owners(owners: Indices | None, number: int, name: str) -> Indices:
    if owners is None:
        return np.arange(number)
    return check_labels(owners, number, np.iinfo(np.int64).max, name=name)


def _check_relevance(labels: NDArray[Any], number: int, name: str) -> NDArray[Any]:
    """Classes (N,) as int64, or sets of classes (N, K) as float32 for their product."""
    if labels.ndim == 2:
        check_label_sets(labels, (number, labels.shape[1]), name=name)
        return labels.astype(np.float32)
    return check_labels(labels, number, np.iinfo(np.int64).max, name=name)
