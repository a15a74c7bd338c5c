"""Sets of RGB images in one folder per class: AID, Tiny-ImageNet and ImageNet."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from terralign.datasets.class_lists import load_class_list
from terralign.datasets.file_set import FileSet
from terralign.datasets.folder import Pixels, open_folder
from terralign.errors import DataError, StorageError
from terralign.files import read_json
from terralign.sensors import SENSORS

WHOLE_SPLITS = ("all", "train", "val", "test")
"""Names under which a data set without splits gives all its samples."""


def require_whole_split(name: str, split: str) -> None:
    """Raise `DataError` unless `split` is a name for the whole of a set that has no splits."""
    if split not in WHOLE_SPLITS:
        raise DataError(
            f"data set {name!r} has no splits; {', '.join(WHOLE_SPLITS)} all name the whole of it, "
            f"not {split!r}"
        )


def open_aid(data_root: Path, split: str, *, size: int | None = None) -> FileSet:
    """AID (Xia et al. 2017): aerial scenes, `data_root/aid/<Class>/*.jpg`, without splits."""
    require_whole_split("aid", split)
    return open_folder(
        data_root / "aid",
        name="aid",
        split=split,
        classes=load_class_list("aid"),
        class_list="aid",
        pixels=Pixels(sensor=SENSORS["rgb"], size=size),
    )


def open_tiny_imagenet(data_root: Path, split: str, *, size: int | None = None) -> FileSet:
    """Tiny-ImageNet: `data_root/tiny_imagenet_{split}/<wnid>/*.JPEG`.

    `classnames.json` beside the class folders says what each wnid is called.
    """
    there = {path.name.removeprefix("tiny_imagenet_") for path in data_root.glob("tiny_imagenet_*")}
    root = data_root / f"tiny_imagenet_{split}"
    if split not in there or not root.is_dir():
        raise DataError(
            f"data set 'tiny-imagenet' has no split {split!r} in {data_root} (no {root.name}); "
            f"there: {', '.join(sorted(there)) or 'none'}"
        )
    return open_folder(
        root,
        name="tiny-imagenet",
        split=split,
        classes=_read_class_names(root / "classnames.json"),
        class_list="tiny-imagenet",
        pixels=Pixels(sensor=SENSORS["rgb"], size=size),
    )


def _read_class_names(path: Path) -> dict[str, str]:
    try:
        names = read_json(path)
    except StorageError as error:
        raise DataError(f"{error}; it should say what each class folder is called") from error
    if not isinstance(names, dict) or not all(isinstance(name, str) for name in names.values()):
        raise DataError(f"{path} should be one JSON object: folder name to class name")
    return {folder: names[folder] for folder in sorted(names)}


def open_imagenet(
    data_root: Path,
    split: str,
    *,
    size: int | None = None,
    class_names: Sequence[str] | None = None,
) -> FileSet:
    """ImageNet: `data_root/imagenet/{split}/<wnid>/*`, classes in the order of their wnids.

    `class_names`: what the classes are called, in that order; the wnids themselves without it.
    """
    base = data_root / "imagenet"
    splits = sorted(path.name for path in base.iterdir() if path.is_dir()) if base.is_dir() else []
    if split not in splits:
        raise DataError(
            f"data set 'imagenet' has no split {split!r}: {base / split} is not there; "
            f"there: {', '.join(splits) or 'none'}"
        )
    root = base / split
    wnids = sorted(path.name for path in root.iterdir() if path.is_dir() and path.name[0] != ".")
    names = wnids if class_names is None else list(class_names)
    if len(names) != len(wnids):
        raise DataError(f"{root} has {len(wnids)} class folders, {len(names)} names were given")
    return open_folder(
        root,
        name="imagenet",
        split=split,
        classes=dict(zip(wnids, names, strict=True)),
        class_list="imagenet-wnids" if class_names is None else "imagenet",
        pixels=Pixels(sensor=SENSORS["rgb"], size=size),
    )
