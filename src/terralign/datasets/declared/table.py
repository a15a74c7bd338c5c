"""Data sets that a table lists: a CSV, Parquet or GeoParquet file with one row per sample.

name = "fields"
reader = "table"
table = "fields/samples.parquet"   # beside this file, or in the data root
root = "fields/images"             # what paths are relative to; left out, the table's own folder

[sensors.sentinel2-l2a]
column = "s2"                      # the column of paths
dn_offset = -1000

[sensors.sentinel1-grd]
column = "s1"
bands = ["VV", "VH"]

[labels]
form = "single"                    # or "list", "separated", "columns"
column = "crop"

[classes]                          # value in the table -> class as prompts say it
1 = "a wheat field"

[columns]                          # each may be left out
key = "id"
split = "fold"
date = "acquired"
captions = "text"
footprint = "geometry"

[splits]                           # split -> its values in the column
train = ["a", "b"]
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator

from terralign.chips import PixelLayout
from terralign.datasets.class_folders import require_inside
from terralign.datasets.declared.declaration import (
    Declaration,
    LabelKind,
    PixelSettings,
    find_path,
    pixels_of,
    require_classes,
    require_split,
    sensors_of,
)
from terralign.datasets.declared.footprints import read_footprints
from terralign.datasets.declared.labels import (
    flag_labels,
    list_labels,
    separated_labels,
    single_labels,
)
from terralign.datasets.declared.table_file import TableFile, first_true, read_table_file
from terralign.datasets.declared.table_set import TableSet
from terralign.datasets.file_set import Decode
from terralign.datasets.fingerprint import fingerprint
from terralign.datasets.image_files import is_new
from terralign.datasets.sample import Captions, Labels, require_whole_split, tell_unused
from terralign.errors import DataError
from terralign.files import hash_file
from terralign.scenes.pictures import Size, describe_size

logger = logging.getLogger(__name__)

NUM_MEASURED = 1000
"""Files whose sizes go into the fingerprint, spread evenly over a split: a million files are not
all asked for theirs."""

_OUTSIDE = r"^[/\\~]|^.?:|\\|(?:^|/)\.\.(?:/|$)"
"""Paths that `require_inside` refuses, to find one among millions."""


class TableSensor(PixelSettings):
    """`[sensors.*]` of a table."""

    column: str
    """The column of its paths."""


class TableLabels(BaseModel):
    """`[labels]` of a table."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    form: Literal["single", "list", "separated", "columns"]
    """One value in a column; a column of lists; texts with a separator between values; or one
    column of 0 and 1 per class, named as in [classes]."""
    column: str | None = None
    """The column, of every form but "columns"."""
    separator: str | None = Field(default=None, min_length=1)
    """Of "separated": what stands between values; spaces around them do not count."""

    @model_validator(mode="after")
    def _settings_have_an_effect(self) -> TableLabels:
        for key, needed in (
            ("column", self.form != "columns"),
            ("separator", self.form == "separated"),
        ):
            if needed and getattr(self, key) is None:
                raise ValueError(f'form "{self.form}" needs {key}')
            if not needed and getattr(self, key) is not None:
                raise ValueError(f'{key} has no effect on form "{self.form}"; leave it out')
        return self


class TableColumns(BaseModel):
    """`[columns]`: what other columns hold."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    key: str | None = None
    """The name of a sample, of which no two may be alike; left out, the first sensor's path."""
    split: str | None = None
    """The values that [splits] names."""
    date: str | None = None
    """When a sample was taken: a date, a time or an ISO text, UTC where it names no zone."""
    captions: str | None = None
    """A caption, or a list of captions."""
    footprint: str | None = None
    """Where a sample lies: geometries or boxes of a GeoParquet file; left out, the rasters say."""


