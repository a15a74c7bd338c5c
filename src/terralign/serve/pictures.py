"""Scenes as pictures: tiles of the web map, windows as thumbnails, and the whole at once.

Bands are read by rio-tiler from files that terralign has opened and checked. Each picture of a
scene has one stretch, from the 2nd to the 98th percentile of its bands, and one overview in memory,
from which everything coarser than it is made. H W pixels throughout.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from rasterio import Affine
from rasterio.crs import CRS
from rasterio.enums import ColorInterp, Resampling
from rasterio.errors import RasterioError
from rasterio.io import MemoryFile
from rasterio.vrt import WarpedVRT
from rasterio.warp import transform_bounds
from rasterio.windows import Window as RasterioWindow
from rio_tiler.constants import WGS84_CRS
from rio_tiler.errors import RioTilerError, TileOutsideBounds
from rio_tiler.io import Reader
from rio_tiler.models import ImageData

from terralign.chips import Grid, PixelLayout, Window
from terralign.encoders.maps import BRIGHTENED, PERCENTILES
from terralign.errors import DataError, first_line
from terralign.preprocess.views import near_infrared
from terralign.scenes.band_files import BandFiles
from terralign.scenes.decibel import DecibelSource
from terralign.scenes.geotiff import Place, open_raster
from terralign.scenes.read import GeotiffSource
from terralign.scenes.remote import RemoteRaster
from terralign.scenes.scene import Scene
from terralign.sensors import RGB

Kind = Literal["true", "false"]

KINDS: tuple[Kind, ...] = ("true", "false")

OVERVIEW_PX = 1536
"""The longer side of an overview."""

_STRIP_ROWS = 256
"""Rows of a scene that are read at a time for its overview."""

TILE_PX = 256
THUMBNAIL_PX = 128
_NUM_OVERVIEWS = 12
"""Overviews that are kept, of up to 9 MB each."""
_NUM_TILES = 256
_NUM_THUMBNAILS = 1024
"""Pictures that are kept as PNG, of up to 200 kB and 40 kB each."""
_WEB_MERCATOR = CRS.from_epsg(3857)


def kinds_of(layout: PixelLayout) -> tuple[Kind, ...]:
    """The pictures that bands of a layout make."""
    return tuple(kind for kind in KINDS if picture_bands(layout, kind))


def picture_bands(layout: PixelLayout, kind: Kind) -> tuple[str, ...]:
    """The bands of a picture: three, shown as red, green and blue; of radar VV and VH. () where the
    layout does not make it."""
    composite = layout.composite or next(iter(layout.sensor.composites), None)
    if composite is not None and set(composite.bands) <= set(layout.bands):
        if kind == "true":
            return composite.bands
        infrared = near_infrared(layout)
        return () if infrared is None else (infrared, *composite.bands[:2])
    radar = layout.sensor.unit == "dB" and {"VV", "VH"} <= set(layout.bands)
    return ("VV", "VH") if radar and kind == "true" else ()


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class _Overview:
    """A picture of a whole scene, as the bytes of a GeoTIFF of 8 bits with alpha, and the stretch
    of its bands, (3, 3). `is_whole`: it has as many pixels as the scene."""

    content: bytes
    stretch: NDArray[np.float64]
    is_whole: bool


class Pictures:
    """The pictures of scenes that are open; every method may be called from several threads."""

    def __init__(self, open_scene: Callable[[str], Scene]) -> None:
        """`open_scene`: the scene of a key, checked; `DataError` where it cannot be shown."""
        self._open = open_scene
        self._making: dict[tuple[str, Kind], threading.Lock] = {}
        self._overview = lru_cache(maxsize=_NUM_OVERVIEWS)(self._make_overview)
        self.tile = lru_cache(maxsize=_NUM_TILES)(self._tile)
        self.thumbnail = lru_cache(maxsize=_NUM_THUMBNAILS)(self._thumbnail)

    def _tile(self, key: str, kind: Kind, zoom: int, x: int, y: int) -> bytes:
        """PNG of a tile of the web map; `DataError` where the scene does not touch it."""
        overview = self._overview_of(key, kind)
        try:
            with _opened(overview) as reader:
                if zoom <= reader.maxzoom or overview.is_whole:
                    found = reader.tile(x, y, zoom, tilesize=TILE_PX, indexes=(1, 2, 3))
                    return _png(found.array)
            return self._read(
                key, kind, overview.stretch,
                lambda band, options: band.tile(x, y, zoom, tilesize=TILE_PX, **options),
            )  # fmt: skip
        except TileOutsideBounds as error:
            raise DataError("the scene does not touch this tile") from error
        except (RioTilerError, RasterioError) as error:
            raise DataError(f"the scene cannot be read: {first_line(error)}") from error

    def _thumbnail(self, key: str, kind: Kind, grid: Grid, window: Window) -> bytes:
        """PNG of a window, its longer side 128 pixels."""
        left, bottom, right, top = _bounds(grid.window(window))
        crs = CRS.from_user_input(grid.crs)
        scale = THUMBNAIL_PX / max(right - left, top - bottom)
        width = max(1, round((right - left) * scale))
        height = max(1, round((top - bottom) * scale))
        overview = self._overview_of(key, kind)
        try:
            if overview.is_whole:
                with _opened(overview) as reader:
                    return _png(
                        reader.part(
                            (left, bottom, right, top), bounds_crs=crs, dst_crs=crs, width=width,
                            height=height, indexes=(1, 2, 3), resampling_method="bilinear",
                        ).array
                    )  # fmt: skip
            return self._read(
                key, kind, overview.stretch,
                lambda band, options: band.part(
                    (left, bottom, right, top), bounds_crs=crs, dst_crs=crs,
                    width=width, height=height, **options
                ),
            )  # fmt: skip
        except (RioTilerError, RasterioError) as error:
            raise DataError(f"the scene cannot be read: {first_line(error)}") from error

    def whole(
        self, key: str, kind: Kind, side: int
    ) -> tuple[bytes, tuple[float, float, float, float]]:
        """PNG of a scene on the web map's projection, and its bounds in degrees."""
        with _opened(self._overview_of(key, kind)) as reader:
            image = reader.part(
                reader.get_geographic_bounds(WGS84_CRS),
                dst_crs=_WEB_MERCATOR, max_size=side, indexes=(1, 2, 3),
            )  # fmt: skip
        assert image.bounds is not None  # a part of a dataset has a place
        bounds = transform_bounds(_WEB_MERCATOR, WGS84_CRS, *image.bounds)
        return _png(image.array), bounds

    def _overview_of(self, key: str, kind: Kind) -> _Overview:
        lock = self._making.setdefault((key, kind), threading.Lock())
        with lock:  # the second of two threads finds what the first has made
            return self._overview(key, kind)

    def _make_overview(self, key: str, kind: Kind) -> _Overview:
        scene = self._open(key)
        grid = scene.grid
        scale = min(1.0, OVERVIEW_PX / max(grid.height, grid.width))
        height, width = max(1, round(grid.height * scale)), max(1, round(grid.width * scale))
        left, bottom, right, top = _bounds(grid)
        crs = CRS.from_user_input(grid.crs)

        def strip(first: int, last: int) -> np.ma.MaskedArray[Any, Any]:
            """Rows of the overview: so few that each block of a file is decoded once for all."""

            def read(band: Reader, options: dict[str, Any]) -> ImageData:
                rows = _rows(band.dataset, first / height, last / height)
                return band.read(window=rows, width=width, height=last - first, **options)

            return _shown(scene, kind, read)

        step = max(1, int(_STRIP_ROWS * scale))
        try:
            numbers = _joined(
                [strip(row, min(height, row + step)) for row in range(0, height, step)], axis=1
            )
        except (RioTilerError, RasterioError) as error:
            raise DataError(f"the scene cannot be read: {first_line(error)}") from error
        stretch = _stretch_of(scene.layout, kind, numbers)
        return _Overview(
            content=_as_geotiff(_eight_bit(numbers, stretch), (left, bottom, right, top), crs),
            stretch=stretch,
            is_whole=scale == 1,
        )

    def _read(
        self,
        key: str,
        kind: Kind,
        stretch: NDArray[np.float64],
        read: Callable[[Reader, dict[str, Any]], ImageData],
    ) -> bytes:
        return _png(_eight_bit(_shown(self._open(key), kind, read), stretch))


