"""Metrics on plain arrays, each with a bootstrap interval, its number of samples and its chance.

N samples, K classes, D embedding dimensions. Metrics are fractions of 1.

*Ties* count at their expected value: where the right answer shares its score with others, every
order among them is equally likely. `multilabel_metrics` is the exception: tied scores share one
threshold. *Chance* is the expected value of a ranking at random, and of F1 that of saying yes to
everything. *Intervals* are bootstrap 95 % intervals over samples, seeded, widened where needed so
that they hold the value itself: percentiles of the resampled values, of average precision less
their bias.

Retrieval is in `ranking.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score

from terralign.errors import DataError, nearest
from terralign.evaluation.average_precision import random_average_precision, rank_scores

Floats = NDArray[np.floating[Any]]
Outcomes = dict[str, NDArray[Any]]
"""Values of every sample or query by name, (N,) or (N, K)."""
Statistics = Callable[[NDArray[np.int64]], Floats]
"""Counts (N,), how often each sample is taken, to values (M,)."""
Interval = Callable[[float, Floats], tuple[float, float]]
"""A value and its resampled values (R,) to low and high."""

CONFIDENCE = 0.95
"""Coverage of `Metric.low` to `Metric.high`."""

FEW_POSITIVES = 20
"""Of fewer, a class's average precision comes out too high: by simulation up to 28 points with one
positive, 7 with ten, 4 with twenty, 2 with fifty."""

ROW_CHUNK = 4096
"""Rows that are worked on at once where each row stands for itself."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Metric:
    """One figure. `value`, `low`, `high`, `chance`: fractions of 1; `low <= value <= high`."""

    name: str
    value: float
    low: float
    high: float
    num_samples: int
    chance: float


@dataclass(frozen=True, kw_only=True, slots=True)
class ClassScore:
    """One class: its accuracy or average precision, None where it has no samples (positives)."""

    index: int
    value: float | None
    num_samples: int


