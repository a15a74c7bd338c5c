"""One file in, one `Chip` out: GeoTIFFs through rasterio, JPEG and PNG through Pillow.

What the numbers of a file mean is declared by the caller or said by the file; it is never guessed.
C bands, H W pixels throughout.
"""

from __future__ import annotations

import re
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio.enums import ColorInterp, MaskFlags
from rasterio.errors import NotGeoreferencedWarning, RasterioError
from rasterio.io import MemoryFile

from terralign.chips import Chip, Grid, PixelLayout
from terralign.errors import DataError, SensorError, first_line
from terralign.scenes.pictures import decode_rgb, require_file
from terralign.scenes.plausible import check_chip
from terralign.scenes.product_metadata import is_sensors_scale, stated_offset, stated_scale
from terralign.sensors import SENSORS, Sensor, sentinel2_dn_offset

Units = Literal["dn", "physical"]

MAX_CHIP_BYTES = 2 * 1024**3
"""A file whose pixels would take more memory than this is refused before they are read."""

_RGB = (ColorInterp.red, ColorInterp.green, ColorInterp.blue)
_warnings_lock = threading.Lock()


def read_chip(
    path: Path,
    *,
    sensor: Sensor | None = None,
    bands: Sequence[str] | None = None,
    dn_offset: float | None = None,
    units: Units | None = None,
) -> Chip:
    """Read a JPEG, PNG or GeoTIFF, told apart by its first bytes; arguments as `read_geotiff`.

    A JPEG or PNG is always of sensor `rgb`: another sensor, bands or offset for it is an error.
    """
    path = Path(path)
    kind = _kind_of(path)
    if kind == "tiff":
        return read_geotiff(path, sensor=sensor, bands=bands, dn_offset=dn_offset, units=units)
    if sensor is not None and sensor != SENSORS["rgb"]:
        raise DataError(
            f"{path} is a JPEG or PNG picture, which is sensor 'rgb', not {sensor.name!r}; "
            f"give the {sensor.name} bands as a GeoTIFF"
        )
    if bands is not None or dn_offset is not None or units == "physical":
        raise DataError(
            f"{path} is a JPEG or PNG picture: its bands are red, green, blue in 8-bit numbers; "
            "leave out bands, dn_offset and units"
        )
    return read_image(path)


