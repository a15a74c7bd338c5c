"""BigEarthNet version 2, reBEN (Clasen et al. 2024): 480,038 patches, without those under snow,
cloud and shadow.

    BigEarthNet-S2/<tile>/<patch>/<patch>_B01.tif ...
    BigEarthNet-S1/<scene>/<radar patch>/<radar patch>_VV.tif, _VH.tif
    Reference_Maps/<tile>/<patch>/<patch>_reference_map.tif     CORINE code of every pixel
    metadata.parquet                                    names, labels, splits, partners

What it costs to open: the table, and one listing of each tile's folder (115 of them; 312 more for
Sentinel-1), a few seconds. In 5 classes also one reference map per patch, about 2 ms each; a packed
store has the labels in its table. Bands are not looked for before they are read.
"""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from terralign.datasets.file_set import FileSet
from terralign.datasets.listing import (
    find_folder,
    list_names,
    log_left_out,
    read_each,
    require_all,
)
from terralign.datasets.parquet import read_columns
from terralign.datasets.published.bigearthnet import (
    COVERED,
    SIDE,
    keep_labelled,
    make_labels,
    make_patch_set,
    require_samples,
    set_name,
)
from terralign.datasets.published.corine import ANY_PRESENCE, labels_from_pixels, nomenclature
from terralign.datasets.published.geotiffs import read_bands
from terralign.datasets.sample import Place, require_split
from terralign.errors import DataError, first_line, quoted
from terralign.scenes.places import geotiff_bounds

TABLE = "metadata.parquet"
OPTICAL_FOLDER, RADAR_FOLDER, MAPS_FOLDER = "BigEarthNet-S2", "BigEarthNet-S1", "Reference_Maps"
"""What the archives unpack to."""

SPLITS = {"train": "train", "val": "validation", "test": "test"}
"""Our names of the splits -> the table's."""

_SCHEMA = pa.schema(
    {
        **dict.fromkeys(("patch_id", "split", "s1_name"), pa.string()),
        "labels": pa.list_(pa.string()),
        **dict.fromkeys(("contains_seasonal_snow", "contains_cloud_or_shadow"), pa.bool_()),
    }
)
"""The columns that are read."""

_PATCH = re.compile(r"S2[AB]_MSIL2A_(\d{8}T\d{6})_N\d{4}_R\d{3}_T[0-9A-Z]{5}_\d+_\d+")
_RADAR_PATCH = re.compile(r"S1[AB]_IW_GRDH_1SDV_\d{8}T\d{6}_[0-9A-Z]{5}_\d+_\d+")


def open_bigearthnet_v2(
    data_root: Path, split: str, *, num_classes: Literal[19, 5] = 19, radar: bool = False
) -> FileSet:
    """BigEarthNet v2 below `data_root/bigearthnet_v2`, or in `data_root` itself.

    `radar`: each patch with its Sentinel-1 partner. `split`: `train`, `val`, `test` as published,
    or `all`. The 19 classes are those of the table. The 5 of CORINE's level 1 are made from the
    reference maps, from one pixel on as the 19 were. They do not follow from the 19, because the
    only road or quarry of a patch has no class among these.

    Raises `DataError`: a table that is missing, damaged or lacks a column, patches or partners
    that are missing, a class outside the nomenclature.
    """
    name = set_name("bigearthnet-v2", num_classes, radar=radar)
    what = f"{TABLE} beside {OPTICAL_FOLDER}"
    base = find_folder(name, data_root, ("bigearthnet_v2", "."), holds=_has_table, what=what)
    path = base / TABLE
    table = _choose_rows(name, split, _read_table(path))
    keys = _names(path, table, "patch_id", _PATCH)
    require_samples(name, split, keys)
    patches = _find_patches(keys, base / OPTICAL_FOLDER, 2)
    if num_classes == 19:
        values = _labels_of(path, table, keys)
    else:
        values = _labels_from_maps(name, keys, base / MAPS_FOLDER)
    partners: dict[str, Path] = {}
    if radar:
        names = _names(path, table, "s1_name", _RADAR_PATCH)
        folders = _find_patches(
            names, base / RADAR_FOLDER, 3, todo=", or take the data set without '-mm'"
        )
        partners = dict(zip(keys, folders, strict=True))
    kept = keep_labelled(name, split, values, num_classes)
    require_samples(name, split, kept.tolist())
    return make_patch_set(
        name=name,
        split=split,
        patches=[patches[row] for row in kept],
        partners=partners,
        labels=make_labels(values[kept], num_classes),
        radar=radar,
        locate=locate_patch,
    )


def _has_table(folder: Path) -> bool:
    return (folder / TABLE).is_file() and (folder / OPTICAL_FOLDER).is_dir()


