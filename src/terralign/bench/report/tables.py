"""The tables of a bench's report: what stands side by side, what is best, what is tied with it.

The best figure of a column is compared with the others of its group. A figure is tied with it by
the paired bootstrap where the bench has one between the two (p at least 0.05), else where the two
95 % intervals overlap. p-values are not corrected for the number of comparisons.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from terralign.bench.rows import (
    PLAIN,
    PLAIN_NUMBERS,
    QUESTION,
    SPREAD_METRICS,
    BenchRow,
)
from terralign.evaluate.table import percent

Mark = Literal["best", "paired", "overlap", ""]
Differences = Mapping[tuple[Any, ...], BenchRow]
"""What a figure answers -> its row of the difference to the reference."""

SIGNIFICANT = 0.05
LOWER_IS_BETTER = frozenset({"expected_calibration_error"})
WITHOUT_BEST = PLAIN_NUMBERS | {"linear_separability", "share_never_found"}
"""Metrics that describe; neither end is the better one."""
EXACT = 1e-5
"""Two figures that differ by a row's difference to within this are the two that it compared."""

METRIC_NAMES = {
    "top1": "top-1",
    "top5": "top-5",
    "macro_accuracy": "mean class accuracy",
    "macro_map": "macro mAP",
    "micro_map": "micro mAP",
    "few_shot_top1": "top-1",
    "macro_f1": "macro F1",
    "micro_f1": "micro F1",
    "expected_calibration_error": "calibration error",
    "map": "mAP",
}
MARKS_LEGEND = (
    "Bold: the best of its column and group. †: tied with it, p ≥ 0.05 in the paired bootstrap on "
    "the same samples. ‡: no paired comparison of the two was made, but their 95 % intervals "
    "overlap. p-values are not corrected for the number of comparisons."
)
SIGNS = {"paired": "†", "overlap": "‡"}
"""Of marks, after the figure."""
CELLS_LEGEND = "Per cent, with 95 % intervals."


