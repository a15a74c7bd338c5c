"""What is known of a data set before it is opened: the catalog's entries, `entries/*.toml`."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from terralign.errors import DataError, nearest
from terralign.files import read_shipped, shipped_names


class DatasetFacts(BaseModel):
    """One entry of the catalog."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    description: str
    """What it is, in one line."""
    sensors: tuple[str, ...] = Field(min_length=1)
    """The sensors that every sample has, the data's own first."""
    labels: Literal["single", "multi", "captions", "none"]
    """Whether a sample has one class, several, captions, or nothing."""
    class_list: str | None = None
    """Where class names come from; None where it has no labels."""
    splits: dict[str, int | None] = Field(min_length=1)
    """Split -> its number of samples as published, None where that depends on the files at
    hand. A data root need not hold all of them."""
    alternative_splits: tuple[str, ...] = ()
    """Those that overlap the others, packed only when they are named."""
    has_splits: bool = True
    """False where every split name gives the whole set, so that training and validating on it
    would use the same samples."""
    prompts: Literal["satellite", "photo"] = "satellite"
    """The prompt set that suits it."""
    needs_root: bool = True
    """Whether it lies in files."""
    size: str = ""
    """Pixels of a sample, and bytes on disk where they matter."""
    licence: str = ""
    source: str = ""
    """Who published it, and where."""
    download: tuple[str, ...] = ()
    """What to fetch and how to unpack it, one step each."""
    layout: tuple[str, ...] = ()
    """Where files lie below the data root."""
    note: str = ""
    """What a user should know: offset, removed samples, what is left out."""

    @field_validator("splits", mode="before")
    @classmethod
    def _nothing_is_none(cls, splits: dict[str, Any]) -> dict[str, Any]:
        """TOML has no None: an entry writes `""` for a number that depends on the files at hand."""
        return {name: None if number == "" else number for name, number in splits.items()}

    def about(self) -> dict[str, Any]:
        """As plain values for people, without what is empty."""
        shown: dict[str, Any] = {
            "description": self.description,
            "sensors": list(self.sensors),
            "labels": self.labels,
            "classes": self.class_list or "none",
            "splits": [
                name if number is None else f"{name} ({number:,})"
                for name, number in self.splits.items()
            ],
            "samples": self.size,
            "prompts": self.prompts if self.labels in ("single", "multi") else "",
            "licence": self.licence,
            "source": self.source,
            "download": list(self.download),
            "layout": list(self.layout),
            "note": self.note,
        }
        return {key: value for key, value in shown.items() if value}


def check_name(name: str, data_root: Path | None) -> None:
    """`DataError` where `name` is neither a data set's nor a folder's, with the nearest one, or
    where the data set lies in files and no data root was given."""
    if name not in _entries():
        if not Path(name).exists():
            raise DataError(
                f"unknown data set {name!r}; {nearest(name, _entries())} "
                "(a custom one is given as its .toml file, a packed one as its folder)"
            )
    elif data_root is None and read_facts(name).needs_root:
        raise needs_root(name)


def needs_root(name: str) -> DataError:
    """The error about a data set in files where no data root was given."""
    return DataError(
        f"data set {name!r} needs a data root: give the folder that holds its files (data_root=); "
        f"see `terralign info {name}`"
    )


def check_data_root(data_root: Path | str | None) -> None:
    """`DataError` where a data root was given and is no folder."""
    if data_root is not None and not Path(data_root).is_dir():
        raise DataError(
            f"data root {data_root} not found; give the folder that holds the data sets"
        )


@cache
def read_facts(name: str) -> DatasetFacts:
    """The catalog's entry `name`."""
    return _entries()[name]


@cache
def _entries() -> dict[str, DatasetFacts]:
    entries: dict[str, DatasetFacts] = {}
    for file in shipped_names("datasets/entries"):
        for name, values in read_shipped("datasets/entries", file).items():
            assert name not in entries, f"{name} is in two entry files"
            own = {key: value for key, value in values.items() if key != "like"}
            if "like" in values:  # an earlier entry, for the values that this one leaves out
                own = entries[values["like"]].model_dump(exclude_unset=True) | own
            entries[name] = DatasetFacts.model_validate(own)
    return entries
