"""Linear probes of frozen embeddings, on all training samples and on a few per class.

N training samples, Q samples to be scored, D embedding dimensions, K classes. A probe is fitted on
training samples, its C is chosen on validation samples, and it then scores any
vectors: give the scores of test samples to `metrics.classification_metrics` or
`metrics.multilabel_metrics`. The probe by nearest neighbours is in `neighbours.py`.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score

from terralign.errors import DataError
from terralign.evaluation.bootstrap import Floats
from terralign.evaluation.metrics import check_labels, top1_accuracy
from terralign.evaluation.similarity import row_norms

logger = logging.getLogger(__name__)

DEFAULT_CS = (0.01, 0.1, 1.0, 10.0, 100.0, 1000.0)
"""Inverse strengths of the L2 penalty that are tried."""

DEFAULT_SHOTS = (1, 2, 4, 8, 16)

TOLERANCE = 1e-6
MAX_ITERATIONS = 2000
"""Where the fit of a regression stops: at this slope, or after so many steps."""

NEVER = -1e9
"""The logit of a class that no training sample has."""

Features = Literal["unit", "standard"]
"""What a linear probe sees: L2-normalised vectors, or each dimension at mean 0 and spread 1."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LinearProbe:
    """A fitted linear probe: logits = features @ weights.T + bias.

    `weights`: (K, D), `bias`: (K,). `shift`, `scale`: (D,) of the features "standard", None for
    "unit". `c`: the chosen one; `validation`: accuracy or macro mAP of every C tried.
    """

    weights: Floats
    bias: Floats
    shift: Floats | None
    scale: Floats | None
    c: float
    validation: Mapping[float, float]

    def scores(self, vectors: Floats) -> Floats:
        """Logits (Q, K) float64 of vectors (Q, D)."""
        features = _features(vectors, self.shift, self.scale)
        return np.asarray(features @ self.weights.T + self.bias)


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
    features: Features = "unit",
    cs: Sequence[float] = DEFAULT_CS,
) -> LinearProbe:
    """Logistic regression with the C that is best on validation samples.

    `train`: (N, D), `validation`: (V, D). Labels (N,) integers: one softmax over the classes, C by
    top-1 accuracy. Labels (N, K) bool: one regression per class, one C for all by macro mAP. Of
    equally good Cs the smallest is taken; the probe is not fitted anew on validation samples. A
    class that no training sample has is scored `NEVER`. Raises `DataError`.
    """
    if not cs or min(cs) <= 0:
        raise DataError(f"cs is {tuple(cs)}; expected at least one C, each more than 0")
    labels = _check_targets(train, train_labels, num_classes, name="train_labels")
    held_out = _check_targets(validation, validation_labels, num_classes, name="validation_labels")
    if labels.ndim != held_out.ndim:
        raise DataError("train_labels and validation_labels must both be single- or multi-label")
    shift, scale = _standardisation(train) if features == "standard" else (None, None)
    seen, unseen = _features(train, shift, scale), _features(validation, shift, scale)
    values: dict[float, float] = {}
    best: tuple[float, Floats, Floats] | None = None
    models: dict[int, LogisticRegression] = {}
    for c in sorted(set(cs)):
        if labels.ndim == 1:
            weights, bias = _fit_softmax(models, seen, labels, num_classes, c)
        else:
            weights, bias = _fit_one_by_one(models, seen, labels, c)
        values[c] = _judge(unseen @ weights.T + bias, held_out)
        if best is None or values[c] > values[best[0]]:
            best = c, weights, bias
    assert best is not None
    return LinearProbe(
        c=best[0], weights=best[1], bias=best[2], shift=shift, scale=scale, validation=values
    )


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
    features: Features = "unit",
    cs: Sequence[float] = DEFAULT_CS,
) -> tuple[FewShot, ...]:
    """Linear probes on `shots` training samples of each class, for `num_seeds` draws of them.

    Single-label. `seed`: what is drawn depends on it. A draw's samples for few shots are among its
    samples for more. C is chosen on all
    validation samples: give few of them where labels are meant to be scarce altogether. Raises
    `DataError`.
    """
    if not shots or min(shots) < 1 or num_seeds < 1:
        raise DataError(
            f"shots is {tuple(shots)}, num_seeds {num_seeds}; expected numbers of 1 or more"
        )
    labels = check_labels(train_labels, len(train), num_classes, name="train_labels")
    right = check_labels(test_labels, len(test), num_classes, name="test_labels")
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
                features=features,
                cs=cs,
            )
            values.append(_judge(probe.scores(test), right))
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


