"""The pixels of a sample from the bytes of one file: arrays, tensors, GeoTIFFs and pictures.

Nothing is unpickled but tensors by PyTorch's own restricted loader, and sizes are checked before
memory is taken. C bands, H W pixels.
"""

from __future__ import annotations

import io
import tokenize
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from terralign.chips import Chip, PixelLayout, Units, make_layout
from terralign.datasets.pixels import Pixels
from terralign.errors import DataError, SensorError, TerralignError, first_line, nearest
from terralign.scenes.file_layout import has_dn
from terralign.scenes.pictures import decode_rgb_bytes
from terralign.scenes.plausible import check_sample
from terralign.scenes.read import MAX_CHIP_BYTES
from terralign.sensors import Sensor, sentinel2_dn_offset

PICTURES = ("jpg", "jpeg", "jpe", "jfif", "png", "webp", "bmp", "gif")
TIFFS = ("tif", "tiff")
TENSORS = ("safetensors", "pth", "pt")
KINDS = (*PICTURES, *TIFFS, "npy", *TENSORS)
"""The last part of a member's ending says what it is."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MemberDecoder:
    """Decodes the members of one sensor. `tensor`: which of a file's tensors holds the pixels."""

    kind: str
    pixels: Pixels
    tensor: str | None = None

    @property
    def holds_pictures(self) -> bool:
        """Whether members are pictures, which say of themselves what they are."""
        return self.kind in PICTURES or (self.kind in TIFFS and self.pixels.sensor.name == "rgb")

    def read(self, content: bytes, what: str) -> tuple[PixelLayout, NDArray[Any]]:
        """The layout and pixels (C, H, W) of one member; `DataError` calls it `what`."""
        sensor = self.pixels.sensor
        if self.holds_pictures:
            layout = make_layout(sensor, sensor.band_names, units="dn")
            return layout, decode_rgb_bytes(content, what, self.pixels.size)
        if self.kind in TIFFS:
            return _read_geotiff(content, what, self.pixels)
        array = _ARRAYS[self.kind](content, what, self.tensor)
        layout = _declared_layout(self.pixels, array.dtype, what)
        if array.ndim != 3 or len(array) != len(layout.bands):
            raise DataError(
                f"{what} has shape {array.shape}; expected (C, H, W) with the "
                f"{len(layout.bands)} declared bands ({', '.join(layout.bands)})"
            )
        if array.dtype.itemsize < 4 and array.dtype.kind == "f":
            array = array.astype(np.float32)
        check_sample(array, layout, origin=what)
        chip = Chip(pixels=array, valid=np.isfinite(array), layout=layout)
        return layout, chip.pixels


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


def _declared_layout(pixels: Pixels, dtype: np.dtype[Any], what: str) -> PixelLayout:
    """What an array's numbers mean: it cannot say it itself, so all of it is declared."""
    sensor, bands = pixels.sensor, pixels.bands
    if bands is None and sensor.name != "rgb":
        raise DataError(f"{what} does not name its bands; declare bands, in its order")
    units = pixels.units or _units_of(sensor, dtype, what)
    offset = pixels.dn_offset
    if units == "physical" and offset:
        raise DataError(f"{what}: dn_offset={offset:g} has no effect on physical units")
    if units == "dn" and sensor.offset_varies:
        try:
            offset = sentinel2_dn_offset(declared=offset)
        except SensorError as error:
            raise SensorError(f"{what}: {error} (dn_offset=)") from error
    return make_layout(
        sensor,
        sensor.band_names if bands is None else bands,
        units=units,
        dn_offset=offset or 0.0,
        composite=pixels.composite,
    )


def _units_of(sensor: Sensor, dtype: np.dtype[Any], what: str) -> Units:
    if not has_dn(sensor):
        return "physical"
    if dtype.kind in "ui":
        return "dn"
    raise DataError(
        f"{what} has {dtype} numbers: digital numbers or {sensor.unit} of sensor {sensor.name!r}? "
        "Declare units, 'dn' or 'physical'"
    )


def _require_numbers(kind: str, num_bytes: int, what: str) -> None:
    if kind not in "uif":
        raise DataError(f"{what} holds no plain numbers")
    if num_bytes > MAX_CHIP_BYTES:
        raise DataError(
            f"{what} needs {num_bytes / 2**20:.0f} MiB, more than the limit of "
            f"{MAX_CHIP_BYTES / 2**20:.0f} MiB"
        )


