"""Metrics against hand-computed matrices, scikit-learn, torchmetrics and each other."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest
from sklearn.metrics import average_precision_score, balanced_accuracy_score, f1_score
from torchmetrics.functional.classification import multiclass_accuracy

from terralign.errors import DataError
from terralign.evaluation.average_precision import average_precision_statistic
from terralign.evaluation.bootstrap import (
    bias_corrected_interval,
    observe,
    percentile_interval,
    resample,
    resamples,
)
from terralign.evaluation.metrics import (
    classification_metrics,
    f1_metrics,
    hit_probability,
    multilabel_metrics,
    top1_accuracy,
)

FOUR_BY_EIGHT = np.array(
    [
        [8, 7, 6, 5, 4, 3, 2, 1],  # label 0: rank 1
        [8, 7, 6, 5, 4, 3, 2, 1],  # label 3: rank 4
        [1, 2, 3, 4, 5, 6, 7, 8],  # label 0: rank 8
        [1, 5, 5, 2, 2, 2, 2, 0],  # label 5: ranks 3 to 6 tied, three of the four within 5
    ],
    dtype=np.float32,
)
FOUR_LABELS = np.array([0, 3, 0, 5])


def test_accuracies_of_a_hand_computed_matrix() -> None:
    result = classification_metrics(FOUR_BY_EIGHT, FOUR_LABELS, num_bootstrap=20)
    assert result.value("top1") == 1 / 4
    assert result.value("top5") == (1 + 1 + 0 + 3 / 4) / 4
    assert result.value("macro_accuracy") == pytest.approx((1 / 2 + 0 + 0) / 3)
    assert [score.value for score in result.per_class] == [0.5, None, None, 0, None, 0, None, None]
    assert [score.num_samples for score in result.per_class] == [2, 0, 0, 1, 0, 1, 0, 0]
    assert "5 of 8 classes" in result.notes[0]
    assert [metric.chance for metric in result.metrics] == [1 / 8, 5 / 8, 1 / 8]
    assert {metric.num_samples for metric in result.metrics} == {4}


def test_accuracies_equal_torchmetrics_and_sklearn() -> None:
    generator = np.random.default_rng(0)
    labels = generator.integers(7, size=300)
    scores = generator.normal(size=(300, 7)).astype(np.float32)
    scores[np.arange(300), labels] += 1
    result = classification_metrics(scores, labels, num_bootstrap=10)
    inputs = torch.from_numpy(scores), torch.from_numpy(labels)
    for name, top_k in (("top1", 1), ("top5", 5)):
        oracle = multiclass_accuracy(*inputs, num_classes=7, average="micro", top_k=top_k)
        assert result.value(name) == pytest.approx(float(oracle), abs=1e-6)
    assert result.value("macro_accuracy") == pytest.approx(
        balanced_accuracy_score(labels, scores.argmax(axis=1))
    )


def test_top5_is_absent_where_it_says_nothing() -> None:
    names = [m.name for m in classification_metrics(np.eye(5), np.arange(5)).metrics]
    assert names == ["top1", "macro_accuracy"]


def test_a_score_that_says_nothing_is_at_chance() -> None:
    labels = np.array([0, 1, 1, 6, 5, 5])
    single = classification_metrics(np.zeros((6, 7)), labels, num_bootstrap=5)
    sets = np.eye(7, dtype=bool)[labels]
    for metric in single.metrics:
        assert metric.value == pytest.approx(metric.chance), metric.name
    # Equal scores share one threshold: average precision is the share of positives.
    multi = multilabel_metrics(np.zeros((6, 7)), sets, num_bootstrap=5)
    assert multi.value("macro_map") == pytest.approx(np.mean([1 / 6, 2 / 6, 2 / 6, 1 / 6]))
    assert multi.value("micro_map") == pytest.approx(1 / 7)


def test_chance_of_average_precision_is_its_mean_over_all_orders() -> None:
    labels = np.array([[1, 0, 0], [1, 0, 0], [0, 1, 0]], dtype=bool)
    result = multilabel_metrics(np.zeros(labels.shape), labels, num_bootstrap=5)
    two_of_three = (1 + (1 + 2 / 3) / 2 + (1 / 2 + 2 / 3) / 2) / 3
    one_of_three = (1 + 1 / 2 + 1 / 3) / 3
    assert result.metric("macro_map").chance == pytest.approx((two_of_three + one_of_three) / 2)
    orders = [np.isin(np.arange(9), places) for places in combinations(range(9), 3)]
    micro = np.mean([average_precision_score(order, -np.arange(9)) for order in orders])
    assert result.metric("micro_map").chance == pytest.approx(micro)


@pytest.mark.parametrize("average", ["macro", "micro"])
def test_f1_equals_sklearn(average: str) -> None:
    generator = np.random.default_rng(1)
    labels = generator.random((300, 6)) < np.linspace(0.05, 0.6, 6)
    decisions = (labels + generator.normal(size=labels.shape)) > 0.7
    metric = f1_metrics(decisions, labels, num_bootstrap=20).metric(f"{average}_f1")
    assert metric.value == pytest.approx(f1_score(labels, decisions, average=average))
    assert metric.chance == pytest.approx(f1_score(labels, labels | True, average=average))
    assert metric.low < metric.value < metric.high < metric.low + 0.2
    per_class = f1_metrics(decisions, labels, num_bootstrap=1).per_class
    oracle = f1_score(labels, decisions, average=None)
    assert [score.value for score in per_class] == pytest.approx(oracle.tolist())


def test_f1_leaves_out_classes_without_positives_and_is_zero_without_decisions() -> None:
    labels = np.array([[True, False], [True, False]])
    result = f1_metrics(np.array([[True, True], [False, False]]), labels, num_bootstrap=5)
    assert result.value("macro_f1") == pytest.approx(2 / 3)
    assert result.value("micro_f1") == pytest.approx(2 / 4)
    assert result.per_class[1].value is None
    assert "1 of 2 classes" in result.notes[0]
    none = f1_metrics(np.zeros((2, 2), dtype=bool), labels, num_bootstrap=5)
    assert [metric.value for metric in none.metrics] == [0, 0]
    with pytest.raises(DataError, match=r"decisions is \(2, 2\) float64; expected"):
        f1_metrics(labels.astype(float), labels)
    with pytest.raises(DataError, match="no positive"):
        f1_metrics(labels, labels & ~labels)


def test_equal_scores_share_a_top1_hit() -> None:
    assert top1_accuracy(np.zeros((2, 4)), np.array([0, 3])) == 0.25
    with pytest.raises(DataError, match=r"scores is \(4,\) float64; expected \(N, K\)"):
        top1_accuracy(np.zeros(4), np.array([0]))


def test_hit_probability_is_the_mean_over_all_orders_of_ties() -> None:
    above, tied = np.array([0, 2, 4, 9]), np.array([0, 3, 0, 5])
    for k in range(1, 17):
        expected = [
            np.mean(np.arange(a + 1, a + t + 2) <= k) for a, t in zip(above, tied, strict=True)
        ]
        np.testing.assert_allclose(hit_probability(above, tied, k), expected)


def test_one_of_several_right_answers_is_hit_as_often_as_over_all_draws() -> None:
    above, tied, own = np.array([0, 1, 2]), np.array([3, 2, 0]), np.array([2, 3, 2])
    for k in range(1, 9):
        expected = []
        for a, t, n in zip(above, tied + own, own, strict=True):
            draws = [*combinations(range(t), int(np.clip(k - a, 0, t)))]
            expected.append(np.mean([min(draw, default=t) < n for draw in draws]))
        np.testing.assert_allclose(hit_probability(above, tied, k, own), expected)


def _multilabel(num_samples: int, *, ties: bool) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(num_samples)
    labels = generator.random((num_samples, 5)) < [0.5, 0.1, 0.3, 0, 0.7]
    scores = generator.normal(size=labels.shape) + labels
    return (np.round(scores, 0 if ties else 9)), labels


@pytest.mark.parametrize("ties", [False, True])
def test_average_precision_equals_sklearn(ties: bool) -> None:
    scores, labels = _multilabel(200, ties=ties)
    result = multilabel_metrics(scores, labels, num_bootstrap=10)
    precisions = [average_precision_score(labels[:, k], scores[:, k]) for k in (0, 1, 2, 4)]
    assert result.value("macro_map") == pytest.approx(np.mean(precisions))
    assert result.value("micro_map") == pytest.approx(
        average_precision_score(labels, scores, average="micro")
    )
    assert [result.per_class[k].value for k in (0, 1, 2, 4)] == pytest.approx(precisions)
    assert result.per_class[3].value is None
    assert "1 of 5 classes have no positives" in result.notes[0]


def test_average_precision_of_a_hand_computed_matrix() -> None:
    labels = np.array([[1, 0], [0, 0], [1, 0], [0, 1]], dtype=bool)
    scores = np.array([[4, 1], [3, 2], [2, 3], [1, 1]], dtype=np.float64)
    result = multilabel_metrics(scores, labels, num_bootstrap=5)
    assert result.per_class[0].value == pytest.approx((1 + 2 / 3) / 2)
    assert result.per_class[1].value == pytest.approx(1 / 4)  # tied with sample 0 at the end


def test_resampled_average_precision_equals_sklearn_on_the_repeated_rows() -> None:
    scores, labels = _multilabel(60, ties=True)
    result = multilabel_metrics(scores, labels, num_bootstrap=40, seed=3)
    macro, micro = [], []
    for counts in np.concatenate([*resamples(60, num_bootstrap=40, seed=3)]):
        rows = np.repeat(np.arange(60), counts)
        present = labels[rows].any(axis=0)
        macro.append(average_precision_score(labels[rows][:, present], scores[rows][:, present]))
        micro.append(average_precision_score(labels[rows], scores[rows], average="micro"))
    for name, values in (("macro_map", macro), ("micro_map", micro)):
        metric = result.metric(name)
        unbiased = values - 2 * (np.mean(values) - metric.value)
        assert [metric.low, metric.high] == pytest.approx(np.percentile(unbiased, [2.5, 97.5]))


def test_intervals_of_average_precision_cover_that_of_the_population() -> None:
    # Normal scores, those of positives one standard deviation higher; a tenth are positive.
    scores = np.linspace(-9, 10, 20_001)
    positive, other = (np.exp(-((scores - mean) ** 2) / 2) for mean in (1, 0))
    above = np.cumsum([0.1 * positive[::-1], 0.9 * other[::-1]], axis=1)
    truth = float((positive[::-1] * above[0] / above.sum(axis=0)).sum() / positive.sum())
    generator = np.random.default_rng(0)
    num_covered, num_biased = 0, 0
    for seed in range(200):
        labels = generator.random((500, 6)) < 0.1
        drawn = generator.normal(size=labels.shape) + labels
        statistic = average_precision_statistic(drawn, labels, "macro")
        value = float(observe(statistic, 500)[0])
        resampled = resample(statistic, 500, num_bootstrap=100, seed=seed)[:, 0]
        low, high = bias_corrected_interval(value, resampled)
        num_covered += low <= truth <= high
        low, high = percentile_interval(value, resampled)
        num_biased += low <= truth <= high
    assert binomtest(num_covered, 200, 0.95).pvalue > 0.01
    assert binomtest(num_biased, 200, 0.95).pvalue < 1e-6  # percentiles that keep their bias


def test_intervals_without_bias_stay_in_range_and_hold_the_value() -> None:
    assert bias_corrected_interval(0.5, np.array([0.6, 0.7, np.nan, 0.8])) == pytest.approx(
        (0.205, 0.5)
    )
    assert bias_corrected_interval(0.95, np.array([0.7, 0.8, 0.95])) == (0.95, 1)
    assert bias_corrected_interval(0.1, np.array([0.3, 0.2])) == (0, 0.1)
    assert bias_corrected_interval(0.3, np.array([np.nan])) == (0.3, 0.3)


def test_classes_with_few_positives_are_noted() -> None:
    labels = np.arange(60)[:, None] < [0, 1, 19, 20]
    result = multilabel_metrics(np.zeros(labels.shape), labels, num_bootstrap=1)
    assert len(result.notes) == 2
    assert "1 of 4 classes have no positives" in result.notes[0]
    assert "2 of 4 classes have 1 to 19 positives" in result.notes[1]
    assert not multilabel_metrics(np.zeros((60, 1)), labels[:, 3:], num_bootstrap=1).notes


def test_resampled_accuracy_equals_sklearn_on_the_repeated_rows() -> None:
    generator = np.random.default_rng(1)
    labels, scores = generator.integers(3, size=50), generator.normal(size=(50, 3))
    result = classification_metrics(scores, labels, num_bootstrap=60, seed=8)
    top1, macro = [], []
    for counts in np.concatenate([*resamples(50, num_bootstrap=60, seed=8)]):
        rows = np.repeat(np.arange(50), counts)
        guesses = scores[rows].argmax(axis=1)
        top1.append((guesses == labels[rows]).mean())
        macro.append(balanced_accuracy_score(labels[rows], guesses))
    for name, values in (("top1", top1), ("macro_accuracy", macro)):
        metric = result.metric(name)
        assert [metric.low, metric.high] == pytest.approx(np.percentile(values, [2.5, 97.5]))


def test_intervals_hold_the_value_narrow_with_samples_and_follow_the_seed() -> None:
    widths = {}
    for num_samples in (50, 5000):
        generator = np.random.default_rng(2)
        labels = generator.integers(4, size=num_samples)
        scores = generator.normal(size=(num_samples, 4)) + np.eye(4)[labels]
        sets = np.eye(4, dtype=bool)[labels]
        results = (classification_metrics(scores, labels), multilabel_metrics(scores, sets))
        for metric in results[0].metrics + results[1].metrics:
            assert metric.low <= metric.value <= metric.high
            widths[metric.name, num_samples] = metric.high - metric.low
        assert results[0] == classification_metrics(scores, labels)
        assert results[0] != classification_metrics(scores, labels, seed=1)
    for name in ("top1", "macro_accuracy", "macro_map", "micro_map"):
        # The standard error falls with the root of N: ten times here.
        assert 6 < widths[name, 50] / widths[name, 5000] < 16


def test_the_interval_of_an_accuracy_is_that_of_a_binomial() -> None:
    hits = np.arange(1000) < 300
    metric = classification_metrics(np.stack([hits, ~hits], 1) * 1.0, np.zeros(1000, dtype=int))
    margin = 1.96 * np.sqrt(0.3 * 0.7 / 1000)
    assert metric.metric("top1").low == pytest.approx(0.3 - margin, abs=0.004)
    assert metric.metric("top1").high == pytest.approx(0.3 + margin, abs=0.004)


def test_a_single_sample_has_an_interval_of_one_point() -> None:
    metric = classification_metrics(np.eye(3)[:1], np.array([0])).metric("top1")
    assert (metric.low, metric.value, metric.high) == (1, 1, 1)


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 30), st.integers(1, 8), st.integers(0, 10_000))
def test_metrics_stay_in_range_and_forget_the_order_of_samples(
    num_samples: int, num_classes: int, seed: int
) -> None:
    generator = np.random.default_rng(seed)
    scores = generator.integers(4, size=(num_samples, num_classes)).astype(np.float32)
    labels = generator.integers(num_classes, size=num_samples)
    order = generator.permutation(num_samples)
    sets = np.eye(num_classes, dtype=bool)[labels]
    here = classification_metrics(scores, labels, num_bootstrap=5).metrics
    here += multilabel_metrics(scores, sets, num_bootstrap=5).metrics
    there = classification_metrics(scores[order], labels[order], num_bootstrap=5).metrics
    there += multilabel_metrics(scores[order], sets[order], num_bootstrap=5).metrics
    for one, other in zip(here, there, strict=True):
        assert 0 <= one.low <= one.value <= one.high <= 1 + 1e-12
        assert one.value == pytest.approx(other.value)


GOOD = np.zeros((3, 2))
SETS = np.ones((3, 2), dtype=bool)


@pytest.mark.parametrize(
    ("scores", "labels", "message"),
    [
        (GOOD, np.array([0, 1]), r"labels is \(2,\) int64; expected \(3,\)"),
        (GOOD, np.array([0, 1, 2]), r"labels\[2\] is 2; expected 0 to 1"),
        (GOOD, np.array([0, -1, 1]), r"labels\[1\] is -1"),
        (GOOD, np.array([0.0, 1, 1]), "float64; expected"),
        (GOOD * np.nan, np.array([0, 1, 1]), "NaN or infinite values in 3 rows"),
        (np.zeros((0, 2)), np.zeros(0, dtype=int), "empty"),
        (np.zeros(3), np.array([0, 1, 1]), r"scores is \(3,\)"),
        (np.zeros((3, 2), dtype=int), np.array([0, 1, 1]), "floating"),
    ],
)
def test_unusable_classification_input_is_refused(
    scores: np.ndarray, labels: np.ndarray, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        classification_metrics(scores, labels)


@pytest.mark.parametrize(
    ("scores", "labels", "message"),
    [
        (GOOD, SETS[:2], r"labels is \(2, 2\) bool; expected \(N, K\) bool, \(3, 2\) here"),
        (GOOD, SETS.astype(int), "int64; expected"),
        (GOOD, ~SETS, "no positive"),
        (GOOD + np.inf, SETS, "infinite"),
    ],
)
def test_unusable_multilabel_input_is_refused(
    scores: np.ndarray, labels: np.ndarray, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        multilabel_metrics(scores, labels)


def test_other_errors_are_reported() -> None:
    with pytest.raises(DataError, match="num_bootstrap is 0"):
        classification_metrics(GOOD, np.array([0, 1, 1]), num_bootstrap=0)
    with pytest.raises(DataError, match="did you mean 'top1'"):
        classification_metrics(GOOD, np.array([0, 1, 1])).value("top2")
