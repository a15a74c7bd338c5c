"""The probe of frozen embeddings by nearest neighbours, exact, in blocks.

N training samples, Q samples to be scored, D embedding dimensions, K classes, B a block's rows. k
is chosen on validation samples; give the scores of test samples to
`metrics.classification_metrics`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from terralign.errors import DataError
from terralign.evaluation.bootstrap import Floats
from terralign.evaluation.metrics import check_labels, top1_accuracy
from terralign.evaluation.similarity import BLOCK, Nearest, Similarities

DEFAULT_NEIGHBOURS = (5, 10, 20, 50, 100, 200)

TEMPERATURE = 0.07
"""Of a neighbour's vote exp(cosine / temperature), as in DINO (Caron et al. 2021, 2104.14294)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class NeighbourProbe:
    """A k-NN probe over `train` (N, D) with `labels` (N,), its k chosen on validation samples."""

    train: Floats
    labels: NDArray[np.int64]
    num_classes: int
    k: int
    temperature: float
    validation: Mapping[int, float]

    def scores(self, vectors: Floats, *, block: int = BLOCK) -> Floats:
        """Shares of the votes (Q, K) float64, 0-1, of vectors (Q, D)."""
        return neighbour_scores(
            self.train,
            self.labels,
            vectors,
            num_classes=self.num_classes,
            ks=(self.k,),
            temperature=self.temperature,
            block=block,
        )[self.k]


def fit_neighbour_probe(
    train: Floats,
    train_labels: NDArray[Any],
    validation: Floats,
    validation_labels: NDArray[Any],
    *,
    num_classes: int,
    ks: Sequence[int] = DEFAULT_NEIGHBOURS,
    temperature: float = TEMPERATURE,
    block: int = BLOCK,
) -> NeighbourProbe:
    """The k-NN probe with the k that has the best top-1 accuracy on validation samples.

    See `neighbour_scores`. Ks above the number of training samples are left out; of equally good
    ones the smallest is taken. Raises `DataError`.
    """
    held_out = check_labels(
        validation_labels, len(validation), num_classes, name="validation_labels"
    )
    scores = neighbour_scores(
        train,
        train_labels,
        validation,
        num_classes=num_classes,
        ks=[k for k in ks if k <= len(train)],
        temperature=temperature,
        block=block,
    )
    values = {k: top1_accuracy(own, held_out) for k, own in scores.items()}
    return NeighbourProbe(
        train=train,
        labels=train_labels,
        num_classes=num_classes,
        k=max(values, key=lambda k: (values[k], -k)),
        temperature=temperature,
        validation=values,
    )


def neighbour_scores(
    train: Floats,
    train_labels: NDArray[Any],
    query: Floats,
    *,
    num_classes: int,
    ks: Sequence[int],
    temperature: float = TEMPERATURE,
    block: int = BLOCK,
) -> dict[int, Floats]:
    """For each k: shares of the votes (Q, K) float64 that the k nearest give to each class.

    `train`: (N, D) with labels (N,) integers; `query`: (Q, D). A neighbour's vote weighs
    exp(cosine / temperature). Training samples that tie for the last of the k places share them
    evenly. Exact, in blocks, all ks at once; memory beyond the inputs is some tiles of block *
    block numbers, and Q * K for each k. Raises `DataError`.
    """
    labels = check_labels(train_labels, len(train), num_classes, name="train_labels")
    if not ks or min(ks) < 1 or max(ks) > len(train):
        raise DataError(
            f"ks is {tuple(ks)}; expected at least one k, each 1 to {len(train)} (training samples)"
        )
    if not temperature > 0:
        raise DataError(f"temperature is {temperature}; expected more than 0")
    tiles = Similarities(query, train, block=block)
    scores: dict[int, Floats] = {k: np.empty((len(query), num_classes)) for k in sorted(set(ks))}
    for rows in tiles.query_slices():
        for near in tiles.nearest(rows, tiles.unit_queries(rows), max(ks)):
            votes = _Votes(near, labels, num_classes, temperature=temperature)
            for k, own in scores.items():
                own[near.queries] = votes.of(k)
    return scores


class _Votes:
    """The nearest training samples of B queries.

    `places`: (B, depth) their similarities, the highest first. Those above the lowest place are
    held one by one (`owner`, `similarity`, `label`: (E,)); those at it are only counted by class,
    `at_lowest` (B, K), for there may be any number of them.
    """

    def __init__(
        self,
        near: Nearest,
        labels: NDArray[np.int64],
        num_classes: int,
        *,
        temperature: float,
    ) -> None:
        self.shape = len(near.queries), num_classes
        self.temperature = temperature
        self.places = near.top.descending
        self.lowest = self.places[:, -1]
        above = near.similarity > self.lowest[:, None]
        self.owner = np.nonzero(above)[0]
        self.similarity, self.label = near.similarity[above], labels[near.items[above]]
        at_lowest = near.similarity == self.lowest[:, None]
        self.at_lowest = self._by_class(
            np.nonzero(at_lowest)[0], labels[near.items[at_lowest]], None
        )

    def of(self, k: int) -> Floats:
        """Shares of the votes of the first `k`, (B, K)."""
        last = self.places[:, k - 1]
        num_above = np.count_nonzero(self.places > last[:, None], axis=1)
        cut = last[self.owner]
        num_tied = np.bincount(self.owner[self.similarity == cut], minlength=self.shape[0])
        ends_at_lowest = last == self.lowest
        num_tied = num_tied + np.where(ends_at_lowest, self.at_lowest.sum(axis=1), 0)
        share = (k - num_above) / num_tied
        part = np.where(self.similarity == cut, share[self.owner], self.similarity > cut)
        # Votes are relative to the nearest's, which is 1: else all could be too small to count.
        nearest = self.places[:, 0]
        weight = np.exp((self.similarity - nearest[self.owner]) / self.temperature)
        votes = self._by_class(self.owner, self.label, part * weight)
        weight = np.exp((self.lowest - nearest) / self.temperature)
        votes += np.where(ends_at_lowest, share * weight, 0)[:, None] * self.at_lowest
        return np.asarray(votes / votes.sum(axis=1, keepdims=True))

    def _by_class(
        self, owner: NDArray[np.int64], label: NDArray[np.int64], weights: Floats | None
    ) -> Floats:
        places = owner * self.shape[1] + label
        sums = np.bincount(places, weights=weights, minlength=self.shape[0] * self.shape[1])
        return sums.reshape(self.shape).astype(np.float64)
