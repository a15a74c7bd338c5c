"""Data sets of Sentinel-1 and Sentinel-2 in their official layouts, of a few samples each."""

from __future__ import annotations

from itertools import count
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.random import Generator
from numpy.typing import NDArray

from fake_world.files import (
    band_side,
    write_bands,
    write_picture,
    write_tif,
    write_v1_json,
    write_v1_radar_json,
)
from fake_world.pixels import Cover, draw_optical, draw_radar, make_cover, rng_of
from terralign.datasets.class_lists import load_class_list, read_table
from terralign.datasets.published.scene_classes import ARCHIVES, BANDS_ON_DISK
from terralign.sensors import SENSORS

L1C, L2A = SENSORS["sentinel2-l1c"], SENSORS["sentinel2-l2a"]

BIGEARTHNET = {"train": 24, "val": 10, "test": 14}
"""Patches in each split, of either version; a few, since each is fourteen files."""

MINI = {"train": 12, "val": 4, "test": 4, "all": 20}
S2_L2A = {"train": 36, "val": 4, "all": 40}
SEN12MS = {"train": 2, "val": 4, "test": 6}

EUROSAT_TILES = 6
"""Of each class. The lists of both ways to divide them name two of the six for each split."""
EUROSAT = {"spatial-train": (1, 2), "spatial-val": (3, 4), "spatial-test": (5, 6),
           "train": (1, 4), "val": (2, 5), "test": (3, 6)}  # fmt: skip


# BigEarthNet


def write_bigearthnet_v1(root: Path) -> None:
    """Patches with their Sentinel-1 partners, the split lists, and those of snow and cloud."""
    optical, radar = root / "BigEarthNet-v1.0", root / "BigEarthNet-S1-v1.0"
    numbers = count()
    for split, num_patches in BIGEARTHNET.items():
        lines = []
        for number in (next(numbers) for _ in range(num_patches)):
            patch = f"S2A_MSIL2A_20170613T101031_{number}_5"
            partner = f"S1A_IW_GRDH_1SDV_20170613T165043_33UUP_{number}_5"
            labels, rng = _labels_43(number), rng_of("v1", number)
            cover = make_cover(labels, 120)
            write_v1_json(optical / patch, labels, "33UUP")
            write_bands(optical / patch, _optical_bands(cover, rng))
            write_v1_radar_json(radar / partner, patch)
            write_bands(radar / partner, _radar_bands(cover, rng))
            # Of the published lists some name the partners, the others leave them to the JSON.
            lines.append(patch if split == "train" else f"{patch},{partner}")
        (root / f"{split}.csv").write_text("\n".join(lines) + "\n")
    for what in ("seasonal_snow", "cloud_and_shadow"):
        (root / f"patches_with_{what}.csv").write_text("S2A_MSIL2A_20180101T000000_9_9\n")


def write_bigearthnet_v2(root: Path) -> None:
    """The table, the patches in the folders of their tiles, partners and reference maps."""
    base = root / "bigearthnet_v2"
    tile = "S2A_MSIL2A_20170613T101031_N9999_R022_T33UUP"
    scene = "S1A_IW_GRDH_1SDV_20170613T165043"
    level_3 = _level_3()
    merged = {
        level_3[int(code)]: name for code, name in read_table("bigearthnet")["merged"].items()
    }
    codes = {name: code for code, name in level_3.items()}
    rows, numbers = [], count()
    for split, num_patches in BIGEARTHNET.items():
        for number in (next(numbers) for _ in range(num_patches)):
            patch, partner = f"{tile}_{number:02}_05", f"{scene}_33UUP_{number}_5"
            labels, rng = _labels_43(number), rng_of("v2", number)
            cover = make_cover(labels, 120)
            write_bands(base / "BigEarthNet-S2" / tile / patch, _optical_bands(cover, rng))
            write_bands(base / "BigEarthNet-S1" / scene / partner, _radar_bands(cover, rng))
            reference_map = np.array([codes[name] for name in cover.names], np.uint16)[cover.places]
            folder = base / "Reference_Maps" / tile / patch
            write_tif(folder / f"{patch}_reference_map.tif", reference_map[None])
            rows.append(
                {
                    "patch_id": patch,
                    "labels": sorted({merged[name] for name in labels if name in merged}),
                    "split": {"val": "validation"}.get(split, split),
                    "country": "Austria",
                    "s1_name": partner,
                    "s2v1_name": f"S2A_MSIL2A_20170613T101031_{number}_5",
                    "contains_seasonal_snow": False,
                    "contains_cloud_or_shadow": False,
                }
            )
    pq.write_table(pa.Table.from_pylist(rows), base / "metadata.parquet")


