"""Exact similarities against integer arithmetic, where float32 alone would be wrong."""

from __future__ import annotations

import numpy as np
import pytest

from terralign.evaluation import similarity as module
from terralign.evaluation.hubness import csls_penalty, query_bank_penalty
from terralign.evaluation.neighbours import neighbour_scores
from terralign.evaluation.ranking import average_precision_per_query, recall_per_query
from terralign.evaluation.similarity import GalleryPenalty, Similarities

KS = (1, 2, 5, 10)
BLOCKS = (23, 100, 333, 2048)
NUM = 1000


def _items(seed: int, *, duplicates: int = 0) -> np.ndarray:
    """(NUM, 48): 100 groups of 4 closer than float32 tells apart, one of equal items, others."""
    generator = np.random.default_rng(seed)
    items = generator.normal(size=(NUM, 48))
    groups = np.repeat(items[:100], 4, axis=0)
    items[:400] = groups + 3e-8 * generator.normal(size=groups.shape)
    items[400 : 400 + duplicates] = items[0]
    items *= generator.uniform(0.01, 300, size=(NUM, 1))  # length makes no difference
    return np.asarray(items[generator.permutation(NUM)])


def _case(duplicates: int = 3) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Queries (60, 48) close to their targets (60,), and the gallery."""
    generator = np.random.default_rng(1)
    gallery = _items(0, duplicates=duplicates)
    target = generator.integers(NUM, size=60)
    unit = gallery[target] / np.linalg.norm(gallery[target], axis=1, keepdims=True)
    return unit + 0.1 * generator.normal(size=unit.shape), gallery, target


def _grid(vectors: np.ndarray) -> np.ndarray:
    norms = np.sqrt(np.square(vectors).sum(axis=1, keepdims=True))
    return np.asarray(np.rint(vectors / norms * 2**26).astype(np.int64))


def _dense(query: np.ndarray, gallery: np.ndarray) -> np.ndarray:
    """Cosines of the vectors on the grid, by integers."""
    return np.asarray((_grid(query) @ _grid(gallery).T) / 2**52)


def _hits(similarity: np.ndarray, target: np.ndarray) -> np.ndarray:
    pair = similarity[np.arange(len(target)), target][:, None]
    above, tied = (similarity > pair).sum(axis=1), (similarity == pair).sum(axis=1)
    return np.stack([np.clip((k - above) / tied, 0, 1) for k in KS], axis=1)


def test_these_cases_are_beyond_float32() -> None:
    query, gallery, target = _case()
    rough = [v / np.linalg.norm(v, axis=1, keepdims=True) for v in (query, gallery)]
    rough32 = rough[0].astype(np.float32) @ rough[1].astype(np.float32).T
    assert (_hits(rough32, target) != _hits(_dense(query, gallery), target)).any(axis=1).sum() > 9


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("penalised", [False, True])
def test_recall_of_near_ties_equals_integer_arithmetic(block: int, penalised: bool) -> None:
    query, gallery, target = _case()
    dense, penalty = _dense(query, gallery), None
    if penalised:
        generator = np.random.default_rng(2)
        penalty = GalleryPenalty(
            values=np.repeat(generator.normal(size=NUM // 2), 2), queries=generator.random(60) < 0.5
        )
        dense -= np.where(penalty.queries[:, None], penalty.values, 0)
    hits = recall_per_query(query, gallery, target, ks=KS, penalty=penalty, block=block)
    assert (hits == _hits(dense, target)).all()


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("duplicates", [3, 200])
@pytest.mark.parametrize("exclude_self", [False, True])
def test_nearest_holds_all_that_reach_the_last_place(
    block: int, duplicates: int, exclude_self: bool
) -> None:
    query, gallery, _ = _case(duplicates)
    query = gallery if exclude_self else query
    dense = _dense(query, gallery)
    if exclude_self:
        np.fill_diagonal(dense, -np.inf)
    tiles = Similarities(query, gallery, exclude_self=exclude_self, block=block)
    seen, widths = [], set()
    for rows in tiles.query_slices():
        for near in tiles.nearest(rows, tiles.unit_queries(rows), 5):
            widths.add(near.items.shape[1])
            for q, items, values, tied in zip(
                near.queries, near.items, near.similarity, near.top.tied, strict=True
            ):
                lowest = np.sort(dense[q])[-5]
                held = values >= lowest
                assert items[held].tolist() == np.flatnonzero(dense[q] >= lowest).tolist()
                assert (values[held] == dense[q, items[held]]).all()
                assert tied == (dense[q] == lowest).sum()
                seen.append(q)
    assert sorted(seen) == list(range(len(query)))
    assert min(widths) < 20  # few are held for most queries
    assert (NUM in widths) == (duplicates == 200)  # all only where many tie


@pytest.mark.parametrize("exclude_self", [False, True])
def test_everything_is_what_float64_alone_gives(
    monkeypatch: pytest.MonkeyPatch, exclude_self: bool
) -> None:
    query, gallery, _ = _case(duplicates=40)
    query = gallery if exclude_self else query
    labels = np.arange(len(query)) % 7, np.arange(NUM) % 7
    sets = np.eye(7, dtype=bool)[labels[0]], np.eye(7, dtype=bool)[labels[1]]
    others = (np.arange(len(query)) + 1) % NUM

    def measured(block: int) -> list[np.ndarray]:
        settings = {"exclude_self": exclude_self, "block": block}
        csls = csls_penalty(gallery, gallery, num_neighbours=4, **settings)
        bank = query_bank_penalty(query, gallery, gallery[:50], block=block)
        votes = neighbour_scores(gallery, labels[1], query, num_classes=7, ks=(3, 9), block=block)
        return [
            recall_per_query(query, gallery, others, ks=KS, **settings),
            recall_per_query(query, gallery, others, ks=KS, penalty=csls, **settings),
            average_precision_per_query(query, gallery, *labels, ks=KS, **settings),
            average_precision_per_query(query, gallery, *sets, ks=KS, **settings),
            average_precision_per_query(query, gallery, *labels, ks=KS, penalty=bank, **settings),
            csls.values,
            bank.values,
            votes[3],
            votes[9],
        ]

    found = [measured(block) for block in (70, 333, 2048)]
    monkeypatch.setattr(module, "_error_bound", lambda *_: np.inf)
    for own in found:
        for values, expected in zip(own, measured(2048), strict=True):
            assert (values == expected).all()


@pytest.mark.parametrize("penalty", [0.0, 0.3, 1e6, 1e300])
@pytest.mark.parametrize("num_dims", [1, 30, 3000])
def test_float32_is_never_off_by_more_than_the_bound(penalty: float, num_dims: int) -> None:
    generator = np.random.default_rng(3)
    vectors = generator.uniform(0.9, 1, size=(80, num_dims)).astype(np.float32)
    vectors[::2] = generator.normal(size=(40, num_dims))
    tiles = Similarities(
        vectors,
        vectors,
        penalty=GalleryPenalty(values=penalty * generator.normal(size=80)) if penalty else None,
    )
    rows = slice(0, 80)
    units = tiles.unit_queries(rows)
    ((_, exact),) = tiles.tiles(rows, units)
    ((_, _, rough),) = tiles._rough_tiles(np.arange(80), units)
    assert rough.dtype == np.float32
    error = np.abs(rough.astype(np.float64) - exact).max()
    assert error <= tiles.error_bound
    if penalty < 1:
        assert tiles.error_bound < 2e-7 * (num_dims + 10)  # else it would decide nothing
    hits = recall_per_query(vectors, vectors, np.arange(80), penalty=tiles.penalty)
    pair = np.diag(exact)[:, None]
    above, tied = (exact > pair).sum(axis=1), (exact == pair).sum(axis=1)
    assert (hits[:, 0] == np.clip((1 - above) / tied, 0, 1)).all()
