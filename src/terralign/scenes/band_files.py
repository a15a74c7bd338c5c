"""Bands in files of their own: what they share, where they lie on one grid, and their pixels.

C bands, H W pixels throughout.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from terralign.chips import Grid, PixelLayout, Units, Window, make_layout
from terralign.errors import DataError, UnknownOffsetError, shown
from terralign.scenes.band_names import read_band_names
from terralign.scenes.file_layout import offset_of, other_scale, shared_dtype, units_of
from terralign.scenes.geotiff import open_for_windows, open_raster, require_small_blocks
from terralign.scenes.product_metadata import stated_scale
from terralign.scenes.product_names import eo_browser_day
from terralign.scenes.products import BandFile, Product
from terralign.scenes.read import grid_of
from terralign.scenes.resolution import read_enlarged
from terralign.sensors import Sensor


def describe_product(
    path: Path,
    product: Product,
    *,
    units: Units | None,
    dn_offset: float | None,
    composite: str | None,
) -> tuple[PixelLayout, Grid, BandFiles]:
    """The layout of a product's bands, the finest band's grid, and the pixels' source.

    Arguments and errors as `scenes.scene.open_scene`.
    """
    sensor = product.sensor
    headers = [_read_header(file, sensor) for file in product.files]
    grid = _finest(path, headers)
    dtype = shared_dtype(path, {header.file.band: header.dtype for header in headers})
    scale = _shared_scale(path, headers)
    units = units_of(path, sensor, dtype, units, scale)
    layout = make_layout(
        sensor,
        [file.band for file in product.files],
        units=units,
        dn_offset=_shared_offset(path, product, headers, units, dn_offset),
        composite=composite,
        stated_scale=other_scale(path, sensor, scale, dn_offset),
    )
    nodata = sensor.nodata if units == "dn" else None
    source = BandFiles(
        bands={header.file.band: _placed(path, header, grid) for header in headers},
        dtype=_with_room_for_nothing(dtype, nodata),
    )
    return layout, grid, source


@dataclass(frozen=True, kw_only=True, slots=True)
class _Header:
    """What the header of one band's file says."""

    file: BandFile
    grid: Grid
    crs: Any
    dtype: np.dtype[Any]
    scale: tuple[float, float] | None
    mask_index: int | None


def _read_header(file: BandFile, sensor: Sensor) -> _Header:
    with open_raster(file.path) as source:
        require_small_blocks(file.path, source)
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
        return _Header(
            file=file,
            grid=grid_of(source),
            crs=source.crs,
            dtype=np.dtype(source.dtypes[0]),
            scale=stated_scale(file.path, source, sensor, (1,)),
            mask_index=2 if masked else None,
        )


def _with_room_for_nothing(dtype: np.dtype[Any], nodata: int | None) -> np.dtype[Any]:
    """The type for bands whose pixels without data are `nodata`, or NaN where that is None."""
    if np.issubdtype(dtype, np.floating):
        return dtype
    if nodata is not None and np.can_cast(np.min_scalar_type(nodata), dtype):
        return dtype
    return np.dtype(np.float32 if dtype.itemsize <= 2 else np.float64)


def _shared_scale(path: Path, headers: Sequence[_Header]) -> tuple[float, float] | None:
    first = headers[0]
    for header in headers[1:]:
        if header.scale != first.scale:
            raise DataError(
                f"{shown(path)}: {_scale_text(first)}, {_scale_text(header)}; the bands of one "
                "product must state the same scale and offset: correct the files, or give bands "
                "that agree"
            )
    return first.scale


def _scale_text(header: _Header) -> str:
    if header.scale is None:
        return f"{header.file.band} states no scale"
    return f"{header.file.band} states scale {header.scale[0]:g} and offset {header.scale[1]:g}"


def _shared_offset(
    path: Path,
    product: Product,
    headers: Sequence[_Header],
    units: Units,
    declared: float | None,
) -> float:
    """The DN offset of all bands; `UnknownOffsetError` where none says it, `DataError` where they
    differ."""
    offsets: dict[str, float] = {}
    unknown: list[UnknownOffsetError] = []
    for header in headers:
        file = header.file
        with open_raster(file.path) as source:
            try:
                offsets[file.band] = offset_of(
                    file.path,
                    source,
                    product.sensor,
                    (file.band,),
                    (1,),
                    units,
                    header.scale,
                    declared,
                    product=f"{file.path.name} in {' in '.join(product.names)}",
                )
            except UnknownOffsetError as error:
                unknown.append(error)
    if not offsets:
        raise unknown[0]
    if unknown or len(set(offsets.values())) > 1:
        stated = ", ".join(
            f"{header.file.band} {offsets.get(header.file.band, 'none')}" for header in headers
        )
        raise DataError(
            f"{shown(path)}: its bands state different DN offsets ({stated}); correct the files, "
            "or give bands that agree"
        )
    return next(iter(offsets.values()))


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
    to_fine = np.linalg.inv(_matrix(fine)) @ _matrix(header.grid)
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
        origin=shown(header.file.path),
        factor=factor,
        shift=shift,
        mask_index=header.mask_index,
    )


def _matrix(grid: Grid) -> NDArray[np.float64]:
    """(column, row, 1) to map units, (3, 3)."""
    return np.array([*grid.transform, 0, 0, 1]).reshape(3, 3)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Band:
    """One band's file on the scene's grid (see `read_enlarged`); `origin`: as errors name it."""

    path: Path
    origin: str
    factor: int
    shift: tuple[float, float]
    mask_index: int | None


@dataclass(frozen=True, kw_only=True, slots=True)
class BandFiles:
    """The pixels of bands in files of their own, on the finest one's grid; band names -> files.

    `dtype` holds the numbers of all, and the one that marks no data.
    """

    bands: dict[str, _Band]
    dtype: np.dtype[Any]

    def read(
        self, window: Window | None, layout: PixelLayout, grid: Grid
    ) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        """Pixels and valid of a window, or of all, (C, H, W); `grid`: the finest band's."""
        nodata = layout.sensor.nodata if layout.units == "dn" else None
        nothing = nodata if np.issubdtype(self.dtype, np.integer) else math.nan
        area = window or Window(row=0, column=0, height=grid.height, width=grid.width)
        shape = (len(layout.bands), area.height, area.width)
        pixels = np.full(shape, nothing, dtype=self.dtype)
        for name, channel in zip(layout.bands, pixels, strict=True):
            band = self.bands[name]
            with open_for_windows(band.path, hold=window is not None) as source:
                read_enlarged(
                    source,
                    channel,
                    factor=band.factor,
                    top=area.row,
                    left=area.column,
                    origin=band.origin,
                    shift=band.shift,
                    mask_index=band.mask_index,
                )
        valid: NDArray[np.bool_] = np.isfinite(pixels)
        if nodata is not None:
            valid &= pixels != nodata
        return pixels, valid
