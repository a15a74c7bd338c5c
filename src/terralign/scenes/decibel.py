"""Radar in linear power, read in dB."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from terralign.chips import PixelLayout, Window
from terralign.scenes.read import PixelSource, Reader


@dataclass(frozen=True, kw_only=True, slots=True)
class DecibelSource:
    """The pixels of another source, linear power, as `10 * log10(power)`.

    float32 dB; power of 0 or less, which has no logarithm, is no data.
    """

    power: PixelSource

    @property
    def dtype(self) -> np.dtype[Any]:
        """That of dB."""
        return np.dtype(np.float32)

    @property
    def block_rows(self) -> int:
        """As of the power."""
        return self.power.block_rows

    @contextmanager
    def opened(self, layout: PixelLayout, *, columns: slice | None = None) -> Iterator[Reader]:
        """What reads windows of the layout's bands (see `PixelSource`)."""
        with self.power.opened(layout, columns=columns) as reader:

            def read(window: Window) -> tuple[NDArray[Any], NDArray[np.bool_]]:
                power, valid = reader(window)
                valid = valid & (power > 0)
                decibel = np.full(power.shape, np.nan, np.float32)
                np.log10(power, out=decibel, where=valid, casting="same_kind")
                decibel *= 10
                return decibel, valid

            yield read
