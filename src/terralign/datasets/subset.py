"""A part of a set: a fixed random choice of its samples, in the set's order."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from terralign.chips import PixelLayout
from terralign.datasets.sample import Captions, Labels, SampleSet, is_mapped
from terralign.files import hash_json


class Subset:
    """The samples `indices` (M,) of a `SampleSet`, itself one."""

    def __init__(self, samples: SampleSet, indices: NDArray[np.int64]) -> None:
        self._samples = samples
        self._indices = indices
        labels, keys, captions = samples.labels, samples.keys, samples.captions
        self.name: str = samples.name
        self.split: str = samples.split
        self.layouts: Mapping[str, PixelLayout] = samples.layouts
        self.keys: tuple[str, ...] = tuple(keys[index] for index in indices)
        self.labels: Labels | None = (
            None if labels is None else replace(labels, values=labels.values[indices])
        )
        self.captions: Captions | None = (
            None if captions is None else tuple(captions[index] for index in indices)
        )
        self.prompts: tuple[str, ...] | None = samples.prompts
        self.is_mapped: bool = is_mapped(samples)
        self.fingerprint: str = hash_json({"of": samples.fingerprint, "indices": indices.tolist()})

    def __len__(self) -> int:
        return len(self._indices)

    def within(self) -> tuple[SampleSet, NDArray[np.int64]]:
        """The whole set, and which of its samples these are."""
        return self._samples, self._indices

    def read(self, indices: NDArray[np.int64]) -> dict[str, NDArray[np.generic]]:
        return self._samples.read(self._indices[indices])


def limit_samples(samples: SampleSet, limit: int | None) -> SampleSet:
    """At most `limit` samples: always the same ones, chosen at random, of all classes alike."""
    if limit is None or limit >= len(samples):
        return samples
    chosen = np.random.default_rng(0).permutation(len(samples))[:limit]
    return Subset(samples, np.sort(chosen).astype(np.int64))
