"""Thresholds, Platt scaling and calibration error against scikit-learn and torchmetrics."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize
from sklearn.calibration import calibration_curve
from sklearn.metrics import f1_score
from torchmetrics.functional.classification import (
    binary_calibration_error,
    multiclass_calibration_error,
)

from terralign.errors import DataError
from terralign.evaluation.calibration import (
    best_threshold,
    choose_thresholds,
    decide,
    fit_platt,
    reliability_curve,
    top_label_curve,
)


def _multilabel(seed: int, num: int = 300, classes: int = 6) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    labels = generator.random((num, classes)) < np.linspace(0.05, 0.6, classes)
    scores = 0.2 + 0.05 * labels + 0.04 * generator.normal(size=labels.shape)
    return scores.astype(np.float32), labels


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 10_000), st.integers(1, 25), st.booleans())
def test_no_other_threshold_has_a_higher_f1(seed: int, num: int, coarse: bool) -> None:
    generator = np.random.default_rng(seed)
    scores = generator.normal(size=num).astype(np.float32)
    if coarse:
        scores = scores.round()
    positive = generator.random(num) < 0.4
    positive[generator.integers(num)] = True
    threshold = best_threshold(scores, positive)
    own = f1_score(positive, decide(scores, threshold))
    others = {float(t): f1_score(positive, scores >= t) for t in scores}
    assert own == pytest.approx(max(others.values()))
    # Of the best ones it is the highest: no score that it lets in could be left out as well.
    lowest_in = scores[scores >= np.float64(threshold)].min()
    assert lowest_in == max(t for t, f1 in others.items() if f1 == pytest.approx(own))


def test_a_threshold_lies_midway_even_between_neighbouring_numbers() -> None:
    assert best_threshold(np.array([0.0, 1.0, 3.0]), np.array([False, False, True])) == 2
    one = np.float32(0.25)
    above = np.nextafter(one, np.float32(1))
    scores = np.array([one, above])
    threshold = best_threshold(scores, np.array([False, True]))
    assert decide(scores, threshold).tolist() == [False, True]
    close = np.array([1.0, np.nextafter(1.0, 2)])
    assert decide(close, best_threshold(close, np.array([False, True]))).tolist() == [False, True]


def test_thresholds_are_the_best_for_each_class_and_overall() -> None:
    scores, labels = _multilabel(0)
    labels[:, 2] = False
    thresholds = choose_thresholds(scores, labels)
    assert thresholds.num_classes_without_positives == 1
    assert thresholds.per_class[2] == thresholds.overall
    for k in (0, 1, 3, 4, 5):
        assert thresholds.per_class[k] == best_threshold(scores[:, k], labels[:, k])
    tried = [
        f1_score(labels, scores >= t, average="micro", zero_division=0)
        for t in np.linspace(scores.min(), scores.max(), 200)
    ]
    own = f1_score(labels, decide(scores, thresholds.overall), average="micro")
    assert own >= max(tried) > own - 0.01


def test_platt_scaling_has_the_highest_likelihood_of_platts_targets() -> None:
    scores, labels = _multilabel(2)
    flat, positive = scores.ravel().astype(float), labels.ravel()
    num_positives, num_negatives = positive.sum(), (~positive).sum()
    up, down = (num_positives + 1) / (num_positives + 2), 1 / (num_negatives + 2)
    target = np.where(positive, up, down)

    def loss(theta: np.ndarray) -> float:
        logit = theta[0] * (flat - 0.2) / 0.05 + theta[1]
        return float((np.logaddexp(0, logit) - target * logit).mean())

    slope, offset = minimize(loss, [0, 0], options={"gtol": 1e-8}).x
    fitted = fit_platt(scores, labels)
    assert fitted.scale == pytest.approx(slope / 0.05, rel=1e-4)
    assert fitted.bias == pytest.approx(offset - 0.2 * slope / 0.05, rel=1e-4)
    # The mean probability is the mean target: the fit is at the maximum.
    assert fitted.probabilities(scores).mean() == pytest.approx(target.mean(), abs=1e-9)


def test_platt_scaling_calibrates_and_stays_finite_on_separated_classes() -> None:
    scores, labels = _multilabel(3, num=4000)
    fitted = fit_platt(scores[:2000], labels[:2000])
    raw = reliability_curve(scores, labels).expected_calibration_error
    own = fitted.probabilities(scores[2000:])
    assert reliability_curve(own, labels[2000:]).expected_calibration_error < 0.03 < raw / 2
    separated = np.array([[0.1], [0.2], [0.3], [0.4]])
    fitted = fit_platt(separated, separated > 0.25)
    assert 0 < fitted.scale < 1e3
    assert fitted.probabilities(np.array([0.25])) == pytest.approx(0.5, abs=1e-6)


@pytest.mark.parametrize("num_bins", [1, 10, 15])
def test_calibration_error_equals_torchmetrics(num_bins: int) -> None:
    generator = np.random.default_rng(4)
    probabilities = generator.random((500, 3))
    labels = generator.random((500, 3)) < probabilities**2
    own = reliability_curve(probabilities, labels, num_bins=num_bins).expected_calibration_error
    oracle = binary_calibration_error(
        torch.from_numpy(probabilities.ravel()),
        torch.from_numpy(labels.ravel()),
        n_bins=num_bins,
        norm="l1",
    )
    assert own == pytest.approx(float(oracle), abs=1e-6)

    logits = torch.from_numpy(generator.normal(size=(500, 7)))
    classes = generator.integers(7, size=500)
    softmax = logits.softmax(dim=1)
    curve = top_label_curve(softmax.numpy(), classes, num_bins=num_bins)
    oracle = multiclass_calibration_error(
        softmax, torch.from_numpy(classes), num_classes=7, n_bins=num_bins, norm="l1"
    )
    assert curve.expected_calibration_error == pytest.approx(float(oracle), abs=1e-6)
    assert curve.count.sum() == 500


def test_a_reliability_curve_equals_sklearns_where_it_has_points() -> None:
    generator = np.random.default_rng(5)
    probabilities = generator.random(400) * 0.7  # the upper bins stay empty
    labels = generator.random(400) < probabilities
    curve = reliability_curve(probabilities, labels, num_bins=10)
    accuracy, confidence = calibration_curve(labels, probabilities, n_bins=10)
    filled = curve.count > 0
    assert filled.tolist() == [True] * 7 + [False] * 3
    assert curve.accuracy[filled] == pytest.approx(accuracy)
    assert curve.confidence[filled] == pytest.approx(confidence)
    assert np.isnan(curve.accuracy[~filled]).all()


def test_edges_belong_to_the_upper_bin_and_one_to_the_last() -> None:
    curve = reliability_curve(np.array([0.0, 0.5, 1.0]), np.array([0, 1, 1]), num_bins=2)
    assert curve.count.tolist() == [1, 2]
    assert curve.expected_calibration_error == pytest.approx(2 / 3 * 0.25)


def test_classes_that_are_equally_likely_share_the_hit() -> None:
    curve = top_label_curve(np.full((4, 4), 0.25), np.array([0, 1, 2, 3]), num_bins=1)
    assert curve.accuracy.tolist() == [0.25]
    assert curve.expected_calibration_error == 0


YES = np.array([[True, False]])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: choose_thresholds(np.zeros((1, 2)), ~YES & YES), "no positive at all"),
        (lambda: choose_thresholds(np.zeros((1, 3)), YES), r"labels is \(1, 2\) bool"),
        (lambda: choose_thresholds(np.full((1, 2), np.nan), YES), "NaN"),
        (lambda: fit_platt(np.zeros((1, 2)), YES), "all scores are the same"),
        (lambda: fit_platt(np.zeros((1, 2)), YES | True), "needs negatives"),
        (lambda: reliability_curve(np.array([1.5]), np.array([1])), "expected 0 to 1"),
        (lambda: reliability_curve(np.array([0.5]), np.array([1, 0])), r"outcomes is \(2,\)"),
        (lambda: top_label_curve(np.full((1, 2), 0.5), np.array([2])), "expected 0 to 1"),
    ],
)
def test_unusable_input_is_refused(call: object, message: str) -> None:
    with pytest.raises(DataError, match=message):
        call()  # type: ignore[operator]
