"""Average precision of scores that are sorted once, and what a ranking at random gives.

N samples, K classes, M scores, P positives, Q queries, R resamples.
"""

from __future__ import annotations

from dataclasses import dataclass

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


@dataclass(frozen=True, kw_only=True, slots=True)
class RankedScores:
    """Scores sorted once, for average precision under any weights.

    `rows`: (M,) the sample of each score, from the highest score to the lowest. `positive_rows`:
    (P,) the same for positives only. For each positive, `ends` is the place in `rows`, and `lasts`
    the place in `positive_rows`, at which its group of tied scores ends.
    """

    rows: NDArray[np.int64]
    positive_rows: NDArray[np.int64]
    ends: NDArray[np.int64]
    lasts: NDArray[np.int64]

    def average_precision(self, counts: Counts) -> Floats:
        """Average precision (R,) for counts (R, N); NaN without positives."""
        step = max(1, CHUNK // len(self.rows))
        starts = range(0, len(counts), step)
        return np.concatenate([self._some(counts[start : start + step]) for start in starts])

    def _some(self, counts: Counts) -> Floats:
        weights = counts[:, self.positive_rows]
        found = np.cumsum(weights, axis=1)
        seen = np.cumsum(counts[:, self.rows], axis=1)[:, self.ends]
        precision = found[:, self.lasts] / np.maximum(seen, 1)
        sums = np.array([own @ at_it for own, at_it in zip(weights, precision, strict=True)])
        total = found[:, -1]
        return np.where(total > 0, sums / np.maximum(total, 1), np.nan)


def rank_scores(
    scores: Floats, positive: NDArray[np.bool_], *, scores_per_sample: int = 1
) -> RankedScores:
    """Rank scores (M,), `positive` (M,) bool; entry i belongs to sample i // scores_per_sample."""
    order = np.argsort(-scores, kind="stable")
    ranked = scores[order]
    group_ends = np.flatnonzero(np.append(ranked[1:] != ranked[:-1], True))
    places = np.flatnonzero(positive[order])
    ends = group_ends[np.searchsorted(group_ends, places)]
    rows = order // scores_per_sample
    return RankedScores(
        rows=rows,
        positive_rows=rows[places],
        ends=ends,
        lasts=np.searchsorted(places, ends, side="right") - 1,
    )


def average_precision_statistic(
    scores: Floats, labels: NDArray[np.bool_], average: Average | None = None
) -> Statistic:
    """Average precision of scores (N, K), `labels` (N, K) bool, as scikit-learn defines it.

    One for each class that has positives, (R, K'); with `average` their mean ("macro"), or that of
    all N * K pairs together ("micro"), (R, 1). NaN where a resample has no positives.
    """
    if average == "micro":
        ranked = [rank_scores(scores.ravel(), labels.ravel(), scores_per_sample=labels.shape[1])]
    else:
        known = np.flatnonzero(labels.any(axis=0))
        ranked = [rank_scores(scores[:, k], labels[:, k]) for k in known]

    def statistic(counts: Counts) -> Floats:
        return np.stack([one.average_precision(counts) for one in ranked], axis=1)

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
