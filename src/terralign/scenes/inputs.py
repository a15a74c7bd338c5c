"""The inputs that a path names: one file, one product, or all of them below a folder."""

from __future__ import annotations

import logging
import os
from collections import Counter
from itertools import islice
from pathlib import Path
from typing import Literal

from terralign.errors import DataError, shown
from terralign.files import not_found
from terralign.limits import limit, require
from terralign.scenes.archives import is_archive
from terralign.scenes.pictures import PICTURE_SUFFIXES
from terralign.scenes.product_names import sensor_of_names
from terralign.scenes.products import is_product
from terralign.sensors import Sensor

logger = logging.getLogger(__name__)

_ONE_BY_ONE = "give its folders one by one"

_TEMPORARY = ("~", ".tmp", ".temp", ".part", ".partial", ".crdownload", ".swp", ".lock")
_ACCOMPANYING = (
    *(".xml", ".json", ".txt", ".csv", ".md", ".ovr", ".msk", ".aux", ".tfw", ".jgw", ".pgw"),
    *(".wld", ".prj", ".geojson", ".toml", ".html", ".md5", ".sha256"),
)
"""Endings of files that accompany images, and are not counted among what is left out."""


def find_inputs(path: Path | str, *, sensor: Sensor | None = None) -> list[Path]:
    """A file itself; a folder that is one product itself; of another folder, the pictures, GeoTIFFs
    and product folders below it, sorted.

    `sensor`: makes a folder a product by its bands, as built-in sensors do. Hidden and temporary
    files are left out, others that are no input are counted in one line of the log. Links to
    folders are followed, to each folder once. Folders that cannot be read, or lie deeper than
    the limit `folder_depth`, are skipped and counted in a warning. `DataError` where nothing is
    found, or too much.
    """
    path = Path(path)
    try:
        if not path.exists():
            raise DataError(not_found(path))
        if not path.is_dir() or is_product(path, sensor=sensor):
            return [path]
    except OSError as error:
        raise DataError(f"{shown(path)} cannot be read: {error.strerror}") from error
    found, left_out, skipped = _below(path, sensor)
    if path in skipped:
        raise DataError(f"{shown(path)} cannot be listed: {skipped[path]}")
    if skipped:
        first = next(iter(skipped))
        logger.warning(
            "%s: %d of the folders and files below it are skipped, such as %s: %s",
            shown(path),
            len(skipped),
            shown(first),
            skipped[first],
        )
    if left_out:
        endings = ", ".join(f"{ending} {count}" for ending, count in left_out.most_common(5))
        logger.info(
            "%s: %d inputs; %d other files left out (%s)",
            shown(path), len(found), left_out.total(), endings,
        )  # fmt: skip
    if not found:
        others = f" ({left_out.total()} other files)" if left_out else ""
        raise DataError(
            f"{shown(path)} holds nothing to read{others}: looked for pictures and GeoTIFFs "
            f"({', '.join(PICTURE_SUFFIXES)}) and for product folders with a file per band "
            "(B02.tif, B03.tif, ...; *.SAFE)"
        )
    return sorted(found)


def _below(root: Path, sensor: Sensor | None) -> tuple[list[Path], Counter[str], dict[Path, str]]:
    """The inputs; endings of other files and how many; what was skipped and why."""
    found: list[Path] = []
    left_out: Counter[str] = Counter()
    skipped: dict[Path, str] = {}
    most_depth, most_entries = limit("folder_depth"), limit("folder_entries") + 1
    waiting, seen, num_entries = [(root, 0)], {_identity(root)}, 0
    while waiting:
        folder, depth = waiting.pop()
        try:
            with os.scandir(folder) as listing:
                entries = [Path(entry.path) for entry in islice(listing, most_entries)]
        except OSError as error:
            skipped[folder] = error.strerror or str(error)
            continue
        num_entries += len(entries)
        for entry in entries:
            if entry.name.startswith(".") or entry.name.lower().endswith(_TEMPORARY):
                continue
            try:
                kind = _kind_of(entry, sensor, seen)
            except OSError as error:
                skipped[entry] = error.strerror or str(error)
                continue
            if kind == "input":
                found.append(entry)
            elif kind == "folder" and depth == most_depth:
                skipped[entry] = f"more than {most_depth} folders within folders"
            elif kind == "folder":
                waiting.append((entry, depth + 1))
            elif kind == "other" and not entry.name.lower().endswith(_ACCOMPANYING):
                left_out[entry.suffix.lower() or "without ending"] += 1
        require("folder_entries", num_entries, f"{shown(root)} holds at least", todo=_ONE_BY_ONE)
        require("folder_inputs", len(found), f"{shown(root)} holds at least", todo=_ONE_BY_ONE)
    return found, left_out, skipped


def _kind_of(
    entry: Path, sensor: Sensor | None, seen: set[tuple[int, int]]
) -> Literal["input", "folder", "seen", "other"]:
    """What an entry of a folder is; folders are noted in `seen`. `OSError` where it is unknown."""
    if not entry.is_dir():
        is_picture = entry.suffix.lower() in PICTURE_SUFFIXES and entry.is_file()
        return "input" if is_picture or _is_product_zip(entry) else "other"
    identity = _identity(entry)
    if identity in seen:
        return "seen"
    seen.add(identity)
    return "input" if is_product(entry, sensor=sensor) else "folder"


def _is_product_zip(entry: Path) -> bool:
    """Whether a file is a zip named as a standard product, as ESA delivers them."""
    if not is_archive(entry) or not entry.is_file():
        return False
    try:
        return sensor_of_names([entry.stem], origin=shown(entry)) is not None
    except DataError:
        return False


def _identity(folder: Path) -> tuple[int, int]:
    status = folder.stat()
    return (status.st_dev, status.st_ino)
