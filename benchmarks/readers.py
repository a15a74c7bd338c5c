"""Reading files: CPU time of every hot reader in this checkout, over that in another one.

    python benchmarks/readers.py --against ../other/src --json readers.json

Each checkout runs in a process of its own, over the same files; the two take turns, in changing
order. A ratio is the median over the turns: above 1, this checkout is slower. CPU time, and not
time on the clock, since machines are shared. Without `--against` this checkout is compared with
itself, which shows the noise.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import rasterio
import tomli_w
import torch
from PIL import Image
from rasterio import Affine
from safetensors.torch import save_file

SHIPPED = Path(__file__).resolve().parent.parent / "src" / "terralign" / "recipes"
BANDS = ("B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B09", "B11", "B12")
LEAST_S = 0.2
"""CPU time of one turn, at least."""

_FOLDER = """
name = "photos"
reader = "folder"
sensor = "rgb"
root = "photos"
[classes]
a = "a field"
"""

_TABLE = """
name = "fields"
reader = "table"
table = "samples.{ending}"
root = "."
[sensors.sentinel2-l2a]
column = "path"
bands = ["B02", "B03", "B04", "B08"]
dn_offset = 0
[labels]
form = "single"
column = "crop"
[classes]
1 = "wheat"
2 = "maize"
[columns]
key = "id"
date = "day"
captions = "text"
"""

_SHARDS = """
name = "shards"
reader = "shards"
root = "."
shards = "*.tar"
[sensors.sentinel2-l2a]
member = "npy"
bands = ["B02", "B03", "B04", "B08"]
dn_offset = 0
[labels]
form = "single"
member = "json"
field = "label"
[classes]
1 = "wheat"
2 = "maize"
"""

_SENSOR = 'name = "mine"\nunit = "reflectance"\ndn_scale = 1e-4\n' + "".join(
    f'[[bands]]\nname = "b{number}"\ncenter_nm = {500 + number}\n' for number in range(60)
)


def write_files(folder: Path) -> None:
    """Everything that is read, from the same seed."""
    rng = np.random.default_rng(0)
    photos = folder / "photos" / "a"
    photos.mkdir(parents=True)
    for number in range(8):
        smooth = Image.fromarray(rng.integers(0, 256, (40, 40, 3), dtype=np.uint8))
        picture = smooth.resize((500, 500), Image.Resampling.BICUBIC)
        picture.save(photos / f"{number}.jpg", quality=90)
    picture.save(folder / "photo.png")
    pixels = rng.integers(200, 3000, (64, 12, 120, 120)).astype(np.uint16)
    place: dict[str, Any] = {
        "driver": "GTiff", "dtype": "uint16", "count": 12, "height": 120, "width": 120,
        "crs": "EPSG:32633", "transform": Affine(10, 0, 500_000, 0, -10, 5_000_000),
    }  # fmt: skip
    packed: dict[str, Any] = {"compress": "deflate", "tiled": True}
    packed |= {"blockxsize": 64, "blockysize": 64}
    for name, options in (("plain", {}), ("packed", packed)):
        with rasterio.open(folder / f"{name}.tif", "w", **{**place, **options}) as file:
            file.write(pixels[0])
            file.descriptions = BANDS
    (folder / "s2_l2a").mkdir()
    np.savez_compressed(folder / "s2_l2a" / "patches.npz", pixels=pixels)
    few = 4
    with tarfile.open(folder / "samples.tar", "w") as archive:
        for number in range(100):
            array = io.BytesIO()
            np.save(array, pixels[number % 64, :few, :64, :64])
            label = json.dumps({"label": 1 + number % 2}).encode()
            for ending, data in (("npy", array.getvalue()), ("json", label)):
                info = tarfile.TarInfo(f"{number:04}.{ending}")
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
    (folder / "shards.toml").write_text(_SHARDS)
    (folder / "photos.toml").write_text(_FOLDER)
    (folder / "sensor.toml").write_text(_SENSOR)
    recipe = tomllib.loads((SHIPPED / "quickstart.toml").read_text())
    known = {key: value for key, value in recipe.items() if key not in ("needs", "search")}
    (folder / "recipe.toml").write_text(tomli_w.dumps(known))  # for older checkouts too
    rows = 20_000
    table = pa.table({
        "id": [f"f{number}" for number in range(rows)],
        "path": ["plain.tif"] * rows,
        "crop": [str(1 + number % 2) for number in range(rows)],
        "day": [f"2024-05-{1 + number % 28:02}" for number in range(rows)],
        "text": [f"a field of crop, number {number}" for number in range(rows)],
    })  # fmt: skip
    pq.write_table(table, folder / "samples.parquet")
    with open(folder / "samples.csv", "w") as text:
        text.write(",".join(table.column_names) + "\n")
        text.writelines(
            ",".join(f'"{value}"' for value in row.values()) + "\n" for row in table.to_pylist()
        )
    for ending in ("parquet", "csv"):
        (folder / f"{ending}.toml").write_text(_TABLE.format(ending=ending))
    generator = torch.Generator().manual_seed(0)
    state = {f"layer.{n}.weight": torch.randn(512, 512, generator=generator) for n in range(30)}
    torch.save({"epoch": 1, "state_dict": state}, folder / "zip.pt")
    torch.save({"state_dict": state}, folder / "old.pth", _use_new_zipfile_serialization=False)
    save_file(state, folder / "state.safetensors")
    images = folder / "rsicd" / "RSICD_images"
    images.mkdir(parents=True)
    (folder / "rsicd" / "annotations_rsicd").mkdir()
    entries = []
    for number in range(3_000):
        (images / f"{number}.jpg").touch()
        sentences = [{"raw": f"caption {one} of image {number} ."} for one in range(5)]
        entries.append(
            {"filename": f"{number}.jpg", "imgid": number, "split": "train", "sentences": sentences}
        )
    (images / "0.jpg").write_bytes((photos / "0.jpg").read_bytes())
    captions = folder / "rsicd" / "annotations_rsicd" / "dataset_rsicd.json"
    captions.write_text(json.dumps({"images": entries, "dataset": "rsicd"}))


def readers(folder: Path) -> dict[str, Callable[[], Any]]:
    """What is measured, by name, in the checkout that is imported."""
    import terralign as ta
    from terralign.datasets.catalog import open_dataset
    from terralign.datasets.published.captioned import open_captioned
    from terralign.datasets.store import StoreSet, pack
    from terralign.encoders.clip.weights import read_state_dict
    from terralign.runs.recipe import load_recipe

    torch.set_num_threads(1)
    declared: dict[str, Any] = {"sensor": "sentinel2-l2a", "dn_offset": 0}
    photos = open_dataset(str(folder / "photos.toml"), data_root=folder, split="all", size=224)
    arrays = open_dataset("s2-l2a", data_root=folder, split="all")
    store = folder / f"store-{os.getpid()}"
    pack({"all": arrays}, store)
    packed = StoreSet(store, "all")
    some = np.random.default_rng(1).permutation(64)

    def members() -> None:
        samples = open_dataset(
            str(folder / "shards.toml"), data_root=folder, split="all", to_pack=True
        )
        for index in range(len(samples)):
            samples.read(np.array([index]))

    return {
        "picture JPEG": lambda: ta.open_scene(folder / "photos/a/0.jpg").read(),
        "picture PNG": lambda: ta.open_scene(folder / "photo.png").read(),
        "pictures at 224": lambda: photos.read(np.arange(8)),
        "GeoTIFF": lambda: ta.open_scene(folder / "plain.tif", **declared).read(),
        "GeoTIFF deflate": lambda: ta.open_scene(folder / "packed.tif", **declared).read(),
        "npz": lambda: open_dataset("s2-l2a", data_root=folder, split="all"),
        "tar members": members,
        "packed store": lambda: packed.read(some),
        "table Parquet": lambda: open_dataset(
            str(folder / "parquet.toml"), data_root=folder, split="all"
        ),
        "table CSV": lambda: open_dataset(str(folder / "csv.toml"), data_root=folder, split="all"),
        "checkpoint": lambda: read_state_dict(folder / "zip.pt"),
        "checkpoint legacy": lambda: read_state_dict(folder / "old.pth"),
        "safetensors": lambda: read_state_dict(folder / "state.safetensors"),
        "JSON captions": lambda: open_captioned("rsicd", folder, "train"),
        "TOML recipe": lambda: load_recipe(str(folder / "recipe.toml")),
        "TOML sensor": lambda: ta.load_sensor(folder / "sensor.toml"),
    }


def serve(folder: Path) -> None:
    """Answer each line, a reader's name and how often, with the CPU time that it took."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    known = readers(folder)
    print(json.dumps(list(known)), file=answers, flush=True)
    for line in sys.stdin:
        name, times = json.loads(line)
        start = time.process_time()
        for _ in range(times):
            known[name]()
        print(time.process_time() - start, file=answers, flush=True)


