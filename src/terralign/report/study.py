"""The table of a study: mean and spread over seeds of each value, variants side by side."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from terralign.report.document import Block, Document, Section, Text
from terralign.report.tables import (
    Cell,
    Column,
    Line,
    Table,
    chance_percent,
    metric_text,
    p_text,
    percent,
    text_table,
)

LEGEND = (
    "Per cent. One seed: value and its 95 % bootstrap interval over samples. Several: mean, and in "
    "parentheses the standard deviation over seeds; the column's head then has the widest 95 % "
    "interval over samples of any variant, which seeds do not narrow. Bold: the best mean; a lead "
    "within spread or interval is none."
)
COMPARED = (
    "Differences: points, by the paired bootstrap on the same samples, 95 % intervals; of several "
    "seeds their means. p is not corrected for the number of comparisons, and is not reported of "
    "fewer than 30 samples."
)

Entry = Mapping[str, Any]
"""A variant's value: `role`, `dataset`, `split`, `task`, `metric`, `model`, `tower`, `variant`, with
`mean`, `spread` and more of a summary, or with `difference`, `low`, `high`, `p_value`."""


def study_document(
    title: str,
    note: str,
    variants: Sequence[str],
    summary: Sequence[Entry],
    differences: Sequence[Entry],
    failures: Sequence[Mapping[str, Any]],
) -> Document:
    """A section for each split and task: a table of variants, the best of each column bold, and one
    of the differences to the study's reference.

    `variants`: their order. `summary`, `differences`: of the metrics to show.
    """
    sections = [Section(title="", blocks=(Text(text=note),))] if note else []
    for heading in dict.fromkeys(map(_heading, summary)):
        own = [one for one in summary if _heading(one) == heading]
        compared = [one for one in differences if _heading(one) == heading]
        blocks: list[Block] = [_mark_best(_table(heading, own, variants, _mean, _about), own)]
        if compared:
            against = f"Against {compared[0]['reference']}"
            blocks.append(_table(against, compared, variants, _difference, lambda own: ""))
        sections.append(Section(title=heading, blocks=tuple(blocks)))
    if not summary:
        sections.append(Section(title="", blocks=(Text(text="No run has finished."),)))
    if failures:
        rows = [(one["variant"], str(one["seed"]), str(one["reason"])) for one in failures]
        table = text_table("Not finished", ("variant", "seed", "reason"), rows, folded=False)
        sections.append(Section(title="Not finished", blocks=(table,)))
    legends = [LEGEND, *([COMPARED] if differences else [])]
    legend = Text(text=" ".join(legends), small=True)
    sections.append(Section(title="How to read it", blocks=(legend,)))
    return Document(title=f"Study: {title}", sections=tuple(sections))


def _table(
    title: str,
    entries: Sequence[Entry],
    variants: Sequence[str],
    form: Callable[[Entry], Cell],
    about: Callable[[Sequence[Entry]], str],
) -> Table:
    """Variants as lines, what was measured as columns."""
    cells = {(one["variant"], _column(one)): form(one) for one in entries}
    columns = list(dict.fromkeys(map(_column, entries)))
    present = [name for name in variants if any(name == own for own, _ in cells)]
    return Table(
        title=title,
        heads=("variant",),
        columns=tuple(
            Column(metric=name, about=about([one for one in entries if _column(one) == name]))
            for name in columns
        ),
        groups=(
            (
                "",
                tuple(
                    Line(labels=(name,), cells=tuple(cells.get((name, own)) for own in columns))
                    for name in present
                ),
            ),
        ),
    )


def _mark_best(table: Table, entries: Sequence[Entry]) -> Table:
    """The best mean of each column bold, where there are two different ones to choose from."""
    best: dict[str, str] = {}
    for column in table.columns:
        means = {one["variant"]: one["mean"] for one in entries if _column(one) == column.metric}
        if len(set(means.values())) > 1:
            best[column.metric] = max(means, key=lambda name: means[name])
    lines = tuple(
        replace(
            line,
            cells=tuple(
                replace(cell, mark="best")
                if cell is not None and best.get(column.metric) == line.labels[0]
                else cell
                for column, cell in zip(table.columns, line.cells, strict=True)
            ),
        )
        for line in table.lines
    )
    return replace(table, groups=(("", lines),))


def _heading(entry: Entry) -> str:
    return f"{entry['role']}: {entry['dataset']}/{entry['split']}, {entry['task']}"


def _column(entry: Entry) -> str:
    """The metric and what it was measured of: an RGB model, or a tower or pair of them."""
    metric, model, tower = metric_text(entry["metric"]), entry["model"], entry["tower"]
    if tower == "rgb":
        return f"{metric} {model}"
    return f"{metric} {tower}" + ("" if model == "aligned" else f" ({model})")


def _about(entries: Sequence[Entry]) -> str:
    first = entries[0]
    about = f"n {first['num_samples']:,}, chance {chance_percent(first['chance'])}"
    if all(one["num_seeds"] == 1 for one in entries):
        return about
    widest = max((one["high"] - one["low"]) / 2 for one in entries)
    return f"{about}, interval ±{percent(widest)}"


def _mean(entry: Entry) -> Cell:
    if entry["spread"] is None:
        interval = f"{percent(entry['low'])}–{percent(entry['high'])}"
    else:
        interval = f"± {percent(entry['spread'])}, {entry['num_seeds']} seeds"
    return Cell(value=percent(entry["mean"]), interval=interval)


def _difference(entry: Entry) -> Cell:
    value, low, high = (f"{100 * entry[key]:+.1f}" for key in ("difference", "low", "high"))
    p_value = entry["p_value"]
    p_values = "" if p_value is None else f"p {p_text(p_value)}"
    return Cell(value=value, interval=f"{low} to {high}", p_values=p_values)
