"""Pure tensor functions from raw pixels to what a tower takes; no files, no models."""

from terralign.preprocess.augment import (
    Photometric,
    Spectral,
    Views,
    ViewSpec,
    apply_views,
    augment_photometric,
    augment_spectral,
    draw_views,
)
from terralign.preprocess.spec import (
    InputSpec,
    make_ready,
    resize,
    rgb_spec,
    scale_bands,
    scale_composite,
    to_physical,
)

__all__ = [
    "InputSpec",
    "Photometric",
    "Spectral",
    "ViewSpec",
    "Views",
    "apply_views",
    "augment_photometric",
    "augment_spectral",
    "draw_views",
    "make_ready",
    "resize",
    "rgb_spec",
    "scale_bands",
    "scale_composite",
    "to_physical",
]