@contextmanager
def _opened(overview: _Overview) -> Iterator[Reader]:
    with (
        MemoryFile(overview.content) as file,
        file.open(driver="GTiff") as source,
        Reader(None, dataset=source) as reader,
    ):
        yield reader


@contextmanager
def _opened_raster(place: Place, nodata: float | None) -> Iterator[Reader]:
    """A file to read from; one that is mirrored or rotated is turned north-up."""
    with ExitStack() as stack:
        source = stack.enter_context(open_raster(place))
        a, b, _, d, e, _ = tuple(source.transform)[:6]
        if not (b == d == 0 and a > 0 > e):
            number = source.nodata if nodata is None else nodata
            options = {"add_alpha": True} if number is None else {"nodata": number}
            source = stack.enter_context(WarpedVRT(source, src_nodata=number, **options))
        yield stack.enter_context(Reader(None, dataset=source))


def _rows(source: Any, first: float, last: float) -> RasterioWindow:
    """Rows of an open file, as shares (0-1) of its height: never beyond its end, where reading is
    slow."""
    start, stop = first * source.height, min(source.height, last * source.height)
    num = stop - start
    while start + num > source.height:
        num = math.nextafter(num, 0)
    return RasterioWindow(0, start, source.width, num)


def _bounds(grid: Grid) -> tuple[float, float, float, float]:
    """Left, bottom, right, top of a grid's pixels in its map units."""
    a, b, c, d, e, f = grid.transform
    xs = [c, c + a * grid.width, c + b * grid.height, c + a * grid.width + b * grid.height]
    ys = [f, f + d * grid.width, f + e * grid.height, f + d * grid.width + e * grid.height]
    return min(xs), min(ys), max(xs), max(ys)


