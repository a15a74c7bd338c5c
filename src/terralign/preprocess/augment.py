"""Augmentation as batched tensor code, each draw a pure function of (seed, view, sample).

A *view* of a sample is one geometry: it is drawn once and applied to every sensor of the sample,
so that teacher and student look at the same ground. Since the draw does not depend on the batch,
a stored teacher embedding of (sample, view) is the embedding that a live teacher would give.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from terralign.augmentation import Photometric as Photometric
from terralign.augmentation import Spectral as Spectral
from terralign.augmentation import ViewSpec as ViewSpec
from terralign.preprocess.holes import resample, without_holes
from terralign.preprocess.parts import HEAP_BYTES, new_pixels, parts_of
from terralign.seeds import GOLDEN, scatter, unit_interval

_GEOMETRY, _PHOTOMETRIC, _SPECTRAL = 1, 2, 3


@dataclass(frozen=True, kw_only=True, slots=True)
class Views:
    """The geometry of B samples, as (B,) arrays.

    `width`, `height`, `left`, `top`: the crop as shares of the sample (0-1). The crop is
    transposed, then flipped left-right and up-down, where the bools say so.
    """

    width: NDArray[np.float64]
    height: NDArray[np.float64]
    left: NDArray[np.float64]
    top: NDArray[np.float64]
    transpose: NDArray[np.bool_]
    flip_x: NDArray[np.bool_]
    flip_y: NDArray[np.bool_]
    min_scale: float
    """Least share of the area that any crop keeps; 1 where nothing is cropped."""


def uniform(
    seed: int, stream: int, view: int, indices: NDArray[np.int64], count: int
) -> NDArray[np.float64]:
    """(B, count) numbers in [0, 1), a function of the arguments and each index alone."""
    with np.errstate(over="ignore"):
        state = scatter(np.array([seed], dtype=np.uint64) + GOLDEN)
        state = scatter(state ^ (np.uint64(stream) + GOLDEN))
        state = scatter(state ^ (np.uint64(view) + GOLDEN))
        state = scatter(state ^ (indices.astype(np.uint64) + GOLDEN))
        columns = np.arange(1, count + 1, dtype=np.uint64) * GOLDEN
        bits = scatter(state[:, None] + columns[None, :])
    return unit_interval(bits)


def draw_views(spec: ViewSpec, *, seed: int, view: int, indices: NDArray[np.int64]) -> Views:
    """The geometry of view number `view` of the samples `indices` (B,)."""
    draws = uniform(seed, _GEOMETRY, view, indices, 7)
    low, high = spec.crop_scale
    area = low + (high - low) * draws[:, 0]
    ratio_low, ratio_high = (math.log(ratio) for ratio in spec.crop_ratio)
    ratio = np.exp(ratio_low + (ratio_high - ratio_low) * draws[:, 1])
    width = np.minimum(np.sqrt(area * ratio), 1.0)
    height = np.minimum(np.sqrt(area / ratio), 1.0)
    turn = np.floor(draws[:, 4] * 4).astype(np.int64) if spec.turns else np.zeros(len(indices))
    flip = (draws[:, 5:7] < 0.5) & spec.flips
    return Views(
        width=width,
        height=height,
        left=(1 - width) * draws[:, 2],
        top=(1 - height) * draws[:, 3],
        transpose=(turn == 1) | (turn == 3),
        flip_x=((turn == 2) | (turn == 3)) ^ flip[:, 0],
        flip_y=((turn == 1) | (turn == 2)) ^ flip[:, 1],
        min_scale=low if spec.crops else 1.0,
    )


def apply_views(pixels: Tensor, views: Views, size: int) -> Tensor:
    """(B, C, H, W) -> the views (B, C, size, size), for one sensor of the samples.

    NaN are pixels without data, and stay so.
    Without crops flips and turns are exact (no pixel is interpolated beyond the resize to `size`).
    With crops, samples that are too fine for the smallest crop are first resized with antialiasing.
    """
    if np.all(views.width == 1) and np.all(views.height == 1):
        turned = new_pixels((*pixels.shape[:2], size, size), pixels)
        _flip_and_turn(pixels, views, turned)
        return turned
    enough = math.ceil(size / math.sqrt(views.min_scale))
    theta = _affine(views).to(device=pixels.device, dtype=pixels.dtype)
    parts = list(
        parts_of(len(pixels), pixels.shape[1:], device=pixels.device, part_bytes=HEAP_BYTES)
    )
    if len(parts) == 1:
        return _crop(pixels, theta, enough, size)
    cropped = new_pixels((*pixels.shape[:2], size, size), pixels)
    for rows in parts:
        cropped[rows] = _crop(pixels[rows], theta[rows], enough, size)
    return cropped


def _crop(pixels: Tensor, theta: Tensor, enough: int, size: int) -> Tensor:
    """Resample by the maps `theta`, from at most `enough` pixels a side, to `size`."""
    if max(pixels.shape[-2:]) > enough:
        pixels = _resize_square(pixels, enough)

    def sample(part: Tensor, rows: Tensor | slice) -> Tensor:
        grid = F.affine_grid(theta[rows], [*part.shape[:2], size, size], align_corners=False)
        return F.grid_sample(part, grid, padding_mode="border", align_corners=False)

    return resample(pixels, sample)


def _resize_square(pixels: Tensor, size: int) -> Tensor:
    if pixels.shape[-2:] == (size, size):
        return pixels
    return resample(
        pixels,
        lambda part, _: F.interpolate(
            part, size=(size, size), mode="bicubic", antialias=True, align_corners=False
        ),
    )


def _flip_and_turn(pixels: Tensor, views: Views, turned: Tensor) -> None:
    """Write every sample into `turned` (B, C, size, size), samples of one orientation together."""
    orientation = views.transpose * 4 + views.flip_x * 2 + views.flip_y * 1
    for code in np.unique(orientation).tolist():
        alike = np.flatnonzero(orientation == code)
        for part in parts_of(len(alike), pixels.shape[1:], device=pixels.device):
            rows = torch.from_numpy(alike[part]).to(pixels.device)
            chips = _resize_square(pixels[rows], turned.shape[-1])
            if code & 4:
                chips = chips.transpose(-1, -2)
            axes = [axis for axis, flipped in ((-1, code & 2), (-2, code & 1)) if flipped]
            turned[rows] = chips.flip(axes) if axes else chips


def _affine(views: Views) -> Tensor:
    """(B, 2, 3): from output coordinates to input coordinates, both in [-1, 1], x before y."""
    sign_x = np.where(views.flip_x, -1.0, 1.0)
    sign_y = np.where(views.flip_y, -1.0, 1.0)
    theta = np.zeros((len(views.width), 2, 3))
    straight = ~views.transpose
    theta[:, 0, 0] = views.width * sign_x * straight
    theta[:, 0, 1] = views.width * sign_y * views.transpose
    theta[:, 1, 0] = views.height * sign_x * views.transpose
    theta[:, 1, 1] = views.height * sign_y * straight
    theta[:, 0, 2] = 2 * views.left + views.width - 1
    theta[:, 1, 2] = 2 * views.top + views.height - 1
    return torch.from_numpy(theta)


def augment_photometric(
    pictures: Tensor, spec: Photometric, *, seed: int, view: int, indices: NDArray[np.int64]
) -> Tensor:
    """Jitter, grey and blur of RGB pictures (B, 3, H, W) in 0-1; each sample has its own draw.

    NaN are pixels without data, and stay so.
    """
    pictures, holes = without_holes(pictures)
    draws = torch.from_numpy(uniform(seed, _PHOTOMETRIC, view, indices, 7)).to(pictures)
    factors = 1 + spec.jitter * (2 * draws[:, :3] - 1)
    keep = draws[:, 3] >= spec.jitter_probability
    factors = torch.where(keep[:, None], 1.0, factors)
    brightness, contrast, saturation = (factors[:, i, None, None, None] for i in range(3))
    pictures = (pictures * brightness).clamp(0, 1)
    level = _grey(pictures).mean((2, 3), keepdim=True)
    pictures = torch.lerp(level, pictures, contrast).clamp(0, 1)
    saturation = torch.where(
        (draws[:, 4] < spec.grey_probability)[:, None, None, None], 0.0, saturation
    )
    pictures = torch.lerp(_grey(pictures), pictures, saturation).clamp(0, 1)
    chosen = torch.nonzero(draws[:, 5] < spec.blur_probability).flatten()
    if len(chosen):
        pictures = pictures.clone()
        pictures[chosen] = _blur(pictures[chosen], draws[chosen, 6])
    return pictures if holes is None else pictures.masked_fill(holes, torch.nan)


def _grey(pictures: Tensor) -> Tensor:
    """Luma (ITU-R BT.601) of (B, 3, H, W), as (B, 1, H, W)."""
    weights = pictures.new_tensor([0.299, 0.587, 0.114])[:, None, None]
    return (pictures * weights).sum(1, keepdim=True)


def _blur(pictures: Tensor, draws: Tensor) -> Tensor:
    """Gaussian blur; sigma in [0.1, 2] pixels at 224, in proportion at other sizes."""
    batch, channels, height, width = pictures.shape
    greatest = 2.0 * min(height, width) / 224
    sigma = 0.1 + (max(greatest, 0.2) - 0.1) * draws
    radius = max(1, math.ceil(2 * greatest))
    offsets = torch.arange(-radius, radius + 1, device=pictures.device, dtype=pictures.dtype)
    kernel = torch.exp(-0.5 * (offsets[None, :] / sigma[:, None]) ** 2)
    kernel = (kernel / kernel.sum(1, keepdim=True)).repeat_interleave(channels, 0)
    planes = pictures.reshape(1, batch * channels, height, width)
    planes = F.pad(planes, (radius,) * 4, mode="reflect")
    planes = F.conv2d(planes, kernel[:, None, None, :], groups=batch * channels)
    planes = F.conv2d(planes, kernel[:, None, :, None], groups=batch * channels)
    return planes.reshape(batch, channels, height, width)


def augment_spectral(
    scaled: Tensor, spec: Spectral, *, seed: int, view: int, indices: NDArray[np.int64]
) -> Tensor:
    """Gain and band dropout of scaled bands (B, C, H, W) in 0-1; each sample has its own draw."""
    num_bands = scaled.shape[1]
    draws = uniform(seed, _SPECTRAL, view, indices, 2 * num_bands)
    if spec.gain:
        gains = torch.from_numpy(1 + spec.gain * (2 * draws[:, :num_bands] - 1)).to(scaled)
        scaled = scaled * gains[:, :, None, None]
    if spec.band_dropout:
        chance = draws[:, num_bands:]
        keep = chance >= spec.band_dropout
        keep |= chance == chance.max(1, keepdims=True)
        dropped = torch.from_numpy(~keep).to(scaled.device)
        scaled = scaled.masked_fill(dropped[:, :, None, None], torch.nan)
    return scaled
