"""The data sets by name, and the one way to open any of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from terralign.datasets.arrays import open_s2_l2a
from terralign.datasets.bigearthnet import open_bigearthnet_mini, open_bigearthnet_v1
from terralign.datasets.declared import declared_sensor, open_declared, read_declaration
from terralign.datasets.eurosat import open_eurosat_ms, open_eurosat_rgb
from terralign.datasets.photos import WHOLE_SPLITS, open_aid, open_imagenet, open_tiny_imagenet
from terralign.datasets.sample import SampleSet
from terralign.datasets.synthetic import open_synthetic_photos, open_synthetic_scenes
from terralign.errors import DataError, nearest

Open = Callable[[Path, str, int | None], SampleSet]
"""(data root, split, size of RGB images or None) -> the split."""

SPLITS = ("train", "val", "test")
S2, S1 = "sentinel2-l2a", "sentinel1-grd"


@dataclass(frozen=True, kw_only=True, slots=True)
class DatasetEntry:
    """What is known of a data set before it is opened.

    `splits`: those that its layout may have; a data root need not hold all of them.
    `has_splits`: False where every split name gives the whole set, so that training and
    validating on it would use the same samples. `class_list`: None where it has no labels.
    `prompts`: the prompt set that suits it. `needs_root`: whether it lies in files.
    """

    description: str
    open: Open
    sensors: tuple[str, ...]
    class_list: str | None
    splits: tuple[str, ...] = SPLITS
    has_splits: bool = True
    prompts: Literal["satellite", "photo"] = "satellite"
    needs_root: bool = True


DATASETS: dict[str, DatasetEntry] = {
    "eurosat-rgb": DatasetEntry(
        description="EuroSAT, RGB, 10 classes of land use, 64x64",
        open=lambda root, split, size: open_eurosat_rgb(root, split, size=size),
        sensors=("rgb",),
        class_list="eurosat",
    ),
    "eurosat-ms": DatasetEntry(
        description="EuroSAT, Sentinel-2 L1C in 13 bands, the same tiles",
        open=lambda root, split, size: open_eurosat_ms(root, split),
        sensors=("sentinel2-l1c",),
        class_list="eurosat",
    ),
    "aid": DatasetEntry(
        description="AID, aerial RGB scenes of 30 classes",
        open=lambda root, split, size: open_aid(root, split, size=size),
        sensors=("rgb",),
        class_list="aid",
        splits=WHOLE_SPLITS,
        has_splits=False,
    ),
    "tiny-imagenet": DatasetEntry(
        description="Tiny-ImageNet, photos of 200 classes, 64x64",
        open=lambda root, split, size: open_tiny_imagenet(root, split, size=size),
        sensors=("rgb",),
        class_list="tiny-imagenet",
        prompts="photo",
    ),
    "imagenet": DatasetEntry(
        description="ImageNet, photos of 1000 classes",
        open=lambda root, split, size: open_imagenet(root, split, size=size),
        sensors=("rgb",),
        class_list="imagenet-wnids",
        splits=("train", "val"),
        prompts="photo",
    ),
    "s2-l2a": DatasetEntry(
        description="Sentinel-2 L2A patches in 12 bands, 64x64, without labels",
        open=lambda root, split, size: open_s2_l2a(root, split),
        sensors=(S2,),
        class_list=None,
        splits=("train", "val", "all"),
    ),
    "bigearthnet-mini": DatasetEntry(
        description="70 BigEarthNet patches, Sentinel-2 (4 bands) and Sentinel-1, 19 classes",
        open=lambda root, split, size: open_bigearthnet_mini(root, split, num_classes=19),
        sensors=(S2, S1),
        class_list="bigearthnet-19",
    ),
    "bigearthnet-mini-43": DatasetEntry(
        description="the same, 43 classes",
        open=lambda root, split, size: open_bigearthnet_mini(root, split, num_classes=43),
        sensors=(S2, S1),
        class_list="bigearthnet-43",
    ),
    "bigearthnet-mini-5": DatasetEntry(
        description="the same, 5 classes",
        open=lambda root, split, size: open_bigearthnet_mini(root, split, num_classes=5),
        sensors=(S2, S1),
        class_list="bigearthnet-5",
    ),
    "bigearthnet-19": DatasetEntry(
        description="BigEarthNet v1, Sentinel-2 L2A in 12 bands, 19 classes",
        open=lambda root, split, size: open_bigearthnet_v1(root, split, num_classes=19),
        sensors=(S2,),
        class_list="bigearthnet-19",
    ),
    "bigearthnet-43": DatasetEntry(
        description="the same, 43 classes",
        open=lambda root, split, size: open_bigearthnet_v1(root, split, num_classes=43),
        sensors=(S2,),
        class_list="bigearthnet-43",
    ),
    "bigearthnet-5": DatasetEntry(
        description="the same, 5 classes",
        open=lambda root, split, size: open_bigearthnet_v1(root, split, num_classes=5),
        sensors=(S2,),
        class_list="bigearthnet-5",
    ),
    "synthetic-photos": DatasetEntry(
        description="built-in pictures of shapes and views, with captions",
        open=lambda root, split, size: open_synthetic_photos(split, size=size or 32),
        sensors=("rgb",),
        class_list="synthetic-photos",
        prompts="photo",
        needs_root=False,
    ),
    "synthetic-scenes": DatasetEntry(
        description="built-in satellite scenes, Sentinel-2 L2A and Sentinel-1, dominant land cover",
        open=lambda root, split, size: open_synthetic_scenes(split),
        sensors=(S2, S1),
        class_list="synthetic-scenes",
        needs_root=False,
    ),
    "synthetic-scenes-multilabel": DatasetEntry(
        description="the same scenes, all of their land covers",
        open=lambda root, split, size: open_synthetic_scenes(split, multi_label=True),
        sensors=(S2, S1),
        class_list="synthetic-scenes",
        needs_root=False,
    ),
}
"""The data sets by name. Any other is declared in a TOML file (see `declared`)."""


def find_dataset(name_or_toml: str) -> DatasetEntry:
    """The data set of this name, or the one that this TOML file declares; `DataError` if none."""
    if name_or_toml in DATASETS:
        return DATASETS[name_or_toml]
    if not name_or_toml.endswith(".toml"):
        raise DataError(
            f"unknown data set {name_or_toml!r}; {nearest(name_or_toml, DATASETS)} "
            "(one of your own is given as its .toml file)"
        )
    path = Path(name_or_toml)
    declaration = read_declaration(path)
    return DatasetEntry(
        description=f"declared in {path.name}",
        open=lambda root, split, size: open_declared(path, root, split, size=size),
        sensors=(declared_sensor(declaration, path).name,),
        class_list=path.name,
        splits=tuple(declaration.splits) if declaration.splits else WHOLE_SPLITS,
        has_splits=declaration.splits is not None,
    )


def open_dataset(
    name_or_toml: str, *, data_root: Path | None, split: str, size: int | None = None
) -> SampleSet:
    """Open one split of a data set.

    `data_root`: the folder that holds the data sets' own folders; the built-in synthetic ones need
    none. `size`: the side to which RGB image files are resized and cropped as CLIP does it; None
    keeps their own, which must then be the same for all. Other data sets keep theirs.

    Raises `DataError`: an unknown name (with the nearest one), a data root that is missing, a
    split that is not there (with those that are), a folder without a class or the reverse.
    """
    entry = find_dataset(name_or_toml)
    if size is not None and size < 1:
        raise DataError(f"size is {size}; expected the side of an image in pixels")
    if not entry.needs_root:
        return entry.open(Path(), split, size)
    if data_root is None:
        raise DataError(
            f"data set {name_or_toml!r} lies in files; give the folder that holds it (--data-root)"
        )
    root = Path(data_root)
    if not root.is_dir():
        raise DataError(f"data root {root} is not there; give the folder that holds the data sets")
    return entry.open(root, split, size)
