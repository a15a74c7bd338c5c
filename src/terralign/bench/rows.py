"""The plain table of a bench."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from terralign.evaluation.rows import PLAIN, PLAIN_NUMBERS, PRIMARY_METRICS, Row


def format_bench_table(rows: Sequence[Row], *, every: bool = False) -> str:
    """The primary metrics side by side, a column per model, plain text.

    Values in per cent but for distances and ranks; `*` marks a difference to the reference that is
    significant at 5 %. Without `every`: no remedies, and no conditions but the plain one.
    """
    shown = [
        row
        for row in rows
        if row.status == "measured" and row.reference is None and (every or _is_primary(row))
    ]
    significant = {
        _cell(row)
        for row in rows
        if row.reference is not None and row.p_value is not None and row.p_value < 0.05
    }
    models = list(dict.fromkeys(row.model for row in rows))
    asked: dict[tuple[str | None, str], set[str]] = {}
    for row in shown:
        if row.prompts is not None:
            asked.setdefault((row.entry, row.model), set()).add(row.prompts)
    several = {entry for (entry, _), prompts in asked.items() if len(prompts) > 1}
    lines: dict[tuple[str, str], dict[str, Row]] = {}
    for row in shown:
        label = _label(row) + (f", {row.prompts}" if row.entry in several and row.prompts else "")
        lines.setdefault((_heading(row), label), {})[row.model] = row
    headings = list(dict.fromkeys(heading for heading, _ in lines))
    lines = dict(sorted(lines.items(), key=lambda item: headings.index(item[0][0])))
    width = max((len(label) for _, label in lines), default=0) + 2
    columns = [max(len(model), 8) for model in models]
    out = [
        " " * width + "".join(f"  {m:>{w}}" for m, w in zip(models, columns, strict=True)) + "  n"
    ]
    last = ""
    for (heading, label), cells in lines.items():
        if heading != last:
            out.append(heading)
            last = heading
        texts = []
        for model, size in zip(models, columns, strict=True):
            row_ = cells.get(model)
            star = "*" if row_ is not None and _cell(row_) in significant else " "
            texts.append(f"  {_value(row_) + star:>{size}}")
        count = "/".join(dict.fromkeys(str(row.num_samples) for row in cells.values()))
        out.append(f"  {label:{width - 2}}{''.join(texts)}  {count}")
    for row in rows:
        if row.status != "measured":
            where = " ".join(str(one) for one in (row.entry, row.task, row.tower) if one)
            what = f"{row.model}: {where}" if where else row.model
            out.append(f"{row.status}: {what}: {row.note}")
    return "\n".join(out) + "\n"


def _is_primary(row: Row) -> bool:
    plain = row.variant == PLAIN or row.task == "few-shot"
    return row.metric in PRIMARY_METRICS and plain and row.task != "robustness"


def _heading(row: Row) -> str:
    return f"{row.role}: {row.entry} ({row.split}), {row.task}"


def _label(row: Row) -> str:
    where = row.tower or f"{row.query_tower} → {row.gallery_tower}"
    variant = "" if row.variant == PLAIN else f" [{row.variant}]"
    return f"{where}{variant} {row.metric}"


def _cell(row: Row) -> tuple[Any, ...]:
    return row.model_copy(update={"reference": None}).question


def _value(row: Row | None) -> str:
    if row is None or row.value is None:
        return ""
    return f"{row.value:.3f}" if row.metric in PLAIN_NUMBERS else f"{100 * row.value:.1f}"
