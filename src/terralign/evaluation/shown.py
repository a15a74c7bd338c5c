"""A few samples of a data set as pictures, with what each model predicts for them."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch.nn.functional as F
from numpy.typing import NDArray

from terralign.datasets.sample import Labels, SampleSet, Subset, require_labels
from terralign.encoders.space import EmbeddingSpace
from terralign.encoders.zeroshot import PromptSet
from terralign.evaluation.chip_views import VIEWS_LEGEND, jpeg_bytes, sample_views
from terralign.evaluation.embed import choose_route, embed_samples
from terralign.evaluation.page import escape_html, escape_markdown, markdown_row
from terralign.files import atomic_path

NUM_SHOWN = 6


@dataclass(frozen=True, kw_only=True, slots=True)
class Prediction:
    """The class that a model ranks first. `is_right`: it is one of the sample's own."""

    model: str
    class_name: str
    is_right: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class ShownSample:
    """A sample. `views`: "true colour" and the like -> JPEG; `class_names`: its true classes."""

    key: str
    views: Mapping[str, bytes]
    class_names: tuple[str, ...]
    predictions: tuple[Prediction, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class ShownSamples:
    """Samples of one data set, `title` its name and split."""

    title: str
    samples: tuple[ShownSample, ...]

    @property
    def about(self) -> str:
        """How the samples were drawn, and what their views show."""
        there = {view for sample in self.samples for view in sample.views}
        drawn = f"Of {self.title}, drawn at random; true class, then predicted classes."
        return " ".join([drawn, *(text for view, text in VIEWS_LEGEND.items() if view in there)])


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
) -> ShownSamples:
    """`NUM_SHOWN` labelled samples, and what each model predicts by zero-shot classification.

    `models`: name -> the space and the tower of it. Raises `DataError` for data without labels.
    """
    labels = require_labels(samples)
    subset = Subset(samples, choose_shown(labels))
    own = require_labels(subset).values
    true = own.astype(bool) if labels.multi_label else own[:, None] == np.arange(len(class_names))
    predictions: list[list[Prediction]] = [[] for _ in range(len(subset))]
    for name, (space, tower) in models.items():
        vectors = embed_samples(space, subset, choose_route(space, subset, tower)).vectors
        weights = space.zero_shot_weights(class_names, prompts)
        best = (F.normalize(vectors, dim=-1) @ weights.T).argmax(dim=1).tolist()
        for place, number in enumerate(best):
            predictions[place].append(
                Prediction(
                    model=name,
                    class_name=class_names[number],
                    is_right=bool(true[place, number]),
                )
            )
    pixels = subset.read(np.arange(len(subset), dtype=np.int64))
    shown = []
    for place, key in enumerate(subset.keys):
        by_sensor = sample_views(
            {name: values[place] for name, values in pixels.items()}, subset.layouts
        )
        shown.append(
            ShownSample(
                key=key,
                views={
                    view: jpeg_bytes(one) for own in by_sensor.values() for view, one in own.items()
                },
                class_names=tuple(
                    name for name, is_own in zip(class_names, true[place], strict=True) if is_own
                ),
                predictions=tuple(predictions[place]),
            )
        )
    return ShownSamples(title=f"{samples.name}/{samples.split}", samples=tuple(shown))


def shown_html(shown: ShownSamples) -> str:
    """The samples as cards."""
    cards = []
    for sample in shown.samples:
        images = ""
        for view, data in sample.views.items():
            text = escape_html(f"{sample.key}, {view}")
            source = f"data:image/jpeg;base64,{base64.b64encode(data).decode()}"
            images += f'<img class=chip alt="{text}" title="{text}" src="{source}">'
        lines = ""
        for one in sample.predictions:
            mark, word = ("✓", "right") if one.is_right else ("✗", "wrong")
            lines += (
                f"<dt>{escape_html(one.model)}</dt><dd class={word}>"
                f'<b title="{word}">{mark}</b> {escape_html(one.class_name)}</dd>'
            )
        true = escape_html(", ".join(sample.class_names) or "none of the classes")
        cards.append(
            f"<div class=card><div class=chips>{images}</div><p><b>{true}</b></p>"
            f"<dl>{lines}</dl></div>"
        )
    return f"<div class=cards>{''.join(cards)}</div>"


def shown_markdown(shown: ShownSamples, folder: Path) -> list[str]:
    """The samples as a table; their pictures are written into `folder/samples`."""
    models = [one.model for one in shown.samples[0].predictions]
    out = markdown_row(["sample", "true class", *models])
    out += markdown_row(["---"] * (2 + len(models)), raw=True)
    for number, sample in enumerate(shown.samples, start=1):
        images = []
        for view, data in sample.views.items():
            name = f"samples/{number}-{view.replace(' ', '-')}.jpg"
            with atomic_path(folder / name) as partial:
                partial.write_bytes(data)
            images.append(f"![{escape_markdown(view)}]({name})")
        cells = [
            f"{'✓' if one.is_right else '✗'} {escape_markdown(one.class_name)}"
            for one in sample.predictions
        ]
        true = escape_markdown(", ".join(sample.class_names))
        out += markdown_row([" ".join(images), true, *cells], raw=True)
    return [*out, ""]
