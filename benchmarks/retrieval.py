"""Time and peak memory of retrieval, recall@k and map@k, against the number of items.

N queries against N gallery items of 512 float32 numbers each, both kinds of ranking one after the
other. Every size runs in a process of its own, whose peak of resident memory (`getrusage`) holds
everything: the interpreter, the libraries, the embeddings. `--full` ranks 200,000 x 200,000 too
(about half an hour on one core). Otherwise all embeddings are held, but only the first `PART`
queries are ranked, against the whole gallery: the work is the same for every query, so the time of
all is extrapolated from theirs.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import resource
import sys
import time
from typing import Any

import numpy as np

from terralign.evaluation.ranking import map_metrics, recall_metrics

DIMS = 512
NUM_CLASSES = 43
FULL = 200_000
PART = 4096
"""Queries ranked where not all are."""


def measure(num_items: int, num_queries: int) -> dict[str, Any]:
    """Rank the gallery of `num_items` for the first `num_queries`; seconds and peak memory."""
    generator = np.random.default_rng(0)
    query = generator.standard_normal((num_items, DIMS), dtype=np.float32)
    gallery = generator.standard_normal((num_items, DIMS), dtype=np.float32)
    for start in range(0, num_items, PART):
        gallery[start : start + PART] += 0.3 * query[start : start + PART]
    labels = generator.integers(NUM_CLASSES, size=num_items)
    start_time = time.perf_counter()
    pairs = recall_metrics(query[:num_queries], gallery)
    middle = time.perf_counter()
    map_metrics(query[:num_queries], gallery, labels[:num_queries], labels)
    end = time.perf_counter()
    unit = 1 if sys.platform == "darwin" else 1024
    return {
        "num_items": num_items,
        "num_queries": num_queries,
        "seconds_recall": round(middle - start_time, 2),
        "seconds_map": round(end - middle, 2),
        "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit,
        "recall@1": round(pairs.value("recall@1"), 5),
    }


def measure_apart(num_items: int, num_queries: int) -> dict[str, Any]:
    """`measure` in a new process."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(measure, (num_items, num_queries))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="small sizes: a smoke test")
    parser.add_argument("--full", action="store_true", help=f"rank {FULL:,} x {FULL:,} in full")
    parser.add_argument("--threads", type=int, default=1, help="numpy's threads; default 1")
    arguments = parser.parse_args()
    arguments.repeats = 1
    os.environ["OMP_NUM_THREADS"] = str(arguments.threads)  # read when a new process loads numpy
    sizes = (1_000, 2_000) if arguments.quick else (10_000, 20_000, 50_000)
    large = 2 * PART if arguments.quick else FULL
    runs = [measure_apart(size, size) for size in sizes]
    last = measure_apart(large, large if arguments.full else PART)
    factor = large / last["num_queries"]

    # Only now: a new process starts with the peak of the one that made it, and this loads torch.
    import torch

    from measuring import print_result

    torch.set_num_threads(arguments.threads)
    print_result(
        "retrieval",
        arguments,
        dims=DIMS,
        runs=runs,
        largest={
            **last,
            "extrapolated": factor > 1,
            "seconds_of_all_recall": round(last["seconds_recall"] * factor, 1),
            "seconds_of_all_map": round(last["seconds_map"] * factor, 1),
        },
        aim={"peak_bytes": "less than 2e9 at 200,000"},
    )


if __name__ == "__main__":
    main()
