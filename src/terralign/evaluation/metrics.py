"""Metrics on plain arrays, each with a bootstrap interval, its number of samples and its chance.

N samples, K classes. Metrics are fractions of 1.

*Ties* count at their expected value: where the right answer shares its score with others, every
order among them is equally likely. `multilabel_metrics` is the exception: tied scores share one
threshold. *Chance* is the expected value of a ranking at random, and of F1 that of deciding for
every class. *Intervals* are bootstrap 95 % intervals over samples (`bootstrap.py`), widened where
needed so that they hold the value itself: percentiles of the resampled values, of average precision
less their bias.

Retrieval is in `ranking.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from terralign.errors import DataError, nearest
from terralign.evaluation.average_precision import (
    average_precision_statistic,
    random_average_precision,
)
from terralign.evaluation.bootstrap import (
    Floats,
    Statistic,
    bias_corrected_interval,
    class_mean_statistic,
    f1_statistic,
    macro_mean,
    mean_statistic,
    observe,
    percentile_interval,
    resample,
    side_by_side,
)

Outcomes = dict[str, NDArray[Any]]
"""Values of every sample or query by name, (N,) or (N, K)."""

FEW_POSITIVES = 20
"""With fewer, a class's average precision comes out too high: by simulation up to 28 points with
one positive, 7 with ten, 4 with twenty, 2 with fifty."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Metric:
    """One metric. `value`, `low`, `high`, `chance`: fractions of 1; `low <= value <= high`."""

    name: str
    value: float
    low: float
    high: float
    num_samples: int
    chance: float

    def to_row(self) -> dict[str, Any]:
        """The keys of a `Row` that it fills."""
        return {
            "metric": self.name,
            "value": self.value,
            "low": self.low,
            "high": self.high,
            "num_samples": self.num_samples,
            "chance": self.chance,
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class ClassScore:
    """One class: its accuracy, average precision or F1, None without samples (positives)."""

    value: float | None
    num_samples: int


@dataclass(frozen=True, kw_only=True, slots=True)
class MetricResult:
    """The metrics of one evaluation.

    `notes`: what a reader has to know, one sentence each, such as how many classes or queries are
    left out. `outcomes`: what two models are compared by, see `paired.py`.
    """

    metrics: tuple[Metric, ...]
    per_class: tuple[ClassScore, ...] = ()
    notes: tuple[str, ...] = ()
    outcomes: Outcomes = field(default_factory=dict, repr=False, compare=False)

    def metric(self, name: str) -> Metric:
        """The metric called `name`; `DataError` names the nearest known one."""
        for metric in self.metrics:
            if metric.name == name:
                return metric
        known = [metric.name for metric in self.metrics]
        raise DataError(f"no metric {name!r} in this result; {nearest(name, known)}")

    def class_values(self, names: Sequence[str]) -> dict[str, dict[str, Any]]:
        """Class name -> its value and number of samples, as plain values."""
        return {name: asdict(one) for name, one in zip(names, self.per_class, strict=True)}

    def value(self, name: str) -> float:
        """The value of the metric called `name`, a fraction of 1."""
        return self.metric(name).value


def classification_metrics(
    scores: Floats, labels: NDArray[Any], *, num_bootstrap: int = 1000, seed: int = 0
) -> MetricResult:
    """Single-label accuracy: `top1`, `top5` (where K > 5) and `macro_accuracy`.

    `scores`: (N, K) float, finite, higher is likelier. `labels`: (N,) integers, 0 to K - 1.
    `macro_accuracy` is the mean over the classes that have samples of their top-1 accuracies,
    which are `per_class`. Ties: `hit_probability`. Chance: k / K for top-k, 1 / K for the macro
    mean. A resample that lost a class leaves it out of its macro mean. Raises `DataError`.
    """
    above, tied = rank_labels(scores, labels)
    num_classes = scores.shape[1]
    hits = {f"top{k}": hit_probability(above, tied, k) for k in (1, 5) if k == 1 or num_classes > k}
    of_classes = class_mean_statistic(hits["top1"], labels, num_classes)
    metrics = measure(
        [*hits, "macro_accuracy"],
        side_by_side(mean_statistic(np.stack([*hits.values()], axis=1)), macro_mean(of_classes)),
        [int(name[3:]) / num_classes for name in hits] + [1 / num_classes],
        len(labels),
        num_bootstrap=num_bootstrap,
        seed=seed,
    )
    sizes = np.bincount(labels, minlength=num_classes)
    return _with_classes(
        metrics,
        observe(of_classes, len(labels)),
        sizes,
        "samples",
        outcomes={**hits, "labels": labels.astype(np.int64)},
    )


def multilabel_metrics(
    scores: Floats, labels: NDArray[Any], *, num_bootstrap: int = 200, seed: int = 0
) -> MetricResult:
    """Multi-label average precision: `macro_map` and `micro_map`.

    `scores`: (N, K) float, finite, higher is likelier. `labels`: (N, K) bool. `macro_map` is the
    mean over the classes with positives of their average precisions, which are `per_class`;
    `micro_map` ranks all N * K pairs of sample and class together. Average precision is
    scikit-learn's `average_precision_score`: sum over thresholds of (change of recall) *
    precision, tied scores sharing one threshold. Chance is its mean over all orders of the samples
    (of all pairs for micro), `random_average_precision`, averaged for macro over the classes with
    positives; it is higher than the share of positives, which is the value of equal scores.
    Intervals: `bias_corrected_interval`. Classes with 1 to `FEW_POSITIVES` - 1 positives are noted.

    A resample costs a few passes over N * K numbers (some 10 ms for 100,000 x 19): more than
    counting hits, hence fewer resamples than for accuracy. One that lost all positives of a class
    leaves it out. Raises `DataError`.
    """
    check_scores(scores)
    check_label_sets(labels, scores.shape)
    num_samples = len(scores)
    positives = labels.sum(axis=0)
    known = positives > 0
    of_classes = average_precision_statistic(scores, labels)
    metrics = measure(
        ["macro_map", "micro_map"],
        side_by_side(macro_mean(of_classes), average_precision_statistic(scores, labels, "micro")),
        [
            float(random_average_precision(positives[known], num_samples).mean()),
            float(random_average_precision(positives.sum(), labels.size)),
        ],
        num_samples,
        num_bootstrap=num_bootstrap,
        seed=seed,
        interval=bias_corrected_interval,
    )
    precisions = np.full(len(positives), np.nan)
    precisions[known] = observe(of_classes, num_samples)
    num_few = int(np.count_nonzero(known & (positives < FEW_POSITIVES)))
    few = (
        f"{num_few} of {len(positives)} classes have 1 to {FEW_POSITIVES - 1} positives; average "
        "precision of so few tends to come out too high."
    )
    return _with_classes(
        metrics,
        precisions,
        positives,
        "positives",
        notes=[few] if num_few else [],
        outcomes={"scores": scores.astype(np.float32), "labels": labels},
    )


def f1_metrics(
    decisions: NDArray[np.bool_], labels: NDArray[Any], *, num_bootstrap: int = 200, seed: int = 0
) -> MetricResult:
    """`macro_f1` and `micro_f1` of decisions (N, K) bool against labels (N, K) bool.

    `f1_statistic` defines F1. `macro_f1` is the mean over the classes with positives of their F1,
    which are `per_class`; `micro_f1` counts all N * K pairs together. Chance is that of deciding
    for every class, 2 p / (1 + p) for a share p of positives. A resample that lost all positives
    of a class leaves it out. Raises `DataError`.
    """
    check_label_sets(decisions, labels.shape, name="decisions")
    check_label_sets(labels, decisions.shape)
    of_classes = f1_statistic(decisions, labels)
    positives = labels.sum(axis=0)
    shares = positives[positives > 0] / len(labels)
    everywhere = float(labels.mean())
    metrics = measure(
        ["macro_f1", "micro_f1"],
        side_by_side(macro_mean(of_classes), f1_statistic(decisions, labels, "micro")),
        [float(np.mean(2 * shares / (1 + shares))), 2 * everywhere / (1 + everywhere)],
        len(labels),
        num_bootstrap=num_bootstrap,
        seed=seed,
    )
    return _with_classes(
        metrics,
        observe(of_classes, len(labels)),
        positives,
        "positives",
        outcomes={"decisions": decisions, "labels": labels},
    )


def measure(
    names: Sequence[str],
    statistic: Statistic,
    chances: Sequence[float],
    num_samples: int,
    *,
    num_bootstrap: int,
    seed: int,
    interval: Callable[[float, Floats], tuple[float, float]] = percentile_interval,
) -> tuple[Metric, ...]:
    """A metric for each value of `statistic`, its interval from resamples of the samples."""
    values = observe(statistic, num_samples)
    resampled = resample(statistic, num_samples, num_bootstrap=num_bootstrap, seed=seed)
    metrics = []
    for name, value, own, chance in zip(names, values.tolist(), resampled.T, chances, strict=True):
        low, high = interval(value, own)
        metrics.append(
            Metric(
                name=name, value=value, low=low, high=high, num_samples=num_samples, chance=chance
            )
        )
    return tuple(metrics)


def rank_labels(
    scores: Floats, labels: NDArray[Any]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """How many other classes score above each sample's own, and how many the same, (N,) each.

    `scores`: (N, K) float; `labels`: (N,) integers. Raises `DataError`.
    """
    check_scores(scores)
    labels = check_labels(labels, *scores.shape, name="labels")
    own = np.take_along_axis(scores, labels[:, None], axis=1)
    return np.count_nonzero(scores > own, axis=1), np.count_nonzero(scores == own, axis=1) - 1


def hit_probability(
    above: NDArray[np.int64], tied: NDArray[np.int64], k: int, own: NDArray[np.int64] | int = 1
) -> Floats:
    """Probability that a right answer is among the first k when ties are broken at random.

    `above`, `tied`: (N,) numbers of other candidates that score higher than, or the same as, the
    best right answer; `own`: how many right answers share that score, one or more. Of the
    t = tied + own candidates in a tie, m = k - above, held to 0 to t, are among the first k: one
    of the right ones with probability 1 - C(t - own, m) / C(t, m), for a single one m / t.
    Returns (N,) float64.
    """
    num_tied = tied + own
    places = np.clip(k - above, 0, num_tied)
    found: Floats = np.zeros(len(above))
    for item in range(int(np.max(own, initial=0))):
        next_found = np.minimum(places / np.maximum(num_tied - item, 1), 1)
        found += np.where(item < own, (1 - found) * next_found, 0)
    return found


def top1_accuracy(scores: Floats, labels: NDArray[Any]) -> float:
    """The share of samples whose own class scores highest, ties at their expected value."""
    return float(hit_probability(*rank_labels(scores, labels), 1).mean())


def check_labels(
    labels: NDArray[Any], num_samples: int, num_classes: int, *, name: str
) -> NDArray[np.int64]:
    """Indices (N,) int64 from 0 to `num_classes` - 1, or a `DataError`."""
    if labels.shape != (num_samples,) or not np.issubdtype(labels.dtype, np.integer):
        raise DataError(f"{name} is {_describe(labels)}; expected ({num_samples},) integers")
    bad = np.flatnonzero((labels < 0) | (labels >= num_classes))
    if bad.size:
        raise DataError(
            f"{name}[{bad[0]}] is {labels[bad[0]]}; expected 0 to {num_classes - 1} "
            f"({bad.size} out of range)"
        )
    return labels.astype(np.int64)


def check_label_sets(labels: NDArray[Any], shape: tuple[int, ...], *, name: str = "labels") -> None:
    """Raise `DataError` unless labels are (N, K) bool of `shape`, some of them True.

    Decisions, with another `name`, may all be False.
    """
    if labels.shape != shape or len(shape) != 2 or labels.dtype != np.bool_ or not labels.size:
        raise DataError(f"{name} is {_describe(labels)}; expected (N, K) bool, {shape} here")
    if name == "labels" and not labels.any():
        raise DataError("labels has no positive at all; expected at least one")


def check_scores(scores: Floats) -> None:
    """Raise `DataError` unless scores are (N, K) finite floating-point numbers."""
    if scores.ndim != 2 or not np.issubdtype(scores.dtype, np.floating):
        raise DataError(f"scores is {_describe(scores)}; expected (N, K) floating-point")
    if not scores.size:
        raise DataError(f"scores is empty ({scores.shape}); there is nothing to measure")
    bad = np.flatnonzero(~np.isfinite(scores).all(axis=1))
    if bad.size:
        raise DataError(f"scores has NaN or infinite values in {bad.size} rows, first row {bad[0]}")


def _with_classes(
    metrics: tuple[Metric, ...],
    values: Floats,
    counts: NDArray[np.int64],
    what: str,
    *,
    outcomes: Outcomes,
    notes: Sequence[str] = (),
) -> MetricResult:
    """A result with the values (K,) of its classes, of which each has `counts` (K,) of `what`."""
    num_empty = int((counts == 0).sum())
    empty = f"{num_empty} of {len(counts)} classes have no {what} and are left out of macro means."
    return MetricResult(
        metrics=metrics,
        per_class=tuple(
            ClassScore(value=float(value) if count else None, num_samples=int(count))
            for value, count in zip(values, counts, strict=True)
        ),
        notes=(*([empty] if num_empty else []), *notes),
        outcomes=outcomes,
    )


def _describe(array: NDArray[Any]) -> str:
    return f"{array.shape} {array.dtype}"
