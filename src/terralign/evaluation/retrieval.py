"""Retrieval between any two of text, RGB and the aligned sensors, over the samples of one set."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from terralign.datasets.sample import Captions, Labels, SampleSet
from terralign.encoders.protocols import TextEncoder
from terralign.encoders.space import RGB, EmbeddingSpace
from terralign.encoders.zeroshot import PromptSet
from terralign.errors import DataError
from terralign.evaluation.caption_recall import (
    Counts,
    captions_find_images,
    images_find_captions,
    outcomes_per_image,
)
from terralign.evaluation.classification import choose_prompts
from terralign.evaluation.embed import Embed, choose_route, embed_samples
from terralign.evaluation.metrics import MetricResult
from terralign.evaluation.ranking import retrieval_metrics
from terralign.evaluation.result import Evaluation

TEXT = "text"
OWN_SAMPLE = "by class a query does not find its own sample"
NO_CLASS_REPEATS = "no two samples share a class, so that there is no figure by class"


def evaluate_retrieval(
    space: EmbeddingSpace,
    samples: SampleSet,
    *,
    query: str | None = None,
    gallery: str = RGB,
    prompts: PromptSet | str | None = None,
    embed: Embed | None = None,
) -> Evaluation:
    """Rank the gallery for every query by cosine.

    `query`, `gallery`: "text", "rgb", or the name of a tower or of a sensor of the samples; the
    query's default is the data's own sensor, or text where the data has captions and no labels.
    Two image modalities of the same samples: `recall@k`, the right answer being the same
    sample; with labels, also class-level `map@k`, for which the query's own sample does not count:
    finding it says that two sensors agree, and nothing about classes. Text: the captions as they
    are where the set has them, else one prompted query per class name (`map@k`). Of several
    captions each is a query for its sample; a sample finds text where its best-ranked caption is
    among the first k (`recall@k`, see `caption_recall.py`). The same modality twice: class-level,
    the query itself left out. `embed`: how to get the vectors of a route, where they were computed
    before.
    """
    get = embed or (lambda route: embed_samples(space, samples, route))
    own = choose_route(space, samples, query if query != TEXT else None)
    only_captions = samples.captions is not None and samples.labels is None
    names = (query or (TEXT if only_captions and gallery != TEXT else own.tower), gallery)
    of_names = TEXT in names and samples.captions is None
    chosen = choose_prompts(samples, prompts, own=space.prompts) if of_names else None
    routes = {name: choose_route(space, samples, name) for name in names if name != TEXT}
    embedded = {name: get(route) for name, route in routes.items()}
    sides = [
        _text_side(space, samples, chosen)
        if name == TEXT
        else image_side(samples, routes[name].tower, embedded[name].vectors.numpy())
        for name in names
    ]
    result = _rank(samples, *sides)
    notes = dict.fromkeys(note for one in embedded.values() for note in one.notes)
    words = "captions" if samples.captions is not None else "class names"
    return Evaluation(
        task="retrieval",
        dataset=samples.name,
        split=samples.split,
        space_id=space.space_id,
        tower=f"{sides[0].name} -> {sides[1].name}",
        note=" finds ".join(words if name == TEXT else routes[name].note for name in names),
        prompts=chosen.describe() if chosen is not None else None,
        class_names=None,
        result=replace(result, notes=(*result.notes, *notes)),
        valid_share=min((one.valid_share for one in embedded.values()), default=1.0),
        sensor=" and ".join(sorted({one.layout.sensor.name for one in routes.values()})) or None,
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class Side:
    """One modality, and how its M rows belong to the N samples.

    `name`: "text" or a tower. `vectors` (M, D). `labels`: (M,) classes or (M, K) bool, None without
    any. `owners`: (M,) the sample that each row belongs to, None where row k is class k.
    `num_captions`: (N,) of each sample, where rows are captions.
    """

    name: str
    vectors: NDArray[Any]
    labels: NDArray[Any] | None
    owners: NDArray[np.int64] | None = None
    num_captions: Counts | None = None

    @property
    def of_samples(self) -> bool:
        """Whether row k is sample k, as one of its sensors shows it."""
        return self.owners is not None and self.num_captions is None


def image_side(samples: SampleSet, tower: str, vectors: NDArray[Any]) -> Side:
    """The samples as a tower embeds them, (N, D)."""
    labels = None if samples.labels is None else samples.labels.values
    return Side(name=tower, vectors=vectors, labels=labels, owners=np.arange(len(samples)))


def caption_side(samples: SampleSet, captions: Captions, vectors: NDArray[Any]) -> Side:
    """The captions of the samples, one after another, (T, D)."""
    num_captions = np.array([len(texts) for texts in captions], dtype=np.int64)
    owners = np.repeat(np.arange(len(samples)), num_captions)
    labels = None if samples.labels is None else samples.labels.values[owners]
    return Side(name=TEXT, vectors=vectors, labels=labels, owners=owners, num_captions=num_captions)


def class_side(labels: Labels, weights: NDArray[Any]) -> Side:
    """The names of the classes, (K, D)."""
    classes = np.arange(len(labels.class_names), dtype=np.int64)
    own = np.eye(len(classes), dtype=np.bool_) if labels.multi_label else classes
    return Side(name=TEXT, vectors=weights, labels=own)


def _text_side(space: EmbeddingSpace, samples: SampleSet, prompts: PromptSet | None) -> Side:
    if samples.captions is not None:
        return caption_side(samples, samples.captions, embed_captions(space, samples.captions))
    if samples.labels is None:
        raise DataError(f"data set {samples.name!r} has neither captions nor class names")
    weights = space.zero_shot_weights(samples.labels.class_names, prompts).numpy()
    return class_side(samples.labels, weights)


def embed_captions(encoder: TextEncoder, captions: Captions) -> NDArray[Any]:
    """(T, D), one row per caption; equal texts are embedded once, so that they tie exactly."""
    places: dict[str, int] = {}
    rows = [places.setdefault(text, len(places)) for texts in captions for text in texts]
    return np.asarray(encoder.encode_text(list(places)).numpy()[rows])


def _rank(samples: SampleSet, query: Side, gallery: Side) -> MetricResult:
    if query.owners is None and gallery.owners is None:
        raise DataError("text finds text: name an image modality for the query or the gallery")
    if query.name == gallery.name:
        if query.labels is None:
            raise DataError(f"data set {samples.name!r} has no labels to judge {query.name} by")
        return retrieval_metrics(
            query.vectors, gallery.vectors,
            query_labels=query.labels, gallery_labels=gallery.labels, exclude_self=True,
        )  # fmt: skip
    instance, by_class = find_own(query, gallery), find_class(query, gallery)
    if instance is not None and samples.captions is not None and TEXT in (query.name, gallery.name):
        instance = replace(instance, notes=shared_captions(samples.captions))
    found = [one for one in (instance, by_class) if one is not None]
    if not found:
        raise DataError(f"data set {samples.name!r} has no labels to judge {query.name} by")
    if len(found) == 1:
        return found[0]
    return MetricResult(
        metrics=found[0].metrics + found[1].metrics,
        per_class=(),
        num_classes_without_positives=found[1].num_classes_without_positives,
        num_queries_left_out=found[1].num_queries_left_out,
        notes=found[0].notes + found[1].notes,
        outcomes=found[0].outcomes | found[1].outcomes,
    )


def find_own(query: Side, gallery: Side, **settings: Any) -> MetricResult | None:
    """`recall@k`, the right answer being what is of the same sample; None for classes.

    `settings`: `penalty`, `num_bootstrap` and `seed` of `retrieval_metrics`.
    """
    vectors = query.vectors, gallery.vectors
    if query.owners is None or gallery.owners is None:
        return None
    if query.num_captions is not None:
        return captions_find_images(*vectors, query.num_captions, **settings)
    if gallery.num_captions is not None:
        return images_find_captions(*vectors, gallery.num_captions, **settings)
    return retrieval_metrics(*vectors, target=query.owners, **settings)


def find_class(query: Side, gallery: Side, **settings: Any) -> MetricResult | None:
    """`map@k`, the right answer being what is of the same class, see `retrieval_metrics`; None
    without labels.

    Between two modalities of the samples, a sample does not find itself; a note instead of values
    where no class has two samples. Where queries are captions, outcomes are those of the samples.
    `settings` as in `find_own`.
    """
    if query.labels is None or gallery.labels is None:
        return None
    own_samples = query.of_samples and gallery.of_samples
    if own_samples and not _classes_repeat(query.labels):
        return MetricResult(metrics=(), notes=(NO_CLASS_REPEATS,))
    found = retrieval_metrics(
        query.vectors, gallery.vectors,
        query_labels=query.labels, gallery_labels=gallery.labels,
        exclude_self=own_samples, **settings,
    )  # fmt: skip
    if query.num_captions is not None:
        found = replace(found, outcomes=outcomes_per_image(found.outcomes, query.num_captions))
    return replace(found, notes=(OWN_SAMPLE, *found.notes)) if own_samples else found


def _classes_repeat(labels: NDArray[Any]) -> bool:
    """Whether some class has two samples; `labels` (N,) or (N, K) bool."""
    counts = labels.sum(axis=0) if labels.ndim == 2 else np.bincount(labels)
    return bool(counts.max(initial=0) > 1)


def shared_captions(captions: Captions) -> tuple[str, ...]:
    """A note on captions that stand with several samples, where there are such."""
    owners = Counter(text for texts in captions for text in set(texts))
    num_shared = sum(owners[text] > 1 for texts in captions for text in texts)
    if not num_shared:
        return ()
    total = sum(len(texts) for texts in captions)
    return (
        f"{num_shared:,} of {total:,} captions stand with several images; "
        "only the image a caption is from counts as right.",
    )
