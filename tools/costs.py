"""What the paper's recipe, embedding the land and searching it cost: the tables of docs/scale.md.

    python tools/costs.py --gpu-usd-per-hour 2 --cores-per-gpu 24

Arithmetic over unit costs, of which docs/scale.md says where each is from. `--write` puts the
tables with the defaults into docs/scale.md.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

PAGE = Path(__file__).resolve().parent.parent / "docs" / "scale.md"
BEGIN, END = "<!-- tools/costs.py -->", "<!-- end of tools/costs.py -->"


@dataclass(frozen=True, kw_only=True, slots=True)
class Machine:
    """What the reader may change. The defaults are an H100 with its share of a host."""

    bf16_tflops: float = 989
    """Of dense products, by the maker's data sheet."""
    fp32_tflops: float = 67
    utilisation: float = 0.3
    """The share of these that a training or an embedding reaches; an estimate."""
    gpu_usd_per_hour: float = 3
    """With its share of the host."""
    cores_per_gpu: int = 16
    disk_gb_per_s: float = 2
    """Of the machine's disk, which its GPUs share."""
    network_gb_per_s: float = 1
    copy_gb_per_s: float = 20
    """From the host to each GPU."""
    step_seconds: float = 0.03
    """What a training step takes beside its products; an estimate."""
    link_gb_per_s: float = 100
    """Between GPUs, for the gradients of a step, each of which goes out and comes in once."""


# Counted by torch's FlopCounterMode, per picture of 224 x 224 and forward pass
TFLOP = {"ViT-B/32": 8.82e-3, "ViT-L/14": 162.0e-3, "student": 9.58e-3}
GRADIENTS_GB = {"ViT-B/32": 0.351, "ViT-L/14": 1.216, "student": 0.091}
"""4 bytes for each parameter of the tower."""
BACKWARD = 3
"""A training step against its forward pass."""

# Measured (docs/benchmarks.md)
STORE_PER_CORE = 16_200
"""Samples/s of 12 x 120 x 120 from a store in the system's cache."""
DECODED_PER_CORE = 51
"""The same from one GeoTIFF per band, by worker processes."""
MPX_PER_CORE = {"GeoTIFF": 37, "JPEG 2000": 4.9}
"""Stored megapixels of a scene per second of a core, windows of all bands included."""
NS_PER_PAIR = 20 + 25
"""Of recall@k and map@k, on one core."""
SEARCH_S, OPEN_S, CACHE_GB = 0.26, 21, 1.1
"""Per million float16 vectors of 512 numbers: a search and a first opening on one core, disk."""

# The recipe: samples of BigEarthNet, of half of ImageNet's validation images, of the other tests
TRAIN, VAL, TEST = 269_695, 123_723, 125_866
IMAGENET_HALF = 25_000
OTHER_TESTS = 18_106 + 2 * 5_400 + 6_300 + IMAGENET_HALF
SAMPLE_GB = 12 * 120 * 120 * 2 / 1e9
NUM_ALPHAS = 11

