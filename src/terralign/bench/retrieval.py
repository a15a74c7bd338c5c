"""Retrieval between all pairs of modalities: the same sample, and the same class.

By class, a sample does not find itself in another modality: that its own place is the nearest shows
that two sensors agree, which the instance level measures, and nothing about classes.

Captions are texts as they are, of which a sample may have several: the protocol and its intervals
are those of `evaluation/ranking.py`.

Q queries, G gallery items, D embedding dimensions, N samples.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from typing import Any

import numpy as np

from terralign.bench.data import Skipped
from terralign.bench.hubness import TRANSDUCTIVE, correct
from terralign.bench.subject import Job, Measured, Subject, in_sentences
from terralign.bench.text import ClassText
from terralign.encoders.space import EmbeddingSpace
from terralign.evaluation.bootstrap import Floats
from terralign.evaluation.embed import Route
from terralign.evaluation.metrics import Outcomes
from terralign.evaluation.retrieval import (
    TEXT,
    Side,
    caption_side,
    class_side,
    find_class,
    find_own,
    image_side,
    shared_captions,
)
from terralign.evaluation.rows import PLAIN
from terralign.evaluation.similarity import GalleryPenalty, similarity_blocks

VERSION = 4
NUM_EXAMPLES = 6
EXAMPLE_DEPTH = 5


def retrieval_jobs(subject: Subject) -> Iterator[Job]:
    """A job for each ordered pair of modalities and variant."""
    space, samples = subject.space(), subject.samples
    has_text = samples.labels is not None or samples.captions is not None
    names = [*([TEXT] if has_text else []), *(route.tower for route in subject.routes)]
    pairs = [(a, b) for a, b in product(names, names) if a != b]
    if not pairs:
        raise Skipped(f"{samples.name} has one modality that the model takes, and no words")
    for query, gallery in pairs:
        captions = TEXT in (query, gallery) and samples.captions is not None
        text = subject.text() if TEXT in (query, gallery) and not captions else None
        for variant in subject.variants:
            without_meaning = {"prompt-average": text is None, "qb-norm": query == TEXT}
            if variant != PLAIN and not captions and without_meaning.get(variant):
                continue
            identity: dict[str, Any] = {"pair": [query, gallery]}
            where: dict[str, Any] = {
                "task": "retrieval",
                "query_tower": query,
                "gallery_tower": gallery,
                "variant": variant,
            }
            if text is not None:
                identity["text"] = text.identity(variant)
                where |= text.keys(variant)
            if variant == "qb-norm":
                identity["bank"] = subject.data.bank().fingerprint
            pair = _Pair(
                subject=subject, space=space, text=text,
                query=query, gallery=gallery, variant=variant,
            )  # fmt: skip
            yield Job(where=where, identity=identity, version=VERSION, run=partial(_retrieve, pair))


@dataclass(frozen=True, kw_only=True, slots=True)
class _Pair:
    """A query and a gallery modality. `text`: of the classes, where one side is their names."""

    subject: Subject
    space: EmbeddingSpace
    text: ClassText | None
    query: str
    gallery: str
    variant: str

    @property
    def routes(self) -> dict[str, Route]:
        """Those of the modalities that are towers."""
        routes = {route.tower: route for route in self.subject.routes}
        return {name: routes[name] for name in (self.query, self.gallery) if name in routes}

    def side(self, name: str) -> Side:
        """One of the two modalities."""
        samples = self.subject.samples
        if name != TEXT:
            return image_side(samples, self.subject.vectors(self.routes[name]))
        if self.text is not None:
            return class_side(self.subject.data.labels, self.text.weights(self.variant))
        assert samples.captions is not None
        vectors = self.subject.embeddings.captions(self.space, samples)
        return caption_side(samples, samples.captions, vectors)

    def bank(self) -> Floats:
        """The vectors of qb-norm's bank of queries."""
        bank = self.subject.data.bank()
        if self.query == TEXT:
            return self.subject.embeddings.captions(self.space, bank)
        return self.subject.vectors(self.routes[self.query], bank)


