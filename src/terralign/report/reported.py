"""Published values of the paper and of rivals, beside what a bench measured on the same data.

They are data (`reported.toml`), and every line says "as reported": splits, prompts and
preprocessing of a publication may differ from the bench's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from terralign.evaluation.rows import PLAIN, Row
from terralign.files import read_shipped
from terralign.report.tables import ZERO_SHOT, Cell, Column, Line, Table, metric_text, value_text

RGB = "rgb"


@dataclass(frozen=True, kw_only=True, slots=True)
class Reported:
    """One published value in per cent, or a gain in points (`kind`).

    `data`: the catalog's names of its data set. `source`: the publication's title. `query`,
    `gallery`: of retrieval, "rgb", or "sensor" for any other tower.
    """

    model: str
    data: Sequence[str]
    metric: str
    value: float
    source: str
    kind: str = "value"
    query: str | None = None
    gallery: str | None = None


@lru_cache(maxsize=1)
def load_reported() -> tuple[Reported, ...]:
    """The values of `reported.toml`."""
    values = read_shipped("report", "reported")
    titles = {name: one["title"] for name, one in values["sources"].items()}
    return tuple(Reported(**{**one, "source": titles[one["source"]]}) for one in values["figures"])


def reported_table(rows: Sequence[Row]) -> Table | None:
    """Published values on the data sets of the rows, a group for each data set and metric.

    The group's heading has the best that the bench measured there; None where nothing fits.
    """
    measured = [row for row in rows if row.status == "measured" and row.reference is None]
    groups: dict[str, list[Line]] = {}
    for data in dict.fromkeys(row.dataset for row in measured if row.dataset is not None):
        for one in load_reported():
            if data not in one.data:
                continue
            gain = one.kind == "gain"
            line = Line(
                labels=(one.model, one.source),
                cells=(Cell(value=f"{one.value:{'+' if gain else ''}.2f}"),),
            )
            asked = [row for row in measured if row.dataset == data and _same(row, one)]
            groups.setdefault(_heading(data, one, asked), []).append(line)
    if not groups:
        return None
    return Table(
        title="As reported in publications (not measured here)",
        heads=("model", "source"),
        columns=(Column(metric="as reported"),),
        groups=tuple((heading, tuple(lines)) for heading, lines in groups.items()),
        note="Splits, prompts and preprocessing of a publication may differ from those used here; "
        "a publication's mAP is compared with our macro mAP.",
    )


def _heading(data: str, one: Reported, asked: Sequence[Row]) -> str:
    towers = f", {one.query} → {one.gallery}" if one.query else ""
    name = f"{data}, {metric_text(one.metric)}{towers}"
    if one.kind == "gain":
        return f"{name}, gain in points"
    return f"{name}; best measured here: {_best(asked)}" if asked else name


def _same(row: Row, one: Reported) -> bool:
    """Whether a row asks what was published: zero-shot, or that direction of retrieval."""
    if row.metric != one.metric or row.variant != PLAIN or row.value is None:
        return False
    if one.query is None:
        return row.task in ZERO_SHOT
    return row.task == "retrieval" and all(
        tower is not None and (tower == asked if asked == RGB else tower not in (RGB, "text"))
        for tower, asked in ((row.query_tower, one.query), (row.gallery_tower, one.gallery))
    )


def _best(rows: Sequence[Row]) -> str:
    best = max(rows, key=lambda row: row.value or 0.0)
    return f"{value_text(best)} ({best.model}, {best.towers}, split {best.split})"
