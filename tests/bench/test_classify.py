"""Scores of classes by the variants, where samples are ranked within a class."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from sklearn.metrics import average_precision_score

from terralign.bench.classify import class_scores
from terralign.bench.subject import Skipped, Subject
from terralign.datasets.sample import Labels
from terralign.evaluation.embed import Route
from terralign.evaluation.metrics import Floats, multilabel_metrics

NUM_SAMPLES, NUM_CLASSES, NUM_DIMS = 40, 14, 6
ROUTE = cast(Route, None)


def _unit(generator: np.random.Generator, *shape: int) -> Floats:
    vectors = generator.normal(size=shape) + 0.7
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True))


def _subject(vectors: Floats, weights: Floats, values: Any) -> Subject:
    names = tuple(f"class {k}" for k in range(len(weights)))
    labels = Labels(values=values, class_names=names, class_list="made up")
    given = {"vectors": lambda route: vectors, "class_weights": lambda: weights, "labels": labels}
    return cast(Subject, SimpleNamespace(**given))


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
    subject = _subject(vectors, weights, labels)
    scores, whole = class_scores(subject, ROUTE, "csls"), _csls(vectors, weights)
    assert scores == pytest.approx(whole / 2, abs=1e-6)

    def macro(scores: Floats) -> float:
        return multilabel_metrics(scores, labels, num_bootstrap=2).metric("macro_map").value

    assert macro(scores) == pytest.approx(average_precision_score(labels, whole, average="macro"))
    assert abs(macro(scores) - macro(class_scores(subject, ROUTE))) > 1e-3


def test_csls_of_one_label_predicts_the_class_that_its_whole_formula_predicts() -> None:
    generator = np.random.default_rng(1)
    vectors = _unit(generator, NUM_SAMPLES, NUM_DIMS)
    weights = _unit(generator, NUM_CLASSES, NUM_DIMS)
    subject = _subject(vectors, weights, generator.integers(0, NUM_CLASSES, NUM_SAMPLES))
    predicted = class_scores(subject, ROUTE, "csls").argmax(axis=1)
    np.testing.assert_array_equal(predicted, _csls(vectors, weights).argmax(axis=1))
    assert (predicted != class_scores(subject, ROUTE).argmax(axis=1)).any()


def test_qb_norm_has_no_ranking_of_samples_and_is_skipped_with_the_reason() -> None:
    vectors, weights = np.eye(3), np.eye(3)
    subject = _subject(vectors, weights, np.eye(3, dtype=np.bool_))
    with pytest.raises(Skipped, match="penalises the scores of some samples"):
        class_scores(subject, ROUTE, "qb-norm")
