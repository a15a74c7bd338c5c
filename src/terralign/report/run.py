"""The report of a run: results, samples, figures, what to do next, what was run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
from numpy.typing import NDArray

from terralign.evaluation.rows import ROLES, Role, Row
from terralign.report.comparison import comparison_table, primary_rows, row_notes
from terralign.report.document import (
    Block,
    Code,
    Document,
    Gallery,
    Notes,
    Plot,
    Plots,
    Section,
    Text,
)
from terralign.report.figures import Sweep, alpha_figure, comparison_figure, loss_figure
from terralign.report.render import write_document
from terralign.report.searched import (
    SEARCHED_CAPTION,
    SEARCHED_TITLE,
    SearchedText,
    searched_figure,
    searched_table,
)
from terralign.report.tables import Table, text_table

Curves = Mapping[str, Sequence[Mapping[str, Any]]]
"""Stage -> rows of its `metrics.jsonl`."""

LOSS_CAPTION = (
    "Training loss of each stage. Batches of several data sets alternate, and each data set has "
    "its own line: with labels the loss has one more term, so lines with and without do not "
    "compare. A tower inflated from the RGB tower starts as a copy of its teacher: without labels "
    "its loss begins at 0."
)
CHART_METRICS = ("top1", "macro_map", "recall@1")
LEGEND = (
    "Per cent, with 95 % bootstrap intervals. base, finetuned, patched: the RGB tower, on the "
    "sensor's composite; aligned: the tower named. q → g: query tower → gallery tower. chance: "
    "the expected value of a random ranking. n: samples."
)
ROLE_MEANINGS: dict[Role, str] = {
    "patching": "the task that the RGB tower was fine-tuned for, on samples it was not trained on",
    "supported": "what the base model is good at; patching may cost it no more than the bound",
    "alignment": "data of the sensors that towers were aligned on, other samples",
    "unseen": "data that neither stage was trained on",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class RunReport:
    """What a run's report shows.

    `sweep`: None where nothing was patched. `notes`: on the run; those of rows are added. `shown`:
    samples with what models predict for them. `searched`: what texts found in `scene` (H, W, 3).
    `next_steps`: (what for, command).
    """

    title: str
    rows: Sequence[Row]
    curves: Curves
    recipe_text: str
    versions: Mapping[str, str]
    notes: Sequence[str] = ()
    sweep: Sweep | None = None
    shown: Gallery | None = None
    searched: Sequence[SearchedText] = ()
    scene: NDArray[np.uint8] | None = None
    next_steps: Sequence[tuple[str, str]] = ()

    def write(self, folder: Path) -> Path:
        """Write `report.html`, `report.md`, `figures/`, `samples/` and `alpha-sweep.csv`.

        Returns the path of the page.
        """
        if self.sweep is not None:
            self.sweep.write_csv(folder / "alpha-sweep.csv")
        return write_document(self.document(), folder)

    def document(self) -> Document:
        """The report as a value."""
        sections = [Section(title="Results", blocks=tuple(self._results()))]
        if self.shown is not None:
            about = Text(text=self.shown.legend, small=True)
            sections.append(Section(title=self.shown.title, blocks=(about, self.shown)))
        if self.searched:
            sections.append(Section(title=SEARCHED_TITLE, blocks=tuple(self._searched())))
        if plots := self._plots():
            sections.append(Section(title="Figures", blocks=(Plots(plots=tuple(plots)),)))
        if self.next_steps:
            steps = (Code(title=title, text=text, language="sh") for title, text in self.next_steps)
            sections.append(Section(title="What next", blocks=tuple(steps)))
        sections.append(Section(title="What was run", blocks=tuple(self._what_was_run())))
        return Document(title=self.title, sections=tuple(sections))

    def _results(self) -> list[Block]:
        notes = [*self.notes, *_meaning_of_alpha(self.sweep), *row_notes(self.rows)]
        present = [role for role in ROLES if any(row.role == role for row in self.rows)]
        notes += [f"{role}: {ROLE_MEANINGS[role]}." for role in present]
        table = comparison_table(primary_rows(self.rows), "Results")
        tables: list[Table] = [] if table is None else [table]
        return [Text(text=LEGEND, small=True), *tables, Notes(items=tuple(notes))]

    def _searched(self) -> list[Block]:
        blocks: list[Block] = [searched_table(self.searched)]
        if self.scene is not None:
            draw = partial(searched_figure, self.scene, self.searched)
            plot = Plot(name="search", caption=SEARCHED_CAPTION, draw=draw)
            blocks.append(Plots(plots=(plot,)))
        return blocks

    def _plots(self) -> list[Plot]:
        plots = []
        chart = [row for row in self.rows if row.metric in CHART_METRICS]
        if chart:
            plots.append(
                Plot(
                    name="comparison",
                    caption="Main results, with 95 % intervals and chance. Compare bars under one "
                    "heading: across headings, data, metric or sensor differ.",
                    draw=partial(comparison_figure, chart),
                )
            )
        if self.sweep is not None:
            start = "the base model"
            if self.sweep.of_last_task:
                start = "the model that the tasks before left"
            plots.append(
                Plot(
                    name="alpha-curve",
                    caption=f"Interpolation of the weights, from {start} (alpha 0) to the "
                    "fine-tuned one (alpha 1): patching against supported accuracy on validation "
                    "data. Further right forgets less, further up gains more.",
                    draw=partial(alpha_figure, self.sweep),
                )
            )
        if any(row.get("loss") is not None for stage in self.curves.values() for row in stage):
            draw = partial(loss_figure, self.curves)
            plots.append(Plot(name="losses", caption=LOSS_CAPTION, draw=draw))
        return plots

    def _what_was_run(self) -> list[Block]:
        every = comparison_table(self.rows, "All metrics")
        versions = [(name, str(version)) for name, version in self.versions.items()]
        recipe = Code(
            title="The resolved recipe", text=self.recipe_text, language="toml", folded=True
        )
        tables: list[Table] = [] if every is None else [replace(every, folded=True)]
        return [*tables, recipe, text_table("Versions", ("software", "version"), versions)]


def _meaning_of_alpha(sweep: Sweep | None) -> list[str]:
    """Why alpha is where it is, and which two models are the same at an end of the curve."""
    if sweep is None or sweep.chosen is None:
        return []
    if sweep.chosen == 0 and sweep.of_last_task:
        return ["Alpha is 0: patched is what the tasks before the last one made."]
    if sweep.chosen == 0:
        return ["Alpha is 0: patched is the base model, and the same values are shown twice."]
    if len(sweep.points) < 3:
        return []
    if sweep.chosen == 1:
        return [
            "Alpha is 1: patched is the fine-tuned model, and the same values are shown twice. "
            "Here fine-tuning cost the supported tasks less than the bound, so nothing had to be "
            "taken back; the curve shows what smaller alphas give."
        ]
    return _what_bounds_alpha(sweep, sweep.chosen)


def _what_bounds_alpha(sweep: Sweep, chosen: float) -> list[str]:
    """What the best alpha on the patching tasks would have cost, where it was not chosen."""
    before = sweep.before
    if before is None or sweep.max_supported_drop is None:
        return []
    best = max(sweep.rising, key=lambda point: fmean(point["patching"].values()))
    drops = {task: before[task] - value for task, value in best["supported"].items()}
    if best["alpha"] == chosen or max(drops.values(), default=0) <= sweep.max_supported_drop + 1e-9:
        return []
    task = max(drops, key=drops.__getitem__)
    return [
        f"Alpha is {chosen:g}, between the two models: alpha {best['alpha']:g} would give "
        f"{100 * fmean(best['patching'].values()):.2f} % on the patching tasks, but cost {task} "
        f"{100 * drops[task]:.2f} points, and the bound is {100 * sweep.max_supported_drop:g}."
    ]
