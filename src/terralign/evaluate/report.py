"""The report of a run: a table for terminals, `report.md`, and `report.html` in one file.

What a row is, `table.py` says. Everything that came from outside is escaped.
"""

from __future__ import annotations

import base64
import html
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from terralign.evaluate import figures
from terralign.evaluate.canvas import DARK, LIGHT, Theme, png_bytes, write_png
from terralign.evaluate.figures import Bar, Sweep, plot_alpha_curve, write_sweep_csv
from terralign.evaluate.table import (
    LEGEND,
    MODELS,
    PRIMARY_METRICS,
    ROLES,
    Line,
    Row,
    format_table,
    percent,
    present_models,
    table_lines,
    tower_label,
    value_and_interval,
)
from terralign.files import write_text

__all__ = ["format_table", "plot_alpha_curve", "write_report", "write_sweep_csv"]

Curves = Mapping[str, Sequence[Mapping[str, Any]]]
PerClass = Mapping[str, Mapping[str, Mapping[str, float | None]]]

CHART_METRICS = ("top1", "macro_map", "recall@1")


@dataclass(frozen=True, kw_only=True, slots=True)
class _Picture:
    """A figure of the report: `draw` makes it in a theme."""

    name: str
    caption: str
    draw: Callable[[Theme], Figure]


def write_report(
    folder: Path,
    *,
    title: str,
    rows: Sequence[Row],
    sweep: Sweep,
    curves: Curves,
    recipe_text: str,
    versions: Mapping[str, str],
    notes: Sequence[str],
    chosen_alpha: float | None = None,
    max_supported_drop: float | None = None,
    per_class: PerClass | None = None,
    reported: Sequence[Row] = (),
) -> Path:
    """Write `report.html` (self-contained), `report.md`, `figures/*.png` and `alpha-sweep.csv`.

    `sweep`: points of `figures.Sweep`, empty where nothing was patched; `max_supported_drop`: a
    fraction of 1. `curves`: stage -> rows of its `metrics.jsonl`. `per_class`: title -> model ->
    class -> value. `reported`: numbers from publications (`model`, `dataset`, `metric`, `value`,
    `source`), shown apart and labelled "as reported". Returns the path of the HTML page.
    """
    pictures = _pictures(rows, sweep, curves, chosen_alpha, max_supported_drop, per_class or {})
    if sweep:
        write_sweep_csv(folder / "alpha-sweep.csv", sweep)
    embedded = []
    for picture in pictures:
        light, dark = (png_bytes(picture.draw(theme)) for theme in (LIGHT, DARK))
        write_png(folder / "figures" / f"{picture.name}.png", light)
        embedded.append(_html_picture(picture, light, dark))
    markdown = _markdown(title, rows, pictures, recipe_text, versions, notes, reported)
    write_text(folder / "report.md", markdown)
    page = _page(title, rows, embedded, recipe_text, versions, notes, reported)
    write_text(folder / "report.html", page)
    return folder / "report.html"


def _pictures(
    rows: Sequence[Row],
    sweep: Sweep,
    curves: Curves,
    chosen_alpha: float | None,
    max_supported_drop: float | None,
    per_class: PerClass,
) -> list[_Picture]:
    pictures = []
    bars = _bars(table_lines(rows, metrics=CHART_METRICS))
    if bars:
        pictures.append(
            _Picture(
                name="comparison",
                caption="Main comparison, with 95 % intervals and chance.",
                draw=lambda theme: figures.comparison_figure(bars, theme=theme),
            )
        )
    if sweep:
        pictures.append(
            _Picture(
                name="alpha-curve",
                caption="Interpolation: patching against supported accuracy on validation data, "
                "each point labelled with its alpha.",
                draw=lambda theme: figures.alpha_curve_figure(
                    sweep,
                    chosen_alpha=chosen_alpha,
                    max_supported_drop=max_supported_drop,
                    theme=theme,
                ),
            )
        )
    for index, (name, values) in enumerate(per_class.items()):

        def draw(theme: Theme, values: Any = values) -> Figure:
            return figures.class_figure(values, theme=theme)

        pictures.append(
            _Picture(name=f"classes-{index + 1}", caption=f"Each class of {name}.", draw=draw)
        )
    if any(row.get("loss") is not None for stage in curves.values() for row in stage):
        pictures.append(
            _Picture(
                name="losses",
                caption="Training loss of each stage.",
                draw=lambda theme: figures.loss_figure(curves, theme=theme),
            )
        )
    return pictures


