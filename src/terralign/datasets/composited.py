"""A set whose RGB pictures are made by another composite of its sensor."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from terralign.chips import PixelLayout
from terralign.datasets.sample import (
    NOWHERE,
    Captions,
    Indexed,
    Labels,
    Located,
    Place,
    SampleSet,
    is_mapped,
)
from terralign.errors import SensorError
from terralign.files import hash_json
from terralign.sensors import Composite


class Composited(Indexed):
    """A `SampleSet` whose pixels of `sensor` have `composite` as their RGB recipe."""

    def __init__(self, samples: SampleSet, sensor: str, composite: Composite) -> None:
        self._samples = samples
        layout = replace(samples.layouts[sensor], composite=composite)
        self.name: str = samples.name
        self.split: str = samples.split
        self.layouts: Mapping[str, PixelLayout] = {**samples.layouts, sensor: layout}
        self.keys: tuple[str, ...] = samples.keys
        self.labels: Labels | None = samples.labels
        self.captions: Captions | None = samples.captions
        self.prompts: tuple[str, ...] | None = samples.prompts
        self.is_mapped: bool = is_mapped(samples)
        self.fingerprint: str = hash_json(
            {
                "of": samples.fingerprint,
                "composite": [sensor, composite.name, list(composite.bands), composite.stretch],
            }
        )

    def __len__(self) -> int:
        return len(self._samples)

    def within(self) -> tuple[SampleSet, None]:
        """The set itself, all of whose samples these are."""
        return self._samples, None

    def read(self, indices: NDArray[np.int64]) -> dict[str, NDArray[np.generic]]:
        return self._samples.read(indices)

    def place(self, index: int) -> Place:
        """Where and when a sample was taken."""
        return self._samples.place(index) if isinstance(self._samples, Located) else NOWHERE


def with_composite(samples: SampleSet, composite: str | None) -> SampleSet:
    """`samples` whose RGB pictures are made by the composite of this name; None: as declared.

    It is a composite of the sensor that the pictures are made of: the first of the set with one,
    else the first that makes RGB. A set that has it already is returned as it is. `SensorError`
    where the set holds RGB pictures, makes none, or its sensor has no such composite, or lacks
    bands of it.
    """
    if composite is None:
        return samples
    layouts = samples.layouts
    if "rgb" in layouts:
        raise SensorError(
            f"composite = {composite!r} has no effect on {samples.name}, which holds RGB pictures; "
            "leave it out"
        )
    makers = [one for one in layouts.values() if one.composite is not None] or [
        one for one in layouts.values() if one.sensor.composites
    ]
    if not makers:
        raise SensorError(
            f"composite = {composite!r}: data set {samples.name!r} has {', '.join(layouts)}, and "
            "none makes an RGB picture; leave it out"
        )
    layout = makers[0]
    recipe = layout.sensor.composite(composite)
    missing = [band for band in recipe.bands if band not in layout.bands]
    if missing:
        raise SensorError(
            f"composite {composite!r} needs {', '.join(missing)}; {samples.name} has "
            f"{', '.join(layout.bands)} of {layout.sensor.name}"
        )
    if recipe == layout.composite:
        return samples
    return Composited(samples, layout.sensor.name, recipe)
