"""Which samples two sets share, by key and by content, whatever the sets and files are named.

By key: two sets of one name have the same sample where they have the same key, unless its contents
are known on both sides and differ, or the key only counts samples that have no names.

By content: a file under another name, in another folder or data set, behind a link or as a copy; a
row of an array; a sample of a packed store. Files are compared by their bytes and arrays by their
numbers. A set of files and a set of pixels (a store that was packed from them) are compared by the
pixels that are read of both. Samples of several sensors are the same where all sensors that both
sets have agree; where they have none in common, the files of their first sensors are compared. A
folder of bands counts by its rasters. Synthetic samples are compared by what they are drawn from.

Not found: a picture that was saved again (in another format, or with other compression), resized,
cropped or turned; a file against an array in which it was saved as other numbers; neighbouring or
overlapping places.

Cost: the size of every sample. Of those whose size occurs on both sides at most `WHOLE_BYTES` are
read, of larger ones `MIDDLE_BYTES` from the middle; only those that agree so far are read whole.
Files against pixels cost one reading of the set of files.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from terralign.datasets.content import ArrayContent, Content, Contents, Kind, Known, Wrapped
from terralign.datasets.listing import read_each
from terralign.datasets.sample import SampleSet, is_counted
from terralign.errors import RecipeError
from terralign.progress import Progress

logger = logging.getLogger(__name__)

Indices = NDArray[np.int64]
View = tuple[str, bool]
"""A sensor, and whether its pixels are read to compare them rather than what they lie in."""
Views = Sequence[View]

READ_AT_ONCE = 32
NUM_EXAMPLES = 2


def title(samples: SampleSet) -> str:
    """How messages name a set."""
    return f"{samples.name}/{samples.split}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Overlap:
    """The samples of `second` that `first` has too.

    `rows` (M,): which of `second`; `partners` (M,): the same samples in `first`.
    """

    first: SampleSet
    second: SampleSet
    rows: Indices
    partners: Indices

    def __len__(self) -> int:
        return len(self.rows)

    def describe(self) -> str:
        """How many, of which sets, and some of their keys."""
        keys, others = self.second.keys, self.first.keys
        shown = []
        for row, partner in zip(self.rows[:NUM_EXAMPLES], self.partners, strict=False):
            key, other = keys[row], others[partner]
            shown.append(repr(key) if key == other else f"{key!r} ({other!r} there)")
        return (
            f"{len(self):,} of the {len(self.second):,} samples of {title(self.second)} are also "
            f"in {title(self.first)}, such as {' and '.join(shown)}"
        )


class Overlaps:
    """Finds what sets share; what was found and hashed is kept as long as this object."""

    def __init__(self) -> None:
        self._sides: dict[int, _Side] = {}
        self._found: dict[tuple[int, int], Overlap] = {}
        self._copies: dict[int, dict[int, int]] = {}
        self.warned: set[int] = set()

    def find(self, first: SampleSet, second: SampleSet) -> Overlap:
        """The samples of `second` that `first` has too. Raises `DataError` for files that cannot
        be read."""
        key = (id(first), id(second))
        if key not in self._found:
            found = _find(self._side(first), self._side(second))
            rows = np.array(sorted(found), dtype=np.int64)
            partners = np.array([found[row] for row in sorted(found)], dtype=np.int64)
            self._found[key] = Overlap(first=first, second=second, rows=rows, partners=partners)
        return self._found[key]

    def find_copies(self, samples: SampleSet) -> dict[int, int]:
        """Index of a sample of one set -> that of the first one with the same content, where there
        is an earlier one. Sets whose pixels would have to be read are not searched."""
        if id(samples) not in self._copies:
            self._copies[id(samples)] = _find_copies(self._side(samples))
        return self._copies[id(samples)]

    def _side(self, samples: SampleSet) -> _Side:
        # A side holds its set, so that no other set gets its id.
        if id(samples) not in self._sides:
            self._sides[id(samples)] = _Side(samples)
        return self._sides[id(samples)]


def keep_apart(
    overlaps: Overlaps,
    training: Sequence[SampleSet],
    judging: Sequence[SampleSet],
    *,
    chosen: str,
    allowed: bool = False,
) -> list[str]:
    """Raise `RecipeError` where samples that are trained on would choose what is kept.

    `chosen`: what is chosen by `judging` ("alpha"). `allowed`: they may; what they share is logged
    and returned. Samples that occur twice in one of the sets are warned of.
    """
    notes = []
    for second in _differing(judging):
        for first in _differing(training):
            found = overlaps.find(first, second)
            if not len(found):
                continue
            text = f"{found.describe()}: {chosen} is chosen on samples that are trained on"
            if not allowed:
                raise RecipeError(
                    f"{text}; give it separate validation samples, or set "
                    "allow_shared_samples = true to run all the same"
                )
            logger.warning("%s (allow_shared_samples)", text)
            notes.append(f"{text}.")
    for samples in [*training, *judging]:
        warn_of_repeated(overlaps, samples)
    return notes


def warn_of_repeated(overlaps: Overlaps, samples: SampleSet) -> None:
    """Warn once of samples that a set holds more than once."""
    copies = overlaps.find_copies(samples)
    if copies and id(samples) not in overlaps.warned:
        row, earlier = next(reversed(copies.items()))
        logger.warning(
            "%s: %d of %d samples have the same content as another one of it, such as %r and %r; "
            "each counts as a separate sample",
            title(samples), len(copies), len(samples), samples.keys[earlier], samples.keys[row],
        )  # fmt: skip
    overlaps.warned.add(id(samples))


def _differing(sets: Iterable[SampleSet]) -> list[SampleSet]:
    return list({id(one): one for one in sets}.values())


class _Side:
    """A set to compare: what its samples are made of, and what is known of them so far."""

    def __init__(self, samples: SampleSet) -> None:
        self.samples = samples
        self.base, rows = samples, np.arange(len(samples), dtype=np.int64)
        while isinstance(self.base, Wrapped) and not isinstance(self.base, Known):
            self.base, part = self.base.within()
            rows = rows if part is None else part[rows]
        self.rows: Indices = rows
        self.contents: Contents | None = (
            self.base.contents() if isinstance(self.base, Known) else None
        )
        self._sizes: dict[View, Indices] = {}
        self._middles: dict[View, dict[int, int]] = {}

    @property
    def kinds(self) -> Mapping[str, Kind]:
        """Sensor -> what it is made of; a set that does not know it is read."""
        if self.contents is None:
            return dict.fromkeys(self.samples.layouts, "pixels")
        return self.contents.kinds

    def sizes(self, view: View) -> Indices:
        """(N,) bytes of every sample; -1 where it does not exist as bytes."""
        if view not in self._sizes:
            everything = np.arange(len(self.rows), dtype=np.int64)
            if self._is_read(view):
                sizes = [self._read(view, everything[:1])[0].length()] * len(everything)
            else:
                sizes = read_each(
                    self._label(),
                    lambda index: self._content(view, index).length(),
                    everything.tolist(),
                    unit="sample",
                )
            self._sizes[view] = np.array(sizes, dtype=np.int64)
        return self._sizes[view]

    def middles(self, view: View, wanted: Indices) -> NDArray[np.uint64]:
        """(M,) hashes of the middles of these samples."""
        known = self._middles.setdefault(view, {})
        missing = [index for index in wanted.tolist() if index not in known]
        if self._is_read(view):
            with Progress(self._label(), total=len(missing), unit="sample") as progress:
                for start in range(0, len(missing), READ_AT_ONCE):
                    part = missing[start : start + READ_AT_ONCE]
                    contents = self._read(view, np.array(part, dtype=np.int64))
                    found = [_short_hash(one.middle()) for one in contents]
                    known.update(zip(part, found, strict=True))
                    progress.advance(len(part))
        else:
            found = read_each(
                self._label(),
                lambda index: _short_hash(self._content(view, index).middle()),
                missing,
                unit="sample",
            )
            known.update(zip(missing, found, strict=True))
        return np.array([known[index] for index in wanted.tolist()], dtype=np.uint64)

    def digest(self, views: Views, index: int) -> bytes:
        """The hash of all that a sample is made of."""
        one = np.array([index], dtype=np.int64)
        contents = (
            self._read(view, one)[0] if self._is_read(view) else self._content(view, index)
            for view in views
        )
        return b"".join(content.digest() for content in contents)

    def address(self, views: Views, index: int) -> tuple[str, ...] | None:
        """The places of a sample on disk; None where one of its parts has none that is known."""
        if any(self._is_read(view) for view in views):
            return None
        found = tuple(self._content(view, index).address for view in views)
        return found if all(found) else None

    def _is_read(self, view: View) -> bool:
        return self.contents is None or (view[1] and self.contents.kinds[view[0]] == "encoded")

    def _content(self, view: View, index: int) -> Content:
        assert self.contents is not None
        return self.contents.of(view[0], int(self.rows[index]))

    def _read(self, view: View, indices: Indices) -> list[ArrayContent]:
        pixels = self.base.read(self.rows[indices])[view[0]]
        if len(indices) > 1 and pixels.dtype.kind == "f" and np.isnan(pixels).any():
            # Whole numbers are floating point in a batch of which one sample lacks data.
            return [one for index in indices for one in self._read(view, index.reshape(1))]
        return [ArrayContent(one) for one in pixels]

    def _label(self) -> str:
        return f"comparing samples of {title(self.samples)}"


def _short_hash(content: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "little")


def _views(first: _Side, second: _Side) -> list[tuple[View, View]]:
    """What is compared: the sensors of both that can be, else the first sensors' files."""
    kinds, others = first.kinds, second.kinds
    common = [sensor for sensor in kinds if sensor in others]
    pairs: list[tuple[View, View]] = []
    for sensor in common:
        drawn = "drawn" in (kinds[sensor], others[sensor])
        if not drawn:
            differ = kinds[sensor] != others[sensor]
            pairs.append(((sensor, differ), (sensor, differ)))
        elif kinds[sensor] == others[sensor]:
            pairs.append(((sensor, False), (sensor, False)))
    if not common and kinds and others:
        one, other = next(iter(kinds)), next(iter(others))
        if kinds[one] == others[other] == "encoded":
            pairs.append(((one, False), (other, False)))
    return pairs


