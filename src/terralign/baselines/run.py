"""Training and measuring a rival of stage 1, in a run folder.

Its rows are those of model "patched" on what the recipe measures of it. A linear head belongs to
its task: its rows are those of task "linear-head", beside the zero-shot rows of its tower.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from terralign.baselines.linear_probe import (
    LinearProbeSettings,
    evaluate_linear_head,
    probe_then_finetune,
)
from terralign.baselines.prompt_learning import (
    PromptLearningSettings,
    evaluate_learned_prompts,
    learn_prompts,
)
from terralign.compute import choose_device
from terralign.datasets.sample import SampleSet, labels_id, require_labels
from terralign.encoders.clip.load import ClipModel
from terralign.encoders.clip.weights import StateDict
from terralign.encoders.picture_size import picture_size
from terralign.encoders.space import RGB, EmbeddingSpace
from terralign.errors import RecipeError
from terralign.evaluation.classification import choose_class_names
from terralign.evaluation.metrics import MetricResult
from terralign.evaluation.result import Evaluation
from terralign.evaluation.rows import Row
from terralign.files import write_json
from terralign.runs.data import RunData
from terralign.runs.folder import keep_measurement, keep_recipe
from terralign.runs.overlaps import RunOverlaps
from terralign.runs.recipe import EvaluateRecipe, Recipe, asked, recipe_hash
from terralign.runs.run import evaluate_entry, run_recipe
from terralign.toml_paths import identity_of
from terralign.toml_values import explain
from terralign.train.finetune import PatchingTask
from terralign.train.rates import warn_of_patch_rate
from terralign.train.settings import PictureSettings

SETTINGS: dict[str, type[PictureSettings]] = {
    "coop": PromptLearningSettings,
    "lp-ft": LinearProbeSettings,
}


def baseline_settings(method: str, recipe: Recipe, given: Mapping[str, Any]) -> PictureSettings:
    """The settings of a method: what it shares with the recipe's stage 1, and those `given`.

    The budget (epochs, batch size), loss, views and precision are those of stage 1; so are rate and
    decay of LP-FT's tower. Raises `RecipeError` for a setting that the method does not have.
    """
    if recipe.patch is None:
        raise RecipeError(f"{method} needs the data of the patch stage")
    kind = SETTINGS[method]
    shared = set(PictureSettings.model_fields)
    if method == "coop":
        shared -= {"lr", "weight_decay", "decay"}
    else:
        shared |= {"trainable", "frozen", "batch_norm"}
    try:
        return kind.model_validate({**recipe.patch.settings.model_dump(include=shared), **given})
    except ValidationError as error:
        raise RecipeError(f"{method}: {explain(error, kind)}") from error


def run_baseline(
    method: str,
    settings: PictureSettings,
    recipe: Recipe,
    folder: Path,
    *,
    data_root: Path | None,
    device: str | None,
    stores: Path,
    cache: Path | None,
) -> list[Row]:
    """Train and measure a method in `folder`, or resume; `results.json` there as of a run."""
    assert recipe.patch is not None
    start = folder / "start"
    measured = [one for one in recipe.evaluate if one.models]
    bare = recipe.model_copy(
        update={
            "patch": None,
            "evaluate": tuple(one.model_copy(update={"models": ("base",)}) for one in measured),
        }
    )
    start.mkdir(parents=True, exist_ok=True)
    keep_recipe(bare, start)
    base = run_recipe(bare, start, data_root=data_root, device=device, stores=stores, cache=cache)
    space = EmbeddingSpace.load(start / "model").to(choose_device(device))
    data = RunData(recipe, data_root, stores, picture_size(space.input_spec()))
    data.choose_own_prompts(space.prompts)
    overlaps = RunOverlaps(recipe, data)
    overlaps.check()
    stage = _Stage(recipe, space.clip, data, overlaps, folder, cache)
    if recipe.base.pretrain is None and method != "coop":
        warn_of_patch_rate(space.clip.visual, settings.lr, source=space.clip.source)
    rows = [*base.rows, *METHODS[method](stage, settings)]
    write_json(
        folder / "method.json", {"method": method, "settings": settings.model_dump(mode="json")}
    )
    write_json(folder / "results.json", {"rows": [row.to_json() for row in rows]})
    return rows


@dataclass(frozen=True)
class _Stage:
    """What stage 1 has: its recipe, its theta_0, its data."""

    recipe: Recipe
    clip: ClipModel
    data: RunData
    overlaps: RunOverlaps
    folder: Path
    cache: Path | None

    def opened(self, entry: EvaluateRecipe) -> SampleSet:
        return self.data.open(*asked(entry))

    def tower_rows(self, weights: StateDict) -> list[Row]:
        """Rows of an RGB tower's weights on what the recipe measures of its RGB towers."""
        space = EmbeddingSpace(self.clip.with_visual(weights, source="study"))
        rows: list[Row] = []
        for entry in self.recipe.evaluate:
            samples = self.opened(entry)
            prompts = self.data.prompts(samples, entry.prompts)
            measure = partial(evaluate_entry, space, samples, entry, tower=RGB, prompts=prompts)
            depends = {"model": space.space_id, "prompts": prompts.describe()}
            rows += self._kept(entry, samples, depends, measure)
        return rows

    def rows_of(
        self,
        measure: Callable[[], MetricResult],
        entry: EvaluateRecipe,
        samples: SampleSet,
        settings: PictureSettings,
    ) -> list[Row]:
        """Rows of what was trained beside the tower: learned prompts, or a head."""

        def evaluation() -> Evaluation:
            return Evaluation(
                task="multi-label" if require_labels(samples).multi_label else "zero-shot",
                dataset=samples.name,
                split=samples.split,
                space_id="",
                tower=RGB,
                note="",
                prompts=None,
                class_names=None,
                result=measure(),
            )

        depends = {
            "recipe": recipe_hash(self.recipe),
            "method": type(settings).__name__,
            "settings": settings.model_dump(mode="json"),
        }
        return self._kept(entry, samples, depends, evaluation)

    def _kept(
        self,
        entry: EvaluateRecipe,
        samples: SampleSet,
        depends: Mapping[str, Any],
        measure: Callable[[], Evaluation],
    ) -> list[Row]:
        rows = keep_measurement(
            self.folder,
            {
                **depends,
                "data": samples.fingerprint,
                "labels": labels_id(samples),
                "entry": identity_of(entry.model_dump(mode="json")),
            },
            measure,
            model="patched",
            role=entry.role,
            cache=self.cache,
        )
        return self.overlaps.noted(rows, samples, "patched", ())


