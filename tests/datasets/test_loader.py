"""Reading ahead, and keeping sets in memory."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from terralign.datasets.feeding.loader import KeptInMemory, keep_in_memory, read_ahead
from terralign.datasets.synthetic import SyntheticSet, open_synthetic_scenes


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


class _Counted:
    """A set that counts how often each sample is read."""

    def __init__(self, samples: SyntheticSet) -> None:
        self._samples = samples
        self.reads = np.zeros(len(samples), dtype=np.int64)

    def __getattr__(self, name: str) -> object:
        return getattr(self._samples, name)

    def __len__(self) -> int:
        return len(self._samples)

    def read(self, indices: NDArray[np.int64]) -> dict[str, NDArray[np.generic]]:
        np.add.at(self.reads, indices, 1)
        return self._samples.read(indices)


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
    counted = _Counted(plain)
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
