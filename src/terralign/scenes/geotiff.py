"""GeoTIFFs opened by GDAL's own GeoTIFF driver alone, and their masks.

GDAL takes what lies beside a file too: statistics, masks, overviews. Those are looked at before it
does, since it would open a mask by any of its drivers, of which some open what a file names.
"""

from __future__ import annotations

import functools
import io
import os
import stat
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio._env import get_gdal_config, set_gdal_config
from rasterio._err import CPLE_BaseError
from rasterio.enums import ColorInterp, Interleaving, MaskFlags
from rasterio.errors import NotGeoreferencedWarning, RasterioError
from rasterio.io import MemoryFile

from terralign.chips import Grid
from terralign.errors import DataError, first_line, shown
from terralign.files import missing_hint
from terralign.limits import require
from terralign.scenes.archives import gdal_name, in_archive, open_member
from terralign.scenes.band_names import is_validity
from terralign.scenes.gdal_files import damage_reported, open_gdal_file, plain_damage
from terralign.scenes.remote import RemoteRaster, explain_remote
from terralign.scenes.tiff_pages import Readable, read_pages

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
        what = "is not a file" if path.exists() else f"not found{missing_hint(path)}"
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
    with _opened(lambda: _open_file(path, **threads), shown(path)) as source, _told(shown(path)):
        yield source


@contextmanager
def open_geotiff_bytes(content: bytes, *, origin: str) -> Iterator[Any]:
    """The same of a GeoTIFF in memory; `origin` is what `DataError` calls it."""
    _check_pages(io.BytesIO(content), origin)
    with (
        MemoryFile(content) as memory,
        _opened(lambda: memory.open(driver="GTiff"), origin) as source,
        _told(origin),
    ):
        yield source


@contextmanager
def _told(origin: str) -> Iterator[None]:
    """Report what GDAL finds wrong with an open file as its fault, whatever it was asked for."""
    try:
        yield
    except (RasterioError, CPLE_BaseError, UnicodeDecodeError) as error:
        raise DataError(f"{origin} is damaged: {plain_damage(first_line(error))}") from error


def _open_file(path: Path, **options: str) -> Any:
    """A GeoTIFF opened by rasterio, once its tags and what lies beside it were looked at."""
    _check_beside(path)
    with open(path, "rb") as file:
        _check_pages(file, shown(path))
    return rasterio.open(path, driver="GTiff", **options)


def _check_pages(file: Readable, what: str) -> None:
    """Raise `DataError` where a TIFF claims too much; other damage is GDAL's to report."""
    with suppress(ValueError):
        read_pages(file, what)


_RASTERS_BESIDE = (".msk", ".ovr")
"""What is added to a file's name for its mask and overviews, which are GeoTIFFs."""

_TEXTS_BESIDE = (".tfw", ".tifw", ".j2w", ".wld", ".tab", ".xml", ".imd", ".rpb")
"""Endings of texts that GDAL takes for a file's place and metadata, in lower or upper case."""


def _check_beside(path: Path) -> None:
    """Raise `DataError` where GDAL should not open what it finds beside a file."""
    stem = os.path.splitext(path)[0]
    texts = [f"{path}.aux.xml", *(stem + one for one in _TEXTS_BESIDE)]
    texts += [stem + one.upper() for one in _TEXTS_BESIDE]
    for name in texts:
        size = _size_beside(name)
        if size is not None:
            require("text_bytes", size, f"{shown(name)} has", todo="remove it")
    for ending in _RASTERS_BESIDE:
        beside = Path(f"{path}{ending}")
        if _size_beside(str(beside)) is None:
            continue
        with open(beside, "rb") as file:
            if not file.read(4).startswith((b"II*\0", b"II+\0", b"MM\0*", b"MM\0+")):
                raise DataError(
                    f"{shown(beside)} is no GeoTIFF, as a mask or overview is; remove it"
                )
            _check_pages(file, shown(beside))


def _size_beside(name: str) -> int | None:
    """The size of a file in bytes, None where it is missing; `DataError` where it is no file."""
    if not os.access(name, os.F_OK):
        return None
    try:
        status = os.stat(name)
    except OSError:
        return None
    if not stat.S_ISREG(status.st_mode):
        raise DataError(f"{shown(name)} is not a file; remove it")
    return status.st_size


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


Place = Path | RemoteRaster
"""Where a raster is: a file, one in a zip (see `archives`), or an address."""

_ALONE = {"GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR"}
"""GDAL does not look for what lies beside a file in a zip."""


