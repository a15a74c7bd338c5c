"""Files that are either whole or not there: atomic writes, content hashes, checked reads."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from terralign.errors import StorageError

HASH_LENGTH = 16
"""Hex digits kept of a SHA-256 where it serves as a name."""

MAX_JSON_BYTES = 256 * 1024 * 1024
"""A JSON file larger than this is refused before it is read."""


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A path beside `path` to write to; renamed over it when the block ends well.

    When the block raises, nothing of `path` has changed and the part written is removed.
    A full or read-only disk raises `StorageError`.
    """
    path = Path(path)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.touch()
        usual = partial.stat().st_mode  # some libraries make files that their owner alone may read
        partial.unlink()
        yield partial
        with open(partial, "rb") as written:
            os.fsync(written.fileno())
        partial.chmod(usual)
        os.replace(partial, path)
    except BaseException as error:
        with suppress(OSError):
            partial.unlink()
        storage_error = _as_storage_error(error, path, partial)
        if storage_error is not None:
            raise storage_error from error
        raise


def _as_storage_error(error: BaseException, path: Path, partial: Path) -> StorageError | None:
    """What a failed write says: OSErrors of the disk, and the libraries' own wrapping of them.

    None for a fault of something else, such as an input that is missing.
    """
    if isinstance(error, StorageError) or not isinstance(error, Exception):
        return None
    text = str(error)
    full = (isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)) or any(
        sign in text
        for sign in ("No space left", "os error 28", "PytorchStreamWriter", "inline_container")
    )
    if full:
        return StorageError(
            f"no space left while writing {path} ({_free_mb(path)} MB free); "
            "free some space and run the same command again"
        )
    if isinstance(error, OSError) and (
        error.filename is None or Path(str(error.filename)) in (partial, path, *path.parents)
    ):
        return StorageError(f"cannot write {path}: {error.strerror or error}")
    return None


def _free_mb(path: Path) -> int:
    folder = path.parent
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free // 1_000_000


def write_text(path: Path, text: str) -> None:
    """Write `text` as UTF-8, atomically."""
    with atomic_path(path) as partial:
        partial.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, atomically."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Read a JSON file; `StorageError` names the file where it is missing, too large or damaged."""
    try:
        if path.stat().st_size > MAX_JSON_BYTES:
            raise StorageError(f"{path} is larger than {MAX_JSON_BYTES // 2**20} MiB")
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise StorageError(f"cannot read {path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise StorageError(f"{path} is not valid JSON: {error}") from error


def hash_file(path: Path) -> str:
    """SHA-256 of a file's bytes, as 64 hex digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hash_json(value: Mapping[str, Any] | list[Any]) -> str:
    """Name of a JSON value: `HASH_LENGTH` hex digits of the SHA-256 of its canonical form."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()[:HASH_LENGTH]


def check_free_space(folder: Path, num_bytes: int) -> None:
    """Raise `StorageError` where the disk of `folder` has less than `num_bytes` free."""
    free = _free_mb(folder / "x")
    if free * 1_000_000 < num_bytes:
        raise StorageError(
            f"{folder} needs {num_bytes // 1_000_000} MB but its disk has {free} MB free; "
            "free some space or choose another folder"
        )


@contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """The folder for this process alone."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = open(folder / ".lock", "w")  # noqa: SIM115
    except OSError as error:
        raise StorageError(f"cannot write into {folder}: {error.strerror}") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise StorageError(f"another process is running in {folder}; wait for it") from error
        yield
