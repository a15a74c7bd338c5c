"""Comparisons of two models against plain loops, scikit-learn, and tests with known answers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import binomtest, bootstrap, kstest, ttest_rel
from sklearn.metrics import average_precision_score, f1_score

from terralign.errors import DataError
from terralign.evaluation import bootstrap as module
from terralign.evaluation.average_precision import average_precision_statistic
from terralign.evaluation.bootstrap import (
    Average,
    Floats,
    Statistic,
    class_mean_statistic,
    f1_statistic,
    macro_mean,
    mean_statistic,
    observe,
    percentile_interval,
    resample,
)
from terralign.evaluation.metrics import classification_metrics, f1_metrics, multilabel_metrics
from terralign.evaluation.paired import (
    Comparison,
    compare,
    compare_outcomes,
    read_outcomes,
    write_outcomes,
)
from terralign.evaluation.ranking import map_metrics

RNG = np.random.default_rng(0)
LABELS = RNG.integers(0, 7, size=60)
SCORES = RNG.normal(size=(4, 60, 7)).astype(np.float32)
SETS = RNG.random((60, 7)) < 0.3


def _multilabel(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    labels = generator.random((60, 4)) < [0.3, 0.5, 0.03, 0.0]
    labels[0, 2] = True
    a = (labels + generator.normal(size=labels.shape)).round(1)  # with ties
    b = (labels + 0.6 * generator.normal(size=labels.shape)).round(1)
    return a, b, labels


def _means(a: np.ndarray, b: np.ndarray, **settings: int) -> Comparison:
    statistics = [mean_statistic(one[:, None]) for one in (a, b)]
    return compare(*statistics, len(a), **settings)


def _check_against_loop(
    statistics: list[Statistic], of_rows: Callable[[int, np.ndarray], float], num_samples: int
) -> None:
    """Hold a comparison to `of_rows(model, rows)` on the rows that each resample draws."""
    found = compare(*statistics, num_samples, num_bootstrap=101, seed=3)
    every = np.arange(num_samples)
    assert [found.value_a, found.value_b] == pytest.approx([of_rows(m, every) for m in (0, 1)])
    assert found.difference == found.value_b - found.value_a
    drawn = np.random.default_rng(3).integers(num_samples, size=(101, num_samples))
    differences = np.array([of_rows(1, rows) - of_rows(0, rows) for rows in drawn])
    wanted = np.percentile(differences, [2.5, 97.5])
    assert [found.low, found.high] == pytest.approx(wanted, abs=1e-9)
    tail = min((differences <= 0).sum(), (differences >= 0).sum())
    assert found.p_value == pytest.approx(min(1, 2 * (tail + 1) / 102))


@pytest.mark.parametrize("average", ["macro", "micro"])
def test_f1_is_that_of_the_drawn_rows(average: Average) -> None:
    a, b, labels = _multilabel(1)
    decisions = [scores > 0.5 for scores in (a, b)]

    def f1(model: int, rows: np.ndarray) -> float:
        kept = labels[rows].any(axis=0) | (average == "micro")
        own = decisions[model][rows][:, kept]
        return float(f1_score(labels[rows][:, kept], own, average=average))

    _check_against_loop([f1_statistic(one, labels, average) for one in decisions], f1, 60)


@pytest.mark.parametrize("average", ["macro", "micro"])
def test_average_precision_is_that_of_the_drawn_rows(
    average: Average, monkeypatch: pytest.MonkeyPatch
) -> None:
    *scores, labels = _multilabel(1)
    monkeypatch.setattr(module, "CHUNK", 150)  # several chunks of two resamples each

    def precision(model: int, rows: np.ndarray) -> float:
        kept = labels[rows].any(axis=0) | (average == "micro")
        own = scores[model][rows][:, kept]
        return float(average_precision_score(labels[rows][:, kept], own, average=average))

    statistics = [average_precision_statistic(one, labels, average) for one in scores]
    _check_against_loop(statistics, precision, 60)


def test_means_over_classes_are_those_of_the_drawn_rows() -> None:
    generator = np.random.default_rng(8)
    labels = np.where(np.arange(40) < 2, 6, generator.integers(5, size=40))  # 5 has no sample
    guesses = [np.where(generator.random(40) < 0.6, labels, (labels + 1) % 7) for _ in range(2)]

    def by_class(model: int, rows: np.ndarray) -> float:
        hits = guesses[model][rows] == labels[rows]
        return float(np.mean([hits[labels[rows] == k].mean() for k in np.unique(labels[rows])]))

    statistics = [macro_mean(class_mean_statistic(g == labels, labels, 7)) for g in guesses]
    _check_against_loop(statistics, by_class, 40)


def test_intervals_of_means_are_scipys() -> None:
    values = np.random.default_rng(2).gamma(2, size=(200, 1))
    statistic = mean_statistic(values)
    resampled = resample(statistic, 200, num_bootstrap=20_000, seed=0)[:, 0]
    found = percentile_interval(float(observe(statistic, 200)[0]), resampled)
    oracle = bootstrap(
        (values[:, 0],), np.mean, n_resamples=20_000, method="percentile", rng=1
    ).confidence_interval
    assert found == pytest.approx((oracle.low, oracle.high), abs=0.01)


def test_p_values_and_intervals_agree_with_the_paired_t_test() -> None:
    generator = np.random.default_rng(4)
    common = generator.normal(size=400)
    a = common + 0.1 * generator.normal(size=400)
    b = common + 0.1 * generator.normal(size=400)
    b += 0.016 - (b - a).mean()
    oracle = ttest_rel(b, a)
    found = _means(a, b, num_bootstrap=20_000)
    assert found.difference == pytest.approx(0.016)
    assert 0.01 < oracle.pvalue < 0.05
    assert found.p_value == pytest.approx(oracle.pvalue, abs=0.01)
    interval = oracle.confidence_interval()
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high), abs=0.001)


def test_p_values_of_equal_models_are_uniform() -> None:
    generator = np.random.default_rng(5)
    p_values = np.array(
        [_means(*generator.normal(size=(2, 80)), num_bootstrap=300).p_value for _ in range(300)]
    )
    assert binomtest(int((p_values < 0.05).sum()), 300, 0.05).pvalue > 0.01
    assert kstest(p_values, "uniform").pvalue > 0.01


def test_a_model_against_itself_and_against_a_far_better_one() -> None:
    values = np.random.default_rng(6).random(50)
    same = _means(values, values)
    assert (same.difference, same.low, same.high, same.p_value) == (0, 0, 0, 1)
    better = _means(values, values + 1, num_bootstrap=199)
    assert better.p_value == pytest.approx(2 / 200)
    assert (better.low, better.high) == pytest.approx((1, 1))


def test_a_seed_repeats_itself_and_swapping_the_models_turns_the_sign() -> None:
    *scores, labels = _multilabel(7)
    a, b = (average_precision_statistic(one, labels, "macro") for one in scores)
    one = compare(a, b, 60, num_bootstrap=50, seed=1)
    assert one == compare(a, b, 60, num_bootstrap=50, seed=1)
    assert one.low != compare(a, b, 60, num_bootstrap=50, seed=2).low
    assert compare(b, a, 60, num_bootstrap=50, seed=1) == one.turned()
    assert one.turned().turned() == one


def test_a_resample_without_a_value_is_left_out() -> None:
    def sometimes(counts: np.ndarray) -> Floats:
        return np.where(counts[:, :1] > 0, 1.0, np.nan)

    found = compare(mean_statistic(np.zeros((9, 1))), sometimes, 9, num_bootstrap=99)
    assert (found.low, found.high) == (1, 1)
    with pytest.raises(DataError, match="num_bootstrap is 0"):
        compare(sometimes, sometimes, 9, num_bootstrap=0)


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
