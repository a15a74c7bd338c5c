"""Retrieval metrics against dense brute force, torchmetrics, and every order of ties."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchmetrics.functional.retrieval import retrieval_average_precision, retrieval_recall

from terralign.errors import DataError
from terralign.evaluation import similarity as module
from terralign.evaluation.metrics import MetricResult
from terralign.evaluation.ranking import map_metrics, recall_metrics

KS = (1, 2, 3, 5, 50)


def _repeated(generator: np.random.Generator, count: int, dims: int = 5) -> np.ndarray:
    """Vectors of which many are equal but for their length."""
    vectors = generator.normal(size=(count, dims))[generator.integers(count // 2, size=count)]
    return np.asarray(vectors * generator.uniform(0.01, 300, size=(count, 1)))


def _measure(query: np.ndarray, gallery: np.ndarray, **settings: Any) -> MetricResult:
    """`recall_metrics` of pairs (`target`), or `map_metrics` of `labels`."""
    settings = {"ks": KS, "num_bootstrap": 3} | settings
    if "target" in settings:
        return recall_metrics(query, gallery, query_owners=settings.pop("target"), **settings)
    return map_metrics(query, gallery, *settings.pop("labels"), **settings)


def _values(query: np.ndarray, gallery: np.ndarray, **settings: Any) -> list[float]:
    return [metric.value for metric in _measure(query, gallery, **settings).metrics]


def _brute_average_precision(similarity: np.ndarray, relevant: np.ndarray, k: int) -> float:
    """Mean of AP@k over every order that agrees with the similarities."""
    orders = [
        order
        for order in itertools.permutations(range(len(similarity)))
        if (np.diff(similarity[list(order)]) <= 0).all()
    ]
    total = 0.0
    for order in orders:
        ranked = relevant[list(order)]
        precision = ranked.cumsum() / np.arange(1, len(ranked) + 1)
        total += (ranked * precision)[:k].sum() / min(k, relevant.sum())
    return total / len(orders)


def test_recall_of_a_hand_computed_case() -> None:
    gallery = np.array([[1, 0], [0, 1], [1, 0], [-1, 0]], dtype=np.float32)
    query = np.array([[2, 0], [0, 3], [1, 0.1]], dtype=np.float32)
    # Query 0: item 0 ties with item 2. Query 1: item 1 is first. Query 2: item 3 is last.
    result = _measure(query, gallery, target=np.array([0, 1, 3]), ks=(1, 2, 3, 4, 9))
    expected = [(0.5 + 1 + 0) / 3, 2 / 3, 2 / 3, 1, 1]
    assert [m.value for m in result.metrics] == pytest.approx(expected)
    assert [m.chance for m in result.metrics] == [1 / 4, 2 / 4, 3 / 4, 1, 1]
    assert [m.name for m in result.metrics][:2] == ["recall@1", "recall@2"]
    assert {m.num_samples for m in result.metrics} == {3}


def test_map_of_a_hand_computed_case() -> None:
    gallery = np.array([[4, 0], [4, 1], [4, 2], [4, 3]], dtype=np.float32)
    query = np.array([[1, 0]], dtype=np.float32)
    values = _values(query, gallery, labels=(np.array([1]), np.array([1, 0, 1, 0])))
    assert values == pytest.approx([1, 1 / 2, (1 + 2 / 3) / 2, (1 + 2 / 3) / 2, (1 + 2 / 3) / 2])


def test_recall_equals_torchmetrics() -> None:
    generator = np.random.default_rng(0)
    query, gallery = generator.normal(size=(40, 8)), generator.normal(size=(60, 8))
    target = generator.integers(60, size=40)
    gallery[target] += 0.5 * query
    unit = [v / np.linalg.norm(v, axis=1, keepdims=True) for v in (query, gallery)]
    similarity = torch.from_numpy(1 + unit[0] @ unit[1].T)  # torchmetrics drops scores <= 0
    for k, value in zip(KS, _values(query, gallery, target=target), strict=True):
        oracle = [
            retrieval_recall(row, torch.arange(60) == int(own), top_k=k)
            for row, own in zip(similarity, target, strict=True)
        ]
        assert value == pytest.approx(float(torch.stack(oracle).mean()), abs=1e-6)


def test_map_over_the_whole_gallery_equals_torchmetrics() -> None:
    generator = np.random.default_rng(1)
    query, gallery = generator.normal(size=(30, 8)), generator.normal(size=(50, 8))
    labels = generator.integers(4, size=30), generator.integers(4, size=50)
    unit = [v / np.linalg.norm(v, axis=1, keepdims=True) for v in (query, gallery)]
    similarity = torch.from_numpy(1 + unit[0] @ unit[1].T)  # torchmetrics drops scores <= 0
    oracle = [
        retrieval_average_precision(row, torch.from_numpy(labels[1] == own))
        for row, own in zip(similarity, labels[0], strict=True)
    ]
    values = _values(query, gallery, labels=labels, ks=(50,))
    assert values == pytest.approx([float(torch.stack(oracle).mean())], abs=1e-6)


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 10_000), st.booleans(), st.sampled_from([(1, 2), (3,), KS]))
def test_map_is_the_mean_over_every_order_of_ties(
    seed: int, sets: bool, ks: tuple[int, ...]
) -> None:
    generator = np.random.default_rng(seed)
    gallery, query = _repeated(generator, 6), generator.normal(size=(4, 5))
    if sets:
        labels = generator.random((4, 3)) < 0.5, generator.random((6, 3)) < 0.5
        labels[0][0] = labels[1][0] = True
        relevant = (labels[0][:, None] & labels[1][None]).any(axis=2)
    else:
        labels = generator.integers(2, size=4), generator.integers(2, size=6)
        labels[1][:2] = 0, 1
        relevant = labels[0][:, None] == labels[1]
    unit = [v / np.linalg.norm(v, axis=1, keepdims=True) for v in (query, gallery)]
    similarity = (unit[0] @ unit[1].T).round(9)
    kept = relevant.any(axis=1)
    result = _measure(query, gallery, labels=labels, ks=ks)
    left_out = f"{(~kept).sum()} of 4 queries have no relevant gallery item"
    assert [*result.notes] == ([f"{left_out} and are left out."] if not kept.all() else [])
    for k, metric in zip(ks, result.metrics, strict=True):
        brute = [
            _brute_average_precision(row, hits, k)
            for row, hits in zip(similarity[kept], relevant[kept], strict=True)
        ]
        assert metric.value == pytest.approx(np.mean(brute))
        assert metric.num_samples == kept.sum()


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10_000), st.integers(1, 500), st.booleans())
def test_block_size_and_gallery_order_do_not_matter(seed: int, block: int, by_class: bool) -> None:
    generator = np.random.default_rng(seed)
    query, gallery = generator.normal(size=(23, 17)), _repeated(generator, 41, 17)
    order = generator.permutation(41)
    if by_class:
        labels = generator.integers(3, size=23), np.arange(41) % 3
        one: dict[str, Any] = {"labels": labels}
        two: dict[str, Any] = {"labels": (labels[0], labels[1][order])}
    else:
        target = generator.integers(41, size=23)
        one, two = {"target": target}, {"target": np.argsort(order)[target]}
    one["ks"] = two["ks"] = (1, 3, 8)  # fewer than there are items, so that ties are cut
    whole = _values(query, gallery, **one)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "BLOCK", block)
        assert _values(query, gallery, **one) == pytest.approx(whole)
        assert _values(query, gallery[order], **two) == pytest.approx(whole)


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 10_000), st.booleans())
def test_recall_grows_with_k_up_to_one(seed: int, repeated: bool) -> None:
    generator = np.random.default_rng(seed)
    query = generator.normal(size=(9, 5))
    gallery = _repeated(generator, 12) if repeated else generator.normal(size=(12, 5))
    values = _values(query, gallery, target=generator.integers(12, size=9), ks=range(1, 13))
    assert all(a <= b + 1e-12 for a, b in itertools.pairwise(values))
    assert values[-1] == 1


def test_a_gallery_of_one_vector_is_at_chance() -> None:
    generator = np.random.default_rng(2)
    query, gallery = generator.normal(size=(12, 5)), np.ones((9, 5))
    labels = np.arange(12) % 3, np.array([0, 0, 0, 0, 0, 1, 1, 2, 2])
    for given_ in ({"target": np.arange(12) % 9}, {"labels": labels}):
        for metric in _measure(query, gallery, **given_).metrics:
            assert metric.value == pytest.approx(metric.chance), metric.name


def test_exclude_self_is_the_same_as_removing_the_item() -> None:
    items, labels = _repeated(np.random.default_rng(3), 15), np.arange(15) % 4
    found = _values(items, items, labels=(labels, labels), exclude_self=True)
    one_by_one = []
    for i in range(15):
        rest = np.delete(np.arange(15), i)
        own = labels[i : i + 1], labels[rest]
        one_by_one.append(_values(items[i : i + 1], items[rest], labels=own))
    assert found == pytest.approx(np.mean(one_by_one, axis=0))


def test_the_interval_of_recall_is_that_of_a_binomial_over_samples() -> None:
    generator = np.random.default_rng(4)
    gallery = generator.normal(size=(1000, 16))
    query = gallery + generator.normal(size=(1000, 16))
    metric = recall_metrics(query, gallery, ks=(1,)).metrics[0]
    assert 0.2 < metric.value < 0.8
    margin = 1.96 * np.sqrt(metric.value * (1 - metric.value) / 1000)
    assert metric.low == pytest.approx(metric.value - margin, abs=0.004)
    assert metric.high == pytest.approx(metric.value + margin, abs=0.004)


EYE = np.eye(3)
CLASSES = np.arange(3)


@pytest.mark.parametrize(
    ("query", "settings", "message"),
    [
        (EYE, {"target": np.array([0, 1, 3])}, "query 2 has no item of its own sample"),
        (EYE, {"target": np.array([0, 1])}, r"query_owners is \(2,\)"),
        (EYE[:2], {"labels": (CLASSES[:2], CLASSES), "exclude_self": True}, "2 queries and 3"),
        (EYE, {"target": CLASSES, "ks": (0, 1)}, "each 1 or more"),
        (EYE, {"target": CLASSES, "ks": ()}, "at least one k"),
        (EYE * 0, {"target": CLASSES}, "row 0 of query is all zeros"),
        (EYE * np.nan, {"target": CLASSES}, "row 0 of query is not finite"),
        (EYE[:, :2] + 1, {"target": CLASSES}, "query has 2 dimensions, gallery has 3"),
        (EYE[0], {"target": CLASSES}, r"query is \(3,\)"),
        (EYE[:0], {"target": CLASSES[:0]}, "query is empty"),
        (EYE, {"labels": (CLASSES, CLASSES + 3)}, "no query has a relevant item"),
        (EYE, {"labels": (EYE > 0, CLASSES)}, r"gallery_labels is \(3,\); expected"),
    ],
)
def test_unusable_input_is_refused(query: np.ndarray, settings: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        _measure(query, EYE, **settings)
