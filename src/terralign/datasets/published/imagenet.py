"""Natural photos in one folder per class: Tiny-ImageNet and ImageNet."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from terralign.datasets.class_folders import list_class_files, make_file_set, open_folder
from terralign.datasets.file_set import FileSet
from terralign.datasets.image_files import LeftOut, list_images
from terralign.datasets.pixels import Pixels
from terralign.errors import DataError, SplitError, StorageError
from terralign.files import read_json, read_lines
from terralign.scenes.pictures import PICTURE_SUFFIXES, Size
from terralign.sensors import SENSORS

TINY_FOLDER = "tiny-imagenet-200"
"""What the published archive of Tiny-ImageNet unpacks to."""


def open_tiny_imagenet(data_root: Path, split: str, *, size: Size | None = None) -> FileSet:
    """Tiny-ImageNet, `train` or `val`; its test images have no published labels.

    As published: `data_root/tiny-imagenet-200/{train/<wnid>/images/*.JPEG, val/images/*.JPEG,
    val/val_annotations.txt, wnids.txt, words.txt}`, classes called by the first name in
    `words.txt`. Or in class folders: `data_root/tiny_imagenet_{split}/<wnid>/*.JPEG`, where
    `classnames.json` says what each wnid is called; these come first. Classes are in the order of
    their wnids.
    """
    official = data_root / TINY_FOLDER
    there = {path.name.removeprefix("tiny_imagenet_") for path in data_root.glob("tiny_imagenet_*")}
    root = data_root / f"tiny_imagenet_{split}"
    pixels = Pixels(sensor=SENSORS["rgb"], size=size)
    if split in there and root.is_dir():
        return open_folder(
            root,
            name="tiny-imagenet",
            split=split,
            classes=_read_class_names(root / "classnames.json"),
            class_list="tiny-imagenet",
            pixels=pixels,
        )
    there |= {one for one in ("train", "val") if (official / one).is_dir()}
    if split not in there:
        raise SplitError(
            f"data set 'tiny-imagenet' has no split {split!r} in {data_root} (no {root.name}, no "
            f"{TINY_FOLDER}); there: {', '.join(sorted(there)) or 'none'}"
        )
    wnids = sorted(_read_lines(official / "wnids.txt"))
    list_files = _tiny_train_files if split == "train" else _tiny_val_files
    return make_file_set(
        name="tiny-imagenet",
        split=split,
        files=list_files(official, wnids),
        classes=_read_words(official / "words.txt", wnids),
        class_list="tiny-imagenet",
        pixels=pixels,
    )


def _tiny_train_files(root: Path, wnids: Sequence[str]) -> dict[str, list[Path]]:
    files, left_out = {}, LeftOut(root / "train")
    for wnid in wnids:
        folder = root / "train" / wnid / "images"
        if not folder.is_dir():
            raise DataError(f"{folder} is not there; unpack {TINY_FOLDER}.zip again")
        files[wnid] = list_images(folder, left_out=left_out)
    left_out.warn("tiny-imagenet", "in WNID/images", PICTURE_SUFFIXES)
    return files


def _tiny_val_files(root: Path, wnids: Sequence[str]) -> dict[str, list[Path]]:
    """Class -> its files, by `val_annotations.txt`: file, wnid and a box on each line."""
    path = root / "val" / "val_annotations.txt"
    files: dict[str, list[Path]] = {wnid: [] for wnid in wnids}
    for line in _read_lines(path):
        file, _, rest = line.partition("\t")
        wnid = rest.split("\t")[0]
        if wnid not in files or "/" in file:
            raise DataError(f"{path}: {line!r} is not a file, a tab and a wnid of wnids.txt")
        files[wnid].append(root / "val" / "images" / file)
    for paths in files.values():
        paths.sort()
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


def _read_class_names(path: Path) -> dict[str, str]:
    try:
        names = read_json(path)
    except StorageError as error:
        raise DataError(f"{error}; it should say what each class folder is called") from error
    if not isinstance(names, dict) or not all(isinstance(name, str) for name in names.values()):
        raise DataError(f"{path} should be one JSON object: folder name to class name")
    return {folder: names[folder] for folder in sorted(names)}


HALVES = {"val-select": 0, "val-report": 1}
"""Splits that are halves of `val`: each class's images in the order of their file names, the first,
third and so on to choose on, the others to report on."""


def open_imagenet(
    data_root: Path,
    split: str,
    *,
    size: Size | None = None,
    class_names: Sequence[str] | None = None,
) -> FileSet:
    """ImageNet: `data_root/imagenet/{split}/<wnid>/*`, classes in the order of their wnids.

    `val-select` and `val-report` are the two halves of `val`, image by image of each class.
    `class_names`: what the classes are called, in that order; the wnids themselves without it.
    """
    base = data_root / "imagenet"
    folder = "val" if split in HALVES else split
    splits = sorted(path.name for path in base.iterdir() if path.is_dir()) if base.is_dir() else []
    if folder not in splits:
        raise SplitError(
            f"data set 'imagenet' has no split {split!r}: {base / folder} not found; "
            f"there: {', '.join(splits) or 'none'}"
        )
    if split in HALVES and split in splits:
        raise DataError(
            f"{base / split} is a folder, but {split!r} names half of the images in "
            f"{base / 'val'}; rename the folder"
        )
    root = base / folder
    wnids = sorted(path.name for path in root.iterdir() if path.is_dir() and path.name[0] != ".")
    if not wnids and list_images(root):
        raise DataError(
            f"{root} holds images without class folders; put each into the folder of its wnid "
            "(which is in meta.mat of the development kit, not in its text files)"
        )
    names = wnids if class_names is None else list(class_names)
    if len(names) != len(wnids):
        raise DataError(f"{root} has {len(wnids)} class folders, {len(names)} names were given")
    classes = dict(zip(wnids, names, strict=True))
    pixels = Pixels(sensor=SENSORS["rgb"], size=size)
    files = list_class_files(root, classes, name="imagenet", suffixes=pixels.suffixes)
    if split in HALVES:
        files = {wnid: paths[HALVES[split] :: 2] for wnid, paths in files.items()}
    return make_file_set(
        name="imagenet",
        split=split,
        files=files,
        classes=classes,
        class_list="imagenet-wnids" if class_names is None else "imagenet",
        pixels=pixels,
        root=root,
    )
