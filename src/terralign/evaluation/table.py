"""Results side by side, and as a plain-text table for terminals.

Values are fractions of 1 and are shown in per cent.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from terralign.errors import DataError, nearest
from terralign.evaluation.rows import PRIMARY_METRICS, ROLES, Role, Row

MODELS = ("base", "finetuned", "patched", "aligned")
NEEDED = ("role", "dataset", "split", "task", "metric", "value", "low", "high", "num_samples",
          "chance")  # fmt: skip
TABLE_WIDTH = 100
"""Columns that the terminal's table keeps to; a tower's name is cut where it would pass them."""

LEGEND = (
    "base, finetuned, patched: the RGB tower, on the sensor's composite; aligned: the tower named. "
    "q → g: query tower → gallery tower. chance: what a ranking at random gives on average."
)
ROLE_MEANINGS: dict[Role, str] = {
    "patching": "the task that the RGB tower was fine-tuned for, on samples it was not trained on",
    "supported": "what the base model is good at; patching may cost it no more than the bound",
    "alignment": "data of the sensors that towers were aligned on, other samples",
    "unseen": "data that neither stage was trained on",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Line:
    """What is compared side by side: one metric of one task, `cells` by model.

    `tower`: the aligned tower, or the RGB tower where nothing is aligned; "query → gallery" for
    retrieval.
    """

    role: Role
    dataset: str
    split: str
    task: str
    metric: str
    tower: str
    sensor: str = ""
    """What the tower looks at, where that is not the sensor that the RGB tower's composite is of,
    or two sensors: such lines are under a heading of their own, without the RGB tower's values."""
    cells: dict[str, Row] = field(default_factory=dict)

    @property
    def group(self) -> tuple[str, str, str, str, str]:
        """What the lines under one heading share."""
        return self.role, self.dataset, self.split, self.task, self.sensor

    @property
    def heading(self) -> str:
        """Data, task and sensor of the lines under one heading; the role is not in it."""
        sensor = f", {self.sensor}" if self.sensor else ""
        return f"{self.dataset}/{self.split}, {self.task}{sensor}"

    def shared(self, key: str, form: Callable[[Any], str]) -> str:
        """A property of all cells, such as the number of samples; joined by / where they differ."""
        return "/".join(dict.fromkeys(form(getattr(row, key)) for row in self.cells.values()))


def table_lines(rows: Sequence[Row], *, metrics: Sequence[str] | None = None) -> list[Line]:
    """The rows side by side: by role, then in their own order. `metrics`: only these, in order.

    The RGB tower's values are beside every aligned tower's on the same task that looks at the same
    sensor; a tower of another sensor (radar) has lines of its own. Raises `DataError` for a row
    that lacks a key or names an unknown model or role, and for two rows of one value.
    """
    composites = {
        _task_of(row): row.sensor for row in rows if row.model != "aligned" and row.sensor
    }
    lines: dict[tuple[str, ...], Line] = {}
    for row in rows:
        _check_row(row)
        if metrics is not None and row.metric not in metrics:
            continue
        assert row.role is not None
        names = [str(one) for one in (row.role, row.dataset, row.split, row.task, row.metric)]
        key = (*names, row.towers)
        if key not in lines:
            _, dataset, split, task, metric = names
            lines[key] = Line(
                role=row.role,
                dataset=dataset,
                split=split,
                task=task,
                metric=metric,
                tower=key[-1],
                sensor=_other_sensor(row, composites.get(_task_of(row))),
            )
        if row.model in lines[key].cells:
            raise DataError(
                f"two rows for model {row.model!r}, {' '.join(names)}, tower {key[-1]!r}; "
                "expected one row per figure"
            )
        lines[key].cells[row.model] = row
    groups = list(dict.fromkeys(line.group for line in lines.values()))
    order = list(metrics) if metrics is not None else []
    return sorted(
        _beside_each_other(list(lines.values())),
        key=lambda line: (
            ROLES.index(line.role),
            groups.index(line.group),
            order.index(line.metric) if order else 0,
        ),
    )


def _task_of(row: Row) -> tuple[Any, ...]:
    return (row.role, row.dataset, row.split, row.task)


