"""GeoTIFFs opened by GDAL's own GeoTIFF driver alone, and their masks."""

from __future__ import annotations

import os
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio.enums import MaskFlags
from rasterio.errors import NotGeoreferencedWarning, RasterioError
from rasterio.io import MemoryFile

from terralign.chips import Grid
from terralign.errors import DataError, first_line, shown

_warnings_lock = threading.Lock()


def first_bytes(path: Path, count: int) -> bytes:
    """The first bytes of a file; `DataError` where it is missing or cannot be read."""
    require_file(path)
    try:
        with open(path, "rb") as file:
            return file.read(count)
    except OSError as error:
        raise DataError(f"{shown(path)} cannot be read: {error.strerror}") from error


def require_file(path: Path) -> None:
    """Raise `DataError` where `path` is missing or is no file."""
    try:
        if path.is_file():
            return
        what = "is not a file" if path.exists() else "not found"
    except OSError as error:  # a name that is too long, a folder that may not be entered
        what = f"cannot be read: {error.strerror}"
    raise DataError(f"{shown(path)} {what}")


def _require_utf8(path: Path) -> None:
    """Raise `DataError` for a name that GDAL, which takes UTF-8, cannot be given."""
    try:
        str(path).encode()
    except UnicodeEncodeError as error:
        raise DataError(
            f"{shown(path)}: its name, or its folder's, is not UTF-8, which GDAL does not open; "
            "rename it"
        ) from error


@contextmanager
def open_geotiff(path: Path, *, num_threads: int = 1) -> Iterator[Any]:
    """An open rasterio dataset, by the GeoTIFF driver only: no file can make GDAL open another.

    `num_threads`: decode the blocks of one reading at the same time. Raises `DataError` where the
    file is missing or no GeoTIFF.
    """
    require_file(path)
    _require_utf8(path)
    threads = {} if num_threads == 1 else {"NUM_THREADS": str(num_threads)}
    with _opened(lambda: rasterio.open(path, driver="GTiff", **threads), shown(path)) as source:
        yield source


@contextmanager
def open_geotiff_bytes(content: bytes, *, origin: str) -> Iterator[Any]:
    """The same of a GeoTIFF in memory; `origin` is what `DataError` calls it."""
    with (
        MemoryFile(content) as memory,
        _opened(lambda: memory.open(driver="GTiff"), origin) as source,
    ):
        yield source


def grid_of(source: Any) -> Grid:
    """The pixel grid of an open rasterio dataset."""
    return Grid(
        crs=source.crs.to_string() if source.crs else None,
        transform=tuple(source.transform)[:6],
        height=source.height,
        width=source.width,
    )


_JP2 = (b"\0\0\0\x0cjP  \r\n\x87\n", b"\xff\x4f\xff\x51")
"""First bytes of JPEG 2000 files and codestreams."""


@contextmanager
def open_raster(path: Path) -> Iterator[Any]:
    """An open GeoTIFF or JPEG 2000 file, by these two drivers of GDAL only, as `open_geotiff`."""
    jpeg2000 = first_bytes(path, 12).startswith(_JP2)
    _require_utf8(path)
    driver, kind = ("JP2OpenJPEG", "JPEG 2000 file") if jpeg2000 else ("GTiff", "GeoTIFF")
    with _opened(lambda: rasterio.open(path, driver=driver), shown(path), kind=kind) as source:
        yield source


MAX_BLOCK_BYTES = 1024**3
"""A file whose blocks take more memory than this each is refused; they are read one at a time."""


def require_small_blocks(path: Path, source: Any) -> None:
    """Raise `DataError` where blocks of an open dataset are larger than `MAX_BLOCK_BYTES`."""
    for (height, width), dtype in zip(source.block_shapes, source.dtypes, strict=True):
        num_bytes = height * width * np.dtype(dtype).itemsize
        if num_bytes > MAX_BLOCK_BYTES:
            raise DataError(
                f"{shown(path)} is stored in blocks of {num_bytes / 2**20:.0f} MiB, more than the "
                f"limit of {MAX_BLOCK_BYTES / 2**20:.0f} MiB; write it in tiles "
                "(gdal_translate -co TILED=YES)"
            )


