"""BigEarthNet: the small array file of development, and the folder layout of version 1.

Sentinel-2 is L2A from before baseline 04.00: its DN carry no offset. N patches, C bands, 120x120
pixels at 10 m.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rasterio.enums import Resampling
from rasterio.errors import RasterioError

from terralign.datasets.arrays import ArraySet, choose_rows, make_array_set, read_array
from terralign.datasets.corine import (
    NumClasses,
    labels_from_names,
    labels_from_pixels,
    nomenclature,
)
from terralign.datasets.file_set import FileSet
from terralign.datasets.fingerprint import fingerprint
from terralign.datasets.folder import read_split_list
from terralign.datasets.sample import Labels
from terralign.errors import DataError, StorageError
from terralign.files import read_json
from terralign.scenes.read import make_layout, open_geotiff
from terralign.sensors import SENSORS

SIDE = 120
"""Pixels of a patch at 10 m."""

MINI_BANDS = ("B02", "B03", "B04", "B08")
MINI_PERIOD = 5
MINI_SPLITS: dict[str, tuple[int, ...]] = {"train": (0, 1, 2), "val": (3,), "test": (4,)}
"""60 / 20 / 20 by `index % 5`."""

V1_FOLDERS = ("BigEarthNet-v1.0", "BigEarthNet-S2-v1.0", "BigEarthNet-S2-Example")


def open_bigearthnet_mini(data_root: Path, split: str, *, num_classes: NumClasses = 19) -> ArraySet:
    """`data_root/bigearthnet_mini/patches.npz`: Sentinel-2 in four bands and Sentinel-1 in dB.

    Multi-label, from the CORINE code of every pixel; see `labels_from_pixels`.
    """
    path = data_root / "bigearthnet_mini" / "patches.npz"
    name = "bigearthnet-mini" if num_classes == 19 else f"bigearthnet-mini-{num_classes}"
    optical, radar = SENSORS["sentinel2-l2a"], SENSORS["sentinel1-grd"]
    dn = read_array(path, "s2_dn", shape=(None, len(MINI_BANDS), SIDE, SIDE), kind="u")
    decibel = read_array(path, "s1_db", shape=(len(dn), 2, SIDE, SIDE), kind="f")
    codes = read_array(path, "clc", shape=(len(dn), SIDE, SIDE), kind="iu")
    rows = choose_rows(name, split, len(dn), MINI_SPLITS, MINI_PERIOD)
    return make_array_set(
        name=name,
        split=split,
        arrays={optical.name: dn, radar.name: decibel},
        layouts={
            optical.name: make_layout(optical, MINI_BANDS, units="dn", composite="paper-l2a"),
            radar.name: make_layout(radar, ("VV", "VH"), units="physical"),
        },
        rows=rows,
        source=path,
        labels=_labels(labels_from_pixels(codes[rows], num_classes), num_classes),
    )


def _labels(values: NDArray[np.bool_], num_classes: NumClasses) -> Labels:
    return Labels(
        values=values,
        class_names=nomenclature(num_classes).class_names,
        class_list=f"bigearthnet-{num_classes}",
    )


def open_bigearthnet_v1(data_root: Path, split: str, *, num_classes: NumClasses = 19) -> FileSet:
    """BigEarthNet v1 in its own layout: one folder per patch with 12 GeoTIFFs and a label JSON.

    The patches are in one of `V1_FOLDERS` below `data_root`, below `data_root/bigearthnet`, or in
    `data_root` itself. `split`: `all`, or that of a list `{split}.csv` or `{split}.txt` beside the
    patches' folder or in it, with the patch name in the first column. Bands of 20 and 60 m are
    brought to the 10 m grid bilinearly.
    """
    name = f"bigearthnet-{num_classes}"
    root = _find_patches(data_root)
    if split == "all":
        patches = [path for path in sorted(root.iterdir()) if _is_patch(path)]
    else:
        entries = read_split_list(_find_split_list(name, root, split))
        patches = [root / entry.split(",")[0].strip() for entry in entries]
    sensor = SENSORS["sentinel2-l2a"]
    layouts = {
        sensor.name: make_layout(sensor, sensor.band_names, units="dn", composite="paper-l2a")
    }
    values = labels_from_names([_read_label_names(patch) for patch in patches], num_classes)
    keys = tuple(patch.name for patch in patches)
    return FileSet(
        name=name,
        split=split,
        layouts=layouts,
        keys=keys,
        files=tuple(patches),
        decode=lambda patch: {sensor.name: read_patch(patch)},
        fingerprint=fingerprint(
            name=name, split=split, keys=keys, layouts=layouts, content=["bilinear"]
        ),
        labels=_labels(values, num_classes),
    )


def _is_patch(path: Path) -> bool:
    return path.name.startswith(("S2A_MSIL2A_", "S2B_MSIL2A_")) and path.is_dir()


def _find_patches(data_root: Path) -> Path:
    candidates = [
        *(data_root / folder for folder in V1_FOLDERS),
        *(data_root / "bigearthnet" / folder for folder in V1_FOLDERS),
        data_root,
    ]
    for folder in candidates:
        if folder.is_dir() and any(_is_patch(path) for path in folder.iterdir()):
            return folder
    raise DataError(
        f"{data_root} holds no BigEarthNet v1 patches (S2A_MSIL2A_*), nor do its folders "
        f"{', '.join(V1_FOLDERS)}; give the folder that does as data root"
    )


def _find_split_list(name: str, root: Path, split: str) -> Path:
    found = {
        path.stem: path
        for folder in (root.parent, root)
        for suffix in ("csv", "txt")
        for path in folder.glob(f"*.{suffix}")
    }
    if split in found:
        return found[split]
    raise DataError(
        f"data set {name!r} has no split {split!r}: no {split}.csv beside {root}; "
        f"there: {', '.join(['all', *sorted(found)])}"
    )


def _read_label_names(patch: Path) -> list[str]:
    path = patch / f"{patch.name}_labels_metadata.json"
    try:
        content = read_json(path)
    except StorageError as error:
        raise DataError(str(error)) from error
    names = content.get("labels") if isinstance(content, dict) else None
    if not isinstance(names, list) or not all(isinstance(one, str) for one in names):
        raise DataError(f"{path} has no list 'labels' of class names")
    return names


def read_patch(patch: Path) -> NDArray[Any]:
    """The 12 bands of a patch folder: (12, 120, 120) uint16 DN in the sensor's band order."""
    bands = SENSORS["sentinel2-l2a"].band_names
    pixels = np.empty((len(bands), SIDE, SIDE), dtype=np.uint16)
    for channel, band in enumerate(bands):
        path = patch / f"{patch.name}_{band}.tif"
        try:
            with open_geotiff(path) as source:
                if source.count != 1 or source.dtypes[0] != "uint16" or source.height > SIDE:
                    raise DataError(
                        f"{path} is {source.count}x{source.height}x{source.width} "
                        f"{source.dtypes[0]}; expected one uint16 band of at most {SIDE} pixels"
                    )
                pixels[channel] = source.read(
                    1, out_shape=(SIDE, SIDE), resampling=Resampling.bilinear
                )
        except (RasterioError, OSError, ValueError) as error:
            raise DataError(f"{path} is damaged: {error}") from error
    return pixels
