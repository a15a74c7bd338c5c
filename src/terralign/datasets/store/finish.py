"""The end of packing: the table of samples and the manifest, from what was noted of each shard."""

from __future__ import annotations

import datetime as dt
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from terralign.datasets.sample import Labels, Place, SampleSet
from terralign.datasets.store.files import (
    MANIFEST,
    TABLE,
    Manifest,
    StoredFile,
    StoredLabels,
    StoredSensor,
    StoredShard,
)
from terralign.datasets.store.shards import Shard
from terralign.datasets.store.table import sample_table
from terralign.files import atomic_path, hash_file, write_json

logger = logging.getLogger(__name__)

Part = dict[str, Any]
"""What was noted of a shard: `kept` and `skipped` samples, `places`, `num_bytes`, `sha256`."""


def finish_store(
    store: Path,
    splits: Mapping[str, SampleSet],
    parts: Sequence[tuple[Shard, Part]],
    *,
    sensors: dict[str, StoredSensor],
    settings: dict[str, Any],
    source: dict[str, str],
    has_splits: bool,
) -> Manifest:
    """Write the table, then the manifest, with which the store is complete."""
    first = next(iter(splits.values()))
    shards = tuple(
        StoredShard(
            file=shard.file,
            num_bytes=part["num_bytes"],
            sha256=part["sha256"],
            split=shard.split,
            num_samples=len(part["kept"]),
        )
        for shard, part in parts
        if part["kept"]
    )
    skipped = [entry for _, part in parts for entry in part["skipped"]]
    for key, reason in skipped:
        logger.warning("left out %s: %s", key, reason)
    path = store / TABLE
    with atomic_path(path) as partial_path:
        pq.write_table(_table(splits, parts), partial_path, compression="zstd")
    manifest = Manifest(
        name=first.name,
        sensors=sensors,
        splits={
            split: sum(one.num_samples for one in shards if one.split == split) for split in splits
        },
        has_splits=has_splits,
        labels=None if first.labels is None else _stored_labels(first.labels),
        captions=first.captions is not None,
        prompts=first.prompts,
        image_size=settings["size"] if settings["images"] == "pixels" else None,
        num_skipped=len(skipped),
        source=source,
        packing=settings,
        table=StoredFile(file=TABLE, num_bytes=path.stat().st_size, sha256=hash_file(path)),
        shards=shards,
    )
    sealed = manifest.model_copy(update={"checksum": manifest.hash_of_rest()})
    write_json(store / MANIFEST, sealed.model_dump(mode="json"))
    return sealed


def _stored_labels(labels: Labels) -> StoredLabels:
    return StoredLabels(
        class_names=labels.class_names,
        class_list=labels.class_list,
        multi_label=labels.multi_label,
    )


def _table(splits: Mapping[str, SampleSet], parts: Sequence[tuple[Shard, Part]]) -> pa.Table:
    rows = [(shard.split, index) for shard, part in parts for index in part["kept"]]
    places = [
        Place(
            bounds=bounds and tuple(bounds),
            datetime=dt.datetime.fromisoformat(when) if when else None,
        )
        for _, part in parts
        for bounds, when in part["places"]
    ]
    return sample_table(splits, rows, places)
