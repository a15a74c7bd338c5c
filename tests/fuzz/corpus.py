"""Small valid files of every format and reader, made at run time, and how a user reads them."""

from __future__ import annotations

import csv
import gzip
import io
import json
import sys
import tarfile
import zipfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import open_clip.factory
import pyarrow as pa
import pyarrow.parquet as pq
import rasterio
import shapely
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image
from rasterio import Affine
from rasterio.io import MemoryFile
from safetensors.numpy import save as save_tensors

import terralign as ta
from fake_world import pictures, satellites
from fake_world.files import (
    write_optical,
    write_picture,
    write_radar,
    write_tif,
    write_v1_json,
    write_v1_radar_json,
)
from fake_world.models import STUDENT, STUDENT_SIZE, write_checkpoint
from fakes import input_spec
from imagery import NEW_PRODUCT, S2, dn, space_of
from terralign.bench.run import run_bench
from terralign.bench.suite import load_suite
from terralign.cli import main
from terralign.datasets.class_lists import load_class_list
from terralign.datasets.sample import Located
from terralign.datasets.store.files import probe_file
from terralign.datasets.unpack import unpack
from terralign.encoders.clip.load import ClipModel, load_clip, new_clip, save_clip
from terralign.encoders.clip.weights import read_state_dict, write_state_dict
from terralign.encoders.compact import save_compact
from terralign.encoders.ms_clip import load_ms_clip
from terralign.encoders.sensor import TowerConfig, build_tower, load_initial_weights
from terralign.files import hash_file
from terralign.runs.recipe import load_recipe
from terralign.runs.run import run_recipe
from terralign.sensors import SENSORS

LABELS = ["forest", "a river", "town"]
ARCHITECTURE = "fuzz-vit"
"""The name by which open_clip finds the small architecture of the corpus."""

CONFIG: dict[str, Any] = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "patch_size": 16, "width": 32, "head_width": 16, "layers": 1},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 8, "heads": 2, "layers": 1},
}


@dataclass(frozen=True, kw_only=True)
class Entry:
    """Valid files of one kind.

    `write` makes them in an empty folder; `read` reads all of them there, as a user would. `kept`
    are name endings of files that are not damaged. `sealed` repairs checksums after the damage, so
    that it reaches what they protect. `part`: the part of the library whose readers it is.
    """

    name: str
    part: str
    write: Callable[[Path], None]
    read: Callable[[Path], Any]
    kept: tuple[str, ...] = ()
    sealed: Callable[[Path], None] | None = None


@dataclass
class Shared:
    """What entries share: made once, and damaged by none."""

    folder: Path
    clip: ClipModel
    space: ta.EmbeddingSpace
    student: Any


_shared: list[Shared] = []


def prepare(folder: Path) -> None:
    """Make what entries share in `folder`; call it before any entry is written or read."""
    torch.set_num_threads(1)
    pa.set_cpu_count(1)
    Figure.savefig = _save_blank
    open_clip.factory._MODEL_CONFIGS[ARCHITECTURE] = CONFIG
    clip = new_clip(CONFIG, {"mean": [0.48, 0.46, 0.41], "std": [0.27, 0.26, 0.28]}, seed=0)
    folder.mkdir(parents=True)
    save_clip(clip, _made(folder / "clip"))
    space = ta.load(space_of(clip).save(folder / "space"))
    spec = input_spec(S2.name, S2.band_names, (0.0, 0.4), size=STUDENT_SIZE)
    student = build_tower(
        TowerConfig(name="s2", backbone=STUDENT, input=spec, embed_dim=clip.dim), clip
    )
    _shared[:] = [Shared(folder, clip, space, student)]


def _save_blank(figure: Figure, out: Any, **options: Any) -> None:
    """Drawing figures takes most of the time of small runs, and reads no file."""
    Image.new("RGB", (8, 8)).save(out, format="PNG")


def shared() -> Shared:
    (one,) = _shared
    return one


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def command(*arguments: str) -> Callable[[Path], None]:
    """Run a command in the folder; `{model}`: the shared open_clip folder, `{space}`: the space."""

    def run(folder: Path) -> None:
        models = {name: str(shared().folder / name) for name in ("clip", "space")}
        given = [one.format(**models) for one in arguments]
        try:
            main.main(["--quiet", *given], prog_name="terralign")
        except SystemExit as end:
            if end.code:
                raise

    return run


def read_samples(
    name: str, folder: Path, *splits: str, size: int | None = None, limit: int = 40
) -> None:
    """Open splits of a data set, and read their samples and places."""
    for split in splits or ("all",):
        samples = ta.Samples.open(name, data_root=folder, split=split, size=size)
        for index in range(min(limit, len(samples))):
            samples.read(np.array([index]))
            if isinstance(samples, Located):
                samples.place(index)


# Weights and models


def _write_weights(folder: Path, *, file: str, **options: Any) -> None:
    state = shared().clip.model.state_dict()
    if file.endswith(".safetensors"):
        write_state_dict(folder / file, state)
    else:
        torch.save({"epoch": 3, "state_dict": state}, folder / file, **options)


def _read_clip(folder: Path, *, file: str) -> None:
    load_clip(f"{ARCHITECTURE}:{folder / file}")


def _write_space(folder: Path) -> None:
    shared().space.save(folder / "model")


