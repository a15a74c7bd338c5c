"""Whole scenes, read on demand: a picture, a GeoTIFF, or a folder with one file per band.

A scene is opened once: what is declared of it is checked on samples of its pixels, and windows are
then read without further checks. C bands, H W pixels throughout.
"""

from __future__ import annotations

import datetime as dt
import logging
import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from terralign.chips import Chip, Grid, PixelLayout, Window, make_layout, marked_dtype
from terralign.errors import DataError, NumbersError, SensorError, UnknownOffsetError, shown
from terralign.limits import enough_memory, limit
from terralign.scenes.archives import is_archive
from terralign.scenes.band_files import describe_product
from terralign.scenes.band_names import read_band_names
from terralign.scenes.clouds import CloudMask, mask_kind
from terralign.scenes.decibel import DecibelSource
from terralign.scenes.declared import Declared, DeclaredUnits
from terralign.scenes.file_layout import describe_geotiff, is_rgb
from terralign.scenes.geotiff import grid_of, open_geotiff, require_small_blocks
from terralign.scenes.inputs import find_inputs as find_inputs
from terralign.scenes.orientation import (
    is_south_up,
    reversed_rows,
    warn_of_points,
    warn_unless_north_up,
)
from terralign.scenes.pictures import picture_shape
from terralign.scenes.places import map_unit, product_datetime
from terralign.scenes.plausible import check_numbers, concluded_offset, offset_verdict
from terralign.scenes.product_metadata import Catalogued
from terralign.scenes.products import Product, find_product, product_of_files
from terralign.scenes.read import (
    STEP_BYTES,
    STEP_COPIES,
    GeotiffSource,
    PictureSource,
    PixelSource,
    Reader,
    kind_of,
    numbers_bytes,
    require_fit,
)
from terralign.scenes.rows import block_step
from terralign.sensors import SENSORS, Sensor, as_sensor, shorten

logger = logging.getLogger(__name__)

SAMPLES_A_SIDE = 3
"""Samples that a large scene is checked on, in each direction, evenly spread."""

SAMPLE_SIDE = 256
"""Height and width of such a sample, in pixels."""

MAX_CHECKED_WHOLE = 1024**2
"""A scene of at most so many pixels is checked as a whole."""

MAX_STRIP_BYTES = 128 * 1024**2
"""How much `Scene.read_windows` reads at a time; it holds two of these."""

MAX_HELD_BYTES = 768 * 1024**2
"""How much it holds of a scene's rows, so that blocks are decoded once."""


