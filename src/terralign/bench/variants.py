"""What a suite's variants do to the vectors of queries and of what they find.

Q queries, G gallery items, D embedding dimensions.
"""

from __future__ import annotations

from collections.abc import Callable

from terralign.evaluation.bootstrap import Floats
from terralign.evaluation.hubness import centre, csls_penalty, query_bank_penalty
from terralign.evaluation.similarity import GalleryPenalty

TRANSDUCTIVE = ("centred", "csls")
"""Variants that see all queries at once."""


def correct(
    query: Floats, gallery: Floats, variant: str, bank: Callable[[], Floats]
) -> tuple[Floats, Floats, GalleryPenalty | None]:
    """Vectors (Q, D) and (G, D), and what is taken off their cosines. `bank`: the vectors of
    qb-norm's bank of queries."""
    if variant == "centred":
        return centre(query), centre(gallery), None
    if variant == "csls":
        return query, gallery, csls_penalty(query, gallery)
    if variant == "qb-norm":
        return query, gallery, query_bank_penalty(query, gallery, bank())
    return query, gallery, None
