"""A data set nobody has seen, declared by its user in a TOML file. Nothing in it is guessed.

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

import tomllib
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from terralign.datasets.file_set import FileSet
from terralign.datasets.folder import Pixels, open_folder, require_inside
from terralign.datasets.photos import require_whole_split
from terralign.errors import DataError
from terralign.scenes.read import Units
from terralign.sensors import Sensor, find_sensor
from terralign.toml_values import explain


class DeclaredDataset(BaseModel):
    """What the TOML file of a data set says."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    name: str = Field(pattern=r"^[\w][\w .-]*$")
    """What results call the data set, and the folders of its results: letters, digits, - _ . and
    spaces."""
    reader: Literal["folder"]
    """How it lies on disk: one folder per class."""
    sensor: str
    """A built-in sensor, or a sensor's TOML file, relative to this one."""
    root: str = Field(min_length=1)
    """The folder of the class folders, relative to the data root."""
    classes: dict[str, str] = Field(min_length=1)
    """Folder -> class as prompts say it; every folder and every class once."""
    prompts: tuple[str, ...] | None = Field(default=None, min_length=1)
    """Templates with `{}` for the class; left out, the caller's prompt set is used."""
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

    @field_validator("prompts")
    @classmethod
    def _templates_have_a_place(cls, prompts: tuple[str, ...] | None) -> tuple[str, ...] | None:
        for template in prompts or ():
            if template.count("{}") != 1:
                raise ValueError(f"the template {template!r} needs {{}} once, for the class")
        return prompts

    @field_validator("classes")
    @classmethod
    def _classes_differ(cls, classes: dict[str, str]) -> dict[str, str]:
        names = [name.strip() for name in classes.values()]
        for folder, name in zip(classes, names, strict=True):
            if not name:
                raise ValueError(f"the class of folder {folder!r} has no name")
            if names.count(name) > 1:
                raise ValueError(f"two folders have the class {name!r}; give each its own")
        return dict(zip(classes, names, strict=True))


def read_declaration(path: Path) -> DeclaredDataset:
    """Read and check a data set's TOML file; `DataError` says what is wrong and where."""
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"cannot read data set file {path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise DataError(f"data set file {path} is not valid TOML: {error}") from error
    try:
        return DeclaredDataset.model_validate(values)
    except ValidationError as error:
        raise DataError(f"{path}: {explain(error, DeclaredDataset)}") from error


def declared_sensor(declaration: DeclaredDataset, path: Path) -> Sensor:
    """The sensor that a declaration in the file `path` names."""
    if declaration.sensor.endswith(".toml"):
        return find_sensor(str(path.parent / declaration.sensor))
    return find_sensor(declaration.sensor)


def open_declared(path: Path, data_root: Path, split: str, *, size: int | None = None) -> FileSet:
    """Open one split of the data set that the TOML file `path` declares.

    `size`: RGB images are resized to it (see `decode_rgb`); GeoTIFFs keep theirs.
    """
    declaration = read_declaration(path)
    sensor = declared_sensor(declaration, path)
    if sensor.name == "rgb":
        for key in ("bands", "dn_offset", "units", "composite"):
            if getattr(declaration, key) is not None:
                raise DataError(f"{path}: {key} has no effect on sensor 'rgb'; leave it out")
    require_inside(declaration.root, origin=f"{path}: root")
    root = data_root / declaration.root
    return open_folder(
        root,
        name=declaration.name,
        split=split,
        classes=declaration.classes,
        class_list=path.name,
        pixels=Pixels(
            sensor=sensor,
            size=size,
            bands=declaration.bands,
            dn_offset=declaration.dn_offset,
            units=declaration.units,
            composite=declaration.composite,
        ),
        split_list=_split_list(declaration, path, root, split),
        prompts=declaration.prompts,
    )


def _split_list(declaration: DeclaredDataset, path: Path, root: Path, split: str) -> Path | None:
    if declaration.splits is None:
        require_whole_split(declaration.name, split)
        return None
    if split == "all" and "all" not in declaration.splits:
        return None
    if split not in declaration.splits:
        raise DataError(
            f"data set {declaration.name!r} has no split {split!r}; "
            f"{path} declares {', '.join(declaration.splits)}"
        )
    entry = declaration.splits[split]
    require_inside(entry, origin=f"{path}: splits.{split}")
    for folder in (root, path.parent):
        if (folder / entry).is_file():
            return folder / entry
    raise DataError(
        f"{path}: splits.{split}: {entry} is neither in {root} nor beside the declaration"
    )
