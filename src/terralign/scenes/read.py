"""One file in, one `Chip` out: GeoTIFFs through rasterio, JPEG and PNG through Pillow.

What the numbers of a file mean is declared by the caller or said by the file; it is never guessed.
C bands, H W pixels throughout.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
from rasterio.enums import ColorInterp
from rasterio.errors import RasterioError

from terralign.chips import Chip, Grid, PixelLayout
from terralign.errors import DataError, SensorError, first_line
from terralign.scenes.band_names import declared_bands, named_bands, read_band_names
from terralign.scenes.geotiff import open_geotiff, require_file, valid_by_file
from terralign.scenes.pictures import (
    HEAD_BYTES,
    IMAGE_FORMATS,
    decode_with_mask,
    format_of,
    no_picture,
)
from terralign.scenes.plausible import check_chip
from terralign.scenes.product_metadata import is_sensors_scale, stated_offset, stated_scale
from terralign.sensors import SENSORS, Sensor, sentinel2_dn_offset

Units = Literal["dn", "physical"]

MAX_CHIP_BYTES = 2 * 1024**3
"""A file whose pixels would take more memory than this is refused before they are read."""

_RGB = (ColorInterp.red, ColorInterp.green, ColorInterp.blue)


def read_chip(
    path: Path,
    *,
    sensor: Sensor | None = None,
    bands: Sequence[str] | None = None,
    dn_offset: float | None = None,
    units: Units | None = None,
) -> Chip:
    """Read a picture or a GeoTIFF, told apart by its first bytes; arguments as `read_geotiff`.

    A picture (JPEG, PNG, WebP, BMP, GIF) is always of sensor `rgb`: another sensor, bands or offset
    for it is an error.
    """
    path = Path(path)
    kind = _kind_of(path)
    if kind == "tiff":
        return read_geotiff(path, sensor=sensor, bands=bands, dn_offset=dn_offset, units=units)
    if sensor is not None and sensor != SENSORS["rgb"]:
        raise DataError(
            f"{path} is a picture, which is sensor 'rgb', not {sensor.name!r}; "
            f"give the {sensor.name} bands as a GeoTIFF"
        )
    if bands is not None or dn_offset is not None or units == "physical":
        raise DataError(
            f"{path} is a picture: its bands are red, green, blue in 8-bit numbers; "
            "leave out bands, dn_offset and units"
        )
    return read_image(path)


def _kind_of(path: Path) -> Literal["tiff", "picture"]:
    require_file(path)
    with open(path, "rb") as file:
        head = file.read(HEAD_BYTES)
    kind = format_of(head)
    if kind == "TIFF":
        return "tiff"
    if kind in IMAGE_FORMATS:
        return "picture"
    raise DataError(f"{path} {no_picture(head, read='JPEG, PNG, WebP, BMP, GIF or GeoTIFF')}")


def read_image(path: Path) -> Chip:
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
    path: Path,
    *,
    sensor: Sensor | None = None,
    bands: Sequence[str] | None = None,
    dn_offset: float | None = None,
    units: Units | None = None,
    composite: str | None = None,
    max_bytes: int = MAX_CHIP_BYTES,
    check: bool = True,
) -> Chip:
    """Read the bands of a GeoTIFF.

    `sensor`: may be left out only for 8-bit bands marked red, green, blue (and alpha). `bands`:
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
    (internal mask, `.msk`, alpha), or not finite.

    Raises `DataError` for a file that is missing, damaged, larger than `max_bytes` in memory, not
    as declared, or with numbers that cannot be what is declared, `SensorError` for an unknown band
    or offset.
    """
    path = Path(path)
    with open_geotiff(path) as source:
        sensor, names, indexes = _identify(path, source, sensor, bands)
        dtype = np.dtype(np.result_type(*(source.dtypes[index - 1] for index in indexes)))
        num_bytes = len(indexes) * source.height * source.width * dtype.itemsize
        if num_bytes > max_bytes:
            raise DataError(
                f"{path} needs {num_bytes / 2**20:.0f} MiB ({len(indexes)} bands of "
                f"{source.width}x{source.height} {dtype}), more than the limit of "
                f"{max_bytes / 2**20:.0f} MiB; cut it into smaller files"
            )
        scale = stated_scale(path, source, sensor, indexes)
        units = _units_of(path, sensor, dtype, units, scale)
        layout = make_layout(
            sensor,
            names,
            units=units,
            dn_offset=_offset_of(path, source, sensor, names, indexes, units, scale, dn_offset),
            composite=composite,
            stated_scale=_other_scale(path, sensor, scale, dn_offset),
        )
        try:
            pixels = source.read(indexes)
            valid = valid_by_file(source, pixels, indexes=indexes)
            if sensor == SENSORS["rgb"] and dtype == np.uint8:
                valid[:] = source.dataset_mask() > 0  # as pictures of data sets are masked
        except (RasterioError, OSError, ValueError) as error:
            raise DataError(f"{path} is damaged: {first_line(error)}") from error
        if units == "dn" and sensor.nodata is not None:
            valid &= pixels != sensor.nodata
        chip = Chip(
            pixels=pixels,
            valid=valid,
            layout=layout,
            grid=Grid(
                crs=source.crs.to_string() if source.crs else None,
                transform=tuple(source.transform)[:6],
                height=source.height,
                width=source.width,
            ),
        )
    if check:
        check_chip(chip, origin=str(path))
    return chip


def make_layout(
    sensor: Sensor,
    bands: Sequence[str],
    *,
    units: Units,
    dn_offset: float = 0.0,
    composite: str | None = None,
    stated_scale: tuple[float, float] | None = None,
) -> PixelLayout:
    """The layout of these bands, with the composite named, or the sensor's default one.

    Without a name, `composite` is None where the sensor makes no RGB or the bands lack its three.
    """
    return _make_layout(sensor, tuple(bands), units, dn_offset, composite, stated_scale)


@lru_cache(maxsize=64)
def _make_layout(
    sensor: Sensor,
    bands: tuple[str, ...],
    units: Units,
    dn_offset: float,
    composite: str | None,
    stated_scale: tuple[float, float] | None,
) -> PixelLayout:
    names = sensor.resolve(bands)
    if composite is None:
        recipe = sensor.composites[0] if sensor.composites else None
        if recipe is not None and not set(recipe.bands) <= set(names):
            recipe = None
    else:
        recipe = sensor.composite(composite)
        missing = [name for name in recipe.bands if name not in names]
        if missing:
            raise SensorError(
                f"composite {composite!r} needs {', '.join(missing)}; "
                f"the bands are {', '.join(names)}"
            )
    return PixelLayout(
        sensor=sensor,
        bands=names,
        units=units,
        dn_offset=dn_offset,
        composite=recipe,
        stated_scale=stated_scale,
    )


def _identify(
    path: Path, source: Any, sensor: Sensor | None, bands: Sequence[str] | None
) -> tuple[Sensor, tuple[str, ...], tuple[int, ...]]:
    """The sensor, the canonical names of the bands to read, and where they are in the file.

    Sensor and names are declared, or the file states them. Positions count from 1.
    """
    count, colours = source.count, source.colorinterp
    is_rgb = set(source.dtypes) == {"uint8"} and colours in (_RGB, (*_RGB, ColorInterp.alpha))
    if sensor is None:
        if not is_rgb or bands is not None:
            raise DataError(
                f"{path} has {count} band(s) of {source.dtypes[0]} and does not say which sensor "
                "made them; only three 8-bit bands marked red, green, blue speak for themselves. "
                "Name the sensor (--sensor) and the bands in the file's order (--bands)"
            )
        sensor = SENSORS["rgb"]
    if len(source.subdatasets) > 1:
        raise DataError(f"{path} has {len(source.subdatasets)} pages; save one scene per file")
    found = read_band_names(source, sensor)
    if bands is not None:
        return sensor, *declared_bands(path, found, sensor, bands)
    if is_rgb and sensor == SENSORS["rgb"] and (found.only_positions or not any(found.texts)):
        return sensor, sensor.band_names, (1, 2, 3)
    return sensor, *named_bands(path, found, sensor)


def has_dn(sensor: Sensor) -> bool:
    """Whether digital numbers of the sensor differ from its physical values."""
    return sensor.dn_scale != 1 or sensor.add != 0 or sensor.offset_varies


def _units_of(
    path: Path,
    sensor: Sensor,
    dtype: np.dtype[Any],
    declared: Units | None,
    scale: tuple[float, float] | None,
) -> Units:
    if np.issubdtype(dtype, np.complexfloating):
        raise DataError(f"{path} has complex numbers; convert them to {sensor.unit} first")
    if scale is not None:
        if declared == "physical":
            raise DataError(
                f"{path}: units='physical' was declared, but its bands state scale {scale[0]:g} "
                f"and offset {scale[1]:g}, which make them digital numbers; leave units out, or "
                "remove the scale and offset that no longer hold (gdal_edit.py -scale 1 "
                "-offset 0)"
            )
        return "dn"
    if declared is not None:
        return declared
    if not has_dn(sensor):
        return "physical"
    if np.issubdtype(dtype, np.integer):
        return "dn"
    raise DataError(
        f"{path} has {dtype} numbers: digital numbers or {sensor.unit} of sensor {sensor.name!r}? "
        "Declare units='dn' or units='physical'"
    )


def _other_scale(
    path: Path, sensor: Sensor, scale: tuple[float, float] | None, declared: float | None
) -> tuple[float, float] | None:
    """The scale and offset that a file states, where they are not the sensor's own."""
    if scale is None or (is_sensors_scale(scale, sensor) and sensor.offset_varies):
        return None  # its offset is found as the DN offset
    if declared:
        raise SensorError(
            f"{path}: dn_offset={declared:g} was declared, but its bands state scale "
            f"{scale[0]:g} and offset {scale[1]:g}; leave dn_offset out, or correct the file"
        )
    own = is_sensors_scale(scale, sensor) and abs(scale[1] - sensor.add) < 1e-9
    return None if own else scale


def _offset_of(
    path: Path,
    source: Any,
    sensor: Sensor,
    names: Sequence[str],
    indexes: Sequence[int],
    units: Units,
    scale: tuple[float, float] | None,
    declared: float | None,
) -> float:
    if units == "physical":
        if declared:
            raise DataError(f"{path}: dn_offset={declared:g} has no effect on physical units")
        return 0.0
    if not sensor.offset_varies:
        return declared or 0.0
    if scale is not None and not is_sensors_scale(scale, sensor):
        return 0.0  # the stated offset is all there is
    stated = stated_offset(path, source, sensor, names, indexes, declared=declared)
    try:
        return sentinel2_dn_offset(
            product_name=f"{path.name} in {path.absolute().parent.name}",
            metadata_add_offset=stated,
            declared=declared,
        )
    except SensorError as error:
        raise SensorError(f"{path}: {error} (dn_offset=)") from error
