"""A run as data: the TOML recipe base -> patch -> align* -> evaluate.

A misspelt key, a setting without effect and data that would be validated on itself are refused
before anything is computed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, Self

import tomli_w
from pydantic import Field, ValidationError, model_validator

from terralign.datasets.catalog import DATASETS, find_dataset
from terralign.encoders.backbones import CUSTOM
from terralign.encoders.prompt_sets import load_prompts
from terralign.errors import RecipeError, TerralignError, nearest
from terralign.evaluation.rows import Role
from terralign.files import hash_json
from terralign.precision import Precision
from terralign.sensors import find_sensor
from terralign.toml_paths import TomlPaths, identity_of
from terralign.toml_values import (
    FolderName,
    Holding,
    Strict,
    apply_override,
    explain,
    read_named,
    without_none,
)
from terralign.train.settings import (
    AlignSettings,
    PatchSettings,
    PretrainSettings,
    StudentSettings,
    student_scaling,
)

NeedName = Literal["download_gb", "disk_gb", "memory_gb", "cpu_hours", "gpu_hours"]

Asked = tuple[str, str, int | None, str | None]
"""Data set, split, limit, composite."""

RgbModel = Literal["base", "finetuned", "patched"]


class Needs(Strict):
    """What a run of the recipe takes, for readers: it changes nothing of the run, and is no part of
    its identity. What is left out is not known."""

    download_gb: float | None = Field(default=None, ge=0)
    """Data sets and weights that are fetched."""
    disk_gb: float | None = Field(default=None, ge=0)
    """Data, packed stores and run folder together."""
    memory_gb: float | None = Field(default=None, ge=0)
    """Main memory at most, of a run on CPU."""
    cpu_hours: float | None = Field(default=None, ge=0)
    """Hours of one CPU core; on two cores about half."""
    gpu_hours: float | None = Field(default=None, ge=0)
    """Hours of one GPU instead."""
    estimated: tuple[NeedName, ...] = ()
    """Which of these were not measured."""
    source: str = ""
    """Where the numbers come from."""


class BaseRecipe(Strict):
    """The CLIP to start from: one that exists, or a small one that is pretrained first."""

    model: str | None = None
    """A space or open_clip folder, hf-hub:ORG/NAME, hf-hub:ORG/NAME@REVISION, ARCHITECTURE:TAG or
    ARCHITECTURE:FILE."""
    sha256: str | None = Field(default=None, pattern=r"^[0-9a-fA-F]{64}$")
    """The SHA-256 of its file of weights; another file is refused before it is read."""
    revisions: dict[str, str] | None = None
    """Hub models that it fetches, also text towers and tokenizers: name -> commit, tag or branch;
    others are fetched as they are now."""
    pretrain: PretrainSettings | None = None

    @model_validator(mode="after")
    def _one_of_both(self) -> Self:
        if (self.model is None) == (self.pretrain is None):
            raise ValueError("base needs either model or pretrain")
        if self.model is None and (self.sha256 or self.revisions):
            raise ValueError("sha256 and revisions have no effect with pretrain; leave them out")
        return self


class TaskData(Strict):
    """A labelled data set of stage 1."""

    data: str
    """A data set's name, or the path of a TOML that declares one."""
    train: str = "train"
    validation: str = "val"
    prompts: str | None = None
    """A prompt set; None: the data set's own."""
    classes: str | None = None
    """OpenAI's class names for ImageNet ("openai-imagenet"); None: the data set's own."""
    composite: str | None = None
    """The RGB recipe of the data's sensor ("paper-l1c"); None: that which the data set declares."""
    limit: int | None = Field(default=None, ge=1)
    """At most this many training samples, always the same."""
    validation_limit: int | None = Field(default=None, ge=1)


class SupportedData(Strict):
    """A data set whose accuracy must hold."""

    data: str
    validation: str = "val"
    prompts: str | None = None
    classes: str | None = None
    composite: str | None = None
    """The RGB recipe of the data's sensor ("paper-l1c"); None: that which the data set declares."""
    validation_limit: int | None = Field(default=None, ge=1)


