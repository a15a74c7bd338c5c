"""What a GeoTIFF's numbers are: the sensor, its bands, units, scale and offset, as declared by the
caller or stated by the file, its metadata or its name. Nothing is guessed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rasterio.enums import ColorInterp

from terralign.chips import PixelLayout, Units, make_layout
from terralign.errors import DataError, SensorError, UnknownOffsetError, shown
from terralign.scenes.band_names import declared_bands, named_bands, read_band_names
from terralign.scenes.product_metadata import is_sensors_scale, stated_offset, stated_scale
from terralign.scenes.product_names import sensor_of_names
from terralign.sensors import SENSORS, Sensor, find_sensor, sentinel2_dn_offset

_RGB = (ColorInterp.red, ColorInterp.green, ColorInterp.blue)


@dataclass(frozen=True, kw_only=True, slots=True)
class FileLayout:
    """How a GeoTIFF is to be read: its layout, the bands' positions in it, counted from 1, and the
    type that holds all of them."""

    layout: PixelLayout
    indexes: tuple[int, ...]
    dtype: np.dtype[Any]


def describe_geotiff(
    path: Path,
    source: Any,
    *,
    sensor: Sensor | None,
    bands: Sequence[str] | None,
    dn_offset: float | None,
    units: Units | None,
    composite: str | None,
) -> FileLayout:
    """The layout of an open GeoTIFF; arguments and errors as `scenes.read.read_geotiff`."""
    sensor, names, indexes = _identify(path, source, sensor, bands)
    dtypes = (np.dtype(source.dtypes[index - 1]) for index in indexes)
    dtype = shared_dtype(path, dict(zip(names, dtypes, strict=True)))
    scale = stated_scale(path, source, sensor, indexes)
    units = units_of(path, sensor, dtype, units, scale)
    layout = make_layout(
        sensor,
        names,
        units=units,
        dn_offset=offset_of(
            path,
            source,
            sensor,
            names,
            indexes,
            units,
            scale,
            dn_offset,
            product=f"{path.name} in {path.absolute().parent.name}",
        ),
        composite=composite,
        stated_scale=other_scale(path, sensor, scale, dn_offset),
    )
    return FileLayout(layout=layout, indexes=indexes, dtype=dtype)


def shared_dtype(path: Path, dtypes: Mapping[str, np.dtype[Any]]) -> np.dtype[Any]:
    """The type that holds the numbers of all bands; `dtypes`: each band's own.

    `DataError` where they cannot be numbers of one kind: fractions among whole numbers, or 8 bits
    among more. The type that holds all would hide both.
    """
    kinds: dict[str, list[str]] = {}
    for band, dtype in dtypes.items():
        kinds.setdefault(_kind(dtype), []).append(band)
    if len(kinds) > 1:
        fewest = min(kinds, key=lambda kind: len(kinds[kind]))
        others = next(kind for kind in kinds if kind != fewest)
        odd, usual = kinds[fewest][0], kinds[others][0]
        raise DataError(
            f"{shown(path)}: {odd} has {dtypes[odd]} numbers, {usual} has {dtypes[usual]}; the "
            "bands of one scene must have one kind of number (all whole or all fractions, none of "
            "8 bits among wider ones): give the original bands, or bands that agree"
        )
    return np.dtype(np.result_type(*dtypes.values()))


def _kind(dtype: np.dtype[Any]) -> str:
    if not np.issubdtype(dtype, np.integer):
        return "complex" if np.issubdtype(dtype, np.complexfloating) else "fractions"
    return "8 bits" if dtype.itemsize == 1 else "whole"


def is_rgb(source: Any) -> bool:
    """Whether an open GeoTIFF has three 8-bit bands marked red, green, blue (and alpha)."""
    return set(source.dtypes) == {"uint8"} and source.colorinterp in (
        _RGB,
        (*_RGB, ColorInterp.alpha),
    )


def _identify(
    path: Path, source: Any, sensor: Sensor | None, bands: Sequence[str] | None
) -> tuple[Sensor, tuple[str, ...], tuple[int, ...]]:
    """The sensor, the canonical names of the bands to read, and where they are in the file.

    Sensor and names are declared, or the file states them. Positions count from 1.
    """
    rgb = is_rgb(source)
    if sensor is None and rgb and bands is None:
        sensor = SENSORS["rgb"]
    if sensor is None:
        name = sensor_of_names([path.name, path.absolute().parent.name], origin=shown(path))
        if name is None:
            raise DataError(
                f"{shown(path)} has {source.count} band(s) of {source.dtypes[0]} and does not say "
                "which sensor made them; only three 8-bit bands marked red, green, blue and names "
                "of standard products speak for themselves. Name the sensor (sensor=) and the "
                "bands in the file's order (bands=)"
            )
        sensor = find_sensor(name)
    if len(source.subdatasets) > 1:
        raise DataError(
            f"{shown(path)} has {len(source.subdatasets)} pages; save one scene per file"
        )
    found = read_band_names(source, sensor)
    if bands is not None:
        return sensor, *declared_bands(path, found, sensor, bands)
    if rgb and sensor == SENSORS["rgb"] and (found.only_positions or not any(found.texts)):
        return sensor, sensor.band_names, (1, 2, 3)
    return sensor, *named_bands(path, found, sensor)


def has_dn(sensor: Sensor) -> bool:
    """Whether digital numbers of the sensor differ from its physical values."""
    return sensor.dn_scale != 1 or sensor.add != 0 or sensor.offset_varies


def units_of(
    path: Path,
    sensor: Sensor,
    dtype: np.dtype[Any],
    declared: Units | None,
    scale: tuple[float, float] | None,
) -> Units:
    """Units of a file's numbers; `scale`: what its bands state. `DataError` where undecided."""
    if declared not in (None, "dn", "physical"):
        raise DataError(f"units is {declared!r}; expected 'dn' or 'physical'")
    if np.issubdtype(dtype, np.complexfloating):
        raise DataError(f"{shown(path)} has complex numbers; convert them to {sensor.unit} first")
    if scale is not None:
        if declared == "physical":
            raise DataError(
                f"{shown(path)}: units='physical' was declared, but its bands state scale "
                f"{scale[0]:g} and offset {scale[1]:g}, which make them digital numbers; "
                "leave units out, or remove the scale and offset that no longer hold "
                "(gdal_edit.py -scale 1 -offset 0)"
            )
        return "dn"
    return declared or units_by_type(sensor, dtype, f"{shown(path)} has {dtype} numbers")


