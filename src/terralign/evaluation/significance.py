"""Paired bootstrap between two models that were measured on the same samples.

N samples, K classes, R resamples. A resample draws samples, not models: both models are measured
on the same ones, so that what is hard for both does not blur their difference. Retrieval resamples
queries; the gallery stays. The same seed gives the same numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from terralign.errors import DataError
from terralign.evaluation.metrics import (
    Floats,
    bootstrap_interval,
    check_labels,
    hit_probability,
    row_slices,
)

NUM_BOOTSTRAP = 2000

MIN_SAMPLES = 30
"""Of fewer, a bootstrap calls too much significant: no p-value is told."""

CHUNK = 2**21
"""Numbers of one array of draws, (R', N), that is worked on at once."""

Counts = NDArray[np.int64]
Statistic = Callable[[Counts], Floats]
"""How often each sample counts (R, N) to values (R,); NaN where a resample has no value."""

Average = Literal["macro", "micro"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """Model b against model a. Values are in the metric's own unit, fractions of 1.

    `difference`: `value_b - value_a`; `low`, `high`: its 95 % percentile interval. `p_value`:
    two-sided, of the difference being none; its least value is 2 / (R + 1).
    """

    value_a: float
    value_b: float
    difference: float
    low: float
    high: float
    p_value: float
    num_samples: int

    @property
    def told_p_value(self) -> float | None:
        """The p-value; None of fewer than `MIN_SAMPLES` samples."""
        return self.p_value if self.num_samples >= MIN_SAMPLES else None

    def turned(self) -> Comparison:
        """Model a against model b."""
        return Comparison(
            value_a=self.value_b,
            value_b=self.value_a,
            difference=0.0 - self.difference,
            low=0.0 - self.high,
            high=0.0 - self.low,
            p_value=self.p_value,
            num_samples=self.num_samples,
        )


def compare_means(
    a: Floats, b: Floats, *, num_bootstrap: int = NUM_BOOTSTRAP, seed: int = 0
) -> Comparison:
    """Compare metrics that are means over samples: accuracy, recall@k, map@k.

    `a`, `b`: (N,) the value of each sample or query under each model, such as `accuracy_values`
    or a column of `ranking.recall_per_query`. Samples without a value (NaN) under both are left
    out. Raises `DataError`.
    """
    if a.ndim != 1 or a.shape != b.shape:
        raise DataError(f"a is {a.shape}, b is {b.shape}; expected (N,) values of the same samples")
    missing = np.isnan(a)
    if (missing != np.isnan(b)).any():
        raise DataError("a and b lack values (NaN) for different samples; compare the same ones")
    values = np.stack([a[~missing], b[~missing]]).astype(np.float64)
    if not values.size:
        raise DataError("there is no sample to compare the models on")

    return compare(
        mean_statistic(values[0]),
        mean_statistic(values[1]),
        values.shape[1],
        num_bootstrap=num_bootstrap,
        seed=seed,
    )


def compare_class_means(
    a: Floats,
    b: Floats,
    labels: NDArray[Any],
    *,
    num_bootstrap: int = NUM_BOOTSTRAP,
    seed: int = 0,
) -> Comparison:
    """Compare means over classes of their means over samples: `macro_accuracy`.

    `a`, `b`: (N,) finite values of the samples; `labels`: (N,) integers, their classes. A resample
    that lost a class leaves it out. Raises `DataError`.
    """
    if a.ndim != 1 or not a.size or not a.shape == b.shape == labels.shape:
        raise DataError(
            f"a is {a.shape}, b is {b.shape}, labels is {labels.shape}; expected (N,) values of "
            "the same samples and their classes"
        )
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise DataError("a or b has NaN or infinite values; every sample needs a value")
    return compare(
        class_mean_statistic(a, labels),
        class_mean_statistic(b, labels),
        len(labels),
        num_bootstrap=num_bootstrap,
        seed=seed,
    )


def mean_statistic(values: Floats) -> Statistic:
    """The mean of values (N,) over samples."""
    return lambda counts: np.asarray(counts @ values / len(values))


def class_mean_statistic(values: Floats, labels: NDArray[Any]) -> Statistic:
    """The mean over classes of the means of their samples' values (N,); `labels` (N,) integers."""
    order = np.argsort(labels, kind="stable")
    starts = np.flatnonzero(np.diff(labels[order], prepend=labels[order[0]] - 1))
    ranked = values[order].astype(np.float64)

    def statistic(counts: Counts) -> Floats:
        weights = counts[:, order]
        number = np.add.reduceat(weights, starts, axis=1)
        means = np.add.reduceat(weights * ranked, starts, axis=1) / np.maximum(number, 1)
        return np.asarray(means.sum(axis=1) / np.count_nonzero(number, axis=1))

    return statistic


def compare_accuracy(
    scores_a: Floats,
    scores_b: Floats,
    labels: NDArray[Any],
    *,
    num_bootstrap: int = NUM_BOOTSTRAP,
    seed: int = 0,
) -> Comparison:
    """Compare the top-1 accuracy of two models' scores (N, K) on labels (N,) integers."""
    return compare_means(
        accuracy_values(scores_a, labels),
        accuracy_values(scores_b, labels),
        num_bootstrap=num_bootstrap,
        seed=seed,
    )


def compare_average_precision(
    scores_a: Floats,
    scores_b: Floats,
    labels: NDArray[Any],
    *,
    average: Average = "macro",
    num_bootstrap: int = NUM_BOOTSTRAP,
    seed: int = 0,
) -> Comparison:
    """Compare `macro_map` or `micro_map`, as `metrics.multilabel_metrics` defines them.

    `scores_a`, `scores_b`: (N, K) float; `labels`: (N, K) bool. Scores are sorted once; resamples
    are weights along that order, many at a time. A resample that lost all positives of a class
    leaves it out. Raises `DataError`.
    """
    if average not in ("macro", "micro"):
        raise DataError(f"average is {average!r}; expected 'macro' or 'micro'")
    if labels.ndim != 2 or labels.dtype != np.bool_ or not labels.any():
        raise DataError(
            f"labels is {labels.shape} {labels.dtype} with {int(labels.sum())} positives; expected "
            "(N, K) bool with at least one"
        )
    for scores, name in ((scores_a, "scores_a"), (scores_b, "scores_b")):
        _check_scores(scores, labels.shape, name=name)
    return compare(
        average_precision_statistic(scores_a, labels, average),
        average_precision_statistic(scores_b, labels, average),
        len(labels),
        num_bootstrap=num_bootstrap,
        seed=seed,
    )


def compare_f1(
    decisions_a: NDArray[np.bool_],
    decisions_b: NDArray[np.bool_],
    labels: NDArray[np.bool_],
    *,
    average: Average = "macro",
    num_bootstrap: int = NUM_BOOTSTRAP,
    seed: int = 0,
) -> Comparison:
    """Compare `macro_f1` or `micro_f1`, as `calibration.f1_metrics` defines them.

    `decisions_a`, `decisions_b`, `labels`: (N, K) bool. Decisions stay as they are: thresholds are
    not chosen anew in a resample. Raises `DataError`.
    """
    if average not in ("macro", "micro"):
        raise DataError(f"average is {average!r}; expected 'macro' or 'micro'")
    for values, name in ((decisions_a, "decisions_a"), (decisions_b, "decisions_b")):
        if values.ndim != 2 or values.shape != labels.shape or values.dtype != np.bool_:
            raise DataError(
                f"{name} is {values.shape} {values.dtype}; expected (N, K) bool like labels, "
                f"which is {labels.shape}"
            )
    if labels.dtype != np.bool_ or not labels.any():
        raise DataError(f"labels is {labels.dtype}; expected bool with at least one positive")
    return compare(
        f1_statistic(decisions_a, labels, average),
        f1_statistic(decisions_b, labels, average),
        len(labels),
        num_bootstrap=num_bootstrap,
        seed=seed,
    )


def f1_statistic(
    decisions: NDArray[np.bool_], labels: NDArray[np.bool_], average: Average
) -> Statistic:
    """F1 of decisions against labels, (N, K) bool each, as `calibration.f1_metrics` has it."""
    columns = np.concatenate([decisions & labels, decisions, labels], axis=1).astype(np.float64)

    def statistic(counts: Counts) -> Floats:
        sums = (counts.astype(np.float64) @ columns).reshape(len(counts), 3, labels.shape[1])
        if average == "micro":
            sums = sums.sum(axis=2, keepdims=True)
        hits, said, there = sums[:, 0], sums[:, 1], sums[:, 2]
        known = there > 0
        values = np.where(known, 2 * hits / np.maximum(said + there, 1), 0.0).sum(axis=1)
        number = known.sum(axis=1)
        return np.where(number > 0, values / np.maximum(number, 1), np.nan)

    return statistic


def accuracy_values(scores: Floats, labels: NDArray[Any], k: int = 1) -> Floats:
    """Whether each sample's own class is among the k that score highest, (N,) 0-1.

    Ties count as `metrics.hit_probability` has them: t that tie for the first place 1 / t each.
    `scores`: (N, K) float; `labels`: (N,) integers. Raises `DataError`.
    """
    if scores.ndim != 2:
        raise DataError(f"scores is {scores.shape}; expected (N, K)")
    _check_scores(scores, scores.shape, name="scores")
    labels = check_labels(labels, *scores.shape, name="labels")
    own = np.take_along_axis(scores, labels[:, None], axis=1)
    above = np.count_nonzero(scores > own, axis=1)
    tied = np.count_nonzero(scores == own, axis=1) - 1
    return hit_probability(above, tied, k)


def adjust_holm(p_values: Sequence[float]) -> list[float]:
    """p-values adjusted for their number by Holm's step-down rule (1979), in the order given.

    An adjusted value below 0.05 is significant at a chance of 5 % of any false one among them all.
    """
    values = np.asarray(p_values, dtype=np.float64)
    order = np.argsort(values, kind="stable")
    adjusted = np.empty_like(values)
    scaled = values[order] * np.arange(len(values), 0, -1)
    adjusted[order] = np.minimum(np.maximum.accumulate(scaled), 1.0)
    return [float(value) for value in adjusted]


def compare(
    a: Statistic,
    b: Statistic,
    num_samples: int,
    *,
    num_bootstrap: int = NUM_BOOTSTRAP,
    seed: int = 0,
) -> Comparison:
    """Compare any two statistics of the same `num_samples` samples.

    The p-value is twice the smaller share of resamples whose difference is on one side of 0, or
    at it, the observed data counted as one resample more (Davison & Hinkley 1997, section 4.4), at
    most 1: below 0.05 where the interval leaves out 0, but for the resolution of R. Raises
    `DataError`.
    """
    once = np.ones((1, num_samples), dtype=np.int64)
    value_a, value_b = float(a(once)[0]), float(b(once)[0])
    parts = [
        b(counts) - a(counts)
        for counts in _resamples(num_samples, num_bootstrap=num_bootstrap, seed=seed)
    ]
    differences = np.concatenate(parts)
    # Sums in another order differ in their last bits; that is no difference between models.
    differences[np.abs(differences) < 1e-12] = 0
    differences = differences[~np.isnan(differences)]
    difference = value_b - value_a
    low, high = bootstrap_interval(difference, differences)
    smaller = min(np.count_nonzero(differences <= 0), np.count_nonzero(differences >= 0))
    return Comparison(
        value_a=value_a,
        value_b=value_b,
        difference=difference,
        low=low,
        high=high,
        p_value=min(1.0, 2 * (int(smaller) + 1) / (len(differences) + 1)),
        num_samples=num_samples,
    )


def _resamples(num_samples: int, *, num_bootstrap: int, seed: int) -> Iterator[Counts]:
    """How often each sample was drawn, (R', N) at a time; what is drawn depends on `seed` only."""
    if num_bootstrap < 1:
        raise DataError(f"num_bootstrap is {num_bootstrap}; expected at least 1")
    generator = np.random.default_rng(seed)
    for rows in row_slices(num_bootstrap, max(1, CHUNK // num_samples)):
        number = rows.stop - rows.start
        drawn = generator.integers(num_samples, size=(number, num_samples))
        drawn += num_samples * np.arange(number)[:, None]
        counts = np.bincount(drawn.ravel(), minlength=number * num_samples)
        yield counts.reshape(number, num_samples)


def average_precision_statistic(
    scores: Floats, labels: NDArray[np.bool_], average: Average
) -> Statistic:
    """Mean average precision of scores (N, K), as `metrics.multilabel_metrics` has it."""
    num_classes = labels.shape[1]
    if average == "micro":
        return _RankedColumn(scores.ravel(), labels.ravel(), scores_per_sample=num_classes)
    columns = [
        _RankedColumn(scores[:, k], labels[:, k]) for k in np.flatnonzero(labels.any(axis=0))
    ]

    def macro(counts: Counts) -> Floats:
        total, known = np.zeros(len(counts)), np.zeros(len(counts))
        for column in columns:
            values = column(counts)
            total += np.nan_to_num(values)
            known += ~np.isnan(values)
        return np.where(known > 0, total / np.maximum(known, 1), np.nan)

    return macro


class _RankedColumn:
    """Scores sorted once; called with counts (R, N), it gives average precisions (R,).

    Tied scores share one threshold. Working memory is a few arrays of M numbers for each of the
    `CHUNK` / M resamples that are taken at once.
    """

    def __init__(
        self, scores: Floats, positive: NDArray[np.bool_], *, scores_per_sample: int = 1
    ) -> None:
        order = np.argsort(-scores, kind="stable")
        ranked = scores[order]
        self.ends = np.flatnonzero(np.append(ranked[1:] != ranked[:-1], True))
        self.sample = order // scores_per_sample
        self.positive = positive[order]

    def __call__(self, counts: Counts) -> Floats:
        step = max(1, CHUNK // len(self.sample))
        return np.concatenate(
            [self._values(counts[rows]) for rows in row_slices(len(counts), step)]
        )

    def _values(self, counts: Counts) -> Floats:
        weights = counts[:, self.sample]
        seen = np.cumsum(weights, axis=1)[:, self.ends]
        found = np.cumsum(weights * self.positive, axis=1)[:, self.ends]
        gained = np.diff(found, axis=1, prepend=0)
        precision = found / np.maximum(seen, 1)
        total = found[:, -1]
        return np.where(total > 0, (gained * precision).sum(axis=1) / np.maximum(total, 1), np.nan)


def _check_scores(scores: Floats, shape: tuple[int, ...], *, name: str) -> None:
    if scores.shape != shape or not np.issubdtype(scores.dtype, np.floating) or not scores.size:
        raise DataError(f"{name} is {scores.shape} {scores.dtype}; expected {shape} floating-point")
    if not np.isfinite(scores).all():
        raise DataError(f"{name} has NaN or infinite values")
