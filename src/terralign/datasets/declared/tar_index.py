"""What lies where in a tar of samples, from its headers alone: nothing is unpacked.

A sample's members share a key, the path up to the first dot of the file name; what follows the dot
is the member's ending, in lower case (WebDataset's convention). N samples.
"""

from __future__ import annotations

import os
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any
from weakref import WeakValueDictionary

import numpy as np
from numpy.typing import NDArray

from terralign.datasets.image_files import LeftOut
from terralign.errors import DataError, first_line

MAX_HEADER_BYTES = 1024**2
"""A tar whose extended headers (long names and the like) are larger is refused."""

_COMPRESSED = {
    b"\x1f\x8b": ("gzip", "gunzip"),
    b"BZh": ("bzip2", "bunzip2"),
    b"\xfd7zXZ": ("xz", "unxz"),
    b"\x28\xb5\x2f\xfd": ("zstd", "unzstd"),
}


@dataclass(frozen=True, kw_only=True, slots=True, weakref_slot=True)
class TarIndex:
    """The samples of one tar, in the order of their first members.

    `members`: ending -> (N, 2) int64, where a sample's member begins and its bytes; -1 where the
    sample has none. `num_bytes`: of the tar. `num_left_out`: members whose names have no ending, so
    that they belong to no sample, `left_out` the first of them; hidden ones do not count.
    """

    path: Path
    num_bytes: int
    keys: tuple[str, ...]
    members: Mapping[str, NDArray[np.int64]]
    num_left_out: int = 0
    left_out: str = ""

    def places(self, ending: str) -> NDArray[np.int64]:
        """(N, 2) begin and bytes of every sample's member; a sample without it is an error."""
        found = self.members.get(ending)
        lacking = 0 if found is None else int(np.argmax(found[:, 0] < 0))
        if found is None or found[lacking, 0] < 0:
            key = self.keys[lacking]
            has = [one for one, places in self.members.items() if places[lacking, 0] >= 0]
            raise DataError(
                f"{self.path}: sample {key!r} has no member {key}.{ending}; "
                f"it has {', '.join(sorted(has))}"
            )
        return found


_indices: WeakValueDictionary[tuple[str, int, int], TarIndex] = WeakValueDictionary()
"""Those that are in use, so that the splits and sensors of one tar share its index."""


def index_tar(path: Path) -> TarIndex:
    """Read the headers of a tar, once for as long as its index is in use.

    `DataError` naming the tar where it is missing, compressed, cut short, damaged or empty, where
    it holds a link, a device or a sparse file, or the same member twice.
    """
    try:
        status = path.stat()
        key = (str(path.resolve()), status.st_size, status.st_mtime_ns)
        index = _indices.get(key)
        if index is None:
            with open(path, "rb") as file:
                index = _index(path, file, status.st_size)
            _indices[key] = index
        return index
    except FileNotFoundError as error:
        raise DataError(f"shard {path} is not there") from error
    except OSError as error:
        raise DataError(f"shard {path} cannot be read: {error.strerror or error}") from error


def _index(path: Path, file: IO[bytes], num_bytes: int) -> TarIndex:
    start = file.read(8)
    file.seek(0)
    for magic, (kind, command) in _COMPRESSED.items():
        if start.startswith(magic):
            raise DataError(
                f"shard {path} is compressed by {kind}, so that a sample cannot be read without "
                f"all those before it; unpack it first ({command} {path.name})"
            )
    rows: dict[str, int] = {}
    found: dict[str, list[tuple[int, int, int]]] = {}
    seen: set[tuple[int, str]] = set()
    left_out = LeftOut(Path())
    for name, begin, size in _members(path, file, num_bytes):
        key, ending = split_name(name)
        if not key or not ending:
            left_out.add(Path(name.removeprefix("./").lstrip("/")))
            continue
        row = rows.setdefault(key, len(rows))
        if (row, ending) in seen:
            raise DataError(f"shard {path} has two members {key}.{ending}")
        seen.add((row, ending))
        found.setdefault(ending, []).append((row, begin, size))
    if not rows:
        raise DataError(f"shard {path} holds no samples (members named key.ending)")
    members = {}
    for ending, entries in found.items():
        table = np.array(entries, dtype=np.int64)
        members[ending] = np.full((len(rows), 2), -1, dtype=np.int64)
        members[ending][table[:, 0]] = table[:, 1:]
    return TarIndex(
        path=path, num_bytes=num_bytes, keys=tuple(rows), members=members,
        num_left_out=len(left_out), left_out=left_out.example,
    )  # fmt: skip


def split_name(name: str) -> tuple[str, str]:
    """A member's key and ending; both empty for a hidden file, or one without an ending."""
    folder, slash, base = name.removeprefix("./").rpartition("/")
    stem, _, ending = base.partition(".")
    return (folder + slash + stem, ending.lower()) if stem and ending else ("", "")


def _members(path: Path, file: IO[bytes], num_bytes: int) -> Iterator[tuple[str, int, int]]:
    """(name, begin, bytes) of every file of a tar, whose end is checked as well."""
    reader: Any = _HeaderReader(file)
    archive: Any
    try:
        with tarfile.open(fileobj=reader, mode="r:") as archive:
            while (info := archive.next()) is not None:
                archive.members.clear()  # or they would all be kept
                end = info.offset_data + info.size
                if info.isdir():
                    continue
                if not info.isreg() or info.issparse():
                    raise DataError(
                        f"shard {path} holds {info.name!r}, which is a link, a device or a sparse "
                        "file; write the tar again with plain files only"
                    )
                if info.size < 0 or end > num_bytes:
                    raise DataError(_cut_short(path, f"its member {info.name!r} is not whole"))
                yield info.name, info.offset_data, info.size
            last = archive.offset
    except (tarfile.TarError, ValueError, EOFError, OverflowError, RecursionError) as error:
        if num_bytes < tarfile.BLOCKSIZE or "unexpected end" in str(error):
            raise DataError(_cut_short(path, first_line(error))) from error
        raise DataError(f"shard {path} is damaged or no tar: {first_line(error)}") from error
    file.seek(last)
    closing = file.read(tarfile.BLOCKSIZE)
    if len(closing) < tarfile.BLOCKSIZE:
        raise DataError(_cut_short(path, "it ends without the mark of its end"))
    if closing.strip(b"\0"):
        raise DataError(f"shard {path} is damaged: there is no header at byte {last}")


def _cut_short(path: Path, fault: str) -> str:
    return f"shard {path} is cut short ({fault}); download it again"


class _HeaderReader:
    """What `tarfile` needs of a file, which it may read only by headers."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file

    def read(self, size: int) -> bytes:
        if not 0 <= size <= MAX_HEADER_BYTES:
            raise ValueError(f"a header of {size} bytes")
        return self._file.read(size)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()


def read_members(path: Path, places: NDArray[np.int64]) -> Iterator[tuple[int, bytes]]:
    """(position, bytes) of the members at `places` (M, 2), begin and bytes, in the tar's order.

    `DataError` where the tar has become shorter than it was.
    """
    try:
        with open(path, "rb", buffering=0) as file:
            for position in np.argsort(places[:, 0], kind="stable").tolist():
                begin, size = places[position].tolist()
                file.seek(begin)
                content = file.read(size)
                if len(content) != size:
                    raise DataError(f"shard {path} has become shorter while it was in use")
                yield position, content
    except OSError as error:
        raise DataError(f"shard {path} cannot be read: {error.strerror or error}") from error
