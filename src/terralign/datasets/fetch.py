"""Published data sets, fetched from their publishers into the data root.

A file is downloaded to `.NAME.part`, which a later run resumes, checked by its hash, and put in
place, or unpacked beside its place and renamed. What is in place is never touched.
"""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from pathlib import Path

from terralign.datasets.download import download, hash_fault
from terralign.datasets.facts import (
    DatasetFacts,
    RemoteFile,
    check_name,
    dataset_names,
    read_facts,
)
from terralign.datasets.unpack import unpack
from terralign.errors import DataError
from terralign.files import atomic_folder, clear_partials_of, require_folder

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class Planned:
    """A file of a data set, the file or folder that it becomes, and whether that exists."""

    file: RemoteFile
    place: Path
    done: bool


def plan_fetch(name: str, data_root: Path) -> list[Planned]:
    """What is to be fetched of the data set `name`, and what of it exists.

    `DataError` for an unknown name, a data set that is built in, and one without an address that
    is open to all.
    """
    check_name(name, data_root)
    if name not in dataset_names():
        raise DataError(f"{name} is a path; give the name of a data set (terralign info datasets)")
    facts = read_facts(name)
    if not facts.needs_root:
        raise DataError(f"{name} is built in: nothing to fetch")
    if not facts.files:
        raise DataError(
            f"{name} has no address that is open to all: {'; '.join(facts.download) or 'none'}. "
            f"`terralign info {name}` shows where its files go"
        )
    return plan(facts, data_root)


def plan(facts: DatasetFacts, data_root: Path) -> list[Planned]:
    """The same of a catalog's entry."""
    planned = []
    for file in facts.files:
        folder = data_root / file.folder
        place = folder / (file.unpacks or file.name)
        others = [folder / one for one in file.instead]
        found = next((one for one in (place, *others) if one.exists()), None)
        planned.append(Planned(file=file, place=found or place, done=found is not None))
    return planned


def fetch(planned: list[Planned]) -> None:
    """Fetch what is missing. `DataError` and `StorageError` as `download` and `unpack`."""
    for one in planned:
        if one.done:
            _report_kept(one)
        elif one.file.unpacks is None:
            _fetch_file(one.file, one.place)
        else:
            _fetch_archive(one.file, one.file.unpacks, one.place)


def _report_kept(one: Planned) -> None:
    if one.file.unpacks is None and one.place.is_file():
        with open(one.place, "rb") as opened:
            fault = hash_fault(one.file, opened)
        if fault:
            logger.warning("%s is kept, but is not the published file: %s", one.place, fault)
            return
    logger.info("%s exists", one.place)


def _fetch_file(file: RemoteFile, place: Path) -> None:
    part = _part_of(file, place)
    download(file, part)
    os.replace(part, place)
    logger.info("%s fetched", place)


def _fetch_archive(file: RemoteFile, top: str, place: Path) -> None:
    """Unpack an archive that is downloaded, and removed then, or that lies beside its place."""
    archive, part = place.with_name(file.name), _part_of(file, place)
    if archive.is_file():
        with open(archive, "rb") as opened:
            fault = hash_fault(file, opened)
        if fault:
            raise DataError(f"{archive} is not the published archive: {fault}; remove it")
    else:
        archive = part
        download(file, part)
    clear_partials_of(place)
    with atomic_folder(place) as folder:
        unpack(archive, file.name, top, folder)
    part.unlink(missing_ok=True)
    logger.info("%s fetched and unpacked", place)


def _part_of(file: RemoteFile, place: Path) -> Path:
    require_folder(place.parent)
    return place.with_name(f".{file.name}.part")
