"""Published values of the paper and of rivals, beside what a bench measured on the same data.

They are data (`reported.toml`), and every line says "as reported": splits, prompts and
preprocessing of a publication may differ from the bench's.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from terralign.evaluation.rows import PLAIN, Row
from terralign.files import read_shipped
from terralign.report.tables import (
    ZERO_SHOT,
    Cell,
    Column,
    Line,
    Table,
    metric_text,
    value_text,
)

RGB = "rgb"

SENSOR = "sensor"
"""In place of a tower's name: any tower but the RGB one."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class ReportedValue(_Strict):
    """One published value."""

    model: str
    data: tuple[str, ...] = Field(min_length=1)
    """Names of the catalog that are its data set."""
    metric: str
    value: float
    """Per cent; of a gain: points."""
    kind: Literal["value", "gain"] = "value"
    source: str
    """A key of `sources`."""
    query: str | None = None
    gallery: str | None = None
    """Of retrieval: "rgb", or "sensor" for any other."""


class _Source(_Strict):
    title: str


class Reported(_Strict):
    """All published values that ship with the package."""

    sources: dict[str, _Source]
    figures: tuple[ReportedValue, ...]

    @model_validator(mode="after")
    def _sources_are_known(self) -> Self:
        missing = sorted({one.source for one in self.figures} - set(self.sources))
        if missing:
            raise ValueError(f"sources {missing} are not listed")
        return self


@lru_cache(maxsize=1)
def load_reported() -> Reported:
    """The values of `reported.toml`."""
    return Reported.model_validate(read_shipped("report", "reported"))


def reported_table(rows: Sequence[Row]) -> Table | None:
    """Published values on the data sets of the rows, a group for each data set and metric.

    The group's heading has the best that the bench measured there; None where nothing fits.
    """
    reported = load_reported()
    measured = [row for row in rows if row.status == "measured" and row.reference is None]
    groups: dict[str, list[Line]] = {}
    for data in dict.fromkeys(row.dataset for row in measured if row.dataset is not None):
        for one in reported.figures:
            if data not in one.data:
                continue
            gain = one.kind == "gain"
            line = Line(
                labels=(one.model, reported.sources[one.source].title),
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


def _heading(data: str, one: ReportedValue, asked: Sequence[Row]) -> str:
    towers = f", {one.query} → {one.gallery}" if one.query else ""
    name = f"{data}, {metric_text(one.metric)}{towers}"
    if one.kind == "gain":
        return f"{name}, gain in points"
    return f"{name}; best measured here: {_best(asked)}" if asked else name


def _same(row: Row, one: ReportedValue) -> bool:
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
