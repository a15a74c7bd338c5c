"""Which samples a step sees, and reading ahead of it."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fakes import Counted
from terralign.datasets.batches import (
    Batch,
    KeptInMemory,
    Plan,
    keep_in_memory,
    stream_batches,
)
from terralign.datasets.store import PackSettings, StoreSet, pack
from terralign.datasets.synthetic import SyntheticSet, open_synthetic_scenes
from terralign.errors import DataError
from terralign.read_ahead import read_ahead

SIZES = st.lists(st.integers(1, 30), min_size=1, max_size=3)


def _as_values(batch: Batch) -> tuple[int, int, list[int]]:
    return batch.source, batch.epoch, batch.indices.tolist()


@settings(max_examples=60, deadline=None)
@given(data=st.data(), sizes=SIZES, batch_size=st.integers(1, 12), seed=st.integers(0, 99))
def test_every_sample_is_seen_once_per_repeat_and_epoch(
    data: st.DataObject, sizes: list[int], batch_size: int, seed: int
) -> None:
    repeats = data.draw(st.lists(st.integers(1, 3), min_size=len(sizes), max_size=len(sizes)))
    epoch = data.draw(st.integers(0, 3))
    plan = Plan(sizes, batch_size=batch_size, seed=seed, repeats=repeats)
    first = epoch * plan.steps_per_epoch
    batches = [plan.batch(first + step) for step in range(plan.steps_per_epoch)]
    seen = Counter((batch.source, int(i)) for batch in batches for i in batch.indices)
    assert seen == {
        (source, index): repeat
        for source, (size, repeat) in enumerate(zip(sizes, repeats, strict=True))
        for index in range(size)
    }
    assert {batch.epoch for batch in batches} == {epoch}
    for source in range(len(sizes)):
        lengths = [len(batch.indices) for batch in batches if batch.source == source]
        assert max(lengths) <= batch_size
        assert max(lengths) - min(lengths) <= 1


@settings(max_examples=40, deadline=None)
@given(
    sizes=SIZES,
    batch_size=st.integers(1, 12),
    steps=st.lists(st.integers(0, 40), min_size=1, max_size=8),
)
def test_a_batch_depends_on_its_step_alone(
    sizes: list[int], batch_size: int, steps: list[int]
) -> None:
    in_order = Plan(sizes, batch_size=batch_size, seed=3)
    expected = {step: _as_values(in_order.batch(step)) for step in range(41)}
    anywhere = Plan(sizes, batch_size=batch_size, seed=3)
    assert [_as_values(anywhere.batch(step)) for step in steps] == [expected[s] for s in steps]


def test_each_repeat_is_a_view_of_its_own() -> None:
    plan = Plan([7, 5], batch_size=3, seed=0, repeats=[1, 4])
    seen: dict[tuple[int, int], list[int]] = {}
    for step in range(3 * plan.steps_per_epoch):
        batch = plan.batch(step)
        assert batch.view // [1, 4][batch.source] == batch.epoch
        for index in batch.indices.tolist():
            seen.setdefault((batch.source, index), []).append(batch.view)
    for (source, _), views in seen.items():
        assert sorted(views) == list(range(3 * [1, 4][source]))


def test_the_first_step_of_a_source_is_found() -> None:
    plan = Plan([40, 4], batch_size=4, seed=1)
    first = plan.first_step_of(1)
    assert plan.batch(first).source == 1
    assert all(plan.batch(step).source == 0 for step in range(first))


def test_the_order_follows_seed_and_epoch() -> None:
    def epoch(seed: int, number: int) -> list[tuple[int, list[int]]]:
        plan = Plan([50, 20], batch_size=10, seed=seed)
        first = number * plan.steps_per_epoch
        batches = [plan.batch(first + step) for step in range(plan.steps_per_epoch)]
        return [(batch.source, batch.indices.tolist()) for batch in batches]

    assert epoch(0, 0) == epoch(0, 0)
    assert epoch(0, 0) != epoch(1, 0)
    assert epoch(0, 0) != epoch(0, 1)
    flat = [index for _, indices in epoch(0, 0) for index in indices]
    assert flat != sorted(flat)


def test_batches_of_several_sources_are_shuffled_together_and_never_mixed() -> None:
    plan = Plan([64, 64], batch_size=4, seed=0)
    sources = [plan.batch(step).source for step in range(plan.steps_per_epoch)]
    assert sources != sorted(sources)
    assert sources.count(0) == sources.count(1) == 16
    assert plan.batch(0).indices.dtype == np.int64


@pytest.mark.parametrize("sizes", [[], [0], [3, 0]])
def test_an_empty_set_is_refused(sizes: list[int]) -> None:
    with pytest.raises(DataError, match="each needs one to train on"):
        Plan(sizes, batch_size=2, seed=0)


@settings(max_examples=80, deadline=None)
@given(
    data=st.data(),
    size=st.integers(1, 60),
    batch_size=st.integers(1, 16),
    seed=st.integers(0, 9),
    epoch=st.integers(0, 4),
)
def test_ranks_share_every_sample_once_in_the_seeded_order(
    data: st.DataObject, size: int, batch_size: int, seed: int, epoch: int
) -> None:
    """For any world size, worker count, epoch and resume point."""
    whole = Plan([size], batch_size=batch_size, seed=seed)
    num_steps = whole.steps_per_epoch
    world_size = data.draw(st.integers(1, size // num_steps), label="world size")
    num_workers = data.draw(st.integers(1, 4), label="workers per rank")
    resume_at = data.draw(st.integers(0, num_steps - 1), label="resume at")
    first = epoch * num_steps
    expected = [whole.batch(first + step).indices.tolist() for step in range(num_steps)]
    shares: list[list[list[int]]] = []
    for rank in range(world_size):

        def plan(rank: int = rank) -> Plan:
            options: dict[str, int] = {"rank": rank, "world_size": world_size}
            return Plan([size], batch_size=batch_size, seed=seed, **options)  # type: ignore[arg-type]

        steps: dict[int, list[int]] = {}
        before = plan()
        for step in range(resume_at):
            steps[step] = before.batch(first + step).indices.tolist()
        for worker in range(num_workers):  # after the stop each worker has a plan of its own
            own = plan()
            for step in range(resume_at + worker, num_steps, num_workers):
                steps[step] = own.batch(first + step).indices.tolist()
        shares.append([steps[step] for step in range(num_steps)])
    for rank, share in enumerate(shares):
        assert share == [batch[rank::world_size] for batch in expected]
    assert sorted(i for share in shares for own in share for i in own) == list(range(size))
    lengths = [len(share[step]) for share in shares for step in range(num_steps)]
    assert min(lengths) > 0


def test_ranks_that_cannot_share_are_refused() -> None:
    with pytest.raises(DataError, match="a batch of 2 samples cannot be shared by 3 ranks"):
        Plan([5], batch_size=3, seed=0, rank=0, world_size=3)
    with pytest.raises(DataError, match="rank 2 of 2"):
        Plan([50], batch_size=8, seed=0, rank=2, world_size=2)


# Reading ahead, and keeping sets in memory


@settings(max_examples=30, deadline=None)
@given(count=st.integers(0, 20), depth=st.integers(0, 4), num_threads=st.integers(1, 3))
def test_items_come_in_order(count: int, depth: int, num_threads: int) -> None:
    made = read_ahead(lambda n: n * n, range(count), depth=depth, num_threads=num_threads)
    assert list(made) == [n * n for n in range(count)]


def test_an_exception_is_raised_where_its_item_is_due() -> None:
    def make(number: int) -> int:
        if number == 2:
            raise ValueError("item 2 is broken")
        return number

    stream = read_ahead(make, range(6))
    assert [next(stream), next(stream)] == [0, 1]
    with pytest.raises(ValueError, match="item 2 is broken"):
        next(stream)


def test_no_more_than_depth_items_are_taken_ahead() -> None:
    taken = []

    def items() -> Iterator[int]:
        for number in range(100):
            taken.append(number)
            yield number

    stream = read_ahead(lambda n: n, items(), depth=3)
    assert taken == []
    next(stream)
    assert len(taken) == 4
    next(stream)
    assert len(taken) == 5
    stream.close()
    assert len(taken) == 5


def test_a_closed_stream_leaves_no_thread() -> None:
    stream = read_ahead(lambda n: n, range(50), num_threads=2)
    next(stream)
    stream.close()
    assert not [one for one in threading.enumerate() if one.name.startswith("read-ahead")]


@pytest.fixture(scope="module")
def plain() -> SyntheticSet:
    return open_synthetic_scenes("val", num_samples=12, size=16)


@pytest.mark.parametrize("indices", [[3], [5, 1, 5, 0], [11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0]])
def test_a_kept_set_reads_like_the_plain_one(plain: SyntheticSet, indices: list[int]) -> None:
    kept = KeptInMemory(plain)
    wanted = np.array(indices, dtype=np.int64)
    for _ in range(2):
        found, expected = kept.read(wanted), plain.read(wanted)
        assert found.keys() == expected.keys()
        for sensor, pixels in expected.items():
            assert found[sensor].dtype == pixels.dtype
            np.testing.assert_array_equal(found[sensor], pixels)


def test_a_kept_set_says_what_the_plain_one_says(plain: SyntheticSet) -> None:
    kept = KeptInMemory(plain)
    for name in ("name", "split", "layouts", "keys", "captions", "prompts", "fingerprint"):
        assert getattr(kept, name) == getattr(plain, name), name
    assert kept.labels is plain.labels
    assert len(kept) == len(plain)


def test_a_kept_set_reads_each_sample_once(plain: SyntheticSet) -> None:
    counted = Counted(plain)
    kept = KeptInMemory(counted)  # type: ignore[arg-type]
    for start in (0, 3, 6, 0):
        kept.read(np.arange(start, start + 6, dtype=np.int64))
    np.testing.assert_array_equal(counted.reads, 1)


def test_what_is_read_may_be_written_to(plain: SyntheticSet) -> None:
    kept = KeptInMemory(plain)
    indices = np.arange(3, dtype=np.int64)
    before = kept.read(indices)["sentinel2-l2a"].copy()
    kept.read(indices)["sentinel2-l2a"][:] = 0
    np.testing.assert_array_equal(kept.read(indices)["sentinel2-l2a"], before)


def test_only_sets_within_the_limit_are_kept(plain: SyntheticSet) -> None:
    one = sum(pixels.nbytes for pixels in plain.read(np.zeros(1, dtype=np.int64)).values())
    assert isinstance(keep_in_memory(plain, limit_bytes=one * len(plain)), KeptInMemory)
    assert keep_in_memory(plain, limit_bytes=one * len(plain) - 1) is plain


# Batches in the order of a plan


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
