"""Class lists that ship with the package, `classes/*.toml`: folder -> class name in prompts.

K classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from terralign.errors import DataError
from terralign.files import read_shipped


@cache
def read_table(name: str) -> dict[str, Any]:
    """The shipped file `classes/{name}.toml`."""
    return read_shipped("datasets/classes", name)


def load_class_list(name: str) -> dict[str, str]:
    """The shipped class list `name`: folder name -> class name, in the list's order."""
    return dict(read_table(name)["classes"])


def class_shares(
    codes: NDArray[np.integer[Any]],
    class_of_code: Mapping[int, int | None],
    num_classes: int,
    *,
    scheme: str,
) -> NDArray[np.float64]:
    """(K,) share of the pixels that each class covers in a map of land-cover codes, any shape.

    `class_of_code`: code -> class, None for codes without one, which count as part of the whole.
    `DataError` for any other code; `scheme`: what the error says a code should be.
    """
    counts = np.zeros(num_classes, dtype=np.int64)
    values, numbers = np.unique(codes, return_counts=True)
    for code, number in zip(values.tolist(), numbers.tolist(), strict=True):
        if code not in class_of_code:
            raise DataError(f"{code} is no {scheme}")
        target = class_of_code[code]
        if target is not None:
            counts[target] += number
    return counts / codes.size
