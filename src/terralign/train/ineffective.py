"""Training that cannot get far: too few steps, batch norms that know no statistics."""

from __future__ import annotations

import logging
from collections.abc import Collection

import torch
from torch import nn

from terralign.train.finetune import is_batch_norm
from terralign.train.loop import LoopSettings

logger = logging.getLogger(__name__)

FEW_STEPS = 20
"""Fewer optimiser steps are warned of."""


def warn_of_few_steps(label: str, num_steps: int, num_samples: int, settings: LoopSettings) -> None:
    """Warn where training ends before it has begun."""
    if num_steps < FEW_STEPS:
        logger.warning(
            "%s: only %d step%s: %d samples, batch_size %d, epochs %d; raise epochs or lower "
            "batch_size",
            label,
            num_steps,
            "s" * (num_steps != 1),
            num_samples,
            settings.batch_size,
            settings.epochs,
        )


def warn_of_untrained_norms(backbone: nn.Module, *, name: str) -> None:
    """Warn where batch norms that saw no data yet would be frozen (`batch_norm = "frozen"`)."""
    norms = [one for one in backbone.modules() if is_batch_norm(one)]
    num_untrained = sum(map(_is_untrained, norms))
    if num_untrained:
        logger.warning(
            "tower %r: %d of the encoder's %d batch norms hold no statistics of data (mean 0, "
            'variance 1), and batch_norm = "frozen" keeps them so, with which it learns badly; '
            'set batch_norm = "train"',
            name,
            num_untrained,
            len(norms),
        )


def warn_of_mixed_norms(backbone: nn.Module, sensors: Collection[str], *, name: str) -> None:
    """Warn where batch norms would be trained on batches of one sensor after another's."""
    if len(sensors) > 1 and any(map(is_batch_norm, backbone.modules())):
        logger.warning(
            "tower %r: every batch is of one sensor (%s), and the running statistics that "
            'batch_norm = "train" leaves, a mean over all, fit none of them: accuracy falls '
            "(docs/experiment-log.md); align a tower for each sensor, or start from weights that "
            "hold statistics and leave them frozen",
            name,
            ", ".join(sorted(sensors)),
        )


def _is_untrained(norm: nn.Module) -> bool:
    mean, variance = getattr(norm, "running_mean", None), getattr(norm, "running_var", None)
    if not isinstance(mean, torch.Tensor) or not isinstance(variance, torch.Tensor):
        return False
    return bool((mean == 0).all()) and bool((variance == 1).all())