def _retrieve(pair: _Pair) -> Measured:
    subject, routes = pair.subject, pair.routes
    notes = [note for route in routes.values() for note in subject.notes_of(route)]
    captions = subject.samples.captions
    if TEXT in (pair.query, pair.gallery) and captions is not None:
        if pair.variant == "prompt-average":
            raise Skipped("captions are embedded as they are: there are no prompts to average")
        notes += ["captions", *shared_captions(captions)]
    query, gallery = pair.side(pair.query), pair.side(pair.gallery)
    queries, items, penalty = correct(query.vectors, gallery.vectors, pair.variant, pair.bank)
    query, gallery = replace(query, vectors=queries), replace(gallery, vectors=items)
    if pair.variant in TRANSDUCTIVE:
        notes.append("transductive: it sees all queries at once")
    values: list[dict[str, Any]] = []
    outcomes: Outcomes = {}
    for level, find in (("instance", find_own), ("class", find_class)):
        found = find(query, gallery, penalty=penalty, **subject.resampling)
        if found is not None:
            values += [metric.to_row() | {"level": level} for metric in found.metrics]
            notes += found.notes
            outcomes |= found.outcomes
    return Measured(
        values=values,
        details={
            "examples": _examples(subject, query, gallery, penalty),
            "sensors": {name: route.layout.sensor.name for name, route in routes.items()},
        },
        outcomes=outcomes,
        note=in_sentences(notes),
    )


def _examples(
    subject: Subject, query: Side, gallery: Side, penalty: GalleryPenalty | None
) -> list[dict[str, Any]]:
    """A few queries, always the same, with what they find first.

    Where classes judge two modalities of the samples, the query's own one is left out, as it is
    from the values by class.
    """
    drawn = np.random.default_rng(subject.suite.seed).permutation(len(query.vectors))
    chosen = np.sort(drawn[:NUM_EXAMPLES])
    if penalty is not None and penalty.queries is not None:
        penalty = replace(penalty, queries=penalty.queries[chosen])
    blocks = similarity_blocks(query.vectors[chosen], gallery.vectors, penalty=penalty)
    similarity = np.concatenate([block for _, block in blocks])
    if query.of_samples and gallery.of_samples and query.labels is not None:
        similarity[np.arange(len(chosen)), chosen] = -np.inf
    keys = [_keys(subject, side) for side in (query, gallery)]
    examples = []
    for own, index in zip(similarity, chosen, strict=True):
        best = np.argsort(-own, kind="stable")[:EXAMPLE_DEPTH]
        best = best[own[best] > -np.inf]
        examples.append(
            {
                "query": keys[0][index],
                "query_index": int(index) if query.of_samples else None,
                "label": _names(subject, query, int(index)),
                "results": [
                    {
                        "key": keys[1][item],
                        "index": int(item) if gallery.of_samples else None,
                        "label": _names(subject, gallery, int(item)),
                        "cosine": float(own[item]),
                        "right": _right(query, gallery, int(index), int(item)),
                    }
                    for item in best
                ],
            }
        )
    return examples


def _keys(subject: Subject, side: Side) -> tuple[str, ...]:
    """The names of the rows of a side."""
    if side.owners is None:
        return subject.class_names
    captions = subject.samples.captions
    if side.captions and captions is not None:
        return tuple(text for texts in captions for text in texts)
    return subject.samples.keys


def _names(subject: Subject, side: Side, index: int) -> list[str]:
    """Its classes; none of a caption, which is text itself."""
    if side.labels is None or side.captions:
        return []
    own = side.labels[index]
    names = subject.class_names
    return [names[k] for k in np.flatnonzero(own)] if side.labels.ndim == 2 else [names[int(own)]]


def _right(query: Side, gallery: Side, index: int, item: int) -> bool:
    """The same class where there are classes, else the same sample."""
    if query.labels is None or gallery.labels is None:
        assert query.owners is not None
        assert gallery.owners is not None
        return bool(query.owners[index] == gallery.owners[item])
    if query.labels.ndim == 2:
        return bool((query.labels[index] & gallery.labels[item]).any())
    return bool(query.labels[index] == gallery.labels[item])
