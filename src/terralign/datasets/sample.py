"""What a data set gives: samples with named bands, labels and keys.

A `SampleSet` is one split of one data set. Labels, keys and captions are held in memory; pixels
are read on demand, in batches, by index.
"""

from __future__ import annotations

import copy
import datetime as dt
import hashlib
import html
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from numbers import Integral, Real
from typing import Any, Protocol, overload, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from terralign.chips import PixelLayout, without_mask
from terralign.errors import DataError, SensorError, SplitError
from terralign.files import hash_json
from terralign.scenes.pictures import Size
from terralign.sensors import RGB

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class Labels:
    """The labels of N samples over K classes.

    `values`: (N,) int64 class indices, or (N, K) bool where a sample may carry several labels.
    `class_names`: as used in prompts. `class_list`: the name of the list they come from.
    """

    values: NDArray[np.int64] | NDArray[np.bool_]
    class_names: tuple[str, ...]
    class_list: str

    @property
    def multi_label(self) -> bool:
        """Whether a sample may carry several labels."""
        return self.values.ndim == 2


def warn_unused(labels: Labels, *, name: str, split: str) -> None:
    """Warn of classes that no sample of a split has."""
    num_classes = len(labels.class_names)
    counts = _class_counts(labels)
    unused = [one for one, count in zip(labels.class_names, counts, strict=True) if not count]
    if unused:
        shown = ", ".join(unused[:5]) + (", ..." if len(unused) > 5 else "")
        logger.warning(
            "data set %r, split %r: no sample of %d of %d classes: %s",
            name, split, len(unused), num_classes, shown,
        )  # fmt: skip


def _class_counts(labels: Labels) -> NDArray[np.int64]:
    """(K,) how many samples have each class."""
    if labels.multi_label:
        counts: NDArray[np.int64] = labels.values.sum(axis=0)
        return counts
    return np.bincount(labels.values, minlength=len(labels.class_names))


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