_NPY_FAULTS = (
    *(ValueError, SyntaxError, EOFError, TypeError, MemoryError, RecursionError),
    tokenize.TokenError,
)
"""What NumPy raises for a header that is none; the last three for one of thousands of brackets."""


def _read_npy(content: bytes, what: str, _: str | None) -> NDArray[Any]:
    file = io.BytesIO(content)
    try:
        version = npy.read_magic(file)
        read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
        shape, by_columns, dtype = read(file)
    except _NPY_FAULTS as error:
        raise DataError(f"{what} is damaged or no NumPy file: {first_line(error)}") from error
    if min(shape, default=1) < 1:
        raise DataError(f"{what} has shape {shape}; expected (C, H, W) with at least one of each")
    num_bytes = int(np.prod(shape, dtype=object)) * dtype.itemsize
    _require_numbers("O" if dtype.hasobject else dtype.kind, num_bytes, what)
    if num_bytes != len(content) - file.tell():
        raise DataError(f"{what} is damaged: its header promises {num_bytes} bytes of numbers")
    flat: NDArray[Any] = np.frombuffer(content, dtype, offset=file.tell())
    return flat.reshape(shape, order="F" if by_columns else "C").astype(dtype.newbyteorder("="))


def _read_safetensors(content: bytes, what: str, tensor: str | None) -> NDArray[Any]:
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        tensors = load(content)
    except (SafetensorError, ValueError, KeyError, OverflowError) as error:
        raise DataError(f"{what} is damaged or no safetensors: {first_line(error)}") from error
    return _to_numpy(_pick(tensors, tensor, what), what)


def _read_torch(content: bytes, what: str, tensor: str | None) -> NDArray[Any]:
    """By `torch.load(weights_only=True)`, in which no code of a file runs."""
    import torch

    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            num_bytes = sum(one.file_size for one in archive.infolist())
        if num_bytes > len(content):
            raise DataError(f"{what} unpacks to more than it holds; refused")
        loaded = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except zipfile.BadZipFile as error:
        raise DataError(
            f"{what} is damaged, or of PyTorch before 1.6; save it again with torch.save"
        ) from error
    except DataError:
        raise
    except Exception as error:
        raise DataError(
            f"{what} is damaged, or holds other things than tensors, which are not loaded"
        ) from error
    if isinstance(loaded, Mapping):
        loaded = _pick(loaded, tensor, what)
    elif tensor is not None:
        raise DataError(f"{what} is one tensor without a name; leave tensor out")
    return _to_numpy(loaded, what)


def _pick(tensors: Mapping[Any, Any], name: str | None, what: str) -> Any:
    if name is None and len(tensors) == 1:
        return next(iter(tensors.values()))
    if name is None:
        there = ", ".join(sorted(str(key) for key in tensors)) or "none"
        raise DataError(f"{what} has the tensors {there}; declare which one (tensor)")
    if name not in tensors:
        raise DataError(
            f"{what} has no tensor {name!r}; {nearest(name, [str(key) for key in tensors])}"
        )
    return tensors[name]


def _to_numpy(tensor: Any, what: str) -> NDArray[Any]:
    import torch

    if not isinstance(tensor, torch.Tensor) or tensor.layout != torch.strided:
        raise DataError(f"{what} holds no plain tensor")
    if tensor.dtype == torch.bfloat16:
        tensor = tensor.float() if tensor.numel() * 4 <= MAX_CHIP_BYTES else tensor
    kind = "f" if tensor.is_floating_point() else "c" if tensor.is_complex() else "i"
    kind = "b" if tensor.dtype == torch.bool or tensor.is_quantized else kind
    _require_numbers(kind, tensor.numel() * tensor.element_size(), what)
    try:
        array: NDArray[Any] = tensor.detach().numpy()
    except (TypeError, RuntimeError) as error:
        raise DataError(
            f"{what} has numbers of type {tensor.dtype}: {first_line(error)}"
        ) from error
    return array


_ARRAYS: dict[str, Callable[[bytes, str, str | None], NDArray[Any]]] = {
    "npy": _read_npy,
    "safetensors": _read_safetensors,
    "pth": _read_torch,
    "pt": _read_torch,
}
