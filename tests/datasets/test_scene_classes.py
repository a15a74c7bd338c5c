"""AID, RESISC45, UC Merced and PatternNet in the layouts of their archives."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from fake_world.pictures import SCENES, scene_file, write_scenes
from terralign.datasets.catalog import DATASETS, open_dataset
from terralign.datasets.class_lists import load_class_list
from terralign.datasets.facts import read_facts
from terralign.datasets.published.scene_classes import open_scene_classes
from terralign.encoders.zeroshot import load_prompts
from terralign.errors import DataError


def write(root: Path, name: str, side: int = 8) -> None:
    """Two pictures of each class; pixels hold the class's place in the list."""
    places = list(load_class_list(name))

    def draw(folder: str, number: int) -> NDArray[np.uint8]:
        red = np.full((1, side, side), places.index(folder), np.uint8)
        return np.concatenate([red, np.zeros((2, side, side), np.uint8)])

    write_scenes(root, name, draw)


@pytest.mark.parametrize("name", SCENES)
def test_the_official_archive_opens_whole(tmp_path: Path, name: str) -> None:
    write(tmp_path, name)
    samples = open_dataset(name, data_root=tmp_path, split="all", size=8)
    names = load_class_list(name)
    assert len(samples) == 2 * len(names)
    assert samples.labels is not None
    assert samples.labels.class_list == name == read_facts(name).class_list
    assert np.bincount(samples.labels.values).tolist() == [2] * len(names)
    red = samples.read(np.arange(len(samples)))["rgb"][:, 0, 4, 4]
    assert np.abs(red.astype(int) - samples.labels.values).max() <= 1
    place = tmp_path / SCENES[name][0]
    last = list(names)[-1]
    for file in (place / last).iterdir():
        file.unlink()
    (place / last).rmdir()
    with pytest.raises(DataError, match=f"no folder for the classes {last}"):
        open_dataset(name, data_root=tmp_path, split="all", size=8)


@pytest.mark.parametrize(
    ("name", "stem"), [("resisc45", "resisc45-{}.txt"), ("ucmerced", "uc_merced-{}.txt")]
)
def test_published_lists_split_the_set(tmp_path: Path, name: str, stem: str) -> None:
    write(tmp_path, name)
    folders = list(load_class_list(name))
    for split, number in (("train", 1), ("test", 2)):
        lines = [Path(scene_file(name, one, number)).name for one in reversed(folders)]
        (tmp_path / name / stem.format(split)).write_text("\n".join(lines) + "\n")
    train = open_scene_classes(name, tmp_path, "train", size=8)
    test = open_scene_classes(name, tmp_path, "test", size=8)
    assert len(train) == len(test) == len(folders)
    assert not set(train.keys) & set(test.keys)
    assert train.keys[0] == scene_file(name, folders[0], 1)[:-4]
    assert train.fingerprint != test.fingerprint
    with pytest.raises(DataError, match=r"no split 'val' .*; splits: all, test, train$"):
        open_scene_classes(name, tmp_path, "val")
    (tmp_path / name / stem.format("val")).write_text("volcano_001.jpg\n")
    with pytest.raises(DataError, match=r"'volcano_001\.jpg' is no image below"):
        open_scene_classes(name, tmp_path, "val")
    # The archive's own folder may lie in the data root itself, lists beside it.
    beside = open_scene_classes(name, tmp_path / name, "train", size=8)
    assert beside.keys == train.keys


def test_uc_merced_images_of_odd_sizes_become_one_size(tmp_path: Path) -> None:
    write(tmp_path, "ucmerced", side=256)
    images = tmp_path / SCENES["ucmerced"][0]
    gradient = np.zeros((247, 256, 3), np.uint8)
    gradient[..., 0] = np.arange(256)
    Image.fromarray(gradient).save(images / "agricultural" / "agricultural01.tif")
    samples = open_dataset("ucmerced", data_root=tmp_path, split="all")
    pixels = samples.read(np.array([0, 1]))["rgb"]
    assert pixels.shape == (2, 3, 256, 256)
    # 256x247 is enlarged by 256 / 247, then loses some 4.6 columns on either side.
    assert pixels[0, 0, 128, 0] == pytest.approx(4.6, abs=1.5)
    assert pixels[0, 0, 128, 255] == pytest.approx(255 - 4.6, abs=1.5)


def test_sets_without_splits_are_whole_under_every_split_name(tmp_path: Path) -> None:
    for name in ("aid", "patternnet"):
        write(tmp_path, name)
        sets = [open_scene_classes(name, tmp_path, one) for one in ("all", "train", "val", "test")]
        assert {one.keys for one in sets} == {sets[0].keys}
        with pytest.raises(DataError, match="has no splits"):
            open_scene_classes(name, tmp_path, "validation")
    (tmp_path / "aid" / "AID").rename(tmp_path / "there")
    (tmp_path / "aid").rmdir()
    (tmp_path / "there").rename(tmp_path / "aid")
    assert open_scene_classes("aid", tmp_path, "all").keys == open_scene_classes(
        "aid", tmp_path, "train"
    ).keys  # fmt: skip


def test_what_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"'resisc45' not found: .*resisc45/NWPU-RESISC45"):
        open_scene_classes("resisc45", tmp_path, "train")


@pytest.mark.parametrize("name", [*SCENES, "eurosat", "cifar10", "cifar100"])
def test_class_names_read_as_english(name: str) -> None:
    """No folder spelling is left in a prompt, and no two classes share one."""
    names = list(load_class_list(name).values())
    assert len(set(names)) == len(names)
    for one in names:
        assert one == one.strip()
        assert "_" not in one
        assert one[1:] == one[1:].lower()
    kind = read_facts(name if name in DATASETS else "eurosat-rgb").prompts
    assert load_prompts(kind).templates[0].replace("{}", names[0]).endswith(f"{names[0]}.")


@pytest.mark.parametrize(
    ("name", "number"), [("aid", 30), ("resisc45", 45), ("ucmerced", 21), ("patternnet", 38)]
)
def test_class_lists_are_as_long_as_published(name: str, number: int) -> None:
    assert len(load_class_list(name)) == number


@pytest.mark.realdata
def test_real_aid_has_its_counts_and_pixels(real_data: Path) -> None:
    aid = open_scene_classes("aid", real_data, "test")
    assert aid.labels is not None
    assert np.bincount(aid.labels.values).tolist() == [20] * 30
    assert aid.read(np.array([0, 599]))["rgb"].shape == (2, 3, 150, 150)
