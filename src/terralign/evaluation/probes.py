"""Probes of frozen embeddings: linear, by nearest neighbours, and linear on a few per class.

N training samples, Q samples to be scored, D embedding dimensions, K classes. A probe is fitted on
training samples, its C or k is chosen on validation samples, and it then scores any vectors: give
the scores of test samples to `metrics.classification_metrics` or `metrics.multilabel_metrics`.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping, Sequence
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

    @property
    def chosen(self) -> dict[str, float]:
        """What validation chose."""
        return {"C": self.c}


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

    @property
    def chosen(self) -> dict[str, float]:
        """What validation chose."""
        return {"k": float(self.k)}


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
    for labels, number, name in (
        (train_labels, len(train), "train_labels"),
        (validation_labels, len(validation), "validation_labels"),
    ):
        if train_labels.ndim == 2:
            check_label_sets(labels, (number, num_classes), name=name)
        else:
            check_labels(labels, number, num_classes, name=name)
    seen, unseen = _unit(train), _unit(validation)
    problems, other_bias = _problems(train_labels, num_classes)
    models = [
        LogisticRegression(tol=TOLERANCE, max_iter=MAX_ITERATIONS, warm_start=True)
        for _ in problems  # each starts from the C before
    ]
    probes, values = {}, {}
    for c in sorted(set(cs)):
        weights, bias = np.zeros((num_classes, seen.shape[1])), other_bias.copy()
        for model, (targets, classes) in zip(models, problems, strict=True):
            weights[classes], bias[classes] = _fit(model, seen, targets, c)
        probes[c] = weights, bias
        values[c] = _judge(unseen @ weights.T + bias, validation_labels)
    best = max(values, key=lambda c: (values[c], -c))
    return LinearProbe(weights=probes[best][0], bias=probes[best][1], c=best, validation=values)


def few_shot(
    train: Floats,
    train_labels: NDArray[Any],
    validation: Floats,
    validation_labels: NDArray[Any],
    test: Floats,
    test_labels: NDArray[Any],
    *,
    num_classes: int,
    shots: Sequence[int],
    num_seeds: int,
    seed: int = 0,
    cs: Sequence[float] = DEFAULT_CS,
) -> dict[int, list[float]]:
    """Test accuracies (fractions of 1) of linear probes on `shots` training samples of each class.

    Returns shots -> one accuracy for each of `num_seeds` draws. A class with fewer samples gives
    all it has. Single-label. `seed`: what is drawn depends on it. A draw's samples for few shots
    are among its samples for more. C is chosen on all validation samples: give few of them where
    labels are meant to be scarce altogether. Raises `DataError`.
    """
    labels = check_labels(train_labels, len(train), num_classes, name="train_labels")
    accuracies: dict[int, list[float]] = {number: [] for number in sorted(set(shots))}
    for number, values in accuracies.items():
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
    return accuracies


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

    Ks above the number of training samples are left out, or, without any other, mean all of them;
    of equally good ones the smallest is taken. Raises `DataError`.
    """
    ks = sorted(k for k in ks if k <= len(train)) or [len(train)]
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


def _problems(
    labels: NDArray[Any], num_classes: int
) -> tuple[list[tuple[NDArray[Any], NDArray[np.int64]]], Floats]:
    """Targets (N,) of each regression, with the classes its logits are of; the bias (K,) of others.

    One regression over all classes for labels (N,), one per class for labels (N, K).
    """
    if labels.ndim == 2:
        always = labels.all(axis=0)
        known = np.flatnonzero(labels.any(axis=0) & ~always)
        return [(labels[:, k], np.array([k])) for k in known], np.where(always, -NEVER, NEVER)
    present = np.unique(labels)
    if len(present) == 1:
        raise DataError(
            f"all {len(labels)} training samples are of class {present[0]}; a probe needs two"
        )
    bias = np.full(num_classes, NEVER)
    bias[present] = 0
    # Of two classes there is one logit, of the second against the first, which stays at 0.
    return [(labels, present if len(present) > 2 else present[1:])], bias


def _fit(
    model: LogisticRegression, features: Floats, targets: NDArray[Any], c: float
) -> tuple[Floats, Floats]:
    """Coefficients and intercepts at C."""
    model.set_params(C=c)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ConvergenceWarning)
        # Few shots of many classes: scikit-learn asks whether the labels are numbers to regress.
        warnings.filterwarnings("ignore", "The number of unique classes", UserWarning)
        model.fit(features, targets)
    if any(issubclass(warning.category, ConvergenceWarning) for warning in caught):
        logger.warning("a probe with C = %g was stopped after %d steps", c, MAX_ITERATIONS)
    return model.coef_, model.intercept_


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
