"""Tars from elsewhere: what `tarfile` may read of them at once."""

from __future__ import annotations

from typing import IO

MAX_HEADER_BYTES = 1024**2
"""A tar whose extended headers (long names and the like) are larger is refused."""

MAX_PAX_VALUES = 1000
"""A tar with more values that hold for all of its members is refused: each member copies them."""


class HeaderReader:
    """What `tarfile` needs of a file, of which it may read `MAX_HEADER_BYTES` at once."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.seek, self.tell = file.seek, file.tell

    def read(self, size: int) -> bytes:
        """`ValueError` for more bytes than that."""
        if not 0 <= size <= MAX_HEADER_BYTES:
            raise ValueError(f"a header of {size} bytes")
        return self._file.read(size)
