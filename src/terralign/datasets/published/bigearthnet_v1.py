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
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from terralign.datasets.class_folders import read_split_list
from terralign.datasets.file_set import FileSet
from terralign.datasets.listing import (
    find_folder,
    list_names,
    log_left_out,
    read_each,
    require_all,
)
from terralign.datasets.published.bigearthnet import (
    COVERED,
    keep_labelled,
    make_labels,
    make_patch_set,
    require_samples,
    set_name,
)
from terralign.datasets.published.corine import NumClasses, labels_from_names
from terralign.datasets.sample import Place, require_split
from terralign.errors import DataError, StorageError, quoted
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

_NO_RADAR = (
    "unpack BigEarthNet-S1-v1.0.tar.gz again, or take the data set without '-mm', which needs no "
    "Sentinel-1"
)


def open_bigearthnet_v1(
    data_root: Path, split: str, *, num_classes: NumClasses = 19, radar: bool = False
) -> FileSet:
    """BigEarthNet v1 below `data_root`, `data_root/bigearthnet`, or `data_root` being its folder.

    `radar`: each patch with its Sentinel-1 partner, which must exist. `split`: `all`, or that of a
    list `{split}.csv` or `{split}.txt` beside the patches' folder or in it, whose lines name a
    patch, and its partner after a comma where the list does.

    Patches that the lists of snow, cloud and shadow name are left out of every split, counted in
    the log. The official splits leave them out already; `all` without those lists keeps them, with
    a warning. See `keep_labelled` for patches without a label.

    Raises `DataError`: no patches, an unknown split, a listed patch or partner that is missing, a
    patch without its JSON, a class outside the nomenclature.
    """
    name = set_name("bigearthnet", num_classes, radar=radar)
    bases = ("", "bigearthnet/")
    places = [*(base + folder for base in bases for folder in OPTICAL_FOLDERS), "."]
    root = find_folder(name, data_root, places, holds=_has_patches, what="S2A_MSIL2A_*")
    names, listed_partners = _read_split(name, root, split)
    names = _leave_out_covered(name, root, split, names)
    require_samples(name, split, names)
    facts = read_each(
        f"labels of {name}", _read_facts, [root / patch for patch in names], unit="patch"
    )
    values = labels_from_names(
        [one.labels for one in facts], num_classes, origins=[_json_of(root / one) for one in names]
    )
    kept = keep_labelled(name, split, values, num_classes)
    places_of = {names[row]: facts[row].place for row in kept}
    require_samples(name, split, tuple(places_of))
    partners: dict[str, Path] = {}
    if radar:
        beside = [root.parent, data_root, data_root / "bigearthnet"]
        folders = [base / one for base in beside for one in RADAR_FOLDERS]
        radar_root = next((folder for folder in folders if folder.is_dir()), None)
        if radar_root is None:
            raise DataError(f"no Sentinel-1 patches beside {root}; {_NO_RADAR}")
        partners = _find_partners(radar_root, listed_partners, places_of)
    return make_patch_set(
        name=name,
        split=split,
        patches=[root / patch for patch in places_of],
        partners=partners,
        labels=make_labels(values[kept], num_classes),
        radar=radar,
        locate=locate_patch,
    )


def _has_patches(folder: Path) -> bool:
    return any(_PATCH.fullmatch(name) for name in list_names(folder, "folders"))


def _read_split(name: str, root: Path, split: str) -> tuple[list[str], dict[str, str]]:
    """Patch names, and the partners that the list names: patch -> radar patch."""
    found = {patch for patch in list_names(root, "folders") if _PATCH.fullmatch(patch)}
    if split == "all":
        return sorted(found), {}
    lists = _find_lists(root)
    require_split(name, split, ("all", *sorted(lists)), where=f"{root.parent} ({split}.csv)")
    path = lists[split]
    names: list[str] = []
    partners: dict[str, str] = {}
    for entry in read_split_list(path):
        columns = [column.strip() for column in entry.split(",")]
        patches = [column for column in columns if _PATCH.fullmatch(column)]
        if len(patches) != 1:
            raise DataError(f"split list {path}: {quoted(entry)} names no patch of BigEarthNet v1")
        names += patches
        partners.update((patches[0], one) for one in columns if _RADAR_PATCH.fullmatch(one))
    todo = f"unpack BigEarthNet-S2-v1.0.tar.gz into {root.parent} again, or shorten the list"
    require_all(names, found, by=f"split list {path} names", what="patches", todo=todo)
    return names, partners


