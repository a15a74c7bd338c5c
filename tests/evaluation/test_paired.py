"""Outcomes: what comparing them gives is what comparing the figures by hand gives."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

from terralign.errors import DataError
from terralign.evaluation.average_precision import average_precision_statistic
from terralign.evaluation.bootstrap import f1_statistic, mean_statistic
from terralign.evaluation.metrics import classification_metrics, f1_metrics, multilabel_metrics
from terralign.evaluation.paired import compare_outcomes, read_outcomes, write_outcomes
from terralign.evaluation.ranking import map_metrics
from terralign.evaluation.significance import Comparison, compare

RNG = np.random.default_rng(0)
LABELS = RNG.integers(0, 7, size=60)
SCORES = RNG.normal(size=(4, 60, 7)).astype(np.float32)
SETS = RNG.random((60, 7)) < 0.3


def _means(a: np.ndarray, b: np.ndarray) -> Comparison:
    return compare(mean_statistic(a[:, None]), mean_statistic(b[:, None]), len(a))


def test_single_label_outcomes_compare_as_their_values_do() -> None:
    results = [classification_metrics(one, LABELS, num_bootstrap=2) for one in SCORES[:2]]
    a, b = (one.outcomes for one in results)
    for metric in ("top1", "top5"):
        assert compare_outcomes([a], [b], metric) == _means(a[metric], b[metric])
    macro = compare_outcomes([a], [b], "macro_accuracy")
    assert macro is not None
    assert [macro.value_a, macro.value_b] == [one.value("macro_accuracy") for one in results]
    for scores, outcomes in zip(SCORES, (a, b), strict=False):
        assert outcomes["top1"].tolist() == (scores.argmax(axis=1) == LABELS).tolist()


def test_several_label_outcomes_compare_as_their_scores_and_decisions_do() -> None:
    a, b = (multilabel_metrics(one, SETS, num_bootstrap=2).outcomes for one in SCORES[:2])
    found = compare_outcomes([a], [b], "macro_map", num_bootstrap=50)
    ranked = [average_precision_statistic(one, SETS, "macro") for one in SCORES[:2]]
    assert found == compare(*ranked, 60, num_bootstrap=50)
    decided = [f1_metrics(one > 0, SETS, num_bootstrap=2).outcomes for one in SCORES[:2]]
    found = compare_outcomes(decided[:1], decided[1:], "micro_f1", num_bootstrap=50)
    assert found == compare(
        *(f1_statistic(one > 0, SETS, "micro") for one in SCORES[:2]), 60, num_bootstrap=50
    )


def test_seeds_are_averaged_before_they_are_compared() -> None:
    every = [classification_metrics(one, LABELS, num_bootstrap=2).outcomes for one in SCORES]
    found = compare_outcomes(every[:2], every[2:], "top1")
    means = [np.mean([one["top1"] for one in half], axis=0) for half in (every[:2], every[2:])]
    assert found is not None
    assert asdict(found) == pytest.approx(asdict(_means(*means)))
    sets = [multilabel_metrics(one, SETS, num_bootstrap=2) for one in SCORES]
    found = compare_outcomes([one.outcomes for one in sets[:3]], [sets[3].outcomes], "macro_map")
    assert found is not None
    before = np.mean([one.value("macro_map") for one in sets[:3]])
    assert found.value_a == pytest.approx(before)
    assert found.difference == pytest.approx(sets[3].value("macro_map") - before)


def test_queries_that_are_left_out_are_not_compared() -> None:
    vectors = RNG.normal(size=(3, 20, 8))
    labels = np.append(np.repeat(np.arange(6), 3), [6, 7])  # the last two find nothing
    found = [
        map_metrics(one, one, labels, labels, exclude_self=True, num_bootstrap=2)
        for one in vectors[:2]
    ]
    compared = compare_outcomes([found[0].outcomes], [found[1].outcomes], "map@10")
    assert compared is not None
    assert compared.num_samples == 18
    assert compared.value_b == pytest.approx(found[1].value("map@10"))


def test_outcomes_of_other_samples_are_not_compared() -> None:
    a = classification_metrics(SCORES[0], LABELS, num_bootstrap=2).outcomes
    other = classification_metrics(SCORES[0], LABELS[::-1].copy(), num_bootstrap=2).outcomes
    assert compare_outcomes([a], [other], "top1") is None
    assert compare_outcomes([a], [a], "recall@1") is None
    gone = {"recall@1": np.where(np.arange(60) == 3, np.nan, 1.0)}
    assert compare_outcomes([gone], [{"recall@1": np.ones(60)}], "recall@1") is None
    with pytest.raises(DataError, match="one seed or more"):
        compare_outcomes([], [a], "top1")


def test_outcomes_are_read_as_they_were_written(tmp_path: Path) -> None:
    outcomes = multilabel_metrics(SCORES[0], SETS, num_bootstrap=2).outcomes
    write_outcomes(tmp_path / "outcomes.safetensors", outcomes)
    read = read_outcomes(tmp_path / "outcomes.safetensors")
    assert read.keys() == outcomes.keys()
    for name, values in outcomes.items():
        assert read[name].dtype == values.dtype
        assert (read[name] == values).all()