def _write_compact(folder: Path) -> None:
    save_compact(shared().space, folder / "model", base=shared().space)


def seal_space(folder: Path) -> None:
    """Write the true hashes of all files into `space.json`, where it still lists any."""
    path = folder / "model" / "space.json"
    if not path.is_file():  # reading a named pipe would wait
        return
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        for name, kept in content["files"].items():
            if (path.parent / name).is_file():
                kept["sha256"] = hash_file(path.parent / name)
                kept["bytes"] = (path.parent / name).stat().st_size
        path.write_text(json.dumps(content), encoding="utf-8")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return


def _write_ms_clip(folder: Path) -> None:
    state = {key: value.clone() for key, value in shared().clip.model.state_dict().items()}
    filters = state["visual.conv1.weight"]
    state["visual.conv1.weight"] = filters.repeat(1, 4, 1, 1)[:, :10].clone()
    prefixes = ("clip_base_model.model.", "text_encoder.model.", "image_encoder.model.")
    values = {f"{prefix}{key}": value for prefix in prefixes for key, value in state.items()}
    torch.save({**values, "temperature": torch.tensor(0.05)}, folder / "ms_clip.pt")


def _read_student(folder: Path) -> None:
    path = folder / "B12_vits16_mae_0099_ckpt.pth"
    load_initial_weights(shared().student, path, bands=S2.band_names)


def _write_vectors(folder: Path) -> None:
    write_tif(folder / "tile.tif", dn(32))
    space = shared().space
    found = space.embed(
        folder / "tile.tif", sensor=S2, bands=S2.band_names, dn_offset=0, tower="s2", window=16
    )
    (folder / "tile.tif").unlink()
    found.save(folder / "tiles.parquet")


# Pictures and rasters


def _picture(mode: str = "RGB", size: tuple[int, int] = (40, 36)) -> Image.Image:
    numbers = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    box = (0, 0, size[0] / 4, size[1] / 4)
    smooth = Image.fromarray(numbers).resize(size, Image.Resampling.BILINEAR, box=box)
    return smooth.convert(mode)


def _write_pictures(folder: Path, *, kind: str, mode: str = "RGB", **options: Any) -> None:
    _picture(mode).save(folder / f"photo.{kind}", **options)


def _classify(folder: Path, *, kind: str) -> None:
    shared().space.classify(folder / f"photo.{kind}", LABELS, prompts=["{}"])


def _exif() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = 6
    exif[0x010E] = "a picture"
    return exif


def _write_raster(
    folder: Path, *, mask: bool = False, dtype: str = "uint16", **options: Any
) -> None:
    pixels = dn(64)
    if dtype != "uint16":
        pixels = (pixels / 16 if dtype == "uint8" else pixels / 10_000).astype(dtype)
    count = 3 if options.get("compress") == "jpeg" else 12
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True), rasterio.open(
        folder / "scene.tif", "w", driver="GTiff", dtype=dtype, count=count, height=64,
        width=64, crs="EPSG:32633", transform=Affine(10, 0, 500_000, 0, -10, 5_000_000),
        **options,
    ) as file:  # fmt: skip
        file.write(pixels[:count])
        if count == 12:
            file.descriptions = S2.band_names
        if mask:
            file.write_mask(np.tri(64, dtype=np.uint8) * 255)


def _classify_scene(folder: Path, **declared: Any) -> None:
    space = shared().space
    path = folder / "scene.tif"
    chip = ta.open_scene(path, sensor=S2, **declared).read()
    space.classify(path, LABELS, sensor=S2, prompts=["{}"], **declared)
    space.classify(chip, LABELS, prompts=["{}"])


def _classify_rgb_scene(folder: Path) -> None:
    shared().space.classify(folder / "scene.tif", LABELS, sensor="rgb", prompts=["{}"])


_XML = (
    '<?xml version="1.0" encoding="UTF-8" standalone="no"?>'
    '<n1:Level-2A_User_Product xmlns:n1="https://example.org/PSD/User_Product_Level-2A.xsd">'
    "<n1:General_Info><Product_Info><PROCESSING_BASELINE>04.00</PROCESSING_BASELINE>"
    "</Product_Info><Product_Image_Characteristics><BOA_ADD_OFFSET_VALUES_LIST>"
    + "".join(f'<BOA_ADD_OFFSET band_id="{one}">-1000</BOA_ADD_OFFSET>' for one in range(13))
    + "</BOA_ADD_OFFSET_VALUES_LIST></Product_Image_Characteristics></n1:General_Info>"
    "</n1:Level-2A_User_Product>"
)


