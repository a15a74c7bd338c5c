"""A set whose RGB pictures are made by another composite of its sensor."""

from __future__ import annotations

from dataclasses import replace

from terralign.datasets.sample import (
    SampleSet,
    Wrapped,
)
from terralign.errors import SensorError
from terralign.files import hash_json
from terralign.sensors import Composite


class Composited(Wrapped):
    """A `SampleSet` whose pixels of `sensor` have `composite` as their RGB recipe."""

    def __init__(self, samples: SampleSet, sensor: str, composite: Composite) -> None:
        super().__init__(samples)
        layout = replace(samples.layouts[sensor], composite=composite)
        self.layouts = {**samples.layouts, sensor: layout}
        self.fingerprint = hash_json(
            {
                "of": samples.fingerprint,
                "composite": [sensor, composite.name, list(composite.bands), composite.stretch],
            }
        )


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
