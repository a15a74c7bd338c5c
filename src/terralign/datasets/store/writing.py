"""Packing a data set: decoded once, into shards that are memory-mapped from then on.

Shards are made in parallel, each written beside and renamed. Whatever stops the work, the same call
goes on with the shards that are missing, and the store is the same, byte for byte. See
`files` for the format.
"""

from __future__ import annotations

import itertools
import logging
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

from terralign.datasets.batches import read_ahead
from terralign.datasets.file_set import FileSet
from terralign.datasets.sample import NOWHERE, Located, SampleSet
from terralign.datasets.store.files import (
    SHARDS,
    TABLE,
    Images,
    Manifest,
    StoredFile,
    StoredSensor,
    describe_stored,
    is_store,
    read_manifest,
)
from terralign.datasets.store.finish import finish_store
from terralign.datasets.store.identity import difference, identity_of
from terralign.datasets.store.shards import Shard, plan_shards, read_encoded, read_pixels
from terralign.errors import DataError
from terralign.files import (
    atomic_path,
    check_free_space,
    claimed,
    hash_file,
    read_json,
    write_json,
)
from terralign.progress import Progress
from terralign.scenes.pictures import as_picture_size

logger = logging.getLogger(__name__)

PLAN, PARTS = ".pack.json", ".parts"
SHARD_BYTES = 256 * 2**20


@dataclass(frozen=True, kw_only=True, slots=True)
class PackSettings:
    """What a store's bytes depend on beside its data.

    `shard_bytes`: about how large a shard becomes; each worker holds one in memory. `images`:
    pictures decoded ("pixels") or as the bytes of their files ("encoded"). `size`: that of
    pictures, as the data set was opened (`PictureSize.describe`). `skip_damaged`: leave out samples
    that cannot be read, counted and named, instead of stopping at the first.
    """

    shard_bytes: int = SHARD_BYTES
    images: Images = "pixels"
    size: int | str | None = None
    skip_damaged: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Packed:
    """A finished store. `complete_before`: nothing had to be done."""

    store: Path
    manifest: Manifest
    complete_before: bool


def pack(
    splits: Mapping[str, SampleSet],
    store: Path,
    settings: PackSettings | None = None,
    *,
    has_splits: bool = True,
    num_workers: int | None = None,
) -> Packed:
    """Pack splits of one data set into the folder `store`, or go on where an earlier call stopped.

    Shards of a finished store that are missing or cut short are made anew; one that is whole is
    only looked at, so that several processes may do so at once.

    `has_splits`: False for a data set whose split names all mean the whole. `num_workers`: threads
    that read and write; None takes one per CPU. Raises `DataError` naming a sample that cannot be
    read, or a folder that holds something else, and `StorageError` where the disk is too small.
    """
    settings = settings or PackSettings()
    work = _Packing(dict(splits), Path(store), settings, has_splits)
    if is_store(work.store):
        manifest = work.require_same()
        if not work.broken(manifest):
            return Packed(store=work.store, manifest=manifest, complete_before=True)
    with claimed(work.store):
        workers = num_workers or len(os.sched_getaffinity(0))
        work.remove_partial_files()
        if is_store(work.store):
            manifest = work.require_same()
            mended = work.mend(manifest, workers)
            return Packed(store=work.store, manifest=manifest, complete_before=not mended)
        work.begin()
        return Packed(store=work.store, manifest=work.run(workers), complete_before=False)