@contextmanager
def open_raster(path: Place) -> Iterator[Any]:
    """An open GeoTIFF or JPEG 2000 file, by these two drivers of GDAL only, as `open_geotiff`."""
    if isinstance(path, RemoteRaster):
        with closing(_open_remote(path)) as source:
            yield source
        return
    member = in_archive(path)
    if member is None:
        jpeg2000 = first_bytes(path, 12).startswith(_JP2)
        _require_utf8(path)
    else:
        jpeg2000 = _is_jpeg2000(path.name)
    driver, kind = _driver(jpeg2000)

    def opening() -> Any:
        if member is not None:
            name = gdal_name(*member)
            if not jpeg2000:
                with open_member(*member) as file:
                    _check_pages(file, shown(path))
            with rasterio.Env(**_ALONE):
                return rasterio.open(name, driver=driver)
        if not jpeg2000:
            return _open_file(path)
        _check_beside(path)
        return rasterio.open(path, driver=driver)

    with _opened(opening, shown(path), kind=kind) as source, _told(shown(path)):
        yield source


def _is_jpeg2000(name: str) -> bool:
    return name.lower().endswith((".jp2", ".j2k"))


def _driver(jpeg2000: bool) -> tuple[str, str]:
    return ("JP2OpenJPEG", "JPEG 2000 file") if jpeg2000 else ("GTiff", "GeoTIFF")


def _open_remote(raster: RemoteRaster) -> Any:
    """Without the lock that `_opened` takes: several are opened at the same time.

    The dataset is to be closed, not left as a context, which would end rasterio's settings of
    another thread.
    """
    driver, kind = _driver(_is_jpeg2000(raster.name))
    name, settings = raster.address()
    chosen = {key: value for key, value in settings.items() if key not in os.environ}
    try:
        _limit_cache()
        with rasterio.Env(**chosen):
            if driver == "GTiff":
                with open_gdal_file(name) as file:
                    if file is not None:
                        _check_pages(file, shown(raster))
            source = rasterio.open(name, driver=driver)
    except (RasterioError, OSError, ValueError) as error:
        text = first_line(error).replace(name, str(raster)).replace(f"'{raster}'", "it is")
        text = f"{raster} is not a readable {kind}: {text.removeprefix('it is ')}"
        raise DataError(explain_remote(raster, text)) from error
    _refuse_other_overviews(source, shown(raster))
    return source


def require_small_blocks(path: Place | str, source: Any) -> None:
    """Raise `DataError` where a block of an open dataset is larger than the limit.

    Blocks are read one at a time; those of pixel interleaving hold all bands.
    """
    require("raster_bands", source.count, f"{shown(path)} has", todo="split it")
    require("raster_rows", source.height, f"{shown(path)} has", todo="cut it into smaller files")
    sizes = [
        height * width * np.dtype(dtype).itemsize
        for (height, width), dtype in zip(source.block_shapes, source.dtypes, strict=True)
    ]
    together = source.interleaving == Interleaving.pixel
    require(
        "block_bytes",
        sum(sizes) if together else max(sizes),
        f"{shown(path)} is stored in blocks of",
        todo="write it in tiles (gdal_translate -co TILED=YES)",
    )


CACHE_BYTES = 128 * 2**20
"""What GDAL keeps of blocks that it read; a row of tiles of 512 pixels of all bands of a
Sentinel-2 scene fits."""


@functools.cache
def _limit_cache() -> None:
    """Keep GDAL's cache, a share of the machine's memory by default, to `CACHE_BYTES`."""
    if "GDAL_CACHEMAX" not in os.environ and get_gdal_config("GDAL_CACHEMAX") > CACHE_BYTES:
        set_gdal_config("GDAL_CACHEMAX", CACHE_BYTES)


def _opened(opening: Callable[[], Any], origin: str, *, kind: str = "GeoTIFF") -> Any:
    try:
        with _warnings_lock, warnings.catch_warnings():
            warnings.simplefilter("ignore", NotGeoreferencedWarning)
            _limit_cache()
            source = opening()
    except (RasterioError, CPLE_BaseError, OSError, ValueError) as error:
        reason = first_line(error).replace(f"'{origin}'", "it is").removeprefix("it is ")
        reason = plain_damage(reason.removeprefix(f"{os.path.basename(origin)}: "))
        raise DataError(f"{origin} is not a readable {kind}: {reason}") from error
    _refuse_other_overviews(source, origin)
    return source


def _refuse_other_overviews(source: Any, origin: str) -> None:
    if any(key.upper() == "OVERVIEW_FILE" for key in source.tags(ns="OVERVIEWS")):
        source.close()
        raise DataError(
            f"{origin} names another file for its overviews; remove that (OVERVIEW_FILE)"
        )


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
        require_small_blocks(what, file)
        return _read(lambda: dataset_mask(file), what)


def read_mask_file(path: Path, shape: tuple[int, int]) -> NDArray[np.bool_]:
    """(H, W), True where a mask in a separate file (`.msk`) is not 0; `DataError` where it has
    another shape."""
    with open_geotiff(path) as file:
        require_small_blocks(path, file)
        if (file.height, file.width) != shape:
            raise DataError(
                f"the mask {shown(path)} has {file.height}x{file.width} pixels, its picture "
                f"{shape[0]}x{shape[1]}; remove it, or make it anew"
            )
        return _read(lambda: file.read(1), shown(path))


