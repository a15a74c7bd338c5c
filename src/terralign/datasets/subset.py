"""A part of a set: a fixed random choice of its samples, in the set's order."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from terralign.chips import PixelLayout
from terralign.datasets.sample import Labels, SampleSet
from terralign.files import hash_json


class Subset:
    """The samples `indices` (M,) of a `SampleSet`, itself one."""

    def __init__(self, samples: SampleSet, indices: NDArray[np.int64]) -> None:
        self._samples = samples
        self._indices = indices

    @property
    def name(self) -> str:
        return self._samples.name

    @property
    def split(self) -> str:
        return self._samples.split

    @property
    def layouts(self) -> Mapping[str, PixelLayout]:
        return self._samples.layouts

    @property
    def keys(self) -> tuple[str, ...]:
        return tuple(self._samples.keys[index] for index in self._indices)

    @property
    def labels(self) -> Labels | None:
        labels = self._samples.labels
        return None if labels is None else replace(labels, values=labels.values[self._indices])

    @property
    def captions(self) -> tuple[str, ...] | None:
        captions = self._samples.captions
        return None if captions is None else tuple(captions[index] for index in self._indices)

    @property
    def prompts(self) -> tuple[str, ...] | None:
        return self._samples.prompts

    @property
    def fingerprint(self) -> str:
        return hash_json({"of": self._samples.fingerprint, "indices": self._indices.tolist()})

    def __len__(self) -> int:
        return len(self._indices)

    def read(self, indices: NDArray[np.int64]) -> dict[str, NDArray[np.generic]]:
        return self._samples.read(self._indices[indices])


def limit_samples(samples: SampleSet, limit: int | None) -> SampleSet:
    """At most `limit` samples: always the same ones, chosen at random, of all classes alike."""
    if limit is None or limit >= len(samples):
        return samples
    chosen = np.random.default_rng(0).permutation(len(samples))[:limit]
    return Subset(samples, np.sort(chosen).astype(np.int64))
