"""Stage 1, the gradients: fine-tune the RGB tower against frozen zero-shot weights.

The text tower, its weights W and logit_scale never change, so every prompt still works afterwards.
Letters: B batch, D embedding, K classes.
"""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from terralign import ranks
from terralign.datasets.batches import Batch as Chosen
from terralign.datasets.batches import Plan, keep_in_memory, keys_of
from terralign.datasets.feeding import raw_pixels
from terralign.datasets.sample import SampleSet, labels_id, optical_layout, require_labels
from terralign.encoders.clip.load import ClipModel
from terralign.encoders.clip.weights import StateDict
from terralign.encoders.zeroshot import PromptSet, zero_shot_weights
from terralign.errors import DataError, RecipeError
from terralign.feed import Raw
from terralign.preprocess import (
    apply_views,
    augment_photometric,
    draw_views,
    make_ready,
    scale_composite,
)
from terralign.train.interpolate import on_cpu
from terralign.train.loop import Batch, fit
from terralign.train.losses import Calibrations, label_loss, start_calibration
from terralign.train.settings import FinetuneSettings as FinetuneSettings
from terralign.train.settings import LabelLoss, PictureSettings


@dataclass(frozen=True, kw_only=True, slots=True)
class PatchingTask:
    """What one data set asks of the tower: its samples and the texts of its classes."""

    samples: SampleSet
    prompts: PromptSet
    class_names: tuple[str, ...]

    def weights(self, clip: ClipModel) -> Tensor:
        """W (K, D) of the task under this text tower."""
        return zero_shot_weights(clip, self.class_names, self.prompts)

    def identity(self) -> dict[str, Any]:
        """What a result depends on, as hashes and names."""
        return {
            "data": self.samples.fingerprint,
            "labels": labels_id(self.samples),
            "classes": list(self.class_names),
            "prompts": list(self.prompts.templates),
        }


def is_batch_norm(module: nn.Module) -> bool:
    """Whether a module keeps running statistics of its batches."""
    return isinstance(module, nn.modules.batchnorm._BatchNorm)


def train_mode(module: nn.Module, *, frozen_batch_norm: bool) -> None:
    """Training mode; frozen batch norms stay in eval mode and keep their running statistics."""
    module.train()
    if frozen_batch_norm:
        for layer in module.modules():
            if is_batch_norm(layer):
                layer.eval()


def select_trainable(
    module: nn.Module, patterns: Sequence[str], frozen: Sequence[str] = ()
) -> None:
    """Let only the parameters be trained that `trainable_names` names."""
    chosen = trainable_names(module, patterns, frozen)
    for name, value in module.named_parameters():
        value.requires_grad_(name in chosen)


def trainable_names(
    module: nn.Module, patterns: Sequence[str], frozen: Sequence[str] = ()
) -> set[str]:
    """The module's parameters that match one of `patterns` and none of `frozen`.

    `RecipeError` for a pattern that matches no parameter, and where none is left to train.
    """
    names = [name for name, _ in module.named_parameters()]
    if not patterns:
        raise RecipeError('trainable names no parameter; "*" stands for all')
    for key, given in (("trainable", patterns), ("frozen", frozen)):
        for pattern in given:
            if not any(fnmatch.fnmatchcase(name, pattern) for name in names):
                raise RecipeError(
                    f"{key} pattern {pattern!r} matches no parameter of the tower, "
                    f"which has {names[0]} ... {names[-1]}"
                )
    chosen = {name for name in names if _matches(name, patterns) and not _matches(name, frozen)}
    if not chosen:
        raise RecipeError("trainable and frozen leave no parameter to train; name fewer in frozen")
    return chosen


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


_Choice = tuple[Chosen, Chosen | None]
"""The samples of a step, and the other pictures that it sees, if any."""


