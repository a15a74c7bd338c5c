"""How fast windows of a large scene are read, and in how much memory.

A Sentinel-2 scene of 12 bands in their own resolutions (10, 20 and 60 m), with varied content, is
written to a temporary folder, as tiled GeoTIFFs (deflate, blocks of 512 pixels) or lossless
JPEG 2000 (tiles of 1,024), and read once in windows, by `Scene.read_windows`, in a process of its
own, whose peak of resident memory (`getrusage`) holds everything. `alone`: each window by itself,
as `Scene.read` gives it, some of them.

`--embed MODEL` embeds the GeoTIFFs into a folder of parts as well, in a process of its own, and
compares with the tower's forward pass alone on windows that are ready, by turns.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio import Affine
from rasterio.windows import Window as RasterWindow

from terralign.scenes.scene import open_scene
from terralign.scenes.windows import cut_windows
from terralign.sensors import SENSORS

NAME = "S2A_MSIL2A_20200706T085611_N0214_R007_T33NZA_20200706T153419"
CORNER = (499_980.0, 5_000_040.0)
ALONE = 24
"""Windows that are read by themselves."""
BATCH = 64
NUM_READY = 512
"""Windows that lie ready for the tower alone."""
FORWARDS = 10
"""Times that they go through it, in a turn."""
EMBEDDINGS = 5
"""Turns of embedding the scene, after a first one that is measured for its memory."""


def rows_of(band: int, first: int, count: int, width: int) -> NDArray[np.uint16]:
    """Some rows of a band: hills of several sizes, edges of fields, noise."""
    rng = np.random.default_rng((band, first))
    y, x = np.arange(first, first + count)[:, None], np.arange(width)[None]
    hills = sum(
        np.sin(y / size + band) * np.cos(x / (size * 1.3) - band) * 150 * scale
        for size, scale in ((400, 4), (60, 2), (11, 1))
    )
    fields = 300 * (((x // 37) * 7 + (y // 53) * 13 + band) % 5)
    noise = rng.integers(0, 60, (count, width))
    return (1200 + hills + fields + noise).clip(1, 9000).astype(np.uint16)


def write_scene(root: Path, side: int, *, jp2: bool) -> Path:
    """The folder of a scene of `side` x `side` pixels of 10 m."""
    folder = root / (NAME + ("_jp2" if jp2 else ""))
    folder.mkdir()
    for number, band in enumerate(SENSORS["sentinel2-l2a"].bands):
        factor = int((band.gsd_m or 10) // 10)
        pixels = side // factor
        how: dict[str, Any] = {
            "driver": "GTiff", "tiled": True, "blockxsize": 512, "blockysize": 512,
            "compress": "deflate", "zlevel": 1, "predictor": 2,
        } if not jp2 else {
            "driver": "JP2OpenJPEG", "quality": "100", "reversible": "yes",
            "blockxsize": 1024, "blockysize": 1024, "resolutions": 6,
        }  # fmt: skip
        size = 10 * factor
        with rasterio.open(
            folder / f"{band.name}.{'jp2' if jp2 else 'tif'}", "w", count=1, dtype="uint16",
            height=pixels, width=pixels, crs="EPSG:32633",
            transform=Affine(size, 0, CORNER[0], 0, -size, CORNER[1]), **how,
        ) as file:  # fmt: skip
            if jp2:
                file.write(rows_of(number, 0, pixels, pixels), 1)
                continue
            for first in range(0, pixels, 512):
                part = rows_of(number, first, min(512, pixels - first), pixels)
                file.write(part, 1, window=RasterWindow(0, first, pixels, len(part)))
    return folder


def measure(folder: Path, size: int) -> dict[str, Any]:
    """Read all windows in order; wall and CPU seconds, peak memory, and a sum of the pixels."""
    scene = open_scene(folder)
    windows = cut_windows(scene.height, scene.width, size)
    some = windows[:: max(1, len(windows) // ALONE)]
    start = time.perf_counter()
    for window in some:
        scene.read(window)
    alone = len(some) / (time.perf_counter() - start)
    start, cpu = time.perf_counter(), time.process_time()
    total, first = 0, 0.0
    for number, chip in enumerate(scene.read_windows(windows)):
        total += int(chip.pixels[:, ::16, ::16].sum(dtype=np.int64))
        if number == 0:
            first = time.perf_counter() - start
    wall, cpu = time.perf_counter() - start, time.process_time() - cpu
    stored = sum(path.stat().st_size for path in folder.iterdir())
    sides = [scene.height // int((band.gsd_m or 10) // 10) for band in scene.sensor.bands]
    native = sum(side**2 for side in sides)
    return {
        "side": scene.height,
        "window": size,
        "windows": len(windows),
        "seconds": round(wall, 2),
        "cpu_seconds": round(cpu, 2),
        "windows_per_second": round(len(windows) / wall, 1),
        "windows_per_cpu_second": round(len(windows) / cpu, 1),
        "alone_windows_per_second": round(alone, 1),
        "seconds_to_first": round(first, 2),
        "stored_mpx_per_cpu_second": round(native / cpu / 1e6, 1),
        "stored_mib": round(stored / 2**20),
        "peak_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
        "checksum": total,
    }


def embed(folder: Path, model: str) -> dict[str, Any]:
    """Embed the scene by the model's tower for it, and time the tower alone on ready windows.

    By turns, since machines are shared: a ratio is over the mean of the tower's turns around it.
    """
    import torch

    from terralign.compute import choose_threads, set_threads
    from terralign.encoders.pixels import ready_pixels
    from terralign.encoders.space import EmbeddingSpace
    from terralign.index.embed import embed_scenes

    set_threads(choose_threads(None))  # as the command does
    space = EmbeddingSpace.load(model)
    scene = open_scene(folder)
    tower = space.tower_for(scene.layout)
    spec = space.input_spec(tower)

    def whole() -> tuple[int, float, float]:
        start, cpu = time.perf_counter(), time.process_time()
        with tempfile.TemporaryDirectory() as out:
            found = embed_scenes(space, folder, out, batch_size=BATCH)
        return found.num_vectors, time.perf_counter() - start, time.process_time() - cpu

    turns = [whole()]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    some = cut_windows(scene.height, scene.width, spec.size)[:NUM_READY]
    raw = np.stack([chip.pixels for chip in scene.read_windows(some)])
    ready = ready_pixels(torch.from_numpy(raw), scene.layout, spec, tower=tower)

    def forward() -> float:
        start = time.perf_counter()
        for _ in range(FORWARDS):
            for first in range(0, len(ready), BATCH):
                space.encode_ready(ready[first : first + BATCH], tower=tower)
        return FORWARDS * len(ready) / (time.perf_counter() - start)

    alone = [forward()]
    for _ in range(EMBEDDINGS):
        turns.append(whole())
        alone.append(forward())
    windows, *_ = turns[0]
    rates = [windows / wall for _, wall, _ in turns[1:]]
    return {
        "model": Path(model).name,
        "tower": tower,
        "input": spec.size,
        "threads": torch.get_num_threads(),
        "windows": windows,
        "seconds": [round(wall, 2) for _, wall, _ in turns],
        "cpu_seconds": [round(cpu, 2) for *_, cpu in turns],
        "windows_per_second": round(float(np.median(rates)), 1),
        "forward_windows_per_second": [round(rate, 1) for rate in alone],
        "embed_over_forward": [
            round(2 * rate / (before + after), 3)
            for rate, before, after in zip(rates, alone[:-1], alone[1:], strict=True)
        ],
        "peak_mib": round(peak / 1024),
    }


def main() -> None:
    """Print and write what was measured as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--side", type=int, default=10_980, help="pixels of the GeoTIFFs' scene")
    parser.add_argument("--jp2-side", type=int, default=3_600, help="and of the JPEG 2000 one's")
    parser.add_argument("--window", type=int, default=224, help="pixels of a window's side")
    parser.add_argument("--embed", metavar="MODEL", help="also embed the GeoTIFFs by this model")
    parser.add_argument("--out", type=Path, help="a JSON file to write, too")
    parser.add_argument("--quick", action="store_true", help="small scenes: a smoke test")
    arguments = parser.parse_args()
    sides = {False: arguments.side, True: arguments.jp2_side}
    if arguments.quick:
        sides = {False: 960, True: 480}
    found: dict[str, Any] = {"cores": os.cpu_count(), "load": list(os.getloadavg())}
    spawn = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as root:
        for jp2, side in sides.items():
            start = time.perf_counter()
            folder = write_scene(Path(root), side, jp2=jp2)
            written = round(time.perf_counter() - start, 1)
            with spawn.Pool(1) as pool:
                measured = pool.apply(measure, (folder, arguments.window))
            found["jp2" if jp2 else "geotiff"] = {"seconds_to_write": written, **measured}
            if arguments.embed is not None and not jp2:
                with spawn.Pool(1) as pool:
                    found["embed"] = pool.apply(embed, (folder, arguments.embed))
    text = json.dumps(found, indent=2)
    sys.stdout.write(text + "\n")
    if arguments.out is not None:
        arguments.out.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
