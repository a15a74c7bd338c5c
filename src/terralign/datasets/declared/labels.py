"""Label values as a table, a JSON file or a text holds them, mapped to declared classes.

N samples, K classes. A value outside the declared classes is an error that names its sample.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from terralign.datasets.sample import Labels
from terralign.errors import DataError, nearest

Tell = Callable[[int], str]
"""The number of a sample -> how an error names it."""

_FLAGS = {"0": False, "1": True, "false": False, "true": True}


def single_labels(
    values: pa.Array, classes: Mapping[str, str], tell: Tell, *, class_list: str
) -> Labels:
    """Labels of samples with one class each; `values`: N strings."""
    indices = _indices(values, classes, tell)
    return _labels(indices, classes, class_list)


def list_labels(
    values: pa.Array, classes: Mapping[str, str], tell: Tell, *, class_list: str
) -> Labels:
    """Labels of samples with several classes, or none; `values`: N lists of strings."""
    _require_lists(values, tell)
    owners, flat = pc.list_parent_indices(values), pc.list_flatten(values)
    return _multi_labels(owners, flat, len(values), classes, tell, class_list=class_list)


def separated_labels(
    values: pa.Array, separator: str, classes: Mapping[str, str], tell: Tell, *, class_list: str
) -> Labels:
    """Labels of samples with several classes, or none; `values`: N strings, each of classes with
    `separator` between them. Spaces around them and empty ones do not count.
    """
    _require_lists(values, tell)
    lists = pc.split_pattern(values, separator)
    owners, flat = pc.list_parent_indices(lists), pc.utf8_trim_whitespace(pc.list_flatten(lists))
    kept = pc.not_equal(flat, "")
    owners, flat = owners.filter(kept), flat.filter(kept)
    return _multi_labels(owners, flat, len(values), classes, tell, class_list=class_list)


def _require_lists(values: pa.Array, tell: Tell) -> None:
    if values.null_count:
        position = int(np.flatnonzero(values.is_null().to_numpy(zero_copy_only=False))[0])
        raise DataError(f"{tell(position)} has no labels; write an empty list or text for none")


def _multi_labels(
    owners: pa.Array,
    values: pa.Array,
    num_samples: int,
    classes: Mapping[str, str],
    tell: Tell,
    *,
    class_list: str,
) -> Labels:
    """`owners`: the sample of each of the `values`."""
    samples = owners.to_numpy(zero_copy_only=False)
    indices = _indices(values, classes, lambda position: tell(int(samples[position])))
    hot = np.zeros((num_samples, len(classes)), dtype=np.bool_)
    hot[samples, indices] = True
    return _labels(hot, classes, class_list)


def flag_labels(
    columns: Mapping[str, pa.Array], classes: Mapping[str, str], tell: Tell, *, class_list: str
) -> Labels:
    """Labels from one column per class, each 0 or 1, or false or true, as N strings."""
    hot = np.zeros((len(next(iter(columns.values()))), len(classes)), dtype=np.bool_)
    for position, value in enumerate(classes):
        flags = pc.index_in(pc.utf8_lower(columns[value]), pa.array(list(_FLAGS)))
        if flags.null_count:
            row = int(np.flatnonzero(flags.is_null().to_numpy(zero_copy_only=False))[0])
            given = columns[value][row].as_py()
            raise DataError(f"{tell(row)} has {given!r} in column {value!r}; expected 0 or 1")
        hot[:, position] = np.array(list(_FLAGS.values()))[flags.to_numpy()]
    return _labels(hot, classes, class_list)


def _indices(values: pa.Array, classes: Mapping[str, str], tell: Tell) -> NDArray[np.int64]:
    found = pc.index_in(values, pa.array(list(classes), pa.string()))
    if values.null_count or found.null_count:
        position = int(np.flatnonzero(found.is_null().to_numpy(zero_copy_only=False))[0])
        value = values[position].as_py()
        if value is None or not value.strip():
            raise DataError(f"{tell(position)} has no label")
        raise DataError(
            f"{tell(position)} has label {value!r}, which is none of [classes]; "
            f"{nearest(value, classes)}"
        )
    indices: NDArray[np.int64] = found.to_numpy().astype(np.int64)
    return indices


def _labels(values: NDArray[Any], classes: Mapping[str, str], class_list: str) -> Labels:
    return Labels(values=values, class_names=tuple(classes.values()), class_list=class_list)
