"""Data sets of pictures in their official layouts: aerial scenes, photos, captions."""

from __future__ import annotations

import hashlib
import json
import pickle
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torchvision.datasets import CIFAR10, CIFAR100

from fake_world.files import write_picture
from fake_world.pixels import draw_picture, rng_of
from terralign.datasets.class_lists import load_class_list
from terralign.encoders.zeroshot import openai_imagenet_names

Draw = Callable[[str, int], NDArray[np.uint8]]
"""(class folder, number) -> the picture, (3, H, W)."""

PER_CLASS = 2
"""Pictures of each class in each split."""


# Scenes in one folder per class

SCENES = {
    "aid": ("aid/AID", "{folder}/{lower}_{number}.jpg"),
    "resisc45": ("resisc45/NWPU-RESISC45", "{folder}/{folder}_{number:03}.jpg"),
    "ucmerced": ("ucmerced/UCMerced_LandUse/Images", "{folder}/{folder}{number:02}.tif"),
    "patternnet": ("patternnet/PatternNet/images", "{folder}/{lower}{number:03}.jpg"),
}
"""Where the archives lay their class folders, and how they call a picture."""

SPLIT_LISTS = {"resisc45": "resisc45-{}.txt", "ucmerced": "uc_merced-{}.txt"}
SPLITS = ("train", "val", "test")


def write_scenes(root: Path, name: str, draw: Draw, num_pictures: int = 2) -> None:
    """The whole archive: `num_pictures` of each class, numbered from 1."""
    for folder in load_class_list(name):
        for number in range(1, num_pictures + 1):
            write_picture(
                root / SCENES[name][0] / scene_file(name, folder, number), draw(folder, number)
            )


def scene_file(name: str, folder: str, number: int) -> str:
    """A picture's path below the class folders."""
    lower = folder.lower().replace("_", "")
    return SCENES[name][1].format(folder=folder, lower=lower, number=number)


def write_scene_archive(root: Path, name: str) -> None:
    """`PER_CLASS` pictures of each class in each split that has a list; all in one without."""

    def draw(folder: str, number: int) -> NDArray[np.uint8]:
        return draw_picture(folder, 48, rng_of(name, folder, number))

    splits = SPLITS if name in SPLIT_LISTS else ("all",)
    write_scenes(root, name, draw, PER_CLASS * len(splits))
    for place, split in enumerate(splits if name in SPLIT_LISTS else ()):
        numbers = range(place * PER_CLASS + 1, (place + 1) * PER_CLASS + 1)
        files = [
            Path(scene_file(name, folder, number)).name
            for folder in load_class_list(name)
            for number in numbers
        ]
        (root / name / SPLIT_LISTS[name].format(split)).write_text("\n".join(files) + "\n")


# Photos

TINY_IMAGENET = ("goldfish", "bullfrog", "espresso", "broom", "lighthouse", "pretzel")


def write_imagenet_val(root: Path) -> None:
    """`PER_CLASS` pictures of each of the 1,000 classes, which stand in the order of OpenAI's."""
    for index, name in enumerate(openai_imagenet_names()):
        for number in range(PER_CLASS):
            file = f"n{index:08}/ILSVRC2012_val_{index * PER_CLASS + number:08}.JPEG"
            picture = draw_picture(name, 40, rng_of("imagenet", index, number))
            write_picture(root / "imagenet" / "val" / file, picture)


def write_tiny_imagenet(root: Path) -> None:
    """The published archive, of a few classes."""
    base = root / "tiny-imagenet-200"
    wnids = {f"n{index:08}": name for index, name in enumerate(TINY_IMAGENET)}
    annotations = []
    for wnid, name in wnids.items():
        for number in range(PER_CLASS):
            file = f"{wnid}_{number}.JPEG"
            picture = draw_picture(name, 64, rng_of("train", name, number))
            write_picture(base / "train" / wnid / "images" / file, picture)
            file = f"val_{len(annotations)}.JPEG"
            picture = draw_picture(name, 64, rng_of("val", name, number))
            write_picture(base / "val" / "images" / file, picture)
            annotations.append(f"{file}\t{wnid}\t0\t0\t62\t62")
    (base / "val" / "val_annotations.txt").write_text("\n".join(annotations) + "\n")
    (base / "wnids.txt").write_text("\n".join(wnids) + "\n")
    words = [f"{wnid}\t{name}, second name" for wnid, name in wnids.items()]
    (base / "words.txt").write_text("\n".join(words) + "\n")