def _kind_of(path: Path) -> Literal["tiff", "picture"]:
    require_file(path)
    with open(path, "rb") as file:
        start = file.read(8)
    if start[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        return "tiff"
    if start[:3] == b"\xff\xd8\xff" or start == b"\x89PNG\r\n\x1a\n":
        return "picture"
    raise DataError(f"{path} is not a JPEG, PNG or GeoTIFF; convert it to one of them")


def read_image(path: Path) -> Chip:
    """Read a JPEG or PNG as a chip of sensor `rgb`: (3, H, W) uint8 DN, all of it valid, no grid.

    Greyscale, palette, CMYK and alpha are converted to RGB (alpha is dropped). An orientation
    stored in EXIF is not applied: CLIP's own evaluation does not apply it either.
    """
    pixels = decode_rgb(path)
    return Chip(
        pixels=pixels,
        valid=np.ones(pixels.shape, dtype=bool),
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
    """Read all bands of a GeoTIFF.

    `sensor`: may be left out only for three 8-bit bands marked red, green, blue. `bands`: names in
    the file's order; left out, they come from the file's own band descriptions. `dn_offset`: what
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
        sensor, names = _identify(path, source, sensor, bands)
        dtype = np.dtype(np.result_type(*source.dtypes))
        num_bytes = source.count * source.height * source.width * dtype.itemsize
        if num_bytes > max_bytes:
            raise DataError(
                f"{path} needs {num_bytes / 2**20:.0f} MiB ({source.count} bands of "
                f"{source.width}x{source.height} {dtype}), more than the limit of "
                f"{max_bytes / 2**20:.0f} MiB; cut it into smaller files"
            )
        scale = stated_scale(path, source, sensor)
        units = _units_of(path, sensor, dtype, units, scale)
        layout = make_layout(
            sensor,
            names,
            units=units,
            dn_offset=_offset_of(path, source, sensor, names, units, dn_offset),
            composite=composite,
            stated_scale=_other_scale(path, sensor, scale, dn_offset),
        )
        try:
            pixels = source.read()
            valid = valid_by_file(source, pixels)
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


@contextmanager
def open_geotiff(path: Path) -> Iterator[Any]:
    """An open rasterio dataset, by the GeoTIFF driver only: no file can make GDAL open another.

    Raises `DataError` where the file is missing or no GeoTIFF.
    """
    require_file(path)
    with _opened(lambda: rasterio.open(path, driver="GTiff"), str(path)) as source:
        yield source


@contextmanager
def open_geotiff_bytes(content: bytes, *, origin: str) -> Iterator[Any]:
    """The same of a GeoTIFF in memory; `origin` is what `DataError` calls it."""
    with (
        MemoryFile(content) as memory,
        _opened(lambda: memory.open(driver="GTiff"), origin) as source,
    ):
        yield source


def _opened(opening: Callable[[], Any], origin: str) -> Any:
    try:
        with _warnings_lock, warnings.catch_warnings():
            warnings.simplefilter("ignore", NotGeoreferencedWarning)
            return opening()
    except (RasterioError, OSError, ValueError) as error:
        raise DataError(f"{origin} is not a readable GeoTIFF: {first_line(error)}") from error


def _identify(
    path: Path, source: Any, sensor: Sensor | None, bands: Sequence[str] | None
) -> tuple[Sensor, tuple[str, ...]]:
    """The sensor and the canonical names of the file's bands, declared or said by the file."""
    count = source.count
    is_rgb = count == 3 and set(source.dtypes) == {"uint8"} and source.colorinterp == _RGB
    if sensor is None:
        if not is_rgb or bands is not None:
            raise DataError(
                f"{path} has {count} band(s) of {source.dtypes[0]} and does not say which sensor "
                "made them; only three 8-bit bands marked red, green, blue speak for themselves. "
                "Name the sensor and the bands in the file's order"
            )
        sensor = SENSORS["rgb"]
    described = _described_bands(source, sensor)
    if described is None and is_rgb and sensor == SENSORS["rgb"]:
        described = sensor.band_names
    if bands is None:
        if described is None:
            raise DataError(
                f"{path} has {count} band(s) and does not name them; sensor {sensor.name!r} has "
                f"{len(sensor.bands)} ({', '.join(sensor.band_names)}). "
                "Give bands= in the file's order"
            )
        return sensor, described
    names = sensor.resolve(tuple(bands))
    if len(names) != count:
        raise DataError(
            f"{path} has {count} band(s), but {len(names)} were declared ({', '.join(names)}); "
            "declare one band for each of the file's, in its order"
        )
    if described is not None and described != names:
        raise DataError(
            f"{path} calls its bands {', '.join(described)}, but {', '.join(names)} was declared; "
            "correct the declaration or the descriptions in the file"
        )
    return sensor, names


def _described_bands(source: Any, sensor: Sensor) -> tuple[str, ...] | None:
    """The bands as the file describes them, None where it does not or only counts them."""
    texts = []
    for position, description in enumerate(source.descriptions, start=1):
        tags = {key.lower(): value for key, value in source.tags(position).items()}
        text = description or tags.get("band_name") or tags.get("band") or tags.get("name") or ""
        texts.append(text.strip())
    counted = all(
        re.fullmatch(rf"(?i)band[\s_-]*0*{position}", text)
        for position, text in enumerate(texts, start=1)
    )
    if counted or not all(texts):
        return None
    try:
        return sensor.resolve(tuple(texts))
    except SensorError:
        return None


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
                "remove the scale and offset that no longer hold (gdal_edit.py -unsetscale "
                "-unsetoffset)"
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
    units: Units,
    declared: float | None,
) -> float:
    if units == "physical":
        if declared:
            raise DataError(f"{path}: dn_offset={declared:g} has no effect on physical units")
        return 0.0
    if not sensor.offset_varies:
        return declared or 0.0
    scale = stated_scale(path, source, sensor)
    if scale is not None and not is_sensors_scale(scale, sensor):
        return 0.0  # the stated offset is all there is
    stated = stated_offset(path, source, sensor, names, declared=declared)
    try:
        return sentinel2_dn_offset(
            product_name=f"{path.name} in {path.absolute().parent.name}",
            metadata_add_offset=stated,
            declared=declared,
        )
    except SensorError as error:
        raise SensorError(f"{path}: {error} (dn_offset=)") from error


_MASKED = {MaskFlags.per_dataset, MaskFlags.alpha}


def valid_by_file(source: Any, pixels: NDArray[Any], *, window: Any = None) -> NDArray[np.bool_]:
    """(C, H, W) bool of all bands as read from an open GeoTIFF, True where the file has data.

    False where a number is not finite or the band's no-data value, and where the file masks it:
    internal mask, `.msk` beside it, alpha band. `window`: the part that was read; of another
    size than the file's, pixels were resampled, and so is the mask (nearest).
    """
    valid: NDArray[np.bool_] = np.isfinite(pixels)
    for channel, nodata in enumerate(source.nodatavals):
        if nodata is not None and np.isfinite(nodata):
            valid[channel] &= pixels[channel] != nodata
        if _MASKED & set(source.mask_flag_enums[channel]):
            shape = pixels.shape[1:]
            valid[channel] &= source.read_masks(channel + 1, window=window, out_shape=shape) > 0
    return valid