def _write_safe(folder: Path) -> None:
    root = folder / f"{NEW_PRODUCT}.SAFE"
    images = root / "GRANULE" / "L2A_T33NZA_A1_2" / "IMG_DATA"
    for band, channel in zip(S2.bands, dn(60, offset=1000), strict=True):
        gsd = int(band.gsd_m or 10)
        path = _made(images / f"R{gsd}m") / f"T33NZA_20220706T085611_{band.name}_{gsd}m.jp2"
        side = 600 // gsd
        with rasterio.open(
            path, "w", driver="JP2OpenJPEG", dtype="uint16", count=1, height=side, width=side,
            crs="EPSG:32633", transform=Affine(gsd, 0, 500_000, 0, -gsd, 5_000_000),
            QUALITY="100", REVERSIBLE="YES",
        ) as file:  # fmt: skip
            file.write(channel[:: gsd // 10, :: gsd // 10], 1)
    for extra in root.rglob("*.aux.xml"):
        extra.unlink()
    (root / "MTD_MSIL2A.xml").write_text(_XML)


def _classify_product(folder: Path, **declared: Any) -> None:
    (product,) = [one for one in folder.iterdir() if one.is_dir()]
    shared().space.classify(product, LABELS, tower="s2", prompts=["{}"], **declared)


def _write_bands(folder: Path) -> None:
    product = _made(folder / "20200604T054639_20200604T054831_T43RCP")
    for band, channel in zip(S2.bands, dn(12), strict=True):
        write_tif(product / f"{band.name}.tif", channel[None])
    name = {"PRODUCT_ID": "S2A_MSIL2A_20200604T054639_N0214_R063_T43RCP_20200604T100000"}
    (product / "metadata.json").write_text(json.dumps(name))


# Data sets


def _write_classes(folder: Path) -> None:
    for number, name in enumerate(("Dock/1.jpg", "Dock/2.png", "Yard/3.jpg")):
        path = folder / "harbours/images" / name
        _made(path.parent)
        _picture(size=(12, 10 + number)).save(path)
    (folder / "harbours/images/train.txt").write_text("Dock/1.jpg\n3.jpg\n")
    (folder / "test.txt").write_text("Dock/2.png\n")
    (folder / "harbours.toml").write_text(
        'name = "harbours"\nreader = "folder"\nsensor = "rgb"\nroot = "harbours/images"\n'
        'prompts = ["an aerial photo of {}."]\n\n[classes]\nDock = "a dock with ships"\n'
        'Yard = "a container yard"\n\n[splits]\ntrain = "train.txt"\ntest = "test.txt"\n'
    )


def _read_from_folder(folder: Path) -> None:
    samples = ta.Samples.from_folder(folder / "harbours/images", size=8)
    samples.read(np.arange(len(samples)))


def _write_pairs(folder: Path) -> None:
    for number in range(2):
        write_tif(folder / f"pairs/s2/{number}.tif", dn(8, seed=number)[:3])
        radar = np.full((2, 8, 8), -10.0 - number, np.float32)
        write_tif(folder / f"pairs/s1/{number}.tif", radar)
    (folder / "pairs.toml").write_text(
        'name = "pairs"\nreader = "folder"\nroot = "pairs"\nunlabelled = true\n\n'
        '[sensors.sentinel2-l2a]\nroot = "s2"\nbands = ["B04", "B03", "B02"]\ndn_offset = 0\n\n'
        '[sensors.sentinel1-grd]\nroot = "s1"\nbands = ["VV", "VH"]\n'
    )


_TABLE = """
name = "fields"
reader = "table"
table = "samples.{ending}"
root = "images"
prompts = ["a satellite image of {{}}."]

[sensors.sentinel2-l2a]
column = "s2"
bands = ["B04", "B03", "B02"]
dn_offset = 0

[labels]
form = "{form}"
column = "crop"
{separator}
[classes]
001 = "a wheat field"
2 = "a maize field"

[columns]
key = "id"
split = "fold"
date = "day"
captions = "text"
{footprint}

[splits]
train = ["a", "b"]
test = "c"
"""


def _rows(form: str) -> dict[str, list[Any]]:
    labels: Mapping[str, list[Any]] = {
        "single": ["2", "001", "2", "001"],
        "separated": ["2|001", "001", "", "001"],
        "list": [["2", "001"], ["001"], [], ["2"]],
    }
    return {
        "id": ["f1", "f2", "f3", "f4"],
        "s2": ["s2/1.tif", "s2/2.tif", "s2/3.tif", "s2/4.tif"],
        "crop": labels[form],
        "fold": ["a", "c", "b", "c"],
        "day": ["2024-05-31", "", "2024-05-31T10:20:30+02:00", "20240601"],
        "text": ["one, with a comma", "two", "three", "four"],
    }


def _write_table(folder: Path, *, ending: str, form: str = "single", geo: bool = False) -> None:
    for number in range(1, 5):
        write_tif(folder / f"images/s2/{number}.tif", dn(6, seed=number)[:3])
    rows = _rows(form)
    if ending == "csv":
        with open(folder / "samples.csv", "w", newline="") as file:
            csv.writer(file).writerows([rows.keys(), *zip(*rows.values(), strict=True)])
    else:
        table = pa.table(rows)
        if geo:
            places = [shapely.to_wkb(shapely.box(x, 10, x + 0.1, 10.1)) for x in range(4)]
            table = table.append_column("geometry", pa.array(places, pa.binary()))
            column = {"encoding": "WKB", "geometry_types": ["Polygon"]}
            content = {"version": "1.1.0", "primary_column": "geometry",
                       "columns": {"geometry": column}}  # fmt: skip
            table = table.replace_schema_metadata({"geo": json.dumps(content)})
        pq.write_table(table, folder / "samples.parquet", compression="zstd" if geo else "snappy")
    separator = 'separator = "|"' if form == "separated" else ""
    text = _TABLE.format(
        ending=ending, form=form, separator=separator,
        footprint='footprint = "geometry"' if geo else "",
    )  # fmt: skip
    (folder / "fields.toml").write_text(text)


_SHARDS = """
name = "fields"
reader = "shards"
root = "shards"
prompts = ["a satellite image of {}."]

[sensors.sentinel2-l2a]
member = "s2.npy"
bands = ["B04", "B03", "B02"]
dn_offset = 0

[sensors.sentinel1-grd]
member = "safetensors"
tensor = "s1"
bands = ["VV", "VH"]

[sensors.rgb]
member = "png"

[labels]
form = "list"
member = "json"
field = "tags"

[classes]
0 = "a wheat field"
7 = "a maize field"

[captions]
member = "txt"

[date]
member = "json"
field = "day"

[splits]
train = "train-{08..09}.tar"
test = ["te*.tar"]
"""


def npy(array: NDArray[Any]) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def members(number: int) -> dict[str, bytes]:
    """The members of a sample in a tar, by ending."""
    picture, radar = io.BytesIO(), np.full((2, 6, 6), -10 - number, np.float32)
    _picture(size=(7, 5)).save(picture, format="PNG")
    text = {"day": f"2024-05-0{number}", "tags": [0, 7][: number % 3]}
    return {
        "s2.npy": npy(dn(6, seed=number)[:3]),
        "safetensors": save_tensors({"s1": radar}),
        "png": picture.getvalue(),
        "json": json.dumps(text).encode(),
        "txt": f"caption {number}".encode(),
    }


def write_tar(path: Path, content: Mapping[str, bytes], format: int = tarfile.PAX_FORMAT) -> None:
    _made(path.parent)
    with tarfile.open(path, "w", format=format) as archive:
        for name, data in content.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))


