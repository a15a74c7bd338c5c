"""What a sample is made of: bytes that can be compared without being decoded.

A set that knows it has a method `contents()` (see `Known`); one that only wraps another, or is a
part of one, has `within()` (see `Wrapped`). `overlap` finds by them which samples two sets share.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from terralign.datasets.sample import SampleSet
from terralign.errors import DataError
from terralign.scenes.pictures import PICTURE_SUFFIXES

Kind = Literal["encoded", "pixels", "drawn"]
"""The bytes of a file, the numbers of an array, or the number that a sample is drawn from."""

WHOLE_BYTES = 64 * 1024
"""Contents up to this size are hashed whole at once."""
MIDDLE_BYTES = 4096
"""Of larger ones this many bytes from the middle are hashed first."""


class Content(Protocol):
    """One sample's bytes of one sensor."""

    def length(self) -> int:
        """How long it is, without reading it: bytes of a file, numbers of an array, which have
        another type where some lack data; -1 where it does not exist as bytes of its own."""
        ...

    def middle(self) -> bytes:
        """All of it, or `MIDDLE_BYTES` from its middle."""
        ...

    def digest(self) -> bytes:
        """The hash of all of it."""
        ...

    @property
    def address(self) -> str:
        """Its place on disk; contents of one address are the same. Empty where it has none."""
        ...


@dataclass(frozen=True, slots=True)
class Contents:
    """What the samples of a set are made of. `kinds`: sensor -> kind, of sensors with bytes of
    their own; `of`: (sensor, index) -> content."""

    kinds: Mapping[str, Kind]
    of: Callable[[str, int], Content]


@runtime_checkable
class Known(Protocol):
    """A `SampleSet` that knows what its samples are made of."""

    def contents(self) -> Contents: ...


@runtime_checkable
class Wrapped(Protocol):
    """A `SampleSet` whose samples are those of another one, or some of them."""

    def within(self) -> tuple[SampleSet, NDArray[np.int64] | None]:
        """The other set, and which of its samples these are; None: all, in the same order."""
        ...


@dataclass(frozen=True, slots=True)
class FileContent:
    """A file, or a folder of files, which is represented by its rasters.

    A folder's length and middle are those of its first raster by name.
    """

    path: Path

    @property
    def address(self) -> str:
        return str(self.path)

    def length(self) -> int:
        with _naming(self.path):
            files = self._files()
            return files[0].stat().st_size if files else -1

    def middle(self) -> bytes:
        with _naming(self.path):
            files = self._files()
            if not files:
                return self.address.encode()
            with open(files[0], "rb", buffering=0) as file:
                start, end = _middle_range(os.fstat(file.fileno()).st_size)
                return os.pread(file.fileno(), end - start, start)

    def digest(self) -> bytes:
        with _naming(self.path):
            digests = [_digest_of(file) for file in self._files()]
        if len(digests) == 1:
            return digests[0]
        return _hash(b"".join(digests) or self.address.encode()).digest()

    def _files(self) -> list[Path]:
        """The files that represent the sample; none where it is missing, or no file (a pipe)."""
        if self.path.is_dir():
            return rasters_of(self.path)
        try:
            return [self.path] if stat.S_ISREG(self.path.stat().st_mode) else []
        except (FileNotFoundError, NotADirectoryError):
            return []


def rasters_of(folder: Path) -> list[Path]:
    """The files of a sample's folder that hold pixels, by name; all files where none does."""
    with os.scandir(folder) as entries:
        names = sorted(entry.name for entry in entries if entry.is_file())
    rasters = [name for name in names if os.path.splitext(name)[1].lower() in PICTURE_SUFFIXES]
    return [folder / name for name in rasters or names]


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from error


@dataclass(frozen=True, slots=True)
class ArrayContent:
    """A row of an array in memory or in a memory map: (C, H, W), or the (M,) bytes of a file."""

    row: NDArray[Any]

    @property
    def address(self) -> str:
        return ""

    def length(self) -> int:
        return int(self.row.size)

    def middle(self) -> bytes:
        size = int(self.row.nbytes)
        if size <= WHOLE_BYTES:
            return self.row.tobytes()
        start, end = _middle_range(size)
        flat = np.ascontiguousarray(self.row).reshape(-1).view(np.uint8)
        return flat[start:end].tobytes()

    def digest(self) -> bytes:
        return _hash(np.ascontiguousarray(self.row).reshape(-1).view(np.uint8)).digest()


NUM_LOOKED_AT = 32
"""Samples, evenly spaced, whose bytes a fingerprint holds: an edited file may keep its size."""


def some_bytes(contents: Contents, num_samples: int) -> list[str | None]:
    """A hash of the bytes of some samples of each sensor, all or those in the middle (`middle`);
    None where they cannot be read."""
    chosen = np.unique(np.linspace(0, num_samples - 1, NUM_LOOKED_AT).round().astype(np.int64))
    some = chosen.tolist() if num_samples else []
    return [_hash_of(contents.of(sensor, index)) for sensor in contents.kinds for index in some]


def _hash_of(content: Content) -> str | None:
    try:
        return _hash(content.middle()).hexdigest() if content.length() >= 0 else None
    except DataError:
        return None


def _hash(content: Any = b"") -> hashlib.blake2b:
    return hashlib.blake2b(content, digest_size=16)


def _middle_range(size: int) -> tuple[int, int]:
    if size <= WHOLE_BYTES:
        return 0, size
    start = (size - MIDDLE_BYTES) // 2
    return start, start + MIDDLE_BYTES


def _digest_of(path: Path) -> bytes:
    with open(path, "rb", buffering=0) as file:
        return hashlib.file_digest(file, _hash).digest()
