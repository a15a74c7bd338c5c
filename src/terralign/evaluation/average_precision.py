"""Average precision of scores that are sorted once, and what a ranking at random gives.

N samples, M scores, P positives, Q queries.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating[Any]]


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

    def average_precision(self, counts: NDArray[np.int64]) -> float:
        """Average precision where each sample counts `counts` (N,) times; NaN: no positives."""
        weights = counts[self.positive_rows]
        found = np.cumsum(weights)
        if found[-1] == 0:
            return float("nan")
        seen = np.cumsum(counts[self.rows])[self.ends]
        precision = found[self.lasts] / np.maximum(seen, 1)
        return float(weights @ precision / found[-1])


def rank_scores(
    scores: Floats, positive: NDArray[np.bool_], *, samples_per_row: int = 1
) -> RankedScores:
    """Rank scores (M,), `positive` (M,) bool; entry i belongs to sample i // samples_per_row."""
    order = np.argsort(-scores, kind="stable")
    ranked = scores[order]
    group_ends = np.flatnonzero(np.append(ranked[1:] != ranked[:-1], True))
    places = np.flatnonzero(positive[order])
    ends = group_ends[np.searchsorted(group_ends, places)]
    rows = order // samples_per_row
    return RankedScores(
        rows=rows,
        positive_rows=rows[places],
        ends=ends,
        lasts=np.searchsorted(places, ends, side="right") - 1,
    )


def random_average_precision(
    num_positives: NDArray[np.int64], num_candidates: int, k: int | None = None
) -> Floats:
    """The mean of AP, or of AP@k, over all orders of N candidates, R of them positive.

    AP = (H + (R - 1) / (N - 1) * (N - H)) / N with H the N-th harmonic number; AP@k is cut at
    m = min(k, N) and is R / (N * min(m, R)) * (H + (R - 1) / (N - 1) * (m - H)), H the m-th.
    The candidate at rank i is positive with probability R / N, and the i - 1 before it then hold
    (i - 1) * (R - 1) / (N - 1) positives on average. `num_positives`: (Q,) of 1 to N. Returns (Q,).
    """
    depth = num_candidates if k is None else min(k, num_candidates)
    harmonic = float(np.sum(1 / np.arange(1, depth + 1)))
    others = (num_positives - 1) / max(num_candidates - 1, 1)
    gains = num_positives / num_candidates * (harmonic + others * (depth - harmonic))
    return np.asarray(gains / np.minimum(depth, num_positives))
