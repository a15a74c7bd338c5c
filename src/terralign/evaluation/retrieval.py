"""Retrieval between any two of text, RGB and the aligned sensors, over the samples of one set."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from terralign.datasets.sample import Captions, SampleSet
from terralign.encoders.space import RGB, EmbeddingSpace
from terralign.encoders.zeroshot import PromptSet
from terralign.errors import DataError
from terralign.evaluation.bootstrap import Floats
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
    query = query or (TEXT if only_captions and gallery != TEXT else own.tower)
    of_names = TEXT in (query, gallery) and samples.captions is None
    chosen = choose_prompts(samples, prompts, own=space.prompts) if of_names else None
    sides = [_Side(space, samples, name, prompts=chosen, embed=get) for name in (query, gallery)]
    result = _rank(samples, *sides)
    notes = dict.fromkeys(note for side in sides for note in side.no_data)
    return Evaluation(
        task="retrieval",
        dataset=samples.name,
        split=samples.split,
        space_id=space.space_id,
        tower=f"{sides[0].name} -> {sides[1].name}",
        note=f"{sides[0].note} finds {sides[1].note}",
        prompts=chosen.describe() if chosen is not None else None,
        class_names=None,
        result=replace(result, notes=(*result.notes, *notes)),
        valid_share=min(side.valid_share for side in sides),
        sensor=" and ".join(sorted({side.sensor for side in sides if side.sensor})) or None,
    )


class _Side:
    """The vectors of one modality, and how they belong to the samples.

    `vectors` (M, D). `owners`: (M,) the sample that each row belongs to, None where row k is class
    k. `captions`: the texts, where rows are captions, in the samples' order.
    """

    def __init__(
        self,
        space: EmbeddingSpace,
        samples: SampleSet,
        name: str,
        *,
        prompts: PromptSet | None,
        embed: Embed,
    ) -> None:
        self.captions: Captions | None = None
        self.sensor: str | None = None
        self.valid_share, self.no_data = 1.0, list[str]()
        self.owners: NDArray[np.int64] | None = np.arange(len(samples), dtype=np.int64)
        if name != TEXT:
            route = choose_route(space, samples, name)
            self.name, self.note = route.tower, route.note
            self.sensor = route.layout.sensor.name
            embedded = embed(route)
            self.vectors: NDArray[Any] = embedded.vectors.numpy()
            self.valid_share, self.no_data = embedded.valid_share, embedded.notes
            return
        self.name = TEXT
        if samples.captions is not None:
            self.note = "captions"
            self.captions = samples.captions
            self.vectors = embed_captions(space, samples.captions)
            self.owners = np.repeat(self.owners, [len(texts) for texts in self.captions])
            return
        if samples.labels is None:
            raise DataError(f"data set {samples.name!r} has neither captions nor class names")
        self.owners = None
        self.note = "class names"
        self.vectors = space.zero_shot_weights(samples.labels.class_names, prompts).numpy()

    @property
    def of_samples(self) -> bool:
        """Whether row k is sample k, as one of its sensors shows it."""
        return self.owners is not None and self.captions is None

    @property
    def num_captions(self) -> Counts | None:
        """How many captions each sample has, (N,), where rows are captions."""
        if self.captions is None:
            return None
        return np.array([len(texts) for texts in self.captions], dtype=np.int64)


def embed_captions(space: EmbeddingSpace, captions: Captions) -> NDArray[Any]:
    """(T, D), one row per caption; equal texts are embedded once, so that they tie exactly."""
    places: dict[str, int] = {}
    rows = [places.setdefault(text, len(places)) for texts in captions for text in texts]
    return np.asarray(space.encode_text(list(places)).numpy()[rows])


def _rank(samples: SampleSet, query: _Side, gallery: _Side) -> MetricResult:
    if query.owners is None and gallery.owners is None:
        raise DataError("text finds text: name an image modality for the query or the gallery")
    same = query.name == gallery.name
    labels = samples.labels
    instance: MetricResult | None = None
    if query.owners is not None and gallery.owners is not None and not same:
        instance = find_own(
            query.vectors, gallery.vectors,
            query_captions=query.num_captions, gallery_captions=gallery.num_captions,
        )  # fmt: skip
        captions = query.captions or gallery.captions
        if captions is not None:
            instance = replace(instance, notes=shared_captions(captions))
    if labels is None:
        if instance is None:
            raise DataError(f"data set {samples.name!r} has no labels to judge {query.name} by")
        return instance
    classes = np.arange(len(labels.class_names), dtype=np.int64)
    own = np.eye(len(classes), dtype=np.bool_) if labels.multi_label else classes
    judged = (
        own if query.owners is None else labels.values[query.owners],
        own if gallery.owners is None else labels.values[gallery.owners],
    )
    vectors = query.vectors, gallery.vectors
    if same:
        return retrieval_metrics(
            *vectors, query_labels=judged[0], gallery_labels=judged[1], exclude_self=True
        )
    own_samples = query.of_samples and gallery.of_samples
    by_class = find_class(
        *vectors, *judged, own_samples=own_samples, num_captions=query.num_captions
    )
    if instance is None:
        return by_class
    return MetricResult(
        metrics=instance.metrics + by_class.metrics,
        per_class=(),
        num_classes_without_positives=by_class.num_classes_without_positives,
        num_queries_left_out=by_class.num_queries_left_out,
        notes=instance.notes + by_class.notes,
        outcomes=instance.outcomes | by_class.outcomes,
    )


def find_own(
    query: Floats,
    gallery: Floats,
    *,
    query_captions: Counts | None = None,
    gallery_captions: Counts | None = None,
    **settings: Any,
) -> MetricResult:
    """`recall@k` of two modalities of N samples, the right answer being what is of the same one.

    `query`, `gallery`: (N, D), row k of sample k; or one row a caption, with how many captions each
    sample has in `query_captions` or `gallery_captions` (N,). `settings`: `penalty`,
    `num_bootstrap` and `seed` of `retrieval_metrics`.
    """
    if query_captions is not None:
        return captions_find_images(query, gallery, query_captions, **settings)
    if gallery_captions is not None:
        return images_find_captions(query, gallery, gallery_captions, **settings)
    return retrieval_metrics(query, gallery, target=np.arange(len(query)), **settings)


def find_class(
    query: Floats,
    gallery: Floats,
    query_labels: NDArray[Any],
    gallery_labels: NDArray[Any],
    *,
    own_samples: bool,
    num_captions: Counts | None = None,
    **settings: Any,
) -> MetricResult:
    """`map@k`, the right answer being what is of the same class, see `retrieval_metrics`.

    `own_samples`: row k of both is sample k, which does not find itself; without figures, but with
    a note, where no class has two samples. `num_captions`: of each sample (N,), where queries are
    captions: outcomes are those of the samples then. `settings` as in `find_own`.
    """
    if own_samples and not _classes_repeat(query_labels):
        return MetricResult(metrics=(), notes=(NO_CLASS_REPEATS,))
    found = retrieval_metrics(
        query, gallery, query_labels=query_labels, gallery_labels=gallery_labels,
        exclude_self=own_samples, **settings,
    )  # fmt: skip
    if num_captions is not None:
        found = replace(found, outcomes=outcomes_per_image(found.outcomes, num_captions))
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
