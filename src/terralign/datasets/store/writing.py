"""Packing a data set: decoded once, into shards that are memory-mapped from then on.

Shards are made in parallel, each written beside and renamed. Whatever stops the work, the same call
makes the shards that are missing, and the store is the same, byte for byte. See `files` for the
format.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import itertools
import json
import logging
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import shapely
from numpy.typing import NDArray
from safetensors.numpy import save_file

from terralign.datasets.file_set import FileSet
from terralign.datasets.fingerprint import file_sizes
from terralign.datasets.sample import NOWHERE, Located, SampleSet
from terralign.datasets.store.files import (
    MANIFEST,
    SHARD_ENTRY_BYTES,
    TABLE,
    Images,
    Manifest,
    StoredFile,
    StoredLabels,
    StoredSensor,
    StoredShard,
    describe_stored,
    is_store,
    probe_file,
    read_manifest,
)
from terralign.datasets.store.shards import Shard, plan_shards, read_encoded, read_pixels
from terralign.errors import DataError, counted
from terralign.files import (
    atomic_path,
    check_free_space,
    claimed,
    hash_file,
    hash_json,
    read_json,
    write_json,
)
from terralign.limits import require
from terralign.progress import Progress
from terralign.read_ahead import read_ahead
from terralign.scenes.pictures import as_picture_size
from terralign.scenes.places import Bounds

logger = logging.getLogger(__name__)

PLAN, PARTS = ".pack.json", ".parts"
SHARD_BYTES = 256 * 2**20

Part = dict[str, Any]
"""What was noted of a shard: `kept` and `skipped` samples, `places`, `num_bytes`, `sha256` and
`probe`."""


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
    """A finished store. `complete_before`: there was nothing to do."""

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
    wait: bool = False,
) -> Packed:
    """Pack splits of one data set into the folder `store`, or resume where an earlier call stopped.

    Shards of a finished store that are missing or cut short are made again, all files where its
    table is; a complete store is only checked, so that several processes may do so at once.

    `has_splits`: False for a data set whose split names all mean the whole. `num_workers`: threads
    that read and write; None takes one per CPU. `wait`: for another process that packs into the
    folder, instead of a `StorageError`. Raises `DataError` naming a sample that cannot be read, or
    a folder that holds something else, and `StorageError` where the disk is too small.
    """
    work = _Packing(dict(splits), Path(store), settings or PackSettings(), has_splits)
    manifest = work.find_complete()
    if manifest is not None:
        return Packed(store=work.store, manifest=manifest, complete_before=True)
    with claimed(work.store, wait=wait):
        manifest = work.find_complete()  # by another process, meanwhile
        made = manifest or work.make(num_workers or len(os.sched_getaffinity(0)))
    return Packed(store=work.store, manifest=made, complete_before=manifest is not None)


class _Packing:
    """One store in the making."""

    def __init__(
        self, splits: dict[str, SampleSet], store: Path, settings: PackSettings, has_splits: bool
    ) -> None:
        if not splits or not all(len(samples) for samples in splits.values()):
            raise DataError("there is nothing to pack: name at least one split with samples")
        self.splits, self.store = splits, store
        self.settings, self.has_splits = settings, has_splits
        self.first = first = next(iter(splits.values()))
        for samples in splits.values():
            if samples.layouts != first.layouts or _label_names(samples) != _label_names(first):
                raise DataError(
                    f"splits {first.split!r} and {samples.split!r} of {first.name!r} differ in "
                    "their sensors or classes; pack them into separate stores"
                )
        _warn_of_shared_samples(splits)
        self.identity: dict[str, Any] = {
            "source": {split: hash_samples(samples) for split, samples in splits.items()},
            "packing": asdict(settings),
        }
        self.encoded: dict[str, tuple[Path, ...]] = {}
        if settings.images == "encoded":
            if settings.size is not None:
                raise DataError(
                    "encoded pictures keep their own size, so size has no effect: they are resized "
                    "when they are read; leave it out"
                )
            self.encoded = {split: _picture_files(samples) for split, samples in splits.items()}
        self.sensors = self._describe_sensors()
        self._check_size()

    # The folder

    def find_complete(self) -> Manifest | None:
        """The manifest of a store that is complete, and of the same data and settings."""
        manifest = self._find_store()
        return None if manifest is None or self._broken(manifest) else manifest

    def _find_store(self) -> Manifest | None:
        """The manifest of a finished store; `DataError` where it is of other data or settings."""
        if not is_store(self.store):
            return None
        manifest = read_manifest(self.store)
        kept = manifest.model_dump(include={"source", "packing"})
        fault = _difference(kept, self.identity)
        if fault is None and manifest.num_skipped and not self.settings.skip_damaged:
            fault = f"the data without {manifest.num_skipped} damaged samples"
        if fault is not None:
            raise DataError(f"{self.store} holds {fault}; choose another folder")
        return manifest

    def _broken(self, manifest: Manifest) -> list[str]:
        """The files of a finished store that are missing or cut short."""
        files = (manifest.table, *manifest.shards)
        return [one.file for one in files if not self._is_whole(one)]

    def _is_whole(self, file: StoredFile) -> bool:
        path = self.store / file.file
        return path.is_file() and path.stat().st_size == file.num_bytes

    def make(self, num_workers: int) -> Manifest:
        """Make the store, or what it lacks; the folder is this process's alone."""
        manifest = self._find_store()
        broken = [] if manifest is None else self._broken(manifest)
        if broken:
            logger.warning(
                "%s: %s missing or cut short, such as %s: made again",
                self.store, counted(len(broken), "file"), broken[0],
            )  # fmt: skip
        if manifest is not None and TABLE not in broken:
            self._mend(manifest, broken, num_workers)
            return manifest
        self._begin()
        return self._run(num_workers)

    def _begin(self) -> None:
        """Claim an empty folder for this work, or check that it is this work's."""
        plan, manifest = self.store / PLAN, self.store / MANIFEST
        if manifest.is_file():  # of a store without its table
            write_json(plan, self.identity)
            manifest.unlink()
        if plan.is_file():
            fault = _difference(read_json(plan), self.identity)
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
        self._check_manifest()
        check_free_space(self.store, sum(map(sum, self._sizes().values())))
        write_json(plan, self.identity)

    def _check_manifest(self) -> None:
        """`DataError` where so many shards are planned that the store could not be opened."""
        shards = plan_shards(self._sizes(), self.settings.shard_bytes)
        num_bytes = sum(SHARD_ENTRY_BYTES + len(shard.split) for shard in shards)
        require(
            "manifest_bytes",
            num_bytes,
            f"{self.store} would hold {len(shards):,} shards, whose list has",
            todo="pack in larger shards (--shard-mb), or splits into stores of their own",
        )

    def _run(self, num_workers: int) -> Manifest:
        shards = plan_shards(self._sizes(), self.settings.shard_bytes)
        parts = {shard.number: self._finished(shard) for shard in shards}
        todo = [shard for shard in shards if parts[shard.number] is None]
        for shard, part in self._make_shards(todo, num_workers, of=shards):
            parts[shard.number] = part
        manifest = self._finish([(shard, parts[shard.number] or {}) for shard in shards])
        shutil.rmtree(self.store / PARTS)
        (self.store / PLAN).unlink()
        return manifest

    def _mend(self, manifest: Manifest, broken: Sequence[str], num_workers: int) -> None:
        """Make shards of a finished store again."""
        written = {one.file: one.sha256 for one in manifest.shards}
        shards = plan_shards(self._sizes(), self.settings.shard_bytes)
        todo = [shard for shard in shards if shard.file in broken]
        for shard, part in self._make_shards(todo, num_workers, of=todo):
            if part["sha256"] != written[shard.file]:
                raise DataError(
                    f"{self.store / shard.file} was made again and differs from before: its source "
                    "has changed; pack into another folder"
                )
        shutil.rmtree(self.store / PARTS, ignore_errors=True)

    def _make_shards(
        self, todo: Sequence[Shard], num_workers: int, *, of: Sequence[Shard]
    ) -> Iterator[tuple[Shard, Part]]:
        """Make shards in parallel; progress counts the samples `of` all that are wanted."""
        total = sum(shard.end - shard.start for shard in of)
        done = total - sum(shard.end - shard.start for shard in todo)
        with Progress(f"pack {self.first.name}", total=total, done=done, unit="sample") as progress:
            made = read_ahead(self._make_shard, todo, depth=num_workers, num_threads=num_workers)
            for shard, part in zip(todo, made, strict=True):
                yield shard, part
                progress.advance(shard.end - shard.start)

    # Planning

    def _describe_sensors(self) -> dict[str, StoredSensor]:
        if self.encoded:
            layout = self.first.layouts["rgb"]
            return {"rgb": describe_stored(layout, images="encoded", pixels=None)}
        pixels = self._probe()
        for name in self.first.layouts:
            if np.issubdtype(pixels[name].dtype, np.floating) and np.isnan(pixels[name]).any():
                pixels[name] = self._of_whole_numbers(name, pixels[name])
        return {
            name: describe_stored(layout, images="pixels", pixels=pixels[name])
            for name, layout in self.first.layouts.items()
        }

    def _probe(self) -> dict[str, NDArray[Any]]:
        """The first sample that can be read."""
        samples = self.first
        for index in range(len(samples)):
            try:
                return samples.read(np.array([index], dtype=np.int64))
            except DataError:
                if not self.settings.skip_damaged:
                    raise
        raise DataError(f"no sample of {samples.name!r} {samples.split!r} can be read")

    def _of_whole_numbers(self, sensor: str, pixels: NDArray[Any]) -> NDArray[Any]:
        """The first pixels, or others in whole numbers: a sample of whole numbers that lacks data
        comes in floating point, which is not the type of the rest."""
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

    def _sizes(self) -> dict[str, list[int]]:
        """Split -> bytes of each sample."""
        if self.encoded:
            return {
                split: file_sizes(files, named_by="the data set")
                for split, files in self.encoded.items()
            }
        num_bytes = sum(
            int(np.prod(one.shape)) * np.dtype(one.dtype).itemsize
            for one in self.sensors.values()
            if one.shape is not None
        )
        return {split: [num_bytes] * len(samples) for split, samples in self.splits.items()}

    # One shard

    def _part_path(self, shard: Shard) -> Path:
        return self.store / PARTS / f"{shard.number:05d}.json"

    def _finished(self, shard: Shard) -> Part | None:
        """What an earlier call noted of a shard that it finished; None where it did not."""
        path = self._part_path(shard)
        if not path.is_file():
            return None
        part: Part = read_json(path)
        file = self.store / shard.file
        whole = not part["kept"] or (file.is_file() and file.stat().st_size == part["num_bytes"])
        return part if whole and (self.settings.skip_damaged or not part["skipped"]) else None

    def _make_shard(self, shard: Shard) -> Part:
        samples, skip = self.splits[shard.split], self.settings.skip_damaged
        if self.encoded:
            content = read_encoded(samples, shard, self.encoded[shard.split], skip=skip)
        else:
            content = read_pixels(samples, shard, self.sensors, skip=skip)
        kept = content.kept
        part: Part = {"kept": kept, "skipped": content.skipped, "num_bytes": 0, "sha256": ""}
        if kept:
            path = self.store / shard.file
            with atomic_path(path, alone=True) as partial_path:
                save_file(content.tensors, partial_path)
            part |= {
                "num_bytes": path.stat().st_size,
                "sha256": hash_file(path),
                "probe": probe_file(path),
            }
        places = [samples.place(i) if isinstance(samples, Located) else NOWHERE for i in kept]
        part["places"] = [
            [list(one.bounds) if one.bounds else None, one.datetime and one.datetime.isoformat()]
            for one in places
        ]
        write_json(self._part_path(shard), part)
        return part

    # The end

    def _finish(self, parts: Sequence[tuple[Shard, Part]]) -> Manifest:
        """Write the table, then the manifest, with which the store is complete."""
        first, settings = self.first, self.settings
        shards = tuple(
            StoredShard(
                file=shard.file,
                num_bytes=part["num_bytes"],
                sha256=part["sha256"],
                split=shard.split,
                num_samples=len(part["kept"]),
                probe=part.get("probe", ""),
            )
            for shard, part in parts
            if part["kept"]
        )
        skipped = [entry for _, part in parts for entry in part["skipped"]]
        for key, reason in skipped:
            logger.warning("left out %s: %s", key, reason)
        path = self.store / TABLE
        with atomic_path(path) as partial_path:
            pq.write_table(_sample_table(self.splits, parts), partial_path, compression="zstd")
        labels = first.labels
        manifest = Manifest(
            name=first.name,
            sensors=self.sensors,
            splits={
                split: sum(one.num_samples for one in shards if one.split == split)
                for split in self.splits
            },
            has_splits=self.has_splits,
            labels=None
            if labels is None
            else StoredLabels(
                class_names=labels.class_names,
                class_list=labels.class_list,
                multi_label=labels.multi_label,
            ),
            captions=first.captions is not None,
            prompts=first.prompts,
            image_size=settings.size if settings.images == "pixels" else None,
            num_skipped=len(skipped),
            source=self.identity["source"],
            packing=asdict(settings),
            table=StoredFile(file=TABLE, num_bytes=path.stat().st_size, sha256=hash_file(path)),
            shards=shards,
        )
        sealed = manifest.model_copy(update={"checksum": manifest.hash_of_rest()})
        write_json(self.store / MANIFEST, sealed.model_dump(mode="json"))
        return sealed


