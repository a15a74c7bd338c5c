"""BigEarthNet version 1 (Sumbul et al. 2019, 2021): 590,326 patches, a folder each.

    BigEarthNet-v1.0/<patch>/<patch>_B01.tif ... <patch>_labels_metadata.json
    BigEarthNet-S1-v1.0/<radar patch>/<radar patch>_VV.tif, _VH.tif, _labels_metadata.json
    train.csv, val.csv, test.csv                        the official split, a patch per line
    patches_with_seasonal_snow.csv, patches_with_cloud_and_shadow.csv

What it costs to open: one listing of the patches' folder, and one JSON per patch of the split, for
nothing else has the labels: about 0.15 ms each from a warm disk, 40 s for `train`; a packed store
has them in its table. Bands are not looked for before they are read.
"""

from __future__ import annotations

import datetime as dt
import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from terralign.datasets.class_folders import read_split_list
from terralign.datasets.file_set import FileSet
from terralign.datasets.published.bigearthnet import (
    keep_labelled,
    make_labels,
    make_patch_set,
    require_samples,
    set_name,
)
from terralign.datasets.published.corine import NumClasses, labels_from_names
from terralign.datasets.published.label_files import read_each
from terralign.datasets.published.listing import list_names, require_all
from terralign.datasets.sample import Place
from terralign.errors import DataError, SplitError, StorageError
from terralign.files import read_json
from terralign.scenes.places import wgs84_bounds

logger = logging.getLogger(__name__)

OPTICAL_FOLDERS = ("BigEarthNet-v1.0", "BigEarthNet-S2-v1.0", "BigEarthNet-S2-Example")
RADAR_FOLDERS = ("BigEarthNet-S1-v1.0", "BigEarthNet-S1-Example")
"""What the archives unpack to."""

EXCLUSIONS = ("patches_with_seasonal_snow.csv", "patches_with_cloud_and_shadow.csv")
"""The published lists of patches that are fully covered by them."""

_PATCH = re.compile(r"S2[AB]_MSIL2A_\d{8}T\d+_\d+_\d+")
_RADAR_PATCH = re.compile(r"S1[AB]_IW_GRDH_1SDV_\d{8}T\d{6}_(?P<place>[0-9A-Z]{5}_\d+_\d+)")


def open_bigearthnet_v1(
    data_root: Path, split: str, *, num_classes: NumClasses = 19, radar: bool = False
) -> FileSet:
    """BigEarthNet v1 below `data_root`, `data_root/bigearthnet`, or `data_root` being its folder.

    `radar`: each patch with its Sentinel-1 partner, which must be there. `split`: `all`, or that
    of a list `{split}.csv` or `{split}.txt` beside the patches' folder or in it, whose lines name
    a patch, and its partner after a comma where the list does.

    Patches that the lists of snow, cloud and shadow name are left out of every split, counted in
    the log. The official splits leave them out already; `all` without those lists keeps them, and
    says so. See `keep_labelled` for patches without a label.

    Raises `DataError`: no patches, a split that is not there, a list that names a patch that is
    not there, a patch without its JSON, a class outside the nomenclature, a missing partner.
    """
    name = set_name("bigearthnet", num_classes, radar=radar)
    root = _find_optical(data_root)
    names, listed_partners = _read_split(name, root, split)
    names = _leave_out_excluded(name, root, split, names)
    require_samples(name, split, names)
    facts = read_each(
        f"labels of {name}", _read_facts, [root / patch for patch in names], unit="patch"
    )
    values = labels_from_names(
        [one.labels for one in facts], num_classes, origins=[_json_of(root / one) for one in names]
    )
    kept = keep_labelled(name, split, values, num_classes)
    keys = tuple(names[row] for row in kept)
    require_samples(name, split, keys)
    partners = {}
    if radar:
        listed = {patch: listed_partners[patch] for patch in keys if patch in listed_partners}
        places = {names[row]: facts[row].place for row in kept if names[row] not in listed}
        partners = _find_partners(_find_radar(data_root, root), listed, places)
    return make_patch_set(
        name=name,
        split=split,
        patches=[root / patch for patch in keys],
        partners=partners,
        labels=make_labels(values[kept], num_classes),
        radar=radar,
        locate=locate_patch,
    )


