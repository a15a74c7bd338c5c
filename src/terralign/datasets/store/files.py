"""What a packed store consists of: its manifest, its shards, its table of samples.

    STORE/manifest.json               what the numbers mean, and a checksum of every file
    STORE/samples.parquet             one row per sample: key, split, labels, footprint, date, place
    STORE/shards/00000.safetensors    one tensor per sensor: (n, C, H, W) as the source has them

A shard holds samples of one split, in the order of the split. Pictures may be kept as the bytes of
their files instead: `rgb.bytes` (all files, one after another) and `rgb.offsets` (n + 1,). Where
whole numbers lack data and the sensor has no number for that (its `nodata`), the shard has a bit
per number, `SENSOR.valid` (n, bytes), 1 where a number may be used (see `pack_bits`).
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import math
import mmap
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal, Self, cast

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from safetensors import SafetensorError, safe_open

from terralign.chips import PixelLayout
from terralign.errors import DataError, SensorError, StorageError, first_line
from terralign.files import hash_json, missing_hint, read_json
from terralign.limits import require
from terralign.sensors import describe_sensor, parse_sensor
from terralign.toml_values import explain

MANIFEST = "manifest.json"
TABLE = "samples.parquet"
SHARD_ENTRY_BYTES = 300
"""What a shard takes in the manifest, beside the name of its split."""
SHARDS = "shards"
VERSION = 1

Images = Literal["pixels", "encoded"]
"""How pictures are packed: decoded, or as the bytes of their JPEG or PNG files."""

_DTYPES = {
    "U8": "uint8", "I8": "int8", "U16": "uint16", "I16": "int16", "U32": "uint32", "I32": "int32",
    "I64": "int64", "F16": "float16", "F32": "float32", "F64": "float64",
}  # fmt: skip
_MAX_SIDE = 1 << 16


class _Strict(BaseModel):
    model_config = ConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False
    )


class StoredSensor(_Strict):
    """One sensor of a store: what its numbers mean, and how they lie in the shards."""

    sensor: dict[str, Any]
    bands: tuple[str, ...] = Field(min_length=1)
    units: Literal["dn", "physical"]
    dn_offset: float
    composite: str | None
    stated_scale: tuple[float, float] | None = None
    """(scale, offset) that the files state, in place of the sensor's."""
    images: Images = "pixels"
    dtype: str | None = None
    """NumPy's name; None for encoded pictures, which decode to uint8."""
    shape: tuple[int, int, int] | None = None
    """(C, H, W); None for encoded pictures, whose sizes may differ."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        encoded = self.images == "encoded"
        if encoded != (self.dtype is None) or encoded != (self.shape is None):
            raise ValueError("dtype and shape belong to pixels, and only to them")
        if self.dtype is not None and self.dtype not in _DTYPES.values():
            raise ValueError(f"dtype {self.dtype!r} is not one of {', '.join(_DTYPES.values())}")
        if self.shape is not None and (
            self.shape[0] != len(self.bands) or not all(0 < side < _MAX_SIDE for side in self.shape)
        ):
            raise ValueError(f"shape {self.shape} does not fit {len(self.bands)} bands")
        return self

    def layout(self) -> PixelLayout:
        """How the numbers are to be read."""
        sensor = parse_sensor(self.sensor, origin="store")
        return PixelLayout(
            sensor=sensor,
            bands=sensor.resolve(self.bands),
            units=self.units,
            dn_offset=self.dn_offset,
            composite=None if self.composite is None else sensor.composite(self.composite),
            stated_scale=self.stated_scale,
        )


def describe_stored(
    layout: PixelLayout, *, images: Images, pixels: NDArray[Any] | None
) -> StoredSensor:
    """The manifest's entry of a layout; `pixels`: (B, C, H, W) of it, None where encoded.

    `DataError` where a store cannot hold numbers of that type, or where there are no numbers.
    """
    if pixels is not None and (str(pixels.dtype) not in _DTYPES.values() or not pixels.size):
        raise DataError(
            f"pixels of {layout.sensor.name} are {pixels.dtype} of shape {pixels.shape[1:]}; a "
            f"store holds {', '.join(_DTYPES.values())}: convert the files first"
        )
    return StoredSensor(
        sensor=describe_sensor(layout.sensor),
        bands=layout.bands,
        units=layout.units,
        dn_offset=layout.dn_offset,
        composite=layout.composite.name if layout.composite else None,
        stated_scale=layout.stated_scale,
        images=images,
        dtype=None if pixels is None else str(pixels.dtype),
        shape=None if pixels is None else (pixels.shape[1], pixels.shape[2], pixels.shape[3]),
    )


class StoredLabels(_Strict):
    """What the label numbers of the table mean."""

    class_names: tuple[str, ...] = Field(min_length=1, fail_fast=True)
    class_list: str
    multi_label: bool


class StoredFile(_Strict):
    """A file of a store. `split` and `num_samples`: of a shard."""

    file: str = Field(pattern=r"^[\w./-]+$")
    num_bytes: int = Field(ge=0)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")


class StoredShard(StoredFile):
    """A shard."""

    split: str
    num_samples: int = Field(ge=1)
    probe: str = ""
    """What `probe_file` gave when it was packed; empty in older stores."""


class Manifest(_Strict):
    """What a store holds."""

    format: Literal["terralign-store"] = "terralign-store"
    version: Literal[1] = 1
    name: str = Field(pattern=r"^[\w][\w .-]*$", max_length=200)
    """The data set that was packed; folders are named by it."""
    sensors: dict[str, StoredSensor] = Field(min_length=1, max_length=1000)
    splits: dict[str, int] = Field(min_length=1)
    """Split -> number of samples."""
    has_splits: bool = True
    """False where the data set has none, so that its one split is the whole."""
    labels: StoredLabels | None = None
    captions: bool = False
    prompts: tuple[str, ...] | None = Field(default=None, fail_fast=True)
    """The data set's own templates."""
    image_size: int | str | None = None
    """The size to which pictures were resized and cropped (`PictureSize.describe`); None where they
    keep their own."""
    num_skipped: int = Field(default=0, ge=0)
    """Damaged samples that were left out, as asked."""
    source: dict[str, str]
    """Split -> fingerprint of what was packed."""
    packing: dict[str, int | bool | str | None]
    """The settings with which it was packed."""
    table: StoredFile
    shards: tuple[StoredShard, ...] = Field(fail_fast=True)
    checksum: str = ""
    """Hash of everything above, for `terralign pack --verify`."""

    def hash_of_rest(self) -> str:
        """What `checksum` must be."""
        values = self.model_dump(mode="json", exclude={"checksum"})
        for shard in values["shards"]:
            if not shard["probe"]:
                del shard["probe"]
        return hash_json(values)

    @model_validator(mode="after")
    def _adds_up(self) -> Self:
        counts = dict.fromkeys(self.splits, 0)
        for shard in self.shards:
            if shard.split not in counts:
                raise ValueError(f"{shard.file} is of split {shard.split!r}, which is not listed")
            counts[shard.split] += shard.num_samples
        if counts != self.splits:
            raise ValueError(f"shards hold {counts}, the splits {self.splits}")
        for file in (self.table, *self.shards):
            if file.file.startswith("/") or ".." in Path(file.file).parts:
                raise ValueError(f"{file.file} leads outside the store")
        return self


