"""What a caller declares of pixels, in files and in memory.

C bands, H W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from terralign.chips import PixelLayout, Units, make_layout
from terralign.errors import DataError, SensorError
from terralign.sensors import RGB, SENSORS, Sensor

DeclaredUnits = Units | Literal["linear"]
"""`Units`, or linear power of radar files, which is read in dB."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Declared:
    """What a caller declares of pixels; None: nothing. See `EmbeddingSpace.embed`."""

    sensor: Sensor | None = None
    bands: Sequence[str] | None = None
    units: DeclaredUnits | None = None
    dn_offset: float | None = None
    composite: str | None = None

    def __post_init__(self) -> None:
        if self.sensor is not None and not isinstance(self.sensor, Sensor):
            raise SensorError(
                f"sensor is a {type(self.sensor).__name__}; give a name, a TOML file or a Sensor"
            )
        if self.units not in (None, "dn", "physical", "linear"):
            raise SensorError(f'units must be "dn", "physical" or "linear", not {self.units!r}')
        if isinstance(self.bands, str):
            raise SensorError(
                f'bands = {self.bands!r} is one text; give a list of names, as in ["B04"]'
            )
        if self.bands is not None and not all(isinstance(one, str) for one in self.bands):
            raise SensorError(f"bands = {self.bands!r}; give a list of names")

    @property
    def plain_units(self) -> Units | None:
        """The units, where linear power is not converted; `SensorError` where it is declared."""
        if self.units == "linear":
            raise SensorError(
                "units='linear' is for scenes of radar; bring other numbers to dB first: "
                "10 * log10(power)"
            )
        return self.units

    def refuse(self, what: str, *keys: str) -> None:
        """`SensorError` where one of `keys` is declared of `what`, which has its own."""
        for key in keys:
            if getattr(self, key) is not None:
                raise SensorError(f"{what} has its own {key}; leave {key} out")

    def require_picture(self, what: str) -> None:
        """`DataError` where something other than sensor `rgb` in 8-bit DN is declared."""
        if self.sensor not in (None, SENSORS[RGB]):
            raise DataError(
                f"{what} is a picture, which is sensor 'rgb', not {self.sensor.name!r}; give the "
                f"{self.sensor.name} bands as a GeoTIFF"
            )
        if self.bands is not None or self.dn_offset is not None or self.units == "physical":
            raise DataError(
                f"{what} is a picture: its bands are red, green, blue in 8-bit numbers; leave out "
                "bands, dn_offset and units"
            )


def declare_layout(
    sensor: Sensor,
    bands: Sequence[str] | None,
    *,
    units: Units,
    dn_offset: float | None = None,
    composite: str | None = None,
    shape: Sequence[int] | None = None,
) -> PixelLayout:
    """How pixels of `shape` (..., C, H, W) are to be read, from what a caller declares.

    Nothing is guessed: `SensorError` where the channels are not those bands, and where Sentinel-2
    DN come without `dn_offset`.
    """
    Declared(bands=bands, units=units)  # checks them
    names = sensor.band_names if bands is None else sensor.resolve(bands)
    if shape is not None and len(shape) >= 3 and shape[-3] != len(names):
        if shape[-1] == len(names):
            raise SensorError(
                f"pixels of shape {tuple(shape)} have their channels last; expected channels "
                f"first, ({'N, ' * (len(shape) == 4)}{len(names)}, H, W): "
                "np.moveaxis(pixels, -1, -3)"
            )
        raise SensorError(
            f"pixels have {shape[-3]} channels, but {len(names)} bands of {sensor.name!r} "
            f"({', '.join(names)}); say which bands they are, in order (bands=)"
        )
    if units == "dn" and sensor.offset_varies and dn_offset is None:
        raise SensorError(
            f"DN of {sensor.name!r} need dn_offset: 0, or -1000 for processing baseline 04.00 "
            "and later as ESA delivers it"
        )
    if units == "physical" and dn_offset:
        raise SensorError("dn_offset has no effect on physical units; leave it out")
    return make_layout(sensor, names, units=units, dn_offset=dn_offset or 0.0, composite=composite)


def has_dn(sensor: Sensor) -> bool:
    """Whether digital numbers of the sensor differ from its physical values."""
    return sensor.dn_scale != 1 or sensor.add != 0 or sensor.offset_varies


def units_of(
    sensor: Sensor, dtype: np.dtype[Any], declared: Units | None, *, what: str = ""
) -> Units:
    """The units declared, else those of the numbers' type: integers are DN, and numbers of a
    sensor without DN (dB) are physical. `DataError`, which begins with `what`, for fractions."""
    if declared is not None:
        return declared
    if not has_dn(sensor):
        return "physical"
    if np.issubdtype(dtype, np.integer):
        return "dn"
    raise DataError(
        f"{what or f'pixels are {dtype}'}: digital numbers or {sensor.unit} of sensor "
        f"{sensor.name!r}? Declare units='dn' or units='physical'"
    )
