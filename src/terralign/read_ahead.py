"""Work done ahead of its use by background threads."""

from __future__ import annotations

import itertools
import sys
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
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
    at_end: Callable[[], object] | None = None,
) -> Generator[Made, None, None]:
    """`make(item)` for each item, in order, made by background threads up to `depth` ahead.

    `initializer` runs first in each of the threads, `at_end` last in one of them. An exception of
    `make` is raised where its item is due. Decoding and tensor work release the interpreter's lock,
    so that reading overlaps with training in one process.
    """
    waiting: deque[Future[Made]] = deque()
    iterator = iter(items)
    with _short_turns():
        pool = ThreadPoolExecutor(
            num_threads, thread_name_prefix="read-ahead", initializer=initializer
        )
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
            if at_end is not None:
                pool.submit(at_end)
            pool.shutdown(wait=True)


SHORT_TURN_S = 5e-4

_turns_lock = threading.Lock()
_turns_before: list[float] = []
"""The interpreter's own turn, once for each that reads ahead now."""


@contextmanager
def _short_turns() -> Iterator[None]:
    """Within the block a thread that holds the interpreter's lock hands it over soon.

    A model's thread needs the lock for a moment between any two operations. At Python's 5 ms,
    readers kept it waiting for 3 % of the time in which a scene was embedded on two cores.
    """
    with _turns_lock:
        _turns_before.append(_turns_before[0] if _turns_before else sys.getswitchinterval())
        sys.setswitchinterval(min(SHORT_TURN_S, _turns_before[0]))
    try:
        yield
    finally:
        with _turns_lock:
            before = _turns_before.pop()
            if not _turns_before:
                sys.setswitchinterval(before)


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

    def draw(_: None) -> list[Item]:
        return list(itertools.islice(items, 1))

    stream = read_ahead(
        draw, itertools.repeat(None), depth=depth, initializer=initializer, at_end=items.close
    )
    with closing(stream):
        for found in stream:
            if not found:
                return
            yield found[0]
