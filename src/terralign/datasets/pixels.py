"""How image files of one sensor are decoded: pictures, or GeoTIFFs and what their numbers mean.

C bands, H W pixels.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from terralign.chips import Chip, PixelLayout
from terralign.datasets.file_set import Decode, sizes_differ
from terralign.errors import DataError
from terralign.scenes.pictures import Size, decode_rgb, picture_shape
from terralign.scenes.read import Units, make_layout, read_geotiff
from terralign.sensors import SENSORS, Sensor


@dataclass(frozen=True, kw_only=True, slots=True)
class Pixels:
    """How a set's files are decoded: the sensor, and what a GeoTIFF's numbers mean.

    With sensor `rgb` files are pictures, resized to `size` where it is given (see `decode_rgb`);
    with any other they are GeoTIFFs, to which the rest applies as in `read_geotiff`.
    """

    sensor: Sensor
    size: Size | None = None
    bands: tuple[str, ...] | None = None
    dn_offset: float | None = None
    units: Units | None = None
    composite: str | None = None

    def open(self, first: Path) -> tuple[PixelLayout, Decode]:
        """The layout that all files share with the `first` one, and their decoder."""
        if self.sensor == SENSORS["rgb"]:
            return self._open_pictures(first)
        layout = self.read(first).layout

        def decode(file: Path) -> dict[str, NDArray[Any]]:
            chip = self.read(file)
            if chip.layout != layout:
                raise DataError(
                    f"{file} and {first} differ in bands, units or DN offset; "
                    "declare bands and dn_offset for the whole data set"
                )
            return {layout.sensor.name: filled_pixels(chip, file)}

        return layout, decode

    def read(self, file: Path) -> Chip:
        """One GeoTIFF."""
        return read_geotiff(
            file,
            sensor=self.sensor,
            bands=self.bands,
            dn_offset=self.dn_offset,
            units=self.units,
            composite=self.composite,
        )

    def _open_pictures(self, first: Path) -> tuple[PixelLayout, Decode]:
        layout = make_layout(self.sensor, self.sensor.band_names, units="dn")
        size = self.size
        if size is not None:
            return layout, lambda file: {"rgb": decode_rgb(file, size)}
        shape = picture_shape(first)

        def decode(file: Path) -> dict[str, NDArray[Any]]:
            pixels = decode_rgb(file)
            if pixels.shape[1:] != shape:
                raise DataError(sizes_differ(file, pixels.shape, first, shape))
            return {"rgb": pixels}

        return layout, decode


def filled_pixels(chip: Chip, file: Path) -> NDArray[Any]:
    """A chip's pixels, the invalid ones as what its sensor calls no data; `file` is for errors."""
    return chip.pixels if chip.valid.all() else _with_nodata(file, chip)


def _with_nodata(file: Path, chip: Chip) -> NDArray[Any]:
    """Pixels whose invalid ones carry what the sensor calls no data: its DN, or its fill.

    Fractions of a sensor that names none carry NaN. `DataError` where whole numbers have none, or
    cannot hold it: a sample's mask is read from its numbers.
    """
    nodata = chip.sensor.fill if chip.layout.units == "physical" else chip.sensor.nodata
    dtype = chip.pixels.dtype
    if nodata is None and np.issubdtype(dtype, np.floating):
        nodata = np.nan
    if nodata is None or not _can_hold(dtype, nodata):
        fault = "names no nodata" if nodata is None else f"has {nodata}, which {dtype} cannot hold"
        raise DataError(
            f"{file} has {int((~chip.valid).sum())} numbers without data, but sensor "
            f"{chip.sensor.name!r} {fault}; declare the files' own no-data number as the sensor's"
        )
    return np.where(chip.valid, chip.pixels, dtype.type(nodata))


def _can_hold(dtype: np.dtype[Any], value: float) -> bool:
    if not np.issubdtype(dtype, np.integer):
        return True
    limits = np.iinfo(dtype)
    return value == int(value) and limits.min <= value <= limits.max