def _read(reading: Callable[[], Any], what: str) -> NDArray[np.bool_]:
    with damage_reported(f"the mask of {what}"):
        return np.asarray(reading()) > 0


def matrix_of(grid: Grid) -> NDArray[np.float64]:
    """(column, row, 1) to map units, (3, 3)."""
    return np.array([*grid.transform, 0, 0, 1]).reshape(3, 3)


def items_of(source: Any, position: int) -> dict[str, str]:
    """GDAL metadata items of a file and of its band `position`, from 1; keys in lower case."""
    return _lowered({**source.tags(), **source.tags(position)})


def _lowered(items: Mapping[str, Any]) -> dict[str, str]:
    return {key.lower(): str(value) for key, value in items.items()}


_FILL_ITEMS = ("_fillvalue", "missing_value")
"""Items in which netCDF and xarray state what marks no data."""


def _no_data_numbers(source: Any, index: int, of_file: Mapping[str, str]) -> set[float]:
    """The finite numbers that a file states to mark no data in its band `index`, from 1."""
    stated = [source.nodatavals[index - 1]]
    items = _lowered({**of_file, **source.tags(index)})
    for text in (items[key] for key in _FILL_ITEMS if key in items):
        try:
            stated.append(float(text))
        except ValueError:
            continue  # a list, or a text: of no number
    return {number for number in stated if number is not None and np.isfinite(number)}


_MASKED = {MaskFlags.per_dataset, MaskFlags.alpha}


MaskRules = Sequence[tuple[set[float], bool, int]]
"""Of each band the numbers that mark no data, whether the file masks it besides, and the band whose
zeros do (see `_mask_band`), 0 where none."""


def _mask_band(source: Any) -> int:
    """The band of an open GeoTIFF whose zeros mark no data though GDAL takes no notice of it: by
    its name, or alpha beside a no-data number; else 0."""
    for index, text in enumerate(source.descriptions, start=1):
        if text and is_validity(text):
            return index
    found = next((n for n, one in enumerate(source.colorinterp, 1) if one == ColorInterp.alpha), 0)
    return found if MaskFlags.nodata in source.mask_flag_enums[0] and found > 1 else 0


def dataset_mask(source: Any, window: Any = None) -> NDArray[np.uint8]:
    """(H, W) of an open GeoTIFF, 0 where it has no data by its no-data numbers, mask or alpha."""
    aside = _mask_band(source)
    if not aside:
        found: NDArray[np.uint8] = source.dataset_mask(window=window)
        return found
    bands = [index for index in range(1, source.count + 1) if index != aside]
    pixels = source.read(bands, window=window)
    valid = valid_by_file(source, pixels, indexes=bands, window=window)
    return np.asarray(valid.any(0) * 255, dtype=np.uint8)


def mask_rules(source: Any, indexes: Sequence[int]) -> MaskRules:
    """How an open GeoTIFF marks no data in its bands `indexes`, from 1."""
    flags = source.mask_flag_enums
    of_file = source.tags()
    aside = _mask_band(source)
    return [
        (_no_data_numbers(source, index, of_file), bool(_MASKED & set(flags[index - 1])), aside)
        for index in indexes
    ]


def valid_by_file(
    source: Any,
    pixels: NDArray[Any],
    *,
    indexes: Sequence[int] = (),
    window: Any = None,
    rules: MaskRules | None = None,
) -> NDArray[np.bool_]:
    """(C, H, W) bool of bands as read from an open GeoTIFF, True where the file has data.

    False where a number is not finite or the band's no-data value (GDAL's, or an item `_FillValue`
    or `missing_value`), and where the file masks it: internal mask, `.msk` beside it, alpha band.
    `indexes`: which bands were read, from 1; none: all. `window`: the part that was read; of
    another size than the file's, pixels were resampled, and so is the mask (nearest). `rules`:
    `mask_rules` of these bands, where several windows are read.
    """
    valid: NDArray[np.bool_] = np.isfinite(pixels)
    indexes = indexes or range(1, len(pixels) + 1)
    rules = mask_rules(source, indexes) if rules is None else rules
    shape = pixels.shape[1:]
    marked: dict[int, NDArray[np.bool_]] = {}
    for channel, (index, (numbers, masked, aside)) in enumerate(zip(indexes, rules, strict=True)):
        for nodata in numbers:
            valid[channel] &= pixels[channel] != nodata
        if masked:
            valid[channel] &= source.read_masks(index, window=window, out_shape=shape) > 0
        if aside and index != aside:
            if aside not in marked:  # one band of the file, read for all of the others at once
                marked[aside] = source.read(aside, window=window, out_shape=shape) > 0
            valid[channel] &= marked[aside]
    return valid
