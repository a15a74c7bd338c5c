"""A data set nobody has seen, declared by its user in a TOML file. Nothing in it is guessed.

`reader` says how it lies on disk: "folder" (below), "table" (see `table`), "shards" (see `shards`).

name = "harbours"
reader = "folder"
sensor = "rgb"
root = "harbours/images"          # below the data root
prompts = ["an aerial photo of {}."]

[classes]                         # folder -> class as prompts say it
Dock = "a dock with ships"
Yard = "a container yard"

[splits]                          # split -> list of files, folder/file on each line
test = "test.txt"
"""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, Field, ValidationError, model_validator

from terralign.datasets.declaration import (
    Declaration,
    LabelKind,
    PixelSettings,
    pixels_of,
    require_classes,
    require_split,
    sensor_of,
    sensors_of,
)
from terralign.datasets.facts import DatasetFacts
from terralign.datasets.file_set import FileSet
from terralign.datasets.folder import Pixels, open_folder, require_inside
from terralign.datasets.image_tree import Companion, add_sensors, open_tree
from terralign.datasets.located import place_of_files
from terralign.datasets.sample import WHOLE_SPLITS, SampleSet, require_whole_split
from terralign.datasets.shards import ShardsDeclaration, ShardSensor, open_shards
from terralign.datasets.table import TableDeclaration, TableSensor, open_table
from terralign.errors import DataError, nearest
from terralign.scenes.read import Units
from terralign.toml_values import explain


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
    """A built-in sensor, or a sensor's TOML file, relative to this one."""
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
    def split_names(self) -> tuple[str, ...] | None:
        return None if self.splits is None else tuple(self.splits)

    @property
    def location(self) -> str:
        return self.root


READERS: dict[str, type[Declaration]] = {
    "folder": FolderDeclaration,
    "table": TableDeclaration,
    "shards": ShardsDeclaration,
}
"""What a TOML file may name as its `reader`."""

_SENSOR_TABLES: dict[str, type[BaseModel]] = {
    "folder": FolderSensor,
    "table": TableSensor,
    "shards": ShardSensor,
}


def read_declaration(path: Path) -> Declaration:
    """Read and check a data set's TOML file; `DataError` says what is wrong and where."""
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"cannot read data set file {path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise DataError(f"data set file {path} is not valid TOML: {error}") from error
    reader = _reader_of(values, path)
    sensors = values.get("sensors")
    if isinstance(sensors, dict):  # on their own, so that a misspelt key is told as one
        for key, table in sensors.items():
            _check(_SENSOR_TABLES[reader], table, f"{path}: sensors.{key}")
    return _check(READERS[reader], values, str(path))


Checked = TypeVar("Checked", bound=BaseModel)


def _check(model: type[Checked], values: Any, origin: str) -> Checked:
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise DataError(f"{origin}: {explain(error, model)}") from error


def _reader_of(values: Mapping[str, Any], path: Path) -> str:
    known = ", ".join(READERS)
    if "reader" not in values:
        misspelt = difflib.get_close_matches("reader", values, n=1)
        if misspelt:
            raise DataError(f"{path}: unknown key {misspelt[0]!r}; did you mean 'reader'?")
        raise DataError(f"{path}: key 'reader' is missing; it is one of {known}")
    reader = values["reader"]
    if reader not in READERS:
        raise DataError(f"{path}: unknown reader {reader!r}; {nearest(str(reader), READERS)}")
    return str(reader)


def declared_facts(declaration: Declaration, path: Path) -> DatasetFacts:
    """What is known of a declared data set before it is opened; `path`: its TOML file."""
    labels, splits = declaration.label_kind, declaration.split_names
    return DatasetFacts(
        description=f"declared in {path.name}",
        sensors=tuple(sensor_of(key, path).name for key in declaration.sensor_keys),
        labels=labels,
        class_list=path.name if labels in ("single", "multi") else None,
        splits=dict.fromkeys(splits or WHOLE_SPLITS),
        has_splits=splits is not None,
        layout=(declaration.location,),
    )


def open_declared(path: Path, data_root: Path, split: str, *, size: int | None = None) -> SampleSet:
    """Open one split of the data set that the TOML file `path` declares.

    `size`: RGB images are resized to it (see `decode_rgb`); GeoTIFFs keep theirs.
    """
    declaration = read_declaration(path)
    if isinstance(declaration, TableDeclaration):
        return open_table(declaration, path, data_root, split, size=size)
    if isinstance(declaration, ShardsDeclaration):
        return open_shards(declaration, path, data_root, split, size=size)
    assert isinstance(declaration, FolderDeclaration)
    return _open_folder(declaration, path, data_root, split, size=size)


def _open_folder(
    declaration: FolderDeclaration, path: Path, data_root: Path, split: str, *, size: int | None
) -> FileSet:
    require_inside(declaration.root, origin=f"{path}: root")
    root = data_root / declaration.root
    split_list = _split_list(declaration, path, root, split)
    (first_root, pixels), *others = _sensor_folders(declaration, path, root, size)
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
        )
        samples = replace(samples, locate=lambda file: place_of_files([file], first_root))
    if not others:
        return samples
    companions = [Companion(root=folder, pixels=pixels) for folder, pixels in others]
    return add_sensors(samples, first_root, companions, whole=split_list is None)


def _sensor_folders(
    declaration: FolderDeclaration, path: Path, root: Path, size: int | None
) -> list[tuple[Path, Pixels]]:
    """Each sensor's folder, and how its files are decoded."""
    if declaration.sensors is None:
        assert declaration.sensor is not None
        sensor = sensor_of(declaration.sensor, path)
        settings = PixelSettings(
            **{key: getattr(declaration, key) for key in PixelSettings.model_fields}
        )
        pictures = sensor.name == "rgb"
        return [(root, pixels_of(sensor, settings, size=size, pictures=pictures, origin=str(path)))]
    folders = []
    for sensor, settings in sensors_of(declaration.sensors, path):
        origin = f"{path}: sensors.{sensor.name}"
        require_inside(settings.root, origin=f"{origin}.root")
        pictures = sensor.name == "rgb"
        pixels = pixels_of(sensor, settings, size=size, pictures=pictures, origin=origin)
        folders.append((root / settings.root, pixels))
    return folders


def _split_list(declaration: FolderDeclaration, path: Path, root: Path, split: str) -> Path | None:
    if declaration.splits is None:
        require_whole_split(declaration.name, split)
        return None
    require_split(declaration.name, split, tuple(declaration.splits), path)
    if split not in declaration.splits:
        return None
    entry = declaration.splits[split]
    require_inside(entry, origin=f"{path}: splits.{split}")
    for folder in (root, path.parent):
        if (folder / entry).is_file():
            return folder / entry
    raise DataError(
        f"{path}: splits.{split}: {entry} is neither in {root} nor beside the declaration"
    )
