"""Reading a packed store: batches are gathered from memory-mapped shards, without decoding.

See `files` for what a store consists of and `writing` for how it is made. B samples, C bands, H W
pixels.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from terralign.chips import PixelLayout, mark_invalid
from terralign.datasets.content import ArrayContent, Contents
from terralign.datasets.file_set import require_indices, stack_pixels
from terralign.datasets.parquet import read_columns
from terralign.datasets.sample import (
    Captions,
    Indexed,
    Labels,
    Place,
    require_split,
    require_whole_split,
)
from terralign.datasets.store.files import (
    TABLE,
    FetchingAhead,
    Manifest,
    MappedTensor,
    StoredSensor,
    map_shard,
    read_manifest,
    unpack_bits,
)
from terralign.errors import DataError, first_line
from terralign.files import hash_json
from terralign.limits import limit, require
from terralign.scenes.pictures import (
    Picture,
    PictureSize,
    Size,
    as_picture_size,
    decode_rgb_bytes,
    describe_size,
    resize_rgb,
)


class StoreSet(Indexed):
    """One split of a packed store. See `SampleSet`; safe to use from threads and to pickle.

    `size`: to what RGB pictures are resized and cropped, None for their own size.
    """

    def __init__(self, store: Path, split: str, *, size: Size | None = None) -> None:
        self._store = Path(store)
        self._size = None if size is None else as_picture_size(size)
        self._manifest = manifest = read_manifest(self._store)
        if manifest.has_splits:
            require_split(manifest.name, split, manifest.splits, where=str(store))
        else:
            require_whole_split(manifest.name, split)
        self.name: str = manifest.name
        self.split: str = split
        self.layouts: Mapping[str, PixelLayout] = {
            name: stored.layout() for name, stored in manifest.sensors.items()
        }
        self.prompts: tuple[str, ...] | None = manifest.prompts
        self._check_size()
        stored = split if manifest.has_splits else next(iter(manifest.splits))
        self._shards = [shard for shard in manifest.shards if shard.split == stored]
        self._first = np.cumsum([0, *(shard.num_samples for shard in self._shards)])
        self._table = table = _read_table(self._store, manifest, stored)
        self.keys: tuple[str, ...] = tuple(table["key"].to_pylist())
        self.labels: Labels | None = _labels(table, manifest, self._store)
        self.captions: Captions | None = (
            tuple(map(tuple, table["captions"].to_pylist())) if manifest.captions else None
        )
        pixels = {
            "store": [shard.sha256 for shard in self._shards],
            "sensors": {key: one.model_dump() for key, one in manifest.sensors.items()},
            "size": describe_size(size),
        }
        self.pixels_id: str = hash_json(pixels)
        self.fingerprint: str = hash_json(
            {
                **pixels,
                "table": manifest.table.sha256,
                "labels": manifest.labels and manifest.labels.model_dump(),
            }
        )
        self._maps: dict[int, dict[str, MappedTensor]] = {}
        self._fetching = FetchingAhead()

    def __reduce__(self) -> tuple[Any, ...]:
        return _opened, (self._store, self.split, self._size, tuple(self.layouts))

    def __len__(self) -> int:
        return len(self.keys)

    def only_sensors(self, sensors: Sequence[str]) -> StoreSet:
        """The same samples with the pixels of these sensors alone."""
        found = object.__new__(StoreSet)
        vars(found).update(vars(self))
        found.layouts = {name: self.layouts[name] for name in sensors}
        return found

    @property
    def is_mapped(self) -> bool:
        """Whether reading only copies from memory-mapped files: nothing is decoded or resized."""
        return all(
            stored.shape is not None and self._resizing(name, stored) is None
            for name, stored in self._manifest.sensors.items()
        )

    def _resizing(self, name: str, stored: StoredSensor) -> PictureSize | None:
        """To what stored pixels are resized; None where they stay as they are, as numbers do that
        are no picture's."""
        size = self._size
        if name != "rgb" or stored.units != "dn" or size is None or stored.shape is None:
            return None
        return None if stored.shape[1:] == (size.side, size.side) else size

    def read(self, indices: NDArray[np.int64]) -> dict[str, NDArray[Any]]:
        """Sensor name -> (B, C, H, W) as packed."""
        require_indices(self.name, indices)
        if indices.min() < 0 or indices.max() >= len(self):
            raise DataError(f"store {self._store} has {len(self)} samples in {self.split!r}")
        shards = np.searchsorted(self._first, indices, side="right") - 1
        rows = indices - self._first[shards]
        order = np.argsort(shards, kind="stable")
        cuts = np.flatnonzero(np.diff(shards[order])) + 1
        parts = [(int(shards[part[0]]), part) for part in np.split(order, cuts)]
        return {name: self._read(name, rows, parts) for name in self.layouts}

    def _read(
        self, name: str, rows: NDArray[np.int64], parts: list[tuple[int, NDArray[np.int64]]]
    ) -> NDArray[Any]:
        stored = self._manifest.sensors[name]
        if stored.images == "encoded":
            return self._read_encoded(name, rows, parts)
        return self._read_pixels(name, stored, rows, parts)

    def contents(self) -> Contents:
        """The samples' pixels in the memory map, or the bytes of their pictures, as packed."""
        stored = self._manifest.sensors
        return Contents(
            kinds={
                name: "encoded" if one.images == "encoded" else "pixels"
                for name, one in stored.items()
            },
            of=self._content,
        )

    def _content(self, name: str, index: int) -> ArrayContent:
        shard = int(np.searchsorted(self._first, index, side="right")) - 1
        row, tensors = index - int(self._first[shard]), self._tensors(shard)
        if name in tensors:
            pixels, shape = tensors[name].array[row], self._manifest.sensors[name].shape
            if f"{name}.valid" in tensors and shape is not None:  # as `read` gives it alone
                [valid] = unpack_bits(tensors[f"{name}.valid"].array[row : row + 1], shape)
                pixels = mark_invalid(pixels, valid, self.layouts[name])
            return ArrayContent(pixels)
        return ArrayContent(self._encoded(name, shard, row))

    def place(self, index: int) -> Place:
        """Where and when a sample was taken, as far as its source knew."""
        row = self._table.slice(index, 1).to_pylist()[0]
        bounds = tuple(row[side] for side in ("west", "south", "east", "north"))
        known = all(value is not None for value in bounds)
        return Place(bounds=bounds if known else None, datetime=row["datetime"])

    def _check_size(self) -> None:
        packed, wanted = self._manifest.image_size, describe_size(self._size)
        if "rgb" in self.layouts and packed is not None and wanted not in (None, packed):
            raise DataError(
                f"store {self._store} holds pictures of size {packed}, {wanted} is needed; "
                f"pack it again with --size {wanted}, or with --images encoded"
            )

    def _tensors(self, shard: int) -> dict[str, MappedTensor]:
        if shard not in self._maps:
            entry = self._shards[shard]
            expected: dict[str, tuple[str, tuple[int, ...]]] = {}
            optional: dict[str, tuple[str, tuple[int, ...]]] = {}
            for name, stored in self._manifest.sensors.items():
                if stored.shape is None or stored.dtype is None:
                    expected[f"{name}.bytes"] = ("uint8", (-1,))
                    expected[f"{name}.offsets"] = ("int64", (entry.num_samples + 1,))
                else:
                    expected[name] = (stored.dtype, (entry.num_samples, *stored.shape))
                    num_bytes = -(-math.prod(stored.shape) // 8)
                    optional[f"{name}.valid"] = ("uint8", (entry.num_samples, num_bytes))
            self._maps[shard] = map_shard(
                self._store / entry.file, expected, optional, probe=entry.probe
            )
        return self._maps[shard]

    def _read_pixels(
        self,
        name: str,
        stored: StoredSensor,
        rows: NDArray[np.int64],
        parts: list[tuple[int, NDArray[np.int64]]],
    ) -> NDArray[Any]:
        assert stored.shape is not None
        pixels = np.empty((len(rows), *stored.shape), stored.dtype)
        valid: NDArray[np.bool_] | None = None
        with self._fetching.batch() as ahead:
            for shard, part in parts if ahead else ():
                self._tensors(shard)[name].advise(rows[part])
            for shard, part in parts:
                tensors = self._tensors(shard)
                array = tensors[name].array
                for place in part.tolist():  # each number is copied once
                    pixels[place] = array[rows[place]]
                if f"{name}.valid" in tensors:
                    valid = np.ones(pixels.shape, dtype=np.bool_) if valid is None else valid
                    bits = tensors[f"{name}.valid"].array[rows[part]]
                    valid[part] = unpack_bits(bits, stored.shape)
        if valid is not None:
            pixels = mark_invalid(pixels, valid, self.layouts[name])
        size = self._resizing(name, stored)
        return pixels if size is None else np.stack([resize_rgb(one, size) for one in pixels])

    def _read_encoded(
        self, name: str, rows: NDArray[np.int64], parts: list[tuple[int, NDArray[np.int64]]]
    ) -> NDArray[Any]:
        pictures: dict[int, Picture] = {}
        names: dict[int, str] = {}
        for shard, part in parts:
            for position in part.tolist():
                row = int(rows[position])
                key = self.keys[int(self._first[shard]) + row]
                names[position] = f"{key} in {self._store}"
                content = self._encoded(name, shard, row).tobytes()
                pictures[position] = decode_rgb_bytes(content, names[position], self._size)
        order = range(len(rows))
        return stack_pixels([names[one] for one in order], [pictures[one] for one in order])

    def _encoded(self, name: str, shard: int, row: int) -> NDArray[np.uint8]:
        """The bytes of one picture file."""
        tensors = self._tensors(shard)
        content, offsets = tensors[f"{name}.bytes"].array, tensors[f"{name}.offsets"].array
        start, end = int(offsets[row]), int(offsets[row + 1])
        if not 0 <= start < end <= len(content):
            raise DataError(f"{self._store / self._shards[shard].file} has wrong offsets")
        return content[start:end]


def _opened(store: Path, split: str, size: Size | None, sensors: tuple[str, ...]) -> StoreSet:
    return StoreSet(store, split, size=size).only_sensors(sensors)


_COLUMNS: dict[str, pa.DataType] = {
    "key": pa.string(),
    "split": pa.string(),
    **dict.fromkeys(("west", "south", "east", "north"), pa.float64()),
    "datetime": pa.timestamp("us", tz="UTC"),
}
"""Of every table."""

_FIRST, _LAST = -62_135_596_800_000_000, 253_402_300_799_999_999
"""Microseconds of the first and last moments of the years 1 to 9999."""


def _read_table(store: Path, manifest: Manifest, split: str) -> pa.Table:
    """The rows of one split, in the order of its shards."""
    path = store / TABLE
    fields = dict(_COLUMNS)
    if manifest.labels is not None:
        fields["labels"] = pa.list_(pa.int32())
    if manifest.captions:
        fields["captions"] = pa.list_(pa.string())

    def check(found: Sequence[str]) -> None:
        if missing := [name for name in fields if name not in found]:
            raise KeyError(f"it has no column {', '.join(missing)}")

    try:
        table = read_columns(path, list(fields), check=check, room=partial(_room, store, manifest))
        table = table.filter(pc.equal(table["split"], split)).cast(pa.schema(fields))
    except (OSError, ValueError, KeyError, MemoryError, pa.ArrowException) as error:
        raise DataError(
            f"{path} is damaged or missing ({first_line(error)}); delete it and pack again"
        ) from error
    times = pc.min_max(table["datetime"].cast(pa.int64())).as_py()
    bounds = [table[side] for side in ("west", "south", "east", "north")]
    if not (_FIRST <= (times["min"] or 0) <= (times["max"] or 0) <= _LAST) or not all(
        pc.all(pc.is_finite(one)).as_py() in (True, None) for one in bounds
    ):
        raise DataError(f"{path} is damaged: it has times or bounds that nothing has; pack again")
    for name in {"key", "labels", "captions"}.intersection(fields):
        if table[name].null_count:
            raise DataError(f"{path} is damaged: column {name!r} has empty entries")
    if len(table) != manifest.splits[split]:
        raise DataError(
            f"{path} has {len(table)} samples of {split!r}, the manifest {manifest.splits[split]}"
        )
    return table


def _room(store: Path, manifest: Manifest) -> int:
    """Bytes on disk of the shards: a table of many samples may take as much, but no more."""
    sizes: dict[tuple[int, int], int] = {}  # a file counts once, by whatever names
    for shard in manifest.shards:
        with suppress(OSError):
            status = os.stat(store / shard.file)
            size = min(status.st_size, 512 * status.st_blocks)  # the rest is a hole
            sizes[status.st_dev, status.st_ino] = size
    return sum(sizes.values())


def _labels(table: pa.Table, manifest: Manifest, store: Path) -> Labels | None:
    if manifest.labels is None:
        return None
    num_classes = len(manifest.labels.class_names)
    column = table["labels"].combine_chunks()
    counts = column.value_lengths().to_numpy(zero_copy_only=False)
    flat = column.flatten()
    if flat.null_count:
        raise DataError(f"{store / TABLE} is damaged: column 'labels' has empty entries")
    values: NDArray[Any] = flat.to_numpy(zero_copy_only=False).astype(np.int64)
    if len(values) and not 0 <= values.min() <= values.max() < num_classes:
        raise DataError(f"{store / TABLE} has labels outside its {num_classes} classes")
    if manifest.labels.multi_label:
        num_values = len(table) * num_classes
        if num_values > limit("label_values") and num_values > _room(store, manifest):
            require("label_values", num_values, f"{store / TABLE} has", todo="split it")
        hot = np.zeros((len(table), num_classes), dtype=bool)
        hot[np.repeat(np.arange(len(table)), counts), values] = True
        values = hot
    elif (counts != 1).any():
        raise DataError(f"{store / TABLE} is damaged: a sample has no label, or several")
    return Labels(
        values=values,
        class_names=manifest.labels.class_names,
        class_list=manifest.labels.class_list,
    )
