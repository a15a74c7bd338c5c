"""Image files in one folder per class, and split lists that name some of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath

import numpy as np

from terralign.datasets.file_set import FileSet
from terralign.datasets.fingerprint import fingerprint
from terralign.datasets.pixels import Pixels
from terralign.datasets.sample import Labels
from terralign.errors import DataError
from terralign.scenes.pictures import describe_size

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".tif", ".tiff")
"""Files with these endings, in any case, are samples; others and hidden ones are passed over."""


def list_class_files(root: Path, classes: Iterable[str]) -> dict[str, list[Path]]:
    """Class folder -> its image files, sorted; a folder without a class or the reverse raises.

    Hidden folders and files are passed over, and so is any file beside the class folders.
    """
    if not root.is_dir():
        raise DataError(f"{root} is not there; it should hold one folder per class")
    wanted = list(classes)
    there = {path.name for path in root.iterdir() if path.is_dir() and path.name[0] != "."}
    extra, missing = sorted(there - set(wanted)), [name for name in wanted if name not in there]
    if extra:
        raise DataError(f"{root} has folders without a class: {_some(extra)}; name their classes")
    if missing:
        raise DataError(f"{root} has no folder for the classes {_some(missing)}; leave those out")
    return {name: list_images(root / name) for name in wanted}


def list_images(folder: Path) -> list[Path]:
    """The image files directly in `folder`, sorted by name."""
    return sorted(
        path
        for path in folder.iterdir()
        if path.suffix.lower() in IMAGE_SUFFIXES and path.name[0] != "."
    )


def _some(names: Sequence[str], num_shown: int = 5) -> str:
    more = f" and {len(names) - num_shown} more" if len(names) > num_shown else ""
    return ", ".join(names[:num_shown]) + more


def read_split_list(path: Path) -> list[str]:
    """The entries of a split list: one file per line, blank lines and `#` comments left out.

    An absolute entry, one with `..`, one that is named twice, or no entry at all is an error.
    """
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read split list {path}: {error}") from error
    entries = [line for line in lines if line and not line.startswith("#")]
    if not entries:
        raise DataError(f"split list {path} names no file")
    if len(set(entries)) < len(entries):
        twice = next(entry for entry in entries if entries.count(entry) > 1)
        raise DataError(f"split list {path} names {twice} twice")
    for entry in entries:
        require_inside(entry, origin=f"split list {path}")
    return entries


def require_inside(entry: str, *, origin: str) -> None:
    """Raise `DataError` where a relative path is not one, or climbs out with `..`."""
    parts = PurePosixPath(entry).parts
    if entry.startswith(("/", "\\", "~")) or ".." in parts or "\\" in entry or ":" in entry[:2]:
        raise DataError(
            f"{origin}: {entry!r} leads outside the data set; "
            "write a path below its root, with forward slashes and without '..'"
        )


def pick_files(files: Mapping[str, list[Path]], entries: Sequence[str], *, origin: str) -> None:
    """Keep in `files` (class folder -> files) only those that a split list's `entries` name.

    An entry is `folder/file`, or a file name alone where no two folders hold that name.
    """
    known: dict[str, list[Path]] = {}
    for folder, paths in files.items():
        for path in paths:
            known.setdefault(path.name, []).append(path)
            known[f"{folder}/{path.name}"] = [path]
    kept: set[Path] = set()
    for entry in entries:
        found = known.get(str(PurePosixPath(entry)), [])
        if len(found) != 1:
            fault = "is in several class folders" if found else "is in none of the class folders"
            raise DataError(f"{origin}: {entry!r} {fault}; write it as folder/file")
        if found[0] in kept:
            raise DataError(f"{origin}: {entry!r} names {found[0].name} a second time")
        kept.add(found[0])
    for paths in files.values():
        paths[:] = [path for path in paths if path in kept]


def make_file_set(
    *,
    name: str,
    split: str,
    files: Mapping[str, Sequence[Path]],
    classes: Mapping[str, str],
    class_list: str,
    pixels: Pixels,
    prompts: tuple[str, ...] | None = None,
) -> FileSet:
    """A sample set of `files` (class folder -> files); `classes`: folder -> class name, in order.

    A key is `folder/file` without its ending, or with it where two files differ in that only.
    """
    rows = [(folder, index) for index, folder in enumerate(classes)]
    paths = [(path, index) for folder, index in rows for path in files.get(folder, ())]
    if not paths:
        raise DataError(f"data set {name!r}, split {split!r}: no image found in any class folder")
    stems = [f"{path.parent.name}/{path.stem}" for path, _ in paths]
    if len(set(stems)) < len(stems):
        stems = [f"{path.parent.name}/{path.name}" for path, _ in paths]
    layout, decode = pixels.open(paths[0][0])
    layouts = {layout.sensor.name: layout}
    return FileSet(
        name=name,
        split=split,
        layouts=layouts,
        keys=tuple(stems),
        files=tuple(path for path, _ in paths),
        decode=decode,
        fingerprint=fingerprint(
            name=name,
            split=split,
            keys=stems,
            layouts=layouts,
            content=[describe_size(pixels.size), *(_num_bytes(path) for path, _ in paths)],
        ),
        labels=Labels(
            values=np.array([index for _, index in paths], dtype=np.int64),
            class_names=tuple(classes.values()),
            class_list=class_list,
        ),
        prompts=prompts,
    )


def _num_bytes(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError as error:
        raise DataError(f"{path} is not there, though its split list names it") from error


def open_folder(
    root: Path,
    *,
    name: str,
    split: str,
    classes: Mapping[str, str],
    class_list: str,
    pixels: Pixels,
    split_list: Path | None = None,
    prompts: tuple[str, ...] | None = None,
) -> FileSet:
    """A data set with one folder per class under `root`, or the part that `split_list` names.

    `classes`: folder -> class name; every folder needs a class and every class a folder.
    """
    files = list_class_files(root, classes)
    if split_list is not None:
        pick_files(files, read_split_list(split_list), origin=f"split list {split_list}")
    return make_file_set(
        name=name,
        split=split,
        files=files,
        classes=classes,
        class_list=class_list,
        pixels=pixels,
        prompts=prompts,
    )
