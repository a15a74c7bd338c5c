"""Patches in `.npy` and `.npz` files.

Nothing is unpickled, and shape and size are checked from the headers before memory is taken.
N patches, C bands, H W pixels.
"""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any
from weakref import WeakValueDictionary

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from terralign.chips import PixelLayout
from terralign.datasets.array_set import ArraySet
from terralign.datasets.sample import Labels
from terralign.errors import DataError, SplitError
from terralign.files import hash_file

MAX_ARRAY_BYTES = 16 * 1024**3
"""A compressed array that would take more memory than this is refused before it is read."""

_FAULTS = (OSError, ValueError, EOFError, zipfile.BadZipFile, NotImplementedError, SyntaxError)

_loaded: WeakValueDictionary[tuple[str, int, str], NDArray[Any]] = WeakValueDictionary()
"""Arrays of `.npz` files that are in use, so that two splits of one file share its memory."""


def read_array(
    path: Path, member: str | None = None, *, shape: tuple[int | None, ...], kind: str
) -> NDArray[Any]:
    """An array of a `.npz` (its `member`, loaded) or `.npy` file (memory-mapped, read-only).

    `shape`: the lengths expected, None where any will do; `kind`: NumPy's dtype kinds allowed,
    "u" unsigned, "i" signed, "f" float. Raises `DataError` where file or member is missing,
    damaged, of another shape or kind, needs pickle, or exceeds `MAX_ARRAY_BYTES` in memory.
    """
    if not path.is_file():
        raise DataError(f"{path} is not there")
    where = f"{path}, array {member!r}" if member else str(path)
    try:
        if member is None:
            with open(path, "rb") as file:
                _check_header(file, where, shape, kind, None)
            mapped: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
            return mapped
        key = (str(path.resolve()), path.stat().st_mtime_ns, member)
        array = _loaded.get(key)
        if array is None:
            array = _load_member(path, member, where, shape, kind)
            _loaded[key] = array
        return array
    except _FAULTS as error:
        raise DataError(f"{where} is damaged or no NumPy file: {error}") from error


def _load_member(
    path: Path, member: str, where: str, shape: tuple[int | None, ...], kind: str
) -> NDArray[Any]:
    with zipfile.ZipFile(path) as archive:
        names = [name.removesuffix(".npy") for name in archive.namelist()]
        if member not in names:
            raise DataError(f"{path} has no array {member!r}; it has {', '.join(sorted(names))}")
        info = archive.getinfo(f"{member}.npy")
        with archive.open(info) as file:
            _check_header(file, where, shape, kind, info.file_size)
        with archive.open(info) as file:
            array: NDArray[Any] = npy.read_array(file, allow_pickle=False)
    array.flags.writeable = False
    return array


def _check_header(
    file: IO[bytes], where: str, shape: tuple[int | None, ...], kind: str, num_bytes: int | None
) -> None:
    """`num_bytes`: what the whole member unpacks to, None for a plain file."""
    version = npy.read_magic(file)
    read_header = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
    found, _, dtype = read_header(file)
    fits = len(found) == len(shape) and all(
        want is None or got == want for got, want in zip(found, shape, strict=True)
    )
    if dtype.hasobject or dtype.kind not in kind or not fits:
        wanted = "(" + ", ".join("any" if one is None else str(one) for one in shape) + ")"
        raise DataError(
            f"{where} has shape {found} and type {dtype}; "
            f"expected shape {wanted} and a type of kind {' or '.join(kind)}"
        )
    expected = int(np.prod(found, dtype=object)) * dtype.itemsize
    if num_bytes is None:
        return
    if expected > MAX_ARRAY_BYTES:
        raise DataError(
            f"{where} needs {expected / 2**30:.1f} GiB, more than the limit of "
            f"{MAX_ARRAY_BYTES / 2**30:.0f} GiB; store it as .npy, which is not loaded whole"
        )
    if num_bytes != file.tell() + expected:
        raise DataError(f"{where} is damaged: its header promises {expected} bytes of numbers")


def make_array_set(
    *,
    name: str,
    split: str,
    arrays: Mapping[str, NDArray[Any]],
    layouts: Mapping[str, PixelLayout],
    rows: NDArray[np.int64],
    source: Path,
    labels: Labels | None = None,
) -> ArraySet:
    """A sample set of `rows` of arrays that were read from the file `source`."""
    keys = tuple(f"patch-{row:06d}" for row in rows)
    return ArraySet(
        name=name,
        split=split,
        layouts=layouts,
        keys=keys,
        arrays=arrays,
        rows=rows,
        content=[hash_file(source)],
        labels=labels,
    )


def choose_rows(
    name: str, split: str, num_rows: int, places: Mapping[str, tuple[int, ...]], period: int
) -> NDArray[np.int64]:
    """Rows of a split by a fixed rule: those whose `index % period` is among its `places`."""
    rows = np.arange(num_rows, dtype=np.int64)
    if split == "all":
        return rows
    if split not in places:
        raise SplitError(
            f"data set {name!r} has no split {split!r}; there: {', '.join(places)}, all"
        )
    return rows[np.isin(rows % period, places[split])]
