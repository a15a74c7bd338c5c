"""How these benchmarks measure: every variant in one process, by turns, and medians of the turns.

Machines are noisy and shared. A ratio of two variants of the same turn says more than a number of
samples per second, which says something of the machine it was taken on.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from terralign.compute import choose_threads, set_threads
from terralign.encoders.clip.load import ClipModel, load_clip, new_clip

ARCHITECTURE: dict[str, Any] = {
    "embed_dim": 256,
    "vision_cfg": {
        "timm_model_name": "tf_efficientnet_lite0",
        "timm_model_pretrained": False,
        "timm_pool": "avg",
        "timm_proj": "linear",
        "image_size": 64,
    },
    "text_cfg": {"context_length": 32, "vocab_size": 49408, "width": 256, "heads": 4, "layers": 4},
}
"""A small CLIP for the case that no real one is at hand; its weights are random."""


def parse_arguments(description: str, *, repeats: int = 7) -> argparse.Namespace:
    """`quick`, `threads` and `repeats` from the command line; torch's threads are set.

    `repeats`: how many turns there are unless the user or `quick` says otherwise.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--quick", action="store_true", help="few, short repeats: a smoke test")
    parser.add_argument("--threads", type=int, help="torch's threads; default: as terralign does")
    parser.add_argument(
        "--repeats", type=int, help=f"turns of each variant; default {repeats}, quick 2"
    )
    arguments = parser.parse_args()
    set_threads(choose_threads(arguments.threads))
    arguments.repeats = arguments.repeats or (2 if arguments.quick else repeats)
    return arguments


def data_root() -> Path | None:
    """The folder of real data that TERRALIGN_DATA names, None where it is not set."""
    folder = os.environ.get("TERRALIGN_DATA")
    return Path(folder) if folder else None


def some_clip(root: Path | None) -> ClipModel:
    """`micro-clip` of the data root, else a CLIP of the same size with random weights."""
    if root is not None and (root / "micro-clip").is_dir():
        return load_clip(str(root / "micro-clip"))
    half = {"mean": [0.5] * 3, "std": [0.5] * 3}
    return new_clip(ARCHITECTURE, {**half, "resize_mode": "shortest"}, seed=0)


def by_turns(
    variants: Mapping[str, Callable[[], float]], *, repeats: int
) -> dict[str, list[float]]:
    """Seconds of each variant in each of `repeats` turns, after one turn that does not count.

    A variant does its work and returns the seconds that it took, set-up left out.
    """
    for run in variants.values():
        run()
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(repeats):
        for name, run in variants.items():
            seconds[name].append(run())
    return seconds


def median_ratio(above: list[float], below: list[float]) -> float:
    """The median over the turns of above / below, rounded to three digits."""
    pairs = zip(above, below, strict=True)
    return round(statistics.median(one / other for one, other in pairs), 3)


def median(values: list[float]) -> float:
    """The median, to four significant digits."""
    return float(f"{statistics.median(values):.4g}")


def print_result(name: str, arguments: argparse.Namespace, **values: Any) -> None:
    """Print the one JSON object of a benchmark."""
    print(
        json.dumps(
            {
                "benchmark": name,
                **values,
                "repeats": arguments.repeats,
                "quick": arguments.quick,
                "threads": torch.get_num_threads(),
                "machine": platform.machine(),
                "torch": torch.__version__,
            },
            indent=2,
        )
    )
