"""Hubness correction at query time against the papers' formulas in full."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import logsumexp

from terralign.bench.hubness import centre, csls_penalty, query_bank_penalty
from terralign.errors import DataError
from terralign.evaluation.diagnostics import modality_gap
from terralign.evaluation.ranking import recall_metrics
from terralign.evaluation.similarity import GalleryPenalty

BETA = 20.0


def _vectors(seed: int, number: int, *, repeated: bool = False) -> np.ndarray:
    generator = np.random.default_rng(seed)
    vectors = generator.normal(size=(number, 7)).astype(np.float32)
    return vectors[generator.integers(number // 2, size=number)] if repeated else vectors


def _cosines(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    unit = [x / np.linalg.norm(x.astype(float), axis=1, keepdims=True) for x in (a, b)]
    return np.asarray(unit[0] @ unit[1].T)


def _recall(query: np.ndarray, gallery: np.ndarray, penalty: GalleryPenalty | None) -> float:
    found = recall_metrics(query, gallery, ks=(1,), penalty=penalty, num_bootstrap=1)
    return found.value("recall@1")


@pytest.mark.parametrize("repeated", [False, True])
def test_csls_ranks_as_the_dense_formula(repeated: bool) -> None:
    query, gallery = _vectors(0, 40), _vectors(1, 30, repeated=repeated)
    cosines = _cosines(query, gallery)
    of_query = np.sort(cosines, axis=1)[:, -10:].mean(axis=1)
    of_gallery = np.sort(cosines, axis=0)[-10:].mean(axis=0)
    penalty = csls_penalty(query, gallery)
    assert penalty.queries is None
    assert cosines - penalty.values == pytest.approx(
        (2 * cosines - of_query[:, None] - of_gallery) / 2 + of_query[:, None] / 2, abs=1e-6
    )
    few = csls_penalty(query[:4], gallery).values  # of fewer than ten queries all are neighbours
    assert few == pytest.approx(cosines[:4].mean(axis=0) / 2, abs=1e-6)


@pytest.mark.parametrize("repeated", [False, True])
def test_qb_norm_ranks_as_the_dense_formula(repeated: bool) -> None:
    query, gallery, bank = _vectors(0, 40), _vectors(1, 30, repeated=repeated), _vectors(2, 8)
    plain, probe = _cosines(query, gallery).round(9), _cosines(bank, gallery).round(9)
    active = (probe == probe.max(axis=1, keepdims=True)).any(axis=0)
    penalised = ((plain == plain.max(axis=1, keepdims=True)) & active).any(axis=1)
    assert 0 < penalised.sum() < 40
    penalty = query_bank_penalty(query, gallery, bank)
    assert penalty.queries is not None
    assert (penalty.queries == penalised).all()
    inverted = BETA * plain - logsumexp(BETA * probe, axis=0)
    assert plain - penalty.values == pytest.approx(inverted / BETA, abs=1e-6)


def test_equal_gallery_items_have_equal_penalties_and_tie() -> None:
    query, bank = _vectors(3, 40), _vectors(4, 300)
    gallery = np.repeat(_vectors(5, 20), 2, axis=0)
    for penalty in (csls_penalty(query, gallery), query_bank_penalty(query, gallery, bank)):
        assert (penalty.values[::2] == penalty.values[1::2]).all()
        # The first of two twins is the right one: half of a hit at k = 1, a whole one at k = 2.
        right = recall_metrics(
            query,
            gallery,
            query_owners=2 * (np.arange(40) // 2),
            ks=(1, 2),
            penalty=penalty,
            num_bootstrap=1,
        )
        one, two = right.metrics
        assert one.value == pytest.approx(two.value / 2)


def test_both_corrections_take_hubs_away() -> None:
    generator = np.random.default_rng(6)
    gallery = generator.normal(size=(60, 24))
    gallery[57:] = 1 + 0.2 * generator.normal(size=(3, 24))
    noise = 0.5 * generator.normal(size=(2, 57, 24))
    query, bank = gallery[:57] + 1 + noise  # shifted towards the three items that answer nobody
    assert _recall(query, gallery, None) < 0.6
    for penalty in (csls_penalty(query, gallery), query_bank_penalty(query, gallery, bank)):
        assert _recall(query, gallery, penalty) > 0.85


def test_centring_closes_the_distance_between_centroids() -> None:
    generator = np.random.default_rng(7)
    one = generator.normal(size=(50, 6)).astype(np.float32) + 2
    two = generator.normal(size=(70, 6)).astype(np.float32) - 1
    assert modality_gap(one, two) > 0.5
    unit = one / np.linalg.norm(one, axis=1, keepdims=True)
    expected = unit - unit.mean(axis=0)
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    assert centre(one) == pytest.approx(expected, abs=1e-5)
    assert modality_gap(centre(one), centre(two)) < 0.2
    assert centre(one).dtype == np.float32
    with pytest.raises(DataError, match="row 0 of vectors is its modality's mean"):
        centre(np.ones((4, 3)))
    with pytest.raises(DataError, match="query has 3 dimensions, gallery has 2"):
        query_bank_penalty(np.eye(3), np.eye(3), np.ones((3, 2)))
