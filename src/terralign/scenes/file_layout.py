"""What a GeoTIFF's numbers are: the sensor, its bands, units, scale and offset, as declared by the
caller or stated by the file, its metadata or its name. Nothing is guessed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rasterio.enums import ColorInterp

from terralign.chips import PixelLayout, Units, make_layout
from terralign.errors import DataError, SensorError, UnknownOffsetError, shown
from terralign.scenes.band_names import declared_bands, named_bands, read_band_names
from terralign.scenes.declared import Declared, units_of
from terralign.scenes.declared import has_dn as has_dn
from terralign.scenes.product_metadata import (
    Catalogued,
    FileBands,
    is_sensors_scale,
    stated_offset,
    stated_scale,
    states_scale_alone,
)
from terralign.scenes.product_names import require_sensor_of_names, sensor_of_names
from terralign.sensors import SENSORS, Sensor, find_sensor, sentinel2_dn_offset

_RGB = (ColorInterp.red, ColorInterp.green, ColorInterp.blue)


@dataclass(frozen=True, kw_only=True, slots=True)
class FileLayout:
    """How a GeoTIFF is to be read: its layout, the bands' positions in it, counted from 1, and the
    type that holds all of them."""

    layout: PixelLayout
    indexes: tuple[int, ...]
    dtype: np.dtype[Any]


def describe_geotiff(path: Path, source: Any, declared: Declared) -> FileLayout:
    """The layout of an open GeoTIFF; errors as `scenes.scene.open_scene`."""
    sensor, names, indexes = _identify(path, source, declared.sensor, declared.bands)
    bands = FileBands(path=path, source=source, sensor=sensor, names=names, indexes=indexes)
    layout, dtype = shared_layout(path, [bands], declared, [path.absolute().parent.name])
    return FileLayout(layout=layout, indexes=indexes, dtype=dtype)


def shared_layout(
    path: Path,
    files: Sequence[FileBands],
    declared: Declared,
    products: Sequence[str],
    catalogued: Catalogued | None = None,
) -> tuple[PixelLayout, np.dtype[Any]]:
    """The layout of the bands of one or several open files, and the type that holds all of them.

    `path`: of the scene, as errors name it; `products`: names that may state the DN offset;
    `catalogued`: what a catalogue states, which counts where files and the caller do not.
    """
    sensor = files[0].sensor
    dtype = _shared_dtype(path, {name: kind for file in files for name, kind in file.dtypes()})
    scale = _shared_scale(path, files)
    if scale is None and catalogued is not None and declared.units is None:
        scale = catalogued.scale
    units = _units_of(path, sensor, dtype, declared.plain_units, scale)
    layout = make_layout(
        sensor,
        [name for file in files for name in file.names],
        units=units,
        dn_offset=_shared_offset(
            path, files, units, scale, declared.dn_offset, products, catalogued
        ),
        composite=declared.composite,
        stated_scale=_other_scale(path, sensor, scale, declared.dn_offset),
    )
    return layout, dtype


def _shared_dtype(path: Path, dtypes: Mapping[str, np.dtype[Any]]) -> np.dtype[Any]:
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
                f"{shown(path)} has {source.count} band(s) of {source.dtypes[0]} of an unknown "
                "sensor: it is neither an 8-bit RGB picture nor named as a standard product. Name "
                "the sensor (sensor=; `terralign info sensors` lists them); where the file does "
                "not name its bands, these in the file's order (bands=); and of Sentinel-2 the DN "
                "offset (dn_offset=)"
            )
        sensor = find_sensor(name)
    require_sensor_of_names(sensor, [path.name], origin=shown(path))
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


def _units_of(
    path: Path,
    sensor: Sensor,
    dtype: np.dtype[Any],
    declared: Units | None,
    scale: tuple[float, float] | None,
) -> Units:
    """Units of a file's numbers; `scale`: what its bands state. `DataError` where undecided."""
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
    return units_of(sensor, dtype, declared, what=f"{shown(path)} has {dtype} numbers")


