"""The size at which a tower's pictures are opened."""

from __future__ import annotations

from typing import Any

from numpy.typing import NDArray

from terralign.chips import Chip
from terralign.preprocess import InputSpec
from terralign.scenes.pictures import PictureSize, resize_rgb
from terralign.sensors import SENSORS


def picture_size(spec: InputSpec) -> PictureSize:
    """Pictures of this size go into the tower as open_clip's own transform would give them."""
    return PictureSize(spec.size, spec.resize_mode, spec.interpolation)


def chip_pixels(chip: Chip, spec: InputSpec) -> NDArray[Any]:
    """(C, H, W) numbers of a chip, as data sets give them: an RGB picture at the tower's size."""
    rgb, layout = SENSORS["rgb"], chip.layout
    if layout.sensor == rgb and layout.units == "dn" and len(chip.bands) == len(rgb.bands):
        return resize_rgb(chip.pixels, picture_size(spec))
    return chip.pixels