class TableDeclaration(Declaration):
    """What the TOML file of a table says."""

    reader: Literal["table"]
    table: str = Field(min_length=1)
    """The table."""
    root: str | None = Field(default=None, min_length=1)
    """The folder that paths are relative to; left out, the
    table's folder."""
    delimiter: str | None = Field(default=None, min_length=1, max_length=1)
    """Of a CSV: what stands between columns; left out, a comma."""
    sensors: dict[str, TableSensor] = Field(min_length=1)
    labels: TableLabels | None = None
    columns: TableColumns = TableColumns()
    splits: dict[str, str | tuple[str, ...]] | None = Field(default=None, min_length=1)
    """Split -> its value, or values, in the split column."""

    @model_validator(mode="after")
    def _settings_have_an_effect(self) -> TableDeclaration:
        require_classes(self, labelled=self.labels is not None, remedy="see [labels]")
        if (self.splits is None) != (self.columns.split is None):
            raise ValueError("[splits] and columns.split have an effect only together")
        return self

    @property
    def label_kind(self) -> LabelKind:
        if self.labels is not None:
            return "single" if self.labels.form == "single" else "multi"
        return "none" if self.columns.captions is None else "captions"

    @property
    def location(self) -> str:
        return self.table

    def column_names(self) -> list[str]:
        """All columns that are read, every one once."""
        names = [sensor.column for sensor in self.sensors.values()]
        if self.labels is not None:
            assert self.classes is not None
            names += self.classes if self.labels.column is None else [self.labels.column]
        names += [name for name in self.columns.model_dump().values() if name is not None]
        return list(dict.fromkeys(names))


def open_table(
    declaration: TableDeclaration,
    path: Path,
    data_root: Path,
    split: str,
    *,
    size: Size | None = None,
) -> TableSet:
    """Open one split of the data set that a table lists; `path`: the declaration's file.

    Files are not looked for before they are read. The fingerprint holds the hash of the whole
    table, and the sizes of at most `NUM_MEASURED` files: pixels that change while the table stays
    are noticed by those.
    """
    table_path = _find_table(declaration, path, data_root)
    table = read_table_file(table_path, declaration.column_names(), delimiter=declaration.delimiter)
    table = table.take(_rows_of(declaration, path, table, split))
    root = table_path.parent
    if declaration.root is not None:
        require_inside(declaration.root, origin=f"{path}: root")
        root = find_path(declaration.root, path, data_root, what="root")
    layouts: dict[str, PixelLayout] = {}
    decoders: dict[str, Decode] = {}
    files: dict[str, pa.Array] = {}
    for sensor, settings in sensors_of(declaration.sensors, path, data_root):
        pixels = pixels_of(
            sensor, settings, size=size, pictures=sensor.name == "rgb",
            origin=f"{path}: sensors.{sensor.name}",
        )  # fmt: skip
        paths = files[sensor.name] = _paths(table, settings.column)
        layouts[sensor.name], decoders[sensor.name] = pixels.open(root / paths[0].as_py())
    columns = declaration.columns
    keys = _keys(table, columns.key, next(iter(declaration.sensors.values())).column)
    labels = _labels(table, declaration, class_list=path.name)
    if labels is not None:
        tell_unused(labels, name=declaration.name, split=split)
    size_kept = describe_size(size) if "rgb" in layouts else None
    content = [size_kept, hash_file(table_path), *_sizes(root, files)]
    return TableSet(
        name=declaration.name,
        split=split,
        layouts=layouts,
        keys=keys,
        root=root,
        files=files,
        decoders=decoders,
        fingerprint=fingerprint(
            name=declaration.name, split=split, keys=keys, layouts=layouts, content=content
        ),
        labels=labels,
        captions=None if columns.captions is None else _captions(table, columns.captions),
        prompts=declaration.prompts,
        dates=None if columns.date is None else table.times(columns.date),
        footprints=None if columns.footprint is None else read_footprints(table, columns.footprint),
    )


def _find_table(declaration: TableDeclaration, path: Path, data_root: Path) -> Path:
    require_inside(declaration.table, origin=f"{path}: table")
    return find_path(declaration.table, path, data_root, what="table")


def _rows_of(
    declaration: TableDeclaration, path: Path, table: TableFile, split: str
) -> NDArray[np.int64]:
    """The rows of a split, in the table's order."""
    rows = np.arange(len(table), dtype=np.int64)
    if declaration.splits is None or declaration.columns.split is None:
        require_whole_split(declaration.name, split)
        return rows
    require_split(declaration.name, split, tuple(declaration.splits), path)
    if split not in declaration.splits:
        return rows
    wanted = declaration.splits[split]
    values = (wanted,) if isinstance(wanted, str) else wanted
    column = table.texts(declaration.columns.split)
    for value in values:
        if not pc.any(pc.equal(column, value)).as_py():
            raise DataError(
                f"{path}: splits.{split}: no row of {table.path} has {value!r} in column "
                f"{declaration.columns.split!r}"
            )
    _warn_of_unlisted(declaration, table, column)
    chosen = pc.fill_null(pc.is_in(column, pa.array(values, pa.string())), False)
    mask: NDArray[np.bool_] = chosen.to_numpy(zero_copy_only=False)
    return rows[mask]


