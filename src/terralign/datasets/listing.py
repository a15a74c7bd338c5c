"""The folders and small files of large archives: found, listed by name, read many at a time."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Collection, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal, TypeVar

from terralign.errors import DataError, shown, some
from terralign.progress import Progress

logger = logging.getLogger(__name__)

Item = TypeVar("Item")
Read = TypeVar("Read")

NUM_THREADS = 16
"""Many more than there are cores: reading a file on a cold disk is mostly waiting."""

CHUNK = 256


def find_folder(
    name: str,
    data_root: Path,
    places: Sequence[str],
    *,
    holds: Callable[[Path], bool] = Path.is_dir,
    what: str = "",
) -> Path:
    """The first of the `places` below a data root that `holds` the data set `name`.

    `what`: what such a folder holds, for the error.
    """
    for place in places:
        if holds(data_root / place):
            return data_root / place
    shown = ", ".join(place for place in places if place != ".")
    raise DataError(
        f"data set {name!r} not found: {data_root} holds no {shown}{what and f' with {what}'}; "
        "give the folder that does as data root"
    )


def list_names(folder: Path, kind: Literal["files", "folders"]) -> list[str]:
    """Names of the files or folders in a folder, unsorted; none where it does not exist."""
    try:
        with os.scandir(folder) as entries:
            if kind == "files":
                return [entry.name for entry in entries if entry.is_file()]
            return [entry.name for entry in entries if entry.is_dir()]
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise DataError(f"cannot list {shown(folder)}: {error.strerror}") from error


def require_all(
    wanted: Iterable[str], found: Collection[str], *, by: str, what: str, todo: str
) -> None:
    """Raise `DataError` where some of `wanted` were not found: how many, the first, what to do.

    `by`: what wants them ("val.csv names"); `what`: what they are; `todo`: the remedy.
    """
    names = list(wanted)
    missing = [name for name in names if name not in found]
    if missing:
        raise DataError(
            f"{by} {len(names):,} {what}, of which {len(missing):,} are missing, "
            f"{some(missing[:1])} first; {todo}"
        )


def log_left_out(name: str, split: str, num_left_out: int, total: int, reason: str) -> None:
    """Log how many samples of a split are left out, if any, and why."""
    if num_left_out:
        logger.info(
            "%s, split %r: %d of %d patches left out, because %s",
            name, split, num_left_out, total, reason,
        )  # fmt: skip


def read_each(
    label: str, read: Callable[[Item], Read], items: Sequence[Item], *, unit: str = "file"
) -> list[Read]:
    """`read` of each item, in their order; the first fault ends it. Progress is shown."""
    chunks = [items[start : start + CHUNK] for start in range(0, len(items), CHUNK)]
    results: list[Read] = []
    pool = ThreadPoolExecutor(min(NUM_THREADS, max(1, len(chunks))), thread_name_prefix="files")
    with Progress(label, total=len(items), unit=unit) as progress:
        try:
            for part in pool.map(lambda chunk: [read(item) for item in chunk], chunks):
                results += part
                progress.advance(len(part))
        finally:
            pool.shutdown(cancel_futures=True)
    return results
