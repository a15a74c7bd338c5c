"""No-data on its way to a tower: NaN, which geometry must neither spread nor blend with pixels.

Between scaling and normalisation a pixel without data is NaN. Resampling takes the weighted mean of
the valid pixels alone, and what covers no-data stays NaN; `make_ready` turns it into zero, the
tower's "nothing here". Letters: B batch, C channels, H W pixels.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Operation = Callable[[Tensor, Tensor | slice], Tensor]
"""(pixels (R, C, H, W), their rows in the batch) -> (R, C, H', W'), linear in the pixels."""

MIN_WEIGHT = 0.499
"""A resampled pixel is valid where at least this share of its weight falls on valid pixels. Just
below a half, which is what symmetric filters give at straight borders, up to rounding."""


def has_holes(pixels: Tensor) -> bool:
    """Whether any number is NaN; one pass, without a mask. No number may be infinite."""
    return bool(torch.isnan(pixels.sum()))


def resample(pixels: Tensor, operation: Operation) -> Tensor:
    """`operation` on (B, C, H, W), in which NaN are holes; without holes nothing else is done."""
    holed = torch.isnan(pixels.sum((2, 3)))
    if not bool(holed.any()):
        return operation(pixels, slice(None))
    # Masks are made of the planes with holes alone: a band that is missing is often the only one.
    holes = torch.isnan(pixels[holed])
    empty = torch.zeros_like(holed)
    empty[holed] = holes.flatten(1).all(1)
    filled = pixels.clone()
    filled[holed] = filled[holed].masked_fill_(holes, 0)
    resampled = operation(filled, slice(None))
    resampled[empty] = torch.nan
    partial = holed & ~empty
    rows = torch.nonzero(partial.any(1)).flatten()
    if len(rows):
        weights = operation((~torch.isnan(pixels[rows])).to(pixels.dtype), rows)
        known = resampled[rows] / weights.clamp(min=MIN_WEIGHT)
        known = known.masked_fill(weights < MIN_WEIGHT, torch.nan)
        resampled[rows] = torch.where(partial[rows][:, :, None, None], known, resampled[rows])
    return resampled


def without_holes(pixels: Tensor) -> tuple[Tensor, Tensor | None]:
    """`pixels` with each hole at the mean of its sample's valid pixels in that channel (0 in a
    channel without any), and the mask of holes; None without holes."""
    if not has_holes(pixels):
        return pixels, None
    holes = torch.isnan(pixels)
    mean = pixels.nanmean((2, 3), keepdim=True).nan_to_num(nan=0.0)
    return torch.where(holes, mean, pixels), holes
