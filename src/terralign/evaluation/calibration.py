"""Decisions and probabilities from scores: thresholds, F1, Platt scaling, calibration error.

N samples, K classes. What is chosen or fitted (thresholds, scale and bias) comes from validation
data and is then applied to test data; no function here sees both.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from terralign.errors import DataError
from terralign.evaluation.metrics import (
    ClassScore,
    Floats,
    Metric,
    MetricResult,
    bootstrap_counts,
    bootstrap_interval,
    check_labels,
    row_slices,
)

CHUNK = 2**20
"""Scores that are worked on at once in passes over all of them."""

MAX_NEWTON_STEPS = 100

Flags = NDArray[np.bool_]
Chunks = Callable[[], Iterator[tuple[Floats, Floats]]]
"""A pass over standardised scores and their targets."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Thresholds:
    """From which score on a class is said to be there.

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
        return _sigmoid(self.scale * scores.astype(np.float64) + self.bias)


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

    @property
    def expected_calibration_error(self) -> float:
        """Mean over predictions of |accuracy - confidence| of their bin (Guo et al. 2017)."""
        gaps = np.abs(self.accuracy - self.confidence)
        return float(np.nansum(self.count * gaps) / self.count.sum())


def choose_thresholds(scores: Floats, labels: NDArray[Any]) -> Thresholds:
    """The thresholds with the highest F1 on validation data.

    `scores`: (N, K) float, finite, higher is likelier; `labels`: (N, K) bool. `per_class` maximises
    each class's own F1, `overall` the F1 of all N * K pairs (micro). Of several best ones the
    highest is taken; a threshold lies midway between the scores that it parts. Raises `DataError`.
    """
    scores, labels = _check_pair(scores, labels, dims=2)
    if not labels.any():
        raise DataError("labels has no positive at all; a threshold needs at least one")
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

    `scores`: (N,) float; `positive`: (N,) bool with at least one True. Raises `DataError`.
    """
    scores, positive = _check_pair(scores, positive, dims=1)
    if not positive.any():
        raise DataError("there is no positive; a threshold needs at least one")
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
    """(N, K) bool: which classes are there. `thresholds`: (K,) or one for all, in float64."""
    return np.asarray(scores >= np.asarray(thresholds, dtype=np.float64))


def f1_metrics(
    decisions: Flags, labels: NDArray[Any], *, num_bootstrap: int = 200, seed: int = 0
) -> MetricResult:
    """`macro_f1` and `micro_f1` of decisions (N, K) bool against labels (N, K) bool.

    F1 = 2 TP / (2 TP + FP + FN). `macro_f1` is the mean over the classes with positives of their
    F1, which are `per_class`; `micro_f1` counts all N * K pairs together. Chance is that of saying
    yes to everything, 2 p / (1 + p) for a share p of positives. A resample that lost all positives
    of a class leaves it out. Raises `DataError`.
    """
    decisions, labels = _check_pair(decisions, labels, dims=2, kind=np.bool_)
    num_samples, num_classes = labels.shape
    positives = labels.sum(axis=0)
    if not positives.any():
        raise DataError("labels has no positive at all; F1 needs at least one")
    # float32 holds every count up to 2**24 exactly.
    precision = np.dtype(np.float32 if num_samples < 2**24 else np.float64)
    columns: Floats = np.concatenate([decisions & labels, decisions, labels], axis=1).astype(
        precision
    )

    def statistics(counts: NDArray[np.int64]) -> tuple[Floats, Floats]:
        weights: Floats = counts.astype(precision)
        hits, said, there = (weights @ columns).astype(np.float64).reshape(3, num_classes)
        per_class = np.where(there > 0, 2 * hits / np.maximum(said + there, 1), np.nan)
        micro = 2 * hits.sum() / max(said.sum() + there.sum(), 1)
        return np.array([np.nanmean(per_class) if there.any() else np.nan, micro]), per_class

    values, per_class = statistics(np.ones(num_samples, dtype=np.int64))
    draws = bootstrap_counts(num_samples, num_bootstrap=num_bootstrap, seed=seed)
    resampled = np.stack([statistics(counts)[0] for counts in draws])
    shares = positives[positives > 0] / num_samples
    everywhere = float(labels.mean())
    chances = [float(np.mean(2 * shares / (1 + shares))), 2 * everywhere / (1 + everywhere)]
    metrics = []
    for column, name in enumerate(("macro_f1", "micro_f1")):
        value = float(values[column])
        low, high = bootstrap_interval(value, resampled[:, column])
        metrics.append(
            Metric(
                name=name,
                value=value,
                low=low,
                high=high,
                num_samples=num_samples,
                chance=chances[column],
            )
        )
    num_empty = int(np.count_nonzero(positives == 0))
    note = f"{num_empty} of {num_classes} classes have no positives and are left out of macro_f1."
    return MetricResult(
        metrics=tuple(metrics),
        per_class=tuple(
            ClassScore(
                index=k,
                value=float(per_class[k]) if positives[k] else None,
                num_samples=int(positives[k]),
            )
            for k in range(num_classes)
        ),
        num_classes_without_positives=num_empty,
        notes=(note,) if num_empty else (),
        outcomes={"decisions": decisions, "labels": labels},
    )


