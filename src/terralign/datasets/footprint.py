"""Where a georeferenced file lies, in degrees of WGS84."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

from rasterio.crs import CRS
from rasterio.errors import RasterioError
from rasterio.warp import transform_bounds

from terralign.chips import Grid
from terralign.errors import DataError, first_line
from terralign.scenes.read import open_geotiff

Bounds = tuple[float, float, float, float]
"""(west, south, east, north)."""


def to_wgs84(crs: str, bounds: Bounds, *, origin: str) -> Bounds:
    """Bounds in `crs` (an authority code or WKT) as degrees, its curved edges included.

    West is greater than east where they span the antimeridian. `DataError` names `origin` where
    the reference system or the numbers make no sense.
    """
    try:
        west, south, east, north = transform_bounds(_parse_crs(crs), "EPSG:4326", *bounds)
    except (RasterioError, ValueError) as error:
        raise DataError(f"{origin} does not say where it lies: {first_line(error)}") from error
    return (west, south, east, north)


@lru_cache(maxsize=256)
def _parse_crs(crs: str) -> CRS:
    return CRS.from_user_input(crs)


def geotiff_bounds(path: Path) -> Bounds | None:
    """Bounds of a GeoTIFF in degrees, from its header alone; None where it is not georeferenced."""
    with open_geotiff(path) as source:
        if not source.crs:
            return None
        grid = Grid(
            crs=source.crs.to_wkt(),
            transform=tuple(source.transform)[:6],
            height=source.height,
            width=source.width,
        )
    return to_wgs84(str(grid.crs), grid.bounds, origin=str(path))
