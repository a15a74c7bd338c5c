"""Hubness correction at query time, off unless asked for: centring, CSLS and QB-Norm.

A *hub* is a gallery item that many queries find, whether it answers them or not. Centring changes
the vectors; CSLS and QB-Norm make a `GalleryPenalty`, which is subtracted from the cosines. All of
them see more than one query at a time (*transductive*), so their metrics belong beside the plain
ones, not in their place. `evaluation.diagnostics.hubness_skewness` measures how strong hubs are.

Q queries, G gallery items, M bank queries, D embedding dimensions.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy.special import logsumexp

from terralign.errors import DataError
from terralign.evaluation.bootstrap import Floats
from terralign.evaluation.similarity import (
    GalleryPenalty,
    distinct_rows,
    similarity_blocks,
    unit_rows,
)

TRANSDUCTIVE = ("centred", "csls")
"""Variants that see all queries at once."""

CSLS_NEIGHBOURS = 10
INVERSE_TEMPERATURE = 20.0
"""The papers' own settings."""


def correct(
    query: Floats, gallery: Floats, variant: str, bank: Callable[[], Floats]
) -> tuple[Floats, Floats, GalleryPenalty | None]:
    """What a suite's variant makes of vectors (Q, D) and (G, D), and what it subtracts from their
    cosines. `bank`: the vectors (M, D) of qb-norm's queries."""
    if variant == "centred":
        return centre(query), centre(gallery), None
    if variant == "csls":
        return query, gallery, csls_penalty(query, gallery)
    if variant == "qb-norm":
        return query, gallery, query_bank_penalty(query, gallery, bank())
    return query, gallery, None


def centre(vectors: Floats) -> Floats:
    """L2-normalise, subtract the mean, and L2-normalise again: (N, D) float32.

    Each modality is centred by its own mean, which closes the distance between the centroids (Liang
    et al. 2022, arXiv 2203.02053). Raises `DataError`, also where a vector is the mean itself and
    has no direction left.
    """
    units = unit_rows(vectors)
    moved = units - units.mean(axis=0, dtype=np.float64).astype(np.float32)
    lengths = np.linalg.norm(moved, axis=1, keepdims=True)
    lost = np.flatnonzero(lengths < 1e-6)
    if lost.size:
        raise DataError(
            f"row {lost[0]} of vectors is its modality's mean: centring leaves it no direction"
        )
    return np.asarray(moved / lengths)


def csls_penalty(query: Floats, gallery: Floats) -> GalleryPenalty:
    """Cross-domain similarity local scaling (Conneau et al. 2018, arXiv 1710.04087, section 2.3).

    CSLS(q, g) = 2 cos(q, g) - r(q) - r(g), with r the mean cosine to the `CSLS_NEIGHBOURS` nearest
    of the other side. r(q) is the same for every gallery item of a query, so that ranking by
    cos(q, g) - r(g) / 2 is ranking by CSLS: the penalty is r(g) / 2. Where queries are ranked too,
    as the samples of a class are by average precision, subtract r(q) / 2 as well: the penalty of
    `csls_penalty(gallery, query)`. `query`: (Q, D), `gallery`: (G, D). Raises `DataError`.
    """
    first, places = distinct_rows(unit_rows(gallery))  # equal items have equal penalties
    depth = min(CSLS_NEIGHBOURS, len(query))
    values = np.empty(len(first))
    for rows, similarity in similarity_blocks(gallery[first], query):
        nearest = np.partition(similarity, -depth, axis=1)[:, -depth:]
        values[rows] = nearest.mean(axis=1, dtype=np.float64) / 2
    return GalleryPenalty(values=values[places])


def query_bank_penalty(query: Floats, gallery: Floats, bank: Floats) -> GalleryPenalty:
    """QB-Norm with the dynamic inverted softmax (Bogolin et al. 2022, arXiv 2112.12777, section 3).

    The inverted softmax scores exp(beta cos(q, g)) / sum over the bank of exp(beta cos(b, g)),
    which ranks as cos(q, g) - log(that sum) / beta does: that is the penalty. It is *dynamic*: only
    queries whose nearest gallery item is the nearest of some bank query are penalised. Items that
    tie for nearest all count as nearest.

    `query`: (Q, D), `gallery`: (G, D), `bank`: (M, D) queries of the same kind as `query`, such as
    those of the training split. beta is `INVERSE_TEMPERATURE`. Raises `DataError`.
    """
    first, places = distinct_rows(unit_rows(gallery))
    values = np.empty(len(first))
    for rows, similarity in similarity_blocks(gallery[first], bank):
        sums = logsumexp(INVERSE_TEMPERATURE * similarity.astype(np.float64), axis=1)
        values[rows] = sums / INVERSE_TEMPERATURE
    active = np.zeros(len(gallery), dtype=np.bool_)
    for _, similarity in similarity_blocks(bank, gallery):
        active |= (similarity == similarity.max(axis=1, keepdims=True)).any(axis=0)
    penalised = np.empty(len(query), dtype=np.bool_)
    for rows, similarity in similarity_blocks(query, gallery):
        nearest = similarity == similarity.max(axis=1, keepdims=True)
        penalised[rows] = (nearest & active).any(axis=1)
    return GalleryPenalty(values=values[places], queries=penalised)
