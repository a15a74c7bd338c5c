"""A small CLIP from nothing, contrastively, on pictures with captions: where quickstart starts.

Also a worked example of how a CLIP is pretrained. Source: Radford et al. 2021. Letters: B batch.
"""

from __future__ import annotations

import fnmatch
import math
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from terralign.datasets.batches import Plan, keep_in_memory, keys_of
from terralign.datasets.sample import SampleSet, optical_layout
from terralign.encoders.clip.load import ClipModel, new_clip
from terralign.encoders.zeroshot import tokenize
from terralign.errors import DataError, RecipeError
from terralign.preprocess import apply_views, draw_views, make_ready, scale_composite
from terralign.train.loop import Prepared, fit
from terralign.train.losses import cosines
from terralign.train.settings import PretrainSettings as PretrainSettings


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

    def prepare(self, step: int) -> Prepared:
        batch = self._plan.batch(step)
        layout = optical_layout(self._samples)
        raw = torch.from_numpy(self._samples.read(batch.indices)[layout.sensor.name])
        views = draw_views(self._views, seed=self._seed, view=batch.view, indices=batch.indices)
        pictures = apply_views(scale_composite(raw, layout), views, self._spec.size)
        return Prepared(
            keys=keys_of(self._samples, batch.indices),
            inputs=(make_ready(pictures, self._spec), self._tokens[batch.indices]),
        )


def contrastive_loss(images: Tensor, texts: Tensor, logit_scale: Tensor) -> Tensor:
    """CLIP's symmetric cross-entropy over the batch; images, texts (B, D); averaged over B."""
    logits = logit_scale * cosines(images, texts)
    target = torch.arange(len(logits), device=logits.device)
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


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
    greatest = math.log(100)

    def loss_function(
        inputs: Any, part: int, num_parts: int
    ) -> tuple[Tensor, dict[str, float], int]:
        pictures, tokens = (value.to(device) for value in inputs)
        scale = cast(nn.Parameter, model.logit_scale)
        images = cast(Any, model).encode_image(pictures).float()
        texts = cast(Any, model).encode_text(tokens).float()
        loss = contrastive_loss(images, texts, scale.clamp(max=greatest).exp())
        return loss, {"logit_scale": float(scale.detach().exp())}, len(pictures)

    fit(
        model, loss_function, batches, settings, folder,
        identity=pretrain_depends(samples, settings, seed=seed),
        seed=seed, label="pretrain", tensorboard=tensorboard,
    )  # fmt: skip
    model.eval().requires_grad_(False)
    with torch.no_grad():
        cast(nn.Parameter, model.logit_scale).clamp_(max=greatest)
    return clip


def pretrain_depends(
    samples: SampleSet, settings: PretrainSettings, *, seed: int
) -> dict[str, Any]:
    """All that the pretrained CLIP depends on, as hashes and names."""
    return {
        "stage": "pretrain",
        "settings": settings.model_dump(mode="json"),
        "data": samples.fingerprint,
        "seed": seed,
    }
