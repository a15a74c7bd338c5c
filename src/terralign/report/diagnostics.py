"""Figures of a bench: classes, confusions, reliability, retrieval against k, projections.

Every `*_figure` function returns a `Figure`. Values come as fractions of 1 and are drawn in per
cent. `numbers`: name of a line -> number of its colour and marker, so that figures agree in them.

K classes, N points.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator
from numpy.typing import NDArray

from terralign.evaluation.rows import Row
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

MAX_SERIES = 6
"""Models and towers in one figure: there are so many colours."""
MAX_BARS = 100
"""Of more classes than these leave room for, those whose values differ most are drawn."""
MAX_CONFUSION_CLASSES = 30
"""A matrix of more classes cannot be read at this size; a table of its errors can."""
MAX_NUMBERED = 12
"""Matrices of at most so many classes have their shares written in their cells."""
MIN_BIN = 5
"""Predictions of a bin whose share of right ones means something."""


def class_figure(
    values: Mapping[str, Mapping[str, float | None]],
    numbers: Mapping[str, int],
    theme: Theme = LIGHT,
) -> Figure:
    """A bar for each class and series. `values`: series -> class name -> fraction of 1 or None.

    Some class has a value. Classes are in their own order; the figure says how many are left out.
    """
    names = list(dict.fromkeys(name for classes in values.values() for name in classes))
    known = {
        name: [v for classes in values.values() if (v := classes.get(name)) is not None]
        for name in names
    }
    names = [name for name in names if known[name]]
    most = max(1, MAX_BARS // len(values))
    shown = sorted(names, key=lambda n: min(known[n]) - max(known[n]))[:most]
    shown.sort(key=names.index)
    step = 0.85 / len(values)
    per_class = 0.1 * len(values) + 0.13
    figure, axes = new_axes(theme, height=1.0 + per_class * len(shown) + 0.2 * len(values))
    for place, (name, classes) in enumerate(values.items()):
        color = theme.line(numbers[name])["color"]
        own = [(y, v) for y, one in enumerate(shown) if (v := classes.get(one)) is not None]
        ys = [y + (place - (len(values) - 1) / 2) * step for y, _ in own]
        style: dict[str, Any] = {"height": 0.9 * step, "color": color, "zorder": 2}
        axes.barh(ys, [100 * v for _, v in own], label=shorten(name, 48), **style)
    axes.set_yticks(range(len(shown)), [shorten(name, 30) for name in shown])
    axes.set_ylim(len(shown) - 0.4, -0.6)
    axes.set_xlim(0, 102)
    hidden = len(names) - len(shown)
    axes.set_xlabel("%" if not hidden else f"%  ({hidden} classes that differ less are left out)")
    axes.grid(visible=False, axis="y")
    axes.tick_params(axis="y", length=0)
    add_legend(figure, theme)
    return figure


def confusion_figure(
    counts: NDArray[np.int64], names: Sequence[str], theme: Theme = LIGHT
) -> Figure:
    """True classes (rows) against predicted ones (columns), as the share of the row.

    `counts`: (K, K), K = `len(names)`, at most `MAX_CONFUSION_CLASSES`. Columns carry the numbers
    that rows give their classes.
    """
    num = len(names)
    totals = counts.sum(axis=1, keepdims=True)
    shares = np.divide(100.0 * counts, totals, out=np.zeros(counts.shape), where=totals > 0)
    figure, axes = new_axes(theme, height=1.0 + max(1.6, 0.235 * num))
    ramp = LinearSegmentedColormap.from_list("share", [theme.background, theme.series[0]])
    axes.imshow(shares, cmap=ramp, vmin=0, vmax=100, aspect="auto", zorder=1)
    numbers = [str(place + 1) for place in range(num)]
    labels = [f"{shorten(name, 28)}  {n}" for name, n in zip(names, numbers, strict=True)]
    axes.set_yticks(range(num), labels)
    every = 1 if num <= 14 else 2 if num <= 24 else 3
    axes.set_xticks(range(0, num, every), numbers[::every])
    axes.tick_params(length=0)
    axes.grid(visible=False)
    axes.set_xlabel("predicted class")
    axes.set_ylabel("true class")
    if num <= MAX_NUMBERED:
        for row, column in np.argwhere(shares >= 0.5):
            share = shares[row, column]
            color = theme.text if share < 65 else theme.background
            style: dict[str, Any] = {"ha": "center", "va": "center", "size": FONT_SIZE}
            axes.text(column, row, f"{share:.0f}", color=color, **style)
    return figure


def top_confusions(
    counts: NDArray[np.int64], names: Sequence[str], limit: int = 15
) -> list[tuple[str, str, int, float]]:
    """The most frequent errors: true class, predicted class, how often, share of the true class."""
    wrong = counts.copy()
    np.fill_diagonal(wrong, 0)
    order = np.argsort(-wrong, axis=None, kind="stable")[:limit]
    places = zip(*np.unravel_index(order, wrong.shape), strict=True)
    return [
        (names[row], names[column], int(wrong[row, column]), float(wrong[row, column] / total))
        for row, column in places
        if wrong[row, column] and (total := counts[row].sum())
    ]


def reliability_figure(
    curves: Mapping[str, Mapping[str, NDArray[Any]]],
    numbers: Mapping[str, int],
    theme: Theme = LIGHT,
) -> Figure:
    """How often predictions are right against their confidence, and how many there are.

    `curves`: name -> "edges" (bins + 1), "confidence", "accuracy" (bins, fractions of 1, NaN in
    empty ones), "count" (bins). The expected calibration error is in the legend; below, the share
    of the predictions in each bin. Bins of fewer than `MIN_BIN` are pale points beside the line.
    """
    figure = new_figure(theme, height=4.6 + 0.2 * len(curves))
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    for axes in (upper, lower):
        style_axes(axes, theme)
    twins = _twins({name: curve["accuracy"].tolist() for name, curve in curves.items()})
    for name, curve in curves.items():
        style = theme.line(numbers[name])
        confidence, accuracy, count = (curve[key] for key in ("confidence", "accuracy", "count"))
        share = 100 * count / count.sum()
        lower.stairs(share, 100 * curve["edges"], color=style["color"], linewidth=1.6, zorder=3)
        error = np.nansum(share * np.abs(confidence - accuracy))
        label = f"{shorten(name, 36)}: error {error:.1f} points{twins.get(name, '')}"
        for chosen, line in (
            (count >= MIN_BIN, {"linewidth": 1.6, "zorder": 3, "label": label}),
            ((count > 0) & (count < MIN_BIN), {"linestyle": "none", "alpha": 0.3}),
        ):
            points = 100 * confidence[chosen], 100 * accuracy[chosen]
            upper.plot(*points, markersize=5, **style, **line)
    diagonal: dict[str, Any] = {"color": theme.muted, "linestyle": "--", "linewidth": 1.2}
    upper.plot([0, 100], [0, 100], zorder=2, label="calibrated", **diagonal)
    upper.set_xlim(-2, 102)
    upper.set_ylim(-2, 102)
    upper.set_ylabel("right, %")
    lower.set_ylim(0)
    lower.set_ylabel("share, %")
    lower.set_xlabel("confidence, %")
    add_legend(figure, theme)
    return figure


def retrieval_figure(
    curves: Mapping[str, Mapping[int, Row]],
    numbers: Mapping[str, int],
    name: str,
    theme: Theme = LIGHT,
) -> Figure:
    """A metric against k, with intervals; `curves`: name of a line -> k -> row.

    `name`: of the metric, such as "recall@k". Chance is drawn where it is the same for all lines.
    """
    figure, axes = new_axes(theme, height=3.4 + 0.2 * len(curves))
    twins = _twins({name: [row.value for row in one.values()] for name, one in curves.items()})
    for label, points in curves.items():
        style, ks = theme.line(numbers[label]), list(points)
        value = [100 * (row.value or 0.0) for row in points.values()]
        interval = np.array([(row.low, row.high) for row in points.values()], dtype=float)
        shade: dict[str, Any] = {"color": style["color"], "alpha": 0.18, "linewidth": 0}
        axes.fill_between(ks, *(100 * interval.T), zorder=2, **shade)
        text = shorten(label, 48) + twins.get(label, "")
        axes.plot(ks, value, markersize=5, linewidth=1.6, zorder=3, label=text, **style)
    chances = {tuple((k, row.chance) for k, row in one.items()) for one in curves.values()}
    if len(chances) == 1:
        dotted: dict[str, Any] = {"color": theme.text, "linestyle": ":", "linewidth": 1.3}
        by_k = {k: 100 * chance for k, chance in chances.pop() if chance is not None}
        axes.plot(list(by_k), list(by_k.values()), zorder=2, label="chance", **dotted)
    axes.set_xscale("log")
    ticks = sorted({k for points in curves.values() for k in points})
    axes.set_xticks(ticks, [str(k) for k in ticks])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_ylim(0)
    axes.set_xlabel("k")
    axes.set_ylabel(f"{name}, %")
    add_legend(figure, theme)
    return figure


def _twins(curves: Mapping[str, Sequence[Any]]) -> dict[str, str]:
    """What the legend adds to a line that lies hidden under an equal one drawn later."""
    last = {repr(points): name for name, points in curves.items()}
    return {
        name: f" (same line as {shorten(last[repr(points)], 24)})"
        for name, points in curves.items()
        if last[repr(points)] != name
    }


def projection_figure(
    points: Mapping[str, NDArray[np.float64]],
    explained: tuple[float, float],
    theme: Theme = LIGHT,
) -> Figure:
    """Groups of (N, 2) points (text, RGB, sensors) on their common plane.

    `explained`: shares of the variance on the two axes. Small groups lie on top of large ones, with
    larger marks. Both axes have one scale, so that distances compare.
    """
    figure, axes = new_axes(theme, height=4.4 + 0.2 * -(-len(points) // 2))
    for number, (name, own) in enumerate(points.items()):
        style = {**theme.line(number), "linestyle": "none", "markeredgecolor": theme.background}
        size = float(np.clip(30 / np.sqrt(max(1, len(own))), 3, 7))
        order = 3 + 1 / max(1, len(own))
        label = shorten(name, 26)
        axes.plot(*own.T, label=label, markersize=size, markeredgewidth=0.4, zorder=order, **style)
    first, second = (100 * share for share in explained)
    axes.set_xlabel(f"first axis ({first:.0f} % of the variance)")
    axes.set_ylabel(f"second axis ({second:.0f} %)")
    axes.set_aspect("equal", adjustable="datalim")
    axes.margins(0.06)
    add_legend(figure, theme, columns=2)
    return figure
