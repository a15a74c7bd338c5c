"""What is known of a data set before it is opened: the catalog's entries, `entries/*.toml`."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from terralign.errors import DataError, counted, nearest
from terralign.files import as_bytes, hint_of_name, not_found, read_shipped, shipped_names


class RemoteFile(BaseModel):
    """A file that anyone may fetch, and where it goes."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    url: str = Field(pattern=r"^https?://[^\s?]+/[\w.-]+(\?[\w=&]*)?$")
    num_bytes: int | None = Field(default=None, ge=1)
    """None for a text file whose size was not published."""
    sha256: str | None = Field(default=None, pattern=r"^[0-9a-f]{64}$")
    md5: str | None = Field(default=None, pattern=r"^[0-9a-f]{32}$")
    folder: str = Field(default="", pattern=r"^[\w-]*$")
    """Below the data root, where it is kept or unpacked."""
    unpacks: str | None = Field(default=None, pattern=r"^[\w-]+$")
    """The folder that an archive holds; None for a file that is kept as it is."""
    instead: tuple[str, ...] = ()
    """Other folders that hold the same, as older archives do: where one of them is found, nothing
    is fetched."""

    @model_validator(mode="after")
    def _can_be_checked(self) -> Self:
        if (self.sha256 is None) == (self.md5 is None):
            raise ValueError("a file needs either sha256 or md5")
        if self.unpacks and not self.name.endswith((".zip", ".tar.gz")):
            raise ValueError("only .zip and .tar.gz are unpacked")
        return self

    @property
    def name(self) -> str:
        """Its name at the publisher's."""
        return PurePosixPath(urlsplit(self.url).path).name

    @property
    def host(self) -> str:
        """Who serves it."""
        return urlsplit(self.url).hostname or ""

    @property
    def digest(self) -> tuple[Literal["sha256", "md5"], str]:
        """The kind of its hash, and the hash."""
        return ("sha256", self.sha256) if self.sha256 else ("md5", str(self.md5))


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
    class_names: tuple[str, ...] = ()
    """Its classes in prompts, where a TOML file states them; else see `class_list`."""
    prompts: Literal["satellite", "photo"] = "satellite"
    """The prompt set that suits it."""
    templates: tuple[str, ...] = ()
    """Its own prompts, which are used instead of that set."""
    needs_root: bool = True
    """Whether it lies in files."""
    size: str = ""
    """Pixels of a sample, and bytes on disk where they matter."""
    licence: str = ""
    source: str = ""
    """Who published it, and where."""
    files: tuple[RemoteFile, ...] = ()
    """What `terralign fetch` fetches; empty where no address is open to all."""
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
        classified = self.labels in ("single", "multi")
        shown: dict[str, Any] = {
            "description": self.description,
            "sensors": list(self.sensors),
            "labels": self.labels,
            "class list": "" if self.class_names else self.class_list,
            "classes": list(self.class_names),
            "splits": [
                name if number is None else f"{name} ({number:,})"
                for name, number in self.splits.items()
            ],
            "samples": self.size,
            "prompt set": self.prompts if classified and not self.templates else "",
            "prompts": list(self.templates) if classified else [],
            "licence": self.licence,
            "source": self.source,
            "fetched by": f"terralign fetch: {size_of(self.files)}" if self.files else "",
            "download": list(self.download),
            "layout": list(self.layout),
            "note": self.note,
        }
        return {key: value for key, value in shown.items() if value}


def size_of(files: Sequence[RemoteFile]) -> str:
    """What is fetched, from where: "94.7 MB from zenodo.org and hf.co, 7 files"."""
    size = as_bytes(sum(file.num_bytes or 0 for file in files), none="lists of names")
    hosts = " and ".join(dict.fromkeys(file.host for file in files))
    return f"{size} from {hosts}, {counted(len(files), 'file')}"


def check_name(name: str, data_root: Path | None) -> None:
    """`DataError` where `name` is neither a data set's nor a folder's, with the nearest one, or
    where the data set lies in files and no data root was given."""
    if name not in _entries():
        if not Path(name).exists():
            raise DataError(
                f"unknown data set {name!r}{hint_of_name(name)}; {nearest(name, _entries())} "
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
            f"data root {not_found(data_root)}; give the folder that holds the data sets"
        )


def dataset_names() -> list[str]:
    """The names of the catalog."""
    return list(_entries())


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
