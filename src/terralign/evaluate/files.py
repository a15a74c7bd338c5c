"""Classifying single files: pictures, and GeoTIFFs of a known sensor."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch

from terralign.encoders.space import EmbeddingSpace, seen_shares
from terralign.encoders.zeroshot import PromptSet, as_class_names
from terralign.errors import DataError, SensorError
from terralign.scenes.read import read_chip
from terralign.sensors import Sensor


@dataclass(frozen=True, kw_only=True, slots=True)
class FileClass:
    """One file: class name -> probability (they sum to 1), the tower and the prompt set's name.

    `valid_share`: share (0-1) of the numbers in the bands that the tower saw that are valid; of the
    RGB tower, the share of pixels that are valid in all three.
    """

    file: Path
    tower: str
    prompts: str
    probabilities: dict[str, float]
    valid_share: float = 1.0

    @property
    def label(self) -> str:
        """The likeliest class."""
        return max(self.probabilities, key=lambda name: self.probabilities[name])

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "file": str(self.file),
            "label": self.label,
            "probability": self.probabilities[self.label],
            "probabilities": self.probabilities,
            "tower": self.tower,
            "prompts": self.prompts,
            "valid_share": self.valid_share,
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class FileFault:
    """One file that could not be classified; `error` is one line that names it and says why."""

    file: Path
    error: str

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {"file": str(self.file), "error": self.error}


def classify_files(
    space: EmbeddingSpace, files: Sequence[Path | str], labels: Sequence[str], **reading: Any
) -> list[FileClass | FileFault]:
    """Classify every file by `labels`; one that cannot be read is a `FileFault` in its place.

    `reading`: the keywords of `classify_each`. Raises `DataError` where no file at all can be read,
    naming the first, so that a single file is classified or raises.
    """
    found = list(classify_each(space, files, labels, **reading))
    faults = [one for one in found if isinstance(one, FileFault)]
    if faults and len(faults) == len(found):
        others = f" (and {len(faults) - 1} more files failed)" if len(faults) > 1 else ""
        raise DataError(f"{faults[0].error}{others}")
    return found


def classify_each(
    space: EmbeddingSpace,
    files: Iterable[Path | str],
    labels: Sequence[str],
    *,
    sensor: Sensor | None = None,
    bands: Sequence[str] | None = None,
    dn_offset: float | None = None,
    units: Literal["dn", "physical"] | None = None,
    composite: str | None = None,
    tower: str | None = None,
    prompts: PromptSet | str | None = None,
) -> Iterator[FileClass | FileFault]:
    """Classify files one after another; all are read as the keywords say (see `read_chip`).

    Pictures are resized as those of data sets are (see `decode_rgb`). Raises what is wrong with
    labels, tower or prompts before the first file is read; what is wrong with a file is yielded.
    """
    labels = as_class_names(labels)
    if tower is not None:
        space.input_spec(tower)
    chosen = space.choose_prompts(prompts)
    weights = space.zero_shot_weights(labels, chosen)

    def classify(path: Path) -> FileClass:
        chip = read_chip(path, sensor=sensor, bands=bands, dn_offset=dn_offset, units=units)
        layout = chip.layout
        if composite is not None:
            layout = replace(layout, composite=layout.sensor.composite(composite))
        name = tower or space.tower_for(layout)
        pixels = torch.from_numpy(chip.pixels)[None]
        share = float(seen_shares(space.input_spec(name), pixels, layout, tower=name)[0])
        if share == 0:
            raise DataError(f"{path} has no valid pixel: there is nothing to classify")
        embedded = space.encode_image(chip, composite=composite, tower=name)
        chances = (space.clip.logit_scale * embedded @ weights.T).softmax(-1)[0].tolist()
        return FileClass(
            file=path,
            tower=name,
            prompts=chosen.name,
            valid_share=share,
            probabilities=dict(zip(labels, chances, strict=True)),
        )

    return (_tried(classify, Path(file)) for file in files)


def _tried(classify: Callable[[Path], FileClass], path: Path) -> FileClass | FileFault:
    try:
        return classify(path)
    except (DataError, SensorError) as error:
        text = str(error)
    except OSError as error:
        text = error.strerror or str(error)
    return FileFault(file=path, error=text if str(path) in text else f"{path}: {text}")
