"""The data sets by name, and the one way to open any of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from terralign.datasets.checked import check_samples
from terralign.datasets.declared import declared_facts, open_declared, read_declaration
from terralign.datasets.facts import (
    DatasetFacts,
    check_name,
    needs_root,
    read_facts,
)
from terralign.datasets.facts import check_data_root as check_data_root
from terralign.datasets.published.arrays import open_s2_l2a
from terralign.datasets.published.bigearthnet import open_bigearthnet_mini
from terralign.datasets.published.bigearthnet_v1 import open_bigearthnet_v1
from terralign.datasets.published.bigearthnet_v2 import open_bigearthnet_v2
from terralign.datasets.published.captioned import open_captioned
from terralign.datasets.published.majortom import open_majortom_s2l2a
from terralign.datasets.published.photos import open_cifar, open_imagenet, open_tiny_imagenet
from terralign.datasets.published.scene_classes import open_scene_classes
from terralign.datasets.published.sen12ms import open_sen12ms
from terralign.datasets.published.ssl4eo import open_ssl4eo_s12
from terralign.datasets.sample import WHOLE_SPLITS, SampleSet, Subset
from terralign.datasets.store import StoreSet, is_store, read_manifest
from terralign.datasets.synthetic import open_synthetic_photos, open_synthetic_scenes
from terralign.errors import DataError, TerralignError
from terralign.scenes.pictures import Size, as_picture_size
from terralign.scenes.plausible import NUM_CHECKED

Open = Callable[[Path, str, Size | None], SampleSet]
"""(data root, split, picture size or None) -> the split."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DatasetEntry:
    """A data set by name: what is known of it before it is opened, and how to open it.

    `in_order`: it can only be read from start to end, to be packed.
    """

    facts: DatasetFacts
    open: Open
    in_order: bool = False


def _pictures(open_one: Callable[..., SampleSet], *name: str) -> Open:
    """Opens RGB pictures at a size."""
    return lambda root, split, size: open_one(*name, root, split, size=size)


def _rasters(open_one: Callable[..., SampleSet], **options: Any) -> Open:
    """Opens samples that keep their size."""
    return lambda root, split, size: open_one(root, split, **options)


DATASETS: dict[str, Open] = {
    # Scenes in class folders
    "eurosat-rgb": _pictures(open_scene_classes, "eurosat-rgb"),
    "eurosat-ms": lambda root, split, size: open_scene_classes("eurosat-ms", root, split),
    "aid": _pictures(open_scene_classes, "aid"),
    "resisc45": _pictures(open_scene_classes, "resisc45"),
    "ucmerced": _pictures(open_scene_classes, "ucmerced"),
    "patternnet": _pictures(open_scene_classes, "patternnet"),
    # RGB scenes with captions
    "rsicd": _pictures(open_captioned, "rsicd"),
    "rsitmd": _pictures(open_captioned, "rsitmd"),
    "ucm-captions": _pictures(open_captioned, "ucm-captions"),
    # Photos: supported tasks
    "tiny-imagenet": _pictures(open_tiny_imagenet),
    "imagenet": _pictures(open_imagenet),
    "cifar10": _pictures(open_cifar, "cifar10"),
    "cifar100": _pictures(open_cifar, "cifar100"),
    # BigEarthNet
    "bigearthnet-mini": _rasters(open_bigearthnet_mini),
    "bigearthnet-mini-43": _rasters(open_bigearthnet_mini, num_classes=43),
    "bigearthnet-mini-5": _rasters(open_bigearthnet_mini, num_classes=5),
    "bigearthnet-19": _rasters(open_bigearthnet_v1),
    "bigearthnet-43": _rasters(open_bigearthnet_v1, num_classes=43),
    "bigearthnet-5": _rasters(open_bigearthnet_v1, num_classes=5),
    "bigearthnet-mm-19": _rasters(open_bigearthnet_v1, radar=True),
    "bigearthnet-mm-43": _rasters(open_bigearthnet_v1, num_classes=43, radar=True),
    "bigearthnet-mm-5": _rasters(open_bigearthnet_v1, num_classes=5, radar=True),
    "bigearthnet-v2-19": _rasters(open_bigearthnet_v2),
    "bigearthnet-v2-5": _rasters(open_bigearthnet_v2, num_classes=5),
    "bigearthnet-v2-mm-19": _rasters(open_bigearthnet_v2, radar=True),
    "bigearthnet-v2-mm-5": _rasters(open_bigearthnet_v2, num_classes=5, radar=True),
    # SEN12MS
    "sen12ms": _rasters(open_sen12ms),
    "sen12ms-single": _rasters(open_sen12ms, multi_label=False),
    # Sentinel-1 and -2 without labels
    "s2-l2a": _rasters(open_s2_l2a),
    "ssl4eo-s12": _rasters(open_ssl4eo_s12),
    "ssl4eo-s12-l2a": _rasters(open_ssl4eo_s12, sensors=("sentinel2-l2a",)),
    "ssl4eo-s12-l1c": _rasters(open_ssl4eo_s12, sensors=("sentinel2-l1c",)),
    "majortom-core-s2l2a": _rasters(open_majortom_s2l2a),
    "majortom-core-s2l2a-known": _rasters(open_majortom_s2l2a, leave_out_unknown=True),
    # The synthetic world
    "synthetic-photos": lambda root, split, size: open_synthetic_photos(
        split, size=as_picture_size(size or 32).side
    ),
    "synthetic-scenes": lambda root, split, size: open_synthetic_scenes(split),
    "synthetic-scenes-multilabel": lambda root, split, size: open_synthetic_scenes(
        split, multi_label=True
    ),
}
"""The data sets by name; `entries/*.toml` describes each. Any other is declared in a TOML file
(see `declared`)."""


