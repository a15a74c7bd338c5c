"""Numbers in memory, held against what a caller declares of them.

N chips, C bands, H W pixels.
"""

from __future__ import annotations

from typing import TypeGuard

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from terralign.chips import Chip, PixelLayout, without_mask
from terralign.compute import inferring
from terralign.errors import DataError, SensorError
from terralign.preprocess import (
    InputSpec,
    make_ready,
    resize,
    scale_bands,
    scale_composite,
)
from terralign.preprocess.spec import (
    check_channels,
    layout_composite,
    valid_cells,
    valid_shares,
)
from terralign.scenes.declared import Declared, declare_layout, units_of
from terralign.scenes.pictures import PictureSize, resize_rgb
from terralign.scenes.plausible import NUM_CHECKED, check_numbers, check_sample
from terralign.sensors import RGB

Pixels = NDArray[np.generic] | Tensor


def is_array(one: object) -> TypeGuard[Pixels]:
    """Whether something is a NumPy array, a tensor, or an array that NumPy makes one of, as those
    of xarray, zarr, dask and h5py."""
    wanted = ("__array__", "dtype", "ndim", "shape")
    return isinstance(one, np.ndarray | Tensor) or all(hasattr(one, name) for name in wanted)


def as_declared(pixels: Pixels | Chip, declared: Declared) -> tuple[Tensor, PixelLayout]:
    """Pixels (N, C, H, W) and what they mean, checked against each other."""
    if isinstance(pixels, Chip):
        declared.refuse("a chip", "sensor", "bands", "units", "dn_offset")
        layout = pixels.layout.with_composite(declared.composite)
        tensor = as_tensor(pixels.pixels)[None]
        _check_tensor(tensor, layout)
        return tensor, layout
    if not is_array(pixels):
        raise DataError(
            f"pixels are a {type(pixels).__name__}; give a NumPy array, a tensor or a Chip"
        )
    if not isinstance(pixels, Tensor):
        pixels = np.asanyarray(pixels)
    if declared.sensor is None:
        raise SensorError(
            f"pixels of shape {tuple(pixels.shape)} need their sensor; only a Chip knows its own"
        )
    if pixels.ndim not in (3, 4):
        raise DataError(
            f"pixels have shape {tuple(pixels.shape)}; expected (C, H, W) for one chip, or "
            "(N, C, H, W)"
        )
    tensor = as_tensor(pixels)
    name = str(pixels.dtype).removeprefix("torch.")
    kind = np.dtype(np.float32 if tensor.is_floating_point() else np.int64)
    if isinstance(pixels, np.ma.MaskedArray):  # whole numbers that are masked became NaN
        kind = pixels.dtype
    if 0 in pixels.shape[-3:]:
        raise DataError(f"pixels have shape {tuple(pixels.shape)}, which holds no pixel")
    layout = declare_layout(
        declared.sensor,
        declared.bands,
        units=units_of(declared.sensor, kind, declared.plain_units, what=f"pixels are {name}"),
        dn_offset=declared.dn_offset,
        composite=declared.composite,
        shape=tuple(pixels.shape),
    )
    tensor = tensor[None] if tensor.ndim == 3 else tensor
    _check_tensor(tensor, layout)
    return tensor, layout


def as_tensor(pixels: Pixels) -> Tensor:
    """Pixels as a tensor; arrays that are read-only or flipped are copied, as torch needs it.

    Masked numbers of a masked array become NaN.
    """
    kind = ("c" if pixels.is_complex() else "") if isinstance(pixels, Tensor) else pixels.dtype.kind
    if pixels.dtype in (torch.bool, np.bool_) or kind in tuple("cOSUVMm"):
        raise DataError(
            f"pixels are {pixels.dtype}; expected whole or floating-point numbers, as the file has "
            "them"
        )
    if isinstance(pixels, Tensor):
        if pixels.is_meta or pixels.is_quantized or pixels.layout != torch.strided:
            raise DataError("pixels are a meta, quantised or sparse tensor; give a dense one")
        if pixels.is_floating_point() and pixels.dtype not in _FLOATS:
            return pixels.detach().float()
        return pixels.detach()
    pixels = without_mask(pixels)
    if pixels.dtype == np.longdouble:
        pixels = pixels.astype(np.float64)
    native = pixels.astype(pixels.dtype.newbyteorder("="), copy=False)
    return torch.from_numpy(np.require(native, requirements=["C", "W"]))