def _bars(lines: Sequence[Line]) -> list[Bar]:
    bars: list[Bar] = []
    drawn: set[tuple[Any, ...]] = set()
    for line in sorted(lines, key=lambda line: ROLES.index(line.role)):
        group = f"{line.role}: {line.dataset}/{line.split}, {line.metric}"
        for model in MODELS:
            row = line.cells.get(model)
            tower = tower_label(row) if row else ""
            if row is None or (group, model, tower) in drawn:
                continue
            drawn.add((group, model, tower))
            named = line.task == "retrieval" or model == "aligned"
            bars.append(
                Bar(
                    group=group,
                    label=tower if named else model,
                    model=model,
                    value=row["value"],
                    low=row["low"],
                    high=row["high"],
                    chance=row["chance"],
                )
            )
    order = list(dict.fromkeys(bar.group for bar in bars))
    return sorted(bars, key=lambda bar: (order.index(bar.group), MODELS.index(bar.model)))


def _markdown(
    title: str,
    rows: Sequence[Row],
    pictures: Sequence[_Picture],
    recipe_text: str,
    versions: Mapping[str, str],
    notes: Sequence[str],
    reported: Sequence[Row],
) -> str:
    out = [f"# {_md(title)}", ""]
    for heading, metrics in (("Results", PRIMARY_METRICS), ("All figures", None)):
        lines = table_lines(rows, metrics=metrics)
        models = present_models(lines)
        out += [f"## {heading}", "", "Per cent, with 95 % bootstrap intervals. " + _md(LEGEND), ""]
        out += _md_row(["role", "data", "task", "tower", "metric", *models, "chance", "n"])
        out += _md_row(["---"] * 5 + ["---:"] * (len(models) + 2), raw=True)
        for line in lines:
            cells = [" ".join(value_and_interval(line.cells.get(model))) for model in models]
            where = [line.role, f"{line.dataset}/{line.split}", line.task, line.tower, line.metric]
            shared = [line.shared("chance", percent), line.shared("num_samples", str)]
            out += _md_row([*where, *cells, *shared])
        out.append("")
        if metrics is not None:
            out += [f"- {_md(note)}" for note in notes] + [""]
            out += [f"![{_md(p.caption)}](figures/{p.name}.png)\n" for p in pictures]
    if reported:
        out += ["## As reported in publications (not measured here)", ""]
        out += _md_row(["model", "data", "metric", "as reported", "source"])
        out += _md_row(["---"] * 5, raw=True)
        for row in reported:
            out += _md_row(_reported_cells(row))
        out.append("")
    fence = "`" * max(3, 1 + max(map(len, re.findall(r"`+", recipe_text)), default=0))
    out += ["## What was run", "", f"{fence}toml", recipe_text.rstrip("\n"), fence, ""]
    out += _md_row(["software", "version"]) + _md_row(["---"] * 2, raw=True)
    for name, version in versions.items():
        out += _md_row([name, str(version)])
    return "\n".join(out) + "\n"


def _page(
    title: str,
    rows: Sequence[Row],
    pictures: Sequence[str],
    recipe_text: str,
    versions: Mapping[str, str],
    notes: Sequence[str],
    reported: Sequence[Row],
) -> str:
    body = [f"<h1>{_esc(title)}</h1>", '<section aria-label="Results"><h2>Results</h2>']
    body.append(f"<p class=small>Per cent, with 95 % bootstrap intervals. {_esc(LEGEND)}</p>")
    body.append(_html_table(table_lines(rows, metrics=PRIMARY_METRICS)))
    if notes:
        items = "".join(f"<li>{_esc(note)}</li>" for note in notes)
        body.append(f"<ul class=notes>{items}</ul>")
    body += ["</section>", *pictures]
    body.append("<details><summary>All figures</summary>")
    body += [_html_table(table_lines(rows)), "</details>"]
    if reported:
        body.append("<h2>As reported in publications (not measured here)</h2>")
        head = ["model", "data", "metric", "as reported", "source"]
        body.append(_html_plain_table(head, [_reported_cells(row) for row in reported]))
    body.append("<h2>What was run</h2><details><summary>The resolved recipe</summary>")
    body.append(f"<pre>{_esc(recipe_text)}</pre></details>")
    body.append("<details><summary>Versions</summary>")
    pairs = [[name, str(version)] for name, version in versions.items()]
    body += [_html_plain_table(["software", "version"], pairs), "</details>"]
    return PAGE.replace("@TITLE@", _esc(title)).replace("@BODY@", "\n".join(body))


