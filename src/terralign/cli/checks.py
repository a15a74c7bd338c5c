"""What commands check before torch is imported, so that a slip in a name is reported at once."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from terralign.datasets.facts import check_data_root, check_name
from terralign.encoders.sources import check_source
from terralign.errors import DataError, RecipeError, nearest
from terralign.files import read_toml, shipped_names
from terralign.sensors import find_sensor
from terralign.toml_paths import TomlPaths
from terralign.toml_values import read_named


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
    if name is None or name == "openai-imagenet":
        return
    if name.endswith(".toml"):
        read_toml(Path(name), what="prompt file", fault=RecipeError)
    elif name not in (known := shipped_names("encoders/prompts")):
        raise RecipeError(
            f"unknown prompt set {name!r}; {nearest(name, [*known, 'openai-imagenet'])} "
            "(or the path of a .toml file)"
        )


def check_sensor(name: str | None) -> None:
    """A sensor's TOML file; names may be those of a model's own sensors."""
    if name is not None and name.endswith(".toml"):
        find_sensor(name)


def check_paths(paths: Sequence[Path]) -> None:
    """Files and folders, where none of them exists; of several the command reports each."""
    missing = [path for path in paths if not path.exists()]
    if missing and len(missing) == len(paths):
        raise DataError(
            f"{', '.join(map(str, missing[:3]))}{', ...' if missing[3:] else ''} not found"
        )
