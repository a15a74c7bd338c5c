"""Figures of diagnostics: the space's projection, reliability, retrieval against k.

In the style of `figures.py`: every `*_figure` function returns a `Figure`, every `plot_*` function
writes one as a PNG. Values come as fractions of 1 and are drawn in per cent.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import NullLocator

from terralign.errors import DataError
from terralign.evaluation.calibration import ReliabilityCurve
from terralign.evaluation.canvas import (
    LIGHT,
    Theme,
    add_legend,
    new_axes,
    new_figure,
    png_bytes,
    shorten,
    style_axes,
    write_png,
)
from terralign.evaluation.diagnostics import Projection
from terralign.evaluation.metrics import Metric, MetricResult

MAX_POINTS = 1000
"""Points of a group that a projection shows; more make blots and large files."""

MIN_BIN = 5
"""Predictions of a bin whose share of right ones says something."""

MARKERS = {"o": "●", "D": "◆", "s": "■", "^": "▲", "v": "▼", "P": "✚"}
"""What points are drawn as, and the sign that names such a line in a legend."""


def plot_projection(path: Path, projection: Projection, *, theme: Theme = LIGHT) -> None:
    """Write `projection_figure` as a PNG."""
    write_png(path, png_bytes(projection_figure(projection, theme=theme)))


def plot_reliability(
    path: Path, curves: Mapping[str, ReliabilityCurve], *, theme: Theme = LIGHT
) -> None:
    """Write `reliability_figure` as a PNG."""
    write_png(path, png_bytes(reliability_figure(curves, theme=theme)))


def plot_retrieval(
    path: Path, results: Mapping[str, MetricResult], *, metric: str = "recall", theme: Theme = LIGHT
) -> None:
    """Write `retrieval_figure` as a PNG."""
    write_png(path, png_bytes(retrieval_figure(results, metric=metric, theme=theme)))


def projection_figure(projection: Projection, *, theme: Theme = LIGHT) -> Figure:
    """The groups of a projection (text, RGB, sensors) on their common plane.

    Of a group of more than `MAX_POINTS` so many evenly chosen ones are shown. Small groups lie on
    top of large ones, with larger marks. Both axes have one scale, so that distances compare.
    """
    if not any(len(points) for points in projection.points.values()):
        raise DataError("the projection has no points to draw")
    figure, axes = new_axes(theme, height=4.4 + 0.2 * -(-len(projection.points) // 2))
    handles: list[Any] = []
    for index, (name, points) in enumerate(projection.points.items()):
        shown = points[np.unique(np.linspace(0, len(points) - 1, MAX_POINTS).astype(np.int64))]
        style: dict[str, Any] = {
            "color": theme.series[index % len(theme.series)],
            "marker": _marker(index),
            "linestyle": "none",
            "markeredgecolor": theme.background,
        }
        size = float(np.clip(30 / np.sqrt(len(shown)), 3, 7))
        axes.plot(
            *shown.T, markersize=size, markeredgewidth=0.4, zorder=3 + 1 / len(shown), **style
        )
        handles.append(Line2D([], [], markersize=7, label=shorten(name, 26), **style))
    first, second = (100 * share for share in projection.explained)
    axes.set_xlabel(f"first axis ({first:.0f} % of the variance)")
    axes.set_ylabel(f"second axis ({second:.0f} %)")
    axes.set_aspect("equal", adjustable="datalim")
    axes.margins(0.06)
    add_legend(figure, handles, theme, columns=2)
    return figure


def reliability_figure(
    curves: Mapping[str, ReliabilityCurve],
    *,
    theme: Theme = LIGHT,
    places: Mapping[str, int] | None = None,
) -> Figure:
    """How often predictions are right against their confidence, and how many there are.

    One line per name, its expected calibration error in the legend; below, the share of the
    predictions in each bin. Bins of fewer than `MIN_BIN` predictions are pale points beside the
    line. `places`: name -> number of its colour, see `Theme.places`.
    """
    if not curves:
        raise DataError("there is no reliability curve to draw; give at least one")
    figure = new_figure(theme, height=4.6 + 0.2 * len(curves))
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    for axes in (upper, lower):
        style_axes(axes, theme)
    upper.plot([0, 100], [0, 100], color=theme.muted, linestyle="--", linewidth=1.2, zorder=2)
    handles: list[Any] = []
    own_places = dict(zip(curves, theme.places(curves, places), strict=True))
    covered = _covered({name: curve.accuracy.tolist() for name, curve in curves.items()})
    for name, curve in curves.items():
        color = theme.series[own_places[name]]
        style: dict[str, Any] = {"color": color, "marker": _marker(own_places[name])}
        for chosen, line in (
            (curve.count >= MIN_BIN, {"linewidth": 1.6, "zorder": 3}),
            ((curve.count > 0) & (curve.count < MIN_BIN), {"linestyle": "none", "alpha": 0.3}),
        ):
            points = 100 * curve.confidence[chosen], 100 * curve.accuracy[chosen]
            upper.plot(*points, markersize=5, **style, **line)
        share = 100 * curve.count / curve.count.sum()
        lower.stairs(share, 100 * curve.edges, color=color, linewidth=1.6, zorder=3)
        error = 100 * curve.expected_calibration_error
        label = f"{shorten(name, 36)}: error {error:.1f} points"
        label += _same_line(covered.get(name), own_places)
        handles.append(Line2D([], [], markersize=5, label=label, **style))
    handles.append(Line2D([], [], color=theme.muted, linestyle="--", label="calibrated"))
    upper.set_xlim(-2, 102)
    upper.set_ylim(-2, 102)
    upper.set_ylabel("right, %")
    lower.set_ylim(0)
    lower.set_ylabel("share, %")
    lower.set_xlabel("confidence, %")
    add_legend(figure, handles, theme, columns=1)
    return figure


def retrieval_figure(
    results: Mapping[str, MetricResult],
    *,
    metric: str = "recall",
    theme: Theme = LIGHT,
    places: Mapping[str, int] | None = None,
) -> Figure:
    """`recall@k` (or `map@k`, by `metric`) against k, with intervals; one line per name.

    Chance is drawn where it is the same for all names. `places`: name -> number of its colour, see
    `Theme.places`.
    """
    curves = {name: _by_k(result, metric) for name, result in results.items()}
    curves = {name: points for name, points in curves.items() if points}
    if not curves:
        raise DataError(f"no result has a figure {metric}@k; there is nothing to draw")
    figure, axes = new_axes(theme, height=3.4 + 0.2 * len(curves))
    handles: list[Any] = []
    own_places = dict(zip(curves, theme.places(curves, places), strict=True))
    covered = _covered(
        {name: [(k, own.value) for k, own in points.items()] for name, points in curves.items()}
    )
    for name, points in curves.items():
        color = theme.series[own_places[name]]
        style: dict[str, Any] = {"color": color, "marker": _marker(own_places[name])}
        ks = list(points)
        low, value, high = (
            [100 * float(getattr(own, field)) for own in points.values()]
            for field in ("low", "value", "high")
        )
        axes.fill_between(ks, low, high, color=color, alpha=0.18, linewidth=0, zorder=2)
        axes.plot(ks, value, markersize=5, linewidth=1.6, zorder=3, **style)
        label = shorten(name, 48) + _same_line(covered.get(name), own_places)
        handles.append(Line2D([], [], markersize=5, label=label, **style))
    chances = {tuple((k, own.chance) for k, own in points.items()) for points in curves.values()}
    if len(chances) == 1:
        at, chance = zip(*chances.pop(), strict=True)
        dotted: dict[str, Any] = {"color": theme.text, "linestyle": ":", "linewidth": 1.3}
        axes.plot(at, [100 * value for value in chance], zorder=2, **dotted)
        handles.append(Line2D([], [], label="chance", **dotted))
    axes.set_xscale("log")
    shown = _apart(sorted({k for points in curves.values() for k in points}))
    axes.set_xticks(shown, [str(k) for k in shown])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_ylim(0)
    axes.set_xlabel("k")
    axes.set_ylabel(f"{'mAP' if metric == 'map' else metric}@k, %")
    add_legend(figure, handles, theme, columns=1)
    return figure


def _marker(place: int) -> str:
    return list(MARKERS)[place % len(MARKERS)]


def _covered(curves: Mapping[str, Sequence[Any]]) -> dict[str, str]:
    """The names whose line lies hidden under an equal one drawn later, and that one's name."""
    last = {repr(points): name for name, points in curves.items()}
    return {
        name: last[repr(points)] for name, points in curves.items() if last[repr(points)] != name
    }


def _same_line(other: str | None, places: Mapping[str, int]) -> str:
    return "" if other is None else f" (same line as {MARKERS[_marker(places[other])]})"


def _by_k(result: MetricResult, metric: str) -> dict[int, Metric]:
    """The values called `metric`@k, by rising k."""
    found = {}
    for own in result.metrics:
        name, at, k = own.name.partition("@")
        if name == metric and at and k.isdigit():
            found[int(k)] = own
    return dict(sorted(found.items()))


def _apart(ks: list[int]) -> list[int]:
    """The ks that have room for a label on an axis of logarithms: a twelfth of it, at least."""
    span = np.log(ks[-1] / ks[0]) / 12
    kept = [ks[-1]]
    for k in reversed(ks[:-1]):
        if np.log(kept[-1] / k) >= span:
            kept.append(k)
    return kept[::-1]
