"""Products in zip archives, read where they lie: names and sizes are checked, nothing is unpacked.

A file in an archive is called by a path through it: `product.zip/product.SAFE/MTD_MSIL2A.xml`.
"""

from __future__ import annotations

import re
import struct
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import IO

from terralign.errors import DataError, first_line, shown
from terralign.files import zip_index_bytes
from terralign.limits import require

_PLAIN = re.compile(r"[A-Za-z0-9._()+ -]+(?:/[A-Za-z0-9._()+ -]+)*")
"""Names that are read; GDAL takes others apart."""

_DAMAGED = (OSError, EOFError, zipfile.BadZipFile, zlib.error, NotImplementedError)


def is_archive(path: Path) -> bool:
    """Whether a path is a zip file by its name."""
    return path.suffix.lower() == ".zip"


def in_archive(path: Path) -> tuple[Path, str] | None:
    """The archive that a path leads into, and the name in it; None for a path of its own."""
    for depth, part in enumerate(path.parts[:-1], start=1):
        if part.lower().endswith(".zip"):
            archive = Path(*path.parts[:depth])
            if archive.is_file():
                return archive, "/".join(path.parts[depth:])
    return None


def members(archive: Path) -> Mapping[str, int]:
    """The files of an archive, name -> size unpacked; names that lead elsewhere are left out.

    `DataError` where it is damaged, encrypted, or holds more than the limits.
    """
    try:
        status = archive.stat()
        return _members(archive, status.st_size, status.st_mtime_ns)
    except (*_DAMAGED, ValueError, struct.error) as error:
        raise DataError(f"{shown(archive)} is no readable zip: {first_line(error)}") from error


@lru_cache(maxsize=16)
def _members(archive: Path, size: int, mtime_ns: int) -> Mapping[str, int]:
    with open(archive, "rb") as file:
        require("zip_index_bytes", zip_index_bytes(file), f"{shown(archive)} has an index of")
        with zipfile.ZipFile(file) as opened:
            infos = opened.infolist()
    found: dict[str, int] = {}
    for info in infos:
        if info.is_dir() or not is_plain(info.filename):
            continue
        if info.flag_bits & 1:
            raise DataError(f"{shown(archive)} is encrypted; unpack it, and give the folder")
        if info.filename in found:
            raise DataError(f"{shown(archive)} holds {info.filename!r} twice; pack it again")
        found[info.filename] = info.file_size
    return found


def is_plain(name: str) -> bool:
    """Whether a name in an archive stays within it, in characters that are read as they are."""
    parts = name.split("/")
    return _PLAIN.fullmatch(name) is not None and not {".", ".."} & set(parts)


def exists(path: Path) -> bool:
    """Whether a path is a file, on disk or in an archive."""
    place = in_archive(path)
    return path.is_file() if place is None else place[1] in members(place[0])


def read_member(archive: Path, name: str, *, size: str) -> bytes:
    """The bytes of a file in an archive, no more than the limit `size`."""
    what = shown(archive / name)
    num_bytes = members(archive).get(name)
    if num_bytes is None:
        raise DataError(f"{what} not found")
    require(size, num_bytes, f"{what} has")
    with open_member(archive, name) as file:
        content = file.read(num_bytes + 1)
    if len(content) != num_bytes:
        raise DataError(f"{what} is damaged: its size is not what the archive states")
    return content


@contextmanager
def open_member(archive: Path, name: str) -> Iterator[IO[bytes]]:
    """A file in an archive, open for reading; `DataError` where it is damaged."""
    try:
        with zipfile.ZipFile(archive) as opened, opened.open(name) as file:
            yield file
    except (*_DAMAGED, RuntimeError) as error:
        raise DataError(f"{shown(archive / name)} is damaged: {first_line(error)}") from error


def gdal_name(archive: Path, name: str) -> str:
    """What GDAL calls a file in an archive; `DataError` for names that it would take apart."""
    whole = str(archive.absolute())
    if set(whole) & set("{}") or not is_plain(name):
        raise DataError(
            f"{shown(archive)}: a name with braces or other special characters; rename the archive"
        )
    num_bytes = members(archive).get(name)
    if num_bytes is None:
        raise DataError(f"{shown(archive / name)} not found")
    require("zip_file_bytes", num_bytes, f"{shown(archive / name)} has")
    status = archive.stat()
    _require_whole(archive, name, status.st_size, status.st_mtime_ns)
    return f"/vsizip/{{{whole}}}/{name}"


@lru_cache(maxsize=4096)
def _require_whole(archive: Path, name: str, size: int, mtime_ns: int) -> None:
    """`DataError` where a file in an archive is not what its checksum states, which GDAL does not
    look at, and JPEG 2000 would show as noise; once a process."""
    with open_member(archive, name) as file:
        while file.read(2**20):
            pass
