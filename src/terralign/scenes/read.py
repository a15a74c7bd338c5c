"""One file in, one `Chip` out: GeoTIFFs through rasterio, JPEG and PNG through Pillow.

What the numbers of a file mean is declared by the caller or said by the file; it is never guessed.
C bands, H W pixels throughout.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from rasterio.errors import RasterioError

from terralign.chips import Chip, Grid, Units, Window, make_layout
from terralign.errors import DataError, first_line, shown
from terralign.scenes.file_layout import FileLayout, describe_geotiff
from terralign.scenes.geotiff import (
    as_rasterio_window,
    first_bytes,
    open_geotiff,
    valid_by_file,
)
from terralign.scenes.orientation import is_south_up, reversed_rows
from terralign.scenes.pictures import (
    HEAD_BYTES,
    IMAGE_FORMATS,
    decode_with_mask,
    format_of,
    no_picture,
)
from terralign.scenes.plausible import check_chip
from terralign.sensors import SENSORS, Sensor, as_sensor

MAX_CHIP_BYTES = 2 * 1024**3
"""A file whose pixels would take more memory than this is refused before they are read."""


def read_chip(
    path: Path | str,
    *,
    sensor: Sensor | str | None = None,
    bands: Sequence[str] | None = None,
    dn_offset: float | None = None,
    units: Units | None = None,
) -> Chip:
    """Read a picture or a GeoTIFF, told apart by its first bytes; arguments as `read_geotiff`.

    A product with one file per band is read by `scenes.scene.open_scene`.

    A picture (JPEG, PNG, WebP, BMP, GIF) is always of sensor `rgb`: another sensor, bands or offset
    for it is an error.
    """
    path = Path(path)
    sensor = None if sensor is None else as_sensor(sensor)
    if kind_of(path) == "tiff":
        return read_geotiff(path, sensor=sensor, bands=bands, dn_offset=dn_offset, units=units)
    require_picture(path, sensor=sensor, bands=bands, dn_offset=dn_offset, units=units)
    return read_image(path)


def require_picture(
    path: Path,
    *,
    sensor: Sensor | None,
    bands: Sequence[str] | None,
    dn_offset: float | None,
    units: Units | None,
) -> None:
    """Raise `DataError` where what is declared of a picture is not sensor `rgb` in 8-bit DN."""
    if sensor is not None and sensor != SENSORS["rgb"]:
        raise DataError(
            f"{shown(path)} is a picture, which is sensor 'rgb', not {sensor.name!r}; "
            f"give the {sensor.name} bands as a GeoTIFF"
        )
    if bands is not None or dn_offset is not None or units == "physical":
        raise DataError(
            f"{shown(path)} is a picture: its bands are red, green, blue in 8-bit numbers; "
            "leave out bands, dn_offset and units"
        )


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


def read_geotiff(
    path: Path | str,
    *,
    sensor: Sensor | str | None = None,
    bands: Sequence[str] | None = None,
    dn_offset: float | None = None,
    units: Units | None = None,
    composite: str | None = None,
    max_bytes: int = MAX_CHIP_BYTES,
    check: bool = True,
) -> Chip:
    """Read the bands of a GeoTIFF.

    `sensor`: a sensor, the name of a built-in one, or a TOML file; may be left out for 8-bit bands
    marked red, green, blue (and alpha), and where the name of the file or its folder is that of a
    standard product (see `product_names`). `bands`:
    names in the file's order, "-" for a band to leave out, or some of those that the file names;
    left out, they come from the file's own band descriptions and tags, and bands that measure
    nothing (QA60, SCL, alpha) are left out (see `band_names`). `dn_offset`: what
    is added to the DN; for Sentinel-2 it may be left out where metadata state it (see
    `stated_offset`; stating another is an error) or the name of the file or its folder is a product
    name (see `sentinel2_dn_offset`). `units`: left out, integers are DN, and numbers
    of a sensor without DN (dB) are physical. `composite`: the sensor's default where left out.
    A scale and offset that the file states for its bands replace the sensor's (`stated_scale`).
    `check`: hold the numbers against what is declared (see `scenes.plausible`).

    Pixels come as the file has them where they are valid, marked elsewhere (see `Chip`); `valid` is
    False where they are the sensor's no-data DN, the file's no-data value, masked by the file
    (internal mask, `.msk`, alpha), or not finite. Rows of a south-up file come from north to south,
    with the grid that fits.

    Raises `DataError` for a file that is missing, damaged, larger than `max_bytes` in memory, not
    as declared, or with numbers that cannot be what is declared, `SensorError` for an unknown band
    or offset.
    """
    path = Path(path)
    found = None if sensor is None else as_sensor(sensor)
    with open_geotiff(path) as source:
        described = describe_geotiff(
            path,
            source,
            sensor=found,
            bands=bands,
            dn_offset=dn_offset,
            units=units,
            composite=composite,
        )
        grid = grid_of(source)
        require_fit(path, grid, described.layout.bands, described.dtype, max_bytes=max_bytes)
        pixels, valid = read_pixels(path, source, described)
    if is_south_up(grid):
        pixels, valid = (np.ascontiguousarray(one[:, ::-1]) for one in (pixels, valid))
        grid = reversed_rows(grid)
    chip = Chip(pixels=pixels, valid=valid, layout=described.layout, grid=grid)
    if check:
        check_chip(chip, origin=shown(path))
    return chip


def grid_of(source: Any) -> Grid:
    """The pixel grid of an open rasterio dataset."""
    return Grid(
        crs=source.crs.to_string() if source.crs else None,
        transform=tuple(source.transform)[:6],
        height=source.height,
        width=source.width,
    )


def require_fit(
    path: Path,
    grid: Grid,
    bands: Sequence[str],
    dtype: np.dtype[Any],
    *,
    max_bytes: int = MAX_CHIP_BYTES,
) -> None:
    """Raise `DataError` where pixels of these bands would take more than `max_bytes` of memory."""
    num_bytes = len(bands) * grid.height * grid.width * dtype.itemsize
    if num_bytes > max_bytes:
        raise DataError(
            f"{shown(path)} needs {num_bytes / 2**20:.0f} MiB ({len(bands)} bands of "
            f"{grid.width}x{grid.height} {dtype}), more than the limit of "
            f"{max_bytes / 2**20:.0f} MiB; read it in windows, or cut it into smaller files"
        )


def read_pixels(
    path: Path, source: Any, described: FileLayout, *, window: Window | None = None
) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    """Pixels (C, H, W) as an open GeoTIFF has them, all or a window, and `valid`, the same shape.

    `valid` is as `read_geotiff` says. `DataError` where the file is damaged.
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
