"""NumPy's arrays in files of others: described by their header, then read. Nothing is unpickled."""

from __future__ import annotations

import math
import tokenize
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from terralign.errors import DataError, first_line
from terralign.limits import require

FAULTS = (
    *(ValueError, SyntaxError, EOFError, TypeError, MemoryError, RecursionError, OverflowError),
    tokenize.TokenError,
)
"""What NumPy raises for a damaged header, one of thousands of brackets among them."""

_CHUNK = 256 * 1024


def read_npy(file: IO[bytes], what: str) -> NDArray[Any]:
    """The array of numbers in a `.npy` file, from its position on; `DataError` calls it `what`.

    Memory is taken as its bytes arrive, whatever its header says.
    """
    try:
        shape, by_column, dtype = _read_header(file)
    except FAULTS as error:
        raise DataError(
            f"{what} is damaged or no NumPy file ({first_line(error)}); copy it again"
        ) from error
    if dtype.kind not in "biufc" or any(isinstance(side, bool) or side < 0 for side in shape):
        raise DataError(
            f"{what} is of shape {shape!s:.100} and type {dtype!s:.100}; expected numbers"
        )
    num_bytes = math.prod(shape) * dtype.itemsize
    require("array_bytes", num_bytes, f"{what} has")
    try:
        array = np.empty(num_bytes // dtype.itemsize, dtype)
        data, done = array.view(np.uint8).data, 0
        while read := file.readinto(data[done : done + _CHUNK]):  # type: ignore[attr-defined]
            done += read
        array = array.reshape(shape[::-1]).T if by_column else array.reshape(shape)
    except FAULTS as error:
        raise DataError(
            f"{what} is damaged or no NumPy file ({first_line(error)}); copy it again"
        ) from error
    if done < num_bytes:
        raise DataError(f"{what} is damaged: it has {done} bytes of {num_bytes}; copy it again")
    return array


def _read_header(file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Shape, whether columns lie together (Fortran), and type."""
    version = np.lib.format.read_magic(file)
    if version == (1, 0):
        return np.lib.format.read_array_header_1_0(file)
    if version in ((2, 0), (3, 0)):  # which differ in names of fields, and numbers have none
        return np.lib.format.read_array_header_2_0(file)
    raise ValueError(f"version {version[0]}.{version[1]} of the format is not known")
