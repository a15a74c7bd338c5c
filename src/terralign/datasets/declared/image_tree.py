"""Images at any depth below a folder, without labels, and the same files of further sensors.

C bands, H W pixels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

from numpy.typing import NDArray

from terralign.datasets.class_folders import hint_for, read_split_list
from terralign.datasets.declared.located import FilePlaces
from terralign.datasets.file_set import Decode, FileSet
from terralign.datasets.image_files import LeftOut, list_images
from terralign.datasets.pixels import Pixels
from terralign.errors import DataError
from terralign.scenes.pictures import describe_size


def list_tree(root: Path, *, name: str, suffixes: tuple[str, ...], whole: bool) -> list[Path]:
    """All image files below `root`, sorted by their paths.

    Hidden files and folders are passed over, links are followed. Where the samples are the `whole`
    of the data set `name`, files of other endings than `suffixes` are named in one warning.
    """
    if not root.is_dir():
        raise DataError(f"{root} is not there; it should hold images, or folders of them")
    left_out = LeftOut(root)
    found = list_images(root, suffixes, left_out)
    if whole and not found:
        others = f"; left out: {left_out}" if left_out else ""
        raise DataError(
            f"data set {name!r}: no image found below {root} (files {', '.join(suffixes)}){others}"
        )
    if whole:
        left_out.warn(name, "at any depth", suffixes)
    return found


def open_tree(
    root: Path, *, name: str, split: str, pixels: Pixels, split_list: Path | None = None
) -> FileSet:
    """All images below `root` as samples without labels, or those that `split_list` names.

    A key is the path below `root` without its ending, or with it where two files differ in that
    only. An entry of the list is a path below `root`.
    """
    files = list_tree(root, name=name, suffixes=pixels.suffixes, whole=split_list is None)
    if split_list is not None:
        there = {file.relative_to(root).as_posix(): file for file in files}
        entries = [str(PurePosixPath(entry)) for entry in read_split_list(split_list)]
        seen: set[str] = set()
        for entry in entries:
            if entry not in there:
                raise DataError(
                    f"split list {split_list}: {entry!r} is no image below {root}; "
                    f"{hint_for(entry, there, root)}"
                )
            if entry in seen:
                raise DataError(f"split list {split_list}: {entry!r} is named a second time")
            seen.add(entry)
        files = [there[entry] for entry in sorted(seen)]
    if not files:
        raise DataError(f"data set {name!r}, split {split!r}: no image found below {root}")
    keys = _stems(files, root)
    if len(set(keys)) < len(keys):
        keys = [file.relative_to(root).as_posix() for file in files]
    layout, decode = pixels.open(files[0])
    layouts = {layout.sensor.name: layout}
    return FileSet(
        name=name,
        split=split,
        layouts=layouts,
        keys=tuple(keys),
        files=tuple(files),
        decode=decode,
        content=[describe_size(pixels.size), *(file.stat().st_size for file in files)],
        locate=FilePlaces(root),
    )


def _stems(files: Sequence[Path], root: Path) -> list[str]:
    return [file.relative_to(root).with_suffix("").as_posix() for file in files]


@dataclass(frozen=True, kw_only=True, slots=True)
class Companion:
    """A further sensor of the same places, below its own folder."""

    root: Path
    pixels: Pixels


def add_sensors(
    samples: FileSet, root: Path, companions: Sequence[Companion], *, whole: bool
) -> FileSet:
    """`samples`, whose files lie below `root`, with the files of further sensors.

    Files of one sample have the same path below their sensors' folders, but for the ending. A
    sample without a file of every sensor is an error; so is, where the samples are the `whole` of
    the data set, a file of another sensor that no sample has.
    """
    own = _by_stem(samples.files, root)
    layouts = dict(samples.layouts)
    rows: list[list[Path]] = [[file] for file in samples.files]
    decoders: list[Decode] = []
    for one in companions:
        images = list_tree(one.root, name=samples.name, suffixes=one.pixels.suffixes, whole=whole)
        there = _by_stem(images, one.root)
        _require_same(own, there, root, one.root, whole=whole)
        for row, stem in zip(rows, own, strict=True):
            row.append(there[stem])
        layout, decode_one = one.pixels.open(rows[0][-1])
        layouts[layout.sensor.name] = layout
        decoders.append(decode_one)
    row_of = dict(zip(samples.files, rows, strict=True))

    sizes = [file.stat().st_size for row in rows for file in row[1:]]
    return replace(
        samples,
        layouts=layouts,
        decode=_DecodeRows((samples.decode, *decoders), row_of),
        more_files={
            sensor: tuple(row[number] for row in rows)
            for number, sensor in enumerate(layouts)
            if number
        },
        content=[samples.fingerprint, *sizes],
        locate=FilePlaces(root.parent, row_of),
    )


@dataclass(frozen=True, slots=True)
class _DecodeRows:
    """Decodes the files of a sample, one decoder each; `files_of`: them, by the first."""

    decoders: tuple[Decode, ...]
    files_of: Mapping[Path, Sequence[Path]]

    def __call__(self, file: Path) -> dict[str, NDArray[Any]]:
        pixels: dict[str, NDArray[Any]] = {}
        for decode, one in zip(self.decoders, self.files_of[file], strict=True):
            pixels.update(decode(one))
        return pixels


def _by_stem(files: Sequence[Path], root: Path) -> dict[str, Path]:
    """Path below `root` without its ending -> file, in the order of `files`."""
    there: dict[str, Path] = {}
    for stem, file in zip(_stems(files, root), files, strict=True):
        if stem in there:
            raise DataError(f"{file} and {there[stem]} differ in their ending only; keep one")
        there[stem] = file
    return there


def _require_same(
    own: Mapping[str, Path],
    there: Mapping[str, Path],
    root: Path,
    other_root: Path,
    *,
    whole: bool,
) -> None:
    missing = next((stem for stem in own if stem not in there), None)
    if missing is not None:
        raise DataError(f"{other_root} has no image {missing}, but {own[missing]} is there")
    extra = next((stem for stem in there if stem not in own), None)
    if whole and extra is not None:
        raise DataError(f"{root} has no image {extra}, but {there[extra]} is there")