def _find(first: _Side, second: _Side) -> dict[int, int]:
    """Index in `second` -> index in `first` of the same sample."""
    if _are_one(first, second):
        indices = {row: index for index, row in enumerate(first.rows.tolist())}
        rows = enumerate(second.rows.tolist())
        return {index: indices[row] for index, row in rows if row in indices}
    if not len(first.rows) or not len(second.rows):
        return {}
    views = _views(first, second)
    found = _find_by_content(first, second, views) if views else {}
    if first.samples.name == second.samples.name:
        keys = enumerate(first.samples.keys)
        indices = {key: index for index, key in keys if not is_counted(key)}
        for index, key in enumerate(second.samples.keys):
            if key in indices and not _is_known(first, second, views, indices[key], index):
                found.setdefault(index, indices[key])
    return found


def _are_one(first: _Side, second: _Side) -> bool:
    """Whether both sides are of one set. A fingerprint holds the bytes of some
    files alone."""
    if first.base is second.base:
        return True
    return (
        first.contents is not None
        and second.contents is not None
        and "encoded" not in (*first.kinds.values(), *second.kinds.values())
        and first.base.name == second.base.name
        and first.base.fingerprint == second.base.fingerprint
    )


def _is_known(
    first: _Side, second: _Side, views: Sequence[tuple[View, View]], index: int, other: int
) -> bool:
    """Whether the contents of two samples were compared as they lie."""
    return bool(views) and all(
        not one[1] and first.sizes(one)[index] >= 0 and second.sizes(two)[other] >= 0
        for one, two in views
    )


