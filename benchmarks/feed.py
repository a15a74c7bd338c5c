"""The path of a sample to the model, part by part: store, copy, preprocessing, teacher, student.

Samples per second of each part alone, on this machine's device; what the whole path gives; and the
share of the time that a device would wait for batches. Beside the parts stand the limits: a bare
copy of the same bytes, and the tower's forward pass on tensors that are ready. The store lies in
the system's cache. Embedding goes over pictures (JPEG files) and over the store, by the small CLIP
(also over samples of the size that it takes, as EuroSAT's) and by a ViT-B/32, as the paper's first
recipe has it.
"""

from __future__ import annotations

import tempfile
import threading
import time
from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from measuring import (
    by_turns,
    data_root,
    median,
    median_ratio,
    parse_arguments,
    print_result,
    some_clip,
)
from terralign.compute import choose_device, compute_alone, num_readers
from terralign.datasets.batches import Plan
from terralign.datasets.feeding import raw_pixels
from terralign.datasets.sample import SampleSet, Subset, only_sensors
from terralign.datasets.samples import Samples
from terralign.datasets.store import StoreSet, pack
from terralign.datasets.synthetic import open_synthetic_scenes
from terralign.encoders.clip.load import ClipModel, new_clip
from terralign.encoders.pixels import ready_pixels
from terralign.encoders.sensor import SensorTower
from terralign.encoders.space import EmbeddingSpace
from terralign.evaluation.embed import choose_route, embed_samples
from terralign.feed import Raw, feed
from terralign.preprocess import ViewSpec, apply_views, draw_views, make_ready, scale_bands
from terralign.train.student import StudentSettings, new_student

SENSOR = "sentinel2-l2a"
SIZE = 120
"""Pixels of a side of the stored samples, as BigEarthNet's."""
NUM_SMALL, NUM_VIT = 6144, 128
"""Samples that the small CLIP, and the ViT-B/32, embed in a turn."""
VIT_B_32: dict[str, Any] = {
    "embed_dim": 512,
    "vision_cfg": {"image_size": 224, "layers": 12, "width": 768, "patch_size": 32},
    "text_cfg": {"context_length": 32, "vocab_size": 49408, "width": 64, "heads": 1, "layers": 1},
}
"""The RGB tower that the paper's recipe patches; its weights are random here."""


class Parts:
    """The parts of the path over one store."""

    def __init__(self, samples: SampleSet, space: EmbeddingSpace, batch_size: int, steps: int):
        self.samples, self.space, self.steps = only_sensors(samples, [SENSOR]), space, steps
        self.plan = Plan([len(samples)], batch_size=batch_size, seed=0)
        self.layout = samples.layouts[SENSOR]
        self.student = new_tower(space.clip, samples).to(space.device)
        self.num_samples = sum(len(self.plan.batch(step).indices) for step in range(steps))
        self.raw = [self.read(step) for step in range(steps)]
        self.ready = [self.make(one).to(space.device) for one in self.raw]

    def read(self, step: int) -> Raw[int]:
        indices = self.plan.batch(step % self.plan.steps_per_epoch).indices
        return Raw(step, {"pixels": raw_pixels(self.samples, self.layout, indices)})

    def make(self, raw: Raw[int]) -> Tensor:
        pixels, spec = raw.tensors["pixels"], self.student.config.input
        indices = np.arange(len(pixels))
        views = draw_views(ViewSpec(), seed=0, view=raw.known, indices=indices)
        return make_ready(
            apply_views(scale_bands(pixels, self.layout, spec), views, spec.size), spec
        )

    def timed(self, work: Callable[[int], object]) -> float:
        work(0)  # its memory is there then, whatever ran before
        start = time.perf_counter()
        for step in range(self.steps):
            work(step)
        synchronize(self.space.device)
        return time.perf_counter() - start

    def store(self) -> float:
        return self.timed(self.read)

    def copy(self) -> float:
        """The same bytes, from memory to memory."""
        arrays = [one.tensors["pixels"].numpy() for one in self.raw]
        return self.timed(lambda step: arrays[step].copy())

    def to_device(self) -> float:
        return self.timed(lambda step: self.raw[step].tensors["pixels"].to(self.space.device))

    def preprocess(self) -> float:
        device = self.space.device
        moved = [one.mapped(lambda tensor: tensor.to(device)) for one in self.raw]
        return self.timed(lambda step: self.make(moved[step]))

    def teacher(self) -> float:
        size = self.space.input_spec().size
        pictures = torch.rand(len(self.ready[0]), 3, size, size, device=self.space.device)
        with torch.inference_mode():
            return self.timed(lambda _: self.space.clip.visual(pictures))

    def student_step(self, batches: Iterable[Tensor] | None = None) -> float:
        """Forward, backward and optimiser step, on ready tensors or on what is fed."""
        module: nn.Module = self.student.train()
        optimizer = torch.optim.AdamW(module.parameters(), lr=1e-5)
        start = time.perf_counter()
        for bands in batches or (self.ready[step] for step in range(self.steps)):
            optimizer.zero_grad(set_to_none=True)
            module(bands).square().mean().backward()
            optimizer.step()
        synchronize(self.space.device)
        return time.perf_counter() - start

    def fed(self) -> float:
        stream = feed(self.read, self.make, range(self.steps), device=self.space.device)
        with closing(stream):
            return self.student_step(stream)


