"""Probes of frozen embeddings: linear, by nearest neighbours, and linear on a few per class.

N training samples, Q samples to be scored, D embedding dimensions, K classes. A probe is fitted on
training samples, its C or k is chosen on validation samples, and it then scores any vectors: give
the scores of test samples to `metrics.classification_metrics` or `metrics.multilabel_metrics`.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score
from sklearn.neighbors import NearestNeighbors

from terralign.errors import DataError
from terralign.evaluation.bootstrap import Floats
from terralign.evaluation.metrics import check_label_sets, check_labels, top1_accuracy
from terralign.evaluation.similarity import row_norms

logger = logging.getLogger(__name__)

DEFAULT_CS = (0.01, 0.1, 1.0, 10.0, 100.0, 1000.0)
"""Inverse strengths of the L2 penalty that are tried."""

DEFAULT_SHOTS = (1, 2, 4, 8, 16)

DEFAULT_NEIGHBOURS = (5, 10, 20, 50, 100, 200)

TEMPERATURE = 0.07
"""Of a neighbour's vote exp(cosine / temperature), as in DINO (Caron et al. 2021, 2104.14294)."""

TOLERANCE = 1e-6
MAX_ITERATIONS = 2000
"""Where the fit of a regression stops: at this slope, or after so many steps."""

