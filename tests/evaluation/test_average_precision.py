"""What a ranking at random gives, against every order there is."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from sklearn.metrics import average_precision_score

from terralign.evaluation.average_precision import random_average_precision


def _at_k(relevant: np.ndarray, k: int) -> float:
    hits = np.flatnonzero(relevant[:k])
    return float(sum((i + 1) / (rank + 1) for i, rank in enumerate(hits))) / min(k, relevant.sum())


@pytest.mark.parametrize("num_candidates", range(1, 7))
def test_chance_is_the_mean_over_all_orders(num_candidates: int) -> None:
    ranks = np.arange(num_candidates)
    for num in range(1, num_candidates + 1):
        # Every set of ranks that the positives may have is as likely as any other.
        orders = [np.isin(ranks, places) for places in combinations(ranks, num)]
        whole = np.mean([average_precision_score(relevant, -ranks) for relevant in orders])
        assert random_average_precision(np.array([num]), num_candidates) == pytest.approx([whole])
        for k in range(1, num_candidates + 2):
            cut = np.mean([_at_k(relevant, k) for relevant in orders])
            at_k = random_average_precision(np.array([num]), num_candidates, k)
            assert at_k == pytest.approx([cut])


def test_chance_is_one_where_all_are_positive_and_nears_their_share_among_many() -> None:
    assert random_average_precision(np.array([1]), 1) == pytest.approx([1])
    assert random_average_precision(np.array([9]), 9) == pytest.approx([1])
    among_many = random_average_precision(np.array([2_000, 200_000]), 1_000_000)
    assert among_many == pytest.approx([0.002, 0.2], abs=2e-5)
    # One of 14: the mean of 1 / rank.
    assert random_average_precision(np.array([1]), 14) == pytest.approx([3.2515623 / 14])
