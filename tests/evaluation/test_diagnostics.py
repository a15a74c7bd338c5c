"""Diagnostics of a space against other libraries, formulas in full, and known answers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import skew
from sklearn.decomposition import PCA

from terralign.errors import DataError
from terralign.evaluation.diagnostics import (
    alignment,
    effective_rank,
    hubness_skewness,
    k_occurrences,
    linear_separability,
    mean_cosine,
    modality_gap,
    project,
    uniformity,
)


def _unit(vectors: np.ndarray) -> np.ndarray:
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True))


def test_modalities_are_separable_when_they_are_apart_only() -> None:
    generator = np.random.default_rng(0)
    one = generator.normal(size=(200, 8)).astype(np.float32)
    apart = linear_separability(one + 3, generator.normal(size=(90, 8)) - 3)
    together = linear_separability(one, generator.normal(size=(200, 8)))
    assert apart == 1
    assert together == pytest.approx(0.5, abs=0.1)


def test_the_same_samples_twice_are_at_chance_and_not_below() -> None:
    vectors = np.random.default_rng(1).normal(size=(40, 30))
    assert linear_separability(vectors, vectors) == 0.5


def test_modality_gap_is_the_distance_of_centroids() -> None:
    a, b = np.array([[3.0, 0], [0, 5]]), np.array([[-1.0, 0], [0, -2]], dtype=np.float32)
    assert modality_gap(a, b) == pytest.approx(np.sqrt(2))
    assert modality_gap(a, a[::-1] * 7) == pytest.approx(0)


def test_alignment_uniformity_and_cosine_equal_their_formulas() -> None:
    generator = np.random.default_rng(2)
    a, b = generator.normal(size=(37, 5)).astype(np.float32), generator.normal(size=(37, 5))
    one, two = torch.from_numpy(_unit(a.astype(float))), torch.from_numpy(_unit(b))
    assert alignment(a, b) == pytest.approx(float((one - two).square().sum(dim=1).mean()))
    assert mean_cosine(a, b) == pytest.approx(
        float(torch.nn.functional.cosine_similarity(one, two).mean())
    )
    for t in (2.0, 0.5):
        oracle = torch.pdist(two).pow(2).mul(-t).exp().mean().log()
        assert uniformity(b, t=t) == pytest.approx(float(oracle), abs=1e-6)


def _dense_counts(cosines: np.ndarray, k: int) -> np.ndarray:
    """N_k item by item: the chance of being among the first k when ties are broken at random."""
    counts = np.zeros(cosines.shape[1])
    for row in cosines.round(9):
        for item, own in enumerate(row):
            ranks = (row > own).sum() + 1 + np.arange((row == own).sum())
            counts[item] += (ranks <= k).mean()
    return counts


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10_000), st.integers(1, 9), st.booleans())
def test_hubness_counts_the_nearest_and_shares_ties(seed: int, k: int, repeated: bool) -> None:
    generator = np.random.default_rng(seed)
    query, gallery = generator.normal(size=(15, 4)), generator.normal(size=(8, 4))
    if repeated:
        gallery = gallery[generator.integers(4, size=8)]
    counts = k_occurrences(query, gallery, k=k)
    dense = _dense_counts(_unit(query) @ _unit(gallery).T, min(k, 8))
    assert counts == pytest.approx(dense)
    assert counts.sum() == pytest.approx(15 * min(k, 8))
    expected = skew(counts) if np.ptp(counts) > 1e-9 else 0
    assert hubness_skewness(counts) == pytest.approx(expected, abs=1e-6)


def test_hubness_of_a_hand_computed_case() -> None:
    gallery = np.array([[1.0, 0], [1, 0], [0, 1], [-1, 0]])
    query = np.array([[1.0, 0], [1, 0], [0, 2], [0, 3]])
    assert k_occurrences(query, gallery, k=1).tolist() == [1, 1, 2, 0]
    # The two places of queries 0 and 1 are the twins'. Those of 2 and 3 are item 2's and, a third
    # each, the others', which are all at a right angle.
    twos = k_occurrences(query, gallery, k=2)
    assert twos == pytest.approx([2 + 2 / 3, 2 + 2 / 3, 2, 2 / 3])


def test_effective_rank_of_known_spectra_and_of_numpys_singular_values() -> None:
    generator = np.random.default_rng(3)
    assert effective_rank(np.eye(7)) == pytest.approx(7)
    assert effective_rank(np.ones((9, 4))) == pytest.approx(1)
    low = generator.normal(size=(9000, 3)) @ generator.normal(size=(3, 20))
    singular = np.linalg.svd(_unit(low), compute_uv=False)
    shares = singular[:3] / singular[:3].sum()
    assert effective_rank(low) == pytest.approx(float(np.exp(-(shares @ np.log(shares)))), abs=1e-6)
    assert effective_rank(low) <= 3


def test_projection_of_groups_of_one_size_is_their_joint_pca() -> None:
    generator = np.random.default_rng(4)
    scales = np.array([4, 2, 1, 1, 1.0])
    groups = {name: generator.normal(size=(60, 5)) * scales + i for i, name in enumerate("abc")}
    found, explained = project(groups)
    pca = PCA(n_components=2)
    oracle = pca.fit_transform(np.concatenate([_unit(v) for v in groups.values()]))
    points = np.concatenate(list(found.values()))
    signs = np.sign((points * oracle).sum(axis=0))
    assert points == pytest.approx(oracle * signs, abs=1e-6)
    assert explained == pytest.approx(tuple(pca.explained_variance_ratio_))


def test_a_small_group_weighs_as_much_as_a_large_one() -> None:
    generator = np.random.default_rng(5)
    few, many = generator.normal(size=(5, 6)), generator.normal(size=(50, 6))
    once, _ = project({"text": few, "rgb": many})
    repeated, _ = project({"text": np.repeat(few, 10, axis=0), "rgb": many})
    assert once["rgb"] == pytest.approx(repeated["rgb"], abs=1e-9)
    assert np.ptp(project({"same": np.ones((4, 3))})[0]["same"]) == pytest.approx(0, abs=1e-9)


A = np.ones((6, 3))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: linear_separability(A, A[:3]), "b has 3 rows"),
        (lambda: linear_separability(A, A[:, :2]), "of one embedding space"),
        (lambda: modality_gap(A, A * 0), "row 0 of b is all zeros"),
        (lambda: modality_gap(A, A[:, :2]), "of one embedding space"),
        (lambda: alignment(A, A[:4]), "6 and 4 vectors"),
        (lambda: mean_cosine(A, A * np.nan), "row 0 of the second set is not finite"),
        (lambda: uniformity(A[:1]), "at least two"),
        (lambda: k_occurrences(A, A, k=0), "k is 0"),
        (lambda: effective_rank(A * 0), "all zeros"),
        (lambda: project({}), "nothing to project"),
        (lambda: project({"a": A, "b": A[:, :2]}), "dimensions"),
    ],
)
def test_unusable_input_is_refused(call: object, message: str) -> None:
    with pytest.raises(DataError, match=message):
        call()  # type: ignore[operator]