class PictureBatches:
    """Stage 1's batches: augmented composites, ready for the tower, with labels.

    `first_step`: the number of the step that `read(0)` gives.
    """

    def __init__(
        self,
        clip: ClipModel,
        tasks: Sequence[PatchingTask],
        settings: PictureSettings,
        seed: int,
        *,
        preserve_on: SampleSet | None = None,
        preserve_batch_size: int = 1,
    ) -> None:
        self._tasks = [keep_in_memory(task.samples) for task in tasks]
        self._preserve_on = keep_in_memory(preserve_on) if preserve_on is not None else None
        self._spec = clip.input_spec
        self._settings = settings
        self._seed = seed
        self.first_step = 0
        sizes = [len(task.samples) for task in tasks]
        shared: dict[str, Any] = {"rank": ranks.rank(), "world_size": ranks.world_size()}
        self._plan = Plan(sizes, batch_size=settings.batch_size, seed=seed, **shared)
        self._preserve_plan: Plan | None = None
        if preserve_on is not None:
            self._preserve_plan = Plan(
                [len(preserve_on)], batch_size=preserve_batch_size, seed=seed + 1, **shared
            )

    @property
    def steps_per_epoch(self) -> int:
        return self._plan.steps_per_epoch

    def first_pictures_of(self, source: int) -> Tensor:
        """Ready pixels (B, 3, size, size) of the first whole batch of task number `source`."""
        chosen = self._plan.whole(self._plan.first_step_of(source))
        return self.make(self._read(chosen, None)).pixels

    def read(self, step: int) -> Raw[_Choice]:
        step += self.first_step
        others = None if self._preserve_plan is None else self._preserve_plan.batch(step)
        return self._read(self._plan.batch(step), others)

    def _read(self, chosen: Chosen, others: Chosen | None) -> Raw[_Choice]:
        samples = self._tasks[chosen.source]
        tensors = {
            "pixels": raw_pixels(samples, optical_layout(samples), chosen.indices),
            "labels": torch.from_numpy(require_labels(samples).values[chosen.indices]),
        }
        if self._preserve_on is not None and others is not None:
            layout = optical_layout(self._preserve_on)
            tensors["unlabelled"] = raw_pixels(self._preserve_on, layout, others.indices)
        return Raw((chosen, others), tensors)

    def make(self, raw: Raw[_Choice]) -> Batch:
        (chosen, others), tensors = raw.known, raw.tensors
        samples = self._tasks[chosen.source]
        unlabelled, unlabelled_share = None, 1.0
        if self._preserve_on is not None and others is not None:
            unlabelled_share = (
                len(others.indices) * chosen.size / (others.size * len(chosen.indices))
            )
            unlabelled = self._pictures(tensors["unlabelled"], self._preserve_on, others)
        return Batch(
            keys=keys_of(samples, chosen.indices),
            pixels=self._pictures(tensors["pixels"], samples, chosen),
            labels=tensors["labels"],
            unlabelled=unlabelled,
            source=chosen.source,
            title=samples.name if len(self._tasks) > 1 else "",
            whole=chosen.size,
            unlabelled_share=unlabelled_share,
        )

    def _pictures(self, raw: Tensor, samples: SampleSet, chosen: Chosen) -> Tensor:
        """(B, 3, size, size) augmented and ready, of raw pixels (B, C, H, W)."""
        layout = optical_layout(samples)
        settings = self._settings
        draw: dict[str, Any] = {
            "seed": self._seed, "view": chosen.view, "indices": chosen.indices
        }  # fmt: skip
        pictures = scale_composite(raw, layout)
        pictures = apply_views(pictures, draw_views(settings.views, **draw), self._spec.size)
        if settings.photometric is not None:
            pictures = augment_photometric(pictures.clamp(0, 1), settings.photometric, **draw)
        return make_ready(pictures, self._spec)


