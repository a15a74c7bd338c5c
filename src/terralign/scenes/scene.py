"""Whole scenes, read on demand: a picture, a GeoTIFF, or a folder with one file per band.

A scene is opened once: what is declared of it is checked on samples of its pixels, and windows are
then read without further checks. C bands, H W pixels throughout.
"""

from __future__ import annotations

import datetime as dt
import logging
import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from rasterio import Affine

from terralign.chips import Chip, Grid, PixelLayout, Units, Window, make_layout
from terralign.errors import DataError, SensorError, UnknownOffsetError
from terralign.scenes.band_names import read_band_names
from terralign.scenes.file_layout import (
    FileLayout,
    describe_geotiff,
    is_rgb,
    offset_of,
    other_scale,
    units_of,
)
from terralign.scenes.geotiff import held_raster, open_geotiff, open_raster
from terralign.scenes.inputs import find_inputs as find_inputs
from terralign.scenes.pictures import picture_shape
from terralign.scenes.places import product_datetime
from terralign.scenes.plausible import check_numbers, concluded_offset
from terralign.scenes.product_metadata import stated_scale
from terralign.scenes.product_names import eo_browser_day
from terralign.scenes.products import BandFile, Product, find_product, shown
from terralign.scenes.read import (
    grid_of,
    kind_of,
    read_image,
    read_pixels,
    require_fit,
    require_picture,
)
from terralign.scenes.resolution import read_enlarged
from terralign.sensors import SENSORS, Sensor, as_sensor, shorten

logger = logging.getLogger(__name__)

SAMPLES_A_SIDE = 4
"""Samples that a large scene is checked on, in each direction, evenly spread."""

SAMPLE_SIDE = 256
"""Height and width of such a sample, in pixels."""

MAX_CHECKED_WHOLE = 1024**2
"""A scene of at most so many pixels is checked as a whole."""

MAX_BLOCK_BYTES = 1024**3
"""A file whose blocks take more memory than this each is refused; they are read one at a time."""


class PixelSource(Protocol):
    """Where a scene's pixels come from."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """The type that holds the numbers of all bands."""
        ...

    def read(
        self, window: Window | None, layout: PixelLayout, grid: Grid
    ) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        """Pixels and valid, (C, H, W), of the layout's bands; `grid`: the scene's."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True, repr=False)
class Scene:
    """Named bands of one acquisition on one pixel grid, the finest band's, read on demand.

    `path`: a file, or a product's folder. `layout`: how its numbers are to be read. `datetime`:
    acquisition, None where no name states it. `is_picture`: True for JPEG, PNG and the like, and
    8-bit RGB TIFFs without a reference system, which are classified whole. `notes`: what was
    concluded rather than declared, one sentence each.
    """

    path: Path
    layout: PixelLayout
    grid: Grid
    datetime: dt.datetime | None
    is_picture: bool
    notes: tuple[str, ...] = ()
    source: PixelSource

    @property
    def height(self) -> int:
        """Rows of the grid."""
        return self.grid.height

    @property
    def width(self) -> int:
        """Columns of the grid."""
        return self.grid.width

    @property
    def sensor(self) -> Sensor:
        """The sensor that the bands belong to."""
        return self.layout.sensor

    @property
    def bands(self) -> tuple[str, ...]:
        """Canonical names of the bands."""
        return self.layout.bands

    def read(self, window: Window | None = None, *, bands: Sequence[str] | None = None) -> Chip:
        """The pixels of a window, or of the whole scene, as a chip with its grid and time.

        `bands`: some of the scene's, in any order; only they are read. Coarse bands are enlarged to
        the scene's grid bilinearly (see `read_enlarged`). `valid` is False where the file has no
        data there, as `read_geotiff` says. Raises `DataError` where the window does not lie within
        the scene, the pixels are more than memory allows (`MAX_CHIP_BYTES`), or a file is damaged;
        `SensorError` for bands that the scene does not have.
        """
        layout = self.layout if bands is None else self._layout_of(bands)
        grid = self.grid if window is None else self.grid.window(window)
        require_fit(self.path, grid, layout.bands, self.source.dtype)
        pixels, valid = self.source.read(window, layout, self.grid)
        return Chip(pixels=pixels, valid=valid, layout=layout, grid=grid, datetime=self.datetime)

    def _layout_of(self, bands: Sequence[str]) -> PixelLayout:
        names = self.sensor.resolve(bands)
        missing = [name for name in names if name not in self.bands]
        if missing:
            raise SensorError(
                f"{shown(self.path)} has bands {', '.join(self.bands)}; missing "
                f"{', '.join(missing)}"
            )
        recipe = self.layout.composite
        if recipe is not None and not set(recipe.bands) <= set(names):
            recipe = None
        return replace(self.layout, bands=names, composite=recipe)

    def __str__(self) -> str:
        """ "B04.tif: sentinel2-l2a B04; 1068x1068 at 10 m, EPSG:32648; 2020-02-23"."""
        place = ""
        if self.grid.crs is not None:
            a, _, _, d, _, _ = self.grid.transform
            code = self.grid.crs if len(self.grid.crs) < 20 else "own reference system"
            place = f" of {math.hypot(a, d):g} units, {code}"
        day = f"; {self.datetime:%Y-%m-%d}" if self.datetime else ""
        return (
            f"{shown(Path(self.path.name))}: {self.sensor.name} {shorten(self.bands)}; "
            f"{self.height}x{self.width} pixels{place}{day}"
        )

    def __repr__(self) -> str:
        return f"Scene({self})"


