"""Retrieval between all pairs of modalities: the same sample, and the same class.

By class, a sample does not find itself in another modality: that its own place is the nearest shows
that two sensors agree, which the instance level measures, and nothing about classes.

Captions are texts as they are, of which a sample may have several: the protocol and its intervals
are those of `evaluation/ranking.py`.

Q queries, G gallery items, D embedding dimensions, N samples.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from terralign.bench.hubness import centre, csls_penalty, query_bank_penalty
from terralign.bench.subject import Job, Measured, Skipped, Subject, figure, in_sentences
from terralign.datasets.sample import SampleSet
from terralign.evaluation.bootstrap import Floats
from terralign.evaluation.embed import Route
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
    routes = {route.tower: route for route in subject.routes}
    samples = subject.samples
    has_text = samples.labels is not None or samples.captions is not None
    names = [*([TEXT] if has_text else []), *routes]
    _ = subject.space
    pairs = [(a, b) for a, b in product(names, names) if a != b]
    if not pairs:
        raise Skipped(f"{samples.name} has one modality that the model takes, and no words")
    for query, gallery in pairs:
        captions = TEXT in (query, gallery) and samples.captions is not None
        of_names = TEXT in (query, gallery) and not captions
        for variant in subject.variants:
            without_meaning = {"prompt-average": not of_names, "qb-norm": query == TEXT}
            if variant != PLAIN and not captions and without_meaning.get(variant):
                continue
            identity: dict[str, Any] = {"pair": [query, gallery]}
            where: dict[str, Any] = {
                "task": "retrieval",
                "query_tower": query,
                "gallery_tower": gallery,
                "variant": variant,
            }
            if of_names:
                identity["text"] = subject.text_identity(variant)
                where |= subject.text_keys(variant)
            if variant == "qb-norm":
                identity["bank"] = subject.bank().fingerprint
            yield Job(
                where=where,
                identity=identity,
                version=VERSION,
                run=lambda q=query, g=gallery, v=variant: _retrieve(subject, routes, q, g, v),  # type: ignore[misc]
            )


def _retrieve(
    subject: Subject, routes: dict[str, Route], query: str, gallery: str, variant: str
) -> Measured:
    notes = [
        note
        for name in (query, gallery)
        if name in routes
        for note in subject.notes_of(routes[name])
    ]
    if TEXT in (query, gallery) and subject.samples.captions is not None:
        if variant == "prompt-average":
            raise Skipped("captions are embedded as they are: there are no prompts to average")
        notes += ["captions", *shared_captions(subject.samples.captions)]
    sides = [_side(subject, routes, name, variant) for name in (query, gallery)]
    if variant == "centred":
        sides = [replace(side, vectors=centre(side.vectors)) for side in sides]
    penalty = _penalty(subject, routes, query, sides, variant)
    if variant in ("centred", "csls"):
        notes.append("transductive: it sees all queries at once")
    measured = _measure(subject, sides[0], sides[1], penalty, notes)
    measured.details["sensors"] = {
        name: routes[name].layout.sensor.name for name in (query, gallery) if name in routes
    }
    return measured


def _side(subject: Subject, routes: dict[str, Route], name: str, variant: str) -> Side:
    samples = subject.samples
    if name != TEXT:
        return image_side(samples, subject.vectors(routes[name]))
    if samples.captions is not None:
        return caption_side(samples, samples.captions, _caption_vectors(subject, samples))
    averaged = variant == "prompt-average"
    weights = subject.averaged_weights() if averaged else subject.class_weights()
    return class_side(subject.labels, weights)


def _caption_vectors(subject: Subject, samples: SampleSet) -> Floats:
    """(T, D) of all captions of a set."""
    return np.asarray(subject.embeddings.captions(subject.space, samples).numpy())


def _penalty(
    subject: Subject, routes: dict[str, Route], query: str, sides: list[Side], variant: str
) -> GalleryPenalty | None:
    vectors, gallery = sides[0].vectors, sides[1].vectors
    if variant == "csls":
        return csls_penalty(vectors, gallery)
    if variant != "qb-norm":
        return None
    bank = subject.bank()
    if query == TEXT:
        queries = _caption_vectors(subject, bank)
    else:
        queries = subject.vectors(routes[query], bank)
    return query_bank_penalty(vectors, gallery, queries)


def _measure(
    subject: Subject, query: Side, gallery: Side, penalty: GalleryPenalty | None, notes: list[str]
) -> Measured:
    settings: dict[str, Any] = {
        "penalty": penalty,
        "num_bootstrap": subject.suite.num_bootstrap,
        "seed": subject.suite.seed,
    }
    figures: list[dict[str, Any]] = []
    outcomes: dict[str, NDArray[Any]] = {}
    for level, find in (("instance", find_own), ("class", find_class)):
        found = find(query, gallery, **settings)
        if found is not None:
            figures += [figure(metric, level=level) for metric in found.metrics]
            notes = [*notes, *found.notes]
            outcomes |= found.outcomes
    return Measured(
        figures=figures,
        details={"examples": _examples(subject, query, gallery, penalty)},
        outcomes=outcomes,
        note=in_sentences(notes),
    )


def _examples(
    subject: Subject, query: Side, gallery: Side, penalty: GalleryPenalty | None
) -> list[dict[str, Any]]:
    """A few queries, always the same, with what they find first.

    Where classes judge two modalities of the samples, the query's own one is left out, as it is
    from the figures by class.
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
