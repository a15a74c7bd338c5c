"""The table of a study: mean and spread over seeds of each figure, variants side by side."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from terralign.evaluate.table import Row, percent, tower_label
from terralign.study import Study

FIGURE_KEYS = ("role", "dataset", "split", "task", "metric", "model", "tower")


def mean_and_spread(values: Sequence[float]) -> tuple[float, float | None]:
    """The mean, and the sample standard deviation (n - 1 below); None for a single value."""
    mean = math.fsum(values) / len(values)
    if len(values) < 2:
        return mean, None
    return mean, math.sqrt(math.fsum((one - mean) ** 2 for one in values) / (len(values) - 1))


def summarise(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """One entry per variant and figure, in the order of the rows.

    `mean`, `spread` (over seeds; None for one) and `num_seeds`; `low` and `high`: the ends of the
    runs' intervals over samples, averaged over seeds. Fractions of 1.
    """
    groups: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        named = {**row, "tower": tower_label(row)}
        key = (str(row["variant"]), *(str(named[name]) for name in FIGURE_KEYS))
        groups.setdefault(key, []).append(row)
    entries = []
    for (variant, *names), members in groups.items():
        mean, spread = mean_and_spread([row["value"] for row in members])
        entries.append(
            {
                "variant": variant,
                **dict(zip(FIGURE_KEYS, names, strict=True)),
                "mean": mean,
                "spread": spread,
                "num_seeds": len(members),
                "low": mean_and_spread([row["low"] for row in members])[0],
                "high": mean_and_spread([row["high"] for row in members])[0],
                "num_samples": max(row["num_samples"] for row in members),
                "chance": members[0]["chance"],
            }
        )
    return entries


def table_text(
    study: Study, summary: Sequence[Mapping[str, Any]], failures: Sequence[Mapping[str, Any]]
) -> str:
    """`table.md`: for each split and task a table of variants, the best of each column bold."""
    out = [f"# Study: {study.name}", ""]
    if study.note:
        out += [study.note, ""]
    shown = [entry for entry in summary if entry["metric"] in study.metrics]
    order = [variant.name for variant in study.all_variants()]
    for heading in dict.fromkeys(map(_heading, shown)):
        out += _section(heading, [one for one in shown if _heading(one) == heading], order)
    if not shown:
        out += ["No run has finished.", ""]
    if failures:
        out += ["## Not finished", "", "| variant | seed | reason |", "|---|---|---|"]
        out += [
            f"| {one['variant']} | {one['seed']} | {str(one['reason']).replace('|', '/')} |"
            for one in failures
        ]
        out.append("")
    out.append(
        "Per cent. One seed: value and its 95 % bootstrap interval over samples. Several: mean ± "
        "standard deviation over seeds (number of seeds); the column's head then has the widest "
        "95 % interval over samples of any variant, which seeds do not narrow. Bold: the best "
        "mean; a lead within spread or interval is none."
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