def open_scene(
    path: Path | str,
    *,
    sensor: Sensor | str | None = None,
    bands: Sequence[str] | None = None,
    dn_offset: float | None = None,
    units: Units | None = None,
    composite: str | None = None,
) -> Scene:
    """Open a picture, a GeoTIFF, or a folder with one file per band (see `scenes.products`).

    `sensor`: a sensor, the name of a built-in one, or a TOML file; may be left out for pictures and
    where standard product names or metadata state it. `bands`: of a file as `read_geotiff` takes
    them; of a folder some of its bands. `dn_offset`, `units`, `composite`: as `read_geotiff`. Where
    nothing states the DN offset of Sentinel-2 and the pixels rule out one of the two, the other is
    concluded, with a warning and a note.

    What is declared is held against samples of the pixels here, once. Raises what `read_geotiff`
    and `find_product` raise; `DataError` where the bands of a folder do not lie on one grid or
    state different scales.
    """
    path = Path(path)
    declared = _Declared(
        sensor=None if sensor is None else as_sensor(sensor),
        bands=bands,
        dn_offset=dn_offset,
        units=units,
        composite=composite,
    )
    if not path.is_dir() and kind_of(path) == "picture":
        return _open_picture(path, declared)
    opening = _open_product if path.is_dir() else _open_geotiff
    unknown = None
    try:
        scene = opening(path, declared)
    except UnknownOffsetError as error:
        unknown = error
        scene = opening(path, replace(declared, dn_offset=0.0))
    samples = [(chip.pixels, chip.valid) for chip in _samples(scene)]
    if unknown is not None:
        scene = _with_concluded_offset(scene, samples, unknown)
    check_numbers(samples, scene.layout, origin=shown(path))
    return scene


@dataclass(frozen=True, kw_only=True, slots=True)
class _Declared:
    """What the caller says of a scene."""

    sensor: Sensor | None
    bands: Sequence[str] | None
    dn_offset: float | None
    units: Units | None
    composite: str | None


def _open_picture(path: Path, declared: _Declared) -> Scene:
    require_picture(
        path,
        sensor=declared.sensor,
        bands=declared.bands,
        dn_offset=declared.dn_offset,
        units=declared.units,
    )
    rgb = SENSORS["rgb"]
    height, width = picture_shape(path)
    identity = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
    return Scene(
        path=path,
        layout=make_layout(rgb, rgb.band_names, units="dn", composite=declared.composite),
        grid=Grid(crs=None, transform=identity, height=height, width=width),
        datetime=None,
        is_picture=True,
        source=_PictureSource(path=path),
    )


def _open_geotiff(path: Path, declared: _Declared) -> Scene:
    with open_geotiff(path) as source:
        _require_small_blocks(path, source)
        described = describe_geotiff(
            path,
            source,
            sensor=declared.sensor,
            bands=declared.bands,
            dn_offset=declared.dn_offset,
            units=declared.units,
            composite=declared.composite,
        )
        return Scene(
            path=path,
            layout=described.layout,
            grid=grid_of(source),
            datetime=_datetime_of([path.name, path.absolute().parent.name]),
            is_picture=source.crs is None and is_rgb(source),
            source=_FileSource(path=path, described=described),
        )


