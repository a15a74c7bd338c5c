"""What a tower takes, and how raw pixels become it.

Letters: B batch, C channels, H W pixels. The way of a batch: raw numbers -> `to_physical` ->
`scale_bands` (or `scale_composite` for an RGB tower), both to 0-1 -> geometry -> `make_ready`
(clip and normalise). What has no data, and a band that is declared to be missing, is NaN from
scaling on and exactly zero once it is ready (see `holes`). Everything is float32; autocast belongs
inside the tower, since casting inputs to bfloat16 first loses up to 20 DN.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal, Self

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor

from terralign.chips import MAX_ASPECT, PixelLayout, middle
from terralign.errors import DataError, SensorError
from terralign.preprocess.holes import resample
from terralign.preprocess.parts import new_pixels, parts_of
from terralign.sensors import SENSORS, Composite

RGB_BANDS = SENSORS["rgb"].band_names


class InputSpec(BaseModel):
    """What a tower takes: bands by name, size, scaling, normalisation.

    A band's physical value x becomes `(clip((x - low) / (high - low), 0, 1) - mean) / std`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    sensors: tuple[str, ...] = Field(min_length=1)
    """Sensors accepted. One Sentinel-2 tower may serve both product levels."""
    bands: tuple[str, ...] = Field(min_length=1)
    """Canonical band names in the order of the tower's channels."""
    ranges: dict[str, tuple[tuple[float, float], ...]]
    """Per sensor and band: the physical values (low, high) that become 0 and 1."""
    mean: tuple[float, ...]
    """Per band, after scaling to 0-1."""
    std: tuple[float, ...]
    """Per band, after scaling to 0-1."""
    size: int = Field(gt=0, le=4096)
    """Height and width in pixels."""
    missing: Literal["error", "zero"] = "error"
    """A band that the pixels lack: an error, or zero where it enters the network (the paper's B10
    of L2A)."""
    interpolation: Literal["bicubic", "bilinear"] = "bicubic"
    """How pixels of another size are resized (antialiased)."""
    resize_mode: Literal["shortest", "squash"] = "shortest"
    """Shortest side to `size` and a centre crop, or both sides to `size`."""

    @model_validator(mode="after")
    def _lengths_agree(self) -> Self:
        num = len(self.bands)
        if len(set(self.bands)) != num:
            raise ValueError(f"bands {self.bands} repeat a name")
        if not len(self.mean) == len(self.std) == num:
            raise ValueError(f"{num} bands, but {len(self.mean)} means and {len(self.std)} stds")
        if min(self.std) <= 0:
            raise ValueError("std must be positive")
        for sensor in self.sensors:
            pairs = self.ranges.get(sensor)
            if pairs is None or len(pairs) != num:
                raise ValueError(f"ranges of sensor {sensor!r} must give {num} (low, high) pairs")
            if any(high <= low for low, high in pairs):
                raise ValueError(f"ranges of sensor {sensor!r}: high must be above low")
        return self


def rgb_spec(
    *,
    size: int,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    interpolation: Literal["bicubic", "bilinear"] = "bicubic",
    resize_mode: Literal["shortest", "squash"] = "shortest",
) -> InputSpec:
    """The specification of a CLIP's RGB tower; its pictures are 0-1."""
    return InputSpec(
        sensors=("rgb",),
        bands=RGB_BANDS,
        ranges={"rgb": ((0.0, 1.0),) * 3},
        mean=mean,
        std=std,
        size=size,
        interpolation=interpolation,
        resize_mode=resize_mode,
    )


def to_physical(pixels: Tensor, layout: PixelLayout) -> tuple[Tensor, Tensor]:
    """Raw numbers (B, C, H, W) -> physical float32 in `layout.sensor.unit`, and `valid`.

    `valid` is True where a pixel may be used: the sensor's no-data DN and non-finite numbers are
    masked before the offset is added, and take the sensor's `fill`.
    """
    check_channels(pixels, layout)
    numbers = new_pixels(pixels.shape, pixels, torch.float32).copy_(pixels)
    invalid = _make_physical(numbers, pixels, layout)
    if invalid is None:
        return numbers, torch.ones_like(numbers, dtype=torch.bool)
    numbers.masked_fill_(invalid, layout.sensor.fill)
    return numbers, invalid.logical_not_()