def _write_fetched(folder: Path, *, kind: str) -> None:
    """An archive as data sets are published in: pictures in folders of classes, and a note."""
    content = {f"top/{name}": members(n)["png"] for n, name in enumerate(("a/1.png", "b/2.png"))}
    content["README"] = b"what it is"
    path = folder / f"set.{kind}"
    if kind == "zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, data in content.items():
                archive.writestr(name, data)
    else:
        write_tar(folder / "set.tar", content)
        path.write_bytes(gzip.compress((folder / "set.tar").read_bytes(), mtime=0))
        (folder / "set.tar").unlink()


def _unpack_fetched(folder: Path, *, kind: str) -> None:
    unpack(folder / f"set.{kind}", f"set.{kind}", "top", folder / "unpacked")


def sample_members(*samples: tuple[str, int]) -> dict[str, bytes]:
    return {
        f"{key}.{ending}": data
        for key, number in samples
        for ending, data in members(number).items()
    }


def _write_shards(folder: Path) -> None:
    write_tar(folder / "shards/train-08.tar", sample_members(("a/k1", 1), ("a/" + "x" * 150, 2)))
    write_tar(folder / "shards/train-09.tar", sample_members(("k3", 3)), tarfile.GNU_FORMAT)
    write_tar(folder / "shards/test-0.tar", sample_members(("k4", 4)), tarfile.USTAR_FORMAT)
    (folder / "fields.toml").write_text(_SHARDS)


def _read_in(
    folder: Path, *, toml: str, splits: Iterable[str] = ("train", "test"), size: int | None = None
) -> None:
    read_samples(str(folder / toml), folder, *splits, size=size)


def _pack(folder: Path, dataset: str, *options: str) -> None:
    command("pack", dataset, str(folder / "store"), "--data-root", str(folder),
            "--workers", "1", *options)(folder)  # fmt: skip


def _write_store(
    folder: Path, source: Callable[[Path], None], name: str, options: Sequence[str] = ()
) -> None:
    source(_made(folder / "source"))
    root = folder / "source"
    command("pack", str(root / name), str(folder / "store"), "--data-root", str(root),
            "--workers", "1", *options)(folder)  # fmt: skip
    for file in sorted(root.rglob("*"), reverse=True):
        file.unlink() if file.is_file() else file.rmdir()
    root.rmdir()


def seal_store(folder: Path) -> None:
    """Write the true hashes and sizes of all files into `manifest.json`."""
    path = folder / "store" / "manifest.json"
    if not path.is_file():  # reading a named pipe would wait
        return
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        for kept in [content["table"], *content["shards"]]:
            file = path.parent / kept["file"]
            if file.is_file():
                kept["sha256"], kept["num_bytes"] = hash_file(file), file.stat().st_size
                if kept.get("probe"):
                    kept["probe"] = probe_file(file)
        path.write_text(json.dumps(content), encoding="utf-8")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return


def _read_store(folder: Path, *splits: str) -> None:
    read_samples(str(folder / "store"), folder, *splits)


# Published archives


def _write_npz(folder: Path, *, name: str, compressed: bool = False) -> None:
    save = np.savez_compressed if compressed else np.savez
    path = folder / name / "patches.npz"
    _made(path.parent)
    if name == "s2_l2a":
        save(path, pixels=np.stack([dn(8, seed=one) for one in range(10)]))
        return
    rng = np.random.default_rng(0)
    save(
        path,
        s2_dn=rng.integers(200, 3000, (2, 4, 120, 120)).astype(np.uint16),
        s1_db=rng.normal(-12, 2, (2, 2, 120, 120)).astype(np.float16),
        clc=np.full((2, 120, 120), 312, np.int16),
    )


