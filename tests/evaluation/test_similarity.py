"""Similarities against float64, and ties of equal vectors."""

from __future__ import annotations

import numpy as np
import pytest

from terralign.errors import DataError
from terralign.evaluation import similarity as module
from terralign.evaluation.similarity import (
    GalleryPenalty,
    distinct_rows,
    similarity_blocks,
    unit_rows,
)


def _items(seed: int, number: int, dims: int = 300) -> np.ndarray:
    """Vectors of any length, a third of them equal to another but for it."""
    generator = np.random.default_rng(seed)
    items = generator.normal(size=(number, dims))
    items[::3] = items[1]
    return np.asarray(items * generator.uniform(0.01, 300, size=(number, 1)))


def _dense(query: np.ndarray, gallery: np.ndarray) -> np.ndarray:
    unit = [one / np.linalg.norm(one, axis=1, keepdims=True) for one in (query, gallery)]
    return np.asarray(unit[0] @ unit[1].T)


@pytest.mark.parametrize("block", [1, 100, 5000, 2**23])
def test_blocks_are_the_cosines_within_float32_and_equal_vectors_tie(
    monkeypatch: pytest.MonkeyPatch, block: int
) -> None:
    monkeypatch.setattr(module, "BLOCK", block)
    query, gallery = _items(0, 37), _items(1, 61)
    blocks = [*similarity_blocks(query, gallery)]
    assert len(blocks) == max(1, -(-37 // max(1, block // 61)))
    similarity = np.concatenate([one for _, one in blocks])
    assert similarity.dtype == np.float32
    assert similarity == pytest.approx(_dense(query, gallery), abs=5e-7)
    assert (similarity[:, ::3] == similarity[:, 1:2]).all()


def test_the_item_itself_is_excluded_and_penalties_are_subtracted() -> None:
    items, generator = _items(2, 20), np.random.default_rng(3)
    penalty = GalleryPenalty(values=generator.random(20), queries=generator.random(20) < 0.5)
    ((rows, similarity),) = similarity_blocks(items, items, exclude_self=True, penalty=penalty)
    assert rows == slice(0, 20)
    wanted = _dense(items, items) - np.where(penalty.queries[:, None], penalty.values, 0)
    np.fill_diagonal(wanted, -np.inf)
    assert similarity == pytest.approx(wanted, abs=5e-7)
    with pytest.raises(DataError, match="at least two"):
        [*similarity_blocks(items[:1], items[:1], exclude_self=True)]


def test_distinct_rows_are_found_in_their_order() -> None:
    vectors = unit_rows(np.array([[0.0, 2], [1, 1], [-0.0, 3], [1, 1], [-1, 0]]))
    first, places = distinct_rows(vectors)
    assert first.tolist() == [0, 1, 4]
    assert places.tolist() == [0, 1, 0, 1, 2]
