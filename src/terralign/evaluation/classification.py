"""Zero-shot classification of a data set by the names of its classes."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch.nn.functional as F
from torch import Tensor

from terralign.datasets.catalog import DATASETS
from terralign.datasets.facts import read_facts
from terralign.datasets.sample import Labels, SampleSet, require_labels
from terralign.encoders.space import EmbeddingSpace
from terralign.encoders.zeroshot import (
    OPENAI_IMAGENET,
    Prompts,
    PromptSet,
    as_prompts,
    load_prompts,
    openai_imagenet_names,
)
from terralign.errors import DataError, RecipeError, quoted
from terralign.evaluation.embed import Embed, choose_route, embed_samples
from terralign.evaluation.metrics import MetricResult, classification_metrics, multilabel_metrics
from terralign.evaluation.result import Evaluation

logger = logging.getLogger(__name__)


def choose_prompts(
    samples: SampleSet,
    prompts: Prompts | None = None,
    *,
    own: PromptSet | None = None,
) -> PromptSet:
    """The prompts named, else the data set's own (declared, or of its catalogue entry), else the
    space's `own`, else `satellite`: with `EmbeddingSpace.choose_prompts`, which knows no data set,
    the one rule for prompts. What compares several models gives all of them the same `own`."""
    if prompts is not None:
        return as_prompts(prompts)
    if samples.prompts is not None:
        return PromptSet(name=samples.name, templates=samples.prompts)
    if samples.name in DATASETS:
        return load_prompts(read_facts(samples.name).prompts)
    return own or load_prompts("satellite")


def choose_class_names(samples: SampleSet, classes: str | None = None) -> tuple[str, ...]:
    """The class names of a set, or OpenAI's for ImageNet, one per class."""
    own = require_labels(samples).class_names
    if classes is None:
        return own
    if classes != OPENAI_IMAGENET:
        raise RecipeError(f"unknown class list {classes!r}; known: {OPENAI_IMAGENET}")
    names = openai_imagenet_names()
    if len(names) != len(own):
        raise RecipeError(
            f"{samples.name} has {len(own)} classes, ImageNet {len(names)}: "
            f"classes = {OPENAI_IMAGENET!r} does not fit"
        )
    return names


def score_classes(
    embedded: Tensor, weights: Tensor, labels: Labels, *, num_bootstrap: int | None = None
) -> MetricResult:
    """Metrics of embeddings (N, D) against zero-shot weights W (K, D)."""
    scores = (F.normalize(embedded.float(), dim=-1) @ weights.T).numpy()
    options = {} if num_bootstrap is None else {"num_bootstrap": num_bootstrap}
    if labels.multi_label:
        return multilabel_metrics(scores, labels.values.astype(np.bool_), **options)
    return classification_metrics(scores, labels.values, **options)


def evaluate_zero_shot(
    space: EmbeddingSpace,
    samples: SampleSet,
    *,
    tower: str | None = None,
    prompts: PromptSet | str | None = None,
    class_names: Sequence[str] | None = None,
    embed: Embed | None = None,
) -> Evaluation:
    """Classify every sample by the cosine to its classes' texts.

    `class_names`: instead of the set's own, one per class, in its order. `embed`: how to get the
    vectors of a route, where they may have been computed before.
    """
    labels = require_labels(samples)
    names = tuple(class_names) if class_names is not None else labels.class_names
    if len(names) != len(labels.class_names):
        raise DataError(
            f"{len(names)} class names for the {len(labels.class_names)} classes of {samples.name}"
        )
    if len(names) == 1 and not labels.multi_label:
        logger.warning(
            "%s, split %s, has one class, %s: accuracy is 100 %% with any model",
            samples.name, samples.split, quoted(names[0]),
        )  # fmt: skip
    route = choose_route(space, samples, tower)
    chosen = choose_prompts(samples, prompts, own=space.prompts)
    weights = space.zero_shot_weights(names, chosen)
    embedded = embed(route) if embed is not None else embed_samples(space, samples, route)
    result = score_classes(embedded.vectors, weights, labels)
    return Evaluation(
        task="multi-label" if labels.multi_label else "zero-shot",
        dataset=samples.name,
        split=samples.split,
        space_id=space.space_id,
        tower=route.tower,
        note=route.note,
        prompts={**chosen.describe(), "class_list": labels.class_list},
        class_names=names,
        result=replace(result, notes=(*result.notes, *embedded.notes)),
        valid_share=embedded.valid_share,
        sensor=route.layout.sensor.name,
    )
