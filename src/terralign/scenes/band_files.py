"""Bands in files of their own: what they share, where they lie on one grid, and their pixels.

C bands, H W pixels throughout.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from terralign.chips import Grid, PixelLayout, Window
from terralign.errors import DataError, shown
from terralign.scenes.band_names import read_band_names
from terralign.scenes.declared import Declared
from terralign.scenes.file_layout import shared_layout
from terralign.scenes.geotiff import (
    Place,
    grid_of,
    mask_rules,
    matrix_of,
    open_raster,
    require_small_blocks,
)
from terralign.scenes.product_metadata import FileBands
from terralign.scenes.product_names import eo_browser_day
from terralign.scenes.products import BandFile, Product
from terralign.scenes.read import MAX_THREADS, Reader, decoding_threads
from terralign.scenes.remote import RemoteRaster
from terralign.scenes.resolution import enlarge, native_span, read_native
from terralign.scenes.rows import Pair, RowBuffer, block_step


def describe_product(
    path: Path, product: Product, declared: Declared
) -> tuple[PixelLayout, Grid, BandFiles]:
    """The layout of a product's bands, the finest band's grid, and the pixels' source.

    Arguments and errors as `scenes.scene.open_scene`.
    """
    with ExitStack() as stack:
        sources = _open_all(stack, [file.path for file in product.files])
        headers = [
            _read_header(file, source, product)
            for file, source in zip(product.files, sources, strict=True)
        ]
        grid = _finest(path, headers)
        bands = [
            FileBands(
                path=file.path,
                source=source,
                sensor=product.sensor,
                names=(file.band,),
                indexes=(file.index,),
            )
            for file, source in zip(product.files, sources, strict=True)
        ]
        layout, dtype = shared_layout(path, bands, declared, product.names, product.catalogued)
    nodata = product.sensor.nodata if layout.units == "dn" else None
    source = BandFiles(
        bands={header.file.band: _placed(path, header, grid) for header in headers},
        dtype=_with_room_for_nothing(dtype, nodata),
    )
    return layout, grid, source


@dataclass(frozen=True, kw_only=True, slots=True)
class _Header:
    """The header of one band's file."""

    file: BandFile
    grid: Grid
    crs: Any
    step: int
    mask_index: int | None


def _open_all(stack: ExitStack, places: Sequence[Place]) -> list[Any]:
    """Rasters, open until the stack is left; remote ones are opened at the same time."""
    if not any(isinstance(place, RemoteRaster) for place in places):
        return [stack.enter_context(open_raster(place)) for place in places]
    with ThreadPoolExecutor(MAX_THREADS) as pool:
        return list(pool.map(lambda place: stack.enter_context(open_raster(place)), places))


def _read_header(file: BandFile, source: Any, product: Product) -> _Header:
    require_small_blocks(file.path, source)
    if product.catalogued is not None and (file.index > 1 or source.count > 1):
        if file.index > source.count:
            raise DataError(
                f"{shown(file.path)} has {source.count} band(s), but its catalogue states that "
                f"{file.band} is number {file.index}; correct the catalogue"
            )
        return _header_of(file, source)
    sensor = product.sensor
    masked = source.count == 2 and eo_browser_day(file.path.name) is not None
    found = read_band_names(source, sensor)
    if not masked and sum(not extra for extra in found.extra) != 1:
        raise DataError(
            f"{shown(file.path)} has {source.count} bands; in a product with a file per band, "
            f"{file.band} is expected alone. Give a file with several bands by itself"
        )
    other = found.names[0]
    if other not in (None, file.band):
        raise DataError(
            f"{shown(file.path)} calls its band {found.texts[0]!r}, which is {other}, but its "
            f"name says {file.band}; correct one of them"
        )
    return _header_of(file, source, mask_index=2 if masked else None)


def _header_of(file: BandFile, source: Any, mask_index: int | None = None) -> _Header:
    return _Header(
        file=file,
        grid=grid_of(source),
        crs=source.crs,
        step=block_step(source),
        mask_index=mask_index,
    )


