"""Checking a packed store against its checksums."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from terralign.datasets.store.files import MANIFEST, StoredFile, read_manifest
from terralign.datasets.store.reading import StoreSet
from terralign.errors import TerralignError
from terralign.files import hash_file
from terralign.progress import Progress
from terralign.read_ahead import read_ahead


def verify_store(store: Path, *, num_workers: int = 2) -> list[str]:
    """What is wrong with a store, one line per file; nothing where it is whole.

    Every byte is read and hashed. Raises `DataError` where there is no manifest to check against.
    """
    manifest = read_manifest(store)
    files: list[StoredFile] = [manifest.table, *manifest.shards]
    faults = []
    if manifest.checksum != manifest.hash_of_rest():
        faults.append(f"{MANIFEST} has changed: its checksum is not that of its content")
    with Progress("verify", total=sum(one.num_bytes for one in files), unit="byte") as progress:
        found = read_ahead(
            lambda one: _fault(store, one), files, depth=num_workers, num_threads=num_workers
        )
        for file, fault in zip(files, found, strict=True):
            faults += [fault] if fault else []
            progress.advance(file.num_bytes)
    return faults or list(_unreadable(store, tuple(manifest.splits)))


def _fault(store: Path, expected: StoredFile) -> str | None:
    path = store / expected.file
    if not path.is_file():
        return f"{expected.file} is missing"
    num_bytes = path.stat().st_size
    if num_bytes != expected.num_bytes:
        return f"{expected.file} has {num_bytes} bytes, {expected.num_bytes} were written"
    if hash_file(path) != expected.sha256:
        return f"{expected.file} has changed: its checksum is not the manifest's"
    return None


def _unreadable(store: Path, splits: tuple[str, ...]) -> Iterator[str]:
    """Splits that cannot be opened although every file is as it was written."""
    for split in splits:
        try:
            StoreSet(store, split)
        except TerralignError as error:
            yield str(error)
