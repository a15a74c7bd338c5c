"""The data sets of the synthetic world: `synthetic-photos` and `synthetic-scenes`.

Two data sets that need no files, for the quickstart, tests and benchmarks. Every sample is a pure
function of (seed, split, index). What is measured on them is about a synthetic world, not about
the Earth; see `photos` and `scenes` for what they draw.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from terralign.chips import make_layout
from terralign.datasets.content import ArrayContent, Contents
from terralign.datasets.sample import Labels, require_split
from terralign.datasets.split import Split
from terralign.datasets.synthetic import photos, scenes
from terralign.datasets.synthetic.draws import MAX_SIZE, Keys, sample_keys
from terralign.errors import DataError
from terralign.sensors import SENSORS

GENERATOR_VERSION = 1
"""Raised with every change that alters a pixel, a label or a caption."""

NUM_SAMPLES = {"train": 16_000, "val": 2_000, "test": 2_000}
"""Samples of each split where none are asked for."""

MIN_SIZE = 16
RENDER_BATCH = 64
"""Samples drawn at once: their arrays stay in the processor's cache."""

Pixels = dict[str, NDArray[np.generic]]


@dataclass(frozen=True, kw_only=True, slots=True, repr=False)
class SyntheticSet(Split):
    """One split of a synthetic data set: a `SampleSet`.

    `sample_keys`: (N,) uint64, from which everything about a sample is drawn. `render` turns (B,)
    of them into pixels, sensor name -> (B, C, H, W).
    """

    sample_keys: Keys
    render: Callable[[Keys], Pixels]

    def contents(self) -> Contents:
        """What each sample is drawn from, at any size."""
        return Contents(
            kinds=dict.fromkeys(self.layouts, "drawn"),
            of=lambda sensor, index: ArrayContent(self.sample_keys[index : index + 1]),
        )

    def read(self, indices: NDArray[np.int64]) -> Pixels:
        """Pixels of these samples: sensor name -> (B, C, H, W) in the layout's band order."""
        keys = self.sample_keys[indices]
        if len(keys) == 0:
            return {name: one[:0] for name, one in self.render(self.sample_keys[:1]).items()}
        starts = range(0, len(keys), RENDER_BATCH)
        parts = [self.render(keys[start : start + RENDER_BATCH]) for start in starts]
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def open_synthetic_photos(
    split: str, *, num_samples: int | None = None, seed: int = 0, size: int = 32
) -> SyntheticSet:
    """Everyday pictures with captions: coloured shapes, and views of the land from the ground.

    `split`: train, val or test. `size`: side in pixels, 16 to 256. Pixels: "rgb", uint8 DN.
    Labels: the shape and its colour, or what the view shows. Raises `DataError`.
    """
    name = "synthetic-photos"
    keys = _sample_keys(name, split, num_samples, seed, size)
    rgb = SENSORS["rgb"]
    return SyntheticSet(
        name=name,
        split=split,
        layouts={rgb.name: make_layout(rgb, rgb.band_names, units="dn", composite="as-is")},
        keys=_names(split, len(keys)),
        labels=Labels(
            values=photos.photo_labels(keys),
            class_names=photos.CLASS_NAMES,
            class_list=name,
        ),
        captions=tuple((text,) for text in photos.photo_captions(keys)),
        prompts=photos.SHAPE_PROMPTS,
        content=[GENERATOR_VERSION, seed, size],
        sample_keys=keys,
        render=partial(photos.render_photos, size=size),
    )


def open_synthetic_scenes(
    split: str,
    *,
    num_samples: int | None = None,
    seed: int = 0,
    size: int = 32,
    multi_label: bool = False,
) -> SyntheticSet:
    """Satellite scenes of two or three land covers, seen by Sentinel-2 L2A and Sentinel-1 GRD.

    `split`: train, val or test. `size`: side in pixels of 10 m, 16 to 256. Pixels:
    "sentinel2-l2a" uint16 DN without offset, "sentinel1-grd" float32 dB of the same place. Labels:
    the dominant land cover, or with `multi_label` all that cover a tenth of the chip. No captions:
    neither stage has a use for any. Raises `DataError`.
    """
    name = "synthetic-scenes"
    keys = _sample_keys(name, split, num_samples, seed, size)
    optical, radar = SENSORS["sentinel2-l2a"], SENSORS["sentinel1-grd"]
    draw_labels = scenes.multi_labels if multi_label else scenes.single_labels
    return SyntheticSet(
        name=f"{name}-multilabel" if multi_label else name,
        split=split,
        layouts={
            optical.name: make_layout(
                optical, optical.band_names, units="dn", composite="paper-l2a"
            ),
            radar.name: make_layout(radar, radar.band_names, units="physical"),
        },
        keys=_names(split, len(keys)),
        labels=Labels(values=draw_labels(keys), class_names=scenes.CLASS_NAMES, class_list=name),
        prompts=photos.VIEW_PROMPTS,
        content=[GENERATOR_VERSION, seed, size],
        pixels_of=name,
        sample_keys=keys,
        render=partial(scenes.render_scenes, size=size),
    )


def _names(split: str, num_samples: int) -> tuple[str, ...]:
    """One name per sample: `train-000017`."""
    return tuple(f"{split}-{index:06d}" for index in range(num_samples))


def _sample_keys(name: str, split: str, num_samples: int | None, seed: int, size: int) -> Keys:
    """What the samples of one split are drawn from."""
    require_split(name, split, NUM_SAMPLES)
    number = NUM_SAMPLES[split] if num_samples is None else num_samples
    for what, value, least, most in (
        ("num_samples", number, 1, 10_000_000),
        ("seed", seed, 0, 2**32 - 1),
        ("size", size, MIN_SIZE, MAX_SIZE),
    ):
        if not least <= value <= most:
            raise DataError(f"{name}: {what} is {value}; expected {least} to {most}")
    return sample_keys(name, seed, split, np.arange(number, dtype=np.int64))
