"""A data set's numbers held against its layouts, over some of its samples.

C bands, H W pixels.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from terralign.datasets.sample import SampleSet
from terralign.errors import DataError, NumbersError, shown
from terralign.scenes.plausible import NUM_CHECKED, check_numbers


def check_samples(samples: SampleSet, *, opened_as: str = "") -> None:
    """Raise `NumbersError` where the numbers of a split cannot be what its layouts declare.

    Samples that cannot be read are skipped here, and are errors where they are used. RGB digital
    numbers of 8 bits, which pictures are decoded to, may be any, and are not checked further.
    `opened_as`: the name or path by which the data set was opened.
    """
    if not len(samples):
        return
    found: dict[str, list[tuple[NDArray[np.generic], NDArray[np.bool_]]]] = {}
    for index in np.unique(np.linspace(0, len(samples) - 1, NUM_CHECKED).astype(np.int64)):
        try:
            pixels = samples.read(index.reshape(1))
        except NumbersError:
            raise
        except DataError:
            continue
        for name, numbers in pixels.items():
            is_dn = samples.layouts[name].units == "dn"
            if name != "rgb" or numbers.dtype != np.uint8 or not is_dn:
                found.setdefault(name, []).append((numbers[0], np.isfinite(numbers[0])))
        if not found:
            return
    for name, parts in found.items():
        place = "" if opened_as in ("", samples.name) else f" ({shown(opened_as)})"
        origin = f"data set {samples.name!r}{place}, split {samples.split!r}, {name}"
        check_numbers(parts, samples.layouts[name], origin=origin)
