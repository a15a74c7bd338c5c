"""Small raster values: where a chip lies, what its pixels are, and how its numbers are meant."""

from __future__ import annotations

import base64
import datetime as dt
import html
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from terralign.errors import DataError, SensorError
from terralign.sensors import SENSORS, Composite, Sensor, shorten

Units = Literal["dn", "physical"]
"""What numbers are: raw digital numbers, or values in the sensor's unit."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Window:
    """A rectangle of pixels: its first row and column, from 0, and its size."""

    row: int
    column: int
    height: int
    width: int

    def __post_init__(self) -> None:
        if self.row < 0 or self.column < 0 or self.height < 1 or self.width < 1:
            raise DataError(
                f"window of {self.height}x{self.width} pixels at row {self.row}, column "
                f"{self.column}; expected a size of at least 1 and a corner from 0"
            )

    def __str__(self) -> str:
        return f"{self.height}x{self.width} at row {self.row}, column {self.column}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Grid:
    """A georeferenced pixel grid.

    `crs`: an authority code or WKT, None where the file has none; `transform`: the six
    coefficients (a, b, c, d, e, f) of the affine map from (column, row) to map units.
    """

    crs: str | None
    transform: tuple[float, float, float, float, float, float]
    height: int
    width: int

    @property
    def bounds(self) -> tuple[float, float, float, float]:
        """(west, south, east, north) in `crs` units; the grid may be rotated or south-up."""
        a, b, c, d, e, f = self.transform
        corners = [
            (a * column + b * row + c, d * column + e * row + f)
            for column in (0, self.width)
            for row in (0, self.height)
        ]
        xs, ys = zip(*corners, strict=True)
        return (min(xs), min(ys), max(xs), max(ys))

    def window(self, window: Window) -> Grid:
        """The grid of a window; `DataError` where it does not lie within this one."""
        if window.row + window.height > self.height or window.column + window.width > self.width:
            raise DataError(
                f"window {window} does not lie within {self.height}x{self.width} pixels"
            )
        a, b, c, d, e, f = self.transform
        return replace(
            self,
            transform=(
                *(a, b, a * window.column + b * window.row + c),
                *(d, e, d * window.column + e * window.row + f),
            ),
            height=window.height,
            width=window.width,
        )


@dataclass(frozen=True, kw_only=True, slots=True, repr=False)
class PixelLayout:
    """How the numbers of one sensor are to be read, as a data set or file declares it.

    `bands`: canonical names in the order of the channels. `units`: "dn" (raw digital numbers, to
    which `dn_offset` is added before scaling) or "physical" (already in `sensor.unit`).
    `composite`: the RGB recipe, None where the sensor makes no RGB or lacks the bands.
    `stated_scale`: (scale, offset) that the files state for their bands and that replace the
    sensor's `dn_scale` and `add`; None where the sensor's hold.

    A number without data is NaN, or, among whole numbers, the sensor's `nodata` (see
    `mark_invalid`).
    """

    sensor: Sensor
    bands: tuple[str, ...]
    units: Units
    dn_offset: float = 0.0
    composite: Composite | None = None
    stated_scale: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        if self.sensor.resolve(self.bands) != self.bands:
            raise SensorError(
                f"bands {self.bands} of sensor {self.sensor.name!r} are not canonical names; "
                "pass them through sensor.resolve"
            )
        if self.sensor.name in SENSORS:
            _check_offset(self.sensor, self.dn_offset)

    @property
    def dn_scale(self) -> float:
        """What a DN is multiplied by, after `dn_offset` was added."""
        return self.sensor.dn_scale if self.stated_scale is None else self.stated_scale[0]

    @property
    def add(self) -> float:
        """What is added to a scaled DN, in `sensor.unit`."""
        return self.sensor.add if self.stated_scale is None else self.stated_scale[1]

    def with_composite(self, name: str | None) -> PixelLayout:
        """The same numbers with another RGB recipe of the sensor; None: as they are."""
        if name is None:
            return self
        return replace(self, composite=self.sensor.composite(name))

    def __repr__(self) -> str:
        """ "PixelLayout(sentinel2-l2a: B02, B03, B04; DN, offset -1000; composite paper-l2a)"."""
        numbers: str = self.sensor.unit
        if self.units == "dn":
            numbers = f"DN, offset {self.dn_offset:g}" if self.sensor.offset_varies else "DN"
            if self.stated_scale is not None:
                numbers += f", stated scale {self.dn_scale:g} and offset {self.add:g}"
        composite = f"; composite {self.composite.name}" if self.composite else ""
        return f"PixelLayout({self.sensor.name}: {shorten(self.bands)}; {numbers}{composite})"


def make_layout(
    sensor: Sensor,
    bands: Sequence[str],
    *,
    units: Units,
    dn_offset: float = 0.0,
    composite: str | None = None,
    stated_scale: tuple[float, float] | None = None,
) -> PixelLayout:
    """The layout of these bands, with the composite named, or the sensor's default one.

    Without a name, `composite` is None where the sensor makes no RGB or the bands lack its three.
    """
    return _make_layout(sensor, tuple(bands), units, dn_offset, composite, stated_scale)


@lru_cache(maxsize=64)
def _make_layout(
    sensor: Sensor,
    bands: tuple[str, ...],
    units: Units,
    dn_offset: float,
    composite: str | None,
    stated_scale: tuple[float, float] | None,
) -> PixelLayout:
    names = sensor.resolve(bands)
    if composite is None:
        recipe = sensor.composites[0] if sensor.composites else None
        if recipe is not None and not set(recipe.bands) <= set(names):
            recipe = None
    else:
        recipe = sensor.composite(composite)
        missing = [name for name in recipe.bands if name not in names]
        if missing:
            raise SensorError(
                f"composite {composite!r} needs {', '.join(missing)}; "
                f"the bands are {', '.join(names)}"
            )
    return PixelLayout(
        sensor=sensor,
        bands=names,
        units=units,
        dn_offset=dn_offset,
        composite=recipe,
        stated_scale=stated_scale,
    )


def _check_offset(sensor: Sensor, dn_offset: float) -> None:
    """Refuse a DN offset that no product of a built-in sensor has."""
    if not sensor.offset_varies and dn_offset:
        raise SensorError(
            f"dn_offset={dn_offset:g}: DN of {sensor.name!r} have no offset of their own; "
            "leave it out"
        )
    if not (-10000 < dn_offset <= -1 or dn_offset == 0):
        raise SensorError(
            f"dn_offset={dn_offset:g}: what is added to DN of {sensor.name!r} is 0, or -1000 for "
            "processing baseline 04.00 and later as ESA delivers it"
        )


@dataclass(frozen=True, kw_only=True, slots=True, repr=False)
class Chip:
    """A piece of one scene.

    `pixels`: (C, H, W), numbers as `layout` defines them. `valid`: (C, H, W) bool, True where a
    pixel may be used; elsewhere the pixels are marked by `mark_invalid`, whatever was given, so
    that neither can be used without the other. `datetime`: acquisition, None where unknown.
    `clouds`: (H, W) bool, True where there is a cloud or its shadow, whose pixels are valid all the
    same; None where unknown, or not read.
    """

    pixels: NDArray[np.generic]
    valid: NDArray[np.bool_]
    layout: PixelLayout
    grid: Grid | None = None
    datetime: dt.datetime | None = None
    clouds: NDArray[np.bool_] | None = None

    def __post_init__(self) -> None:
        if self.pixels.ndim != 3 or len(self.pixels) != len(self.layout.bands):
            num_bands = len(self.layout.bands)
            last = self.pixels.ndim == 3 and self.pixels.shape[-1] == num_bands
            raise SensorError(
                f"chip has pixels of shape {self.pixels.shape} for {num_bands} bands "
                f"({', '.join(self.layout.bands)}); expected (C, H, W), channels first"
                + ("; of channels last, pixels.transpose(2, 0, 1)" if last else "")
            )
        if self.valid.shape != self.pixels.shape:
            raise SensorError(f"valid is {self.valid.shape}, pixels are {self.pixels.shape}")
        if self.clouds is not None and self.clouds.shape != self.pixels.shape[1:]:
            raise SensorError(f"clouds is {self.clouds.shape}, pixels are {self.pixels.shape}")
        object.__setattr__(self, "pixels", mark_invalid(self.pixels, self.valid, self.layout))

    @property
    def bands(self) -> tuple[str, ...]:
        """Canonical names of the channels, in order."""
        return self.layout.bands

    @property
    def sensor(self) -> Sensor:
        """The sensor that the bands belong to."""
        return self.layout.sensor

    @property
    def valid_share(self) -> float:
        """Share (0-1) of the numbers that are valid."""
        return float(self.valid.mean())

    @property
    def cloud_share(self) -> float | None:
        """Share (0-1) of the pixels with a number that lie under a cloud or its shadow; None where
        `clouds` is."""
        if self.clouds is None:
            return None
        there = self.valid.any(0)
        return float(self.clouds[there].mean()) if there.any() else 0.0

    def select_bands(self, names: Iterable[str]) -> Chip:
        """The chip with just these bands, in this order; the only place that counts channels."""
        wanted = self.sensor.resolve(names)
        missing = [name for name in wanted if name not in self.bands]
        if missing:
            raise SensorError(
                f"chip has bands {', '.join(self.bands)}; missing {', '.join(missing)}"
            )
        order = [self.bands.index(name) for name in wanted]
        return replace(
            self,
            pixels=self.pixels[order],
            valid=self.valid[order],
            layout=replace(self.layout, bands=wanted),
        )

    def __repr__(self) -> str:
        """ "Chip(sentinel2-l2a: B02, B03, B04; 64x64 uint16, 98.0 % valid; 2020-02-23)"."""
        height, width = self.pixels.shape[1:]
        day = f"; {self.datetime:%Y-%m-%d}" if self.datetime else ""
        return (
            f"Chip({self.sensor.name}: {shorten(self.bands)}; {height}x{width} "
            f"{self.pixels.dtype}, {100 * self.valid_share:.3g} % valid{day})"
        )

    def _repr_html_(self) -> str:
        """Its composite as a small picture, with its repr below; the repr alone without one."""
        text = html.escape(repr(self))
        composite = self.layout.composite
        if composite is None or not set(composite.bands) <= set(self.bands):
            return f"<code>{text}</code>"
        data = base64.b64encode(_composite_png(self, composite)).decode()
        picture = f'<img alt="{html.escape(composite.name)}" src="data:image/png;base64,{data}">'
        return f"<figure>{picture}<figcaption><code>{text}</code></figcaption></figure>"


_MAX_SIDE = 256
"""Pixels that the longer side of a shown picture has at most."""


def _composite_png(chip: Chip, composite: Composite) -> bytes:
    """The composite as PNG, every n-th pixel; transparent where any of the three is invalid."""
    from PIL import Image

    step = -(-max(chip.pixels.shape[1:]) // _MAX_SIDE)
    order = [chip.bands.index(name) for name in composite.bands]
    numbers = chip.pixels[order, ::step, ::step].astype(np.float64)
    valid = np.asarray(chip.valid[order, ::step, ::step] & np.isfinite(numbers)).all(
        0, keepdims=True
    )
    layout = chip.layout
    if layout.units == "dn":
        numbers = (numbers + layout.dn_offset) * layout.dn_scale + layout.add
    bright = np.where(valid, numbers / composite.stretch, 0).clip(0, 1)
    rgba = np.concatenate([bright, valid])
    picture = Image.fromarray(np.rint(255 * rgba).astype(np.uint8).transpose(1, 2, 0).copy())
    stream = io.BytesIO()
    picture.save(stream, format="PNG")
    return stream.getvalue()


def without_mask(array: NDArray[Any]) -> NDArray[Any]:
    """A plain array: masked numbers of a masked array become NaN, in float32 where that is exact,
    else float64. Whole numbers stay so where none is masked."""
    if not isinstance(array, np.ma.MaskedArray):
        return array
    mask, numbers = np.ma.getmaskarray(array), np.asarray(array.data)
    if not mask.any():
        return numbers
    exact = np.float32 if array.dtype.itemsize <= 2 else np.float64
    return np.where(mask, exact(np.nan), numbers.astype(exact))


def mark_invalid(
    pixels: NDArray[np.generic], valid: NDArray[np.bool_], layout: PixelLayout
) -> NDArray[np.generic]:
    """`pixels`, any shape, with no-data marked in the numbers themselves.

    Where not `valid` they become NaN, or the sensor's `nodata` where they are whole DN that can
    hold it. Other whole numbers become floating point, since none of theirs means "no data".
    `preprocess.to_physical` finds the same mask in the result.
    """
    if valid.all():
        return pixels
    dtype = marked_dtype(pixels.dtype, layout)
    if dtype == pixels.dtype:
        whole = not np.issubdtype(dtype, np.floating)
        nothing = dtype.type(layout.sensor.nodata if whole else np.nan)
        return pixels if _is_marked(pixels, valid, nothing) else np.where(valid, pixels, nothing)
    marked = pixels.astype(dtype)
    np.copyto(marked, np.nan, where=~valid)
    return marked


def _is_marked(pixels: NDArray[Any], valid: NDArray[np.bool_], nothing: Any) -> bool:
    """Whether `pixels` are `nothing` wherever not `valid`; band by band, which takes no memory."""
    if pixels.ndim > 2:
        return all(_is_marked(*pair, nothing) for pair in zip(pixels, valid, strict=True))
    marked = np.isnan(pixels) if np.isnan(nothing) else pixels == nothing
    return bool(np.logical_or(marked, valid, out=marked).all())


def marked_dtype(dtype: np.dtype[Any], layout: PixelLayout) -> np.dtype[Any]:
    """The type of pixels of `dtype` once some of them are marked by `mark_invalid`."""
    if np.issubdtype(dtype, np.floating):
        return dtype
    nodata = layout.sensor.nodata if layout.units == "dn" else None
    if nodata is not None and np.can_cast(np.min_scalar_type(nodata), dtype):
        return dtype
    return np.dtype(np.float32 if dtype.itemsize <= 2 else np.float64)


MAX_ASPECT = 16
"""Of pixels that are longer only the middle, of this aspect, is resized where the ends are cropped
anyway."""


def middle(length: int, breadth: int) -> slice:
    """The part of a side of `length` pixels that is at most `MAX_ASPECT` times the other one."""
    kept = MAX_ASPECT * breadth
    if length <= kept:
        return slice(0, length)
    kept += (length - kept) % 2  # as much is left out at both ends
    return slice((length - kept) // 2, (length + kept) // 2)
