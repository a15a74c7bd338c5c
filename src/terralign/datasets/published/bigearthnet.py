"""BigEarthNet: what its versions share, and the small array file of development.

A patch is 1.2 km wide: Sentinel-2 L2A in 12 bands, each in a GeoTIFF of its own at its own
resolution, and Sentinel-1 in VV and VH, sigma0 in dB, at 10 m. See `bigearthnet_v1` and
`bigearthnet_v2`. N patches, K classes, C bands, 120x120 pixels at 10 m.

The DN carry no offset in either version. Those of version 1 were made in 2017 and 2018, long before
baseline 04.00. Version 2 was made anew from the L1C products of those years with sen2cor 2.11,
whose name (`N9999`) says nothing; but its DN come down to 35 over land in B02, and to 50 in B8A,
where with ESA's offset of 1000 they could not, and its band means are those of version 1.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rasterio.enums import Resampling
from rasterio.errors import RasterioError

from terralign.chips import PixelLayout, make_layout
from terralign.datasets.array_set import ArraySet
from terralign.datasets.file_set import FileSet
from terralign.datasets.fingerprint import sampled_sizes
from terralign.datasets.published.arrays import choose_rows, make_array_set, read_array
from terralign.datasets.published.corine import NumClasses, labels_from_pixels, nomenclature
from terralign.datasets.sample import Labels, Place
from terralign.errors import DataError, first_line
from terralign.scenes.geotiff import open_geotiff, valid_by_file
from terralign.sensors import SENSORS

logger = logging.getLogger(__name__)

OPTICAL, RADAR = SENSORS["sentinel2-l2a"], SENSORS["sentinel1-grd"]

PATCH_M = 1200
SIDE = 120
"""Metres, and pixels at 10 m, of a patch."""

RESAMPLING = "bilinear"
"""How bands of 20 and 60 m are brought to the 10 m grid."""

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
    return make_array_set(
        name=name,
        split=split,
        arrays={OPTICAL.name: dn, RADAR.name: decibel},
        layouts={
            OPTICAL.name: make_layout(OPTICAL, MINI_BANDS, units="dn", composite="paper-l2a"),
            RADAR.name: make_layout(RADAR, ("VV", "VH"), units="physical"),
        },
        rows=rows,
        source=path,
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


def read_patch(patch: Path) -> NDArray[Any]:
    """The 12 bands of a Sentinel-2 patch folder: (12, 120, 120) uint16 DN in the sensor's order."""
    pixels = np.empty((len(OPTICAL.bands), SIDE, SIDE), dtype=np.uint16)
    for band, channel in zip(OPTICAL.bands, pixels, strict=True):
        side = round(PATCH_M / (band.gsd_m or 10))
        read_band(patch / f"{patch.name}_{band.name}.tif", side, channel)
    return pixels


def read_radar(patch: Path) -> NDArray[Any]:
    """VV and VH of a Sentinel-1 patch folder: (2, 120, 120) float32 sigma0 in dB."""
    pixels = np.empty((len(RADAR.bands), SIDE, SIDE), dtype=np.float32)
    for band, channel in zip(RADAR.bands, pixels, strict=True):
        read_band(patch / f"{patch.name}_{band.name}.tif", SIDE, channel)
    return pixels


def decode_patch(patch: Path, partners: Mapping[str, Path]) -> dict[str, NDArray[Any]]:
    """Sensor -> pixels of a patch; `partners`: patch name -> its Sentinel-1 folder, if any."""
    pixels = {OPTICAL.name: read_patch(patch)}
    if patch.name in partners:
        pixels[RADAR.name] = read_radar(partners[patch.name])
    return pixels


def read_band(path: Path, side: int, into: NDArray[Any]) -> None:
    """Read a GeoTIFF of one band and `side` pixels into an array of SIDE, of the same type.

    Numbers without data become NaN, or 0 among whole numbers.
    """
    with open_geotiff(path) as source:
        found = (source.count, source.height, source.width, source.dtypes[0])
        if found != (1, side, side, str(into.dtype)):
            raise DataError(
                f"{path} is {source.count}x{source.height}x{source.width} {source.dtypes[0]}; "
                f"expected one {into.dtype} band of {side}x{side} pixels"
            )
        try:
            source.read(1, out=into, resampling=Resampling[RESAMPLING])
            valid = valid_by_file(source, into[None])[0]
        except (RasterioError, OSError, ValueError) as error:
            raise DataError(f"{path} is damaged: {first_line(error)}") from error
    into[~valid] = np.nan if np.issubdtype(into.dtype, np.floating) else 0


def keep_labelled(
    name: str, split: str, values: NDArray[np.bool_], num_classes: NumClasses
) -> NDArray[np.int64]:
    """The rows to keep: all of them, save those without a label in the 19 classes.

    The 19 classes dropped eleven of the 43, and a patch of which nothing else remains says nothing
    about any of them: its publishers leave such patches out of their splits, and so does this,
    saying how many. In 43 and in 5 classes every patch has a label.
    """
    labelled = np.flatnonzero(values.any(axis=1))
    left_out = len(values) - len(labelled)
    if left_out:
        logger.info(
            "%s, split %r: %d of %d patches left out, because none of their classes is among "
            "the %d",
            name, split, left_out, len(values), num_classes,
        )  # fmt: skip
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
        labels=labels,
        locate=locate,
    )
