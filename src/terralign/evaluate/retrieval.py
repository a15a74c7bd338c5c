"""Retrieval between any two of text, RGB and the aligned sensors, over the samples of one set."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from terralign.datasets.sample import SampleSet
from terralign.encoders.space import RGB, EmbeddingSpace
from terralign.encoders.zeroshot import PromptSet
from terralign.errors import DataError
from terralign.evaluate.classification import choose_prompts
from terralign.evaluate.embed import Embed, choose_route, embed_samples
from terralign.evaluate.metrics import MetricResult
from terralign.evaluate.ranking import retrieval_metrics
from terralign.evaluate.result import Evaluation

TEXT = "text"


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
    query's default is the data's own sensor. Two image modalities of the same samples: `recall@k`,
    the right answer being the same sample; with labels, also class-level `map@k`. Text: the
    captions where the set has them (`recall@k`), else one query per class name (`map@k`). The same
    modality twice: class-level, the query itself left out. `embed`: how to get the vectors of a
    route, where they were computed before.
    """
    get = embed or (lambda route: embed_samples(space, samples, route))
    own = choose_route(space, samples, query if query != TEXT else None)
    query = query or own.tower
    chosen = choose_prompts(samples, prompts) if TEXT in (query, gallery) else None
    sides = [_Side(space, samples, name, prompts=chosen, embed=get) for name in (query, gallery)]
    result = _rank(samples, *sides)
    return Evaluation(
        task="retrieval",
        dataset=samples.name,
        split=samples.split,
        space_id=space.space_id,
        tower=f"{sides[0].name} -> {sides[1].name}",
        note=f"{sides[0].note} finds {sides[1].note}",
        prompts=chosen.describe() if chosen is not None else None,
        class_names=None,
        result=result,
    )


class _Side:
    """The vectors of one modality, and how they belong to the samples.

    `vectors` (M, D); `paired`: row i is sample i; otherwise row k is class k.
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
        self.paired = True
        if name != TEXT:
            route = choose_route(space, samples, name)
            self.name, self.note = route.tower, route.note
            self.vectors: NDArray[Any] = embed(route).numpy()
            return
        self.name = TEXT
        if samples.captions is not None:
            self.note = "captions"
            self.vectors = space.encode_text([texts[0] for texts in samples.captions]).numpy()
            return
        if samples.labels is None:
            raise DataError(f"data set {samples.name!r} has neither captions nor class names")
        self.paired = False
        self.note = "class names"
        self.vectors = space.zero_shot_weights(samples.labels.class_names, prompts).numpy()


def _rank(samples: SampleSet, query: _Side, gallery: _Side) -> MetricResult:
    if not query.paired and not gallery.paired:
        raise DataError("text finds text: name an image modality for the query or the gallery")
    same = query.name == gallery.name
    labels = samples.labels
    instance: MetricResult | None = None
    if query.paired and gallery.paired and not same:
        target = np.arange(len(samples), dtype=np.int64)
        instance = retrieval_metrics(query.vectors, gallery.vectors, target=target)
    if labels is None:
        if instance is None:
            raise DataError(f"data set {samples.name!r} has no labels to judge {query.name} by")
        return instance
    classes = np.arange(len(labels.class_names), dtype=np.int64)
    own = np.eye(len(classes), dtype=np.bool_) if labels.multi_label else classes
    by_class = retrieval_metrics(
        query.vectors,
        gallery.vectors,
        query_labels=labels.values if query.paired else own,
        gallery_labels=labels.values if gallery.paired else own,
        exclude_self=same,
    )
    if instance is None:
        return by_class
    return MetricResult(
        metrics=instance.metrics + by_class.metrics,
        per_class=(),
        num_classes_without_positives=by_class.num_classes_without_positives,
        num_queries_left_out=by_class.num_queries_left_out,
        notes=instance.notes + by_class.notes,
    )
