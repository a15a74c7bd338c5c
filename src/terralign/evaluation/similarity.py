"""Cosine similarities of two sets of vectors, a block of queries at a time.

Q queries, G gallery items, D embedding dimensions, B a block's queries.

Vectors are normalised in float64 and multiplied in float32, so that similarities are off by some
1e-7. Gallery items with equal vectors have equal similarities nevertheless: every distinct vector
is multiplied once, for a BLAS may add the same terms in another order in another column.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from terralign.errors import DataError
from terralign.evaluation.bootstrap import Floats

BLOCK = 2**24
"""Similarities in a block."""

ROW_CHUNK = 4096
"""Rows normalised at once."""

Indices = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, slots=True)
class GalleryPenalty:
    """What is subtracted from the cosine to each gallery item before ranking; see `bench/hubness`.

    `values`: (G,) in units of cosine. `queries`: (Q,) bool, True for the queries whose cosines are
    penalised; None: all of them.
    """

    values: Floats
    queries: NDArray[np.bool_] | None = None

    def of(self, rows: slice) -> Floats:
        """What queries `rows` lose on each item, (B, G) or, the same for all of them, (1, G)."""
        if self.queries is None:
            return self.values[None]
        return np.where(self.queries[rows, None], self.values, 0.0)


def similarity_blocks(
    query: Floats,
    gallery: Floats,
    *,
    exclude_self: bool = False,
    penalty: GalleryPenalty | None = None,
) -> Iterator[tuple[slice, Floats]]:
    """Blocks of queries with their similarities (B, G) float32 to the whole gallery.

    `query`: (Q, D), `gallery`: (G, D), any floating-point vectors; they are L2-normalised here.
    `exclude_self`: query i and gallery item i are the same item, which no query may find: its
    similarity is -inf. With a `penalty` similarities are the penalised ones. Memory beyond the
    inputs: the gallery in float32, and some arrays of `BLOCK` numbers. Raises `DataError`.
    """
    norms = row_norms(query, name="query")
    units = unit_rows(gallery, name="gallery")
    if query.shape[1] != gallery.shape[1]:
        raise DataError(
            f"query has {query.shape[1]} dimensions, gallery has {gallery.shape[1]}; "
            "both must come from one embedding space"
        )
    if exclude_self and (len(query) != len(gallery) or len(query) < 2):
        raise DataError(
            f"exclude_self needs query and gallery to be the same items, at least two; there are "
            f"{len(query)} queries and {len(gallery)} gallery items"
        )
    first, places = distinct_rows(units)
    if len(first) < len(units):
        units = units[first]
    for rows in row_slices(len(query), max(1, BLOCK // len(gallery))):
        similarity = (query[rows] / norms[rows, None]).astype(np.float32) @ units.T
        if len(first) < len(gallery):
            similarity = similarity[:, places]
        if penalty is not None:
            similarity -= penalty.of(rows).astype(np.float32)
        if exclude_self:
            own = np.arange(rows.start, rows.stop)
            similarity[own - rows.start, own] = -np.inf
        yield rows, similarity


def distinct_rows(vectors: Floats) -> tuple[Indices, Indices]:
    """The first row of each distinct vector, (U,) rising, and each row's place among them, (N,)."""
    seen: dict[bytes, int] = {}
    digests = (hashlib.blake2b(row.tobytes(), digest_size=16).digest() for row in vectors)
    places = np.array([seen.setdefault(digest, len(seen)) for digest in digests], dtype=np.int64)
    return np.unique(places, return_index=True)[1], places


def unit_rows(vectors: Floats, *, name: str = "vectors") -> Floats:
    """L2-normalised rows (N, D) float32 of vectors (N, D). Raises `DataError` as `row_norms`."""
    norms = row_norms(vectors, name=name)
    units = np.empty(vectors.shape, dtype=np.float32)
    for rows in row_slices(len(vectors)):
        units[rows] = vectors[rows] / norms[rows, None]
    units += 0.0  # -0 becomes 0: vectors that are equal have equal bytes
    return units


def row_norms(vectors: Floats, *, name: str = "vectors") -> Floats:
    """L2 norms (N,) float64 of vectors (N, D); `DataError` where one is zero or not finite."""
    if vectors.ndim != 2 or not np.issubdtype(vectors.dtype, np.floating):
        raise DataError(
            f"{name} is {vectors.shape} {vectors.dtype}; expected (N, D) floating-point vectors"
        )
    if not vectors.size:
        raise DataError(f"{name} is empty ({vectors.shape}); there is nothing to measure")
    norms = np.empty(len(vectors))
    for rows in row_slices(len(vectors)):
        chunk = vectors[rows].astype(np.float64, order="C")
        with np.errstate(over="ignore", invalid="ignore"):
            norms[rows] = np.sqrt(np.square(chunk).sum(axis=1))
    bad = np.flatnonzero(~np.isfinite(norms) | (norms == 0))
    if bad.size:
        what = "all zeros" if norms[bad[0]] == 0 else "not finite"
        raise DataError(f"row {bad[0]} of {name} is {what} ({bad.size} such rows of {len(norms)})")
    return norms


def row_slices(length: int, step: int = ROW_CHUNK) -> Iterator[slice]:
    """0 to `length` in slices of at most `step`."""
    for start in range(0, length, step):
        yield slice(start, min(start + step, length))
