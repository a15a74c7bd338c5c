"""The hits of a search as one offline page: pictures, scores, dates, and a map."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from terralign.errors import StorageError
from terralign.files import write_text
from terralign.report.render import page

MAX_CARDS = 50
"""Hits that a page shows."""

Ring = Sequence[tuple[float, float]]
"""Points (longitude, latitude) around an area, in degrees."""

_MARK = '<meta name="generator" content="terralign '
"""Marks our pages, so that no other file is overwritten; the name of the command follows."""

_MAP_WIDTH = 720.0
_MAP_RATIOS = (0.35, 1.0)
"""Least and greatest height of the map as a share of its width."""
_MARGIN = 0.08
_LEAST_PX = 7.0
"""Hits that are smaller on the map get a square of this side."""
_LEAST_DEGREES = 1e-4


@dataclass(frozen=True, kw_only=True, slots=True)
class HitCard:
    """One hit. `pictures`: what each shows, and its JPEG; `missing`: what keeps from showing it.
    `facts`: names and values. `rings`: its outline."""

    rank: int
    score: str
    pictures: tuple[tuple[str, bytes], ...]
    missing: str
    facts: tuple[tuple[str, str], ...]
    rings: tuple[Ring, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class HitPage:
    """All of a page. `lines`: about the search. `num_left_out`: hits that are not shown. `scenes`:
    names and outlines of those that hits lie in. `legend`: what the pictures show."""

    query: str
    lines: tuple[str, ...]
    cards: tuple[HitCard, ...]
    num_left_out: int
    scenes: tuple[tuple[str, tuple[Ring, ...]], ...]
    legend: tuple[str, ...]


def check_page(path: Path) -> None:
    """`StorageError` for a name that does not end in .html, or of a file that is not ours."""
    if path.suffix.lower() not in (".html", ".htm"):
        raise StorageError(f"{path}: choose a name that ends in .html")
    if path.exists():
        with open(path, "rb") as file:
            ours = _MARK.encode() in file.read(2000)
        if not ours:
            raise StorageError(f"{path} exists and was not written by terralign; choose another")


def write_hits(content: HitPage, path: Path) -> Path:
    """Write the page, whole or not at all, in place of an earlier one of ours."""
    check_page(path)
    write_text(path, page("hits.html.j2", content=content, map=_map_of(content)))
    return path


@dataclass(frozen=True, kw_only=True, slots=True)
class Shape:
    """An area of the map: points of SVG polygons, the pixel of its middle, and its label."""

    label: str
    polygons: tuple[str, ...]
    x: float
    y: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Map:
    """A map of `width` x `height` pixels. `edges`: its west, south, east, north as text."""

    width: float
    height: float
    scenes: tuple[Shape, ...]
    hits: tuple[Shape, ...]
    edges: tuple[str, str, str, str]


def _map_of(content: HitPage) -> Map | None:
    """The map; None where no hit has a place."""
    rings = [ring for _, own in content.scenes for ring in own]
    rings += [ring for card in content.cards for ring in card.rings]
    points = [point for ring in rings for point in ring]
    if not points:
        return None
    shift = _crosses([x for x, _ in points])
    west, east = _span([x + 360 * (shift and x < 0) for x, _ in points])
    south, north = _span([y for _, y in points])
    stretch = max(0.05, math.cos(math.radians((south + north) / 2)))
    ratio = (north - south) / ((east - west) * stretch)
    low, high = _MAP_RATIOS
    if ratio < low:  # widen what is too narrow, so that degrees keep their shape
        more = ((east - west) * stretch * low - (north - south)) / 2
        south, north, ratio = south - more, north + more, low
    elif ratio > high:
        more = ((north - south) / high / stretch - (east - west)) / 2
        west, east, ratio = west - more, east + more, high
    height = _MAP_WIDTH * ratio

    def pixel(point: tuple[float, float]) -> tuple[float, float]:
        x = point[0] + 360 * (shift and point[0] < 0)
        across = _MAP_WIDTH * (x - west) / (east - west)
        return round(across, 1), round(height * (north - point[1]) / (north - south), 1)

    def shape(label: str, own: Sequence[Ring], least: float) -> Shape:
        drawn = [[pixel(point) for point in ring] for ring in own]
        xs, ys = ([at[axis] for ring in drawn for at in ring] for axis in (0, 1))
        x, y = (min(xs) + max(xs)) / 2, (min(ys) + max(ys)) / 2
        if max(xs) - min(xs) < least and max(ys) - min(ys) < least:
            half = least / 2
            drawn = [[(x - half, y - half), (x + half, y - half),
                      (x + half, y + half), (x - half, y + half)]]  # fmt: skip
        polygons = (" ".join(f"{a:g},{b:g}" for a, b in ring) for ring in drawn)
        return Shape(label=label, polygons=tuple(polygons), x=x, y=y)

    return Map(
        width=_MAP_WIDTH,
        height=round(height, 1),
        scenes=tuple(shape(name, own, 0) for name, own in content.scenes if own),
        hits=tuple(
            shape(str(card.rank), card.rings, _LEAST_PX)
            for card in reversed(content.cards)  # the best lies on top
            if card.rings
        ),
        edges=(_degrees(west, "EW"), _degrees(south, "NS"), _degrees(east, "EW"),
               _degrees(north, "NS")),
    )  # fmt: skip


def _crosses(longitudes: Sequence[float]) -> bool:
    """Whether a map is narrower if it is centred on the antimeridian."""
    turned = [x + 360 * (x < 0) for x in longitudes]
    return max(turned) - min(turned) < max(longitudes) - min(longitudes)


def _span(numbers: Sequence[float]) -> tuple[float, float]:
    margin = max(_LEAST_DEGREES, _MARGIN * (max(numbers) - min(numbers)))
    return min(numbers) - margin, max(numbers) + margin


def _degrees(number: float, signs: str) -> str:
    if "E" in signs:
        number = (number + 180) % 360 - 180
    return f"{abs(number):.3f}° {signs[0] if number >= 0 else signs[1]}"
