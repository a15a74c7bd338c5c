"""Satellite scenes of the synthetic world: land-cover materials seen by Sentinel-2 and Sentinel-1.

Spectra. The *shape* of each is that of textbook and library spectra: the green peak, red edge, NIR
plateau and liquid-water absorption in the SWIR of leaves; the 705 nm peak of algae in water; the
fall of clear water towards the NIR and the blue-green maximum over a shallow bright floor; the
visible plateau and SWIR fall of snow (ice absorbs there, salt does not); the rise of soils and sand
up to the SWIR; the iron-oxide shoulder of bricks and tiles; flat, dark asphalt; the weak red edge
and the C-H absorptions of green polymers. See the USGS Spectral Library version 7 (Kokaly et al.
2017, doi:10.3133/ds1035) and the ECOSTRESS library (Meerdink et al. 2019). The *values* are typical
ones rounded by us to surface reflectance in the bands of Sentinel-2; they are no measurements.

Radar. The levels are typical C-band backscatter at 30 to 45 degrees of incidence in the ranges of
Ulaby and Dobson (1989, *Handbook of Radar Scattering Statistics for Terrain*), rounded by us:
double bounce of buildings, volume scattering of canopies (high VH), smooth surfaces dark. Speckle
is multi-look gamma. What neighbours what is drawn at random: this world has no geography.

Letters: B batch, S material slots of a scene (3), K materials, C bands, H W pixels.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from terralign.datasets.synthetic.draws import (
    Keys,
    between,
    choices,
    normals,
    pixel_noise,
    smooth_field,
    speckle,
    turned_grid,
    uniforms,
)
from terralign.sensors import SENSORS

Array = NDArray[np.float32]

Material = tuple[str, tuple[float, float], tuple[float, float, float, float]]
"""One land cover: surface reflectance in Sentinel-2 L2A's bands, in per cent; sigma0 of VV and VH,
in dB; relative brightness variation from pixel to pixel, in parallel rows and in broad patches, and
how much its spectrum varies between scenes."""

# Per cent reflectance:  B01  B02  B03  B04   B05  B06  B07  B08  B8A  B09  B11  B12
# fmt: off
MATERIALS: dict[str, Material] = {
    "evergreen forest": (
        "           2.2  2.5  4.0  2.6   5.8 15.0 18.5 20.0 21.0 20.5  9.5  4.2",
        (-10.0, -15.5), (0.16, 0.00, 0.10, 1.0),
    ),
    "algae-covered lake": (
        "           2.6  2.8  4.2  2.5   4.8  4.6  4.4  3.8  3.4  3.0  0.9  0.6",
        (-21.0, -28.0), (0.12, 0.00, 0.12, 1.0),
    ),
    "green crop field": (
        "           3.0  3.6  6.8  4.2  10.0 30.0 38.0 41.0 42.5 41.5 19.0  9.0",
        (-11.0, -17.0), (0.05, 0.08, 0.08, 1.0),
    ),
    "artificial turf": (
        "           3.4  4.0  6.8  4.6   5.8  8.5 12.0 15.0 16.5 17.0 20.0 15.0",
        (-15.0, -23.0), (0.04, 0.08, 0.06, 1.0),
    ),
    "snow": (
        "          86.0 88.0 88.0 87.0  86.0 85.0 84.0 82.0 80.0 72.0 10.0  7.0",
        (-14.0, -21.0), (0.03, 0.00, 0.08, 0.7),
    ),
    "salt flat": (
        "          44.0 48.0 53.0 56.0  57.0 58.0 59.0 59.0 59.0 55.0 52.0 43.0",
        (-17.0, -25.0), (0.03, 0.00, 0.08, 0.7),
    ),
    "bare soil": (
        "           5.5  7.0 10.0 14.5  17.0 19.0 20.5 22.0 23.5 24.5 32.0 29.0",
        (-12.5, -20.0), (0.08, 0.05, 0.10, 1.0),
    ),
    "brick roofs": (
        "           5.8  7.2  9.8 15.5  17.5 18.0 18.5 18.5 18.0 18.0 20.0 19.0",
        ( -5.0, -12.0), (0.12, 0.05, 0.06, 1.0),
    ),
    "deep water": (
        "           4.4  4.0  3.4  2.4   1.8  1.2  1.0  0.9  0.8  0.7  0.3  0.2",
        (-17.0, -25.0), (0.05, 0.00, 0.10, 1.2),
    ),
    "asphalt": (
        "           3.4  3.5  3.5  3.4   3.6  3.9  4.2  4.5  4.7  4.8  6.0  5.8",
        (-19.0, -27.0), (0.07, 0.00, 0.10, 1.2),
    ),
    "sand dunes": (
        "          10.0 13.0 18.5 24.5  27.0 29.0 31.0 33.0 34.0 34.0 43.0 40.0",
        (-22.0, -29.0), (0.03, 0.10, 0.08, 1.0),
    ),
    "shallow water": (
        "           8.5 10.0 10.5  5.5   3.2  1.5  1.2  1.0  0.9  0.8  0.3  0.2",
        (-18.0, -26.0), (0.04, 0.03, 0.12, 1.0),
    ),
}
# fmt: on

CLASS_NAMES: tuple[str, ...] = tuple(MATERIALS)

LOOK_ALIKES: tuple[tuple[str, str], ...] = (
    ("evergreen forest", "algae-covered lake"),
    ("green crop field", "artificial turf"),
    ("snow", "salt flat"),
    ("bare soil", "brick roofs"),
    ("deep water", "asphalt"),
)
"""Pairs that are nearly alike in the RGB composite and apart in NIR, SWIR or radar."""

NUM_SLOTS = 3
PRESENCE = 0.1
"""Least share of the chip that a material covers to be one of its labels."""

_SENTINEL2 = SENSORS["sentinel2-l2a"]
_WAVELENGTH = np.array([band.center_nm for band in _SENTINEL2.bands], dtype=np.float32)
_RESOLUTION = np.array([band.gsd_m for band in _SENTINEL2.bands], dtype=np.float32)
_PERCENT, _SIGMA0, _VARIATION = zip(*MATERIALS.values(), strict=True)
_REFLECTANCE = np.array(
    [[float(value) / 100 for value in text.split()] for text in _PERCENT], dtype=np.float32
)
_SIGMA0_DB = np.array(_SIGMA0, dtype=np.float32)
_TEXTURE, _SPREAD = np.split(np.array(_VARIATION, dtype=np.float32), [3], axis=1)

_HAZE = 0.22 * (_WAVELENGTH / 492.4) ** -1.3
"""(C,) reflectance of thin haze, falling with the wavelength as aerosol scattering does
(an Angstrom exponent of 1.3 is that of continental air)."""


def draw_materials(keys: Keys) -> tuple[NDArray[np.int64], Array]:
    """What lies in each scene.

    materials: (B, S) different indices into `MATERIALS`, the dominant one first. shares: (B, S)
    float32 shares of the area; they sum to 1, the first is above 0.5, the last may be 0.
    """
    order = np.argsort(uniforms(keys, "materials", len(MATERIALS)), axis=1, kind="stable")
    draws = uniforms(keys, "shares", 3)
    dominant = 0.58 + 0.24 * draws[:, 0]
    second = np.where(draws[:, 1] < 0.5, 1.0, 0.58 + 0.2 * draws[:, 2])
    shares = [dominant, (1 - dominant) * second, (1 - dominant) * (1 - second)]
    return order[:, :NUM_SLOTS], np.stack(shares, axis=1).astype(np.float32)


def single_labels(keys: Keys) -> NDArray[np.int64]:
    """(B,) int64: the dominant material."""
    return draw_materials(keys)[0][:, 0]


def multi_labels(keys: Keys) -> NDArray[np.bool_]:
    """(B, K) bool: the materials that cover at least `PRESENCE` of the chip."""
    materials, shares = draw_materials(keys)
    present = np.zeros((len(keys), len(MATERIALS)), dtype=np.bool_)
    np.put_along_axis(present, materials, shares >= PRESENCE, axis=1)
    return present


def draw_cover(keys: Keys, shares: Array, size: int) -> Array:
    """(B, S, H, W) float32, 1 where the slot's material lies and 0 elsewhere.

    A pattern (coast, river, fields, blocks) ranks the pixels; the ranks are cut at the shares.
    """
    rank = _pattern(keys, size).reshape(len(keys), -1)
    num_pixels = size * size
    ordered = np.sort(rank, axis=1)
    ends = np.rint(np.cumsum(shares[:, :-1], axis=1) * num_pixels).astype(np.int64)
    edges = np.take_along_axis(ordered, np.minimum(ends, num_pixels - 1), axis=1)
    edges[ends >= num_pixels] = np.inf
    slot = (rank >= edges[:, :1]).astype(np.int8) + (rank >= edges[:, 1:])
    cover = slot[:, None] == np.arange(NUM_SLOTS, dtype=np.int8)[None, :, None]
    return np.asarray(cover, dtype=np.float32).reshape(len(keys), NUM_SLOTS, size, size)


def _pattern(keys: Keys, size: int) -> Array:
    """(B, H, W): a surface whose level lines are the borders between materials."""
    kind = choices(keys, "pattern", 4)
    along, across = turned_grid(keys, "direction", size)
    across = across + between(keys, "shift", -0.4, 0.4)
    surface = smooth_field(keys, "coast", size, 4)
    wiggle = 0.2 * np.sin(3.0 * along + between(keys, "bend", 0.0, 6.28))
    river = -np.abs(across + wiggle)
    spacing = between(keys, "spacing", 1.2, 2.6)
    blocks = np.maximum(_sawtooth(along * spacing), _sawtooth(across * spacing))
    fields = _parcels(keys, along * spacing, across * spacing)
    ragged = 0.04 * surface
    for number, shape in enumerate((river, blocks, fields), start=1):
        surface = np.where((kind == number)[:, None, None], shape + ragged, surface)
    return surface.astype(np.float32)


def _sawtooth(values: Array) -> Array:
    """0 in the middle of a unit cell, 1 at its border."""
    return np.asarray(np.abs(2.0 * (values - np.floor(values)) - 1.0), dtype=np.float32)


def _parcels(keys: Keys, u: Array, v: Array) -> Array:
    """(B, H, W): one random level per rectangular field."""
    levels = uniforms(keys, "parcels", 144).astype(np.float32)
    cell = ((np.floor(u) + 6) % 12 * 12 + (np.floor(v) + 6) % 12).astype(np.int64)
    return np.take_along_axis(levels, cell.reshape(len(keys), -1), axis=1).reshape(u.shape)


def render_scenes(keys: Keys, size: int) -> dict[str, NDArray[np.generic]]:
    """Pixels of both sensors.

    "sentinel2-l2a": (B, 12, H, W) uint16 DN, reflectance * 10000 and at least 1 (0 is no-data).
    "sentinel1-grd": (B, 2, H, W) float32 sigma0 in dB.
    """
    materials, shares = draw_materials(keys)
    cover = draw_cover(keys, shares, size)
    return {
        "sentinel2-l2a": _sentinel2(keys, materials, cover),
        "sentinel1-grd": _sentinel1(keys, materials, cover),
    }


def _sentinel2(keys: Keys, materials: NDArray[np.int64], cover: Array) -> NDArray[np.uint16]:
    """Linear mixing at each band's own resolution, then relief, haze, noise."""
    size = cover.shape[-1]
    spectra = _scene_spectra(keys, materials)
    bright = cover * _texture(keys, materials, size)
    pixels = np.empty((len(keys), len(_WAVELENGTH), size, size), dtype=np.float32)
    for gsd_m in (10, 20, 60):
        bands = np.flatnonzero(gsd_m == _RESOLUTION)
        average = _averaging(size, gsd_m // 10)
        mixed = bright if gsd_m == 10 else average @ bright @ average.T
        seen = spectra[:, bands] @ mixed.reshape(len(keys), NUM_SLOTS, -1)
        pixels[:, bands] = seen.reshape(len(keys), len(bands), size, size)
    light = between(keys, "sun", 0.82, 1.12) * np.exp(0.06 * smooth_field(keys, "relief", size, 3))
    pixels *= light[:, None]
    density = between(keys, "haze", 0.0, 0.16) * (1 + 0.3 * smooth_field(keys, "veil", size, 3))
    density = np.clip(density, 0.0, 0.5).astype(np.float32)[:, None]
    pixels *= 1 - density
    pixels += density * _HAZE.astype(np.float32)[:, None, None]
    noise = pixel_noise(keys, "noise", pixels.shape[1:])
    pixels += (0.0015 + 0.015 * pixels) * noise
    return np.asarray(np.clip(pixels * 10_000 + 0.5, 1, 20_000), dtype=np.uint16)


def _scene_spectra(keys: Keys, materials: NDArray[np.int64]) -> Array:
    """(B, C, S): spectra of this scene's materials, bent smoothly along the wavelength."""
    place = np.log(_WAVELENGTH / 560.0)
    bends = np.stack([np.ones_like(place), place, place**2])
    drawn = normals(keys, "spectra", NUM_SLOTS * 3).reshape(-1, NUM_SLOTS, 3)
    drawn = drawn * np.array([0.14, 0.28, 0.10], dtype=np.float32) * _SPREAD[materials]
    factor = np.exp(drawn @ bends.astype(np.float32))
    return np.ascontiguousarray((_REFLECTANCE[materials] * factor).transpose(0, 2, 1))


def _texture(keys: Keys, materials: NDArray[np.int64], size: int) -> Array:
    """(B, S, H, W): brightness factors around 1 within each material."""
    along, _ = turned_grid(keys, "rows", size)
    frequency = between(keys, "row spacing", 0.6, 1.2) * size / 4
    rows = 1.4 * np.sin(frequency * along + between(keys, "phase", 0.0, 6.28))
    grain = pixel_noise(keys, "grain", (size, size))
    surfaces = np.stack([grain, rows, smooth_field(keys, "patches", size, 5)], axis=1)
    amount = _TEXTURE[materials]
    factor: Array = 1 + amount @ surfaces.reshape(len(keys), 3, -1)
    factor = np.maximum(factor, np.float32(0.2))
    return factor.reshape(len(keys), NUM_SLOTS, size, size)


@lru_cache(maxsize=8)
def _averaging(size: int, block: int) -> Array:
    """(size, size): the matrix that gives every pixel the mean of its block of `block` pixels."""
    cell = np.arange(size) // block
    same = (cell[:, None] == cell[None]).astype(np.float32)
    return np.asarray(same / same.sum(axis=1, keepdims=True), dtype=np.float32)


def _sentinel1(keys: Keys, materials: NDArray[np.int64], cover: Array) -> Array:
    """Power of each material (moisture, wind and structure move it), speckled, in dB."""
    size = cover.shape[-1]
    moved = normals(keys, "backscatter", NUM_SLOTS)[..., None]
    level_db = _SIGMA0_DB[materials] + 1.2 * moved
    power = (10 ** (level_db / 10)).transpose(0, 2, 1)
    seen = np.ascontiguousarray(power) @ cover.reshape(len(keys), NUM_SLOTS, -1)
    seen = seen.reshape(len(keys), 2, size, size) * speckle(keys, "speckle", (2, size, size))
    return np.asarray(np.clip(10 * np.log10(seen + 1e-6), -35.0, 10.0), dtype=np.float32)