class _Packing:
    """One store in the making."""

    def __init__(
        self, splits: dict[str, SampleSet], store: Path, settings: PackSettings, has_splits: bool
    ) -> None:
        if not splits or not all(len(samples) for samples in splits.values()):
            raise DataError("there is nothing to pack: name at least one split with samples")
        self.splits, self.store = splits, store
        self.settings, self.has_splits = settings, has_splits
        first = next(iter(splits.values()))
        for samples in splits.values():
            if samples.layouts != first.layouts or _label_names(samples) != _label_names(first):
                raise DataError(
                    f"splits {first.split!r} and {samples.split!r} of {first.name!r} differ in "
                    "their sensors or classes; pack them into stores of their own"
                )
        self.first, self._skip = first, settings.skip_damaged
        _warn_of_shared_samples(splits)
        self.identity = identity_of(splits, asdict(settings))
        if settings.images == "encoded":
            if settings.size is not None:
                raise DataError(
                    "encoded pictures keep their own size, so size has no effect: they are resized "
                    "when they are read; leave it out"
                )
            self.encoded = {split: _picture_files(samples) for split, samples in splits.items()}
        self.sensors = self._describe_sensors()
        self._check_size()

    def require_same(self) -> Manifest:
        """The manifest of the complete store, which must be of the same data and settings."""
        manifest = read_manifest(self.store)
        kept = manifest.model_dump(include={"source", "packing"})
        fault = difference(kept, self.identity)
        if fault is None and manifest.num_skipped and not self._skip:
            fault = f"the data without {manifest.num_skipped} damaged samples"
        if fault is not None:
            raise DataError(f"{self.store} holds {fault}; choose another folder")
        if not _is_there(self.store, manifest.table):
            raise DataError(
                f"{self.store / TABLE} is missing or cut short, and is only made with the whole "
                f"store; delete {self.store} and pack again"
            )
        return manifest

    def begin(self) -> None:
        """Claim an empty folder for this work, or check that it is this work's."""
        plan = self.store / PLAN
        if plan.is_file():
            fault = difference(read_json(plan), self.identity)
            if fault is not None:
                raise DataError(
                    f"{self.store} is a packing in progress of {fault}; "
                    "choose another folder, or delete this one"
                )
            return
        others = [one.name for one in self.store.iterdir() if not one.name.startswith(".")]
        if others:
            raise DataError(
                f"{self.store} holds other files ({', '.join(sorted(others)[:3])}) and no store; "
                "choose an empty folder"
            )
        check_free_space(self.store, self._num_bytes())
        write_json(plan, self.identity)

    def remove_partial_files(self) -> None:
        """Those that a killed process was writing, of which nobody else knows."""
        for folder in (self.store, self.store / SHARDS, self.store / PARTS):
            for path in folder.glob(".*.partial"):
                path.unlink()

    def broken(self, manifest: Manifest) -> list[Shard]:
        """The shards of a finished store that are missing or cut short."""
        broken = {one.file for one in manifest.shards if not _is_there(self.store, one)}
        return [one for one in self._plan_shards() if one.file in broken] if broken else []

    def mend(self, manifest: Manifest, num_workers: int) -> int:
        """Make the broken shards of a finished store anew; their number."""
        written = {one.file: one for one in manifest.shards}
        broken = self.broken(manifest)
        made = read_ahead(self._make_shard, broken, depth=num_workers, num_threads=num_workers)
        for shard, part in zip(broken, made, strict=True):
            logger.warning("made %s anew", shard.file)
            if part["sha256"] != written[shard.file].sha256:
                raise DataError(
                    f"{self.store / shard.file} was made anew and differs from before: its source "
                    "has changed; pack into another folder"
                )
        shutil.rmtree(self.store / PARTS, ignore_errors=True)
        return len(broken)

    def run(self, num_workers: int) -> Manifest:
        shards = self._plan_shards()
        parts = {shard.number: self._finished(shard) for shard in shards}
        todo = [shard for shard in shards if parts[shard.number] is None]
        total = sum(shard.end - shard.start for shard in shards)
        done = total - sum(shard.end - shard.start for shard in todo)
        with Progress(f"pack {self.first.name}", total=total, done=done, unit="sample") as progress:
            made = read_ahead(self._make_shard, todo, depth=num_workers, num_threads=num_workers)
            for shard, part in zip(todo, made, strict=True):
                parts[shard.number] = part
                progress.advance(shard.end - shard.start)
        finished = [(shard, parts[shard.number] or {}) for shard in shards]
        manifest = finish_store(
            self.store, self.splits, finished, sensors=self.sensors, settings=asdict(self.settings),
            source=self.identity["source"], has_splits=self.has_splits,
        )  # fmt: skip
        shutil.rmtree(self.store / PARTS)
        (self.store / PLAN).unlink()
        return manifest

    # Planning

    def _describe_sensors(self) -> dict[str, StoredSensor]:
        if self.settings.images == "encoded":
            layout = self.first.layouts["rgb"]
            return {"rgb": describe_stored(layout, images="encoded", pixels=None)}
        pixels = self._probe(self.first)
        for name in self.first.layouts:
            if np.issubdtype(pixels[name].dtype, np.floating) and np.isnan(pixels[name]).any():
                pixels[name] = self._of_whole_numbers(name, pixels[name])
        return {
            name: describe_stored(layout, images="pixels", pixels=pixels[name])
            for name, layout in self.first.layouts.items()
        }

    def _of_whole_numbers(self, sensor: str, pixels: NDArray[Any]) -> NDArray[Any]:
        """The first pixels, or others in whole numbers: a sample of whole numbers that lacks data
        comes in floating point, and says nothing of the type of the rest."""
        for index in np.linspace(0, len(self.first) - 1, 16).astype(np.int64):
            try:
                other = self.first.read(index.reshape(1))[sensor]
            except DataError:
                continue
            if np.issubdtype(other.dtype, np.integer):
                return other
        return pixels

    def _check_size(self) -> None:
        size, stored = self.settings.size, self.sensors.get("rgb")
        side = 0 if size is None else as_picture_size(size).side
        if size is not None and (stored is None or stored.shape != (3, side, side)):
            raise DataError(
                f"size {size} has no effect on {self.first.name!r}: only pictures in files of "
                "their own, or in tars, are resized; leave it out"
            )

    def _probe(self, samples: SampleSet) -> dict[str, NDArray[Any]]:
        """The first sample that can be read."""
        for index in range(len(samples)):
            try:
                return samples.read(np.array([index], dtype=np.int64))
            except DataError:
                if not self._skip:
                    raise
        raise DataError(f"no sample of {samples.name!r} {samples.split!r} can be read")

    def _sample_bytes(self) -> int:
        return sum(
            int(np.prod(one.shape)) * np.dtype(one.dtype).itemsize
            for one in self.sensors.values()
            if one.shape is not None and one.dtype is not None
        )

    def _num_bytes(self) -> int:
        if self.settings.images == "encoded":
            return sum(_size_of(path) for files in self.encoded.values() for path in files)
        return self._sample_bytes() * sum(len(samples) for samples in self.splits.values())

    def _plan_shards(self) -> list[Shard]:
        sizes = {
            split: [_size_of(path) for path in self.encoded[split]]
            if self.settings.images == "encoded"
            else [self._sample_bytes()] * len(samples)
            for split, samples in self.splits.items()
        }
        return plan_shards(sizes, self.settings.shard_bytes)

    # One shard

    def _part_path(self, shard: Shard) -> Path:
        return self.store / PARTS / f"{shard.number:05d}.json"

    def _finished(self, shard: Shard) -> dict[str, Any] | None:
        """What an earlier call noted of a shard that it finished; None where it did not."""
        path = self._part_path(shard)
        if not path.is_file():
            return None
        part: dict[str, Any] = read_json(path)
        file = self.store / shard.file
        whole = not part["kept"] or (file.is_file() and file.stat().st_size == part["num_bytes"])
        return part if whole and (self._skip or not part["skipped"]) else None

    def _make_shard(self, shard: Shard) -> dict[str, Any]:
        samples = self.splits[shard.split]
        if self.settings.images == "encoded":
            content = read_encoded(samples, shard, self.encoded[shard.split], skip=self._skip)
        else:
            content = read_pixels(samples, shard, self.sensors, skip=self._skip)
        kept = content.kept
        part = {"kept": kept, "skipped": content.skipped, "num_bytes": 0, "sha256": ""}
        if kept:
            path = self.store / shard.file
            with atomic_path(path) as partial_path:
                save_file(content.tensors, partial_path)
            part |= {"num_bytes": path.stat().st_size, "sha256": hash_file(path)}
        places = [samples.place(i) if isinstance(samples, Located) else NOWHERE for i in kept]
        part["places"] = [
            [list(one.bounds) if one.bounds else None, one.datetime and one.datetime.isoformat()]
            for one in places
        ]
        write_json(self._part_path(shard), part)
        return part


def _warn_of_shared_samples(splits: Mapping[str, SampleSet]) -> None:
    for one, other in itertools.combinations(splits, 2):
        shared = set(splits[one].keys) & set(splits[other].keys)
        if shared:
            logger.warning(
                "splits %r and %r share %d keys (such as %s): what is trained on one may not be "
                "measured on the other", one, other, len(shared), min(shared),
            )  # fmt: skip


def _label_names(samples: SampleSet) -> object:
    labels = samples.labels
    kind = labels and (labels.class_names, labels.class_list, labels.multi_label)
    return kind, samples.captions is not None, samples.prompts


def _picture_files(samples: SampleSet) -> tuple[Path, ...]:
    if not isinstance(samples, FileSet) or set(samples.layouts) != {"rgb"}:
        raise DataError(
            f"{samples.name!r} is not made of JPEG or PNG files alone; pack it with --images pixels"
        )
    return samples.files


def _is_there(store: Path, file: StoredFile) -> bool:
    path = store / file.file
    return path.is_file() and path.stat().st_size == file.num_bytes


def _size_of(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError as error:
        raise DataError(f"{path} is not there") from error
