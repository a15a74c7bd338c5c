"""Where and when a file's pixels were taken: WGS84 bounds and footprints of grids, dates in product
names."""

from __future__ import annotations

import datetime as dt
import logging
import math
import re
from collections.abc import Iterable
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import shapely
from numpy.typing import NDArray
from rasterio._err import CPLE_BaseError
from rasterio.crs import CRS
from rasterio.errors import RasterioError
from rasterio.warp import transform, transform_bounds
from shapely.geometry.polygon import orient

from terralign.chips import Grid
from terralign.errors import DataError, first_line, shown
from terralign.scenes.geotiff import grid_of, open_geotiff

logger = logging.getLogger(__name__)

Bounds = tuple[float, float, float, float]
"""(west, south, east, north)."""

WGS84 = "EPSG:4326"

_PRODUCT_TIMES = (
    re.compile(r"(?:^|[^A-Za-z0-9])S2[A-D]_MSIL(?:1C|2A)_(\d{8}T\d{6})(?:_|$)"),
    re.compile(r"(?:^|[^A-Za-z0-9])S1[A-D]_(?:IW|EW|WV|S\d)_\w{4}_[12]S\w\w_(\d{8}T\d{6})(?:_|$)"),
    re.compile(r"(?:^|[^A-Za-z0-9])L[COT]0[89]_L[12][TGS][TSP]_\d{6}_(\d{8})_\d{8}_"),
    re.compile(r"(?:^|[^A-Za-z0-9])T\d\d[A-Z]{3}_(\d{8}T\d{6})_"),
    re.compile(r"(?:^|[^A-Za-z0-9])(\d{4}-\d\d-\d\d)-00[:_]00_\1-23[:_]59_Sentinel-2_"),
    re.compile(r"(?:^|[^A-Za-z0-9])HLS\.[LS]30\.T\d\d[A-Z]{3}\.(\d{7}T\d{6})\."),
)
"""Sentinel-2 and Sentinel-1 (ESA's product specifications) and HLS (NASA): start of sensing;
Landsat 8 and 9 (USGS) and exports of Sentinel Hub's EO Browser: day of acquisition."""

_TIME_FORMS = {15: "%Y%m%dT%H%M%S", 14: "%Y%jT%H%M%S", 10: "%Y-%m-%d", 8: "%Y%m%d"}
"""How a time of so many characters is written."""


def wgs84_bounds(bounds: Bounds, crs: Any, *, origin: str) -> Bounds:
    """Bounds in degrees of WGS84, of the same area; `crs`: whatever rasterio takes for one.

    West is greater than east where the area crosses the antimeridian. `DataError` naming `origin`
    where the reference system is unknown or does not reach there, or the area lies beyond a pole.
    """
    try:
        west, south, east, north = transform_bounds(_parse_crs(crs), WGS84, *bounds)
    except (RasterioError, CPLE_BaseError, ValueError) as error:
        raise DataError(
            f"{origin}: its bounds cannot be brought to WGS84: {first_line(error)}"
        ) from error
    if not np.isfinite([west, south, east, north]).all():
        raise DataError(f"{origin}: its bounds cannot be brought to WGS84: it leaves the globe")
    south, north = _latitudes([south, north], slack=_MAX_PIXEL, origin=origin)
    return (_longitude(west), south, _longitude(east), north)


_MAX_PIXEL = 1.0
"""Degrees by which bounds may lie beyond a pole: half a pixel of a coarse global grid whose outer
pixels are centred on it."""


def _latitudes(latitudes: Iterable[float], *, slack: float, origin: str) -> list[float]:
    """Latitudes within -90 to 90; `DataError` where one is more than `slack` degrees beyond."""
    given = list(latitudes)
    worst = max(given, key=abs)
    if abs(worst) > 90 + slack:
        raise DataError(
            f"{origin} lies beyond the poles by its georeferencing (latitude {worst:g}); correct "
            "its corner, pixel size or reference system (gdal_edit.py -a_ullr, -a_srs)"
        )
    return [min(90.0, max(-90.0, latitude)) for latitude in given]


def _longitude(degrees: float) -> float:
    """Within -180 to 180, for grids in degrees that extend beyond the antimeridian."""
    return degrees if -180 <= degrees <= 180 else (degrees + 180) % 360 - 180


_POINTS_A_SIDE = 21
"""Points that an edge is followed by where a straight line would leave it."""