def _other_sensor(row: Row, composite: str | None) -> str:
    """What a row looks at, where that is not what the RGB tower's `composite` is of, or is two."""
    sensor = row.sensor or ""
    return sensor if " and " in sensor or composite not in (None, sensor) else ""


def _beside_each_other(lines: list[Line]) -> list[Line]:
    """Give the one RGB line of a task to each of its aligned lines, and drop it."""
    kept = []
    for line in lines:
        family = [o for o in lines if (o.group, o.metric) == (line.group, line.metric)]
        plain = [o for o in family if "aligned" not in o.cells]
        aligned = [o for o in family if set(o.cells) == {"aligned"}]
        if line.task == "retrieval" or len(plain) != 1 or not aligned:
            kept.append(line)
        elif line in aligned:
            line.cells.update(plain[0].cells)
            kept.append(line)
        elif line is not plain[0]:
            kept.append(line)
    return kept


def format_table(rows: Sequence[Row]) -> str:
    """The primary metrics as plain text, in at most `TABLE_WIDTH` columns.

    In per cent; `±` is the larger side of the 95 % interval.
    """
    lines = table_lines(rows, metrics=PRIMARY_METRICS)
    if not lines:
        return "no results\n"
    models = present_models(lines)
    bodies = [f"{'':9}" + "".join(f" {model:>10}" for model in models) + "  chance      n"]
    for line in lines:
        cells = "".join(f" {_plus_minus(line.cells.get(model)):>10}" for model in models)
        chance, count = line.shared("chance", chance_percent), line.shared("num_samples", str)
        bodies.append(f"{line.metric:9}{cells} {chance:>7} {count:>6}")
    room = TABLE_WIDTH - 1 - max(map(len, bodies))
    width = min(room, max(len(line.tower) + 2 for line in lines))
    out = [f"{'':{width}} {bodies[0]}"]
    for index, (line, body) in enumerate(zip(lines, bodies[1:], strict=True)):
        if index == 0 or line.group != lines[index - 1].group:
            out.append(f"{line.role}: {line.heading}")
        tower = _clip("  " + line.tower, width)
        out.append(f"{tower:{width}} {body}")
    out += row_notes(rows)
    out.append("Per cent; ± is the larger side of the 95 % bootstrap interval; n: samples.")
    return "\n".join(out) + "\n"


def row_notes(rows: Sequence[Row]) -> list[str]:
    """The notes of rows, each with what it is about, once."""
    return list(
        dict.fromkeys(
            f"{row.model}, {row.towers}: {row.dataset}/{row.split}: {row.note}."
            for row in rows
            if row.note
        )
    )


def _check_row(row: Row) -> None:
    missing = [key for key in NEEDED if getattr(row, key) is None]
    if not row.towers:
        missing.append("tower (or query_tower and gallery_tower)")
    if missing:
        raise DataError(f"a result row lacks {', '.join(missing)}: {row.to_json()}")
    if row.model not in MODELS:
        raise DataError(
            f"unknown model {row.model!r} in a result row; {nearest(row.model, MODELS)}"
        )


def present_models(lines: Sequence[Line]) -> list[str]:
    """The models that have a cell in any of these lines, in the order of `MODELS`."""
    return [model for model in MODELS if any(model in line.cells for line in lines)]


def percent(value: float) -> str:
    """A fraction of 1 in per cent, with one decimal."""
    return f"{100 * value:.1f}"


def chance_percent(value: float) -> str:
    """Chance in per cent: one decimal, or two digits where that would be 0.0 or 0.1."""
    return percent(value) if value >= 0.0015 or value == 0 else f"{100 * value:.2g}"


def _plus_minus(row: Row | None) -> str:
    if row is None:
        return ""
    assert row.value is not None
    assert row.low is not None
    assert row.high is not None
    side = max(row.high - row.value, row.value - row.low)
    return f"{percent(row.value)} ±{percent(side)}"


def value_and_interval(row: Row | None) -> tuple[str, str]:
    """("82.7", "(80.8–84.5)") in per cent; two empty texts where there is no row."""
    if row is None:
        return "", ""
    assert row.value is not None
    assert row.low is not None
    assert row.high is not None
    return percent(row.value), f"({percent(row.low)}–{percent(row.high)})"


def _clip(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 1] + "…"
