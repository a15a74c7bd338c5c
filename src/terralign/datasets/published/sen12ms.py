"""SEN12MS (Schmitt et al. 2019): 180,662 triplets of Sentinel-1, Sentinel-2 and land cover.

    ROIs1158_spring/s2_1/ROIs1158_spring_s2_1_p30.tif       13 bands of Sentinel-2 L1C, uint16
    ROIs1158_spring/s1_1/ROIs1158_spring_s1_1_p30.tif       VV and VH, sigma0 in dB
    ROIs1158_spring/lc_1/ROIs1158_spring_lc_1_p30.tif       land cover; band 1 is IGBP

All are 256x256 pixels at 10 m, from four seasons of 2016 and 2017: the DN carry no offset. The
bands on disk are in the product's order, B8A after B08. A file says where it lies, but not when it
was taken beyond its season.

Labels are made as Schmitt and Wu (2021) made them, from the share of a patch that each IGBP class
covers, summed over the simplified classes. Their own label files are pickles, which are not read.

What it costs to open: a listing of the folders, and one land-cover file per patch of the split,
about 5 ms each, ten minutes for `train`; a packed store has the labels in its table.

N patches, K classes, C bands, H W pixels.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from rasterio.errors import RasterioError

from terralign.chips import make_layout
from terralign.datasets.class_folders import read_split_list
from terralign.datasets.class_lists import read_table
from terralign.datasets.file_set import FileSet
from terralign.datasets.fingerprint import sampled_sizes
from terralign.datasets.published.label_files import read_each
from terralign.datasets.published.listing import list_names, require_all
from terralign.datasets.sample import Labels, Place
from terralign.errors import DataError, SplitError, first_line
from terralign.scenes.geotiff import open_geotiff, valid_by_file
from terralign.scenes.places import geotiff_bounds
from terralign.sensors import SENSORS

logger = logging.getLogger(__name__)

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

_FILE = re.compile(r"(?P<season>ROIs\d+_[a-z]+)_(?P<kind>s1|s2|lc)_(?P<scene>\d+)_p\d+\.tif")
_SCENE = re.compile(r"(?P<season>ROIs\d+_[a-z]+)/(?:s1|s2|lc)_(?P<scene>\d+)")


def open_sen12ms(data_root: Path, split: str, *, multi_label: bool = True) -> FileSet:
    """SEN12MS below `data_root/sen12ms`, or in `data_root` itself, in the simplified 10 classes.

    `multi_label`: every class that covers `MIN_SHARE` of a patch; otherwise the one that covers
    most of it. `split`: `test`, the scenes of `SEN12MS_holdOutScenes.txt`; `val`, those of
    `ValidationScenes.txt`; `train`, the scenes of neither; `trainval`, all but the test scenes,
    which is the list published for training: the validation scenes are in it; `all`. The lists
    lie beside the seasons' folders; each is needed only for the splits that it bounds.

    Raises `DataError`: no patches, a list or listed scene that is not there, a patch of which one
    of its three files is missing, a land-cover file that is damaged or has an unknown code.
    """
    name = "sen12ms" if multi_label else "sen12ms-single"
    base = _find_base(data_root)
    files = _list_patches(base, _choose_scenes(name, base, split))
    damaged = sum(path.stem in DAMAGED for path in files)
    if damaged:
        logger.info("%s, split %r: %d damaged patch left out", name, split, damaged)
        files = [path for path in files if path.stem not in DAMAGED]
    shares = _read_shares(name, files)
    present = shares >= MIN_SHARE if multi_label else shares > 0
    labelled = np.flatnonzero(present.any(axis=1))
    if len(labelled) < len(files):
        logger.info(
            "%s, split %r: %d of %d patches left out, because their land cover is unknown",
            name, split, len(files) - len(labelled), len(files),
        )  # fmt: skip
    files = [files[row] for row in labelled]
    if not files:
        raise DataError(f"data set {name!r}, split {split!r} is empty below {base}")
    keys = tuple(path.stem for path in files)
    layouts = {
        OPTICAL.name: make_layout(OPTICAL, OPTICAL.band_names, units="dn", dn_offset=0.0),
        RADAR.name: make_layout(RADAR, RADAR.band_names, units="physical"),
    }
    return FileSet(
        name=name,
        split=split,
        layouts=layouts,
        keys=keys,
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


def _find_base(data_root: Path) -> Path:
    for base in (data_root / "sen12ms", data_root):
        if any((base / season).is_dir() for season in SEASONS):
            return base
    raise DataError(
        f"{data_root} holds no SEN12MS ({', '.join(SEASONS)}), nor does its folder sen12ms; "
        "give the folder that does as data root"
    )


def _choose_scenes(name: str, base: Path, split: str) -> list[tuple[str, str]]:
    """(season, number of the scene) of a split, sorted."""
    if split not in SPLITS:
        raise SplitError(f"data set {name!r} has no split {split!r}; there: {', '.join(SPLITS)}")
    there = {
        (season, folder.removeprefix("s2_"))
        for season in SEASONS
        for folder in list_names(base / season, "folders")
        if re.fullmatch(r"s2_\d+", folder)
    }
    if split == "test":
        chosen = _read_scenes(name, split, base / TEST_SCENES, there)
    elif split == "val":
        chosen = _read_scenes(name, split, base / VAL_SCENES, there)
    else:
        chosen = set(there)
        if split != "all":
            chosen -= _read_scenes(name, split, base / TEST_SCENES)
        if split == "train":
            chosen -= _read_scenes(name, split, base / VAL_SCENES)
    return sorted(chosen, key=lambda scene: (scene[0], int(scene[1])))


def _read_scenes(
    name: str, split: str, path: Path, there: Iterable[tuple[str, str]] | None = None
) -> set[tuple[str, str]]:
    """The scenes that a list names, which must be `there` where that is given."""
    if not path.is_file():
        raise DataError(
            f"data set {name!r}, split {split!r} needs the list {path}; take it from the folder "
            "splits of https://github.com/schmitt-muc/SEN12MS"
        )
    scenes = set()
    for entry in read_split_list(path):
        match = _SCENE.fullmatch(entry)
        if match is None:
            raise DataError(f"{path}: {entry!r} is no scene such as ROIs1158_spring/s2_1")
        scenes.add((match["season"], match["scene"]))
    if there is not None:
        require_all(
            sorted("/s2_".join(scene) for scene in scenes),
            {"/s2_".join(scene) for scene in there},
            said=f"{path} names",
            what="scenes",
            todo=f"unpack the archives of all four seasons into {path.parent}",
        )
    return scenes


def _list_patches(base: Path, scenes: list[tuple[str, str]]) -> list[Path]:
    """The Sentinel-2 file of every patch; a patch with a file of one kind has one of each."""
    files: list[Path] = []
    for season, scene in scenes:
        folders = {kind: base / season / f"{kind}_{scene}" for kind in ("s1", "s2", "lc")}
        patches = {
            kind: {
                name.replace(f"_{kind}_", "_s2_")
                for name in list_names(folder, "files")
                if _FILE.fullmatch(name)
            }
            for kind, folder in folders.items()
        }
        everything = set.union(*patches.values())
        for kind, folder in folders.items():
            wanted = sorted(name.replace("_s2_", f"_{kind}_") for name in everything)
            require_all(
                wanted,
                {name.replace("_s2_", f"_{kind}_") for name in patches[kind]},
                said=f"{folder} should hold",
                what="patches",
                todo=f"unpack {season}_{kind}.tar.gz again",
            )
        files += [folders["s2"] / name for name in sorted(everything, key=_patch_number)]
    return files


def _patch_number(name: str) -> int:
    return int(name.rpartition("_p")[2].removesuffix(".tif"))


def sibling(path: Path, kind: Kind) -> Path:
    """The file of another kind of the patch with this Sentinel-2 file."""
    folder = path.parent.parent / path.parent.name.replace("s2_", f"{kind}_")
    return folder / path.name.replace("_s2_", f"_{kind}_")


def decode_triplet(path: Path) -> dict[str, NDArray[Any]]:
    """Sentinel-2 (13, 256, 256) uint16 DN and Sentinel-1 (2, 256, 256) float32 dB of a patch."""
    radar = _read(sibling(path, "s1"), len(RADAR.bands), ("float32", "float64"))
    return {
        OPTICAL.name: _read(path, len(OPTICAL.bands), ("uint16",)),
        RADAR.name: radar.astype(np.float32, copy=False),
    }


def _read(path: Path, num_bands: int, dtypes: tuple[str, ...], band: int | None = None) -> Any:
    """All bands of a GeoTIFF, without data NaN or 0, or one of them as it is (counted from 1)."""
    with open_geotiff(path) as source:
        expected = (num_bands, SIDE, SIDE)
        if (source.count, source.height, source.width) != expected or source.dtypes[
            0
        ] not in dtypes:
            raise DataError(
                f"{path} is {source.count}x{source.height}x{source.width} {source.dtypes[0]}; "
                f"expected {num_bands}x{SIDE}x{SIDE} {' or '.join(dtypes)}"
            )
        try:
            pixels = source.read(band)
            if band is None:
                valid = valid_by_file(source, pixels)
                pixels[~valid] = np.nan if np.issubdtype(pixels.dtype, np.floating) else 0
            return pixels
        except (RasterioError, OSError, ValueError) as error:
            raise DataError(f"{path} is damaged: {first_line(error)}") from error


@cache
def _class_of_code() -> NDArray[np.int64]:
    """(256,) IGBP code -> simplified class, -1 for codes without one, -2 for unknown codes."""
    table = read_table("sen12ms")
    names = simplified_names()
    classes = np.full(256, -2, dtype=np.int64)
    classes[table["ignored_codes"]] = -1
    for code, name in table["simplified"].items():
        classes[int(code)] = names.index(name)
    return classes


def simplified_names() -> tuple[str, ...]:
    """The simplified scheme's 10 classes, in its order."""
    table = read_table("sen12ms")["simplified"]
    return tuple(dict.fromkeys(table[code] for code in sorted(table, key=int)))


