"""Linear probing, then fine-tuning (LP-FT, Kumar et al. 2022, arXiv 2202.10054), a baseline.

A linear head on the frozen RGB tower, begun at the zero-shot weights, is trained first; then head
and tower together. A head trained beforehand spares the tower the large gradients that distort
it. The head belongs to its task: what it measures is *not* zero-shot. Letters: B batch,
D embedding, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from terralign.datasets.sample import SampleSet, require_labels
from terralign.encoders.clip.load import ClipModel
from terralign.encoders.clip.weights import StateDict, hash_module
from terralign.encoders.space import RGB, EmbeddingSpace
from terralign.errors import DataError, RecipeError
from terralign.evaluation.embed import choose_route, embed_samples
from terralign.evaluation.metrics import MetricResult, classification_metrics, multilabel_metrics
from terralign.train.finetune import (
    PatchingTask,
    PictureBatches,
    select_trainable,
    start_calibrations,
    train_mode,
)
from terralign.train.interpolate import on_cpu
from terralign.train.loop import Batch, LoopSettings, fit
from terralign.train.settings import PictureSettings


class LinearProbeSettings(PictureSettings):
    """LP-FT's training. Rate and decay of the second part are fine-tuning's defaults."""

    epochs: int = Field(default=2, ge=1)
    """The budget: epochs of both parts together (`within_budget`), or of the second alone."""
    lr: float = Field(default=1e-5, gt=0)
    weight_decay: float = Field(default=0.5, ge=0)
    probe_epochs: int = Field(default=1, ge=1)
    """Epochs of the first part, in which only the head is trained."""
    probe_lr: float = Field(default=1e-3, gt=0)
    probe_weight_decay: float = Field(default=0.0, ge=0)
    within_budget: bool = True
    """Whether `epochs` holds both parts, so that as many samples are seen as by fine-tuning."""
    trainable: tuple[str, ...] = ("*",)
    """Names of the tower's parameters to train in the second part, with wildcards."""
    frozen: tuple[str, ...] = ()
    """Of those, names of parameters that stay as they are, with wildcards."""
    batch_norm: Literal["frozen", "train"] = "frozen"
    """Running statistics of batch norms in the second part."""

    @property
    def tower_epochs(self) -> int:
        """Epochs of the second part."""
        if not self.within_budget:
            return self.epochs
        if self.probe_epochs >= self.epochs:
            raise RecipeError(
                f"probe_epochs = {self.probe_epochs} leaves none of epochs = {self.epochs} to the "
                "tower; raise epochs, or set within_budget = false"
            )
        return self.epochs - self.probe_epochs


class LinearHead(nn.Module):
    """Logits (B, K) = scale * normalise(features (B, D)) @ weight (K, D).T + bias (K).

    `scale` is fixed. With zero-shot weights and a bias of 0 it begins as zero-shot classification.
    """

    scale: Tensor

    def __init__(self, weight: Tensor, *, scale: float, bias: float = 0.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight.clone())
        self.bias = nn.Parameter(torch.full((len(weight),), bias))
        self.register_buffer("scale", torch.tensor(scale))

    def forward(self, features: Tensor) -> Tensor:
        with torch.autocast(features.device.type, enabled=False):
            near = F.normalize(features.float(), dim=-1) @ self.weight.T
            return self.scale * near + self.bias


@dataclass(frozen=True, kw_only=True, slots=True)
class LinearProbeResult:
    """One head per task, in the order of the tasks.

    `probe_heads` fit the tower as it was; `heads` fit `finetuned`, the tower's weights afterwards.
    """

    probe_heads: tuple[LinearHead, ...]
    heads: tuple[LinearHead, ...]
    finetuned: StateDict


