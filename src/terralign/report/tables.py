"""Tables from rows: what is side by side, what is best, what is tied with it.

The best value of a column is compared with the others of its group. A value is tied with it by the
paired bootstrap of the two (p at least 0.05), or where the two cannot be compared so, if their
95 % intervals overlap. p-values of ties are not corrected for the number of comparisons.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal

from terralign.evaluation.rows import PLAIN, PLAIN_NUMBERS, SPREAD_METRICS, Row

Mark = Literal["best", "paired", "overlap", ""]
PairedTest = Callable[[Row, Row], float | None]
"""The p-value of the difference between two values; None where they cannot be compared."""

SIGNIFICANT = 0.05
WITHOUT_BEST = PLAIN_NUMBERS | SPREAD_METRICS | {"linear_separability", "share_never_found"}
"""Metrics that describe, and those whose interval is no confidence interval."""
ZERO_SHOT = ("zero-shot", "multi-label")

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
CELLS_LEGEND = "Per cent, with 95 % intervals."
MARKS_LEGEND = (
    "Bold: the best of its column and group; values without an interval have no best. †: tied "
    "with it, p ≥ 0.05 in the paired bootstrap on the same samples. ‡: the two cannot be compared "
    "so (fewer than 30 samples, or their values were not kept), but their 95 % intervals overlap. "
    "p-values of ties are not corrected for their number."
)
SIGNS = {"paired": "†", "overlap": "‡"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Column:
    """`heading` above `metric`; `about`: what the column's cells share, such as n and chance."""

    heading: str = ""
    metric: str
    about: str = ""

    @property
    def text(self) -> str:
        """All of it on one line."""
        name = ", ".join(one for one in (self.heading, self.metric) if one)
        return f"{name} ({self.about})" if self.about else name


@dataclass(frozen=True, kw_only=True, slots=True)
class Cell:
    """A value with its interval and, of a difference, its p-values, as they are shown."""

    value: str
    interval: str = ""
    p_values: str = ""
    mark: Mark = ""

    @property
    def sign(self) -> str:
        """† or ‡ after a value that is tied with the best."""
        return SIGNS.get(self.mark, "")

    @property
    def details(self) -> str:
        """What follows the value in parentheses."""
        return "; ".join(one for one in (self.interval, self.p_values) if one)


