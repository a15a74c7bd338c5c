"""Two models on the same samples: what they are compared by, and the paired bootstrap.

N samples or queries, K classes, S seeds, R resamples.

`MetricResult.outcomes` holds, for each metric that is a mean over samples, its values (N,) under
the metric's name, NaN where a query is left out; beside `top1` the `labels` (N,). Of several labels
it holds `labels` (N, K) and the `scores` or the `decisions` (N, K) that metrics are computed from.

A resample draws samples, not models: both models are measured on the same ones, so that what is
hard for both does not blur their difference. Retrieval resamples queries; the gallery stays.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import get_args

import numpy as np
import torch

from terralign.encoders.clip.weights import read_state_dict, write_state_dict
from terralign.errors import DataError
from terralign.evaluation.average_precision import average_precision_statistic
from terralign.evaluation.bootstrap import (
    Average,
    Counts,
    Floats,
    Statistic,
    class_mean_statistic,
    f1_statistic,
    macro_mean,
    mean_statistic,
    observe,
    percentile_interval,
    resample,
    side_by_side,
)
from terralign.evaluation.metrics import Outcomes

NO_METRICS = ("labels", "decisions", "scores")
"""Names of outcomes that metrics are computed from."""

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


def compare_outcomes(
    a: Sequence[Outcomes],
    b: Sequence[Outcomes],
    metric: str,
    *,
    num_bootstrap: int = NUM_BOOTSTRAP,
    seed: int = 0,
) -> Comparison | None:
    """Model b against model a by `metric`, each the mean of one or several seeds (S, any order).

    All outcomes are of the same samples: a resample draws them once for both models and all seeds,
    so the interval is about samples, for the seeds at hand. None where the outcomes do not have
    the metric, or are of other samples: of other labels, or with queries left out elsewhere.
    """
    every = [*a, *b]
    if not a or not b:
        raise DataError("there is nothing to compare: give the outcomes of one seed or more")
    if not _same_samples(every, metric):
        return None
    statistics = [one for own in every if (one := _statistic(own, metric)) is not None]
    if len(statistics) < len(every):
        return None
    values = every[0].get(metric, every[0].get("labels"))
    assert values is not None
    return compare(
        _mean_of(statistics[: len(a)]),
        _mean_of(statistics[len(a) :]),
        len(values) if values.ndim == 2 else int(np.count_nonzero(~np.isnan(values))),
        num_bootstrap=num_bootstrap,
        seed=seed,
    )


def compared_metrics(outcomes: Outcomes) -> list[str]:
    """The metrics that models can be compared by."""
    kinds = [kind for kind, of in (("f1", "decisions"), ("map", "scores")) if of in outcomes]
    averages = [f"{average}_{kind}" for average in get_args(Average) for kind in kinds]
    names = [name for name in outcomes if name not in NO_METRICS]
    if "top1" in names and "labels" in outcomes:
        names.insert(names.index("top1") + 1, "macro_accuracy")
    return [*averages, *names]


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


def _mean_of(statistics: Sequence[Statistic]) -> Statistic:
    """The mean over several statistics, such as those of a model's seeds."""

    def statistic(counts: Counts) -> Floats:
        return np.asarray(sum(one(counts) for one in statistics) / len(statistics))

    return statistic


def _statistic(outcomes: Outcomes, metric: str) -> Statistic | None:
    """What a metric makes of outcomes; None where they do not have it."""
    labels = outcomes.get("labels")
    if metric in outcomes and metric not in NO_METRICS:
        values = outcomes[metric]
        return mean_statistic(values[~np.isnan(values), None].astype(np.float64))
    if labels is None:
        return None
    if labels.ndim == 1:
        if metric != "macro_accuracy" or "top1" not in outcomes:
            return None
        hits = outcomes["top1"].astype(np.float64)
        return macro_mean(class_mean_statistic(hits, labels, int(labels.max()) + 1))
    positive = labels.astype(np.bool_)
    for average in get_args(Average):
        if metric == f"{average}_f1" and "decisions" in outcomes:
            return f1_statistic(outcomes["decisions"].astype(np.bool_), positive, average)
        if metric == f"{average}_map" and "scores" in outcomes:
            return average_precision_statistic(outcomes["scores"], positive, average)
    return None


def _same_samples(every: Sequence[Outcomes], metric: str) -> bool:
    """Whether the outcomes of a metric belong to the same samples, as far as can be seen."""
    first = every[0]
    for one in every[1:]:
        if ("labels" in first) != ("labels" in one):
            return False
        if "labels" in first and not np.array_equal(first["labels"], one["labels"]):
            return False
        if metric in first and not np.array_equal(np.isnan(first[metric]), np.isnan(one[metric])):
            return False
        shapes = [own["scores"].shape for own in (first, one) if "scores" in own]
        if len(set(shapes)) > 1:
            return False
    return True


def write_outcomes(path: Path, outcomes: Outcomes) -> None:
    """Write outcomes as a safetensors file."""
    state = {name: torch.from_numpy(np.ascontiguousarray(one)) for name, one in outcomes.items()}
    write_state_dict(path, state)


def read_outcomes(path: Path) -> Outcomes:
    """Read what `write_outcomes` wrote. Raises `ModelError` for a damaged file."""
    return {name: np.asarray(one.numpy()) for name, one in read_state_dict(path).items()}
