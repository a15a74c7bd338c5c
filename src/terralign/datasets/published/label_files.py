"""Labels that lie in one small file per sample, read many at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from terralign.progress import Progress

Item = TypeVar("Item")
Read = TypeVar("Read")

NUM_THREADS = 16
"""Many more than there are cores: a file on a cold disk is mostly waited for."""

CHUNK = 256


def read_each(
    label: str, read: Callable[[Item], Read], items: Sequence[Item], *, unit: str = "file"
) -> list[Read]:
    """`read` of each item, in their order; the first fault ends it. Progress is shown."""
    chunks = [items[start : start + CHUNK] for start in range(0, len(items), CHUNK)]
    results: list[Read] = []
    pool = ThreadPoolExecutor(min(NUM_THREADS, max(1, len(chunks))), thread_name_prefix="labels")
    with Progress(label, total=len(items), unit=unit) as progress:
        try:
            for part in pool.map(lambda chunk: [read(item) for item in chunk], chunks):
                results += part
                progress.advance(len(part))
        finally:
            pool.shutdown(cancel_futures=True)
    return results
