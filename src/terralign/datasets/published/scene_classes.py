"""Aerial and satellite RGB scenes in one folder per class, as their archives unpack.

AID, RESISC45, UC Merced and PatternNet. Train, validation and test are published for RESISC45 and
UC Merced as lists of file names (Neumann et al. 2019, arXiv 1911.06721; the ones TorchGeo uses).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from terralign.datasets.class_folders import open_folder
from terralign.datasets.class_lists import load_class_list
from terralign.datasets.file_set import FileSet
from terralign.datasets.pixels import Pixels
from terralign.datasets.sample import require_whole_split
from terralign.errors import DataError, SplitError
from terralign.scenes.pictures import Size
from terralign.sensors import SENSORS


@dataclass(frozen=True, kw_only=True, slots=True)
class SceneArchive:
    """How a set lies on disk.

    `images`: where the class folders may lie below the data root, the first that is there counts.
    `split_list`: name of a split's list, in the folder of the class folders or up to two above it;
    None where no split was published. `side`: to which images are resized and cropped unless
    another size is asked for; None where all are of one size.
    """

    images: tuple[str, ...]
    split_list: str | None = None
    side: int | None = None


ARCHIVES: dict[str, SceneArchive] = {
    "aid": SceneArchive(images=("aid/AID", "aid", "AID")),
    "resisc45": SceneArchive(
        images=("resisc45/NWPU-RESISC45", "NWPU-RESISC45"), split_list="resisc45-{}.txt"
    ),
    # Some four dozen of its images are a few pixels smaller than 256x256.
    "ucmerced": SceneArchive(
        images=("ucmerced/UCMerced_LandUse/Images", "UCMerced_LandUse/Images"),
        split_list="uc_merced-{}.txt",
        side=256,
    ),
    "patternnet": SceneArchive(
        images=("patternnet/PatternNet/images", "patternnet/images", "PatternNet/images")
    ),
}


def open_scene_classes(
    name: str, data_root: Path, split: str, *, size: Size | None = None
) -> FileSet:
    """One of `ARCHIVES`. `split`: that of a published list, or `all`.

    Without published splits every name of `WHOLE_SPLITS` gives the whole set.
    """
    archive = ARCHIVES[name]
    images = _find_images(name, archive, data_root)
    if archive.split_list is None:
        require_whole_split(name, split)
    return open_folder(
        images,
        name=name,
        split=split,
        classes=load_class_list(name),
        class_list=name,
        pixels=Pixels(sensor=SENSORS["rgb"], size=archive.side if size is None else size),
        split_list=_find_split_list(name, archive, images, split),
    )


def _find_images(name: str, archive: SceneArchive, data_root: Path) -> Path:
    for place in archive.images:
        if (data_root / place).is_dir():
            return data_root / place
    raise DataError(
        f"data set {name!r}: {data_root / archive.images[0]} is not there; it should hold one "
        "folder per class"
    )


def _find_split_list(name: str, archive: SceneArchive, images: Path, split: str) -> Path | None:
    if archive.split_list is None or split == "all":
        return None
    before, after = archive.split_list.split("{}")
    lists: dict[str, Path] = {}
    for folder in (images.parent.parent, images.parent, images):
        for path in sorted(folder.glob(before + "*" + after)):
            lists[path.name.removeprefix(before).removesuffix(after)] = path
    if split in lists:
        return lists[split]
    raise SplitError(
        f"data set {name!r} has no split {split!r} (no {archive.split_list.format(split)} in "
        f"{images.parent}); there: {', '.join(['all', *sorted(lists)])}"
    )
