"""The tables of a bench's report: what stands side by side, what is best, what is tied with it.

The best figure of a column is compared with the others of its group. A figure is tied with it by
the paired bootstrap of the two (p at least 0.05), or where the two cannot be compared so, if their
95 % intervals overlap. p-values of ties are not corrected for the number of comparisons.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from terralign.evaluation.rows import (
    PLAIN,
    PLAIN_NUMBERS,
    SPREAD_METRICS,
    Row,
)
from terralign.evaluation.table import percent

Mark = Literal["best", "paired", "overlap", ""]
PairedTest = Callable[[Row, Row], float | None]
"""The p-value of the difference between two figures; None where they cannot be compared."""

SIGNIFICANT = 0.05
WITHOUT_BEST = PLAIN_NUMBERS | {"linear_separability", "share_never_found"}
"""Metrics that describe; neither end is the better one."""

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
    "Bold: the best of its column and group; values without an interval have no best. †: tied "
    "with it, p ≥ 0.05 in the paired bootstrap on the same samples. ‡: the two cannot be compared "
    "so (fewer than 30 samples, or their values were not kept), but their 95 % intervals overlap. "
    "p-values of ties are not corrected for their number."
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
    """One figure: `value`, `interval` and, of a difference, `p_values` as they are shown."""

    value: str
    interval: str = ""
    p_values: str = ""
    mark: Mark = ""

    @property
    def details(self) -> str:
        """What follows the value in parentheses."""
        return "; ".join(one for one in (self.interval, self.p_values) if one)


@dataclass(frozen=True, kw_only=True, slots=True)
class TableLine:
    """`labels`: one per head of the table; `cells`: one per column, None where there is none."""

    labels: tuple[str, ...]
    cells: tuple[Cell | None, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Table:
    """A table of a report. `groups`: heading ("" for none) and lines.

    `legend`: what the cells hold, where it is not `CELLS_LEGEND`.
    """

    name: str
    title: str
    heads: tuple[str, ...]
    columns: tuple[Column, ...]
    groups: tuple[tuple[str, tuple[TableLine, ...]], ...]
    note: str = ""
    legend: str = ""

    @property
    def explanation(self) -> str:
        """The note, and what is particular to the cells."""
        return " ".join(one for one in (self.note, self.legend) if one)

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
    group: Callable[[Row], str]
    line: Callable[[Row], tuple[str, ...]]
    column: Callable[[Row], tuple[str, str]]
    note: str = ""
    legend: str = ""
    marked: bool = True
    about: Literal["column", "group"] = "column"
    order: tuple[str, ...] = ()
    form: Callable[[Row], Cell] = field(default=lambda row: value_cell(row))


def build_table(plan: Plan, rows: Sequence[Row], test: PairedTest) -> Table | None:
    """The table of rows that have values; None where there are none.

    Groups, lines and columns are in the order of their first rows, columns of one heading together.
    Where two rows fall into one cell, the first is shown.
    """
    columns = list(dict.fromkeys(plan.column(row) for row in sorted(rows, key=_place(plan, rows))))
    placed: dict[str, dict[tuple[str, ...], dict[tuple[str, str], Row]]] = {}
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
                marks |= mark_best(own, test)
        told, last = "", tuple[TableLine, ...]()
        if plan.about == "group":
            every = [row for cells in lines.values() for row in cells.values()]
            shared = len({row.chance for row in every}) == 1
            told = _about(every, chance=shared)
            last = () if shared else (_chance_line(plan, lines.values(), columns),)
        groups.append(
            (
                ", ".join(one for one in (heading, told) if one),
                tuple(
                    TableLine(
                        labels=labels,
                        cells=tuple(_cell(plan, cells.get(column), marks) for column in columns),
                    )
                    for labels, cells in lines.items()
                )
                + last,
            )
        )
    by_column = {column: [row for row in rows if plan.column(row) == column] for column in columns}
    return Table(
        name=plan.name,
        title=plan.title,
        heads=plan.heads,
        note=plan.note,
        legend=plan.legend,
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


def _place(plan: Plan, rows: Sequence[Row]) -> Callable[[Row], tuple[int, int]]:
    """Where a row's column comes: by its heading, then by its metric."""
    headings = list(dict.fromkeys(plan.column(row)[0] for row in rows))

    def place(row: Row) -> tuple[int, int]:
        metric = plan.order.index(str(row.metric)) if row.metric in plan.order else 0
        return headings.index(plan.column(row)[0]), metric

    return place


def _cell(plan: Plan, row: Row | None, marks: Mapping[int, Mark]) -> Cell | None:
    if row is None:
        return None
    plain = plan.form(row)
    return replace(plain, mark=marks.get(id(row), plain.mark))


