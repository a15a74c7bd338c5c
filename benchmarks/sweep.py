"""Stage 1's sweep: what one more alpha costs, against one forward pass over the same tensors.

`terralign.train.sweep.sweep` runs with one alpha and with several; the difference, per alpha, holds
everything an alpha needs: interpolating, loading the weights, the forward passes and the score.
The aim: within a tenth of the forward pass over tensors that are ready.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from measuring import (
    by_turns,
    data_root,
    median,
    median_ratio,
    parse_arguments,
    print_result,
    some_clip,
)
from terralign.datasets.batches import keep_in_memory
from terralign.datasets.catalog import open_dataset
from terralign.datasets.sample import SampleSet, optical_layout, require_labels
from terralign.datasets.subset import limit_samples
from terralign.datasets.synthetic import open_synthetic_scenes
from terralign.encoders.clip.load import ClipModel
from terralign.evaluation.classification import choose_prompts
from terralign.preprocess import make_ready, resize, scale_composite
from terralign.train.finetune import PatchingTask
from terralign.train.interpolate import interpolate
from terralign.train.sweep import sweep

BATCH_SIZE = 64


def ready_batches(clip: ClipModel, samples: SampleSet) -> list[Tensor]:
    """All samples as (B, 3, H, W) batches, as the tower takes them."""
    layout, spec = optical_layout(samples), clip.input_spec
    batches = []
    for start in range(0, len(samples), BATCH_SIZE):
        indices = np.arange(start, min(start + BATCH_SIZE, len(samples)), dtype=np.int64)
        raw = torch.from_numpy(samples.read(indices)[layout.sensor.name])
        batches.append(make_ready(resize(scale_composite(raw, layout), spec), spec))
    return batches


def main() -> None:
    """Measure and print."""
    arguments = parse_arguments(__doc__.splitlines()[0], repeats=5)
    root = data_root()
    clip = some_clip(root)
    size = clip.input_spec.size
    number = 256 if arguments.quick else 512
    if root is not None:
        samples: SampleSet = open_dataset("eurosat-rgb", data_root=root, split="val", size=size)
    else:
        samples = open_synthetic_scenes("val", num_samples=number, size=size)
    samples = keep_in_memory(limit_samples(samples, number))
    alphas = (0.0, 0.5, 1.0) if arguments.quick else (0.0, 0.4, 0.7, 1.0)
    task = PatchingTask(
        samples=samples,
        prompts=choose_prompts(samples),
        class_names=require_labels(samples).class_names,
    )
    theta_0 = dict(clip.visual.state_dict())
    theta_1 = {
        key: value + 0.001 if value.is_floating_point() else value for key, value in theta_0.items()
    }
    ready = ready_batches(clip, samples)

    def forward() -> float:
        start = time.perf_counter()
        with torch.inference_mode():
            for batch in ready:
                clip.visual(batch)
        return time.perf_counter() - start

    def run_sweep(chosen: Sequence[float]) -> float:
        start = time.perf_counter()
        sweep(
            clip,
            lambda alpha: interpolate(theta_0, theta_1, alpha),
            chosen,
            validation=[task],
            supported=[],
            batch_size=BATCH_SIZE,
        )
        return time.perf_counter() - start

    seconds = by_turns(
        {
            "forward": forward,
            "one_alpha": lambda: run_sweep(alphas[1:2]),
            "all_alphas": lambda: run_sweep(alphas),
        },
        repeats=arguments.repeats,
    )
    extra = [
        (many - one) / (len(alphas) - 1)
        for many, one in zip(seconds["all_alphas"], seconds["one_alpha"], strict=True)
    ]
    print_result(
        "sweep",
        arguments,
        data=samples.name,
        model=clip.source.rpartition("/")[2],
        num_samples=len(samples),
        num_alphas=len(alphas),
        seconds={
            "forward": median(seconds["forward"]),
            "one_alpha": median(seconds["one_alpha"]),
            "per_extra_alpha": median(extra),
        },
        extra_alpha_over_forward=median_ratio(extra, seconds["forward"]),
        aim={"extra_alpha_over_forward": "at most 1.1"},
    )


if __name__ == "__main__":
    main()
