"""Remedies for hubs at query time, all off unless asked for: centring, CSLS and QB-Norm.

A *hub* is a gallery item that many queries find, whether it answers them or not. Centring changes
the vectors; CSLS and QB-Norm leave them and make a `GalleryPenalty`, which `ranking.py` takes off
the cosines: the ranking stays exact, in blocks, with ties at their expected value. All of them see
more than one query at a time (*transductive*), so their figures belong beside the plain ones, not
in their place. How strong hubs are is measured by `diagnostics.hubness`.

Q queries, G gallery items, M bank queries, D embedding dimensions.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from terralign.errors import DataError
from terralign.evaluation.bootstrap import Floats
from terralign.evaluation.similarity import (
    BLOCK,
    GalleryPenalty,
    Similarities,
    row_norms,
    row_slices,
)

FIXED_POINT_BITS = 62
"""Bits that the integers of a sum over a bank may take."""


def centroid(vectors: Floats) -> Floats:
    """The mean (D,) float64 of the L2-normalised vectors (N, D). Raises `DataError`."""
    norms = row_norms(vectors, name="vectors")
    total = np.zeros(vectors.shape[1])
    for rows in row_slices(len(norms)):
        total += (vectors[rows] / norms[rows, None]).sum(axis=0)
    return np.asarray(total / len(norms))


def centre(vectors: Floats, mean: Floats | None = None) -> Floats:
    """L2-normalise, take off the modality's mean, and L2-normalise again: (N, D) float32.

    `mean`: (D,) the `centroid` of the same modality elsewhere, such as on validation data; None:
    that of the vectors themselves. Each modality is centred by its own mean, which closes the
    distance between the centroids (Liang et al. 2022, arXiv 2203.02053). Raises `DataError`, also
    where a vector is the mean itself and has no direction left.
    """
    norms = row_norms(vectors, name="vectors")
    if mean is None:
        mean = centroid(vectors)
    if mean.shape != (vectors.shape[1],):
        raise DataError(f"mean is {mean.shape}; expected ({vectors.shape[1]},), as vectors have")
    centred = np.empty(vectors.shape, dtype=np.float32)
    for rows in row_slices(len(norms)):
        moved = vectors[rows].astype(np.float64) / norms[rows, None] - mean
        lengths = np.linalg.norm(moved, axis=1, keepdims=True)
        lost = np.flatnonzero(lengths[:, 0] < 1e-6)
        if lost.size:
            raise DataError(
                f"row {rows.start + lost[0]} of vectors is its modality's mean: centring leaves "
                "it no direction"
            )
        centred[rows] = moved / lengths
    return centred


def csls_penalty(
    query: Floats,
    gallery: Floats,
    *,
    bank: Floats | None = None,
    num_neighbours: int = 10,
    exclude_self: bool = False,
    block: int = BLOCK,
) -> GalleryPenalty:
    """Cross-domain similarity local scaling (Conneau et al. 2018, arXiv 1710.04087, section 2.3).

    CSLS(q, g) = 2 cos(q, g) - r(q) - r(g), with r the mean cosine to the `num_neighbours` nearest
    of the other side. r(q) is the same for every gallery item of a query, so that ranking by
    cos(q, g) - r(g) / 2 is ranking by CSLS: the penalty is r(g) / 2. Where queries are ranked too,
    as the samples of a class are by average precision, take off r(q) / 2 as well: the penalty of
    `csls_penalty(gallery, query)`.

    `query`: (Q, D), `gallery`: (G, D). `bank`: (M, D) the queries among which the neighbours of a
    gallery item are looked for; None: `query` itself. `exclude_self` (with no bank): query i and
    gallery item i are the same, which is no neighbour of itself. Raises `DataError`.
    """
    if num_neighbours < 1:
        raise DataError(f"num_neighbours is {num_neighbours}; expected at least 1")
    if bank is not None and exclude_self:
        raise DataError("exclude_self is about the queries themselves; it does not go with a bank")
    others = query if bank is None else _checked_bank(bank, gallery)
    tiles = Similarities(gallery, others, exclude_self=exclude_self, block=block)
    values = np.empty(len(gallery))
    for rows in tiles.query_slices():
        top = tiles.top(rows, tiles.unit_queries(rows), num_neighbours)
        values[rows] = top.descending.mean(axis=1) / 2
    return GalleryPenalty(values=values)


def query_bank_penalty(
    query: Floats,
    gallery: Floats,
    bank: Floats,
    *,
    inverse_temperature: float = 20.0,
    num_active: int = 1,
    block: int = BLOCK,
) -> GalleryPenalty:
    """QB-Norm with the dynamic inverted softmax (Bogolin et al. 2022, arXiv 2112.12777, section 3).

    The inverted softmax scores exp(beta cos(q, g)) / sum over the bank of exp(beta cos(b, g)),
    which ranks as cos(q, g) - log(that sum) / beta does: that is the penalty. It is *dynamic*: only
    queries whose nearest gallery item is among the `num_active` nearest of some bank query are
    penalised. Items that tie for nearest all count as nearest.

    `query`: (Q, D), `gallery`: (G, D), `bank`: (M, D) queries of the same kind as `query`, such as
    those of the training split. `inverse_temperature`: beta. The sum is taken in fixed point: as
    exact ranking needs, equal gallery items get equal penalties whatever the block. Raises
    `DataError`.
    """
    if not (np.isfinite(inverse_temperature) and inverse_temperature > 0):
        raise DataError(f"inverse_temperature is {inverse_temperature}; expected more than 0")
    if num_active < 1:
        raise DataError(f"num_active is {num_active}; expected at least 1")
    tiles = Similarities(gallery, _checked_bank(bank, gallery), block=block)
    values = np.empty(len(gallery))
    scale = 2.0 ** (FIXED_POINT_BITS - len(bank).bit_length())
    for rows in tiles.query_slices():
        units = tiles.unit_queries(rows)
        highest = tiles.top(rows, units, 1).values
        total = np.zeros(len(units), dtype=np.int64)
        for _, similarity in tiles.tiles(rows, units):
            weights = np.exp(inverse_temperature * (similarity - highest))
            total += np.rint(weights * scale).astype(np.int64).sum(axis=1)
        values[rows] = highest[:, 0] + np.log(total / scale) / inverse_temperature
    active = _found_by(bank, gallery, num_active, block=block)
    return GalleryPenalty(values=values, queries=_finds(query, gallery, active, block=block))


def _checked_bank(bank: Floats, gallery: Floats) -> Floats:
    row_norms(bank, name="bank")
    if bank.shape[1] != gallery.shape[-1]:
        raise DataError(
            f"bank has {bank.shape[1]} dimensions, gallery has {gallery.shape[-1]}; "
            "both must come from one embedding space"
        )
    return bank


def _found_by(bank: Floats, gallery: Floats, depth: int, *, block: int) -> NDArray[np.bool_]:
    """(G,) True for gallery items among the `depth` nearest of some bank query, ties included."""
    tiles = Similarities(bank, gallery, block=block)
    found = np.zeros(len(gallery), dtype=np.bool_)
    for rows in tiles.query_slices():
        for near in tiles.nearest(rows, tiles.unit_queries(rows), depth):
            found[near.items[near.similarity >= near.top.lowest[:, None]]] = True
    return found


def _finds(
    query: Floats, gallery: Floats, active: NDArray[np.bool_], *, block: int
) -> NDArray[np.bool_]:
    """(Q,) True for queries that have an active gallery item among their nearest."""
    tiles = Similarities(query, gallery, block=block)
    best_active = np.full(len(query), -np.inf)
    best = np.full(len(query), -np.inf)
    for rows in tiles.query_slices():
        for columns, similarity in tiles.tiles(rows, tiles.unit_queries(rows)):
            best[rows] = np.maximum(best[rows], similarity.max(axis=1))
            own = np.where(active[columns], similarity, -np.inf).max(axis=1)
            best_active[rows] = np.maximum(best_active[rows], own)
    return np.asarray(best_active == best)