def synchronize(device: torch.device) -> None:
    """Wait until the device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class Clocked:
    """A space that adds up the seconds in its towers."""

    def __init__(self, space: EmbeddingSpace) -> None:
        self.space, self.seconds = space, 0.0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.space, name)

    def encode_ready(self, ready: Tensor, *, tower: str) -> Tensor:
        start = time.perf_counter()
        vectors = self.space.encode_ready(ready, tower=tower)
        self.seconds += time.perf_counter() - start
        return vectors


def embedding(
    space: EmbeddingSpace, samples: SampleSet, batch_size: int, waiting: list[float]
) -> dict[str, Callable[[], float]]:
    """Embedding all samples, and the tower alone on tensors that are ready: with an idle machine,
    and beside a thread that multiplies matrices, which costs it what cores share.

    `waiting` gets the share of the time in which the tower had no batch: mostly that of the first
    one's reading, beside which nothing runs.
    """
    route = choose_route(space, samples)
    spec = space.input_spec(route.tower)
    raw = samples.read(np.arange(min(batch_size, len(samples))))[route.layout.sensor.name]
    pixels = torch.from_numpy(raw).to(space.device)
    ready = ready_pixels(pixels, route.layout, spec, tower=route.tower)

    def forward() -> float:
        start = time.perf_counter()
        for first in range(0, len(samples), batch_size):
            space.encode_ready(ready[: len(samples) - first], tower=route.tower)
        return time.perf_counter() - start

    def beside() -> float:
        with busy_thread():
            return forward()

    def whole() -> float:
        clocked = Clocked(space)
        start = time.perf_counter()
        embed_samples(clocked, samples, route, batch_size=batch_size)
        seconds = time.perf_counter() - start
        waiting.append(1 - clocked.seconds / seconds)
        return seconds

    return {"forward": forward, "beside": beside, "embed": whole}


@contextmanager
def busy_thread() -> Generator[None, None, None]:
    """A thread that multiplies matrices which lie in a core's cache, meanwhile."""
    done = threading.Event()

    def work() -> None:
        compute_alone()
        matrix = torch.rand(384, 384)
        while not done.is_set():
            matrix @ matrix

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def embedded(
    space: EmbeddingSpace,
    sets: Mapping[str, SampleSet],
    batch_size: int,
    *,
    number: int,
    repeats: int,
) -> dict[str, Any]:
    """What embedding `number` samples of each set, over and over, takes beside the forward pass."""
    over_forward, waiting, beside = {}, {}, {}
    for kind, samples in sets.items():
        every = Subset(samples, np.resize(np.arange(len(samples)), number))
        shares: list[float] = []
        turns = by_turns(embedding(space, every, batch_size, shares), repeats=repeats)
        over_forward[kind] = median_ratio(turns["forward"], turns["embed"])
        beside[kind] = median_ratio(turns["forward"], turns["beside"])
        waiting[kind] = median(shares)
    return {"over_forward": over_forward, "beside_busy": beside, "waiting_share": waiting}