def require_split(name: str, split: str, splits: Iterable[str], *, where: str = "") -> None:
    """Raise `SplitError`, with the splits that exist, where `split` is not one of them."""
    known = list(splits)
    if split not in known:
        raise SplitError(
            f"data set {name!r} has no split {split!r}{where and f' in {where}'}; "
            f"splits: {', '.join(known) or 'none'}"
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


_COUNTED = "sample-"


def counted_keys(num_samples: int) -> tuple[str, ...]:
    """The keys of samples without names: they count them."""
    return tuple(f"{_COUNTED}{number:06d}" for number in range(num_samples))


def is_counted(key: str) -> bool:
    """Whether a key is one of `counted_keys`, which the samples of another set have too."""
    return key.startswith(_COUNTED) and key.removeprefix(_COUNTED).isdecimal()


def as_numbers(array: Any) -> NDArray[Any]:
    """A NumPy array, without a copy where there is one; of a tensor, its numbers on the CPU, and of
    a masked array as `without_mask` makes them."""
    if hasattr(array, "detach"):
        tensor = array.detach().cpu()
        if str(tensor.dtype) == "torch.bfloat16":
            tensor = tensor.float()
        numbers: NDArray[Any] = tensor.numpy()
        return numbers
    return without_mask(np.asanyarray(array))


def require_labels(samples: SampleSet) -> Labels:
    """The labels of a set; `DataError` where it has none."""
    if samples.labels is None:
        raise DataError(
            f"data set {samples.name!r} has no labels; it can be retrieved (task='retrieval') and "
            "aligned without them (labels=False), not classified"
        )
    return samples.labels


def optical_layout(samples: SampleSet) -> PixelLayout:
    """The sensor of the samples that makes an RGB picture: `rgb` itself, else one's composite."""
    layouts = samples.layouts
    if RGB in layouts:
        return layouts[RGB]
    for layout in layouts.values():
        if layout.composite is not None:
            return layout
    raise SensorError(
        f"data set {samples.name!r} has {', '.join(layouts)}: none makes an RGB picture"
    )


def is_mapped(samples: SampleSet) -> bool:
    """Whether a set's pixels lie ready in memory-mapped files, as a packed store's do."""
    return bool(getattr(samples, "is_mapped", False))


def pixels_id(samples: SampleSet) -> str:
    """The name of a set's pixels alone, which sets of other labels may share; by default its
    fingerprint."""
    return str(getattr(samples, "pixels_id", samples.fingerprint))


def labels_id(samples: SampleSet) -> str:
    """The name of a set's labels, captions and class names, which a fingerprint need not hold."""
    labels, captions = samples.labels, samples.captions
    return hash_json(
        {
            "labels": labels
            and [
                *[str(labels.values.dtype), *labels.values.shape],
                hashlib.sha256(labels.values.tobytes()).hexdigest(),
            ],
            "classes": labels and list(labels.class_names),
            "captions": captions and [list(own) for own in captions],
        }
    )


@runtime_checkable
class Resizable(Protocol):
    """A `SampleSet` whose RGB pictures can be opened at another size."""

    def at_size(self, size: Size) -> SampleSet:
        """The same samples, their pictures resized to `size` as those in files are."""
        ...


def at_size(samples: SampleSet, size: Size) -> SampleSet:
    """`samples` with RGB pictures of `size`, where the set can give them, else as it is."""
    return samples.at_size(size) if isinstance(samples, Resizable) else samples


@runtime_checkable
class Selectable(Protocol):
    """A `SampleSet` that can leave some of its sensors unread."""

    def only_sensors(self, sensors: Sequence[str]) -> SampleSet:
        """The same samples with the pixels of these sensors alone."""
        ...


def only_sensors(samples: SampleSet, sensors: Sequence[str]) -> SampleSet:
    """`samples` with the pixels of these of its sensors, where the set can leave the others unread,
    else as it is: for reading, since both have the same fingerprint."""
    return samples.only_sensors(sensors) if isinstance(samples, Selectable) else samples


Sample = dict[str, Any]
"""One sample: its "key", per sensor a (C, H, W) array in the layout's band order, and, where the
set has labels, "label": a class index, or a (K,) bool vector where there may be several."""


class Indexed:
    """What every sample set can do beyond reading batches: be indexed, iterated, cut and shown.

    `samples[3]` is a `Sample`, `samples[:10]`, `samples[[4, 2]]` and `samples[mask]` are smaller
    sample sets. A sample set is a map-style dataset for torch's `DataLoader`.
    """

    __slots__ = ()

    @property
    def class_names(self: SampleSet) -> tuple[str, ...] | None:
        """The names of the classes, by number; None without labels."""
        return None if self.labels is None else self.labels.class_names

    @overload
    def __getitem__(self: SampleSet, which: int) -> Sample: ...
    @overload
    def __getitem__(self: SampleSet, which: slice | Sequence[int] | NDArray[Any]) -> Subset: ...
    def __getitem__(
        self: SampleSet, which: int | slice | Sequence[int] | NDArray[Any]
    ) -> Sample | Subset:
        if isinstance(which, slice):
            return Subset(self, np.arange(len(self), dtype=np.int64)[which])
        if isinstance(which, str):
            raise DataError(
                f"samples are indexed by number, not by {which!r}; the keys are in .keys"
            )
        chosen = np.asarray(which)
        if chosen.dtype == np.bool_ and chosen.shape == (len(self),):
            return Subset(self, np.flatnonzero(chosen).astype(np.int64))
        if (chosen.size and not np.issubdtype(chosen.dtype, np.integer)) or chosen.ndim > 1:
            raise DataError(
                f"an index of type {chosen.dtype} and shape {chosen.shape} is not understood; give "
                f"whole numbers, a slice, or a mask of {len(self)} bools"
            )
        outside = (chosen < -len(self)) | (chosen >= len(self))
        if outside.any():
            raise IndexError(
                f"data set {self.name!r}, split {self.split!r} has {len(self)} samples; index "
                f"{chosen[outside].flat[0]} is outside"
            )
        indices = np.where(chosen < 0, chosen + len(self), chosen).astype(np.int64)
        return Subset(self, indices) if indices.ndim else _read(self, self.keys, indices[None])[0]

    def __getitems__(self: SampleSet, indices: Sequence[int]) -> list[Sample]:
        """Several samples in one reading, as torch's `DataLoader` asks for them."""
        return _read(self, self.keys, np.asarray(indices, dtype=np.int64))

    def __iter__(self: SampleSet) -> Iterator[Sample]:
        keys = self.keys  # taken once: a set may make them again at every access
        for index in range(len(self)):
            yield _read(self, keys, np.array([index], dtype=np.int64))[0]

    def split_off(self: SampleSet, share: float = 0.2, *, seed: int = 0) -> tuple[Subset, Subset]:
        """Two disjoint parts: the rest, and `share` (0-1) of the samples, drawn with `seed`.

        Where each sample has one label, both parts have every class in the same proportion, as far
        as whole samples allow. Neighbouring tiles of one scene may land in both: cut such data by
        place instead (`samples[mask]`). Both parts keep the samples' order.
        """
        if isinstance(share, bool) or not isinstance(share, Real) or not 0 < share < 1:
            raise DataError(
                f"share = {share!r:.100} of the samples; expected a number between 0 and 1"
            )
        if isinstance(seed, bool) or not isinstance(seed, Integral) or seed < 0:
            raise DataError(f"seed = {seed!r:.100}; expected a whole number from 0")
        if len(self) < 2:
            raise DataError(f"data set {self.name!r} has {len(self)} sample(s); none can be split")
        order = np.random.default_rng(seed).permutation(len(self))
        number = min(max(round(share * len(self)), 1), len(self) - 1)
        if self.labels is not None and not self.labels.multi_label:
            order = order[np.argsort(_ranks(self.labels.values[order]), kind="stable")]
        chosen = np.zeros(len(self), dtype=np.bool_)
        chosen[order[:number]] = True
        rest, part = (np.flatnonzero(mask).astype(np.int64) for mask in (~chosen, chosen))
        return Subset(self, rest), Subset(self, part)

    def __repr__(self: SampleSet) -> str:
        sensors = ", ".join(
            f"{name} ({', '.join(layout.bands)})" for name, layout in self.layouts.items()
        )
        return (
            f"{type(self).__name__}({self.name!r}, split {self.split!r}: {len(self):,} samples of "
            f"{sensors}{_label_words(self)})"
        )

    def _repr_html_(self: SampleSet) -> str:
        rows = [
            ("split", f"{self.split}, {len(self):,} samples{_label_words(self)}"),
            *(
                (name, f"{', '.join(layout.bands)} in {_unit_words(layout)}")
                for name, layout in self.layouts.items()
            ),
        ]
        if self.labels is not None:
            counts = _class_counts(self.labels)
            names = self.labels.class_names
            shown = [f"{name} {count:,}" for name, count in zip(names, counts, strict=True)]
            rows.append(("classes", ", ".join(shown[:20]) + (", ..." if len(shown) > 20 else "")))
        body = "".join(
            f"<tr><th style='text-align:left'>{html.escape(head)}</th>"
            f"<td style='text-align:left'>{html.escape(text)}</td></tr>"
            for head, text in rows
        )
        return f"<table><caption>{html.escape(self.name)}</caption>{body}</table>"


def is_sample_set(one: object) -> bool:
    """Whether this has what a `SampleSet` needs most; a class need not derive from `Indexed`."""
    return isinstance(one, Indexed) or all(
        hasattr(one, name) for name in ("layouts", "keys", "read", "fingerprint")
    )


class Wrapped(Indexed):
    """A `SampleSet` made of another one, whose samples it has, all and in their order."""

    def __init__(self, samples: SampleSet) -> None:
        self._samples = samples
        # Taken once: a set may make these again at every access.
        self.name: str = samples.name
        self.split: str = samples.split
        self.layouts: Mapping[str, PixelLayout] = samples.layouts
        self.keys: tuple[str, ...] = samples.keys
        self.labels: Labels | None = samples.labels
        self.captions: Captions | None = samples.captions
        self.prompts: tuple[str, ...] | None = samples.prompts
        self.fingerprint: str = samples.fingerprint
        self.pixels_id: str = pixels_id(samples)
        self.is_mapped: bool = is_mapped(samples)

    def __len__(self) -> int:
        return len(self.keys)

    def within(self) -> tuple[SampleSet, NDArray[np.int64] | None]:
        """The set itself; None: all of its samples."""
        return self._samples, None

    def read(self, indices: NDArray[np.int64]) -> dict[str, NDArray[np.generic]]:
        """Sensor name -> (B, C, H, W) of these samples."""
        return self._samples.read(indices)

    def place(self, index: int) -> Place:
        """Where and when a sample was taken."""
        return self._samples.place(index) if isinstance(self._samples, Located) else NOWHERE


def _read(samples: SampleSet, keys: Sequence[str], indices: NDArray[np.int64]) -> list[Sample]:
    pixels = samples.read(indices)
    found: list[Sample] = []
    for place, index in enumerate(indices.tolist()):
        sample: Sample = {"key": keys[index]}
        sample.update({sensor: batch[place] for sensor, batch in pixels.items()})
        if samples.labels is not None:
            value = samples.labels.values[index]
            sample["label"] = value if samples.labels.multi_label else int(value)
        found.append(sample)
    return found


def _ranks(values: NDArray[Any]) -> NDArray[np.float64]:
    """(N,) 0-1: where each sample comes among those of its class."""
    ranks = np.empty(len(values))
    for one in np.unique(values):
        places = np.flatnonzero(values == one)
        ranks[places] = (np.arange(len(places)) + 0.5) / len(places)
    return ranks


def _label_words(samples: SampleSet) -> str:
    if samples.labels is None:
        return ", with captions" if samples.captions is not None else ", without labels"
    several = ", several to a sample" if samples.labels.multi_label else ""
    return f", {len(samples.labels.class_names)} classes{several}"


def _unit_words(layout: PixelLayout) -> str:
    if layout.units == "physical":
        return layout.sensor.unit
    return "DN" + (f", offset {layout.dn_offset:g}" if layout.sensor.offset_varies else "")


class Subset(Wrapped):
    """The samples `indices` (M,) of a `SampleSet`, itself one."""

    def __init__(self, samples: SampleSet, indices: NDArray[np.int64]) -> None:
        super().__init__(samples)
        self._indices = indices
        self.keys = tuple(self.keys[index] for index in indices)
        if self.labels is not None:
            self.labels = replace(self.labels, values=self.labels.values[indices])
        if self.captions is not None:
            self.captions = tuple(self.captions[index] for index in indices)
        chosen = {"indices": indices.tolist()}
        self.fingerprint = hash_json({"of": samples.fingerprint, **chosen})
        self.pixels_id = hash_json({"of": pixels_id(samples), **chosen})

    def within(self) -> tuple[SampleSet, NDArray[np.int64]]:
        """The whole set, and which of its samples these are."""
        return self._samples, self._indices

    def read(self, indices: NDArray[np.int64]) -> dict[str, NDArray[np.generic]]:
        return self._samples.read(self._indices[indices])

    def place(self, index: int) -> Place:
        """Where and when a sample was taken."""
        return super().place(int(self._indices[index]))

    def at_size(self, size: Size) -> SampleSet:
        """The same samples with RGB pictures of `size`."""
        resized = at_size(self._samples, size)
        return self if resized is self._samples else Subset(resized, self._indices)

    def only_sensors(self, sensors: Sequence[str]) -> SampleSet:
        """The same samples with the pixels of these sensors alone."""
        found = copy.copy(self)
        found._samples = only_sensors(self._samples, sensors)
        found.layouts = {name: self.layouts[name] for name in sensors}
        return found
