"""Reading data: samples per second from GeoTIFFs, tars and the packed store, by the batch.

The same Sentinel-2 scenes (12 bands, uint16 DN, 64 and 120 pixels) in the forms in which data sets
come: one GeoTIFF per scene, one GeoTIFF per band (as BigEarthNet), tars of `.npy` (WebDataset),
compressed tars of `.pth` (as the paper's code reads), and terralign's packed store. Batches of 64,
shuffled; from the GeoTIFFs and the store in a plan's random order, from tars one shard after
another. One process reads ahead with two threads, or two worker processes do.

All files are in the system's cache when they are read, but for `store_cold`: there every page of
the store is dropped first and the store opened anew. A disk that lies behind another cache (that
of a virtual machine's host) is not as cold as it may be.
"""

from __future__ import annotations

import importlib
import importlib.util
import io
import itertools
import os
import tarfile
import tempfile
import time
from argparse import Namespace
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import rasterio
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset

from terralign.chips import PixelLayout
from terralign.datasets.batches import Plan, stream_batches
from terralign.datasets.file_set import FileSet
from terralign.datasets.pixels import Pixels as Files
from terralign.datasets.published import geotiffs
from terralign.datasets.sample import Captions, Labels, SampleSet
from terralign.datasets.store import PackSettings, StoreSet, pack
from terralign.datasets.synthetic import open_synthetic_scenes
from terralign.read_ahead import read_ahead
from terralign.sensors import SENSORS

SENSOR = SENSORS["sentinel2-l2a"]
BATCH_SIZE = 64
NUM_READERS = 2
"""Threads of the one process, or worker processes."""
FIRST = 4
"""Batches from worker processes that are not timed: they start one after the other."""
BATCHES = {"geotiff": 4, "geotiff_per_band": 2, "webdataset": 16, "pth_in_tar_gz": 4}
"""Batches of a turn; a turn of the store is one epoch."""
WEBDATASET = "webdataset" if importlib.util.find_spec("webdataset") else "tarfile and numpy"

Pixels = NDArray[np.uint16]
"""(B, 12, H, W) DN."""
Stream = Callable[[int, int], Generator[Any, None, None]]
"""Number of batches, number of worker processes (0: threads) -> the batches."""


class Scenes:
    """A `SampleSet` of `num_samples`, made of few scenes that repeat."""

    def __init__(self, scenes: Pixels, layout: PixelLayout, num_samples: int) -> None:
        self.name, self.split = "benchmark-scenes", "train"
        self.layouts = {SENSOR.name: layout}
        self.keys = tuple(f"{number:06d}" for number in range(num_samples))
        self.labels: Labels | None = None
        self.captions: Captions | None = None
        self.prompts: tuple[str, ...] | None = None
        self.fingerprint = f"{num_samples}x{scenes.shape[-1]}"
        self._scenes = scenes

    def __len__(self) -> int:
        return len(self.keys)

    def read(self, indices: NDArray[np.int64]) -> dict[str, NDArray[Any]]:
        return {SENSOR.name: self._scenes[indices % len(self._scenes)]}


def write_geotiff(path: Path, pixels: Pixels, gsd_m: float) -> None:
    """(C, H, W) as an uncompressed GeoTIFF in UTM, as the data sets have them."""
    with rasterio.open(
        path, "w", driver="GTiff", dtype="uint16", count=len(pixels), height=pixels.shape[1],
        width=pixels.shape[2], crs="EPSG:32633",
        transform=rasterio.Affine(gsd_m, 0.0, 500_000.0, 0.0, -gsd_m, 5_000_000.0),
    ) as file:  # fmt: skip
        file.write(pixels)


def write_bands(folder: Path, pixels: Pixels) -> None:
    """One GeoTIFF per band, each at its own resolution."""
    folder.mkdir()
    for band, channel in zip(SENSOR.bands, pixels, strict=True):
        side = _native_side(band.gsd_m, channel.shape[-1])
        rows = np.arange(side) * channel.shape[-1] // side
        path = folder / f"{band.name}.tif"
        write_geotiff(path, channel[np.ix_(rows, rows)][None], band.gsd_m or 10.0)


def _native_side(gsd_m: float | None, side: int) -> int:
    return round(side * 10 / (gsd_m or 10))


def read_scene(path: Path) -> dict[str, NDArray[Any]]:
    """One GeoTIFF of all bands, as the reader of folders does."""
    files = Files(sensor=SENSOR, bands=SENSOR.band_names, dn_offset=0.0, units="dn")
    return {SENSOR.name: files.read(path).pixels}


def read_bands(folder: Path, side: int) -> dict[str, NDArray[Any]]:
    """A folder of bands, brought to one grid, as the readers of BigEarthNet do."""
    bands = [
        geotiffs.read_bands(
            folder / f"{band.name}.tif",
            count=1,
            side=_native_side(band.gsd_m, side),
            dtypes=("uint16",),
            out_side=side,
        )
        for band in SENSOR.bands
    ]
    return {SENSOR.name: np.concatenate(bands)}


