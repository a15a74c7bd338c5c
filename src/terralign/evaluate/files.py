"""Classifying single files: pictures, and GeoTIFFs of a known sensor."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F

from terralign.chips import Chip
from terralign.encoders.space import EmbeddingSpace
from terralign.encoders.zeroshot import PromptSet
from terralign.errors import DataError
from terralign.scenes.read import read_chip
from terralign.sensors import Sensor


@dataclass(frozen=True, kw_only=True, slots=True)
class FileClass:
    """One file: class name -> probability (they sum to 1), the tower and the prompt set's name."""

    file: Path
    tower: str
    prompts: str
    probabilities: dict[str, float]

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
        }


def classify_files(
    space: EmbeddingSpace,
    files: Sequence[Path],
    labels: Sequence[str],
    *,
    sensor: Sensor | None = None,
    bands: Sequence[str] | None = None,
    dn_offset: float | None = None,
    units: Literal["dn", "physical"] | None = None,
    composite: str | None = None,
    tower: str | None = None,
    prompts: PromptSet | str | None = None,
) -> list[FileClass]:
    """Classify every file by `labels`; all files are read as the keywords say (see `read_chip`).

    Raises `DataError` or `SensorError` naming the file that cannot be read.
    """
    twice = {label for label in labels if list(labels).count(label) > 1}
    if twice:
        raise DataError(f"label {min(twice)!r} is given more than once; name each class once")
    chosen = space.choose_prompts(prompts)
    weights = space.zero_shot_weights(labels, chosen)
    found = []
    for path in files:
        chip = read_chip(path, sensor=sensor, bands=bands, dn_offset=dn_offset, units=units)
        layout = chip.layout
        if composite is not None:
            layout = replace(layout, composite=layout.sensor.composite(composite))
        name = tower or space.tower_for(layout)
        embedded = space.encode_layout(_pixels(chip), layout, tower=name)
        cosines = F.normalize(embedded, dim=-1) @ weights.T
        chances = (space.clip.logit_scale * cosines).softmax(-1)[0].tolist()
        found.append(
            FileClass(
                file=path,
                tower=name,
                prompts=chosen.name,
                probabilities=dict(zip(labels, chances, strict=True)),
            )
        )
    return found


def _pixels(chip: Chip) -> torch.Tensor:
    """(1, C, H, W), invalid pixels set to what masks them: the no-data DN, or NaN."""
    pixels = torch.from_numpy(chip.pixels)[None]
    valid = torch.from_numpy(chip.valid)[None]
    if valid.all():
        return pixels
    nodata = chip.sensor.nodata if chip.layout.units == "dn" else None
    return torch.where(valid, pixels.to(torch.float32), torch.nan if nodata is None else nodata)
