"""The bootstrap over samples: for the interval of one model and for the difference of two.

N samples, R resamples, M values, K classes. A resample is described by its *counts*, how often it
holds each sample, and a *statistic* computes values from counts. `scipy.stats.bootstrap` resamples
the data instead, which would sort the scores anew for every resample of an average precision;
counts leave them sorted, and let two models share a resample. The same seed draws the same samples.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from terralign.errors import DataError

Floats = NDArray[np.floating[Any]]
Counts = NDArray[np.int64]
"""How often each sample is taken, (R, N)."""
Statistic = Callable[[Counts], Floats]
"""Counts (R, N) to values (R, M); NaN where a resample has no value."""
Average = Literal["macro", "micro"]

CONFIDENCE = 0.95
"""Coverage of an interval."""

CHUNK = 2**21
"""Counts held at once."""


def observe(statistic: Statistic, num_samples: int) -> Floats:
    """The values (M,) of the data as they are: every sample once."""
    return np.asarray(statistic(np.ones((1, num_samples), dtype=np.int64))[0])


def resample(statistic: Statistic, num_samples: int, *, num_bootstrap: int, seed: int) -> Floats:
    """The values (R, M) of `num_bootstrap` resamples. Raises `DataError`."""
    draws = resamples(num_samples, num_bootstrap=num_bootstrap, seed=seed)
    return np.concatenate([statistic(counts) for counts in draws])


def resamples(num_samples: int, *, num_bootstrap: int, seed: int) -> Iterator[Counts]:
    """Counts of resamples with replacement, at most `CHUNK` numbers at a time."""
    if num_bootstrap < 1:
        raise DataError(f"num_bootstrap is {num_bootstrap}; expected at least 1")
    generator = np.random.default_rng(seed)
    step = max(1, CHUNK // num_samples)
    for start in range(0, num_bootstrap, step):
        number = min(step, num_bootstrap - start)
        drawn = generator.integers(num_samples, size=(number, num_samples))
        yield np.stack([np.bincount(own, minlength=num_samples) for own in drawn])


def percentile_interval(value: float, resampled: Floats) -> tuple[float, float]:
    """The percentile interval of `resampled` (R,), widened to hold `value`; NaN are dropped."""
    resampled = resampled[~np.isnan(resampled)]
    if not resampled.size:
        return value, value
    tail = 100 * (1 - CONFIDENCE) / 2
    low, high = np.percentile(resampled, [tail, 100 - tail])
    return min(value, float(low)), max(value, float(high))


def bias_corrected_interval(value: float, resampled: Floats) -> tuple[float, float]:
    """`percentile_interval` of `resampled` (R,) less twice its bias, within 0-1.

    For average precision: precision at a positive's rank counts that positive, so that few of them
    raise it. Resampling repeats positives and raises it again, by about as much: the bias is
    subtracted once for the value and once for the resamples.
    """
    resampled = resampled[~np.isnan(resampled)]
    if not resampled.size:
        return value, value
    bias = float(resampled.mean()) - value
    return percentile_interval(value, np.clip(resampled - 2 * bias, 0, 1))


def mean_statistic(values: Floats, sizes: NDArray[np.int64] | None = None) -> Statistic:
    """Means (R, M) of values (N, M) over samples.

    With `sizes` (N,), `values` are sums over so many queries of each sample, and means are over
    queries.
    """
    weights = np.ones(len(values), dtype=np.int64) if sizes is None else sizes
    return lambda counts: np.asarray(counts @ values / (counts @ weights)[:, None])


def class_mean_statistic(values: Floats, labels: NDArray[Any], num_classes: int) -> Statistic:
    """Means (R, K) of values (N,) over the samples of each class; `labels` (N,) integers."""

    def class_sums(weights: NDArray[Any]) -> Floats:
        sums = [np.bincount(labels, weights=own, minlength=num_classes) for own in weights]
        return np.stack(sums)

    def statistic(counts: Counts) -> Floats:
        sizes = class_sums(counts)
        return np.where(sizes > 0, class_sums(counts * values) / np.maximum(sizes, 1), np.nan)

    return statistic


def f1_statistic(
    decisions: NDArray[np.bool_], labels: NDArray[np.bool_], average: Average | None = None
) -> Statistic:
    """F1 = 2 TP / (2 TP + FP + FN) of decisions against labels, (N, K) bool each.

    One for each class, (R, K), NaN without positives; with `average` their mean ("macro"), or that
    of all N * K pairs together ("micro"), (R, 1).
    """
    # float32 holds every count up to 2**24 exactly.
    precision = np.dtype(np.float32 if len(labels) < 2**24 else np.float64)
    columns = np.concatenate([decisions & labels, decisions, labels], axis=1).astype(precision)

    def statistic(counts: Counts) -> Floats:
        sums = (counts.astype(precision) @ columns).astype(np.float64)
        sums = sums.reshape(len(counts), 3, labels.shape[1])
        if average == "micro":
            sums = sums.sum(axis=2, keepdims=True)
        hits, decided, positive = sums[:, 0], sums[:, 1], sums[:, 2]
        return np.where(positive > 0, 2 * hits / np.maximum(decided + positive, 1), np.nan)

    return macro_mean(statistic) if average == "macro" else statistic


def macro_mean(of_classes: Statistic) -> Statistic:
    """The mean (R, 1) of the values (R, K) of classes, those without one (NaN) left out."""

    def statistic(counts: Counts) -> Floats:
        values = of_classes(counts)
        number = np.count_nonzero(~np.isnan(values), axis=1)
        means = np.where(number > 0, np.nansum(values, axis=1) / np.maximum(number, 1), np.nan)
        return means[:, None]

    return statistic


def side_by_side(*statistics: Statistic) -> Statistic:
    """The values of several statistics as columns of one."""
    return lambda counts: np.concatenate([one(counts) for one in statistics], axis=1)
