"""What sample sets of files, arrays, tars and items hold of a split beside its pixels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from terralign.chips import PixelLayout
from terralign.datasets.fingerprint import fingerprint
from terralign.datasets.sample import Captions, Indexed, Labels
from terralign.scenes.pictures import Size, describe_size


@dataclass(frozen=True, kw_only=True, slots=True, repr=False)
class Split(Indexed):
    """One split of a data set; those that derive from it read its pixels. See `SampleSet`.

    `content`: JSON values that represent the pixels in the fingerprint. `size`: to what the set
    resizes and crops RGB pictures, None where it does not.
    """

    name: str
    split: str
    layouts: Mapping[str, PixelLayout]
    keys: tuple[str, ...]
    content: Sequence[Any]
    labels: Labels | None = None
    captions: Captions | None = None
    prompts: tuple[str, ...] | None = None
    size: Size | None = None
    fingerprint: str = field(init=False)

    def __post_init__(self) -> None:
        size = [] if self.size is None else [describe_size(self.size)]
        value = fingerprint(
            name=self.name,
            split=self.split,
            keys=self.keys,
            layouts=self.layouts,
            content=[*self.content, *size],
        )
        object.__setattr__(self, "fingerprint", value)

    def __len__(self) -> int:
        return len(self.keys)
