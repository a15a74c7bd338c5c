"""A tiny problem with held-out data: noise in which one channel is brighter; two classes."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from terralign.chips import PixelLayout
from terralign.datasets.sample import Labels
from terralign.encoders.zeroshot import PromptSet
from terralign.sensors import SENSORS
from terralign.train.finetune import PatchingTask

NAMES = ("red", "green")


class Colours:
    """60 pictures of 32 pixels from numpy's stable generator, others for each split."""

    name = "colours"
    captions = None
    prompts = None

    def __init__(self, split: str, *, multi_label: bool = False) -> None:
        self.split = split
        self.keys = tuple(f"{split}-{number}" for number in range(60))
        self.fingerprint = f"colours-{split}-{multi_label}"
        chosen = np.arange(60, dtype=np.int64) % 2
        values = np.eye(2, dtype=np.bool_)[chosen] if multi_label else chosen
        self.labels = Labels(values=values, class_names=NAMES, class_list="colours")
        generator = np.random.default_rng(["train", "val"].index(split))
        self._pixels = generator.integers(0, 160, (60, 3, 32, 32))
        self._pixels[np.arange(60), chosen] += 60

    @property
    def layouts(self) -> dict[str, PixelLayout]:
        rgb = SENSORS["rgb"]
        composite = rgb.composite("as-is")
        layout = PixelLayout(sensor=rgb, bands=rgb.band_names, units="dn", composite=composite)
        return {"rgb": layout}

    def __len__(self) -> int:
        return len(self.keys)

    def read(self, indices: NDArray[np.int64]) -> dict[str, NDArray[np.generic]]:
        return {"rgb": self._pixels[indices].astype(np.uint8)}


def colours_task(split: str, *, multi_label: bool = False) -> PatchingTask:
    """The problem as a patching task with plain class names as prompts."""
    return PatchingTask(
        samples=Colours(split, multi_label=multi_label),
        prompts=PromptSet(name="plain", templates=("{}",)),
        class_names=NAMES,
    )
