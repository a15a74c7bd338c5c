"""The report of a run: a table for terminals, `report.md`, and `report.html` in one file.

What a row is, `table.py` says. Everything that came from outside is escaped.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from terralign.evaluation import figures
from terralign.evaluation.canvas import DARK, LIGHT, Theme, png_bytes, write_png
from terralign.evaluation.figures import Bar, Sweep, plot_alpha_curve, write_sweep_csv
from terralign.evaluation.page import (
    Picture,
    columns_html,
    escape_html,
    escape_markdown,
    markdown_code,
    markdown_row,
    page_html,
    picture_html,
    plain_table,
)
from terralign.evaluation.rows import PRIMARY_METRICS, ROLES, Row
from terralign.evaluation.shown import ShownSamples, shown_html, shown_markdown
from terralign.evaluation.table import (
    LEGEND,
    MODELS,
    ROLE_MEANINGS,
    Line,
    chance_percent,
    format_table,
    percent,
    present_models,
    table_lines,
    value_and_interval,
)
from terralign.files import write_text

__all__ = ["format_table", "plot_alpha_curve", "write_report", "write_sweep_csv"]

Curves = Mapping[str, Sequence[Mapping[str, Any]]]
PerClass = Mapping[str, Mapping[str, Mapping[str, float | None]]]

BEGINNING = 10
"""Steps at which a curve that begins at 0 has its lowest loss."""

CHART_METRICS = ("top1", "macro_map", "recall@1")


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
    reported: Sequence[Mapping[str, Any]] = (),
    shown: ShownSamples | None = None,
    next_steps: Sequence[tuple[str, str]] = (),
) -> Path:
    """Write `report.html` (self-contained), `report.md`, `figures/*.png` and `alpha-sweep.csv`.

    `sweep`: points of `figures.Sweep`, empty where nothing was patched; `max_supported_drop`: a
    fraction of 1. `curves`: stage -> rows of its `metrics.jsonl`. `per_class`: title -> model ->
    class -> value. `reported`: numbers from publications (`model`, `dataset`, `metric`, `value`,
    `source`), shown apart and labelled "as reported". `next_steps`: (what for, command). Returns
    the path of the HTML page.
    """
    notes = [*notes, *_meaning_of_alpha(sweep, chosen_alpha)]
    pictures = _pictures(rows, sweep, curves, chosen_alpha, max_supported_drop, per_class or {})
    if sweep:
        write_sweep_csv(folder / "alpha-sweep.csv", sweep)
    embedded = []
    for picture in pictures:
        light, dark = (png_bytes(picture.draw(theme)) for theme in (LIGHT, DARK))
        write_png(folder / "figures" / f"{picture.name}.png", light)
        embedded.append((picture_html(picture, light, dark), light))
    samples = shown_markdown(shown, folder) if shown is not None else []
    markdown = _markdown(
        title, rows, pictures, recipe_text, versions, notes, reported, shown, samples, next_steps
    )
    write_text(folder / "report.md", markdown)
    page = _page(title, rows, embedded, recipe_text, versions, notes, reported, shown, next_steps)
    write_text(folder / "report.html", page)
    return folder / "report.html"


def _pictures(
    rows: Sequence[Row],
    sweep: Sweep,
    curves: Curves,
    chosen_alpha: float | None,
    max_supported_drop: float | None,
    per_class: PerClass,
) -> list[Picture]:
    pictures = []
    bars = comparison_bars(table_lines(rows, metrics=CHART_METRICS))
    if bars:
        pictures.append(
            Picture(
                name="comparison",
                caption="Main results, with 95 % intervals and chance. Compare bars under one "
                "heading: elsewhere the data, the metric or the sensor are others.",
                draw=lambda theme: figures.comparison_figure(bars, theme=theme),
            )
        )
    if sweep:
        pictures.append(
            Picture(
                name="alpha-curve",
                caption="Interpolation of the weights, from the base model (alpha 0) to the "
                "fine-tuned one (alpha 1): patching against supported accuracy on validation data, "
                "each point labelled with its alpha. Right is what is kept, up is what is gained.",
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
            Picture(name=f"classes-{index + 1}", caption=f"Each class of {name}.", draw=draw)
        )
    if any(row.get("loss") is not None for stage in curves.values() for row in stage):
        pictures.append(
            Picture(
                name="losses",
                caption=_loss_caption(curves),
                draw=lambda theme: figures.loss_figure(curves, theme=theme),
            )
        )
    return pictures


def _meaning_of_alpha(sweep: Sweep, chosen: float | None) -> list[str]:
    """What an alpha at an end of the curve says of the models, which are then two the same."""
    if chosen == 0:
        return ["Alpha is 0: patched is the base model, and the same values are shown twice."]
    if chosen == 1 and len(sweep) > 2:
        return [
            "Alpha is 1: patched is the fine-tuned model, and the same values are shown twice. "
            "Here fine-tuning cost the supported tasks less than the bound, so nothing had to be "
            "taken back; the curve shows what smaller alphas give."
        ]
    return []


def _loss_caption(curves: Curves) -> str:
    """What the curves are of, and why one begins at 0 where one does."""
    caption = "Training loss of each stage."
    losses = {
        stage: [row["loss"] for row in rows if row.get("loss") is not None]
        for stage, rows in curves.items()
    }
    if any(row.get("source") for rows in curves.values() for row in rows):
        caption += (
            " Batches of several data sets alternate, and each has its own line: with labels the "
            "loss has one more term, and is no measure of the other's."
        )
    at_zero = [
        stage
        for stage, values in losses.items()
        if values
        and min(values[:BEGINNING]) < 0.01 * max(values)
        and values.index(min(values)) < BEGINNING
    ]
    if at_zero:
        caption += (
            f" {' and '.join(at_zero)} begin{'s' if len(at_zero) == 1 else ''} at 0, since a tower "
            "that is inflated from the RGB tower starts as a copy of its teacher: without labels "
            "it has no distance to it before the first step."
        )
    return caption


def comparison_bars(lines: Sequence[Line]) -> list[Bar]:
    """The bars of the main figure, by role and task; the RGB tower's are drawn once a task."""
    bars: list[Bar] = []
    drawn: set[tuple[Any, ...]] = set()
    for line in sorted(lines, key=lambda line: ROLES.index(line.role)):
        sensor = f", {line.sensor}" if line.sensor else ""
        group = f"{line.role}: {line.dataset}/{line.split}, {line.metric}{sensor}"
        for model in MODELS:
            row = line.cells.get(model)
            tower = row.towers if row else ""
            if row is None or (group, model, tower) in drawn:
                continue
            drawn.add((group, model, tower))
            assert row.value is not None
            named = line.task == "retrieval" or model == "aligned"
            bars.append(
                Bar(
                    group=group,
                    label=tower if named else model,
                    model=model,
                    value=row.value,
                    low=row.low,
                    high=row.high,
                    chance=row.chance,
                )
            )
    order = list(dict.fromkeys(bar.group for bar in bars))
    return sorted(bars, key=lambda bar: (order.index(bar.group), MODELS.index(bar.model)))


