"""What the baselines of stage 1 share with fine-tuning: its batches, its losses, its checks.

Prompt learning and linear probing are compared with patching at the same budget, so they see the
very same batches: same samples, same order, same views.
"""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import Field
from torch import Tensor

from terralign.datasets.sample import require_labels
from terralign.encoders.clip.load import ClipModel
from terralign.preprocess import Photometric, ViewSpec
from terralign.train.finetune import (
    FinetuneSettings,
    LabelLoss,
    PatchingTask,
    PictureBatches,
    label_loss_of,
)
from terralign.train.loop import Batch, LoopSettings
from terralign.train.losses import Calibration, start_calibration


class PictureSettings(LoopSettings):
    """The settings of fine-tuning that are not about what is trained."""

    loss: LabelLoss | None = None
    """None: cross-entropy for single-label tasks, calibrated BCE for multi-label ones."""
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    """Of the cross-entropy; refused for multi-label tasks, where it would do nothing."""
    views: ViewSpec = ViewSpec()
    """Geometric augmentation, drawn anew in every epoch."""
    photometric: Photometric | None = None
    """Colour augmentation; None: off."""


class LabelledPictures:
    """The batches of fine-tuning with the same settings and seed; they begin at step `first`."""

    def __init__(
        self,
        clip: ClipModel,
        tasks: Sequence[PatchingTask],
        settings: PictureSettings,
        *,
        seed: int,
    ) -> None:
        same = {name: getattr(settings, name) for name in PictureSettings.model_fields}
        finetune_settings = FinetuneSettings.model_validate(same)
        self.tasks = list(tasks)
        self.losses = [label_loss_of(task, finetune_settings) for task in tasks]
        self._batches = PictureBatches(clip, tasks, finetune_settings, seed)
        self._clip = clip
        self.first = 0

    @property
    def steps_per_epoch(self) -> int:
        """Batches in one epoch, all tasks together."""
        return self._batches.steps_per_epoch

    def prepare(self, step: int) -> Batch:
        """Labelled pictures (B, 3, size, size)."""
        return self._batches.prepare(self.first + step)

    def calibration(self, number: int, weights: Tensor) -> Calibration | None:
        """Where the calibration of task `number` starts: at the base rate of its labels and the
        mean cosine of its first batch to `weights` (K, D); None where its loss needs none."""
        if self.losses[number] != "calibrated_bce":
            return None
        return start_calibration(
            self._clip.visual,
            self._batches.first_pictures_of(number),
            weights,
            require_labels(self.tasks[number].samples).values,
            scale=self._clip.logit_scale,
        )
