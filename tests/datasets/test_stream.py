"""Batches come in the plan's order, whatever reads them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from terralign.datasets.feeding.order import Plan
from terralign.datasets.feeding.stream import stream_batches
from terralign.datasets.store import PackSettings, StoreSet, pack
from terralign.datasets.synthetic import open_synthetic_scenes


@pytest.mark.parametrize(
    "readers", [{"num_threads": 1}, {"num_threads": 3}, {"num_workers": 2}], ids=str
)
def test_every_reader_gives_the_batches_of_the_plan(
    tmp_path: Path, readers: dict[str, int]
) -> None:
    source = open_synthetic_scenes("train", num_samples=30, size=16)
    pack({"train": source}, tmp_path / "s", PackSettings(shard_bytes=60_000))
    stored = StoreSet(tmp_path / "s", "train")
    plan = Plan([len(stored)], batch_size=7, seed=5)
    start, stop = 3, 2 * plan.steps_per_epoch
    found = list(stream_batches([stored], plan, start=start, stop=stop, **readers))
    assert len(found) == stop - start
    for step, (batch, pixels) in zip(range(start, stop), found, strict=True):
        np.testing.assert_array_equal(batch.indices, plan.batch(step).indices)
        expected = source.read(batch.indices)
        for sensor in expected:
            np.testing.assert_array_equal(pixels[sensor], expected[sensor])
