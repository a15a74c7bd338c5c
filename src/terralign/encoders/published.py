"""Published models by short name: what is known of each, and where its weights are."""

from __future__ import annotations

from functools import cache
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from terralign.files import as_bytes, read_shipped


class Reported(BaseModel):
    """A published value: zero-shot top-1 on EuroSAT in per cent, and who reported it."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    top1: float = Field(ge=0, le=100)
    source: str


class PublishedModel(BaseModel):
    """One entry of `models.toml`."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    title: str
    publication: str
    """Who published it, and where."""
    sensors: tuple[str, ...] = Field(min_length=1)
    """What its towers take, its own first."""
    activation: Literal["GELU", "QuickGELU"]
    """Of its transformers, as its published code loads it."""
    architecture: str | None = None
    """As open_clip calls it, or "ms-clip"; None where it comes with terralign."""
    tag: str | None = None
    """open_clip's tag of the weights; None for a `file`."""
    hub: str | None = None
    """The model on the Hugging Face hub, ORG/NAME."""
    file: str | None = None
    """Its file of weights on the hub, or in the archive."""
    revision: str | None = Field(default=None, pattern=r"^[0-9a-f]{40}$")
    """The commit on the hub that is loaded; None: as the hub has it now."""
    sha256: str | None = Field(default=None, pattern=r"^[0-9a-f]{64}$")
    """Of the file of weights, where it is known."""
    archive: str | None = None
    """The address of an archive to fetch by hand, of a model that is on no hub."""
    prompts: str = ""
    """The prompt set that holds its authors' templates for EuroSAT."""
    eurosat: Reported | None = None
    licence: str = ""
    num_bytes: int | None = None
    """Of its weights."""
    note: str = ""

    @property
    def revisions(self) -> dict[str, str]:
        """What is pinned, as `load(revisions=)` takes it."""
        return {self.hub: self.revision} if self.hub and self.revision else {}

    def by_hand(self, name: str) -> str:
        """How to load a model that is on no hub."""
        return (
            f"{name} is on no hub: fetch {self.archive}, unpack it, and load "
            f"{self.architecture}:{self.file}"
        )

    def about(self, name: str) -> dict[str, Any]:
        """As plain values for people, without what is empty."""
        reported = self.eurosat
        where = f"hf-hub:{self.hub}" if self.hub else (self.archive or "comes with terralign")
        shown = {
            "title": self.title,
            "load": self.by_hand(name) if self.archive else f'terralign.load("{name}")',
            "weights": " ".join(filter(None, (where, self.tag, self.file))),
            "revision": self.revision or "",
            "sha256": self.sha256 or "",
            "size": as_bytes(self.num_bytes) if self.num_bytes else "",
            "architecture": self.architecture or "",
            "activation": self.activation,
            "sensors": list(self.sensors),
            "prompts": self.prompts,
            "EuroSAT zero-shot, as reported": f"{reported.top1:g} % ({reported.source})"
            if reported
            else "",
            "licence": self.licence,
            "publication": self.publication,
            "note": self.note,
        }
        return {key: value for key, value in shown.items() if value}


@cache
def published_models() -> dict[str, PublishedModel]:
    """The models by name."""
    entries = read_shipped("encoders", "models")
    return {name: PublishedModel.model_validate(one) for name, one in entries.items()}
