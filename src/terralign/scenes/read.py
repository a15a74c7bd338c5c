"""The pixels of one file: GeoTIFFs through rasterio, JPEG and PNG through Pillow.

C bands, H W pixels throughout.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray
from rasterio.windows import Window as RasterioWindow

from terralign.chips import Grid, PixelLayout, Window
from terralign.cores import available_cores
from terralign.errors import DataError, shown
from terralign.limits import require
from terralign.scenes.file_layout import FileLayout
from terralign.scenes.gdal_files import damage_reported
from terralign.scenes.geotiff import (
    MaskRules,
    dataset_mask,
    first_bytes,
    mask_rules,
    open_geotiff,
    valid_by_file,
)
from terralign.scenes.pictures import (
    HEAD_BYTES,
    IMAGE_FORMATS,
    decode_with_mask,
    format_of,
    no_picture,
)
from terralign.scenes.rows import Pair, RowBuffer, block_step
from terralign.sensors import SENSORS

MAX_THREADS = 8
"""Threads that read one scene at the same time, at most."""


def decoding_threads() -> int:
    """Threads that decode a scene row by row: one core is left to what its windows are for.

    With all of them a tower that computes on the CPU stands still at each row of blocks, and the
    cores then wait for the tower.
    """
    return max(1, min(MAX_THREADS, available_cores() - 1))


def kind_of(path: Path) -> Literal["tiff", "picture"]:
    """What a file is by its first bytes; `DataError` where it is neither."""
    head = first_bytes(path, HEAD_BYTES)
    kind = format_of(head)
    if kind == "TIFF":
        return "tiff"
    if kind in IMAGE_FORMATS:
        return "picture"
    raise DataError(
        f"{shown(path)} {no_picture(head, read='JPEG, PNG, WebP, BMP, GIF or GeoTIFF')}"
    )


STEP_BYTES = 32 * 2**20
"""How much of a large window is read at a time, by rows."""

STEP_COPIES = 4
"""How often that and a row of blocks are held: by GDAL, decoded, joined, and marked."""


def numbers_bytes(window: Window | Grid, layout: PixelLayout, dtype: np.dtype[Any]) -> int:
    """What the numbers of a window and their mask take."""
    return len(layout.bands) * window.height * window.width * (dtype.itemsize + 1)


def require_fit(
    path: Path, grid: Grid, layout: PixelLayout, dtype: np.dtype[Any], *, held: int | None = None
) -> None:
    """Raise `DataError` where the pixels of a window, with what reading them takes, are too much.

    `held`: bytes that are held beside them; without, as much again, for numbers in which those
    without data are marked, and for parts of the mask.
    """
    num_bytes = numbers_bytes(grid, layout, dtype)
    require(
        "chip_bytes",
        num_bytes + (num_bytes if held is None else held),
        f"{shown(path)} ({len(layout.bands)} bands of {grid.width}x{grid.height} {dtype}) needs",
        todo="read it in windows, or cut it into smaller files",
    )


Reader = Callable[[Window], tuple[NDArray[Any], NDArray[np.bool_]]]
"""Pixels and valid, (C, H, W), of a window; `DataError` where the file is damaged."""


class PixelSource(Protocol):
    """Where a scene's pixels come from."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """The type that holds the numbers of all bands."""
        ...

    @property
    def block_rows(self) -> int:
        """Rows of the scene that its highest row of blocks takes the memory of."""
        ...

    def opened(
        self, layout: PixelLayout, *, columns: slice | None = None
    ) -> AbstractContextManager[Reader]:
        """The files, open: what reads windows of the layout's bands.

        `columns`: the windows lie within these columns and come from the top to the bottom; rows of
        blocks are then decoded as a whole, each once.
        """
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class PictureSource:
    """A picture as sensor `rgb`: DN 0-255, `valid` False where it is transparent.

    Greyscale, palette and CMYK are converted to RGB. An orientation stored in EXIF is not applied:
    CLIP's own evaluation does not apply it either.
    """

    path: Path

    @property
    def dtype(self) -> np.dtype[Any]:
        """That of 8 bits."""
        return np.dtype(np.uint8)

    @property
    def block_rows(self) -> int:
        """None are held beyond the picture itself."""
        return 0

    @contextmanager
    def opened(self, layout: PixelLayout, *, columns: slice | None = None) -> Iterator[Reader]:
        """What reads windows of the layout's bands; the picture is decoded as a whole."""
        pixels, mask = decode_with_mask(self.path)
        if layout.bands != SENSORS["rgb"].band_names:
            pixels = pixels[[SENSORS["rgb"].band_names.index(name) for name in layout.bands]]
        valid = np.broadcast_to(mask, pixels.shape)

        def read(window: Window) -> tuple[NDArray[Any], NDArray[np.bool_]]:
            rows = slice(window.row, window.row + window.height)
            columns = slice(window.column, window.column + window.width)
            return pixels[:, rows, columns], valid[:, rows, columns]

        yield read


@dataclass(frozen=True, kw_only=True, slots=True)
class GeotiffSource:
    """A GeoTIFF with all bands; `block_rows`: rows that are decoded at a time."""

    path: Path
    described: FileLayout
    block_rows: int

    @property
    def dtype(self) -> np.dtype[Any]:
        """The type that holds all bands."""
        return self.described.dtype

    @contextmanager
    def opened(self, layout: PixelLayout, *, columns: slice | None = None) -> Iterator[Reader]:
        """What reads windows of the layout's bands (see `PixelSource`)."""
        if columns is None:
            with open_geotiff(self.path) as source:
                yield self.reader(source, layout)
            return
        with open_geotiff(self.path, num_threads=decoding_threads()) as source:
            yield _by_rows(self.reader(source, layout), source, columns)

    def reader(self, source: Any, layout: PixelLayout) -> Reader:
        """What reads windows of the layout's bands from the open file."""
        known = self.described.layout.bands
        indexes = tuple(self.described.indexes[known.index(name)] for name in layout.bands)
        rules = mask_rules(source, indexes)
        return lambda window: self._read(source, window, layout, indexes, rules)

    def _read(
        self,
        source: Any,
        window: Window,
        layout: PixelLayout,
        indexes: tuple[int, ...],
        rules: MaskRules,
    ) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        part = RasterioWindow(window.column, window.row, window.width, window.height)
        with damage_reported(shown(self.path)):
            pixels = source.read(indexes, window=part)
            valid = valid_by_file(source, pixels, indexes=indexes, window=part, rules=rules)
            if layout.sensor == SENSORS["rgb"] and self.dtype == np.uint8:
                valid[:] = dataset_mask(source, part) > 0  # as pictures are masked
        if layout.units == "dn" and layout.sensor.nodata is not None:
            valid &= pixels != layout.sensor.nodata
        return pixels, valid


def _by_rows(read: Reader, source: Any, columns: slice) -> Reader:
    """What reads windows within some columns from the top to the bottom, each block once."""
    width = columns.stop - columns.start

    def decode(first: int, stop: int) -> Pair:
        return read(Window(row=first, column=columns.start, height=stop - first, width=width))

    buffer = RowBuffer(decode, step=block_step(source), height=source.height)

    def cut(window: Window) -> Pair:
        pixels, valid = buffer.rows(window.row, window.row + window.height)
        first = window.column - columns.start
        part = slice(first, first + window.width)
        return pixels[..., part], valid[..., part]

    return cut
