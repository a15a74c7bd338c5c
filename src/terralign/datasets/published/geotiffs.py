"""GeoTIFFs of a published archive, whose number of bands, size and type are known.

C bands, H W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rasterio.enums import Resampling
from rasterio.errors import RasterioError

from terralign.chips import Grid, Window
from terralign.errors import DataError, first_line
from terralign.scenes.geotiff import open_geotiff, valid_by_file
from terralign.scenes.places import Bounds, wgs84_bounds

RESAMPLING = "bilinear"
"""How coarse bands are brought to the finest grid."""


def require_form(
    source: Any, origin: object, *, count: int, sides: tuple[int, int], dtypes: Sequence[str]
) -> None:
    """Raise `DataError` unless an open GeoTIFF has `count` bands of one of the `dtypes`, with
    `sides` (least, most) pixels in both directions."""
    least, most = sides
    in_range = all(least <= side <= most for side in (source.height, source.width))
    if source.count != count or not in_range or source.dtypes[0] not in dtypes:
        side = f"{least}" if least == most else f"({least} to {most})"
        raise DataError(
            f"{origin} is {source.count}x{source.height}x{source.width} {source.dtypes[0]}; "
            f"expected {count}x{side}x{side} {' or '.join(dtypes)}"
        )


def read_bands(
    path: Path,
    *,
    count: int,
    side: int,
    dtypes: Sequence[str],
    indexes: Sequence[int] = (),
    out_side: int | None = None,
) -> NDArray[Any]:
    """(C, H, W) of a GeoTIFF of `count` bands and `side` pixels; no data is NaN, or 0 in integers.

    `indexes`: which bands, from 1; none: all. `out_side`: pixels to resample to.
    """
    chosen = list(indexes) or list(range(1, count + 1))
    with open_geotiff(path) as source:
        require_form(source, path, count=count, sides=(side, side), dtypes=dtypes)
        try:
            pixels: NDArray[Any] = source.read(
                chosen,
                out_shape=(len(chosen), out_side or side, out_side or side),
                resampling=Resampling[RESAMPLING],
            )
            valid = valid_by_file(source, pixels, indexes=chosen)
        except (RasterioError, OSError, ValueError) as error:
            raise DataError(f"{path} is damaged: {first_line(error)}") from error
    pixels[~valid] = np.nan if np.issubdtype(pixels.dtype, np.floating) else 0
    return pixels


def window_bounds(source: Any, window: Window, origin: object) -> Bounds:
    """(west, south, east, north) of a window of an open GeoTIFF, in degrees of WGS84."""
    if source.crs is None:
        raise DataError(f"{origin} is not georeferenced")
    grid = Grid(
        crs=source.crs.to_wkt(),
        transform=tuple(source.transform)[:6],
        height=source.height,
        width=source.width,
    )
    return wgs84_bounds(grid.window(window).bounds, grid.crs, origin=str(origin))
