"""What a data set gives: samples with named bands, labels and keys.

A `SampleSet` is one split of one data set. Labels, keys and captions are held in memory; pixels
are read on demand, in batches, by index.
"""

from __future__ import annotations

import datetime as dt
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from terralign.chips import PixelLayout
from terralign.errors import DataError

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class Labels:
    """The labels of N samples over K classes.

    `values`: (N,) int64 class indices, or (N, K) bool where a sample may carry several labels.
    `class_names`: as prompts say them. `class_list`: the name of the list they come from.
    """

    values: NDArray[np.int64] | NDArray[np.bool_]
    class_names: tuple[str, ...]
    class_list: str

    @property
    def multi_label(self) -> bool:
        """Whether a sample may carry several labels."""
        return self.values.ndim == 2


def tell_unused(labels: Labels, *, name: str, split: str) -> None:
    """Warn of classes that no sample of a split has."""
    num_classes = len(labels.class_names)
    if labels.multi_label:
        counts = labels.values.sum(axis=0)
    else:
        counts = np.bincount(labels.values, minlength=num_classes)
    unused = [one for one, count in zip(labels.class_names, counts, strict=True) if not count]
    if unused:
        shown = ", ".join(unused[:5]) + (", ..." if len(unused) > 5 else "")
        logger.warning(
            "data set %r, split %r: no sample of %d of %d classes: %s",
            name, split, len(unused), num_classes, shown,
        )  # fmt: skip


Captions = tuple[tuple[str, ...], ...]
"""One entry per sample: its captions, at least one."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Place:
    """Where and when a sample was taken.

    `bounds`: (west, south, east, north) in degrees of WGS84; each is None where unknown.
    """

    bounds: tuple[float, float, float, float] | None = None
    datetime: dt.datetime | None = None


NOWHERE = Place()


@runtime_checkable
class Located(Protocol):
    """A `SampleSet` that knows where and when its samples were taken."""

    def place(self, index: int) -> Place:
        """Of one sample."""
        ...


WHOLE_SPLITS = ("all", "train", "val", "test")
"""Names under which a data set without splits gives all its samples."""


def require_whole_split(name: str, split: str) -> None:
    """Raise `DataError` unless `split` is a name for the whole of a set that has no splits."""
    if split not in WHOLE_SPLITS:
        raise DataError(
            f"data set {name!r} has no splits; {', '.join(WHOLE_SPLITS)} all name the whole of it, "
            f"not {split!r}"
        )


class SampleSet(Protocol):
    """One split of one data set.

    `layouts`: sensor name -> how that sensor's pixels are to be read. `fingerprint` changes when
    the samples, their order or their pixels' meaning change.
    """

    @property
    def name(self) -> str: ...
    @property
    def split(self) -> str: ...
    @property
    def layouts(self) -> Mapping[str, PixelLayout]: ...
    @property
    def keys(self) -> tuple[str, ...]: ...
    @property
    def labels(self) -> Labels | None: ...
    @property
    def captions(self) -> Captions | None: ...
    @property
    def prompts(self) -> tuple[str, ...] | None:
        """The data set's own templates with `{}`, None where the caller's are to be used."""
        ...

    @property
    def fingerprint(self) -> str: ...

    def __len__(self) -> int: ...

    def read(self, indices: NDArray[np.int64]) -> dict[str, NDArray[np.generic]]:
        """Pixels of these samples: sensor name -> (B, C, H, W) in the layout's band order.

        Raises `DataError` naming the file that is missing or damaged. Thread-safe.
        """
        ...


def is_mapped(samples: SampleSet) -> bool:
    """Whether a set's pixels lie ready in memory-mapped files, as a packed store's do."""
    return bool(getattr(samples, "is_mapped", False))