@dataclass(frozen=True, kw_only=True, slots=True)
class MetricResult:
    """The figures of one evaluation.

    `num_classes_without_positives`: classes without a single (positive) sample; they are left out
    of macro means. `num_queries_left_out`: queries to which no gallery item is relevant.
    `notes`: what a reader has to know, one sentence each. `outcomes`: what two models are compared
    by, see `paired.py`.
    """

    metrics: tuple[Metric, ...]
    per_class: tuple[ClassScore, ...] = ()
    num_classes_without_positives: int = 0
    num_queries_left_out: int = 0
    notes: tuple[str, ...] = ()
    outcomes: Outcomes = field(default_factory=dict, repr=False, compare=False)

    def metric(self, name: str) -> Metric:
        """The figure called `name`; `DataError` names the nearest one where there is none."""
        for metric in self.metrics:
            if metric.name == name:
                return metric
        known = [metric.name for metric in self.metrics]
        raise DataError(f"no metric {name!r} in this result; {nearest(name, known)}")

    def value(self, name: str) -> float:
        """The value of the figure called `name`, a fraction of 1."""
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
    scores = _check_scores(scores)
    num_samples, num_classes = scores.shape
    labels = check_labels(labels, num_samples, num_classes, name="labels")
    above, tied = np.empty_like(labels), np.empty_like(labels)
    for rows in row_slices(num_samples):
        own = np.take_along_axis(scores[rows], labels[rows, None], axis=1)
        above[rows] = np.count_nonzero(scores[rows] > own, axis=1)
        tied[rows] = np.count_nonzero(scores[rows] == own, axis=1) - 1
    ks = [k for k in (1, 5) if k == 1 or num_classes > k]
    hits = np.stack([hit_probability(above, tied, k) for k in ks], axis=1)
    class_counts = np.bincount(labels, minlength=num_classes)

    def statistics(counts: NDArray[np.int64]) -> Floats:
        per_class = _class_means(labels, hits[:, 0], counts, num_classes)
        return np.append(counts @ hits / num_samples, np.nanmean(per_class))

    names = [f"top{k}" for k in ks] + ["macro_accuracy"]
    chances = [k / num_classes for k in ks] + [1 / num_classes]
    metrics = _metrics(
        names, statistics, chances, num_samples, num_bootstrap=num_bootstrap, seed=seed
    )
    accuracies = _class_means(labels, hits[:, 0], np.ones_like(labels), num_classes)
    found = _with_classes(metrics, accuracies, class_counts, "samples")
    return replace(found, outcomes={**by_column(names[:-1], hits), "labels": labels})


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
    positives; it lies above the share of positives, which is what equal scores give. Intervals:
    `bias_corrected_interval`. Classes with 1 to `FEW_POSITIVES` - 1 positives are noted.

    Each column is sorted once and resamples are weights along that order, so that one costs a few
    passes over N * K numbers (some 10 ms for 100,000 x 19); that still is dearer than counting
    hits, hence fewer resamples than for accuracy. A resample that lost all positives of a class
    leaves it out. Raises `DataError`.
    """
    scores = _check_scores(scores)
    num_samples, num_classes = scores.shape
    labels = _check_label_sets(labels, scores.shape)
    positives = labels.sum(axis=0)
    if not positives.any():
        raise DataError("labels has no positive at all; average precision needs at least one")
    classes = np.flatnonzero(positives)
    columns = [rank_scores(scores[:, k], labels[:, k]) for k in classes]
    pairs = rank_scores(scores.ravel(), labels.ravel(), samples_per_row=num_classes)

    def statistics(counts: NDArray[np.int64]) -> Floats:
        macro = [column.average_precision(counts) for column in columns]
        if np.isnan(macro).all():
            return np.full(2, np.nan)
        return np.array([np.nanmean(macro), pairs.average_precision(counts)])

    metrics = _metrics(
        ["macro_map", "micro_map"],
        statistics,
        [
            float(random_average_precision(positives[classes], num_samples).mean()),
            float(random_average_precision(positives.sum(), labels.size)),
        ],
        num_samples,
        num_bootstrap=num_bootstrap,
        seed=seed,
        interval=bias_corrected_interval,
    )
    precisions = np.full(num_classes, np.nan)
    precisions[classes] = [average_precision_score(labels[:, k], scores[:, k]) for k in classes]
    found = _with_classes(metrics, precisions, positives, "positives")
    return replace(
        found,
        notes=(*found.notes, *_few_positives(positives)),
        outcomes={"scores": scores.astype(np.float32), "labels": labels},
    )


def _few_positives(positives: NDArray[np.int64]) -> tuple[str, ...]:
    num_few = int(np.count_nonzero((positives > 0) & (positives < FEW_POSITIVES)))
    note = (
        f"{num_few} of {len(positives)} classes have 1 to {FEW_POSITIVES - 1} positives; average "
        "precision of so few tends to come out too high."
    )
    return (note,) if num_few else ()


def modality_gap(a: Floats, b: Floats) -> float:
    """Distance between the centroids of two sets of L2-normalised embeddings, 0 to 2.

    `a`: (Na, D), `b`: (Nb, D), any finite non-zero vectors. Definition: Liang et al. 2022, *Mind
    the Gap* (arXiv 2203.02053), section 2. Raises `DataError`.
    """
    centroids = []
    for vectors, name in ((a, "a"), (b, "b")):
        norms = row_norms(vectors, name=name)
        total = np.zeros(vectors.shape[1])
        for rows in row_slices(len(norms)):
            total += (vectors[rows] / norms[rows, None]).sum(axis=0)
        centroids.append(total / len(norms))
    if centroids[0].shape != centroids[1].shape:
        raise DataError(
            f"a has {centroids[0].size} dimensions, b has {centroids[1].size}; "
            "both must come from one embedding space"
        )
    return float(np.linalg.norm(centroids[0] - centroids[1]))


def hit_probability(above: NDArray[np.int64], tied: NDArray[np.int64], k: int) -> Floats:
    """Probability that the right answer is among the first k when ties are broken at random.

    `above`, `tied`: (N,) numbers of other candidates that score higher than, or the same as, the
    right one. Its rank is uniform over above + 1 to above + tied + 1, so the probability is
    (k - above) / (tied + 1), clipped to 0-1. Returns (N,) float64.
    """
    return np.clip((k - above) / (tied + 1.0), 0.0, 1.0)


def bootstrap_counts(
    num_samples: int, *, num_bootstrap: int, seed: int
) -> Iterator[NDArray[np.int64]]:
    """Resamples with replacement, each as (N,) int64: how many times each sample was drawn."""
    if num_bootstrap < 1:
        raise DataError(f"num_bootstrap is {num_bootstrap}; expected at least 1")
    generator = np.random.default_rng(seed)
    for _ in range(num_bootstrap):
        drawn = generator.integers(num_samples, size=num_samples)
        yield np.bincount(drawn, minlength=num_samples)


def bootstrap_interval(value: float, resampled: Floats) -> tuple[float, float]:
    """The percentile interval of `resampled` (R,), widened to hold `value`; NaN are dropped."""
    resampled = resampled[~np.isnan(resampled)]
    if not resampled.size:
        return value, value
    tail = 100 * (1 - CONFIDENCE) / 2
    low, high = np.percentile(resampled, [tail, 100 - tail])
    return min(value, float(low)), max(value, float(high))


def bias_corrected_interval(value: float, resampled: Floats) -> tuple[float, float]:
    """`bootstrap_interval` of `resampled` (R,) less twice its bias, within 0-1.

    For average precision: precision at a positive's rank counts that positive, so that few of them
    raise it. Resampling repeats positives and raises it again, by about as much: once is taken off
    for the value and once for the resamples.
    """
    resampled = resampled[~np.isnan(resampled)]
    if not resampled.size:
        return value, value
    bias = float(resampled.mean()) - value
    return bootstrap_interval(value, np.clip(resampled - 2 * bias, 0, 1))


def mean_metrics(
    names: list[str], values: Floats, chances: list[float], *, num_bootstrap: int, seed: int
) -> tuple[Metric, ...]:
    """Metrics that are means over samples. `values`: (N, M), a column for each name."""
    num_samples = len(values)

    def statistics(counts: NDArray[np.int64]) -> Floats:
        return np.asarray(counts @ values / num_samples)

    return _metrics(names, statistics, chances, num_samples, num_bootstrap=num_bootstrap, seed=seed)


def by_column(names: Sequence[str], values: Floats) -> Outcomes:
    """Outcomes of values (N, M), a column for each name."""
    return {name: values[:, column].copy() for column, name in enumerate(names)}


def row_slices(length: int, step: int = ROW_CHUNK) -> Iterator[slice]:
    """0 to `length` in slices of at most `step`."""
    for start in range(0, length, step):
        yield slice(start, min(start + step, length))


def row_norms(vectors: Floats, *, name: str) -> Floats:
    """L2 norms (N,) float64 of vectors (N, D); `DataError` where one is zero or not finite.

    A row's norm does not depend on which rows stand beside it.
    """
    if vectors.ndim != 2 or not np.issubdtype(vectors.dtype, np.floating):
        raise DataError(f"{name} is {_describe(vectors)}; expected (N, D) floating-point vectors")
    if not vectors.size:
        raise DataError(f"{name} is empty ({vectors.shape}); there is nothing to measure")
    norms = np.empty(len(vectors))
    for rows in row_slices(len(vectors)):
        chunk = vectors[rows].astype(np.float64, order="C")
        with np.errstate(over="ignore", invalid="ignore"):
            norms[rows] = np.sqrt(np.square(chunk).sum(axis=1))
    bad = np.flatnonzero(~np.isfinite(norms) | (norms == 0))
    if bad.size:
        what = "all zeros" if norms[bad[0]] == 0 else "not finite"
        raise DataError(f"row {bad[0]} of {name} is {what} ({bad.size} such rows of {len(norms)})")
    return norms


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


def _metrics(
    names: list[str],
    statistics: Statistics,
    chances: list[float],
    num_samples: int,
    *,
    num_bootstrap: int,
    seed: int,
    interval: Interval = bootstrap_interval,
) -> tuple[Metric, ...]:
    """Metrics of `statistics`, which turns counts (N,) into the values of all names."""
    values = statistics(np.ones(num_samples, dtype=np.int64))
    draws = bootstrap_counts(num_samples, num_bootstrap=num_bootstrap, seed=seed)
    resampled = np.stack([statistics(counts) for counts in draws])
    metrics = []
    for column, (name, chance) in enumerate(zip(names, chances, strict=True)):
        value = float(values[column])
        low, high = interval(value, resampled[:, column])
        metrics.append(
            Metric(
                name=name, value=value, low=low, high=high, num_samples=num_samples, chance=chance
            )
        )
    return tuple(metrics)


def _class_means(
    labels: NDArray[np.int64], hits: Floats, counts: NDArray[np.int64], num_classes: int
) -> Floats:
    """Mean hit of each class (K,), samples counted `counts` times; NaN for a class without any."""
    totals = np.bincount(labels, weights=counts, minlength=num_classes)
    sums = np.bincount(labels, weights=counts * hits, minlength=num_classes)
    return np.where(totals > 0, sums / np.maximum(totals, 1), np.nan)


def _with_classes(
    metrics: tuple[Metric, ...], values: Floats, counts: NDArray[np.int64], what: str
) -> MetricResult:
    num_empty = int((counts == 0).sum())
    note = f"{num_empty} of {len(counts)} classes have no {what} and are left out of macro means."
    return MetricResult(
        metrics=metrics,
        per_class=tuple(
            ClassScore(
                index=k, value=float(values[k]) if counts[k] else None, num_samples=int(counts[k])
            )
            for k in range(len(counts))
        ),
        num_classes_without_positives=num_empty,
        notes=(note,) if num_empty else (),
    )


def _check_scores(scores: Floats) -> Floats:
    if scores.ndim != 2 or not np.issubdtype(scores.dtype, np.floating):
        raise DataError(f"scores is {_describe(scores)}; expected (N, K) floating-point numbers")
    if not scores.size:
        raise DataError(f"scores is empty ({scores.shape}); there is nothing to measure")
    finite = [np.isfinite(scores[rows]).all(axis=1) for rows in row_slices(len(scores))]
    bad = np.flatnonzero(~np.concatenate(finite))
    if bad.size:
        raise DataError(f"scores has NaN or infinite values in {bad.size} rows, first row {bad[0]}")
    return scores


def _check_label_sets(labels: NDArray[Any], shape: tuple[int, ...]) -> NDArray[np.bool_]:
    if labels.shape != shape or labels.dtype != np.bool_:
        raise DataError(f"labels is {_describe(labels)}; expected {shape} bool, as scores is")
    return labels


def _describe(array: NDArray[Any]) -> str:
    return f"{array.shape} {array.dtype}"
