"""The report of a bench folder: `report.html` in one file, `report.md`, `tables.tex`, `figures/`.

It is made from what the folder holds (rows, details, pictures, versions, suite) and, where a model
is the space of a run, from the alpha sweep beside it. Everything in those is escaped.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from matplotlib.figure import Figure

from terralign.bench.compare import PairedTests
from terralign.bench.report.examples import (
    ExampleBlock,
    choose_blocks,
    example_html,
    example_markdown,
    find_examples,
    legend,
)
from terralign.bench.report.latex import tex_file
from terralign.bench.report.markup import html_table, markdown_table
from terralign.bench.report.plans import report_tables
from terralign.bench.report.reported import reported_table
from terralign.bench.report.results import BenchResults, Sweep, prompt_texts, read_bench
from terralign.bench.report.sections import Confusions, entry_pictures
from terralign.bench.report.tables import CELLS_LEGEND, MARKS_LEGEND, Table
from terralign.evaluation.canvas import DARK, LIGHT, Theme, png_bytes, write_png
from terralign.evaluation.figures import alpha_curve_figure
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
from terralign.evaluation.rows import PLAIN, Row
from terralign.files import write_text

MAX_OPEN_LINES = 30
"""Tables of more lines are folded away."""
MAX_OPEN_EXAMPLES = 1
"""Of an entry; the others are folded away."""


@dataclass(kw_only=True, slots=True)
class _Section:
    """What the report shows of one entry, or of a sweep."""

    title: str
    about: str
    pictures: list[Picture] = field(default_factory=list)
    confusions: list[Confusions] = field(default_factory=list)
    examples: list[ExampleBlock] = field(default_factory=list)


def write_bench_report(folder: Path) -> Path:
    """Write the report of a bench folder, unless it is there already for the same results.

    Returns the path of the page. Raises `StorageError` for a folder that is no bench or is damaged.
    """
    bench = read_bench(folder)
    page, stamp = folder / "report.html", f"<!-- results {bench.stamp()} -->"
    if page.is_file() and stamp in page.read_text(encoding="utf-8", errors="replace")[-200:]:
        return page
    tables = report_tables(bench.rows, PairedTests(folder, bench.num_bootstrap))
    published = reported_table(bench.rows)
    sections = [*_sweep_sections(bench), *_entry_sections(bench)]
    for old in (folder / "figures").glob("*.png"):
        old.unlink()
    body, text = _heads(bench)
    for table in tables.main:
        body += _html_part(table, is_open=table.num_lines <= MAX_OPEN_LINES)
        text += _markdown_part(table)
    for number, section in enumerate(sections):
        _add_section(bench, section, f"{number + 1}", body, text)
    if published is not None:
        body += _html_part(published, is_open=published.num_lines <= MAX_OPEN_LINES)
        text += _markdown_part(published)
    if tables.more:
        body.append("<h2>More tables</h2>")
    for table in tables.more:
        body += _html_part(table, is_open=False)
        text += _markdown_part(table)
    _add_what_was_run(bench, body, text)
    every = [*tables.main, *([] if published is None else [published]), *tables.more]
    write_text(folder / "tables.tex", tex_file(every, legend=CELLS_LEGEND, marks=MARKS_LEGEND))
    write_text(folder / "report.md", "\n".join(text) + "\n")
    write_text(page, page_html(_title(bench), body, style=STYLE) + stamp + "\n")
    return page


def _title(bench: BenchResults) -> str:
    return f"Bench: {bench.suite('name') or bench.folder.name}"


def _heads(bench: BenchResults) -> tuple[list[str], list[str]]:
    """The first lines of the page and of the Markdown."""
    measured = [row for row in bench.rows if row.status == "measured"]
    entries = {row.entry for row in measured}
    values = sum(row.reference is None for row in measured)
    counts = (
        f"{_plural(len(bench.models), 'model')}, {_plural(len(entries), 'entry', 'entries')}, "
        f"{_plural(values, 'value')} and {_plural(len(measured) - values, 'paired comparison')}."
    )
    others = len(bench.rows) - len(measured)
    if others:
        counts += f" Skipped or failed: {_plural(others, 'measurement')}, listed at the end."
    title, note = _title(bench), bench.suite("note")
    legends = (f"{CELLS_LEGEND} n: samples. {MARKS_LEGEND}",)
    body = [f"<h1>{escape_html(title)}</h1>"]
    body += [f"<p>{escape_html(text)}</p>" for text in (note, counts) if text]
    body += [f"<p class=small>{escape_html(text)}</p>" for text in legends]
    text = [f"# {escape_markdown(title)}", ""]
    for line in (note, counts, *legends):
        text += [escape_markdown(line), ""] if line else []
    return body, text


def _plural(count: int, one: str, several: str = "") -> str:
    return f"{count:,} {one if count == 1 else several or one + 's'}"


def _html_part(table: Table, *, is_open: bool) -> list[str]:
    note = f"<p class=small>{escape_html(table.explanation)}</p>" if table.explanation else ""
    if is_open:
        return [f"<h2>{escape_html(table.title)}</h2>{note}{html_table(table)}"]
    lines = _plural(table.num_lines, "line")
    summary = f"<summary><b>{escape_html(table.title)}</b> ({lines})</summary>"
    return [f"<details>{summary}{note}{html_table(table)}</details>"]


def _markdown_part(table: Table) -> list[str]:
    note = [escape_markdown(table.explanation), ""] if table.explanation else []
    return [f"## {escape_markdown(table.title)}", "", *note, *markdown_table(table)]


def _sweep_sections(bench: BenchResults) -> list[_Section]:
    """The alpha curve of every model that a run made."""
    sections = []
    for model, sweep in bench.sweeps.items():
        chosen = None if sweep.chosen is None else sweep.chosen.alpha
        caption = (
            "Interpolation in the run that made it: patching against supported accuracy on its "
            "validation data, each point labelled with its alpha"
        )
        if chosen is not None:
            caption += f"; chosen: {chosen:g}"
        sections.append(
            _Section(
                title=f"Alpha curve: {model}",
                about="",
                pictures=[
                    Picture(name="alpha", caption=caption + ".", draw=partial(_draw_sweep, sweep))
                ],
            )
        )
    return sections


def _draw_sweep(sweep: Sweep, theme: Theme) -> Figure:
    return alpha_curve_figure(
        [point.model_dump() for point in sweep.points],
        chosen_alpha=None if sweep.chosen is None else sweep.chosen.alpha,
        max_supported_drop=sweep.max_supported_drop,
        theme=theme,
    )


def _entry_sections(bench: BenchResults) -> list[_Section]:
    plain = [
        row for row in bench.rows
        if row.status == "measured" and row.reference is None and row.variant == PLAIN
    ]  # fmt: skip
    blocks = choose_blocks(find_examples(plain, bench.details))
    sections = []
    for entry in dict.fromkeys(row.entry for row in plain):
        own = [row for row in plain if row.entry == entry]
        pictures, confusions = entry_pictures(own, bench.details)
        examples = [block for block in blocks if block.entry == entry]
        if pictures or confusions or examples:
            sections.append(
                _Section(
                    title=str(entry),
                    about=f"{own[0].dataset}, split {own[0].split}, {own[0].role} data.",
                    pictures=pictures,
                    confusions=confusions,
                    examples=examples,
                )
            )
    return sections


def _add_section(
    bench: BenchResults, section: _Section, number: str, body: list[str], text: list[str]
) -> None:
    """Draw a section's figures and add it to the page and to the Markdown."""
    body.append(f"<h2>{escape_html(section.title)}</h2>")
    text += [f"## {escape_markdown(section.title)}", ""]
    if section.about:
        body.append(f"<p class=small>{escape_html(section.about)}</p>")
        text += [escape_markdown(section.about), ""]
    drawn = []
    for picture in section.pictures:
        light, dark = (png_bytes(picture.draw(theme)) for theme in (LIGHT, DARK))
        name = f"figures/{number}-{picture.name}.png"
        write_png(bench.folder / name, light)
        drawn.append((picture_html(picture, light, dark), light))
        text += [f"![{escape_markdown(picture.caption)}]({name})", ""]
    body.append(columns_html(drawn))
    for one in section.confusions:
        heads = ("true class", "predicted class", "times", "of the true class, %")
        cells = [(a, b, str(times), f"{100 * share:.1f}") for a, b, times, share in one.lines]
        body.append(f"<p class=small>{escape_html(one.caption)}</p>" + plain_table(heads, cells))
        text += [escape_markdown(one.caption), "", *_markdown_lines(heads, cells)]
    if section.examples:
        _add_examples(bench, section, body, text)


