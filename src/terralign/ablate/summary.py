"""The table of a study: mean and spread over seeds of each figure, variants side by side."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from terralign.ablate.study import Study
from terralign.evaluation.rows import Row
from terralign.evaluation.table import percent

FIGURE_KEYS = ("role", "dataset", "split", "task", "metric", "model", "tower")
"""`tower`: of retrieval "query → gallery"."""


def mean_and_spread(values: Sequence[float]) -> tuple[float, float | None]:
    """The mean, and the sample standard deviation (n - 1 below); None for a single value."""
    mean = math.fsum(values) / len(values)
    if len(values) < 2:
        return mean, None
    return mean, math.sqrt(math.fsum((one - mean) ** 2 for one in values) / (len(values) - 1))


def figure_of(row: Row) -> tuple[str, ...]:
    """What a row is a figure of: its `FIGURE_KEYS`."""
    where = (row.role, row.dataset, row.split, row.task, row.metric, row.model, row.towers)
    return tuple(map(str, where))


def summarise(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """One entry per variant and figure, in the order of the rows.

    `mean`, `spread` (over seeds; None for one) and `num_seeds`; `low` and `high`: the ends of the
    runs' intervals over samples, averaged over seeds. Fractions of 1.
    """
    groups: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault((row.variant, *figure_of(row)), []).append(row)
    entries = []
    for (variant, *names), members in groups.items():
        mean, spread = mean_and_spread([row.value or 0.0 for row in members])
        entries.append(
            {
                "variant": variant,
                **dict(zip(FIGURE_KEYS, names, strict=True)),
                "mean": mean,
                "spread": spread,
                "num_seeds": len(members),
                "low": mean_and_spread([row.low or 0.0 for row in members])[0],
                "high": mean_and_spread([row.high or 0.0 for row in members])[0],
                "num_samples": max(row.num_samples or 0 for row in members),
                "chance": members[0].chance,
            }
        )
    return entries


def table_text(
    study: Study,
    summary: Sequence[Mapping[str, Any]],
    differences: Sequence[Mapping[str, Any]],
    failures: Sequence[Mapping[str, Any]],
) -> str:
    """`table.md`: for each split and task a table of variants, the best of each column bold.

    Below it the differences to the study's reference.
    """
    out = [f"# Study: {study.name}", ""]
    if study.note:
        out += [study.note, ""]
    shown = [entry for entry in summary if entry["metric"] in study.metrics]
    order = [variant.name for variant in study.all_variants()]
    for heading in dict.fromkeys(map(_heading, shown)):
        own = [one for one in shown if _heading(one) == heading]
        out += _section(heading, own, order)
        columns = list(dict.fromkeys(map(_column, own)))
        compared = [one for one in differences if _heading(one) == heading]
        out += _difference_lines(compared, columns, order)
    if not shown:
        out += ["No run has finished.", ""]
    if failures:
        out += ["## Not finished", "", "| variant | seed | reason |", "|---|---|---|"]
        out += [
            f"| {one['variant']} | {one['seed']} | {str(one['reason']).replace('|', '/')} |"
            for one in failures
        ]
        out.append("")
    out += [
        "Per cent. One seed: value and its 95 % bootstrap interval over samples. Several: mean ± "
        "standard deviation over seeds (number of seeds); the column's head then has the widest "
        "95 % interval over samples of any variant, which seeds do not narrow. Bold: the best "
        "mean; a lead within spread or interval is none.",
        "",
    ]
    if differences:
        out.append(
            f"Against `{study.reference_name}`: points, by the paired bootstrap on the same "
            "samples, 95 % intervals; of several seeds their means. p is not corrected for the "
            "number of comparisons, and none is told of fewer than 30 samples."
        )
    return "\n".join(out) + "\n"


def _heading(entry: Mapping[str, Any]) -> str:
    return f"{entry['role']}: {entry['dataset']}/{entry['split']}, {entry['task']}"


def _section(heading: str, entries: Sequence[Mapping[str, Any]], order: Sequence[str]) -> list[str]:
    columns = list(dict.fromkeys(map(_column, entries)))
    cells = {(entry["variant"], _column(entry)): entry for entry in entries}
    present = [name for name in order if any((name, column) in cells for column in columns)]
    best = {column: _best([cells.get((name, column)) for name in present]) for column in columns}
    heads = []
    for column in columns:
        members = [entry for entry in entries if _column(entry) == column]
        head = f"{column} (n {members[0]['num_samples']:,}, chance {percent(members[0]['chance'])}"
        if any(entry["num_seeds"] > 1 for entry in members):
            widest = max((one["high"] - one["low"]) / 2 for one in members)
            head += f", interval ±{percent(widest)}"
        heads.append(f"{head})")
    lines = [f"## {heading}", "", f"| variant | {' | '.join(heads)} |"]
    lines.append("|---" * (len(columns) + 1) + "|")
    for name in present:
        row = [_cell(cells.get((name, column)), best[column]) for column in columns]
        lines.append(f"| {name} | {' | '.join(row)} |")
    return [*lines, ""]


def _difference_lines(
    entries: Sequence[Mapping[str, Any]], columns: Sequence[str], order: Sequence[str]
) -> list[str]:
    cells = {(entry["variant"], _column(entry)): entry for entry in entries}
    if not cells:
        return []
    used = [column for column in columns if any(column == own for _, own in cells)]
    lines = [f"| against `{entries[0]['reference']}` | {' | '.join(used)} |"]
    lines.append("|---" * (len(used) + 1) + "|")
    for name in order:
        if any(name == own for own, _ in cells):
            row = [_difference(cells.get((name, column))) for column in used]
            lines.append(f"| {name} | {' | '.join(row)} |")
    return [*lines, ""]


def _difference(entry: Mapping[str, Any] | None) -> str:
    if entry is None:
        return ""
    value, low, high = (f"{100 * entry[key]:+.1f}" for key in ("difference", "low", "high"))
    p_value = entry["p_value"]
    told = "" if p_value is None else f", p {p_value:.3f}" if p_value >= 0.001 else ", p < 0.001"
    return f"{value} ({low} to {high}{told})"


def _column(entry: Mapping[str, Any]) -> str:
    """The metric and what it was measured of: an RGB model, or a tower or pair of them."""
    model, tower = entry["model"], entry["tower"]
    if tower == "rgb":
        return f"{entry['metric']} {model}"
    return f"{entry['metric']} {tower}" + ("" if model == "aligned" else f" ({model})")


def _best(entries: Sequence[Mapping[str, Any] | None]) -> float | None:
    """The best mean, where there are two different ones to choose from."""
    means = {entry["mean"] for entry in entries if entry is not None}
    return max(means) if len(means) > 1 else None


def _cell(entry: Mapping[str, Any] | None, best: float | None) -> str:
    if entry is None:
        return ""
    text = percent(entry["mean"])
    shown = f"**{text}**" if best is not None and entry["mean"] == best else text
    if entry["spread"] is None:
        return f"{shown} ({percent(entry['low'])}–{percent(entry['high'])})"
    return f"{shown} ± {percent(entry['spread'])} ({entry['num_seeds']})"
