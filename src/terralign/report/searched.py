"""A scene that was searched by texts: the precision of each, and the scene with hits outlined."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.patheffects import Normal, Stroke
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from terralign.report.canvas import LIGHT, WIDTH_INCHES, Theme, new_figure
from terralign.report.comparison import plain_lines
from terralign.report.tables import Cell, Column, Line, Table, chance_percent, percent

RIGHT, WRONG, EDGE = "#ffffff", "#ff6b6b", "#101418"
"""Colours of outlines, and of the edge around them, on a satellite picture: of either theme."""

SEARCHED_TITLE = "A scene searched by text"
SEARCHED_LEGEND = (
    "Per cent. precision@k: the share of the k best windows that the query names; chance: the same "
    "of windows drawn at random. A window is what covers most of it."
)
SEARCHED_CAPTION = (
    "The scene in true colour. Outlined: the best windows of each query, by the query's number in "
    "the table; white where the window is what the query names, red and dashed where not."
)


class FoundWindow(BaseModel):
    """A hit: its window in pixels of the scene, its cosine, and whether it is what was asked."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    row: int
    column: int
    height: int
    width: int
    score: float
    is_right: bool


class SearchedText(BaseModel):
    """A query and its hits, best first; `chance`: the precision of windows drawn at random."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    text: str
    chance: float
    hits: tuple[FoundWindow, ...]

    @property
    def precision(self) -> float:
        """The share of the hits that are right; 0 without any."""
        return sum(one.is_right for one in self.hits) / max(1, len(self.hits))

    def to_json(self) -> dict[str, Any]:
        """Plain values, with the precision and without the windows."""
        return {
            "text": self.text,
            "hits": len(self.hits),
            "precision": self.precision,
            "chance": self.chance,
        }


def searched_table(texts: Sequence[SearchedText]) -> Table:
    """Precision and chance of each query, and their means."""
    most = max((len(one.hits) for one in texts), default=0)
    lines = [_line(str(n), one.text, one.precision, one.chance) for n, one in enumerate(texts, 1)]
    if len(texts) > 1:
        means = (float(np.mean([getattr(one, name) for one in texts])) for name in _COLUMNS)
        lines.append(_line("", "mean", *means))
    return Table(
        title=SEARCHED_TITLE,
        heads=("no.", "query"),
        columns=(Column(metric=f"precision@{most}"), Column(metric="chance")),
        groups=(("", tuple(lines)),),
        legend=SEARCHED_LEGEND,
    )


_COLUMNS = ("precision", "chance")


def _line(number: str, text: str, precision: float, chance: float) -> Line:
    cells = (Cell(value=percent(precision)), Cell(value=chance_percent(chance)))
    return Line(labels=(number, text), cells=cells)


def format_searched(texts: Sequence[SearchedText]) -> str:
    """The table as plain text."""
    table = searched_table(texts)
    return "\n".join([f"{table.title}:", *plain_lines(table), SEARCHED_LEGEND]) + "\n"


def searched_figure(
    picture: NDArray[np.uint8], texts: Sequence[SearchedText], theme: Theme = LIGHT
) -> Figure:
    """The scene (H, W, 3) with the hits of each query outlined and numbered."""
    height, width = picture.shape[:2]
    figure = new_figure(theme, height=WIDTH_INCHES * height / width)
    axes = figure.add_subplot()
    axes.imshow(picture)
    axes.set_axis_off()
    seen: dict[tuple[int, int], int] = {}
    for number, one in enumerate(texts, 1):
        for hit in one.hits:
            corner = (hit.row, hit.column)
            place = seen[corner] = seen.get(corner, -1) + 1
            color, style = (RIGHT, "-") if hit.is_right else (WRONG, "--")
            inset = 2 + 3 * place
            axes.add_patch(
                Rectangle(
                    (hit.column + inset, hit.row + inset),
                    hit.width - 2 * inset, hit.height - 2 * inset,
                    fill=False, edgecolor=color, linewidth=1, linestyle=style,
                    path_effects=[Stroke(linewidth=2.5, foreground=EDGE), Normal()],
                )
            )  # fmt: skip
            axes.text(
                hit.column + inset + 3, hit.row + inset + 3 + 9 * place, str(number),
                color=color, size=6, va="top", bbox={"color": EDGE, "pad": 0.8},
            )  # fmt: skip
    return figure
