"""Samples that lie in files of their own, of one sensor or of several, read when asked for.

`FileSet` is the sample set behind every reader whose samples are single files or folders of files;
`PathSet` has one file per sensor, by its path below a folder.
"""

from __future__ import annotations

import copy
import datetime as dt
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from terralign.datasets.content import Contents, FileContent, some_bytes
from terralign.datasets.sample import NOWHERE, Place
from terralign.datasets.split import Split
from terralign.errors import DataError
from terralign.scenes.places import Bounds, geotiff_bounds, product_datetime

Decode = Callable[[Path], Mapping[str, NDArray[Any]]]
"""A sample's file or folder -> sensor name -> (C, H, W), for every sensor of the set; raises
`DataError` naming a file that is missing or damaged."""


@dataclass(frozen=True, kw_only=True, slots=True, repr=False)
class FileSet(Split):
    """One split of a data set of files. See `SampleSet`.

    `files`: each sample's file or folder, in order. `locate`: where and when that sample was
    taken, from its file; None where the format does not say. `more_files`: of sensors that have
    files of their own, sensor -> each sample's file or folder; `files` are those of the first.
    """

    files: tuple[Path, ...]
    decode: Decode
    locate: Callable[[Path], Place] | None = None
    more_files: Mapping[str, tuple[Path, ...]] = field(default_factory=dict)

    def read(self, indices: NDArray[np.int64]) -> dict[str, NDArray[Any]]:
        """Sensor name -> (B, C, H, W); a sensor's pixels must have one shape in all of a batch."""
        require_indices(self.name, indices)
        files = [self.files[index] for index in indices]
        samples = [self.decode(file) for file in files]
        return {
            one: stack_pixels(files, [sample[one] for sample in samples]) for one in self.layouts
        }

    def contents(self) -> Contents:
        """The samples' files."""
        files = {next(iter(self.layouts)): self.files, **self.more_files}
        return Contents(
            kinds=dict.fromkeys(files, "encoded"),
            of=lambda sensor, index: FileContent(files[sensor][index]),
        )

    def looked_at(self) -> list[str | None]:
        """Some of the bytes of some of the files."""
        return some_bytes(self.contents(), len(self))

    def place(self, index: int) -> Place:
        """Where and when a sample was taken."""
        return NOWHERE if self.locate is None else self.locate(self.files[index])


@dataclass(frozen=True, kw_only=True, slots=True, repr=False)
class PathSet(Split):
    """One split of a data set with a file per sensor, such as a table lists. See `SampleSet`.

    `files`: sensor name -> N paths relative to `root`: texts, since there may be millions.
    `decoders`: sensor name -> how its files are read. `dates`: in UTC; `bounds_of`: sample -> its
    WGS84 bounds; left out, both are those of the files.
    """

    root: Path
    files: Mapping[str, Sequence[str]]
    decoders: Mapping[str, Decode]
    dates: Sequence[dt.datetime | None] | None = None
    bounds_of: Callable[[int], Bounds | None] | None = None

    def file(self, sensor: str, index: int) -> Path:
        """The file of a sample's sensor."""
        return self.root / self.files[sensor][index]

    def contents(self) -> Contents:
        """The samples' files, of every sensor."""
        return Contents(
            kinds=dict.fromkeys(self.layouts, "encoded"),
            of=lambda sensor, index: FileContent(self.file(sensor, index)),
        )

    def looked_at(self) -> list[str | None]:
        """Some of the bytes of some of the files."""
        return some_bytes(self.contents(), len(self))

    def read(self, indices: NDArray[np.int64]) -> dict[str, NDArray[Any]]:
        """Sensor name -> (B, C, H, W); a sensor's pixels must have one shape in all of a batch."""
        require_indices(self.name, indices)
        pixels = {}
        for sensor, decode in self.decoders.items():
            files = [self.file(sensor, index) for index in indices.tolist()]
            pixels[sensor] = stack_pixels(files, [decode(file)[sensor] for file in files])
        return pixels

    def only_sensors(self, sensors: Sequence[str]) -> PathSet:
        """The same samples with the pixels of these sensors alone."""
        found = copy.copy(self)
        for name in ("layouts", "decoders"):
            chosen = {one: getattr(self, name)[one] for one in sensors}
            object.__setattr__(found, name, chosen)
        return found

    def place(self, index: int) -> Place:
        """Where and when a sample was taken."""
        found = NOWHERE
        if self.bounds_of is None or self.dates is None:
            found = place_of_files([self.file(one, index) for one in self.files], self.root)
        return Place(
            bounds=found.bounds if self.bounds_of is None else self.bounds_of(index),
            datetime=found.datetime if self.dates is None else self.dates[index],
        )


def require_indices(name: str, indices: NDArray[np.int64]) -> None:
    """Raise `DataError` where a batch of the data set `name` is empty."""
    if not len(indices):
        raise DataError(f"data set {name!r}: no index was given to read")


def stack_pixels(files: Sequence[Path | str], pixels: Sequence[NDArray[Any]]) -> NDArray[Any]:
    """(B, C, H, W) of samples from `files`; `DataError` where two differ in size."""
    for file, one in zip(files, pixels, strict=True):
        if one.shape != pixels[0].shape:
            raise DataError(sizes_differ(file, one.shape, files[0], pixels[0].shape))
    return np.stack(pixels)


def sizes_differ(
    file: Path | str, shape: tuple[int, ...], first: Path | str, first_shape: tuple[int, ...]
) -> str:
    """The message about two samples of one set that differ in size."""
    return (
        f"{file} has {shape[-1]}x{shape[-2]} pixels, {first} has "
        f"{first_shape[-1]}x{first_shape[-2]}; samples of one data set must be of one size: "
        "give RGB images a size (size=), cut other rasters to one size"
    )


def place_of_files(files: Sequence[Path], root: Path) -> Place:
    """The bounds of the first of a sample's files that is a GeoTIFF with a reference system, and
    the time in the first standard product name among their paths below `root`."""
    tiffs = (file for file in files if file.suffix.lower() in (".tif", ".tiff"))
    bounds = (geotiff_bounds(file) for file in tiffs)
    times = (product_datetime(os.path.relpath(file, root)) for file in files)
    return Place(
        bounds=next((one for one in bounds if one is not None), None),
        datetime=next((one for one in times if one is not None), None),
    )
