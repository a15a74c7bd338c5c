"""Decisions and probabilities from scores: thresholds, Platt scaling, calibration error.

N samples, K classes. What is chosen or fitted (thresholds, scale and bias) comes from validation
data and is then applied to test data; no function here sees both.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit
from scipy.stats import binned_statistic
from sklearn.linear_model import LogisticRegression

from terralign.errors import DataError
from terralign.evaluation.bootstrap import Floats
from terralign.evaluation.metrics import check_label_sets, check_scores, rank_labels

NUM_BINS = 15
"""Bins of a reliability curve, as Guo et al. (2017) have them."""

Flags = NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True, slots=True)
class Thresholds:
    """The lowest scores at which classes are assigned.

    `per_class`: (K,) float64, each the best for its class; `overall`: one for all classes. A class
    without positives in the validation data has the overall one, and is counted.
    """

    per_class: Floats
    overall: float
    num_classes_without_positives: int


@dataclass(frozen=True, kw_only=True, slots=True)
class PlattScaling:
    """Probabilities sigma(scale * score + bias)."""

    scale: float
    bias: float

    def probabilities(self, scores: Floats) -> Floats:
        """Probabilities (0-1), of the shape of `scores`, float64."""
        return np.asarray(expit(self.scale * scores.astype(np.float64) + self.bias))


@dataclass(frozen=True, kw_only=True, slots=True)
class ReliabilityCurve:
    """How often predictions of each confidence are right.

    `edges`: (M + 1,) of M bins of equal width from 0 to 1. `confidence`, `accuracy`: (M,) means
    over a bin's predictions, NaN in an empty one. `count`: (M,) their number.
    """

    edges: Floats
    confidence: Floats
    accuracy: Floats
    count: NDArray[np.int64]

    def to_json(self) -> dict[str, Any]:
        """Plain values, None in an empty bin."""
        return {
            "edges": self.edges.tolist(),
            "confidence": [None if np.isnan(v) else float(v) for v in self.confidence],
            "accuracy": [None if np.isnan(v) else float(v) for v in self.accuracy],
            "count": self.count.tolist(),
        }

    @property
    def expected_calibration_error(self) -> float:
        """Mean over predictions of |accuracy - confidence| of their bin (Guo et al. 2017)."""
        gaps = np.abs(self.accuracy - self.confidence)
        return float(np.nansum(self.count * gaps) / self.count.sum())


def choose_thresholds(scores: Floats, labels: NDArray[Any]) -> Thresholds:
    """The thresholds with the highest F1 on validation data.

    `scores`: (N, K) float, finite, higher is likelier; `labels`: (N, K) bool. `per_class` maximises
    each class's own F1, `overall` the F1 of all N * K pairs (micro). Of several best ones the
    highest is taken; a threshold is midway between the two scores that it separates. Raises
    `DataError`.
    """
    check_scores(scores)
    check_label_sets(labels, scores.shape)
    overall = best_threshold(scores.ravel(), labels.ravel())
    known = labels.any(axis=0)
    per_class = np.full(scores.shape[1], overall)
    for k in np.flatnonzero(known):
        per_class[k] = best_threshold(scores[:, k], labels[:, k])
    return Thresholds(
        per_class=per_class,
        overall=overall,
        num_classes_without_positives=int(np.count_nonzero(~known)),
    )


def best_threshold(scores: Floats, positive: Flags) -> float:
    """The threshold t with the highest F1 of `scores >= t`, as `choose_thresholds` chooses it.

    `scores`: (N,) float; `positive`: (N,) bool with at least one True. From counts, not from
    scikit-learn's precision and recall, whose rounding would decide between equal values of F1.
    """
    order = np.argsort(-scores, kind="stable")
    ranked = scores[order].astype(np.float64)
    ends = np.flatnonzero(np.append(ranked[1:] != ranked[:-1], True))
    found = np.cumsum(positive[order])
    f1 = 2 * found[ends] / (ends + 1 + found[-1])
    end = ends[np.argmax(f1)]
    if end + 1 == len(ranked):
        return float(ranked[end])
    middle = ranked[end + 1] + (ranked[end] - ranked[end + 1]) / 2
    return float(middle if middle > ranked[end + 1] else ranked[end])


def decide(scores: Floats, thresholds: Floats | float) -> Flags:
    """(N, K) bool: which classes are assigned. `thresholds`: (K,) or one for all, in float64."""
    return np.asarray(scores >= np.asarray(thresholds, dtype=np.float64))


def fit_platt(scores: Floats, labels: NDArray[Any]) -> PlattScaling:
    """Scale and bias of sigma(scale * score + bias) with the highest likelihood.

    `scores`: (N, K) float, such as cosines; all of them share the two numbers. `labels`: (N, K)
    bool. The targets are Platt's (1999), (P + 1) / (P + 2) for P positives and 1 / (M + 2) for M
    negatives, so that the scale stays finite where a threshold separates the two. A soft target is
    a score with both labels, each by its weight. Raises `DataError`.
    """
    check_scores(scores)
    check_label_sets(labels, scores.shape)
    positive = labels.ravel()
    num_positives = int(positive.sum())
    num_negatives = len(positive) - num_positives
    if not num_negatives:
        raise DataError("all labels are positive; Platt scaling needs negatives too")
    mean = float(scores.mean(dtype=np.float64))
    spread = float(scores.std(dtype=np.float64))
    if spread <= 1e-12 * max(1.0, abs(mean)):
        raise DataError("all scores are the same; there is nothing to scale")
    standardised = (scores.ravel().astype(np.float64) - mean) / spread
    target = np.where(positive, (num_positives + 1) / (num_positives + 2), 1 / (num_negatives + 2))
    model = LogisticRegression(C=np.inf, solver="newton-cholesky", tol=1e-10)
    model.fit(
        np.tile(standardised, 2)[:, None],
        np.repeat([True, False], len(target)),
        sample_weight=np.concatenate([target, 1 - target]),
    )
    slope, offset = float(model.coef_[0, 0]), float(model.intercept_[0])
    return PlattScaling(scale=slope / spread, bias=offset - slope * mean / spread)


def reliability_curve(
    probabilities: Floats, outcomes: NDArray[Any], *, num_bins: int = NUM_BINS
) -> ReliabilityCurve:
    """The curve of binary or multi-label probabilities, every pair a prediction of its own.

    `probabilities`: (N,) or (N, K), 0-1; `outcomes`: the same shape, bool, or shares 0-1 of being
    right (which scikit-learn's `calibration_curve` does not take). A bin holds its lower edge; 1 is
    in the last one. Raises `DataError`.
    """
    if outcomes.shape != probabilities.shape or not probabilities.size:
        raise DataError(f"outcomes is {outcomes.shape}, probabilities is {probabilities.shape}")
    if not ((probabilities >= 0) & (probabilities <= 1)).all():
        raise DataError(
            f"probabilities go from {probabilities.min()} to {probabilities.max()}; expected 0 to "
            "1 (softmax, or fit_platt, make them from scores)"
        )
    flat = probabilities.ravel().astype(np.float64)
    (confidence, accuracy), edges, bins = binned_statistic(
        flat, [flat, outcomes.ravel().astype(np.float64)], bins=num_bins, range=(0, 1)
    )
    count = np.bincount(bins - 1, minlength=num_bins)
    return ReliabilityCurve(edges=edges, confidence=confidence, accuracy=accuracy, count=count)


def top_label_curve(
    probabilities: Floats, labels: NDArray[Any], *, num_bins: int = NUM_BINS
) -> ReliabilityCurve:
    """The curve of single-label probabilities: how often the likeliest class is the right one.

    `probabilities`: (N, K), 0-1, rows that sum to 1; `labels`: (N,) integers. Where t classes are
    equally likely, the right one among them counts 1 / t. Raises `DataError`.
    """
    above, tied = rank_labels(probabilities, labels)
    right = (above == 0) / (tied + 1)
    return reliability_curve(probabilities.max(axis=1), right, num_bins=num_bins)
