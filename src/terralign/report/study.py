"""The tables of a study: variants side by side, and their differences to the reference."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from terralign.evaluation.rows import Row
from terralign.report.document import Document, Section, Text
from terralign.report.tables import (
    Cell,
    Plan,
    Table,
    build_table,
    difference_cell,
    metric_text,
    percent,
    text_table,
    value_cell,
)

LEGEND = (
    "Per cent. One seed: value and its 95 % bootstrap interval over samples. Several: mean, the "
    "mean interval, and the standard deviation over seeds. Bold: the best mean; ‡: its interval "
    "overlaps that of the best."
)
COMPARED = (
    "Differences: points, by the paired bootstrap on the same samples, 95 % intervals; of several "
    "seeds their means. *: p < 0.05, not corrected for the number of comparisons; p is not "
    "reported of fewer than 30 samples."
)

Entry = Mapping[str, Any]
"""A value of a variant: the keys of a row that name it, with `mean` and `spread` of a summary, or
`difference` and `reference`."""


def study_document(
    title: str,
    note: str,
    variants: Sequence[str],
    summary: Sequence[Entry],
    differences: Sequence[Entry],
    failures: Sequence[Mapping[str, Any]],
) -> Document:
    """A section for each split and task: a table of variants, and one of the differences.

    `variants`: their order. `summary`, `differences`: of the metrics to show.
    """
    sections = [Section(title="", blocks=(Text(text=note),))] if note else []
    for heading in dict.fromkeys(map(_heading, summary)):
        tables = [
            _table(heading, [one for one in summary if _heading(one) == heading], variants),
            _table("", [one for one in differences if _heading(one) == heading], variants),
        ]
        blocks = tuple(table for table in tables if table is not None)
        sections.append(Section(title=heading, blocks=blocks))
    if not summary:
        sections.append(Section(title="", blocks=(Text(text="No run has finished."),)))
    if failures:
        rows = [(one["variant"], str(one["seed"]), str(one["reason"])) for one in failures]
        table = text_table("Not finished", ("variant", "seed", "reason"), rows, folded=False)
        sections.append(Section(title="Not finished", blocks=(table,)))
    legend = f"{LEGEND} {COMPARED}" if differences else LEGEND
    sections.append(Section(title="", blocks=(Text(text=legend, small=True),)))
    return Document(title=f"Study: {title}", sections=tuple(sections))


def _heading(entry: Entry) -> str:
    return f"{entry['role']}: {entry['dataset']}/{entry['split']}, {entry['task']}"


def _table(title: str, entries: Sequence[Entry], variants: Sequence[str]) -> Table | None:
    """Variants as lines, what was measured as columns; differences where entries have them."""
    ordered = sorted(entries, key=lambda one: variants.index(one["variant"]))
    rows = [_row(one) for one in ordered]
    details = {id(row): _seeds(one) for row, one in zip(rows, ordered, strict=True)}

    def form(row: Row) -> Cell:
        if row.reference is not None:
            return difference_cell(row)
        return replace(value_cell(row), p_values=details[id(row)])

    reference = next((row.reference for row in rows if row.reference), None)
    plan = Plan(
        title=title if reference is None else f"Against {reference}",
        heads=("variant",),
        group=lambda row: "",
        line=lambda row: (row.variant,),
        column=lambda row: ("", _column(row)),
        marked=reference is None,
        form=form,
    )
    return build_table(plan, rows)


def _row(entry: Entry) -> Row:
    """A mean, or a difference, as a row."""
    known = {key: value for key, value in entry.items() if key in Row.model_fields}
    return Row.model_validate({**known, "value": entry.get("mean", entry.get("difference"))})


def _seeds(entry: Entry) -> str:
    spread = entry.get("spread")
    return "" if spread is None else f"± {percent(spread)} over {entry['num_seeds']} seeds"


def _column(row: Row) -> str:
    """The metric and what it was measured of: an RGB model, or a tower or pair of them."""
    metric = metric_text(row.metric)
    if row.tower == "rgb":
        return f"{metric} {row.model}"
    return f"{metric} {row.tower}" + ("" if row.model == "aligned" else f" ({row.model})")
