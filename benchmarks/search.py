"""Exact search over a folder of parts: time, disk per vector type, and what each type finds.

A folder of N vectors of D numbers, unit length, in clusters with a decaying spectrum; text-like
queries lie away from all of them, as text does (cosines of about 0.4 to the best). Vectors are made
at run time. Times are medians over the queries on this machine's cores; `cpu_ms` is that of the
whole process, which other work on the machine does not change.

Measures: opening the folder the first time (its cache is made) and again; a search over all rows,
and under filters; disk of the parts and of the cache; recall@10 of float16 and int8 vectors against
float32. `--full` has 1,000,000 x 512. `--index` measures the index of `terralign index` instead, on
vectors as real embeddings lie (`search_index.py`, `lifelike.py`).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import shapely
import torch

from terralign.chips import Window
from terralign.compute import choose_threads, set_threads
from terralign.encoders.vectors import as_unit
from terralign.index.filters import make_filters, rows_meeting
from terralign.index.parts import (
    FORMAT_VERSION,
    VECTOR_TYPES,
    PartFacts,
    PartRows,
    VectorType,
    write_part,
)
from terralign.index.search import Index, cosines, open_index

NUM_QUERIES = 20
WINDOWS_A_SCENE = 25_000
DEGREES = 1.0
"""Side of a scene."""


def main() -> None:
    """Make the folder, measure, print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--full", action="store_true", help="1,000,000 x 512 (minutes, 6 GB)")
    parser.add_argument("--num", type=int, default=100_000)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--index", action="store_true", help="the index against exact search")
    parser.add_argument("--pq", action="store_true", help="with --index: codes")
    parser.add_argument("--recall", type=float, default=0.95, help="that --index asks for")
    parser.add_argument("--keep", type=Path, help="with --index: a folder to work in, and to keep")
    arguments = parser.parse_args()
    set_threads(choose_threads())
    num = 1_000_000 if arguments.full else arguments.num
    with tempfile.TemporaryDirectory() as folder:
        if arguments.index:
            from lifelike import Lifelike
            from search_index import measure_index

            root = arguments.keep or Path(folder)
            root.mkdir(parents=True, exist_ok=True)
            world = Lifelike(arguments.dim, kept=root / "real.npy")
            parts = root / f"{num}x{arguments.dim}"
            if not parts.is_dir():
                write_folder(parts, world, num, "float16")
            kind = "pq" if arguments.pq else "flat"
            found = measure_index(parts, world, num, arguments.recall, kind)
            what = {"benchmark": "search --index", "kind": kind, "vectors": num}
            what |= {"dimensions": arguments.dim, "recall": arguments.recall}
            print(json.dumps({**what, **found, **machine()}, indent=2))
            return
        print(json.dumps(measure(Path(folder), num, arguments.dim), indent=2))


def measure(folder: Path, num: int, dim: int) -> dict[str, Any]:
    """Everything, by vector type."""
    world = World(dim)
    queries = world.queries(NUM_QUERIES)
    found: dict[str, Any] = {}
    exact: list[np.ndarray[Any, Any]] = []
    for kind in ("float32", *(one for one in VECTOR_TYPES if one != "float32")):
        path = folder / kind
        seconds = write_folder(path, world, num, kind)
        result: dict[str, Any] = {"write_s": round(seconds, 1)}
        start = time.perf_counter()
        open_index(path)
        result["first_open_s"] = round(time.perf_counter() - start, 2)
        start = time.perf_counter()
        index = open_index(path)
        result["open_ms"] = round(1e3 * (time.perf_counter() - start), 1)
        result["parts_mb"] = round(sum(one.stat().st_size for one in path.glob("*.parquet")) / 1e6)
        cached = (path / ".cache").iterdir()
        result["cache_mb"] = round(sum(one.stat().st_size for one in cached) / 1e6)
        best = [top(scan(index, query, {})) for query in queries]
        exact = exact or best
        shared = [len(set(a) & set(b)) / 10 for a, b in zip(best, exact, strict=True)]
        result["recall_at_10"] = round(statistics.mean(shared), 4)
        result["search"] = {
            name: timed(index, queries, filters) for name, filters in world.filters.items()
        }
        found[kind] = result
    return {
        "benchmark": "search",
        "vectors": num,
        "dimensions": dim,
        "queries": NUM_QUERIES,
        "types": found,
        **machine(),
    }


def machine() -> dict[str, Any]:
    """What it was measured on."""
    return {
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "load": os.getloadavg()[0],
        "machine": platform.machine(),
        "torch": torch.__version__,
    }