NEVER = -1e9
"""The logit of a class that no training sample has."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LinearProbe:
    """A fitted linear probe: logits = L2-normalised vectors @ weights.T + bias.

    `weights`: (K, D), `bias`: (K,). `c`: the chosen one; `validation`: accuracy or macro mAP of
    every C tried.
    """

    weights: Floats
    bias: Floats
    c: float
    validation: Mapping[float, float]

    def scores(self, vectors: Floats) -> Floats:
        """Logits (Q, K) float64 of vectors (Q, D)."""
        return np.asarray(_unit(vectors) @ self.weights.T + self.bias)


@dataclass(frozen=True, kw_only=True, slots=True)
class NeighbourProbe:
    """A k-NN probe over `train` (N, D) with `labels` (N,), its k chosen on validation samples."""

    train: Floats
    labels: NDArray[np.int64]
    num_classes: int
    k: int
    validation: Mapping[int, float]

    def scores(self, vectors: Floats) -> Floats:
        """Shares of the votes (Q, K) float64, 0-1, of vectors (Q, D)."""
        votes = neighbour_scores(
            self.train, self.labels, vectors, num_classes=self.num_classes, ks=(self.k,)
        )
        return votes[self.k]


@dataclass(frozen=True, kw_only=True, slots=True)
class FewShot:
    """Test accuracy (fraction of 1) of linear probes fitted on `shots` samples per class.

    `values`: one per draw; `mean`, and `spread`, their sample standard deviation (0 for one draw).
    `num_short_classes`: classes with fewer training samples than that, which gave all they have.
    """

    shots: int
    values: tuple[float, ...]
    mean: float
    spread: float
    num_short_classes: int


def fit_linear_probe(
    train: Floats,
    train_labels: NDArray[Any],
    validation: Floats,
    validation_labels: NDArray[Any],
    *,
    num_classes: int,
    cs: Sequence[float] = DEFAULT_CS,
) -> LinearProbe:
    """Logistic regression with the C that is best on validation samples.

    `train`: (N, D), `validation`: (V, D). Labels (N,) integers: one softmax over the classes, C by
    top-1 accuracy. Labels (N, K) bool: one regression per class, one C for all by macro mAP. Of
    equally good Cs the smallest is taken; the probe is not fitted anew on validation samples. A
    class that no training sample has is scored `NEVER`. Raises `DataError`.
    """
    multi_label = train_labels.ndim == 2
    held_out = validation_labels
    for labels, vectors, name in (
        (train_labels, train, "train_labels"),
        (held_out, validation, "validation_labels"),
    ):
        if multi_label:
            check_label_sets(labels, (len(vectors), num_classes), name=name)
        else:
            check_labels(labels, len(vectors), num_classes, name=name)
    seen, unseen = _unit(train), _unit(validation)
    cs = sorted(set(cs))
    fit = _fit_one_by_one if multi_label else _fit_softmax
    weights, bias = fit(seen, train_labels, num_classes, cs)
    values = {c: _judge(unseen @ weights[i].T + bias[i], held_out) for i, c in enumerate(cs)}
    best = max(cs, key=lambda c: (values[c], -c))
    chosen = cs.index(best)
    return LinearProbe(c=best, weights=weights[chosen], bias=bias[chosen], validation=values)


def few_shot(
    train: Floats,
    train_labels: NDArray[Any],
    validation: Floats,
    validation_labels: NDArray[Any],
    test: Floats,
    test_labels: NDArray[Any],
    *,
    num_classes: int,
    shots: Sequence[int] = DEFAULT_SHOTS,
    num_seeds: int = 5,
    seed: int = 0,
    cs: Sequence[float] = DEFAULT_CS,
) -> tuple[FewShot, ...]:
    """Linear probes on `shots` training samples of each class, for `num_seeds` draws of them.

    Single-label. `seed`: what is drawn depends on it. A draw's samples for few shots are among its
    samples for more. C is chosen on all validation samples: give few of them where labels are meant
    to be scarce altogether. Raises `DataError`.
    """
    labels = check_labels(train_labels, len(train), num_classes, name="train_labels")
    sizes = np.bincount(labels, minlength=num_classes)
    results = []
    for number in sorted(set(shots)):
        values = []
        for draw in range(num_seeds):
            chosen = _draw_shots(labels, num_classes, number, (draw, seed))
            probe = fit_linear_probe(
                train[chosen],
                labels[chosen],
                validation,
                validation_labels,
                num_classes=num_classes,
                cs=cs,
            )
            values.append(top1_accuracy(probe.scores(test), test_labels))
        results.append(
            FewShot(
                shots=number,
                values=tuple(values),
                mean=float(np.mean(values)),
                spread=float(np.std(values, ddof=1)) if num_seeds > 1 else 0.0,
                num_short_classes=int(np.count_nonzero(sizes < number)),
            )
        )
    return tuple(results)


def fit_neighbour_probe(
    train: Floats,
    train_labels: NDArray[Any],
    validation: Floats,
    validation_labels: NDArray[Any],
    *,
    num_classes: int,
    ks: Sequence[int] = DEFAULT_NEIGHBOURS,
) -> NeighbourProbe:
    """The k-NN probe with the k that has the best top-1 accuracy on validation samples.

    Ks above the number of training samples stand for all of these; of equally good ones the
    smallest is taken. Raises `DataError`.
    """
    ks = sorted({min(k, len(train)) for k in ks})
    votes = neighbour_scores(train, train_labels, validation, num_classes=num_classes, ks=ks)
    values = {k: top1_accuracy(votes[k], validation_labels) for k in ks}
    return NeighbourProbe(
        train=train,
        labels=train_labels,
        num_classes=num_classes,
        k=max(values, key=lambda k: (values[k], -k)),
        validation=values,
    )


def neighbour_scores(
    train: Floats,
    train_labels: NDArray[Any],
    query: Floats,
    *,
    num_classes: int,
    ks: Sequence[int],
) -> dict[int, Floats]:
    """For each k: shares of the votes (Q, K) float64 that the k nearest give to each class.

    `train`: (N, D) with labels (N,) integers; `query`: (Q, D). A neighbour's vote weighs
    exp(cosine / `TEMPERATURE`), relative to the nearest one's, which is 1. Raises `DataError`.
    """
    labels = check_labels(train_labels, len(train), num_classes, name="train_labels")
    index = NearestNeighbors(n_neighbors=max(ks), metric="cosine").fit(_unit(train))
    distances, items = index.kneighbors(_unit(query))
    weights = np.exp((distances[:, :1] - distances) / TEMPERATURE).astype(np.float64)
    places = np.arange(len(query))[:, None] * num_classes + labels[items]
    scores = {}
    for k in ks:
        votes = np.bincount(
            places[:, :k].ravel(), weights[:, :k].ravel(), minlength=len(query) * num_classes
        ).reshape(len(query), num_classes)
        scores[k] = votes / votes.sum(axis=1, keepdims=True)
    return scores


def _draw_shots(
    labels: NDArray[np.int64], num_classes: int, shots: int, seed: int | tuple[int, ...]
) -> NDArray[np.int64]:
    """Indices of `shots` samples of each class (of all where a class has fewer), rising."""
    order = np.random.default_rng(seed).permutation(len(labels))
    drawn = [order[labels[order] == k][:shots] for k in range(num_classes)]
    return np.sort(np.concatenate(drawn))


def _fit_softmax(
    features: Floats, labels: NDArray[np.int64], num_classes: int, cs: Sequence[float]
) -> tuple[Floats, Floats]:
    """Weights (C, K, D) and biases (C, K) of one regression over all classes for each of `cs`."""
    present = np.unique(labels)
    if len(present) == 1:
        raise DataError(
            f"all {len(labels)} training samples are of class {present[0]}; a probe needs two"
        )
    weights = np.zeros((len(cs), num_classes, features.shape[1]))
    bias = np.full((len(cs), num_classes), NEVER)
    for i, (own, offset) in enumerate(_fit_path(features, labels, cs)):
        if len(present) == 2:  # one logit, of the second class against the first
            own, offset = np.concatenate([0 * own, own]), np.append(0.0, offset)
        weights[i, present], bias[i, present] = own, offset
    return weights, bias


def _fit_one_by_one(
    features: Floats, labels: NDArray[np.bool_], num_classes: int, cs: Sequence[float]
) -> tuple[Floats, Floats]:
    """Weights (C, K, D) and biases (C, K) of one regression per class for each of `cs`."""
    weights = np.zeros((len(cs), num_classes, features.shape[1]))
    bias = np.zeros((len(cs), num_classes))
    for k in range(num_classes):
        if labels[:, k].all() or not labels[:, k].any():
            bias[:, k] = -NEVER if labels[0, k] else NEVER
            continue
        for i, (own, offset) in enumerate(_fit_path(features, labels[:, k], cs)):
            weights[i, k], bias[i, k] = own[0], offset[0]
    return weights, bias


def _fit_path(
    features: Floats, labels: NDArray[Any], cs: Sequence[float]
) -> Iterator[tuple[Floats, Floats]]:
    """Coefficients and intercepts at each C, from those of the C before."""
    model = LogisticRegression(tol=TOLERANCE, max_iter=MAX_ITERATIONS, warm_start=True)
    for c in cs:
        model.set_params(C=c)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", ConvergenceWarning)
            # Few shots of many classes: scikit-learn asks whether the labels are numbers.
            warnings.filterwarnings("ignore", "The number of unique classes", UserWarning)
            model.fit(features, labels)
        if any(issubclass(warning.category, ConvergenceWarning) for warning in caught):
            logger.warning("a probe with C = %g was stopped after %d steps", c, MAX_ITERATIONS)
        yield model.coef_.astype(np.float64), model.intercept_.astype(np.float64)


def _judge(scores: Floats, labels: NDArray[Any]) -> float:
    """Top-1 accuracy, ties at their expected value, or macro mAP."""
    if labels.ndim == 1:
        return top1_accuracy(scores, labels)
    known = labels.any(axis=0)
    if not known.any():
        raise DataError("validation_labels has no positive at all; mAP needs at least one")
    return float(average_precision_score(labels[:, known], scores[:, known], average="macro"))


def _unit(vectors: Floats) -> Floats:
    return np.asarray(vectors / row_norms(vectors)[:, None])
