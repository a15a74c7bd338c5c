"""Files that GDAL opens by its own names, such as `/vsicurl/https://...`, read as Python's are.

rasterio opens rasters alone. What is read here stays in GDAL's cache, from which it then opens the
raster: nothing is fetched twice.
"""

from __future__ import annotations

import ctypes
import functools
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import rasterio._env
from rasterio.errors import RasterioError

from terralign.errors import DataError, first_line


@contextmanager
def damage_reported(what: str) -> Iterator[None]:
    """`DataError` for pixels that cannot be read. `what`: the file, as errors name it."""
    try:
        yield
    except (RasterioError, OSError, ValueError) as error:
        raise DataError(f"{what} is damaged: {plain_damage(first_line(error))}") from error


def plain_damage(text: str) -> str:
    """What a reader of GDAL's reports of a damaged file, in words that say what to do."""
    if _CUT.search(text):
        return "it ends too early, before all of its pixels; download or copy it again"
    if _NO_DIRECTORY.search(text):
        return (
            "its table of contents cannot be read, as of a file that ends too early; download or "
            "copy it again"
        )
    if _UNDECODED.search(text):
        return f"some of its pixels cannot be decoded ({text}); download or copy it again"
    return text


_CUT = re.compile(r"got \d+ bytes, expected \d+|IO error during reading")
_NO_DIRECTORY = re.compile(r"Failed to read directory|Can ?not read TIFF (header|directory)")
_UNDECODED = re.compile(r"Decod|[Dd]ecompress|code not yet in table|Not a JPEG|WebPGetInfo")


class GdalFile:
    """An open file of GDAL's, to seek in and read from."""

    def __init__(self, library: Any, handle: int) -> None:
        self._library, self._handle = library, handle

    def seek(self, position: int) -> None:
        """To a byte, counted from the start."""
        self._library.VSIFSeekL(self._handle, position, 0)

    def read(self, size: int) -> bytes:
        """The next bytes; fewer at the end of the file, or where fetching them failed."""
        room = ctypes.create_string_buffer(size)
        num_bytes = self._library.VSIFReadL(room, 1, size, self._handle)
        return room.raw[:num_bytes]


@contextmanager
def open_gdal_file(name: str) -> Iterator[GdalFile | None]:
    """A file by GDAL's name for it; None where GDAL, whose error opening the raster repeats, cannot
    open it."""
    library = _library()
    handle = library.VSIFOpenL(name.encode(), b"rb")
    if handle is None:
        yield None
        return
    try:
        yield GdalFile(library, handle)
    finally:
        library.VSIFCloseL(handle)


@functools.cache
def _library() -> Any:
    """GDAL's C functions, from the library that rasterio has loaded."""
    library = ctypes.CDLL(rasterio._env.__file__)
    library.VSIFOpenL.restype = ctypes.c_void_p
    library.VSIFOpenL.argtypes = [ctypes.c_char_p, ctypes.c_char_p]
    library.VSIFSeekL.argtypes = [ctypes.c_void_p, ctypes.c_uint64, ctypes.c_int]
    library.VSIFReadL.restype = ctypes.c_size_t
    library.VSIFReadL.argtypes = [
        ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t, ctypes.c_void_p,
    ]  # fmt: skip
    library.VSIFCloseL.argtypes = [ctypes.c_void_p]
    return library