# Scenes of Sentinel-2
SCENE_MPX = (4 * 10_980**2 + 6 * 5_490**2 + 2 * 1_830**2) / 1e6
SCENE_GB = 1.0
WINDOWS = (10_980 // 120) ** 2
SCENE_KM2 = 10_000 / 1.3
"""Land that a scene adds: a tile's net area, less what its edges and coasts take; an estimate."""
PLACES = {"Germany": 358_000, "Europe": 10_200_000, "land without Antarctica": 135_000_000}
"""km2."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Work:
    """A part of a run. `tflop` in all; `samples` that are read; `steps` of training, each with so
    many gradients; `decoded` samples, of one GeoTIFF per band."""

    name: str
    tflop: float
    samples: float
    bf16: bool
    steps: int = 0
    gradients_gb: float = 0
    decoded: int = 0
    core_seconds: float = 0
    """Of the first process alone."""

    def seconds(self, machine: Machine, num_gpus: int) -> dict[str, float]:
        """What each resource takes; the slowest is the time of the work."""
        peak = machine.bf16_tflops if self.bf16 else machine.fp32_tflops
        tower = self.tflop / (peak * machine.utilisation * num_gpus)
        sharing = 2 * self.gradients_gb / machine.link_gb_per_s if num_gpus > 1 else 0
        gb = self.samples * SAMPLE_GB
        cores = machine.cores_per_gpu * num_gpus
        return {
            "tower": tower + self.steps * (machine.step_seconds + sharing),
            "decoding": self.decoded / (DECODED_PER_CORE * cores),
            "reading": self.samples / (STORE_PER_CORE * cores),
            "copying": gb / (machine.copy_gb_per_s * num_gpus),
            "disk": gb / machine.disk_gb_per_s,
            "one core": self.core_seconds,
        }


def recipe(teacher: str, *, inference_bf16: bool) -> list[Work]:
    """The paper's recipe, part by part."""
    tower, student = TFLOP[teacher], TFLOP["student"]
    judged, tested = VAL + IMAGENET_HALF, TEST + OTHER_TESTS
    return [
        Work(name="packing BigEarthNet, once", tflop=0, samples=0, bf16=True,
            decoded=TRAIN + VAL + TEST,
        ),
        Work(
            name="stage 1", tflop=TRAIN * tower * BACKWARD, samples=TRAIN, bf16=True,
            steps=math.ceil(TRAIN / 128), gradients_gb=GRADIENTS_GB[teacher],
        ),
        Work(
            name="sweep, 11 alphas", tflop=judged * tower * NUM_ALPHAS, samples=judged,
            bf16=inference_bf16,
        ),
        Work(
            name="teacher views, 5", tflop=5 * TRAIN * tower, samples=5 * TRAIN,
            bf16=inference_bf16,
        ),
        Work(
            name="stage 2, 5 epochs", tflop=5 * TRAIN * student * BACKWARD, samples=5 * TRAIN,
            bf16=True,
            steps=5 * math.ceil(TRAIN / 256), gradients_gb=GRADIENTS_GB["student"],
        ),
        Work(
            name="evaluation", tflop=tested * (3 * tower + student), samples=4 * tested,
            bf16=inference_bf16,
        ),
        Work(
            name="retrieval, both ways", tflop=0, samples=0, bf16=True,
            core_seconds=2 * TEST**2 * NS_PER_PAIR * 1e-9,
        ),
    ]  # fmt: skip


def _minutes(seconds: float) -> str:
    return f"{seconds / 60:,.0f}" if seconds >= 600 else f"{seconds / 60:.1f}"


def _hours(hours: float) -> str:
    return f"{60 * hours:.1f} min" if hours < 1 else f"{hours:,.1f} h"


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _head(*cells: str) -> list[str]:
    return [_row(cells), f"|{'---|' * len(cells)}"]


def training_table(machine: Machine) -> list[str]:
    """Minutes of each part of the recipe, what bounds it, and hours and money in all."""
    columns = [(teacher, gpus) for teacher in ("ViT-B/32", "ViT-L/14") for gpus in (1, 8)]
    names = [f"{teacher}, {gpus} GPU{'s' * (gpus > 1)}" for teacher, gpus in columns]
    lines = _head("minutes (bounded by)", *names)
    parts = [recipe(teacher, inference_bf16=False) for teacher, _ in columns]
    for works in zip(*parts, strict=True):
        cells = []
        for work, (_, gpus) in zip(works, columns, strict=True):
            seconds = work.seconds(machine, gpus)
            bound = max(seconds, key=lambda name: seconds[name])
            cells.append(f"{_minutes(seconds[bound])} ({bound})")
        lines.append(_row([works[0].name, *cells]))
    for label, bf16 in (("as shipped", False), ('with `inference = "bf16"`', True)):
        cells = []
        for teacher, gpus in columns:
            run = recipe(teacher, inference_bf16=bf16)
            hours = sum(max(one.seconds(machine, gpus).values()) for one in run) / 3600
            cells.append(f"{hours:.1f} h, ${hours * gpus * machine.gpu_usd_per_hour:,.0f}")
        lines.append(_row([f"**in all, {label}**", *cells]))
    return lines


def embedding_table(machine: Machine) -> list[str]:
    """Of each place: scenes, windows, hours of each resource of a GPU with its cores, money."""
    rows: dict[str, list[str]] = {}
    for km2 in PLACES.values():
        scenes = km2 / SCENE_KM2
        windows = scenes * WINDOWS
        tower = windows * TFLOP["student"] / (machine.bf16_tflops * machine.utilisation) / 3600
        network = scenes * SCENE_GB / machine.network_gb_per_s / 3600
        cells = {
            "scenes": f"{scenes:,.0f}",
            "windows": f"{windows / 1e6:,.1f} million",
            "vectors, float16": f"{windows * 512 * 2 / 1e9:,.1f} GB",
            "tower": _hours(tower),
            "network": _hours(network),
        }
        for form, rate in MPX_PER_CORE.items():
            decoding = scenes * SCENE_MPX / rate / machine.cores_per_gpu / 3600
            hours = max(tower, network, decoding)
            cells[f"decoding {form}"] = _hours(decoding)
            cells[f"**in all, {form}**"] = (
                f"{_hours(hours)}, ${hours * machine.gpu_usd_per_hour:,.2f}"
            )
        for name, cell in cells.items():
            rows.setdefault(name, []).append(cell)
    lines = _head("once, at 10 m", *PLACES)
    return lines + [_row([name, *cells]) for name, cells in rows.items()]


def search_lines(machine: Machine, millions: float = 100) -> list[str]:
    """What exact search over so many vectors takes."""
    cores = machine.cores_per_gpu
    size = millions * CACHE_GB
    return [
        f"Exact search of {millions:,.0f} million windows: {size:,.0f} GB of cache, "
        f"{millions * OPEN_S / 60:,.0f} minutes of one core to open first, then "
        f"{millions * SEARCH_S:,.0f} core seconds for each search without filters. With {cores} "
        f"cores and the cache in memory that is {millions * SEARCH_S / cores:.1f} s; from a disk "
        f"of {machine.disk_gb_per_s:g} GB/s it is {size / machine.disk_gb_per_s:.0f} s, which the "
        "disk bounds. It needs no GPU.",
    ]


def text(machine: Machine) -> str:
    """All of it, as Markdown."""
    parts = (training_table(machine), embedding_table(machine), search_lines(machine))
    return "\n\n".join("\n".join(lines) for lines in parts)


def page_with(tables: str, page: str) -> str:
    """A page with the tables between their marks."""
    before, rest = page.split(BEGIN)
    return f"{before}{BEGIN}\n\n{tables}\n\n{END}{rest.split(END)[1]}"


def main() -> None:
    """Print, or write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    for field in fields(Machine):
        option = f"--{field.name.replace('_', '-')}"
        parser.add_argument(option, type=float, default=field.default, metavar="NUMBER")
    parser.add_argument("--write", action="store_true", help="into docs/scale.md, with defaults")
    given = vars(parser.parse_args())
    if given.pop("write"):
        PAGE.write_text(page_with(text(Machine()), PAGE.read_text("utf-8")), "utf-8")
        return
    if min(given.values()) <= 0:
        parser.error("every number must be above 0")
    print(text(Machine(**given)))


if __name__ == "__main__":
    main()