def _read_table(path: Path) -> pa.Table:
    """The columns of `_SCHEMA`, without nulls."""
    names, todo = _SCHEMA.names, "download metadata.parquet of BigEarthNet v2 again"

    def check(found: Sequence[str]) -> None:
        if missing := [name for name in names if name not in found]:
            raise DataError(f"{path} has no column {', '.join(missing)}; {todo}")

    try:
        table = read_columns(path, names, check=check).select(names).cast(_SCHEMA)
    except (pa.ArrowException, OSError, MemoryError, ValueError) as error:
        raise DataError(
            f"{path} is not a readable Parquet file ({first_line(error)}); {todo}"
        ) from error
    empty = [name for name in table.column_names if table[name].null_count]
    if empty:
        raise DataError(f"{path}: column {', '.join(empty)} has empty entries")
    return table


def _choose_rows(name: str, split: str, table: pa.Table) -> pa.Table:
    """Rows of the split, in the table's order, without those under snow, cloud or shadow."""
    require_split(name, split, (*SPLITS, "all"))
    if split != "all":
        table = table.filter(pc.equal(table["split"], SPLITS[split]))
    clear = pc.invert(pc.or_(table["contains_seasonal_snow"], table["contains_cloud_or_shadow"]))
    chosen = table.filter(clear)
    log_left_out(name, split, len(table) - len(chosen), len(table), COVERED)
    return chosen


def _names(path: Path, table: pa.Table, column: str, pattern: re.Pattern[str]) -> list[str]:
    names: list[str] = table[column].to_pylist()
    for name in names:
        if not pattern.fullmatch(name):
            raise DataError(f"{path}: {quoted(name)} in column {column} is no name of a patch")
    if len(set(names)) < len(names):
        raise DataError(f"{path}: column {column} names a patch twice in one split")
    return names


def _nested(folder: Path, names: Iterable[str], num_parts: int) -> list[Path]:
    """`<folder>/<tile>/<patch>`: a tile's name is a patch's without its last `num_parts` parts."""
    return [folder / name.rsplit("_", num_parts)[0] / name for name in names]


def _find_patches(names: list[str], folder: Path, num_parts: int, todo: str = "") -> list[Path]:
    """The folders of the patches of a split; `DataError` where some are missing."""
    patches = _nested(folder, names, num_parts)
    found = {
        name for tile in {one.parent for one in patches} for name in list_names(tile, "folders")
    }
    require_all(
        names,
        found,
        by=f"{folder.parent / TABLE} lists for {folder}",
        what="patches of the split",
        todo=f"unpack {folder.name}.tar.zst into {folder.parent} again{todo}",
    )
    return patches


def _labels_of(path: Path, table: pa.Table, keys: list[str]) -> NDArray[np.bool_]:
    """Multi-hot (N, 19) from the table's lists of class names."""
    classes = nomenclature(19).names
    column = table["labels"].combine_chunks()
    rows = pc.list_parent_indices(column).to_numpy()
    names = pc.list_flatten(column)
    found = pc.index_in(names, value_set=pa.array(classes))
    if found.null_count:
        first = pc.index(pc.is_null(found), True).as_py()
        label = quoted(names[first].as_py())
        raise DataError(
            f"{path}: {label}, a label of {keys[rows[first]]}, is not one of "
            "the 19 classes of BigEarthNet"
        )
    values = np.zeros((len(keys), len(classes)), dtype=bool)
    values[rows, found.to_numpy()] = True
    return values


def _labels_from_maps(name: str, keys: list[str], folder: Path) -> NDArray[np.bool_]:
    if not folder.is_dir():
        raise DataError(
            f"no {folder}: the 5 classes are made from the reference maps; unpack "
            f"{MAPS_FOLDER}.tar.zst there"
        )
    maps = _nested(folder, keys, 2)
    return np.concatenate(read_each(f"reference maps of {name}", _label_of_map, maps, unit="map"))


def _label_of_map(patch: Path) -> NDArray[np.bool_]:
    path = patch / f"{patch.name}_reference_map.tif"
    codes = read_bands(path, count=1, side=SIDE, dtypes=("uint16",))
    try:
        return labels_from_pixels(codes, 5, ANY_PRESENCE)
    except DataError as error:
        raise DataError(f"{path}: {error}") from error


def locate_patch(patch: Path) -> Place:
    """Where a patch lies, from the grid of its B02, and when Sentinel-2 took it, from its name."""
    match = _PATCH.fullmatch(patch.name)
    assert match is not None
    try:
        time = dt.datetime.strptime(match[1], "%Y%m%dT%H%M%S").replace(tzinfo=dt.UTC)
    except ValueError as error:
        raise DataError(f"{patch}: {match[1]} in its name is no time; unpack it again") from error
    return Place(bounds=geotiff_bounds(patch / f"{patch.name}_B02.tif"), datetime=time)
