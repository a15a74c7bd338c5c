"""A small CLIP from nothing, contrastively, on pictures with captions: where quickstart starts.

Also a worked example of how a CLIP is pretrained. Source: Radford et al. 2021. Letters: B batch.
"""

from __future__ import annotations

import fnmatch
import math
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from terralign.datasets.batches import Batch as Chosen
from terralign.datasets.batches import Plan, keep_in_memory, keys_of
from terralign.datasets.feeding import raw_pixels
from terralign.datasets.sample import SampleSet, labels_id, optical_layout
from terralign.encoders.clip.load import ClipModel, new_clip
from terralign.encoders.zeroshot import tokenize
from terralign.errors import DataError, RecipeError
from terralign.feed import Raw
from terralign.preprocess import apply_views, draw_views, make_ready, scale_composite
from terralign.train.loop import Batch, fit
from terralign.train.losses import Context, infonce
from terralign.train.settings import WITHOUT_EFFECT
from terralign.train.settings import PretrainSettings as PretrainSettings

MAX_LOG_SCALE = math.log(100)
"""Of logit_scale, as in CLIP."""


class _CaptionBatches:
    """Batches of ready pictures and tokens."""

    def __init__(
        self, clip: ClipModel, samples: SampleSet, settings: PretrainSettings, seed: int
    ) -> None:
        self._samples = keep_in_memory(samples)
        if samples.captions is None:
            raise DataError(f"data set {samples.name!r} has no captions to pretrain on")
        self._tokens = tokenize(clip, [texts[0] for texts in samples.captions])
        self._spec = clip.input_spec
        self._views = settings.views
        self._seed = seed
        self._plan = Plan([len(samples)], batch_size=settings.batch_size, seed=seed)

    @property
    def steps_per_epoch(self) -> int:
        return self._plan.steps_per_epoch

    def read(self, step: int) -> Raw[Chosen]:
        chosen = self._plan.batch(step)
        pixels = raw_pixels(self._samples, optical_layout(self._samples), chosen.indices)
        return Raw(chosen, {"pixels": pixels, "tokens": self._tokens[chosen.indices]})

    def make(self, raw: Raw[Chosen]) -> Batch:
        chosen = raw.known
        views = draw_views(self._views, seed=self._seed, view=chosen.view, indices=chosen.indices)
        pictures = scale_composite(raw.tensors["pixels"], optical_layout(self._samples))
        return Batch(
            keys=keys_of(self._samples, chosen.indices),
            pixels=make_ready(apply_views(pictures, views, self._spec.size), self._spec),
            targets=raw.tensors["tokens"],
        )


class _Learner(nn.Module):
    """The whole CLIP."""

    def __init__(self, clip: ClipModel) -> None:
        super().__init__()
        self.model = clip.model

    def forward(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        model = cast(Any, self.model)
        images = model.encode_image(batch.pixels).float()
        texts = model.encode_text(batch.targets).float()
        scale = model.logit_scale.clamp(max=MAX_LOG_SCALE).exp()
        loss = infonce(images, texts, Context(scale=scale))
        return loss, {"logit_scale": model.logit_scale.exp()}


def pretrain(
    samples: SampleSet,
    settings: PretrainSettings,
    folder: Path,
    *,
    seed: int = 0,
    device: str = "cpu",
    tensorboard: bool = False,
) -> ClipModel:
    """A CLIP trained on `samples` and their captions; calling again resumes."""
    if settings.accumulate > 1:
        raise RecipeError("the contrastive loss needs the whole batch at once; set accumulate = 1")
    clip = new_clip(
        settings.architecture,
        {"mean": list(settings.mean), "std": list(settings.std), "interpolation": "bicubic",
         "resize_mode": "shortest"},
        seed=seed,
    )  # fmt: skip
    model = clip.model.to(device).requires_grad_(True)
    for name, value in model.named_parameters():
        value.requires_grad_(not any(fnmatch.fnmatchcase(name, one) for one in settings.freeze))
    batches = _CaptionBatches(clip, samples, settings, seed)
    fit(
        _Learner(clip), batches, settings, folder,
        identity=pretrain_depends(samples, settings, seed=seed),
        seed=seed, label="pretrain", tower=clip.visual, tensorboard=tensorboard,
    )  # fmt: skip
    model.eval().requires_grad_(False)
    with torch.no_grad():
        cast(nn.Parameter, model.logit_scale).clamp_(max=MAX_LOG_SCALE)
    return clip


def pretrain_depends(
    samples: SampleSet, settings: PretrainSettings, *, seed: int
) -> dict[str, Any]:
    """All that the pretrained CLIP depends on, as hashes and names."""
    return {
        "stage": "pretrain",
        "settings": settings.model_dump(mode="json", exclude=WITHOUT_EFFECT),
        "data": samples.fingerprint,
        "labels": labels_id(samples),
        "seed": seed,
    }
