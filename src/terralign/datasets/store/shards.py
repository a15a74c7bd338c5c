"""The content of one shard of a packed store: samples read into the tensors that are written."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from terralign.datasets.sample import SampleSet
from terralign.datasets.store.files import SHARDS, StoredSensor, pack_bits
from terralign.errors import DataError
from terralign.scenes.pictures import decode_rgb

READ_AT_ONCE = 32


@dataclass(frozen=True, kw_only=True, slots=True)
class Shard:
    """A shard to make: the samples `start` to `end` of a split."""

    number: int
    split: str
    start: int
    end: int

    @property
    def file(self) -> str:
        """Its file, relative to the store."""
        return f"{SHARDS}/{self.number:05d}.safetensors"


def plan_shards(sizes: Mapping[str, Sequence[int]], shard_bytes: int) -> list[Shard]:
    """Cut every split into shards of at most `shard_bytes`, or one sample; `sizes`: bytes each."""
    shards: list[Shard] = []
    for split, of_samples in sizes.items():
        start, total = 0, 0
        for index, size in enumerate(of_samples):
            if index > start and total + size > shard_bytes:
                shards.append(Shard(number=len(shards), split=split, start=start, end=index))
                start, total = index, 0
            total += size
        shards.append(Shard(number=len(shards), split=split, start=start, end=len(of_samples)))
    return shards


@dataclass(frozen=True, kw_only=True, slots=True)
class Content:
    """`kept`: indices of the samples that `tensors` hold; `skipped`: key and reason of others."""

    tensors: dict[str, NDArray[Any]]
    kept: list[int]
    skipped: list[list[str]]


def read_pixels(
    samples: SampleSet, shard: Shard, sensors: Mapping[str, StoredSensor], *, skip: bool
) -> Content:
    """The decoded pixels of a shard: sensor -> (n, C, H, W).

    Raises `DataError` for a sample that cannot be read (unless `skip`), or of another shape or type
    than in `sensors`.
    """
    shapes = {name: one.shape or () for name, one in sensors.items()}
    tensors = {
        name: np.empty((shard.end - shard.start, *shapes[name]), one.dtype)
        for name, one in sensors.items()
    }
    valid: dict[str, NDArray[np.bool_]] = {}
    kept: list[int] = []

    def keep(indices: NDArray[np.int64]) -> None:
        pixels = samples.read(indices)
        masks: dict[str, NDArray[np.bool_]] = {}
        for name, tensor in tensors.items():
            pixels[name], masks[name] = _as_stored(pixels[name], tensor.dtype)
            found = pixels[name]
            if found.shape[1:] != shapes[name] or found.dtype != tensor.dtype:
                raise DataError(
                    f"{samples.keys[indices[0]]} of {samples.name!r}: {name} is {found.dtype} of "
                    f"shape {found.shape[1:]}; the first sample is {tensor.dtype} of shape "
                    f"{shapes[name]}, and all must be alike (pictures: --size or --images encoded)"
                )
        rows = slice(len(kept), len(kept) + len(indices))
        for name, tensor in tensors.items():
            tensor[rows] = pixels[name]
            if not masks[name].all() and name not in valid:
                valid[name] = np.ones(tensor.shape, dtype=np.bool_)
            if name in valid:
                valid[name][rows] = masks[name]
        kept.extend(indices.tolist())

    skipped = _read(samples, shard, keep, at_once=READ_AT_ONCE, skip=skip)
    content = {name: tensor[: len(kept)] for name, tensor in tensors.items()}
    content |= {f"{name}.valid": pack_bits(mask[: len(kept)]) for name, mask in valid.items()}
    return Content(tensors=content, kept=kept, skipped=skipped)


def _as_stored(
    pixels: NDArray[Any], dtype: np.dtype[Any]
) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    """Pixels in the store's type where that loses nothing, and their mask.

    Whole numbers are floating point as soon as one of a batch lacks data: they become whole again,
    0 under the mask. Floating-point numbers mark what lacks data themselves.
    """
    whole = np.issubdtype(dtype, np.integer)
    if pixels.dtype == dtype or not (whole and np.issubdtype(pixels.dtype, np.floating)):
        safe = not whole and np.can_cast(pixels.dtype, dtype, "safe")
        return pixels.astype(dtype) if safe else pixels, np.ones(pixels.shape, dtype=np.bool_)
    valid: NDArray[np.bool_] = ~np.isnan(pixels)
    filled = np.where(valid, pixels, 0)
    limits = np.iinfo(dtype)
    inside = ((filled >= limits.min) & (filled <= limits.max) & (filled % 1 == 0)).all()
    return (filled.astype(dtype) if inside else pixels), valid


def read_encoded(samples: SampleSet, shard: Shard, files: Sequence[Path], *, skip: bool) -> Content:
    """The bytes of a shard's picture files, each decoded once to meet damaged ones now.

    `files`: of all samples. Tensors: `rgb.bytes`, one file after another, and `rgb.offsets`.
    """
    kept: list[int] = []
    contents: list[bytes] = []

    def keep(indices: NDArray[np.int64]) -> None:
        file = files[indices[0]]
        decode_rgb(file)
        contents.append(file.read_bytes())
        kept.extend(indices.tolist())

    skipped = _read(samples, shard, keep, at_once=1, skip=skip)
    tensors: dict[str, NDArray[Any]] = {
        "rgb.bytes": np.frombuffer(b"".join(contents), dtype=np.uint8),
        "rgb.offsets": np.cumsum([0, *map(len, contents)], dtype=np.int64),
    }
    return Content(tensors=tensors, kept=kept, skipped=skipped)


def _read(
    samples: SampleSet,
    shard: Shard,
    keep: Callable[[NDArray[np.int64]], None],
    *,
    at_once: int,
    skip: bool,
) -> list[list[str]]:
    """`keep` all samples of a shard, some at once; with `skip` the key and the reason of those that
    cannot be read."""
    skipped: list[list[str]] = []
    for start in range(shard.start, shard.end, at_once):
        indices = np.arange(start, min(start + at_once, shard.end), dtype=np.int64)
        try:
            keep(indices)
        except DataError:
            if not skip:
                raise
            for index in indices:
                try:
                    keep(index.reshape(1))
                except DataError as error:
                    skipped.append([samples.keys[index], str(error)])
    return skipped
