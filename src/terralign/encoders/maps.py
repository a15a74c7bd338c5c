"""Hits and scenes on a map for notebooks: one piece of HTML, without a script and offline."""

from __future__ import annotations

import html
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import shapely
from numpy.typing import NDArray
from PIL import Image

from terralign.chips import Chip, Grid, Window
from terralign.encoders.vectors import Footprint
from terralign.errors import DataError, TerralignError, counted, shown
from terralign.scenes.places import to_wgs84
from terralign.scenes.scene import Scene, open_scene
from terralign.svg_map import Place, Point, Ring, SvgMap, Underlay, draw_map

MAX_SCENES = 4
"""Scenes of which a map shows the picture."""

MAX_PIXELS = 4096**2
"""Of a scene that are read for its picture."""

_SIDE = 900
"""Pixels of a picture's longer side."""

PERCENTILES = (2.0, 98.0)
"""Of each band of a picture; the first is black."""
BRIGHTENED = 0.7
"""Exponent between black and white: most of a scene is darker than the middle of its range."""


@dataclass(frozen=True, kw_only=True, slots=True, repr=False)
class Map:
    """A map that a notebook shows; `html` is its content, `lines` what stands below it."""

    title: str
    drawing: SvgMap
    lines: tuple[str, ...]

    @property
    def html(self) -> str:
        """The title, an SVG and the lines; no script, nothing from elsewhere."""
        west, south, east, north = self.drawing.edges
        below = "<br>".join(
            map(html.escape, (f"{west} to {east}, {south} to {north}", *self.lines))
        )
        return (
            f'<figure style="margin:0;max-width:720px"><p>{html.escape(self.title)}</p>'
            f"{self.drawing.svg}<figcaption><small>{below}</small></figcaption></figure>"
        )

    def _repr_html_(self) -> str:
        return self.html

    def __repr__(self) -> str:
        return f"Map: {self.title}; a notebook shows it"


def map_of(
    title: str,
    rows: Sequence[tuple[Footprint, str, str]],
    *,
    pictures: bool,
    sensors: Mapping[str, str],
) -> Map:
    """A map of places with their label and title, over the pictures of their scenes.

    `sensors`: source -> the sensor that its numbers are of, where that is known.

    `DataError` where no place is known.
    """
    places = [
        Place(rings=rings_of(one.shape), label=label, title=text) for one, label, text in rows
    ]
    if not any(one.rings for one in places):
        raise DataError(
            f"no place on a map is known for {counted(len(rows), 'result')}; a map needs "
            "georeferenced GeoTIFFs or products"
        )
    underlays, lines = _underlays([one for one, _, _ in rows], sensors) if pictures else ([], [])
    return drawn_map(title, places, underlays, lines)


def drawn_map(
    title: str, places: Sequence[Place], underlays: Sequence[Underlay], lines: Sequence[str]
) -> Map:
    """A map of at least one place or picture."""
    drawing = draw_map(places, underlays=underlays, name=title)
    assert drawing is not None
    return Map(title=title, drawing=drawing, lines=tuple(lines))


def rings_of(shape: Any) -> tuple[Ring, ...]:
    """The outer rings of a polygon, or of several; none of None."""
    if shape is None:
        return ()
    return tuple(
        tuple((float(x), float(y)) for x, y in shapely.get_coordinates(one.exterior))
        for one in shapely.get_parts(shape)
        if one.geom_type == "Polygon"
    )


