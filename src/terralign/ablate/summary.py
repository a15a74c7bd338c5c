"""The table of a study: mean and spread over seeds of each figure, variants side by side."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from terralign.ablate.study import Study
from terralign.evaluation.rows import Row
from terralign.report.document import Document
from terralign.report.study import study_document

FIGURE_KEYS = ("role", "dataset", "split", "task", "metric", "model", "tower")
"""`tower`: of retrieval "query → gallery"."""


def mean_and_spread(values: Sequence[float]) -> tuple[float, float | None]:
    """The mean, and the sample standard deviation (n - 1 below); None for a single value."""
    mean = math.fsum(values) / len(values)
    if len(values) < 2:
        return mean, None
    return mean, math.sqrt(math.fsum((one - mean) ** 2 for one in values) / (len(values) - 1))


def figure_of(row: Row) -> tuple[str, ...]:
    """What a row is a figure of: its `FIGURE_KEYS`."""
    where = (row.role, row.dataset, row.split, row.task, row.metric, row.model, row.towers)
    return tuple(map(str, where))


def summarise(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """One entry per variant and figure, in the order of the rows.

    `mean`, `spread` (over seeds; None for one) and `num_seeds`; `low` and `high`: the ends of the
    runs' intervals over samples, averaged over seeds. Fractions of 1.
    """
    groups: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault((row.variant, *figure_of(row)), []).append(row)
    entries = []
    for (variant, *names), members in groups.items():
        mean, spread = mean_and_spread([row.value or 0.0 for row in members])
        entries.append(
            {
                "variant": variant,
                **dict(zip(FIGURE_KEYS, names, strict=True)),
                "mean": mean,
                "spread": spread,
                "num_seeds": len(members),
                "low": mean_and_spread([row.low or 0.0 for row in members])[0],
                "high": mean_and_spread([row.high or 0.0 for row in members])[0],
                "num_samples": max(row.num_samples or 0 for row in members),
                "chance": members[0].chance,
            }
        )
    return entries


def study_report(
    study: Study,
    summary: Sequence[Mapping[str, Any]],
    differences: Sequence[Mapping[str, Any]],
    failures: Sequence[Mapping[str, Any]],
) -> Document:
    """The tables of a study, of its own metrics."""
    return study_document(
        study.name,
        study.note,
        [variant.name for variant in study.all_variants()],
        [entry for entry in summary if entry["metric"] in study.metrics],
        differences,
        failures,
    )
