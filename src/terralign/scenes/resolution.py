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
from terralign.scenes.remote import explain_reading

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
) -> None:
    """Read a window of a dataset's first band into an array (H, W) of the fine grid.

    `source`: an open rasterio dataset whose pixels are `factor` times as wide as the array's; `top`
    and `left`: the window's corner in pixels of the fine grid. `into` holds, throughout, the number
    that stands for no data; it stays where the band has that number, or no data (see
    `valid_by_file`). Coarse bands are enlarged bilinearly (see `enlarge`). Only the pixels that are
    needed are read. `DataError` names `origin` where they are damaged.
    """
    row, column, stop_row, stop_column = native_span(
        source.height, source.width, into.shape, factor=factor, top=top, left=left
    )
    pixels, valid = read_native(source, row, column, stop_row, stop_column, origin=origin)
    enlarge(
        pixels,
        valid,
        into,
        factor=factor,
        top=top - row * factor,
        left=left - column * factor,
        origin=origin,
    )


def native_span(
    num_rows: int,
    num_columns: int,
    shape: tuple[int, ...],
    *,
    factor: int,
    top: int,
    left: int,
    shift: tuple[float, float] = (0.0, 0.0),
) -> tuple[int, int, int, int]:
    """First row and column of a band of that size, and those after the last, that a window of the
    fine grid needs, with a pixel around it for blending."""
    margin = 0 if factor == 1 else 1
    down, right = shift
    return (
        max(0, math.floor((top - down) / factor) - margin),
        max(0, math.floor((left - right) / factor) - margin),
        min(num_rows, math.ceil((top + shape[-2] - down) / factor) + margin),
        min(num_columns, math.ceil((left + shape[-1] - right) / factor) + margin),
    )


def read_native(
    source: Any,
    row: int,
    column: int,
    stop_row: int,
    stop_column: int,
    *,
    origin: str,
    index: int = 1,
    mask_index: int | None = None,
    rules: MaskRules | None = None,
) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    """Pixels and valid (H, W) of a part of a dataset's band `index`, as it is stored.

    `mask_index`: a band that is 0 where there is no data; `rules`: `mask_rules` of the first band,
    where several parts are read. `DataError` names `origin` where the file is damaged.
    """
    try:
        window = Window(column, row, stop_column - column, stop_row - row)
        pixels = source.read(index, window=window)
        valid = valid_by_file(source, pixels[None], indexes=(index,), window=window, rules=rules)[0]
        if mask_index is not None:
            valid &= source.read(mask_index, window=window) > 0
    except (RasterioError, OSError, ValueError) as error:
        raise DataError(explain_reading(origin, first_line(error))) from error
    return pixels, valid


def enlarge(
    pixels: NDArray[Any],
    valid: NDArray[np.bool_],
    into: NDArray[Any],
    *,
    factor: int,
    top: int,
    left: int,
    shift: tuple[float, float] = (0.0, 0.0),
    origin: str,
) -> None:
    """Enlarge pixels of a coarse band, (H, W) with `valid`, into an array of the fine grid.

    `into` holds, throughout, the number that stands for no data, also in `pixels`. `top` and
    `left`: where it begins, in fine pixels from the first of `pixels`; `shift`: where the band's
    own corner lies in the fine grid (rows, columns), 0 where `factor` is 1. Bilinear: a fine pixel
    is valid where the coarse one that it lies in is, and blends the valid ones among the four
    around it. Whole numbers are blended exactly, halves are rounded up, as GDAL does up to its own
    rounding, in a fifth of its time.
    """
    nothing = into.flat[0]
    if factor == 1:
        np.copyto(into, pixels, where=valid)
        return
    if np.isfinite(nothing):
        valid = valid & (pixels != nothing)
    if shift != (0.0, 0.0):
        _enlarge_shifted(pixels, valid, into, factor, top, left, shift, origin)
        return
    for first in range(0, len(into), _ROWS):  # sums of a whole scene would take several times it
        part = into[first : first + _ROWS]
        row, _, stop, _ = native_span(
            len(pixels), pixels.shape[1], part.shape, factor=factor, top=top + first, left=left
        )
        if valid[row:stop].any():
            start = top + first - row * factor
            _enlarge_nested(pixels[row:stop], valid[row:stop], part, factor, start, left)


