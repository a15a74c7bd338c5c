"""Feeding a model: order, threads, faults, and the tensors that a device gets."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from terralign.feed import Raw, feed, feed_drawn, tensors_in


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def _read(item: int) -> Raw[int]:
    return Raw(item, {"x": torch.full((3,), float(item))})


def test_batches_come_in_order_with_what_is_known_of_them() -> None:
    stream = feed(_read, lambda raw: (raw.known, raw.tensors["x"] * 2), range(20), device="cpu")
    found = list(stream)
    assert [known for known, _ in found] == list(range(20))
    assert all(torch.equal(x, torch.full((3,), 2.0 * known)) for known, x in found)


def test_reading_and_making_run_in_the_background() -> None:
    names = set()

    def make(raw: Raw[int]) -> int:
        names.add(threading.current_thread().name)
        return raw.known

    assert list(feed(_read, make, range(5), device="cpu")) == list(range(5))
    assert all(name.startswith("read-ahead") for name in names)


@pytest.mark.parametrize("where", ["read", "make"])
def test_a_fault_is_raised_where_its_batch_is_due(where: str) -> None:
    def fail(item: int) -> None:
        if item == 3:
            raise ValueError("item 3")

    def read(item: int) -> Raw[int]:
        if where == "read":
            fail(item)
        return _read(item)

    def make(raw: Raw[int]) -> int:
        fail(raw.known)
        return raw.known

    stream = feed(read, make, range(9), device="cpu")
    assert [next(stream) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(ValueError, match="item 3"):
        next(stream)


def test_a_stream_that_is_closed_leaves_no_thread() -> None:
    before = threading.active_count()
    with closing(feed(_read, lambda raw: raw.known, range(1000), device="cpu")) as stream:
        assert next(stream) == 0
        assert threading.active_count() > before
    assert threading.active_count() == before


@pytest.mark.usefixtures("two_threads")
def test_readers_compute_with_one_thread_and_leave_the_others_theirs() -> None:
    """With as many threads in each reader, torch would start more than there are cores."""

    def make(raw: Raw[int]) -> int:
        torch.ones(1000, 1000).sum()
        return torch.get_num_threads()

    assert list(feed(_read, make, range(4), device="cpu")) == [1] * 4
    assert torch.get_num_threads() == 2
    assert list(feed(_read, lambda _: torch.get_num_threads(), [0], device="cpu")) == [1]


def _drawn(
    make: Callable[[Raw[int]], int], *, fail_at: int | None = None
) -> tuple[Generator[int, None, None], list[str]]:
    """A stream of batches that a generator reads, and where it was drawn and closed."""
    seen: list[str] = []

    def read() -> Generator[Raw[int], None, None]:
        try:
            for item in range(9):
                if item == fail_at:
                    raise ValueError(f"item {item}")
                seen.append(threading.current_thread().name)
                yield _read(item)
        finally:
            seen.append("closed")

    return feed_drawn(read(), make, device="cpu", depth=2), seen


def test_batches_of_a_generator_are_drawn_and_made_in_order_by_one_thread_ahead() -> None:
    threads = set()

    def make(raw: Raw[int]) -> int:
        threads.add(threading.current_thread().name)
        return raw.known

    stream, seen = _drawn(make)
    assert list(stream) == list(range(9))
    assert seen[-1] == "closed"
    assert len({*seen[:-1], *threads}) == 1
    assert threads.pop().startswith("read-ahead")


def test_a_generator_of_batches_is_closed_with_the_stream_and_its_fault_comes_in_turn() -> None:
    stream, seen = _drawn(lambda raw: raw.known)
    assert next(stream) == 0
    stream.close()
    assert seen[-1] == "closed"
    assert len(seen) < 9
    stream, seen = _drawn(lambda raw: raw.known, fail_at=3)
    assert [next(stream) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(ValueError, match="item 3"):
        next(stream)
    assert seen[-1] == "closed"


@dataclass
class _Pair:
    one: Tensor
    rest: dict[str, list[Tensor]]
    name: str = ""


def test_tensors_are_found_wherever_a_batch_holds_them() -> None:
    a, b, c = torch.zeros(1), torch.zeros(2), torch.zeros(3)
    found = list(tensors_in((_Pair(a, {"x": [b], "y": []}), [c], None, "text")))
    assert [one.shape[0] for one in found] == [1, 2, 3]


@pytest.mark.gpu
def test_a_device_gets_the_numbers_of_the_cpu() -> None:
    def read(item: int) -> Raw[int]:
        generator = torch.Generator().manual_seed(item)
        return Raw(item, {"x": torch.randint(0, 60000, (64, 12, 64, 64), generator=generator)})

    def make(raw: Raw[int]) -> Tensor:
        return (raw.tensors["x"].float() / 1000).sqrt()

    for here, there, drawn in zip(
        feed(read, make, range(12), device="cpu"),
        feed(read, make, range(12), device="cuda"),
        feed_drawn((read(item) for item in range(12)), make, device="cuda", depth=2),
        strict=True,
    ):
        assert torch.equal(there, drawn)
        assert there.device.type == "cuda"
        torch.testing.assert_close(there.cpu(), here)
