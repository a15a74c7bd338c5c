"""A fixed random choice of a set's samples, in the set's order."""

from __future__ import annotations

import numpy as np

from terralign.datasets.sample import SampleSet, Subset


def limit_samples(samples: SampleSet, limit: int | None) -> SampleSet:
    """At most `limit` samples: always the same ones, chosen at random, of all classes alike."""
    if limit is None or limit >= len(samples):
        return samples
    chosen = np.random.default_rng(0).permutation(len(samples))[:limit]
    return Subset(samples, np.sort(chosen).astype(np.int64))