_ROWS = 512
"""Rows of the fine grid that are enlarged at a time."""


def _enlarge_nested(
    pixels: NDArray[Any],
    valid: NDArray[np.bool_],
    into: NDArray[Any],
    factor: int,
    top: int,
    left: int,
) -> None:
    whole = np.issubdtype(pixels.dtype, np.integer)
    kind: Any = np.float64
    if whole:
        largest = max(abs(int(end)) for end in _ends(pixels.dtype)) * 8 * factor**2
        kind = np.int32 if largest < 2**31 else np.int64
    if valid.all():
        total = _blend(pixels.astype(kind), into.shape, factor, top, left)
        parts = 4 * factor**2
        if whole:
            total += parts // 2
            total //= parts
        else:
            total /= parts
        into[...] = total
        return
    total = _blend(np.where(valid, pixels, 0).astype(kind), into.shape, factor, top, left)
    weights = _blend(valid.astype(kind), into.shape, factor, top, left)
    rows = np.arange(top, top + into.shape[0]) // factor
    columns = np.arange(left, left + into.shape[1]) // factor
    there = valid[rows][:, columns]
    np.maximum(weights, 1, out=weights)
    blended = (2 * total + weights) // (2 * weights) if whole else total / weights
    np.copyto(into, blended, where=there, casting="unsafe")


def _ends(dtype: np.dtype[Any]) -> tuple[int, int]:
    limits = np.iinfo(dtype)
    return limits.min, limits.max


def _blend(
    numbers: NDArray[Any], shape: tuple[int, ...], factor: int, top: int, left: int
) -> NDArray[Any]:
    """Numbers of the fine grid, times `4 * factor**2`: the four around each, by their distance."""
    tall = _blend_rows(numbers, factor, top, shape[0])
    return _blend_rows(tall.T, factor, left, shape[1]).T


def _blend_rows(numbers: NDArray[Any], factor: int, first: int, count: int) -> NDArray[Any]:
    """Along the first axis: (n, m) -> (count, m), times `2 * factor`."""
    padded = np.concatenate([numbers[:1], numbers, numbers[-1:]])
    blended = np.empty_like(numbers, shape=(count, numbers.shape[1]), order="K")
    for start in range(min(factor, count)):
        position = first + start
        phase = position % factor
        upper = position // factor + (2 * phase + 1 >= factor)  # in `padded`
        share = (2 * phase + 1 - factor) % (2 * factor)
        target = blended[start::factor]
        stop = upper + len(target)
        np.multiply(padded[upper:stop], 2 * factor - share, out=target)
        if share:
            target += padded[upper + 1 : stop + 1] * share
    return blended


def _enlarge_shifted(
    pixels: NDArray[Any],
    valid: NDArray[np.bool_],
    into: NDArray[Any],
    factor: int,
    top: int,
    left: int,
    shift: tuple[float, float],
    origin: str,
) -> None:
    """The same by GDAL, for grids whose corners do not meet."""
    nothing = into.flat[0].item()
    down, right = shift
    try:
        reproject(
            np.where(valid, pixels, into.dtype.type(nothing)).astype(into.dtype, copy=False),
            into,
            src_transform=Affine(factor, 0, right, 0, factor, down),
            dst_transform=Affine.translation(left, top),
            src_crs=_FLAT,
            dst_crs=_FLAT,
            src_nodata=nothing,
            dst_nodata=nothing,
            resampling=Resampling.bilinear,
        )
    except (RasterioError, OSError, ValueError) as error:
        raise DataError(f"{origin} is damaged: {first_line(error)}") from error
