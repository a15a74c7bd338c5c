"""Samples that are rows of arrays, of one sensor or of several.

N samples, M rows, C bands, H W pixels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from terralign.datasets.content import ArrayContent, Contents
from terralign.datasets.split import Split
from terralign.scenes.pictures import Size, resize_rgb


@dataclass(frozen=True, kw_only=True, slots=True, repr=False)
class ArraySet(Split):
    """Samples that are rows of arrays in memory (or memory-mapped). See `SampleSet`.

    `arrays`: sensor name -> (M, C, H, W); `rows`: (N,) int64, which of the M are samples. RGB
    pictures are resized as those in files are (see `resize_rgb`).
    """

    arrays: Mapping[str, NDArray[Any]]
    rows: NDArray[np.int64]

    def at_size(self, size: Size) -> ArraySet:
        """The same samples with RGB pictures of `size`, where they are 8-bit numbers."""
        layout = self.layouts.get("rgb")
        if self.size is not None or layout is None or layout.units != "dn":
            return self
        if self.arrays["rgb"].dtype.kind == "f" and not _are_whole(self.arrays["rgb"]):
            return self
        return replace(self, size=size)

    def contents(self) -> Contents:
        """The samples' rows, of every sensor; RGB pictures as they are before `size`."""

        def content(sensor: str, index: int) -> ArrayContent:
            row = np.asarray(self.arrays[sensor][self.rows[index]])
            return ArrayContent(row.astype(np.float32) if row.dtype == np.float16 else row)

        return Contents(kinds=dict.fromkeys(self.layouts, "pixels"), of=content)

    def read(self, indices: NDArray[np.int64]) -> dict[str, NDArray[Any]]:
        """Sensor name -> (B, C, H, W); float16 numbers come as float32."""
        rows = self.rows[indices]
        pixels = {sensor: np.asarray(array[rows]) for sensor, array in self.arrays.items()}
        if self.size is not None and "rgb" in pixels:
            pixels["rgb"] = np.stack([resize_rgb(one, self.size) for one in pixels["rgb"]])
        return {
            sensor: one.astype(np.float32) if one.dtype == np.float16 else one
            for sensor, one in pixels.items()
        }


def _are_whole(array: NDArray[Any]) -> bool:
    """Whether some numbers of an array are whole, as 8-bit ones that became NaN in places are."""
    some = array[:: max(1, len(array) // 32)]
    return bool((np.nan_to_num(some) % 1 == 0).all())
