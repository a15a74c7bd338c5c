"""Classifying single files: pictures, and GeoTIFFs of a known sensor."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F

from terralign.encoders.space import RGB, EmbeddingSpace
from terralign.encoders.zeroshot import PromptSet
from terralign.errors import DataError
from terralign.preprocess.spec import layout_composite, valid_shares
from terralign.scenes.read import read_chip
from terralign.sensors import Sensor


@dataclass(frozen=True, kw_only=True, slots=True)
class FileClass:
    """One file: class name -> probability (they sum to 1), the tower and the prompt set's name.

    `valid_share`: share (0-1) of the numbers in the bands that the tower saw that are valid.
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
        pixels = torch.from_numpy(chip.pixels)[None]
        seen = space.input_spec(name).bands if name != RGB else layout_composite(layout).bands
        share = float(valid_shares(pixels, layout, seen)[0])
        if share == 0:
            raise DataError(f"{path} has no valid pixel: there is nothing to classify")
        embedded = space.encode_layout(pixels, layout, tower=name)
        cosines = F.normalize(embedded, dim=-1) @ weights.T
        chances = (space.clip.logit_scale * cosines).softmax(-1)[0].tolist()
        found.append(
            FileClass(
                file=path,
                tower=name,
                prompts=chosen.name,
                valid_share=share,
                probabilities=dict(zip(labels, chances, strict=True)),
            )
        )
    return found