def write_pictures(folder: Path, number: int, side: int = 256) -> None:
    """JPEG files of `side` pixels a side; of 256 as aerial data sets have them."""
    rng = np.random.default_rng(0)
    for index in range(number):
        coarse = rng.integers(0, 255, (32, 32, 3), dtype=np.uint8)
        path = folder / f"class-{index % 3}" / f"{index:05d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(coarse).resize((side, side)).save(path, quality=90)


def open_pictures(folder: Path, space: EmbeddingSpace) -> SampleSet:
    """The same at the size that the space's RGB tower takes."""
    return Samples.from_folder(folder, sensor="rgb", size=space.input_spec().size)


def new_tower(clip: ClipModel, samples: SampleSet) -> SensorTower:
    """A tower for the samples that starts as the RGB tower."""
    tower, _ = new_student("bench", clip, StudentSettings(), [SENSOR], [samples], seed=0)
    return tower


def main() -> None:
    """Measure and print."""
    arguments = parse_arguments(__doc__.splitlines()[0], repeats=5)
    device = torch.device(choose_device())
    space = EmbeddingSpace(some_clip(data_root())).to(str(device))
    batch_size, steps, number = (16, 3, 64) if arguments.quick else (64, 12, 512)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        scenes = open_synthetic_scenes("train", num_samples=number, size=SIZE)
        pack({"train": scenes}, folder / "store")
        stored = StoreSet(folder / "store", "train")
        parts = Parts(stored, space, batch_size, steps)
        names = (
            "store", "copy", "to_device", "preprocess", "teacher", "student_step", "fed",
        )  # fmt: skip
        seconds = by_turns(
            {one: partial(getattr(parts, one)) for one in names}, repeats=arguments.repeats
        )
        space.add(parts.student.eval())
        write_pictures(folder / "pictures", number)
        half = {"mean": [0.5] * 3, "std": [0.5] * 3, "resize_mode": "shortest"}
        vit = EmbeddingSpace(new_clip(VIT_B_32, half, seed=0)).to(str(device))
        vit.add(new_tower(vit.clip, parts.samples).to(device).eval())
        side = space.input_spec().size
        small = open_synthetic_scenes("train", num_samples=number, size=side)
        pack({"train": small}, folder / "small")
        write_pictures(folder / "small-pictures", number, side)
        of_its_size = {
            f"store-{side}": StoreSet(folder / "small", "train"),
            f"jpeg-{side}": open_pictures(folder / "small-pictures", space),
        }
        embed = {
            name: embedded(
                one,
                {"store": stored, "jpeg": open_pictures(folder / "pictures", one), **others},
                size,
                number=32 if arguments.quick else total,
                repeats=arguments.repeats,
            )
            for name, one, others, size, total in (
                ("small", space, of_its_size, batch_size, NUM_SMALL),
                ("vit-b-32", vit, {}, batch_size // 4, NUM_VIT),
            )
        }
    print_result(
        "feed",
        arguments,
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        readers=num_readers(device),
        sample=[len(parts.layout.bands), SIZE, SIZE],
        batch_size=batch_size,
        samples_per_second={
            one: median([parts.num_samples / turn for turn in seconds[one]]) for one in names
        },
        store_over_copy=median_ratio(seconds["copy"], seconds["store"]),
        fed_over_ready=median_ratio(seconds["student_step"], seconds["fed"]),
        waiting_share=round(max(0.0, 1 - median_ratio(seconds["student_step"], seconds["fed"])), 3),
        embed=embed,
    )


if __name__ == "__main__":
    main()
