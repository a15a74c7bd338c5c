"""A generator that is drawn by a background thread."""

from __future__ import annotations

import threading
from collections.abc import Generator
from contextlib import closing

import pytest

from terralign.read_ahead import drawn_ahead


def _items(drawn: list[int], *, fails_at: int = -1) -> Generator[int, None, None]:
    try:
        for number in range(6):
            if number == fails_at:
                raise ValueError("it ends here")
            drawn.append(number)
            yield number
    finally:
        drawn.append(-1)


def test_items_come_in_order_and_the_generator_is_closed() -> None:
    drawn: list[int] = []
    assert list(drawn_ahead(_items(drawn), depth=2)) == list(range(6))
    assert drawn == [*range(6), -1]


def test_a_generator_is_closed_by_the_thread_that_drew_from_it() -> None:
    """What it opened may belong to that thread, as GDAL's environment does."""
    threads = []

    def items() -> Generator[int, None, None]:
        try:
            for number in range(6):
                threads.append(threading.get_ident())
                yield number
        finally:
            threads.append(threading.get_ident())

    with closing(drawn_ahead(items(), depth=1)) as stream:
        next(stream)
    assert len(set(threads)) == 1
    assert threading.get_ident() not in threads


def test_no_more_is_drawn_than_the_depth_ahead() -> None:
    drawn: list[int] = []
    with closing(drawn_ahead(_items(drawn), depth=1)) as stream:
        assert next(stream) == 0
    assert len(drawn) - 1 <= 3


def test_an_exception_comes_where_its_item_is_due() -> None:
    stream = drawn_ahead(_items([], fails_at=2), depth=3)
    assert [next(stream), next(stream)] == [0, 1]
    with pytest.raises(ValueError, match="it ends here"):
        next(stream)


def test_a_stream_that_is_left_closes_its_generator_and_thread() -> None:
    drawn: list[int] = []
    before = threading.active_count()
    with closing(drawn_ahead(_items(drawn), depth=1)) as stream:
        next(stream)
    assert drawn[-1] == -1
    assert threading.active_count() == before