def fit_platt(scores: Floats, labels: NDArray[Any]) -> PlattScaling:
    """Scale and bias of sigma(scale * score + bias) with the highest likelihood.

    `scores`: (N,) or (N, K) float, such as cosines; all of them share the two numbers. `labels`:
    the same shape, bool. The targets are Platt's (1999), (P + 1) / (P + 2) for P positives and
    1 / (M + 2) for M negatives, so that classes that a threshold parts keep a finite scale.
    Newton's method on standardised scores, in passes over `CHUNK` of them. Raises `DataError`.
    """
    scores, labels = _check_pair(scores, labels, dims=None)
    scores, labels = scores.ravel(), labels.ravel()
    num_positives = int(labels.sum())
    if num_positives in (0, len(labels)):
        raise DataError(
            f"{num_positives} of {len(labels)} labels are positive; Platt scaling needs both kinds"
        )
    mean = float(scores.mean(dtype=np.float64))
    spread = float(scores.std(dtype=np.float64))
    if spread <= 1e-12 * max(1.0, abs(mean)):
        raise DataError("all scores are the same; they say nothing to scale")
    target = (num_positives + 1) / (num_positives + 2)
    other = 1 / (len(labels) - num_positives + 2)

    def chunks() -> Iterator[tuple[Floats, Floats]]:
        for rows in row_slices(len(scores), CHUNK):
            standardised = (scores[rows].astype(np.float64) - mean) / spread
            yield standardised, np.where(labels[rows], target, other)

    slope, offset = _newton(chunks, len(scores))
    return PlattScaling(scale=slope / spread, bias=offset - slope * mean / spread)


def reliability_curve(
    probabilities: Floats, outcomes: NDArray[Any], *, num_bins: int = 15
) -> ReliabilityCurve:
    """The curve of binary or multi-label probabilities, every pair a prediction of its own.

    `probabilities`: (N,) or (N, K), 0-1; `outcomes`: the same shape, bool, or shares 0-1 of being
    right. A bin holds its lower edge; 1 is in the last one. Raises `DataError`.
    """
    _check_probabilities(probabilities)
    if outcomes.shape != probabilities.shape:
        raise DataError(f"outcomes is {outcomes.shape}; expected {probabilities.shape}")
    if num_bins < 1:
        raise DataError(f"num_bins is {num_bins}; expected at least 1")
    edges = np.linspace(0, 1, num_bins + 1)
    bins = np.searchsorted(edges[1:-1], probabilities.ravel(), side="right")
    count = np.bincount(bins, minlength=num_bins)
    confidence, accuracy = (
        np.bincount(bins, weights=values.ravel().astype(np.float64), minlength=num_bins)
        / np.where(count > 0, count, np.nan)
        for values in (probabilities, outcomes)
    )
    return ReliabilityCurve(edges=edges, confidence=confidence, accuracy=accuracy, count=count)