# Identity


def hash_samples(samples: SampleSet) -> str:
    """Name of all that a store keeps of a split: its fingerprint, and what its samples carry.

    A fingerprint stands for samples and pixels. Classes may be renamed, labels corrected and
    prompts rewritten while those stay.
    """
    labels = samples.labels
    return hash_json(
        {
            "fingerprint": samples.fingerprint,
            "labels": labels
            and [
                list(labels.class_names),
                labels.class_list,
                labels.multi_label,
                hashlib.sha256(labels.values.tobytes()).hexdigest(),
            ],
            "captions": samples.captions,
            "prompts": samples.prompts,
        }
    )


def _difference(kept: Mapping[str, Any], wanted: Mapping[str, Any]) -> str | None:
    """What differs between two identities, in words; None where one can resume the other.

    Whether damaged samples are left out makes no difference to shards in which none are.
    """
    for part in ("source", "packing"):
        for key in {**kept.get(part, {}), **wanted[part]}:
            one, other = kept.get(part, {}).get(key), wanted[part].get(key)
            if one != other and key != "skip_damaged":
                what = f"split {key!r}" if part == "source" else key
                return (
                    f"other data or settings ({what}: {json.dumps(one)}, not {json.dumps(other)})"
                )
    return None


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


def _warn_of_shared_samples(splits: Mapping[str, SampleSet]) -> None:
    for one, other in itertools.combinations(splits, 2):
        shared = set(splits[one].keys) & set(splits[other].keys)
        if shared:
            logger.warning(
                "splits %r and %r share %d keys (such as %s): what is trained on one may not be "
                "measured on the other", one, other, len(shared), min(shared),
            )  # fmt: skip


