"""Figures of a report, drawn with matplotlib's object API: no display, no global state.

Every `*_figure` function returns a `Figure`; every `plot_*` function writes one as a PNG below
`MAX_PNG_BYTES`. Accuracies come as fractions of 1 and are drawn in per cent.
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
from terralign.evaluation.canvas import (
    FONT_SIZE,
    LIGHT,
    Series,
    Theme,
    add_legend,
    label_points,
    new_axes,
    new_figure,
    png_bytes,
    shorten,
    style_axes,
    trim_number,
    write_png,
)
from terralign.evaluation.table import MODELS
from terralign.files import write_text

Sweep = Sequence[Mapping[str, Any]]
"""Points `{"alpha": float, "patching": {task: value}, "supported": {task: value}}`."""

MAX_CLASSES = 40
MAX_CURVE_POINTS = 1500
SMALL_SHARE = 0.1
"""Below it a bar is too short to compare with chance by eye, and the factor is written out."""


def plot_alpha_curve(
    path: Path,
    sweep: Sweep,
    *,
    chosen_alpha: float | None = None,
    max_supported_drop: float | None = None,
    theme: Theme = LIGHT,
) -> None:
    """Write `alpha_curve_figure` as a PNG."""
    figure = alpha_curve_figure(
        sweep, chosen_alpha=chosen_alpha, max_supported_drop=max_supported_drop, theme=theme
    )
    write_png(path, png_bytes(figure))


def plot_comparison(path: Path, bars: Sequence[Bar], *, theme: Theme = LIGHT) -> None:
    """Write `comparison_figure` as a PNG."""
    write_png(path, png_bytes(comparison_figure(bars, theme=theme)))


def plot_class_accuracy(
    path: Path, values: Mapping[str, Mapping[str, float | None]], *, theme: Theme = LIGHT
) -> None:
    """Write `class_figure` as a PNG."""
    write_png(path, png_bytes(class_figure(values, theme=theme)))


def plot_losses(
    path: Path, curves: Mapping[str, Sequence[Mapping[str, Any]]], *, theme: Theme = LIGHT
) -> None:
    """Write `loss_figure` as a PNG."""
    write_png(path, png_bytes(loss_figure(curves, theme=theme)))


def write_sweep_csv(path: Path, sweep: Sweep) -> None:
    """Write a sweep as CSV: `alpha`, then `patching:TASK` and `supported:TASK`, fractions of 1."""
    points, tasks = _checked(sweep)
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["alpha", *(f"{role}:{task}" for role, task in tasks)])
    for point in points:
        writer.writerow([point["alpha"], *(point[role][task] for role, task in tasks)])
    write_text(path, buffer.getvalue())


def alpha_curve_figure(
    sweep: Sweep,
    *,
    chosen_alpha: float | None = None,
    max_supported_drop: float | None = None,
    theme: Theme = LIGHT,
) -> Figure:
    """Mean accuracy over the patching tasks against each supported task's, one curve each.

    `max_supported_drop`: fraction of 1 that a supported task may lose against alpha 0; drawn as a
    dashed line in the task's colour where the sweep has alpha 0. Without supported tasks the
    patching accuracy is drawn against alpha.
    """
    points, tasks = _checked(sweep)
    supported = [task for role, task in tasks if role == "supported"]
    alphas = [float(point["alpha"]) for point in points]
    heights = [100 * float(np.mean(list(point["patching"].values()))) for point in points]
    curves: list[tuple[str, list[float]]] = [
        (task, [100 * point["supported"][task] for point in points]) for task in supported
    ]
    if not curves:
        curves = [("patching tasks", alphas)]
    figure, axes = new_axes(theme, height=3.8 + 0.2 * len(curves))
    handles: list[Any] = []
    colors = [theme.series[index % len(theme.series)] for index in range(len(curves))]
    bounded = max_supported_drop is not None and supported and alphas[0] == 0
    for (name, xs), color in zip(curves, colors, strict=True):
        axes.plot(xs, heights, color=color, marker="o", markersize=5, linewidth=1.6, zorder=3)
        name = shorten(name, 40)
        handles.append(Line2D([], [], color=color, marker="o", markersize=5, label=name))
        if max_supported_drop is not None and bounded:
            bound = xs[0] - 100 * max_supported_drop
            axes.axvline(bound, color=color, linestyle="--", linewidth=1.2, zorder=2)
    if max_supported_drop is not None and bounded:
        drop = trim_number(100 * max_supported_drop)
        label = f"bound: alpha 0 less {drop} point{'' if drop == '1' else 's'}"
        color = colors[0] if len(colors) == 1 else theme.muted
        handles.append(Line2D([], [], color=color, linestyle="--", label=label))
    if chosen_alpha in alphas:
        at = alphas.index(chosen_alpha)
        places = [(xs[at], heights[at]) for _, xs in curves]
        handles.append(_mark_chosen(axes, places, alphas[at], theme))
    patching = [task for role, task in tasks if role == "patching"]
    mean = f"mean of {len(patching)} patching tasks"
    axes.set_ylabel(f"{shorten(patching[0], 40) if len(patching) == 1 else mean}, %")
    axes.set_xlabel("supported task, %" if supported else "alpha")
    axes.margins(0.12)
    add_legend(figure, handles, theme, columns=1)
    series = [
        Series(alphas=alphas, xs=xs, ys=heights, color=color if len(curves) > 1 else theme.text)
        for (_, xs), color in zip(curves, colors, strict=True)
    ]
    label_points(figure, axes, series, chosen=chosen_alpha)
    return figure


def _mark_chosen(
    axes: Axes, places: Sequence[tuple[float, float]], alpha: float, theme: Theme
) -> Line2D:
    """Draw a star at the chosen alpha of every curve; returns the legend's entry."""
    style: dict[str, Any] = {"color": theme.text, "marker": "*", "linestyle": "none"}
    xs, ys = zip(*places, strict=True)
    axes.plot(xs, ys, markersize=14, markeredgecolor=theme.background, zorder=4, **style)
    return Line2D([], [], markersize=11, label=f"chosen: alpha {trim_number(alpha)}", **style)


