"""Which way up a file's pixels are, and those of south-up files turned north-up.

A file whose rows run from south to north (as netCDF converters write them) is mirrored as a
picture. Its rows are read in reverse, and its grid counts them from the north, so that pixels,
windows and geometry agree. Other mirrored and rotated grids stay as they are, with a warning.
"""

from __future__ import annotations

import logging
import math
from dataclasses import replace
from typing import Any

from rasterio._err import CPLE_BaseError
from rasterio.crs import CRS
from rasterio.errors import RasterioError

from terralign.chips import Grid

logger = logging.getLogger(__name__)

MAX_TURN_DEGREES = 1.0
"""A grid that is rotated by less is not warned of."""

_NO_TRANSFORM = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
"""What GDAL gives for a file without georeferencing, whose rows run downwards."""


def is_south_up(grid: Grid) -> bool:
    """Whether a grid's rows run from south to north and its columns from west to east."""
    a, b, _, d, e, _ = grid.transform
    return _is_placed(grid) and b == 0 and d == 0 and a > 0 and e > 0


def reversed_rows(grid: Grid) -> Grid:
    """The grid of the same pixels with their rows in reverse."""
    a, b, c, d, e, f = grid.transform
    return replace(grid, transform=(a, -b, c + b * grid.height, d, -e, f + e * grid.height))


def warn_unless_north_up(grid: Grid, *, origin: str) -> None:
    """Log a warning for a grid that is rotated or mirrored and is read as it is stored.

    None for a south-up grid, which is turned, and for one without a place on the globe.
    """
    a, _, _, d, e, _ = grid.transform
    if not _is_placed(grid) or is_south_up(grid):
        return
    b = grid.transform[1]
    turned = max(math.degrees(math.atan2(abs(d), abs(a))), math.degrees(math.atan2(abs(b), abs(e))))
    is_mirrored = a < 0 or e > 0
    if turned <= MAX_TURN_DEGREES and not is_mirrored:
        return
    how = f"rotated by {turned:.0f} degrees" if turned > MAX_TURN_DEGREES else "mirrored"
    logger.warning(
        "%s: its grid is %s, and its pixels are read as they are stored; bring it north-up first "
        "(gdalwarp IN.tif OUT.tif)",
        origin,
        how,
    )


def warn_of_points(source: Any, *, origin: str) -> None:
    """Log a warning for an open raster that only control points or polynomials place on the globe,
    as radar in its own geometry: they are not used."""
    if source.crs is not None or not (source.gcps[0] or source.rpcs):
        return
    what = "ground control points" if source.gcps[0] else "polynomials (RPC)"
    logger.warning(
        "%s: it is placed on the globe by %s only, which are not used, and has no footprint; bring "
        "it onto a grid first (gdalwarp -t_srs EPSG:... IN.tif OUT.tif)",
        origin,
        what,
    )


def _is_placed(grid: Grid) -> bool:
    if grid.crs is None or grid.transform == _NO_TRANSFORM:
        return False
    try:
        crs = CRS.from_user_input(grid.crs)
    except (RasterioError, CPLE_BaseError, ValueError):
        return False
    return bool(crs.is_geographic or crs.is_projected)
