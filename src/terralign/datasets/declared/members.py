"""The pixels of a sample from the bytes of one file: arrays, tensors, GeoTIFFs and pictures.

Nothing is unpickled. C bands, H W pixels.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load

from terralign.chips import Chip, PixelLayout, make_layout
from terralign.datasets.npy import read_npy
from terralign.datasets.pixels import Pixels
from terralign.errors import DataError, TerralignError, first_line, nearest, some
from terralign.limits import require
from terralign.scenes.declared import declare_layout, units_of
from terralign.scenes.pictures import decode_rgb_bytes
from terralign.scenes.plausible import check_sample

PICTURES = ("jpg", "jpeg", "jpe", "jfif", "png", "webp", "bmp", "gif")
TIFFS = ("tif", "tiff")
KINDS = (*PICTURES, *TIFFS, "npy", "safetensors")
"""The last part of a member's ending: what it is."""


def kind_of(member: str) -> str:
    """What members of this ending are: its last part."""
    return member.lower().rpartition(".")[2]


@dataclass(frozen=True, kw_only=True, slots=True)
class MemberDecoder:
    """Decodes the members of one sensor.

    `member`: their ending, in lower case; `tensor`: which of a file's tensors holds the pixels.
    """

    member: str
    pixels: Pixels
    tensor: str | None = None

    def read(self, content: bytes, what: str) -> tuple[PixelLayout, NDArray[Any]]:
        """The layout and pixels (C, H, W) of one member; `DataError` calls it `what`."""
        kind, sensor = kind_of(self.member), self.pixels.sensor
        if kind in PICTURES or (kind in TIFFS and sensor.name == "rgb"):
            layout = make_layout(sensor, sensor.band_names, units="dn")
            return layout, decode_rgb_bytes(content, what, self.pixels.size)
        if kind in TIFFS:
            return _read_geotiff(content, what, self.pixels)
        if kind == "npy":
            array = read_npy(io.BytesIO(content), what)
        else:
            array = _read_safetensors(content, what, self.tensor)
        return _described(array, what, self.pixels)


def _read_geotiff(content: bytes, what: str, pixels: Pixels) -> tuple[PixelLayout, NDArray[Any]]:
    """Through a file of its own, under a name of ours: GDAL and its checks read files."""
    with TemporaryDirectory(prefix="terralign-") as folder:
        file = Path(folder) / "member.tif"
        file.write_bytes(content)
        try:
            chip = pixels.read(file)
            check_sample(chip.pixels, chip.layout, origin=str(file))
            return chip.layout, chip.pixels
        except TerralignError as error:
            raise type(error)(str(error).replace(str(file), what)) from error


def _read_safetensors(content: bytes, what: str, tensor: str | None) -> NDArray[Any]:
    header_bytes = min(int.from_bytes(content[:8], "little"), len(content))
    require("safetensors_header_bytes", header_bytes, f"{what} has a header of")
    try:
        tensors: Mapping[str, NDArray[Any]] = load(content)
    except (SafetensorError, ValueError, KeyError, TypeError, OverflowError, MemoryError) as error:
        raise DataError(
            f"{what} is damaged or no safetensors ({first_line(error)}); copy it again"
        ) from error
    if tensor is None and len(tensors) != 1:
        found = some(sorted(tensors)) or "none"
        raise DataError(f"{what} has the tensors {found}; declare which one (tensor)")
    name = next(iter(tensors)) if tensor is None else tensor
    if name not in tensors:
        raise DataError(f"{what} has no tensor {name!r}; {nearest(name, tensors)}")
    return tensors[name]


def _described(array: NDArray[Any], what: str, pixels: Pixels) -> tuple[PixelLayout, NDArray[Any]]:
    """The layout of an array, all of which is declared, and its pixels."""
    sensor = pixels.sensor
    if array.dtype.kind not in "uif" or array.ndim != 3 or not array.size:
        raise DataError(
            f"{what} holds {array.dtype} {array.shape!s:.100}; expected numbers (C, H, W)"
        )
    if pixels.bands is None and sensor.name != "rgb":
        raise DataError(f"{what} does not name its bands; declare bands, in its order")
    try:
        layout = declare_layout(
            sensor,
            pixels.bands,
            units=units_of(sensor, array.dtype, pixels.units),
            dn_offset=pixels.dn_offset,
            composite=pixels.composite,
            shape=array.shape,
        )
    except TerralignError as error:
        raise type(error)(f"{what}: {error}") from error
    array = array.astype(array.dtype.newbyteorder("="))
    if array.dtype == np.float16:
        array = array.astype(np.float32)
    check_sample(array, layout, origin=what)
    return layout, Chip(pixels=array, valid=np.isfinite(array), layout=layout).pixels