def _find_lists(root: Path) -> dict[str, Path]:
    """Split -> its list, beside the patches' folder or else in it."""
    paths = (
        folder / name
        for folder in (root, root.parent)
        for name in sorted(list_names(folder, "files"), reverse=True)  # .csv replaces .txt
    )
    return {
        path.stem: path
        for path in paths
        if path.suffix in (".csv", ".txt") and path.name not in EXCLUSIONS
    }


def _leave_out_covered(name: str, root: Path, split: str, names: list[str]) -> list[str]:
    covered: set[str] = set()
    missing = []
    for file in EXCLUSIONS:
        path = next((one for one in (root.parent / file, root / file) if one.is_file()), None)
        if path is None:
            missing.append(file)
        else:
            covered.update(entry.split(",")[0] for entry in read_split_list(path))
    if missing and split == "all":
        logger.warning(
            "%s, split 'all': patches under snow, cloud or shadow are included; to leave them out, "
            "put %s beside %s",
            name, " and ".join(missing), root,
        )  # fmt: skip
    kept = [patch for patch in names if patch not in covered]
    log_left_out(name, split, len(names) - len(kept), len(names), COVERED)
    return kept


@dataclass(frozen=True, slots=True)
class _Facts:
    """From a patch's JSON: its 43-class names, and `35VPK_69_24`, tile, column and row."""

    labels: tuple[str, ...]
    place: str


def _json_of(patch: Path) -> Path:
    return patch / f"{patch.name}_labels_metadata.json"


def _read_patch_json(patch: Path) -> dict[str, Any]:
    path = _json_of(patch)
    try:
        content = read_json(path)
    except StorageError as error:
        raise DataError(f"{error}; unpack the archive again") from error
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
    """Patch name -> its Sentinel-1 folder, for all patches of `places`, `listed` or not.

    A Sentinel-1 patch names its partner in its JSON; only those are read whose name ends in the
    tile, column and row of a patch.
    """
    found = {patch: listed[patch] for patch in places if patch in listed}
    there = set(list_names(root, "folders"))
    by = f"the split list names for {root}"
    require_all(found.values(), there, by=by, what="Sentinel-1 patches", todo=_NO_RADAR)
    wanted = {place for patch, place in places.items() if patch not in found}
    matches = map(_RADAR_PATCH.fullmatch, sorted(there) if wanted else ())
    candidates = [root / match[0] for match in matches if match and match["place"] in wanted]
    answers = read_each("partners in Sentinel-1", _read_corresponding, candidates, unit="patch")
    for patch, candidate in zip(answers, candidates, strict=True):
        found.setdefault(patch, candidate.name)
    alone = [patch for patch in places if patch not in found]
    if alone:
        raise DataError(
            f"{len(alone):,} of {len(places):,} patches have no Sentinel-1 partner below {root}, "
            f"{alone[0]} first; {_NO_RADAR}"
        )
    return {patch: root / found[patch] for patch in places}


def _read_corresponding(radar_patch: Path) -> str:
    return str(_read_patch_json(radar_patch).get("corresponding_s2_patch"))


def locate_patch(patch: Path) -> Place:
    """Where and when a patch was taken by Sentinel-2, from its JSON."""
    content = _read_patch_json(patch)
    origin = str(_json_of(patch))
    try:
        corners = content["coordinates"]
        west, south, east, north = (float(corners[one]) for one in ("ulx", "lry", "lrx", "uly"))
        projection = str(content["projection"])
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"{origin} has no coordinates (ulx, uly, lrx, lry) and projection"
        ) from error
    time = content.get("acquisition_date")
    try:
        taken = dt.datetime.fromisoformat(str(time)).replace(tzinfo=dt.UTC)
    except (ValueError, OverflowError) as error:
        raise DataError(f"{origin}: acquisition_date {time!r:.100} is no date and time") from error
    return Place(
        bounds=wgs84_bounds((west, south, east, north), projection, origin=origin), datetime=taken
    )
