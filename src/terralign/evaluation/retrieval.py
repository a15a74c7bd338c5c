"""Retrieval between any two of text, RGB and the aligned sensors, over the samples of one set.

N samples, M rows of a side, K classes, D embedding dimensions.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from terralign.datasets.sample import Captions, Labels, SampleSet
from terralign.encoders.protocols import TextEncoder
from terralign.encoders.space import RGB, EmbeddingSpace
from terralign.encoders.zeroshot import PromptSet
from terralign.errors import DataError
from terralign.evaluation.bootstrap import Floats
from terralign.evaluation.classification import choose_prompts
from terralign.evaluation.embed import Embed, choose_route, embed_samples
from terralign.evaluation.metrics import MetricResult
from terralign.evaluation.ranking import map_metrics, outcomes_by_owner, recall_metrics
from terralign.evaluation.result import Evaluation

TEXT = "text"
OWN_SAMPLE = "by class a query does not find its own sample"
NO_CLASS_REPEATS = "no two samples share a class, so that there is no metric by class"


@dataclass(frozen=True, kw_only=True, slots=True)
class Side:
    """One modality of the samples of a set, as queries or as the gallery.

    `vectors`: (M, D). `owners`: (M,) the sample that each row belongs to, None where row k is class
    k. `labels`: (M,) classes or (M, K) bool, None without. `captions`: whether rows are captions.
    """

    vectors: Floats
    owners: NDArray[np.int64] | None = None
    labels: NDArray[Any] | None = None
    captions: bool = False

    @property
    def of_samples(self) -> bool:
        """Whether row i is sample i, as one of its sensors shows it."""
        return self.owners is not None and not self.captions


def image_side(samples: SampleSet, vectors: Floats) -> Side:
    """The samples themselves, `vectors` (N, D)."""
    labels = None if samples.labels is None else samples.labels.values
    return Side(vectors=vectors, owners=np.arange(len(samples)), labels=labels)


def caption_side(samples: SampleSet, captions: Captions, vectors: Floats) -> Side:
    """All captions of the samples in their order, `vectors` (M, D)."""
    owners = np.repeat(np.arange(len(samples)), [len(texts) for texts in captions])
    labels = None if samples.labels is None else samples.labels.values[owners]
    return Side(vectors=vectors, owners=owners, labels=labels, captions=True)


def class_side(labels: Labels, weights: Floats) -> Side:
    """The names of the classes, `weights` (K, D)."""
    num_classes = len(labels.class_names)
    own = np.eye(num_classes, dtype=np.bool_) if labels.multi_label else np.arange(num_classes)
    return Side(vectors=weights, labels=own)


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
    finding it shows that two sensors agree, and nothing about classes. Text: the captions as they
    are where the set has them, else one prompted query per class name (`map@k`). Of several
    captions each is a query for its sample; a sample finds text where its best-ranked caption is
    among the first k (`recall@k`, see `ranking.py`). The same modality twice: class-level,
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
        else image_side(samples, embedded[name].vectors.numpy())
        for name in names
    ]
    towers = [TEXT if name == TEXT else routes[name].tower for name in names]
    result = _rank(samples, *sides, towers=towers)
    text = "class names" if samples.captions is None else "captions"
    notes = dict.fromkeys(note for one in embedded.values() for note in one.notes)
    return Evaluation(
        task="retrieval",
        dataset=samples.name,
        split=samples.split,
        space_id=space.space_id,
        tower=" -> ".join(towers),
        note=" finds ".join(text if name == TEXT else routes[name].note for name in names),
        prompts=chosen.describe() if chosen is not None else None,
        class_names=None,
        result=replace(result, notes=(*result.notes, *notes)),
        valid_share=min((one.valid_share for one in embedded.values()), default=1.0),
        sensor=" and ".join(sorted({one.layout.sensor.name for one in routes.values()})) or None,
    )


def _text_side(space: EmbeddingSpace, samples: SampleSet, prompts: PromptSet | None) -> Side:
    if samples.captions is not None:
        return caption_side(samples, samples.captions, embed_captions(space, samples.captions))
    if samples.labels is None:
        raise DataError(f"data set {samples.name!r} has neither captions nor class names")
    weights = space.zero_shot_weights(samples.labels.class_names, prompts)
    return class_side(samples.labels, weights.numpy())


def embed_captions(encoder: TextEncoder, captions: Captions) -> NDArray[Any]:
    """(T, D), one row per caption; equal texts are embedded once, so that they tie exactly."""
    places: dict[str, int] = {}
    rows = [places.setdefault(text, len(places)) for texts in captions for text in texts]
    return np.asarray(encoder.encode_text(list(places)).numpy()[rows])


def _rank(samples: SampleSet, query: Side, gallery: Side, *, towers: Sequence[str]) -> MetricResult:
    if query.owners is None and gallery.owners is None:
        raise DataError("text finds text: name an image modality for the query or the gallery")
    if towers[0] == towers[1]:
        if query.labels is None:
            raise DataError(f"data set {samples.name!r} has no labels to judge {towers[0]} by")
        vectors = query.vectors
        return map_metrics(vectors, vectors, query.labels, query.labels, exclude_self=True)
    instance, by_class = find_own(query, gallery), find_class(query, gallery)
    if instance is not None and samples.captions is not None and TEXT in towers:
        instance = replace(instance, notes=shared_captions(samples.captions))
    if instance is None or by_class is None:
        found = instance or by_class
        assert found is not None  # the owners of both sides are known, or the labels of both
        return found
    return replace(
        by_class,
        metrics=instance.metrics + by_class.metrics,
        notes=instance.notes + by_class.notes,
        outcomes=instance.outcomes | by_class.outcomes,
    )


def find_own(query: Side, gallery: Side, **settings: Any) -> MetricResult | None:
    """`recall@k`, the right answer being what is of the same sample; None where a side has classes.

    `settings`: `penalty`, `num_bootstrap` and `seed` of `recall_metrics`.
    """
    if query.owners is None or gallery.owners is None:
        return None
    return recall_metrics(
        query.vectors,
        gallery.vectors,
        query_owners=query.owners,
        gallery_owners=gallery.owners,
        **settings,
    )


def find_class(query: Side, gallery: Side, **settings: Any) -> MetricResult | None:
    """`map@k`, the right answer being what is of the same class; None without labels.

    Where both sides are samples, one does not find itself: there are no metrics, but a note, where
    no class has two samples. Outcomes are those of samples where queries are captions. `settings`
    as in `find_own`.
    """
    if query.labels is None or gallery.labels is None:
        return None
    own_samples = query.of_samples and gallery.of_samples
    if own_samples and not _classes_repeat(query.labels):
        return MetricResult(metrics=(), notes=(NO_CLASS_REPEATS,))
    found = map_metrics(
        query.vectors,
        gallery.vectors,
        query.labels,
        gallery.labels,
        exclude_self=own_samples,
        **settings,
    )
    if query.captions and query.owners is not None:
        found = replace(found, outcomes=outcomes_by_owner(found.outcomes, query.owners))
    return replace(found, notes=(OWN_SAMPLE, *found.notes)) if own_samples else found


def _classes_repeat(labels: NDArray[Any]) -> bool:
    """Whether some class has two samples; `labels` (N,) or (N, K) bool."""
    counts = labels.sum(axis=0) if labels.ndim == 2 else np.bincount(labels)
    return bool(counts.max(initial=0) > 1)


def shared_captions(captions: Captions) -> tuple[str, ...]:
    """A note on captions that several samples share, if any."""
    owners = Counter(text for texts in captions for text in set(texts))
    num_shared = sum(owners[text] > 1 for texts in captions for text in texts)
    if not num_shared:
        return ()
    total = sum(len(texts) for texts in captions)
    return (
        f"{num_shared:,} of {total:,} captions belong to several images; "
        "only the image a caption is from counts as right.",
    )