def _find_optical(data_root: Path) -> Path:
    bases = (data_root, data_root / "bigearthnet")
    for folder in (*(base / name for base in bases for name in OPTICAL_FOLDERS), data_root):
        if any(_PATCH.fullmatch(name) for name in list_names(folder, "folders")):
            return folder
    raise DataError(
        f"{data_root} holds no BigEarthNet v1 patches (S2A_MSIL2A_*), nor do its folders "
        f"{', '.join(OPTICAL_FOLDERS)}; give the folder that does as data root"
    )


def _find_radar(data_root: Path, optical: Path) -> Path:
    bases = (optical.parent, data_root, data_root / "bigearthnet")
    for folder in (base / name for base in bases for name in RADAR_FOLDERS):
        if folder.is_dir():
            return folder
    raise DataError(
        f"no Sentinel-1 patches beside {optical} (BigEarthNet-S1-v1.0); unpack "
        "BigEarthNet-S1-v1.0.tar.gz there, or take the data set without '-mm'"
    )


def _read_split(name: str, root: Path, split: str) -> tuple[list[str], dict[str, str]]:
    """Patch names, and their partners as far as the list says them."""
    there = {patch for patch in list_names(root, "folders") if _PATCH.fullmatch(patch)}
    if split == "all":
        return sorted(there), {}
    path = _find_split_list(name, root, split)
    names: list[str] = []
    partners: dict[str, str] = {}
    for entry in read_split_list(path):
        columns = [column.strip() for column in entry.split(",")]
        patches = [column for column in columns if _PATCH.fullmatch(column)]
        if len(patches) != 1:
            raise DataError(f"split list {path}: {entry!r} names no patch of BigEarthNet v1")
        names += patches
        partners.update((patches[0], one) for one in columns if _RADAR_PATCH.fullmatch(one))
    require_all(
        names,
        there,
        said=f"split list {path} names",
        what="patches",
        todo=f"unpack BigEarthNet-S2-v1.0.tar.gz into {root.parent} again, or shorten the list",
    )
    return names, partners


def _find_split_list(name: str, root: Path, split: str) -> Path:
    for folder in (root.parent, root):
        for suffix in ("csv", "txt"):
            path = folder / f"{split}.{suffix}"
            if "/" not in split and path.name not in EXCLUSIONS and path.is_file():
                return path
    lists = (path for suffix in ("csv", "txt") for path in root.parent.glob(f"*.{suffix}"))
    found = sorted(path.stem for path in lists if path.name not in EXCLUSIONS)
    raise SplitError(
        f"data set {name!r} has no split {split!r}: no {split}.csv beside {root}; "
        f"there: {', '.join(['all', *found])}"
    )


def _leave_out_excluded(name: str, root: Path, split: str, names: list[str]) -> list[str]:
    excluded: set[str] = set()
    missing = []
    for file in EXCLUSIONS:
        path = next((one for one in (root.parent / file, root / file) if one.is_file()), None)
        if path is None:
            missing.append(file)
        else:
            excluded.update(entry.split(",")[0] for entry in read_split_list(path))
    if missing and split == "all":
        logger.warning(
            "%s, split 'all': patches under snow, cloud or shadow are still in it; to leave them "
            "out, lay %s beside %s",
            name, " and ".join(missing), root,
        )  # fmt: skip
    kept = [patch for patch in names if patch not in excluded]
    if len(kept) < len(names):
        logger.info(
            "%s, split %r: %d of %d patches left out, because snow, cloud or shadow covers them",
            name, split, len(names) - len(kept), len(names),
        )  # fmt: skip
    return kept


@dataclass(frozen=True, slots=True)
class _Facts:
    """What a patch's JSON says: its 43-class names, and `35VPK_69_24`, tile, column and row."""

    labels: tuple[str, ...]
    place: str


