"""Stage 2: distil the patched RGB tower into the tower of another sensor.

Per sample one geometry for teacher and student. The teacher's views are stored, or computed live;
for the same view seeds both give the same targets within float16. Letters: B batch, D embedding,
K classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from terralign import ranks
from terralign.compute import inference_depends
from terralign.datasets.batches import Batch as Chosen
from terralign.datasets.batches import Plan, keep_in_memory, keys_of
from terralign.datasets.overlap import Overlaps, keep_apart
from terralign.datasets.sample import (
    SampleSet,
    labels_id,
    only_sensors,
    optical_layout,
    require_labels,
)
from terralign.encoders.clip.load import ClipModel
from terralign.encoders.clip.weights import hash_state
from terralign.encoders.sensor import SensorTower
from terralign.encoders.zeroshot import PromptSet, zero_shot_weights
from terralign.errors import RecipeError
from terralign.feed import Raw
from terralign.preprocess import (
    apply_views,
    augment_spectral,
    draw_views,
    make_ready,
    scale_bands,
)
from terralign.train.finetune import select_trainable, train_mode
from terralign.train.loop import Batch, FitResult, fit
from terralign.train.losses import (
    LOSSES,
    OF_WHOLE_BATCH,
    Calibrations,
    Context,
    label_loss,
    start_calibration,
)
from terralign.train.settings import WITHOUT_EFFECT, LabelLoss
from terralign.train.settings import AlignSettings as AlignSettings
from terralign.train.student import student_layout
from terralign.train.student_validation import validation_value
from terralign.train.teacher import (
    ViewPlan,
    stored_views,
    teacher_features,
    teacher_pictures,
)


@dataclass(frozen=True, kw_only=True, slots=True)
class AlignmentSource:
    """Training data of stage 2. `prompts` and `class_names` where its labels are used, else None.

    `repeats`: how often its samples are seen per epoch, each time in a view of its own.
    """

    samples: SampleSet
    prompts: PromptSet | None = None
    class_names: tuple[str, ...] | None = None
    repeats: int = 1

    @property
    def labelled(self) -> bool:
        """Whether the label loss sees this source."""
        return self.prompts is not None

    @property
    def title(self) -> str:
        """The data set's name, and whether its labels are used."""
        return f"{self.samples.name}, {'with' if self.labelled else 'without'} labels"

    def identity(self) -> dict[str, Any]:
        """What a result depends on, as hashes and names."""
        return {
            "data": self.samples.fingerprint,
            "labels": labels_id(self.samples) if self.labelled else None,
            "prompts": list(self.prompts.templates) if self.prompts else None,
            "classes": list(self.class_names or ()),
            "repeats": self.repeats,
        }


class _PairBatches:
    """Stage 2's batches: the student's bands, and the teacher's embeddings or pictures, which a
    loss of labels alone does not need."""

    def __init__(
        self,
        clip: ClipModel,
        student: SensorTower,
        sources: Sequence[AlignmentSource],
        settings: AlignSettings,
        folder: Path,
        cache: Path | None,
        seed: int,
    ) -> None:
        self._clip = clip
        self._spec = student.config.input
        self._settings = settings
        self._sources = sources
        self._seed = seed
        self._samples = [keep_in_memory(source.samples) for source in sources]
        self._layouts = [student_layout(s, self._spec.sensors) for s in self._samples]
        self._views = ViewPlan(spec=settings.views, num_views=settings.num_views, seed=seed)
        self._taught = set(_losses(settings, sources)) != {"label"}
        self._stored: list[NDArray[np.float16]] | None = None
        if self._taught and not settings.live_teacher:
            self._stored = [
                stored_views(clip, samples, self._views, folder, cache=cache)
                for samples in self._samples
            ]
        if not (self._taught and settings.live_teacher):
            self._samples = [  # the teacher's sensor need not be read any more
                only_sensors(samples, [layout.sensor.name])
                for samples, layout in zip(self._samples, self._layouts, strict=True)
            ]
        self._plan = Plan(
            [len(samples) for samples in self._samples],
            batch_size=settings.batch_size,
            seed=seed,
            repeats=[source.repeats for source in sources],
            rank=ranks.rank(),
            world_size=ranks.world_size(),
        )

    @property
    def steps_per_epoch(self) -> int:
        return self._plan.steps_per_epoch

    def first_bands_of(self, source: int) -> Tensor:
        """Ready bands (B, C, H, W) of the first whole batch of source number `source`."""
        return self.make(self._read(self._plan.whole(self._plan.first_step_of(source)))).pixels

    def read(self, step: int) -> Raw[Chosen]:
        return self._read(self._plan.batch(step))

    def _read(self, chosen: Chosen) -> Raw[Chosen]:
        samples, layout = self._samples[chosen.source], self._layouts[chosen.source]
        pixels = samples.read(chosen.indices)
        tensors = {"bands": torch.from_numpy(pixels[layout.sensor.name])}
        if self._taught and self._stored is None:
            tensors["picture"] = torch.from_numpy(pixels[optical_layout(samples).sensor.name])
        elif self._stored is not None:
            stored = self._stored[chosen.source][self._views.stored(chosen.view), chosen.indices]
            tensors["targets"] = torch.from_numpy(stored.astype(np.float32))
        if self._sources[chosen.source].labelled:
            labels = require_labels(samples).values[chosen.indices]
            tensors["labels"] = torch.from_numpy(labels)
        return Raw(chosen, tensors)

    def make(self, raw: Raw[Chosen]) -> Batch:
        chosen, tensors = raw.known, raw.tensors
        samples, layout = self._samples[chosen.source], self._layouts[chosen.source]
        source, indices = self._sources[chosen.source], chosen.indices
        view = self._views.stored(chosen.view)
        views = draw_views(self._settings.views, seed=self._views.seed, view=view, indices=indices)
        bands = scale_bands(tensors["bands"], layout, self._spec)
        bands = augment_spectral(
            apply_views(bands, views, self._spec.size),
            self._settings.spectral, seed=self._seed, view=chosen.view, indices=indices,
        )  # fmt: skip
        targets = tensors.get("targets")
        if "picture" in tensors:
            optical = optical_layout(samples)
            targets = teacher_pictures(self._clip, tensors["picture"], optical, views)
        return Batch(
            keys=keys_of(samples, indices),
            pixels=make_ready(bands, self._spec),
            labels=tensors.get("labels"),
            targets=targets,
            source=chosen.source,
            title=source.title if len(self._sources) > 1 else "",
            whole=chosen.size,
        )


