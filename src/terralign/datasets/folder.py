"""Image files in one folder per class, and split lists that name some of them.

C bands, H W pixels, K classes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from terralign.chips import Chip, PixelLayout
from terralign.datasets.file_set import Decode, FileSet, sizes_differ
from terralign.datasets.fingerprint import fingerprint
from terralign.datasets.sample import Labels
from terralign.errors import DataError
from terralign.scenes.pictures import decode_rgb, picture_shape
from terralign.scenes.read import Units, make_layout, read_geotiff
from terralign.sensors import SENSORS, Sensor

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".tif", ".tiff")
"""Files with these endings, in any case, are samples; others and hidden ones are passed over."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Pixels:
    """How a class folder's files are decoded: the sensor, and what a GeoTIFF's numbers mean.

    With sensor `rgb` files are pictures, resized to `size` where it is given (see `decode_rgb`);
    with any other they are GeoTIFFs, to which the rest applies as in `read_geotiff`.
    """

    sensor: Sensor
    size: int | None = None
    bands: tuple[str, ...] | None = None
    dn_offset: float | None = None
    units: Units | None = None
    composite: str | None = None

    def open(self, first: Path) -> tuple[PixelLayout, Decode]:
        """The layout that all files share with the `first` one, and their decoder."""
        if self.sensor == SENSORS["rgb"]:
            return self._open_pictures(first)
        layout = self.read(first).layout

        def decode(file: Path) -> dict[str, NDArray[Any]]:
            chip = self.read(file)
            if chip.layout != layout:
                raise DataError(
                    f"{file} and {first} differ in bands, units or DN offset; "
                    "declare bands and dn_offset for the whole data set"
                )
            return {layout.sensor.name: filled_pixels(chip, file)}

        return layout, decode

    def read(self, file: Path) -> Chip:
        """One GeoTIFF."""
        return read_geotiff(
            file,
            sensor=self.sensor,
            bands=self.bands,
            dn_offset=self.dn_offset,
            units=self.units,
            composite=self.composite,
        )

    def _open_pictures(self, first: Path) -> tuple[PixelLayout, Decode]:
        layout = make_layout(self.sensor, self.sensor.band_names, units="dn")
        size = self.size
        if size is not None:
            return layout, lambda file: {"rgb": decode_rgb(file, size)}
        shape = picture_shape(first)

        def decode(file: Path) -> dict[str, NDArray[Any]]:
            pixels = decode_rgb(file)
            if pixels.shape[1:] != shape:
                raise DataError(sizes_differ(file, pixels.shape, first, shape))
            return {"rgb": pixels}

        return layout, decode


def filled_pixels(chip: Chip, file: Path) -> NDArray[Any]:
    """A chip's pixels, the invalid ones as what its sensor calls no data; `file` is for errors."""
    return chip.pixels if chip.valid.all() else _with_nodata(file, chip)


def _with_nodata(file: Path, chip: Chip) -> NDArray[Any]:
    """Pixels whose invalid ones carry what the sensor calls no data: its DN, or its fill.

    Fractions of a sensor that names none carry NaN. `DataError` where whole numbers have none, or
    cannot hold it: a sample's mask is read from its numbers.
    """
    nodata = chip.sensor.fill if chip.layout.units == "physical" else chip.sensor.nodata
    dtype = chip.pixels.dtype
    if nodata is None and np.issubdtype(dtype, np.floating):
        nodata = np.nan
    if nodata is None or not _can_hold(dtype, nodata):
        fault = "names no nodata" if nodata is None else f"has {nodata}, which {dtype} cannot hold"
        raise DataError(
            f"{file} has {int((~chip.valid).sum())} numbers without data, but sensor "
            f"{chip.sensor.name!r} {fault}; declare the files' own no-data number as the sensor's"
        )
    return np.where(chip.valid, chip.pixels, dtype.type(nodata))


def _can_hold(dtype: np.dtype[Any], value: float) -> bool:
    if not np.issubdtype(dtype, np.integer):
        return True
    limits = np.iinfo(dtype)
    return value == int(value) and limits.min <= value <= limits.max


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
            content=[pixels.size, *(_num_bytes(path) for path, _ in paths)],
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
