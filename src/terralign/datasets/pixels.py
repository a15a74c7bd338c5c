"""How image files of one sensor are decoded: pictures, or GeoTIFFs and what their numbers mean.

C bands, H W pixels.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from terralign.chips import Chip, PixelLayout, Units, make_layout
from terralign.datasets.file_set import Decode, sizes_differ
from terralign.datasets.image_files import RASTER_SUFFIXES
from terralign.errors import DataError, SensorError
from terralign.scenes.declared import Declared
from terralign.scenes.pictures import PICTURE_SUFFIXES, Size, decode_rgb, picture_shape
from terralign.scenes.plausible import check_sample
from terralign.scenes.scene import read_geotiff
from terralign.sensors import SENSORS, Sensor


@dataclass(frozen=True, kw_only=True, slots=True)
class Pixels:
    """How a set's files are decoded: the sensor, and what a GeoTIFF's numbers mean.

    With sensor `rgb` files are pictures, resized to `size` where it is given (see `decode_rgb`);
    with any other they are GeoTIFFs, to which the rest applies as in `open_scene`.
    """

    sensor: Sensor
    size: Size | None = None
    bands: tuple[str, ...] | None = None
    dn_offset: float | None = None
    units: Units | None = None
    composite: str | None = None

    @property
    def suffixes(self) -> tuple[str, ...]:
        """The endings of such files, in any case."""
        return PICTURE_SUFFIXES if self.sensor == SENSORS["rgb"] else RASTER_SUFFIXES

    def open(self, first: Path) -> tuple[PixelLayout, Decode]:
        """The layout that all files share with the `first` one, and their decoder."""
        if self.sensor == SENSORS["rgb"]:
            return self._open_pictures(first)
        layout = self.read(first).layout
        return layout, _DecodeRasters(self, layout, first)

    def at_size(self, size: Size | None) -> Pixels:
        """The same with pictures of another size."""
        return replace(self, size=size)

    def read(self, file: Path) -> Chip:
        """One GeoTIFF; what only a whole set shows of its numbers is found by `checked`."""
        declared = Declared(
            sensor=self.sensor,
            bands=self.bands,
            dn_offset=self.dn_offset,
            units=self.units,
            composite=self.composite,
        )
        try:
            return read_geotiff(file, declared)
        except SensorError as error:
            text = str(error)
            raise type(error)(text if str(file) in text else f"{file}: {text}") from error

    def _open_pictures(self, first: Path) -> tuple[PixelLayout, Decode]:
        layout = make_layout(self.sensor, self.sensor.band_names, units="dn")
        if self.size is not None:
            return layout, DecodePictures(self.size)
        return layout, _DecodeAlike(first, picture_shape(first))


@dataclass(frozen=True, slots=True)
class DecodePictures:
    """Decodes pictures at `size`."""

    size: Size | None

    def __call__(self, file: Path) -> dict[str, NDArray[Any]]:
        return {"rgb": decode_rgb(file, self.size)}


@dataclass(frozen=True, slots=True)
class _DecodeAlike:
    """Decodes pictures that must have the `shape` (H, W) of the first one."""

    first: Path
    shape: tuple[int, int]

    def __call__(self, file: Path) -> dict[str, NDArray[Any]]:
        pixels = decode_rgb(file)
        if pixels.shape[1:] != self.shape:
            raise DataError(sizes_differ(file, pixels.shape, self.first, self.shape))
        return {"rgb": pixels}


@dataclass(frozen=True, slots=True)
class _DecodeRasters:
    """Decodes GeoTIFFs that must have the `layout` of the first one."""

    pixels: Pixels
    layout: PixelLayout
    first: Path

    def __call__(self, file: Path) -> dict[str, NDArray[Any]]:
        chip = self.pixels.read(file)
        if chip.layout != self.layout:
            raise DataError(
                f"{file} has {chip.layout!r}, {self.first} has {self.layout!r}; the files of one "
                "data set must be alike: declare it for the whole data set, or convert those that "
                "differ"
            )
        check_sample(chip.pixels, self.layout, origin=str(file))
        return {self.layout.sensor.name: chip.pixels}
