"""EuroSAT (Helber et al. 2019): Sentinel-2 tiles of 64x64 at 10 m in ten classes.

RGB as JPEG (`2750/<Class>/<Class>_N.jpg`), multispectral as GeoTIFF in the folders of the official
archives. Both are Sentinel-2 L1C, published in 2017, years before DN had an offset. Split lists lie
beside them and name `<Class>_N.jpg`, for the GeoTIFFs too: by longitude
(`eurosat-spatial-train.txt`) and the usual random 60/20/20 (`eurosat-train.txt`, Neumann et al.
2019, arXiv 1911.06721), both published with TorchGeo.
"""

from __future__ import annotations

from pathlib import Path

from terralign.datasets.class_folders import list_class_files, make_file_set, read_split_list
from terralign.datasets.class_lists import load_class_list
from terralign.datasets.file_set import FileSet
from terralign.datasets.pixels import Pixels
from terralign.errors import DataError, SplitError
from terralign.scenes.pictures import Size
from terralign.sensors import SENSORS

RGB_FOLDER = "2750"
MS_FOLDER = "ds/images/remote_sensing/otherDatasets/sentinel_2/tif"
"""The class folders of `EuroSAT.zip` and `EuroSATallBands.zip`, as first published."""

RGB_FOLDERS = (RGB_FOLDER, "EuroSAT_RGB")
MS_FOLDERS = (MS_FOLDER, "EuroSAT_MS")
"""The second ones are those of the archives on Zenodo (record 7711810)."""

BANDS_ON_DISK = (
    *("B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B09", "B10", "B11", "B12"),
    "B8A",
)
"""Band order of the GeoTIFFs: B8A is last."""


def open_eurosat_rgb(data_root: Path, split: str, *, size: Size | None = None) -> FileSet:
    """EuroSAT RGB below `data_root/eurosat_rgb`, or below `data_root` itself.

    `split`: that of a list `eurosat-spatial-{split}.txt` (split by longitude), `random-{split}`
    for a list `eurosat-{split}.txt`, or `all`. Only the list asked for needs to be there.
    """
    base, images = _find_images(data_root, "eurosat_rgb", RGB_FOLDERS)
    pixels = Pixels(sensor=SENSORS["rgb"], size=size)
    return _open("eurosat-rgb", base, images, ".jpg", split, pixels)


def open_eurosat_ms(data_root: Path, split: str) -> FileSet:
    """EuroSAT multispectral below `data_root/eurosat_ms`, or below `data_root` itself.

    Splits as for `open_eurosat_rgb`; a tile has the key of its JPEG. Its RGB composite is
    DN / 2750, with which the JPEGs were made.
    """
    base, images = _find_images(data_root, "eurosat_ms", MS_FOLDERS)
    pixels = Pixels(
        sensor=SENSORS["sentinel2-l1c"],
        bands=BANDS_ON_DISK,
        dn_offset=0.0,
        units="dn",
        composite="eurosat",
    )
    return _open("eurosat-ms", base, images, ".tif", split, pixels)


def _find_images(data_root: Path, folder: str, places: tuple[str, ...]) -> tuple[Path, str]:
    """Where the split lists lie, and the folder of the class folders below it."""
    for base in (data_root / folder, data_root):
        for images in places:
            if (base / images).is_dir():
                return base, images
    raise DataError(
        f"{data_root} holds no {folder}/{places[0]} and no {folder}/{places[1]}; give the folder "
        "that does as data root"
    )


def _open(name: str, base: Path, images: str, suffix: str, split: str, pixels: Pixels) -> FileSet:
    classes = load_class_list("eurosat")
    files: dict[str, list[Path]]
    if split == "all":
        files = list_class_files(base / images, classes, name=name, suffixes=pixels.suffixes)
    else:
        files = {folder: [] for folder in classes}
        split_list = _find_split_list(name, base, split)
        for entry in read_split_list(split_list):
            stem = Path(entry).stem
            folder = stem.rpartition("_")[0]
            if folder not in files:
                raise DataError(f"split list {split_list}: {entry!r} is of no EuroSAT class")
            files[folder].append(base / images / folder / f"{stem}{suffix}")
        for paths in files.values():
            paths.sort()
    return make_file_set(
        name=name, split=split, files=files, classes=classes, class_list="eurosat", pixels=pixels,
        root=base / images,
    )  # fmt: skip


def _find_split_list(name: str, base: Path, split: str) -> Path:
    is_random = split.startswith("random-")
    stem = split.removeprefix("random-") if is_random else f"spatial-{split}"
    path = base / f"eurosat-{stem}.txt"
    if path.is_file() and "/" not in split:
        return path
    there = ["all"]
    for found in sorted(base.glob("eurosat-*.txt")):
        part = found.stem.removeprefix("eurosat-")
        spatial = part.startswith("spatial-")
        there.append(part.removeprefix("spatial-") if spatial else f"random-{part}")
    raise SplitError(
        f"data set {name!r} has no split {split!r} in {base} (no {path.name}); "
        f"there: {', '.join(there)}"
    )
