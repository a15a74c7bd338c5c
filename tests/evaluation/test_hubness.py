"""Query-time remedies for hubs: dense brute force in another formula, ties included."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.special import logsumexp

from terralign.errors import DataError
from terralign.evaluation.diagnostics import modality_gap
from terralign.evaluation.hubness import centre, centroid, csls_penalty, query_bank_penalty
from terralign.evaluation.ranking import (
    average_precision_per_query,
    recall_per_query,
    retrieval_metrics,
)
from terralign.evaluation.similarity import GalleryPenalty

KS = (1, 2, 3, 5)


def _coarse(generator: np.random.Generator, count: int) -> np.ndarray:
    """Vectors with few directions, so that many scores tie."""
    vectors = generator.integers(-1, 2, size=(count, 3)).astype(np.float32)
    vectors[~vectors.any(axis=1), 0] = 1
    return vectors


def _cosines(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    unit = [x / np.linalg.norm(x.astype(float), axis=1, keepdims=True) for x in (a, b)]
    return np.asarray(unit[0] @ unit[1].T)


def _dense_csls(query: np.ndarray, gallery: np.ndarray, bank: np.ndarray, k: int) -> np.ndarray:
    """2 cos - r(q) - r(g) in full."""
    near_query = np.sort(_cosines(query, gallery), axis=1)[:, -k:].mean(axis=1)
    near_gallery = np.sort(_cosines(bank, gallery), axis=0)[-k:].mean(axis=0)
    return 2 * _cosines(query, gallery) - near_query[:, None] - near_gallery[None]


def _dense_qb_norm(
    query: np.ndarray, gallery: np.ndarray, bank: np.ndarray, beta: float, num_active: int
) -> np.ndarray:
    """Softmax over the bank for the queries whose nearest item is active, else plain cosines."""
    plain, probe = _cosines(query, gallery).round(9), _cosines(bank, gallery).round(9)
    active = {
        item
        for row in probe
        for item in np.flatnonzero(row >= np.sort(row)[-min(num_active, len(row))])
    }
    scores = plain.copy()
    for i, row in enumerate(plain):
        if active & set(np.flatnonzero(row == row.max())):
            scores[i] = np.exp(beta * row - logsumexp(beta * probe, axis=0))
    return scores


def _brute_recall(scores: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Expected hits (Q, len(KS)): over every place that a tied pair may take."""
    hits = np.zeros((len(scores), len(KS)))
    for i, row in enumerate(scores):
        others = np.delete(row, target[i])
        own = row[target[i]]
        same = np.isclose(others, own, rtol=1e-9, atol=1e-12)
        above = int(((others > own) & ~same).sum())
        ranks = above + 1 + np.arange(same.sum() + 1)
        hits[i] = [(ranks <= k).mean() for k in KS]
    return hits


def _brute_precision(scores: np.ndarray, relevant: np.ndarray, k: int) -> float:
    """AP@k over every order that agrees with the scores."""
    scores = np.unique(scores.round(9), return_inverse=True)[1]
    found = []
    for order in itertools.permutations(range(len(scores))):
        if (np.diff(scores[list(order)]) <= 0).all():
            ranked = relevant[list(order)]
            precision = ranked.cumsum() / np.arange(1, len(ranked) + 1)
            found.append((ranked * precision)[:k].sum() / min(k, relevant.sum()))
    return float(np.mean(found))


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10_000), st.integers(1, 30), st.integers(1, 6), st.booleans(), st.booleans())
def test_csls_ranks_as_the_dense_formula(
    seed: int, block: int, k: int, coarse: bool, banked: bool
) -> None:
    generator = np.random.default_rng(seed)
    make = _coarse if coarse else lambda g, n: g.normal(size=(n, 7)).astype(np.float32)
    query, gallery, target = (
        make(generator, 13),
        make(generator, 21),
        generator.integers(21, size=13),
    )
    bank = make(generator, 9) if banked else None
    penalty = csls_penalty(query, gallery, bank=bank, num_neighbours=k, block=block)
    dense = _dense_csls(query, gallery, query if bank is None else bank, k)
    hits = recall_per_query(query, gallery, target, ks=KS, penalty=penalty, block=block)
    assert hits == pytest.approx(_brute_recall(dense, target))


@settings(deadline=None, max_examples=40)
@given(
    st.integers(0, 10_000),
    st.integers(1, 30),
    st.sampled_from([0.5, 20.0, 400.0]),
    st.integers(1, 3),
    st.booleans(),
)
def test_qb_norm_ranks_as_the_dense_formula(
    seed: int, block: int, beta: float, num_active: int, coarse: bool
) -> None:
    generator = np.random.default_rng(seed)
    make = _coarse if coarse else lambda g, n: g.normal(size=(n, 7)).astype(np.float32)
    query, gallery, bank = make(generator, 13), make(generator, 21), make(generator, 8)
    target = generator.integers(21, size=13)
    penalty = query_bank_penalty(
        query, gallery, bank, inverse_temperature=beta, num_active=num_active, block=block
    )
    dense = _dense_qb_norm(query, gallery, bank, beta, num_active)
    logs = np.where(penalty.queries[:, None], np.log(np.maximum(dense, 1e-300)) / beta, dense)
    # Different vectors may tie in the formula; its rounding then decides, and says nothing.
    units = gallery / np.linalg.norm(gallery, axis=1, keepdims=True)
    differ = np.abs(units - units[target][:, None]).max(axis=2) > 1e-6
    gaps = np.abs(logs - np.take_along_axis(logs, target[:, None], axis=1))
    assume(not (differ & (gaps < 1e-9)).any())
    hits = recall_per_query(query, gallery, target, ks=KS, penalty=penalty, block=block)
    assert hits == pytest.approx(_brute_recall(logs, target))