def _warn_of_unlisted(declaration: TableDeclaration, table: TableFile, column: pa.Array) -> None:
    """Name once in a process the rows that belong to no declared split."""
    entries = (declaration.splits or {}).values()
    listed = [one for entry in entries for one in ([entry] if isinstance(entry, str) else entry)]
    others = pc.invert(pc.fill_null(pc.is_in(column, pa.array(listed, pa.string())), False))
    number = pc.sum(others).as_py()
    if not number:
        return
    values = sorted({value or "" for value in column.filter(others).unique().to_pylist()})
    shown = ", ".join(map(repr, values[:5])) + ", ..." * (len(values) > 5)
    said = f"{number:,} rows are in no split: {declaration.columns.split} is {shown}"
    if is_new(table.path, said):
        logger.warning("data set %r: %s; [splits] lists the others", declaration.name, said)


def _paths(table: TableFile, column: str) -> pa.Array:
    """A column of paths below the root, with forward slashes."""
    paths = table.full_texts(column)
    outside = pc.match_substring_regex(paths, _OUTSIDE)
    if pc.any(outside).as_py():
        row = first_true(outside)
        require_inside(paths[row].as_py(), origin=f"{table.tell(row)}, column {column!r}")
    return paths


def _keys(table: TableFile, column: str | None, path_column: str) -> tuple[str, ...]:
    """The samples' names: those of `column`, else their paths without the ending."""
    if column is not None:
        keys = table.full_texts(column).to_pylist()
        _require_different(table, keys, column)
        return tuple(keys)
    paths = table.texts(path_column)
    stems = pc.replace_substring_regex(paths, r"\.[A-Za-z0-9]+$", "").to_pylist()
    if len(set(stems)) < len(stems):
        stems = paths.to_pylist()
        _require_different(table, stems, path_column)
    return tuple(stems)


def _require_different(table: TableFile, keys: Sequence[str], column: str) -> None:
    if len(set(keys)) == len(keys):
        return
    seen: dict[str, int] = {}
    for row, key in enumerate(keys):
        if key in seen:
            raise DataError(
                f"{table.tell(row)} has {key!r} in column {column!r}, as row "
                f"{table.numbers[seen[key]]} has; every sample needs a name of its own "
                "(columns.key)"
            )
        seen[key] = row


def _labels(table: TableFile, declaration: TableDeclaration, *, class_list: str) -> Labels | None:
    """The labels in the form that is declared."""
    said, classes = declaration.labels, declaration.classes
    if said is None or classes is None:
        return None
    if said.column is None:
        flags = {value: table.texts(value) for value in classes}
        return flag_labels(flags, classes, table.tell, class_list=class_list)
    if said.form == "single":
        texts = table.texts(said.column)
        return single_labels(texts, classes, table.tell, class_list=class_list)
    if said.separator is not None:
        texts = table.texts(said.column)
        return separated_labels(texts, said.separator, classes, table.tell, class_list=class_list)
    lists = table.text_lists(said.column)
    return list_labels(lists, classes, table.tell, class_list=class_list)


def _captions(table: TableFile, column: str) -> Captions:
    """The captions of each sample, empty ones left out; at least one."""
    if not table.holds_lists(column):
        return tuple((text,) for text in table.full_texts(column).to_pylist())
    captions = []
    for row, texts in enumerate(table.text_lists(column).to_pylist()):
        kept = tuple(text for text in texts or () if text and text.strip())
        if not kept:
            raise DataError(f"{table.tell(row)} has no caption in column {column!r}")
        captions.append(kept)
    return tuple(captions)


def _sizes(root: Path, files: Mapping[str, pa.Array]) -> list[int | None]:
    """Bytes of some files of each sensor, spread evenly; None for one that is missing."""
    sizes: list[int | None] = []
    for paths in files.values():
        chosen = np.unique(np.linspace(0, len(paths) - 1, NUM_MEASURED).round().astype(np.int64))
        for text in paths.take(pa.array(chosen)).to_pylist():
            try:
                sizes.append((root / text).stat().st_size)
            except OSError:
                sizes.append(None)
    return sizes
