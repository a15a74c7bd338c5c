"""A custom data set, declared by its user in a TOML file. Nothing in it is guessed.

`reader` says how it lies on disk: "folder" (see `folder`), "table" (see `table`), "shards" (see
`webdataset`).
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from terralign.datasets.declared.declaration import Declaration, sensor_of
from terralign.datasets.declared.folder import (
    FolderDeclaration,
    FolderSensor,
    open_declared_folder,
)
from terralign.datasets.declared.table import TableDeclaration, TableSensor, open_table
from terralign.datasets.declared.webdataset import TarDeclaration, TarSensor, open_tars
from terralign.datasets.facts import DatasetFacts
from terralign.datasets.sample import WHOLE_SPLITS, SampleSet
from terralign.errors import DataError, nearest, quoted
from terralign.files import read_toml
from terralign.scenes.pictures import Size
from terralign.toml_values import explain

READERS: dict[str, tuple[type[Declaration], type[BaseModel], Callable[..., SampleSet]]] = {
    "folder": (FolderDeclaration, FolderSensor, open_declared_folder),
    "table": (TableDeclaration, TableSensor, open_table),
    "shards": (TarDeclaration, TarSensor, open_tars),
}
"""`reader` of a TOML file -> what the file and its `[sensors.*]` may hold, and how it is opened."""


def read_declaration(path: Path) -> Declaration:
    """Read and check a data set's TOML file; `DataError` names the first fault and its place."""
    values = read_toml(path, what="data set file", fault=DataError)
    declaration, sensor, _ = READERS[_reader_of(values, path)]
    sensors = values.get("sensors")
    if isinstance(sensors, dict):  # on their own, for the hint about a misspelt key
        for key, table in sensors.items():
            _check(sensor, table, f"{path}: sensors.{key}")
    return _check(declaration, values, str(path))


Checked = TypeVar("Checked", bound=BaseModel)


def _check(model: type[Checked], values: Any, origin: str) -> Checked:
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise DataError(f"{origin}: {explain(error, model)}") from error


def _reader_of(values: Mapping[str, Any], path: Path) -> str:
    if "reader" not in values:
        misspelt = difflib.get_close_matches("reader", values, n=1)
        if misspelt:
            raise DataError(f"{path}: unknown key {quoted(misspelt[0])}; did you mean 'reader'?")
        raise DataError(f"{path}: key 'reader' is missing; it is one of {', '.join(READERS)}")
    reader = str(values["reader"])
    if reader not in READERS:
        raise DataError(f"{path}: unknown reader {quoted(reader)}; {nearest(reader, READERS)}")
    return reader


def declared_facts(
    declaration: Declaration, path: Path, data_root: Path | None = None
) -> DatasetFacts:
    """What is known of a declared data set before it is opened; `path`: its TOML file."""
    labels, splits = declaration.label_kind, declaration.splits
    return DatasetFacts(
        description=f"declared in {path.name}",
        sensors=tuple(sensor_of(key, path, data_root).name for key in declaration.sensor_keys),
        labels=labels,
        class_list=path.name if labels in ("single", "multi") else None,
        class_names=tuple((declaration.classes or {}).values()),
        templates=declaration.prompts or (),
        splits=dict.fromkeys(splits or WHOLE_SPLITS),
        has_splits=splits is not None,
        needs_root=not os.path.exists(path.parent / declaration.location),  # of any name
        layout=(declaration.location,),
    )


def open_declared(
    path: Path, data_root: Path, split: str, *, size: Size | None = None
) -> SampleSet:
    """Open one split of the data set that the TOML file `path` declares.

    `size`: RGB images are resized to it (see `decode_rgb`); GeoTIFFs keep theirs.
    """
    declaration = read_declaration(path)
    open_one = READERS[declaration.reader][2]
    return open_one(declaration, path, data_root, split, size=size)