def _json_of(patch: Path) -> Path:
    return patch / f"{patch.name}_labels_metadata.json"


def _read_patch_json(patch: Path) -> dict[str, Any]:
    path = _json_of(patch)
    try:
        content = read_json(path)
    except StorageError as error:
        if path.exists():
            raise DataError(str(error)) from error
        raise DataError(
            f"{path} is not there, though its folder is: the archive is unpacked in part only; "
            "unpack it again"
        ) from error
    if not isinstance(content, dict):
        raise DataError(f"{path} is no JSON object; unpack the archive again")
    return content


def _read_facts(patch: Path) -> _Facts:
    content = _read_patch_json(patch)
    labels = content.get("labels")
    if not isinstance(labels, list) or not all(isinstance(one, str) for one in labels):
        raise DataError(f"{_json_of(patch)} has no list 'labels' of class names")
    tile = re.search(r"_T([0-9A-Z]{5})_", str(content.get("tile_source")))
    column_and_row = "_".join(patch.name.split("_")[-2:])
    return _Facts(tuple(labels), f"{tile[1] if tile else '?'}_{column_and_row}")


def _find_partners(root: Path, listed: dict[str, str], places: dict[str, str]) -> dict[str, Path]:
    """Patch name -> its Sentinel-1 folder, for the `listed` ones and for those of known `places`.

    A Sentinel-1 patch says its partner in its JSON; the tile, column and row that its name ends in
    tell which few to ask.
    """
    there = set(list_names(root, "folders"))
    todo = (
        "unpack BigEarthNet-S1-v1.0.tar.gz again, or take the data set without '-mm', "
        "which needs no Sentinel-1"
    )
    said = f"the split list names for {root}"
    require_all(listed.values(), there, said=said, what="Sentinel-1 patches", todo=todo)
    candidates: dict[str, list[str]] = {}
    wanted = set(places.values())
    for name in sorted(there) if wanted else ():
        match = _RADAR_PATCH.fullmatch(name)
        if match and match["place"] in wanted:
            candidates.setdefault(match["place"], []).append(name)
    asked = [root / name for names in candidates.values() for name in names]
    found = dict(listed)
    answers = read_each("partners in Sentinel-1", _read_corresponding, asked, unit="patch")
    for patch, partner in zip(answers, asked, strict=True):
        if patch in places:
            found[patch] = partner.name
    alone = [patch for patch in places if patch not in found]
    if alone:
        raise DataError(
            f"{len(alone):,} of {len(places):,} patches have no Sentinel-1 partner below {root}, "
            f"{alone[0]} first; {todo}"
        )
    return {patch: root / partner for patch, partner in found.items()}


def _read_corresponding(radar_patch: Path) -> str:
    return str(_read_patch_json(radar_patch).get("corresponding_s2_patch"))


def locate_patch(patch: Path) -> Place:
    """Where and when a patch was taken by Sentinel-2, from its JSON."""
    content = _read_patch_json(patch)
    origin = str(_json_of(patch))
    corners = content.get("coordinates")
    projection = content.get("projection")
    sides = _numbers(corners, ("ulx", "lry", "lrx", "uly"))
    if sides is None or not isinstance(projection, str):
        raise DataError(f"{origin} has no coordinates (ulx, uly, lrx, lry) and projection")
    time = content.get("acquisition_date")
    try:
        taken = dt.datetime.fromisoformat(str(time)).replace(tzinfo=dt.UTC)
    except ValueError as error:
        raise DataError(f"{origin}: acquisition_date {time!r} is no date and time") from error
    west, south, east, north = sides
    return Place(
        bounds=wgs84_bounds((west, south, east, north), projection, origin=origin), datetime=taken
    )


def _numbers(values: Any, names: Sequence[str]) -> list[float] | None:
    if not isinstance(values, dict):
        return None
    found = [values.get(name) for name in names]
    return found if all(isinstance(one, int | float) for one in found) else None  # type: ignore[return-value]
