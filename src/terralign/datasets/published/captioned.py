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
from terralign.datasets.fingerprint import file_sizes
from terralign.datasets.listing import find_folder
from terralign.datasets.pixels import DecodePictures
from terralign.datasets.sample import Captions, require_split
from terralign.errors import DataError, StorageError, quoted
from terralign.files import read_json
from terralign.scenes.pictures import Size, describe_size
from terralign.sensors import SENSORS
from terralign.toml_values import explain

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class CaptionedArchive:
    """How a set lies on disk.

    `folders`: where it may lie below the data root. `annotations`: where its JSON file may lie in
    such a folder; `images`: the folder of the images there. `side`: to which images are resized and
    cropped unless another size is given.
    """

    folders: tuple[str, ...]
    annotations: tuple[str, ...]
    images: str
    side: int

    def holds(self, folder: Path) -> bool:
        """Whether a folder has the JSON file."""
        return any((folder / one).is_file() for one in self.annotations)


ARCHIVES: dict[str, CaptionedArchive] = {
    "rsicd": CaptionedArchive(
        folders=("rsicd", "RSICD", "."),
        annotations=("dataset_rsicd.json", "annotations_rsicd/dataset_rsicd.json"),
        images="RSICD_images",
        side=224,
    ),
    "rsitmd": CaptionedArchive(
        folders=("rsitmd", "RSITMD", "."),
        annotations=("dataset_RSITMD.json",),
        images="images",
        side=256,
    ),
    "ucm-captions": CaptionedArchive(
        folders=("ucm_captions", "UCM_captions", "."),
        annotations=("dataset.json",),
        images="imgs",
        side=256,
    ),
}


class _Foreign(BaseModel):
    """Values of a file from elsewhere: what is needed is checked, the rest ignored."""

    model_config = ConfigDict(frozen=True, strict=True)


class _Sentence(_Foreign):
    raw: str


class _Image(_Foreign):
    filename: str = Field(min_length=1)
    split: str
    sentences: tuple[_Sentence, ...] = Field(strict=False, fail_fast=True)


class _Annotations(_Foreign):
    images: tuple[_Image, ...] = Field(min_length=1, strict=False, fail_fast=True)


def open_captioned(name: str, data_root: Path, split: str, *, size: Size | None = None) -> FileSet:
    """One of `ARCHIVES`. `split`: one that its JSON file names, or `all`.

    Every sample has all its captions, in the file's order, without spaces around them; empty ones
    are left out with a warning. Raises `DataError`: a JSON file of another form, an image that it
    names and that is missing, an image without a caption or named twice, a split it does not have.
    """
    archive = ARCHIVES[name]
    what = f"{archive.annotations[0]} beside {archive.images}"
    folder = find_folder(name, data_root, archive.folders, holds=archive.holds, what=what)
    paths = (folder / one for one in archive.annotations)
    annotations = next(path for path in paths if path.is_file())
    entries = _read_annotations(annotations)
    splits = sorted({entry.split for entry in entries})
    require_split(name, split, [*splits, "all"], where=annotations.name)
    chosen = [entry for entry in entries if split in (entry.split, "all")]
    images = folder / archive.images
    files = tuple(images / entry.filename for entry in chosen)
    captions = _captions(chosen, annotations)
    side = archive.side if size is None else size
    sensor = SENSORS["rgb"]
    sizes = file_sizes(files, named_by=annotations.name)
    return FileSet(
        name=name,
        split=split,
        layouts={sensor.name: make_layout(sensor, sensor.band_names, units="dn")},
        keys=tuple(entry.filename for entry in chosen),
        files=files,
        decode=DecodePictures(side),
        content=[describe_size(side), captions, sizes],
        captions=captions,
    )


def _read_annotations(path: Path) -> tuple[_Image, ...]:
    try:
        entries = _Annotations.model_validate(read_json(path, size="captions_bytes")).images
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
            raise DataError(f"{path} names image {quoted(entry.filename)} twice")
        seen.add(entry.filename)
    return entries


def _captions(entries: list[_Image], annotations: Path) -> Captions:
    captions = []
    num_empty = 0
    for entry in entries:
        texts = tuple(sentence.raw.strip() for sentence in entry.sentences)
        kept = tuple(text for text in texts if text)
        if not kept:
            raise DataError(f"{annotations}: image {quoted(entry.filename)} has no caption")
        num_empty += len(texts) - len(kept)
        captions.append(kept)
    if num_empty:
        logger.warning("%s: %d empty captions were left out", annotations, num_empty)
    return tuple(captions)
