"""The ground that figures are drawn on: light and dark themes, axes, legends, PNGs.

matplotlib's object API only: no display, no global state.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from terralign.report.comparison import MODELS

DPI = 110
WIDTH_INCHES = 4.8
"""Narrow, so that letters of `FONT_SIZE` points can still be read on a telephone."""
FONT_SIZE = 9
MARKERS = ("o", "D", "s", "^", "v", "P")


@dataclass(frozen=True, kw_only=True, slots=True)
class Theme:
    """Colours. `models`: one per model of a run; `series`: for lines of any other kind."""

    background: str
    text: str
    muted: str
    grid: str
    models: tuple[str, str, str, str]
    series: tuple[str, ...]

    def model(self, name: str) -> str:
        """The colour of a model of a run."""
        return self.models[MODELS.index(name)] if name in MODELS else self.muted

    def line(self, number: int) -> dict[str, Any]:
        """Colour and marker of a line; both repeat, and no pair does for as long as possible."""
        num = len(self.series)
        marker = MARKERS[(number + number // num) % len(MARKERS)]
        return {"color": self.series[number % num], "marker": marker}


LIGHT = Theme(
    background="#ffffff",
    text="#1c2127",
    muted="#646d78",
    grid="#dfe3e8",
    models=("#8b949e", "#d18616", "#2769b5", "#1a8a63"),
    series=("#2769b5", "#d18616", "#1a8a63", "#a33f8f", "#8b949e", "#6b5bd2"),
)
DARK = Theme(
    background="#161b22",
    text="#e6edf3",
    muted="#9aa4af",
    grid="#30363d",
    models=("#8b949e", "#e3a03c", "#62a0ea", "#3fc796"),
    series=("#62a0ea", "#e3a03c", "#3fc796", "#e07cc9", "#8b949e", "#a99bf5"),
)


def png_bytes(figure: Figure) -> bytes:
    """A figure as PNG."""
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=DPI, facecolor=figure.get_facecolor())
    return out.getvalue()


def new_figure(theme: Theme, *, height: float) -> Figure:
    """An empty figure, `WIDTH_INCHES` wide and `height` inches high, laid out by constraints."""
    figure = Figure(
        figsize=(WIDTH_INCHES, height), layout="constrained", facecolor=theme.background
    )
    FigureCanvasAgg(figure)
    return figure


def new_axes(theme: Theme, *, height: float) -> tuple[Figure, Axes]:
    """A figure with one set of axes."""
    figure = new_figure(theme, height=height)
    axes = figure.add_subplot()
    style_axes(axes, theme)
    return figure, axes


def style_axes(axes: Axes, theme: Theme) -> None:
    """Give axes the colours of a theme."""
    axes.set_facecolor(theme.background)
    axes.set_axisbelow(True)
    axes.grid(color=theme.grid, linewidth=0.8)
    axes.tick_params(colors=theme.muted, labelcolor=theme.text, labelsize=FONT_SIZE)
    axes.xaxis.label.set(color=theme.text, size=FONT_SIZE)
    axes.yaxis.label.set(color=theme.text, size=FONT_SIZE)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(theme.muted)


def add_legend(
    figure: Figure, theme: Theme, *, columns: int = 1, handles: Sequence[Any] | None = None
) -> None:
    """A legend below the axes, where it covers nothing; of `handles`, else of all with a label."""
    figure.legend(
        handles=handles,
        loc="outside lower center",
        ncols=columns,
        frameon=False,
        fontsize=FONT_SIZE,
        labelcolor=theme.text,
    )


def shorten(text: str, length: int) -> str:
    """Other people's text on one line of at most `length` characters, drawn as it is."""
    text = " ".join(text.split())
    text = text if len(text) <= length else text[: length - 1] + "…"
    return text.replace("$", r"\$")  # else matplotlib reads mathematics
