"""One model on one entry of a suite: its samples, its routes, its vectors, its words.

N samples, D embedding dimensions, K classes.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from terralign.bench.embeddings import Embeddings
from terralign.bench.models import BenchModel, find_routes
from terralign.bench.suite import Suite, SuiteEntry
from terralign.datasets.catalog import open_dataset
from terralign.datasets.composited import with_composite
from terralign.datasets.overlap import Overlaps, title
from terralign.datasets.sample import Labels, SampleSet, require_labels
from terralign.datasets.subset import limit_samples
from terralign.encoders.space import EmbeddingSpace
from terralign.encoders.zeroshot import PromptSet, load_prompts
from terralign.errors import DataError, ModelError, RecipeError
from terralign.evaluation.classification import choose_class_names, choose_prompts
from terralign.evaluation.embed import Route
from terralign.evaluation.metrics import (
    Floats,
    Metric,
    MetricResult,
    Outcomes,
    classification_metrics,
    multilabel_metrics,
)
from terralign.evaluation.rows import PLAIN
from terralign.files import hash_json
from terralign.scenes.pictures import Size

NO_BANK = "qb-norm needs a bank of queries: the entry names no fit or validation"
NO_TEXT = "the model is an image encoder without text: it has probes only"


@dataclass(frozen=True, kw_only=True, slots=True)
class Measured:
    """What one measurement gives.

    `figures`: keys of `Row`, one dict per figure. `details`: plain values, see
    `bench/store.py`. `outcomes`: what models are compared by (`evaluate/paired.py`).
    """

    figures: list[dict[str, Any]]
    details: dict[str, Any] = field(default_factory=dict)
    outcomes: Outcomes = field(default_factory=dict)
    note: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """One measurement to be made.

    `where`: the keys of its rows that are known before. `identity`: with `where`, all that its
    figures depend on besides the model and the samples. `version`: of the code that measures.
    """

    where: dict[str, Any]
    identity: dict[str, Any]
    version: int
    run: Callable[[], Measured]


def in_sentences(parts: Iterable[str]) -> str:
    """Notes in a row, each but the last with one full stop."""
    return ". ".join(part.rstrip(".") for part in parts if part)


class Skipped(Exception):
    """A measurement that has no meaning here; the reason is what it says."""


class BenchData:
    """The splits of a bench, each opened once per picture size, and what they share."""

    def __init__(self, root: Path | None) -> None:
        self.root = root
        self.overlaps = Overlaps()
        self._sets: dict[tuple[str, str, int | None, Size, str | None], SampleSet] = {}

    def open(
        self, data: str, split: str, limit: int | None, size: Size, composite: str | None = None
    ) -> SampleSet:
        """A split or a fixed part of it; pictures at `size`, by `composite` where one is named.
        Raises `DataError`, and `SensorError` for a composite that the data do not have."""
        key = (data, split, limit, size, composite)
        if key not in self._sets:
            whole = open_dataset(data, data_root=self.root, split=split, size=size)
            self._sets[key] = limit_samples(with_composite(whole, composite), limit)
        return self._sets[key]


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """The samples `rows` (M,) of a set."""

    samples: SampleSet
    rows: NDArray[np.int64]

    @property
    def labels(self) -> NDArray[Any]:
        """(M,) integers or (M, K) bool."""
        return np.asarray(require_labels(self.samples).values[self.rows])

    def describe(self) -> list[Any]:
        """What it is, for identities."""
        return [self.samples.fingerprint, labels_id(self.samples), hash_json(self.rows.tolist())]


class Subject:
    """One model on one entry. `prompts`: instead of the entry's own."""

    def __init__(
        self,
        model: BenchModel,
        entry: SuiteEntry,
        suite: Suite,
        data: BenchData,
        embeddings: Embeddings,
        *,
        prompts: str | None = None,
        text_cache: Path | None = None,
    ) -> None:
        self.model, self.entry, self.suite = model, entry, suite
        self.data, self.embeddings, self.text_cache = data, embeddings, text_cache
        self.samples = self.open(entry.split, entry.limit)
        self.routes, self.reasons = find_routes(model, self.samples, entry.towers)
        self._named_prompts = prompts or entry.prompts

    def open(self, split: str, limit: int | None) -> SampleSet:
        """Another split of the entry's data."""
        size = self.model.picture_size()
        return self.data.open(self.entry.data, split, limit, size, self.entry.composite)

    @property
    def space(self) -> EmbeddingSpace:
        """The model's space; `Skipped` where it has no text."""
        if self.model.space is None:
            raise Skipped(NO_TEXT)
        return self.model.space

    @property
    def labels(self) -> Labels:
        """The labels of the samples that are reported."""
        if self.samples.labels is None:
            raise Skipped(f"{self.samples.name} has no labels")
        return self.samples.labels

    @property
    def class_names(self) -> tuple[str, ...]:
        """As prompts say them."""
        return choose_class_names(self.samples, self.entry.classes)

    @property
    def prompts(self) -> PromptSet:
        """The prompts of this call, else the entry's, else the data set's own."""
        return choose_prompts(self.samples, self._named_prompts)

    @property
    def resampling(self) -> dict[str, int]:
        """How intervals are drawn, as keywords of a metric."""
        return {"seed": self.suite.seed, "num_bootstrap": self.suite.num_bootstrap}

    @property
    def dear_resampling(self) -> dict[str, int]:
        """The same for metrics whose resamples cost more."""
        return {**self.resampling, "num_bootstrap": max(1, self.suite.num_bootstrap // 5)}

    def score(self, scores: Floats, labels: NDArray[Any]) -> MetricResult:
        """Accuracy of labels (N,), or average precision of labels (N, K) bool."""
        if labels.ndim == 2:
            return multilabel_metrics(scores, labels.astype(np.bool_), **self.dear_resampling)
        return classification_metrics(scores, labels, **self.resampling)

    @property
    def variants(self) -> tuple[str, ...]:
        """The plain way, and the suite's remedies that can be taken here."""
        without = () if self.entry.fit or self.entry.validation else ("qb-norm",)
        return (PLAIN, *(one for one in self.suite.variants if one not in without))

    def text_keys(self, variant: str = PLAIN) -> dict[str, Any]:
        """The row's keys about words."""
        prompts = self.prompts.describe()
        name, digest = prompts["name"], prompts["hash"]
        if variant == "prompt-average":
            name, digest = "+".join(self.suite.average_prompts), None
        return {"prompts": name, "prompts_hash": digest, "class_list": self.labels.class_list}

    def text_identity(self, variant: str = PLAIN) -> list[Any]:
        """All that text embeddings of the class names depend on, besides the model."""
        sets = [self.prompts]
        if variant == "prompt-average":
            sets = [load_prompts(name) for name in self.suite.average_prompts]
        return [[one.describe()["hash"] for one in sets], list(self.class_names)]

    def class_weights(self) -> Floats:
        """W (K, D) of the class names."""
        return self._weights(self.prompts)

    def averaged_weights(self) -> Floats:
        """W (K, D), the normalised mean over the suite's `average_prompts`."""
        sets = [self._weights(load_prompts(name)) for name in self.suite.average_prompts]
        mean = np.mean(sets, axis=0)
        return np.asarray(mean / np.linalg.norm(mean, axis=1, keepdims=True), dtype=np.float32)

    def _weights(self, prompts: PromptSet) -> Floats:
        weights: Tensor = self.space.zero_shot_weights(
            self.class_names, prompts, cache_dir=self.text_cache
        )
        return np.asarray(weights.numpy())

    def vectors(self, route: Route, samples: SampleSet | None = None) -> Floats:
        """(N, D) float32 L2-normalised embeddings of the reported samples, or of others.

        Others go through the same tower by their own layout.
        """
        if samples is None or samples is self.samples:
            chosen, own = self.samples, route
        else:
            routes, reasons = find_routes(self.model, samples, (route.tower,))
            if not routes:
                raise DataError(reasons.get(route.tower, f"no route through {route.tower}"))
            chosen, own = samples, routes[0]
        embedded = self.embeddings.get(self.model.encoder, chosen, own)
        if not bool(embedded.vectors.isfinite().all()):
            raise ModelError(f"tower {route.tower!r} gives values that are not finite")
        return np.asarray(F.normalize(embedded.vectors, dim=-1).numpy())

    def notes_of(self, route: Route) -> list[str]:
        """How the reported samples reach the tower, and how much of them is valid."""
        embedded = self.embeddings.get(self.model.encoder, self.samples, route)
        return [route.note, *embedded.notes]

    def part_vectors(self, route: Route, part: Part) -> Floats:
        """(M, D) of a part."""
        return np.asarray(self.vectors(route, part.samples)[part.rows])

    def bank(self) -> SampleSet:
        """Samples that are not reported, for query banks: of `fit`, else of `validation`."""
        split = self.entry.fit or self.entry.validation
        if split is None:
            raise Skipped(NO_BANK)
        bank = self.open(split, self.entry.fit_limit)
        self._keep_apart(bank, self.samples)
        return bank

    def _keep_apart(self, *sets: SampleSet) -> str:
        """Raise `RecipeError` where two of the sets share samples, unless the suite allows it; what
        to tell about it then."""
        notes = []
        for first, second in itertools.combinations(sets, 2):
            found = self.data.overlaps.find(first, second)
            if not len(found):
                continue
            if not self.suite.allow_shared_samples:
                raise RecipeError(
                    f"{found.describe()}: nothing is fitted or chosen on samples that are reported "
                    "or fitted on; name other splits, or set allow_shared_samples = true in the "
                    "suite"
                )
            notes.append(
                f"{len(found):,} of {len(second):,} samples of {title(second)} are also in "
                f"{title(first)}"
            )
        return "".join(f". {one}" for one in notes)

    # Parts that nothing reported is fitted or chosen on

    def fitting_parts(self) -> tuple[Part, Part, Part, str]:
        """(fitted on, chosen on, reported, what to tell about it)."""
        entry = self.entry
        if entry.fit is None:
            parts = _divide(self.samples, (0, 0, 0, 0, 0, 1, 1, 2, 2, 2), self.suite.seed)
            text = (
                f"fitted, chosen and reported on fixed parts (50, 20 and 30 %) of {entry.split} "
                "(no separate split available)"
            )
            return parts[0], parts[1], parts[2], text
        fit = self.open(entry.fit, entry.fit_limit)
        if entry.validation is not None:
            validation = self.open(entry.validation, entry.fit_limit)
            text = f"fitted on {entry.fit}, chosen on {entry.validation}"
            text += self._keep_apart(fit, validation, self.samples)
            return _whole(fit), _whole(validation), _whole(self.samples), text
        parts = _divide(fit, (0, 0, 0, 0, 1), self.suite.seed)
        text = f"fitted on four fifths of {entry.fit}, chosen on the other fifth"
        text += self._keep_apart(fit, self.samples)
        return parts[0], parts[1], _whole(self.samples), text

    def choosing_parts(self) -> tuple[Part, Part, str]:
        """(chosen on, reported, what to tell about it)."""
        split = self.entry.validation or self.entry.fit
        if split is not None:
            chosen = self.open(split, self.entry.fit_limit)
            text = f"chosen on {split}{self._keep_apart(chosen, self.samples)}"
            return _whole(chosen), _whole(self.samples), text
        parts = _divide(self.samples, (0, 1), self.suite.seed)
        text = (
            f"chosen on one fixed half of {self.entry.split} and reported on the other, for want "
            "of another split"
        )
        return parts[0], parts[1], text


def figure(metric: Metric, **more: Any) -> dict[str, Any]:
    """A metric as keys of a row."""
    return {
        "metric": metric.name,
        "value": metric.value,
        "low": metric.low,
        "high": metric.high,
        "num_samples": metric.num_samples,
        "chance": metric.chance,
        **more,
    }


def labels_id(samples: SampleSet) -> str:
    """The name of a set's labels, captions and class names."""
    labels = samples.labels
    return hash_json(
        {
            "labels": None if labels is None else labels.values.astype(int).tolist(),
            "classes": None if labels is None else list(labels.class_names),
            "captions": None if samples.captions is None else [list(c) for c in samples.captions],
        }
    )


def keys_id(samples: SampleSet) -> str:
    """The name of which samples they are; of the same at any picture size."""
    return hash_json([samples.name, samples.split, *samples.keys])


def _whole(samples: SampleSet) -> Part:
    return Part(samples=samples, rows=np.arange(len(samples), dtype=np.int64))


def _divide(samples: SampleSet, pattern: tuple[int, ...], seed: int) -> Mapping[int, Part]:
    """Fixed parts: samples shuffled by `seed`, of every class alike, dealt out by `pattern`."""
    order = np.random.default_rng([seed, len(samples)]).permutation(len(samples))
    labels = require_labels(samples)
    if not labels.multi_label:
        order = order[np.argsort(labels.values[order], kind="stable")]
    dealt = np.empty(len(samples), dtype=np.int64)
    dealt[order] = np.resize(np.array(pattern), len(samples))
    return {
        number: Part(samples=samples, rows=np.flatnonzero(dealt == number))
        for number in sorted(set(pattern))
    }