@dataclass(frozen=True, kw_only=True, slots=True)
class Bar:
    """One bar of a comparison; `value`, `low`, `high`, `chance`: fractions of 1, None: unknown."""

    group: str
    label: str
    model: str
    value: float
    low: float | None = None
    high: float | None = None
    chance: float | None = None


def comparison_figure(bars: Sequence[Bar], *, theme: Theme = LIGHT) -> Figure:
    """Horizontal bars by group, with intervals and chance; a group's bars follow one another.

    Axis and grid are drawn beside the bars of each group alone, and so cross no heading.
    """
    if not bars:
        raise DataError("there are no bars to compare; give at least one")
    places: list[float] = []
    titles: dict[float, str] = {}
    ends: list[list[float]] = []
    place = -0.4
    for index, bar in enumerate(bars):
        if index == 0 or bar.group != bars[index - 1].group:
            lines = textwrap.wrap(bar.group, 54)[:2]
            place += (0.5 if index == 0 else 0.7) + 0.95 * len(lines)
            titles[place - 0.45 - 0.5 * len(lines)] = "\n".join(shorten(one, 56) for one in lines)
            ends.append([place - 0.5, place + 0.5])
        places.append(place)
        ends[-1][1] = place + 0.5
        place += 1
    figure, axes = new_axes(theme, height=0.9 + 0.235 * place)
    axes.grid(visible=False)
    axes.spines["left"].set_visible(False)
    for top, bottom in ends:
        axes.vlines(range(20, 101, 20), top, bottom, color=theme.grid, linewidth=0.8, zorder=1)
        axes.vlines(0, top, bottom, color=theme.muted, linewidth=0.8, zorder=3)
    for y, bar in zip(places, bars, strict=True):
        value = 100 * bar.value
        low = value if bar.low is None else 100 * bar.low
        high = value if bar.high is None else 100 * bar.high
        axes.barh(y, value, height=0.78, color=theme.model(bar.model), zorder=2)
        if high > low:
            axes.plot([low, high], [y, y], color=theme.text, linewidth=1.3, zorder=3)
        if bar.chance is not None:
            x = 100 * bar.chance
            axes.plot([x, x], [y - 0.45, y + 0.45], color=theme.text, linestyle=":", zorder=4)
        told = f"{value:.1f}"
        if bar.chance and bar.value < SMALL_SHARE:
            told += f"  ({bar.value / bar.chance:.2g} times chance)"
        axes.text(high + 2, y, told, va="center", size=FONT_SIZE, color=theme.text)
    across = blended_transform_factory(figure.transFigure, axes.transData)
    for y, title in titles.items():
        text = axes.text(0.02, y, title, va="center", color=theme.text)
        text.set(transform=across, weight="bold", size=FONT_SIZE, in_layout=False)
    axes.set_yticks(places, [shorten(bar.label, 34) for bar in bars])
    axes.tick_params(axis="y", length=0)
    axes.set_ylim(place - 0.3, -0.4)
    axes.set_xlim(0, 114)
    axes.set_xticks(range(0, 101, 20))
    axes.set_xlabel("%")
    present = [model for model in MODELS if any(bar.model == model for bar in bars)]
    handles: list[Any] = [Patch(color=theme.model(model), label=model) for model in present]
    handles.append(Line2D([], [], color=theme.text, linewidth=1.3, label="95 % interval"))
    handles.append(Line2D([], [], color=theme.text, linestyle=":", label="chance"))
    add_legend(figure, handles, theme, columns=3)
    return figure


