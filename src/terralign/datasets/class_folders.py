"""Image files below a folder, with or without a folder per class, and split lists of them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path, PurePosixPath

import numpy as np

from terralign.datasets.file_set import FileSet, place_of_files
from terralign.datasets.fingerprint import file_sizes
from terralign.datasets.image_files import LeftOut, list_images
from terralign.datasets.pixels import Pixels
from terralign.datasets.sample import Labels, Place, warn_unused
from terralign.errors import DataError, quoted, some
from terralign.files import not_found, read_lines
from terralign.scenes.pictures import describe_size


def list_class_files(
    root: Path,
    classes: Iterable[str],
    *,
    name: str,
    suffixes: tuple[str, ...],
    whole: bool = True,
) -> dict[str, list[Path]]:
    """Class folder -> its image files, at any depth, sorted by their paths.

    A folder without a class or the reverse raises. Where the samples are the `whole` of the data
    set `name`, so do folders without any image, and files that are left out are named in one
    warning: those of other endings than `suffixes`, and images beside the class folders. Hidden
    folders and files are skipped; links are followed.
    """
    if not root.is_dir():
        raise DataError(f"{not_found(root)}; it should hold one folder per class")
    wanted = list(classes)
    found, left_out = set(), LeftOut(root)
    for path in root.iterdir():
        if path.name[0] != "." and path.is_dir():
            found.add(path.name)
        else:
            left_out.add(path)
    extra, missing = sorted(found - set(wanted)), [name for name in wanted if name not in found]
    if extra:
        raise DataError(f"{root} has folders without a class: {some(extra)}; name their classes")
    if missing:
        raise DataError(f"{root} has no folder for the classes {some(missing)}; leave those out")
    files = {folder: list_images(root / folder, suffixes, left_out) for folder in wanted}
    if whole:
        _require_images(files, left_out, name, suffixes, "in class folders")
    return files


def list_tree(root: Path, *, name: str, suffixes: tuple[str, ...], whole: bool) -> list[Path]:
    """All image files below `root`, at any depth, sorted by their paths; as `list_class_files`."""
    if not root.is_dir():
        raise DataError(f"{not_found(root)}; it should hold images, or folders of them")
    left_out = LeftOut(root)
    found = list_images(root, suffixes, left_out)
    if whole:
        _require_images({"": found}, left_out, name, suffixes, "at any depth")
    return found


def _require_images(
    files: Mapping[str, Sequence[Path]],
    left_out: LeftOut,
    name: str,
    suffixes: tuple[str, ...],
    place: str,
) -> None:
    """Warn of what a whole data set leaves out; `DataError` where that is everything."""
    if not any(files.values()):
        others = f"; left out: {left_out}" if left_out else ""
        raise DataError(
            f"data set {name!r}: no image found below {left_out.root} {place} "
            f"(files {', '.join(suffixes)}){others}"
        )
    left_out.warn(name, place, suffixes)


def read_split_list(path: Path) -> list[str]:
    """The entries of a split list: one file per line, blank lines and `#` comments left out.

    An absolute entry, one with `..`, one that is named twice, or no entry at all is an error.
    """
    lines = [line.strip() for line in read_lines(path, what="split list", fault=DataError)]
    entries = [line for line in lines if line and not line.startswith("#")]
    if not entries:
        raise DataError(f"split list {path} names no file")
    seen: set[str] = set()
    for entry in entries:
        if entry in seen:
            raise DataError(f"split list {path} names {quoted(entry)} twice")
        seen.add(entry)
        require_inside(entry, origin=f"split list {path}")
    return entries


def require_inside(entry: str, *, origin: str) -> None:
    """Raise `DataError` where a relative path is not one, or climbs out with `..`."""
    parts = PurePosixPath(entry).parts
    outside = entry.startswith(("/", "~")) or ".." in parts or ":" in entry[:2]
    if outside or "\\" in entry or "\0" in entry:
        raise DataError(
            f"{origin}: {quoted(entry)} leads outside the data set; "
            "write a path below its root, with forward slashes and without '..'"
        )


def pick_files(
    files: Mapping[str, list[Path]], root: Path, entries: Sequence[str], *, origin: str
) -> None:
    """Keep in `files` (folder of `root` -> files) those that a split list's `entries` name.

    An entry is `folder/file`, or a file name alone where no two folders hold that name.
    """
    known: dict[str, list[Path]] = {}
    for paths in files.values():
        for path in paths:
            known.setdefault(path.name, []).append(path)
            known[path.relative_to(root).as_posix()] = [path]
    kept: set[Path] = set()
    for entry in entries:
        found = known.get(str(PurePosixPath(entry)), [])
        if len(found) != 1:
            fault = "is in several folders; write it as folder/file"
            if not found:
                fault = f"is no image below {root}; {_hint_for(entry, known, root)}"
            raise DataError(f"{origin}: {quoted(entry)} {fault}")
        if found[0] in kept:
            raise DataError(f"{origin}: {quoted(entry)} names {found[0].name} a second time")
        kept.add(found[0])
    for paths in files.values():
        paths[:] = [path for path in paths if path in kept]


def _hint_for(entry: str, known: Iterable[str], root: Path) -> str:
    """What to do about an entry of a split list that names no image below `root`."""
    if os.path.isfile(root / entry):  # False of a name too long
        return f"files {PurePosixPath(entry).suffix or 'without ending'} are not read here"
    for names in ({one.lower(): one for one in known}, {_stem(one): one for one in known}):
        alike = names.get(entry.lower()) or names.get(_stem(entry))
        if alike is not None:
            return f"did you mean {alike!r}? Case and ending count"
    return "add the file, or remove it from the list"


def _stem(entry: str) -> str:
    return PurePosixPath(entry).with_suffix("").as_posix().lower()


def make_file_set(
    *,
    name: str,
    split: str,
    files: Mapping[str, Sequence[Path]],
    classes: Mapping[str, str] | None,
    class_list: str,
    pixels: Pixels,
    root: Path | None = None,
    prompts: tuple[str, ...] | None = None,
    locate: Callable[[Path], Place] | None = None,
) -> FileSet:
    """A sample set of `files` (folder -> files); `classes`: folder -> class name, in order, or None
    for samples without labels.

    A key is the path below `root` without its ending, or with it where two files differ in that
    only; without `root` it is the name of the file's folder and its own. Classes without a sample
    are warned of.
    """
    folders = list(files if classes is None else classes)
    rows = [(path, index) for index, one in enumerate(folders) for path in files.get(one, ())]
    if not rows:
        raise DataError(f"data set {name!r}, split {split!r}: no image found")
    paths = [path for path, _ in rows]
    names = [path.relative_to(root or path.parent.parent) for path in paths]
    keys = [one.with_suffix("").as_posix() for one in names]
    if len(set(keys)) < len(keys):
        keys = [one.as_posix() for one in names]
    sizes = file_sizes(paths, named_by="its split list")
    layout, decode = pixels.open(paths[0])
    labels = None
    if classes is not None:
        labels = Labels(
            values=np.array([index for _, index in rows], dtype=np.int64),
            class_names=tuple(classes.values()),
            class_list=class_list,
        )
        warn_unused(labels, name=name, split=split)
    return FileSet(
        name=name,
        split=split,
        layouts={layout.sensor.name: layout},
        keys=tuple(keys),
        files=tuple(paths),
        decode=decode,
        content=[describe_size(pixels.size), *sizes],
        labels=labels,
        prompts=prompts,
        locate=locate,
    )


def open_folder(
    root: Path,
    *,
    name: str,
    split: str,
    classes: Mapping[str, str] | None,
    class_list: str,
    pixels: Pixels,
    split_list: Path | None = None,
    prompts: tuple[str, ...] | None = None,
) -> FileSet:
    """The images below `root`, or those that `split_list` names.

    `classes`: folder -> class name; every folder needs a class and every class a folder. None:
    images at any depth, without labels.
    """
    suffixes, whole = pixels.suffixes, split_list is None
    if classes is None:
        files = {"": list_tree(root, name=name, suffixes=suffixes, whole=whole)}
    else:
        files = list_class_files(root, classes, name=name, suffixes=suffixes, whole=whole)
    if split_list is not None:
        pick_files(files, root, read_split_list(split_list), origin=f"split list {split_list}")
    return make_file_set(
        name=name,
        split=split,
        files=files,
        classes=classes,
        class_list=class_list,
        pixels=pixels,
        root=root,
        prompts=prompts,
        locate=partial(_place_of, root),
    )


def _place_of(root: Path, file: Path) -> Place:
    return place_of_files([file], root)