def _chance_line(
    plan: Plan,
    lines: Collection[Mapping[tuple[str, str], Row]],
    columns: Sequence[tuple[str, str]],
) -> TableLine:
    """The last line of a group whose columns differ in chance."""
    texts = [_chance([cells[one] for cells in lines if one in cells]) for one in columns]
    return TableLine(
        labels=("chance", *[""] * (len(plan.heads) - 1)),
        cells=tuple(Cell(value=text) if text else None for text in texts),
    )


def mark_best(rows: Sequence[Row], test: PairedTest) -> dict[int, Mark]:
    """`id` of a row -> whether it is the best or tied with it, by the rule of this module.

    Metrics without a better end (distances, ranks) are not marked, nor is a row on its own, nor
    what has no interval (calibration errors, the spread of a few seeds): what seems best there may
    be no better, and nothing here could tell.
    """
    if len(rows) < 2 or not all(map(_can_be_best, rows)):
        return {}
    best = max(rows, key=lambda row: row.value or 0.0)
    marks: dict[int, Mark] = {}
    for row in rows:
        if row.value == best.value:
            marks[id(row)] = "best"
        elif (p_value := test(best, row)) is not None:
            if p_value >= SIGNIFICANT:
                marks[id(row)] = "paired"
        elif _overlap(best, row):
            marks[id(row)] = "overlap"
    return marks


def _can_be_best(row: Row) -> bool:
    if row.metric in WITHOUT_BEST | SPREAD_METRICS:
        return False
    return row.value is not None and row.low is not None and row.high is not None


def _overlap(best: Row, other: Row) -> bool:
    if best.low is None or best.high is None or other.low is None or other.high is None:
        return False
    return other.low <= best.high and best.low <= other.high


def _about(rows: Sequence[Row], *, chance: bool = True) -> str:
    """Number of samples and chance, from the least to the most where rows differ."""
    out = []
    counts = sorted({row.num_samples for row in rows if row.num_samples is not None})
    if counts:
        out.append("n " + "–".join(dict.fromkeys(map(str, (counts[0], counts[-1])))))
    if chance and (text := _chance(rows)):
        out.append(f"chance {text}")
    return ", ".join(out)


def _chance(rows: Sequence[Row]) -> str:
    """Chance of these rows, from the lowest to the highest where they differ; "" for none."""
    known = [row.chance for row in rows if row.chance is not None]
    return (
        "–".join(dict.fromkeys(percent(one) for one in (min(known), max(known)))) if known else ""
    )


def value_text(row: Row) -> str:
    """A figure in per cent; distances and ranks as they are."""
    if row.value is None:
        return ""
    return f"{row.value:.3f}" if row.metric in PLAIN_NUMBERS else percent(row.value)


def value_cell(row: Row) -> Cell:
    """A figure and its interval."""
    if row.low is None or row.high is None:
        return Cell(value=value_text(row))
    return Cell(value=value_text(row), interval=f"{percent(row.low)}–{percent(row.high)}")


def difference_cell(row: Row, adjusted: float | None = None) -> Cell:
    """A difference in points, with its sign.

    `adjusted`: its p-value adjusted for the number of comparisons. * where the plain p-value is
    significant, ** where the adjusted one is too.
    """
    assert row.value is not None
    interval = stars = p_values = ""
    if row.low is not None and row.high is not None:
        interval = f"{100 * row.low:+.1f} to {100 * row.high:+.1f}"
    if row.p_value is not None:
        both = [one for one in (row.p_value, adjusted) if one is not None]
        stars = "*" * sum(one < SIGNIFICANT for one in both)
        names = ("p", "Holm")
        p_values = ", ".join(f"{n} {_p_text(one)}" for n, one in zip(names, both, strict=False))
    return Cell(value=f"{100 * row.value:+.1f}{stars}", interval=interval, p_values=p_values)


def _p_text(p_value: float) -> str:
    return f"{p_value:.3f}" if p_value >= 0.0005 else "< 0.001"


def metric_text(row: Row) -> str:
    """A metric's name as tables say it."""
    name, at, k = str(row.metric).partition("@")
    return METRIC_NAMES.get(name, name.replace("_", " ")) + at + k


def subject_text(row: Row) -> str:
    """What a figure is about: a tower, or two modalities; and the variant where it is not plain."""
    where = row.tower
    if where is None and row.query_tower is not None:
        where = f"{row.query_tower} → {row.gallery_tower}"
    variant = "" if row.variant == PLAIN else row.variant
    return ", ".join(one for one in (where, variant) if one)
