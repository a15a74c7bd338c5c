"""How good a student is on validation data, for keeping the best one."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import closing

import torch
import torch.nn.functional as F
from torch import Tensor

from terralign import ranks
from terralign.datasets.feeding import feed_samples, starts_of
from terralign.datasets.sample import SampleSet, require_labels
from terralign.encoders.clip.load import ClipModel
from terralign.encoders.sensor import SensorTower
from terralign.encoders.zeroshot import PromptSet, zero_shot_weights
from terralign.evaluation.classification import score_classes
from terralign.preprocess import ViewSpec, make_ready, resize, scale_bands
from terralign.train.student import student_layout
from terralign.train.teacher import ViewPlan, view_features


def student_features(student: SensorTower, samples: SampleSet, *, batch_size: int = 128) -> Tensor:
    """(N, D) float32 embeddings of all samples through the student, on the CPU.

    Shared out among ranks, of which the first gets them, and the others none.
    """
    spec = student.config.input
    layout = student_layout(samples, spec.sensors)
    device = next(student.parameters()).device

    def make(pixels: Tensor) -> Tensor:
        return make_ready(resize(scale_bands(pixels, layout, spec), spec), spec)

    def embed(starts: Sequence[int]) -> Generator[ranks.Found, None, None]:
        stream = feed_samples(
            samples, layout, make, batch_size=batch_size, device=device, starts=starts
        )
        with closing(stream):
            for bands in stream:
                with torch.inference_mode():
                    features = student(bands).float().cpu()
                yield (features,)

    rows = [found for (found,) in ranks.share_out(starts_of(samples, batch_size), embed)]
    return torch.cat(rows) if rows else torch.zeros(0)


def validation_value(
    clip: ClipModel,
    student: SensorTower,
    samples: SampleSet,
    prompts: PromptSet | None,
    class_names: Sequence[str] | None,
) -> float:
    """Accuracy (or macro_map) where `prompts` are given, else the mean cosine to the teacher.

    The same at all ranks, among which the samples are shared out.
    """
    if prompts is None:
        return mean_cosine(clip, student, samples)
    features = student_features(student, samples)

    def value() -> float:
        labels = require_labels(samples)
        weights = zero_shot_weights(clip, class_names or labels.class_names, prompts)
        result = score_classes(features, weights, labels, num_bootstrap=1)
        return result.value("macro_map" if labels.multi_label else "top1")

    return ranks.by_first(value)


def mean_cosine(clip: ClipModel, student: SensorTower, samples: SampleSet) -> float:
    """The mean cosine of student and teacher over samples that are not augmented."""
    features = student_features(student, samples)
    plain = ViewPlan(spec=ViewSpec(flips=False, turns=False), num_views=1, seed=0)
    blocks = [(0, start) for start in starts_of(samples, 128)]
    targets = list(view_features(clip, samples, plain, blocks, 128))
    return ranks.by_first(
        lambda: float(F.cosine_similarity(features, torch.cat(targets), dim=-1).mean())
    )