class UnlabelledData(Strict):
    """Pictures whose labels are not used."""

    data: str
    split: str = "train"
    composite: str | None = None
    """The RGB recipe of the data's sensor ("paper-l1c"); None: that which the data set declares."""
    limit: int | None = Field(default=None, ge=1)


class PatchRecipe(Holding):
    """Stage 1: its data and its settings, whose keys are beside those of the data."""

    settings: PatchSettings = PatchSettings()
    preserve_on: UnlabelledData | None = None
    """Pictures on which `preserve_unlabelled` keeps the tower's embeddings."""

    tasks: tuple[TaskData, ...] = Field(min_length=1)
    supported: tuple[SupportedData, ...] = ()


class AlignData(Strict):
    """A data set of stage 2."""

    data: str
    split: str = "train"
    labels: bool = False
    """Whether the label loss (or the validation) uses its labels."""
    prompts: str | None = None
    repeats: int = Field(default=1, ge=1)
    """How often its samples are seen per epoch, each time in another view."""
    composite: str | None = None
    """The RGB recipe that the teacher's pictures are made by; None: that which the data set
    declares."""
    limit: int | None = Field(default=None, ge=1)
    """At most this many samples, always the same."""


class AlignRecipe(Holding):
    """Stage 2 for one tower: its sensors, student, data and settings."""

    settings: AlignSettings = AlignSettings()
    name: FolderName = Field(pattern=r"^[a-z0-9][a-z0-9-]*$")
    """The tower's name in the space."""
    sensors: tuple[str, ...] = Field(min_length=1)
    """The sensors it accepts."""
    student: StudentSettings = StudentSettings()
    data: tuple[AlignData, ...] = Field(min_length=1)
    validation: AlignData | None = None
    """For keep = "best"."""

    @property
    def sources(self) -> tuple[AlignData, ...]:
        """What it opens: its training data, and its validation data where it has them."""
        return self.data if self.validation is None else (*self.data, self.validation)

    @model_validator(mode="after")
    def _student_can_be_built(self) -> Self:
        if self.student.backbone == CUSTOM:
            raise ValueError("a custom encoder is given in Python (terralign.align), not here")
        return self

    @model_validator(mode="after")
    def _validation_has_an_effect(self) -> Self:
        if self.validation is not None and self.validation.repeats != 1:
            raise ValueError("repeats has no effect on validation; leave it out")
        if self.validation is not None and self.validation.labels and self.validation.composite:
            raise ValueError(
                "composite has no effect on validation with labels, which no teacher sees; "
                "leave it out"
            )
        return self


class EvaluateRecipe(Strict):
    """One measurement, of several models."""

    data: str
    split: str
    role: Role
    task: Literal["zero-shot", "retrieval"] = "zero-shot"
    models: tuple[RgbModel, ...] = ()
    """The RGB towers to measure; for retrieval leave it out."""
    towers: tuple[str, ...] = ()
    """The aligned towers to measure."""
    query: str | None = None
    """Retrieval: "text", "rgb" or a tower."""
    gallery: str | None = None
    prompts: str | None = None
    classes: str | None = None
    composite: str | None = None
    """The RGB recipe that RGB towers see; None: that which the data set declares."""
    limit: int | None = Field(default=None, ge=1)
    """At most this many samples, always the same."""

    @model_validator(mode="after")
    def _fits_its_task(self) -> Self:
        if self.task == "retrieval":
            if not (self.query and self.gallery):
                raise ValueError("retrieval needs query and gallery")
            if self.models or self.towers:
                raise ValueError("models and towers have no effect on retrieval; leave them out")
        elif self.query or self.gallery:
            raise ValueError("query and gallery have no effect on zero-shot; leave them out")
        elif not (self.models or self.towers):
            raise ValueError("name the models (base, finetuned, patched) or towers to measure")
        sees_rgb = "rgb" in (self.query, self.gallery) or self.models or "rgb" in self.towers
        if self.composite is not None and not sees_rgb:
            raise ValueError("composite has no effect where no RGB tower is measured; leave it out")
        return self


class SearchRecipe(Strict):
    """A scene of the synthetic world, embedded by a tower and searched by the names of what covers
    it."""

    tower: str
    """An aligned tower that takes Sentinel-2 L2A."""
    regions: int = Field(default=6, ge=2, le=24)
    """Regions along each side of the scene, of 96 pixels each."""
    k: int = Field(default=10, ge=1, le=100)
    """Hits of each query."""


