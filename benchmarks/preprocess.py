"""Preprocessing: samples per second and core, from raw numbers to tensors ready for a tower.

Composites, Sentinel-2 bands, crops and colour augmentation, for samples of 64 and 120 pixels, on
one thread. Beside the rate stands how often the plain conversion of the same numbers to float32
would fit into the time, which says more on another machine.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from torch import Tensor

from measuring import by_turns, median, median_ratio, parse_arguments, print_result
from terralign.chips import PixelLayout
from terralign.datasets.synthetic import open_synthetic_scenes
from terralign.preprocess import (
    InputSpec,
    Photometric,
    ViewSpec,
    apply_views,
    augment_photometric,
    draw_views,
    make_ready,
    rgb_spec,
    scale_bands,
    scale_composite,
)

SENSOR = "sentinel2-l2a"
WHOLE = ViewSpec()
CROPS = ViewSpec(crop_scale=(0.5, 1.0), crop_ratio=(0.75, 1.33))

Case = Callable[[int], Tensor]
"""Turn number -> ready pixels (B, C, H, W)."""


def picture(
    raw: Tensor, layout: PixelLayout, spec: InputSpec, views: ViewSpec, turn: int
) -> Tensor:
    """Composite, view, normalise."""
    drawn = draw_views(views, seed=0, view=turn, indices=np.arange(len(raw)))
    return make_ready(apply_views(scale_composite(raw, layout), drawn, spec.size), spec)


def colours(raw: Tensor, layout: PixelLayout, spec: InputSpec, turn: int) -> Tensor:
    """The same with colour augmentation."""
    indices = np.arange(len(raw))
    drawn = draw_views(WHOLE, seed=0, view=turn, indices=indices)
    pictures = apply_views(scale_composite(raw, layout), drawn, spec.size).clamp(0, 1)
    pictures = augment_photometric(pictures, Photometric(), seed=0, view=turn, indices=indices)
    return make_ready(pictures, spec)


def bands(raw: Tensor, layout: PixelLayout, spec: InputSpec, turn: int) -> Tensor:
    """All bands: scale, view, normalise."""
    drawn = draw_views(WHOLE, seed=0, view=turn, indices=np.arange(len(raw)))
    return make_ready(apply_views(scale_bands(raw, layout, spec), drawn, spec.size), spec)


def cases_of(raw: Tensor, layout: PixelLayout, size: int) -> dict[str, Case]:
    """What is measured for samples of this size."""
    half = (0.5, 0.5, 0.5)
    rgb = rgb_spec(size=size, mean=half, std=half)
    large = rgb_spec(size=224, mean=half, std=half)
    num = len(layout.bands)
    sentinel2 = InputSpec(
        sensors=(SENSOR,),
        bands=layout.bands,
        ranges={SENSOR: ((0.0, 1.0),) * num},
        mean=(0.1,) * num,
        std=(0.1,) * num,
        size=size,
    )
    return {
        "plain_conversion": lambda turn: raw.to(torch.float32),
        "composite": partial(picture, raw, layout, rgb, WHOLE),
        "composite_cropped": partial(picture, raw, layout, rgb, CROPS),
        "composite_to_224": partial(picture, raw, layout, large, WHOLE),
        "photometric": partial(colours, raw, layout, rgb),
        "bands": partial(bands, raw, layout, sentinel2),
    }


def main() -> None:
    """Measure and print."""
    arguments = parse_arguments(__doc__.splitlines()[0])
    torch.set_num_threads(1)
    batch_size, batches = (32, 2) if arguments.quick else (128, 8)
    results = {}
    for size in (64, 120):
        samples = open_synthetic_scenes("train", num_samples=batch_size, size=size)
        layout = samples.layouts[SENSOR]
        raw = torch.from_numpy(samples.read(np.arange(batch_size))[SENSOR])

        def timed(case: Case) -> float:
            start = time.perf_counter()
            for turn in range(batches):
                case(turn)
            return time.perf_counter() - start

        cases = cases_of(raw, layout, size)
        seconds = by_turns(
            {name: partial(timed, case) for name, case in cases.items()}, repeats=arguments.repeats
        )
        plain = seconds.pop("plain_conversion")
        results[f"{size} px"] = {
            name: {
                "samples_per_second": median([batches * batch_size / one for one in turns]),
                "times_plain_conversion": median_ratio(turns, plain),
            }
            for name, turns in seconds.items()
        }
    print_result(
        "preprocess", arguments, batch_size=batch_size, bands=len(layout.bands), cases=results
    )


if __name__ == "__main__":
    main()