def _write_eurosat(folder: Path) -> None:
    for name in load_class_list("eurosat"):
        for number in (1, 2, 3):
            path = folder / "eurosat_rgb/EuroSAT_RGB" / name / f"{name}_{number}.jpg"
            write_picture(path, np.full((3, 64, 64), 40 * number, np.uint8))
    for number, split in enumerate(("train", "val", "test"), 1):
        for kind in ("", "spatial-"):
            lines = [f"{name}_{number}.jpg\n" for name in load_class_list("eurosat")]
            (folder / f"eurosat_rgb/eurosat-{kind}{split}.txt").write_text("".join(lines))


def _write_eurosat_ms(folder: Path) -> None:
    pixels = np.random.default_rng(0).integers(200, 3000, (13, 64, 64)).astype(np.uint16)
    root = folder / satellites.ARCHIVES["eurosat-ms"].images[0]
    for name in load_class_list("eurosat"):
        write_tif(root / name / f"{name}_1.tif", pixels)


def _write_bigearthnet_v1(folder: Path) -> None:
    for number, split in enumerate(("train", "val", "test")):
        patch = f"S2A_MSIL2A_20170613T101031_{number}_5"
        partner = f"S1A_IW_GRDH_1SDV_20170613T165043_33UUP_{number}_5"
        write_v1_json(folder / "BigEarthNet-v1.0" / patch, ["Pastures"], "33UUP")
        write_optical(folder / "BigEarthNet-v1.0" / patch)
        write_v1_radar_json(folder / "BigEarthNet-S1-v1.0" / partner, patch)
        write_radar(folder / "BigEarthNet-S1-v1.0" / partner, -12)
        (folder / f"{split}.csv").write_text(f"{patch},{partner}\n")
    for what in ("seasonal_snow", "cloud_and_shadow"):
        (folder / f"patches_with_{what}.csv").write_text("S2A_MSIL2A_20180101T000000_9_9\n")


def _write_bigearthnet_v2(folder: Path) -> None:
    base, rows = folder / "bigearthnet_v2", []
    tile = "S2A_MSIL2A_20170613T101031_N9999_R022_T33UUP"
    scene = "S1A_IW_GRDH_1SDV_20170613T165043"
    for number, split in enumerate(("train", "validation", "test")):
        patch, partner = f"{tile}_{number:02}_05", f"{scene}_33UUP_{number}_5"
        write_optical(base / "BigEarthNet-S2" / tile / patch)
        write_radar(base / "BigEarthNet-S1" / scene / partner, -12)
        rows.append(
            {"patch_id": patch, "labels": ["Pastures"], "split": split, "country": "Austria",
             "s1_name": partner, "s2v1_name": f"S2A_MSIL2A_20170613T101031_{number}_5",
             "contains_seasonal_snow": False, "contains_cloud_or_shadow": False}
        )  # fmt: skip
    pq.write_table(pa.Table.from_pylist(rows), base / "metadata.parquet")


def _write_sen12ms(folder: Path) -> None:
    base, season = folder / "sen12ms", "ROIs1158_spring"
    for scene in (1, 2, 3):
        kinds = {
            "s2": np.full((13, 256, 256), 1200, np.uint16),
            "s1": np.full((2, 256, 256), -12.0, np.float32),
            "lc": np.full((4, 256, 256), 10, np.uint16),
        }
        for kind, pixels in kinds.items():
            write_tif(
                base / season / f"{kind}_{scene}" / f"{season}_{kind}_{scene}_p30.tif", pixels
            )
    (base / "SEN12MS_holdOutScenes.txt").write_text(f"{season}/s1_3\n")
    (base / "ValidationScenes.txt").write_text(f"{season}/s2_2\n")


def _write_ssl4eo(folder: Path) -> None:
    place = folder / "ssl4eo_s12/s2a/0000000/20200604T054639_20200604T054831_T43RCP"
    for band in S2.bands:
        side = {10: 264, 60: 44}.get(int(band.gsd_m or 10), 132)
        name = band.name.replace("B0", "B")
        path = _made(place) / f"{name}.tif"
        with rasterio.open(
            path, "w", driver="GTiff", dtype="uint16", count=1, height=side, width=side,
            crs="EPSG:4326", transform=Affine(0.0264 / side, 0, 70, 0, -0.0264 / side, 30),
        ) as file:  # fmt: skip
            file.write(np.full((side, side), 1000, np.uint16), 1)


def _tiff(pixels: NDArray[Any], gsd_m: float) -> bytes:
    side = len(pixels)
    with MemoryFile() as memory:
        with memory.open(
            driver="GTiff", count=1, height=side, width=side, dtype=pixels.dtype,
            crs="EPSG:32633", transform=Affine(gsd_m, 0, 500_000, 0, -gsd_m, 5_000_000),
            compress="deflate",
        ) as file:  # fmt: skip
            file.write(pixels, 1)
        return bytes(memory.getbuffer())