def underlay_of(picture: NDArray[np.uint8], grid: Grid, *, origin: str) -> Underlay:
    """A picture, (H, W, 3) or with alpha (H, W, 4), that covers a grid."""
    image = Image.fromarray(picture)
    image.thumbnail((_SIDE, _SIDE), Image.Resampling.BILINEAR)
    out = io.BytesIO()
    if image.mode == "RGBA":
        image.save(out, "PNG", optimize=True)
    else:
        image.save(out, "JPEG", quality=80)
    a, b, c, d, e, f = grid.transform
    corners = [(0, 0), (grid.width, 0), (0, grid.height)]
    points = shapely.MultiPoint([(a * x + b * y + c, d * x + e * y + f) for x, y in corners])
    found = shapely.get_coordinates(to_wgs84(points, grid.crs, origin=origin))
    left, right, down = (_point(one) for one in found.tolist())
    return Underlay(data=out.getvalue(), upper_left=left, upper_right=right, lower_left=down)


def _point(numbers: Sequence[float]) -> Point:
    return numbers[0], numbers[1]


def _underlays(
    places: Iterable[Footprint], sensors: Mapping[str, str]
) -> tuple[list[Underlay], list[str]]:
    """Pictures of the scenes around some places, and a line for each scene without one."""
    windows: dict[str, list[Window]] = {}
    for one in places:
        if one.source is not None and one.window is not None:
            windows.setdefault(one.source, []).append(one.window)
    found, lines = [], []
    for source, own in list(windows.items())[:MAX_SCENES]:
        try:
            found.append(_picture(open_scene(source, sensor=sensors.get(source)), own))
        except (TerralignError, OSError) as error:
            lines.append(f"No picture of {Path(source).name}: {error}")
    if len(windows) > MAX_SCENES:
        lines.append(f"Pictures of the first {MAX_SCENES} scenes of {len(windows)}.")
    return found, lines


def _picture(scene: Scene, windows: Sequence[Window]) -> Underlay:
    """The part of a scene around some windows, in true colour where the sensor has it."""
    area = _around(scene, windows)
    if area.height * area.width > MAX_PIXELS:
        raise DataError(
            f"its hits lie {area.height} x {area.width} pixels apart, at most {MAX_PIXELS:,} are "
            "read; see terralign serve"
        )
    composite = scene.layout.composite or next(iter(scene.sensor.composites), None)
    bands = composite.bands if composite is not None else scene.bands[:1]
    chip = scene.read(area, bands=bands)
    if chip.grid is None or chip.grid.crs is None:
        raise DataError(f"{shown(scene.path)} is not georeferenced")
    return underlay_of(_eight_bit(chip), chip.grid, origin=shown(scene.path))


def _around(scene: Scene, windows: Sequence[Window]) -> Window:
    """The windows with as much again around them, within the scene."""
    margin = max(max(one.height, one.width) for one in windows)
    top = max(0, min(one.row for one in windows) - margin)
    left = max(0, min(one.column for one in windows) - margin)
    bottom = min(scene.height, max(one.row + one.height for one in windows) + margin)
    right = min(scene.width, max(one.column + one.width for one in windows) + margin)
    return Window(row=top, column=left, height=bottom - top, width=right - left)


def _eight_bit(chip: Chip) -> NDArray[np.uint8]:
    """(H, W, 3), black without data; all bands have the widest range of them, so that what is grey
    stays grey."""
    step = max(1, max(chip.pixels.shape[1:]) // (2 * _SIDE))
    pixels = np.asarray(chip.pixels[:, ::step, ::step], dtype=np.float32)
    valid = np.asarray(chip.valid[:, ::step, ::step]) & np.isfinite(pixels)
    if not valid.any(axis=(1, 2)).all():
        return np.zeros((*pixels.shape[1:], 3), dtype=np.uint8)
    ranges = [
        np.percentile(band[own], PERCENTILES) for band, own in zip(pixels, valid, strict=True)
    ]
    black = np.array([low for low, _ in ranges])[:, None, None]
    widest = max(max(high - low for low, high in ranges), 1e-6)
    shares = np.clip(np.nan_to_num((pixels - black) / widest), 0, 1) ** BRIGHTENED
    bands = np.where(valid, np.rint(255 * shares), 0).astype(np.uint8)
    return np.stack([bands[n % len(bands)] for n in range(3)], axis=-1)
