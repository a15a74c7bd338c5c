"""Losses as pure functions. Letters: B batch, D embedding, K classes.

Every loss is a mean over the samples of the batch; each docstring gives its reduction over D, since
a weight that suits one reduction does not suit another.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True, slots=True)
class Context:
    """What feature losses may use: exp(logit_scale), and anchors (K, D), L2-normalised texts."""

    scale: float | Tensor
    anchors: Tensor | None = None


def cosines(a: Tensor, b: Tensor) -> Tensor:
    """(B, K) cosines of the rows of a (B, D) and b (K, D), in float32 even where autocast is on:
    bfloat16 would round logits of 100 by a quarter."""
    with torch.autocast(a.device.type, enabled=False):
        return F.normalize(a.float(), dim=-1) @ F.normalize(b.float(), dim=-1).T


def mse(student: Tensor, teacher: Tensor, context: Context) -> Tensor:
    """Mean squared error of raw features, averaged over B *and* D (the paper's feature term)."""
    return F.mse_loss(student, teacher)


def mse_normalised(student: Tensor, teacher: Tensor, context: Context) -> Tensor:
    """Squared error of L2-normalised features, summed over D, averaged over B: 2 - 2 cos."""
    difference = F.normalize(student, dim=-1) - F.normalize(teacher, dim=-1)
    return difference.square().sum(-1).mean()


def cosine(student: Tensor, teacher: Tensor, context: Context) -> Tensor:
    """1 - cos, averaged over B."""
    return (1 - F.cosine_similarity(student, teacher, dim=-1)).mean()


def infonce(student: Tensor, teacher: Tensor, context: Context) -> Tensor:
    """Symmetric InfoNCE: each student embedding must find its teacher's among the batch's, and the
    reverse; logits are `context.scale` times the cosines, averaged over B."""
    logits = context.scale * cosines(student, teacher)
    target = torch.arange(len(logits), device=logits.device)
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


def kl(student: Tensor, teacher: Tensor, context: Context) -> Tensor:
    """KL(teacher || student) of the distributions over the text anchors, averaged over B."""
    assert context.anchors is not None, "kl needs anchors"
    log_student = (context.scale * cosines(student, context.anchors)).log_softmax(-1)
    log_teacher = (context.scale * cosines(teacher, context.anchors)).log_softmax(-1)
    return F.kl_div(log_student, log_teacher, log_target=True, reduction="batchmean")


LOSSES: dict[str, Callable[[Tensor, Tensor, Context], Tensor]] = {
    "mse": mse,
    "mse_normalised": mse_normalised,
    "cosine": cosine,
    "infonce": infonce,
    "kl": kl,
}
"""Feature losses by name: (student (B, D), teacher (B, D), context) -> scalar."""

OF_WHOLE_BATCH = frozenset({"infonce"})
"""Those that compare samples with one another: no mean over parts of a batch gives them."""


class Calibration(nn.Module):
    """Two scalars, s and b, for sigma(s * cos + b); trained beside the tower and then dropped.

    Cosine logits times 100 without a bias start every sigmoid near 1. Here s starts at
    exp(logit_scale) and b where the mean cosine of training samples gives the base rate.
    """

    def __init__(self, scale: float, *, base_rate: float, mean_cosine: float) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(torch.tensor(scale).log())
        odds = torch.logit(torch.tensor(base_rate), eps=1e-4)
        self.bias = nn.Parameter(odds - scale * mean_cosine)

    def forward(self, cosines: Tensor) -> Tensor:
        return self.log_scale.exp() * cosines + self.bias


class Calibrations(nn.ModuleDict):
    """The calibrations of several data sets, by number."""

    def __init__(self, found: Mapping[int, Calibration]) -> None:
        super().__init__({str(number): one for number, one in found.items()})

    def of(self, source: int) -> Calibration | None:
        """That of data set number `source`; None where its loss has none."""
        return cast(Calibration, self[str(source)]) if str(source) in self else None


def start_calibration(
    tower: nn.Module,
    pixels: Tensor,
    weights: Tensor,
    labels: NDArray[Any],
    *,
    scale: float,
) -> Calibration:
    """A calibration that starts at the base rate of the labels and at the mean cosine of a batch.

    `pixels`: ready pixels (B, C, H, W) of training samples, which `tower` embeds; `weights` (K, D):
    zero-shot weights; `labels` (N, K) bool: of all training samples. `scale`: exp(logit_scale), of
    which at most 20 are taken.
    """
    first = next(tower.parameters())
    training = tower.training
    tower.eval()
    with torch.inference_mode():
        near = cosines(tower(pixels.to(first.device)), weights.to(first.device))
    tower.train(training)
    return Calibration(
        min(scale, 20.0), base_rate=float(np.mean(labels)), mean_cosine=float(near.mean())
    )


def label_loss(
    features: Tensor,
    weights: Tensor,
    labels: Tensor,
    *,
    scale: float,
    calibration: Calibration | None = None,
    label_smoothing: float = 0.0,
) -> Tensor:
    """Loss of exp(logit_scale) * normalise(features (B, D)) @ weights (K, D).T against labels.

    Labels (B,) int64: cross-entropy. Labels (B, K) bool: binary cross-entropy, averaged over B and
    K, on the plain logits (the paper's), or through `calibration`.
    """
    near = cosines(features, weights)
    if labels.ndim == 1:
        return F.cross_entropy(scale * near, labels, label_smoothing=label_smoothing)
    logits = calibration(near) if calibration is not None else scale * near
    return F.binary_cross_entropy_with_logits(logits, labels.float())
