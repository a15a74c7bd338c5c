"""Threads that compute, so that the event loop never does, and how many requests wait for them."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

THREADS = "terralign-serve-"
"""How the names of these threads begin."""

P = ParamSpec("P")
T = TypeVar("T")


class Overloaded(Exception):
    """More requests wait than the server holds."""


class Workers:
    """A pool of `num` threads for which at most `waiting` calls wait."""

    def __init__(self, name: str, num: int, *, waiting: int) -> None:
        self._pool = ThreadPoolExecutor(num, thread_name_prefix=f"{THREADS}{name}")
        self._free = threading.Semaphore(num + waiting)

    async def run(self, function: Callable[P, T], *args: P.args, **keywords: P.kwargs) -> T:
        """What a call returns; `Overloaded` at once where too many wait."""
        if not self._free.acquire(blocking=False):
            raise Overloaded
        try:
            future = self._pool.submit(function, *args, **keywords)
        except BaseException:
            self._free.release()
            raise
        future.add_done_callback(lambda _: self._free.release())
        return await asyncio.wrap_future(future)

    def close(self) -> None:
        """Calls that wait are dropped; those that run end by themselves."""
        self._pool.shutdown(wait=False, cancel_futures=True)
