"""Retrieval metrics against dense brute force, torchmetrics, and every order of ties."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchmetrics.functional.retrieval import retrieval_average_precision, retrieval_recall

from terralign.errors import DataError
from terralign.evaluation.ranking import retrieval_metrics

KS = (1, 2, 3, 5, 50)


def _coarse(generator: np.random.Generator, count: int, dims: int = 3) -> np.ndarray:
    """Vectors with few directions, so that many similarities tie."""
    vectors = generator.integers(-1, 2, size=(count, dims)).astype(np.float32)
    vectors[~vectors.any(axis=1), 0] = 1
    return vectors


def _values(query: np.ndarray, gallery: np.ndarray, **settings: object) -> list[float]:
    settings = {"ks": KS, "num_bootstrap": 3} | settings
    return [m.value for m in retrieval_metrics(query, gallery, **settings).metrics]  # type: ignore[arg-type]


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
    result = retrieval_metrics(query, gallery, target=np.array([0, 1, 3]), ks=(1, 2, 3, 4, 9))
    expected = [(0.5 + 1 + 0) / 3, 2 / 3, 2 / 3, 1, 1]
    assert [m.value for m in result.metrics] == pytest.approx(expected)
    assert [m.chance for m in result.metrics] == [1 / 4, 2 / 4, 3 / 4, 1, 1]
    assert [m.name for m in result.metrics][:2] == ["recall@1", "recall@2"]
    assert {m.num_samples for m in result.metrics} == {3}


def test_map_of_a_hand_computed_case() -> None:
    gallery = np.array([[4, 0], [4, 1], [4, 2], [4, 3]], dtype=np.float32)
    query = np.array([[1, 0]], dtype=np.float32)
    values = _values(
        query, gallery, query_labels=np.array([1]), gallery_labels=np.array([1, 0, 1, 0])
    )
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
    values = _values(query, gallery, query_labels=labels[0], gallery_labels=labels[1], ks=(50,))
    assert values == pytest.approx([float(torch.stack(oracle).mean())], abs=1e-6)


@settings(deadline=None, max_examples=25)
@given(
    st.integers(0, 10_000), st.integers(1, 4), st.booleans(), st.sampled_from([(1, 2), (3,), KS])
)
def test_map_is_the_mean_over_every_order_of_ties(
    seed: int, block: int, sets: bool, ks: tuple[int, ...]
) -> None:
    generator = np.random.default_rng(seed)
    gallery, query = _coarse(generator, 6), _coarse(generator, 4)
    if sets:
        labels = generator.random((4, 3)) < 0.5, generator.random((6, 3)) < 0.5
        labels[0][0] = labels[1][0] = True
        relevant = (labels[0][:, None] & labels[1][None]).any(axis=2)
    else:
        labels = generator.integers(2, size=4), generator.integers(2, size=6)
        labels[1][:2] = 0, 1
        relevant = labels[0][:, None] == labels[1]
    unit = [v / np.linalg.norm(v, axis=1, keepdims=True) for v in (query, gallery)]
    similarity = (unit[0] @ unit[1].T).round(5)
    kept = relevant.any(axis=1)
    result = retrieval_metrics(
        query,
        gallery,
        query_labels=labels[0],
        gallery_labels=labels[1],
        ks=ks,
        block=block,
        num_bootstrap=3,
    )
    assert result.num_queries_left_out == (~kept).sum()
    for k, metric in zip(ks, result.metrics, strict=True):
        brute = [
            _brute_average_precision(row, hits, k)
            for row, hits in zip(similarity[kept], relevant[kept], strict=True)
        ]
        assert metric.value == pytest.approx(np.mean(brute))
        assert metric.num_samples == kept.sum()


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10_000), st.integers(1, 60), st.booleans(), st.booleans())
def test_block_size_and_gallery_order_do_not_matter(
    seed: int, block: int, coarse: bool, by_class: bool
) -> None:
    generator = np.random.default_rng(seed)
    make = _coarse if coarse else lambda g, n: g.normal(size=(n, 17)).astype(np.float32)
    query, gallery = make(generator, 23), make(generator, 41)
    order = generator.permutation(41)
    if by_class:
        labels = generator.integers(3, size=23), np.arange(41) % 3
        one: dict[str, object] = {"query_labels": labels[0], "gallery_labels": labels[1]}
        two: dict[str, object] = {"query_labels": labels[0], "gallery_labels": labels[1][order]}
    else:
        target = generator.integers(41, size=23)
        one, two = {"target": target}, {"target": np.argsort(order)[target]}
    one["ks"] = two["ks"] = (1, 3, 8)  # fewer than there are items, so that ties are cut
    whole = _values(query, gallery, **one)
    assert _values(query, gallery, block=block, **one) == whole
    assert _values(query, gallery[order], block=block, **two) == whole


def test_vectors_that_are_equal_tie_exactly_in_any_block() -> None:
    generator = np.random.default_rng(5)
    one = generator.normal(size=(1, 300)).astype(np.float32)
    query, gallery = generator.normal(size=(7, 300)), np.repeat(one, 37, axis=0)
    for block in (1, 2, 5, 64):
        values = _values(query, gallery, target=np.arange(7), block=block)
        assert values == pytest.approx([min(k / 37, 1) for k in KS], abs=1e-12)


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 10_000), st.booleans())
def test_recall_grows_with_k_up_to_one(seed: int, coarse: bool) -> None:
    generator = np.random.default_rng(seed)
    query, gallery = _coarse(generator, 9), _coarse(generator, 12)
    values = _values(query, gallery, target=generator.integers(12, size=9), ks=range(1, 13))
    assert all(a <= b + 1e-12 for a, b in itertools.pairwise(values))
    assert values[-1] == 1


def test_a_gallery_of_one_vector_is_at_chance() -> None:
    generator = np.random.default_rng(2)
    query, gallery = generator.normal(size=(12, 5)), np.ones((9, 5))
    labels = {
        "query_labels": np.arange(12) % 3,
        "gallery_labels": np.array([0, 0, 0, 0, 0, 1, 1, 2, 2]),
    }
    for given_ in ({"target": np.arange(12) % 9}, labels):
        result = retrieval_metrics(query, gallery, ks=KS, block=4, num_bootstrap=3, **given_)
        for metric in result.metrics:
            assert metric.value == pytest.approx(metric.chance), metric.name


def test_exclude_self_is_the_same_as_removing_the_item() -> None:
    generator = np.random.default_rng(3)
    items, labels = _coarse(generator, 15), np.arange(15) % 4
    pairs = (np.arange(15) + 4) % 15
    found = {
        "target": _values(items, items, target=pairs, exclude_self=True, block=4),
        "labels": _values(
            items, items, query_labels=labels, gallery_labels=labels, exclude_self=True, block=4
        ),
    }
    one_by_one: dict[str, list[list[float]]] = {"target": [], "labels": []}
    for i in range(15):
        rest = np.delete(np.arange(15), i)
        query, gallery = items[i : i + 1], items[rest]
        target = np.flatnonzero(rest == pairs[i])
        one_by_one["target"].append(_values(query, gallery, target=target))
        one_by_one["labels"].append(
            _values(query, gallery, query_labels=labels[i : i + 1], gallery_labels=labels[rest])
        )
    for kind, values in found.items():
        assert values == pytest.approx(np.mean(one_by_one[kind], axis=0))
    chance = retrieval_metrics(items, items, target=pairs, exclude_self=True, ks=(1,)).metrics[0]
    assert chance.chance == 1 / 14


def test_intervals_hold_the_value_and_narrow_with_queries() -> None:
    widths = []
    for num_queries in (30, 3000):
        generator = np.random.default_rng(4)
        gallery = generator.normal(size=(40, 6))
        target = generator.integers(40, size=num_queries)
        query = gallery[target] + generator.normal(size=(num_queries, 6))
        metric = retrieval_metrics(query, gallery, target=target, ks=(1,)).metrics[0]
        assert metric.low <= metric.value <= metric.high
        widths.append(metric.high - metric.low)
    assert 6 < widths[0] / widths[1] < 16


EYE = np.eye(3)


@pytest.mark.parametrize(
    ("query", "settings", "told"),
    [
        (EYE, {}, "give either target"),
        (EYE, {"target": np.arange(3), "query_labels": np.arange(3)}, "give either target"),
        (EYE, {"query_labels": np.arange(3)}, "gallery_labels is missing"),
        (EYE, {"target": np.array([0, 1, 3])}, r"target\[2\] is 3; expected 0 to 2"),
        (EYE, {"target": np.array([0, 1])}, r"target is \(2,\)"),
        (EYE, {"target": np.arange(3), "exclude_self": True}, "is the query itself"),
        (EYE[:2], {"target": np.arange(2), "exclude_self": True}, "2 queries and 3 gallery"),
        (EYE, {"target": np.arange(3), "ks": (0, 1)}, "each 1 or more"),
        (EYE, {"target": np.arange(3), "ks": ()}, "at least one k"),
        (EYE, {"target": np.arange(3), "block": 0}, "block is 0"),
        (EYE * 0, {"target": np.arange(3)}, "row 0 of query is all zeros"),
        (EYE * np.nan, {"target": np.arange(3)}, "row 0 of query is not finite"),
        (EYE[:, :2] + 1, {"target": np.arange(3)}, "query has 2 dimensions, gallery has 3"),
        (EYE[0], {"target": np.arange(3)}, r"query is \(3,\)"),
        (EYE[:0], {"target": np.arange(0)}, "query is empty"),
        (
            EYE,
            {"query_labels": np.arange(3), "gallery_labels": np.arange(3) + 3},
            "no query has a relevant item",
        ),
        (
            EYE,
            {"query_labels": np.eye(3, dtype=bool), "gallery_labels": np.arange(3)},
            r"gallery_labels is \(3,\) int64; expected \(3, 3\) bool",
        ),
    ],
)
def test_unusable_input_is_refused(
    query: np.ndarray, settings: dict[str, object], told: str
) -> None:
    with pytest.raises(DataError, match=told):
        retrieval_metrics(query, EYE, **settings)  # type: ignore[arg-type]
