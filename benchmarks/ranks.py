"""Several processes: samples/s of stage 2 by 1, 2 and 4 of them, and what they spend on sharing.

Each number of processes trains the same global batches by `terralign.train.align.align`, from views
of the teacher that are stored. On CUDA devices (NCCL) there are as many processes as devices at
most; else they are on the CPU (gloo), each with one thread unless `--threads` says otherwise: with
fewer cores than processes, wall time says little, and the samples per second of CPU time more.

`communication_share` is the part of a step in which the first process sums gradients, waiting for
the others included; `sum_share` is what the sum alone takes, timed with nothing beside it.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from measuring import data_root, median, median_ratio, parse_arguments, print_result, some_clip
from terralign import ranks
from terralign.compute import choose_device
from terralign.cores import available_cores
from terralign.datasets.batches import keep_in_memory
from terralign.datasets.synthetic import open_synthetic_scenes
from terralign.launch import launch
from terralign.train.align import AlignmentSource, AlignSettings, align
from terralign.train.student import StudentSettings, new_student

SENSOR = "sentinel2-l2a"
BATCH_SIZE = 64
FIRST = 3
"""Steps that are not timed."""


class _Timed:
    """`ranks.sum_parts`, and when and how long it ran; on CUDA the device is waited for."""

    def __init__(self, device: str) -> None:
        self.device, self.sum_parts = device, ranks.sum_parts
        self.calls: list[tuple[float, float]] = []
        self.num_bytes = 0

    def wait(self) -> float:
        if self.device.startswith("cuda"):
            torch.cuda.synchronize()
        return time.perf_counter()

    def __call__(self, parts: Sequence[Tensor], *, in_order: bool) -> Tensor:
        start = self.wait()
        total = self.sum_parts(parts, in_order=in_order)
        self.calls.append((start, self.wait() - start))
        self.num_bytes = total.nbytes
        return total


def work(folder: Path, steps: int, threads: int) -> None:
    """What each process does; its times go to a file."""
    torch.set_num_threads(threads)
    with ranks.joined(None):
        device = choose_device()
        clip = some_clip(data_root())
        clip.model.to(device)
        num_samples = BATCH_SIZE * (FIRST + steps + 1)
        samples = keep_in_memory(open_synthetic_scenes("train", num_samples=num_samples, size=64))
        samples.read(np.arange(num_samples))  # else a rank lacks what others embedded for the views
        student, _ = new_student("bench", clip, StudentSettings(), [SENSOR], [samples], seed=0)
        timed = _Timed(device)
        ranks.sum_parts = timed
        starts: list[tuple[float, float]] = []
        student.register_forward_pre_hook(
            lambda *_: starts.append((timed.wait(), time.process_time()))
        )
        settings = AlignSettings(epochs=1, batch_size=BATCH_SIZE, losses={"mse_normalised": 1.0})
        align(clip, student.to(device), [AlignmentSource(samples=samples)], settings, folder)
        (begin, cpu_begin), (end, cpu_end) = starts[FIRST], starts[FIRST + steps]
        alone = [_sum_alone(timed, device) for _ in range(5)]
        found = {
            "seconds": end - begin,
            "cpu_seconds": cpu_end - cpu_begin,
            "sharing": sum(took for start, took in timed.calls if begin <= start < end),
            "sum": steps * statistics.median(alone),
            "bytes": timed.num_bytes,
            "device": torch.cuda.get_device_name() if device.startswith("cuda") else "cpu",
        }
        (folder / f"times-{ranks.rank()}.json").write_text(json.dumps(found))


def _sum_alone(timed: _Timed, device: str) -> float:
    """Seconds of one sum of as many numbers as a step's, begun by all at once."""
    if ranks.world_size() == 1:
        return 0.0
    numbers = torch.zeros(timed.num_bytes // 4, device=device)
    ranks.greatest(0)
    start = timed.wait()
    timed.sum_parts([numbers], in_order=False)
    return timed.wait() - start


def measure(num_processes: int, steps: int, threads: int) -> list[dict[str, Any]]:
    """What each of so many processes writes down."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, __file__, "work", folder, str(steps), str(threads)]
        if code := launch(command, num_processes):
            sys.exit(code)
        paths = sorted(Path(folder).glob("times-*.json"))
        return [json.loads(path.read_text()) for path in paths]


def main() -> None:
    """Measure and print."""
    arguments = parse_arguments(__doc__.splitlines()[0], repeats=3)
    steps = 4 if arguments.quick else 8
    on_cuda = torch.cuda.is_available()
    sizes = [size for size in (1, 2, 4) if not on_cuda or size <= torch.cuda.device_count()]
    turns: dict[int, list[list[dict[str, Any]]]] = {size: [] for size in sizes}
    for _ in range(arguments.repeats):
        for size in sizes:
            turns[size].append(measure(size, steps, arguments.threads or 1))
    rates = {
        size: [steps * BATCH_SIZE / one[0]["seconds"] for one in found]
        for size, found in turns.items()
    }
    per_cpu = {
        size: [steps * BATCH_SIZE / sum(rank["cpu_seconds"] for rank in one) for one in found]
        for size, found in turns.items()
    }
    first = turns[sizes[-1]][0][0]
    print_result(
        "ranks",
        arguments,
        device=first["device"],
        backend="nccl" if on_cuda else "gloo",
        cores=available_cores(),
        batch_size=BATCH_SIZE,
        steps_per_turn=steps,
        megabytes_summed=round(first["bytes"] / 1e6, 1),
        processes={
            size: {
                "samples_per_second": median(rates[size]),
                "samples_per_cpu_second": median(per_cpu[size]),
                "rate_over_one": median_ratio(rates[size], rates[1]),
                "cpu_rate_over_one": median_ratio(per_cpu[size], per_cpu[1]),
                **{
                    f"{name}_share": median([one[0][key] / one[0]["seconds"] for one in found])
                    for name, key in (("communication", "sharing"), ("sum", "sum"))
                    if size > 1
                },
            }
            for size, found in turns.items()
        },
    )


if __name__ == "__main__":
    if sys.argv[1:2] == ["work"]:
        work(Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
    else:
        main()
