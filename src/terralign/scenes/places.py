"""Where and when a file's pixels were taken: WGS84 bounds of a grid, dates in product names."""

from __future__ import annotations

import datetime as dt
import re
from functools import lru_cache
from pathlib import Path
from typing import Any

from rasterio.crs import CRS
from rasterio.errors import RasterioError
from rasterio.warp import transform_bounds

from terralign.chips import Grid
from terralign.errors import DataError, first_line
from terralign.scenes.geotiff import open_geotiff

Bounds = tuple[float, float, float, float]
"""(west, south, east, north)."""

WGS84 = "EPSG:4326"

_PRODUCT_TIMES = (
    re.compile(r"(?:^|[^A-Za-z0-9])S2[A-D]_MSIL(?:1C|2A)_(\d{8}T\d{6})(?:_|$)"),
    re.compile(r"(?:^|[^A-Za-z0-9])S1[A-D]_(?:IW|EW|WV|S\d)_\w{4}_[12]S\w\w_(\d{8}T\d{6})(?:_|$)"),
    re.compile(r"(?:^|[^A-Za-z0-9])L[COT]0[89]_L[12][TGS][TSP]_\d{6}_(\d{8})_\d{8}_"),
)
"""Sentinel-2 and Sentinel-1 (ESA's product specifications): start of sensing; Landsat 8 and 9
(USGS): day of acquisition."""


def wgs84_bounds(bounds: Bounds, crs: Any, *, origin: str) -> Bounds:
    """Bounds in degrees of WGS84, of the same area; `crs`: whatever rasterio takes for one.

    West is greater than east where the area crosses the antimeridian. `DataError` naming `origin`
    where the reference system is unknown or does not reach there.
    """
    try:
        west, south, east, north = transform_bounds(_parse_crs(crs), WGS84, *bounds)
    except (RasterioError, ValueError) as error:
        raise DataError(
            f"{origin}: its bounds cannot be brought to WGS84: {first_line(error)}"
        ) from error
    return (_longitude(west), south, _longitude(east), north)


def _longitude(degrees: float) -> float:
    """Within -180 to 180, for grids in degrees that go on beyond the antimeridian."""
    return degrees if -180 <= degrees <= 180 else (degrees + 180) % 360 - 180


def is_geographic(crs: Any) -> bool:
    """Whether a reference system, whatever rasterio takes for one, counts in degrees.

    False for one that is unknown, of which `wgs84_bounds` says so.
    """
    try:
        return bool(_parse_crs(crs).is_geographic)
    except (RasterioError, ValueError):
        return False


@lru_cache(maxsize=256)
def _parse_crs(crs: Any) -> CRS:
    return CRS.from_user_input(crs)


def geotiff_bounds(path: Path) -> Bounds | None:
    """WGS84 bounds of a GeoTIFF, from its header; None where it has no reference system."""
    with open_geotiff(path) as source:
        if source.crs is None:
            return None
        grid = Grid(
            crs=source.crs.to_string(),
            transform=tuple(source.transform)[:6],
            height=source.height,
            width=source.width,
        )
        return wgs84_bounds(grid.bounds, source.crs, origin=str(path))


def product_datetime(name: str) -> dt.datetime | None:
    """When a product was taken (UTC), from a standard product name in `name`; None without one.

    Sentinel-1 and -2 give the start of sensing, Landsat the day.
    """
    for pattern in _PRODUCT_TIMES:
        match = pattern.search(name)
        if match:
            form = "%Y%m%dT%H%M%S" if "T" in match[1] else "%Y%m%d"
            try:
                return dt.datetime.strptime(match[1], form).replace(tzinfo=dt.UTC)
            except ValueError:
                return None
    return None
