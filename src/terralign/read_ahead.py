"""Work done ahead of its use by background threads."""

from __future__ import annotations

import itertools
import sys
import threading
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
    _Turns.begin()
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
        _Turns.end()


class _Turns:
    """How soon a thread that holds the interpreter's lock hands it over, while some read ahead.

    A model's thread needs the lock for a moment between any two operations. At Python's 5 ms,
    readers kept it waiting for 3 % of the time in which a scene was embedded on two cores.
    """

    SECONDS = 5e-4
    _lock = threading.Lock()
    _num_readers = 0
    _before = 0.0

    @classmethod
    def begin(cls) -> None:
        """From now on, in short turns."""
        with cls._lock:
            if cls._num_readers == 0:
                cls._before = sys.getswitchinterval()
                sys.setswitchinterval(min(cls.SECONDS, cls._before))
            cls._num_readers += 1

    @classmethod
    def end(cls) -> None:
        """As before, when nothing else reads ahead."""
        with cls._lock:
            cls._num_readers -= 1
            if cls._num_readers == 0:
                sys.setswitchinterval(cls._before)


def drawn_ahead(
    items: Generator[Item, None, None],
    *,
    depth: int,
    initializer: Callable[[], None] | None = None,
) -> Generator[Item, None, None]:
    """The items of a generator, which a background thread draws up to `depth` ahead.

    An exception of the generator is raised where its item is due. It is closed at the end, in the
    same thread: what it opened there (GDAL's environment, say) belongs to that thread.
    """

    def draw() -> list[Item]:
        return list(itertools.islice(items, 1))

    waiting: deque[Future[list[Item]]] = deque()
    _Turns.begin()
    pool = ThreadPoolExecutor(1, thread_name_prefix="read-ahead", initializer=initializer)
    try:
        while True:
            while len(waiting) <= depth:
                waiting.append(pool.submit(draw))
            found = waiting.popleft().result()
            if not found:
                return
            yield found[0]
    finally:
        for future in waiting:
            future.cancel()
        pool.submit(items.close)
        pool.shutdown(wait=True)
        _Turns.end()