def _markdown(
    title: str,
    rows: Sequence[Row],
    pictures: Sequence[Picture],
    recipe_text: str,
    versions: Mapping[str, str],
    notes: Sequence[str],
    reported: Sequence[Mapping[str, Any]],
    shown: ShownSamples | None,
    samples: Sequence[str],
    next_steps: Sequence[tuple[str, str]],
) -> str:
    out = [f"# {escape_markdown(title)}", ""]
    for heading, metrics in (("Results", PRIMARY_METRICS), ("All metrics", None)):
        lines = table_lines(rows, metrics=metrics)
        models = present_models(lines)
        out += [
            f"## {heading}",
            "",
            "Per cent, with 95 % bootstrap intervals. " + escape_markdown(LEGEND),
            "",
        ]
        out += markdown_row(["role", "data", "task", "tower", "metric", *models, "chance", "n"])
        out += markdown_row(["---"] * 5 + ["---:"] * (len(models) + 2), raw=True)
        for line in lines:
            cells = [" ".join(value_and_interval(line.cells.get(model))) for model in models]
            task = f"{line.task}, {line.sensor}" if line.sensor else line.task
            where = [line.role, f"{line.dataset}/{line.split}", task, line.tower, line.metric]
            shared = [line.shared("chance", chance_percent), line.shared("num_samples", str)]
            out += markdown_row([*where, *cells, *shared])
        out.append("")
        if metrics is not None:
            out += [f"- {escape_markdown(note)}" for note in (*notes, *_roles(rows))] + [""]
            if shown is not None:
                out += ["## Samples", "", escape_markdown(shown.about), "", *samples]
            out += [f"![{escape_markdown(p.caption)}](figures/{p.name}.png)\n" for p in pictures]
    if reported:
        out += ["## As reported in publications (not measured here)", ""]
        out += markdown_row(["model", "data", "metric", "as reported", "source"])
        out += markdown_row(["---"] * 5, raw=True)
        for row in reported:
            out += markdown_row(_reported_cells(row))
        out.append("")
    if next_steps:
        out += ["## What next", ""]
        for purpose, command in next_steps:
            out += [f"{escape_markdown(purpose)}:", "", *markdown_code(command, "sh"), ""]
    out += ["## What was run", "", *markdown_code(recipe_text, "toml"), ""]
    out += markdown_row(["software", "version"]) + markdown_row(["---"] * 2, raw=True)
    for name, version in versions.items():
        out += markdown_row([name, str(version)])
    return "\n".join(out) + "\n"


