"""What is searched for: texts, pictures and windows, for and against, as one vector.

D dimensions, T towers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from terralign.encoders.space import EmbeddingSpace
from terralign.encoders.vectors import Embeddings, as_unit, check_same_space
from terralign.encoders.zeroshot import Prompts
from terralign.errors import DataError

MAX_TERMS = 1000
"""Texts, pictures and windows of one query."""

AGAINST = 0.5
"""The weight of what a query is against, all together; what it is for has 1."""

Terms = Any
"""A text, a picture (path, Chip, Pillow image, Embeddings), one of these with its weight as a
tuple, or a list of them."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Term:
    """One thing that is searched for. `vector`: (D,) of unit length. `tower`: which made it; None:
    the text tower."""

    name: str
    vector: NDArray[np.float32]
    weight: float
    tower: str | None


def terms_of(
    space: EmbeddingSpace,
    given: Terms,
    *,
    prompts: Prompts | None,
    embed: Callable[[Any], Embeddings] | None = None,
) -> list[Term]:
    """The terms that a caller gives; `DataError` for an empty text or a weight below 0."""
    found: list[Term] = []
    for one, weight in _weighted(given):
        if isinstance(one, str):
            vector = space.text_vector(one, prompts)
            found.append(Term(name=one, vector=vector, weight=weight, tower=None))
            continue
        if not isinstance(one, Embeddings):
            one = (embed or space.embed)(one)
        check_same_space(space.space_id, one.space_id, "the query's vectors")
        one.require_numbers(space.dim)
        if not len(one):
            raise DataError("the query has no vectors")
        for row in range(len(one)):
            found.append(
                Term(
                    name=Path(one.keys[row]).name,
                    vector=one.vectors[row],
                    weight=weight / len(one),
                    tower=one.towers[row],
                )
            )
    return found


def _weighted(given: Terms) -> Iterable[tuple[Any, float]]:
    if given is None:
        return []
    single = isinstance(given, str | Path | Embeddings) or not isinstance(given, Iterable)
    pair = isinstance(given, tuple) and len(given) == 2 and isinstance(given[1], int | float)
    several = [given] if single or pair else list(given)
    if len(several) > MAX_TERMS:
        raise DataError(f"the query has {len(several)} terms, more than the limit of {MAX_TERMS}")
    found = []
    for one in several:
        weight = 1.0
        if isinstance(one, tuple) and len(one) == 2:
            one, weight = one
        number = isinstance(weight, int | float) and not isinstance(weight, bool)
        if not (number and math.isfinite(weight) and weight > 0):
            raise DataError(
                f"the weight of {one!r} is {weight!r}; expected a number above 0 (what a query is "
                "against is given as against=)"
            )
        found.append((one, float(weight)))
    return found


def query_vector(positive: Sequence[Term], negative: Sequence[Term]) -> NDArray[np.float32]:
    """(D,) unit vector: the weighted mean of the terms for, less `AGAINST` times that against."""
    if not positive and not negative:
        raise DataError("the query is empty; say what to search for: a text, a picture, an id")
    total = np.zeros(len((*positive, *negative)[0].vector), dtype=np.float64)
    for terms, sign in ((positive, 1.0), (negative, -AGAINST if positive else -1.0)):
        weights = sum(one.weight for one in terms)
        for one in terms:
            total += sign * one.weight / weights * one.vector
    if np.linalg.norm(total) < 1e-6:
        raise DataError("the query is for and against the same; there is nothing to search for")
    return as_unit(total)


def name_of(positive: Sequence[Term], negative: Sequence[Term]) -> str:
    """How results name a query: "a river, a lake, not: clouds"."""
    texts = []
    for terms, mark in ((positive, ""), (negative, "not: ")):
        if terms:
            more = f" and {len(terms) - 3} more" if len(terms) > 3 else ""
            texts.append(mark + ", ".join(one.name for one in terms[:3]) + more)
    return ", ".join(texts)
