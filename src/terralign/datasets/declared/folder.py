"""Data sets in folders: one per class, or images without labels, of one sensor or of several.

name = "harbours"
reader = "folder"
sensor = "rgb"
root = "harbours/images"          # beside this file, or in the data root
prompts = ["an aerial photo of {}."]

[classes]                         # folder -> class as prompts say it
Dock = "a dock with ships"
Yard = "a container yard"

[splits]                          # split -> list of files, folder/file on each line
test = "test.txt"
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from terralign.chips import Units
from terralign.datasets.class_folders import open_folder, require_inside
from terralign.datasets.declared.declaration import (
    Declaration,
    LabelKind,
    PixelSettings,
    find_path,
    pixels_of,
    require_classes,
    require_split,
    sensor_of,
    sensors_of,
)
from terralign.datasets.declared.image_tree import Companion, add_sensors, open_tree
from terralign.datasets.declared.located import FilePlaces
from terralign.datasets.file_set import FileSet
from terralign.datasets.pixels import Pixels
from terralign.datasets.sample import require_whole_split
from terralign.scenes.pictures import Size


class FolderSensor(PixelSettings):
    """`[sensors.*]` of a folder: one of several sensors of the same places."""

    root: str = Field(min_length=1)
    """The sensor's folder, below that of the data set. Files of one sample have the same path in
    every sensor's folder, but for their ending."""


class FolderDeclaration(Declaration):
    """What the TOML file of a folder says."""

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
    bands: tuple[str, ...] | None = Field(default=None, min_length=1)
    """Of GeoTIFFs: the bands in the files' order, where the files do not name them."""
    dn_offset: float | None = None
    """Of GeoTIFFs: what is added to the DN before scaling."""
    units: Units | None = None
    """Of GeoTIFFs: "dn" or "physical"; left out, integers are DN."""
    composite: str | None = None
    """Of GeoTIFFs: which of the sensor's RGB recipes to use."""
    sensors: dict[str, FolderSensor] | None = Field(default=None, min_length=1)
    """Several sensors, instead of `sensor` and what its numbers mean."""

    @model_validator(mode="after")
    def _settings_have_an_effect(self) -> FolderDeclaration:
        require_classes(
            self,
            labelled=self.unlabelled is None,
            remedy="images with labels need [classes], others unlabelled = true",
        )
        if self.sensors is None and self.sensor is None:
            raise ValueError("key 'sensor' is missing")
        for key in ("sensor", *PixelSettings.model_fields):
            if self.sensors is not None and getattr(self, key) is not None:
                raise ValueError(f"{key} has no effect beside [sensors]; say it there")
        return self

    @property
    def label_kind(self) -> LabelKind:
        return "none" if self.unlabelled else "single"

    @property
    def sensor_keys(self) -> tuple[str, ...]:
        return tuple(self.sensors) if self.sensor is None and self.sensors else (str(self.sensor),)

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
) -> FileSet:
    """Open one split of the data set that lies in a folder; `path`: the declaration's file."""
    require_inside(declaration.root, origin=f"{path}: root")
    root = find_path(declaration.root, path, data_root, what="root")
    split_list = _split_list(declaration, path, data_root, root, split)
    (first_root, pixels), *others = _sensor_folders(declaration, path, data_root, root, size)
    if declaration.classes is None:
        samples = open_tree(
            first_root, name=declaration.name, split=split, pixels=pixels, split_list=split_list
        )
    else:
        samples = open_folder(
            first_root,
            name=declaration.name,
            split=split,
            classes=declaration.classes,
            class_list=path.name,
            pixels=pixels,
            split_list=split_list,
            prompts=declaration.prompts,
            locate=FilePlaces(first_root),
        )
    if not others:
        return samples
    companions = [Companion(root=folder, pixels=pixels) for folder, pixels in others]
    return add_sensors(samples, first_root, companions, whole=split_list is None)


def _sensor_folders(
    declaration: FolderDeclaration, path: Path, data_root: Path, root: Path, size: Size | None
) -> list[tuple[Path, Pixels]]:
    """Each sensor's folder, and how its files are decoded."""
    if declaration.sensors is None:
        assert declaration.sensor is not None
        sensor = sensor_of(declaration.sensor, path, data_root)
        settings = PixelSettings(
            **{key: getattr(declaration, key) for key in PixelSettings.model_fields}
        )
        pictures = sensor.name == "rgb"
        return [(root, pixels_of(sensor, settings, size=size, pictures=pictures, origin=str(path)))]
    folders = []
    for sensor, settings in sensors_of(declaration.sensors, path, data_root):
        origin = f"{path}: sensors.{sensor.name}"
        require_inside(settings.root, origin=f"{origin}.root")
        pictures = sensor.name == "rgb"
        pixels = pixels_of(sensor, settings, size=size, pictures=pictures, origin=origin)
        folders.append((root / settings.root, pixels))
    return folders


def _split_list(
    declaration: FolderDeclaration, path: Path, data_root: Path, root: Path, split: str
) -> Path | None:
    if declaration.splits is None:
        require_whole_split(declaration.name, split)
        return None
    require_split(declaration.name, split, tuple(declaration.splits), path)
    if split not in declaration.splits:
        return None
    entry = declaration.splits[split]
    require_inside(entry, origin=f"{path}: splits.{split}")
    if (root / entry).is_file():
        return root / entry
    return find_path(entry, path, data_root, what=f"splits.{split}")
