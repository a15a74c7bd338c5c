"""The samples of an entry: those that are reported, and parts of others to fit and choose on.

N samples, M samples of a part, K classes.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from terralign.bench.suite import Suite, SuiteEntry
from terralign.datasets.catalog import open_dataset
from terralign.datasets.composited import with_composite
from terralign.datasets.overlap import Overlaps, title
from terralign.datasets.sample import Labels, SampleSet, labels_id, require_labels
from terralign.datasets.subset import limit_samples
from terralign.errors import RecipeError
from terralign.files import hash_json
from terralign.scenes.pictures import Size

NO_BANK = "qb-norm needs a bank of queries: the entry names no fit or validation"


class Skipped(Exception):
    """A measurement that has no meaning here; its message is the reason."""


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


class EntryData:
    """The samples of an entry, with pictures at `size`. `samples`: those that are reported."""

    def __init__(self, entry: SuiteEntry, suite: Suite, data: BenchData, size: Size) -> None:
        self._entry, self._suite, self._data, self._size = entry, suite, data, size
        self.samples = self._open(entry.split, entry.limit)

    @property
    def labels(self) -> Labels:
        """The labels of the reported samples; `Skipped` without any."""
        if self.samples.labels is None:
            raise Skipped(f"{self.samples.name} has no labels")
        return self.samples.labels

    def bank(self) -> SampleSet:
        """Samples that are not reported, for query banks: of `fit`, else of `validation`."""
        split = self._entry.fit or self._entry.validation
        if split is None:
            raise Skipped(NO_BANK)
        bank = self._open(split, self._entry.fit_limit)
        self._keep_apart(bank, self.samples)
        return bank

    def fitting_parts(self) -> tuple[Part, Part, Part, str]:
        """(fitted on, chosen on, reported, a note on them)."""
        entry = self._entry
        if entry.fit is None:
            parts = divide(self.samples, (0, 0, 0, 0, 0, 1, 1, 2, 2, 2), self._suite.seed)
            note = (
                f"fitted, chosen and reported on fixed parts (50, 20 and 30 %) of {entry.split} "
                "(no separate split available)"
            )
            return parts[0], parts[1], parts[2], note
        fit = self._open(entry.fit, entry.fit_limit)
        if entry.validation is not None:
            validation = self._open(entry.validation, entry.fit_limit)
            note = f"fitted on {entry.fit}, chosen on {entry.validation}"
            note += self._keep_apart(fit, validation, self.samples)
            return _whole(fit), _whole(validation), _whole(self.samples), note
        parts = divide(fit, (0, 0, 0, 0, 1), self._suite.seed)
        note = f"fitted on four fifths of {entry.fit}, chosen on the other fifth"
        note += self._keep_apart(fit, self.samples)
        return parts[0], parts[1], _whole(self.samples), note

    def choosing_parts(self) -> tuple[Part, Part, str]:
        """(chosen on, reported, a note on them)."""
        split = self._entry.validation or self._entry.fit
        if split is not None:
            chosen = self._open(split, self._entry.fit_limit)
            note = f"chosen on {split}{self._keep_apart(chosen, self.samples)}"
            return _whole(chosen), _whole(self.samples), note
        parts = divide(self.samples, (0, 1), self._suite.seed)
        note = (
            f"chosen on one fixed half of {self._entry.split} and reported on the other "
            "(no separate split available)"
        )
        return parts[0], parts[1], note

    def _open(self, split: str, limit: int | None) -> SampleSet:
        return self._data.open(self._entry.data, split, limit, self._size, self._entry.composite)

    def _keep_apart(self, *sets: SampleSet) -> str:
        """Raise `RecipeError` where two of the sets share samples, unless the suite allows it; a
        note on them then."""
        notes = []
        for first, second in itertools.combinations(sets, 2):
            found = self._data.overlaps.find(first, second)
            if not len(found):
                continue
            if not self._suite.allow_shared_samples:
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


def _whole(samples: SampleSet) -> Part:
    return Part(samples=samples, rows=np.arange(len(samples), dtype=np.int64))


def divide(samples: SampleSet, pattern: tuple[int, ...], seed: int) -> Mapping[int, Part]:
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
