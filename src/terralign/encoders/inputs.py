"""Whatever a caller embeds, as chips: one reading path for Python and the command line.

A path, a folder, a `Chip`, a Pillow image, numbers, a sample set, or several of these become
sources; a source becomes one chip, or windows of the tower's size. C bands, H W pixels.
"""

from __future__ import annotations

import datetime as dt
import glob
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from io import IOBase
from pathlib import Path
from typing import Any, Literal

import numpy as np
import shapely
from PIL import Image
from torch import Tensor

from terralign.chips import Chip, Grid, PixelLayout, Window, make_layout
from terralign.encoders.pixels import Pixels, as_declared, as_tensor, is_array
from terralign.encoders.vectors import Fault, Footprint, as_fault
from terralign.errors import DataError, SensorError, shown
from terralign.files import missing_hint
from terralign.scenes.catalogues import is_catalogue, is_pystac, read_items
from terralign.scenes.declared import Declared
from terralign.scenes.inputs import find_inputs
from terralign.scenes.pictures import image_with_mask
from terralign.scenes.places import box, wgs84_footprint
from terralign.scenes.scene import Scene, open_declared
from terralign.scenes.stac import StacItem, open_item
from terralign.scenes.windows import cut_windows
from terralign.sensors import SENSORS

logger = logging.getLogger(__name__)

_Single = str | Path | Scene | StacItem | Chip | Image.Image | Pixels

Inputs = _Single | Iterable[Any]
"""What can be embedded: one, or several of these."""

Windowing = int | Literal["whole"] | None
"""Pixels of a window's side; "whole": never cut; None: rasters larger than the tower's input are
cut into windows of its size."""

Windows = Sequence[Window | None]
"""None: the whole of a source."""

Read = Callable[[Windows, Sequence[str]], Iterator[tuple[Tensor, PixelLayout]]]
"""Pixels (C, h, w) of windows, one after another, with at least these bands."""

