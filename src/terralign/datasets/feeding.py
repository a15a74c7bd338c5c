"""Feeding a model with a whole sample set, in its order."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from terralign.chips import PixelLayout
from terralign.datasets.sample import SampleSet, only_sensors
from terralign.feed import Raw, feed

Made = TypeVar("Made")


def raw_pixels(samples: SampleSet, layout: PixelLayout, indices: NDArray[np.int64]) -> Tensor:
    """Raw pixels (B, C, H, W) of one of the samples' sensors, on the CPU."""
    return torch.from_numpy(samples.read(indices)[layout.sensor.name])


def block_of(samples: SampleSet, start: int, size: int) -> NDArray[np.int64]:
    """The indices of up to `size` samples from `start` on."""
    return np.arange(start, min(start + size, len(samples)), dtype=np.int64)


def starts_of(samples: SampleSet, batch_size: int) -> range:
    """The first sample of each batch of a whole set, in its order."""
    return range(0, len(samples), batch_size)


def feed_samples(
    samples: SampleSet,
    layout: PixelLayout,
    make: Callable[[Tensor], Made],
    *,
    batch_size: int,
    device: torch.device | str,
    starts: Iterable[int] | None = None,
) -> Generator[Made, None, None]:
    """`make` of the raw pixels (B, C, H, W) of all samples, in their order; as `feed`.

    `layout`: which of the samples' sensors is read. `starts`: the first samples of the batches to
    read, of those that `starts_of` names.
    """
    samples = only_sensors(samples, [layout.sensor.name])

    def read(start: int) -> Raw[None]:
        return Raw(
            None, {"pixels": raw_pixels(samples, layout, block_of(samples, start, batch_size))}
        )

    if starts is None:
        starts = starts_of(samples, batch_size)
    yield from feed(read, lambda raw: make(raw.tensors["pixels"]), starts, device=device)
