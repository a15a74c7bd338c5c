"""Places and pictures as a map in SVG: no script, no network, no style sheet.

A page's style sheet may colour its classes `scene` and `place`; without one, as in a notebook, the
attributes of the drawing hold.
"""

from __future__ import annotations

import base64
import html
import math
from collections.abc import Sequence
from dataclasses import dataclass

Point = tuple[float, float]
"""(longitude, latitude) in degrees."""
Ring = Sequence[Point]
"""Points around an area."""

_WIDTH = 720.0
_RATIOS = (0.35, 1.0)
"""Least and greatest height of a map as a share of its width."""
_MARGIN = 0.08
_LEAST_PX = 7.0
"""Places that are smaller on the map get a square of this side."""
_LEAST_DEGREES = 1e-4


@dataclass(frozen=True, kw_only=True, slots=True)
class Place:
    """An area with its outer `rings`. `label`: drawn in its middle. `title`: shown when it is
    pointed at. `link`: an address, empty for none."""

    rings: tuple[Ring, ...]
    label: str = ""
    title: str = ""
    link: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Underlay:
    """A picture under the places: a JPEG or PNG, and where three of its corners lie."""

    data: bytes
    upper_left: Point
    upper_right: Point
    lower_left: Point


@dataclass(frozen=True, kw_only=True, slots=True)
class SvgMap:
    """A drawn map. `svg`: an element for a page of HTML. `edges`: its west, south, east, north as
    text."""

    svg: str
    edges: tuple[str, str, str, str]


def draw_map(
    places: Sequence[Place],
    *,
    scenes: Sequence[Place] = (),
    underlays: Sequence[Underlay] = (),
    name: str,
) -> SvgMap | None:
    """A map of places, the first on top, over dashed outlines of scenes and pictures.

    North is up, and what is square on the ground is square on the map. `name`: for those who hear
    the page. None where nothing has a place.
    """
    frame = _Frame.around(
        [point for one in (*scenes, *places) for ring in one.rings for point in ring]
        + [
            corner
            for one in underlays
            for corner in (one.upper_left, one.upper_right, one.lower_left)
        ]
    )
    if frame is None:
        return None
    drawn = [
        *(_picture(frame, one) for one in underlays),
        *(_scene(frame, one) for one in scenes if one.rings),
        *(_place(frame, one) for one in reversed(places) if one.rings),
    ]
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {frame.width:g} {frame.height:g}" '
        f'width="{frame.width:g}" role="img" aria-label="{_text(name)}">'
    )
    return SvgMap(svg="\n".join([head, *drawn, "</svg>"]), edges=frame.edges())


@dataclass(frozen=True, kw_only=True, slots=True)
class _Frame:
    """What a map covers, in degrees and pixels. `shift`: western longitudes count on beyond 180."""

    west: float
    south: float
    east: float
    north: float
    width: float
    height: float
    shift: bool

    @classmethod
    def around(cls, points: Sequence[Point]) -> _Frame | None:
        if not points:
            return None
        shift = _crosses([x for x, _ in points])
        west, east = _span([x + 360 * (shift and x < 0) for x, _ in points])
        south, north = _span([y for _, y in points])
        stretch = max(0.05, math.cos(math.radians((south + north) / 2)))
        ratio = (north - south) / ((east - west) * stretch)
        low, high = _RATIOS
        if ratio < low:  # widen what is too narrow, so that degrees keep their shape
            more = ((east - west) * stretch * low - (north - south)) / 2
            south, north, ratio = south - more, north + more, low
        elif ratio > high:
            more = ((north - south) / high / stretch - (east - west)) / 2
            west, east, ratio = west - more, east + more, high
        return cls(
            west=west, south=south, east=east, north=north, width=_WIDTH,
            height=round(_WIDTH * ratio, 1), shift=shift,
        )  # fmt: skip

    def pixel(self, point: Point) -> Point:
        x = point[0] + 360 * (self.shift and point[0] < 0)
        return (
            self.width * (x - self.west) / (self.east - self.west),
            self.height * (self.north - point[1]) / (self.north - self.south),
        )

    def edges(self) -> tuple[str, str, str, str]:
        return (
            _degrees(self.west, "EW"),
            _degrees(self.south, "NS"),
            _degrees(self.east, "EW"),
            _degrees(self.north, "NS"),
        )


def _picture(frame: _Frame, one: Underlay) -> str:
    """A picture, moved, scaled and turned so that three of its corners lie where they belong."""
    x, y = frame.pixel(one.upper_left)
    right, down = frame.pixel(one.upper_right), frame.pixel(one.lower_left)
    numbers = (right[0] - x, right[1] - y, down[0] - x, down[1] - y, x, y)
    kind = "png" if one.data.startswith(b"\x89PNG") else "jpeg"
    data = base64.b64encode(one.data).decode()
    return (
        '<image width="1" height="1" preserveAspectRatio="none" '
        f'transform="matrix({" ".join(f"{number:.3f}" for number in numbers)})" '
        f'href="data:image/{kind};base64,{data}"/>'
    )


def _scene(frame: _Frame, one: Place) -> str:
    return (
        f'<g class="scene" fill="none" stroke="#808890" stroke-dasharray="4 3">'
        f"<title>{_text(one.title)}</title>"
        + "".join(_polygon([frame.pixel(point) for point in ring]) for ring in one.rings)
        + "</g>"
    )


def _place(frame: _Frame, one: Place) -> str:
    rings = [[frame.pixel(point) for point in ring] for ring in one.rings]
    xs, ys = ([at[axis] for ring in rings for at in ring] for axis in (0, 1))
    x, y = (min(xs) + max(xs)) / 2, (min(ys) + max(ys)) / 2
    if max(xs) - min(xs) < _LEAST_PX and max(ys) - min(ys) < _LEAST_PX:
        half = _LEAST_PX / 2
        rings = [[(x - half, y - half), (x + half, y - half),
                  (x + half, y + half), (x - half, y + half)]]  # fmt: skip
    outlines = "".join(map(_polygon, rings))
    label = "" if not one.label else (
        f'<text x="{x:.1f}" y="{y:.1f}" font-size="13" font-family="sans-serif" fill="#ffffff" '
        'stroke="#000000" stroke-width="3" paint-order="stroke" text-anchor="middle" '
        f'dominant-baseline="central">{_text(one.label)}</text>'
    )  # fmt: skip
    drawn = (
        '<g class="place" fill="none" pointer-events="all" stroke="#ffb300" stroke-width="2">'
        f"<title>{_text(one.title)}</title>{outlines}{label}</g>"
    )
    return f'<a href="{_text(one.link)}">{drawn}</a>' if one.link else drawn


def _polygon(ring: Sequence[Point]) -> str:
    return f'<polygon points="{" ".join(f"{x:.1f},{y:.1f}" for x, y in ring)}"/>'


def _text(text: str) -> str:
    """Other people's text, escaped, without what is no text."""
    return html.escape("".join(one if one.isprintable() else " " for one in text))


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