def _coop(stage: _Stage, settings: Any) -> list[Row]:
    prompts = learn_prompts(
        stage.clip,
        stage.data.patching.tasks,
        settings,
        stage.folder / "coop",
        seed=stage.recipe.seed,
    )
    rows: list[Row] = []
    for entry in stage.recipe.evaluate:
        if entry.task == "retrieval":
            continue  # of captions, which name no class
        samples = stage.opened(entry)
        task = PatchingTask(
            samples=samples,
            prompts=stage.data.prompts(samples, entry.prompts),
            class_names=choose_class_names(samples, entry.classes),
        )
        measure = partial(evaluate_learned_prompts, stage.clip, prompts, task)
        rows += stage.rows_of(measure, entry, samples, settings)
    return rows


def _probed(stage: _Stage, settings: Any) -> list[Row]:
    tasks = stage.data.patching.tasks
    result = probe_then_finetune(
        stage.clip, tasks, settings, stage.folder / "lp-ft", seed=stage.recipe.seed
    )
    clip = stage.clip.with_visual(result.finetuned, source="lp-ft")
    heads = {task.samples.name: head for task, head in zip(tasks, result.heads, strict=True)}
    rows = stage.tower_rows(result.finetuned)
    for entry in stage.recipe.evaluate:
        samples = stage.opened(entry)
        if entry.task == "zero-shot" and samples.name in heads:
            measure = partial(evaluate_linear_head, clip, heads[samples.name], samples)
            own = stage.rows_of(measure, entry, samples, settings)
            rows += [row.model_copy(update={"task": "linear-head"}) for row in own]
    return rows


METHODS: dict[str, Callable[[_Stage, Any], list[Row]]] = {"coop": _coop, "lp-ft": _probed}
"""Method -> what trains and measures it."""
