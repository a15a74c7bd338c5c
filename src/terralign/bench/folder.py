"""The bench folder: which suite it holds, which models its names stand for, with which versions."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from terralign.bench.suite import Suite, suite_text
from terralign.encoders.clip.weights import read_shapes
from terralign.errors import ModelError, RecipeError, StorageError
from terralign.files import hash_json, read_json, set_aside, write_json, write_text
from terralign.toml_paths import TomlPaths
from terralign.toml_values import keep_toml
from terralign.train.stage import Stage


def keep_suite(suite: Suite, folder: Path, data_root: Path | None = None) -> None:
    """Write the resolved suite, or refuse a folder that holds another one or other files.

    A folder in which nothing was measured, such as one of a mistyped model, takes another.
    """
    path = folder / "suite.toml"
    paths = TomlPaths.beside(path, data_root)
    text = suite_text(suite, paths)
    try:
        keep_toml(path, text, kind="bench", what="suite", same=paths.same)
    except RecipeError:
        if any((folder / "measurements").glob("*.json")):
            raise
        for name in ("models.json", "results.json", "results.parquet"):  # of the other suite
            (folder / name).unlink(missing_ok=True)
        write_text(path, text)


def keep_models(folder: Path, name: str, source: str, model_id: str) -> None:
    """Remember what a name stands for, or refuse another model of the same name."""
    known = read_names(folder / "models.json")
    if name in known and known[name].get("model_id") != model_id:
        raise RecipeError(
            f"{folder} knows {name!r} as model {known[name]['model_id']} ({known[name]['source']}),"
            f" and {source} is {model_id}; give it another name (NAME={source}) or another --out"
        )
    if name not in known:
        entry = {"source": source, "model_id": model_id}
        write_json(folder / "models.json", {**known, name: entry})


def keep_versions(folder: Path, measured: Mapping[str, str]) -> None:
    """Keep in `versions.json` what the name of the versions that measured, their hash, is."""
    path, name = folder / "versions.json", hash_json(measured)
    known = read_names(path)
    if name not in known:
        write_json(path, {**known, name: dict(measured)})


def read_names(path: Path) -> dict[str, dict[str, Any]]:
    """Name -> what it stands for, of `models.json` or `versions.json`; empty without the file."""
    if not path.is_file():
        return {}
    fault = f"{path} is damaged; put back a whole copy, or delete it: it is written again"
    try:
        known = read_json(path)
    except StorageError as error:
        raise StorageError(f"{error}. {fault}") from error
    if not isinstance(known, dict) or not all(isinstance(one, dict) for one in known.values()):
        raise StorageError(fault)
    return known


def set_damaged_aside(stage: Stage) -> None:
    """Rename damaged safetensors files of a stage, in its folder and in the cache, with a warning,
    so that it is made again."""
    folders = [stage.note.parent] if stage.shared is None else [stage.note.parent, stage.shared]
    for path in (folder / name for folder in folders for name in stage.files):
        try:
            if path.is_file():
                read_shapes(path)
        except ModelError as error:
            set_aside(path, error)
