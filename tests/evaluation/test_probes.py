"""Probes against scikit-learn and dense brute force."""

from __future__ import annotations

import logging

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score
from sklearn.multiclass import OneVsRestClassifier
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import normalize

from terralign.errors import DataError
from terralign.evaluation import probes
from terralign.evaluation.probes import (
    TEMPERATURE,
    few_shot,
    fit_linear_probe,
    fit_neighbour_probe,
    neighbour_scores,
)

CENTRES = np.random.default_rng(99).normal(size=(4, 12))


def _samples(seed: int, num: int = 120, noise: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    labels = generator.integers(4, size=num)
    vectors = CENTRES[labels] + noise * generator.normal(size=(num, 12))
    return vectors.astype(np.float32), labels


TRAIN, VALIDATION, TEST = _samples(0), _samples(1), _samples(2, 400)


def test_a_linear_probe_is_sklearns_at_the_c_that_validates_best() -> None:
    cs = (0.01, 0.3, 10.0)
    probe = fit_linear_probe(*TRAIN, *VALIDATION, num_classes=4, cs=cs)
    seen, held_out, test = (normalize(v[0]) for v in (TRAIN, VALIDATION, TEST))
    models = {c: LogisticRegression(C=c, tol=1e-8, max_iter=5000).fit(seen, TRAIN[1]) for c in cs}
    accuracies = {c: model.score(held_out, VALIDATION[1]) for c, model in models.items()}
    assert len(set(accuracies.values())) > 1
    assert probe.validation == pytest.approx(accuracies, abs=0.01)
    assert accuracies[probe.c] == max(accuracies.values())
    own = probe.scores(TEST[0])
    oracle = models[probe.c].decision_function(test)
    relative = own - own.mean(axis=1, keepdims=True)
    assert relative == pytest.approx(oracle - oracle.mean(axis=1, keepdims=True), abs=0.02)


def test_a_multilabel_probe_is_one_regression_per_class() -> None:
    sets = [np.stack([v[1] == 0, v[1] <= 1, v[1] == 9, v[1] >= 0], axis=1) for v in (TRAIN, TEST)]
    probe = fit_linear_probe(TRAIN[0], sets[0], TEST[0], sets[1], num_classes=4, cs=(10.0,))
    scores = probe.scores(TEST[0])
    model = OneVsRestClassifier(LogisticRegression(C=10, tol=1e-8, max_iter=5000))
    oracle = model.fit(normalize(TRAIN[0]), sets[0][:, :2]).decision_function(normalize(TEST[0]))
    assert scores[:, :2] == pytest.approx(oracle, abs=0.01)
    assert (scores[:, 2] == probes.NEVER).all()
    assert (scores[:, 3] == -probes.NEVER).all()
    known = [average_precision_score(sets[1][:, k], scores[:, k]) for k in (0, 1, 3)]
    assert probe.validation[10.0] == pytest.approx(np.mean(known))


def test_two_classes_of_four_are_scored_and_the_others_never_win() -> None:
    some = np.isin(TRAIN[1], [1, 3])
    probe = fit_linear_probe(TRAIN[0][some], TRAIN[1][some], *VALIDATION, num_classes=4)
    scores = probe.scores(TEST[0])
    assert set(scores.argmax(axis=1)) == {1, 3}
    among = np.isin(TEST[1], [1, 3])
    assert (scores.argmax(axis=1)[among] == TEST[1][among]).mean() > 0.9


def test_a_probe_that_was_stopped_early_is_reported(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(probes, "MAX_ITERATIONS", 1)
    with caplog.at_level(logging.WARNING):
        fit_linear_probe(*TRAIN, *VALIDATION, num_classes=4, cs=(100.0,))
    assert "C = 100 was stopped after 1 steps" in caplog.text


def test_a_neighbour_probe_is_sklearns_at_the_k_that_validates_best() -> None:
    train, validation = _samples(3, noise=2.0), _samples(4, noise=2.0)
    probe = fit_neighbour_probe(*train, *validation, num_classes=4, ks=(1, 4, 30, 500))
    oracle, models = {}, {}
    for k in (1, 4, 30):  # 500 are more than the 120 training samples
        models[k] = KNeighborsClassifier(
            k, metric="cosine", weights=lambda distances: np.exp((1 - distances) / TEMPERATURE)
        ).fit(train[0], train[1])
        oracle[k] = models[k].score(validation[0], validation[1])
    assert len(set(oracle.values())) > 1
    assert probe.validation == pytest.approx(oracle, abs=0.001)
    assert oracle[probe.k] == max(oracle.values())
    assert probe.scores(TEST[0]) == pytest.approx(models[probe.k].predict_proba(TEST[0]), abs=1e-4)
    assert fit_neighbour_probe(*train, *validation, num_classes=4, ks=(500,)).k == 120
    scores = neighbour_scores(*train, TEST[0], num_classes=5, ks=(4,))[4]
    assert scores[:, :4] == pytest.approx(models[4].predict_proba(TEST[0]), abs=1e-4)
    assert (scores[:, 4] == 0).all()


def test_votes_of_far_neighbours_are_counted() -> None:
    far = neighbour_scores(
        -np.eye(3), np.array([0, 1, 1]), np.array([[1.0, 0.5, 0.5]]), num_classes=2, ks=(2,)
    )
    assert far[2][0] == pytest.approx([0, 1])


def test_more_shots_are_better_and_seeds_spread() -> None:
    found = few_shot(
        *TRAIN, *VALIDATION, *TEST, num_classes=4, shots=(1, 4, 1000), num_seeds=3, cs=(1.0, 10.0)
    )
    assert np.mean(found[1]) < np.mean(found[4]) < np.mean(found[1000])
    assert len(set(found[1])) > 1
    probe = fit_linear_probe(*TRAIN, *VALIDATION, num_classes=4, cs=(1.0, 10.0))
    whole = (probe.scores(TEST[0]).argmax(axis=1) == TEST[1]).mean()
    assert found[1000] == pytest.approx([whole] * 3)
    other = few_shot(
        *TRAIN, *VALIDATION, *TEST, num_classes=4, shots=(1,), num_seeds=3, seed=1, cs=(1.0, 10.0)
    )
    assert other[1] != found[1]


def test_one_shot_of_many_classes_is_fitted_without_a_warning() -> None:
    vectors, labels = np.eye(40), np.arange(40)
    found = few_shot(
        *(vectors, labels) * 3, num_classes=40, shots=(1,), num_seeds=1, cs=(1.0,)
    )  # fmt: skip
    assert found == {1: [1.0]}


def test_shots_are_as_many_of_each_class_and_nested() -> None:
    labels = TRAIN[1]
    two, five = (set(probes._draw_shots(labels, 4, shots, 7).tolist()) for shots in (2, 5))
    assert two < five
    assert np.bincount(labels[sorted(five)]).tolist() == [5] * 4
    assert two != set(probes._draw_shots(labels, 4, 2, 8).tolist())


V, L = np.eye(4), np.arange(4)
SETS = np.eye(4, dtype=bool)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: fit_linear_probe(V, L, V, SETS, num_classes=4), r"validation_labels is \(4, 4\)"),
        (lambda: fit_linear_probe(V, SETS, V, SETS, num_classes=5), r"\(N, K\) bool, \(4, 5\)"),
        (lambda: fit_linear_probe(V, L * 0, V, L, num_classes=4), "are of class 0"),
        (lambda: fit_linear_probe(V, L, V, L + 1, num_classes=4), r"validation_labels\[3\] is 4"),
        (lambda: fit_linear_probe(V, SETS, V, SETS & False, num_classes=4), "no positive at all"),
    ],
)
def test_unusable_input_is_refused(call: object, message: str) -> None:
    with pytest.raises(DataError, match=message):
        call()  # type: ignore[operator]
