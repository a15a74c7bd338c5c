"""Stage 1: fine-tune, then choose alpha on validation data of patching and supported tasks.

PAINT's three ways of patching several tasks: jointly, one after another, or each alone and merged;
and TIES, another merge.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from terralign import ranks
from terralign.compute import inference_depends
from terralign.datasets.overlap import Overlaps, keep_apart
from terralign.datasets.sample import SampleSet
from terralign.encoders.clip.load import ClipModel
from terralign.encoders.clip.weights import StateDict, hash_state, read_state_dict, write_state_dict
from terralign.errors import DataError, RecipeError
from terralign.files import name_of_folder, write_json
from terralign.train.finetune import (
    PatchingTask,
    finetune,
    finetune_depends,
    is_batch_norm,
    reestimate_batch_norm,
    trainable_names,
    training_pictures,
)
from terralign.train.interpolate import (
    check_same_weights,
    interpolate,
    merge,
    merge_ties,
    on_cpu,
    on_device,
)
from terralign.train.settings import PatchSettings as PatchSettings
from terralign.train.stage import Stage, run_stage
from terralign.train.sweep import Choice, CurveNote, SweepPoint, choose_alpha, sweep

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class PatchResult:
    """Stage 1's weights and curve. `finetuned`: theta_1; `patched`: theta at the chosen alpha;
    `baseline`: supported task -> its value before any patching, which drops are measured from."""

    finetuned: StateDict
    patched: StateDict
    choice: Choice
    points: tuple[SweepPoint, ...]
    baseline: dict[str, float]


def patch(
    clip: ClipModel,
    tasks: Sequence[PatchingTask],
    settings: PatchSettings,
    folder: Path,
    *,
    validation: Sequence[PatchingTask],
    supported: Sequence[PatchingTask],
    preserve_on: SampleSet | None = None,
    allow_shared_samples: bool = False,
    seed: int = 0,
    tensorboard: bool = False,
    cache: Path | None = None,
) -> PatchResult:
    """Patch the RGB tower of `clip` on `tasks`; alpha is chosen on `validation` and `supported`.

    `folder` takes checkpoints, `finetuned.safetensors`, `patched.safetensors` and `sweep.json`.
    Calling again resumes, or reads what is complete. `cache`: a folder of what other runs have
    completed. `clip` is left as it is. Raises `RecipeError` where training data and those that
    alpha is chosen on share samples (see `datasets.overlap`), unless `allow_shared_samples`.
    """
    if not tasks or len(validation) != len(tasks):
        raise RecipeError("patching needs at least one task, each with its validation data")
    usual = PatchSettings.model_fields["preserve_batch_size"].default
    if preserve_on is None and settings.preserve_batch_size != usual:
        raise RecipeError(
            f"preserve_batch_size = {settings.preserve_batch_size} has no effect without "
            "preserve_on; leave it out, or name pictures to preserve on"
        )
    if not allow_shared_samples:
        training = [task.samples for task in tasks] + ([] if preserve_on is None else [preserve_on])
        judging = [task.samples for task in (*validation, *supported)]
        keep_apart(Overlaps(), training, judging, chosen="alpha")
    run = _Patching(clip, settings, folder, supported, preserve_on, seed, tensorboard, cache)
    if settings.mode == "joint" or len(tasks) == 1:
        if settings.mode != "joint":
            raise RecipeError(f'mode = "{settings.mode}" has no effect on a single patching task')
        return run.jointly(clip, tasks, validation, folder)
    if settings.mode == "sequential":
        return run.sequentially(tasks, validation)
    return run.in_parallel(tasks, validation)


@dataclass
class _Patching:
    """What the ways of patching have in common."""

    clip: ClipModel
    settings: PatchSettings
    folder: Path
    supported: Sequence[PatchingTask]
    preserve_on: SampleSet | None
    seed: int
    tensorboard: bool
    cache: Path | None
    baseline: dict[str, float] | None = None

    @property
    def device(self) -> torch.device:
        """Where the CLIP is, and its weights are interpolated."""
        return next(self.clip.model.parameters()).device

    def train(self, start: ClipModel, tasks: Sequence[PatchingTask], folder: Path) -> StateDict:
        weights = folder / "finetuned.safetensors"
        depends = finetune_depends(
            start, tasks, self.settings, preserve_on=self.preserve_on, seed=self.seed
        )

        def make() -> dict[str, Any]:
            theta_1 = finetune(
                start, tasks, self.settings, folder / "checkpoints",
                preserve_on=self.preserve_on, seed=self.seed, tensorboard=self.tensorboard,
            )  # fmt: skip
            if ranks.is_first():
                write_state_dict(weights, theta_1)
            return {}

        stage = Stage(
            what="stage 1", depends=depends, note=folder / "finetuned.json",
            files=(weights.name,), logs=("checkpoints/metrics.jsonl",), cache=self.cache,
        )  # fmt: skip
        run_stage(stage, make, together=True)
        return read_state_dict(weights)

    def finish(
        self,
        make: Callable[[float], StateDict],
        tasks: Sequence[PatchingTask],
        validation: Sequence[PatchingTask],
        folder: Path,
    ) -> PatchResult:
        pictures = functools.cache(lambda: self.pictures(tasks))

        def at(alpha: float) -> StateDict:
            return self.with_statistics(make(alpha), alpha, pictures)

        points = sweep(
            self.clip,
            at,
            sorted({0.0, *self.settings.alphas}),
            validation=validation,
            supported=self.supported,
            stage_of=self.curve_stages(make, folder),
        )
        if self.baseline is None:
            self.baseline = next(point.supported for point in points if point.alpha == 0)
        choice = choose_alpha(
            points,
            max_supported_drop=self.settings.max_supported_drop,
            baseline=self.baseline,
        )
        logger.info("patch: %s", choice.reason)
        patched = at(choice.alpha)
        if ranks.is_first():
            write_json(
                folder / "sweep.json",
                {
                    "chosen": asdict(choice),
                    "max_supported_drop": self.settings.max_supported_drop,
                    "points": [asdict(point) for point in points],
                },
            )
            write_state_dict(folder / "patched.safetensors", patched)
        return PatchResult(
            finetuned=on_cpu(at(1.0)), patched=on_cpu(patched), choice=choice, points=points,
            baseline=self.baseline,
        )  # fmt: skip

    def curve_stages(
        self, make: Callable[[float], StateDict], folder: Path
    ) -> Callable[[PatchingTask], Stage]:
        """Task -> what keeps its curve over alpha."""
        depends = {
            "clip": self.clip.anchor_id(),
            "theta_0": hash_state(make(0.0)),
            "theta_1": hash_state(make(1.0)),
            "alphas": sorted({0.0, *self.settings.alphas}),
            **inference_depends(),
        }
        return lambda task: Stage.named_by_identity(
            "the curve of a task", {**depends, "task": task.identity()}, folder / "sweep",
            form=CurveNote, cache=self.cache,
        )  # fmt: skip

    def pictures(self, tasks: Sequence[PatchingTask]) -> list[Tensor]:
        """Training pictures from which batch-norm statistics are estimated."""
        with ranks.alone():  # whole batches
            return training_pictures(
                self.clip, tasks, self.settings, num_batches=16, seed=self.seed
            )

    def with_statistics(
        self, theta: StateDict, alpha: float, pictures: Callable[[], Sequence[Tensor]]
    ) -> StateDict:
        """theta, its batch-norm statistics re-estimated where training moved them."""
        trained = self.settings.batch_norm == "train"
        if not trained or alpha == 0 or not any(map(is_batch_norm, self.clip.visual.modules())):
            return theta
        visual = self.clip.with_visual(theta, source="theta").visual
        reestimate_batch_norm(visual, pictures())
        return on_device(visual.state_dict(), self.device)

    def jointly(
        self,
        start: ClipModel,
        tasks: Sequence[PatchingTask],
        validation: Sequence[PatchingTask],
        folder: Path,
        done: Sequence[PatchingTask] = (),
    ) -> PatchResult:
        theta_0 = on_device(start.visual.state_dict(), self.device)
        theta_1 = on_device(self.train(start, tasks, folder), self.device)
        check_same_weights(theta_0, theta_1)
        return self.finish(
            lambda alpha: interpolate(theta_0, theta_1, alpha),
            tasks, [*done, *validation], folder,
        )  # fmt: skip

    def sequentially(
        self, tasks: Sequence[PatchingTask], validation: Sequence[PatchingTask]
    ) -> PatchResult:
        """Each task from where the last one ended; tasks done before count as patching tasks."""
        start = self.clip
        for number, task in enumerate(tasks):
            folder = self.folder_of(number, task)
            result = self.jointly(
                start, [task], [validation[number]], folder, done=validation[:number]
            )
            start = self.clip.with_visual(result.patched, source=str(folder))
        if ranks.is_first():
            write_state_dict(self.folder / "finetuned.safetensors", result.finetuned)
            write_state_dict(self.folder / "patched.safetensors", result.patched)
        return result

    def folder_of(self, number: int, task: PatchingTask) -> Path:
        """The folder of a task that is trained alone."""
        try:
            return self.folder / name_of_folder(f"task-{number + 1}-{task.samples.name}")
        except ValueError as error:
            raise DataError(f"{error}; give the data set another name") from error

    def in_parallel(
        self, tasks: Sequence[PatchingTask], validation: Sequence[PatchingTask]
    ) -> PatchResult:
        """Each task alone from theta_0; then theta_0 + alpha times the changes of weights, which
        are added up or merged by TIES."""
        thetas = [
            on_device(self.train(self.clip, [task], self.folder_of(number, task)), self.device)
            for number, task in enumerate(tasks)
        ]
        theta_0 = on_device(self.clip.visual.state_dict(), self.device)
        if self.settings.mode == "ties":
            settings = self.settings
            trained = trainable_names(self.clip.visual, settings.trainable, settings.frozen)
            thetas = [merge_ties(theta_0, thetas, density=settings.density, trained=trained)]
        result = self.finish(
            lambda alpha: merge(theta_0, thetas, [alpha] * len(thetas)),
            tasks, validation, self.folder,
        )  # fmt: skip
        if ranks.is_first():
            write_state_dict(self.folder / "finetuned.safetensors", result.finetuned)
        return result
