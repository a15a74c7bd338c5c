"""The pixels of one file: GeoTIFFs through rasterio, JPEG and PNG through Pillow.

C bands, H W pixels throughout.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from rasterio.errors import RasterioError

from terralign.chips import Chip, Grid, Window, make_layout
from terralign.errors import DataError, first_line, shown
from terralign.scenes.file_layout import FileLayout
from terralign.scenes.geotiff import (
    as_rasterio_window,
    first_bytes,
    valid_by_file,
)
from terralign.scenes.pictures import (
    HEAD_BYTES,
    IMAGE_FORMATS,
    decode_with_mask,
    format_of,
    no_picture,
)
from terralign.sensors import SENSORS

MAX_CHIP_BYTES = 2 * 1024**3
"""A file whose pixels would take more memory than this is refused before they are read."""


def kind_of(path: Path) -> Literal["tiff", "picture"]:
    """What a file is by its first bytes; `DataError` where it is neither."""
    head = first_bytes(path, HEAD_BYTES)
    kind = format_of(head)
    if kind == "TIFF":
        return "tiff"
    if kind in IMAGE_FORMATS:
        return "picture"
    raise DataError(
        f"{shown(path)} {no_picture(head, read='JPEG, PNG, WebP, BMP, GIF or GeoTIFF')}"
    )


def read_image(path: Path | str) -> Chip:
    """Read a picture as a chip of sensor `rgb`: DN 0-255, `valid` False where it is transparent.

    Greyscale, palette and CMYK are converted to RGB. An orientation stored in EXIF is not applied:
    CLIP's own evaluation does not apply it either.
    """
    pixels, valid = decode_with_mask(path)
    return Chip(
        pixels=pixels,
        valid=np.repeat(valid[None], 3, axis=0),
        layout=make_layout(SENSORS["rgb"], SENSORS["rgb"].band_names, units="dn"),
    )


def require_fit(path: Path, grid: Grid, bands: Sequence[str], dtype: np.dtype[Any]) -> None:
    """Raise `DataError` where pixels of these bands take more memory than `MAX_CHIP_BYTES`."""
    num_bytes = len(bands) * grid.height * grid.width * dtype.itemsize
    if num_bytes > MAX_CHIP_BYTES:
        raise DataError(
            f"{shown(path)} needs {num_bytes / 2**20:.0f} MiB ({len(bands)} bands of "
            f"{grid.width}x{grid.height} {dtype}), more than the limit of "
            f"{MAX_CHIP_BYTES / 2**20:.0f} MiB; read it in windows, or cut it into smaller files"
        )


def read_pixels(
    path: Path, source: Any, described: FileLayout, *, window: Window | None = None
) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    """Pixels (C, H, W) as an open GeoTIFF has them, all or a window, and `valid`, the same shape.

    `valid` is as `scenes.scene.open_scene` says. `DataError` where the file is damaged.
    """
    layout, indexes = described.layout, described.indexes
    part = as_rasterio_window(window)
    try:
        pixels = source.read(indexes, window=part)
        valid = valid_by_file(source, pixels, indexes=indexes, window=part)
        if layout.sensor == SENSORS["rgb"] and described.dtype == np.uint8:
            valid[:] = source.dataset_mask(window=part) > 0  # as pictures of data sets are masked
    except (RasterioError, OSError, ValueError) as error:
        raise DataError(f"{shown(path)} is damaged: {first_line(error)}") from error
    if layout.units == "dn" and layout.sensor.nodata is not None:
        valid &= pixels != layout.sensor.nodata
    return pixels, valid
