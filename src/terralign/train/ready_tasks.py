"""Validation pictures decoded and preprocessed once, for any number of towers measured on them.

A sweep knows its alphas before it starts; a search does not, since what it tries next depends on
what it found. So the ready pictures of all its tasks wait in files without a name, which are gone
when the search is.
"""

from __future__ import annotations

import copy
import io
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Self, cast

import numpy as np
import torch
from torch import Tensor

from terralign.encoders.clip.load import ClipModel
from terralign.encoders.clip.weights import StateDict
from terralign.errors import DataError
from terralign.train.finetune import PatchingTask
from terralign.train.sweep import READY_LIMIT_BYTES, Tally, embed_ready, ready_pieces, unique_names


class ReadyTasks:
    """The validation data of patching and supported tasks, ready for an RGB tower; a context
    manager.

    Takes 4 * 3 * size * size bytes of disk per sample, in `folder` (None: the system's temporary
    folder). Memory holds a batch at a time.
    """

    def __init__(
        self,
        clip: ClipModel,
        *,
        patching: Sequence[PatchingTask],
        supported: Sequence[PatchingTask],
        folder: Path | None = None,
        batch_size: int = 128,
        limit_bytes: int = READY_LIMIT_BYTES,
    ) -> None:
        self._tasks = [*patching, *supported]
        self._num_patching = len(patching)
        self._names = unique_names(self._tasks)
        self._weights = [task.weights(clip) for task in self._tasks]
        self._device = next(clip.model.parameters()).device
        self._visual = copy.deepcopy(clip.visual).to(self._device)
        self._size = clip.input_spec.size
        self._batch_size = batch_size
        self._files: list[IO[bytes]] = []
        try:
            for task in self._tasks:
                if len(task.samples) == 0:
                    raise DataError(f"{task.samples.name} {task.samples.split} has no samples")
                file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115
                self._files.append(file)
                for piece in ready_pieces(task, clip.input_spec, batch_size, limit_bytes):
                    for batch in piece:
                        file.write(np.ascontiguousarray(batch.numpy(), np.float32).data)
                file.flush()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Give the disk back."""
        for file in self._files:
            file.close()

    @property
    def num_samples(self) -> int:
        """The samples of all tasks."""
        return sum(len(task.samples) for task in self._tasks)

    def measure(self, theta: StateDict) -> tuple[dict[str, float], dict[str, float]]:
        """(patching, supported): task name -> top1 or macro_map of an RGB tower, fractions of 1.

        Equal to what `sweep` finds for the same weights.
        """
        self._visual.load_state_dict(theta)
        values = {}
        for number, name in enumerate(self._names):
            tally = Tally(self._tasks[number], self._weights[number])
            for batch in self._batches(number):
                tally.add(embed_ready(self._visual, batch.to(self._device)))
            values[name] = tally.value()
        split = self._num_patching
        return (
            {name: values[name] for name in self._names[:split]},
            {name: values[name] for name in self._names[split:]},
        )

    def _batches(self, number: int) -> Iterator[Tensor]:
        """(B, 3, size, size) float32, in the order of the samples."""
        file, shape = self._files[number], (3, self._size, self._size)
        file.seek(0)
        left = len(self._tasks[number].samples)
        while left:
            size = min(self._batch_size, left)
            pixels = np.empty((size, *shape), np.float32)
            num_read = cast(io.BufferedRandom, file).readinto(pixels.data.cast("B"))
            assert num_read == pixels.nbytes, "ready pictures are cut short"
            yield torch.from_numpy(pixels)
            left -= size
