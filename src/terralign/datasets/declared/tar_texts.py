"""Labels, captions and dates of samples in shards: members of text (cls, txt) and of JSON."""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import pyarrow as pa
from pydantic import BaseModel, ConfigDict, Field, model_validator

from terralign.datasets.declared.labels import list_labels, separated_labels, single_labels
from terralign.datasets.declared.table_file import parse_time
from terralign.datasets.declared.tar_index import TarIndex, read_members
from terralign.datasets.sample import Captions, Labels
from terralign.errors import DataError, first_line, nearest
from terralign.files import decode_text

MAX_TEXT_BYTES = 16 * 1024**2
"""A larger member of text is refused before it is read."""


class TextMember(BaseModel):
    """`[captions]` and `[date]` of shards: a member of text, or a field of one of JSON."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    member: str = Field(min_length=1)
    """The ending of the member."""
    field: str | None = None
    """Of JSON: the key whose value it is."""

    @model_validator(mode="after")
    def _field_has_an_effect(self) -> TextMember:
        is_json = self.member.lower().rpartition(".")[2] == "json"
        if is_json and self.field is None:
            raise ValueError(f"member {self.member!r} needs field, the key in its JSON")
        if not is_json and self.field is not None:
            raise ValueError(f"field has no effect on member {self.member!r}; leave it out")
        return self


class ShardLabels(TextMember):
    """`[labels]` of shards."""

    form: Literal["single", "list", "separated"]
    """One value; a list of JSON; or a text with a separator between values."""
    separator: str | None = Field(default=None, min_length=1)
    """Of "separated": what stands between values; spaces around them do not count."""

    @model_validator(mode="after")
    def _form_has_an_effect(self) -> ShardLabels:
        if self.form == "list" and self.field is None:
            raise ValueError('form "list" needs a member of JSON')
        if (self.form == "separated") != (self.separator is not None):
            raise ValueError('separator and form "separated" have an effect only together')
        return self


class Texts:
    """What members of text say of the N samples of some tars; each is read once."""

    def __init__(self, indices: Sequence[TarIndex], wanted: Sequence[TextMember | None]) -> None:
        self._indices = indices
        self._values: dict[tuple[str, str | None], list[Any]] = {}
        fields: dict[str, set[str | None]] = {}
        for one in wanted:
            if one is not None:
                fields.setdefault(one.member.lower(), set()).add(one.field)
        for ending, names in fields.items():
            self._read(ending, names)

    def _read(self, ending: str, fields: set[str | None]) -> None:
        columns: dict[str | None, list[Any]] = {field: [] for field in fields}
        for index in self._indices:
            places = index.places(ending)
            if places[:, 1].max() > MAX_TEXT_BYTES:
                key = index.keys[int(places[:, 1].argmax())]
                raise DataError(
                    f"{index.path}: {key}.{ending} has more than the limit of "
                    f"{MAX_TEXT_BYTES // 2**20} MiB"
                )
            first = {field: len(column) for field, column in columns.items()}
            for column in columns.values():
                column.extend([None] * len(places))
            for position, content in read_members(index.path, places):
                what = f"{index.path}: {index.keys[position]}.{ending}"
                for field, value in _values(content, fields, what).items():
                    columns[field][first[field] + position] = value
        self._values.update({(ending, field): column for field, column in columns.items()})

    def _of(self, member: TextMember) -> list[Any]:
        return self._values[member.member.lower(), member.field]

    def _tell(self, sample: int) -> str:
        for index in self._indices:
            if sample < len(index.keys):
                return f"{index.path}: sample {index.keys[sample]!r}"
            sample -= len(index.keys)
        raise IndexError(sample)

    def labels(
        self, said: ShardLabels | None, classes: Mapping[str, str] | None, *, class_list: str
    ) -> Labels | None:
        """The labels in the form that is declared."""
        if said is None or classes is None:
            return None
        values = self._of(said)
        if said.form == "list":
            lists = [self._list_of(sample, value) for sample, value in enumerate(values)]
            array = pa.array(lists, pa.list_(pa.string()))
            return list_labels(array, classes, self._tell, class_list=class_list)
        texts = pa.array(
            [self._text_of(sample, value) for sample, value in enumerate(values)], pa.string()
        )
        if said.separator is not None:
            return separated_labels(
                texts, said.separator, classes, self._tell, class_list=class_list
            )
        return single_labels(texts, classes, self._tell, class_list=class_list)

    def captions(self, said: TextMember | None) -> Captions | None:
        """The captions of each sample, empty ones left out; at least one."""
        if said is None:
            return None
        captions = []
        for sample, value in enumerate(self._of(said)):
            texts = self._list_of(sample, value) if isinstance(value, list) else [value]
            kept = tuple(text for text in texts or () if isinstance(text, str) and text.strip())
            if not kept:
                raise DataError(f"{self._tell(sample)} has no caption")
            captions.append(kept)
        return tuple(captions)

    def dates(self, said: TextMember | None) -> list[dt.datetime | None] | None:
        """When each sample was taken, UTC; None where it does not know."""
        if said is None:
            return None
        dates = []
        for sample, value in enumerate(self._of(said)):
            try:
                dates.append(parse_time(self._text_of(sample, value)))
            except ValueError as error:
                raise DataError(
                    f"{self._tell(sample)} has the date {value!r}; expected an ISO date as "
                    "2024-05-31 or 2024-05-31T10:20:30Z"
                ) from error
        return dates

    def _text_of(self, sample: int, value: Any) -> str | None:
        if isinstance(value, bool):
            return "true" if value else "false"
        if value is None or isinstance(value, int | str):
            return None if value is None else str(value)
        raise DataError(
            f"{self._tell(sample)} has {str(value)[:50]}; expected a text or a whole number"
        )

    def _list_of(self, sample: int, value: Any) -> list[str | None] | None:
        if value is not None and not isinstance(value, list):
            raise DataError(f"{self._tell(sample)} has {str(value)[:50]}; expected a list")
        return value and [self._text_of(sample, one) for one in value]


def _values(content: bytes, fields: set[str | None], what: str) -> dict[str | None, Any]:
    """Field -> value of one member; the field None is the text itself."""
    try:
        text = decode_text(content)
        if fields == {None}:
            return {None: text.strip()}
        parsed = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{what} is damaged: {first_line(error)}") from error
    if not isinstance(parsed, dict):
        raise DataError(f"{what} is no object of JSON")
    for field in fields:
        if field not in parsed:
            raise DataError(f"{what} has no key {field!r}; {nearest(str(field), parsed)}")
    return {field: parsed[field] for field in fields}