def class_names() -> tuple[str, ...]:
    """The same as prompts say them."""
    prompts = read_table("sen12ms")["prompts"]
    return tuple(prompts[name] for name in simplified_names())


def shares_of(codes: NDArray[np.integer[Any]]) -> NDArray[np.float64]:
    """(10,) share of the pixels that each simplified class covers, of IGBP codes of any shape.

    Pixels without data or class count as part of the whole, so that the shares may sum to less
    than one. `DataError` for a code that is none of IGBP's.
    """
    low, high = int(codes.min()), int(codes.max())
    if low < 0 or high > 255:
        raise _no_code(low if low < 0 else high)
    counts = np.bincount(codes.ravel(), minlength=256)
    classes = _class_of_code()
    unknown = np.flatnonzero((classes == -2) & (counts > 0))
    if len(unknown):
        raise _no_code(int(unknown[0]))
    known = classes >= 0
    sums = np.bincount(classes[known], counts[known], minlength=len(simplified_names()))
    return sums / codes.size


def _no_code(code: int) -> DataError:
    return DataError(f"{code} is no IGBP class; expected 1 to 17, or 0 and 255 for none")


def _read_shares(name: str, files: list[Path]) -> NDArray[np.float64]:
    shares = read_each(f"land cover of {name}", _shares_of_patch, files, unit="patch")
    return np.array(shares).reshape(len(files), len(simplified_names()))


def _shares_of_patch(path: Path) -> NDArray[np.float64]:
    land_cover = sibling(path, "lc")
    codes = _read(land_cover, 4, ("uint8", "uint16", "int16"), band=1)
    try:
        return shares_of(codes)
    except DataError as error:
        raise DataError(f"{land_cover}: {error}") from error


def locate_patch(path: Path) -> Place:
    """Where a patch lies, from its grid; when it was taken is not known beyond its season."""
    return Place(bounds=geotiff_bounds(path))