class _Learner(nn.Module):
    """The heads, beside a tower that is frozen or trained with them."""

    def __init__(
        self, visual: nn.Module, heads: nn.ModuleList, label_smoothing: float, *, frozen: bool
    ) -> None:
        super().__init__()
        if not frozen:
            self.visual = visual
        self._tower = (visual,)  # in a tuple, so that it is not registered
        self._frozen = frozen
        self.heads = heads
        self._label_smoothing = label_smoothing

    def forward(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        assert batch.labels is not None
        with torch.set_grad_enabled(not self._frozen):
            features = self._tower[0](batch.pixels)
        logits = self.heads[batch.source](features)
        if batch.labels.ndim == 1:
            loss = F.cross_entropy(logits, batch.labels, label_smoothing=self._label_smoothing)
        else:
            loss = F.binary_cross_entropy_with_logits(logits, batch.labels.float())
        return loss, {"label": loss}


def probe_then_finetune(
    clip: ClipModel,
    tasks: Sequence[PatchingTask],
    settings: LinearProbeSettings,
    folder: Path,
    *,
    seed: int = 0,
) -> LinearProbeResult:
    """A head per task trained on the frozen tower, then heads and tower, on all tasks jointly.

    The second part continues the batches where the first ended, so that both together see what
    fine-tuning of as many epochs sees. `folder` takes `probe` and `finetune`, each with checkpoints
    and `metrics.jsonl`; calling again resumes, or does nothing when all is complete. `clip` is left
    as it is.
    """
    tower_epochs = settings.tower_epochs
    batches = PictureBatches(clip, tasks, settings, seed)
    device = next(clip.model.parameters()).device
    heads = _first_heads(clip, tasks, settings, batches).to(device)
    identity = {
        "settings": settings.model_dump(mode="json"),
        "tasks": [task.identity() for task in tasks],
        "theta_0": clip.anchor_id(),
    }
    fit(
        _Learner(clip.visual, heads, settings.label_smoothing, frozen=True),
        batches,
        _probe_settings(settings),
        folder / "probe",
        identity={"stage": "linear-probe", **identity},
        seed=seed, label="linear probe",
    )  # fmt: skip
    probe_heads = tuple(_kept(head) for head in heads)
    tower = clip.with_visual(clip.visual.state_dict(), source=clip.source).visual
    both = _Learner(tower, heads, settings.label_smoothing, frozen=False).to(device)
    select_trainable(tower, settings.trainable, settings.frozen)
    batches.first_step = settings.probe_epochs * batches.steps_per_epoch
    frozen = settings.batch_norm == "frozen"
    fit(
        both,
        batches,
        settings.model_copy(update={"epochs": tower_epochs}),
        folder / "finetune",
        identity={"stage": "probed-finetune", "heads": hash_module(heads), **identity},
        seed=seed, label="linear probe, tower",
        set_mode=lambda module: train_mode(module, frozen_batch_norm=frozen),
        tower=tower,
    )  # fmt: skip
    return LinearProbeResult(
        probe_heads=probe_heads,
        heads=tuple(_kept(head) for head in heads),
        finetuned=on_cpu(tower.state_dict()),
    )


def _first_heads(
    clip: ClipModel,
    tasks: Sequence[PatchingTask],
    settings: LinearProbeSettings,
    batches: PictureBatches,
) -> nn.ModuleList:
    """The zero-shot classifier of each task; for calibrated BCE with the scale and bias of its
    start, which the head can then change by itself."""
    weights = [task.weights(clip) for task in tasks]
    calibrations = start_calibrations(clip, tasks, settings, batches, weights)
    heads = nn.ModuleList()
    for number, own in enumerate(weights):
        scale, bias = clip.logit_scale, 0.0
        if (calibration := calibrations.of(number)) is not None:
            scale = float(calibration.log_scale.detach().exp())
            bias = float(calibration.bias.detach())
        heads.append(LinearHead(own, scale=scale, bias=bias))
    return heads


def _probe_settings(settings: LinearProbeSettings) -> LoopSettings:
    """The loop of the first part: the same batches, without warm-up."""
    return LoopSettings.model_validate(
        {
            **settings.values_of(LoopSettings),
            "epochs": settings.probe_epochs,
            "lr": settings.probe_lr,
            "weight_decay": settings.probe_weight_decay,
            "decay": settings.decay if settings.probe_weight_decay else "matrices",
            "warmup_steps": 0,
        }
    )


def _kept(head: nn.Module) -> LinearHead:
    """A copy of a head on the CPU, which training no longer changes."""
    source = cast(LinearHead, head)
    copied = LinearHead(source.weight.detach().cpu(), scale=float(source.scale))
    copied.load_state_dict(on_cpu(source.state_dict()))
    return copied.eval().requires_grad_(False)


def evaluate_linear_head(clip: ClipModel, head: LinearHead, samples: SampleSet) -> MetricResult:
    """Metrics of a head's logits over the RGB tower of `clip`: of one task, not zero-shot.

    For `LinearProbeResult.heads` give `clip.with_visual(result.finetuned, ...)`.
    """
    labels = require_labels(samples)
    if len(head.bias) != len(labels.class_names):
        raise DataError(
            f"the head has {len(head.bias)} classes, {samples.name} {len(labels.class_names)}: "
            "a head serves only the task it was trained for"
        )
    space = EmbeddingSpace(clip)
    embedded = embed_samples(space, samples, choose_route(space, samples, RGB)).vectors
    with torch.inference_mode():
        scores = head(embedded).numpy()
    if labels.multi_label:
        return multilabel_metrics(scores, labels.values.astype(np.bool_))
    return classification_metrics(scores, labels.values)
