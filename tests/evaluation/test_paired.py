"""Outcomes: what comparing them gives is what comparing the figures by hand gives."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

from terralign.errors import DataError
from terralign.evaluation.calibration import f1_metrics
from terralign.evaluation.metrics import classification_metrics, multilabel_metrics
from terralign.evaluation.paired import compare_outcomes, read_outcomes, write_outcomes
from terralign.evaluation.ranking import retrieval_metrics
from terralign.evaluation.significance import (
    compare_average_precision,
    compare_class_means,
    compare_f1,
    compare_means,
)

RNG = np.random.default_rng(0)
LABELS = RNG.integers(0, 7, size=60)
SCORES = RNG.normal(size=(4, 60, 7)).astype(np.float32)
SETS = RNG.random((60, 7)) < 0.3


def test_single_label_outcomes_compare_as_their_values_do() -> None:
    a, b = (classification_metrics(one, LABELS, num_bootstrap=2).outcomes for one in SCORES[:2])
    for metric in ("top1", "top5"):
        assert compare_outcomes([a], [b], metric) == compare_means(a[metric], b[metric])
    macro = compare_outcomes([a], [b], "macro_accuracy")
    assert macro == compare_class_means(a["top1"], b["top1"], LABELS)
    for scores, outcomes in zip(SCORES, (a, b), strict=False):
        assert outcomes["top1"].tolist() == (scores.argmax(axis=1) == LABELS).tolist()


def test_several_label_outcomes_compare_as_their_scores_and_decisions_do() -> None:
    a, b = (multilabel_metrics(one, SETS, num_bootstrap=2).outcomes for one in SCORES[:2])
    found = compare_outcomes([a], [b], "macro_map", num_bootstrap=50)
    assert found == compare_average_precision(SCORES[0], SCORES[1], SETS, num_bootstrap=50)
    decided = [f1_metrics(one > 0, SETS, num_bootstrap=2).outcomes for one in SCORES[:2]]
    found = compare_outcomes(decided[:1], decided[1:], "micro_f1", num_bootstrap=50)
    expected = compare_f1(SCORES[0] > 0, SCORES[1] > 0, SETS, average="micro", num_bootstrap=50)
    assert found == expected


def test_seeds_are_averaged_before_they_are_compared() -> None:
    every = [classification_metrics(one, LABELS, num_bootstrap=2).outcomes for one in SCORES]
    found = compare_outcomes(every[:2], every[2:], "top1")
    means = [np.mean([one["top1"] for one in half], axis=0) for half in (every[:2], every[2:])]
    assert found is not None
    assert asdict(found) == pytest.approx(asdict(compare_means(*means)))
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
        retrieval_metrics(
            one, one, query_labels=labels, gallery_labels=labels, exclude_self=True, num_bootstrap=2
        )
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
