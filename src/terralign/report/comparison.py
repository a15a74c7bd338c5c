"""Models side by side: the table that `run` and `bench` print, and that a run's report opens with.

A column per model, a line per tower and metric. A run's RGB towers are repeated beside every
aligned tower of the same task whose sensor their composite is of; a tower of another sensor (radar)
has lines of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from terralign.errors import DataError
from terralign.evaluation.rows import PLAIN, PRIMARY_METRICS, ROLES, Row
from terralign.report.tables import (
    SIGNIFICANT,
    Cell,
    Plan,
    Table,
    build_table,
    percent,
    subject_text,
    value_cell,
    value_text,
)

MODELS = ("base", "finetuned", "patched", "aligned")
"""Those of a run, in their order."""
TABLE_WIDTH = 100
"""Columns that a printed table keeps to where its models and labels allow."""


class Names:
    """What rows are called in a set of them: with their prompts where several sets were used."""

    def __init__(self, rows: Sequence[Row]) -> None:
        asked: dict[tuple[str | None, str | None], set[str]] = {}
        for row in rows:
            if row.prompts is not None and row.variant == PLAIN:
                asked.setdefault((row.entry, row.task), set()).add(row.prompts)
        self._several = {key: prompts for key, prompts in asked.items() if len(prompts) > 1}

    def prompts(self, row: Row) -> str:
        """Its prompts, where its entry was measured with several sets and this is one of them."""
        if row.prompts in self._several.get((row.entry, row.task), ()):
            return f"prompts {row.prompts}"
        return ""

    def entry(self, row: Row) -> str:
        """The suite's entry, with `prompts`."""
        return ", ".join(one for one in (str(row.entry), self.prompts(row)) if one)

    def role(self, row: Row) -> str:
        """The entry, and its role in the training of the models."""
        return f"{self.entry(row)} ({row.role})"


def primary_rows(rows: Sequence[Row]) -> list[Row]:
    """The primary metrics of a bench or run, without corrections and changed conditions."""
    return [
        row
        for row in rows
        if row.metric in PRIMARY_METRICS
        and (row.variant == PLAIN or row.task == "few-shot")
        and row.task != "robustness"
    ]


def comparison_table(
    rows: Sequence[Row], title: str, *, form: Callable[[Row], Cell] = value_cell
) -> Table | None:
    """Measured rows, a column per model; None without any.

    Raises `DataError` for two rows of a run that are one value.
    """
    measured = [row for row in rows if row.status == "measured" and row.reference is None]
    names, heading = Names(measured), headings(measured)
    groups = list(dict.fromkeys(map(heading, measured)))
    ordered = sorted(measured, key=lambda row: (_role(row), groups.index(heading(row))))

    def line(row: Row) -> tuple[str, str]:
        subject = ", ".join(one for one in (subject_text(row), names.prompts(row)) if one)
        return subject, str(row.metric)

    plan = Plan(
        title=title,
        heads=("tower", "metric"),
        group=heading,
        line=line,
        column=lambda row: ("", row.model),
        marked=False,
        about="line",
        order=MODELS if {row.model for row in measured} <= set(MODELS) else (),
        form=form,
    )
    _check_once([(heading(row), *line(row), row.model) for row in ordered if row.entry is None])
    return build_table(plan, _beside_aligned(ordered, heading))


def headings(rows: Sequence[Row]) -> Callable[[Row], str]:
    """A row's heading: role, data, task, and the sensor where it is not that of the composite that
    RGB towers saw there, or where it is two."""
    composites = {
        (row.role, row.dataset, row.split, row.task): row.sensor
        for row in rows
        if row.model != "aligned" and row.sensor
    }

    def heading(row: Row) -> str:
        composite = composites.get((row.role, row.dataset, row.split, row.task))
        sensor = row.sensor or ""
        apart = " and " in sensor or composite not in (None, sensor)
        data = f"{row.entry} ({row.split})" if row.entry else f"{row.dataset}/{row.split}"
        name = f"{row.role}: {data}, {row.task}"
        return f"{name}, {sensor}" if apart else name

    return heading


