"""What several test files share: sample sets that count or fail, input specs, stopped training."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from numpy.typing import NDArray

from terralign.datasets.sample import SampleSet, Wrapped
from terralign.errors import Interrupted
from terralign.preprocess import InputSpec
from terralign.train import loop

TIMES = ("samples_per_second", "seconds_waiting", "cpu_seconds")
"""The keys of a line of `metrics.jsonl` that differ between two equal runs."""


# Sample sets


class Changed(Wrapped):
    """A sample set with other values of some attributes, as `Changed(scenes, labels=None)`."""

    def __init__(self, samples: SampleSet, **values: Any) -> None:
        super().__init__(samples)
        for name, value in values.items():
            setattr(self, name, value)


class Counted(Wrapped):
    """A sample set that counts how often it is read, and each of its samples.

    `fail_after`: the number of calls of `read` after which it raises `OSError`. `stop_at`: the
    sample whose reading raises `KeyboardInterrupt`.
    """

    def __init__(
        self, samples: SampleSet, *, fail_after: int | None = None, stop_at: int | None = None
    ) -> None:
        super().__init__(samples)
        self.fail_after, self.stop_at = fail_after, stop_at
        self.calls = 0
        self.reads = np.zeros(len(samples), dtype=np.int64)

    def read(self, indices: NDArray[np.int64]) -> dict[str, NDArray[np.generic]]:
        self.calls += 1
        if self.fail_after is not None and self.calls > self.fail_after:
            raise OSError("cable pulled")
        if self.stop_at is not None and self.stop_at in indices:
            raise KeyboardInterrupt
        np.add.at(self.reads, indices, 1)
        return super().read(indices)


# Inputs


def input_spec(
    sensors: str | Sequence[str],
    bands: Sequence[str],
    span: tuple[float, float] = (0.0, 1.0),
    *,
    mean: float = 0.5,
    std: float = 0.5,
    size: int = 32,
    missing: Literal["error", "zero"] = "error",
) -> InputSpec:
    """An `InputSpec` in which all sensors and bands have the same range, mean and std."""
    names = (sensors,) if isinstance(sensors, str) else tuple(sensors)
    num = len(bands)
    return InputSpec(
        sensors=names,
        bands=tuple(bands),
        ranges=dict.fromkeys(names, (span,) * num),
        mean=(mean,) * num,
        std=(std,) * num,
        size=size,
        missing=missing,
    )


# Training


def metrics_of(folder: Path) -> list[dict[str, Any]]:
    """The lines of a `metrics.jsonl`, or of all below a folder, without what measures time."""
    paths = [folder] if folder.is_file() else sorted(folder.rglob("metrics.jsonl"))
    lines = [json.loads(line) for path in paths for line in path.read_text().splitlines()]
    return [{key: value for key, value in one.items() if key not in TIMES} for one in lines]


def losses_of(folder: Path) -> list[float]:
    """The loss of every step, of all `metrics.jsonl` below a folder."""
    return [line["loss"] for line in metrics_of(folder) if "loss" in line]


@contextmanager
def stopping_in_step(step: int, number: int = signal.SIGTERM) -> Iterator[None]:
    """Within the block, training gets a signal in its step `step` (0-based, over all stages)."""
    taken: list[int] = []
    learning_rate = loop.learning_rate

    def rate_of(at: int, **options: Any) -> float:
        if len(taken) == step:
            os.kill(os.getpid(), number)
        taken.append(at)
        return learning_rate(at, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "learning_rate", rate_of)
        yield


def assert_resumes_exactly(
    train: Callable[[Path], str], folder: Path, step: int, *, message: str = "stopped after step"
) -> None:
    """Train twice: at once, and stopped in `step` and run again. Result and metrics are the same.

    `train` trains in the folder that it is given, and returns a hash of the result.
    """
    whole = train(folder / "whole")
    with stopping_in_step(step), pytest.raises(Interrupted, match=message):
        train(folder / "stopped")
    assert train(folder / "stopped") == whole
    assert metrics_of(folder / "stopped") == metrics_of(folder / "whole")
    assert train(folder / "whole") == whole, "complete, so that nothing is trained again"