def _write_majortom(folder: Path) -> None:
    sides = {band.name: round(10680 / (band.gsd_m or 10)) for band in S2.bands}
    made = {
        side: _tiff(np.full((side, side), 1500, np.uint16), 10680 / side)
        for side in set(sides.values())
    }
    cell: dict[str, Any] = {name: made[side] for name, side in sides.items()}
    cell |= {
        "product_id": "S2A_MSIL2A_20230506T065621_N0509_R063_T40SDE_20230506T104759",
        "grid_cell": "391U_536R",
        "product_datetime": "2023-05-06",
        "thumbnail": b"",
    }
    path = folder / "Core-S2L2A/images/part_00001.parquet"
    _made(path.parent)
    pq.write_table(pa.Table.from_pylist([cell]), path, row_group_size=1)


def _write_captions(folder: Path, *, name: str) -> None:
    _, images, ending, side = pictures.CAPTIONED[name]
    entries = []
    for number, split in enumerate(("train", "val", "test")):
        file = f"river_{number}{ending}"
        write_picture(folder / images / file, np.full((3, side, side), 90, np.uint8))
        entries.append(pictures.caption_entry(file, number, split, [f"river {number} ."]))
    pictures.write_captions(folder, name, {"images": entries, "dataset": name})


def _write_cifar(folder: Path) -> None:
    source = pictures.CIFAR100
    pixels = np.zeros((10, 3, 32, 32), np.uint8)
    pictures.write_cifar(
        folder / "cifar100", source, dict.fromkeys(("train", "test"), (pixels, list(range(10))))
    )


# Settings

_RECIPE = """
name = "tiny"
threads = 1

[base.pretrain]
epochs = 1
batch_size = 8
limit = 8
lr = 1e-3

[base.pretrain.architecture]
embed_dim = 16
vision_cfg = { image_size = 32, patch_size = 16, width = 32, head_width = 16, layers = 1 }
text_cfg = { context_length = 16, vocab_size = 49408, width = 8, heads = 2, layers = 1 }

[patch]
epochs = 1
batch_size = 8
lr = 1e-3
alphas = [0.5, 1.0]
max_supported_drop = 1.0

[[patch.tasks]]
data = "synthetic-scenes"
limit = 8
validation_limit = 8

[[patch.supported]]
data = "synthetic-photos"
validation_limit = 8

[[align]]
name = "s2"
sensors = ["sentinel2-l2a"]
epochs = 1
batch_size = 8
lr = 1e-3
num_views = 1

[[align.data]]
data = "synthetic-scenes"
limit = 8

[[evaluate]]
data = "synthetic-scenes"
split = "test"
role = "patching"
models = ["base", "patched"]
towers = ["s2"]
limit = 8
"""

_SUITE = """
name = "tiny"
num_bootstrap = 10

[[entries]]
data = "synthetic-scenes"
split = "test"
role = "alignment"
tasks = ["zero-shot", "retrieval", "diagnostics"]
limit = 8
"""

_STUDY = """
name = "tiny-study"
recipe = "tiny.toml"
seeds = [0]
vary = { "patch.lr" = [1e-3, 2e-3] }

[[variants]]
name = "other"
set = { "patch.alphas" = [0.25] }
"""

_SENSOR = """
name = "my-camera"
unit = "reflectance"
dn_scale = 1e-4
nodata = 0
possible = [-0.1, 1.5]

[[bands]]
name = "blue"
center_nm = 490

[[bands]]
name = "green"
center_nm = 560

[[bands]]
name = "red"
center_nm = 665

[[composites]]
name = "true-colour"
bands = ["red", "green", "blue"]
stretch = 0.3
"""


def _write_texts(folder: Path, **files: str) -> None:
    for name, text in files.items():
        (folder / name.replace("_", ".")).write_text(text)


def _read_recipe(folder: Path) -> None:
    load_recipe(str(folder / "tiny.toml"), data_root=folder)
    command("info", str(folder / "tiny.toml"))(folder)


def _read_study(folder: Path) -> None:
    from terralign.ablate.study import load_study, plan_study

    plan_study(load_study(str(folder / "study.toml")))
    command("info", str(folder / "study.toml"))(folder)


def _read_sensor(folder: Path) -> None:
    ta.load_sensor(folder / "camera.toml")
    command("info", str(folder / "camera.toml"))(folder)


def _write_labels(folder: Path) -> None:
    (folder / "labels.txt").write_text("forest\na river\n# town\ntown, by the sea\n")
    _write_pictures(folder, kind="png")


def _write_prompts(folder: Path) -> None:
    text = 'templates = ["a photo of {}.", "{} from above"]\n'
    (folder / "mine.toml").write_text(text)
    _write_pictures(folder, kind="png")


# Folders of runs, benches and studies


def _write_run(folder: Path, *, complete: bool) -> None:
    (folder / "tiny.toml").write_text(_RECIPE)
    run_recipe(load_recipe(str(folder / "tiny.toml")), folder / "run", device="cpu")
    if not complete:
        (folder / "run/results.json").unlink()
        (folder / "run/report.html").unlink()


def _read_run(folder: Path) -> None:
    arguments = (str(folder / "tiny.toml"), "--out", str(folder / "run"), "--device", "cpu")
    command("run", *arguments)(folder)


def _write_bench(folder: Path) -> None:
    (folder / "suite.toml").write_text(_SUITE)
    model = f"tiny={shared().folder / 'space'}"
    run_bench(load_suite(str(folder / "suite.toml")), [model], folder / "bench")


def _read_bench(folder: Path) -> None:
    model = f"tiny={shared().folder / 'space'}"
    command("bench", str(folder / "suite.toml"), "--models", model,
            "--out", str(folder / "bench"), "--device", "cpu")(folder)  # fmt: skip