@dataclass(frozen=True, kw_only=True, slots=True, repr=False)
class Scene:
    """Named bands of one acquisition on one pixel grid, the finest band's, read on demand.

    `path`: a file, or a product's folder. `layout`: how its numbers are to be read. `datetime`:
    acquisition, None where no name states it. `is_picture`: True for JPEG, PNG and the like, and
    8-bit RGB TIFFs without a reference system, which are classified whole. `notes`: what was
    concluded rather than declared, one sentence each. `is_reversed`: stored south-up; rows, also
    those of windows, count from the north all the same. `name`: of an item of a catalogue.
    `clouds`: the mask of clouds that came with it. `cloud_cover`: per cent, and `footprint`: a
    GeoJSON geometry, as a catalogue states them.
    """

    path: Path
    layout: PixelLayout
    grid: Grid
    datetime: dt.datetime | None
    is_picture: bool
    notes: tuple[str, ...] = ()
    source: PixelSource
    is_reversed: bool = False
    name: str = ""
    clouds: CloudMask | None = None
    cloud_cover: float | None = None
    footprint: Mapping[str, Any] | None = None

    @property
    def key(self) -> str:
        """What results call the scene: the item's name, else the path."""
        return self.name or str(self.path)

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

    def read(
        self,
        window: Window | None = None,
        *,
        bands: Sequence[str] | None = None,
        clouds: bool = False,
    ) -> Chip:
        """The pixels of a window, or of the whole scene, as a chip with its grid and time.

        `bands`: some of the scene's, in any order; only they are read. `clouds`: also read the mask
        of clouds, where the scene has one. Coarse bands are enlarged to the scene's grid bilinearly
        (see `scenes.resolution`). Pixels come as the file has them where they are valid, marked
        elsewhere (see `Chip`); `valid` is False where they are the sensor's no-data DN, the file's
        no-data value, masked by the file (internal mask, `.msk`, alpha), or not finite. Raises
        `DataError` where the window does not lie within the scene, the pixels take more memory than
        the limit `chip_bytes`, or a file is damaged; `SensorError` for bands that the scene does
        not have.
        """
        chosen = window or Window(row=0, column=0, height=self.height, width=self.width)
        layout = self._layout_of(bands)
        num_bytes = numbers_bytes(chosen, layout, self.source.dtype)
        row_bytes = num_bytes // chosen.height
        held = STEP_COPIES * (STEP_BYTES + self.source.block_rows * row_bytes)
        if held < num_bytes and 2 * num_bytes > limit("chip_bytes"):
            return self._read_by_rows(chosen, layout, clouds, max(1, STEP_BYTES // row_bytes), held)
        with ExitStack() as stack:
            return self._chip(chosen, layout, self._open(stack, layout, clouds))

    def _read_by_rows(
        self, window: Window, layout: PixelLayout, clouds: bool, num_rows: int, held: int
    ) -> Chip:
        """A window that is too large to be read at once: beside its pixels, `held` bytes are taken,
        which some rows need."""
        grid = self.grid.window(window)
        require_fit(self.path, grid, layout, self.source.dtype, held=held)
        parts = [
            replace(window, row=window.row + first, height=min(num_rows, window.height - first))
            for first in range(0, window.height, num_rows)
        ]
        shape = (len(layout.bands), window.height, window.width)
        columns = self._columns(parts, len(layout.bands) * (self.source.dtype.itemsize + 1))
        with enough_memory(shown(self.path)), ExitStack() as stack:
            opened = self._open(stack, layout, clouds, columns)
            pixels: NDArray[Any] = np.empty(shape, self.source.dtype)
            valid, under_cloud = np.empty(shape, bool), np.empty(shape[1:], bool)
            for part in parts:
                chip = self._chip(part, layout, opened)
                dtype = np.result_type(pixels, chip.pixels)  # another one from the first gap on
                if dtype != pixels.dtype:
                    require_fit(self.path, grid, layout, dtype, held=held + pixels.nbytes)
                    pixels = pixels.astype(dtype)
                first = part.row - window.row
                rows = slice(first, first + part.height)
                pixels[:, rows], valid[:, rows] = chip.pixels, chip.valid
                if chip.clouds is not None:
                    under_cloud[rows] = chip.clouds
        return replace(
            chip,
            pixels=pixels,
            valid=valid,
            grid=grid,
            clouds=None if chip.clouds is None else under_cloud,
        )

    def _open(
        self, stack: ExitStack, layout: PixelLayout, clouds: bool, columns: slice | None = None
    ) -> _Opened:
        """What reads windows until `stack` is left."""
        mask = None
        if clouds and self.clouds is not None:
            mask = stack.enter_context(self.clouds.opened(self._stored_grid))
        reader = stack.enter_context(self.source.opened(layout, columns=columns))
        return _Opened(pixels=reader, clouds=mask)

    @property
    def _stored_grid(self) -> Grid:
        return reversed_rows(self.grid) if self.is_reversed else self.grid

    def _chip(self, window: Window, layout: PixelLayout, opened: _Opened) -> Chip:
        grid = self.grid.window(window)
        require_fit(self.path, grid, layout, self.source.dtype)
        if self.is_reversed:
            window = replace(window, row=self.height - window.row - window.height)
        with enough_memory(shown(self.path)):
            pixels, valid = opened.pixels(window)
        clouds = None if opened.clouds is None else opened.clouds(window)
        marked = marked_dtype(pixels.dtype, layout)
        if marked != pixels.dtype and not valid.all():
            require_fit(self.path, grid, layout, marked)
        if self.is_reversed:
            pixels, valid = (np.ascontiguousarray(one[:, ::-1]) for one in (pixels, valid))
            clouds = None if clouds is None else clouds[::-1]
        return Chip(
            pixels=pixels,
            valid=valid,
            layout=layout,
            grid=grid,
            datetime=self.datetime,
            clouds=clouds,
        )

    def read_windows(
        self,
        windows: Iterable[Window],
        *,
        bands: Sequence[str] | None = None,
        clouds: bool = False,
    ) -> Iterator[Chip]:
        """A chip of each window, in their order, as `read` gives it.

        Files stay open from the first to the last. Windows of one row that follow one another, as
        `cut_windows` makes them, are read together, one row ahead in a thread of their own. Where
        rows come from the top to the bottom, every block of a file is decoded once, and what is
        held is some rows of blocks, whatever the scene's size.
        """
        layout = self._layout_of(bands)
        pixel_bytes = len(layout.bands) * (self.source.dtype.itemsize + 1)
        strips = list(_strips(windows, MAX_STRIP_BYTES // pixel_bytes))
        columns = self._columns([strip for strip, _ in strips], pixel_bytes)
        with ExitStack() as stack:
            opened = self._open(stack, layout, clouds, columns)
            ahead = stack.enter_context(ThreadPoolExecutor(1))
            waiting = deque[Future[Chip]]()
            stack.callback(lambda: [future.cancel() for future in waiting])
            for strip, _ in strips[:1]:
                waiting.append(ahead.submit(self._chip, strip, layout, opened))
            for number, (strip, members) in enumerate(strips, start=1):
                chip = waiting.popleft().result()
                for following, _ in strips[number : number + 1]:
                    waiting.append(ahead.submit(self._chip, following, layout, opened))
                yield from (self._part(chip, strip, window) for window in members)

    def cloud_shares(self, windows: Iterable[Window | None]) -> Iterator[float]:
        """The share (0-1) of each window's pixels that lie under a cloud or its shadow.

        None among `windows`: the whole scene. Only the mask of clouds is read; all are NaN where
        the scene has none. `DataError` where it is damaged.
        """
        whole = Window(row=0, column=0, height=self.height, width=self.width)
        with ExitStack() as stack:
            read = None
            if self.clouds is not None:
                read = stack.enter_context(self.clouds.opened(self._stored_grid))
            for window in windows:
                chosen = window or whole
                if self.is_reversed:
                    chosen = replace(chosen, row=self.height - chosen.row - chosen.height)
                yield math.nan if read is None else float(read(chosen).mean())

    def _columns(self, strips: Sequence[Window], pixel_bytes: int) -> slice | None:
        """The columns of windows that come from the top to the bottom; None where they do not, or
        where holding rows of blocks takes too much memory."""
        if len(strips) < 2 or self.is_reversed:
            return None
        if any(below.row < above.row for above, below in pairwise(strips)):
            return None
        first = min(strip.column for strip in strips)
        stop = max(strip.column + strip.width for strip in strips)
        rows = max(strip.height for strip in strips) + self.source.block_rows
        return slice(first, stop) if rows * (stop - first) * pixel_bytes <= MAX_HELD_BYTES else None

    def _part(self, chip: Chip, strip: Window, window: Window) -> Chip:
        """A window of a strip that was read as a chip."""
        first = window.column - strip.column
        columns = slice(first, first + window.width)
        return replace(
            chip,
            pixels=chip.pixels[:, :, columns].copy(),
            valid=chip.valid[:, :, columns].copy(),
            grid=self.grid.window(window),
            clouds=None if chip.clouds is None else chip.clouds[:, columns].copy(),
        )

    def _layout_of(self, bands: Sequence[str] | None) -> PixelLayout:
        if bands is None:
            return self.layout
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
        """ "a.tif: sentinel2-l2a B03, B04; 64x64 pixels of 10 m, EPSG:32648; 2020-02-23"."""
        place = ""
        if self.grid.crs is not None:
            a, _, _, d, _, _ = self.grid.transform
            code = self.grid.crs if len(self.grid.crs) < 20 else "own reference system"
            place = f" of {math.hypot(a, d):g} {map_unit(self.grid.crs)}, {code}"
        day = f"; {self.datetime:%Y-%m-%d}" if self.datetime else ""
        return (
            f"{shown(Path(self.path.name))}: {self.sensor.name} {shorten(self.bands)}; "
            f"{self.height}x{self.width} pixels{place}{day}"
        )

    def __repr__(self) -> str:
        return f"Scene({self})"


@dataclass(frozen=True, kw_only=True, slots=True)
class _Opened:
    """What reads windows of an open scene: its pixels, and its mask of clouds."""

    pixels: Reader
    clouds: Callable[[Window], NDArray[np.bool_]] | None


def _strips(windows: Iterable[Window], max_pixels: int) -> Iterator[tuple[Window, list[Window]]]:
    """Consecutive windows of the same rows and width, and the window that holds them.

    It has at most `max_pixels`, unless it is a single one.
    """
    members: list[Window] = []
    for window in windows:
        joined = _around([*members[:1], *members[-1:], window])
        follows = members and window.column >= members[-1].column
        alike = members and replace(window, column=0) == replace(members[0], column=0)
        if members and not (follows and alike and joined.height * joined.width <= max_pixels):
            yield _around([members[0], members[-1]]), members
            members = []
        members.append(window)
    if members:
        yield _around([members[0], members[-1]]), members


def _around(windows: Sequence[Window]) -> Window:
    """The window from the corner of the first to the end of the last, of the first's rows."""
    first, last = windows[0], windows[-1]
    width = max(1, last.column + last.width - first.column)
    return replace(first, width=width)


def open_scene(
    path: Path | str | Mapping[str, Any] | Any,
    *,
    sensor: Sensor | str | None = None,
    bands: Sequence[str] | None = None,
    dn_offset: float | None = None,
    units: DeclaredUnits | None = None,
    composite: str | None = None,
    signer: Callable[[str], str] | None = None,
) -> Scene:
    """Open a picture, a GeoTIFF, a product or an item of a STAC catalogue.

    `path`: a file; a folder, ESA's zip, or a list, with one file per band (see `scenes.products`);
    a STAC
    item, as its file, address, values or pystac's object (see `scenes.catalogues`). `signer`: gives
    the address to open for that of an item's asset; by default Planetary Computer's are signed.
    `sensor`: a sensor, the name of a built-in one, or a TOML file; may be left out for pictures,
    8-bit bands marked red, green, blue (and alpha), and where the name of the file or its folder is
    that of a standard product (see `product_names`) or metadata state it. `bands`: of a file, names
    in its order, "-" for a band to leave out, or some of those that it names; left out, they come
    from its band descriptions and tags, without those that measure nothing (QA60, SCL, alpha; see
    `band_names`); of a folder some of its bands. `dn_offset`: what is added to the DN; for
    Sentinel-2 it may be left out where metadata (see `stated_offset`; declaring another is an
    error) or a product's name state it. Where nothing does, and the pixels of a folder rule out one
    of the two, the other is concluded, with a warning and a note. `units`: left out, integers are
    DN, and numbers of a sensor without DN (dB) are physical; "linear" power of radar is read in dB.
    `composite`: the sensor's default where left out. A scale and offset that the file states for
    its bands replace the sensor's. Samples of the pixels are held against what is declared, once
    (see `scenes.plausible`).

    South-up files are read north-up: rows, and those of windows, count from the north. Other
    mirrored and rotated grids are read as they are stored, with a warning.

    Raises `DataError` for a file that is missing, damaged, not as declared, or with numbers that
    cannot be what is declared, and where the bands of a folder do not lie on one grid or state
    different scales; `SensorError` for an unknown band or offset; and what `find_product` raises.
    """
    declared = Declared(
        sensor=as_sensor(sensor) if isinstance(sensor, str) else sensor,
        bands=bands,
        dn_offset=dn_offset,
        units=units,
        composite=composite,
    )
    from terralign.scenes.catalogues import is_catalogue, open_only

    if isinstance(path, list | tuple):
        files = [Path(one) for one in path]
        product = product_of_files(files, declared.sensor)
        folder = files[0].absolute().parent
        return open_product(folder, _only(product, bands, folder), declared)
    if not isinstance(path, str | Path) or is_catalogue(path):
        return open_only(path, declared, signer=signer)
    if signer is not None:
        raise DataError(f"{shown(path)}: signer has no effect on files; leave it out")
    return open_declared(Path(path), declared)


def open_declared(path: Path, declared: Declared) -> Scene:
    """`open_scene` of what is declared."""
    if path.is_dir() or is_archive(path):
        product = _only(find_product(path, declared.sensor), declared.bands, path)
        return open_product(path, product, declared)
    if kind_of(path) == "picture":
        return _open_picture(path, declared)
    return _checked(_in_decibel(_open_geotiff, path, declared), declared)


def open_product(path: Path, product: Product, declared: Declared) -> Scene:
    """The scene of a product's files; arguments and errors as `open_scene`."""

    def opening(path: Path, declared: Declared) -> Scene:
        return _open_product(path, product, declared)

    unknown = None
    try:
        scene = _in_decibel(opening, path, declared)
    except UnknownOffsetError as error:
        unknown = error
        scene = _in_decibel(opening, path, replace(declared, dn_offset=0.0))
    return _checked(scene, declared, unknown=unknown, catalogued=product.catalogued)


def _in_decibel(
    opening: Callable[[Path, Declared], Scene], path: Path, declared: Declared
) -> Scene:
    """A scene, read in dB where linear power is declared."""
    if declared.units != "linear":
        return opening(path, declared)
    scene = opening(path, replace(declared, units="physical"))
    if scene.sensor.unit != "dB":
        raise SensorError(
            f"{shown(path)}: units='linear' is power of radar; sensor {scene.sensor.name!r} has "
            f"{scene.sensor.unit}"
        )
    _refuse_negative(scene)
    return replace(scene, source=DecibelSource(power=scene.source))


def _refuse_negative(scene: Scene) -> None:
    """Raise `NumbersError` where most numbers are negative, as dB are and power is not."""
    samples = _samples(scene)
    num_valid = sum(int(chip.valid.sum()) for chip in samples)
    num_negative = sum(int((np.asarray(chip.pixels)[chip.valid] < 0).sum()) for chip in samples)
    if 2 * num_negative > num_valid:
        raise NumbersError(
            f"{shown(scene.key)}: units='linear' was declared, but "
            f"{100 * num_negative / num_valid:.3g} % of the numbers are negative, as dB are and "
            "power is not; leave units out"
        )


def _checked(
    scene: Scene,
    declared: Declared,
    *,
    unknown: UnknownOffsetError | None = None,
    catalogued: Catalogued | None = None,
) -> Scene:
    """A scene whose pixels were held against what is declared of them.

    `unknown`: why its DN offset is not known, and is to be concluded.
    """
    origin = shown(scene.key)
    warn_unless_north_up(scene.grid, origin=origin)
    if is_south_up(scene.grid):
        logger.info("%s is stored south-up; its rows are read from the north", origin)
        scene = _reversed(scene)
    samples = [(chip.pixels, chip.valid) for chip in _samples(scene)]
    if unknown is not None:
        scene = _with_concluded_offset(scene, samples, unknown)
    elif catalogued is not None and declared.dn_offset is None:
        scene = _held_against_pixels(scene, samples, catalogued)
    elif declared.dn_offset is None:
        _log_offset(scene)
    check_numbers(samples, scene.layout, origin=origin)
    return scene


def _held_against_pixels(
    scene: Scene,
    samples: Sequence[tuple[NDArray[Any], NDArray[np.bool_]]],
    catalogued: Catalogued,
) -> Scene:
    """The scene, with what its pixels make of the DN offset that a catalogue states in its notes;
    with the other offset, and a warning, where they rule it out."""
    layout = scene.layout
    if layout.units != "dn" or not layout.sensor.offset_varies or layout.stated_scale is not None:
        return scene
    verdict = offset_verdict(samples, layout)
    concluded = concluded_offset(samples, layout) if layout.dn_offset < 0 else None
    if concluded is not None:
        value, reason = concluded
        note = f"{catalogued.origin} means a DN offset of {layout.dn_offset:g}, but {reason}"
        logger.warning("%s: %s", shown(scene.key), note)
        scene = replace(scene, layout=replace(layout, dn_offset=value))
    else:
        note = f"DN offset {layout.dn_offset:g} by {catalogued.origin}; {_PIXELS[verdict]}"
        logger.info("%s: %s", shown(scene.key), note)
    return replace(scene, notes=(*scene.notes, note))


_PIXELS = {
    "agrees": "the pixels agree",
    "contradicts": "the pixels contradict it",
    "undecidable": "the pixels do not decide",
}


def read_geotiff(path: Path, declared: Declared) -> Chip:
    """All pixels of a GeoTIFF, which is opened once: for data sets of many small files.

    As `open_scene` and `Scene.read`, but nothing is logged and the numbers are not checked.
    """
    with open_geotiff(path) as opened:
        scene, source = _describe_geotiff(path, opened, declared)
        whole = Window(row=0, column=0, height=scene.height, width=scene.width)
        scene = _reversed(scene) if is_south_up(scene.grid) else scene
        reader = source.reader(opened, scene.layout)
        return scene._chip(whole, scene.layout, _Opened(pixels=reader, clouds=None))


def _reversed(scene: Scene) -> Scene:
    return replace(scene, grid=reversed_rows(scene.grid), is_reversed=True)


def _open_picture(path: Path, declared: Declared) -> Scene:
    declared.require_picture(shown(path))
    rgb = SENSORS["rgb"]
    height, width = picture_shape(path)
    identity = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
    return Scene(
        path=path,
        layout=make_layout(rgb, rgb.band_names, units="dn", composite=declared.composite),
        grid=Grid(crs=None, transform=identity, height=height, width=width),
        datetime=None,
        is_picture=True,
        source=PictureSource(path=path),
    )


def _open_geotiff(path: Path, declared: Declared) -> Scene:
    with open_geotiff(path) as opened:
        scene, _ = _describe_geotiff(path, opened, declared)
        warn_of_points(opened, origin=shown(path))
        return replace(scene, clouds=_mask_within(path, opened, scene))


def _mask_within(path: Path, opened: Any, scene: Scene) -> CloudMask | None:
    """The band of an open GeoTIFF that marks clouds, by its name (`QA60`, `SCL`)."""
    if len(scene.bands) == opened.count:
        return None  # all are the sensor's
    for index, text in enumerate(read_band_names(opened, scene.sensor).texts, start=1):
        kind = mask_kind(text)
        if kind is not None:
            return CloudMask(place=path, kind=kind, index=index)
    return None


def _describe_geotiff(path: Path, opened: Any, declared: Declared) -> tuple[Scene, GeotiffSource]:
    """The scene of an open GeoTIFF, as it is stored, and its source."""
    require_small_blocks(path, opened)
    described = describe_geotiff(path, opened, declared)
    source = GeotiffSource(path=path, described=described, block_rows=block_step(opened))
    scene = Scene(
        path=path,
        layout=described.layout,
        grid=grid_of(opened),
        datetime=_datetime_of([path.name, path.absolute().parent.name]),
        is_picture=opened.crs is None and is_rgb(opened),
        source=source,
    )
    return scene, source


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
    note = f"DN offset not found in metadata or name: {reason}"
    logger.warning("%s: %s", shown(scene.path), note)
    return replace(scene, layout=replace(scene.layout, dn_offset=value), notes=(note,))


_logged: set[float] = set()


def _log_offset(scene: Scene) -> None:
    """Log a DN offset that metadata or name state, once for each value."""
    layout = scene.layout
    if layout.units != "dn" or not layout.sensor.offset_varies or layout.stated_scale is not None:
        return
    if layout.dn_offset not in _logged:
        _logged.add(layout.dn_offset)
        logger.info(
            "%s: DN offset %g, as its metadata or name states", shown(scene.path), layout.dn_offset
        )


def _samples(scene: Scene) -> list[Chip]:
    """Chips spread evenly over a scene; the whole of a small one."""
    if scene.height * scene.width <= MAX_CHECKED_WHOLE:
        return [scene.read()]
    height, width = min(SAMPLE_SIDE, scene.height), min(SAMPLE_SIDE, scene.width)
    with ExitStack() as stack:
        opened = scene._open(stack, scene.layout, clouds=False)
        return [
            scene._chip(
                Window(row=row, column=column, height=height, width=width), scene.layout, opened
            )
            for row in _spread(scene.height)
            for column in _spread(scene.width)
        ]


def _spread(length: int) -> list[int]:
    """First rows or columns of samples: multiples of their side, so that each lies in one tile."""
    last = max(0, length // SAMPLE_SIDE - 1)
    return sorted({SAMPLE_SIDE * (last * n // (SAMPLES_A_SIDE - 1)) for n in range(SAMPLES_A_SIDE)})


def _datetime_of(names: Iterable[str]) -> dt.datetime | None:
    return next((when for name in names if (when := product_datetime(name))), None)


def _open_product(path: Path, product: Product, declared: Declared) -> Scene:
    layout, grid, source = describe_product(path, product, declared)
    return Scene(
        path=path,
        layout=layout,
        grid=grid,
        datetime=_datetime_of([product.files[0].path.name, *product.names]),
        is_picture=False,
        source=source,
        name=product.name,
        clouds=product.clouds,
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