CloudShares = Callable[[Windows], Iterator[float]]
"""The share (0-1) of each window's pixels that are cloud or its shadow; NaN where none is known."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """One input that can be read. `is_scene`: a raster, which is cut where it is larger than the
    tower's input; `is_numbers`: numbers in memory. `cloud_shares`: None where it has no cloud mask.
    `notes`: what was concluded of it rather than declared."""

    key: str
    layout: PixelLayout
    height: int
    width: int
    read: Read
    path: Path | None = None
    grid: Grid | None = None
    geometry: Mapping[str, Any] | None = None
    datetime: dt.datetime | None = None
    is_scene: bool = False
    is_numbers: bool = False
    cloud_shares: CloudShares | None = None
    notes: tuple[str, ...] = ()

    def windows(self, size: int, windowing: Windowing) -> list[Window | None]:
        """The windows that the source is cut into; `[None]` for the whole."""
        if windowing == "whole":
            return [None]
        side = windowing or size
        larger = self.height > side or self.width > side
        if larger and (windowing is not None or self.is_scene):
            return list(cut_windows(self.height, self.width, side))
        return [None]

    def name_of(self, window: Window | None) -> str:
        """The key of a window."""
        return self.key if window is None else f"{self.key}@{window.row},{window.column}"

    def place(self, window: Window | None) -> Footprint:
        """Where a window lies."""
        grid = self.grid
        if grid is not None and window is not None:
            grid = grid.window(window)
        geometry = self.geometry
        if grid is not None and grid.crs is not None:
            geometry = wgs84_footprint(grid, origin=self.key)
        return Footprint(
            source=None if self.path is None else str(self.path),
            window=window,
            shape=None if geometry is None else shapely.geometry.shape(geometry),
            datetime=self.datetime,
        )


def list_inputs(inputs: Inputs, declared: Declared) -> Iterable[tuple[int, Any]]:
    """Single inputs with the number of what was given: paths stand for what they hold, or for a
    `Fault`. A list, unless `inputs` is one that comes bit by bit (an iterator)."""
    given = _several(inputs)
    listed = (
        (number, single) for number, one in enumerate(given) for single in _singles(one, declared)
    )
    return list(listed) if isinstance(given, Sequence) else listed


def _singles(one: Any, declared: Declared) -> Iterable[Any]:
    is_path = isinstance(one, str | Path)
    if not is_path and not is_pystac(one):
        return [one]
    if is_path and not str(one).strip():
        raise DataError("a path is empty; name a file or folder")
    try:
        if not is_path or is_catalogue(one):
            return list(read_items(one))
        return expand(Path(one), declared)
    except (DataError, SensorError, OSError) as error:
        return [as_fault(str(one), error)]


def open_sources(
    listed: Iterable[tuple[int, Any]], declared: Declared, *, alone: bool
) -> Iterator[Source | Fault]:
    """The sources of listed inputs, in order; one that cannot be read is a `Fault` in its place.

    `alone`: numbers are all that is given, and their keys need no number before theirs. A source
    of the wrong kind is a `DataError`, since it is the caller's mistake.
    """
    for number, one in listed:
        if isinstance(one, Fault):
            yield one
        elif isinstance(one, Path):
            yield _from_path(one, declared)
        elif isinstance(one, StacItem):
            yield _from_item(one, declared)
        elif isinstance(one, Scene):
            yield _from_opened(one, declared)
        elif isinstance(one, Chip):
            yield _from_chip(one, f"chip-{number}", declared)
        elif isinstance(one, Image.Image):
            yield _from_image(one, f"image-{number}", declared)
        elif _is_sample_set(one):
            yield from _from_samples(one, declared)
        elif is_array(one):
            yield from _from_numbers(one, "" if alone else f"{number}", declared)
        else:
            raise DataError(
                f"cannot embed a {type(one).__name__}; give a path, a folder, a Scene, a STAC "
                "item, a Chip, a Pillow image, an array or tensor (C, H, W) or (N, C, H, W), "
                "Samples, or a list of these"
            )


_SINGLE = (str, Path, Scene, StacItem, Chip, Image.Image)


def _several(inputs: Inputs) -> Iterable[Any]:
    single = isinstance(inputs, _SINGLE) or is_array(inputs) or is_pystac(inputs)
    if single or _is_sample_set(inputs):
        return [inputs]
    if isinstance(inputs, bytes | dict | IOBase) or not isinstance(inputs, Iterable):
        return [inputs]  # refused by kind
    return inputs


def _is_sample_set(one: Any) -> bool:
    return all(hasattr(one, name) for name in ("layouts", "keys", "read", "fingerprint"))


# Files and folders


def expand(path: Path, declared: Declared) -> list[Path]:
    """The inputs that a path stands for: itself, what a folder holds, or what a pattern matches.

    Pictures of a folder are left out, and logged, where its other files are rasters of a declared
    sensor. `DataError` where nothing is found.
    """
    if not path.exists() and glob.has_magic(str(path)):
        found = [Path(one) for one in sorted(glob.glob(str(path)))]
        if not found:
            folder = next(one for one in path.parents if not glob.has_magic(str(one)))
            hint = "" if folder.is_dir() else missing_hint(folder / path.name)
            raise DataError(f"no file matches {shown(path)}{hint}")
        return [one for name in found for one in expand(name, declared)]
    found = find_inputs(path, sensor=declared.sensor)
    if declared.sensor is None or declared.sensor == SENSORS["rgb"] or found == [path]:
        return found
    rasters = [one for one in found if one.is_dir() or one.suffix.lower() in _RASTERS]
    if rasters and len(rasters) < len(found):
        logger.warning(
            "%s: %d pictures are left out, since they are not of sensor %r",
            path, len(found) - len(rasters), declared.sensor.name,
        )  # fmt: skip
    return rasters or found


_RASTERS = (".tif", ".tiff", ".jp2")


def _from_path(path: Path, declared: Declared) -> Source | Fault:
    try:
        return from_scene(open_declared(path, declared))
    except (DataError, SensorError, OSError) as error:
        return as_fault(str(path), error)


def _from_item(item: StacItem, declared: Declared) -> Source | Fault:
    try:
        return from_scene(open_item(item, declared))
    except (DataError, SensorError, OSError) as error:
        return as_fault(item.key, error)


def _from_opened(scene: Scene, declared: Declared) -> Source:
    declared.refuse("a scene", "sensor", "bands", "units", "dn_offset")
    return from_scene(replace(scene, layout=scene.layout.with_composite(declared.composite)))


def from_scene(scene: Scene) -> Source:
    """A source that reads windows of a scene."""

    def read(windows: Windows, bands: Sequence[str]) -> Iterator[tuple[Tensor, PixelLayout]]:
        cut = [window for window in windows if window is not None]
        chips = scene.read_windows(cut, bands=bands) if cut else [scene.read(bands=bands)]
        return ((as_tensor(chip.pixels), chip.layout) for chip in chips)

    return Source(
        key=scene.key,
        layout=scene.layout,
        height=scene.height,
        width=scene.width,
        read=read,
        path=Path(scene.key),
        grid=scene.grid,
        datetime=scene.datetime,
        is_scene=not scene.is_picture,
        notes=scene.notes,
        cloud_shares=None if scene.clouds is None else scene.cloud_shares,
    )


# In memory


def _from_chip(chip: Chip, key: str, declared: Declared) -> Source:
    pixels, layout = as_declared(chip, declared)
    return _of_numbers(key, pixels[0], layout, grid=chip.grid, datetime=chip.datetime)


def _from_image(image: Image.Image, key: str, declared: Declared) -> Source:
    declared.require_picture("a Pillow image")
    pixels, valid = image_with_mask(image)
    rgb = SENSORS["rgb"]
    chip = Chip(
        pixels=pixels,
        valid=np.repeat(valid[None], 3, axis=0),
        layout=make_layout(rgb, rgb.band_names, units="dn", composite=declared.composite),
    )
    source = _of_numbers(key, as_tensor(chip.pixels), chip.layout)
    return replace(source, is_numbers=False)


def _from_numbers(pixels: Pixels, name: str, declared: Declared) -> Iterator[Source]:
    tensor, layout = as_declared(pixels, declared)
    for index, one in enumerate(tensor):
        part = f"{index}" if pixels.ndim == 4 else ""
        key = "-".join(text for text in (name, part) if text) or "0"
        yield _of_numbers(key, one, layout)


def _of_numbers(
    key: str,
    pixels: Tensor,
    layout: PixelLayout,
    *,
    grid: Grid | None = None,
    datetime: dt.datetime | None = None,
) -> Source:
    def read(windows: Windows, bands: Sequence[str]) -> Iterator[tuple[Tensor, PixelLayout]]:
        return ((_cut(pixels, window), layout) for window in windows)

    return Source(
        key=key,
        layout=layout,
        height=int(pixels.shape[-2]),
        width=int(pixels.shape[-1]),
        read=read,
        grid=grid,
        datetime=datetime,
        is_numbers=True,
    )


def _cut(pixels: Tensor, window: Window | None) -> Tensor:
    if window is None:
        return pixels
    rows = slice(window.row, window.row + window.height)
    return pixels[:, rows, window.column : window.column + window.width]


def _from_samples(samples: Any, declared: Declared) -> Iterator[Source]:
    """Every sample of a set, by one of its sensors: the declared one, else its first."""
    declared.refuse("a sample set", "bands", "units", "dn_offset")
    names = list(samples.layouts)
    if declared.sensor is None and len(names) > 1:
        raise SensorError(
            f"data set {samples.name!r} has {', '.join(names)}; name one of these (sensor=)"
        )
    name = declared.sensor.name if declared.sensor is not None else names[0]
    if name not in names:
        raise SensorError(
            f"data set {samples.name!r} has {', '.join(names)}, not {name!r}; name one of these"
        )
    layout = samples.layouts[name].with_composite(declared.composite)
    for start in range(0, len(samples), _READ_AT_ONCE):
        rows = np.arange(start, min(start + _READ_AT_ONCE, len(samples)), dtype=np.int64)
        pixels = samples.read(rows)[name]
        for row, one in zip(rows.tolist(), pixels, strict=True):
            source = _of_numbers(str(samples.keys[row]), as_tensor(one), layout)
            place = samples.place(row) if hasattr(samples, "place") else None
            yield replace(
                source,
                geometry=None if place is None or place.bounds is None else box(place.bounds),
                datetime=None if place is None else place.datetime,
            )


_READ_AT_ONCE = 64