def _find_by_content(
    first: _Side, second: _Side, views: Sequence[tuple[View, View]]
) -> dict[int, int]:
    """Index in `second` -> index in `first` of the same sample.

    What lies in one place on disk is the same and is not read; the rest is compared whole.
    """
    own, others = [one for one, _ in views], [two for _, two in views]
    mine = np.arange(len(first.rows), dtype=np.int64)
    left = np.arange(len(second.rows), dtype=np.int64)
    mine, left = _narrow(first, second, views, mine, left)
    by_address = {first.address(own, index): index for index in reversed(mine.tolist())}
    by_address.pop(None, None)
    addresses = {index: second.address(others, index) for index in left.tolist()}
    found = {index: by_address[one] for index, one in addresses.items() if one in by_address}
    left = np.array([index for index in addresses if index not in found], dtype=np.int64)
    mine, left = _narrow(first, second, views, mine, left)
    by_digest = {first.digest(own, index): index for index in reversed(mine.tolist())}
    for index in left.tolist():
        partner = by_digest.get(second.digest(others, index))
        if partner is not None:
            found[index] = partner
    return found


def _narrow(
    first: _Side,
    second: _Side,
    views: Sequence[tuple[View, View]],
    mine: Indices,
    others: Indices,
) -> tuple[Indices, Indices]:
    """Of samples of both sides, those whose sizes and middles are found on the other side."""
    for one, two in views:
        sizes, other_sizes = first.sizes(one)[mine], second.sizes(two)[others]
        mine, others = mine[np.isin(sizes, other_sizes)], others[np.isin(other_sizes, sizes)]
    for one, two in views:
        middles, other_middles = first.middles(one, mine), second.middles(two, others)
        mine, others = (
            mine[np.isin(middles, other_middles)], others[np.isin(other_middles, middles)],
        )  # fmt: skip
    return mine, others


def _find_copies(side: _Side) -> dict[int, int]:
    """Index of a sample -> that of the first one with the same content, in order."""
    views: list[View] = [(sensor, False) for sensor, kind in side.kinds.items() if kind != "drawn"]
    if side.contents is None or not views:
        return {}
    left = np.arange(len(side.rows), dtype=np.int64)
    for view in views:
        left = left[_occur_again(side.sizes(view)[left])]
    for view in views:
        left = left[_occur_again(side.middles(view, left))]
    seen: dict[bytes, int] = {}
    copies = {}
    for index in left.tolist():
        earlier = seen.setdefault(side.digest(views, index), index)
        if earlier != index:
            copies[index] = earlier
    return copies


def _occur_again(values: NDArray[np.generic]) -> NDArray[np.bool_]:
    """Which of some values occur more than once."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    again: NDArray[np.bool_] = counts[inverse] > 1
    return again
