"""Batches of raw pixels in a plan's order, read ahead by threads or by worker processes.

For training loops of one's own, a `torch.utils.data.DataLoader` over `PlannedBatches` does the
same; terralign's loop prepares its batches in threads.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import Any

import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset

from terralign.datasets.feeding.loader import read_ahead
from terralign.datasets.feeding.order import Batch, Plan
from terralign.datasets.sample import SampleSet

RawBatch = tuple[Batch, dict[str, NDArray[Any]]]
"""A batch and its pixels: sensor -> (B, C, H, W)."""


class PlannedBatches(Dataset[RawBatch]):
    """Item `step` is the batch of that step of `plan`, read from its source."""

    def __init__(self, sources: Sequence[SampleSet], plan: Plan) -> None:
        self.sources, self.plan = list(sources), plan

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
    loader = DataLoader(
        batches, batch_size=None, sampler=steps, num_workers=num_workers, collate_fn=_share,
        multiprocessing_context="spawn", worker_init_fn=_one_thread,
    )  # fmt: skip
    for batch, shared in loader:
        yield batch, {sensor: pixels.numpy() for sensor, pixels in shared.items()}


def _share(raw: Any) -> Any:
    """A batch as tensors, which go from process to process in shared memory."""
    batch, pixels = raw
    return batch, {sensor: torch.from_numpy(one) for sensor, one in pixels.items()}


def _one_thread(worker: int) -> None:
    torch.set_num_threads(1)