def write_bigearthnet_mini(root: Path) -> None:
    """`bigearthnet_mini/patches.npz`."""
    codes = {name: code for code, name in _level_3().items()}
    optical, radar, clc = [], [], []
    for number in range(MINI["all"]):
        cover, rng = make_cover(_labels_43(number), 120), rng_of("mini", number)
        optical.append(draw_optical(cover, ("B02", "B03", "B04", "B08"), rng))
        radar.append(draw_radar(cover, rng).astype(np.float16))
        clc.append(np.array([codes[name] for name in cover.names], np.int16)[cover.places])
    path = root / "bigearthnet_mini" / "patches.npz"
    path.parent.mkdir()
    np.savez(path, s2_dn=optical, s1_db=radar, clc=clc)


def _level_3() -> dict[int, str]:
    return {int(code): name for code, name in read_table("bigearthnet")["level_3"].items()}


def _labels_43(number: int) -> list[str]:
    """One to three of the 43 names, of which the first is among the 19 classes too."""
    names = _level_3()
    kept = [names[int(code)] for code in read_table("bigearthnet")["merged"]]
    chosen = rng_of("labels", number).choice(list(names.values()), 2, replace=False)
    first = kept[number * 5 % len(kept)]
    return list(dict.fromkeys([first, *map(str, chosen[: number % 3])]))


def _optical_bands(cover: Cover, rng: Generator) -> dict[str, NDArray[np.uint16]]:
    """Each band at its own resolution."""
    pixels = draw_optical(cover, L2A.band_names, rng)
    return {
        band.name: channel[:: 120 // band_side(band.gsd_m), :: 120 // band_side(band.gsd_m)]
        for band, channel in zip(L2A.bands, pixels, strict=True)
    }


def _radar_bands(cover: Cover, rng: Generator) -> dict[str, NDArray[np.float32]]:
    return dict(zip(("VV", "VH"), draw_radar(cover, rng), strict=True))


# EuroSAT


def write_eurosat(root: Path) -> None:
    """Multispectral GeoTIFFs and the JPEGs of the same tiles, with the lists of both splits."""
    for name in load_class_list("eurosat"):
        cover = make_cover([name], 64)
        for number in range(1, EUROSAT_TILES + 1):
            pixels = draw_optical(cover, BANDS_ON_DISK, rng_of("eurosat", name, number))
            stem = f"{name}/{name}_{number}"
            write_tif(root / ARCHIVES["eurosat-ms"].images[0] / f"{stem}.tif", pixels)
            rgb = pixels[[BANDS_ON_DISK.index(band) for band in ("B04", "B03", "B02")]]
            picture = (rgb / 2750 * 255).clip(0, 255).astype(np.uint8)
            write_picture(root / ARCHIVES["eurosat-rgb"].images[0] / f"{stem}.jpg", picture)
    for folder in ("eurosat_rgb", "eurosat_ms"):
        for split, numbers in EUROSAT.items():
            lines = [
                f"{name}_{number}.jpg\n"
                for name in load_class_list("eurosat")
                for number in numbers
            ]
            (root / folder / f"eurosat-{split}.txt").write_text("".join(lines))


# SEN12MS


def write_sen12ms(root: Path) -> None:
    """Triplets of Sentinel-2 L1C, Sentinel-1 and land cover, a scene a split, and the lists."""
    base = root / "sen12ms"
    season = "ROIs1158_spring"
    igbp = {int(code): name for code, name in read_table("sen12ms")["igbp"].items()}
    scenes = dict(zip(SEN12MS, (1, 2, 3), strict=True))
    for split, scene in scenes.items():
        for number in range(SEN12MS[split]):
            codes = [1 + (7 * scene + 5 * number + step * number) % 17 for step in range(2)]
            cover, rng = make_cover([igbp[code] for code in codes], 256), rng_of(split, number)
            land_cover = np.array(codes, np.uint16)[cover.places]
            others = np.full((3, 256, 256), 99, np.uint16)
            for kind, pixels in (
                ("s2", draw_optical(cover, L1C.band_names, rng)),
                ("s1", draw_radar(cover, rng)),
                ("lc", np.concatenate([land_cover[None], others])),
            ):
                name = f"{season}_{kind}_{scene}_p{number + 30}.tif"
                write_tif(base / season / f"{kind}_{scene}" / name, pixels)
    (base / "SEN12MS_holdOutScenes.txt").write_text(f"{season}/s1_{scenes['test']}\n")
    (base / "ValidationScenes.txt").write_text(f"{season}/s2_{scenes['val']}\n")


# Patches without labels


def write_s2_l2a(root: Path) -> None:
    """`s2_l2a/patches.npz`."""
    pixels = [
        draw_optical(
            make_cover([f"ground {number % 7}"], 64),
            SENSORS["sentinel2-l2a"].band_names,
            rng_of("l2a", number),
        )
        for number in range(S2_L2A["all"])
    ]
    path = root / "s2_l2a" / "patches.npz"
    path.parent.mkdir()
    np.savez(path, pixels=pixels)
