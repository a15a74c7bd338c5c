"""Paths in TOML files: relative to the file that names them, then to the data root.

Once read they are absolute, so that no working directory matters. Where a file is kept in a run's
folder, they are written relative to the data root or to that folder; in identities only the last
name counts, since what a path leads to has its own identity.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Container
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from terralign.errors import RecipeError, shown
from terralign.files import find_missing, not_found, read_shipped

PATH_KEYS = frozenset({"data", "prompts", "average_prompts", "sensors", "model", "initial"})
"""The keys of recipes and suites whose texts, or lists of texts, may be paths."""

_ANY_PATH = frozenset({"model", "initial"})
"""Those that name files and folders of any kind; the others name TOML files, data also stores."""

WEIGHTS_SUFFIXES = (".pt", ".pth", ".bin", ".ckpt", ".safetensors")
"""Endings of files of weights."""

SHIPPED_MODELS = {"starter": "space.json", "starter:base": "base.json"}
"""Names of the models that come with terralign -> the file in `models/starter` that describes each.
"""


@cache
def model_names() -> frozenset[str]:
    """Short names of models (`terralign info models`), which no path of the same name hides."""
    return frozenset({*SHIPPED_MODELS, *read_shipped("encoders", "models")})


_NOT_OURS = frozenset({"architecture"})
"""Tables of other libraries, whose keys mean something else."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TomlPaths:
    """Where relative paths are looked for.

    `folder`: of the TOML file; None for one that ships. `data_root`: None where none was given.
    """

    folder: Path | None
    data_root: Path | None = None

    @classmethod
    def beside(cls, file: Path, data_root: Path | None = None) -> TomlPaths:
        """Those of the TOML file `file`."""
        return cls(folder=Path(os.path.abspath(file)).parent, data_root=data_root)

    @classmethod
    def named(cls, name_or_path: str, data_root: Path | None = None) -> TomlPaths:
        """Those of a TOML file, or of one that ships, by name: the data root alone."""
        if name_or_path.endswith(".toml"):
            return cls.beside(Path(name_or_path), data_root)
        return cls(folder=None, data_root=data_root)

    @classmethod
    def here(cls, data_root: Path | None = None) -> TomlPaths:
        """Those of the command line: relative to the working directory, then to the data root."""
        return cls(folder=Path.cwd(), data_root=data_root)

    def find(self, written: str | Path) -> Path | None:
        """The file or folder, absolute; None where it is not found."""
        for base in (self.folder, self.data_root):
            if base is not None and _exists(base / written):
                return Path(os.path.abspath(base / written))
        return None

    def not_found(self, written: str | Path) -> str:
        """The error text for a path that was not found, with the places that were searched."""
        if Path(written).is_absolute():
            return not_found(written)
        places = [] if self.folder is None else [str(self.folder)]
        if self.data_root is not None:
            places.append(f"the data root {self.data_root}")
        hint = "" if self.data_root is not None else "; no data root was given to look in"
        bases = [one for one in (self.folder, self.data_root) if one is not None]
        missing = (find_missing(base / written) for base in bases)
        near = next((one.hint for one in missing if one.near), "")
        where = " and ".join(places) or "no folder"
        return f"{shown(written)} not found{near}; looked in {where}{hint}"

    def resolve(self, values: Any, *, names: Container[str] = ()) -> Any:
        """A copy of a TOML file's values, its paths absolute. `names`: of data sets.

        `RecipeError` for a TOML file that is not found. A model, checkpoint or store that is not
        found stays as it is written: it may be the name of something else.
        """

        def resolve(key: str, written: str) -> str:
            if key in _ANY_PATH:
                if written in model_names():
                    return written
                prefix, path = _split(written)
                found = self.find(path)
                return written if found is None else f"{prefix}{found}"
            if not written.endswith(".toml"):
                store = self.find(written) if key == "data" and written not in names else None
                return written if store is None else str(store)
            found = self.find(written)
            if found is None:
                raise RecipeError(f"{key}: {self.not_found(written)}")
            return str(found)

        return _map(values, resolve)

    def portable(self, values: Any) -> Any:
        """The reverse of `resolve`: paths below the data root relative to it, others to `folder`.

        Absolute ones stay where there is no `folder`.
        """

        def relative(key: str, written: str) -> str:
            prefix, path = _split(written)
            if not os.path.isabs(path):
                return written
            if self.data_root is not None:
                root = os.path.abspath(self.data_root)
                if os.path.commonpath([root, path]) == root and path != root:
                    return prefix + os.path.relpath(path, root)
            return written if self.folder is None else prefix + os.path.relpath(path, self.folder)

        return _map(values, relative)

    def same(self, before: Any, after: Any) -> bool:
        """Whether two written paths, or lists of them, mean the same file.

        `after` counts as `before` moved where only their folders differ and `before` is gone.
        """
        if isinstance(before, list) and isinstance(after, list):
            return len(before) == len(after) and all(map(self.same, before, after))
        if before == after:
            return True
        if not (isinstance(before, str) and isinstance(after, str)):
            return False
        (old_prefix, old), (new_prefix, new) = _split(before), _split(after)
        if old_prefix != new_prefix or Path(old).name != Path(new).name:
            return False
        found, now = self.find(old), self.find(new)
        return now is not None and found in (None, now)


def identity_of(values: Any) -> Any:
    """A copy of values for hashes: of absolute paths the last name alone."""

    def name(key: str, written: str) -> str:
        prefix, path = _split(written)
        return prefix + Path(path).name if os.path.isabs(path) else written

    return _map(values, name)


def _exists(path: Path) -> bool:
    """False also for a text that can be no path, as one that is too long."""
    try:
        return path.exists()
    except (OSError, ValueError):
        return False


def _split(written: str) -> tuple[str, str]:
    """`ARCHITECTURE:FILE` in two, the colon with the first; other texts are all path, and
    `hf-hub:ORG/NAME` and `ARCHITECTURE:TAG` are paths to nothing."""
    prefix, separator, rest = written.partition(":")
    is_file = separator and "/" not in prefix and rest.endswith(WEIGHTS_SUFFIXES)
    return (prefix + separator, rest) if is_file else ("", written)


def _map(values: Any, change: Callable[[str, str], str]) -> Any:
    if isinstance(values, list | tuple):
        return [_map(one, change) for one in values]
    if not isinstance(values, dict):
        return values
    changed = {}
    for key, value in values.items():
        if key in PATH_KEYS and isinstance(value, str):
            value = change(key, value)
        elif key in PATH_KEYS and isinstance(value, list | tuple):
            value = [
                change(key, one) if isinstance(one, str) else _map(one, change) for one in value
            ]
        elif key not in _NOT_OURS:
            value = _map(value, change)
        changed[key] = value
    return changed
