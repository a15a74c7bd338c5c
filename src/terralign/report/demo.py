"""The page of the demo: a scene in pictures, what texts find in it, a map of scores, classes.

H W pixels of the scene; windows are in its pixels.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np
from numpy.typing import NDArray

from terralign.files import write_text
from terralign.report.hits import check_page
from terralign.report.render import page

CLASS_COLOURS = (
    "#e9c46a", "#1b7837", "#a6dba0", "#6b6b6b", "#c51b7d",
    "#dfc27d", "#8c510a", "#d73027", "#4575b4", "#74add1",
)  # fmt: skip
"""Of up to ten classes, in the order of EuroSAT's names."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FoundPlace:
    """A hit: its window, its cosine, and what each of its pictures shows, with its JPEG."""

    rank: int
    score: float
    row: int
    column: int
    height: int
    width: int
    pictures: tuple[tuple[str, bytes], ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Question:
    """A text that was searched for, and its hits, best first."""

    text: str
    places: tuple[FoundPlace, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class ClassCell:
    """A classified window; `number`: of its class, from 0."""

    row: int
    column: int
    height: int
    width: int
    number: int


@dataclass(frozen=True, kw_only=True, slots=True)
class DemoPage:
    """All of the page. `height`, `width`: of the scene. `views`: what each picture of it shows, and
    its JPEG, true colour first. `map_picture`: JPEG of the scores of `map_text`, from `lowest` to
    `highest`. `python`, `commands`: what does the same. `notes`: on data and model."""

    lines: tuple[str, ...]
    height: int
    width: int
    views: tuple[tuple[str, bytes], ...]
    questions: tuple[Question, ...]
    map_text: str
    map_picture: bytes
    lowest: float
    highest: float
    class_names: tuple[str, ...]
    cells: tuple[ClassCell, ...]
    python: str
    commands: str
    notes: tuple[str, ...]

    @property
    def classes(self) -> list[tuple[str, str, int]]:
        """Name, colour and number of windows of each class that has any, the largest first."""
        counts = Counter(cell.number for cell in self.cells)
        return [
            (self.class_names[number], self.colours[number], count)
            for number, count in counts.most_common()
        ]

    @property
    def colours(self) -> tuple[str, ...]:
        """One for each class."""
        return CLASS_COLOURS[: len(self.class_names)]


def write_demo(content: DemoPage, path: Path) -> Path:
    """Write the page, whole or not at all, in place of an earlier one of ours."""
    check_page(path)
    write_text(path, page("demo.html.j2", content=content))
    return path


def heat_picture(values: NDArray[np.float32]) -> NDArray[np.uint8]:
    """(H, W, 3): scores (H, W) from dark, the lowest, to bright; NaN is black."""
    low, high = np.nanmin(values), np.nanmax(values)
    shares = (values - low) / max(high - low, np.finfo(np.float32).tiny)
    colours = matplotlib.colormaps["viridis"](np.nan_to_num(shares), bytes=True)[..., :3]
    return np.where(np.isfinite(values)[..., None], colours, 0).astype(np.uint8)
