"""Patches in one `.npz` file of development: Sentinel-2 L2A, without labels, as `s2-l2a`.

N patches, C bands, H W pixels.
"""

from __future__ import annotations

import struct
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from zipfile import ZIP_DEFLATED, ZIP_STORED

import numpy as np
from numpy.typing import NDArray

from terralign.chips import make_layout
from terralign.datasets.array_set import ArraySet
from terralign.datasets.npy import read_npy
from terralign.datasets.sample import require_split
from terralign.errors import DataError, first_line, some
from terralign.files import hash_file, not_found
from terralign.limits import require
from terralign.sensors import SENSORS

_FAULTS = (
    *(OSError, ValueError, EOFError, MemoryError, NotImplementedError, RuntimeError, OverflowError),
    *(KeyError, IndexError, struct.error, zipfile.BadZipFile, zlib.error),
)
"""What `zipfile` raises for a damaged or encrypted archive."""

S2_L2A_SPLITS: dict[str, tuple[int, ...]] = {"train": tuple(range(9)), "val": (9,)}
"""Every tenth patch is validation."""


def read_array(
    path: Path, member: str, *, shape: tuple[int | None, ...], kind: str
) -> NDArray[Any]:
    """The array `member` of a `.npz` file; nothing is unpickled.

    `shape`: the lengths expected, None where any will do; `kind`: NumPy's dtype kinds allowed,
    "u" unsigned, "i" signed, "f" float. Raises `DataError` where file or member is missing,
    damaged, of another shape or kind, or where the file's arrays are larger than the limit.
    """
    if not path.is_file():
        raise DataError(not_found(path))
    where = f"{path}, array {member!r}"
    try:
        with zipfile.ZipFile(path) as archive:
            sizes = {one.filename: one.file_size for one in archive.infolist()}
            require("array_bytes", sum(sizes.values()), f"{path} has")
            name = next((one for one in (f"{member}.npy", member) if one in sizes), None)
            if name is None:
                found = some([one.removesuffix(".npy") for one in sizes])
                raise DataError(f"{path} has no array {member!r}; it has {found}")
            if archive.getinfo(name).compress_type not in (ZIP_STORED, ZIP_DEFLATED):
                raise NotImplementedError("compressed as NumPy does not; save it with NumPy")
            with archive.open(name) as file:
                array = read_npy(file, where)
    except _FAULTS as error:
        raise DataError(
            f"{where} is damaged or no NumPy file ({first_line(error)}); copy it again"
        ) from error
    fits = array.ndim == len(shape) and all(
        want in (None, got) for got, want in zip(array.shape, shape, strict=True)
    )
    if array.dtype.kind not in kind or not fits:
        wanted = ", ".join("any" if one is None else str(one) for one in shape)
        raise DataError(
            f"{where} has shape {array.shape!s:.100} and type {array.dtype}; "
            f"expected shape ({wanted}) and a type of kind {' or '.join(kind)}"
        )
    return array


def choose_rows(
    name: str, split: str, num_rows: int, places: Mapping[str, tuple[int, ...]], period: int
) -> NDArray[np.int64]:
    """Rows of a split by a fixed rule: those whose `index % period` is among its `places`."""
    require_split(name, split, (*places, "all"))
    rows = np.arange(num_rows, dtype=np.int64)
    return rows if split == "all" else rows[np.isin(rows % period, places[split])]


def patch_keys(rows: NDArray[np.int64]) -> tuple[str, ...]:
    """A name for each row of an array."""
    return tuple(f"patch-{row:06d}" for row in rows)


def open_s2_l2a(data_root: Path, split: str) -> ArraySet:
    """`data_root/s2_l2a/patches.npz`: Sentinel-2 L2A patches, 12 bands, without labels.

    Their DN carry no offset: over water and shade they come down to 1 in nearly every band, where
    with ESA's offset of 1000 they could not.
    """
    path = data_root / "s2_l2a" / "patches.npz"
    sensor = SENSORS["sentinel2-l2a"]
    pixels = read_array(path, "pixels", shape=(None, len(sensor.bands), None, None), kind="u")
    layout = make_layout(
        sensor, sensor.band_names, units="dn", dn_offset=0.0, composite="paper-l2a"
    )
    rows = choose_rows("s2-l2a", split, len(pixels), S2_L2A_SPLITS, 10)
    return ArraySet(
        name="s2-l2a",
        split=split,
        arrays={sensor.name: pixels},
        layouts={sensor.name: layout},
        keys=patch_keys(rows),
        rows=rows,
        content=[hash_file(path)],
    )