def align(
    clip: ClipModel,
    student: SensorTower,
    sources: Sequence[AlignmentSource],
    settings: AlignSettings,
    folder: Path,
    *,
    views_folder: Path | None = None,
    anchors: Tensor | None = None,
    validation: AlignmentSource | None = None,
    allow_shared_samples: bool = False,
    cache: Path | None = None,
    seed: int = 0,
    tensorboard: bool = False,
) -> FitResult:
    """Train `student` in place towards the RGB tower of `clip`, the teacher, which is frozen.

    `folder` takes checkpoints and `metrics.jsonl`, `views_folder` (default: `folder`) the stored
    teacher views, which other students of the same data share, and `cache` links to other runs'.
    `anchors` (K, D): L2-normalised texts of the `kl` loss. `validation`: for keep = "best"; judged
    by accuracy where it is used with its labels, else by the mean cosine to the teacher. Calling
    again resumes. Raises `RecipeError` where validation and training data share samples (see
    `datasets.overlap`), unless `allow_shared_samples`.
    """
    check_effects(settings, sources, validation)
    losses = _losses(settings, sources)
    if "kl" in losses and anchors is None:
        raise RecipeError("the kl loss needs anchors: class names of the patching tasks")
    if validation is not None and not allow_shared_samples:
        keep_apart(
            Overlaps(), [source.samples for source in sources], [validation.samples],
            chosen="the best step",
        )  # fmt: skip
    device = next(clip.model.parameters()).device
    depends = align_depends(clip, student, sources, settings, anchors, validation, seed=seed)
    batches = _PairBatches(clip, student, sources, settings, views_folder or folder, cache, seed)
    learner = _Learner(clip, student, sources, settings, batches, anchors).to(device)
    select_trainable(student, settings.trainable, settings.frozen)
    frozen = settings.batch_norm == "frozen"

    def validate() -> float:
        assert validation is not None
        student.eval()
        return validation_value(
            clip, student, validation.samples, validation.prompts, validation.class_names
        )

    return fit(
        learner, batches, settings, folder,
        identity=depends, seed=seed, label=f"align {student.config.name}",
        set_mode=lambda module: train_mode(module, frozen_batch_norm=frozen),
        validate=validate if validation is not None else None,
        tower=student, tensorboard=tensorboard,
    )  # fmt: skip


def align_depends(
    clip: ClipModel,
    student: SensorTower,
    sources: Sequence[AlignmentSource],
    settings: AlignSettings,
    anchors: Tensor | None,
    validation: AlignmentSource | None,
    *,
    seed: int,
) -> dict[str, Any]:
    """All that the aligned tower depends on, as hashes and names; `student`: before training."""
    return {
        "stage": "align",
        "teacher": clip.anchor_id(),
        "student": student.tower_id(),
        "sources": [source.identity() for source in sources],
        "settings": settings.model_dump(mode="json", exclude=WITHOUT_EFFECT),
        "losses": _losses(settings, sources),
        "anchors": None if anchors is None else hash_state({"anchors": anchors}),
        "validation": None if validation is None else validation.identity(),
        "seed": seed,
        **inference_depends(),  # the teacher's and the validation's
    }


