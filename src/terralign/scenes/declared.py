"""What numbers in memory mean, as their caller declares it.

C bands, H W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from terralign.chips import PixelLayout, Units, make_layout
from terralign.errors import SensorError
from terralign.scenes.file_layout import units_by_type
from terralign.sensors import Sensor


def declare_layout(
    sensor: Sensor,
    bands: Sequence[str] | None,
    *,
    units: Units,
    dn_offset: float | None = None,
    composite: str | None = None,
    shape: Sequence[int] | None = None,
) -> PixelLayout:
    """How pixels of `shape` (..., C, H, W) are to be read, from what a caller says of them.

    Nothing is guessed: `SensorError` where the channels are not those bands, and where Sentinel-2
    DN come without `dn_offset`.
    """
    if units not in ("dn", "physical"):
        raise SensorError(f'units must be "dn" or "physical", not {units!r}')
    if isinstance(bands, str):
        raise SensorError(f'bands = {bands!r} is one text; give a list of names, as in ["B04"]')
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


def units_of(
    sensor: Sensor, dtype: np.dtype[Any], declared: Units | None, *, shown: str = ""
) -> Units:
    """The units declared, else what the type of the numbers says (see `units_by_type`).

    `shown`: what errors call a type that NumPy lacks.
    """
    return declared or units_by_type(sensor, dtype, f"pixels are {shown or dtype}")
