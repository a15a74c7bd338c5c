"""Bands of several resolutions on one pixel grid: the finest one's.

A coarse band covers the same area in fewer pixels, `factor` times as wide; its corner is that of
the fine grid, or lies some fine pixels (`shift`) away, as where the grids share pixel centres.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rasterio import Affine
from rasterio.enums import Resampling
from rasterio.errors import RasterioError
from rasterio.warp import reproject
from rasterio.windows import Window

from terralign.errors import DataError, first_line
from terralign.scenes.geotiff import MaskRules, valid_by_file

_FLAT = "EPSG:3857"
"""Both sides of an enlargement, which is about rows and columns only."""


def read_enlarged(
    source: Any,
    into: NDArray[Any],
    *,
    factor: int,
    top: int,
    left: int,
    origin: str,
    shift: tuple[float, float] = (0.0, 0.0),
    mask_index: int | None = None,
    rules: MaskRules | None = None,
) -> None:
    """Read a window of a dataset's first band into an array (H, W) of the fine grid.

    `source`: an open rasterio dataset whose pixels are `factor` times as wide as the array's; `top`
    and `left`: the window's corner in pixels of the fine grid; `shift`: where the band's own corner
    lies in it (rows, columns), 0 where `factor` is 1. `mask_index`: a band that is 0 where there is
    no data; `rules`: `mask_rules` of the first band, where several windows are read. `into` holds,
    throughout, the number that stands for no data; it stays where the band has that number, or no
    data (see `valid_by_file`). Coarse bands are enlarged bilinearly, and no data is not mixed into
    its neighbours. Only the pixels that are needed are read. `DataError` names `origin` where they
    are damaged.
    """
    nothing = into.flat[0].item()
    height, width = into.shape
    margin = 0 if factor == 1 else 1
    down, right = shift
    row = max(0, math.floor((top - down) / factor) - margin)
    column = max(0, math.floor((left - right) / factor) - margin)
    stop_row = min(source.height, math.ceil((top + height - down) / factor) + margin)
    stop_column = min(source.width, math.ceil((left + width - right) / factor) + margin)
    try:
        window = Window(column, row, stop_column - column, stop_row - row)
        pixels = source.read(1, window=window)
        valid = valid_by_file(source, pixels[None], window=window, rules=rules)[0]
        if mask_index is not None:
            valid &= source.read(mask_index, window=window) > 0
        if factor == 1:
            np.copyto(into, pixels, where=valid)
            return
        pixels = np.where(valid, pixels, into.dtype.type(nothing)).astype(into.dtype, copy=False)
        reproject(
            pixels,
            into,
            src_transform=Affine(
                *(factor, 0, column * factor + right),
                *(0, factor, row * factor + down),
            ),
            dst_transform=Affine.translation(left, top),
            src_crs=_FLAT,
            dst_crs=_FLAT,
            src_nodata=nothing,
            dst_nodata=nothing,
            resampling=Resampling.bilinear,
        )
    except (RasterioError, OSError, ValueError) as error:
        raise DataError(f"{origin} is damaged: {first_line(error)}") from error