def is_store(path: Path) -> bool:
    """Whether a folder is a packed store."""
    return (path / MANIFEST).is_file()


def read_manifest(store: Path) -> Manifest:
    """Read and check a store's manifest; `DataError` names the first fault."""
    path = store / MANIFEST
    if not path.is_file():
        hint = "" if store.exists() else missing_hint(store)
        raise DataError(f"{store} is not a packed store: {MANIFEST} not found{hint}")
    try:
        values = read_json(path, size="manifest_bytes")
        if isinstance(values, dict) and values.get("version", VERSION) != VERSION:
            raise DataError(
                f"{path} is of version {values['version']!s:.20}, this program reads {VERSION}; "
                "update terralign or pack again"
            )
        manifest = Manifest.model_validate(values)
        for stored in manifest.sensors.values():
            stored.layout()
        return manifest
    except ValidationError as error:
        raise DataError(
            f"{path} is damaged: {explain(error, Manifest)}; copy it again, or pack again"
        ) from error
    except (StorageError, SensorError) as error:
        raise DataError(f"{path} is damaged: {error}") from error


@dataclass(frozen=True, slots=True)
class MappedTensor:
    """A tensor of a shard in its memory map."""

    array: NDArray[Any]

    def advise(self, rows: NDArray[np.int64]) -> None:
        """Ask the system to fetch these rows (along the first axis) from disk, all at once.

        By the system's own call: Python's is of its own maps only, each of which keeps a file open.
        """
        advise = _madvise()
        stride = self.array.nbytes // len(self.array)
        start = self.array.ctypes.data
        for row in rows.tolist():
            first = start + row * stride
            aligned = first - first % mmap.PAGESIZE
            advise(aligned, first + stride - aligned, mmap.MADV_WILLNEED)


BATCHES_AHEAD = 256
"""Batches whose rows are asked for after one that had to wait for the disk."""


