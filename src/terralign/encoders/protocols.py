"""What measuring needs of a model: towers that embed pixels, and a tower that embeds texts.

B batch, C bands, H W pixels, D embedding.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from terralign.preprocess import InputSpec


class ImageEncoder(Protocol):
    """Towers by name. An `EmbeddingSpace` and a `TimmEncoder` are image encoders."""

    @property
    def tower_names(self) -> tuple[str, ...]: ...

    @property
    def dim(self) -> int:
        """D."""
        ...

    def tower_id(self, name: str) -> str:
        """The name of a tower's weights."""
        ...

    def input_spec(self, name: str) -> InputSpec: ...

    @property
    def device(self) -> torch.device:
        """Where the towers are."""
        ...

    def encode_ready(self, ready: Tensor, *, tower: str) -> Tensor:
        """(B, D) float32 embeddings, not normalised, on the CPU, of pixels (B, C, size, size) on
        the device, as `ready_pixels` makes them."""
        ...


class TextEncoder(Protocol):
    """A text tower. An `EmbeddingSpace` is one."""

    def encode_text(self, texts: Sequence[str]) -> Tensor:
        """(T, D) float32 embeddings of T texts, L2-normalised."""
        ...