def test_class_level_ranking_takes_penalties_too() -> None:
    generator = np.random.default_rng(3)
    query, gallery = _coarse(generator, 5), _coarse(generator, 6)
    labels = np.array([0, 1, 2, 0, 1]), np.array([0, 0, 1, 1, 0, 1])
    penalty = csls_penalty(query, gallery, num_neighbours=2)
    dense = _dense_csls(query, gallery, query, 2)
    values = average_precision_per_query(query, gallery, *labels, ks=KS, penalty=penalty, block=2)
    for i, row in enumerate(dense):
        relevant = labels[1] == labels[0][i]
        if relevant.any():
            expected = [_brute_precision(row, relevant, k) for k in KS]
            assert values[i] == pytest.approx(expected)
        else:
            assert np.isnan(values[i]).all()
    mean = retrieval_metrics(
        query, gallery, query_labels=labels[0], gallery_labels=labels[1], ks=KS, penalty=penalty
    )
    assert [m.value for m in mean.metrics] == pytest.approx(np.nanmean(values, axis=0))
    assert mean.num_queries_left_out == 1


def test_penalties_do_not_depend_on_block_or_order() -> None:
    generator = np.random.default_rng(4)
    query, bank = generator.normal(size=(40, 64)), generator.normal(size=(300, 64))
    gallery = np.repeat(generator.normal(size=(20, 64)), 2, axis=0)
    order, shuffle = generator.permutation(40), generator.permutation(300)
    csls = csls_penalty(query, gallery, bank=bank).values
    bank_norm = query_bank_penalty(query, gallery, bank).values
    assert (csls[::2] == csls[1::2]).all()
    assert (bank_norm[::2] == bank_norm[1::2]).all()
    for block in (1, 7, 64):
        other = csls_penalty(query, gallery[order], bank=bank[shuffle], block=block).values
        assert (other == csls[order]).all()
        other = query_bank_penalty(query, gallery[order], bank[shuffle], block=block).values
        assert (other == bank_norm[order]).all()


def test_csls_among_the_same_items_passes_over_the_item_itself() -> None:
    items = np.random.default_rng(5).normal(size=(9, 4))
    cosines = _cosines(items, items)
    np.fill_diagonal(cosines, -9)
    expected = np.sort(cosines, axis=0)[-2:].mean(axis=0) / 2
    penalty = csls_penalty(items, items, num_neighbours=2, exclude_self=True, block=4)
    assert penalty.values == pytest.approx(expected, abs=1e-7)


def test_both_remedies_take_hubs_away() -> None:
    generator = np.random.default_rng(6)
    gallery = generator.normal(size=(60, 24))
    noise = 0.5 * generator.normal(size=(2, 57, 24))
    query, bank = gallery[3:] + 1 + noise  # shifted towards the three items that answer nobody
    gallery[:3] = 1 + 0.2 * generator.normal(size=(3, 24))
    target = np.arange(3, 60)
    assert recall_per_query(query, gallery, target, ks=(1,)).mean() < 0.6
    for penalty in (
        csls_penalty(query, gallery),
        csls_penalty(query, gallery, bank=bank),
        query_bank_penalty(query, gallery, bank),
    ):
        assert recall_per_query(query, gallery, target, ks=(1,), penalty=penalty).mean() > 0.85


def test_centring_closes_the_distance_between_centroids() -> None:
    generator = np.random.default_rng(7)
    one = generator.normal(size=(50, 6)).astype(np.float32) + 2
    two = generator.normal(size=(70, 6)).astype(np.float32) - 1
    assert modality_gap(one, two) > 0.5
    unit = one / np.linalg.norm(one, axis=1, keepdims=True)
    expected = unit - unit.mean(axis=0)
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    assert centre(one) == pytest.approx(expected, abs=1e-5)
    assert centre(one[:3], centroid(one)) == pytest.approx(expected[:3], abs=1e-5)
    assert modality_gap(centre(one), centre(two)) < 0.2
    assert centre(one).dtype == np.float32


EYE = np.eye(3)


@pytest.mark.parametrize(
    ("call", "told"),
    [
        (lambda: csls_penalty(EYE, EYE, num_neighbours=0), "num_neighbours is 0"),
        (lambda: csls_penalty(EYE, EYE, bank=EYE, exclude_self=True), "does not go with a bank"),
        (lambda: query_bank_penalty(EYE, EYE, EYE, inverse_temperature=0), "inverse_temperature"),
        (lambda: query_bank_penalty(EYE, EYE, EYE, num_active=0), "num_active is 0"),
        (lambda: query_bank_penalty(EYE, EYE, np.ones((3, 2))), "bank has 2 dimensions"),
        (lambda: csls_penalty(EYE, EYE, bank=EYE * 0), "row 0 of bank is all zeros"),
        (lambda: centre(EYE, np.zeros(2)), r"mean is \(2,\)"),
        (lambda: centre(np.ones((4, 3))), "row 0 of vectors is its modality's mean"),
        (
            lambda: recall_per_query(
                EYE, EYE, np.arange(3), penalty=GalleryPenalty(values=np.zeros(2))
            ),
            r"penalty's values are \(2,\)",
        ),
        (
            lambda: recall_per_query(
                EYE,
                EYE,
                np.arange(3),
                penalty=GalleryPenalty(values=np.zeros(3), queries=np.ones(3)),
            ),
            "penalty's queries",
        ),
    ],
)
def test_unusable_input_is_refused(call: object, told: str) -> None:
    with pytest.raises(DataError, match=told):
        call()  # type: ignore[operator]
