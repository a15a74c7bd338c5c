"""One large scene of the synthetic world, and what covers each pixel of it: a scene to search.

A patchwork of square regions. Each is a scene of `scenes`, drawn larger; the land covers take turns
at dominating one. Letters: R regions along each side, H W pixels of the whole.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio import Affine

from terralign.datasets.synthetic.draws import Keys, sample_keys, uniforms
from terralign.datasets.synthetic.scenes import (
    CLASS_NAMES,
    draw_cover,
    draw_materials,
    render_scenes,
    single_labels,
)
from terralign.files import atomic_path
from terralign.sensors import SENSORS

SENSOR = "sentinel2-l2a"
"""Whose pixels a landscape has."""

REGION_SIZE = 96
"""Pixels along each side of a region: larger than the chips that towers learn from."""

_PLACE = ("EPSG:32633", Affine(10, 0, 500_000, 0, -10, 5_000_000))
"""Reference system, and pixels of 10 m: scenes have a place, and this world lies anywhere."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Landscape:
    """`pixels`: (12, H, W) uint16 DN of Sentinel-2 L2A without offset. `covers`: (H, W) int64
    indices into `CLASS_NAMES`."""

    pixels: NDArray[np.uint16]
    covers: NDArray[np.int64]

    def save(self, path: Path) -> None:
        """Write the pixels as a GeoTIFF, whole, with the same bytes and time each time."""
        crs, transform = _PLACE
        bands, height, width = self.pixels.shape
        with atomic_path(path) as partial:
            with rasterio.open(
                partial, "w", driver="GTiff", dtype="uint16", count=bands, height=height,
                width=width, crs=crs, transform=transform, nodata=0, compress="deflate",
                predictor=2,
            ) as file:  # fmt: skip
                file.write(self.pixels)
                file.descriptions = SENSORS[SENSOR].band_names
                file.update_tags(BOA_ADD_OFFSET="0")
            os.utime(partial, (0, 0))


def draw_landscape(num_regions: int) -> Landscape:
    """The landscape of `num_regions` regions along each side, always the same."""
    keys = _region_keys(num_regions**2)
    materials, shares = draw_materials(keys)
    slots = draw_cover(keys, shares, REGION_SIZE).argmax(axis=1)
    covers = np.take_along_axis(materials, slots.reshape(len(keys), -1), axis=1)
    pixels = render_scenes(keys, REGION_SIZE)[SENSOR].astype(np.uint16)
    covers = covers.reshape(len(keys), 1, REGION_SIZE, REGION_SIZE)
    return Landscape(pixels=_side_by_side(pixels), covers=_side_by_side(covers)[0])


def _side_by_side(regions: NDArray[Any]) -> NDArray[Any]:
    """Regions (R * R, C, h, w), row by row, as one image (C, H, W)."""
    num, channels, height, width = regions.shape
    side = math.isqrt(num)
    grid = regions.reshape(side, side, channels, height, width).transpose(2, 0, 3, 1, 4)
    return grid.reshape(channels, side * height, side * width)


def _region_keys(num: int) -> Keys:
    """(num,) keys of which the land covers dominate in turn, in an order drawn at random."""
    drawn = sample_keys("synthetic-landscape", 0, "test", np.arange(100 * num, dtype=np.int64))
    labels = single_labels(drawn)
    order = np.argsort(uniforms(drawn[:num], "order", 1)[:, 0], kind="stable")
    wanted = order % len(CLASS_NAMES)
    chosen = np.zeros(num, dtype=np.int64)
    for label in np.unique(wanted):
        places = np.flatnonzero(wanted == label)
        chosen[places] = np.flatnonzero(labels == label)[: len(places)]
    return drawn[chosen]
