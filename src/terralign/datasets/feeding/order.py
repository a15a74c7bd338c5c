"""Which samples a step sees: every sample once per epoch, shuffled by (seed, epoch).

Sources (data sets) are never mixed within a batch, so that a batch has one sensor layout and one
label set; the batches of all sources are shuffled together. The order is a pure function of the
arguments, so that it can be entered at any step, by any rank of a distributed job and by any number
of workers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from terralign.datasets.sample import SampleSet
from terralign.errors import DataError


@dataclass(frozen=True, kw_only=True, slots=True)
class Batch:
    """`indices` (B,) into source number `source`; `epoch` is 0-based.

    `view`: how often these samples were seen before, over all epochs: epoch * repeats + repeat.
    Augmentation is drawn by it, so that every repeat of a source is a view of its own.
    """

    source: int
    epoch: int
    indices: NDArray[np.int64]
    view: int


class Plan:
    """The batches of all epochs, by step number, as a pure function of the arguments.

    `sizes`: samples per source; `repeats`: how often a source is seen per epoch. A source's last
    samples are spread over its batches (sizes differ by at most one) rather than left over.
    `batch_size`: of all ranks together; rank `rank` of `world_size` gets its share of every batch,
    so that all ranks take the same number of steps and no sample is seen twice. `DataError` where
    a batch has fewer samples than there are ranks.
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
        epoch, position = divmod(step, self.steps_per_epoch)
        number, batches = self._epoch
        if number != epoch:
            batches = self._make_epoch(epoch)
            self._epoch = (epoch, batches)
        return batches[position]

    def first_step_of(self, source: int) -> int:
        """The first step whose batch is of source number `source`."""
        step = 0
        while self.batch(step).source != source:
            step += 1
        return step

    def _make_epoch(self, epoch: int) -> list[Batch]:
        batches: list[Batch] = []
        for source, (size, repeat) in enumerate(zip(self.sizes, self.repeats, strict=True)):
            rng = np.random.default_rng([self.seed, 1, source, epoch])
            for number in range(repeat):
                parts = np.array_split(rng.permutation(size), -(-size // self.batch_size))
                shares = [np.array_split(part, self.world_size)[self.rank] for part in parts]
                batches += [
                    Batch(
                        source=source,
                        epoch=epoch,
                        indices=share.astype(np.int64),
                        view=epoch * repeat + number,
                    )
                    for share in shares
                ]
        order = np.random.default_rng([self.seed, 2, epoch]).permutation(len(batches))
        return [batches[position] for position in order]


def keys_of(samples: SampleSet, indices: NDArray[np.int64]) -> list[str]:
    """The keys of these samples."""
    keys = samples.keys
    return [keys[index] for index in indices]
