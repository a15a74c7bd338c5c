"""Two models on the same samples: what they are compared by, and the paired bootstrap.

N samples or queries, K classes, S seeds, R resamples.

`MetricResult.outcomes` holds, for each metric that is a mean over samples, its values (N,) under
the metric's name, NaN where a query is left out; beside `top1` the `labels` (N,). Of several labels
it holds `labels` (N, K) and the `scores` or the `decisions` (N, K) that metrics are computed from.

A resample draws samples, not models: both models are measured on the same ones, so that what is
hard for both does not blur their difference. Retrieval resamples queries; the gallery stays.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, get_args

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

NO_METRICS = frozenset({"labels", "decisions", "scores"})
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
    statistics = [statistics_of(own).get(metric) for own in every]
    if None in statistics or not _same_samples(every, metric):
        return None
    made = [make() for make in statistics if make is not None]
    values = every[0].get(metric, every[0].get("labels"))
    assert values is not None
    return compare(
        _mean_of(made[: len(a)]),
        _mean_of(made[len(a) :]),
        len(values) if values.ndim == 2 else int(np.count_nonzero(~np.isnan(values))),
        num_bootstrap=num_bootstrap,
        seed=seed,
    )


def statistics_of(outcomes: Outcomes) -> dict[str, Callable[[], Statistic]]:
    """The metrics that models can be compared by; each makes its statistic of the outcomes."""
    found: dict[str, Callable[[], Statistic]] = {}
    labels = outcomes.get("labels", np.empty(0))
    positive = labels.astype(np.bool_)
    for average in get_args(Average):
        if "decisions" in outcomes:
            decisions = outcomes["decisions"].astype(np.bool_)
            found[f"{average}_f1"] = partial(f1_statistic, decisions, positive, average)
        if "scores" in outcomes:
            scores = outcomes["scores"]
            found[f"{average}_map"] = partial(
                average_precision_statistic, scores, positive, average
            )
    for name, values in outcomes.items():
        if name not in NO_METRICS:
            found[name] = partial(_mean_of_known, values)
        if name == "top1" and "labels" in outcomes:
            found["macro_accuracy"] = partial(_macro_accuracy, values, labels)
    return found


def _mean_of_known(values: Floats) -> Statistic:
    return mean_statistic(values[~np.isnan(values), None].astype(np.float64))


def _macro_accuracy(hits: Floats, labels: Floats) -> Statistic:
    num_classes = int(labels.max()) + 1
    return macro_mean(class_mean_statistic(hits.astype(np.float64), labels, num_classes))


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


def _same_samples(every: Sequence[Outcomes], metric: str) -> bool:
    """Whether the outcomes of a metric belong to the same samples, as far as can be seen."""

    def seen(one: Outcomes) -> tuple[Any, ...]:
        left_out = np.isnan(one[metric]) if metric in one else None
        return one.get("labels"), left_out, one["scores"].shape if "scores" in one else ()

    first = seen(every[0])
    return all(
        np.array_equal(*pair) for one in every[1:] for pair in zip(first, seen(one), strict=True)
    )


def write_outcomes(path: Path, outcomes: Outcomes) -> None:
    """Write outcomes as a safetensors file."""
    state = {name: torch.from_numpy(np.ascontiguousarray(one)) for name, one in outcomes.items()}
    write_state_dict(path, state)


def read_outcomes(path: Path) -> Outcomes:
    """Read what `write_outcomes` wrote. Raises `ModelError` for a damaged file."""
    return {name: np.asarray(one.numpy()) for name, one in read_state_dict(path).items()}
