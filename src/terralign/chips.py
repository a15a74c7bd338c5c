"""Small raster values: where a chip lies, what its pixels are, and how its numbers are meant."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from terralign.errors import SensorError
from terralign.sensors import SENSORS, Composite, Sensor


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


@dataclass(frozen=True, kw_only=True, slots=True)
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
    units: Literal["dn", "physical"]
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


@dataclass(frozen=True, kw_only=True, slots=True)
class Chip:
    """A piece of one scene.

    `pixels`: (C, H, W), numbers as `layout` says. `valid`: (C, H, W) bool, True where a pixel may
    be used; elsewhere the pixels are marked by `mark_invalid`, whatever was given, so that neither
    can be used without the other. `datetime`: acquisition, None where unknown.
    """

    pixels: NDArray[np.generic]
    valid: NDArray[np.bool_]
    layout: PixelLayout
    grid: Grid | None = None
    datetime: dt.datetime | None = None

    def __post_init__(self) -> None:
        if self.pixels.ndim != 3 or len(self.pixels) != len(self.layout.bands):
            raise SensorError(
                f"chip has pixels of shape {self.pixels.shape} for {len(self.layout.bands)} bands "
                f"({', '.join(self.layout.bands)}); expected (C, H, W) with one channel per band"
            )
        if self.valid.shape != self.pixels.shape:
            raise SensorError(f"valid is {self.valid.shape}, pixels are {self.pixels.shape}")
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
    if np.issubdtype(pixels.dtype, np.floating):
        return np.where(valid, pixels, pixels.dtype.type(np.nan))
    nodata = layout.sensor.nodata if layout.units == "dn" else None
    if nodata is not None and np.can_cast(np.min_scalar_type(nodata), pixels.dtype):
        return np.where(valid, pixels, pixels.dtype.type(nodata))
    exact = np.float32 if pixels.dtype.itemsize <= 2 else np.float64
    return np.where(valid, pixels.astype(exact), exact(np.nan))
