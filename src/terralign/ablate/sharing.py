"""What runs of a study have in common, computed once: linked into every run folder that needs it.

Shared are a pretrained base, the fine-tuned weights of stage 1, its curve over alpha and aligned
towers, each named by the hash of all that it depends on, and stored teacher views, which bear such
names already. A run folder stays whole: it can be resumed, read and moved by itself. What is linked
is checked again by the stage that reads it.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from terralign.files import atomic_path, hash_json
from terralign.runs.recipe import PatchRecipe, Recipe
from terralign.toml_paths import TomlPaths
from terralign.train.finetune import FinetuneSettings

Finished = Callable[[Path], Iterator[Path]]
"""Folder of a stage -> its finished files; what says that the others are complete comes last."""


class SharedStages:
    """The folder of what runs share; `take` before a run, `give` after it, finished or not."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def take(self, recipe: Recipe, run: Path) -> None:
        """Link what other runs have finished and this one would compute again."""
        for shared, own, finished in self._places(recipe, run):
            _link_all(shared, own, finished)

    def give(self, recipe: Recipe, run: Path) -> None:
        """Link what this run has finished, for others."""
        for shared, own, finished in self._places(recipe, run):
            _link_all(own, shared, finished)

    def _places(self, recipe: Recipe, run: Path) -> Iterator[tuple[Path, Path, Finished]]:
        """(shared folder, folder in the run, its finished files) of each stage."""
        paths = TomlPaths(folder=Path(os.path.abspath(self.folder)))

        def name(values: dict[str, Any]) -> str:
            return hash_json(paths.portable(values))

        base: dict[str, Any] = {"base": recipe.base.model_dump(mode="json")}
        if recipe.base.pretrain is not None:
            pretrained = {**base, "seed": recipe.seed}
            yield self.folder / f"base-{name(pretrained)}", run / "base", _base
        if recipe.patch is not None:
            finetuned = {**base, "seed": recipe.seed, **_finetuning(recipe.patch)}
            yield self.folder / f"finetuned-{name(finetuned)}", run / "patch", _weights
            curve = {**finetuned, **_curve(recipe.patch)}
            yield self.folder / f"curve-{name(curve)}", run / "patch", _curves
        if recipe.align:
            yield self.folder / "teacher", run / "teacher", _views
        for tower in recipe.align:
            aligned = {
                **base,
                "seed": recipe.seed,
                "patch": recipe.patch and recipe.patch.model_dump(mode="json"),
                "align": tower.model_dump(mode="json"),
            }
            yield self.folder / f"tower-{name(aligned)}", run / "align" / tower.name, _tower


def _finetuning(patch: PatchRecipe) -> dict[str, Any]:
    """What the fine-tuned weights depend on, beside base and seed."""
    if patch.mode == "sequential":  # each task starts from the alpha chosen for the one before
        return {"patch": patch.model_dump(mode="json")}
    settings = {*FinetuneSettings.model_fields, "preserve_on", "mode"}
    return {
        "settings": patch.model_dump(mode="json", include=settings),
        "tasks": [
            task.model_dump(mode="json", exclude={"validation", "validation_limit"})
            for task in patch.tasks
        ],
    }


def _curve(patch: PatchRecipe) -> dict[str, Any]:
    """What the curve over alpha depends on besides."""
    return {"curve": patch.model_dump(mode="json", include={"alphas", "tasks", "supported"})}


def _base(folder: Path) -> Iterator[Path]:
    complete = folder / "open_clip_config.json"
    if complete.is_file():
        yield from sorted(path for path in folder.iterdir() if path.is_file() and path != complete)
        yield complete


def _weights(folder: Path) -> Iterator[Path]:
    for complete in sorted(folder.rglob("finetuned.json")):
        log = complete.parent / "checkpoints" / "metrics.jsonl"
        if log.is_file():
            yield log
        yield from (complete.with_suffix(".safetensors"), complete)


def _curves(folder: Path) -> Iterator[Path]:
    yield from sorted(folder.rglob("sweep.json"))


def _tower(folder: Path) -> Iterator[Path]:
    complete = folder / "tower.json"
    if complete.is_file():
        others = (folder / "initial.json", folder / "metrics.jsonl")
        yield from (path for path in others if path.is_file())
        yield from (folder / "tower.safetensors", complete)


def _views(folder: Path) -> Iterator[Path]:
    for complete in sorted(folder.glob("views-*.json")):
        views = complete.with_suffix(".npy")
        if views.is_file():
            yield from (views, complete)


def _link_all(source: Path, target: Path, finished: Finished) -> None:
    if source.is_dir():
        for path in list(finished(source)):
            _link(path, target / path.relative_to(source))


def _link(source: Path, target: Path) -> None:
    """A hard link where the disk has them, else a copy. Notes and logs, to which a run may write,
    are copied. What is there stays."""
    if target.exists():
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.suffix not in (".json", ".jsonl"):
        with suppress(OSError):  # another disk, or one without hard links
            os.link(source, target)
            return
    with atomic_path(target) as partial:
        shutil.copyfile(source, partial)