def _read_all(*readers: Callable[[Path], Any]) -> Callable[[Path], None]:
    def read(folder: Path) -> None:
        for reader in readers:
            reader(folder)

    return read


_TIFFS: Mapping[str, dict[str, Any]] = {
    "none": {},
    "deflate-tiled": {"compress": "deflate", "predictor": 2, "tiled": True, "blockxsize": 16,
                      "blockysize": 16},
    "lzw": {"compress": "lzw", "interleave": "pixel"},
    "zstd-float": {"compress": "zstd", "dtype": "float32", "nodata": 0},
    "packbits-mask": {"compress": "packbits", "mask": True},
    "big": {"BIGTIFF": "YES", "compress": "deflate"},
}  # fmt: skip

_PICTURES: Mapping[str, dict[str, Any]] = {
    "png": {"kind": "png"},
    "png-palette": {"kind": "png", "mode": "P", "transparency": 3},
    "png-grey": {"kind": "png", "mode": "L"},
    "png-alpha": {"kind": "png", "mode": "RGBA", "exif": _exif()},
    "jpeg": {"kind": "jpg", "exif": _exif(), "quality": 90},
    "jpeg-progressive": {"kind": "jpeg", "progressive": True, "comment": b"hello"},
    "jpeg-cmyk": {"kind": "jpg", "mode": "CMYK"},
    "webp": {"kind": "webp", "lossless": True},
    "webp-lossy": {"kind": "webp", "mode": "RGBA"},
    "bmp": {"kind": "bmp"},
    "gif": {"kind": "gif", "mode": "P"},
    "tiff-picture": {"kind": "tif", "compression": "tiff_lzw"},
}

