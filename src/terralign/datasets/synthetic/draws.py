"""Randomness of the synthetic world: every draw is a pure function of a sample's key.

A key is one 64-bit number made from (data set, seed, split, index). Draws are hashes of the key and
the name of what is drawn, so a sample has the same pixels in any batch, order or thread. Pixel
noise would be slow to hash: it is cut from one long table at a place that the key decides.

Letters: B batch, H W pixels (H = W = size).
"""

from __future__ import annotations

import zlib
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from terralign.seeds import GOLDEN, scatter, unit_interval

Keys = NDArray[np.uint64]

TABLE_LENGTH = 2**20
"""Numbers in each noise table (4 MB)."""

MAX_SIZE = 256
"""Largest chip side for which the noise of all bands fits the table."""

RADAR_LOOKS = 4.4
"""Equivalent number of looks of a Sentinel-1 IW GRD product at high resolution (ESA, *Sentinel-1
Product Definition*)."""


def sample_keys(dataset: str, seed: int, split: str, indices: NDArray[np.int64]) -> Keys:
    """(B,) keys of the samples `indices` of one split; other splits and seeds share none."""
    stream: Keys = np.array([zlib.crc32(f"{dataset}/{split}".encode()), seed], dtype=np.uint64)
    scattered = scatter(stream)
    start = scatter(scattered[:1] ^ (scattered[1:] >> np.uint64(1)))
    steps: Keys = indices.astype(np.uint64) * GOLDEN
    return scatter(start + steps)


def uniforms(keys: Keys, what: str, count: int) -> NDArray[np.float64]:
    """(B, count) uniform numbers in [0, 1)."""
    first = (zlib.crc32(what.encode()) << 16) + 1
    numbers: Keys = np.arange(first, first + count, dtype=np.uint64)
    steps = numbers * GOLDEN
    bits = scatter(scatter(keys[:, None] + steps) ^ keys[:, None])
    return unit_interval(bits)


def between(keys: Keys, what: str, low: float, high: float) -> NDArray[np.float32]:
    """(B, 1, 1) uniform numbers in [low, high), shaped to go with (B, H, W)."""
    return (low + (high - low) * uniforms(keys, what, 1)).astype(np.float32)[:, :, None]


def choices(keys: Keys, what: str, num_options: int) -> NDArray[np.int64]:
    """(B,) whole numbers in [0, num_options), all equally likely."""
    return (uniforms(keys, what, 1)[:, 0] * num_options).astype(np.int64)


def normals(keys: Keys, what: str, count: int) -> NDArray[np.float32]:
    """(B, count) standard normal numbers (Box and Muller 1958)."""
    pairs = uniforms(keys, what, 2 * count)
    radius = np.sqrt(-2.0 * np.log(1.0 - pairs[:, :count]))
    return (radius * np.cos(2.0 * np.pi * pairs[:, count:])).astype(np.float32)


@lru_cache(maxsize=1)
def _normal_table() -> NDArray[np.float32]:
    return np.random.default_rng(20260101).standard_normal(TABLE_LENGTH, dtype=np.float32)


@lru_cache(maxsize=1)
def _speckle_table() -> NDArray[np.float32]:
    looks = np.random.default_rng(20260102).standard_gamma(
        RADAR_LOOKS, TABLE_LENGTH, dtype=np.float32
    )
    return looks / np.float32(RADAR_LOOKS)


def _cut(
    table: NDArray[np.float32], keys: Keys, what: str, shape: tuple[int, ...]
) -> NDArray[np.float32]:
    length = int(np.prod(shape))
    windows = np.lib.stride_tricks.sliding_window_view(table, length)
    return windows[choices(keys, what, len(windows))].reshape(len(keys), *shape)


def pixel_noise(keys: Keys, what: str, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """(B, *shape) standard normal noise, independent from pixel to pixel."""
    return _cut(_normal_table(), keys, what, shape)


def speckle(keys: Keys, what: str, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """(B, *shape) multi-look speckle: gamma distributed with mean 1, factors on radar power."""
    return _cut(_speckle_table(), keys, what, shape)


@lru_cache(maxsize=16)
def _interpolation(size: int, knots: int) -> NDArray[np.float32]:
    """(size, knots) weights of cosine interpolation between equally spaced knots."""
    place = np.linspace(0, knots - 1, size)
    left = np.minimum(place.astype(np.int64), knots - 2)
    share = (1 - np.cos(np.pi * (place - left))) / 2
    weights = np.zeros((size, knots), dtype=np.float32)
    weights[np.arange(size), left] = 1 - share
    weights[np.arange(size), left + 1] = share
    return weights


def smooth_field(keys: Keys, what: str, size: int, knots: int) -> NDArray[np.float32]:
    """(B, H, W) smooth random surface of about unit variance, `knots` bumps along each side."""
    coarse = normals(keys, what, knots * knots).reshape(-1, knots, knots)
    weights = _interpolation(size, knots)
    # One small product per sample, never one large one: its bits must not depend on B.
    return np.asarray(1.4 * (weights @ coarse @ weights.T), dtype=np.float32)


@lru_cache(maxsize=4)
def unit_grid(size: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Pixel centres as x, y: (1, H, W) each, from -1 (left, top) to 1."""
    line = ((np.arange(size, dtype=np.float32) + 0.5) / size * 2 - 1).astype(np.float32)
    x, y = np.meshgrid(line, line)
    return x[None], y[None]


def turned_grid(
    keys: Keys, what: str, size: int, most: float = np.pi
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """The unit grid turned by a random angle of at most `most` radians: (B, H, W) each."""
    x, y = unit_grid(size)
    angle = between(keys, what, -most, most)
    cos: NDArray[np.float32] = np.cos(angle)
    sin: NDArray[np.float32] = np.sin(angle)
    return cos * x + sin * y, cos * y - sin * x