def class_figure(
    values: Mapping[str, Mapping[str, float | None]], *, theme: Theme = LIGHT
) -> Figure:
    """Accuracy of each class under each model, as dots on one line per class.

    `values`: model -> class name -> fraction of 1, None without samples. Of more than
    `MAX_CLASSES` classes those whose values differ most are drawn, which the figure says.
    """
    names = list(dict.fromkeys(name for classes in values.values() for name in classes))
    known = {
        name: [v for classes in values.values() if (v := classes.get(name)) is not None]
        for name in names
    }
    names = [name for name in names if known[name]]
    if not names:
        raise DataError("no class has a value to draw; give per-class values of one model or more")
    shown = sorted(names, key=lambda n: max(known[n]) - min(known[n]), reverse=True)[:MAX_CLASSES]
    shown.sort(key=names.index)
    figure, axes = new_axes(theme, height=1.2 + 0.235 * len(shown))
    for y, name in enumerate(shown):
        ends = [100 * min(known[name]), 100 * max(known[name])]
        axes.plot(ends, [y, y], color=theme.grid, linewidth=2.5, zorder=2)
    handles: list[Any] = []
    for index, (model, classes) in enumerate(values.items()):
        own = [(y, v) for y, name in enumerate(shown) if (v := classes.get(name)) is not None]
        ys, xs = [y for y, _ in own], [100 * v for _, v in own]
        marker = ("o", "D", "s", "^", "v", "P")[index % 6]
        style: dict[str, Any] = {"marker": marker, "linestyle": "none", "markersize": 6}
        color = theme.model(model)
        axes.plot(xs, ys, color=color, zorder=3 + index, alpha=0.9, **style)
        handles.append(Line2D([], [], color=color, label=shorten(model, 40), **style))
    axes.set_yticks(range(len(shown)), [shorten(name, 34) for name in shown])
    axes.set_ylim(len(shown) - 0.4, -0.6)
    axes.set_xlim(-3, 103)
    hidden = len(names) - len(shown)
    axes.set_xlabel("%" if not hidden else f"%  ({hidden} classes that differ less are left out)")
    axes.grid(visible=False, axis="y")
    axes.tick_params(axis="y", length=0)
    add_legend(figure, handles, theme, columns=2)
    return figure