def _roles(rows: Sequence[Row]) -> list[str]:
    """What the roles of these rows mean."""
    there = [role for role in ROLES if any(row.role == role for row in rows)]
    return [f"{role}: {ROLE_MEANINGS[role]}." for role in there]


def _page(
    title: str,
    rows: Sequence[Row],
    pictures: Sequence[tuple[str, bytes]],
    recipe_text: str,
    versions: Mapping[str, str],
    notes: Sequence[str],
    reported: Sequence[Mapping[str, Any]],
    shown: ShownSamples | None,
    next_steps: Sequence[tuple[str, str]],
) -> str:
    body = [f"<h1>{escape_html(title)}</h1>", '<section aria-label="Results"><h2>Results</h2>']
    body.append(
        f"<p class=small>Per cent, with 95 % bootstrap intervals. {escape_html(LEGEND)}</p>"
    )
    body.append(_html_table(table_lines(rows, metrics=PRIMARY_METRICS)))
    meanings = [role.partition(": ") for role in _roles(rows)]
    terms = "".join(f"<dt>{one}</dt><dd>{escape_html(text)}</dd>" for one, _, text in meanings)
    body.append(f"<dl>{terms}</dl>")
    if notes:
        items = "".join(f"<li>{escape_html(note)}</li>" for note in notes)
        body.append(f"<ul class=notes>{items}</ul>")
    body.append("</section>")
    if shown is not None:
        about = f"<p class=small>{escape_html(shown.about)}</p>"
        body.append(f"<h2>Samples</h2>{about}{shown_html(shown)}")
    if pictures:
        body += ["<h2>Figures</h2>", columns_html(pictures)]
    if next_steps:
        body.append("<h2>What next</h2>")
        for purpose, command in next_steps:
            body.append(
                f"<p>{escape_html(purpose)}:</p><pre class=command>{escape_html(command)}</pre>"
            )
    body.append("<h2>All metrics</h2><details><summary>Each with its interval</summary>")
    body += [_html_table(table_lines(rows)), "</details>"]
    if reported:
        body.append("<h2>As reported in publications (not measured here)</h2>")
        head = ["model", "data", "metric", "as reported", "source"]
        body.append(plain_table(head, [_reported_cells(row) for row in reported]))
    body.append("<h2>What was run</h2><details><summary>The resolved recipe</summary>")
    body.append(f"<pre>{escape_html(recipe_text)}</pre></details>")
    body.append("<details><summary>Versions</summary>")
    pairs = [[name, str(version)] for name, version in versions.items()]
    body += [plain_table(["software", "version"], pairs), "</details>"]
    return page_html(title, body)


def _html_table(lines: Sequence[Line]) -> str:
    models = present_models(lines)
    heads = ["tower", "metric", *models, "chance", "n"]
    out = ["<table class=results><thead><tr>"]
    out += [f"<th scope=col>{escape_html(head)}</th>" for head in heads] + ["</tr></thead><tbody>"]
    for index, line in enumerate(lines):
        if index == 0 or line.group != lines[index - 1].group:
            text = f"<b>{escape_html(line.role)}</b> {escape_html(line.heading)}"
            out.append(f"<tr class=group><th colspan={len(heads)} scope=rowgroup>{text}</th></tr>")
        out.append(f"<tr><td>{escape_html(line.tower)}</td><td>{escape_html(line.metric)}</td>")
        for model in models:
            value, interval = value_and_interval(line.cells.get(model))
            cell = f"<b>{value}</b> <span>{interval}</span>" if value else ""
            out.append(f'<td class=n data-label="{escape_html(model)}">{cell}</td>')
        for head, text in (
            ("chance", line.shared("chance", chance_percent)),
            ("n", line.shared("num_samples", str)),
        ):
            out.append(f'<td class=n data-label="{head}">{escape_html(text)}</td>')
        out.append("</tr>")
    return "".join(out) + "</tbody></table>"


def _reported_cells(row: Mapping[str, Any]) -> list[str]:
    where = [str(row[key]) for key in ("model", "dataset", "metric")]
    return [*where, percent(row["value"]), str(row["source"])]