def asked(one: UnlabelledData | AlignData | EvaluateRecipe) -> Asked:
    """The samples that a table names."""
    return one.data, one.split, one.limit, one.composite


class Recipe(Strict):
    """A whole run."""

    name: FolderName
    note: str = ""
    """What a reader of the report should know."""
    needs: Needs | None = Field(default=None, exclude=True)
    """What a run takes (`terralign info recipes`)."""
    seed: int = Field(default=0, ge=0, lt=2**63)
    threads: int | None = Field(default=None, ge=1, le=4096)
    """Torch's intra-op threads; None: chosen, and recorded in the run folder."""
    deterministic: bool = False
    """Have CUDA compute the same bits each time, so that a resumed run ends in the same ones: some
    operations are slower. On the CPU they are the same anyway."""
    inference: Precision = "fp32"
    """How towers compute that are not trained (teacher, sweep, measurements): "fp32", "tf32" or
    "bf16"."""
    tensorboard: bool = False
    pack: bool = False
    """Pack data sets that lie in files on first use, and read them from their stores."""
    allow_shared_samples: bool = False
    """Run although alpha, or a tower's best step, is chosen on samples that are trained on;
    results and report have a note of it."""
    base: BaseRecipe
    patch: PatchRecipe | None = None
    align: tuple[AlignRecipe, ...] = ()
    evaluate: tuple[EvaluateRecipe, ...] = ()
    search: SearchRecipe | None = None

    @model_validator(mode="after")
    def _towers_exist(self) -> Self:
        towers = [one.name for one in self.align]
        if len(set(towers)) < len(towers) or "rgb" in towers or "text" in towers:
            raise ValueError(f"tower names must differ, and not be rgb or text: {towers}")
        known = {*towers, "rgb", "text"}
        for entry in self.evaluate:
            for name in (*entry.towers, entry.query, entry.gallery):
                if name is not None and name not in known and self.patch is not None:
                    raise ValueError(f"evaluate names tower {name!r}; {nearest(name, known)}")
            if self.patch is None and set(entry.models) & {"finetuned", "patched"}:
                raise ValueError("evaluate names finetuned or patched, but there is no patch stage")
        tower = None if self.search is None else self.search.tower
        if tower is not None and tower not in towers and self.patch is not None:
            raise ValueError(f"search names tower {tower!r}; {nearest(tower, towers)}")
        return self


def load_recipe(
    name_or_path: str, *, overrides: Sequence[str] = (), data_root: Path | None = None
) -> Recipe:
    """A shipped recipe by name, or a TOML file, with `KEY=VALUE` overrides applied.

    Paths in the file are relative to it, those of overrides to the working directory; both are then
    looked for in `data_root`. The recipe holds them absolute.

    `RecipeError` names the nearest right key for a misspelt one, an unknown data set, sensor or
    prompt set, a path that is not found, and training data that would be validated on itself.
    """
    values = read_named("recipe", name_or_path)
    paths = TomlPaths.named(name_or_path, data_root)
    here = partial(TomlPaths.here(data_root).resolve, names=DATASETS)
    for override in overrides:
        apply_override(values, override, resolve=here)
    try:
        values = paths.resolve(values, names=DATASETS)
    except RecipeError as error:
        raise RecipeError(f"recipe {name_or_path}: {error}") from error
    return parse_recipe(values, origin=name_or_path)


def parse_recipe(values: Mapping[str, Any], *, origin: str) -> Recipe:
    """A recipe from plain values, checked; relative paths are those of the working directory."""
    try:
        recipe = Recipe.model_validate(values)
    except ValidationError as error:
        raise RecipeError(f"recipe {origin}: {explain(error, Recipe)}") from error
    _check_names(recipe, origin)
    return recipe


