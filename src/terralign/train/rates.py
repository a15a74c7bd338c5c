"""Learning rates that pretrained transformers do not bear."""

from __future__ import annotations

import logging

from torch import nn

logger = logging.getLogger(__name__)

PATCH_LIMIT, PATCH_RATE = 5e-5, 1e-5
"""Stage 1: rates above the first are warned of; the second is the paper's (as reported)."""

ALIGN_LIMIT, ALIGN_RATE = 2e-4, 1e-4
"""Stage 2, the same."""


def is_transformer(module: nn.Module) -> bool:
    """Whether a tower has self-attention layers (open_clip's or timm's); attention pooling on top
    of a convolutional network does not count."""
    return any(
        isinstance(layer, nn.MultiheadAttention) or type(layer).__name__.endswith("Attention")
        for layer in module.modules()
    )


def warn_of_patch_rate(visual: nn.Module, lr: float, *, source: str) -> None:
    """Warn where stage 1 would fine-tune the pretrained transformer `visual` far too fast."""
    if lr > PATCH_LIMIT and is_transformer(visual):
        logger.warning(
            "stage 1: lr = %g is far above what fine-tuning a pretrained transformer bears (the "
            "paper's is %g), and the image tower of %s is one; it will lose what it knew. "
            "Use --set patch.lr=1e-5, in Python lr=1e-5", lr, PATCH_RATE, source,
        )  # fmt: skip


def warn_of_align_rate(student: nn.Module, lr: float, *, name: str) -> None:
    """The same for stage 2 and a student that starts from pretrained weights."""
    if lr > ALIGN_LIMIT and is_transformer(student):
        logger.warning(
            "stage 2: lr = %g is far above what fine-tuning a pretrained transformer bears (the "
            "paper's is %g), and the student of tower %r is one; it will lose what it knew. "
            "Use --set align.%s.lr=1e-4, in Python lr=1e-4", lr, ALIGN_RATE, name, name,
        )  # fmt: skip
