"""Scores of classes by the variants, where samples are ranked within a class."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import average_precision_score

from terralign.bench.classify import class_scores
from terralign.bench.data import Skipped
from terralign.evaluation.bootstrap import Floats
from terralign.evaluation.metrics import multilabel_metrics

NUM_SAMPLES, NUM_CLASSES, NUM_DIMS = 40, 14, 6


def _no_bank() -> Any:
    raise AssertionError("only qb-norm has a bank of queries")


single_label = partial(class_scores, multi_label=False, bank=_no_bank)
several_labels = partial(class_scores, multi_label=True, bank=_no_bank)


def _unit(generator: np.random.Generator, *shape: int) -> Floats:
    vectors = generator.normal(size=shape) + 0.7
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True))


def _csls(vectors: Floats, weights: Floats) -> Floats:
    """2 cos(q, k) - r(q) - r(k), as Conneau et al. write it."""
    cosines = vectors @ weights.T
    of_samples = np.sort(cosines, axis=1)[:, -10:].mean(axis=1)
    of_classes = np.sort(cosines, axis=0)[-10:].mean(axis=0)
    return np.asarray(2 * cosines - of_samples[:, None] - of_classes[None])


def test_csls_of_several_labels_ranks_the_samples_of_a_class_by_its_whole_formula() -> None:
    generator = np.random.default_rng(0)
    vectors = _unit(generator, NUM_SAMPLES, NUM_DIMS)
    weights = _unit(generator, NUM_CLASSES, NUM_DIMS)
    labels = generator.random((NUM_SAMPLES, NUM_CLASSES)) < 0.3
    labels[0] = True
    scores, whole = several_labels(vectors, weights, "csls"), _csls(vectors, weights)
    assert scores == pytest.approx(whole / 2, abs=1e-6)

    def macro(scores: Floats) -> float:
        return multilabel_metrics(scores, labels, num_bootstrap=2).metric("macro_map").value

    assert macro(scores) == pytest.approx(average_precision_score(labels, whole, average="macro"))
    assert abs(macro(scores) - macro(several_labels(vectors, weights, "plain"))) > 1e-3


def test_csls_of_one_label_predicts_the_class_that_its_whole_formula_does() -> None:
    generator = np.random.default_rng(1)
    vectors = _unit(generator, NUM_SAMPLES, NUM_DIMS)
    weights = _unit(generator, NUM_CLASSES, NUM_DIMS)
    predicted = single_label(vectors, weights, "csls").argmax(axis=1)
    np.testing.assert_array_equal(predicted, _csls(vectors, weights).argmax(axis=1))
    assert (predicted != single_label(vectors, weights, "plain").argmax(axis=1)).any()


def test_qb_norm_has_no_ranking_of_samples_and_is_skipped_with_the_reason() -> None:
    with pytest.raises(Skipped, match="penalises the scores of some samples"):
        several_labels(np.eye(3), np.eye(3), "qb-norm")