def _add_examples(bench: BenchResults, section: _Section, body: list[str], text: list[str]) -> None:
    pictures = bench.pictures.get(section.title, {})
    told = legend(pictures)
    body.append(f"<h3>What is found</h3><p class=small>{escape_html(told)}</p>")
    text += [f"### What is found in {escape_markdown(section.title)}", "", told, ""]
    for number, block in enumerate(section.examples):
        shown = " open" if number < MAX_OPEN_EXAMPLES else ""
        body.append(
            f"<details{shown}><summary>{escape_html(block.title)}</summary>"
            f"{example_html(block, pictures, bench.folder)}</details>"
        )
        text += [f"**{escape_markdown(block.title)}**", "", *example_markdown(block, pictures)]


def _add_what_was_run(bench: BenchResults, body: list[str], text: list[str]) -> None:
    parts = [
        ("Models", ("model", "source", "id"), _models(bench)),
        (
            "Data and prompts",
            ("entry", "data", "split", "role", "samples", "prompts", "class list"),
            _data(bench.rows),
        ),
        ("Prompt sets", ("prompts", "hash", "templates"), _prompts(bench.rows)),
        ("Versions", ("name", "software", "version"), _versions(bench)),
        ("Skipped or failed", ("status", "model", "where", "reason"), _not_measured(bench.rows)),
    ]
    body.append("<h2>What was run</h2>")
    text += ["## What was run", ""]
    for title, heads, lines in parts:
        if lines:
            body.append(
                f"<details><summary>{title} ({len(lines)})</summary>{plain_table(heads, lines)}"
                "</details>"
            )
            text += [f"### {title}", "", *_markdown_lines(heads, lines)]
    suite = bench.suite_text
    body.append(f"<details><summary>The suite</summary><pre>{escape_html(suite)}</pre></details>")
    text += ["### The suite", "", *markdown_code(suite, "toml"), ""]