def find_dataset(name_or_toml: str, *, data_root: Path | None = None) -> DatasetEntry:
    """The data set of this name, in this packed store, or declared in this TOML file.

    `data_root`: where the sensors of a declaration are looked for, after its own folder.
    `DataError`, with the nearest name, where none has it.
    """
    if name_or_toml in DATASETS:
        return DatasetEntry(facts=read_facts(name_or_toml), open=DATASETS[name_or_toml])
    if is_store(Path(name_or_toml)):
        return _find_store(Path(name_or_toml))
    if not name_or_toml.endswith(".toml"):
        check_name(name_or_toml, None)
        raise DataError(f"{name_or_toml} is neither a packed store nor a data set's .toml file")
    path = Path(name_or_toml)
    declaration = read_declaration(path)
    return DatasetEntry(
        facts=declared_facts(declaration, path, data_root),
        open=lambda root, split, size: open_declared(path, root, split, size=size),
        in_order=declaration.reader == "shards",
    )


def _find_store(store: Path) -> DatasetEntry:
    manifest = read_manifest(store)
    labels = manifest.labels
    kind: Literal["single", "multi", "captions", "none"]
    if labels is not None:
        kind = "multi" if labels.multi_label else "single"
    else:
        kind = "captions" if manifest.captions else "none"
    return DatasetEntry(
        facts=DatasetFacts(
            description=f"{manifest.name}, packed",
            sensors=tuple(manifest.sensors),
            labels=kind,
            class_list=labels.class_list if labels else None,
            splits=dict(manifest.splits)
            if manifest.has_splits
            else dict.fromkeys(WHOLE_SPLITS, sum(manifest.splits.values())),
            has_splits=manifest.has_splits,
            needs_root=False,
        ),
        open=lambda root, split, size: StoreSet(store, split, size=size),
    )


def cannot_open(faults: Mapping[str, TerralignError]) -> TerralignError:
    """One fault of several data sets (name -> what is wrong with it), which names them all."""
    if len(faults) == 1:
        ((name, fault),) = faults.items()
        text, hint = str(fault), f"`terralign info {name}`"
        return type(fault)(text if hint in text or name not in DATASETS else f"{text}; see {hint}")
    in_files = [name for name, fault in faults.items() if str(fault) == str(needs_root(name))]
    parts = [
        f"{name} ({fault}{f'; see `terralign info {name}`' if name in DATASETS else ''})"
        for name, fault in faults.items()
        if name not in in_files
    ]
    if in_files:
        commands = ", ".join(f"`terralign info {name}`" for name in in_files)
        hint = f"they lie in files: give the folder that holds them with data_root=; see {commands}"
        parts.insert(0, f"{', '.join(in_files)} ({hint})")
    return DataError(f"{len(faults)} data sets cannot be opened: {'; '.join(parts)}")


def open_dataset(
    name_or_toml: str,
    *,
    data_root: Path | None,
    split: str,
    size: Size | None = None,
    to_pack: bool = False,
) -> SampleSet:
    """Open one split of a data set.

    `data_root`: the folder that holds the data sets' own folders; the built-in synthetic ones need
    none. `size`: to what RGB image files are resized and cropped, as the side alone where CLIP's
    way is used (see `PictureSize`); None keeps their own size, which must then be the same for
    all. Other data sets keep theirs. `to_pack`: the samples are only packed.

    Raises `DataError`: an unknown name (with the nearest one), a data root that is missing, a
    split that is missing (with those that exist), a folder without a class or the reverse, numbers
    that cannot be what is declared of them (see `scenes.plausible`), tars that are not packed.
    """
    entry = find_dataset(name_or_toml, data_root=data_root)
    if entry.in_order and not to_pack:
        raise DataError(
            f"{name_or_toml} consists of tars, which must be packed first: run (`terralign pack "
            f"{name_or_toml} STORE`) and give STORE in its place, or set pack = true in the recipe"
        )
    if size is not None:
        size = as_picture_size(size)
    if not entry.facts.needs_root:  # a declaration's own folder: its list files may be elsewhere
        data_root = Path(data_root or Path(name_or_toml).parent)
    elif data_root is None:
        raise needs_root(name_or_toml)
    else:
        check_data_root(data_root)
    samples = entry.open(Path(data_root), split, size)
    some = Subset(samples, np.arange(min(NUM_CHECKED, len(samples)))) if entry.in_order else samples
    check_samples(some, opened_as=name_or_toml)
    return samples
