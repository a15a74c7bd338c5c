"""The ground that figures are drawn on: themes, axes, labels that keep apart, small PNGs.

matplotlib's object API only: no display, no global state.
"""

from __future__ import annotations

import io
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox
from numpy.typing import NDArray
from PIL import Image

from terralign.evaluation.table import MODELS
from terralign.files import atomic_path

Corners = NDArray[np.float64]
"""A box in pixels: x0, y0, x1, y1."""

MAX_PNG_BYTES = 150_000
RESOLUTIONS = (180, 150, 120, 90, 60)
"""Dots per inch that are tried, in this order, until a PNG is small enough."""

NUM_COLORS = 128
"""Colours of a PNG; so few make it a third of the size, and no difference can be seen."""

WIDTH_INCHES = 4.8
"""Narrow, so that letters of `FONT_SIZE` points can still be read on a telephone."""

FONT_SIZE = 9


@dataclass(frozen=True, kw_only=True, slots=True)
class Theme:
    """Colours. `models`: one per model of `MODELS`; `series`: for lines of any other kind."""

    background: str
    text: str
    muted: str
    grid: str
    models: tuple[str, str, str, str]
    series: tuple[str, ...]

    def places(self, names: Iterable[str], wanted: Mapping[str, int] | None = None) -> list[int]:
        """The number of each name's colour in `series`, so that figures agree in them.

        `wanted`: name -> number, taken modulo the colours there are. A name without one, or whose
        colour an earlier name has, takes the first that is free; where none is, they repeat.
        """
        num, asked = len(self.series), list(names)
        hoped = [None if wanted is None else wanted.get(name) for name in asked]
        used: set[int] = set()
        out: list[int | None] = []
        for hope in hoped:
            kept = None if hope is None or hope % num in used else hope % num
            used |= set() if kept is None else {kept}
            out.append(kept)
        for number, place in enumerate(out):
            if place is None:
                free = [one for one in range(num) if one not in used]
                out[number] = free[0] if free else number % num
                used |= set(free[:1])
        return [place for place in out if place is not None]

    def model(self, name: str) -> str:
        """The colour of a model, by the first word of its name."""
        first = name.split()[0] if name.split() else ""
        return self.models[MODELS.index(first)] if first in MODELS else self.muted


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
    """A figure as PNG of at most `NUM_COLORS`, as sharp as `MAX_PNG_BYTES` allows."""
    data = b""
    for dpi in RESOLUTIONS:
        drawn, packed = io.BytesIO(), io.BytesIO()
        figure.savefig(
            drawn,
            format="png",
            dpi=dpi,
            facecolor=figure.get_facecolor(),
            pil_kwargs={"compress_level": 1},
        )
        picture = Image.open(drawn).convert("RGB")
        picture.quantize(NUM_COLORS, dither=Image.Dither.NONE).save(packed, "PNG", optimize=True)
        data = packed.getvalue()
        if len(data) < MAX_PNG_BYTES:
            break
    return data


def write_png(path: Path, data: bytes) -> None:
    """Write the bytes of a PNG, atomically."""
    with atomic_path(path) as partial:
        partial.write_bytes(data)


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


def add_legend(figure: Figure, handles: Sequence[Any], theme: Theme, *, columns: int) -> None:
    """A legend below the axes, where it covers nothing."""
    figure.legend(
        handles=handles,
        loc="outside lower center",
        ncols=columns,
        frameon=False,
        fontsize=FONT_SIZE,
        labelcolor=theme.text,
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class Series:
    """Points of one curve, in data units, whose alphas are written beside them in `color`."""

    alphas: Sequence[float]
    xs: Sequence[float]
    ys: Sequence[float]
    color: str


def label_points(
    figure: Figure, axes: Axes, curves: Sequence[Series], *, chosen: float | None
) -> None:
    """Write alphas beside their points; a label that would touch another or a point is left out.

    The chosen alpha and the ends are placed first. The layout is fixed here: nothing may be added
    to the figure afterwards.
    """
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    frame = axes.get_window_extent()
    taken: list[Corners] = []
    lines: list[Corners] = []
    wanted: list[tuple[int, Series, int]] = []
    for curve in curves:
        pixels = axes.transData.transform(np.column_stack([curve.xs, curve.ys]))
        taken += [_box(x, y, 5) for x, y in pixels]
        for start, stop in itertools.pairwise(pixels):
            lines += [_box(x, y, 1) for x, y in np.linspace(start, stop, 12)]
        last = len(curve.alphas) - 1
        for i, alpha in enumerate(curve.alphas):
            wanted.append((0 if alpha == chosen else 1 if i in (0, last) else 2, curve, i))
    for rank, curve, i in sorted(wanted, key=lambda item: item[0]):
        label = axes.annotate(
            trim_number(curve.alphas[i]),
            (curve.xs[i], curve.ys[i]),
            xytext=(0, 0),
            textcoords="offset points",
            size=FONT_SIZE,
            weight="bold" if rank == 0 else "normal",
            color=curve.color,
            ha="center",
            va="center",
            zorder=5,
        )
        best: tuple[int, tuple[float, float], Bbox] | None = None
        for offset in _offsets():
            label.set_position(offset)
            box = label.get_window_extent().padded(1)
            inside = frame.contains(*box.min) and frame.contains(*box.max)
            if inside and not _num_overlaps(box, taken):
                crossings = _num_overlaps(box, lines)
                if best is None or crossings < best[0]:
                    best = crossings, offset, box
        if best is None:
            label.remove()
        else:
            label.set_position(best[1])
            taken.append(np.array(best[2].extents))


def _offsets() -> Iterator[tuple[float, float]]:
    """Places for a label around its point, in points, the nearest first."""
    for radius in (12, 17, 24):
        for degrees in (45, 0, 90, 315, 135, 180, 225, 270):
            angle = np.deg2rad(degrees)
            yield float(radius * np.cos(angle) * 1.2), float(radius * np.sin(angle))


def _box(x: float, y: float, radius: float) -> Corners:
    return np.array([x - radius, y - radius, x + radius, y + radius])


def _num_overlaps(box: Bbox, others: Sequence[Corners]) -> int:
    if not others:
        return 0
    x0, y0, x1, y1 = np.array(others).T
    apart = (x0 > box.x1) | (x1 < box.x0) | (y0 > box.y1) | (y1 < box.y0)
    return int(np.count_nonzero(~apart))


def trim_number(number: float) -> str:
    """A number with at most four decimals and no zeros at its end."""
    return f"{number:.4f}".rstrip("0").rstrip(".")


def shorten(text: str, length: int) -> str:
    """Other people's text on one line of at most `length` characters, drawn as it is."""
    text = " ".join(text.split())
    text = text if len(text) <= length else text[: length - 1] + "…"
    return text.replace("$", r"\$")  # else matplotlib reads mathematics