@dataclass(frozen=True, kw_only=True, slots=True)
class Column:
    """`heading` above `metric`; `about`: what the column's cells share, such as n and chance."""

    heading: str
    metric: str
    about: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Cell:
    """One figure: `value` and `interval` as they are shown."""

    value: str
    interval: str = ""
    mark: Mark = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class TableLine:
    """`labels`: one per head of the table; `cells`: one per column, None where there is none."""

    labels: tuple[str, ...]
    cells: tuple[Cell | None, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Table:
    """A table of a report. `groups`: heading ("" for none) and lines."""

    name: str
    title: str
    heads: tuple[str, ...]
    columns: tuple[Column, ...]
    groups: tuple[tuple[str, tuple[TableLine, ...]], ...]
    note: str = ""

    @property
    def num_lines(self) -> int:
        """Without headings."""
        return sum(len(lines) for _, lines in self.groups)

    @property
    def is_marked(self) -> bool:
        """Whether any figure is marked as best or tied."""
        return any(
            cell is not None and cell.mark
            for _, lines in self.groups
            for line in lines
            for cell in line.cells
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """How rows become a table: what tells groups, lines and columns apart.

    `column`: heading and metric of a row. `marked`: whether the best of a group's column is marked.
    `about`: whether columns or groups say the number of samples and chance. `order`: of metrics,
    where columns of one heading are not to be in the order of the rows.
    """

    name: str
    title: str
    heads: tuple[str, ...]
    group: Callable[[BenchRow], str]
    line: Callable[[BenchRow], tuple[str, ...]]
    column: Callable[[BenchRow], tuple[str, str]]
    note: str = ""
    marked: bool = True
    about: Literal["column", "group"] = "column"
    order: tuple[str, ...] = ()
    form: Callable[[BenchRow], Cell] = field(default=lambda row: value_cell(row))


def build_table(plan: Plan, rows: Sequence[BenchRow], differences: Differences) -> Table | None:
    """The table of rows that have values; None where there are none.

    Groups, lines and columns are in the order of their first rows. Where two rows fall into one
    cell, the first is shown.
    """
    columns = list(dict.fromkeys(plan.column(row) for row in sorted(rows, key=_place(plan))))
    placed: dict[str, dict[tuple[str, ...], dict[tuple[str, str], BenchRow]]] = {}
    for row in rows:
        cells = placed.setdefault(plan.group(row), {}).setdefault(plan.line(row), {})
        cells.setdefault(plan.column(row), row)
    if not placed:
        return None
    groups = []
    for heading, lines in placed.items():
        marks: dict[int, Mark] = {}
        for column in columns:
            own = [cells[column] for cells in lines.values() if column in cells]
            if plan.marked:
                marks |= mark_best(own, differences)
        told = ""
        if plan.about == "group":
            told = _about([row for cells in lines.values() for row in cells.values()])
        groups.append(
            (
                ", ".join(one for one in (heading, told) if one),
                tuple(
                    TableLine(
                        labels=labels,
                        cells=tuple(_cell(plan, cells.get(column), marks) for column in columns),
                    )
                    for labels, cells in lines.items()
                ),
            )
        )
    by_column = {column: [row for row in rows if plan.column(row) == column] for column in columns}
    return Table(
        name=plan.name,
        title=plan.title,
        heads=plan.heads,
        note=plan.note,
        columns=tuple(
            Column(
                heading=heading,
                metric=metric,
                about=_about(by_column[heading, metric]) if plan.about == "column" else "",
            )
            for heading, metric in columns
        ),
        groups=tuple(groups),
    )


def _place(plan: Plan) -> Callable[[BenchRow], int]:
    """Where a row's column comes."""
    return lambda row: plan.order.index(str(row.metric)) if row.metric in plan.order else 0


def _cell(plan: Plan, row: BenchRow | None, marks: Mapping[int, Mark]) -> Cell | None:
    if row is None:
        return None
    plain = plan.form(row)
    return Cell(value=plain.value, interval=plain.interval, mark=marks.get(id(row), plain.mark))


def mark_best(rows: Sequence[BenchRow], differences: Differences) -> dict[int, Mark]:
    """`id` of a row -> whether it is the best or tied with it, by the rule of this module.

    Metrics without a better end (distances, ranks) are not marked, nor is a row on its own. The
    spread of a few seeds is no interval: nothing ties by it.
    """
    if len(rows) < 2 or any(row.metric in WITHOUT_BEST or row.value is None for row in rows):
        return {}
    sign = -1 if rows[0].metric in LOWER_IS_BETTER else 1
    best = max(rows, key=lambda row: sign * (row.value or 0.0))
    marks: dict[int, Mark] = {}
    for row in rows:
        if row.value == best.value:
            marks[id(row)] = "best"
        elif (p_value := paired_p_value(best, row, differences)) is not None:
            if p_value >= SIGNIFICANT:
                marks[id(row)] = "paired"
        elif _overlap(best, row):
            marks[id(row)] = "overlap"
    return marks


def paired_p_value(one: BenchRow, two: BenchRow, differences: Differences) -> float | None:
    """Of the bench's comparison of just these two figures; None where it made none."""
    for new, old in ((one, two), (two, one)):
        found = differences.get(answered(new))
        if found is None or found.reference != old.model or found.value is None:
            continue
        if new.value is None or old.value is None:
            continue
        same_tower = (old.tower, old.query_tower) in (
            (new.tower, new.query_tower),
            ("rgb", new.query_tower),
        )
        if same_tower and abs(new.value - old.value - found.value) < EXACT:
            return found.p_value
    return None


def answered(row: BenchRow) -> tuple[Any, ...]:
    """What a row answers, of whichever reference."""
    return tuple(getattr(row, key) for key in QUESTION if key != "reference")


def find_differences(rows: Sequence[BenchRow]) -> dict[tuple[Any, ...], BenchRow]:
    """The rows of differences, by what they answer."""
    return {answered(row): row for row in rows if row.reference is not None}


def _overlap(best: BenchRow, other: BenchRow) -> bool:
    if best.metric in SPREAD_METRICS:
        return False
    if best.low is None or best.high is None or other.low is None or other.high is None:
        return False
    return other.low <= best.high and best.low <= other.high


def _about(rows: Sequence[BenchRow]) -> str:
    """Number of samples and chance, where all rows share them."""
    out = []
    counts = {row.num_samples for row in rows}
    if len(counts) == 1 and (count := counts.pop()) is not None:
        out.append(f"n {count}")
    chances = {row.chance for row in rows}
    if len(chances) == 1 and (chance := chances.pop()) is not None:
        out.append(f"chance {percent(chance)}")
    return ", ".join(out)


def value_text(row: BenchRow) -> str:
    """A figure in per cent; distances and ranks as they are."""
    if row.value is None:
        return ""
    return f"{row.value:.3f}" if row.metric in PLAIN_NUMBERS else percent(row.value)


def value_cell(row: BenchRow) -> Cell:
    """A figure and its interval."""
    if row.low is None or row.high is None:
        return Cell(value=value_text(row))
    return Cell(value=value_text(row), interval=f"{percent(row.low)}–{percent(row.high)}")


def difference_cell(row: BenchRow) -> Cell:
    """A difference in points, with its sign; * where it is significant."""
    assert row.value is not None
    star = "*" if row.p_value is not None and row.p_value < SIGNIFICANT else ""
    interval = ""
    if row.low is not None and row.high is not None:
        interval = f"{100 * row.low:+.1f} to {100 * row.high:+.1f}"
    return Cell(value=f"{100 * row.value:+.1f}{star}", interval=interval)


def metric_text(row: BenchRow) -> str:
    """A metric's name as tables say it."""
    name, at, k = str(row.metric).partition("@")
    return METRIC_NAMES.get(name, name.replace("_", " ")) + at + k


def subject_text(row: BenchRow) -> str:
    """What a figure is about: a tower, or two modalities; and the variant where it is not plain."""
    where = row.tower
    if where is None and row.query_tower is not None:
        where = f"{row.query_tower} → {row.gallery_tower}"
    variant = "" if row.variant == PLAIN else row.variant
    return ", ".join(one for one in (where, variant) if one)
