"""What the fake world looks like: pixels that depend on the class they show.

A cover says which class each pixel of a tile shows. C bands, H W pixels.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

VISIBLE = ("B01", "B02", "B03", "B04")
DARK_DN = (100, 350)
"""The water or shadow that every optical tile has: what tells that its DN carry no offset."""


@dataclass(frozen=True, slots=True)
class Cover:
    """`places`: (H, W) int64, the index in `names` of the class that a pixel shows."""

    names: tuple[str, ...]
    places: NDArray[np.int64]


def make_cover(names: Sequence[str], side: int) -> Cover:
    """The classes in vertical stripes of equal width, in their order."""
    columns = np.arange(side) * len(names) // side
    return Cover(tuple(names), np.tile(columns, (side, 1)))


def rng_of(*words: object) -> Generator:
    """Random numbers that depend on the words alone."""
    return np.random.default_rng(zlib.crc32(repr(words).encode()))


def draw_optical(cover: Cover, bands: Sequence[str], rng: Generator) -> NDArray[np.uint16]:
    """(C, H, W) DN of Sentinel-2 without offset: 200 to 4000, and a dark corner."""
    means = np.array([[_mean_dn(name, band) for band in bands] for name in cover.names])
    shape = cover.places.shape
    light = rng.normal(1, 0.15, shape)
    pixels = means[cover.places].transpose(2, 0, 1) * light
    pixels *= rng.normal(1, 0.05, (len(bands), *shape))
    corner = pixels[:, : shape[0] // 4, : shape[1] // 4]
    corner[:] = rng.uniform(*DARK_DN, corner.shape)
    if "B10" in bands:
        pixels[list(bands).index("B10")] = rng.uniform(5, 25, shape)  # cirrus: next to nothing
    if {"B11", "B12"} <= set(bands):
        shortwave = [list(bands).index(band) for band in ("B12", "B11")]
        pixels[shortwave] = np.sort(pixels[shortwave], axis=0)  # B12 is the darker one
    return pixels.clip(1, 9000).astype(np.uint16)


def _mean_dn(name: str, band: str) -> float:
    low, high = (300, 1800) if band in VISIBLE else (600, 3600)
    return float(rng_of(name, band).uniform(low, high))


def draw_radar(cover: Cover, rng: Generator) -> NDArray[np.float32]:
    """(2, H, W) sigma0 in dB of VV and VH, -25 to 0."""
    vv = np.array([rng_of(name, "VV").uniform(-15, -5) for name in cover.names])
    speckle = rng.normal(0, 1.5, (2, *cover.places.shape))
    pixels = np.stack([vv[cover.places], vv[cover.places] - 6]) + speckle
    return pixels.clip(-25, 0).astype(np.float32)


def draw_picture(name: str, side: int, rng: Generator) -> NDArray[np.uint8]:
    """(3, H, W): the class's colour on the left, another on the right, and noise."""
    colours = rng_of(name, "colours").uniform(40, 215, (2, 3))
    halves = np.repeat(colours.T[:, None], side // 2, axis=2).repeat(side, axis=1)
    return (halves + rng.normal(0, 12, halves.shape)).clip(0, 255).astype(np.uint8)
