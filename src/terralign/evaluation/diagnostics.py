"""Diagnostics of an embedding space on plain arrays, in blocks.

N samples, Q queries, G gallery items, D embedding dimensions. Vectors are any finite non-zero
floating-point rows and are L2-normalised here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
from scipy.stats import skew
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import PredefinedSplit, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from terralign.errors import DataError
from terralign.evaluation.bootstrap import Floats
from terralign.evaluation.similarity import row_norms, row_slices, similarity_blocks

NUM_FOLDS = 5
MAX_SEPARATED = 2000
"""Vectors of a modality that `linear_separability` looks at."""


def linear_separability(a: Floats, b: Floats, *, seed: int = 0) -> float:
    """How well a plane separates two modalities: balanced accuracy on held-out folds, 0-1.

    `a`: (Na, D), `b`: (Nb, D). Logistic regression (C = 1) on L2-normalised, then standardised
    vectors; chance is 0.5. At most `MAX_SEPARATED` rows of each are used, drawn by `seed`. Where
    there are as many rows of both, row i of `a` and of `b` are in the same fold: samples that are
    seen by both sensors would otherwise be known by their other half. Raises `DataError`.
    """
    _check_dims(a, b)
    parts, folds = [], []
    for vectors, name in ((a, "a"), (b, "b")):
        norms = row_norms(vectors, name=name)
        if len(norms) < NUM_FOLDS:
            raise DataError(f"{name} has {len(norms)} rows; {NUM_FOLDS} folds need one each")
        chosen = np.random.default_rng(seed).permutation(len(norms))[:MAX_SEPARATED]
        parts.append(vectors[chosen] / norms[chosen, None])
        folds.append(np.arange(len(chosen)) % NUM_FOLDS)
    accuracies = cross_val_score(
        make_pipeline(StandardScaler(), LogisticRegression(C=1.0, max_iter=5000)),
        np.concatenate(parts),
        np.repeat([0, 1], [len(part) for part in parts]),
        scoring="balanced_accuracy",
        cv=PredefinedSplit(np.concatenate(folds)),
    )
    return float(accuracies.mean())


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


def alignment(a: Floats, b: Floats) -> float:
    """Mean squared distance between row i of `a` and of `b`, (N, D) each; 0 is the best.

    Wang & Isola 2020 (arXiv 2005.10242), section 4: pairs are views of the same sample. Raises
    `DataError`.
    """
    return max(0.0, 2 - 2 * mean_cosine(a, b))


def mean_cosine(before: Floats, after: Floats) -> float:
    """Mean cosine between row i of `before` and of `after`, (N, D) each.

    How far patching moved the embeddings of the same samples. Raises `DataError`.
    """
    _check_dims(before, after)
    if len(before) != len(after):
        raise DataError(
            f"there are {len(before)} and {len(after)} vectors; row i of both is one sample"
        )
    norms = row_norms(before, name="the first set"), row_norms(after, name="the second set")
    blocks = zip(_unit_blocks(before, norms[0]), _unit_blocks(after, norms[1]), strict=True)
    return sum(float((one * two).sum()) for one, two in blocks) / len(before)


def uniformity(vectors: Floats, *, t: float = 2.0) -> float:
    """Log of the mean over pairs i != j of exp(-t |x_i - x_j|^2); lower is more evenly spread.

    Wang & Isola 2020 (arXiv 2005.10242), section 4. `vectors`: (N, D), N at least 2, of which all
    pairs count. Raises `DataError`.
    """
    total = 0.0
    for _, similarity in similarity_blocks(vectors, vectors, exclude_self=True):
        total += float(np.exp(2 * t * (similarity - 1)).sum(dtype=np.float64))
    num = len(vectors)
    return float(np.log(total / (num * (num - 1))))


def k_occurrences(query: Floats, gallery: Floats, *, k: int = 10) -> Floats:
    """N_k (G,): how many queries have each gallery item among their k nearest.

    `query`: (Q, D), `gallery`: (G, D). Gallery items that tie for the last of a query's k places
    share them evenly. Raises `DataError`.
    """
    if k < 1:
        raise DataError(f"k is {k}; expected at least 1")
    depth = min(k, len(gallery))
    counts = np.zeros(len(gallery))
    for _, similarity in similarity_blocks(query, gallery):
        lowest = np.partition(similarity, -depth, axis=1)[:, -depth, None]
        above, tied = similarity > lowest, similarity == lowest
        share = (depth - np.count_nonzero(above, axis=1)) / np.count_nonzero(tied, axis=1)
        counts += np.count_nonzero(above, axis=0) + share @ tied
    return counts


def hubness_skewness(counts: Floats) -> float:
    """Skewness of N_k (Radovanovic et al. 2010, JMLR 11, section 2).

    0 where all items are found alike, above 1 where hubs are strong.
    """
    flat = counts.std() <= 1e-9 * counts.mean()
    return 0.0 if flat else float(skew(counts))


def effective_rank(vectors: Floats) -> float:
    """exp of the entropy of the singular values, scaled to sum 1: 1 to min(N, D).

    Roy & Vetterli 2007, *The effective rank*, definition 1, of the matrix (N, D) of L2-normalised
    rows, not centred. The singular values are those of R of a QR decomposition that takes in the
    rows block by block. Raises `DataError`.
    """
    norms = row_norms(vectors, name="vectors")
    triangle: Floats = np.zeros((0, vectors.shape[1]))
    for unit in _unit_blocks(vectors, norms):
        triangle = np.asarray(np.linalg.qr(np.concatenate([triangle, unit]), mode="r"))
    singular = np.linalg.svd(triangle, compute_uv=False)
    shares = singular / singular.sum()
    shares = shares[shares > 0]
    return float(np.exp(-(shares * np.log(shares)).sum()))


def project(groups: Mapping[str, Floats]) -> tuple[dict[str, Floats], tuple[float, float]]:
    """Points (N, 2) of several groups on their joint principal plane, each group weighing the same,
    and the shares of the variance on its two axes.

    `groups`: name (such as text, rgb, sentinel2) -> (N, D). So a few class names count as much as
    many images. Every axis points to where its largest loading is positive, so that the same
    vectors always have the same projection. Raises `DataError`.
    """
    if not groups:
        raise DataError("there is nothing to project; give at least one group of vectors")
    dims = {name: vectors.shape[1] for name, vectors in groups.items()}
    if len(set(dims.values())) > 1 or min(dims.values()) < 2:
        raise DataError(f"the groups have dimensions {dims}; expected the same number, 2 or more")
    units = {name: one / row_norms(one, name=name)[:, None] for name, one in groups.items()}
    centre = np.mean([unit.mean(axis=0) for unit in units.values()], axis=0)
    scaled = [(unit - centre) / np.sqrt(len(unit) * len(units)) for unit in units.values()]
    values, axes = np.linalg.eigh(sum(one.T @ one for one in scaled))
    plane = axes[:, [-1, -2]]
    plane = plane * np.sign(np.take_along_axis(plane, np.abs(plane).argmax(axis=0)[None], axis=0))
    values = np.clip(values, 0, None)
    total = max(float(values.sum()), np.finfo(float).tiny)
    points = {name: (unit - centre) @ plane for name, unit in units.items()}
    return points, (float(values[-1]) / total, float(values[-2]) / total)


def _unit_blocks(vectors: Floats, norms: Floats) -> Iterator[Floats]:
    for rows in row_slices(len(norms)):
        yield vectors[rows].astype(np.float64) / norms[rows, None]


def _check_dims(a: Floats, b: Floats) -> None:
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1]:
        raise DataError(
            f"the two sets are {a.shape} and {b.shape}; expected (N, D) vectors of one embedding "
            "space"
        )
