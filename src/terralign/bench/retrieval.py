"""Retrieval between all pairs of modalities: the same sample, and the same class.

By class, a sample does not find itself in another modality: that its own place is the nearest says
that two sensors agree, which the instance level measures, and nothing about classes.

Captions are texts as they are, of which a sample may have several: the protocol and its intervals
are those of `evaluate/caption_recall.py`.

Q queries, G gallery items, D embedding dimensions, N samples.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from terralign.bench.subject import Job, Measured, Skipped, Subject, figure, in_sentences
from terralign.datasets.sample import SampleSet
from terralign.evaluation.bootstrap import Floats
from terralign.evaluation.embed import Route
from terralign.evaluation.hubness import centre, csls_penalty, query_bank_penalty
from terralign.evaluation.retrieval import TEXT, find_class, find_own, shared_captions
from terralign.evaluation.rows import PLAIN
from terralign.evaluation.similarity import GalleryPenalty, Similarities

VERSION = 3
NUM_EXAMPLES = 6
EXAMPLE_DEPTH = 5


@dataclass(frozen=True, kw_only=True, slots=True)
class _Side:
    """One modality. `vectors` (M, D); `labels` (M,) or (M, K) bool, None where there are none.

    `keys`: names of the rows. `owners`: (M,) the sample that each belongs to, None where row k is
    class k. `num_captions`: (N,) of each sample, where rows are captions.
    """

    vectors: Floats
    labels: NDArray[Any] | None
    keys: tuple[str, ...]
    owners: NDArray[np.int64] | None = None
    num_captions: NDArray[np.int64] | None = None

    @property
    def of_samples(self) -> bool:
        """Whether row i is sample i."""
        return self.owners is not None and self.num_captions is None


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


def _side(subject: Subject, routes: dict[str, Route], name: str, variant: str) -> _Side:
    samples = subject.samples
    labels = None if samples.labels is None else samples.labels.values
    own = np.arange(len(samples), dtype=np.int64)
    if name != TEXT:
        vectors = subject.vectors(routes[name])
        return _Side(vectors=vectors, labels=labels, keys=samples.keys, owners=own)
    if samples.captions is not None:
        num_captions = np.array([len(texts) for texts in samples.captions], dtype=np.int64)
        owners = np.repeat(own, num_captions)
        return _Side(
            vectors=_caption_vectors(subject, samples),
            labels=None if labels is None else labels[owners],
            keys=tuple(text for texts in samples.captions for text in texts),
            owners=owners,
            num_captions=num_captions,
        )
    classes = len(subject.labels.class_names)
    averaged = variant == "prompt-average"
    weights = subject.averaged_weights() if averaged else subject.class_weights()
    each = np.eye(classes, dtype=np.bool_) if subject.labels.multi_label else np.arange(classes)
    return _Side(vectors=weights, labels=each, keys=subject.class_names)


def _caption_vectors(subject: Subject, samples: SampleSet) -> Floats:
    """(T, D) of all captions of a set."""
    return np.asarray(subject.embeddings.captions(subject.space, samples).numpy())


def _penalty(
    subject: Subject, routes: dict[str, Route], query: str, sides: list[_Side], variant: str
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
    subject: Subject, query: _Side, gallery: _Side, penalty: GalleryPenalty | None, notes: list[str]
) -> Measured:
    settings: dict[str, Any] = {
        "penalty": penalty,
        "num_bootstrap": subject.suite.num_bootstrap,
        "seed": subject.suite.seed,
    }
    vectors = query.vectors, gallery.vectors
    figures: list[dict[str, Any]] = []
    outcomes: dict[str, NDArray[Any]] = {}
    if query.owners is not None and gallery.owners is not None:
        found = find_own(
            *vectors, query_captions=query.num_captions, gallery_captions=gallery.num_captions,
            **settings,
        )  # fmt: skip
        figures += [figure(metric, level="instance") for metric in found.metrics]
        outcomes |= found.outcomes
    if query.labels is not None and gallery.labels is not None:
        own_samples = query.of_samples and gallery.of_samples
        found = find_class(
            *vectors, query.labels, gallery.labels,
            own_samples=own_samples, num_captions=query.num_captions, **settings,
        )  # fmt: skip
        figures += [figure(metric, level="class") for metric in found.metrics]
        notes = [*notes, *found.notes]
        outcomes |= found.outcomes
    return Measured(
        figures=figures,
        details={"examples": _examples(subject, query, gallery, penalty)},
        outcomes=outcomes,
        note=in_sentences(notes),
    )


def _examples(
    subject: Subject, query: _Side, gallery: _Side, penalty: GalleryPenalty | None
) -> list[dict[str, Any]]:
    """A few queries, always the same, with what they find first.

    Where classes judge two modalities of the samples, the query's own one is left out, as it is
    from the figures by class.
    """
    drawn = np.random.default_rng(subject.suite.seed).permutation(len(query.vectors))
    chosen = np.sort(drawn[:NUM_EXAMPLES])
    limited = None
    if penalty is not None:
        queries = None if penalty.queries is None else penalty.queries[chosen]
        limited = GalleryPenalty(values=penalty.values, queries=queries)
    tiles = Similarities(query.vectors[chosen], gallery.vectors, penalty=limited)
    rows = slice(0, len(chosen))
    similarity = np.concatenate(
        [tile for _, tile in tiles.tiles(rows, tiles.unit_queries(rows))], axis=1
    )
    if query.of_samples and gallery.of_samples and query.labels is not None:
        similarity[np.arange(len(chosen)), chosen] = -np.inf
    examples = []
    for own, index in zip(similarity, chosen, strict=True):
        best = np.argsort(-own, kind="stable")[:EXAMPLE_DEPTH]
        best = best[own[best] > -np.inf]
        examples.append(
            {
                "query": query.keys[index],
                "query_index": int(index) if query.of_samples else None,
                "label": _names(subject, query, int(index)),
                "results": [
                    {
                        "key": gallery.keys[item],
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


def _names(subject: Subject, side: _Side, index: int) -> list[str]:
    """Its classes; none of a caption, which says what it is itself."""
    if side.labels is None or side.num_captions is not None:
        return []
    own = side.labels[index]
    names = subject.class_names
    return [names[k] for k in np.flatnonzero(own)] if side.labels.ndim == 2 else [names[int(own)]]


def _right(query: _Side, gallery: _Side, index: int, item: int) -> bool:
    """The same class where there are classes, else the same sample."""
    if query.labels is None or gallery.labels is None:
        assert query.owners is not None
        assert gallery.owners is not None
        return bool(query.owners[index] == gallery.owners[item])
    if query.labels.ndim == 2:
        return bool((query.labels[index] & gallery.labels[item]).any())
    return bool(query.labels[index] == gallery.labels[item])