def single_stage(recipe: Recipe, stage: str, *, base: str | None = None) -> Recipe:
    """The part of a recipe that only patches or only aligns; `base` replaces its base model.

    What it measures of that stage stays: the RGB models, or the towers and what retrieves with
    them, beside the model that the stage started from.
    """
    start = recipe.base if base in (None, recipe.base.model) else BaseRecipe(model=base)
    if stage == "patch":
        if recipe.patch is None:
            raise RecipeError(f"recipe {recipe.name!r} has no patch stage")
        measured = tuple(
            entry.model_copy(update={"towers": ()})
            for entry in recipe.evaluate
            if entry.models or {entry.query, entry.gallery} == {"text", "rgb"}
        )
        changes = {"base": start, "align": (), "evaluate": measured, "search": None}
        return recipe.model_copy(update=changes)
    if not recipe.align:
        raise RecipeError(f"recipe {recipe.name!r} has no align stage")
    if base is None:
        raise RecipeError("align starts from a patched space: name it with --base")
    measured = tuple(
        entry.model_copy(update={"models": ("base",) if entry.models else ()})
        for entry in recipe.evaluate
        if entry.towers or {entry.query, entry.gallery} & {tower.name for tower in recipe.align}
    )
    return recipe.model_copy(update={"base": start, "patch": None, "evaluate": measured})


def _check_names(recipe: Recipe, origin: str) -> None:
    """Names that the run would only meet after hours of work.

    Splits are compared by their names here; `runs/overlaps.py` compares their samples once they
    are open.
    """
    apart = not recipe.allow_shared_samples
    try:
        prompts: list[str | None] = []
        if recipe.base.pretrain is not None:
            find_dataset(recipe.base.pretrain.data)
        if recipe.patch is not None:
            for task in recipe.patch.tasks:
                find_dataset(task.data)
                prompts.append(task.prompts)
                if apart and _overlap(task.data, task.train, task.data, task.validation):
                    raise RecipeError(
                        f"{task.data} would be trained and validated on the same samples "
                        f"(splits {task.train!r} and {task.validation!r}); give validation another "
                        "split, or set allow_shared_samples = true to run all the same"
                    )
            if apart and recipe.patch.preserve_on is not None:
                _check_not_supported(recipe.patch.preserve_on, recipe.patch.supported)
            for supported in recipe.patch.supported:
                find_dataset(supported.data)
                prompts.append(supported.prompts)
        for tower in recipe.align:
            student_scaling(tower.student, [find_sensor(sensor) for sensor in tower.sensors])
            for source in tower.sources:
                find_dataset(source.data)
                prompts.append(source.prompts)
            kept = tower.validation
            for source in tower.data if apart and kept is not None else ():
                if kept and _overlap(source.data, source.split, kept.data, kept.split):
                    raise RecipeError(
                        f"tower {tower.name!r} would be validated on samples of {source.data} "
                        f"{source.split!r} that it is trained on; give validation another split"
                    )
        for entry_ in recipe.evaluate:
            find_dataset(entry_.data)
            prompts.append(entry_.prompts)
        for name in prompts:
            if name is not None:
                load_prompts(name)
    except TerralignError as error:
        raise RecipeError(f"recipe {origin}: {error}") from error


def _overlap(data: str, split: str, other_data: str, other_split: str) -> bool:
    """Whether two splits share samples."""
    if data != other_data:
        return False
    splits = {split, other_split}
    return len(splits) == 1 or "all" in splits or not find_dataset(data).facts.has_splits


def _check_not_supported(data: UnlabelledData, supported: Sequence[SupportedData]) -> None:
    """Pictures that training sees may not judge what it kept."""
    for one in supported:
        if _overlap(one.data, one.validation, data.data, data.split):
            raise RecipeError(
                f"preserve_on would train on the pictures that judge {one.data} "
                f"({one.validation!r}); give it another split"
            )


def recipe_text(recipe: Recipe, paths: TomlPaths | None = None) -> str:
    """The resolved recipe as TOML: every value, defaults included.

    `paths`: of the file that it goes to, which the paths in it are then relative to.
    """
    values = recipe.model_dump(mode="json")
    return tomli_w.dumps(without_none(paths.portable(values) if paths else values))


def recipe_hash(recipe: Recipe) -> str:
    """The name of a recipe, wherever its files lie."""
    values = identity_of(without_none(recipe.model_dump(mode="json")))
    return hash_json({"recipe": tomli_w.dumps(values)})
