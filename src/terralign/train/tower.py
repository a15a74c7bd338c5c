"""Stage 2 whole: a new student, trained and kept, or read where it is complete."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from torch import Tensor

from terralign import ranks
from terralign.encoders.clip.load import ClipModel
from terralign.encoders.clip.weights import (
    check_shapes,
    load_weights,
    read_shapes,
    read_state_dict,
    write_state_dict,
)
from terralign.encoders.custom import Encoder
from terralign.encoders.sensor import INFLATE, SensorTower
from terralign.encoders.trained import TowerTraining
from terralign.files import write_json
from terralign.sensors import Sensor
from terralign.train.align import AlignmentSource, AlignSettings, align, align_depends
from terralign.train.ineffective import warn_of_mixed_norms, warn_of_untrained_norms
from terralign.train.outcome import outcome_of
from terralign.train.rates import warn_of_align_rate
from terralign.train.settings import StudentSettings
from terralign.train.stage import Stage, run_stage
from terralign.train.student import new_student, student_layout


class _Note(BaseModel):
    """Of a finished tower."""

    tower_id: str
    trained: TowerTraining | None


def make_tower(
    name: str,
    clip: ClipModel,
    student: StudentSettings,
    sensors: Sequence[Sensor],
    sources: Sequence[AlignmentSource],
    settings: AlignSettings,
    folder: Path,
    *,
    anchors: Tensor | None = None,
    validation: AlignmentSource | None = None,
    encoder: Encoder | None = None,
    root: Path | None = None,
    pretrained: bool = True,
    describe: bool = False,
    allow_shared_samples: bool = False,
    views_folder: Path | None = None,
    cache: Path | None = None,
    seed: int = 0,
    tensorboard: bool = False,
) -> SensorTower:
    """The tower `name`, aligned to the RGB tower of `clip`, on its device and in eval mode.

    `encoder`, `root`: as for `new_student`; the rest as for `align`. `pretrained`: whether the RGB
    tower has learned from more than this run's data, so that a high learning rate costs an
    inflated student something. `describe`: measure the outcome (`tower.trained`). `folder` takes
    checkpoints and, once complete, `tower.safetensors` and `tower.json`; `cache`: a folder of what
    other runs have completed.
    """
    device = next(clip.model.parameters()).device
    samples = [source.samples for source in sources]
    tower, initial = new_student(
        name, clip, student, sensors, samples, seed=seed, root=root, encoder=encoder
    )
    depends = align_depends(clip, tower, sources, settings, anchors, validation, seed=seed)
    weights = folder / "tower.safetensors"
    stage = Stage(
        what="a tower", depends=depends, note=folder / "tower.json", files=(weights.name,),
        form=_Note, logs=("initial.json", "metrics.jsonl"), cache=cache,
    )  # fmt: skip

    def make() -> dict[str, Any]:
        if initial and ranks.is_first():
            write_json(folder / "initial.json", initial)
        inflated = student.backbone == INFLATE
        if initial or (inflated and pretrained):
            warn_of_align_rate(tower.backbone, settings.lr, name=name)
        if not inflated and settings.batch_norm == "frozen":
            warn_of_untrained_norms(tower.backbone, name=name)
        if settings.batch_norm == "train":
            seen = {student_layout(one, tower.config.input.sensors).sensor.name for one in samples}
            warn_of_mixed_norms(tower.backbone, seen, name=name)
        align(
            clip, tower.to(device), sources, settings, folder,
            views_folder=views_folder, anchors=anchors, validation=validation,
            allow_shared_samples=allow_shared_samples, cache=cache, seed=seed,
            tensorboard=tensorboard,
        )  # fmt: skip
        if not ranks.is_first():
            return {}
        trained = None
        if describe:
            with ranks.alone():
                trained = outcome_of(clip, tower, sources, settings, folder, seed=seed)
        write_state_dict(weights, tower.state_dict())
        return {
            "tower_id": tower.tower_id(),
            "trained": None if trained is None else trained.model_dump(mode="json"),
        }

    note = run_stage(stage, make, together=True)
    expected = {key: tuple(value.shape) for key, value in tower.state_dict().items()}
    check_shapes(expected, read_shapes(weights), what=str(weights))
    load_weights(tower, read_state_dict(weights), what=str(weights))
    if note["trained"] is not None:
        tower.trained = TowerTraining.model_validate(note["trained"])
    return tower.to(device).eval().requires_grad_(False)