class FetchingAhead:
    """Whether the system is asked for the rows of a batch ahead of their copies.

    That is worth it where rows come from disk. Where they lie in memory it takes a tenth of the
    time of their copies, so it begins with a batch that has waited, and ends when none has for a
    while.
    """

    def __init__(self) -> None:
        self._num_left = 0

    @contextmanager
    def batch(self) -> Iterator[bool]:
        """Whether to ask for the rows that the block copies."""
        asked = self._num_left > 0
        waits = num_waits()
        yield asked
        if num_waits() > waits:
            self._num_left = BATCHES_AHEAD
        elif asked:
            self._num_left -= 1


def num_waits() -> int:
    """How often this thread waited for pages from disk so far (of all threads, off Linux)."""
    whose = getattr(resource, "RUSAGE_THREAD", resource.RUSAGE_SELF)
    return resource.getrusage(whose).ru_majflt


@cache
def _madvise() -> Callable[[int, int, int], int]:
    function = ctypes.CDLL(None).madvise
    function.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    return cast(Callable[[int, int, int], int], function)


def pack_bits(valid: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """(n, C, H, W) bool as bits (n, bytes), each sample from a byte of its own."""
    return np.packbits(valid.reshape(len(valid), -1), axis=1)


def unpack_bits(bits: NDArray[np.uint8], shape: tuple[int, int, int]) -> NDArray[np.bool_]:
    """What `pack_bits` packed: (n, C, H, W) bool for `shape` (C, H, W)."""
    flat = np.unpackbits(bits, axis=1, count=math.prod(shape))
    return flat.reshape(len(bits), *shape).astype(np.bool_)


def probe_file(path: Path) -> str:
    """A hash of a few places of a file, evenly spaced: whether it is another one is known without
    reading it whole."""
    num_bytes = path.stat().st_size
    places = np.linspace(0, max(0, num_bytes - 512), 8).astype(np.int64)
    with open(path, "rb") as file:
        found = hashlib.blake2b(digest_size=16)
        for place in places.tolist():
            file.seek(place)
            found.update(file.read(512))
    return found.hexdigest()


def map_shard(
    path: Path,
    expected: dict[str, tuple[str, tuple[int, ...]]],
    optional: dict[str, tuple[str, tuple[int, ...]]] | None = None,
    *,
    probe: str = "",
) -> dict[str, Any]:
    """The tensors of a shard, memory-mapped, read-only: name -> `MappedTensor`.

    `expected`: name -> (dtype, shape), -1 for any length; `optional`: the same of tensors that a
    shard may lack. `probe`: what `probe_file` must give. `DataError` names a shard that is missing,
    truncated, or not as the manifest says.
    """
    try:
        if not path.is_file():
            raise FileNotFoundError("not found")
        _require_small_header(path)
        with safe_open(path, framework="numpy"):  # checks the header against the file's size
            pass
        with open(path, "rb") as file:
            header_bytes = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(header_bytes))
        with pa.memory_map(str(path)) as mapped:  # stays mapped when closed: no file is kept open
            memory = mapped.read_buffer()
        if probe and probe_file(path) != probe:
            raise ValueError("it is not the one that was packed here")
    except (SafetensorError, OSError, ValueError, MemoryError) as error:
        raise DataError(
            f"shard {path} is damaged or missing ({first_line(error)}); `terralign pack --verify` "
            "lists the shards that are; delete those and pack again, which makes only those"
        ) from error
    tensors = {}
    found_too = {name: one for name, one in (optional or {}).items() if name in header}
    for name, (dtype, shape) in {**expected, **found_too}.items():
        entry = header.get(name) or {"dtype": None, "shape": ()}
        found = (_DTYPES.get(entry["dtype"]), tuple(entry["shape"]))
        if found[0] != dtype or len(found[1]) != len(shape) or any(
            want not in (-1, got) for got, want in zip(found[1], shape, strict=True)
        ):  # fmt: skip
            raise DataError(
                f"shard {path}: {name} is {found[0]} of shape {found[1]}; the manifest has "
                f"{dtype} of shape {shape}"
            )
        start = 8 + header_bytes + entry["data_offsets"][0]
        array = np.frombuffer(memory, dtype, math.prod(found[1]), start).reshape(found[1])
        tensors[name] = MappedTensor(array)
    return tensors


def _require_small_header(path: Path) -> None:
    with open(path, "rb") as file:
        num_bytes = int.from_bytes(file.read(8), "little")
    if num_bytes < path.stat().st_size:  # else it is damaged
        require("safetensors_header_bytes", num_bytes, f"shard {path} has a header of")
