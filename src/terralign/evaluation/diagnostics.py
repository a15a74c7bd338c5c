"""Diagnostics of an embedding space on plain arrays: exact, in blocks, in bounded memory.

N samples, Q queries, G gallery items, D embedding dimensions. Vectors are any finite non-zero
floating-point rows and are L2-normalised here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from terralign.errors import DataError
from terralign.evaluation.bootstrap import Floats
from terralign.evaluation.similarity import BLOCK, Similarities, row_norms, row_slices


@dataclass(frozen=True, kw_only=True, slots=True)
class Hubness:
    """How unevenly gallery items are found.

    `counts`: (G,) float64, N_k, how many queries have an item among their k nearest. `skewness`:
    of N_k, 0 where all items are found alike, above 1 where hubs are strong. `share_never_found`:
    of the items, fraction of 1.
    """

    k: int
    counts: Floats
    skewness: float
    share_never_found: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Projection:
    """Vectors of several groups on the plane of their largest common spread.

    `points`: group -> (N, 2) float64. `explained`: shares of the variance on the two axes.
    """

    points: dict[str, Floats]
    explained: tuple[float, float]


def linear_separability(
    a: Floats, b: Floats, *, num_folds: int = 5, max_samples: int = 2000, seed: int = 0
) -> float:
    """How well a line parts two modalities: cross-validated balanced accuracy, 0-1, chance 0.5.

    `a`: (Na, D), `b`: (Nb, D). Logistic regression (C = 1) on L2-normalised, then standardised
    vectors. At most `max_samples` rows of each are used, drawn by `seed`. Where there are as many
    rows of both, row i of `a` and of `b` are in the same fold: samples that are seen by both
    sensors would otherwise be known by their other half. Raises `DataError`.
    """
    if num_folds < 2:
        raise DataError(f"num_folds is {num_folds}; expected at least 2")
    _check_dims(a, b)
    parts, folds = [], []
    for vectors, name in ((a, "a"), (b, "b")):
        norms = row_norms(vectors, name=name)
        if len(norms) < num_folds:
            raise DataError(f"{name} has {len(norms)} rows; {num_folds} folds need one each")
        chosen = np.random.default_rng(seed).permutation(len(norms))[:max_samples]
        parts.append(vectors[chosen] / norms[chosen, None])
        folds.append(np.arange(len(chosen)) % num_folds)
    features, fold = np.concatenate(parts), np.concatenate(folds)
    modality = np.repeat([0, 1], [len(part) for part in parts])
    accuracies = []
    for held_out in range(num_folds):
        test = fold == held_out
        model = make_pipeline(StandardScaler(), LogisticRegression(C=1.0, max_iter=5000))
        model.fit(features[~test], modality[~test])
        accuracies.append(balanced_accuracy_score(modality[test], model.predict(features[test])))
    return float(np.mean(accuracies))


def modality_gap(a: Floats, b: Floats) -> float:
    """Distance between the centroids of two sets of L2-normalised embeddings, 0 to 2.

    `a`: (Na, D), `b`: (Nb, D). Definition: Liang et al. 2022, *Mind the Gap* (arXiv 2203.02053),
    section 2. Raises `DataError`.
    """
    _check_dims(a, b)
    centroids = []
    for vectors, name in ((a, "a"), (b, "b")):
        norms = row_norms(vectors, name=name)
        total = sum(unit.sum(axis=0) for unit in _unit_blocks(vectors, norms))
        centroids.append(total / len(norms))
    return float(np.linalg.norm(centroids[0] - centroids[1]))


def alignment(a: Floats, b: Floats, *, power: float = 2.0) -> float:
    """Mean distance to `power` between row i of `a` and of `b`, (N, D) each; 0 is the best.

    Wang & Isola 2020 (arXiv 2005.10242), section 4: pairs are views of the same sample. Raises
    `DataError`.
    """
    total = 0.0
    for one, two in _unit_pairs(a, b):
        total += float((np.linalg.norm(one - two, axis=1) ** power).sum())
    return total / len(a)


def mean_cosine(before: Floats, after: Floats) -> float:
    """Mean cosine between row i of `before` and of `after`, (N, D) each.

    How far patching moved the embeddings of the same samples. Raises `DataError`.
    """
    total = sum(float((one * two).sum()) for one, two in _unit_pairs(before, after))
    return total / len(before)


def uniformity(vectors: Floats, *, t: float = 2.0, block: int = BLOCK) -> float:
    """Log of the mean over pairs i != j of exp(-t |x_i - x_j|^2); lower is more evenly spread.

    Wang & Isola 2020 (arXiv 2005.10242), section 4. `vectors`: (N, D), N at least 2. Exact, over
    all pairs, in blocks. Raises `DataError`.
    """
    tiles = Similarities(vectors, vectors, exclude_self=True, block=block)
    total = 0.0
    for rows in tiles.query_slices():
        for _, similarity in tiles.tiles(rows, tiles.unit_queries(rows)):
            total += float(np.exp(2 * t * (similarity - 1)).sum())
    num = len(vectors)
    return float(np.log(total / (num * (num - 1))))


def hubness(
    query: Floats, gallery: Floats, *, k: int = 10, exclude_self: bool = False, block: int = BLOCK
) -> Hubness:
    """Skewness of the k-occurrence N_k (Radovanovic et al. 2010, JMLR 11, section 2).

    `query`: (Q, D), `gallery`: (G, D). `exclude_self`: query i and gallery item i are the same,
    which no query may find. Gallery items that tie for the last of a query's k places share them
    evenly. Exact, in blocks. Raises `DataError`.
    """
    if k < 1:
        raise DataError(f"k is {k}; expected at least 1")
    tiles = Similarities(query, gallery, exclude_self=exclude_self, block=block)
    depth = min(k, tiles.num_candidates)
    counts = np.zeros(len(gallery))
    for rows in tiles.query_slices():
        units = tiles.unit_queries(rows)
        top = tiles.top(rows, units, depth)
        lowest = top.lowest[:, None]
        num_above = np.count_nonzero(top.values > lowest, axis=1)
        share = (depth - num_above) / top.tied
        for columns, similarity in tiles.tiles(rows, units):
            counts[columns] += np.count_nonzero(similarity > lowest, axis=0)
            counts[columns] += share @ (similarity == lowest)
    moved = counts - counts.mean()
    spread = float(np.sqrt(np.mean(moved**2)))
    flat = spread <= 1e-9 * counts.mean()
    return Hubness(
        k=depth,
        counts=counts,
        skewness=0.0 if flat else float(np.mean(moved**3)) / spread**3,
        share_never_found=float(np.mean(counts == 0)),
    )


def effective_rank(vectors: Floats) -> float:
    """exp of the entropy of the singular values, scaled to sum 1: 1 to min(N, D).

    Roy & Vetterli 2007, *The effective rank*, definition 1, of the matrix (N, D) of L2-normalised
    rows, not centred. The singular values are those of R of a QR decomposition that takes in the
    rows block by block. Raises `DataError`.
    """
    norms = row_norms(vectors, name="vectors")
    triangle: Floats = np.zeros((0, vectors.shape[1]))
    for rows in row_slices(len(norms)):
        unit = vectors[rows].astype(np.float64) / norms[rows, None]
        triangle = np.asarray(np.linalg.qr(np.concatenate([triangle, unit]), mode="r"))
    singular = np.linalg.svd(triangle, compute_uv=False)
    shares = singular / singular.sum()
    shares = shares[shares > 0]
    return float(np.exp(-(shares * np.log(shares)).sum()))


def project(groups: Mapping[str, Floats]) -> Projection:
    """The principal plane of several groups together, each group weighing the same.

    `groups`: name (such as text, rgb, sentinel2) -> (N, D). So a few class names count as much as
    many images. Every axis points to where its largest loading is positive, so that the same
    vectors always make the same picture. Raises `DataError`.
    """
    if not groups:
        raise DataError("there is nothing to project; give at least one group of vectors")
    norms = {name: row_norms(vectors, name=name) for name, vectors in groups.items()}
    dims = {name: vectors.shape[1] for name, vectors in groups.items()}
    if len(set(dims.values())) > 1 or min(dims.values()) < 2:
        raise DataError(f"the groups have dimensions {dims}; expected the same number, 2 or more")
    first = np.zeros(next(iter(dims.values())))
    second = np.zeros((len(first), len(first)))
    for name, vectors in groups.items():
        for unit in _unit_blocks(vectors, norms[name]):
            first += unit.sum(axis=0) / len(vectors) / len(groups)
            second += unit.T @ unit / len(vectors) / len(groups)
    values, axes = np.linalg.eigh(second - np.outer(first, first))
    plane = axes[:, [-1, -2]]
    plane = plane * np.sign(np.take_along_axis(plane, np.abs(plane).argmax(axis=0)[None], axis=0))
    values = np.clip(values, 0, None)
    total = max(float(values.sum()), np.finfo(float).tiny)
    return Projection(
        points={
            name: np.concatenate(
                [(unit - first) @ plane for unit in _unit_blocks(vectors, norms[name])]
            )
            for name, vectors in groups.items()
        },
        explained=(float(values[-1]) / total, float(values[-2]) / total),
    )


def _unit_blocks(vectors: Floats, norms: Floats) -> Iterator[Floats]:
    for rows in row_slices(len(norms)):
        yield vectors[rows].astype(np.float64) / norms[rows, None]


def _unit_pairs(a: Floats, b: Floats) -> Iterator[tuple[Floats, Floats]]:
    """Rows that belong together, L2-normalised, in blocks."""
    _check_dims(a, b)
    if len(a) != len(b):
        raise DataError(f"there are {len(a)} and {len(b)} vectors; row i of both is one sample")
    norms = row_norms(a, name="the first set"), row_norms(b, name="the second set")
    yield from zip(_unit_blocks(a, norms[0]), _unit_blocks(b, norms[1]), strict=True)


def _check_dims(a: NDArray[Any], b: NDArray[Any]) -> None:
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1]:
        raise DataError(
            f"the two sets are {a.shape} and {b.shape}; expected (N, D) vectors of one embedding "
            "space"
        )
