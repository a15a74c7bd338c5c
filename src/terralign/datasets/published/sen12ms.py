"""SEN12MS (Schmitt et al. 2019): 180,662 triplets of Sentinel-1, Sentinel-2 and land cover.

    ROIs1158_spring/s2_1/ROIs1158_spring_s2_1_p30.tif       13 bands of Sentinel-2 L1C, uint16
    ROIs1158_spring/s1_1/ROIs1158_spring_s1_1_p30.tif       VV and VH, sigma0 in dB
    ROIs1158_spring/lc_1/ROIs1158_spring_lc_1_p30.tif       land cover; band 1 is IGBP

All are 256x256 pixels at 10 m, from four seasons of 2016 and 2017: the DN carry no offset. The
bands on disk are in the product's order, B8A after B08. A file states where it lies, but of when it
was taken only the season.

Labels are made as Schmitt and Wu (2021) made them, from the share of a patch that each IGBP class
covers, summed over the simplified classes. Their own label files are pickles, which are not read.

What it costs to open: a listing of the folders, and one land-cover file per patch of the split,
about 5 ms each, ten minutes for `train`; a packed store has the labels in its table.

N patches, K classes, C bands, H W pixels.
"""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from terralign.chips import make_layout
from terralign.datasets.class_folders import read_split_list
from terralign.datasets.class_lists import class_shares, read_table
from terralign.datasets.file_set import FileSet
from terralign.datasets.fingerprint import sampled_sizes
from terralign.datasets.listing import (
    find_folder,
    list_names,
    log_left_out,
    read_each,
    require_all,
)
from terralign.datasets.published.geotiffs import read_bands
from terralign.datasets.sample import Labels, Place, require_split
from terralign.errors import DataError, quoted
from terralign.scenes.places import geotiff_bounds
from terralign.sensors import SENSORS

OPTICAL, RADAR = SENSORS["sentinel2-l1c"], SENSORS["sentinel1-grd"]

SEASONS = ("ROIs1158_spring", "ROIs1868_summer", "ROIs1970_fall", "ROIs2017_winter")
SIDE = 256

TEST_SCENES, VAL_SCENES = "SEN12MS_holdOutScenes.txt", "ValidationScenes.txt"
"""The published lists of scenes: 26 for testing, 25 of the others for validation."""

SPLITS = ("train", "val", "test", "trainval", "all")

DAMAGED = ("ROIs1868_summer_s2_146_p202",)
"""Its Sentinel-1 is not a number throughout; its publishers leave it out, and so does this."""

MIN_SHARE = 0.1
"""In the multi-label set a class is a label where it covers at least this share of the patch."""

Kind = Literal["s1", "s2", "lc"]

_FILE = re.compile(r"ROIs\d+_[a-z]+_(?:s1|s2|lc)_\d+_p\d+\.tif")
_SCENE = re.compile(r"(?P<season>ROIs\d+_[a-z]+)/(?:s1|s2|lc)_(?P<scene>\d+)")


def open_sen12ms(data_root: Path, split: str, *, multi_label: bool = True) -> FileSet:
    """SEN12MS below `data_root/sen12ms`, or in `data_root` itself, in the simplified 10 classes.

    `multi_label`: every class that covers `MIN_SHARE` of a patch; otherwise the one that covers
    most of it. `split`: `test`, the scenes of `SEN12MS_holdOutScenes.txt`; `val`, those of
    `ValidationScenes.txt`; `train`, the scenes of neither; `trainval`, all but the test scenes,
    which is the list published for training: the validation scenes are in it; `all`. The lists
    lie beside the seasons' folders; each is needed only for the splits that it bounds.

    Raises `DataError`: no patches, a list or listed scene that is missing, a patch of which one
    of its three files is missing, a land-cover file that is damaged or has an unknown code.
    """
    name = "sen12ms" if multi_label else "sen12ms-single"
    require_split(name, split, SPLITS)
    base = find_folder(name, data_root, ("sen12ms", "."), holds=_has_season, what=SEASONS[0])
    listed = _list_patches(base, _choose_scenes(name, base, split))
    files = [path for path in listed if path.stem not in DAMAGED]
    log_left_out(name, split, len(listed) - len(files), len(listed), "they are damaged")
    shares = _read_shares(name, files)
    present = shares >= MIN_SHARE if multi_label else shares > 0
    labelled = np.flatnonzero(present.any(axis=1))
    unknown = len(files) - len(labelled)
    log_left_out(name, split, unknown, len(files), "their land cover is unknown")
    files = [files[row] for row in labelled]
    if not files:
        raise DataError(f"data set {name!r}, split {split!r} is empty below {base}")
    return FileSet(
        name=name,
        split=split,
        layouts={
            OPTICAL.name: make_layout(OPTICAL, OPTICAL.band_names, units="dn", dn_offset=0.0),
            RADAR.name: make_layout(RADAR, RADAR.band_names, units="physical"),
        },
        keys=tuple(path.stem for path in files),
        files=tuple(files),
        decode=decode_triplet,
        content=[SIDE, *sampled_sizes(files)],
        labels=Labels(
            values=present[labelled] if multi_label else shares[labelled].argmax(axis=1),
            class_names=class_names(),
            class_list="sen12ms",
        ),
        locate=locate_patch,
    )


def _has_season(folder: Path) -> bool:
    return any((folder / season).is_dir() for season in SEASONS)


