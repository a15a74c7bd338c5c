"""Precision and recall of one ranked list of hits, with exact intervals and chance.

H hits.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import beta

from terralign.errors import DataError
from terralign.evaluation.bootstrap import CONFIDENCE
from terralign.evaluation.metrics import Metric


def hit_metrics(
    relevant: NDArray[np.bool_],
    *,
    num_relevant: int,
    num_searched: int,
    ks: Sequence[int] = (10, 20, 50),
) -> tuple[Metric, ...]:
    """`precision@k` and `recall@k` for each k.

    `relevant`: (H,) whether each hit is relevant, best first. `num_relevant` of the `num_searched`
    items are relevant, at least one. Precision: the share of the first k hits that are relevant, of
    all hits where there are fewer, and left out without hits; chance is the share of all
    items. Recall: the share of the relevant items among the first k hits; chance is k of all items.
    Intervals are exact ones of a share (Clopper & Pearson 1934), of the hits or of the relevant
    items, which count as independent: where neighbours show the same place, they are too narrow.
    Raises `DataError`.
    """
    if not ks or min(ks) < 1:
        raise DataError(f"ks is {tuple(ks)}; expected at least one k, each 1 or more")
    if not 1 <= num_relevant <= num_searched:
        raise DataError(f"num_relevant is {num_relevant}; expected 1 to {num_searched}")
    metrics = []
    for k in sorted(set(ks)):
        num_hits = min(k, len(relevant))
        num_right = int(np.count_nonzero(relevant[:k]))
        if num_hits:
            chance = num_relevant / num_searched
            metrics.append(_share(f"precision@{k}", num_right, num_hits, chance))
        metrics.append(_share(f"recall@{k}", num_right, num_relevant, min(1.0, k / num_searched)))
    return tuple(metrics)


def _share(name: str, number: int, of: int, chance: float) -> Metric:
    low, high = exact_interval(number, of)
    return Metric(name=name, value=number / of, low=low, high=high, num_samples=of, chance=chance)


def exact_interval(number: int, of: int) -> tuple[float, float]:
    """The 95 % interval of a share `number` / `of`, by the quantiles of beta distributions."""
    tail: Any = (1 - CONFIDENCE) / 2
    low = 0.0 if number == 0 else float(beta.ppf(tail, number, of - number + 1))
    high = 1.0 if number == of else float(beta.ppf(1 - tail, number + 1, of - number))
    return low, high
