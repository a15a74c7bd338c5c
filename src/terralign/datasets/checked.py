"""A data set's numbers held against its layouts, over some of its samples.

C bands, H W pixels.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from terralign.datasets.sample import SampleSet
from terralign.errors import DataError, NumbersError
from terralign.scenes.plausible import check_numbers

NUM_CHECKED = 32
"""Samples of a split, evenly spaced, whose numbers are judged together."""


def check_samples(samples: SampleSet) -> None:
    """Raise `NumbersError` where the numbers of a split cannot be what its layouts declare.

    Samples that cannot be read are passed over here: whoever needs them meets them. Pictures are
    not asked: their decoder gives 8 bits, whatever the file.
    """
    sensors = [name for name in samples.layouts if name != "rgb"]
    if not sensors or not len(samples):
        return
    found: dict[str, list[tuple[NDArray[np.generic], NDArray[np.bool_]]]] = {
        name: [] for name in sensors
    }
    for index in np.unique(np.linspace(0, len(samples) - 1, NUM_CHECKED).astype(np.int64)):
        try:
            pixels = samples.read(index.reshape(1))
        except NumbersError:
            raise
        except DataError:
            continue
        for name in sensors:
            found[name].append((pixels[name][0], np.isfinite(pixels[name][0])))
    for name, parts in found.items():
        origin = f"data set {samples.name!r}, split {samples.split!r}, {name}"
        check_numbers(parts, samples.layouts[name], origin=origin)