def _losses(settings: AlignSettings, sources: Sequence[AlignmentSource]) -> dict[str, float]:
    return settings.weights(labelled=any(source.labelled for source in sources))


def check_effects(
    settings: AlignSettings,
    sources: Sequence[AlignmentSource],
    validation: AlignmentSource | None,
) -> None:
    """Raise `RecipeError` for settings that contradict each other, or would change nothing."""
    losses = _losses(settings, sources)
    if settings.label_loss is not None and "label" not in losses:
        raise RecipeError("label_loss has no effect without a label term; leave it out")
    if "label" not in losses and any(source.labelled for source in sources):
        raise RecipeError(
            "labels = true has no effect, since losses has no label term; leave one of both out"
        )
    unlabelled = [source.samples.name for source in sources if not source.labelled]
    if set(losses) == {"label"} and unlabelled:
        raise RecipeError(
            f"losses has only a label term, and {unlabelled[0]} is used without labels; leave that "
            "data set out, or add a feature loss"
        )
    if settings.live_teacher and set(losses) == {"label"}:
        raise RecipeError("live_teacher has no effect with a label term alone; leave it out")
    if validation is not None and settings.keep == "last":
        raise RecipeError('validation data have no effect with keep = "last"; set keep = "best"')
    for name in OF_WHOLE_BATCH & losses.keys():
        if settings.accumulate > 1:
            raise RecipeError(f"{name} needs the whole batch at once; set accumulate = 1")
        if settings.shards is not None:
            raise RecipeError(f"{name} needs the whole batch at once; leave shards out")


class _Learner(nn.Module):
    """The student, and the scalars that are dropped afterwards."""

    def __init__(
        self,
        clip: ClipModel,
        student: SensorTower,
        sources: Sequence[AlignmentSource],
        settings: AlignSettings,
        batches: _PairBatches,
        anchors: Tensor | None,
    ) -> None:
        super().__init__()
        device = next(clip.model.parameters()).device
        self.student = student
        losses = _losses(settings, sources)
        self._label_weight = losses.pop("label", 0.0)
        self._feature_losses = losses
        self._teacher = clip if settings.live_teacher else None
        self._scale = clip.logit_scale
        self._context = Context(
            scale=clip.logit_scale, anchors=None if anchors is None else anchors.to(device)
        )
        self._weights: dict[int, Tensor] = {}
        calibrations = {}
        for number, source in enumerate(sources):
            if source.prompts is None:
                continue
            labels = require_labels(source.samples)
            names = source.class_names or labels.class_names
            self._weights[number] = zero_shot_weights(clip, names, source.prompts).to(device)
            if _label_loss_of(source, settings) == "calibrated_bce":
                calibrations[number] = start_calibration(
                    student, batches.first_bands_of(number), self._weights[number], labels.values,
                    scale=clip.logit_scale,
                )  # fmt: skip
        self.calibrations = Calibrations(calibrations)

    def forward(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        targets = batch.targets
        if self._teacher is not None and targets is not None:
            targets = teacher_features(self._teacher, targets)
        features = self.student(batch.pixels).float()
        total = features.new_zeros(())
        metrics: dict[str, Tensor] = {}
        for name, weight in self._feature_losses.items():
            assert targets is not None
            pair = features, targets
            if name in OF_WHOLE_BATCH:
                pair = (
                    ranks.gather_rows(features, batch.num_whole),
                    ranks.gather_rows(targets, batch.num_whole),
                )
            value = LOSSES[name](*pair, self._context)
            metrics[name] = value
            total = total + weight * value
        if batch.labels is not None and self._label_weight:
            value = label_loss(
                features, self._weights[batch.source], batch.labels,
                scale=self._scale, calibration=self.calibrations.of(batch.source),
            )  # fmt: skip
            metrics["label"] = value
            total = total + self._label_weight * value
        return total, metrics


def _label_loss_of(source: AlignmentSource, settings: AlignSettings) -> LabelLoss:
    """The label loss that is set, or the one that suits the labels of a source."""
    multi_label = require_labels(source.samples).multi_label
    loss = settings.label_loss or ("calibrated_bce" if multi_label else "cross_entropy")
    if multi_label == (loss == "cross_entropy"):
        raise RecipeError(f"label_loss {loss!r} does not fit {source.samples.name}")
    return loss
