"""The report of a bench: tables, the figures and examples of each entry, what was run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from terralign.evaluation.rows import PLAIN, Row
from terralign.files import write_text
from terralign.report.bench_tables import bench_tables
from terralign.report.document import (
    Block,
    Code,
    Document,
    Gallery,
    Plot,
    Plots,
    Section,
    Text,
)
from terralign.report.entries import Details, EntryFigures, plain_rows
from terralign.report.figures import Sweep, alpha_figure
from terralign.report.render import latex, write_document
from terralign.report.reported import reported_table
from terralign.report.tables import (
    CELLS_LEGEND,
    MARKS_LEGEND,
    PairedTest,
    Table,
    subject_text,
    text_table,
)

MAX_OPEN_LINES = 30
"""Tables of more lines are folded away."""


@dataclass(frozen=True, kw_only=True, slots=True)
class BenchReport:
    """What a bench's report shows.

    `test`: the p-value of the difference between two rows, None where they cannot be compared.
    `details`: measurement -> what it kept. `galleries`: entry -> its example retrievals. `sweeps`:
    model -> the alpha sweep of its run. `models`: name -> source and model_id. `versions`: name ->
    software -> version. `prompts`: (name, hash) -> templates.
    """

    title: str
    note: str
    rows: Sequence[Row]
    test: PairedTest = lambda one, two: None
    details: Details = field(default_factory=dict)
    galleries: Mapping[str, Sequence[Gallery]] = field(default_factory=dict)
    sweeps: Mapping[str, Sweep] = field(default_factory=dict)
    models: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    versions: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    prompts: Mapping[tuple[str, str], Sequence[str]] = field(default_factory=dict)
    suite_text: str = ""

    def write(self, folder: Path, *, end: str = "") -> Path:
        """Write `report.html`, `report.md`, `tables.tex`, `figures/`; returns the page's path.

        `end`: a comment at the end of the page.
        """
        document = self.document()
        write_text(folder / "tables.tex", latex(document))
        return write_document(document, folder, end=end)

    def document(self) -> Document:
        """The report as a value."""
        tables = bench_tables(self.rows, self.test)
        sections = [Section(title="", blocks=tuple(self._opening()))]
        sections += map(_section_of, tables.main)
        sections += self._sweep_sections()
        sections += self._entry_sections(number=len(self.sweeps) + 1)
        published = reported_table(self.rows)
        if published is not None:
            sections.append(_section_of(published))
        if tables.more:
            sections.append(Section(title="More tables", blocks=tables.more))
        sections.append(Section(title="What was run", blocks=tuple(self._what_was_run())))
        return Document(title=self.title, sections=tuple(sections))

    def _opening(self) -> list[Block]:
        measured = [row for row in self.rows if row.status == "measured"]
        values = sum(row.reference is None for row in measured)
        counts = (
            f"{_plural(len(self.models), 'model')}, "
            f"{_plural(len({row.entry for row in measured}), 'entry', 'entries')}, "
            f"{_plural(values, 'value')} and "
            f"{_plural(len(measured) - values, 'paired comparison')}."
        )
        others = len(self.rows) - len(measured)
        if others:
            counts += f" Skipped or failed: {_plural(others, 'measurement')}, listed at the end."
        legend = Text(text=f"{CELLS_LEGEND} n: samples. {MARKS_LEGEND}", small=True)
        return [*(Text(text=text) for text in (self.note, counts) if text), legend]

    def _sweep_sections(self) -> list[Section]:
        """The alpha curve of every model that a run made."""
        sections = []
        for number, (model, sweep) in enumerate(self.sweeps.items(), start=1):
            chosen = "" if sweep.chosen is None else f"; chosen: {sweep.chosen:g}"
            plot = Plot(
                name=f"{number}-alpha",
                caption="Interpolation in the run that made it: patching against supported "
                f"accuracy on its validation data{chosen}.",
                draw=partial(alpha_figure, sweep),
            )
            sections.append(Section(title=f"Alpha curve: {model}", blocks=(Plots(plots=(plot,)),)))
        return sections

    def _entry_sections(self, number: int) -> list[Section]:
        """Figures and examples of every entry; `number`: of the first, for names of files."""
        plain = plain_rows(self.rows)
        sections = []
        for entry in dict.fromkeys(row.entry for row in plain):
            own = [row for row in plain if row.entry == entry]
            name, blocks = str(entry), list[Block]()
            figures = EntryFigures(own, self.details)
            if figures.plots:
                plots = [replace(p, name=f"{number}-{p.name}") for p in figures.plots]
                blocks.append(Plots(plots=tuple(plots)))
            if figures.confusions is not None:
                blocks.append(figures.confusions)
            if galleries := self.galleries.get(name):
                blocks += [Text(text=galleries[0].legend, small=True), *galleries]
            if blocks:
                about = f"{own[0].dataset}, split {own[0].split}, {own[0].role} data."
                blocks.insert(0, Text(text=about, small=True))
                sections.append(Section(title=name, blocks=tuple(blocks)))
                number += 1
        return sections

    def _what_was_run(self) -> list[Block]:
        models = [
            (name, m.get("source", ""), m.get("model_id", "")) for name, m in self.models.items()
        ]
        prompts = [
            (name, digest, " | ".join(texts) or "the data set's own")
            for (name, digest), texts in self.prompts.items()
        ]
        versions = [
            (name, software, version)
            for name, own in self.versions.items()
            for software, version in own.items()
        ]
        missing = [
            (row.status, row.model, _where(row), row.note or "")
            for row in self.rows
            if row.status != "measured"
        ]
        data_heads = ("entry", "data", "split", "role", "samples", "prompts", "class list")
        tables = [
            text_table("Models", ("model", "source", "id"), models),
            text_table("Data and prompts", data_heads, _data(self.rows)),
            text_table("Prompt sets", ("prompts", "hash", "templates"), prompts),
            text_table("Versions", ("name", "software", "version"), versions),
            text_table("Skipped or failed", ("status", "model", "where", "reason"), missing),
        ]
        suite = Code(title="The suite", text=self.suite_text, language="toml", folded=True)
        return [*(table for table in tables if table.lines), suite]


def _section_of(table: Table) -> Section:
    folded = len(table.lines) > MAX_OPEN_LINES
    return Section(title=table.title, blocks=(replace(table, folded=folded),))


def _plural(count: int, one: str, several: str = "") -> str:
    return f"{count:,} {one if count == 1 else several or one + 's'}"


def _where(row: Row) -> str:
    return ", ".join(one for one in (row.entry, row.task, subject_text(row)) if one)


def _data(rows: Sequence[Row]) -> list[tuple[str, ...]]:
    """One line per entry; samples: the most that a value on it is about."""
    lines = []
    for entry in dict.fromkeys(row.entry for row in rows if row.entry is not None):
        own = [row for row in rows if row.entry == entry and row.status == "measured"]
        columns: list[list[object]] = [
            [row.dataset for row in own],
            [row.split for row in own],
            [row.role for row in own],
            [max((row.num_samples or 0 for row in own), default=0)],
            [row.prompts for row in own if row.variant == PLAIN],
            [row.class_list for row in own],
        ]
        if own:
            texts = (dict.fromkeys(str(v) for v in one if v is not None) for one in columns)
            lines.append((entry, *(", ".join(one) for one in texts)))
    return lines