def by_heading(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """The rows by heading and metric, by role first; within them by model."""
    heading = headings(rows)
    groups: dict[str, list[Row]] = {}
    for row in sorted(rows, key=_role):
        groups.setdefault(f"{heading(row)}, {row.metric}", []).append(row)
    order = {model: place for place, model in enumerate(MODELS)}
    return {
        name: sorted(own, key=lambda row: order.get(row.model, -1)) for name, own in groups.items()
    }


def _role(row: Row) -> int:
    return len(ROLES) if row.role is None else ROLES.index(row.role)


def _check_once(values: Sequence[tuple[str, ...]]) -> None:
    """Raise `DataError` for the first value that is there twice."""
    twice = next((one for one in values if values.count(one) > 1), None)
    if twice is not None:
        raise DataError(f"two rows of one value: {', '.join(twice)}; expected one")


def _beside_aligned(rows: Sequence[Row], heading: Callable[[Row], str]) -> list[Row]:
    """The rows, those of a run's RGB tower once for every aligned tower beside them."""
    aligned: dict[tuple[str, str | None], list[str | None]] = {}
    for row in rows:
        if row.model == "aligned" and row.tower is not None:
            aligned.setdefault((heading(row), row.metric), []).append(row.tower)
    found = []
    for row in rows:
        towers = aligned.get((heading(row), row.metric), [])
        if row.model == "aligned" or row.tower is None or not towers or row.entry is not None:
            found.append(row)
        else:
            found += [row.model_copy(update={"tower": tower}) for tower in towers]
    return found


# For terminals


def format_table(rows: Sequence[Row]) -> str:
    """The primary metrics as plain text, and below them what was skipped or failed, and notes.

    Per cent; `±` is the larger side of the 95 % interval. `*`: the difference to the reference is
    significant at 5 %.
    """
    significant = {
        row.model_copy(update={"reference": None}).question
        for row in rows
        if row.reference is not None and row.p_value is not None and row.p_value < SIGNIFICANT
    }

    def form(row: Row) -> Cell:
        return Cell(value=_plus_minus(row) + "*" * (row.question in significant))

    table = comparison_table(primary_rows(rows), "", form=form)
    lines = ["no results"] if table is None else plain_lines(table)
    lines += row_notes(rows)
    if table is not None:
        starred = " *: differs from the reference, p < 0.05." if significant else ""
        lines.append(
            "Per cent, except distances; ± is the larger side of the 95 % interval; n: "
            f"samples.{starred}"
        )
    return "\n".join(lines) + "\n"


def plain_lines(table: Table, width: int = TABLE_WIDTH) -> list[str]:
    """A table as lines of text; the first label is cut where a line would pass `width`, unless two
    labels would then be the same."""
    heads = [*table.heads, *(column.text for column in table.columns)]
    body = [
        [*line.labels, *(cell.value if cell else "" for cell in line.cells)] for line in table.lines
    ]
    sizes = [max(map(len, column)) for column in zip(heads, *body, strict=True)]
    room = max(8, min(sizes[0], width - 2 - sum(sizes[1:]) - 2 * (len(sizes) - 1)))
    labels = {texts[0] for texts in body}
    if len({_cut(label, room) for label in labels}) == len(labels):
        sizes[0] = room

    def fitted(texts: Sequence[str]) -> str:
        padded = [_cut(texts[0], sizes[0]).ljust(sizes[0])]
        for place, text in enumerate(texts[1:], start=1):
            is_label = place < len(table.heads)
            padded.append(text.ljust(sizes[place]) if is_label else text.rjust(sizes[place]))
        return "  " + "  ".join(padded).rstrip()

    out, rows = [fitted(heads)], iter(body)
    for heading, lines in table.groups:
        out += [heading] if heading else []
        out += [fitted(next(rows)) for _ in lines]
    return out


def _cut(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"


def row_notes(rows: Sequence[Row]) -> list[str]:
    """What was skipped or failed, and the notes of a run's rows, each once."""
    notes = []
    for row in rows:
        if row.status != "measured":
            where = ", ".join(one for one in (row.entry, row.task, subject_text(row)) if one)
            place = f"{row.model}: {where}" if where else row.model
            notes.append(f"{row.status}: {place}: {row.note}")
        elif row.note and row.entry is None:
            place = f"{row.model}, {row.towers}: {row.dataset}/{row.split}"
            notes.append(f"{place}: {row.note}.")
    return list(dict.fromkeys(notes))


def _plus_minus(row: Row) -> str:
    if row.value is None or row.low is None or row.high is None:
        return value_text(row)
    return f"{value_text(row)} ±{percent(max(row.high - row.value, row.value - row.low))}"
