"""Clouds and their shadows on a scene's grid, from the masks that come with products.

Sources: scene classification of Sentinel-2 L2A (ESA *Sentinel-2 Products Specification*: 3 cloud
shadow, 8 and 9 cloud, 10 thin cirrus); `Fmask` of HLS (NASA *HLS User Guide* v2.0: bit 1 cloud,
bit 3 cloud shadow); `QA_PIXEL` of Landsat Collection 2 (USGS: bit 2 cirrus, bit 3 cloud, bit 4
cloud shadow); `QA60` of Earth Engine (bit 10 cloud, bit 11 cirrus). H W pixels.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rasterio.windows import Window as RasterioWindow

from terralign.chips import Grid, Window
from terralign.errors import DataError, shown
from terralign.scenes.gdal_files import damage_reported
from terralign.scenes.geotiff import Place, grid_of, matrix_of, open_raster, require_small_blocks
from terralign.scenes.rows import Pair, RowBuffer, block_step

Clouded = Callable[[NDArray[Any]], NDArray[np.bool_]]


def _any_bit(*bits: int, fill: int | None = None) -> Clouded:
    wanted = sum(1 << bit for bit in bits)

    def read(numbers: NDArray[Any]) -> NDArray[np.bool_]:
        clouded: NDArray[np.bool_] = (numbers & wanted) != 0
        return clouded if fill is None else clouded & (numbers != fill)

    return read


CLOUDED: Mapping[str, Clouded] = MappingProxyType(
    {
        "scl": lambda numbers: np.isin(numbers, (3, 8, 9, 10)),
        "fmask": _any_bit(1, 3, fill=255),
        "qa_pixel": _any_bit(2, 3, 4, fill=1),
        "qa60": _any_bit(10, 11),
        "mask": lambda numbers: (numbers != 0) & (numbers != 255),
    }
)
"""Kind of mask -> where its whole numbers mean a cloud or its shadow. 255 of a plain mask is no
data."""

_KINDS = (
    (re.compile(r"(?:.*[_.\- ])?SCL(?:[_-]\d\dm)?", re.IGNORECASE), "scl"),
    (re.compile(r"(?:.*[_.\- ])?Fmask", re.IGNORECASE), "fmask"),
    (re.compile(r"(?:.*[_.\- ])?QA_PIXEL", re.IGNORECASE), "qa_pixel"),
    (re.compile(r"(?:.*[_.\- ])?QA60", re.IGNORECASE), "qa60"),
    (re.compile(r"(?:.*[_.\- ])?(?:cloud_?mask|CLM)", re.IGNORECASE), "mask"),
)


def mask_kind(name: str) -> str | None:
    """Which mask of clouds a band, asset or file without its ending is by its name, if any."""
    return next((kind for pattern, kind in _KINDS if pattern.fullmatch(name)), None)


@dataclass(frozen=True, kw_only=True, slots=True)
class CloudMask:
    """A raster that marks clouds: its place, its band there (from 1), and its kind of numbers (a
    key of `CLOUDED`)."""

    place: Place
    kind: str
    index: int = 1

    @contextmanager
    def opened(self, scene: Grid) -> Iterator[Callable[[Window], NDArray[np.bool_]]]:
        """What reads windows of a scene with this grid: (H, W), True where there is a cloud or its
        shadow.

        The mask has its own pixel size; the nearest of its pixels counts, and what lies beyond it
        is no cloud. Windows are read fastest from the top to the bottom. `DataError` where the mask
        is damaged, or does not lie on the scene's axes.
        """
        with open_raster(self.place) as source:
            require_small_blocks(self.place, source)
            rows, columns = self._positions(scene, grid_of(source))
            buffer = RowBuffer(
                lambda first, stop: self._decode(source, first, stop),
                step=block_step(source),
                height=source.height,
            )
            size = (source.height, source.width)
            yield lambda window: self._read(buffer, rows, columns, window, size)

    def _decode(self, source: Any, first: int, stop: int) -> Pair:
        """Some rows of the mask, as whole numbers."""
        part = RasterioWindow(0, first, source.width, stop - first)
        with damage_reported(shown(self.place)):
            numbers = source.read(self.index, window=part)
        if not np.issubdtype(numbers.dtype, np.integer):
            numbers = np.nan_to_num(numbers).astype(np.int64)
        return numbers, np.ones(numbers.shape, dtype=bool)

    def _positions(self, scene: Grid, mask: Grid) -> tuple[_Axis, _Axis]:
        """Where a scene's rows and columns lie in the mask."""
        to_mask = np.linalg.inv(matrix_of(mask)) @ matrix_of(scene)
        (across, skew_x, right), (skew_y, along, down), _ = to_mask.tolist()
        skewed = max(abs(skew_x), abs(skew_y)) * max(scene.height, scene.width)
        if mask.crs != scene.crs or skewed > 0.5 or across <= 0 or along <= 0:
            raise DataError(
                f"{shown(self.place)}: the mask of clouds is in {mask.crs}, not along the axes of "
                f"the scene, which is in {scene.crs}; bring it to the scene's grid (gdalwarp)"
            )
        rows = (down, down + along * scene.height)
        columns = (right, right + across * scene.width)
        if min(rows[1], columns[1]) <= 0 or rows[0] >= mask.height or columns[0] >= mask.width:
            raise DataError(
                f"{shown(self.place)}: the mask of clouds lies elsewhere than the scene; give the "
                "scene its own, or remove it"
            )
        return (along, down), (across, right)

    def _read(
        self,
        buffer: RowBuffer,
        rows: _Axis,
        columns: _Axis,
        window: Window,
        size: tuple[int, int],
    ) -> NDArray[np.bool_]:
        down, inside_down = _nearest(rows, window.row, window.height, size[0])
        across, inside_across = _nearest(columns, window.column, window.width, size[1])
        clouded = np.zeros((window.height, window.width), dtype=bool)
        if inside_down.any() and inside_across.any():
            first, stop = int(down.min()), int(down.max()) + 1
            left, right = int(across.min()), int(across.max()) + 1
            numbers = buffer.rows(first, stop)[0][:, left:right]
            marked = CLOUDED[self.kind](numbers)
            clouded = marked[down - first][:, across - left]
            clouded &= inside_down[:, None] & inside_across
        return clouded


_Axis = tuple[float, float]
"""Scale and shift from pixels of the scene to those of the mask."""


def _nearest(
    axis: _Axis, first: int, count: int, length: int
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Which pixel of the mask each of the scene lies in, and whether the mask reaches there."""
    scale, shift = axis
    places = np.floor((np.arange(first, first + count) + 0.5) * scale + shift + 1e-6)
    inside = (places >= 0) & (places < length)
    return places.clip(0, length - 1).astype(np.int64), inside
