"""Work done ahead of its use by background threads."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from typing import TypeVar

Item = TypeVar("Item")
Made = TypeVar("Made")


def read_ahead(
    make: Callable[[Item], Made],
    items: Iterable[Item],
    *,
    depth: int = 3,
    num_threads: int = 1,
    initializer: Callable[[], None] | None = None,
) -> Generator[Made, None, None]:
    """`make(item)` for each item, in order, made by background threads up to `depth` ahead.

    `initializer` runs first in each of the threads. An exception of `make` is raised where its item
    is due. Decoding and tensor work release the interpreter's lock, so that reading overlaps with
    training in one process.
    """
    waiting: deque[Future[Made]] = deque()
    iterator = iter(items)
    pool = ThreadPoolExecutor(num_threads, thread_name_prefix="read-ahead", initializer=initializer)
    try:
        for item in iterator:
            waiting.append(pool.submit(make, item))
            if len(waiting) > depth:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        for future in waiting:
            future.cancel()
        pool.shutdown(wait=True, cancel_futures=True)


def drawn_ahead(
    items: Generator[Item, None, None],
    *,
    depth: int,
    initializer: Callable[[], None] | None = None,
) -> Generator[Item, None, None]:
    """The items of a generator, which a background thread draws up to `depth` ahead.

    An exception of the generator is raised where its item is due. It is closed at the end.
    """

    def draw(_: None) -> list[Item]:
        return list(itertools.islice(items, 1))

    stream = read_ahead(draw, itertools.repeat(None), depth=depth, initializer=initializer)
    with closing(items), closing(stream):
        for found in stream:
            if not found:
                return
            yield found[0]
