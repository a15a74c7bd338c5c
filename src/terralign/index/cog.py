"""Maps as cloud-optimised GeoTIFFs, written strip by strip, whole or not at all."""

from __future__ import annotations

import colorsys
import logging
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape, quoteattr

import rasterio
import rasterio.shutil
from numpy.typing import NDArray
from rasterio import Affine
from rasterio._err import CPLE_BaseError
from rasterio.crs import CRS
from rasterio.errors import RasterioError
from rasterio.windows import Window

from terralign.chips import Grid
from terralign.encoders.vectors import as_utf8
from terralign.errors import DataError, StorageError, first_line, printable, shown
from terralign.files import atomic_path, read_text
from terralign.progress import Progress
from terralign.scenes.geotiff import open_geotiff

logger = logging.getLogger(__name__)

SUFFIXES = (".tif", ".tiff")

MARK = "TERRALIGN"
"""The tag by which a map of ours is known again; its value is the kind of the map."""

_BLOCK = 256
"""Pixels along a side of a tile; maps that are larger have overviews."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Layer:
    """One file of one band. `resampling`: how GDAL makes overviews of it. `classes`: the names of
    the values from 1; they get colours, and 0 is no data."""

    path: Path
    dtype: str
    nodata: float
    description: str
    tags: Mapping[str, str]
    resampling: str
    classes: Sequence[str] = ()


def check_map(path: Path) -> None:
    """Raise before long work: `StorageError` for a name that is no GeoTIFF's, or a file that
    terralign did not write."""
    if path.suffix.lower() not in SUFFIXES:
        raise StorageError(f"{shown(path)}: choose a name that ends in .tif")
    if not path.exists():
        if _beside(path).exists():
            raise StorageError(
                f"{shown(_beside(path))} exists without its map; remove it, or choose another name"
            )
        return
    try:
        with open_geotiff(path) as file:
            ours = MARK in file.tags()
    except DataError:
        ours = False
    if not ours:
        raise StorageError(
            f"{shown(path)} exists and was not written by terralign; choose another name"
        )


def _beside(path: Path) -> Path:
    """Where GDAL and QGIS look for the names of classes."""
    return path.with_name(f"{path.name}.aux.xml")


def write_maps(
    layers: Sequence[Layer],
    grid: Grid,
    strips: Iterable[tuple[int, Sequence[NDArray[Any]]]],
) -> None:
    """Write layers of one grid, all or none, from strips: the first row, and (h, W) of each layer.

    The strips go into temporary files first, since a cloud-optimised GeoTIFF is written at once.
    `StorageError` where another file has the name, or the disk is full.
    """
    for layer in layers:
        check_map(layer.path)
    try:
        with tempfile.TemporaryDirectory(prefix="terralign-") as folder, ExitStack() as stack:
            plain = [Path(folder, f"{number}.tif") for number in range(len(layers))]
            with ExitStack() as files:
                opened = [
                    files.enter_context(_created(path, layer, grid))
                    for path, layer in zip(plain, layers, strict=True)
                ]
                progress = files.enter_context(Progress("map", total=grid.height, unit="row"))
                for first, arrays in strips:
                    progress.advance(len(arrays[0]))
                    for file, array in zip(opened, arrays, strict=True):
                        place = Window(0, first, grid.width, len(array))
                        file.write(array, 1, window=place)
            stack.enter_context(rasterio.Env(GDAL_PAM_ENABLED=False))
            for path, layer in zip(plain, layers, strict=True):
                partial = stack.enter_context(atomic_path(layer.path))
                rasterio.shutil.copy(
                    path, partial, driver="COG", compress="DEFLATE", predictor="YES",
                    blocksize=_BLOCK, overview_resampling=layer.resampling, statistics="YES",
                )  # fmt: skip
                _write_beside(layer, stack)
    except (RasterioError, CPLE_BaseError) as error:
        paths = ", ".join(shown(layer.path) for layer in layers)
        raise StorageError(f"cannot write {paths}: {first_line(error)}") from error


def _created(path: Path, layer: Layer, grid: Grid) -> Any:
    """A new plain GeoTIFF of a layer, open for writing."""
    file = rasterio.open(
        path, "w", driver="GTiff", dtype=layer.dtype, count=1, nodata=layer.nodata,
        height=grid.height, width=grid.width, crs=_crs(grid), transform=Affine(*grid.transform),
        tiled=True, blockxsize=_BLOCK, blockysize=_BLOCK, compress="DEFLATE", bigtiff="IF_SAFER",
    )  # fmt: skip
    file.update_tags(**{name: _text(value) for name, value in layer.tags.items()})
    file.set_band_description(1, _text(layer.description))
    if layer.classes:
        file.write_colormap(1, {0: (0, 0, 0, 0), **colours(len(layer.classes))})
    return file


def _crs(grid: Grid) -> CRS:
    try:
        return CRS.from_string(grid.crs or "")
    except (RasterioError, CPLE_BaseError, ValueError) as error:
        raise DataError(
            f"the scene's reference system is not known ({first_line(error)}); embed the scene "
            "again, with the right one (gdal_edit.py -a_srs EPSG:...)"
        ) from error


def _text(value: str) -> str:
    """A text that XML can hold: GDAL writes tags so."""
    return printable(as_utf8(value))


def _write_beside(layer: Layer, stack: ExitStack) -> None:
    """Names and colours of classes, where GDAL and QGIS look for them; of other maps nothing, so
    that those of an earlier one of this name do not stay.

    A style that is not ours, as QGIS saves one, stays.
    """
    texts = {_beside(layer.path): _attributes, layer.path.with_suffix(".qml"): _style}
    for path, text_of in texts.items():
        if path.suffix == ".qml" and path.exists() and _STYLE_MARK not in read_text(path):
            if layer.classes:
                logger.warning(
                    "%s stays, in whose style QGIS shows the map, although its classes may be "
                    "others; remove it for that of terralign",
                    shown(path),
                )
            continue
        if layer.classes:
            names = [_text(name) for name in layer.classes]
            partial = stack.enter_context(atomic_path(path))
            partial.write_text(text_of(names), encoding="utf-8")
        else:
            stack.callback(path.unlink, missing_ok=True)


def _attributes(names: Sequence[str]) -> str:
    """GDAL's category names and raster attribute table."""
    palette = {0: (0, 0, 0, 0), **colours(len(names))}
    fields = "".join(
        f'<FieldDefn index="{index}"><Name>{name}</Name><Type>{kind}</Type>'
        f"<Usage>{usage}</Usage></FieldDefn>"
        for index, (name, kind, usage) in enumerate(_FIELDS)
    )
    rows = "".join(
        f'<Row index="{code}">'
        + "".join(f"<F>{escape(str(one))}</F>" for one in (code, name, *palette[code]))
        + "</Row>"
        for code, name in enumerate(["no data", *names])
    )
    categories = "".join(f"<Category>{escape(name)}</Category>" for name in ["no data", *names])
    return (
        f'<PAMDataset><PAMRasterBand band="1"><CategoryNames>{categories}</CategoryNames>'
        f'<GDALRasterAttributeTable tableType="thematic">{fields}{rows}'
        "</GDALRasterAttributeTable></PAMRasterBand></PAMDataset>\n"
    )


