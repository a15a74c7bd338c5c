"""Data sets in folders: one per class, or images without labels, of one sensor or of several.

name = "harbours"
reader = "folder"
sensor = "rgb"
root = "harbours/images"          # beside this file, or in the data root
prompts = ["an aerial photo of {}."]

[classes]                         # folder -> class in prompts
Dock = "a dock with ships"
Yard = "a container yard"

[splits]                          # split -> list of files, folder/file on each line
test = "test.txt"
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from terralign.datasets.class_folders import list_tree, open_folder, require_inside
from terralign.datasets.declared.declaration import (
    Declaration,
    LabelKind,
    PixelSettings,
    find_inside,
    pixels_of,
    sensor_of,
    sensors_of,
)
from terralign.datasets.file_set import FileSet, PathSet
from terralign.datasets.pixels import Pixels
from terralign.errors import DataError
from terralign.scenes.pictures import Size


class FolderSensor(PixelSettings):
    """`[sensors.*]` of a folder: one of several sensors of the same places."""

    root: str = Field(min_length=1)
    """The sensor's folder, below that of the data set. Files of one sample have the same path in
    every sensor's folder, but for their ending."""


class FolderDeclaration(PixelSettings, Declaration):
    """The TOML file of a folder; the pixels' settings are those of GeoTIFFs."""

    reader: Literal["folder"]
    """How it lies on disk: one folder per class, or images without labels."""
    sensor: str | None = None
    """A built-in sensor, or a sensor's TOML file."""
    root: str = Field(min_length=1)
    """The folder of the class folders, of the images or of the sensors' folders, relative to the
    data root."""
    unlabelled: Literal[True] | None = None
    """Every image below the root, at any depth, is a sample without label."""
    splits: dict[str, str] | None = Field(default=None, min_length=1)
    """Split -> list file, relative to the set's root, else to this file. Left out, the set has no
    splits, and `all`, `train`, `val` and `test` all name the whole of it."""
    sensors: dict[str, FolderSensor] | None = Field(default=None, min_length=1)
    """Several sensors, instead of `sensor` and its pixels' settings."""

    @model_validator(mode="after")
    def _settings_have_an_effect(self) -> FolderDeclaration:
        self.require_classes(
            labelled=self.unlabelled is None,
            remedy="images with labels need [classes], others unlabelled = true",
        )
        if self.sensors is None and self.sensor is None:
            raise ValueError("key 'sensor' is missing")
        for key in ("sensor", *PixelSettings.model_fields):
            if self.sensors is not None and getattr(self, key) is not None:
                raise ValueError(f"{key} has no effect beside [sensors]; set it there")
        return self

    @property
    def label_kind(self) -> LabelKind:
        return "none" if self.unlabelled else "single"

    @property
    def sensor_keys(self) -> tuple[str, ...]:
        return (self.sensor,) if self.sensor is not None else tuple(self.sensors or ())

    @property
    def location(self) -> str:
        return self.root


def open_declared_folder(
    declaration: FolderDeclaration,
    path: Path,
    data_root: Path,
    split: str,
    *,
    size: Size | None = None,
) -> FileSet | PathSet:
    """Open one split of the data set that lies in a folder; `path`: the declaration's file."""
    root = find_inside(declaration.root, path, data_root, what="root")
    split_list = _split_list(declaration, path, data_root, root, split)
    folders = _sensor_folders(declaration, path, data_root, root, size)
    first_root, pixels = folders[0]
    samples = open_folder(
        first_root,
        name=declaration.name,
        split=split,
        classes=declaration.classes,
        class_list=path.name,
        pixels=pixels,
        split_list=split_list,
        prompts=declaration.prompts,
    )
    if len(folders) == 1:
        return samples
    return _with_sensors(samples, root, folders, whole=split_list is None)


def _sensor_folders(
    declaration: FolderDeclaration, path: Path, data_root: Path, root: Path, size: Size | None
) -> list[tuple[Path, Pixels]]:
    """Each sensor's folder, and how its files are decoded."""
    if declaration.sensor is not None:
        sensor = sensor_of(declaration.sensor, path, data_root)
        return [(root, pixels_of(sensor, declaration, size=size, origin=str(path)))]
    folders = []
    for sensor, settings in sensors_of(declaration.sensors or {}, path, data_root):
        origin = f"{path}: sensors.{sensor.name}"
        require_inside(settings.root, origin=f"{origin}.root")
        folders.append(
            (root / settings.root, pixels_of(sensor, settings, size=size, origin=origin))
        )
    return folders


def _split_list(
    declaration: FolderDeclaration, path: Path, data_root: Path, root: Path, split: str
) -> Path | None:
    entry = declaration.find_split(split, path)
    if entry is None:
        return None
    require_inside(entry, origin=f"{path}: splits.{split}")
    if os.path.isfile(root / entry):
        return root / str(entry)
    return find_inside(entry, path, data_root, what=f"splits.{split}")


def _with_sensors(
    samples: FileSet, root: Path, folders: Sequence[tuple[Path, Pixels]], *, whole: bool
) -> PathSet:
    """`samples` of the first of the sensors' `folders`, with the files of the others.

    A sample without a file of every sensor is an error; so is, where the samples are the `whole` of
    the data set, a file of another sensor that no sample has.
    """
    first_root = folders[0][0]
    own = _by_stem(samples.files, first_root)
    [(sensor, layout)] = samples.layouts.items()
    layouts, decoders, files = {sensor: layout}, {sensor: samples.decode}, {sensor: samples.files}
    for folder, pixels in folders[1:]:
        images = list_tree(folder, name=samples.name, suffixes=pixels.suffixes, whole=whole)
        found = _by_stem(images, folder)
        _require_same(own, found, first_root, folder, whole=whole)
        paths = tuple(found[stem] for stem in own)
        layout, decode = pixels.open(paths[0])
        layouts[layout.sensor.name], decoders[layout.sensor.name] = layout, decode
        files[layout.sensor.name] = paths
    return PathSet(
        name=samples.name,
        split=samples.split,
        layouts=layouts,
        keys=samples.keys,
        root=root,
        files={
            sensor: [path.relative_to(root).as_posix() for path in paths]
            for sensor, paths in files.items()
        },
        decoders=decoders,
        content=[
            *samples.content,
            *(one.stat().st_size for paths in files.values() for one in paths),
        ],
        labels=samples.labels,
        prompts=samples.prompts,
    )


def _by_stem(files: Sequence[Path], root: Path) -> dict[str, Path]:
    """Path below `root` without its ending -> file, in the order of `files`."""
    found: dict[str, Path] = {}
    for file in files:
        stem = file.relative_to(root).with_suffix("").as_posix()
        if stem in found:
            raise DataError(f"{file} and {found[stem]} differ in their ending only; keep one")
        found[stem] = file
    return found


def _require_same(
    own: Mapping[str, Path], other: Mapping[str, Path], root: Path, other_root: Path, *, whole: bool
) -> None:
    missing = next((stem for stem in own if stem not in other), None)
    if missing is not None:
        raise DataError(f"{other_root} has no image {missing}, but {own[missing]} exists")
    extra = next((stem for stem in other if stem not in own), None)
    if whole and extra is not None:
        raise DataError(f"{root} has no image {extra}, but {other[extra]} exists")