def _with_room_for_nothing(dtype: np.dtype[Any], nodata: int | None) -> np.dtype[Any]:
    """The type for bands whose pixels without data are `nodata`, or NaN where that is None."""
    if np.issubdtype(dtype, np.floating):
        return dtype
    if nodata is not None and np.can_cast(np.min_scalar_type(nodata), dtype):
        return dtype
    return np.dtype(np.float32 if dtype.itemsize <= 2 else np.float64)


_MAX_SCALE_DIFFERENCE = 1e-3
"""Pixel sizes of two bands may differ by this share from a whole ratio."""


def _finest(path: Path, headers: Sequence[_Header]) -> Grid:
    """The grid of the finest band; all others' must share its reference system."""
    for header in headers[1:]:
        if header.crs != headers[0].crs:
            raise DataError(
                f"{shown(path)}: {headers[0].file.band} is in {_crs_text(headers[0])}, "
                f"{header.file.band} in {_crs_text(header)}; bring the bands to one reference "
                "system (gdalwarp -t_srs)"
            )
    fine = min((header.grid for header in headers), key=_pixel_area)
    if not (math.isfinite(_pixel_area(fine)) and _pixel_area(fine) > 0):
        raise DataError(
            f"{shown(path)}: pixels of size 0 by its bands' georeferencing; correct it "
            "(gdal_edit.py -a_ullr)"
        )
    return fine


def _crs_text(header: _Header) -> str:
    text = header.grid.crs or "no reference system"
    return text if len(text) < 40 else text[:40] + "..."


def _pixel_area(grid: Grid) -> float:
    a, b, _, d, e, _ = grid.transform
    return abs(a * e - b * d)