_FLOATS = (torch.float16, torch.float32, torch.float64)


def seen_shares(spec: InputSpec, pixels: Tensor, layout: PixelLayout, *, tower: str) -> Tensor:
    """(B,) float32: the share of valid numbers in what a tower sees of raw pixels (B, C, H, W).

    `spec`: of that tower. Of the RGB tower it is the share of pixels that are valid in all bands of
    the composite.
    """
    if tower == RGB:
        return valid_shares(pixels, layout, layout_composite(layout).bands, together=True)
    return valid_shares(pixels, layout, spec.bands)


def seen_cells(spec: InputSpec, pixels: Tensor, layout: PixelLayout, *, tower: str) -> int:
    """Which of 8x8 cells of raw pixels (C, H, W) have a valid number that a tower sees, as 64 bits
    (see `preprocess.spec.valid_cells`)."""
    if tower == RGB:
        return valid_cells(pixels, layout, layout_composite(layout).bands, together=True)
    return valid_cells(pixels, layout, spec.bands)


def ready_pixels(pixels: Tensor, layout: PixelLayout, spec: InputSpec, *, tower: str) -> Tensor:
    """Raw pixels (B, C, H, W) as the tower takes them: (B, C', size, size) on the same device.

    `spec`: of that tower. The RGB tower takes the composite, any other its bands.
    """
    rgb = tower == RGB
    scaled = scale_composite(pixels, layout) if rgb else scale_bands(pixels, layout, spec)
    return make_ready(resize(scaled, spec), spec)


def encode_ready(module: nn.Module, ready: Tensor) -> Tensor:
    """(B, D) float32 outputs of a tower, on the CPU, of ready pixels on its device."""
    with inferring(ready.device):
        embedded: Tensor = module(ready)
    return embedded.float().cpu().clone()


def resize_pictures(pixels: Tensor, size: PictureSize) -> Tensor:
    """Pictures (N, 3, H, W) of whole numbers, as their files would be opened at `size`; others as
    they are, for the tower's own resizing."""
    right_size = pixels.shape[2:] == (size.side, size.side)
    if pixels.ndim != 4 or pixels.shape[1] != 3 or right_size or not len(pixels):
        return pixels
    if pixels.is_floating_point() and bool((pixels.nan_to_num(0) % 1 != 0).any()):
        return pixels
    resized = (torch.from_numpy(resize_rgb(_as_array(one), size)) for one in pixels)
    return torch.stack([one.float() for one in resized])


def _check_tensor(tensor: Tensor, layout: PixelLayout) -> None:
    """Hold pixels (N, C, H, W) of any device against their layout, by some of them."""
    check_channels(tensor, layout)
    rows = np.unique(np.linspace(0, len(tensor) - 1, NUM_CHECKED).astype(np.int64))
    arrays = [_as_array(tensor[int(row)]) for row in rows if len(tensor)]
    origin = f"pixels of shape {tuple(tensor.shape)}"
    for row, array in zip(rows, arrays, strict=False):
        if len(tensor) > 1:
            check_sample(array, layout, origin=f"{origin}, chip {row}")
    check_numbers(
        [(array, np.isfinite(array)) for array in arrays],
        layout,
        origin=origin,
    )


def _as_array(pixels: Tensor) -> NDArray[np.generic]:
    pixels = pixels.detach().cpu()
    array: NDArray[np.generic] = (
        pixels.float() if pixels.dtype == torch.bfloat16 else pixels
    ).numpy()
    return array
