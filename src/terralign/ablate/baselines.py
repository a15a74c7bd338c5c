"""Methods that take the place of stage 1, on its data, its batches and its budget.

`coop`: learned context tokens, both towers frozen (`train/prompt_learning.py`). `lp-ft`: a linear
head, then head and tower (`train/linear_probe.py`).

Their rows are those of model "patched" on what the recipe measures of it. A linear head belongs to
its task: its rows are those of task "linear-head", beside the zero-shot rows of its tower.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from terralign.ablate.study import Planned
from terralign.compute import choose_device
from terralign.datasets.sample import SampleSet, require_labels
from terralign.encoders.clip.load import ClipModel
from terralign.encoders.clip.weights import StateDict
from terralign.encoders.space import RGB, EmbeddingSpace
from terralign.errors import RecipeError
from terralign.evaluation.classification import choose_class_names
from terralign.evaluation.metrics import MetricResult
from terralign.evaluation.result import Evaluation
from terralign.evaluation.rows import Row
from terralign.files import hash_json, write_json
from terralign.runs.data import RunData
from terralign.runs.folder import keep_measurement, keep_recipe
from terralign.runs.overlaps import RunOverlaps
from terralign.runs.recipe import EvaluateRecipe, PatchRecipe, Recipe, recipe_hash
from terralign.runs.run import evaluate_entry, run_recipe
from terralign.toml_paths import identity_of
from terralign.toml_values import explain
from terralign.train.finetune import PatchingTask
from terralign.train.labelled_pictures import PictureSettings
from terralign.train.linear_probe import (
    LinearProbeSettings,
    evaluate_linear_head,
    probe_then_finetune,
)
from terralign.train.prompt_learning import (
    PromptLearningSettings,
    evaluate_learned_prompts,
    learn_prompts,
)
from terralign.train.rates import warn_of_patch_rate

Rows = list[Row]


SETTINGS: dict[str, type[BaseModel]] = {
    "coop": PromptLearningSettings,
    "lp-ft": LinearProbeSettings,
}


def check_settings(planned: Planned) -> BaseModel | None:
    """The settings of a variant's method; None for the recipe's own stages.

    The budget (epochs, batch size), loss, views and precision are those of stage 1; so are rate and
    decay of LP-FT's tower. Raises `RecipeError` for a setting the method does not have.
    """
    variant, recipe = planned.variant, planned.recipe
    if variant.method == "recipe":
        return None
    kind = SETTINGS[variant.method]
    if recipe.patch is None:
        raise RecipeError(f"variant {variant.name}: {variant.method} needs the patch stage's data")
    same: dict[str, Any] = {}
    if issubclass(kind, PictureSettings):
        own = {"lr", "weight_decay", "decay"} if variant.method == "coop" else set()
        names = set(PictureSettings.model_fields) - own
        if variant.method == "lp-ft":
            names |= {"trainable", "frozen", "batch_norm"}
        same = {name: getattr(recipe.patch, name) for name in names}
    elif recipe.patch.batch_norm == "train":
        raise RecipeError(
            f"variant {variant.name}: {variant.method} does not estimate batch-norm statistics "
            'anew; use batch_norm = "frozen"'
        )
    try:
        return kind.model_validate({**same, **variant.settings})
    except ValidationError as error:
        raise RecipeError(
            f"variant {variant.name}, {variant.method}: {explain(error, kind)}"
        ) from error


def run_baseline(
    planned: Planned,
    folder: Path,
    *,
    data_root: Path | None,
    device: str | None,
    stores: Path,
    cache: Path | None,
) -> Rows:
    """Train and measure a method in `folder`, or go on; `results.json` there as of a run."""
    recipe, settings = planned.recipe, check_settings(planned)
    assert recipe.patch is not None
    assert settings is not None
    start = folder / "start"
    bare = recipe.model_copy(
        update={
            "patch": None,
            "evaluate": tuple(
                entry.model_copy(update={"models": ("base",)})
                for entry in recipe.evaluate
                if entry.models
            ),
        }
    )
    start.mkdir(parents=True, exist_ok=True)
    keep_recipe(bare, start)
    result = run_recipe(bare, start, data_root=data_root, device=device, stores=stores, cache=cache)
    rows = list(result.rows)
    base = EmbeddingSpace.load(start / "model").to(choose_device(device))
    data = RunData(recipe, data_root, stores)
    data.size = base.input_spec().size
    data.choose_own_prompts(base.prompts)
    overlaps = RunOverlaps(recipe, data)
    overlaps.check()
    stage = _Stage(recipe, recipe.patch, base.clip, data, overlaps, folder, cache)
    if recipe.base.pretrain is None and planned.variant.method != "coop":
        rate = getattr(settings, "lr", recipe.patch.lr)
        warn_of_patch_rate(base.clip.visual, rate, source=base.clip.source)
    found, note = METHODS[planned.variant.method](stage, settings)
    rows += found
    write_json(folder / "method.json", {"method": planned.variant.method, **note})
    write_json(folder / "results.json", {"rows": [row.to_json() for row in rows]})
    return rows


@dataclass(frozen=True)
class _Stage:
    """What stage 1 has: its recipe, its theta_0, its data."""

    recipe: Recipe
    settings: PatchRecipe
    clip: ClipModel
    data: RunData
    overlaps: RunOverlaps
    folder: Path
    cache: Path | None

    def tasks(self) -> list[PatchingTask]:
        return self.data.patching_tasks(self.settings)[0]

    def opened(self, entry: EvaluateRecipe) -> SampleSet:
        return self.data.open(entry.data, entry.split, entry.limit, entry.composite)

    def measured(self, weights: StateDict) -> Rows:
        """Rows of an RGB tower's weights on what the recipe measures of its RGB towers."""
        space = EmbeddingSpace(self.clip.with_visual(weights, source="study"))
        rows: Rows = []
        for entry in self.recipe.evaluate:
            samples = self.opened(entry)
            measure = partial(
                evaluate_entry, space, samples, entry, tower=RGB,
                prompts=self.data.prompts(samples, entry.prompts),
            )  # fmt: skip
            rows += self._kept(entry, samples, space.space_id, measure)
        return rows

    def rows_of(
        self,
        measure: Callable[[], MetricResult],
        entry: EvaluateRecipe,
        samples: SampleSet,
        settings: BaseModel,
    ) -> Rows:
        """Rows of figures that do not come from a space's own texts, but from what was trained."""
        trained = {
            "recipe": recipe_hash(self.recipe),
            "method": type(settings).__name__,
            "settings": settings.model_dump(mode="json"),
        }

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

        return self._kept(entry, samples, hash_json(trained), evaluation)

    def _kept(
        self,
        entry: EvaluateRecipe,
        samples: SampleSet,
        model: str,
        measure: Callable[[], Evaluation],
    ) -> Rows:
        identity = {
            "model": model,
            "data": samples.fingerprint,
            "entry": identity_of(entry.model_dump(mode="json")),
        }
        rows = keep_measurement(
            self.folder, identity, measure, model="patched", role=entry.role, cache=self.cache
        )
        note = self.overlaps.note(samples, "patched", ())
        return rows if note is None else [row.model_copy(update={"note": note}) for row in rows]