_STYLE_MARK = "<!-- written by terralign -->"


def _style(names: Sequence[str]) -> str:
    """QGIS's style of just these classes: by the colour table it lists 256 of them."""
    entries = "".join(
        f'<paletteEntry value="{code}" label={quoteattr(name)} alpha="255" '
        f'color="#{red:02x}{green:02x}{blue:02x}"/>'
        for name, (code, (red, green, blue, _)) in zip(
            names, colours(len(names)).items(), strict=True
        )
    )
    return (
        "<!DOCTYPE qgis PUBLIC 'http://mrcc.com/qgis.dtd' 'SYSTEM'>\n"
        f'<qgis version="3.22.0">{_STYLE_MARK}<pipe><rasterrenderer type="paletted" band="1" '
        f'opacity="1" alphaBand="-1"><colorPalette>{entries}</colorPalette></rasterrenderer></pipe>'
        "</qgis>\n"
    )


_FIELDS = (
    *(("value", 0, 5), ("class", 2, 2)),
    *(("red", 0, 6), ("green", 0, 7), ("blue", 0, 8), ("alpha", 0, 9)),
)
"""Of GDAL's raster attribute table: name, type (0 whole number, 2 text) and usage (`GFU_MinMax`,
`GFU_Name`, `GFU_Red` to `GFU_Alpha`)."""

_TABLEAU = (
    *((31, 119, 180), (255, 127, 14), (44, 160, 44), (214, 39, 40), (148, 103, 189)),
    *((140, 86, 75), (227, 119, 194), (127, 127, 127), (188, 189, 34), (23, 190, 207)),
)
"""Ten colours that are easy to tell apart (Tableau 10)."""

_GOLDEN = 0.618_033_988_75
"""Steps of hue by this share of the circle never come back to the same."""


def colours(num: int) -> dict[int, tuple[int, int, int, int]]:
    """Red, green, blue and alpha (0-255) of the classes 1 to `num`."""
    found = list(_TABLEAU[:num])
    for number in range(len(_TABLEAU), num):
        light = (0.35, 0.5, 0.65)[number % 3]
        parts = colorsys.hls_to_rgb(number * _GOLDEN % 1, light, 0.7)
        red, green, blue = (round(255 * part) for part in parts)
        found.append((red, green, blue))
    return {code: (*colour, 255) for code, colour in enumerate(found, start=1)}
