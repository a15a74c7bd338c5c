"""The data of a run: each split opened once, from its files or from its packed store."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from terralign.datasets.catalog import cannot_open, find_dataset, open_dataset
from terralign.datasets.composited import with_composite
from terralign.datasets.packing import pack_on_use
from terralign.datasets.sample import SampleSet, require_labels
from terralign.datasets.subset import limit_samples
from terralign.encoders.zeroshot import PromptSet
from terralign.errors import DataError, RecipeError, TerralignError
from terralign.evaluation.classification import choose_class_names, choose_prompts
from terralign.runs.checks import check_figures_differ
from terralign.runs.recipe import AlignData, Asked, Recipe, SupportedData, TaskData, asked
from terralign.scenes.pictures import Size
from terralign.train.align import AlignmentSource, check_effects
from terralign.train.finetune import PatchingTask
from terralign.train.outcome import num_steps
from terralign.train.settings import LoopSettings, check_loop


def named_data(recipe: Recipe) -> list[Asked]:
    """What a recipe opens, each once."""
    found: list[Asked] = []
    if (pretrain := recipe.base.pretrain) is not None:
        found.append((pretrain.data, pretrain.split, pretrain.limit, None))
    if recipe.patch is not None:
        for task in recipe.patch.tasks:
            found.append((task.data, task.train, task.limit, task.composite))
            found.append((task.data, task.validation, task.validation_limit, task.composite))
        if (kept := recipe.patch.preserve_on) is not None:
            found.append(asked(kept))
        for held in recipe.patch.supported:
            found.append((held.data, held.validation, held.validation_limit, held.composite))
    for tower in recipe.align:
        found += map(asked, tower.sources)
    found += map(asked, recipe.evaluate)
    return list(dict.fromkeys(found))


@dataclass(frozen=True, kw_only=True, slots=True)
class PatchingData:
    """The data of stage 1; of a recipe without it, none. `preserve_on`: pictures whose labels are
    not used."""

    tasks: tuple[PatchingTask, ...] = ()
    validation: tuple[PatchingTask, ...] = ()
    supported: tuple[PatchingTask, ...] = ()
    preserve_on: SampleSet | None = None


class RunData:
    """Opens what a recipe names.

    `size`: that of RGB pictures. `stores`: where packed stores are made, where the recipe asks for
    them. `own_prompts`: those of the run's space, for data that name none; all models get the same.
    """

    def __init__(self, recipe: Recipe, data_root: Path | None, stores: Path, size: Size) -> None:
        self.recipe, self.data_root, self.stores, self.size = recipe, data_root, stores, size
        self.own_prompts: PromptSet | None = None
        self._sets: dict[Asked, SampleSet] = {}

    def open(
        self, data: str, split: str, limit: int | None = None, composite: str | None = None
    ) -> SampleSet:
        """A split, or a fixed part of it, opened once. `composite`: instead of its own."""
        key = (data, split, limit, composite)
        if key not in self._sets:
            pack = self.recipe.pack
            whole = open_dataset(
                data, data_root=self.data_root, split=split, size=self.size, to_pack=pack
            )
            if pack and ((entry := find_dataset(data)).facts.needs_root or entry.in_order):
                whole = pack_on_use(whole, self.stores, size=self.size)
            self._sets[key] = limit_samples(with_composite(whole, composite), limit)
        return self._sets[key]

    def choose_own_prompts(self, base: PromptSet | None) -> None:
        """The run's space has those of the first patching task; unpatched, those of its base."""
        tasks = self.patching.tasks
        self.own_prompts = tasks[0].prompts if tasks else base

    def prompts(self, samples: SampleSet, named: str | None) -> PromptSet:
        """The prompts that every model is measured with."""
        return choose_prompts(samples, named, own=self.own_prompts)

    def open_everything(self) -> None:
        """Meet missing data before hours of work, not after; one error names all of them."""
        recipe = self.recipe
        faults: dict[str, TerralignError] = {}
        for one in named_data(recipe):
            try:
                self.open(*one)
            except DataError as error:
                faults.setdefault(one[0], error)
        if faults:
            raise cannot_open(faults)
        _ = self.patching
        for tower in recipe.align:
            judged = None if tower.validation is None else self.source(tower.validation)
            check_effects(tower.settings, [self.source(one) for one in tower.data], judged)
        for entry in recipe.evaluate:
            samples = self.open(*asked(entry))
            if entry.task == "zero-shot":
                choose_class_names(samples, entry.classes)
        check_figures_differ(recipe, self.open)
        self._check_trainings()

    def _check_trainings(self) -> None:
        """Raise `RecipeError` for settings that a stage would refuse when its turn comes."""
        for name, settings, sizes, repeats, validated in self._trainings():
            try:
                check_loop(settings, num_steps(sizes, settings, repeats), validated=validated)
            except RecipeError as error:
                raise RecipeError(f"{name}: {error}") from error

    def _trainings(self) -> Iterator[tuple[str, LoopSettings, list[int], list[int], bool]]:
        """Name, settings, sizes and repeats of the sets, and whether it is validated, of each."""
        recipe = self.recipe
        if (base := recipe.base.pretrain) is not None:
            yield "pretrain", base, [len(self.open(base.data, base.split, base.limit))], [], False
        if recipe.patch is not None:
            sizes = [len(task.samples) for task in self.patching.tasks]
            together = recipe.patch.settings.mode == "joint"
            for fit in [sizes] if together else [[size] for size in sizes]:
                yield "patch", recipe.patch.settings, fit, [], False
        for tower in recipe.align:
            sizes = [len(self.open(*asked(one))) for one in tower.data]
            repeats, validated = [one.repeats for one in tower.data], tower.validation is not None
            yield f"align {tower.name}", tower.settings, sizes, repeats, validated

    @cached_property
    def patching(self) -> PatchingData:
        """The data of stage 1."""
        recipe = self.recipe.patch
        if recipe is None:
            return PatchingData()
        kept = recipe.preserve_on
        return PatchingData(
            tasks=tuple(self._task(one, one.train, one.limit) for one in recipe.tasks),
            validation=tuple(map(self._judge, recipe.tasks)),
            supported=tuple(map(self._judge, recipe.supported)),
            preserve_on=None if kept is None else self.open(*asked(kept)),
        )

    def _judge(self, one: TaskData | SupportedData) -> PatchingTask:
        return self._task(one, one.validation, one.validation_limit)

    def _task(self, one: TaskData | SupportedData, split: str, limit: int | None) -> PatchingTask:
        samples = self.open(one.data, split, limit, one.composite)
        return PatchingTask(
            samples=samples,
            prompts=choose_prompts(samples, one.prompts),
            class_names=choose_class_names(samples, one.classes),
        )

    def source(self, data: AlignData) -> AlignmentSource:
        """A data set of stage 2."""
        samples = self.open(*asked(data))
        if not data.labels:
            return AlignmentSource(samples=samples, repeats=data.repeats)
        return AlignmentSource(
            samples=samples,
            prompts=choose_prompts(samples, data.prompts),
            class_names=require_labels(samples).class_names,
            repeats=data.repeats,
        )
