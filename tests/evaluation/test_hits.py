"""Precision and recall of a list of hits."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import binomtest

from terralign.errors import DataError
from terralign.evaluation.hits import exact_interval, hit_metrics


def test_precision_and_recall_of_hits_counted_by_hand() -> None:
    relevant = np.array([True, False, True, True, False, False])
    found = {
        one.name: one
        for one in hit_metrics(relevant, num_relevant=5, num_searched=20, ks=(2, 4, 10, 30))
    }
    assert {name: one.value for name, one in found.items()} == {
        "precision@2": 1 / 2, "recall@2": 1 / 5, "precision@4": 3 / 4, "recall@4": 3 / 5,
        "precision@10": 3 / 6, "recall@10": 3 / 5, "precision@30": 3 / 6, "recall@30": 3 / 5,
    }  # fmt: skip
    assert [found[name].chance for name in ("precision@4", "recall@4", "recall@30")] == [
        5 / 20, 4 / 20, 1,
    ]  # fmt: skip
    assert (found["precision@10"].num_samples, found["recall@10"].num_samples) == (6, 5)
    assert all(one.low <= one.value <= one.high for one in found.values())


def test_intervals_are_the_exact_ones_of_scipy() -> None:
    for number, of in ((0, 20), (1, 20), (17, 20), (20, 20), (3, 57)):
        expected = binomtest(number, of).proportion_ci(0.95, method="exact")
        assert exact_interval(number, of) == pytest.approx((expected.low, expected.high))


def test_a_search_without_hits_has_no_precision_and_no_recall() -> None:
    (found,) = hit_metrics(np.zeros(0, dtype=bool), num_relevant=3, num_searched=9, ks=(5,))
    assert (found.name, found.value) == ("recall@5", 0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"ks": (0,)}, "each 1 or more"),
        ({"ks": ()}, "at least one k"),
        ({"num_relevant": 0}, "expected 1 to 9"),
        ({"num_relevant": 10}, "expected 1 to 9"),
    ],
)
def test_what_cannot_be_measured_is_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(DataError, match=message):
        hit_metrics(
            np.ones(5, dtype=bool),
            **{"num_relevant": 3, "num_searched": 9, **settings},  # type: ignore[arg-type]
        )