def _opened(opening: Callable[[], Any], origin: str, *, kind: str = "GeoTIFF") -> Any:
    try:
        with _warnings_lock, warnings.catch_warnings():
            warnings.simplefilter("ignore", NotGeoreferencedWarning)
            return opening()
    except (RasterioError, OSError, ValueError) as error:
        reason = first_line(error).replace(f"'{origin}'", "it is").removeprefix("it is ")
        reason = reason.removeprefix(f"{os.path.basename(origin)}: ")
        raise DataError(f"{origin} is not a readable {kind}: {reason}") from error


def read_mask(source: Path | bytes, what: str) -> NDArray[np.bool_]:
    """(H, W), True where a GeoTIFF has data by its no-data numbers, mask or alpha.

    Of several bands with a no-data number, one with data is enough: pure blue has no red.
    """
    opening = (
        open_geotiff(source)
        if isinstance(source, Path)
        else open_geotiff_bytes(source, origin=what)
    )
    with opening as file:
        return _read(lambda: file.dataset_mask(), what)


def read_mask_file(path: Path) -> NDArray[np.bool_]:
    """(H, W), True where a mask in a separate file (`.msk`) is not 0."""
    with open_geotiff(path) as file:
        return _read(lambda: file.read(1), shown(path))


def _read(reading: Callable[[], Any], what: str) -> NDArray[np.bool_]:
    try:
        return np.asarray(reading()) > 0
    except (RasterioError, OSError, ValueError) as error:
        raise DataError(f"the mask of {what} is damaged: {first_line(error)}") from error


def items_of(source: Any, position: int) -> dict[str, str]:
    """GDAL metadata items of a file and of its band `position`, from 1; keys in lower case."""
    both = {**source.tags(), **source.tags(position)}
    return {key.lower(): str(value) for key, value in both.items()}


_FILL_ITEMS = ("_fillvalue", "missing_value")
"""Items in which netCDF and xarray state what marks no data."""


def _no_data_numbers(source: Any, index: int) -> set[float]:
    """The finite numbers that a file states to mark no data in its band `index`, from 1."""
    stated = [source.nodatavals[index - 1]]
    items = items_of(source, index)
    for text in (items[key] for key in _FILL_ITEMS if key in items):
        try:
            stated.append(float(text))
        except ValueError:
            continue  # a list, or a text: of no number
    return {number for number in stated if number is not None and np.isfinite(number)}


_MASKED = {MaskFlags.per_dataset, MaskFlags.alpha}


def valid_by_file(
    source: Any, pixels: NDArray[Any], *, indexes: Sequence[int] = (), window: Any = None
) -> NDArray[np.bool_]:
    """(C, H, W) bool of bands as read from an open GeoTIFF, True where the file has data.

    False where a number is not finite or the band's no-data value (GDAL's, or an item `_FillValue`
    or `missing_value`), and where the file masks it: internal mask, `.msk` beside it, alpha band.
    `indexes`: which bands were read, from 1; none:
    all. `window`: the part that was read; of another size than the file's, pixels were resampled,
    and so is the mask (nearest).
    """
    valid: NDArray[np.bool_] = np.isfinite(pixels)
    flags = source.mask_flag_enums  # of all bands, made anew at every call
    for channel, index in enumerate(indexes or range(1, len(pixels) + 1)):
        for nodata in _no_data_numbers(source, index):
            valid[channel] &= pixels[channel] != nodata
        if _MASKED & set(flags[index - 1]):
            shape = pixels.shape[1:]
            valid[channel] &= source.read_masks(index, window=window, out_shape=shape) > 0
    return valid
