"""One model on one entry of a suite, and what measuring it takes and gives.

N samples, M samples of a part, K classes, D embedding dimensions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch.nn.functional as F
from numpy.typing import NDArray

from terralign.bench.data import BenchData, EntryData, Part, Skipped
from terralign.bench.embeddings import Embeddings
from terralign.bench.models import BenchModel, find_routes
from terralign.bench.suite import Suite, SuiteEntry
from terralign.bench.text import ClassText
from terralign.datasets.sample import SampleSet
from terralign.encoders.space import EmbeddingSpace
from terralign.errors import DataError
from terralign.evaluation.bootstrap import Floats
from terralign.evaluation.classification import choose_class_names, choose_prompts
from terralign.evaluation.embed import Route
from terralign.evaluation.metrics import (
    MetricResult,
    Outcomes,
    classification_metrics,
    multilabel_metrics,
)
from terralign.evaluation.rows import PLAIN

NO_TEXT = "the model is an image encoder without text: it has probes only"


@dataclass(frozen=True, kw_only=True, slots=True)
class Measured:
    """What one measurement gives.

    `values`: keys of `Row`, one dict per value. `details`: plain values, see
    `bench/measurements.py`. `outcomes`: what models are compared by (`evaluation/paired.py`).
    """

    values: list[dict[str, Any]]
    details: dict[str, Any] = field(default_factory=dict)
    outcomes: Outcomes = field(default_factory=dict)
    note: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """One measurement to be made.

    `where`: the keys of its rows that are known before. `identity`: with `where`, all that its
    values depend on besides the model and the samples. `version`: of the code that measures.
    """

    where: dict[str, Any]
    identity: dict[str, Any]
    version: int
    run: Callable[[], Measured]


class Subject:
    """One model on one entry. `prompts`: instead of the entry's own.

    `routes`: how the samples go through each tower that takes them; `reasons`: tower -> why another
    does not.
    """

    def __init__(
        self,
        model: BenchModel,
        entry: SuiteEntry,
        suite: Suite,
        data: BenchData,
        embeddings: Embeddings,
        *,
        prompts: str | None = None,
        text_cache: Path,
    ) -> None:
        self.model, self.entry, self.suite = model, entry, suite
        self.data = EntryData(entry, suite, data, model.picture_size())
        self.samples = self.data.samples
        self.embeddings = embeddings
        self.routes, self.reasons = find_routes(model, self.samples, entry.towers)
        self._prompts, self._text_cache = prompts or entry.prompts, text_cache

    @property
    def base_row(self) -> dict[str, Any]:
        """The keys that all rows of a subject share."""
        return {
            "model": self.model.name,
            "model_id": self.model.model_id,
            "entry": self.entry.title,
            "dataset": self.samples.name,
            "split": self.samples.split,
            "role": self.entry.role,
        }

    # Words

    def space(self) -> EmbeddingSpace:
        """The model with its text tower; `Skipped` without one."""
        if self.model.space is None:
            raise Skipped(NO_TEXT)
        return self.model.space

    def text(self) -> ClassText:
        """The words of the classes; `Skipped` without labels or a text tower."""
        return ClassText(
            class_list=self.data.labels.class_list,
            class_names=self.class_names,
            space=self.space(),
            prompts=choose_prompts(self.samples, self._prompts),
            average=self.suite.average_prompts,
            cache=self._text_cache,
        )

    @property
    def class_names(self) -> tuple[str, ...]:
        """As prompts spell them."""
        return choose_class_names(self.samples, self.entry.classes)

    # Vectors

    def vectors(self, route: Route, samples: SampleSet | None = None) -> Floats:
        """(N, D) float32 L2-normalised embeddings of the reported samples, or of others, which go
        through the same tower by their own layout."""
        if samples is None or samples is self.samples:
            samples = self.samples
        else:
            routes, reasons = find_routes(self.model, samples, (route.tower,))
            if not routes:
                raise DataError(reasons.get(route.tower, f"no route through {route.tower}"))
            route = routes[0]
        embedded = self.embeddings.images(self.model.encoder, samples, route)
        return np.asarray(F.normalize(embedded.vectors, dim=-1).numpy())

    def part_vectors(self, route: Route, part: Part) -> Floats:
        """(M, D) of a part."""
        return np.asarray(self.vectors(route, part.samples)[part.rows])

    def notes_of(self, route: Route) -> list[str]:
        """How the reported samples reach the tower, and how much of them is valid."""
        embedded = self.embeddings.images(self.model.encoder, self.samples, route)
        return [route.note, *embedded.notes]

    # How it is measured

    @property
    def variants(self) -> tuple[str, ...]:
        """The plain way, and the suite's hubness corrections that can be used here."""
        without = () if self.entry.fit or self.entry.validation else ("qb-norm",)
        return (PLAIN, *(one for one in self.suite.variants if one not in without))

    @property
    def resampling(self) -> dict[str, int]:
        """How intervals are drawn, as keywords of a metric."""
        return {"seed": self.suite.seed, "num_bootstrap": self.suite.num_bootstrap}

    @property
    def slow_resampling(self) -> dict[str, int]:
        """The same for metrics whose resamples cost more."""
        return {**self.resampling, "num_bootstrap": max(1, self.suite.num_bootstrap // 5)}

    def score(self, scores: Floats, labels: NDArray[Any]) -> MetricResult:
        """Accuracy of labels (N,), or average precision of labels (N, K) bool."""
        if labels.ndim == 2:
            return multilabel_metrics(scores, labels.astype(np.bool_), **self.slow_resampling)
        return classification_metrics(scores, labels, **self.resampling)


def measured(
    result: MetricResult,
    notes: Iterable[str],
    *,
    class_names: Sequence[str] = (),
    values: Sequence[dict[str, Any]] = (),
    details: Mapping[str, Any] = MappingProxyType({}),
) -> Measured:
    """What metrics give: their rows and `values`, those of their classes and `details`."""
    classes: dict[str, Any] = {}
    if class_names:
        classes = {"per_class": result.class_values(class_names), "class_names": list(class_names)}
    return Measured(
        values=[*(metric.to_row() for metric in result.metrics), *values],
        details={**classes, **details},
        outcomes=result.outcomes,
        note=in_sentences([*notes, *result.notes]),
    )


def in_sentences(parts: Iterable[str]) -> str:
    """Notes in a row, each but the last with one full stop."""
    return ". ".join(part.rstrip(".") for part in parts if part)