def _draw_shots(
    labels: NDArray[np.int64], num_classes: int, shots: int, seed: int | tuple[int, ...]
) -> NDArray[np.int64]:
    """Indices of `shots` samples of each class (of all where a class has fewer), rising."""
    order = np.random.default_rng(seed).permutation(len(labels))
    drawn = [order[labels[order] == k][:shots] for k in range(num_classes)]
    return np.sort(np.concatenate(drawn))


def _fit_softmax(
    models: dict[int, LogisticRegression],
    features: Floats,
    labels: NDArray[np.int64],
    num_classes: int,
    c: float,
) -> tuple[Floats, Floats]:
    """Weights (K, D) and bias (K,) of one regression over all classes."""
    present = np.unique(labels)
    weights, bias = np.zeros((num_classes, features.shape[1])), np.full(num_classes, NEVER)
    if len(present) == 1:
        raise DataError(
            f"all {len(labels)} training samples are of class {present[0]}; a probe needs two"
        )
    own, offset = _fit(models, 0, features, labels, c)
    if len(present) == 2:  # one logit, of the second class against the first
        own, offset = np.concatenate([0 * own, own]), np.append(0.0, offset)
    weights[present], bias[present] = own, offset
    return weights, bias


def _fit_one_by_one(
    models: dict[int, LogisticRegression], features: Floats, labels: NDArray[np.bool_], c: float
) -> tuple[Floats, Floats]:
    """Weights (K, D) and bias (K,) of one regression for each class."""
    num_classes = labels.shape[1]
    weights, bias = np.zeros((num_classes, features.shape[1])), np.zeros(num_classes)
    for k in range(num_classes):
        if labels[:, k].all() or not labels[:, k].any():
            bias[k] = -NEVER if labels[0, k] else NEVER
            continue
        own, offset = _fit(models, k, features, labels[:, k], c)
        weights[k], bias[k] = own[0], offset[0]
    return weights, bias


def _fit(
    models: dict[int, LogisticRegression],
    key: int,
    features: Floats,
    labels: NDArray[Any],
    c: float,
) -> tuple[Floats, Floats]:
    """Coefficients and intercepts at C; `models` keep those of the last C to start from."""
    model = models.setdefault(key, _regression())
    model.set_params(C=c)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ConvergenceWarning)
        # Few shots of many classes: scikit-learn asks whether the labels are numbers to regress.
        warnings.filterwarnings("ignore", "The number of unique classes", UserWarning)
        model.fit(features, labels)
    if any(issubclass(warning.category, ConvergenceWarning) for warning in caught):
        logger.warning("a probe with C = %g was stopped after %d steps", c, MAX_ITERATIONS)
    return model.coef_.astype(np.float64), model.intercept_.astype(np.float64)


def _regression() -> LogisticRegression:
    return LogisticRegression(tol=TOLERANCE, max_iter=MAX_ITERATIONS, warm_start=True)


def _judge(scores: Floats, labels: NDArray[Any]) -> float:
    """Top-1 accuracy, ties at their expected value, or macro mAP."""
    if labels.ndim == 1:
        return top1_accuracy(scores, labels)
    known = np.flatnonzero(labels.any(axis=0))
    if not known.size:
        raise DataError("validation_labels has no positive at all; mAP needs at least one")
    return float(np.mean([average_precision_score(labels[:, k], scores[:, k]) for k in known]))


def _features(vectors: Floats, shift: Floats | None, scale: Floats | None) -> Floats:
    norms = row_norms(vectors, name="vectors")
    if shift is None or scale is None:
        return np.asarray(vectors / norms[:, None])
    return np.asarray((vectors - shift) / scale)


def _standardisation(train: Floats) -> tuple[Floats, Floats]:
    """Mean and standard deviation (D,) float64; 1 where a dimension never changes."""
    spread = train.std(axis=0, dtype=np.float64)
    return train.mean(axis=0, dtype=np.float64), np.where(spread > 0, spread, 1.0)


def _check_targets(
    vectors: Floats, labels: NDArray[Any], num_classes: int, *, name: str
) -> NDArray[Any]:
    """Labels (N,) int64 or (N, K) bool, or a `DataError`."""
    if labels.ndim == 1:
        return check_labels(labels, len(vectors), num_classes, name=name)
    if labels.shape != (len(vectors), num_classes) or labels.dtype != np.bool_:
        raise DataError(
            f"{name} is {labels.shape} {labels.dtype}; expected ({len(vectors)},) integers or "
            f"({len(vectors)}, {num_classes}) bool"
        )
    return labels
