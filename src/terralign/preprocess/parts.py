"""Working through a batch in parts that fit a core's cache, and memory for what comes out.

A batch of 128 samples of 12 bands at 120 pixels is 88 MB of float32. Done as a whole, every
operation of a chain goes through the main memory, into pages that the system has to provide anew
each time, which costs more than the arithmetic.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

PART_BYTES = 1 << 20
"""About what a part takes as float32, so that a few of them lie in the cache of a core."""
HEAP_BYTES = 28 << 20
"""A little below the size from which glibc gives freed memory back to the system at once (32 MiB):
parts for an operation that makes one pass only, and gains nothing from the cache."""
_LARGE = 4 << 20


def parts_of(
    num_samples: int,
    shape: Sequence[int],
    *,
    device: torch.device,
    part_bytes: int = PART_BYTES,
) -> Iterator[slice]:
    """Slices of a batch of `num_samples` samples of `shape`, in order; at least one sample each.

    On other devices than the CPU it is one: they gain nothing from a cache, and start slowly.
    """
    size = max(1, part_bytes // (4 * max(1, math.prod(shape))))
    if device.type != "cpu":
        size = max(1, num_samples)
    for start in range(0, num_samples, size):
        yield slice(start, min(start + size, num_samples))


def new_pixels(shape: Sequence[int], like: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """A tensor of `shape` on the device of `like`, in its dtype by default; not filled.

    Large ones come from NumPy, which asks the system for huge pages where torch does not: they are
    there several times sooner.
    """
    dtype = dtype or like.dtype
    num_bytes = math.prod(shape) * dtype.itemsize
    if like.device.type != "cpu" or num_bytes < _LARGE:
        return like.new_empty(tuple(shape), dtype=dtype)
    memory = np.empty(num_bytes, np.uint8)
    return torch.from_numpy(memory).view(dtype).reshape(tuple(shape))