def _make_physical(numbers: Tensor, raw: Tensor, layout: PixelLayout) -> Tensor | None:
    """Turn float32 `numbers`, a copy of `raw`, into physical ones, in place.

    Numbers without data become NaN. Returns the mask that is True there, None without any.
    """
    invalid = _invalid(numbers, raw, layout)
    if layout.units == "dn":
        numbers.add_(layout.dn_offset).mul_(layout.dn_scale).add_(layout.add)
    if invalid is not None:
        numbers.masked_fill_(invalid, torch.nan)
    return invalid


def _invalid(numbers: Tensor, raw: Tensor, layout: PixelLayout) -> Tensor | None:
    """True where `numbers`, a float32 copy of `raw`, are no data; None where none is."""
    nodata = layout.sensor.nodata if layout.units == "dn" else None
    if raw.device.type == "cpu" and not raw.is_floating_point():
        # By NumPy, from the whole numbers: some six times as fast as by torch.
        if nodata is None:
            return None
        empty = raw.numpy() == nodata
        return torch.from_numpy(empty) if empty.any() else None
    invalid = torch.isfinite(numbers).logical_not_() if raw.is_floating_point() else None
    if nodata is not None:
        empty_here = numbers == nodata
        invalid = empty_here if invalid is None else invalid.logical_or_(empty_here)
    return invalid


def valid_shares(
    pixels: Tensor, layout: PixelLayout, names: Sequence[str], *, together: bool = False
) -> Tensor:
    """(B,) float32: the share of valid numbers in these bands of raw pixels (B, C, H, W).

    Names that the layout lacks are passed over; 1 where it lacks all of them. `together`: the share
    of pixels that are valid in all of these bands, as those of a composite must be.
    """
    check_channels(pixels, layout)
    channels = [layout.bands.index(name) for name in names if name in layout.bands]
    nodata = layout.sensor.nodata if layout.units == "dn" else None
    shares = torch.ones(len(pixels), dtype=torch.float32)
    if not channels or (nodata is None and not pixels.is_floating_point()):
        return shares
    if pixels.device.type != "cpu":
        numbers = _take(pixels, channels)
        found = torch.isfinite(numbers)
        if nodata is not None:
            found &= numbers.float() != nodata
        found = found.all(1) if together else found
        return found.flatten(1).double().mean(1).float()
    # Counted by NumPy, sample by sample: some ten times as fast as a mean over a mask in torch.
    every = channels == list(range(pixels.shape[1]))
    for index, sample in enumerate(pixels):
        numbers = sample.numpy() if every else sample.numpy()[channels]
        valid = numbers != nodata if nodata is not None else np.isfinite(numbers)
        if nodata is not None and sample.is_floating_point():
            valid &= np.isfinite(numbers)
        valid = valid.all(0) if together else valid
        shares[index] = np.count_nonzero(valid) / valid.size
    return shares


NUM_CELLS = 8
"""Cells along each side of a chip, of which it is recorded whether they have a valid number."""

ALL_CELLS = 2**64 - 1


def valid_cells(
    pixels: Tensor, layout: PixelLayout, names: Sequence[str], *, together: bool = False
) -> int:
    """Which of 8x8 cells of one chip of raw pixels (C, H, W) have a valid number, as 64 bits.

    Bit 8 r + c is that of the cell in row r and column c, from 0. Names and `together` as for
    `valid_shares`.
    """
    channels = [layout.bands.index(name) for name in names if name in layout.bands]
    nodata = layout.sensor.nodata if layout.units == "dn" else None
    if not channels or (nodata is None and not pixels.is_floating_point()):
        return ALL_CELLS
    numbers = pixels[channels].cpu().numpy()
    valid = np.isfinite(numbers)
    if nodata is not None:
        valid &= numbers != nodata
    valid = valid.all(0) if together else valid.any(0)
    rows = np.stack([valid[span].any(0) for span in _cell_spans(valid.shape[0])])
    cells = np.stack([rows[:, span].any(1) for span in _cell_spans(valid.shape[1])], axis=1)
    return int.from_bytes(np.packbits(cells, bitorder="little").tobytes(), "little")


