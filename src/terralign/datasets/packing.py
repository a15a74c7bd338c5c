"""Packing a data set by its name: which of its splits exist, and how they are opened."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from terralign.datasets.catalog import find_dataset, open_dataset
from terralign.datasets.sample import SampleSet
from terralign.datasets.store import Packed, PackSettings, StoreSet, pack
from terralign.datasets.store.writing import hash_samples
from terralign.errors import DataError, SplitError
from terralign.files import name_of_folder
from terralign.scenes.pictures import Size, as_picture_size, describe_size

logger = logging.getLogger(__name__)


def pack_dataset(
    name: str,
    store: Path,
    *,
    data_root: Path | None,
    splits: Sequence[str] = (),
    settings: PackSettings | None = None,
    num_workers: int | None = None,
) -> Packed:
    """Pack the data set `name` of the catalog, or of a TOML file, into the folder `store`.

    `splits`: each must exist; left out, every split of the catalog that exists but `all` and those
    that overlap others; missing ones are named. Raises as `pack` and `open_dataset` do.
    """
    settings = settings or PackSettings()
    facts = find_dataset(name).facts
    if splits:
        names = list(splits)
    elif not facts.has_splits:
        names = ["all"]
    else:
        others = {"all", *facts.alternative_splits}
        names = [one for one in facts.splits if one not in others] or list(facts.splits)
    opened: dict[str, SampleSet] = {}
    for split in names:
        try:
            opened[split] = open_dataset(
                name, data_root=data_root, split=split, size=settings.size, to_pack=True
            )
        except SplitError as error:
            if splits or (split == names[-1] and not opened):
                raise
            logger.warning("split %r is not packed: %s", split, error)
    return pack(opened, store, settings, has_splits=facts.has_splits, num_workers=num_workers)


def pack_on_use(samples: SampleSet, stores: Path, *, size: Size | None) -> StoreSet:
    """A split from its packed store below `stores`, which is made on first use.

    `size`: that at which the split was opened, for pictures; those that came in their own size keep
    it. A store is named by the hash of its data, so that other data never meets it.
    """
    try:
        name = name_of_folder(f"{samples.name}-{samples.split}-{hash_samples(samples)[:8]}")
    except ValueError as error:
        raise DataError(f"{error}; give the data set or its split another name") from error
    store = stores / name
    if size is not None:
        first = samples.read(np.zeros(1, dtype=np.int64))
        side = as_picture_size(size).side
        resized = "rgb" in first and first["rgb"].shape[2:] == (side, side)
        size = size if resized else None
    pack({samples.split: samples}, store, PackSettings(size=describe_size(size)), wait=True)
    return StoreSet(store, samples.split, size=size)