_DIGITS = 8
"""Decimal places of degrees that are written: a millimetre."""


def wgs84_footprint(grid: Grid, *, origin: str) -> dict[str, Any] | None:
    """The GeoJSON geometry (RFC 7946) of a grid's outline, in degrees of WGS84.

    A Polygon whose outer ring runs counter-clockwise; where the grid crosses the antimeridian, a
    MultiPolygon that is cut there. Edges that are no straight lines in degrees get points in
    between. None where the grid has no reference system, or, with a warning, one that has no place
    on the globe (local, engineering, unknown); `DataError` naming `origin` where the grid leaves
    the globe or covers no area.
    """
    if grid.crs is None or not _is_mapped(grid.crs, origin):
        return None
    ring = _outline(grid, origin)
    corners = ring[::_POINTS_A_SIDE]
    if _bend(ring, corners) < 0.5 * math.dist(*corners[:2]) / grid.height:  # less than half a pixel
        ring = corners
    if abs(ring[-1][0] - ring[0][0]) > 180:  # once around a pole
        pole = math.copysign(90, sum(latitude for _, latitude in ring))
        ring = [*ring, (ring[-1][0], pole), (ring[0][0], pole)]
    whole = shapely.make_valid(shapely.Polygon(ring))
    parts: list[list[list[tuple[float, float]]]] = []
    for turn in (-360, 0, 360):
        piece = shapely.intersection(whole, shapely.box(turn - 180, -90, turn + 180, 90))
        for polygon in shapely.get_parts(piece):
            if polygon.geom_type == "Polygon" and polygon.area > 0:
                outer = orient(polygon).exterior.coords
                parts.append([[(round(x - turn, _DIGITS), round(y, _DIGITS)) for x, y in outer]])
    if not parts:
        raise DataError(
            f"{origin} covers no area of the globe by its georeferencing; correct its corner and "
            "pixel size (gdal_edit.py -a_ullr)"
        )
    if len(parts) == 1:
        return {"type": "Polygon", "coordinates": parts[0]}
    return {"type": "MultiPolygon", "coordinates": parts}


_warned: set[str] = set()


def _is_mapped(crs: Any, origin: str) -> bool:
    """Whether a reference system has a place on the globe; warned of once per `origin` if not."""
    try:
        parsed = _parse_crs(crs)
        if parsed.is_geographic or parsed.is_projected:
            return True
        reason = "is a local one, with no place on the globe"
    except (RasterioError, CPLE_BaseError, ValueError) as error:
        reason = f"is not known ({first_line(error)})"
    if origin not in _warned:
        _warned.add(origin)
        logger.warning(
            "%s: its reference system %s; it gets no footprint. If it is known, assign it "
            "(gdal_edit.py -a_srs EPSG:...)",
            origin,
            reason,
        )
    return False


def _bend(ring: list[tuple[float, float]], corners: list[tuple[float, float]]) -> float:
    """How far an outline of `_POINTS_A_SIDE` steps a side lies from straight lines, in degrees."""
    share = np.arange(_POINTS_A_SIDE)[:, None] / _POINTS_A_SIDE
    starts, ends = np.array(corners[:-1])[:, None], np.array(corners[1:])[:, None]
    straight = (starts + share * (ends - starts)).reshape(-1, 2)
    return float(np.abs(np.array(ring[:-1]) - straight).max())


def _outline(grid: Grid, origin: str) -> list[tuple[float, float]]:
    """Points (longitude, latitude) around a grid, `_POINTS_A_SIDE` a side, back to the first.

    Longitudes are continuous, so that they leave -180 to 180 where the outline crosses the
    antimeridian.
    """
    corners = [(0, 0), (grid.height, 0), (grid.height, grid.width), (0, grid.width), (0, 0)]
    steps = np.arange(_POINTS_A_SIDE) / _POINTS_A_SIDE
    rows, columns = (
        np.concatenate(
            [
                *(one[axis] + steps * (two[axis] - one[axis]) for one, two in pairwise(corners)),
                [0.0],
            ]
        )
        for axis in (0, 1)
    )
    a, b, c, d, e, f = grid.transform
    xs, ys = a * columns + b * rows + c, d * columns + e * rows + f
    try:
        longitudes, latitudes = transform(_parse_crs(grid.crs), WGS84, xs.tolist(), ys.tolist())
    except (RasterioError, CPLE_BaseError, ValueError) as error:
        raise DataError(
            f"{origin}: its outline cannot be brought to WGS84: {first_line(error)}"
        ) from error
    if not np.isfinite([longitudes, latitudes]).all():
        raise DataError(f"{origin}: its outline cannot be brought to WGS84: it leaves the globe")
    slack = abs(d) + abs(e) if is_geographic(grid.crs) else 0.0
    latitudes = _latitudes(latitudes, slack=slack, origin=origin)
    return list(zip(np.unwrap(longitudes, period=360).tolist(), latitudes, strict=True))


