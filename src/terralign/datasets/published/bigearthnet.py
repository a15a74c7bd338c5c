"""BigEarthNet: what its versions share, and the small array file of development.

A patch is 1.2 km wide: Sentinel-2 L2A in 12 bands, each in a GeoTIFF of its own at its own
resolution, and Sentinel-1 in VV and VH, sigma0 in dB, at 10 m. See `bigearthnet_v1` and
`bigearthnet_v2`. N patches, K classes, C bands, 120x120 pixels at 10 m.

The DN carry no offset in either version. Those of version 1 were made in 2017 and 2018, long before
baseline 04.00. Version 2 was made from the L1C products of those years with sen2cor 2.11; its
baseline (`N9999`) does not state an offset, but its DN come down to 35 over land in B02, and to 50
in B8A, where with ESA's offset of 1000 they could not, and its band means are those of version 1.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from terralign.chips import PixelLayout, make_layout
from terralign.datasets.array_set import ArraySet
from terralign.datasets.file_set import FileSet
from terralign.datasets.fingerprint import sampled_sizes
from terralign.datasets.listing import log_left_out
from terralign.datasets.published.arrays import choose_rows, patch_keys, read_array
from terralign.datasets.published.corine import NumClasses, labels_from_pixels, nomenclature
from terralign.datasets.published.geotiffs import RESAMPLING, read_bands
from terralign.datasets.sample import Labels, Place
from terralign.errors import DataError
from terralign.files import hash_file
from terralign.sensors import SENSORS, Sensor

OPTICAL, RADAR = SENSORS["sentinel2-l2a"], SENSORS["sentinel1-grd"]
DTYPES = {OPTICAL.name: "uint16", RADAR.name: "float32"}

PATCH_M = 1200
SIDE = 120
"""Metres, and pixels at 10 m, of a patch."""

COVERED = "snow, cloud or shadow covers them"
"""Why patches are left out of every split."""

MINI_BANDS = ("B02", "B03", "B04", "B08")
MINI_PERIOD = 5
MINI_SPLITS: dict[str, tuple[int, ...]] = {"train": (0, 1, 2), "val": (3,), "test": (4,)}
"""60 / 20 / 20 by `index % 5`."""


def open_bigearthnet_mini(data_root: Path, split: str, *, num_classes: NumClasses = 19) -> ArraySet:
    """`data_root/bigearthnet_mini/patches.npz`: Sentinel-2 in four bands and Sentinel-1 in dB.

    Multi-label, from the CORINE code of every pixel; see `labels_from_pixels`.
    """
    path = data_root / "bigearthnet_mini" / "patches.npz"
    name = "bigearthnet-mini" if num_classes == 19 else f"bigearthnet-mini-{num_classes}"
    dn = read_array(path, "s2_dn", shape=(None, len(MINI_BANDS), SIDE, SIDE), kind="u")
    decibel = read_array(path, "s1_db", shape=(len(dn), 2, SIDE, SIDE), kind="f")
    codes = read_array(path, "clc", shape=(len(dn), SIDE, SIDE), kind="iu")
    rows = choose_rows(name, split, len(dn), MINI_SPLITS, MINI_PERIOD)
    return ArraySet(
        name=name,
        split=split,
        arrays={OPTICAL.name: dn, RADAR.name: decibel},
        layouts={
            OPTICAL.name: make_layout(OPTICAL, MINI_BANDS, units="dn", composite="paper-l2a"),
            RADAR.name: make_layout(RADAR, ("VV", "VH"), units="physical"),
        },
        keys=patch_keys(rows),
        rows=rows,
        content=[hash_file(path)],
        pixels_of="bigearthnet-mini",
        labels=make_labels(labels_from_pixels(codes[rows], num_classes), num_classes),
    )


def make_labels(values: NDArray[np.bool_], num_classes: NumClasses) -> Labels:
    """Multi-hot values (N, K) with the classes of their nomenclature."""
    return Labels(
        values=values,
        class_names=nomenclature(num_classes).class_names,
        class_list=f"bigearthnet-{num_classes}",
    )


def set_name(stem: str, num_classes: NumClasses, *, radar: bool) -> str:
    """The data set's name: `mm`, multi-modal, where Sentinel-1 belongs to it."""
    return f"{stem}-mm-{num_classes}" if radar else f"{stem}-{num_classes}"


def patch_layouts(*, radar: bool) -> dict[str, PixelLayout]:
    """Sentinel-2 L2A in 12 bands without offset, and Sentinel-1 in dB where it belongs to it."""
    layouts = {
        OPTICAL.name: make_layout(
            OPTICAL, OPTICAL.band_names, units="dn", dn_offset=0.0, composite="paper-l2a"
        )
    }
    if radar:
        layouts[RADAR.name] = make_layout(RADAR, RADAR.band_names, units="physical")
    return layouts


def read_patch(patch: Path, sensor: Sensor) -> NDArray[Any]:
    """(C, 120, 120) of a patch's folder, in the sensor's order: uint16 DN or float32 dB."""
    pixels = [
        read_bands(
            patch / f"{patch.name}_{band.name}.tif",
            count=1,
            side=round(PATCH_M / (band.gsd_m or 10)),
            dtypes=(DTYPES[sensor.name],),
            out_side=SIDE,
        )
        for band in sensor.bands
    ]
    return np.concatenate(pixels)


def decode_patch(patch: Path, partners: Mapping[str, Path]) -> dict[str, NDArray[Any]]:
    """Sensor -> pixels of a patch; `partners`: patch name -> its Sentinel-1 folder, if any."""
    pixels = {OPTICAL.name: read_patch(patch, OPTICAL)}
    if patch.name in partners:
        pixels[RADAR.name] = read_patch(partners[patch.name], RADAR)
    return pixels


def keep_labelled(
    name: str, split: str, values: NDArray[np.bool_], num_classes: NumClasses
) -> NDArray[np.int64]:
    """The rows to keep: all but those without a label in the 19 classes.

    The 19 classes dropped eleven of the 43, and a patch with nothing else has no label: its
    publishers leave such patches out of their splits. In 43 and 5 classes every patch has a label.
    """
    labelled = np.flatnonzero(values.any(axis=1))
    reason = f"none of their classes is among the {num_classes}"
    log_left_out(name, split, len(values) - len(labelled), len(values), reason)
    return labelled


def require_samples(name: str, split: str, names: Sequence[str]) -> None:
    """`DataError` where nothing is left of a split."""
    if not names:
        raise DataError(f"data set {name!r}, split {split!r} is empty")


def make_patch_set(
    *,
    name: str,
    split: str,
    patches: Sequence[Path],
    partners: Mapping[str, Path],
    labels: Labels,
    radar: bool,
    locate: Callable[[Path], Place],
) -> FileSet:
    """A split of patch folders; `partners`: patch name -> its radar folder, where `radar`."""
    keys = tuple(patch.name for patch in patches)
    layouts = patch_layouts(radar=radar)
    return FileSet(
        name=name,
        split=split,
        layouts=layouts,
        keys=keys,
        files=tuple(patches),
        decode=partial(decode_patch, partners=partners),
        content=[
            RESAMPLING,
            *(partners[patch].name for patch in keys if radar),
            *sampled_sizes(patches),
        ],
        pixels_of=name.removesuffix(f"-{len(labels.class_names)}"),
        labels=labels,
        locate=locate,
    )
