"""Average precision of scores that are sorted once, and what a ranking at random gives.

N samples, K classes, M scores, P positives, Q queries, R resamples.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from terralign.evaluation.bootstrap import (
    CHUNK,
    Average,
    Counts,
    Floats,
    Statistic,
    macro_mean,
)


def ranked_average_precision(
    scores: Floats, positive: NDArray[np.bool_], *, scores_per_sample: int = 1
) -> Callable[[Counts], Floats]:
    """Average precision (R,) for counts (R, N), NaN without positives; scores are sorted once.

    `scores`: (M,), `positive`: (M,) bool; entry i belongs to sample i // scores_per_sample.
    """
    order = np.argsort(-scores, kind="stable")
    ranked, rows = scores[order], order // scores_per_sample
    group_ends = np.flatnonzero(np.append(ranked[1:] != ranked[:-1], True))
    places = np.flatnonzero(positive[order])
    positive_rows = rows[places]
    # Where the group of scores tied with each positive ends, among all scores and among positives.
    ends = group_ends[np.searchsorted(group_ends, places)]
    lasts = np.searchsorted(places, ends, side="right") - 1

    def of_some(counts: Counts) -> Floats:
        weights = counts[:, positive_rows]
        found = np.cumsum(weights, axis=1)
        seen = np.cumsum(counts[:, rows], axis=1)[:, ends]
        precision = found[:, lasts] / np.maximum(seen, 1)
        sums = np.array([own @ at_it for own, at_it in zip(weights, precision, strict=True)])
        total = found[:, -1]
        return np.where(total > 0, sums / np.maximum(total, 1), np.nan)

    def of_all(counts: Counts) -> Floats:
        step = max(1, CHUNK // len(rows))
        starts = range(0, len(counts), step)
        return np.concatenate([of_some(counts[start : start + step]) for start in starts])

    return of_all


def average_precision_statistic(
    scores: Floats, labels: NDArray[np.bool_], average: Average | None = None
) -> Statistic:
    """Average precision of scores (N, K), `labels` (N, K) bool, as scikit-learn defines it.

    One for each class that has positives, (R, K'); with `average` their mean ("macro"), or that of
    all N * K pairs together ("micro"), (R, 1). NaN where a resample has no positives.
    """
    if average == "micro":
        pairs = scores.ravel(), labels.ravel()
        each = [ranked_average_precision(*pairs, scores_per_sample=labels.shape[1])]
    else:
        known = np.flatnonzero(labels.any(axis=0))
        each = [ranked_average_precision(scores[:, k], labels[:, k]) for k in known]

    def statistic(counts: Counts) -> Floats:
        return np.stack([one(counts) for one in each], axis=1)

    return macro_mean(statistic) if average == "macro" else statistic


def random_average_precision(
    num_positives: NDArray[np.int64], num_candidates: int, k: int | None = None
) -> Floats:
    """The mean of AP, or of AP@k, over all orders of N candidates, P of them positive.

    AP = (H + (P - 1) / (N - 1) * (N - H)) / N with H the N-th harmonic number; AP@k is cut at
    m = min(k, N) and is P / (N * min(m, P)) * (H + (P - 1) / (N - 1) * (m - H)), H the m-th.
    The candidate at rank i is positive with probability P / N, and the i - 1 before it then hold
    (i - 1) * (P - 1) / (N - 1) positives on average. `num_positives`: (Q,) of 1 to N. Returns (Q,).
    """
    depth = num_candidates if k is None else min(k, num_candidates)
    harmonic = float(np.sum(1 / np.arange(1, depth + 1)))
    others = (num_positives - 1) / max(num_candidates - 1, 1)
    gains = num_positives / num_candidates * (harmonic + others * (depth - harmonic))
    return np.asarray(gains / np.minimum(depth, num_positives))
