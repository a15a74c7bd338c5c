"""Columns of N samples, from a table or from the texts in tars: their labels, captions and times.

Nothing is taken for a number or a date unless it is asked for as one, so that `007` stays text.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from terralign.datasets.declared.declaration import Declaration
from terralign.datasets.sample import Captions, Labels, warn_unused
from terralign.errors import DataError, nearest, quoted
from terralign.limits import require

LabelForm = Literal["single", "list", "separated", "columns"]
"""One value; a list; a text with a separator between values; or a column of 0 and 1 per class."""


class LabelSettings(Protocol):
    """Where the labels are: their form, the column of every form but "columns", and what stands
    between the values of "separated"."""

    @property
    def form(self) -> LabelForm: ...
    @property
    def column(self) -> str | None: ...
    @property
    def separator(self) -> str | None: ...


_FLAGS = {"0": False, "1": True, "false": False, "true": True}


@dataclass(frozen=True, kw_only=True, slots=True)
class Columns:
    """`arrays`: column -> N values. `origin`: their file; `name_of`: position -> how an error names
    a sample."""

    origin: Path
    arrays: Mapping[str, pa.Array]
    name_of: Callable[[int], str]

    def texts(self, column: str) -> pa.Array:
        """A column of texts, whole numbers or truth values as N strings, null where it is empty."""
        values = self.arrays[column]
        kind = values.type
        if not (
            pa.types.is_string(kind)
            or pa.types.is_large_string(kind)
            or pa.types.is_integer(kind)
            or pa.types.is_boolean(kind)
            or pa.types.is_null(kind)
        ):
            raise self._wrong_type(column, "texts or whole numbers")
        return values.cast(pa.string())

    def full_texts(self, column: str) -> pa.Array:
        """`texts`; an empty one is an error that names its sample."""
        values = self.texts(column)
        empty = pc.fill_null(pc.equal(values, ""), True)
        if pc.any(empty).as_py():
            raise DataError(f"{self.name_of(first_true(empty))} has nothing in column {column!r}")
        return values

    def short_texts(self, column: str, num_bytes: int) -> pa.Array:
        """`full_texts` of at most `num_bytes` each."""
        values = self.full_texts(column)
        if (pc.max(pc.binary_length(values)).as_py() or 0) > num_bytes:
            position = first_true(pc.greater(pc.binary_length(values), num_bytes))
            raise DataError(
                f"{self.name_of(position)} has a text of more than {num_bytes} bytes in column "
                f"{column!r}; shorten it"
            )
        return values

    def _lists(self, column: str) -> pa.Array:
        """A column of lists of texts or whole numbers as N lists of strings."""
        if not self._holds_lists(column):
            raise self._wrong_type(column, "lists, which CSV lacks")
        try:
            return self.arrays[column].cast(pa.list_(pa.string()))
        except pa.ArrowException as error:
            raise self._wrong_type(column, "lists of texts") from error

    def _holds_lists(self, column: str) -> bool:
        kind = self.arrays[column].type
        return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind))

    def _wrong_type(self, column: str, expected: str) -> DataError:
        kind = self.arrays[column].type
        return DataError(f"{self.origin}: column {column!r} is of type {kind}; expected {expected}")

    def times(self, column: str) -> list[dt.datetime | None]:
        """A column of dates, times or ISO texts as N times in UTC, None where it is empty.

        Those without a zone are UTC.
        """
        values = self.arrays[column]
        kind = values.type
        if pa.types.is_timestamp(kind) or pa.types.is_date(kind):
            zone = getattr(kind, "tz", None)
            try:
                in_utc = values.cast(pa.timestamp("us", zone), False)
                naive = in_utc.cast(pa.timestamp("us", "UTC")).cast(pa.timestamp("us")).to_pylist()
            except (OverflowError, ValueError, pa.ArrowException) as error:
                raise DataError(
                    f"{self.origin}: column {column!r} has a time outside the years 1 to 9999"
                ) from error
            return [time and time.replace(tzinfo=dt.UTC) for time in naive]
        times = []
        known: dict[str | None, dt.datetime | None] = {}
        for position, text in enumerate(self.texts(column).to_pylist()):
            try:
                if text not in known:
                    known[text] = _parse_time(text)
                times.append(known[text])
            except (ValueError, OverflowError) as error:
                raise DataError(
                    f"{self.name_of(position)} has {quoted(text or '')} in column {column!r}; "
                    "expected an ISO date as 2024-05-31 or 2024-05-31T10:20:30Z"
                ) from error
        return times

    def captions(self, column: str) -> Captions:
        """The captions of each sample, empty ones left out; at least one."""
        if not self._holds_lists(column):
            return tuple((text,) for text in self.full_texts(column).to_pylist())
        captions = []
        for position, texts in enumerate(self._lists(column).to_pylist()):
            kept = tuple(text for text in texts or () if text and text.strip())
            if not kept:
                raise DataError(f"{self.name_of(position)} has no caption in column {column!r}")
            captions.append(kept)
        return tuple(captions)

    def labels(
        self,
        settings: LabelSettings | None,
        declaration: Declaration,
        path: Path,
        split: str,
    ) -> Labels | None:
        """The labels in a column, or in one column per class; None without `settings`.

        `declaration`, `path`: the data set's, and its file, which names the class list. A value
        outside its classes is an error that names its sample; classes that no sample has in this
        `split` are named in a warning. Spaces around separated values and empty ones do not count.
        """
        classes = declaration.classes
        if settings is None or classes is None:
            return None
        values: NDArray[Any]
        if settings.column is None:
            values = self._flags(classes)
        elif settings.form == "single":
            values = _indices(self.texts(settings.column), classes, self.name_of)
        elif settings.separator is None:
            values = self._several(self._lists(settings.column), classes)
        else:
            lists = pc.split_pattern(self.texts(settings.column), settings.separator)
            values = self._several(lists, classes, trimmed=True)
        names = tuple(classes.values())
        labels = Labels(values=values, class_names=names, class_list=path.name)
        warn_unused(labels, name=declaration.name, split=split)
        return labels

    def _flags(self, classes: Mapping[str, str]) -> NDArray[np.bool_]:
        """(N, K) from one column of 0 or 1, or false or true, per class."""
        self._require_few(len(self.arrays[next(iter(classes))]), classes)
        hot = []
        for column in classes:
            texts = self.texts(column)
            flags = pc.index_in(pc.utf8_lower(texts), pa.array(list(_FLAGS)))
            if flags.null_count:
                position = first_true(flags.is_null())
                value = quoted(texts[position].as_py() or "")
                raise DataError(
                    f"{self.name_of(position)} has {value} in column {column!r}; expected 0 or 1"
                )
            hot.append(np.array(list(_FLAGS.values()))[flags.to_numpy()])
        return np.stack(hot, axis=1)

    def _require_few(self, num_samples: int, classes: Mapping[str, str]) -> None:
        require("label_values", num_samples * len(classes), f"{self.origin} has", todo="split it")

    def _several(
        self, lists: pa.Array, classes: Mapping[str, str], trimmed: bool = False
    ) -> NDArray[np.bool_]:
        """(N, K) from N lists of values, which may be empty."""
        if lists.null_count:
            sample = self.name_of(first_true(lists.is_null()))
            raise DataError(f"{sample} has no labels; write an empty list or text for none")
        owners, values = pc.list_parent_indices(lists), pc.list_flatten(lists)
        if trimmed:
            values = pc.utf8_trim_whitespace(values)
            kept = pc.not_equal(values, "")
            owners, values = owners.filter(kept), values.filter(kept)
        samples = owners.to_numpy(zero_copy_only=False)
        self._require_few(len(lists), classes)
        hot = np.zeros((len(lists), len(classes)), dtype=np.bool_)
        hot[samples, _indices(values, classes, lambda n: self.name_of(int(samples[n])))] = True
        return hot


def first_true(flags: pa.Array) -> int:
    """The position of the first true of some flags."""
    return int(np.flatnonzero(flags.to_numpy(zero_copy_only=False))[0])


def _indices(
    values: pa.Array, classes: Mapping[str, str], name_of: Callable[[int], str]
) -> NDArray[np.int64]:
    """The class number of each value; `name_of`: position of a value -> its sample."""
    found = pc.index_in(values, pa.array(list(classes), pa.string()))
    if found.null_count:
        position = first_true(found.is_null())
        value = values[position].as_py()
        if value is None or not value.strip():
            raise DataError(f"{name_of(position)} has no label")
        raise DataError(
            f"{name_of(position)} has label {quoted(value)}, which is not one of [classes]; "
            f"{nearest(value, classes)}"
        )
    indices: NDArray[np.int64] = found.to_numpy().astype(np.int64)
    return indices


def _parse_time(text: str | None) -> dt.datetime | None:
    """A time in ISO 8601, UTC where it names no zone; None for an empty one. `ValueError` if none.

    All digits without separators are refused: they may be a number of seconds as well.
    """
    text = (text or "").strip()
    if not text:
        return None
    if text.isdigit() and len(text) != len("YYYYMMDD"):
        raise ValueError(text)
    time = dt.datetime.fromisoformat(text)
    return time.replace(tzinfo=dt.UTC) if time.tzinfo is None else time.astimezone(dt.UTC)
