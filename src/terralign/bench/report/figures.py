"""Figures of a bench: classes as bars, the confusion matrix.

In the style of `evaluate/figures.py`: every `*_figure` function returns a `Figure`; values come as
fractions of 1 and are drawn in per cent.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.colors import LinearSegmentedColormap, to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from numpy.typing import NDArray

from terralign.errors import DataError
from terralign.evaluation.canvas import (
    FONT_SIZE,
    LIGHT,
    Theme,
    add_legend,
    new_axes,
    shorten,
)

MAX_SERIES = 6
"""Models and towers in one figure: there are so many colours."""
MAX_BARS = 100
"""Of more classes than these leave room for, those whose values differ most are drawn."""
MAX_CONFUSION_CLASSES = 30
"""A matrix of more classes cannot be read at this size; a table of its errors can."""
MAX_NUMBERED = 12
"""Matrices of at most so many classes have their shares written in their cells."""


def class_bar_figure(
    values: Mapping[str, Mapping[str, float | None]], *, theme: Theme = LIGHT
) -> Figure:
    """A bar for each class and series. `values`: series -> class name -> fraction of 1 or None.

    At most `MAX_SERIES` series, the first ones; classes in their own order. What is left out the
    figure says. Raises `DataError` where there is nothing to draw.
    """
    series = dict(list(values.items())[:MAX_SERIES])
    names = list(dict.fromkeys(name for classes in series.values() for name in classes))
    known = {
        name: [v for classes in series.values() if (v := classes.get(name)) is not None]
        for name in names
    }
    names = [name for name in names if known[name]]
    if not names:
        raise DataError("no class has a value to draw; give per-class values of one model or more")
    most = max(1, MAX_BARS // len(series))
    shown = sorted(names, key=lambda n: min(known[n]) - max(known[n]))[:most]
    shown.sort(key=names.index)
    step = 0.85 / len(series)
    per_class = 0.1 * len(series) + 0.13
    figure, axes = new_axes(theme, height=1.0 + per_class * len(shown) + 0.2 * len(series))
    for number, classes in enumerate(series.values()):
        own = [(y, v) for y, name in enumerate(shown) if (v := classes.get(name)) is not None]
        places = [y + (number - (len(series) - 1) / 2) * step for y, _ in own]
        color = theme.series[number % len(theme.series)]
        axes.barh(places, [100 * v for _, v in own], height=0.9 * step, color=color, zorder=2)
    axes.set_yticks(range(len(shown)), [shorten(name, 30) for name in shown])
    axes.set_ylim(len(shown) - 0.4, -0.6)
    axes.set_xlim(0, 102)
    hidden = len(names) - len(shown)
    axes.set_xlabel("%" if not hidden else f"%  ({hidden} classes that differ less are left out)")
    axes.grid(visible=False, axis="y")
    axes.tick_params(axis="y", length=0)
    handles: list[Any] = [
        Patch(color=theme.series[number % len(theme.series)], label=shorten(name, 48))
        for number, name in enumerate(series)
    ]
    add_legend(figure, handles, theme, columns=1)
    return figure


def confusion_figure(
    counts: NDArray[np.int64], names: Sequence[str], *, theme: Theme = LIGHT
) -> Figure:
    """True classes (rows) against predicted ones (columns), as the share of the row.

    `counts`: (K, K), K = `len(names)`, at most `MAX_CONFUSION_CLASSES`. Columns carry the numbers
    that rows give their classes. Raises `DataError`.
    """
    num = len(names)
    if counts.shape != (num, num) or not 1 <= num <= MAX_CONFUSION_CLASSES:
        raise DataError(
            f"a confusion matrix of {counts.shape} for {num} classes; expected (K, K) with at most "
            f"{MAX_CONFUSION_CLASSES} classes"
        )
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
            color = _readable(ramp(share / 100), theme)
            axes.text(
                column, row, f"{share:.0f}", ha="center", va="center", size=FONT_SIZE, color=color
            )
    return figure


def _readable(ground: tuple[float, float, float, float], theme: Theme) -> str:
    """The theme's text or background colour, whichever stands out more from `ground`."""

    def contrast(color: str) -> float:
        low, high = sorted(_luminance(one) for one in (to_rgb(color), ground[:3]))
        return (high + 0.05) / (low + 0.05)

    return max((theme.text, theme.background), key=contrast)


def _luminance(rgb: tuple[float, float, float]) -> float:
    """Relative luminance of sRGB in 0-1 (WCAG 2.1)."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in rgb]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def top_confusions(
    counts: NDArray[np.int64], names: Sequence[str], limit: int = 15
) -> list[tuple[str, str, int, float]]:
    """The most frequent errors: true class, predicted class, how often, share of the true class."""
    wrong = counts.copy()
    np.fill_diagonal(wrong, 0)
    order = np.argsort(-wrong, axis=None, kind="stable")[:limit]
    out = []
    for row, column in zip(*np.unravel_index(order, wrong.shape), strict=True):
        if wrong[row, column]:
            share = float(wrong[row, column] / counts[row].sum())
            out.append((names[row], names[column], int(wrong[row, column]), share))
    return out
