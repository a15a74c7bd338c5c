"""Figures of a run: main results as bars, the alpha curve, losses.

Every `*_figure` function returns a `Figure`. Values come as fractions of 1 and are drawn in per
cent.
"""

from __future__ import annotations

import csv
import io
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.transforms import blended_transform_factory

from terralign.errors import DataError
from terralign.evaluation.rows import Row
from terralign.files import write_text
from terralign.report.canvas import (
    FONT_SIZE,
    LIGHT,
    Theme,
    add_legend,
    new_axes,
    new_figure,
    shorten,
    style_axes,
)
from terralign.report.comparison import MODELS, by_heading

SMALL_SHARE = 0.1
"""Below it a bar is too short to compare with chance by eye, and the factor is written out."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Sweep:
    """An alpha sweep.

    `points`: `{"alpha": float, "patching": {task: value}, "supported": {task: value}}`, values
    fractions of 1. `chosen`: the alpha that was. `max_supported_drop`: what a supported task may
    lose, a fraction of 1, against its value in `baseline` (None: at alpha 0). `of_last_task`: alpha
    0 is where the tasks before left off. Raises `DataError` for points that make no curve.
    """

    points: Sequence[Mapping[str, Any]]
    chosen: float | None = None
    max_supported_drop: float | None = None
    baseline: Mapping[str, float] | None = None
    of_last_task: bool = False

    def __post_init__(self) -> None:
        if not self.points:
            raise DataError("the alpha sweep is empty; give at least one alpha")
        first = self.points[0]
        if not first["patching"]:
            raise DataError("the alpha sweep has no patching task; no curve to draw")
        for point in self.points:
            if any(point[role].keys() != first[role].keys() for role in ("patching", "supported")):
                raise DataError(
                    f"alpha {point['alpha']} has other tasks than alpha {first['alpha']}; every "
                    "alpha needs the same tasks"
                )

    @property
    def rising(self) -> list[Mapping[str, Any]]:
        """The points by alpha."""
        return sorted(self.points, key=lambda point: float(point["alpha"]))

    @property
    def before(self) -> Mapping[str, float] | None:
        """Supported task -> what its drop is measured from; None where that is not known."""
        first = self.rising[0]
        return self.baseline or (first["supported"] if float(first["alpha"]) == 0 else None)

    def write_csv(self, path: Path) -> None:
        """`alpha`, then `patching:TASK` and `supported:TASK`, fractions of 1."""
        tasks = [
            (role, task) for role in ("patching", "supported") for task in self.points[0][role]
        ]
        buffer = io.StringIO()
        writer = csv.writer(buffer, lineterminator="\n")
        writer.writerow(["alpha", *(f"{role}:{task}" for role, task in tasks)])
        for point in self.rising:
            writer.writerow([point["alpha"], *(point[role][task] for role, task in tasks)])
        write_text(path, buffer.getvalue())


def alpha_figure(sweep: Sweep, theme: Theme = LIGHT) -> Figure:
    """Mean accuracy over the patching tasks against each supported task's, one curve each.

    The bound is a dashed line in the task's colour where it is known what a drop is measured from.
    Without supported tasks the patching accuracy is drawn against alpha. The chosen alpha and the
    ends are labelled.
    """
    points = sweep.rising
    alphas = [float(point["alpha"]) for point in points]
    heights = [100 * float(np.mean(list(point["patching"].values()))) for point in points]
    curves = {
        task: [100 * float(point["supported"][task]) for point in points]
        for task in points[0]["supported"]
    }
    figure, axes = new_axes(theme, height=3.8 + 0.2 * len(curves))
    for number, (name, xs) in enumerate((curves or {"patching tasks": alphas}).items()):
        color = theme.line(number)["color"]
        style: dict[str, Any] = {"color": color, "marker": "o", "markersize": 5, "linewidth": 1.6}
        axes.plot(xs, heights, label=shorten(name, 40), zorder=3, **style)
        if curves and sweep.max_supported_drop is not None and sweep.before is not None:
            drop = 100 * sweep.max_supported_drop
            start = "before patching" if sweep.of_last_task else "alpha 0"
            bound = f"bound: {start} less {drop:g} point{'' if drop == 1 else 's'}"
            axes.axvline(
                100 * sweep.before[name] - drop,
                color=color,
                linestyle="--",
                linewidth=1.2,
                label=bound,
            )
        label: dict[str, Any] = {"textcoords": "offset points", "size": FONT_SIZE}
        for alpha, x, y in zip(alphas, xs, heights, strict=True):
            if alpha in (alphas[0], alphas[-1], sweep.chosen):
                axes.annotate(f"{alpha:g}", (x, y), xytext=(8, 6), color=theme.text, **label)
        if sweep.chosen in alphas:
            at = alphas.index(sweep.chosen)
            star: dict[str, Any] = {"color": theme.text, "marker": "*", "linestyle": "none"}
            chosen = f"chosen: alpha {sweep.chosen:g}" if number == 0 else None
            axes.plot(xs[at], heights[at], markersize=14, zorder=4, label=chosen, **star)
    patching = list(points[0]["patching"])
    mean = f"mean of {len(patching)} patching tasks"
    axes.set_ylabel(f"{shorten(patching[0], 40) if len(patching) == 1 else mean}, %")
    axes.set_xlabel("supported task, %" if curves else "alpha")
    axes.margins(0.12)
    add_legend(figure, theme)
    return figure


def comparison_figure(rows: Sequence[Row], theme: Theme = LIGHT) -> Figure:
    """Horizontal bars with intervals and chance, under a heading for each task and metric.

    `rows`: measured rows of a run, with intervals. Axis and grid are drawn beside the bars of each
    heading alone, and so cross none.
    """
    groups = by_heading(rows)
    num_lines = sum(len(own) + 2 for own in groups.values())
    figure, axes = new_axes(theme, height=0.9 + 0.26 * num_lines)
    across = blended_transform_factory(figure.transFigure, axes.transData)
    place, ticks = 0, {}
    for heading, own in groups.items():
        title = "\n".join(textwrap.wrap(shorten(heading, 100), 56))
        text = axes.text(0.02, place + 0.4, title, va="center", color=theme.text)
        text.set(transform=across, weight="bold", size=FONT_SIZE, in_layout=False)
        top, bottom = place + 1.4, place + 1.5 + len(own)
        axes.vlines(range(20, 101, 20), top, bottom, color=theme.grid, linewidth=0.8, zorder=1)
        axes.vlines(0, top, bottom, color=theme.muted, linewidth=0.8, zorder=3)
        for y, row in enumerate(own, start=place + 2):
            _draw_bar(axes, y, row, theme)
            named = row.task == "retrieval" or row.model == "aligned"
            ticks[y] = shorten(row.towers if named else row.model, 34)
        place += len(own) + 2
    axes.grid(visible=False)
    axes.spines["left"].set_visible(False)
    axes.set_yticks(list(ticks), list(ticks.values()))
    axes.tick_params(axis="y", length=0)
    axes.set_ylim(place, -0.4)
    axes.set_xlim(0, 114)
    axes.set_xticks(range(0, 101, 20))
    axes.set_xlabel("%")
    present = [model for model in MODELS if any(row.model == model for row in rows)]
    handles: list[Any] = [Patch(color=theme.model(model), label=model) for model in present]
    handles.append(Line2D([], [], color=theme.text, linewidth=1.3, label="95 % interval"))
    handles.append(Line2D([], [], color=theme.text, linestyle=":", label="chance"))
    add_legend(figure, theme, columns=3, handles=handles)
    return figure


def _draw_bar(axes: Axes, y: float, row: Row, theme: Theme) -> None:
    """A bar with its interval, its chance and its value."""
    value = 100 * (row.value or 0.0)
    low, high = (value if end is None else 100 * end for end in (row.low, row.high))
    axes.barh(y, value, height=0.78, color=theme.model(row.model), zorder=2)
    if high > low:
        axes.plot([low, high], [y, y], color=theme.text, linewidth=1.3, zorder=3)
    text = f"{value:.1f}"
    if row.chance is not None:
        x = 100 * row.chance
        axes.plot([x, x], [y - 0.45, y + 0.45], color=theme.text, linestyle=":", zorder=4)
        if x > 0 and value < 100 * SMALL_SHARE:
            text += f"  ({value / x:.2g} times chance)"
    axes.text(high + 2, y, text, va="center", size=FONT_SIZE, color=theme.text)


def loss_figure(curves: Mapping[str, Sequence[Mapping[str, Any]]], theme: Theme = LIGHT) -> Figure:
    """Training loss over steps, one panel per stage, with a moving average where it is long.

    `curves`: stage -> rows with "step" and "loss"; rows without a loss are left out. Where rows
    name the "source" of their batch, each source has a line.
    """
    panels: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for stage, rows in curves.items():
        for row in rows:
            if row.get("loss") is not None:
                sources = panels.setdefault(stage, {})
                sources.setdefault(row.get("source", ""), []).append((row["step"], row["loss"]))
    named = list(dict.fromkeys(one for sources in panels.values() for one in sources if one))
    colors = {name: theme.line(number)["color"] for number, name in enumerate(named)}
    columns = min(2, len(panels))
    num_rows = -(-len(panels) // columns)
    figure = new_figure(theme, height=2.1 * num_rows + 0.2 + 0.2 * len(named))
    for index, (stage, sources) in enumerate(panels.items()):
        axes = figure.add_subplot(num_rows, columns, index + 1)
        style_axes(axes, theme)
        for name, points in sources.items():
            _draw_loss(axes, np.array(points, dtype=float), colors.get(name, theme.series[0]))
        axes.set_ylim(bottom=0 if axes.get_ylim()[0] < 0 else None)
        axes.set_title(shorten(stage, 30), size=FONT_SIZE, color=theme.text)
        axes.set_xlabel("step")
        axes.set_ylabel("loss")
    if named:
        handles = [Line2D([], [], color=colors[one], label=shorten(one, 56)) for one in named]
        add_legend(figure, theme, handles=handles)
    return figure


def _draw_loss(axes: Axes, points: np.ndarray[Any, Any], color: str) -> None:
    """One line of (N, 2) steps and losses; where it is long, pale under its moving average."""
    steps, losses = points.T
    window = len(losses) // 25
    axes.plot(steps, losses, color=color, linewidth=1, alpha=0.35 if window > 1 else 1)
    if window > 1:
        smooth = np.convolve(losses, np.full(window, 1 / window), mode="valid")
        middle = steps[window // 2 : window // 2 + len(smooth)]
        axes.plot(middle, smooth, color=color, linewidth=1.8)