def write_tar(path: Path, scenes: Pixels, suffix: str) -> None:
    """A shard of one member per scene: `.npy`, or `.pth` in a compressed tar."""
    mode: Literal["w|", "w|gz"] = "w|gz" if suffix == "pth" else "w|"
    with open(path, "wb") as raw, tarfile.open(fileobj=raw, mode=mode) as tar:
        for number, scene in enumerate(scenes):
            content = io.BytesIO()
            if suffix == "pth":
                torch.save({"pixels": torch.from_numpy(scene)}, content)
            else:
                np.save(content, scene, allow_pickle=False)
            member = tarfile.TarInfo(f"{path.name.partition('.')[0]}-{number:04d}.{suffix}")
            member.size = content.tell()
            content.seek(0)
            tar.addfile(member, content)


def read_tar(path: Path) -> Pixels:
    """All scenes of a shard, one batch, read from its first byte to its last."""
    scenes = []
    with tarfile.open(path, "r|gz" if path.suffix == ".gz" else "r|") as tar:
        for member in tar:
            file = tar.extractfile(member)
            assert file is not None
            content = io.BytesIO(file.read())
            if member.name.endswith(".pth"):
                scenes.append(torch.load(content, weights_only=True)["pixels"].numpy())
            else:
                scenes.append(np.load(content, allow_pickle=False))
    return np.stack(scenes)


class Shards(Dataset[Pixels]):
    """Item `step` is the batch of the shard that is due."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths = list(paths)

    def __getitem__(self, step: int) -> Pixels:
        return read_tar(self.paths[step % len(self.paths)])


def stream_shards(paths: Sequence[Path], num: int, workers: int) -> Generator[Any, None, None]:
    """`num` batches from tars, by threads or by worker processes."""
    shards = Shards(paths)
    if not workers:
        yield from read_ahead(
            shards.__getitem__, range(num), depth=NUM_READERS + 2, num_threads=NUM_READERS
        )
        return
    yield from DataLoader(
        shards, batch_size=None, sampler=range(num), num_workers=workers, collate_fn=as_is,
        multiprocessing_context="spawn", worker_init_fn=one_thread,
    )  # fmt: skip


def stream_webdataset(paths: Sequence[Path], num: int, workers: int) -> Generator[Any, None, None]:
    """The same through the package `webdataset`; without workers it reads as it is asked."""
    wds = importlib.import_module("webdataset")
    urls = [str(path) for path in paths] * num
    scenes = wds.WebDataset(urls, shardshuffle=len(urls)).decode().to_tuple("npy")
    loader: DataLoader[Any] = DataLoader(
        scenes.batched(BATCH_SIZE),
        batch_size=None,
        num_workers=workers,
        collate_fn=as_is,
        worker_init_fn=one_thread if workers else None,
        multiprocessing_context="spawn" if workers else None,
    )
    yield from itertools.islice(loader, num)


def as_is(batch: Any) -> Any:
    """No conversion."""
    return batch


def one_thread(worker: int) -> None:
    """Torch's threads of a worker process."""
    torch.set_num_threads(1)


def stream_plan(source: SampleSet, num: int, workers: int) -> Generator[Any, None, None]:
    """`num` batches in a plan's random order."""
    plan = Plan([len(source)], batch_size=BATCH_SIZE, seed=0)
    return stream_batches([source], plan, stop=num, num_threads=NUM_READERS, num_workers=workers)


def stream_store(folder: Path, num: int, workers: int) -> Generator[Any, None, None]:
    """The same from a store that is opened first."""
    yield from stream_plan(StoreSet(folder, "train"), num, workers)


def drop_cached(store: Path) -> None:
    """Ask the system to forget every page of a store's files."""
    for path in store.rglob("*"):
        if path.is_file():
            with open(path, "rb") as file:
                os.fsync(file.fileno())
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def share_cached(store: Path) -> float:
    """The share of a store's shards that reads without the disk, from a page in every MiB."""
    found = []
    for path in sorted(store.rglob("*.safetensors")):
        with open(path, "rb", buffering=0) as file:
            for offset in range(0, path.stat().st_size, 2**20):
                try:
                    os.preadv(file.fileno(), [bytearray(1)], offset, os.RWF_NOWAIT)
                    found.append(True)
                except BlockingIOError:
                    found.append(False)
    return round(sum(found) / len(found), 3)


def seconds_per_batch(stream: Stream, num: int, *, workers: int) -> float:
    """Seconds per batch; from worker processes those of the first batches are left out."""
    first = FIRST if workers else 0
    times = [time.perf_counter()]
    with closing(stream(first + num, workers)) as batches:
        times += [time.perf_counter() for _ in batches]
    return (times[-1] - times[first]) / num


