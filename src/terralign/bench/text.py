"""The class names of an entry in the words of its prompts, as one model embeds them.

K classes, D embedding dimensions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from terralign.encoders.space import EmbeddingSpace
from terralign.encoders.zeroshot import PromptSet, load_prompts
from terralign.evaluation.bootstrap import Floats
from terralign.evaluation.rows import PLAIN


@dataclass(frozen=True, kw_only=True, slots=True)
class ClassText:
    """`prompts`: of all variants but prompt-average, which averages the weights of the prompt sets
    `average`. `cache`: a folder that keeps text embeddings."""

    space: EmbeddingSpace
    class_names: tuple[str, ...]
    class_list: str
    prompts: PromptSet
    average: Sequence[str]
    cache: Path

    def keys(self, variant: str = PLAIN) -> dict[str, Any]:
        """The row's keys about words."""
        own = self.prompts.describe()
        names = {"prompts": own["name"], "prompts_hash": own["hash"]}
        if variant == "prompt-average":
            names = {"prompts": "+".join(self.average), "prompts_hash": None}
        return {**names, "class_list": self.class_list}

    def identity(self, variant: str = PLAIN) -> list[Any]:
        """All that the weights depend on, besides the model."""
        hashes = [prompts.describe()["hash"] for prompts in self._sets(variant)]
        return [hashes, list(self.class_names)]

    def weights(self, variant: str = PLAIN) -> Floats:
        """W (K, D) float32, L2-normalised."""
        each = [
            self.space.zero_shot_weights(self.class_names, prompts, cache_dir=self.cache).numpy()
            for prompts in self._sets(variant)
        ]
        if variant != "prompt-average":
            return np.asarray(each[0])
        mean = np.mean(each, axis=0)
        return np.asarray(mean / np.linalg.norm(mean, axis=1, keepdims=True), dtype=np.float32)

    def _sets(self, variant: str) -> list[PromptSet]:
        if variant == "prompt-average":
            return [load_prompts(name) for name in self.average]
        return [self.prompts]
