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
    resizes and crops RGB pictures, None where it does not. `pixels_of`: the name of the pixels,
    where sets of other labels share them; None: `name`.
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
    pixels_of: str | None = None
    fingerprint: str = field(init=False)
    pixels_id: str = field(init=False)

    def __post_init__(self) -> None:
        size = [] if self.size is None else [describe_size(self.size)]
        content = [*self.content, *size, *self.looked_at()]
        for key, name in (("fingerprint", self.name), ("pixels_id", self.pixels_of or self.name)):
            value = fingerprint(
                name=name,
                split=self.split,
                keys=self.keys,
                layouts=self.layouts,
                content=content,
            )
            object.__setattr__(self, key, value)

    def looked_at(self) -> Sequence[Any]:
        """JSON values that represent pixels in the fingerprint as well, beside `content`."""
        return ()

    def __len__(self) -> int:
        return len(self.keys)
