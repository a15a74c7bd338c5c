"""Remote-sensing images with several captions each, in the JSON format they are published in.

RSICD (Lu et al. 2017), RSITMD (Yuan et al. 2021) and UCM-Captions (Qu et al. 2016) share it:

{"images": [{"filename": "airport_1.jpg", "split": "train",
             "sentences": [{"raw": "many planes are parked ."}, ...]}, ...]}
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from terralign.chips import make_layout
from terralign.datasets.class_folders import require_inside
from terralign.datasets.file_set import FileSet
from terralign.datasets.pixels import DecodePictures
from terralign.datasets.sample import Captions
from terralign.errors import DataError, SplitError, StorageError
from terralign.files import read_json
from terralign.scenes.pictures import Size, describe_size
from terralign.sensors import SENSORS
from terralign.toml_values import explain

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class CaptionedArchive:
    """How a set lies on disk.

    `folders`: where it may lie below the data root. `annotations`: the JSON file's name, in such a
    folder or in a `subfolder` of it. `images`: the folder of the images beside. `side`: to which
    images are resized and cropped unless another size is asked for.
    """

    folders: tuple[str, ...]
    annotations: str
    images: str
    side: int
    subfolder: str = "."


ARCHIVES: dict[str, CaptionedArchive] = {
    "rsicd": CaptionedArchive(
        folders=("rsicd", "RSICD"),
        annotations="dataset_rsicd.json",
        images="RSICD_images",
        side=224,
        subfolder="annotations_rsicd",
    ),
    "rsitmd": CaptionedArchive(
        folders=("rsitmd", "RSITMD"), annotations="dataset_RSITMD.json", images="images", side=256
    ),
    "ucm-captions": CaptionedArchive(
        folders=("ucm_captions", "UCM_captions"),
        annotations="dataset.json",
        images="imgs",
        side=256,
    ),
}


class _Foreign(BaseModel):
    """Values of a file that others made: what is needed is checked, the rest passed over."""

    model_config = ConfigDict(frozen=True, strict=True)


class _Sentence(_Foreign):
    raw: str


class _Image(_Foreign):
    filename: str = Field(min_length=1)
    split: str
    sentences: tuple[_Sentence, ...] = Field(strict=False)


class _Annotations(_Foreign):
    images: tuple[_Image, ...] = Field(min_length=1, strict=False)


def open_captioned(name: str, data_root: Path, split: str, *, size: Size | None = None) -> FileSet:
    """One of `ARCHIVES`. `split`: one that its JSON file names, or `all`.

    Every sample has all its captions, in the file's order, without spaces around them; empty ones
    are left out with a warning. Raises `DataError`: a JSON file of another form, an image that it
    names and that is missing, an image without a caption or named twice, a split it does not have.
    """
    archive = ARCHIVES[name]
    annotations, images = _find_files(name, archive, data_root)
    entries = _read_annotations(annotations)
    splits = sorted({entry.split for entry in entries})
    chosen = [entry for entry in entries if split in (entry.split, "all")]
    if not chosen:
        raise SplitError(
            f"data set {name!r} has no split {split!r}; {annotations.name} has "
            f"{', '.join([*splits, 'all'])}"
        )
    files = tuple(images / entry.filename for entry in chosen)
    captions = _captions(chosen, annotations)
    side = archive.side if size is None else size
    sensor = SENSORS["rgb"]
    layouts = {sensor.name: make_layout(sensor, sensor.band_names, units="dn")}
    keys = tuple(entry.filename for entry in chosen)

    return FileSet(
        name=name,
        split=split,
        layouts=layouts,
        keys=keys,
        files=files,
        decode=DecodePictures(side),
        content=[
            describe_size(side),
            captions,
            [_num_bytes(file, annotations) for file in files],
        ],
        captions=captions,
    )


def _find_files(name: str, archive: CaptionedArchive, data_root: Path) -> tuple[Path, Path]:
    """The JSON file and the folder of the images."""
    for place in (*archive.folders, "."):
        folder = data_root / place
        for beside in (folder, folder / archive.subfolder):
            if (beside / archive.annotations).is_file():
                images = folder / archive.images
                if images.is_dir():
                    return beside / archive.annotations, images
                raise DataError(
                    f"data set {name!r}: {images} is not there; unpack its images there"
                )
    raise DataError(
        f"data set {name!r}: {data_root / archive.folders[0] / archive.annotations} is not there; "
        f"put its captions there and its images into {archive.images} beside them"
    )


def _read_annotations(path: Path) -> tuple[_Image, ...]:
    try:
        entries = _Annotations.model_validate(read_json(path)).images
    except StorageError as error:
        raise DataError(str(error)) from error
    except ValidationError as error:
        fault = explain(error, _Annotations)
        raise DataError(
            f"{path} is no caption file of the form images, each with filename, split and "
            f"sentences with raw: {fault}"
        ) from error
    seen: set[str] = set()
    for entry in entries:
        require_inside(entry.filename, origin=str(path))
        if entry.filename in seen:
            raise DataError(f"{path} names image {entry.filename} twice")
        seen.add(entry.filename)
    return entries


def _captions(entries: list[_Image], annotations: Path) -> Captions:
    captions = []
    num_empty = 0
    for entry in entries:
        texts = tuple(sentence.raw.strip() for sentence in entry.sentences)
        kept = tuple(text for text in texts if text)
        if not kept:
            raise DataError(f"{annotations}: image {entry.filename} has no caption")
        num_empty += len(texts) - len(kept)
        captions.append(kept)
    if num_empty:
        logger.warning("%s: %d empty captions were left out", annotations, num_empty)
    return tuple(captions)


def _num_bytes(file: Path, annotations: Path) -> int:
    try:
        return file.stat().st_size
    except OSError as error:
        raise DataError(f"{file} is not there, though {annotations.name} names it") from error
