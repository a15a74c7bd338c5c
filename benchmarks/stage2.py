"""Stage 2: what a training step costs with stored views, with a live teacher, and at the least.

The least is the student's own forward, backward and optimiser step on tensors that are ready. The
other two are `terralign.train.align.align` as it runs: reading, views, bands, losses, checks and
logging included, from a packed store that lies in the system's cache. Steps are timed from one
forward pass of the student to the next, once the first ones are past. The aims: stored views within
a tenth of the least, and less than a fiftieth of such a step spent waiting for data.
"""

from __future__ import annotations

import copy
import json
import tempfile
import time
from pathlib import Path

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
from terralign.datasets.catalog import open_dataset
from terralign.datasets.sample import SampleSet
from terralign.datasets.store import StoreSet, pack
from terralign.datasets.subset import limit_samples
from terralign.datasets.synthetic import open_synthetic_scenes
from terralign.encoders.clip.load import ClipModel
from terralign.encoders.sensor import SensorTower
from terralign.preprocess import make_ready, resize, scale_bands
from terralign.train.align import AlignmentSource, AlignSettings, align
from terralign.train.finetune import train_mode
from terralign.train.losses import Context, mse_normalised
from terralign.train.student import StudentSettings, new_student, student_layout

SENSOR = "sentinel2-l2a"
FIRST = 5
"""Steps of a turn that are not timed: the batches that were read ahead while nothing trained."""
BARE_FIRST = 2
"""The same where nothing is read."""


class Bench:
    """A student, its data and its teacher; each turn starts from the same weights."""

    def __init__(
        self, clip: ClipModel, samples: SampleSet, *, batch_size: int, steps: int, folder: Path
    ) -> None:
        self.clip, self.samples, self.folder = clip, samples, folder
        self.batch_size, self.steps = batch_size, steps
        self.student, _ = new_student("bench", clip, StudentSettings(), [SENSOR], [samples], seed=0)
        self.turn = 0
        self.waiting: list[float] = []
        """Share of each turn's steps with stored views that was spent waiting for data."""

    def _trained(self) -> SensorTower:
        student = copy.deepcopy(self.student)
        student.train()
        return student

    def loop(self, *, live: bool) -> float:
        """Seconds of `steps` steps of `align`."""
        per_epoch = -(-len(self.samples) // self.batch_size)
        settings = AlignSettings(
            epochs=-(-(FIRST + self.steps + 1) // per_epoch),
            batch_size=self.batch_size,
            losses={"mse_normalised": 1.0},
            live_teacher=live,
        )
        student = self._trained()
        starts: list[float] = []
        student.register_forward_pre_hook(lambda *_: starts.append(time.perf_counter()))
        self.turn += 1
        run = self.folder / f"turn-{self.turn}"
        align(
            self.clip, student, [AlignmentSource(samples=self.samples)], settings, run,
            views_folder=self.folder,
        )  # fmt: skip
        if not live:
            self.waiting.append(self._waiting_share(run / "metrics.jsonl"))
        return starts[FIRST + self.steps] - starts[FIRST]

    def _waiting_share(self, metrics: Path) -> float:
        lines = metrics.read_text(encoding="utf-8").splitlines()[FIRST : FIRST + self.steps]
        rows = [json.loads(line) for line in lines]
        waiting = sum(row["seconds_waiting"] for row in rows)
        training = sum(self.batch_size / row["samples_per_second"] for row in rows)
        return float(waiting / (waiting + training))

    def bare(self) -> float:
        """Seconds of `steps` steps on ready tensors, without anything around them."""
        student = self._trained()
        train_mode(student, frozen_batch_norm=True)  # as `align` does unless told otherwise
        batches = self._ready()
        optimizer = torch.optim.AdamW(student.parameters(), lr=1e-4)
        context = Context(scale=self.clip.logit_scale)
        start = 0.0
        for step in range(BARE_FIRST + self.steps):
            if step == BARE_FIRST:
                start = time.perf_counter()
            bands, target = batches[step % len(batches)]
            optimizer.zero_grad(set_to_none=True)
            loss = mse_normalised(student(bands), target, context)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        return time.perf_counter() - start

    def _ready(self) -> list[tuple[Tensor, Tensor]]:
        spec = self.student.config.input
        layout = student_layout(self.samples, spec.sensors)
        batches = []
        for number in range(4):
            indices = np.arange(self.batch_size) + number * self.batch_size
            raw = torch.from_numpy(self.samples.read(indices % len(self.samples))[SENSOR])
            bands = make_ready(resize(scale_bands(raw, layout, spec), spec), spec)
            batches.append((bands, torch.randn(len(bands), self.clip.dim)))
        return batches


def main() -> None:
    """Measure and print."""
    arguments = parse_arguments(__doc__.splitlines()[0], repeats=3)
    root = data_root()
    clip = some_clip(root)
    batch_size, steps = (16, 4) if arguments.quick else (32, 6)
    number = batch_size * (FIRST + steps + 1)
    if root is not None:
        samples: SampleSet = open_dataset("s2-l2a", data_root=root, split="train")
    else:
        samples = open_synthetic_scenes("train", num_samples=number, size=64)
    with tempfile.TemporaryDirectory() as folder:
        store = Path(folder) / "store"
        pack({"train": limit_samples(samples, number)}, store)
        stored = StoreSet(store, "train")
        bench = Bench(clip, stored, batch_size=batch_size, steps=steps, folder=Path(folder))
        seconds = by_turns(
            {
                "bare": bench.bare,
                "stored": lambda: bench.loop(live=False),
                "live": lambda: bench.loop(live=True),
            },
            repeats=arguments.repeats,
        )
    rate = {
        name: median([steps * batch_size / one for one in turns]) for name, turns in seconds.items()
    }
    print_result(
        "stage2",
        arguments,
        data=samples.name,
        model=clip.source.rpartition("/")[2],
        batch_size=batch_size,
        steps_per_turn=steps,
        samples_per_second=rate,
        stored_over_bare=median_ratio(seconds["bare"], seconds["stored"]),
        stored_over_live=median_ratio(seconds["live"], seconds["stored"]),
        waiting_share=median(bench.waiting[1:]),
        aim={"stored_over_bare": "at least 0.9", "waiting_share": "less than 0.02"},
    )


if __name__ == "__main__":
    main()