def _html_table(lines: Sequence[Line]) -> str:
    models = present_models(lines)
    heads = ["tower", "metric", *models, "chance", "n"]
    out = ["<table class=results><thead><tr>"]
    out += [f"<th scope=col>{_esc(head)}</th>" for head in heads] + ["</tr></thead><tbody>"]
    for index, line in enumerate(lines):
        if index == 0 or line.group != lines[index - 1].group:
            text = f"<b>{_esc(line.role)}</b> {_esc(f'{line.dataset}/{line.split}, {line.task}')}"
            out.append(f"<tr class=group><th colspan={len(heads)} scope=rowgroup>{text}</th></tr>")
        out.append(f"<tr><td>{_esc(line.tower)}</td><td>{_esc(line.metric)}</td>")
        for model in models:
            value, interval = value_and_interval(line.cells.get(model))
            cell = f"<b>{value}</b> <span>{interval}</span>" if value else ""
            out.append(f'<td class=n data-label="{_esc(model)}">{cell}</td>')
        for head, text in (
            ("chance", line.shared("chance", percent)),
            ("n", line.shared("num_samples", str)),
        ):
            out.append(f'<td class=n data-label="{head}">{_esc(text)}</td>')
        out.append("</tr>")
    return "".join(out) + "</tbody></table>"


def _html_plain_table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    out = "".join(f"<th scope=col>{_esc(head)}</th>" for head in heads)
    body = "".join(
        "<tr>" + "".join(f"<td>{_esc(cell)}</td>" for cell in row) + "</tr>" for row in rows
    )
    return (
        f"<div class=scroll><table><thead><tr>{out}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _html_picture(picture: _Picture, light: bytes, dark: bytes) -> str:
    one, other = (f"data:image/png;base64,{base64.b64encode(d).decode()}" for d in (light, dark))
    caption = _esc(picture.caption)
    return (
        f'<figure><picture><source media="(prefers-color-scheme: dark)" srcset="{other}">'
        f'<img alt="{caption}" src="{one}"></picture><figcaption>{caption}</figcaption></figure>'
    )


def _reported_cells(row: Row) -> list[str]:
    where = [str(row[key]) for key in ("model", "dataset", "metric")]
    return [*where, percent(row["value"]), str(row["source"])]


def _esc(text: str) -> str:
    return html.escape(str(text), quote=True)


def _md(text: str) -> str:
    """Text that Markdown shows as it is: on one line, its signs escaped."""
    return re.sub(r"([\\`*_\[\]<>|#~$&!])", r"\\\1", " ".join(str(text).split()))


def _md_row(cells: Sequence[str], *, raw: bool = False) -> list[str]:
    return ["| " + " | ".join(cell if raw else _md(cell) for cell in cells) + " |"]


PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>@TITLE@</title>
<style>
:root { --bg: #ffffff; --fg: #1c2127; --muted: #5a636e; --line: #dfe3e8; --soft: #f4f6f8; }
@media (prefers-color-scheme: dark) {
  :root { --bg: #161b22; --fg: #e6edf3; --muted: #9aa4af; --line: #30363d; --soft: #1f262e; }
}
body { background: var(--bg); color: var(--fg); margin: 0 auto; max-width: 60rem;
  padding: 1rem; font: 16px/1.5 system-ui, sans-serif; overflow-wrap: break-word; }
h1 { font-size: 1.5rem; line-height: 1.25; }
h2 { font-size: 1.15rem; margin-top: 2rem; }
.small, figcaption, td span { color: var(--muted); font-size: .85rem; }
table { border-collapse: collapse; width: 100%; font-size: .92rem; }
th, td { text-align: left; padding: .3rem .5rem; border-bottom: 1px solid var(--line); }
td.n { text-align: right; font-variant-numeric: tabular-nums; }
td span, td.n, .results td:nth-child(2) { white-space: nowrap; }
thead th { color: var(--muted); font-weight: 500; }
.results thead th:nth-child(n+3) { text-align: right; }
.group th { background: var(--soft); font-weight: 400; }
.scroll, pre { overflow-x: auto; }
pre { background: var(--soft); padding: .8rem; font-size: .85rem; }
figure { margin: 1.5rem 0; }
img { width: 100%; max-width: 38rem; height: auto; }
details { margin: .6rem 0; }
summary { cursor: pointer; }
@media (max-width: 40rem) {
  .results thead { display: none; }
  .results, .results tbody { display: block; }
  .results tr { display: grid; grid-template-columns: 1fr 1fr; padding: .35rem 0;
    border-bottom: 1px solid var(--line); }
  .results tr.group { display: block; padding: .6rem 0 0; border: 0; }
  .results tr.group th { display: block; }
  .results td, .results td.n { min-width: 0; border: 0; padding: .1rem .5rem;
    text-align: left; white-space: normal; }
  .results td:nth-child(-n+2) { white-space: normal; font-weight: 600; }
  .results td:empty { display: none; }
  .results td[data-label]::before { content: attr(data-label) " "; color: var(--muted); }
}
</style></head><body>
@BODY@
</body></html>
"""
