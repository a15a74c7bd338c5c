"""Chips as small pictures that people can read: true colour, false colour, radar.

The stretch is fixed, so that pictures compare; a picture shows a chip, no more: towers see its
numbers.
"""

from __future__ import annotations

import io

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from terralign.chips import PixelLayout
from terralign.datasets.sample import SampleSet
from terralign.encoders.space import RGB
from terralign.preprocess.spec import scale_composite, select_bands, to_physical
from terralign.preprocess.views import near_infrared

Picture8 = NDArray[np.uint8]
"""(H, W, 3)."""

MAX_SIDE = 112
"""Pixels of a picture's longer side; larger chips are made smaller, small ones enlarged."""
JPEG_QUALITY = 85

VIEWS_LEGEND = {
    "true colour": "True colour: the composite that the RGB tower sees.",
    "false colour": "False colour: near infrared, red and green shown as red, green and blue.",
    "radar": "Radar: VV, VH and their difference shown as red, green and blue.",
}

NEAR_INFRARED_STRETCH = 2.0
"""Plants are about twice as bright there as the composite's stretch allows for."""

RADAR_DB = ((-20.0, 0.0), (-27.0, -7.0), (2.0, 14.0))
"""Black and white of VV, VH and VV - VH, in dB."""


def chip_views(pixels: NDArray[np.generic], layout: PixelLayout) -> dict[str, Picture8]:
    """The pictures of one chip (C, H, W), by what they are called; none where none can be made.

    A sensor with an RGB composite: true colour, and false colour (near infrared, red, green as
    red, green, blue) where it has a near infrared band; plain pictures have no view but themselves.
    Radar: VV, VH and VV - VH.
    """
    batch = torch.from_numpy(np.ascontiguousarray(pixels)[None])
    views: dict[str, Picture8] = {}
    composite = layout.composite or next(iter(layout.sensor.composites), None)
    if composite is not None and set(composite.bands) <= set(layout.bands):
        name = "picture" if layout.sensor.name == RGB else "true colour"
        views[name] = _eight_bit(scale_composite(batch, layout)[0].numpy())
        infrared = near_infrared(layout)
        if infrared is not None:
            bands = (infrared, *composite.bands[:2])
            chosen, of_bands = select_bands(batch, layout, bands)
            physical = to_physical(chosen, of_bands)[0][0].numpy() / composite.stretch
            physical[0] /= NEAR_INFRARED_STRETCH
            views["false colour"] = _eight_bit(physical)
    elif layout.sensor.unit == "dB" and {"VV", "VH"} <= set(layout.bands):
        chosen, of_bands = select_bands(batch, layout, ("VV", "VH"))
        vv, vh = to_physical(chosen, of_bands)[0][0].numpy()
        bands3 = (vv, vh, vv - vh)
        scaled = [
            (band - low) / (high - low) for band, (low, high) in zip(bands3, RADAR_DB, strict=True)
        ]
        views["radar"] = _eight_bit(np.stack(scaled))
    return views


def sample_views(samples: SampleSet, index: int) -> dict[str, dict[str, Picture8]]:
    """Sensor -> view -> picture, of one sample."""
    pixels = samples.read(np.array([index], dtype=np.int64))
    found = {name: chip_views(pixels[name][0], one) for name, one in samples.layouts.items()}
    return {name: views for name, views in found.items() if views}


def jpeg_bytes(picture: Picture8, *, max_side: int = MAX_SIDE) -> bytes:
    """A picture as JPEG, its longer side at most `max_side`.

    A small one is enlarged by a whole number, so that its pixels stay sharp.
    """
    image = Image.fromarray(picture)
    factor = max_side // max(image.size)
    if factor > 1:
        size = image.width * factor, image.height * factor
        image = image.resize(size, Image.Resampling.NEAREST)
    image.thumbnail((max_side, max_side), Image.Resampling.LANCZOS)
    out = io.BytesIO()
    image.save(out, "JPEG", quality=JPEG_QUALITY, optimize=True)
    return out.getvalue()


def _eight_bit(picture: NDArray[np.generic]) -> Picture8:
    """(3, H, W) in 0-1 -> (H, W, 3); what is not finite is black."""
    clipped = np.clip(np.nan_to_num(np.asarray(picture, dtype=np.float32)), 0, 1)
    return np.ascontiguousarray(np.rint(255 * clipped).astype(np.uint8).transpose(1, 2, 0))