def top_label_curve(
    probabilities: Floats, labels: NDArray[Any], *, num_bins: int = 15
) -> ReliabilityCurve:
    """The curve of single-label probabilities: how often the likeliest class is the right one.

    `probabilities`: (N, K), 0-1, rows that sum to 1; `labels`: (N,) integers. Where t classes are
    equally likely, the right one among them counts 1 / t. Raises `DataError`.
    """
    _check_probabilities(probabilities)
    if probabilities.ndim != 2 or not np.allclose(probabilities.sum(axis=1), 1, atol=1e-3):
        raise DataError(
            f"probabilities is {probabilities.shape} with rows that do not sum to 1; expected "
            "(N, K) probabilities of classes that exclude each other, as softmax gives them"
        )
    labels = check_labels(labels, *probabilities.shape, name="labels")
    highest = probabilities.max(axis=1)
    own = np.take_along_axis(probabilities, labels[:, None], axis=1)[:, 0]
    tied = np.count_nonzero(probabilities == highest[:, None], axis=1)
    return reliability_curve(highest, (own == highest) / tied, num_bins=num_bins)


def _newton(chunks: Chunks, num_scores: int) -> tuple[float, float]:
    """Slope and offset (2,) with the lowest mean cross-entropy over chunks of (z, target)."""
    theta = np.zeros(2)
    loss = _mean_loss(chunks, theta, num_scores)
    for _ in range(MAX_NEWTON_STEPS):
        gradient, hessian = np.zeros(2), np.zeros((2, 2))
        for z, target in chunks():
            p = _sigmoid(theta[0] * z + theta[1])
            weight = p * (1 - p)
            gradient += (p - target) @ np.stack([z, np.ones_like(z)], axis=1)
            cross = weight @ z
            hessian += [[weight @ (z * z), cross], [cross, weight.sum()]]
        if np.abs(gradient).max() <= 1e-10 * num_scores:
            break
        step = np.linalg.solve(hessian + 1e-12 * num_scores * np.eye(2), gradient)
        size = 1.0
        while (trial := _mean_loss(chunks, theta - size * step, num_scores)) > loss and size > 1e-9:
            size /= 2
        if size <= 1e-9:
            break
        theta, loss = theta - size * step, trial
    return float(theta[0]), float(theta[1])


def _mean_loss(chunks: Chunks, theta: Floats, num_scores: int) -> float:
    total = 0.0
    for z, target in chunks():
        logit = theta[0] * z + theta[1]
        total += float((np.logaddexp(0, logit) - target * logit).sum())
    return total / num_scores


def _sigmoid(logits: Floats) -> Floats:
    return np.asarray((1 + np.tanh(logits / 2)) / 2)


def _check_probabilities(probabilities: Floats) -> None:
    if not probabilities.size or not np.issubdtype(probabilities.dtype, np.floating):
        raise DataError(
            f"probabilities is {probabilities.shape} {probabilities.dtype}; expected floating-point"
        )
    if not ((probabilities >= 0) & (probabilities <= 1)).all():
        raise DataError(
            f"probabilities go from {probabilities.min()} to {probabilities.max()}; expected 0 to "
            "1 (softmax, or fit_platt, make them from scores)"
        )


def _check_pair(
    given: NDArray[Any], labels: NDArray[Any], *, dims: int | None, kind: Any = np.floating
) -> tuple[NDArray[Any], Flags]:
    """Scores or decisions, and bool labels of their shape, or a `DataError`."""
    if (dims is not None and given.ndim != dims) or not np.issubdtype(given.dtype, kind):
        what = "bool decisions" if kind is np.bool_ else "floating-point scores"
        raise DataError(f"expected {what} of {dims or 'any'} axes; got {given.shape} {given.dtype}")
    if not given.size:
        raise DataError(f"there is nothing to measure: the array is empty ({given.shape})")
    if labels.shape != given.shape or labels.dtype != np.bool_:
        raise DataError(f"labels is {labels.shape} {labels.dtype}; expected {given.shape} bool")
    if kind is np.floating and not np.isfinite(given).all():
        raise DataError("scores has NaN or infinite values")
    return given, labels
