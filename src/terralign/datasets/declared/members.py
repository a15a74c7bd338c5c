"""The pixels of a sample from the bytes of one file: arrays, tensors, GeoTIFFs and pictures.

Nothing is unpickled, and sizes are checked before memory is taken. C bands, H W pixels.
"""

from __future__ import annotations

import io
import tokenize
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load

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

    @property
    def kind(self) -> str:
        """What a member is: one of `KINDS`."""
        return kind_of(self.member)

    @property
    def holds_pictures(self) -> bool:
        """Whether members are pictures, of which nothing needs to be declared."""
        return self.kind in PICTURES or (self.kind in TIFFS and self.pixels.sensor.name == "rgb")

    def read(self, content: bytes, what: str) -> tuple[PixelLayout, NDArray[Any]]:
        """The layout and pixels (C, H, W) of one member; `DataError` calls it `what`."""
        sensor = self.pixels.sensor
        if self.holds_pictures:
            layout = make_layout(sensor, sensor.band_names, units="dn")
            return layout, decode_rgb_bytes(content, what, self.pixels.size)
        if self.kind in TIFFS:
            return _read_geotiff(content, what, self.pixels)
        if self.kind == "npy":
            array = _read_npy(content, what)
        else:
            array = _read_safetensors(content, what, self.tensor)
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
    """What an array's numbers mean: all of it is declared, since the file does not state it."""
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


def _read_npy(content: bytes, what: str) -> NDArray[Any]:
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
    try:
        tensors = load(content)
    except (SafetensorError, ValueError, KeyError, TypeError, OverflowError) as error:
        raise DataError(f"{what} is damaged or no safetensors: {first_line(error)}") from error
    array = _pick(tensors, tensor, what)
    _require_numbers(array.dtype.kind, array.nbytes, what)
    return array


def _pick(tensors: Mapping[str, NDArray[Any]], name: str | None, what: str) -> NDArray[Any]:
    if name is None and len(tensors) == 1:
        return next(iter(tensors.values()))
    if name is None:
        found = ", ".join(sorted(tensors)) or "none"
        raise DataError(f"{what} has the tensors {found}; declare which one (tensor)")
    if name not in tensors:
        raise DataError(f"{what} has no tensor {name!r}; {nearest(name, tensors)}")
    return tensors[name]
