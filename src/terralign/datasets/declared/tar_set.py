"""Samples in shards, each read on its own from its place in a tar."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from terralign.chips import PixelLayout
from terralign.datasets.content import Contents, PartContent
from terralign.datasets.declared.tar_index import read_members
from terralign.datasets.declared.tar_members import MemberDecoder
from terralign.datasets.sample import Captions, Indexed, Labels, Place
from terralign.errors import DataError


@dataclass(frozen=True, kw_only=True, slots=True, repr=False)
class ShardSet(Indexed):
    """One split of a data set in shards. See `SampleSet`; any sample is read on its own.

    `shard_of`: (N,) int64, which of the `shards` holds a sample. `places`: sensor -> (N, 2) int64,
    where its member begins and its bytes.
    """

    name: str
    split: str
    layouts: Mapping[str, PixelLayout]
    keys: tuple[str, ...]
    shards: tuple[Path, ...]
    shard_of: NDArray[np.int64]
    places: Mapping[str, NDArray[np.int64]]
    decoders: Mapping[str, MemberDecoder]
    fingerprint: str
    labels: Labels | None = None
    captions: Captions | None = None
    prompts: tuple[str, ...] | None = None
    dates: Sequence[dt.datetime | None] | None = None

    def __len__(self) -> int:
        return len(self.keys)

    def contents(self) -> Contents:
        """The samples' members, of every sensor."""

        def content(sensor: str, index: int) -> PartContent:
            begin, size = self.places[sensor][index].tolist()
            return PartContent(self.shards[self.shard_of[index]], begin, size)

        return Contents(kinds=dict.fromkeys(self.layouts, "encoded"), of=content)

    def read(self, indices: NDArray[np.int64]) -> dict[str, NDArray[Any]]:
        """Sensor name -> (B, C, H, W); a sensor's pixels must have one shape in all of a batch."""
        if not len(indices):
            raise DataError(f"data set {self.name!r}: no index was given to read")
        return {sensor: self._read_sensor(sensor, indices) for sensor in self.layouts}

    def _read_sensor(self, sensor: str, indices: NDArray[np.int64]) -> NDArray[Any]:
        found: dict[int, NDArray[Any]] = {}
        owners = self.shard_of[indices]
        for shard in np.unique(owners).tolist():
            chosen = np.flatnonzero(owners == shard)
            places = self.places[sensor][indices[chosen]]
            for position, content in read_members(self.shards[shard], places):
                row = int(chosen[position])
                what = self._tell(int(indices[row]))
                layout, found[row] = self.decoders[sensor].read(content, what)
                if layout != self.layouts[sensor]:
                    raise DataError(
                        f"{what} and {self._tell(0)} differ in bands, units or DN offset of "
                        f"{sensor}; declare them for the whole data set"
                    )
        for row, pixels in found.items():
            if pixels.shape != found[0].shape:
                raise DataError(
                    f"{self._tell(int(indices[row]))} has pixels {pixels.shape} of {sensor}, "
                    f"{self._tell(int(indices[0]))} has {found[0].shape}; samples of one data set "
                    "must be of one size: pass size= for RGB images, cut other rasters to one size"
                )
        return np.stack([found[row] for row in range(len(indices))])

    def place(self, index: int) -> Place:
        """When a sample was taken, where the declaration says which member knows it."""
        return Place(datetime=None if self.dates is None else self.dates[index])

    def _tell(self, index: int) -> str:
        return f"{self.shards[self.shard_of[index]]}: {self.keys[index]}"
