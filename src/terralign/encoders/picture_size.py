"""The size at which a tower's pictures are opened."""

from __future__ import annotations

from terralign.preprocess import InputSpec
from terralign.scenes.pictures import PictureSize


def picture_size(spec: InputSpec) -> PictureSize:
    """Pictures of this size go into the tower as open_clip's own transform would give them."""
    return PictureSize(spec.size, spec.resize_mode, spec.interpolation)