def _places(scene: Scene, bands: Sequence[str]) -> list[tuple[Place, int]]:
    """The file of each band, and its number there; `DataError` where they are elsewhere."""
    source = scene.source.power if isinstance(scene.source, DecibelSource) else scene.source
    if isinstance(source, GeotiffSource):
        known = source.described.layout.bands
        return [(source.path, source.described.indexes[known.index(name)]) for name in bands]
    if isinstance(source, BandFiles):
        found = [(source.bands[name].path, source.bands[name].index) for name in bands]
        if not any(isinstance(place, RemoteRaster) for place, _ in found):
            return found
    raise DataError("the scene has no files on this machine to be shown from")


def _shown(
    scene: Scene, kind: Kind, read: Callable[[Reader, dict[str, Any]], ImageData]
) -> np.ma.MaskedArray[Any, Any]:
    """(3, H, W) numbers of a picture, masked where there is no data in one of them.

    `read`: what is read of each band's file.
    """
    layout = scene.layout
    bands = picture_bands(layout, kind)
    if not bands:
        raise DataError(f"{layout.sensor.name} makes no picture {kind!r}")
    nodata = layout.sensor.nodata if layout.units == "dn" else None
    parts: list[Any] = [None] * len(bands)
    of_place: dict[Place, list[int]] = {}
    places = _places(scene, bands)
    for number, (place, _) in enumerate(places):
        of_place.setdefault(place, []).append(number)
    for place, numbers_of in of_place.items():
        options: dict[str, Any] = {
            "indexes": tuple(places[number][1] for number in numbers_of),
            "resampling_method": "bilinear",
        }
        if nodata is not None:
            options["nodata"] = nodata
        with _opened_raster(place, nodata) as reader:
            found = read(reader, options).array.astype(np.float32)
        for row, number in enumerate(numbers_of):
            parts[number] = found[row : row + 1]
    numbers: Any = np.ma.masked_invalid(_joined(parts), copy=False)
    if isinstance(scene.source, DecibelSource):
        numbers = 10 * np.ma.log10(np.ma.masked_less_equal(numbers, 0))
    if bands == ("VV", "VH"):
        numbers = _joined([numbers, numbers[:1] - numbers[1:]])
    lacking = np.ma.getmaskarray(numbers).any(0)
    return np.ma.MaskedArray(numbers.data, mask=np.broadcast_to(lacking, numbers.shape))


