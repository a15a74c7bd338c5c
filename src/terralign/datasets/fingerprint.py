"""The name of a data set's content: it changes when samples, order or pixels' meaning change."""

from __future__ import annotations

import hashlib
import stat
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from terralign.chips import PixelLayout
from terralign.errors import DataError, shown
from terralign.files import hash_json
from terralign.sensors import describe_sensor


def describe_layout(layout: PixelLayout) -> dict[str, Any]:
    """A layout as plain JSON values."""
    recipe = layout.composite
    return {
        "sensor": describe_sensor(layout.sensor),
        "bands": list(layout.bands),
        "units": layout.units,
        "dn_offset": layout.dn_offset,
        "composite": recipe and [recipe.name, list(recipe.bands), recipe.stretch],
        **({} if layout.stated_scale is None else {"stated_scale": list(layout.stated_scale)}),
    }


def fingerprint(
    *,
    name: str,
    split: str,
    keys: Sequence[str],
    layouts: Mapping[str, PixelLayout],
    content: Sequence[Any],
) -> str:
    """Hash of a split. `content` represents the pixels: file sizes, a file's hash, a size."""
    return hash_json(
        {
            "name": name,
            "split": split,
            "keys": list(keys),
            "layouts": {key: describe_layout(layout) for key, layout in layouts.items()},
            "content": list(content),
        }
    )


WHOLE_NUMBERS = 1024**3
"""Bytes of an array up to which all of it is hashed; of a larger one, rows that come to this."""


def hash_numbers(array: NDArray[Any]) -> str:
    """The hash of an array's shape, type and numbers; above `WHOLE_NUMBERS` of rows evenly spaced
    and the last one."""
    total = hashlib.blake2b(f"{array.shape} {array.dtype.str}".encode(), digest_size=16)
    num_rows = len(array)
    chosen = num_rows
    if array.nbytes > WHOLE_NUMBERS:
        chosen = max(2, num_rows * WHOLE_NUMBERS // array.nbytes)
    for row in np.unique(np.linspace(0, num_rows - 1, chosen).astype(np.int64)):
        total.update(np.ascontiguousarray(array[row]).tobytes())
    return total.hexdigest()


def file_sizes(paths: Iterable[Path], *, named_by: str) -> list[int]:
    """Bytes of all of some files; `DataError` where one that `named_by` names is missing."""
    sizes = []
    for path in paths:
        try:
            sizes.append(path.stat().st_size)
        except (OSError, ValueError) as error:  # a zero byte is a ValueError
            raise DataError(f"{shown(path)[:300]} not found, though {named_by} names it") from error
    return sizes


def sampled_sizes(paths: Sequence[Path], *, num_measured: int = 1000) -> list[int | None]:
    """Bytes of some files, spread evenly; of a folder, those of its files together; None where
    one is missing. For sets of too many files to ask each."""
    chosen = np.unique(np.linspace(0, len(paths) - 1, num_measured).round().astype(np.int64))
    return [_num_bytes(paths[index]) for index in chosen.tolist()]


def _num_bytes(path: Path) -> int | None:
    try:
        found = path.stat()
        if stat.S_ISDIR(found.st_mode):
            return sum(file.stat().st_size for file in path.iterdir())
        return found.st_size
    except (OSError, ValueError):
        return None
