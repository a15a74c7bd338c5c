"""A few samples of a data set as pictures, with what each model predicts for them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch.nn.functional as F
from numpy.typing import NDArray

from terralign.datasets.sample import Labels, SampleSet, Subset, require_labels
from terralign.encoders.space import EmbeddingSpace
from terralign.encoders.zeroshot import PromptSet
from terralign.evaluation.chip_views import VIEWS_LEGEND, jpeg_bytes, sample_views
from terralign.evaluation.embed import choose_route, embed_samples
from terralign.report.document import Answer, Card, Gallery, Picture

NUM_SHOWN = 6


def choose_shown(labels: Labels, num: int = NUM_SHOWN) -> NDArray[np.int64]:
    """At most `num` indices, always the same random ones, of as many classes as there are."""
    order = np.random.default_rng(0).permutation(len(labels.values))
    if not labels.multi_label:
        _, first = np.unique(labels.values[order], return_index=True)
        firsts = order[np.sort(first)]
        order = np.concatenate([firsts, order[~np.isin(order, firsts)]])
    return order[:num].astype(np.int64)


def show_samples(
    samples: SampleSet,
    models: Mapping[str, tuple[EmbeddingSpace, str]],
    *,
    prompts: PromptSet,
    class_names: Sequence[str],
) -> Gallery:
    """`NUM_SHOWN` labelled samples, and what each model predicts by zero-shot classification.

    `models`: name -> the space and the tower of it. Raises `DataError` for data without labels.
    """
    labels = require_labels(samples)
    subset = Subset(samples, choose_shown(labels))
    own = require_labels(subset).values
    true = own.astype(bool) if labels.multi_label else own[:, None] == np.arange(len(class_names))
    predicted = {
        name: _predict(space, tower, subset, class_names, prompts)
        for name, (space, tower) in models.items()
    }
    cards, seen = [], set[str]()
    for place, key in enumerate(subset.keys):
        by_sensor = sample_views(subset, place)
        views = {view: one for own in by_sensor.values() for view, one in own.items()}
        seen |= views.keys()
        pictures = tuple(
            Picture(
                view=f"{key}, {view}",
                path=f"samples/{place + 1}-{view.replace(' ', '-')}.jpg",
                data=jpeg_bytes(one),
            )
            for view, one in views.items()
        )
        own_names = (n for n, is_own in zip(class_names, true[place], strict=True) if is_own)
        text = ", ".join(own_names) or "none of the classes"
        answers = tuple(
            Answer(text=class_names[best[place]], is_right=bool(true[place, best[place]]), by=name)
            for name, best in predicted.items()
        )
        cards.append(Card(text=text, answers=answers, pictures=pictures))
    legends = [text for view, text in VIEWS_LEGEND.items() if view in seen]
    drawn = (
        f"Of {samples.name}/{samples.split}, drawn at random; true class, then predicted classes."
    )
    return Gallery(
        title="Samples",
        heads=("sample", *models),
        cards=tuple(cards),
        legend=" ".join([drawn, *legends]),
    )


def _predict(
    space: EmbeddingSpace,
    tower: str,
    samples: SampleSet,
    class_names: Sequence[str],
    prompts: PromptSet,
) -> list[int]:
    """The predicted class of each sample."""
    vectors = embed_samples(space, samples, choose_route(space, samples, tower)).vectors
    weights = space.zero_shot_weights(class_names, prompts)
    best: list[int] = (F.normalize(vectors, dim=-1) @ weights.T).argmax(dim=1).tolist()
    return best
