"""Outcomes, what two models are compared by: the values of every sample, by name.

N samples or queries, K classes, S seeds.

`MetricResult.outcomes` holds, for each metric that is a mean over samples, its values (N,) under
the metric's name, NaN where a query is left out; beside `top1` the `labels` (N,). Of several labels
it holds `labels` (N, K) and the `scores` or the `decisions` (N, K) that metrics are computed from.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import get_args

import numpy as np
import torch

from terralign.encoders.clip.weights import read_state_dict, write_state_dict
from terralign.errors import DataError
from terralign.evaluation.average_precision import average_precision_statistic
from terralign.evaluation.bootstrap import (
    Average,
    Statistic,
    class_mean_statistic,
    f1_statistic,
    macro_mean,
    mean_statistic,
)
from terralign.evaluation.metrics import Outcomes
from terralign.evaluation.significance import NUM_BOOTSTRAP, Comparison, compare, mean_of

NO_METRICS = ("labels", "decisions", "scores")
"""Names of outcomes that metrics are computed from."""


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
        mean_of(statistics[: len(a)]),
        mean_of(statistics[len(a) :]),
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
