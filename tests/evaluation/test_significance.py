"""The paired bootstrap against plain loops, scikit-learn, and tests with known answers."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import ttest_rel
from sklearn.metrics import average_precision_score, f1_score

from terralign.errors import DataError
from terralign.evaluation import significance
from terralign.evaluation.metrics import classification_metrics, multilabel_metrics
from terralign.evaluation.significance import (
    accuracy_values,
    adjust_holm,
    compare_accuracy,
    compare_average_precision,
    compare_class_means,
    compare_f1,
    compare_means,
)


def _multilabel(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    labels = generator.random((60, 4)) < [0.3, 0.5, 0.03, 0.0]
    labels[0, 2] = True
    a = (labels + generator.normal(size=labels.shape)).round(1)  # with ties
    b = (labels + 0.6 * generator.normal(size=labels.shape)).round(1)
    return a, b, labels


def test_values_are_those_of_the_metrics() -> None:
    a, b, labels = _multilabel(0)
    for average in ("macro", "micro"):
        found = compare_average_precision(a, b, labels, average=average, num_bootstrap=5)  # type: ignore[arg-type]
        own = [
            multilabel_metrics(s, labels, num_bootstrap=1).value(f"{average}_map") for s in (a, b)
        ]
        assert [found.value_a, found.value_b] == pytest.approx(own)
        assert found.difference == pytest.approx(own[1] - own[0])
    classes = np.random.default_rng(0).integers(4, size=60)
    found = compare_accuracy(a, b, classes, num_bootstrap=5)
    own = [classification_metrics(s, classes, num_bootstrap=1).value("top1") for s in (a, b)]
    assert [found.value_a, found.value_b] == pytest.approx(own)
    assert accuracy_values(np.zeros((2, 4)), np.array([0, 3])).tolist() == [0.25, 0.25]


@pytest.mark.parametrize("average", ["macro", "micro"])
def test_f1_is_compared_with_decisions_as_they_are(average: significance.Average) -> None:
    a, b, labels = _multilabel(1)
    decisions = [scores > 0.5 for scores in (a, b)]
    found = compare_f1(*decisions, labels, average=average, num_bootstrap=300, seed=3)
    there = labels.any(axis=0)  # a class without positives is left out of macro F1

    def f1(own: np.ndarray, rows: np.ndarray) -> float:
        kept = labels[rows].any(axis=0) if average == "macro" else np.ones_like(there)
        return float(f1_score(labels[rows][:, kept], own[rows][:, kept], average=average))

    every = np.arange(len(labels))
    assert [found.value_a, found.value_b] == pytest.approx([f1(one, every) for one in decisions])
    generator = np.random.default_rng(3)
    drawn = generator.integers(len(labels), size=(300, len(labels)))
    loop = [f1(decisions[1], rows) - f1(decisions[0], rows) for rows in drawn]
    assert [found.low, found.high] == pytest.approx(np.percentile(loop, [2.5, 97.5]), abs=1e-9)
    same = compare_f1(decisions[0], decisions[0], labels, average=average, num_bootstrap=20)
    assert (same.difference, same.p_value) == (0, 1)
    with pytest.raises(DataError, match=r"decisions_b is \(60, 4\) float"):
        compare_f1(decisions[0], b, labels, average=average)


def test_means_over_classes_are_those_of_the_drawn_rows() -> None:
    generator = np.random.default_rng(8)
    scores = [generator.normal(size=(40, 7)).round(1) for _ in range(2)]
    labels = np.where(np.arange(40) < 2, 6, generator.integers(5, size=40))  # 5 has no sample
    hits = [accuracy_values(one, labels) for one in scores]
    found = compare_class_means(*hits, labels, num_bootstrap=200, seed=3)
    metrics = [classification_metrics(one, labels, num_bootstrap=1) for one in scores]
    own = [one.value("macro_accuracy") for one in metrics]
    assert [found.value_a, found.value_b] == pytest.approx(own)
    loop = []
    for rows in np.random.default_rng(3).integers(40, size=(200, 40)):
        classes = np.unique(labels[rows])  # a class of two samples is lost now and then
        means = [np.mean([one[rows][labels[rows] == c].mean() for c in classes]) for one in hits]
        loop.append(means[1] - means[0])
    assert [found.low, found.high] == pytest.approx(np.percentile(loop, [2.5, 97.5]), abs=1e-9)
    top5 = [accuracy_values(one, labels, 5).mean() for one in scores]
    assert top5 == pytest.approx([one.value("top5") for one in metrics])


def test_holm_rejects_what_its_steps_reject() -> None:
    assert adjust_holm([0.04, 0.01, 0.03, 0.5]) == pytest.approx([0.09, 0.04, 0.09, 0.5])
    assert adjust_holm([0.9, 0.8]) == [1, 1]
    assert adjust_holm([]) == []
    p_values = np.random.default_rng(9).random(12) ** 4
    adjusted = np.array(adjust_holm(list(p_values)))
    for level in (0.01, 0.05, 0.2, 0.6):
        rejected = set()
        for step, place in enumerate(np.argsort(p_values)):  # step by step, as it is defined
            if p_values[place] > level / (12 - step):
                break
            rejected.add(int(place))
        assert set(np.flatnonzero(adjusted <= level).tolist()) == rejected


@pytest.mark.parametrize("average", ["macro", "micro"])
def test_resampled_precision_is_sklearns_on_the_drawn_rows(
    average: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b, labels = _multilabel(1)
    monkeypatch.setattr(significance, "CHUNK", 150)  # several chunks of two resamples each
    found = compare_average_precision(a, b, labels, average=average, num_bootstrap=31, seed=3)  # type: ignore[arg-type]
    generator = np.random.default_rng(3)
    differences = []
    for rows in generator.integers(60, size=(31, 60)):
        known = labels[rows].any(axis=0) | (average == "micro")
        values = [
            average_precision_score(labels[rows][:, known], s[rows][:, known], average=average)
            for s in (a, b)
        ]
        differences.append(values[1] - values[0])
    low, high = np.percentile(differences, [2.5, 97.5])
    assert (found.low, found.high) == pytest.approx((low, high))
    tail = min((np.array(differences) <= 0).sum(), (np.array(differences) >= 0).sum())
    assert found.p_value == pytest.approx(min(1, 2 * (tail + 1) / 32))


def test_p_values_and_intervals_agree_with_the_paired_t_test() -> None:
    generator = np.random.default_rng(4)
    common = generator.normal(size=400)
    a = common + 0.1 * generator.normal(size=400)
    b = common + 0.1 * generator.normal(size=400)
    b += 0.016 - (b - a).mean()
    oracle = ttest_rel(b, a)
    found = compare_means(a, b, num_bootstrap=20_000)
    assert found.difference == pytest.approx(0.016)
    assert 0.01 < oracle.pvalue < 0.05
    assert found.p_value == pytest.approx(oracle.pvalue, abs=0.01)
    interval = oracle.confidence_interval()
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high), abs=0.001)


def test_p_values_of_equal_models_are_uniform() -> None:
    generator = np.random.default_rng(5)
    p_values = [
        compare_means(*generator.normal(size=(2, 80)), num_bootstrap=300).p_value
        for _ in range(300)
    ]
    assert np.mean(np.array(p_values) < 0.05) == pytest.approx(0.05, abs=0.04)
    assert np.mean(p_values) == pytest.approx(0.5, abs=0.06)


def test_a_model_against_itself_and_against_a_far_better_one() -> None:
    values = np.random.default_rng(6).random(50)
    same = compare_means(values, values)
    assert (same.difference, same.low, same.high, same.p_value) == (0, 0, 0, 1)
    better = compare_means(values, values + 1, num_bootstrap=199)
    assert better.p_value == pytest.approx(2 / 200)
    assert (better.low, better.high) == pytest.approx((1, 1))


def test_a_seed_repeats_itself_and_swapping_the_models_turns_the_sign() -> None:
    a, b, labels = _multilabel(7)
    one = compare_average_precision(a, b, labels, num_bootstrap=50, seed=1)
    assert one == compare_average_precision(a, b, labels, num_bootstrap=50, seed=1)
    assert one.low != compare_average_precision(a, b, labels, num_bootstrap=50, seed=2).low
    turned = compare_average_precision(b, a, labels, num_bootstrap=50, seed=1)
    assert (turned.low, turned.high) == pytest.approx((-one.high, -one.low))
    assert turned.p_value == one.p_value


def test_queries_without_a_value_are_left_out() -> None:
    a, b = np.array([0.0, 1, np.nan, 1]), np.array([1.0, 1, np.nan, 1])
    assert compare_means(a, b).num_samples == 3
    assert compare_means(a, b).difference == pytest.approx(1 / 3)


ONES, YES = np.ones((2, 3)), np.ones((2, 3), dtype=bool)


@pytest.mark.parametrize(
    ("call", "told"),
    [
        (lambda: compare_means(ONES[0], ONES[0, :2]), "of the same samples"),
        (lambda: compare_means(ONES[0], ONES[0] * np.nan), "for different samples"),
        (lambda: compare_means(ONES[0, :0], ONES[0, :0]), "no sample"),
        (lambda: compare_means(ONES[0], ONES[0], num_bootstrap=0), "num_bootstrap is 0"),
        (lambda: compare_class_means(ONES[0], ONES[0], np.arange(2)), "and their classes"),
        (lambda: compare_class_means(ONES[0], ONES[0] * np.nan, np.arange(3)), "a or b has NaN"),
        (lambda: compare_accuracy(ONES, ONES, np.array([0, 3])), "expected 0 to 2"),
        (lambda: accuracy_values(ONES[0], np.array([0])), r"expected \(N, K\)"),
        (lambda: compare_average_precision(ONES, ONES, YES & ~YES), "0 positives"),
        (lambda: compare_average_precision(ONES, ONES[:1], YES), r"scores_b is \(1, 3\)"),
        (lambda: compare_average_precision(ONES * np.inf, ONES, YES), "scores_a has NaN"),
    ],
)
def test_unusable_input_is_refused(call: object, told: str) -> None:
    with pytest.raises(DataError, match=told):
        call()  # type: ignore[operator]
