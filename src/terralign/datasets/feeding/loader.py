"""Reading ahead of the work, and keeping small sets in memory. The order is the caller's."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from terralign.datasets.sample import SampleSet, Wrapped, is_mapped

Item = TypeVar("Item")
Made = TypeVar("Made")

KEEP_LIMIT_BYTES = 2 * 1024**3
"""Sets up to this size, decoded, stay in memory between epochs."""


def read_ahead(
    make: Callable[[Item], Made], items: Iterable[Item], *, depth: int = 3, num_threads: int = 1
) -> Generator[Made, None, None]:
    """`make(item)` for each item, in order, made by background threads up to `depth` ahead.

    An exception of `make` is raised where its item is due. Decoding and tensor work release the
    interpreter's lock, so that reading overlaps with training in one process.
    """
    waiting: deque[Future[Made]] = deque()
    iterator = iter(items)
    pool = ThreadPoolExecutor(num_threads, thread_name_prefix="read-ahead")
    try:
        for item in iterator:
            waiting.append(pool.submit(make, item))
            if len(waiting) > depth:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        for future in waiting:
            future.cancel()
        pool.shutdown(wait=True, cancel_futures=True)


class KeptInMemory(Wrapped):
    """A `SampleSet` whose pixels are kept in memory once they were read."""

    def __init__(self, samples: SampleSet) -> None:
        super().__init__(samples)
        self._pixels: dict[str, NDArray[np.generic]] = {}
        self._have = np.zeros(len(samples), dtype=np.bool_)
        self._lock = threading.Lock()

    def read(self, indices: NDArray[np.int64]) -> dict[str, NDArray[np.generic]]:
        with self._lock:
            missing = np.unique(indices[~self._have[indices]])
            if len(missing):
                for sensor, pixels in self._samples.read(missing).items():
                    if sensor not in self._pixels:
                        shape = (len(self), *pixels.shape[1:])
                        self._pixels[sensor] = np.empty(shape, dtype=pixels.dtype)
                    kept = self._pixels[sensor]
                    wider = np.result_type(kept, pixels)
                    if wider != kept.dtype:  # whole numbers, until one sample lacks data
                        self._pixels[sensor] = kept.astype(wider)
                    self._pixels[sensor][missing] = pixels
                self._have[missing] = True
        return {sensor: pixels[indices] for sensor, pixels in self._pixels.items()}


def keep_in_memory(samples: SampleSet, *, limit_bytes: int = KEEP_LIMIT_BYTES) -> SampleSet:
    """`samples`, kept in memory as they are read where the whole set fits within `limit_bytes`.

    A packed store is left as it is: the system keeps its pages.
    """
    if len(samples) == 0 or is_mapped(samples):
        return samples
    one = samples.read(np.zeros(1, dtype=np.int64))
    num_bytes = len(samples) * sum(pixels.nbytes for pixels in one.values())
    return KeptInMemory(samples) if num_bytes <= limit_bytes else samples