def units_by_type(sensor: Sensor, dtype: np.dtype[Any], what: str) -> Units:
    """What the type of numbers says where nothing is declared: integers are DN, and numbers of a
    sensor without DN (dB) are physical. `DataError`, which begins with `what`, for fractions."""
    if not has_dn(sensor):
        return "physical"
    if np.issubdtype(dtype, np.integer):
        return "dn"
    raise DataError(
        f"{what}: digital numbers or {sensor.unit} of sensor {sensor.name!r}? "
        "Declare units='dn' or units='physical'"
    )


def other_scale(
    path: Path, sensor: Sensor, scale: tuple[float, float] | None, declared: float | None
) -> tuple[float, float] | None:
    """The scale and offset that a file states, where they are not the sensor's own."""
    if scale is None or (is_sensors_scale(scale, sensor) and sensor.offset_varies):
        return None  # its offset is found as the DN offset
    if declared:
        raise SensorError(
            f"{shown(path)}: dn_offset={declared:g} was declared, but its bands state scale "
            f"{scale[0]:g} and offset {scale[1]:g}; leave dn_offset out, or correct the file"
        )
    own = is_sensors_scale(scale, sensor) and abs(scale[1] - sensor.add) < 1e-9
    return None if own else scale


def offset_of(
    path: Path,
    source: Any,
    sensor: Sensor,
    names: Sequence[str],
    indexes: Sequence[int],
    units: Units,
    scale: tuple[float, float] | None,
    declared: float | None,
    *,
    product: str,
) -> float:
    """What is added to a file's DN, stated by it or its metadata, declared, or said by the name
    `product`; `UnknownOffsetError` where none does."""
    if units == "physical":
        if declared:
            raise DataError(
                f"{shown(path)}: dn_offset={declared:g} has no effect on physical units"
            )
        return 0.0
    if not sensor.offset_varies:
        return declared or 0.0
    if scale is not None and not is_sensors_scale(scale, sensor):
        return 0.0  # the stated offset is all there is
    stated = stated_offset(path, source, sensor, names, indexes, declared=declared)
    try:
        return sentinel2_dn_offset(
            product_name=product,
            metadata_add_offset=stated,
            declared=declared,
        )
    except UnknownOffsetError as error:
        raise UnknownOffsetError(f"{shown(path)}: {error} (dn_offset=)") from error