@dataclass(frozen=True, kw_only=True, slots=True)
class Line:
    """`labels`: one per head of the table; `cells`: one per column, None where empty."""

    labels: tuple[str, ...]
    cells: tuple[Cell | None, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Table:
    """A table of a report; one of texts alone has heads and no columns.

    `groups`: heading ("" for none) and lines. `legend`: what the cells hold, where it is not
    `CELLS_LEGEND`. `folded`: a page shows its title, and the rest on demand.
    """

    kind: ClassVar[str] = "table"

    title: str
    heads: tuple[str, ...]
    columns: tuple[Column, ...] = ()
    groups: tuple[tuple[str, tuple[Line, ...]], ...]
    note: str = ""
    legend: str = ""
    folded: bool = False

    @property
    def explanation(self) -> str:
        """The note, and what is particular to the cells."""
        return " ".join(one for one in (self.note, self.legend) if one)

    @property
    def caption(self) -> str:
        """Title, explanation and legends, as a paper needs them below the table."""
        is_marked = any(cell is not None and cell.mark for one in self.lines for cell in one.cells)
        legends = ("" if self.legend else CELLS_LEGEND, MARKS_LEGEND if is_marked else "")
        return " ".join(one for one in (f"{self.title}.", self.explanation, *legends) if one)

    @property
    def width(self) -> int:
        """The number of its columns, labels among them."""
        return len(self.heads) + len(self.columns)

    @property
    def lines(self) -> list[Line]:
        """Those of all groups."""
        return list(itertools.chain.from_iterable(lines for _, lines in self.groups))


def text_table(
    title: str, heads: Sequence[str], rows: Sequence[Sequence[str]], *, folded: bool = True
) -> Table:
    """A table of texts."""
    lines = tuple(Line(labels=tuple(row)) for row in rows)
    return Table(title=title, heads=tuple(heads), groups=(("", lines),), folded=folded)


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """How rows become a table: by what they fall into groups, lines and columns.

    `column`: heading and name of a row's column. `marked`: whether the best of a group's column is
    marked. `about`: whether columns, groups or lines have the number of samples and chance.
    `order`: of the names of columns, where it is not that of the rows.
    """

    title: str
    heads: tuple[str, ...]
    group: Callable[[Row], str]
    line: Callable[[Row], tuple[str, ...]]
    column: Callable[[Row], tuple[str, str]]
    note: str = ""
    legend: str = ""
    marked: bool = True
    about: Literal["column", "group", "line"] = "column"
    order: tuple[str, ...] = ()
    form: Callable[[Row], Cell] = field(default=lambda row: value_cell(row))


_Cells = dict[tuple[str, str], Row]
"""The rows of one line, by column."""


def build_table(
    plan: Plan, rows: Sequence[Row], test: PairedTest = lambda one, two: None
) -> Table | None:
    """The table of rows that have values; None without any.

    Groups, lines and columns are in the order of their first rows, columns of one heading together.
    Where two rows fall into one cell, the first is shown.
    """
    columns = _columns(plan, rows)
    placed: dict[str, dict[tuple[str, ...], _Cells]] = {}
    for row in rows:
        cells = placed.setdefault(plan.group(row), {}).setdefault(plan.line(row), {})
        cells.setdefault(plan.column(row), row)
    if not placed:
        return None
    by_column = {column: [row for row in rows if plan.column(row) == column] for column in columns}
    shown = [
        Column(
            heading=heading,
            metric=metric,
            about=_about(by_column[heading, metric]) if plan.about == "column" else "",
        )
        for heading, metric in columns
    ]
    if plan.about == "line":
        shown += [Column(metric="chance"), Column(metric="n")]
    return Table(
        title=plan.title,
        heads=plan.heads,
        note=plan.note,
        legend=plan.legend,
        columns=tuple(shown),
        groups=tuple(_group(plan, name, lines, columns, test) for name, lines in placed.items()),
    )


def _columns(plan: Plan, rows: Sequence[Row]) -> list[tuple[str, str]]:
    """Columns by their heading, then by their metric."""
    headings = list(dict.fromkeys(plan.column(row)[0] for row in rows))

    def place(row: Row) -> tuple[int, int]:
        heading, name = plan.column(row)
        return headings.index(heading), plan.order.index(name) if name in plan.order else 0

    return list(dict.fromkeys(plan.column(row) for row in sorted(rows, key=place)))


def _group(
    plan: Plan,
    name: str,
    lines: Mapping[tuple[str, ...], _Cells],
    columns: Sequence[tuple[str, str]],
    test: PairedTest,
) -> tuple[str, tuple[Line, ...]]:
    """A group's heading and lines."""
    marks: dict[int, Mark] = {}
    if plan.marked:
        for column in columns:
            marks |= mark_best([own[column] for own in lines.values() if column in own], test)
    shown = []
    for labels, own in lines.items():
        cells = [_cell(plan, own.get(column), marks) for column in columns]
        if plan.about == "line":
            cells += [Cell(value=_chance(own.values())), Cell(value=_counts(own.values()))]
        shown.append(Line(labels=labels, cells=tuple(cells)))
    about = ""
    if plan.about == "group":
        every = [row for own in lines.values() for row in own.values()]
        one_chance = len({row.chance for row in every}) == 1
        about = _about(every, chance=one_chance)
        if not one_chance:
            shown.append(_chance_line(plan, lines.values(), columns))
    return ", ".join(one for one in (name, about) if one), tuple(shown)


def _cell(plan: Plan, row: Row | None, marks: Mapping[int, Mark]) -> Cell | None:
    if row is None:
        return None
    plain = plan.form(row)
    return replace(plain, mark=marks.get(id(row), plain.mark))


def _chance_line(plan: Plan, lines: Collection[_Cells], columns: Sequence[tuple[str, str]]) -> Line:
    """The last line of a group whose columns differ in chance."""
    texts = [_chance([own[column] for own in lines if column in own]) for column in columns]
    return Line(
        labels=("chance", *[""] * (len(plan.heads) - 1)),
        cells=tuple(Cell(value=text) if text else None for text in texts),
    )


def mark_best(rows: Sequence[Row], test: PairedTest) -> dict[int, Mark]:
    """`id` of a row -> whether it is the best or tied with it, by the rule of this module.

    Metrics without a better end (distances, ranks) are not marked, nor is a row on its own, nor
    what has no interval (calibration errors, the spread of a few seeds).
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
    return row.metric not in WITHOUT_BEST and None not in (row.value, row.low, row.high)


def _overlap(one: Row, two: Row) -> bool:
    if one.low is None or one.high is None or two.low is None or two.high is None:
        return False
    return two.low <= one.high and one.low <= two.high


def adjust_holm(p_values: Sequence[float]) -> list[float]:
    """p-values adjusted for their number by Holm's step-down rule (1979), in the order given."""
    order = sorted(range(len(p_values)), key=lambda place: p_values[place])
    adjusted, most = [0.0] * len(p_values), 0.0
    for rank, place in enumerate(order):
        most = max(most, (len(p_values) - rank) * p_values[place])
        adjusted[place] = min(most, 1.0)
    return adjusted


# Values as texts


def percent(value: float) -> str:
    """A fraction of 1 in per cent, with one decimal."""
    return f"{100 * value:.1f}"


def chance_percent(value: float) -> str:
    """Chance in per cent: one decimal, or two digits where that would be 0.0 or 0.1."""
    return percent(value) if value >= 0.0015 or value == 0 else f"{100 * value:.2g}"


def value_text(row: Row) -> str:
    """A value in per cent; distances and ranks as they are."""
    if row.value is None:
        return ""
    return f"{row.value:.3f}" if row.metric in PLAIN_NUMBERS else percent(row.value)


def value_cell(row: Row) -> Cell:
    """A value and its interval."""
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
        p_values = ", ".join(f"{n} {p_text(one)}" for n, one in zip(names, both, strict=False))
    return Cell(value=f"{100 * row.value:+.1f}{stars}", interval=interval, p_values=p_values)


def p_text(p_value: float) -> str:
    """A p-value with three decimals."""
    return f"{p_value:.3f}" if p_value >= 0.0005 else "< 0.001"


def metric_text(metric: str | None) -> str:
    """A metric's name in tables."""
    name, at, k = str(metric).partition("@")
    return METRIC_NAMES.get(name, name.replace("_", " ")) + at + k


def subject_text(row: Row) -> str:
    """A tower, or two modalities; and the variant where it is not plain."""
    variant = "" if row.variant == PLAIN else row.variant
    return ", ".join(one for one in (row.towers, variant) if one)


def _about(rows: Collection[Row], *, chance: bool = True) -> str:
    """Number of samples and chance, from the least to the most where rows differ."""
    counts, by_chance = _counts(rows), _chance(rows) if chance else ""
    named = (f"n {counts}" if counts else "", f"chance {by_chance}" if by_chance else "")
    return ", ".join(one for one in named if one)


def _counts(rows: Collection[Row]) -> str:
    known = [row.num_samples for row in rows if row.num_samples is not None]
    return _from_to(known, str)


def _chance(rows: Collection[Row]) -> str:
    return _from_to([row.chance for row in rows if row.chance is not None], chance_percent)


def _from_to(numbers: Sequence[float], form: Callable[[float], str]) -> str:
    ends = (min(numbers), max(numbers)) if numbers else ()
    return "–".join(dict.fromkeys(map(form, ends)))
