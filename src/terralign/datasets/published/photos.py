"""Natural photos: CIFAR through torchvision, Tiny-ImageNet and ImageNet in class folders.

CIFAR (Krizhevsky 2009) is published as pickles, which can run code. torchvision unpickles them only
where their MD5 is that of the published files.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from terralign.chips import make_layout
from terralign.datasets.array_set import ArraySet
from terralign.datasets.class_folders import list_class_files, make_file_set, open_folder
from terralign.datasets.class_lists import load_class_list
from terralign.datasets.file_set import FileSet
from terralign.datasets.image_files import list_images
from terralign.datasets.listing import find_folder, list_names
from terralign.datasets.pixels import Pixels
from terralign.datasets.published.arrays import choose_rows
from terralign.datasets.sample import Labels, require_split
from terralign.errors import DataError, StorageError
from terralign.files import read_json, read_lines
from terralign.scenes.pictures import Size
from terralign.sensors import SENSORS

CIFAR_SPLITS: dict[str, tuple[int, ...]] = {"train": tuple(range(9)), "val": (9,)}
"""Every tenth published training image is validation; no validation split was published."""

HALVES = {"val-select": 0, "val-report": 1}
"""Halves of ImageNet's validation images, alternating within each class: one to choose by, the
other to report on."""

TINY_FOLDER = "tiny-imagenet-200"
"""What the published archive of Tiny-ImageNet unpacks to."""


def open_cifar(name: str, data_root: Path, split: str, *, size: Size | None = None) -> ArraySet:
    """`cifar10` or `cifar100` (fine classes), of 32x32 or resized to `size`.

    Splits: `train` (45,000), `val` (5,000) or `test` (10,000). Raises `DataError`: files that are
    missing or are not the published ones, by their MD5; nothing is unpickled then.
    """
    from torchvision import datasets

    require_split(name, split, (*CIFAR_SPLITS, "test"))
    source = datasets.CIFAR10 if name == "cifar10" else datasets.CIFAR100
    folder = find_folder(name, data_root, (f"{name}/{source.base_folder}", source.base_folder))
    try:
        published = source(folder.parent, train=split != "test")
    except (RuntimeError, OSError) as error:
        raise DataError(
            f"{folder} is not the published archive of {name!r}, by the MD5 of its files, and is "
            f"not unpickled; unpack {source.filename} there again"
        ) from error
    rows = np.arange(len(published), dtype=np.int64)
    if split != "test":
        rows = choose_rows(name, split, len(published), CIFAR_SPLITS, 10)
    part, sensor = "test" if split == "test" else "train", SENSORS["rgb"]
    return ArraySet(
        name=name,
        split=split,
        layouts={sensor.name: make_layout(sensor, sensor.band_names, units="dn")},
        keys=tuple(f"{part}-{row:05d}" for row in rows),
        arrays={sensor.name: published.data.transpose(0, 3, 1, 2)},
        rows=rows,
        content=[source.tgz_md5],
        labels=Labels(
            values=np.array(published.targets, dtype=np.int64)[rows],
            class_names=tuple(load_class_list(name).values()),
            class_list=name,
        ),
        size=size,
    )


def open_imagenet(data_root: Path, split: str, *, size: Size | None = None) -> FileSet:
    """ImageNet: `data_root/imagenet/{split}/<wnid>/*`; classes are the wnids, in order.

    `val-select` and `val-report` are the two halves of `val`, image by image of each class.
    """
    base = data_root / "imagenet"
    folder = "val" if split in HALVES else split
    found = [one for one in sorted(list_names(base, "folders")) if one not in HALVES]
    require_split("imagenet", folder, found, where=str(base))
    if split in HALVES and (base / split).is_dir():
        raise DataError(
            f"{base / split} is a folder, but {split!r} names half of the images in "
            f"{base / 'val'}; rename the folder"
        )
    root = base / folder
    classes = {one: one for one in sorted(list_names(root, "folders")) if one[0] != "."}
    if not classes:
        raise DataError(
            f"{root} holds no class folders; put each image into the folder of its wnid "
            "(which is in meta.mat of the development kit, not in its text files)"
        )
    pixels = Pixels(sensor=SENSORS["rgb"], size=size)
    files = list_class_files(root, classes, name="imagenet", suffixes=pixels.suffixes)
    if split in HALVES:
        files = {wnid: paths[HALVES[split] :: 2] for wnid, paths in files.items()}
    return make_file_set(
        name="imagenet", split=split, files=files, classes=classes,
        class_list="imagenet-wnids", pixels=pixels, root=root,
    )  # fmt: skip


def open_tiny_imagenet(data_root: Path, split: str, *, size: Size | None = None) -> FileSet:
    """Tiny-ImageNet, `train` or `val`; its test images have no published labels.

    As published: `data_root/tiny-imagenet-200/{train/<wnid>/images/*.JPEG, val/images/*.JPEG,
    val/val_annotations.txt, wnids.txt, words.txt}`, classes named by their first name in
    `words.txt`. Or in class folders: `data_root/tiny_imagenet_{split}/<wnid>/*.JPEG`, with the
    wnids' names in `classnames.json`; these come first. Classes are in the order of their wnids.
    """
    name, prefix = "tiny-imagenet", "tiny_imagenet_"
    in_folders = [one for one in list_names(data_root, "folders") if one.startswith(prefix)]
    base = data_root / TINY_FOLDER
    published = [one for one in ("train", "val") if (base / one).is_dir()]
    found = {*published, *(one.removeprefix(prefix) for one in in_folders)}
    require_split(name, split, sorted(found), where=f"{data_root}, {TINY_FOLDER} or {prefix}*")
    pixels = Pixels(sensor=SENSORS["rgb"], size=size)
    if f"{prefix}{split}" in in_folders:
        root = data_root / f"{prefix}{split}"
        classes = _read_class_names(root / "classnames.json")
        return open_folder(
            root, name=name, split=split, classes=classes, class_list=name, pixels=pixels
        )
    wnids = sorted(_read_lines(base / "wnids.txt"))
    return make_file_set(
        name=name,
        split=split,
        files=_train_files(base, wnids) if split == "train" else _val_files(base / "val", wnids),
        classes=_read_words(base / "words.txt", wnids),
        class_list=name,
        pixels=pixels,
    )


def _train_files(base: Path, wnids: Sequence[str]) -> dict[str, list[Path]]:
    folders = {wnid: base / "train" / wnid / "images" for wnid in wnids}
    return {wnid: list_images(folder) for wnid, folder in folders.items()}


def _val_files(folder: Path, wnids: Sequence[str]) -> dict[str, list[Path]]:
    """Class -> its files, by `val_annotations.txt`: file, wnid and a box on each line."""
    path = folder / "val_annotations.txt"
    files: dict[str, list[Path]] = {wnid: [] for wnid in wnids}
    for line in sorted(_read_lines(path)):
        file, wnid = [*line.split("\t"), ""][:2]
        if wnid not in files or "/" in file:
            raise DataError(f"{path}: {line!r} is not a file, a tab and a wnid of wnids.txt")
        files[wnid].append(folder / "images" / file)
    return files


def _read_words(path: Path, wnids: Sequence[str]) -> dict[str, str]:
    """wnid -> its first name; all of its names where two classes share the first."""
    names = dict(line.split("\t", 1) for line in _read_lines(path) if "\t" in line)
    missing = [wnid for wnid in wnids if not names.get(wnid, "").strip()]
    if missing:
        raise DataError(f"{path} has no name for {missing[0]} ({len(missing)} classes)")
    firsts = {wnid: names[wnid].split(",")[0].strip() for wnid in wnids}
    count = Counter(firsts.values())
    return {
        wnid: first if count[first] == 1 else names[wnid].strip() for wnid, first in firsts.items()
    }


def _read_lines(path: Path) -> list[str]:
    return [line for line in read_lines(path, fault=DataError) if line.strip()]


def _read_class_names(path: Path) -> Mapping[str, str]:
    """wnid -> class name, in the order of the wnids."""
    try:
        names = read_json(path)
    except StorageError as error:
        raise DataError(f"{error}; it should name the class of each folder") from error
    if not isinstance(names, dict) or not all(isinstance(name, str) for name in names.values()):
        raise DataError(f"{path} should be a JSON object of wnid to class name")
    return {wnid: names[wnid] for wnid in sorted(names)}
