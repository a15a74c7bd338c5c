"""Samples whose files a table lists; their paths stay in its columns, so there may be millions."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from terralign.chips import PixelLayout
from terralign.datasets.content import Contents, FileContent
from terralign.datasets.declared.footprints import Footprints
from terralign.datasets.declared.located import place_of_files
from terralign.datasets.file_set import Decode, sizes_differ
from terralign.datasets.sample import NOWHERE, Captions, Indexed, Labels, Place
from terralign.errors import DataError


@dataclass(frozen=True, kw_only=True, slots=True, repr=False)
class TableSet(Indexed):
    """One split of a data set whose files a table lists. See `SampleSet`.

    `files`: sensor name -> (N,) paths relative to `root`. `dates`: (N,) timestamps in UTC.
    `footprints`: where each lies. Each of these is None where the files are to say it.
    """

    name: str
    split: str
    layouts: Mapping[str, PixelLayout]
    keys: tuple[str, ...]
    root: Path
    files: Mapping[str, pa.Array]
    decoders: Mapping[str, Decode]
    fingerprint: str
    labels: Labels | None = None
    captions: Captions | None = None
    prompts: tuple[str, ...] | None = None
    dates: pa.Array | None = None
    footprints: Footprints | None = None

    def __len__(self) -> int:
        return len(self.keys)

    def file(self, sensor: str, index: int) -> Path:
        """The file of a sample's sensor."""
        return self.root / str(self.files[sensor][index].as_py())

    def contents(self) -> Contents:
        """The samples' files, of every sensor."""
        return Contents(
            kinds=dict.fromkeys(self.layouts, "encoded"),
            of=lambda sensor, index: FileContent(self.file(sensor, index)),
        )

    def read(self, indices: NDArray[np.int64]) -> dict[str, NDArray[Any]]:
        """Sensor name -> (B, C, H, W); a sensor's pixels must have one shape in all of a batch."""
        if not len(indices):
            raise DataError(f"data set {self.name!r}: no index was given to read")
        return {sensor: self._read_sensor(sensor, indices.tolist()) for sensor in self.layouts}

    def _read_sensor(self, sensor: str, indices: Sequence[int]) -> NDArray[Any]:
        files = [self.file(sensor, index) for index in indices]
        pixels = [self.decoders[sensor](file)[sensor] for file in files]
        for file, one in zip(files, pixels, strict=True):
            if one.shape != pixels[0].shape:
                raise DataError(sizes_differ(file, one.shape, files[0], pixels[0].shape))
        return np.stack(pixels)

    def place(self, index: int) -> Place:
        """Where and when a sample was taken: as the table says, else as its files do."""
        files = [self.file(sensor, index) for sensor in self.files]
        said = NOWHERE
        if self.footprints is None or self.dates is None:
            said = place_of_files(files, self.root)
        return Place(
            bounds=said.bounds
            if self.footprints is None
            else self.footprints.bounds(index, f"data set {self.name!r}, {self.keys[index]}"),
            datetime=said.datetime if self.dates is None else _as_utc(self.dates[index]),
        )


def _as_utc(time: pa.Scalar) -> dt.datetime | None:
    naive: dt.datetime | None = time.cast(pa.timestamp("us")).as_py()
    return naive and naive.replace(tzinfo=dt.UTC)