def loss_figure(
    curves: Mapping[str, Sequence[Mapping[str, Any]]], *, theme: Theme = LIGHT
) -> Figure:
    """Training loss over steps, one panel per stage, with a moving average where it is long.

    `curves`: stage -> rows with "step" and "loss"; rows without a loss are passed over. Where rows
    name the "source" of their batch, each source has a line of its own.
    """
    panels: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for stage, rows in curves.items():
        for row in rows:
            if row.get("loss") is not None:
                sources = panels.setdefault(stage, {})
                sources.setdefault(row.get("source", ""), []).append((row["step"], row["loss"]))
    if not panels:
        raise DataError('no training curve has a row with "loss"; there is nothing to draw')
    named = list(dict.fromkeys(one for sources in panels.values() for one in sources if one))
    colors = {"": theme.series[0]} | {
        name: theme.series[place] for name, place in zip(named, theme.places(named), strict=True)
    }
    columns = min(2, len(panels))
    num_rows = -(-len(panels) // columns)
    figure = new_figure(theme, height=2.1 * num_rows + 0.2 + 0.2 * len(named))
    for index, (stage, sources) in enumerate(panels.items()):
        axes = figure.add_subplot(num_rows, columns, index + 1)
        style_axes(axes, theme)
        for name, points in sources.items():
            _draw_loss(axes, np.array(points, dtype=float), colors[name])
        axes.set_ylim(bottom=0 if axes.get_ylim()[0] < 0 else None)
        axes.set_title(shorten(stage, 30), size=FONT_SIZE, color=theme.text)
        axes.set_xlabel("step")
        axes.set_ylabel("loss")
    handles = [Line2D([], [], color=colors[one], label=shorten(one, 56)) for one in named]
    if handles:
        add_legend(figure, handles, theme, columns=1)
    return figure


def _draw_loss(axes: Axes, points: np.ndarray[Any, Any], color: str) -> None:
    """One line of (N, 2) steps and losses; where it is long, pale under its moving average."""
    steps, losses = _thin(points).T
    window = len(losses) // 25
    axes.plot(steps, losses, color=color, linewidth=1, alpha=0.35 if window > 1 else 1)
    if window > 1:
        smooth = np.convolve(losses, np.full(window, 1 / window), mode="valid")
        middle = steps[window // 2 : window // 2 + len(smooth)]
        axes.plot(middle, smooth, color=color, linewidth=1.8)


def _checked(sweep: Sweep) -> tuple[list[Mapping[str, Any]], list[tuple[str, str]]]:
    """The points by rising alpha, and the (role, task) pairs that each of them must have."""
    points = sorted(sweep, key=lambda point: float(point["alpha"]))
    if not points:
        raise DataError("the alpha sweep is empty; give at least one alpha")
    tasks = [(role, task) for role in ("patching", "supported") for task in points[0][role]]
    for point in points:
        own = [(role, task) for role in ("patching", "supported") for task in point[role]]
        if sorted(own) != sorted(tasks):
            raise DataError(
                f"alpha {point['alpha']} has tasks {sorted(own)}, alpha {points[0]['alpha']} has "
                f"{sorted(tasks)}; every alpha needs the same tasks"
            )
    if not points[0]["patching"]:
        raise DataError("the alpha sweep has no patching task; there is no curve to draw")
    return points, tasks


def _thin(points: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """At most `MAX_CURVE_POINTS` of (N, 2) steps and losses, as means of neighbours."""
    size = -(-len(points) // MAX_CURVE_POINTS)
    parts = [points[i : i + size].mean(axis=0) for i in range(0, len(points), size)]
    return np.array(parts)