class Checkout:
    """A process that reads with the code of one `src` folder."""

    def __init__(self, source: Path, folder: Path) -> None:
        environment = {**os.environ, "PYTHONPATH": str(source), "OMP_NUM_THREADS": "1"}
        self._process = subprocess.Popen(
            [sys.executable, __file__, "--serve", str(folder)], env=environment, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        self.names: list[str] = json.loads(self._answer())

    def _answer(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit("a checkout ended early; run --serve FOLDER with it to see why")
        return line

    def seconds(self, name: str, times: int) -> float:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps([name, times]) + "\n")
        self._process.stdin.flush()
        return float(self._answer())

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def compare(ours: Checkout, others: Checkout, name: str, repeats: int) -> dict[str, Any]:
    """Milliseconds a call of both, and the median of the turns' ratios."""
    once = max(ours.seconds(name, 2) / 2, others.seconds(name, 2) / 2, 1e-6)
    times = max(1, round(LEAST_S / once))
    ratios, ours_s, others_s = [], [], []
    for turn in range(repeats):
        if turn % 2:
            theirs, mine = others.seconds(name, times), ours.seconds(name, times)
        else:
            mine, theirs = ours.seconds(name, times), others.seconds(name, times)
        ratios.append(mine / theirs)
        ours_s.append(mine)
        others_s.append(theirs)
    return {
        "reader": name,
        "ratio": round(statistics.median(ratios), 4),
        "ours_ms": round(statistics.median(ours_s) / times * 1000, 3),
        "others_ms": round(statistics.median(others_s) / times * 1000, 3),
        "times": times,
        "turns": repeats,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    here = Path(__file__).resolve().parent.parent / "src"
    parser.add_argument("--against", type=Path, default=here, help="src of another checkout")
    parser.add_argument("--repeats", type=int, default=21)
    parser.add_argument("--only", action="append", default=[], help="a reader; repeatable")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--serve", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.serve is not None:
        serve(given.serve)
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_files(folder)
        ours, others = Checkout(here, folder), Checkout(given.against.resolve(), folder)
        rows = []
        for reader in given.only or ours.names:
            rows.append(compare(ours, others, reader, given.repeats))
            row = rows[-1]
            print(f"{reader:20}{row['ours_ms']:>10.3f} ms{row['others_ms']:>10.3f} ms"
                  f"{row['ratio']:>8.3f}", flush=True)  # fmt: skip
        ours.close()
        others.close()
    if given.json:
        given.json.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