def _choose_scenes(name: str, base: Path, split: str) -> list[tuple[str, str]]:
    """(season, number of the scene) of a split, sorted."""
    found = {
        (season, folder.removeprefix("s2_"))
        for season in SEASONS
        for folder in list_names(base / season, "folders")
        if re.fullmatch(r"s2_\d+", folder)
    }
    listed = {
        list_of: _read_scenes(name, split, base / file)
        for list_of, file, splits in (
            ("test", TEST_SCENES, ("test", "train", "trainval")),
            ("val", VAL_SCENES, ("val", "train")),
        )
        if split in splits
    }
    if split in listed:
        require_all(
            sorted("/s2_".join(scene) for scene in listed[split]),
            {"/s2_".join(scene) for scene in found},
            by=f"split {split!r} of {name!r} lists",
            what="scenes",
            todo=f"unpack the archives of all four seasons into {base}",
        )
        chosen = listed[split]
    else:
        chosen = found.difference(*listed.values())
    return sorted(chosen, key=lambda scene: (scene[0], int(scene[1])))


def _read_scenes(name: str, split: str, path: Path) -> set[tuple[str, str]]:
    """The (season, number) of the scenes that a list names."""
    if not path.is_file():
        raise DataError(
            f"data set {name!r}, split {split!r} needs the list {path}; take it from the folder "
            "splits of https://github.com/schmitt-muc/SEN12MS"
        )
    scenes = set()
    for entry in read_split_list(path):
        match = _SCENE.fullmatch(entry)
        if match is None:
            raise DataError(f"{path}: {quoted(entry)} is no scene such as ROIs1158_spring/s2_1")
        scenes.add((match["season"], match["scene"]))
    return scenes


def _list_patches(base: Path, scenes: list[tuple[str, str]]) -> list[Path]:
    """The Sentinel-2 file of every patch; a patch with a file of one kind needs one of each."""
    files: list[Path] = []
    for season, scene in scenes:
        patches = {
            kind: {
                name.rpartition("_p")[2].removesuffix(".tif")
                for name in list_names(base / season / f"{kind}_{scene}", "files")
                if _FILE.fullmatch(name)
            }
            for kind in ("s2", "s1", "lc")
        }
        numbers = sorted(set.union(*patches.values()), key=int)
        for kind, found in patches.items():
            stem = f"{season}_{kind}_{scene}_p"
            require_all(
                [f"{stem}{number}.tif" for number in numbers],
                {f"{stem}{number}.tif" for number in found},
                by=f"{base / season / f'{kind}_{scene}'} should hold",
                what="patches",
                todo=f"unpack {season}_{kind}.tar.gz again",
            )
        folder = base / season / f"s2_{scene}"
        files += [folder / f"{season}_s2_{scene}_p{number}.tif" for number in numbers]
    return files


def sibling(path: Path, kind: Kind) -> Path:
    """The file of another kind of the patch with this Sentinel-2 file."""
    folder = path.parent.parent / path.parent.name.replace("s2_", f"{kind}_")
    return folder / path.name.replace("_s2_", f"_{kind}_")


def decode_triplet(path: Path) -> dict[str, NDArray[Any]]:
    """Sentinel-2 (13, 256, 256) uint16 DN and Sentinel-1 (2, 256, 256) float32 dB of a patch."""
    optical = read_bands(path, count=len(OPTICAL.bands), side=SIDE, dtypes=("uint16",))
    radar = read_bands(
        sibling(path, "s1"), count=len(RADAR.bands), side=SIDE, dtypes=("float32", "float64")
    )
    return {OPTICAL.name: optical, RADAR.name: radar.astype(np.float32, copy=False)}


@cache
def _class_of_code() -> dict[int, int | None]:
    """IGBP code -> simplified class; None for codes without one."""
    table, names = read_table("sen12ms"), simplified_names()
    classes = {int(code): names.index(name) for code, name in table["simplified"].items()}
    return {**dict.fromkeys(table["ignored_codes"]), **classes}


def simplified_names() -> tuple[str, ...]:
    """The simplified scheme's 10 classes, in its order."""
    table = read_table("sen12ms")["simplified"]
    return tuple(dict.fromkeys(table[code] for code in sorted(table, key=int)))


def class_names() -> tuple[str, ...]:
    """The same as used in prompts."""
    prompts = read_table("sen12ms")["prompts"]
    return tuple(prompts[name] for name in simplified_names())


def shares_of(codes: NDArray[np.integer[Any]]) -> NDArray[np.float64]:
    """(10,) share of the pixels that each simplified class covers, of IGBP codes of any shape.

    Pixels without data or class count as part of the whole, so that the shares may sum to less
    than one. `DataError` for a code that IGBP does not have.
    """
    scheme = "IGBP class; expected 1 to 17, or 0 and 255 for none"
    return class_shares(codes, _class_of_code(), len(simplified_names()), scheme=scheme)


def _read_shares(name: str, files: list[Path]) -> NDArray[np.float64]:
    shares = read_each(f"land cover of {name}", _shares_of_patch, files, unit="patch")
    return np.array(shares).reshape(len(files), len(simplified_names()))


def _shares_of_patch(path: Path) -> NDArray[np.float64]:
    land_cover = sibling(path, "lc")
    codes = read_bands(
        land_cover, count=4, side=SIDE, dtypes=("uint8", "uint16", "int16"), indexes=[1]
    )
    try:
        return shares_of(codes)
    except DataError as error:
        raise DataError(f"{land_cover}: {error}") from error


def locate_patch(path: Path) -> Place:
    """Where a patch lies, from its grid; when it was taken is not known beyond its season."""
    return Place(bounds=geotiff_bounds(path))