def write_cifar100(root: Path) -> None:
    """The published archive, of a few pictures."""
    pixels = np.stack([draw_picture(str(row), 32, rng_of("cifar", row)) for row in range(200)])
    records = (pixels, [row % 100 for row in range(200)])
    write_cifar(root / "cifar100", CIFAR100, dict.fromkeys(("train", "test"), records))


def write_cifar(
    root: Path, source: type[CIFAR10], files: Mapping[str, tuple[NDArray[np.uint8], list[int]]]
) -> None:
    """Pickled files (pixels (N, 3, 32, 32), labels), whose MD5 `source` takes for the published.

    Files that are not given hold no picture.
    """
    folder = root / source.base_folder
    folder.mkdir(parents=True)

    def write(name: str, content: Any) -> str:
        (folder / name).write_bytes(pickle.dumps(content))
        return hashlib.md5((folder / name).read_bytes()).hexdigest()

    def write_records(name: str) -> list[str]:
        pixels, labels = files.get(name, (np.zeros((0, 3, 32, 32), np.uint8), []))
        key = "fine_labels" if source is CIFAR100 else "labels"
        return [name, write(name, {"data": pixels.reshape(-1, 3072), key: labels})]

    source.train_list = [write_records(name) for name, _ in source.train_list]
    source.test_list = [write_records(name) for name, _ in source.test_list]
    md5 = write(source.meta["filename"], {source.meta["key"]: []})
    source.meta = {**source.meta, "md5": md5}


# Captions

CAPTIONED = {
    "rsicd": ("rsicd/annotations_rsicd/dataset_rsicd.json", "rsicd/RSICD_images", ".jpg", 224),
    "rsitmd": ("rsitmd/dataset_RSITMD.json", "rsitmd/images", ".tif", 256),
    "ucm-captions": ("ucm_captions/dataset.json", "ucm_captions/imgs", ".tif", 256),
}
"""The JSON file, the folder of images, their ending and side."""

CAPTION_SIZES = {"train": 8, "val": 4, "test": 8}
_THINGS = ("airport", "bridge", "forest", "river", "stadium")


def write_captioned(root: Path, name: str) -> None:
    """Images with five captions each; RSITMD has no validation part."""
    _, images, ending, side = CAPTIONED[name]
    splits = [split for split in CAPTION_SIZES if (name, split) != ("rsitmd", "val")]
    entries = []
    for split in splits:
        for _ in range(CAPTION_SIZES[split]):
            number = len(entries)
            thing = _THINGS[number % len(_THINGS)]
            filename = f"{thing}_{number}{ending}"
            picture = draw_picture(thing, side, rng_of(name, number))
            write_picture(root / images / filename, picture)
            texts = [f"{thing} number {number} seen from direction {one} ." for one in range(5)]
            entries.append(caption_entry(filename, number, split, texts))
    write_captions(root, name, {"images": entries, "dataset": name})


def caption_entry(filename: str, number: int, split: str, texts: list[str]) -> dict[str, Any]:
    """An image of a caption file."""
    sentences = [caption_sentence(text, number) for text in texts]
    return {
        "filename": filename,
        "imgid": number,
        "sentids": [number],
        "split": split,
        "sentences": sentences,
    }


def caption_sentence(raw: str, number: int) -> dict[str, Any]:
    """A caption of the image with this number."""
    return {"tokens": raw.split(), "raw": raw, "imgid": number, "sentid": number}


def write_captions(root: Path, name: str, value: Any) -> None:
    """The caption file: of a text as it is, else of JSON."""
    path = root / CAPTIONED[name][0]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(value if isinstance(value, str) else json.dumps(value))