def _models(bench: BenchResults) -> list[tuple[str, ...]]:
    return [
        (name, one.get("source", ""), one.get("model_id", "")) for name, one in bench.models.items()
    ]


def _data(rows: Sequence[Row]) -> list[tuple[str, ...]]:
    """One line per entry; samples: the most that a figure on it is about."""
    lines = []
    for entry in dict.fromkeys(row.entry for row in rows if row.entry is not None):
        own = [row for row in rows if row.entry == entry and row.status == "measured"]
        if not own:
            continue
        texts = [
            ", ".join(dict.fromkeys(str(v) for v in values if v is not None))
            for values in (
                [row.dataset for row in own],
                [row.split for row in own],
                [row.role for row in own],
                [max(row.num_samples or 0 for row in own)],
                [row.prompts for row in own if row.variant == PLAIN],
                [row.class_list for row in own],
            )
        ]
        lines.append((entry, *texts))
    return lines


def _prompts(rows: Sequence[Row]) -> list[tuple[str, ...]]:
    used = dict.fromkeys((row.prompts, row.prompts_hash) for row in rows if row.prompts_hash)
    return [
        (str(name), str(told), " | ".join(prompt_texts(str(name), told)) or "the data set's own")
        for name, told in used
    ]


def _versions(bench: BenchResults) -> list[tuple[str, ...]]:
    return [
        (name, software, version)
        for name, versions in bench.versions.items()
        for software, version in versions.items()
    ]


def _not_measured(rows: Sequence[Row]) -> list[tuple[str, ...]]:
    lines: list[tuple[str, ...]] = []
    for row in rows:
        if row.status != "measured":
            pair = f"{row.query_tower} → {row.gallery_tower}" if row.query_tower else None
            where = (row.entry, row.task, row.tower or pair)
            variant = None if row.variant == PLAIN else row.variant
            told = ", ".join(str(one) for one in (*where, variant) if one)
            lines.append((row.status, row.model, told, row.note or ""))
    return lines


def _markdown_lines(heads: Sequence[str], lines: Sequence[Sequence[str]]) -> list[str]:
    out = markdown_row(heads) + markdown_row(["---"] * len(heads), raw=True)
    for line in lines:
        out += markdown_row(line)
    return [*out, ""]


STYLE = """
td { vertical-align: top; }
.results thead th { vertical-align: bottom; }
.results thead th.n { text-align: right; }
.results thead th:nth-child(2):not(.n) { text-align: left; }
.results td.n span { display: block; }
.results small { font-weight: 400; }
td.n b { font-weight: 700; }
.results.two td:first-child { white-space: nowrap; }
.query { display: grid; grid-template-columns: 8rem 1fr; gap: .8rem; padding: .8rem 0;
  border-bottom: 1px solid var(--line); }
.query p { margin: .2rem 0 0; font-size: .85rem; line-height: 1.3; }
.found { display: grid; gap: .6rem; margin: 0; padding: 0; list-style: none;
  grid-template-columns: repeat(5, minmax(0, 1fr)); }
.found li { border-top: 3px solid var(--wrong); padding-top: .3rem; min-width: 0; }
.found li.right { border-color: var(--right); }
@media (max-width: 40rem) {
  .results.one td:nth-child(2) { font-weight: 400; }
  .results td.n { grid-column: 1 / -1; display: flex; gap: .5rem; align-items: baseline; }
  .results td.n:empty { display: none; }
  .results td.n[data-label]::before { flex: 1; font-size: .85rem; }
  .results td.n span { display: inline; }
  .results td.n:has(.p) { flex-wrap: wrap; row-gap: 0; }
  .results td.n .p { flex-basis: 100%; text-align: right; }
  .query { grid-template-columns: 1fr; }
  .found { grid-template-columns: repeat(3, minmax(0, 1fr)); }
}
"""