def _with_concluded_offset(
    scene: Scene,
    samples: Sequence[tuple[NDArray[Any], NDArray[np.bool_]]],
    unknown: UnknownOffsetError,
) -> Scene:
    """The scene with the DN offset that its pixels leave possible; raises `unknown` if both are."""
    concluded = concluded_offset(samples, scene.layout)
    if concluded is None:
        raise unknown
    value, reason = concluded
    note = f"nothing states the DN offset: {reason}"
    logger.warning("%s: %s", shown(scene.path), note)
    return replace(scene, layout=replace(scene.layout, dn_offset=value), notes=(note,))


def _samples(scene: Scene) -> Iterator[Chip]:
    """Chips spread evenly over a scene; the whole of a small one."""
    if scene.height * scene.width <= MAX_CHECKED_WHOLE:
        yield scene.read()
        return
    for row in _spread(scene.height):
        for column in _spread(scene.width):
            size = min(SAMPLE_SIDE, scene.height), min(SAMPLE_SIDE, scene.width)
            yield scene.read(Window(row=row, column=column, height=size[0], width=size[1]))


def _spread(length: int) -> list[int]:
    last = max(0, length - SAMPLE_SIDE)
    return sorted({last * n // (SAMPLES_A_SIDE - 1) for n in range(SAMPLES_A_SIDE)})


def _datetime_of(names: Iterable[str]) -> dt.datetime | None:
    return next((when for name in names if (when := product_datetime(name))), None)


def _require_small_blocks(path: Path, source: Any) -> None:
    for (height, width), dtype in zip(source.block_shapes, source.dtypes, strict=True):
        num_bytes = height * width * np.dtype(dtype).itemsize
        if num_bytes > MAX_BLOCK_BYTES:
            raise DataError(
                f"{shown(path)} is stored in blocks of {num_bytes / 2**20:.0f} MiB, more than the "
                f"limit of {MAX_BLOCK_BYTES / 2**20:.0f} MiB; write it in tiles "
                "(gdal_translate -co TILED=YES)"
            )


# Where pixels come from


@dataclass(frozen=True, kw_only=True, slots=True)
class _PictureSource:
    path: Path

    @property
    def dtype(self) -> np.dtype[Any]:
        return np.dtype(np.uint8)

    def read(
        self, window: Window | None, layout: PixelLayout, grid: Grid
    ) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        chip = read_image(self.path).select_bands(layout.bands)
        if window is None:
            return chip.pixels, chip.valid
        rows = slice(window.row, window.row + window.height)
        columns = slice(window.column, window.column + window.width)
        return chip.pixels[:, rows, columns], chip.valid[:, rows, columns]


@dataclass(frozen=True, kw_only=True, slots=True)
class _FileSource:
    """A GeoTIFF with all bands."""

    path: Path
    described: FileLayout

    @property
    def dtype(self) -> np.dtype[Any]:
        return self.described.dtype

    def read(
        self, window: Window | None, layout: PixelLayout, grid: Grid
    ) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        known = self.described.layout.bands
        indexes = tuple(self.described.indexes[known.index(name)] for name in layout.bands)
        described = replace(self.described, layout=layout, indexes=indexes)
        with ExitStack() as stack:
            if window is None:
                source = stack.enter_context(open_geotiff(self.path))
            else:
                source = held_raster(self.path)
            return read_pixels(self.path, source, described, window=window)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Band:
    """One band's file on the scene's grid (see `read_enlarged`)."""

    path: Path
    factor: int
    shift: tuple[float, float]
    mask_index: int | None


@dataclass(frozen=True, kw_only=True, slots=True)
class _ProductSource:
    """A file per band."""

    bands: dict[str, _Band]
    dtype: np.dtype[Any]

    def read(
        self, window: Window | None, layout: PixelLayout, grid: Grid
    ) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        nodata = layout.sensor.nodata if layout.units == "dn" else None
        nothing = nodata if np.issubdtype(self.dtype, np.integer) else math.nan
        area = window or Window(row=0, column=0, height=grid.height, width=grid.width)
        shape = (len(layout.bands), area.height, area.width)
        pixels = np.full(shape, nothing, dtype=self.dtype)
        for name, channel in zip(layout.bands, pixels, strict=True):
            band = self.bands[name]
            with ExitStack() as stack:
                if window is None:
                    source = stack.enter_context(open_raster(band.path))
                else:
                    source = held_raster(band.path)
                read_enlarged(
                    source,
                    channel,
                    factor=band.factor,
                    top=area.row,
                    left=area.column,
                    origin=shown(band.path),
                    shift=band.shift,
                    mask_index=band.mask_index,
                )
        valid: NDArray[np.bool_] = np.isfinite(pixels)
        if nodata is not None:
            valid &= pixels != nodata
        return pixels, valid


# Products


@dataclass(frozen=True, kw_only=True, slots=True)
class _Header:
    """What the header of one band's file says."""

    file: BandFile
    grid: Grid
    crs: Any
    dtype: np.dtype[Any]
    scale: tuple[float, float] | None
    mask_index: int | None


def _open_product(path: Path, declared: _Declared) -> Scene:
    product = _only(find_product(path, declared.sensor), declared.bands, path)
    sensor = product.sensor
    headers = [_read_header(file, sensor) for file in product.files]
    grid = _finest(path, headers)
    dtype = np.dtype(np.result_type(*(header.dtype for header in headers)))
    scale = _shared_scale(path, headers)
    units = units_of(path, sensor, dtype, declared.units, scale)
    layout = make_layout(
        sensor,
        [file.band for file in product.files],
        units=units,
        dn_offset=_shared_offset(path, product, headers, units, declared.dn_offset),
        composite=declared.composite,
        stated_scale=other_scale(path, sensor, scale, declared.dn_offset),
    )
    nodata = sensor.nodata if units == "dn" else None
    return Scene(
        path=path,
        layout=layout,
        grid=grid,
        datetime=_datetime_of([product.files[0].path.name, *product.names]),
        is_picture=False,
        source=_ProductSource(
            bands={header.file.band: _placed(path, header, grid) for header in headers},
            dtype=_with_room_for_nothing(dtype, nodata),
        ),
    )


def _only(product: Product, bands: Sequence[str] | None, path: Path) -> Product:
    """The product with just these bands, in this order."""
    if bands is None:
        return product
    known = {file.band: file for file in product.files}
    names = product.sensor.resolve(bands)
    missing = [name for name in names if name not in known]
    if missing or not names:
        raise SensorError(
            f"{shown(path)} has bands {', '.join(known)}; missing {', '.join(missing) or 'any'}"
        )
    return replace(product, files=tuple(known[name] for name in names))


def _read_header(file: BandFile, sensor: Sensor) -> _Header:
    with open_raster(file.path) as source:
        _require_small_blocks(file.path, source)
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
    return min((header.grid for header in headers), key=_pixel_area)


def _crs_text(header: _Header) -> str:
    text = header.grid.crs or "no reference system"
    return text if len(text) < 40 else text[:40] + "..."


def _pixel_area(grid: Grid) -> float:
    a, b, _, d, e, _ = grid.transform
    return abs(a * e - b * d)


def _placed(path: Path, header: _Header, fine: Grid) -> _Band:
    """Where a band's grid lies in the finest one; `DataError` where they do not nest."""
    to_fine = ~_affine(fine) * _affine(header.grid)  # (column, row) of the band -> of the fine grid
    factor = max(1, round(to_fine.a))
    off = max(abs(to_fine.a / factor - 1), abs(to_fine.e / factor - 1))
    skew = max(abs(to_fine.b), abs(to_fine.d)) / factor
    down, right = to_fine.f, to_fine.c
    ends = [down, down + to_fine.e * header.grid.height - fine.height]
    ends += [right, right + to_fine.a * header.grid.width - fine.width]
    slack = 0.05 if factor == 1 else factor * (1 + 1e-6)
    if off > _MAX_SCALE_DIFFERENCE or skew > _MAX_SCALE_DIFFERENCE or max(map(abs, ends)) > slack:
        raise DataError(
            f"{shown(path)}: the pixels of {header.file.band} "
            f"({header.grid.height}x{header.grid.width}) do not nest with those of the finest band "
            f"({fine.height}x{fine.width}); bring the bands to one grid (gdalwarp -te ... -tr ...)"
        )
    shift = (down, right) if max(abs(down), abs(right)) > 0.05 else (0.0, 0.0)
    return _Band(path=header.file.path, factor=factor, shift=shift, mask_index=header.mask_index)


def _affine(grid: Grid) -> Any:
    return Affine(*grid.transform)
