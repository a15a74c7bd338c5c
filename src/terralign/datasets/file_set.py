"""Samples that lie in files of their own, of one sensor or of several, read when asked for.

`FileSet` is the sample set behind every reader whose samples are single files or folders of files.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from terralign.chips import PixelLayout
from terralign.datasets.content import Contents, FileContent
from terralign.datasets.fingerprint import fingerprint
from terralign.datasets.sample import NOWHERE, Captions, Indexed, Labels, Place
from terralign.errors import DataError

Decode = Callable[[Path], Mapping[str, NDArray[Any]]]
"""A sample's file or folder -> sensor name -> (C, H, W), for every sensor of the set; raises
`DataError` naming a file that is missing or damaged."""


@dataclass(frozen=True, kw_only=True, slots=True, repr=False)
class FileSet(Indexed):
    """One split of a data set of files. See `SampleSet`.

    `files`: each sample's file or folder, in order. `locate`: where and when that sample was
    taken, from its file; None where the format does not say. `more_files`: of sensors that have
    files of their own, sensor -> each sample's file or folder; `files` are those of the first.
    `content`: JSON values that represent the pixels in the fingerprint. `pixels_of`: the name of
    the pixels, where sets of other labels share them; None: `name`.
    """

    name: str
    split: str
    layouts: Mapping[str, PixelLayout]
    keys: tuple[str, ...]
    files: tuple[Path, ...]
    decode: Decode
    content: Sequence[Any]
    labels: Labels | None = None
    captions: Captions | None = None
    prompts: tuple[str, ...] | None = None
    pixels_of: str | None = None
    locate: Callable[[Path], Place] | None = None
    more_files: Mapping[str, tuple[Path, ...]] = field(default_factory=dict)
    fingerprint: str = field(init=False)
    pixels_id: str = field(init=False)

    def __post_init__(self) -> None:
        for key, name in (("fingerprint", self.name), ("pixels_id", self.pixels_of or self.name)):
            value = fingerprint(
                name=name,
                split=self.split,
                keys=self.keys,
                layouts=self.layouts,
                content=self.content,
            )
            object.__setattr__(self, key, value)

    def __len__(self) -> int:
        return len(self.files)

    def read(self, indices: NDArray[np.int64]) -> dict[str, NDArray[Any]]:
        """Sensor name -> (B, C, H, W); a sensor's pixels must have one shape in all of a batch."""
        if not len(indices):
            raise DataError(f"data set {self.name!r}: no index was given to read")
        files = [self.files[index] for index in indices]
        samples = [self.decode(file) for file in files]
        for sensor in self.layouts:
            first = samples[0][sensor].shape
            for file, sample in zip(files, samples, strict=True):
                if sample[sensor].shape != first:
                    raise DataError(sizes_differ(file, sample[sensor].shape, files[0], first))
        return {sensor: np.stack([sample[sensor] for sample in samples]) for sensor in self.layouts}

    def contents(self) -> Contents:
        """The samples' files."""
        files = {next(iter(self.layouts)): self.files, **self.more_files}
        return Contents(
            kinds=dict.fromkeys(files, "encoded"),
            of=lambda sensor, index: FileContent(files[sensor][index]),
        )

    def place(self, index: int) -> Place:
        """Where and when a sample was taken."""
        return NOWHERE if self.locate is None else self.locate(self.files[index])


def sizes_differ(
    file: Path, shape: tuple[int, ...], first: Path, first_shape: tuple[int, ...]
) -> str:
    """What to say of two samples of one set that differ in size."""
    return (
        f"{file} has {shape[-1]}x{shape[-2]} pixels, {first} has "
        f"{first_shape[-1]}x{first_shape[-2]}; samples of one data set must be of one size: "
        "give RGB images a size (size=), cut other rasters to one size"
    )
