"""Archives from elsewhere, unpacked: every name stays in its folder, sizes are checked first."""

from __future__ import annotations

import errno
import gzip
import stat
import struct
import tarfile
import unicodedata
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, cast

from terralign.datasets.tars import MAX_PAX_VALUES, HeaderReader
from terralign.errors import DataError, first_line, quoted
from terralign.files import check_free_space, zip_index_bytes
from terralign.limits import require
from terralign.progress import Progress

_CHUNK = 2**18

_DAMAGED = (
    *(zipfile.BadZipFile, tarfile.TarError, zlib.error, struct.error),
    *(EOFError, NotImplementedError, ValueError, OverflowError, RecursionError),
)


def unpack(archive: Path, name: str, top: str, folder: Path) -> None:
    """Write the files that an archive holds below its folder `top` into `folder`, which is new.

    `name`: the archive's published name, which says its kind (.zip, .tar.gz). Links, encrypted
    files, a name twice and names that lead out of the archive are a `DataError`, as is what is
    beyond the limits `unpacked_bytes`, `folder_entries` and `folder_depth`; files beside `top` are
    left out.
    """
    if not archive.is_file():
        raise DataError(f"{archive} is not a file; fetch it again")
    members = _zip_members if name.endswith(".zip") else _tar_members
    num_megabytes = max(1, archive.stat().st_size // 10**6)
    seen: set[str] = set()
    try:
        with (
            open(archive, "rb") as file,
            Progress(f"unpacking {name}", total=num_megabytes, unit="megabyte") as progress,
        ):
            for written, num_bytes, content in members(file, archive, folder):
                inner = _place(written, archive)
                if inner[0] != top or len(inner) == 1:
                    continue
                place = Path(*inner[1:])
                key = unicodedata.normalize("NFC", str(place)).casefold()  # as on macOS
                if key in seen:
                    raise DataError(f"{archive} holds {quoted(written)} twice")
                seen.add(key)
                before = file.tell() // 10**6
                _write(folder / place, content, num_bytes, f"{archive}: {quoted(written)}")
                progress.advance(max(0, file.tell() // 10**6 - before))
    except (*_DAMAGED, OSError) as error:
        # Damaged archives point to places before their start, and `BadGzipFile` has no number.
        if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):
            raise
        raise DataError(f"{archive} is damaged: {first_line(error)}; fetch it again") from error
    if not seen:
        raise DataError(f"{archive} holds no folder {top!r}; the publisher has changed it")


def _place(name: str, archive: Path) -> list[str]:
    """The parts of a member's path; `DataError` where it leads out of the archive."""
    parts = name.split("/")
    while parts[0] == ".":
        parts = parts[1:] or [""]
    bad = name.startswith("/") or "\\" in name or ":" in parts[0] or not name.isprintable()
    if bad or {"", ".", ".."} & set(parts):
        raise DataError(
            f"{archive} holds {quoted(name)}, which leads out of it or is no plain name"
        )
    require("folder_depth", len(parts), f"{archive}: {quoted(name)} has")
    return parts


def _write(path: Path, content: IO[bytes], num_bytes: int, what: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    left = num_bytes
    with open(path, "xb") as file:
        while chunk := content.read(_CHUNK):
            left -= len(chunk)
            if left < 0:
                break
            file.write(chunk)
    if left:
        raise DataError(f"{what} has not the {num_bytes:,} bytes that the archive states")


Members = Iterator[tuple[str, int, IO[bytes]]]
"""Of each file its path in the archive, its size, and its open content."""


def _zip_members(file: IO[bytes], archive: Path, folder: Path) -> Members:
    require("zip_index_bytes", zip_index_bytes(file), f"{archive} has an index of")
    with zipfile.ZipFile(file) as opened:
        infos = [info for info in opened.infolist() if not info.is_dir()]
        require("folder_entries", len(infos), f"{archive} holds")
        num_bytes = sum(info.file_size for info in infos)
        require("unpacked_bytes", num_bytes, f"{archive} unpacks to")
        check_free_space(folder.parent, num_bytes)
        for info in infos:
            kind = stat.S_IFMT(info.external_attr >> 16)
            if kind not in (0, stat.S_IFREG):
                raise _not_plain(archive, info.filename)
            if info.flag_bits & 1:
                raise DataError(f"{archive}: {quoted(info.filename)} is encrypted")
            with opened.open(info) as content:
                yield info.filename, info.file_size, content


def _tar_members(file: IO[bytes], archive: Path, folder: Path) -> Members:
    num_files = num_bytes = 0
    reader: Any
    with gzip.open(file) as unzipped:
        reader = HeaderReader(cast(IO[bytes], unzipped))
        with tarfile.open(fileobj=reader, mode="r:") as opened:
            while (info := opened.next()) is not None:
                opened.members.clear()  # type: ignore[attr-defined]  # or all would be kept
                if len(opened.pax_headers) > MAX_PAX_VALUES:
                    raise ValueError("too many values that hold for all members")
                num_files += 1
                num_bytes += info.size
                require("folder_entries", num_files, f"{archive} holds")
                require("unpacked_bytes", num_bytes, f"{archive} unpacks to")
                if info.isdir():
                    continue
                content = opened.extractfile(info) if info.isreg() else None
                if content is None or info.issparse():
                    raise _not_plain(archive, info.name)
                with content:
                    yield info.name, info.size, content


def _not_plain(archive: Path, name: str) -> DataError:
    return DataError(f"{archive} holds {quoted(name)}, which is a link, a device or a sparse file")
