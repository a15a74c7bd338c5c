"""Work done ahead of its use by background threads."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
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