def _coop(stage: _Stage, settings: Any) -> tuple[Rows, dict[str, Any]]:
    prompts = learn_prompts(
        stage.clip, stage.tasks(), settings, stage.folder / "coop", seed=stage.recipe.seed
    )
    rows: Rows = []
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
    return rows, {"settings": settings.model_dump(mode="json")}


def _probed(stage: _Stage, settings: Any) -> tuple[Rows, dict[str, Any]]:
    tasks = stage.tasks()
    result = probe_then_finetune(
        stage.clip, tasks, settings, stage.folder / "lp-ft", seed=stage.recipe.seed
    )
    clip = stage.clip.with_visual(result.finetuned, source="lp-ft")
    heads = {task.samples.name: head for task, head in zip(tasks, result.heads, strict=True)}
    rows = stage.measured(result.finetuned)
    for entry in stage.recipe.evaluate:
        samples = stage.opened(entry)
        if entry.task == "zero-shot" and samples.name in heads:
            measure = partial(evaluate_linear_head, clip, heads[samples.name], samples)
            own = stage.rows_of(measure, entry, samples, settings)
            rows += [row.model_copy(update={"task": "linear-head"}) for row in own]
    return rows, {"settings": settings.model_dump(mode="json")}


METHODS: dict[str, Callable[[_Stage, Any], tuple[Rows, dict[str, Any]]]] = {
    "coop": _coop,
    "lp-ft": _probed,
}
"""Method -> what trains and measures it: its rows, and what it chose."""
