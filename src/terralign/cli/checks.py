"""What commands check before torch is imported, so that a slip in a name is reported at once."""

from __future__ import annotations

import glob
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from terralign.datasets.facts import check_data_root, check_name
from terralign.encoders.prompt_sets import load_prompts
from terralign.encoders.sources import check_source, sensors_of
from terralign.errors import DataError, SensorError, shown
from terralign.files import missing_hint, read_toml
from terralign.sensors import Sensor, find_sensor
from terralign.toml_paths import TomlPaths, model_names
from terralign.toml_values import read_named

if TYPE_CHECKING:
    from terralign.scenes.scene import Scene


def check_recipe(recipe: str, data_root: Path | None, *, base: str | None = None) -> None:
    """A recipe by name or TOML file, the files that it names, and the data root."""
    read_named("recipe", recipe)
    check_data_root(data_root)
    if base is not None and TomlPaths.here(data_root).find(base) is None:
        check_source(base)


def check_data(data: str, data_root: Path | None) -> None:
    """A data set by name, TOML file or store, and the data root."""
    if data.endswith(".toml"):
        read_toml(Path(data), what="data set file", fault=DataError)
    else:
        check_name(data, data_root)
    check_data_root(data_root)


def check_prompts(name: str | None) -> None:
    """A prompt set by name, or that its TOML file can be read."""
    if name is not None:
        load_prompts(name)


def check_sensor(name: str | None, model: str | None) -> Sensor | None:
    """The sensor of this name: a built-in one, one of the model's own, or that of a TOML file."""
    own = {} if model is None else sensors_of(model)
    return None if name is None else find_sensor(name, own)


def open_alone(
    paths: Sequence[str], sensor: Sensor | None, reading: Mapping[str, Any]
) -> Scene | None:
    """The picture, GeoTIFF or product that is a command's only input; None for any others, which
    are opened, and reported, one by one."""
    if len(paths) != 1 or not Path(paths[0]).exists():
        return None
    from terralign.encoders.vectors import as_fault
    from terralign.scenes.catalogues import is_catalogue
    from terralign.scenes.inputs import find_inputs
    from terralign.scenes.scene import open_scene

    path = Path(paths[0])
    if is_catalogue(path):
        return None
    names = ("bands", "dn_offset", "units", "composite")
    try:
        if find_inputs(path, sensor=sensor) != [path]:
            return None
        return open_scene(path, sensor=sensor, **{name: reading[name] for name in names})
    except (DataError, SensorError, OSError) as error:
        raise as_fault(str(path), error).as_error() from error


def check_paths(paths: Sequence[str]) -> None:
    """Files, folders and patterns (`tiles/*.tif`), where none of them exists.

    Of several the command reports each."""
    from terralign.scenes.catalogues import is_remote_source

    files = [path for path in paths if not is_remote_source(path)]
    missing = [path for path in files if not Path(path).exists() and not glob.has_magic(path)]
    if missing and len(missing) == len(paths):
        if missing[0] in model_names():
            raise DataError(
                f"{missing[0]} is a model, not imagery; the model comes before the files"
            )
        raise DataError(
            f"{', '.join(map(shown, missing[:3]))}{', ...' if missing[3:] else ''} not found"
            f"{missing_hint(Path(missing[0]))}"
        )
