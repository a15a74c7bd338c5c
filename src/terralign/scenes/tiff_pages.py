"""The directories of a TIFF, read before a library loads them: what they claim is bounded first.

Pillow and GDAL take what a directory's tags claim, tag by tag, so that many tags that point to the
same bytes, or a chain of pages, would take any memory and time.
"""

from __future__ import annotations

import struct
from typing import Protocol

from terralign.limits import require

Pages = list[dict[int, tuple[int, ...]]]
"""The whole numbers of each page's tags, or () of a tag that was not asked for."""

_SIZES = dict(enumerate((0, 1, 1, 2, 4, 8, 1, 1, 2, 4, 8, 4, 8, 4, 0, 0, 8, 8, 8)))
"""Type of a tag -> bytes of one value, from 1; those of BigTIFF from 16 on."""

_WHOLE = {1: "B", 3: "H", 4: "I", 16: "Q"}

_GDAL_METADATA = 42112


class Readable(Protocol):
    """An open file."""

    def seek(self, position: int, /) -> object:
        """To a byte, counted from the start."""

    def read(self, size: int, /) -> bytes:
        """The next bytes."""


def read_pages(file: Readable, what: str, tags: tuple[int, ...] = ()) -> Pages:
    """The pages of a TIFF, up to the first that repeats.

    `DataError` where there are more than the limit, or their tags are larger in all; `ValueError`
    where a directory is cut off. `what`: how `DataError` names the file.
    """
    head = _take(file, 0, 16)
    order = "<" if head[:2] == b"II" else ">"
    big = head[2:4] in (b"+\0", b"\0+")
    offset_format = f"{order}{'Q' if big else 'I'}"
    entry = struct.Struct(f"{order}HH{'Q8s' if big else 'I4s'}")
    counting, room = struct.Struct(f"{order}{'Q' if big else 'H'}"), 8 if big else 4
    (position,) = struct.unpack_from(offset_format, head, 8 if big else 4)
    pages: Pages = []
    seen: set[int] = set()
    num_bytes = 0
    while position and position not in seen:
        seen.add(position)
        require("tiff_pages", len(seen), f"{what} has at least", todo="save one picture per file")
        (num_tags,) = counting.unpack(_take(file, position, counting.size))
        require("tiff_tags", num_tags, f"{what} has a page of")
        body = _take(file, position + counting.size, num_tags * entry.size + room)
        page: dict[int, tuple[int, ...]] = {}
        for tag, kind, count, value in entry.iter_unpack(body[:-room]):
            size = count * _SIZES.get(kind, 1)
            if size > room:
                num_bytes += size
            if tag == _GDAL_METADATA:
                require("xml_bytes", size, f"{what} has metadata of", todo="save it anew")
            page[tag] = ()
            if tag in tags and kind in _WHOLE and size <= 2**16:
                values = value[:size]
                if size > room:
                    values = _take(file, struct.unpack(offset_format, value)[0], size)
                page[tag] = struct.unpack(f"{order}{count}{_WHOLE[kind]}", values)
        require("tiff_tag_bytes", num_bytes, f"{what} has tags of", todo="save it anew")
        pages.append(page)
        (position,) = struct.unpack(offset_format, body[-room:])
    if not pages:
        raise ValueError("it has no page")
    return pages


def _take(file: Readable, position: int, size: int) -> bytes:
    file.seek(position)
    data = file.read(size)
    if len(data) < size and position:
        raise ValueError("a directory of it is cut off")
    return data.ljust(size, b"\0")
