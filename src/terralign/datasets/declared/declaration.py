"""What every declared data set has, whatever its reader: name, classes, prompts, sensors."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, field_validator

from terralign.chips import Units
from terralign.datasets.class_folders import require_inside
from terralign.datasets.pixels import Pixels
from terralign.datasets.sample import require_split, require_whole_split
from terralign.errors import DataError, UnknownSensorError
from terralign.scenes.pictures import Size
from terralign.sensors import Sensor, find_sensor
from terralign.toml_paths import TomlPaths

LabelKind = Literal["single", "multi", "captions", "none"]


class PixelSettings(BaseModel):
    """What the numbers of one sensor's files mean, where the files do not state it themselves."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    bands: tuple[str, ...] | None = Field(default=None, min_length=1)
    """The bands in the files' order, where the files do not name them."""
    dn_offset: float | None = None
    """What is added to the DN before scaling."""
    units: Units | None = None
    """"dn" or "physical"; left out, integers are DN."""
    composite: str | None = None
    """Which of the sensor's RGB recipes to use."""


class Declaration(BaseModel):
    """The TOML file of a data set; each reader adds its own keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    name: str = Field(pattern=r"^[\w][\w .-]*$")
    """What results call the data set, and the folders of its results: letters, digits, - _ . and
    spaces."""
    reader: str
    """How the data set lies on disk."""
    classes: dict[str, str] | None = Field(default=None, min_length=1)
    """What the data call a class -> the class in prompts, each once."""
    prompts: tuple[str, ...] | None = Field(default=None, min_length=1)
    """Templates with `{}` for the class; left out, the caller's prompt set is used."""
    sensors: Mapping[str, PixelSettings] | None = None
    """Each sensor, a built-in name or a TOML file, and how it lies on disk."""
    splits: Mapping[str, Any] | None = None
    """The splits, and how the reader finds the samples of each."""

    @field_validator("prompts")
    @classmethod
    def _templates_have_a_place(cls, prompts: tuple[str, ...] | None) -> tuple[str, ...] | None:
        for template in prompts or ():
            if template.count("{}") != 1:
                raise ValueError(f"the template {template!r} needs {{}} once, for the class")
        return prompts

    @field_validator("classes")
    @classmethod
    def _classes_differ(cls, classes: dict[str, str] | None) -> dict[str, str] | None:
        owners: dict[str, str] = {}
        for value, name in ((value, name.strip()) for value, name in (classes or {}).items()):
            if not name:
                raise ValueError(f"the class of {value!r} has no name")
            if name in owners:
                raise ValueError(
                    f"{owners[name]!r} and {value!r} both have the class {name!r}; "
                    "give each its own"
                )
            owners[name] = value
        return classes and {value: name for name, value in owners.items()}

    @property
    def label_kind(self) -> LabelKind:
        """What a sample carries."""
        raise NotImplementedError

    @property
    def location(self) -> str:
        """The file or folder that its samples lie in, beside the TOML file or in the data root."""
        raise NotImplementedError

    @property
    def sensor_keys(self) -> tuple[str, ...]:
        """The sensors as the file names them: built-in names and TOML files."""
        return tuple(self.sensors or ())

    def require_classes(self, *, labelled: bool, remedy: str) -> None:
        """Raise `ValueError` where classes or prompts have no effect, or classes are missing."""
        if labelled and self.classes is None:
            raise ValueError(f"[classes] is missing; {remedy}")
        for key in ("classes", "prompts"):
            if not labelled and getattr(self, key) is not None:
                raise ValueError(f"{key} has no effect on samples without labels; {remedy}")

    def find_split(self, split: str, path: Path) -> Any:
        """How the reader finds a split's samples, None for all; `SplitError` if undeclared."""
        if self.splits is None:
            require_whole_split(self.name, split)
            return None
        require_split(self.name, split, ("all", *self.splits), where=str(path))
        return self.splits.get(split)


def sensor_of(key: str, path: Path, data_root: Path | None) -> Sensor:
    """The sensor that the declaration in the file `path` calls `key`; a TOML's path is found as any
    other path of the file."""
    name = str(_find(key, path, data_root, "sensor")) if key.endswith(".toml") else key
    try:
        return find_sensor(name)
    except UnknownSensorError as error:
        raise UnknownSensorError(f"{path}: {error}") from error


def find_inside(entry: str, path: Path, data_root: Path, *, what: str) -> Path:
    """A path below the file `path` that declares it, else below the data root.

    `DataError`, with `what` it is of, for one that leads outside or is not found.
    """
    require_inside(entry, origin=f"{path}: {what}")
    return _find(entry, path, data_root, what)


def _find(entry: str, path: Path, data_root: Path | None, what: str) -> Path:
    paths = TomlPaths.beside(path, data_root)
    found = paths.find(entry)
    if found is None:
        raise DataError(f"{path}: {what}: {paths.not_found(entry)}")
    return found


Settings = TypeVar("Settings", bound=BaseModel)


def sensors_of(
    tables: Mapping[str, Settings], path: Path, data_root: Path | None
) -> list[tuple[Sensor, Settings]]:
    """The sensors of `[sensors.*]`, in order, each with its table; one that is named twice raises.

    `path`: the declaration's file.
    """
    found: dict[str, tuple[Sensor, Settings]] = {}
    for key, settings in tables.items():
        sensor = sensor_of(key, path, data_root)
        if sensor.name in found:
            raise DataError(f"{path}: sensors.{key}: sensor {sensor.name!r} is named twice")
        found[sensor.name] = (sensor, settings)
    return list(found.values())


def pixels_of(
    sensor: Sensor,
    settings: PixelSettings,
    *,
    size: Size | None,
    origin: str,
    pictures: bool | None = None,
) -> Pixels:
    """How a sensor's files are decoded.

    `pictures`: JPEG, PNG and the like, which need no settings; left out, those of sensor `rgb`.
    """
    values = {key: getattr(settings, key) for key in PixelSettings.model_fields}
    if sensor.name == "rgb" if pictures is None else pictures:
        for key, value in values.items():
            if value is not None:
                raise DataError(f"{origin}: {key} has no effect on sensor 'rgb'; leave it out")
    return Pixels(sensor=sensor, size=size, **values)
