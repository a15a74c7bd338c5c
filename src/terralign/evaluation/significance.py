"""Paired bootstrap between two models that were measured on the same samples.

A resample draws samples, not models: both models are measured on the same ones, so that what is
hard for both does not blur their difference. Retrieval resamples queries; the gallery stays. What
two models are compared by is in `paired.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from terralign.evaluation.bootstrap import (
    Counts,
    Floats,
    Statistic,
    observe,
    percentile_interval,
    resample,
    side_by_side,
)

NUM_BOOTSTRAP = 2000

MIN_SAMPLES = 30
"""With fewer, a bootstrap calls too much significant: no p-value is reported."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """Model b against model a. Values are in the metric's own unit, fractions of 1.

    `difference`: `value_b - value_a`; `low`, `high`: its 95 % percentile interval. `p_value`:
    two-sided, of no difference; its least value is 2 / (R + 1) of R resamples.
    """

    value_a: float
    value_b: float
    difference: float
    low: float
    high: float
    p_value: float
    num_samples: int

    @property
    def reported_p_value(self) -> float | None:
        """The p-value; None with fewer than `MIN_SAMPLES` samples."""
        return self.p_value if self.num_samples >= MIN_SAMPLES else None

    def turned(self) -> Comparison:
        """Model a against model b."""
        return replace(
            self,
            value_a=self.value_b,
            value_b=self.value_a,
            difference=0.0 - self.difference,
            low=0.0 - self.high,
            high=0.0 - self.low,
        )


def compare(
    a: Statistic,
    b: Statistic,
    num_samples: int,
    *,
    num_bootstrap: int = NUM_BOOTSTRAP,
    seed: int = 0,
) -> Comparison:
    """Compare two statistics of one value (R, 1) each on the same `num_samples` samples.

    The p-value is twice the smaller share of resamples whose difference is on one side of 0, or
    at it, the observed data counted as one resample more (Davison & Hinkley 1997, section 4.4), at
    most 1: below 0.05 where the interval leaves out 0, but for the resolution of R. Raises
    `DataError`.
    """
    both = side_by_side(a, b)
    value_a, value_b = observe(both, num_samples).tolist()
    resampled = resample(both, num_samples, num_bootstrap=num_bootstrap, seed=seed)
    differences = resampled[:, 1] - resampled[:, 0]
    # Sums in another order differ in their last bits; that is no difference between models.
    differences[np.abs(differences) < 1e-12] = 0
    differences = differences[~np.isnan(differences)]
    difference = value_b - value_a
    low, high = percentile_interval(difference, differences)
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


def mean_of(statistics: Sequence[Statistic]) -> Statistic:
    """The mean over several statistics, such as those of a model's seeds."""

    def statistic(counts: Counts) -> Floats:
        return np.asarray(sum(one(counts) for one in statistics) / len(statistics))

    return statistic


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