def _cell_spans(length: int) -> list[slice]:
    """The pixels of a side that each of its cells touches."""
    return [
        slice(length * n // NUM_CELLS, -(-length * (n + 1) // NUM_CELLS)) for n in range(NUM_CELLS)
    ]


def select_bands(
    pixels: Tensor, layout: PixelLayout, names: Sequence[str]
) -> tuple[Tensor, PixelLayout]:
    """Just these bands of pixels (B, C, H, W), in this order, and their layout.

    Taking what is needed first spares the conversion of the rest. The names must be in the layout.
    """
    check_channels(pixels, layout)
    if tuple(names) == layout.bands:
        return pixels, layout
    channels = [layout.bands.index(name) for name in names]
    return _take(pixels, channels), replace(layout, bands=tuple(names))


_SIGNED = {torch.uint16: torch.int16, torch.uint32: torch.int32, torch.uint64: torch.int64}
"""Types that not every device can index, and those of the same size that it can."""


def _take(pixels: Tensor, channels: Sequence[int]) -> Tensor:
    """These channels of pixels (B, C, H, W)."""
    signed = _SIGNED.get(pixels.dtype)
    if signed is None:
        return pixels[:, channels]
    return pixels.view(signed)[:, channels].view(pixels.dtype)


def check_channels(pixels: Tensor, layout: PixelLayout) -> None:
    """Raise `DataError` unless pixels are (B, C, H, W) with one channel per band."""
    if pixels.ndim != 4 or pixels.shape[1] != len(layout.bands):
        raise DataError(
            f"pixels of shape {tuple(pixels.shape)} for {len(layout.bands)} bands "
            f"({', '.join(layout.bands)}); expected (B, {len(layout.bands)}, H, W)"
        )


def layout_composite(layout: PixelLayout) -> Composite:
    """The layout's RGB recipe, else its sensor's first; `SensorError` without one."""
    return layout.composite or layout.sensor.composite()


def scale_composite(pixels: Tensor, layout: PixelLayout) -> Tensor:
    """Raw numbers (B, C, H, W) -> the RGB picture (B, 3, H, W) float32 in 0-1.

    By the layout's composite, else by its sensor's first. A pixel that lacks data in one of the
    three bands is NaN in all of them. `SensorError` where the sensor makes no RGB or the layout
    lacks a band of it.
    """
    composite = layout_composite(layout)
    missing = [name for name in composite.bands if name not in layout.bands]
    if missing:
        raise SensorError(
            f"composite {composite.name!r} needs {', '.join(composite.bands)}; "
            f"the pixels have {', '.join(layout.bands)} (missing {', '.join(missing)})"
        )
    check_channels(pixels, layout)
    picture = new_pixels((len(pixels), 3, *pixels.shape[2:]), pixels, torch.float32)
    for rows in parts_of(len(picture), picture.shape[1:], device=picture.device):
        part, taken = select_bands(pixels[rows], layout, composite.bands)
        numbers = picture[rows].copy_(part)
        invalid = _make_physical(numbers, part, taken)
        numbers.div_(composite.stretch).clamp_(0, 1)
        if invalid is not None:
            numbers.masked_fill_(invalid.any(1, keepdim=True), torch.nan)
    return picture


def scale_bands(pixels: Tensor, layout: PixelLayout, spec: InputSpec) -> Tensor:
    """Raw numbers (B, C, H, W) -> the tower's bands (B, len(spec.bands), H, W), scaled to 0-1.

    Bands are matched by name; numbers without data are NaN. `SensorError` for a sensor the tower
    does not take and for a band that is missing, unless the tower declares `missing = "zero"`: the
    band is NaN throughout then.
    """
    sensor = layout.sensor.name
    if sensor not in spec.sensors:
        raise SensorError(
            f"tower takes {', '.join(spec.sensors)}; the pixels are of sensor {sensor!r}"
        )
    absent = [name for name in spec.bands if name not in layout.bands]
    if absent and spec.missing == "error":
        raise SensorError(
            f"pixels have bands {', '.join(layout.bands)}; tower needs {', '.join(absent)} too. "
            "Read them with the tower's input_spec.bands"
        )
    if len(absent) == len(spec.bands):
        raise SensorError(
            f"pixels have none of the tower's bands ({', '.join(spec.bands)}) "
            f"but {', '.join(layout.bands)}"
        )
    check_channels(pixels, layout)
    present = [name for name in spec.bands if name in layout.bands]
    limits = dict(zip(spec.bands, spec.ranges[sensor], strict=True))
    shape = (len(pixels), len(spec.bands), *pixels.shape[2:])
    scaled = new_pixels(shape, pixels, torch.float32)
    low = scaled.new_tensor([limits[name][0] for name in present])[:, None, None]
    high = scaled.new_tensor([limits[name][1] for name in present])[:, None, None]
    span = high - low
    channels = [spec.bands.index(name) for name in present]
    for rows in parts_of(len(scaled), shape[1:], device=scaled.device):
        part, taken = select_bands(pixels[rows], layout, present)
        numbers = scaled[rows].copy_(part) if not absent else part.to(torch.float32, copy=True)
        _make_physical(numbers, part, taken)
        numbers.sub_(low).div_(span).clamp_(0, 1)
        if absent:
            scaled[rows] = torch.nan
            scaled[rows, channels] = numbers
    return scaled


def resize(pixels: Tensor, spec: InputSpec) -> Tensor:
    """(B, C, H, W) -> (B, C, size, size), antialiased; the same tensor where the size is right.

    NaN are no data, which no pixel beside them is blended with. Of pixels that are very long, whose
    ends are cropped, only the middle is resized (see `chips.middle`).
    """
    height, width = pixels.shape[-2:]
    if height == width == spec.size:
        return pixels
    if spec.resize_mode == "squash" or height == width:
        if height > MAX_ASPECT * width:  # the long side first, or all its rows would be enlarged
            pixels = _interpolated(pixels, (spec.size, width), spec)
        return _interpolated(pixels, (spec.size, spec.size), spec)
    pixels = pixels[..., middle(height, width), middle(width, height)]
    height, width = pixels.shape[-2:]
    shortest = min(height, width)
    return _interpolated(
        pixels, (spec.size * height // shortest, spec.size * width // shortest), spec
    )


def _interpolated(pixels: Tensor, target: tuple[int, int], spec: InputSpec) -> Tensor:
    """Pixels (B, C, H, W) at `target` (H', W'), cropped in the centre to `spec.size` where that is
    longer; plane by plane where they are large."""
    planes = len(pixels) * pixels.shape[1]
    larger = max(math.prod(pixels.shape[2:]), math.prod(target))
    if planes > 1 and 4 * planes * larger > _LARGE_BYTES:
        alone = (_interpolated(one[None, None], target, spec) for one in pixels.flatten(0, 1))
        resized = torch.cat(list(alone))
        return resized.reshape(*pixels.shape[:2], *resized.shape[2:])
    resized = resample(
        pixels,
        lambda part, _: F.interpolate(
            part, size=target, mode=spec.interpolation, antialias=True, align_corners=False
        ),
    )
    top = max(0, round((target[0] - spec.size) / 2))
    left = max(0, round((target[1] - spec.size) / 2))
    return resized[..., top : top + spec.size, left : left + spec.size]


_LARGE_BYTES = 512 << 20
"""What is larger than this, as float32, is resized plane by plane, to hold no copies of it all."""


def make_ready(scaled: Tensor, spec: InputSpec) -> Tensor:
    """Scaled pixels (B, C, size, size) -> clipped to 0-1 and normalised, ready for the tower.

    NaN, pixels without data and missing bands, become zero.
    """
    mean = scaled.new_tensor(spec.mean)[:, None, None]
    std = scaled.new_tensor(spec.std)[:, None, None]
    ready = new_pixels(scaled.shape, scaled)
    for rows in parts_of(len(scaled), scaled.shape[1:], device=scaled.device):
        ready[rows] = scaled[rows].clamp(0, 1).sub_(mean).div_(std).nan_to_num_(nan=0.0)
    return ready