def _other_scale(
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


def _shared_scale(path: Path, files: Sequence[FileBands]) -> tuple[float, float] | None:
    scales = {file.names[0]: stated_scale(file) for file in files}
    first, scale = next(iter(scales.items()))
    for other, found in scales.items():
        if found != scale:
            raise DataError(
                f"{shown(path)}: {_scale_text(first, scale)}, {_scale_text(other, found)}; the "
                "bands of one product must state the same scale and offset: correct the files, or "
                "give bands that agree"
            )
    return scale


def _scale_text(band: str, scale: tuple[float, float] | None) -> str:
    if scale is None:
        return f"{band} states no scale"
    return f"{band} states scale {scale[0]:g} and offset {scale[1]:g}"


def _shared_offset(
    path: Path,
    files: Sequence[FileBands],
    units: Units,
    scale: tuple[float, float] | None,
    declared: float | None,
    products: Sequence[str],
    catalogued: Catalogued | None,
) -> float:
    """The DN offset of all files; `UnknownOffsetError` where nothing states it, `DataError` where
    they differ."""
    if units == "physical" and declared:
        raise DataError(f"{shown(path)}: dn_offset={declared:g} has no effect on physical units")
    sensor = files[0].sensor
    if units == "physical" or not sensor.offset_varies:
        return 0.0 if units == "physical" else declared or 0.0
    if scale is not None and not is_sensors_scale(scale, sensor):
        return 0.0  # the stated offset is all there is
    offsets: dict[str, float] = {}
    unknown: list[UnknownOffsetError] = []
    for file in files:
        try:
            offsets[file.names[0]] = _offset_of(file, declared, products, catalogued)
        except UnknownOffsetError as error:
            unknown.append(error)
    if not offsets:
        raise unknown[0]
    if unknown or len(set(offsets.values())) > 1:
        bands = [file.names[0] for file in files]
        stated = ", ".join(f"{band} {offsets.get(band, 'none')}" for band in bands)
        raise DataError(
            f"{shown(path)}: its bands state different DN offsets ({stated}); correct the files, "
            "or give bands that agree"
        )
    return next(iter(offsets.values()))


def _offset_of(
    file: FileBands,
    declared: float | None,
    products: Sequence[str],
    catalogued: Catalogued | None,
) -> float:
    """What is added to a file's DN: stated by it or its metadata, declared, by a catalogue or by a
    product name; `UnknownOffsetError` where nothing states it."""
    stated = stated_offset(file, declared=declared)
    in_catalogue = None if catalogued is None else catalogued.dn_offset
    if stated == 0 and declared is None and states_scale_alone(file):
        _require_no_offset(file, products, in_catalogue)
    if stated is None and declared is None and in_catalogue is not None:
        return in_catalogue
    try:
        return sentinel2_dn_offset(
            product_name=" in ".join([file.path.name, *products]),
            metadata_add_offset=stated,
            declared=declared,
        )
    except UnknownOffsetError as error:
        raise UnknownOffsetError(f"{shown(file.path)}: {error} (dn_offset=)") from error


def _require_no_offset(
    file: FileBands, products: Sequence[str], in_catalogue: float | None
) -> None:
    """Raise `UnknownOffsetError` where a name or a catalogue means a DN offset of a file whose
    bands state a scale alone: GDAL reports an offset of 0 of bands without any."""
    named: float | None = None
    with suppress(UnknownOffsetError):
        named = sentinel2_dn_offset(product_name=" in ".join([file.path.name, *products]))
    who = "its catalogue" if in_catalogue is not None else "its product name"
    meant = named if in_catalogue is None else in_catalogue
    if meant:
        raise UnknownOffsetError(
            f"{shown(file.path)}: Sentinel-2 DN offset unknown: {who} means {meant:g}, but its "
            "bands state a scale and an offset of 0; declare dn_offset=0 where it was removed, or "
            "write it into the bands (gdal_edit.py -offset -0.1)"
        )