ENTRIES: tuple[Entry, ...] = (
    *(
        Entry(
            name=f"checkpoint-{name}", part="weights", read=partial(_read_clip, file=file),
            write=partial(_write_weights, file=file, **options),
        )
        for name, file, options in (
            ("zip", "weights.pt", {}),
            ("legacy", "weights.pth", {"_use_new_zipfile_serialization": False}),
            ("safetensors", "weights.safetensors", {}),
        )
    ),
    Entry(name="state-dict", part="weights",
          read=lambda folder: read_state_dict(folder / "some.pt"),
          write=lambda folder: torch.save({"a": torch.zeros(2)}, folder / "some.pt")),
    Entry(name="open-clip-folder", part="weights",
          write=lambda folder: save_clip(shared().clip, folder) and None,
          read=lambda folder: ta.load(folder)),
    Entry(name="space", part="weights", write=_write_space,
          read=lambda folder: ta.load(folder / "model")),
    Entry(name="space-sealed", part="weights", write=_write_space, sealed=seal_space,
          read=_read_all(lambda folder: ta.load(folder / "model"), command("info", "model"))),
    Entry(name="compact", part="weights", write=_write_compact,
          read=lambda folder: ta.load(folder / "model")),
    Entry(name="compact-sealed", part="weights", write=_write_compact, sealed=seal_space,
          read=lambda folder: ta.load(folder / "model")),
    Entry(name="ms-clip", part="weights", write=_write_ms_clip,
          read=lambda folder: load_ms_clip(folder / "ms_clip.pt", model_cfg=CONFIG)),
    Entry(name="student-checkpoint", part="weights", read=_read_student,
          write=lambda folder: write_checkpoint(folder / "B12_vits16_mae_0099_ckpt.pth", 12)),
    Entry(name="vectors", part="weights", write=_write_vectors, read=_read_all(
        lambda folder: ta.Embeddings.load(folder / "tiles.parquet"),
        command("search", "tiles.parquet", "a river", "--model", "{space}",
                "--geojson", "map.json"),
    )),
    *(
        Entry(name=name, part="pictures", write=partial(_write_pictures, **options),
              read=partial(_classify, kind=options["kind"]))
        for name, options in _PICTURES.items()
    ),
    Entry(name="classify-command", part="pictures", write=partial(_write_pictures, kind="png"),
          read=command("classify", "{clip}", "photo.png", "--labels", "forest,river", "--json")),
    *(
        Entry(name=f"geotiff-{name}", part="pictures", write=partial(_write_raster, **options),
              read=partial(_classify_scene, units="physical") if name == "zstd-float"
              else partial(_classify_scene, dn_offset=0))
        for name, options in _TIFFS.items()
    ),
    Entry(name="geotiff-jpeg", part="pictures", read=_classify_rgb_scene,
          write=partial(_write_raster, dtype="uint8", compress="jpeg", interleave="pixel")),
    Entry(name="safe", part="pictures", write=_write_safe, read=_classify_product),
    Entry(name="bands", part="pictures", write=_write_bands,
          read=partial(_classify_product, sensor=S2)),
    Entry(name="folder-of-files", part="pictures", write=_write_classes, read=command(
        "classify", "{clip}", "harbours", "--labels", "dock,yard", "--json")),
    Entry(name="class-folders", part="data", write=_write_classes,
          read=partial(_read_in, toml="harbours.toml", size=9)),
    Entry(name="from-folder", part="data", write=_write_classes,
          read=_read_from_folder),
    Entry(name="pairs", part="data", write=_write_pairs,
          read=partial(_read_in, toml="pairs.toml", splits=("all",))),
    Entry(name="csv", part="data", write=partial(_write_table, ending="csv"),
          read=partial(_read_in, toml="fields.toml")),
    Entry(name="csv-separated", part="data",
          write=partial(_write_table, ending="csv", form="separated"),
          read=partial(_read_in, toml="fields.toml")),
    Entry(name="parquet", part="data", write=partial(_write_table, ending="parquet", form="list"),
          read=partial(_read_in, toml="fields.toml")),
    Entry(name="geoparquet", part="data", write=partial(_write_table, ending="parquet", geo=True),
          read=_read_all(partial(_read_in, toml="fields.toml"),
                         lambda folder: _pack(folder, "fields.toml"))),
    Entry(name="webdataset", part="data", write=_write_shards,
          read=_read_all(lambda folder: _pack(folder, "fields.toml"),
                         lambda folder: _read_store(folder, "train", "test"))),
    Entry(name="store", part="data", sealed=seal_store,
          write=partial(_write_store, source=_write_shards, name="fields.toml"),
          read=_read_all(lambda folder: _read_store(folder, "train", "test"),
                         command("info", "store"), command("pack", "--verify", "store"))),
    Entry(name="store-encoded", part="data", sealed=seal_store, write=partial(
        _write_store, source=_write_classes, name="harbours.toml", options=("--images", "encoded")),
        read=lambda folder: read_samples(str(folder / "store"), folder, "train", size=8)),
    Entry(name="s2-l2a", part="data", write=partial(_write_npz, name="s2_l2a"),
          read=partial(read_samples, "s2-l2a")),
    Entry(name="s2-l2a-compressed", part="data",
          write=partial(_write_npz, name="s2_l2a", compressed=True),
          read=partial(read_samples, "s2-l2a")),
    Entry(name="bigearthnet-mini", part="data",
          write=partial(_write_npz, name="bigearthnet_mini", compressed=True),
          read=partial(read_samples, "bigearthnet-mini")),
    Entry(name="eurosat-rgb", part="data", write=_write_eurosat,
          read=lambda folder: read_samples("eurosat-rgb", folder, "test", size=32)),
    Entry(name="eurosat-ms", part="data", write=_write_eurosat_ms,
          read=partial(read_samples, "eurosat-ms")),
    Entry(name="bigearthnet-v1", part="data", write=_write_bigearthnet_v1,
          read=lambda folder: read_samples("bigearthnet-mm-19", folder, "train", "val")),
    Entry(name="bigearthnet-v2", part="data", write=_write_bigearthnet_v2,
          read=lambda folder: read_samples("bigearthnet-v2-mm-19", folder, "train", "val")),
    Entry(name="sen12ms", part="data", write=_write_sen12ms,
          read=lambda folder: read_samples("sen12ms", folder, "train", "test")),
    Entry(name="ssl4eo", part="data", write=_write_ssl4eo,
          read=partial(read_samples, "ssl4eo-s12-l2a")),
    Entry(name="majortom", part="data", write=_write_majortom,
          read=lambda folder: read_samples("majortom-core-s2l2a", folder, limit=2)),
    *(
        Entry(name=name, part="data", write=partial(_write_captions, name=name),
              read=partial(read_samples, name, size=16))
        for name in pictures.CAPTIONED
    ),
    Entry(name="tiny-imagenet", part="data", write=pictures.write_tiny_imagenet,
          read=lambda folder: read_samples("tiny-imagenet", folder, "train", "val")),
    *(
        Entry(name=f"fetched-{kind}", part="data", write=partial(_write_fetched, kind=kind),
              read=partial(_unpack_fetched, kind=kind))
        for kind in ("zip", "tar.gz")
    ),
    Entry(name="cifar", part="data", write=_write_cifar,
          read=lambda folder: read_samples("cifar100", folder, "test")),
    Entry(name="recipe", part="folders",
          write=partial(_write_texts, tiny_toml=_RECIPE), read=_read_recipe),
    Entry(name="study", part="folders", read=_read_study,
          write=partial(_write_texts, tiny_toml=_RECIPE, study_toml=_STUDY)),
    Entry(name="suite", part="folders", write=partial(_write_texts, suite_toml=_SUITE),
          read=_read_all(lambda folder: load_suite(str(folder / "suite.toml")),
                         command("info", "suite.toml"))),
    Entry(name="sensor", part="folders", write=partial(_write_texts, camera_toml=_SENSOR),
          read=_read_sensor),
    Entry(name="prompts", part="folders", write=_write_prompts, kept=(".png",), read=command(
        "classify", "{clip}", "photo.png", "--labels", "forest,river", "--prompts", "mine.toml")),
    Entry(name="labels", part="folders", write=_write_labels, kept=(".png",), read=command(
        "classify", "{clip}", "photo.png", "--labels-file", "labels.txt")),
    Entry(name="run-complete", part="folders", read=_read_run,
          write=partial(_write_run, complete=True)),
    Entry(name="run-resumed", part="folders", read=_read_run,
          write=partial(_write_run, complete=False)),
    Entry(name="bench", part="folders", write=_write_bench, read=_read_bench),
)  # fmt: skip
"""All of it; names are stable, since a case is named by its seed, number and entry."""

assert sys.flags.optimize == 0
assert SENSORS[S2.name] == S2
