"""Samples made worse on purpose: a band dropped, noise, an offset left in, L1C declared as L2A.

B batch, C bands, H W pixels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from terralign.chips import PixelLayout, mark_invalid
from terralign.datasets.sample import SampleSet, Wrapped
from terralign.files import hash_json
from terralign.sensors import SENSORS

L1C, L2A = "sentinel2-l1c", "sentinel2-l2a"
OFFSET = 1000
NOISE = {"reflectance": 0.02, "dB": 1.0, "intensity": 0.05}
"""Standard deviation of the noise, in the sensor's unit."""

Kind = Literal["as is", "without", "noise", "offset", "level"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Condition:
    """What is done to the pixels of `sensor`.

    `band`: of "without". `black`: whether that band is black instead of without data: a picture has
    no data at all where one of its three bands has none.
    """

    kind: Kind
    sensor: str
    band: str | None = None
    black: bool = False

    @property
    def title(self) -> str:
        """How rows call it."""
        named = {
            "noise": "noise",
            "offset": f"offset +{OFFSET} left in",
            "level": "L1C fed as L2A",
        }
        return f"without {self.band}" if self.band else named.get(self.kind, self.kind)

    @property
    def identity(self) -> list[str]:
        """What distinguishes it from others."""
        return [self.title, self.sensor, *(["black"] if self.black else [])]


class Degraded(Wrapped):
    """A `SampleSet` whose pixels went through a condition; labels and order stay."""

    def __init__(self, samples: SampleSet, condition: Condition, *, seed: int = 0) -> None:
        super().__init__(samples)
        self._condition, self._seed = condition, seed
        changed = {"condition": [*condition.identity, seed]}
        self.fingerprint = hash_json({"of": samples.fingerprint, **changed})
        if condition.kind != "as is":
            self.pixels_id = hash_json({"of": self.pixels_id, **changed})
        self._layout = layout = samples.layouts[condition.sensor]
        self._channels = list(range(len(layout.bands)))
        if condition.kind == "level":
            layout = as_l2a(layout)
            self._channels = [self._layout.bands.index(band) for band in layout.bands]
        self.layouts: Mapping[str, PixelLayout] = {layout.sensor.name: layout}

    def read(self, indices: NDArray[np.int64]) -> dict[str, NDArray[np.generic]]:
        """Pixels of the one sensor."""
        pixels = self._samples.read(indices)[self._condition.sensor]
        (name,) = self.layouts
        return {name: self._change(pixels, indices)}

    def _change(
        self, pixels: NDArray[np.generic], indices: NDArray[np.int64]
    ) -> NDArray[np.generic]:
        kind, layout = self._condition.kind, self._layout
        if kind == "level":
            return pixels[:, self._channels]
        nodata = layout.sensor.nodata if layout.units == "dn" else None
        if kind == "without":
            channel = layout.bands.index(self._condition.band or "")
            if self._condition.black:
                changed = pixels.copy()
                changed[:, channel] = 1 if nodata == 0 else 0
                return changed
            valid = np.ones(pixels.shape, dtype=np.bool_)
            valid[:, channel] = False
            return mark_invalid(pixels, valid, layout)
        numbers = pixels.astype(np.float32)
        missing = numbers == (np.nan if nodata is None else nodata)  # NaN stay what they are
        if kind == "offset":
            numbers += OFFSET
        elif kind == "noise":
            scale = NOISE[layout.sensor.unit]
            if layout.units == "dn":
                scale /= layout.dn_scale
            for place, index in enumerate(indices):
                noise = np.random.default_rng([self._seed, int(index)])
                numbers[place] += scale * noise.standard_normal(numbers.shape[1:], np.float32)
        if nodata is not None:
            numbers[missing] = nodata
        return numbers


def conditions(
    layout: PixelLayout, bands: tuple[str, ...], *, takes_l2a: bool, as_picture: bool = False
) -> list[Condition]:
    """What can be done to pixels of this layout for a tower that looks at `bands`.

    `takes_l2a`: whether the tower also takes Sentinel-2 L2A. `as_picture`: whether it sees the
    bands as a picture, of which one that is dropped is black.
    """
    sensor = layout.sensor
    found = [Condition(kind="as is", sensor=sensor.name)]
    found += [
        Condition(kind="without", sensor=sensor.name, band=band, black=as_picture) for band in bands
    ]
    if sensor.unit in NOISE:
        found.append(Condition(kind="noise", sensor=sensor.name))
    if sensor.name in (L1C, L2A) and layout.units == "dn":
        found.append(Condition(kind="offset", sensor=sensor.name))
    if sensor.name == L1C and takes_l2a:
        found.append(Condition(kind="level", sensor=sensor.name))
    return found


def as_l2a(layout: PixelLayout) -> PixelLayout:
    """The layout of L1C pixels declared as L2A: its bands without B10, its RGB recipe."""
    sensor = SENSORS[L2A]
    bands = tuple(band for band in layout.bands if band in sensor.band_names)
    recipe = sensor.composite()
    has_rgb = set(recipe.bands) <= set(bands)
    return replace(layout, sensor=sensor, bands=bands, composite=recipe if has_rgb else None)