def _placed(path: Path, header: _Header, fine: Grid) -> _Band:
    """Where a band's grid lies in the finest one; `DataError` where they do not nest."""
    to_fine = np.linalg.inv(matrix_of(fine)) @ matrix_of(header.grid)
    (across, skew_x, right), (skew_y, along, down), _ = to_fine.tolist()
    factor = max(1, round(across))
    off = max(abs(across / factor - 1), abs(along / factor - 1), abs(skew_x), abs(skew_y))
    ends = [down, down + along * header.grid.height - fine.height]
    ends += [right, right + across * header.grid.width - fine.width]
    slack = 0.05 if factor == 1 else factor * (1 + 1e-6)
    if off > _MAX_SCALE_DIFFERENCE or max(map(abs, ends)) > slack:
        raise DataError(
            f"{shown(path)}: the pixels of {header.file.band} "
            f"({header.grid.height}x{header.grid.width}) do not nest with those of the finest band "
            f"({fine.height}x{fine.width}); bring the bands to one grid (gdalwarp -te ... -tr ...)"
        )
    shift = (down, right) if max(abs(down), abs(right)) > 0.05 else (0.0, 0.0)
    return _Band(
        path=header.file.path,
        index=header.file.index,
        origin=shown(header.file.path),
        factor=factor,
        shift=shift,
        step=header.step,
        mask_index=header.mask_index,
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class _Band:
    """One band's file on the scene's grid (see `scenes.resolution`); `origin`: as errors name it;
    `step`: its rows that are decoded at a time."""

    path: Place
    index: int
    origin: str
    factor: int
    shift: tuple[float, float]
    step: int
    mask_index: int | None


@dataclass(frozen=True, kw_only=True, slots=True)
class BandFiles:
    """The pixels of bands in files of their own, on the finest one's grid; band names -> files.

    `dtype` holds the numbers of all, and the one that marks no data.
    """

    bands: dict[str, _Band]
    dtype: np.dtype[Any]

    @property
    def block_rows(self) -> int:
        """Rows of the scene that take as much memory as the band with most rows at a time."""
        return max(-(-band.step // band.factor) for band in self.bands.values())

    @contextmanager
    def opened(self, layout: PixelLayout, *, columns: slice | None = None) -> Iterator[Reader]:
        """What reads windows of the layout's bands (see `PixelSource`)."""
        bands = [self.bands[name] for name in layout.bands]
        with ExitStack() as stack:
            sources = _open_all(stack, [band.path for band in bands])
            if columns is None:
                natives = [_native_of(*pair) for pair in zip(bands, sources, strict=True)]
                yield lambda window: self._read(window, layout, bands, natives, map)
                return
            pool = stack.enter_context(ThreadPoolExecutor(self._num_threads(bands)))
            natives = [_rows_of(*pair, columns) for pair in zip(bands, sources, strict=True)]
            yield lambda window: self._read(window, layout, bands, natives, pool.map)

    @staticmethod
    def _num_threads(bands: Sequence[_Band]) -> int:
        """Remote files are waited for, by as many threads as there may be."""
        remote = any(isinstance(band.path, RemoteRaster) for band in bands)
        return min(len(bands), MAX_THREADS if remote else decoding_threads())

    def _read(
        self,
        window: Window,
        layout: PixelLayout,
        bands: Sequence[_Band],
        natives: Sequence[_Native],
        each: Callable[..., Iterable[None]],
    ) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        nodata = layout.sensor.nodata if layout.units == "dn" else None
        nothing = nodata if np.issubdtype(self.dtype, np.integer) else math.nan
        shape = (len(bands), window.height, window.width)
        pixels = np.full(shape, nothing, dtype=self.dtype)
        valid = np.empty(shape, dtype=bool)

        def read(number: int) -> None:
            _read_band(bands[number], natives[number], window, pixels[number])
            np.isfinite(pixels[number], out=valid[number])
            if nodata is not None:
                valid[number] &= pixels[number] != nodata

        list(each(read, range(len(bands))))
        return pixels, valid


@dataclass(frozen=True, kw_only=True, slots=True)
class _Native:
    """A band as it is stored: its size, and what reads rows and columns of it."""

    height: int
    width: int
    read: Callable[[int, int, int, int], Pair]


def _native_of(band: _Band, source: Any) -> _Native:
    rules = mask_rules(source, (band.index,))

    def read(row: int, column: int, stop_row: int, stop_column: int) -> Pair:
        return read_native(
            source, row, column, stop_row, stop_column,
            origin=band.origin, index=band.index, mask_index=band.mask_index, rules=rules,
        )  # fmt: skip

    return _Native(height=source.height, width=source.width, read=read)


def _rows_of(band: _Band, source: Any, columns: slice) -> _Native:
    """The same, for windows from the top to the bottom within some columns of the scene."""
    native = _native_of(band, source)
    _, left, _, stop = native_span(
        source.height,
        source.width,
        (1, columns.stop - columns.start),
        factor=band.factor,
        top=0,
        left=columns.start,
        shift=band.shift,
    )
    buffer = RowBuffer(
        lambda first, last: native.read(first, left, last, stop),
        step=block_step(source),
        height=source.height,
    )

    def read(row: int, column: int, stop_row: int, stop_column: int) -> Pair:
        pixels, valid = buffer.rows(row, stop_row)
        part = slice(column - left, stop_column - left)
        return pixels[:, part], valid[:, part]

    return _Native(height=source.height, width=source.width, read=read)


def _read_band(band: _Band, native: _Native, window: Window, into: NDArray[Any]) -> None:
    """A window of a band on the scene's grid; `into` holds what marks no data."""
    row, column, stop_row, stop_column = native_span(
        native.height,
        native.width,
        into.shape,
        factor=band.factor,
        top=window.row,
        left=window.column,
        shift=band.shift,
    )
    pixels, valid = native.read(row, column, stop_row, stop_column)
    enlarge(
        pixels,
        valid,
        into,
        factor=band.factor,
        top=window.row - row * band.factor,
        left=window.column - column * band.factor,
        shift=band.shift,
        origin=band.origin,
    )
