"""The run folder: whose it is, which recipe it holds, what versions it began with."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from terralign.compute import choose_threads, inference_depends, set_threads
from terralign.errors import StorageError
from terralign.evaluation.metrics import Outcomes
from terralign.evaluation.paired import read_outcomes, write_outcomes
from terralign.evaluation.result import Evaluation
from terralign.evaluation.rows import Role, Row, read_rows
from terralign.files import read_kept_json, write_json, write_text
from terralign.runs.recipe import Recipe, recipe_text
from terralign.toml_paths import TomlPaths
from terralign.toml_values import keep_toml
from terralign.train.stage import Stage, run_stage
from terralign.versions import versions

logger = logging.getLogger(__name__)

MEASURED_VERSION = 3
"""Raised with every change of what figures mean."""

MAX_THREADS = 1024
"""More are no number of threads."""

BEFORE_WORK = frozenset({"recipe.toml", "versions.json", "initial.json"})
"""What a run writes before its first step; packed stores come next, and serve any recipe."""


def is_untouched(folder: Path) -> bool:
    """Whether no run computed anything in `folder`: it holds what a run begins with, packed stores,
    and empty files and folders."""
    for child in folder.iterdir():
        if child.name == "stores" or child.name.startswith("."):
            continue  # not searched: stores may hold very many files
        for path in (child, *child.rglob("*")):
            if path.is_file() and path.name not in BEFORE_WORK and path.stat().st_size > 0:
                return False
    return (folder / "recipe.toml").is_file()


def keep_recipe(recipe: Recipe, folder: Path, data_root: Path | None = None) -> None:
    """Write the resolved recipe, or refuse a folder that holds another one or other files.

    Its paths are relative to the data root or to the folder, so that it can be run again from
    there. Files that moved with their folders, the run's or those of the data, are the same.

    A recipe that was refused before anything was computed makes way for another.
    """
    paths = TomlPaths.beside(folder / "recipe.toml", data_root)
    text = recipe_text(recipe, paths)
    if is_untouched(folder):
        (folder / "versions.json").unlink(missing_ok=True)  # threads chosen for what never ran
        write_text(folder / "recipe.toml", text)
        return
    keep_toml(folder / "recipe.toml", text, kind="run", what="recipe", same=paths.same)


def keep_threads(folder: Path, requested: int | None, *, device: str, num_ranks: int = 1) -> None:
    """Compute with the threads chosen once per run folder, and used again on resume by as many
    processes (`num_ranks`), each of which has so many."""
    path = folder / "versions.json"
    now: dict[str, Any] = {**versions(), "device": device}
    if num_ranks > 1:
        now |= {"device": device.partition(":")[0], "ranks": num_ranks}
    if path.is_file():
        kept = read_kept_json(path, todo="put back a whole copy, or delete it")
        num_threads = kept.get("threads") if isinstance(kept, dict) else None
        if not isinstance(num_threads, int) or not 0 < num_threads <= MAX_THREADS:
            raise StorageError(
                f"{path} is damaged: it does not say how many threads the run began with; put back "
                "a whole copy, or delete it"
            )
        changed = [key for key, value in now.items() if kept.get(key, value) != value]
        if changed:
            logger.warning(
                "this run began with other versions: %s",
                ", ".join(f"{key} {kept.get(key)}, now {now[key]}" for key in changed),
            )
        if kept.get("ranks", 1) != num_ranks:
            num_threads = choose_threads(requested)
    else:
        num_threads = choose_threads(requested)
        write_json(path, {**now, "threads": num_threads})
    set_threads(num_threads)


def keep_measurement(
    folder: Path,
    depends: Mapping[str, Any],
    measure: Callable[[], Evaluation | None],
    *,
    model: str,
    role: Role,
    cache: Path | None = None,
) -> list[Row]:
    """The rows of a measurement: read from the run folder, linked from `cache`, or made and kept.

    `depends`: what the values depend on; its hash names the measurement. `evaluate/NAME.json` holds
    rows and details, `evaluate/NAME.safetensors` the values of every sample, by which models are
    compared; `measurement` in each row is the name. All ranks call `measure`, which returns what
    the first one measured, and None at the others.
    """
    stage = Stage.named_by_identity(
        "a measurement",
        {"code": MEASURED_VERSION, "row": [model, role], **inference_depends(), **depends},
        folder / "evaluate",
        suffixes=(".safetensors",),
        cache=cache,
    )

    def make() -> dict[str, Any]:
        evaluation = measure()
        if evaluation is None:
            return {}
        rows = [
            row.model_copy(update={"measurement": stage.identity})
            for row in evaluation.to_rows(model=model, role=role)
        ]
        write_outcomes(stage.note.with_suffix(".safetensors"), evaluation.result.outcomes)
        return {
            "rows": [row.to_json() for row in rows],
            "evaluation": evaluation.to_json(),
        }

    run_stage(stage, make, together=True)
    return read_rows(stage.note)


def read_measured(folder: Path, row: Row) -> Outcomes | None:
    """The values of every sample behind a row of a run; None where they were not kept."""
    path = folder / "evaluate" / f"{row.measurement}.safetensors"
    return read_outcomes(path) if path.is_file() else None
