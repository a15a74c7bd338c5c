"""What training came to: its steps, its losses, and how near a student is to its teacher."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from terralign.datasets.batches import Plan
from terralign.datasets.sample import SampleSet, Subset
from terralign.encoders.clip.load import ClipModel
from terralign.encoders.sensor import CUSTOM, SensorTower
from terralign.encoders.trained import TowerTraining
from terralign.train.align import AlignmentSource, AlignSettings
from terralign.train.checkpoints import read_losses
from terralign.train.loop import LoopSettings
from terralign.train.student_validation import mean_cosine

NUM_COMPARED = 256
"""Training samples, evenly spaced, on which a finished student is compared with its teacher."""


def num_steps(sizes: Sequence[int], settings: LoopSettings, repeats: Sequence[int] = ()) -> int:
    """The optimiser steps of training on sets of `sizes` samples, each seen `repeats` times an
    epoch."""
    plan = Plan(sizes, batch_size=settings.batch_size, seed=0, repeats=repeats)
    return settings.epochs * plan.steps_per_epoch


def course_of_loss(metrics: Path) -> tuple[float | None, float | None]:
    """The mean losses of the first and of the last tenth of the steps in a `metrics.jsonl`."""
    losses = read_losses(metrics)
    if not losses:
        return None, None
    part = max(1, len(losses) // 10)
    first, last = (float(f"{np.mean(some):.4g}") for some in (losses[:part], losses[-part:]))
    return first, last


def outcome_of(
    clip: ClipModel,
    student: SensorTower,
    sources: Sequence[AlignmentSource],
    settings: AlignSettings,
    folder: Path,
    *,
    seed: int,
) -> TowerTraining:
    """The figures of stage 2, which ended in `folder` with the weights of `student`."""
    sets = [source.samples for source in sources]
    sizes = [len(one) for one in sets]
    first, last = course_of_loss(folder / "metrics.jsonl")
    backbone = student.config.backbone
    return TowerTraining(
        data=tuple(one.name for one in sets),
        num_samples=sum(sizes),
        encoder=student.config.encoder or backbone if backbone == CUSTOM else backbone,
        losses=settings.weights(labelled=any(source.labelled for source in sources)),
        epochs=settings.epochs,
        batch_size=settings.batch_size,
        lr=settings.lr,
        seed=seed,
        num_steps=num_steps(sizes, settings, [source.repeats for source in sources]),
        first_loss=first,
        last_loss=last,
        cosine=round(_cosine(clip, student.eval(), sets), 4),
    )


def _cosine(clip: ClipModel, student: SensorTower, sets: Sequence[SampleSet]) -> float:
    """The mean over some samples of each set, by the number of these."""
    share = max(1, NUM_COMPARED // len(sets))
    some = [
        Subset(one, np.unique(np.linspace(0, len(one) - 1, share).astype(np.int64))) for one in sets
    ]
    values = [mean_cosine(clip, student, one) for one in some]
    return float(np.average(values, weights=[len(one) for one in some]))
