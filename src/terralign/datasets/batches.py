"""From samples to batches: which samples a step sees, and reading ahead of it.

Every sample is seen once per epoch, shuffled by (seed, epoch). Sources (data sets) are never mixed
within a batch, so that a batch has one sensor layout and one label set; the batches of all sources
are shuffled together. The order is a pure function of the arguments, so that it can be entered at
any step, by any rank of a distributed job and by any number of workers.
"""

from __future__ import annotations

import threading
from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from terralign.datasets.sample import SampleSet, Wrapped, is_mapped
from terralign.errors import DataError
from terralign.read_ahead import read_ahead

KEEP_LIMIT_BYTES = 2 * 1024**3
"""Sets up to this size, decoded, stay in memory between epochs."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Batch:
    """`indices` (B,) into source number `source`; `epoch` is 0-based. `size`: samples of the whole
    batch, of which these are one rank's.

    `view`: how often these samples were seen before, over all epochs: epoch * repeats + repeat.
    Augmentation is drawn by it, so that every repeat of a source is a view of its own.
    """

    source: int
    epoch: int
    indices: NDArray[np.int64]
    view: int
    size: int


class Plan:
    """The batches of all epochs, by step number, as a pure function of the arguments.

    `sizes`: samples per source; `repeats`: how often a source is seen per epoch. A source's last
    samples are spread over its batches (sizes differ by at most one) rather than left over.
    `batch_size`: of all ranks together; rank r of W gets the rows r::W of every batch, so that all
    ranks take the same number of steps and no sample is seen twice. `DataError` where a batch has
    fewer samples than there are ranks.
    """

    def __init__(
        self,
        sizes: Sequence[int],
        *,
        batch_size: int,
        seed: int,
        repeats: Sequence[int] = (),
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        if not sizes or min(sizes) < 1:
            raise DataError(f"data sets of {list(sizes)} samples: each needs one to train on")
        if not 0 <= rank < world_size:
            raise DataError(f"rank {rank} of {world_size}: ranks are counted from 0")
        smallest = min(size // -(-size // batch_size) for size in sizes)
        if smallest < world_size:
            raise DataError(
                f"a batch of {smallest} samples cannot be shared by {world_size} ranks; "
                "take a larger batch_size, or fewer ranks"
            )
        self.rank, self.world_size = rank, world_size
        self.sizes = list(sizes)
        self.repeats = list(repeats) or [1] * len(self.sizes)
        self.batch_size = batch_size
        self.seed = seed
        self._epoch: tuple[int, list[Batch]] = (-1, [])

    @property
    def steps_per_epoch(self) -> int:
        """Batches in one epoch, all sources together."""
        return sum(
            repeat * -(-size // self.batch_size)
            for size, repeat in zip(self.sizes, self.repeats, strict=True)
        )

    def batch(self, step: int) -> Batch:
        """This rank's share of the batch of step `step` (0-based)."""
        whole = self.whole(step)
        return replace(whole, indices=whole.indices[self.rank :: self.world_size])

    def whole(self, step: int) -> Batch:
        """The batch of step `step`, of all ranks together."""
        epoch, position = divmod(step, self.steps_per_epoch)
        number, batches = self._epoch
        if number != epoch:
            batches = self._make_epoch(epoch)
            self._epoch = (epoch, batches)
        return batches[position]

    def first_step_of(self, source: int) -> int:
        """The first step whose batch is of source number `source`."""
        step = 0
        while self.whole(step).source != source:
            step += 1
        return step

    def _make_epoch(self, epoch: int) -> list[Batch]:
        batches: list[Batch] = []
        for source, (size, repeat) in enumerate(zip(self.sizes, self.repeats, strict=True)):
            rng = np.random.default_rng([self.seed, 1, source, epoch])
            for number in range(repeat):
                parts = np.array_split(rng.permutation(size), -(-size // self.batch_size))
                batches += [
                    Batch(
                        source=source,
                        epoch=epoch,
                        indices=part.astype(np.int64),
                        view=epoch * repeat + number,
                        size=len(part),
                    )
                    for part in parts
                ]
        order = np.random.default_rng([self.seed, 2, epoch]).permutation(len(batches))
        return [batches[position] for position in order]


def keys_of(samples: SampleSet, indices: NDArray[np.int64]) -> list[str]:
    """The keys of these samples."""
    keys = samples.keys
    return [keys[index] for index in indices]


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
        found = self._samples.read(missing) if len(missing) else {}  # others read meanwhile
        with self._lock:
            if len(missing):
                for sensor, pixels in found.items():
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


RawBatch = tuple[Batch, dict[str, NDArray[Any]]]
"""A batch and its pixels: sensor -> (B, C, H, W)."""


@dataclass(frozen=True, slots=True)
class PlannedBatches:
    """A map-style dataset for torch's `DataLoader` (with `batch_size=None`), for custom loops.

    Item `step` is the batch of that step of `plan`, read from its source.
    """

    sources: Sequence[SampleSet]
    plan: Plan

    def __getitem__(self, step: int) -> RawBatch:
        batch = self.plan.batch(step)
        return batch, self.sources[batch.source].read(batch.indices)


def stream_batches(
    sources: Sequence[SampleSet],
    plan: Plan,
    *,
    start: int = 0,
    stop: int,
    num_threads: int = 1,
    num_workers: int = 0,
) -> Generator[RawBatch, None, None]:
    """The batches of steps `start` to `stop` of a plan, in order, whatever reads them.

    `num_threads` read ahead in this process; with `num_workers` > 0 as many processes do instead
    (the sources must be picklable, as packed stores are).
    """
    batches = PlannedBatches(sources, plan)
    steps = range(start, stop)
    if num_workers == 0:
        depth = num_threads + 2
        yield from read_ahead(batches.__getitem__, steps, depth=depth, num_threads=num_threads)
        return
    from torch.utils.data import DataLoader

    loader: Any = DataLoader(
        batches, batch_size=None, sampler=steps, num_workers=num_workers,  # type: ignore[arg-type]
        multiprocessing_context="spawn", worker_init_fn=_one_thread,
    )  # fmt: skip
    for batch, shared in loader:  # pixels come as tensors, in shared memory
        yield batch, {sensor: pixels.numpy() for sensor, pixels in shared.items()}


def _one_thread(worker: int) -> None:
    import torch

    torch.set_num_threads(1)