class World:
    """Vectors in clusters around a common mean, and queries away from them."""

    filters: dict[str, dict[str, Any]]

    def __init__(self, dim: int) -> None:
        rng = np.random.default_rng(0)
        self.dim = dim
        self.spectrum = (1 / np.sqrt(1 + np.arange(dim))).astype(np.float32)
        self.mean = 0.5 * rng.normal(size=dim).astype(np.float32) / np.sqrt(dim)
        self.centres = rng.normal(size=(2000, dim)).astype(np.float32) * self.spectrum
        self.filters = {
            "all": {},
            "one_scene_in_40": {"bbox": (0.0, 0.0, DEGREES * 0.9, DEGREES * 0.9)},
            "a_tenth_of_a_scene": {"bbox": (0.0, 0.0, DEGREES * 0.3, DEGREES * 0.3)},
            "half_the_dates": {"start": "2022-01-01"},
        }

    def vectors(self, num: int, seed: int) -> np.ndarray[Any, np.dtype[np.float32]]:
        """(num, D) of unit length."""
        rng = np.random.default_rng(seed)
        own = rng.normal(size=(num, self.dim)).astype(np.float32) * self.spectrum
        return as_unit(self.centres[rng.integers(0, 2000, num)] + 0.5 * own + self.mean)

    def queries(self, num: int) -> np.ndarray[Any, np.dtype[np.float32]]:
        """(num, D): a vector, and as much of a direction that no vector has."""
        rng = np.random.default_rng(1_000_000)
        away = as_unit(rng.normal(size=(num, self.dim)))
        return as_unit(self.vectors(num, 1_000_000) * 0.6 + away)


def write_folder(folder: Path, world: Any, num: int, kind: VectorType) -> float:
    """Scenes of 25,000 windows, side by side; seconds of writing alone."""
    seconds = 0.0
    side = int(np.sqrt(WINDOWS_A_SCENE))
    for number in range(-(-num // WINDOWS_A_SCENE)):
        size = min(WINDOWS_A_SCENE, num - number * WINDOWS_A_SCENE)
        across, down = np.arange(size) % (side + 1), np.arange(size) // (side + 1)
        step = DEGREES / (side + 1)
        west = (number % 180) * DEGREES + across * step
        south = (number // 180) * DEGREES + down * step
        rows = PartRows(
            windows=[Window(row=int(d) * 64, column=int(a) * 64, height=64, width=64)
                     for a, d in zip(across, down, strict=True)],
            shapes=shapely.box(west, south, west + step, south + step),
            centres=np.stack([west + step / 2, south + step / 2], 1),
            valid_shares=np.ones(size, np.float32),
            clouds=np.full(size, np.nan, np.float32),
            vectors=world.vectors(size, number),
            datetime=None if number % 2 else _noon(2022),
        )  # fmt: skip
        start = time.perf_counter()
        write_part(folder / f"{number:06d}.parquet", rows, facts_of_scene(number, world.dim, kind))
        seconds += time.perf_counter() - start
    return seconds


def _noon(year: int) -> Any:
    import datetime as dt

    return dt.datetime(year, 7, 6, 12, tzinfo=dt.UTC)


def facts_of_scene(number: int, dim: int, kind: VectorType) -> PartFacts:
    """What the footer states."""
    return PartFacts(
        format=FORMAT_VERSION, key=f"{number:016x}", identity=f"{number:016x}", stamps="",
        source=f"scene-{number}", scene=f"scene-{number}", sensor="sentinel2-l2a", bands=("B02",),
        dn_offset=0.0, space_id="0" * 16, tower="s2", tower_id="1" * 16, model="", dim=dim,
        vector_type=kind, logit_scale=100.0, self_check=(1.0,), window_px=64, stride_px=64,
        gsd_m=10, scene_gsd_m=10, min_valid=0, max_cloud=None, num_windows=WINDOWS_A_SCENE,
        num_invalid=0, num_cloudy=0,
    )  # fmt: skip


def scan(
    index: Index, query: np.ndarray[Any, Any], filters: dict[str, Any]
) -> np.ndarray[Any, Any]:
    """The cosines of a search, filters included."""
    numbers = rows_meeting(index._store, make_filters(**filters))
    return cosines(index._store.vectors, query, numbers)


def top(scores: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Numbers of the ten best."""
    chosen = np.argpartition(-scores, 9)[:10]
    return chosen[np.argsort(-scores[chosen])]


def timed(index: Index, queries: np.ndarray[Any, Any], filters: dict[str, Any]) -> dict[str, float]:
    """Medians over the queries: wall and CPU milliseconds of filter, comparison and ten best."""

    def run(query: np.ndarray[Any, Any]) -> Callable[[], int]:
        def once() -> int:
            scores = scan(index, query, filters)
            top(scores)
            return len(scores)

        return once

    wall, cpu, rows = [], [], 0
    for query in queries:
        once = run(query)
        start, used = time.perf_counter(), time.process_time()
        rows = once()
        wall.append(1e3 * (time.perf_counter() - start))
        cpu.append(1e3 * (time.process_time() - used))
    return {
        "rows": rows,
        "p50_ms": round(statistics.median(wall), 1),
        "cpu_ms": round(statistics.median(cpu), 1),
    }


if __name__ == "__main__":
    main()