# The table


def _sample_table(splits: Mapping[str, SampleSet], parts: Sequence[tuple[Shard, Part]]) -> pa.Table:
    """One row per sample, in the order of the shards.

    Columns: key, split, labels (class indices), captions, west, south, east, north (degrees,
    WGS84; west is greater than east across the antimeridian), datetime (UTC), and geometry
    (GeoParquet 1.1, the footprint's bounds, see `footprint`) where any is known.
    """
    rows = [(splits[shard.split], index) for shard, part in parts for index in part["kept"]]
    names = [shard.split for shard, part in parts for _ in part["kept"]]
    places = [place for _, part in parts for place in part["places"]]
    columns: dict[str, pa.Array] = {
        "key": pa.array([samples.keys[index] for samples, index in rows], pa.string()),
        "split": pa.array(names, pa.string()).dictionary_encode(),
    }
    first = next(iter(splits.values()))
    if first.labels is not None:
        labels = [_labels_of(samples, index) for samples, index in rows]
        columns["labels"] = pa.array(labels, pa.list_(pa.int32()))
    if first.captions is not None:
        captions = [list((samples.captions or ())[index]) for samples, index in rows]
        columns["captions"] = pa.array(captions, pa.list_(pa.string()))
    for position, side in enumerate(("west", "south", "east", "north")):
        columns[side] = pa.array([box and box[position] for box, _ in places], pa.float64())
    times = [when and _as_utc(dt.datetime.fromisoformat(when)) for _, when in places]
    columns["datetime"] = pa.array(times, pa.timestamp("us", tz="UTC"))
    shapes = [box and footprint(tuple(box)) for box, _ in places]
    if not any(shapes):
        return pa.table(columns)
    geometries = [shape and shapely.to_wkb(shape) for shape in shapes]
    columns["geometry"] = pa.array(geometries, pa.binary())
    kinds = sorted({shape.geom_type for shape in shapes if shape is not None})
    geo = {  # without a crs it is longitude and latitude of WGS84
        "version": "1.1.0",
        "primary_column": "geometry",
        "columns": {"geometry": {"encoding": "WKB", "geometry_types": kinds}},
    }
    return pa.table(columns).replace_schema_metadata({"geo": json.dumps(geo)})


def footprint(bounds: Bounds) -> shapely.Geometry:
    """The box of WGS84 bounds; cut in two at the antimeridian where west is greater than east."""
    west, south, east, north = bounds
    if west <= east:
        return shapely.box(west, south, east, north)
    parts = [(west, south, 180.0, north), (-180.0, south, east, north)]
    return shapely.MultiPolygon([shapely.box(*part) for part in parts])


def _labels_of(samples: SampleSet, index: int) -> list[int]:
    assert samples.labels is not None
    values = samples.labels.values[index]
    found: list[int] = np.flatnonzero(values).tolist() if values.ndim else [int(values)]
    return found


def _as_utc(time: dt.datetime) -> dt.datetime:
    return time.replace(tzinfo=dt.UTC) if time.tzinfo is None else time.astimezone(dt.UTC)
