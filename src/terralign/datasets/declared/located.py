"""Where and when a sample was taken, as its files say it."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from terralign.datasets.sample import Place
from terralign.scenes.places import geotiff_bounds, product_datetime


def place_of_files(files: Sequence[Path], root: Path) -> Place:
    """The bounds of the first of a sample's files that is a GeoTIFF with a reference system, and
    the time in the first standard product name among their paths below `root`."""
    tiffs = (file for file in files if file.suffix.lower() in (".tif", ".tiff"))
    bounds = (geotiff_bounds(file) for file in tiffs)
    times = (product_datetime(os.path.relpath(file, root)) for file in files)
    return Place(
        bounds=next((one for one in bounds if one is not None), None),
        datetime=next((one for one in times if one is not None), None),
    )


@dataclass(frozen=True, slots=True)
class FilePlaces:
    """A sample's file below `root` -> where and when it was taken.

    `files_of`: the files of a sample that has several, by its first.
    """

    root: Path
    files_of: Mapping[Path, Sequence[Path]] | None = None

    def __call__(self, file: Path) -> Place:
        return place_of_files([file] if self.files_of is None else self.files_of[file], self.root)