class _Learner(nn.Module):
    """The tower that is trained, and the scalars that are dropped afterwards."""

    def __init__(
        self,
        clip: ClipModel,
        tasks: Sequence[PatchingTask],
        settings: FinetuneSettings,
        batches: PictureBatches,
    ) -> None:
        super().__init__()
        self._clip, self._settings = clip, settings
        device = next(clip.model.parameters()).device
        self._weights = [task.weights(clip).to(device) for task in tasks]
        self.visual = clip.with_visual(clip.visual.state_dict(), source=clip.source).visual
        self.calibrations = start_calibrations(clip, tasks, settings, batches, self._weights)

    def forward(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        assert batch.labels is not None
        settings = self._settings
        features = self.visual(batch.pixels)
        loss = label_loss(
            features, self._weights[batch.source], batch.labels,
            scale=self._clip.logit_scale,
            calibration=self.calibrations.of(batch.source),
            label_smoothing=settings.label_smoothing,
        )  # fmt: skip
        metrics = {"label": loss}
        if settings.preserve:
            kept = _moved(self._clip, batch.pixels, features).mean()
            metrics["preserve"] = kept
            loss = loss + settings.preserve * kept
        if batch.unlabelled is not None:
            kept = loss.new_zeros(())  # of a part that has none, which towers need not take
            if len(batch.unlabelled):
                moved = _moved(self._clip, batch.unlabelled, self.visual(batch.unlabelled))
                kept = moved.mean() * batch.unlabelled_share
            metrics["preserve_unlabelled"] = kept
            loss = loss + settings.preserve_unlabelled * kept
        return loss, metrics


def finetune(
    clip: ClipModel,
    tasks: Sequence[PatchingTask],
    settings: FinetuneSettings,
    folder: Path,
    *,
    preserve_on: SampleSet | None = None,
    seed: int = 0,
    tensorboard: bool = False,
) -> StateDict:
    """theta_1: the RGB tower fine-tuned on all tasks jointly, as a state dict on the CPU.

    `folder` takes checkpoints and `metrics.jsonl`; calling again resumes, or does nothing when the
    training is complete. `clip` itself is left as it is. `preserve_on`: pictures, whose labels are
    not used, on which `settings.preserve_unlabelled` keeps the tower's embeddings.
    """
    if (preserve_on is None) != (settings.preserve_unlabelled == 0):
        raise RecipeError(
            "preserve_unlabelled (a weight) and preserve_on (its pictures) need one another; "
            "give both or neither"
        )
    batches = PictureBatches(
        clip, tasks, settings, seed,
        preserve_on=preserve_on, preserve_batch_size=settings.preserve_batch_size,
    )  # fmt: skip
    learner = _Learner(clip, tasks, settings, batches).to(next(clip.model.parameters()).device)
    select_trainable(learner.visual, settings.trainable, settings.frozen)
    frozen = settings.batch_norm == "frozen"
    fit(
        learner, batches, settings, folder,
        identity=finetune_depends(clip, tasks, settings, preserve_on=preserve_on, seed=seed),
        seed=seed, label="patch", tower=learner.visual, tensorboard=tensorboard,
        set_mode=lambda module: train_mode(module, frozen_batch_norm=frozen),
    )  # fmt: skip
    return on_cpu(learner.visual.state_dict())


def finetune_depends(
    clip: ClipModel,
    tasks: Sequence[PatchingTask],
    settings: FinetuneSettings,
    *,
    preserve_on: SampleSet | None,
    seed: int,
) -> dict[str, Any]:
    """All that theta_1 depends on, as hashes and names."""
    return {
        "stage": "finetune",
        "theta_0": clip.anchor_id(),
        "settings": settings.values_of(FinetuneSettings),
        "tasks": [task.identity() for task in tasks],
        "preserve_on": None if preserve_on is None else preserve_on.fingerprint,
        "seed": seed,
    }


def _moved(clip: ClipModel, pictures: Tensor, features: Tensor) -> Tensor:
    """1 - cos (B,) between features (B, D) and the zero-shot tower's of the same pictures."""
    with torch.no_grad():
        before = clip.visual(pictures)
    return 1 - F.cosine_similarity(features.float(), before.float(), dim=-1)


def label_loss_of(task: PatchingTask, settings: PictureSettings) -> LabelLoss:
    """The loss that is set, or the one that suits the task's labels; `RecipeError` where it does
    not fit them."""
    labels = require_labels(task.samples)
    if len(task.samples) == 0:
        raise DataError(f"{task.samples.name} {task.samples.split} has no samples to train on")
    loss = settings.loss or ("calibrated_bce" if labels.multi_label else "cross_entropy")
    if labels.multi_label == (loss == "cross_entropy"):
        kind = "multi-label" if labels.multi_label else "single-label"
        raise RecipeError(
            f"loss {loss!r} does not fit {task.samples.name}, which is {kind}; "
            f"use {'calibrated_bce or bce' if labels.multi_label else 'cross_entropy'}"
        )
    if labels.multi_label and settings.label_smoothing:
        raise RecipeError("label_smoothing has no effect on multi-label data; leave it out")
    return loss


def start_calibrations(
    clip: ClipModel,
    tasks: Sequence[PatchingTask],
    settings: PictureSettings,
    batches: PictureBatches,
    weights: Sequence[Tensor],
) -> Calibrations:
    """Calibrations of the tasks whose loss is calibrated BCE, each begun at the base rate of its
    labels and at the mean cosine of its first batch to its `weights` (K, D)."""
    losses = [label_loss_of(task, settings) for task in tasks]
    return Calibrations(
        {
            number: start_calibration(
                clip.visual, batches.first_pictures_of(number), weights[number],
                require_labels(task.samples).values, scale=clip.logit_scale,
            )
            for number, (task, loss) in enumerate(zip(tasks, losses, strict=True))
            if loss == "calibrated_bce"
        }
    )  # fmt: skip


def reestimate_batch_norm(
    module: nn.Module, pixels: Sequence[Tensor], *, momentum: float | None = None
) -> None:
    """Estimate the running statistics of a network anew from batches of ready pixels (B, C, H, W).

    Needed after interpolating weights whose batch norms were trained: statistics of an
    interpolated network are not the interpolated statistics. `momentum` None: the plain mean.
    """
    norms = [layer for layer in module.modules() if is_batch_norm(layer)]
    if not norms or not pixels:
        return
    device = next(module.parameters()).device
    before = [cast(Any, layer).momentum for layer in norms]
    module.eval()  # dropout would draw from the generator, and blur the statistics
    for layer in norms:
        layer.train()
        cast(Any, layer).reset_running_stats()
        cast(Any, layer).momentum = momentum
    with torch.no_grad():
        for batch in pixels:
            module(batch.to(device))
    for layer, value in zip(norms, before, strict=True):
        cast(Any, layer).momentum = value
    module.eval()


def training_pictures(
    clip: ClipModel,
    tasks: Sequence[PatchingTask],
    settings: FinetuneSettings,
    *,
    num_batches: int,
    seed: int,
) -> list[Tensor]:
    """Ready pixels (B, 3, H, W) of the first batches of training, for `reestimate_batch_norm`."""
    batches = PictureBatches(clip, tasks, settings, seed)
    total = min(num_batches, batches.steps_per_epoch)
    return [batches.make(batches.read(step)).pixels for step in range(max(1, math.floor(total)))]