def to_wgs84(shape: Any, crs: Any, *, origin: str) -> Any:
    """A shapely geometry, of a reference system that rasterio understands, in degrees of WGS84.

    `DataError` naming `origin` where the system is unknown or does not reach there.
    """

    def moved(points: NDArray[np.float64]) -> NDArray[np.float64]:
        found = transform(_parse_crs(crs), WGS84, points[:, 0].tolist(), points[:, 1].tolist())
        return np.stack([np.array(one, dtype=np.float64) for one in found], axis=1)

    try:
        with rasterio.Env():  # which keeps PROJ's own lines off stderr
            found = shapely.transform(shape, moved)
    except (RasterioError, CPLE_BaseError, ValueError) as error:
        raise DataError(f"{origin}: cannot be brought to WGS84: {first_line(error)}") from error
    if not np.isfinite(found.bounds).all():
        raise DataError(f"{origin}: cannot be brought to WGS84: it leaves the globe")
    return found


def box(bounds: Bounds) -> dict[str, Any]:
    """Bounds in degrees as GeoJSON; in two parts where west is greater than east."""
    west, south, east, north = bounds
    parts = [(west, east)] if west <= east else [(west, 180.0), (-180.0, east)]
    rings = [
        [[[left, south], [right, south], [right, north], [left, north], [left, south]]]
        for left, right in parts
    ]
    if len(rings) == 1:
        return {"type": "Polygon", "coordinates": rings[0]}
    return {"type": "MultiPolygon", "coordinates": rings}


def is_geographic(crs: Any) -> bool:
    """Whether a reference system, whatever rasterio takes for one, counts in degrees.

    False for one that is unknown, which `wgs84_bounds` refuses.
    """
    try:
        return bool(_parse_crs(crs).is_geographic)
    except (RasterioError, CPLE_BaseError, ValueError):
        return False


def map_unit(crs: Any) -> str:
    """What a reference system counts in: "degrees", "m", or another unit's name."""
    try:
        parsed = _parse_crs(crs)
        unit = "degrees" if parsed.is_geographic else str(parsed.linear_units)
    except (RasterioError, CPLE_BaseError, ValueError):
        return "units"
    return "m" if unit in ("metre", "meter") else unit


def as_wkt2(crs: Any, *, origin: str) -> str:
    """A reference system as WKT 2; `DataError` naming `origin` where it is unknown."""
    try:
        return str(_parse_crs(crs).to_wkt(version="WKT2_2019"))
    except (RasterioError, CPLE_BaseError, ValueError) as error:
        raise DataError(
            f"{origin}: its reference system is not known: {first_line(error)}"
        ) from error


@lru_cache(maxsize=256)
def _parse_crs(crs: Any) -> CRS:
    return CRS.from_user_input(crs)


def geotiff_bounds(path: Path | str) -> Bounds | None:
    """WGS84 bounds of a GeoTIFF, from its header.

    None where it has no reference system, or, with a warning, one that has no place on the globe.
    """
    with open_geotiff(Path(path)) as source:
        if source.crs is None or not _is_mapped(source.crs, shown(Path(path))):
            return None
        return wgs84_bounds(grid_of(source).bounds, source.crs, origin=shown(path))


def product_datetime(name: str) -> dt.datetime | None:
    """When a product was taken (UTC), from a standard product name in `name`; None without one.

    Sentinel-1, -2 and HLS give the start of sensing, Landsat the day.
    """
    for pattern in _PRODUCT_TIMES:
        match = pattern.search(name)
        if match:
            try:
                when = dt.datetime.strptime(match[1], _TIME_FORMS[len(match[1])])
                return when.replace(tzinfo=dt.UTC)
            except ValueError:
                return None
    return None