def _joined(parts: Sequence[Any], axis: int = 0) -> np.ma.MaskedArray[Any, Any]:
    masks = [np.ma.getmaskarray(one) for one in parts]
    numbers = [np.ma.getdata(one) for one in parts]
    return np.ma.MaskedArray(np.concatenate(numbers, axis), mask=np.concatenate(masks, axis))


def _stretch_of(
    layout: PixelLayout, kind: Kind, numbers: np.ma.MaskedArray[Any, Any]
) -> NDArray[np.float64]:
    """(3, 3) black, white, and the exponent between them, of each band.

    Of true colour all bands get the widest range of them, so that what is grey stays grey, and are
    brightened; the bands of other pictures are of different kinds, and have each their own range.
    """
    if layout.sensor.name == RGB:
        return np.array([(0.0, 255.0, 1.0)] * 3)
    found = np.ones((3, 3))
    for row, band in enumerate(numbers):
        values = band.compressed()
        low, high = np.percentile(values, PERCENTILES) if len(values) else (0.0, 1.0)
        found[row, :2] = low, max(high, low + 1e-6)
    if kind == "true" and layout.sensor.unit != "dB":
        found[:, 1] = found[:, 0] + (found[:, 1] - found[:, 0]).max()
        found[:, 2] = BRIGHTENED
    return found


def _eight_bit(
    numbers: np.ma.MaskedArray[Any, Any], stretch: NDArray[np.float64]
) -> np.ma.MaskedArray[Any, Any]:
    low, high, exponent = (stretch[:, n, None, None] for n in range(3))
    scaled = np.nan_to_num((np.ma.getdata(numbers) - low) / (high - low)).clip(0, 1)
    pixels = np.rint(255 * scaled**exponent).astype(np.uint8)
    return np.ma.MaskedArray(pixels, mask=np.ma.getmaskarray(numbers))


def _png(pixels: np.ma.MaskedArray[Any, Any]) -> bytes:
    return ImageData(pixels).render(img_format="PNG", zlevel=3)


def _as_geotiff(
    pixels: np.ma.MaskedArray[Any, Any], bounds: tuple[float, float, float, float], crs: CRS
) -> bytes:
    """A tiled GeoTIFF with alpha and overviews, in memory."""
    _, height, width = pixels.shape
    left, bottom, right, top = bounds
    transform = Affine((right - left) / width, 0, left, 0, (bottom - top) / height, top)
    profile = {
        "driver": "GTiff", "count": 4, "height": height, "width": width, "dtype": "uint8",
        "crs": crs, "transform": transform,
        "tiled": True, "blockxsize": 256, "blockysize": 256,
    }  # fmt: skip
    alpha = np.where(np.ma.getmaskarray(pixels)[0], 0, 255).astype(np.uint8)
    with MemoryFile() as file:
        with file.open(**profile) as out:
            out.colorinterp = [
                ColorInterp.red, ColorInterp.green, ColorInterp.blue, ColorInterp.alpha
            ]  # fmt: skip
            out.write(np.ma.getdata(pixels), (1, 2, 3))
            out.write(alpha, 4)
            out.build_overviews([2, 4], Resampling.average)
        return bytes(file.getbuffer())