class Forms:
    """The scenes of one size in every form, in `folder`."""

    def __init__(self, folder: Path, side: int, *, num_files: int, num_samples: int) -> None:
        scenes = open_synthetic_scenes("train", num_samples=num_files, size=side)
        layout = scenes.layouts[SENSOR.name]
        pixels = scenes.read(np.arange(num_files))[SENSOR.name].astype(np.uint16)
        self.store = folder / "store"
        self.num_store = num_samples // BATCH_SIZE
        tiffs, bands, tars = (folder / name for name in ("geotiff", "bands", "tars"))
        for path in (tiffs, bands, tars):
            path.mkdir(parents=True)
        keys = [f"{number:04d}" for number in range(num_files)]
        for key, scene in zip(keys, pixels, strict=True):
            write_geotiff(tiffs / f"{key}.tif", scene, 10.0)
            write_bands(bands / key, scene)
        shards = {"npy": "tar", "pth": "tar.gz"}
        for number, start in enumerate(range(0, num_files, BATCH_SIZE)):
            for suffix, ending in shards.items():
                path = tars / f"{number:03d}-{suffix}.{ending}"
                write_tar(path, pixels[start : start + BATCH_SIZE], suffix)
        pack(
            {"train": Scenes(pixels, layout, num_samples)},
            self.store,
            PackSettings(shard_bytes=64 * 2**20),
            has_splits=False,
        )
        files = partial(
            FileSet, name="scenes", split="train", layouts={SENSOR.name: layout},
            keys=tuple(keys), content=[],
        )  # fmt: skip
        whole = files(files=tuple(tiffs / f"{key}.tif" for key in keys), decode=read_scene)
        apart = files(
            files=tuple(bands / key for key in keys), decode=partial(read_bands, side=side)
        )
        read_tars = stream_webdataset if WEBDATASET == "webdataset" else stream_shards
        self.streams: dict[str, Stream] = {
            "geotiff": partial(stream_plan, whole),
            "geotiff_per_band": partial(stream_plan, apart),
            "webdataset": partial(read_tars, sorted(tars.glob("*.tar"))),
            "pth_in_tar_gz": partial(stream_shards, sorted(tars.glob("*.tar.gz"))),
        }
        self.left_cached = 0.0

    def variants(self, *, workers: int, quick: bool) -> dict[str, Callable[[], float]]:
        """What `by_turns` takes: every form, and the store cold before it is warm."""
        found: dict[str, Callable[[], float]] = {
            name: partial(seconds_per_batch, stream, 2 if quick else BATCHES[name], workers=workers)
            for name, stream in self.streams.items()
        }
        # Worker processes leave out their first batches, of which a cold epoch has no second.
        num = self.num_store - (FIRST if workers else 0)
        from_store = partial(seconds_per_batch, partial(stream_store, self.store), workers=workers)

        def cold() -> float:
            drop_cached(self.store)
            self.left_cached = max(self.left_cached, share_cached(self.store))
            return from_store(num)

        return {**found, "store_cold": cold, "store_warm": lambda: from_store(num)}


def measure(forms: Forms, arguments: Namespace, *, workers: int) -> dict[str, Any]:
    """Samples per second of every form, and how often the store's that is."""
    from measuring import by_turns, median, median_ratio

    variants = forms.variants(workers=workers, quick=arguments.quick)
    if workers and arguments.quick:
        variants = {name: variants[name] for name in ("geotiff", "store_warm")}
    if workers:  # their start takes most of the time: one turn
        seconds = {name: [run()] for name, run in variants.items()}
    else:
        seconds = by_turns(variants, repeats=arguments.repeats)
    others = [name for name in seconds if not name.startswith("store")]
    return {
        "samples_per_second": {
            name: median([BATCH_SIZE / one for one in turns]) for name, turns in seconds.items()
        },
        **{
            f"{store}_over": {name: median_ratio(seconds[name], seconds[store]) for name in others}
            for store in ("store_warm", "store_cold")
            if store in seconds
        },
    }


def main() -> None:
    """Measure and print."""
    # Only here: a worker process imports this file, and need not load what the measuring does.
    from measuring import parse_arguments, print_result

    arguments = parse_arguments(__doc__.splitlines()[0], repeats=3)
    num_files, num_samples = (64, 512) if arguments.quick else (256, 1536)
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        for side in (64,) if arguments.quick else (64, 120):
            forms = Forms(
                Path(folder) / str(side), side, num_files=num_files, num_samples=num_samples
            )
            results[f"{side} px"] = {
                "one_process": measure(forms, arguments, workers=0),
                "two_workers": measure(forms, arguments, workers=NUM_READERS),
                "share_cached_when_cold": forms.left_cached,
            }
    print_result(
        "data",
        arguments,
        batch_size=BATCH_SIZE,
        bands=len(SENSOR.bands),
        samples={"files": num_files, "store": num_samples},
        webdataset_reader=WEBDATASET,
        sizes=results,
    )


if __name__ == "__main__":
    main()
