"""How good a student is on validation data, for keeping the best one."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing

import torch
import torch.nn.functional as F
from torch import Tensor

from terralign.datasets.feeding import feed_samples
from terralign.datasets.sample import SampleSet, require_labels
from terralign.encoders.clip.load import ClipModel
from terralign.encoders.sensor import SensorTower
from terralign.encoders.zeroshot import PromptSet, zero_shot_weights
from terralign.evaluation.classification import score_classes
from terralign.preprocess import ViewSpec, make_ready, resize, scale_bands
from terralign.train.student import student_layout
from terralign.train.teacher import ViewPlan, view_features


def student_features(student: SensorTower, samples: SampleSet, *, batch_size: int = 128) -> Tensor:
    """(N, D) float32 embeddings of all samples through the student, on the CPU."""
    spec = student.config.input
    layout = student_layout(samples, spec.sensors)
    device = next(student.parameters()).device

    def make(pixels: Tensor) -> Tensor:
        return make_ready(resize(scale_bands(pixels, layout, spec), spec), spec)

    rows = []
    with (
        torch.inference_mode(),
        closing(
            feed_samples(samples, layout, make, batch_size=batch_size, device=device)
        ) as stream,
    ):
        for bands in stream:
            rows.append(student(bands).float().cpu())
    return torch.cat(rows)


def validation_value(
    clip: ClipModel,
    student: SensorTower,
    samples: SampleSet,
    prompts: PromptSet | None,
    class_names: Sequence[str] | None,
) -> float:
    """Accuracy (or macro_map) where `prompts` are given, else the mean cosine to the teacher."""
    features = student_features(student, samples)
    if prompts is not None:
        labels = require_labels(samples)
        weights = zero_shot_weights(clip, class_names or labels.class_names, prompts)
        result = score_classes(features, weights, labels, num_bootstrap=1)
        return result.value("macro_map" if labels.multi_label else "top1")
    return _mean_cosine(clip, features, samples)


def mean_cosine(clip: ClipModel, student: SensorTower, samples: SampleSet) -> float:
    """The mean cosine of student and teacher over samples that are not augmented."""
    return _mean_cosine(clip, student_features(student, samples), samples)


def _mean_cosine(clip: ClipModel, features: Tensor, samples: SampleSet) -> float:
    plain = ViewPlan(spec=ViewSpec(flips=False, turns=False), num_views=1, seed=0)
    starts = [(0, start) for start in range(0, len(samples), 128)]
    targets = [found.cpu() for _, _, found in view_features(clip, samples, plain, starts, 128)]
    return float(F.cosine_similarity(features, torch.cat(targets), dim=-1).mean())
