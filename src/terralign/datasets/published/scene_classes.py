"""Satellite and aerial scenes in one folder per class, as their archives unpack.

EuroSAT (Helber et al. 2019): Sentinel-2 tiles of 64x64 at 10 m, as JPEG and as GeoTIFF in 13 bands,
L1C of 2017, years before DN had an offset; its composite is DN / 2750, with which the JPEGs were
made. AID, RESISC45, UC Merced and PatternNet: RGB.

Splits are published as lists of file names (Neumann et al. 2019, arXiv 1911.06721; those that
TorchGeo uses). EuroSAT has two: by longitude (`train`, ...) and random (`random-train`, ...); its
lists name JPEGs and are read for the GeoTIFFs too.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from terralign.datasets.class_folders import (
    list_class_files,
    make_file_set,
    pick_files,
    read_split_list,
)
from terralign.datasets.class_lists import load_class_list
from terralign.datasets.file_set import FileSet
from terralign.datasets.listing import find_folder
from terralign.datasets.pixels import Pixels
from terralign.datasets.sample import require_split, require_whole_split
from terralign.scenes.pictures import Size
from terralign.sensors import SENSORS

BANDS_ON_DISK = (
    *("B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B09", "B10", "B11", "B12"),
    "B8A",
)
"""Band order of EuroSAT's GeoTIFFs: B8A is last."""

EUROSAT_LISTS = {"": "eurosat-spatial-{}.txt", "random-": "eurosat-{}.txt"}

RGB = Pixels(sensor=SENSORS["rgb"])


@dataclass(frozen=True, kw_only=True, slots=True)
class SceneArchive:
    """How a set lies on disk.

    `images`: where the class folders may lie below the data root; the first that exists counts.
    `lists`: prefix of a split's name -> the name of its list, in the folder of the class folders or
    above it, up to the data root; empty where no split was published. `suffix`: the ending of the
    images where the lists name files with another.
    """

    images: tuple[str, ...]
    lists: Mapping[str, str]
    class_list: str
    pixels: Pixels = RGB
    suffix: str = ""


ARCHIVES: dict[str, SceneArchive] = {
    "eurosat-rgb": SceneArchive(
        images=("eurosat_rgb/2750", "eurosat_rgb/EuroSAT_RGB", "2750", "EuroSAT_RGB"),
        lists=EUROSAT_LISTS,
        class_list="eurosat",
    ),
    "eurosat-ms": SceneArchive(
        images=(
            "eurosat_ms/ds/images/remote_sensing/otherDatasets/sentinel_2/tif",
            "eurosat_ms/EuroSAT_MS",
            "ds/images/remote_sensing/otherDatasets/sentinel_2/tif",
            "EuroSAT_MS",
        ),
        lists=EUROSAT_LISTS,
        class_list="eurosat",
        pixels=Pixels(
            sensor=SENSORS["sentinel2-l1c"],
            bands=BANDS_ON_DISK,
            dn_offset=0.0,
            units="dn",
            composite="eurosat",
        ),
        suffix=".tif",
    ),
    "aid": SceneArchive(images=("aid/AID", "aid", "AID"), lists={}, class_list="aid"),
    "resisc45": SceneArchive(
        images=("resisc45/NWPU-RESISC45", "NWPU-RESISC45"),
        lists={"": "resisc45-{}.txt"},
        class_list="resisc45",
    ),
    # Some four dozen of its images are a few pixels smaller than 256x256.
    "ucmerced": SceneArchive(
        images=("ucmerced/UCMerced_LandUse/Images", "UCMerced_LandUse/Images"),
        lists={"": "uc_merced-{}.txt"},
        class_list="ucmerced",
        pixels=RGB.at_size(256),
    ),
    "patternnet": SceneArchive(
        images=("patternnet/PatternNet/images", "patternnet/images", "PatternNet/images"),
        lists={},
        class_list="patternnet",
    ),
}


def open_scene_classes(
    name: str, data_root: Path, split: str, *, size: Size | None = None
) -> FileSet:
    """One of `ARCHIVES`. `split`: one whose published list exists, or `all`.

    Without published splits every name of `WHOLE_SPLITS` gives the whole set. `size`: to what
    pictures are resized and cropped.
    """
    archive = ARCHIVES[name]
    root = find_folder(name, data_root, archive.images, what="a folder per class")
    classes = load_class_list(archive.class_list)
    pixels = archive.pixels if size is None else archive.pixels.at_size(size)
    if not archive.lists:
        require_whole_split(name, split)
    whole = split == "all" or not archive.lists
    files = list_class_files(root, classes, name=name, suffixes=pixels.suffixes, whole=whole)
    if not whole:
        lists = _find_lists(archive, root, data_root)
        require_split(name, split, ("all", *lists), where=str(data_root))
        entries = read_split_list(lists[split])
        if archive.suffix:
            entries = [str(Path(entry).with_suffix(archive.suffix)) for entry in entries]
        pick_files(files, root, entries, origin=f"split list {lists[split]}")
    return make_file_set(
        name=name, split=split, files=files, classes=classes,
        class_list=archive.class_list, pixels=pixels, root=root,
    )  # fmt: skip


def _find_lists(archive: SceneArchive, root: Path, data_root: Path) -> dict[str, Path]:
    """Split -> its list, of those that exist."""
    found: dict[str, Path] = {}
    for prefix, pattern in archive.lists.items():
        before, after = pattern.split("{}")
        for folder in (root, *root.parents):
            for path in sorted(folder.glob(f"{before}*{after}")):
                if path not in found.values():  # "eurosat-*" finds "eurosat-spatial-*" too
                    split = prefix + path.name.removeprefix(before).removesuffix(after)
                    found.setdefault(split, path)
            if folder == data_root:
                break
    return found
