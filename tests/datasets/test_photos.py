"""AID, Tiny-ImageNet and ImageNet in their folders."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from terralign.datasets.class_lists import load_class_list
from terralign.datasets.photos import open_aid, open_imagenet, open_tiny_imagenet
from terralign.errors import DataError


def picture(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (10, 8), (200, 0, 0)).save(path, format="JPEG")


def test_tiny_imagenet_takes_its_names_from_the_json(tmp_path: Path) -> None:
    root = tmp_path / "tiny_imagenet_val"
    picture(root / "n02" / "val_1.JPEG")
    picture(root / "n01" / "val_2.JPEG")
    (root / "classnames.json").write_text(json.dumps({"n02": "bullfrog", "n01": "goldfish"}))
    samples = open_tiny_imagenet(tmp_path, "val", size=8)
    assert samples.labels is not None
    assert samples.labels.class_names == ("goldfish", "bullfrog")
    assert samples.keys == ("n01/val_2", "n02/val_1")
    assert samples.read(np.arange(2))["rgb"].shape == (2, 3, 8, 8)
    with pytest.raises(DataError, match=r"no split 'test'.*there: val"):
        open_tiny_imagenet(tmp_path, "test")
    picture(root / "n03" / "val_3.JPEG")
    with pytest.raises(DataError, match="folders without a class: n03"):
        open_tiny_imagenet(tmp_path, "val")


@pytest.mark.parametrize("text", ["[1]", '{"n01": 5}', "{", None])
def test_a_wrong_classnames_file_is_named(tmp_path: Path, text: str | None) -> None:
    picture(tmp_path / "tiny_imagenet_val" / "n01" / "a.JPEG")
    if text is not None:
        (tmp_path / "tiny_imagenet_val" / "classnames.json").write_text(text)
    with pytest.raises(DataError, match=r"classnames\.json"):
        open_tiny_imagenet(tmp_path, "val")


def test_aid_is_whole_under_every_split_name(tmp_path: Path) -> None:
    for folder in load_class_list("aid"):
        picture(tmp_path / "aid" / folder / "a_1.jpg")
    sets = [open_aid(tmp_path, split) for split in ("all", "train", "val", "test")]
    assert {one.keys for one in sets} == {sets[0].keys}
    assert len(sets[0]) == 30
    with pytest.raises(DataError, match="has no splits"):
        open_aid(tmp_path, "validation")


def test_imagenet_classes_are_wnids_unless_named(tmp_path: Path) -> None:
    picture(tmp_path / "imagenet" / "val" / "n02" / "a.JPEG")
    picture(tmp_path / "imagenet" / "val" / "n01" / "b.JPEG")
    plain = open_imagenet(tmp_path, "val", size=4)
    assert plain.labels is not None
    assert plain.labels.class_names == ("n01", "n02")
    named = open_imagenet(tmp_path, "val", size=4, class_names=["tench", "crane"])
    assert named.labels is not None
    assert named.labels.class_names == ("tench", "crane")
    with pytest.raises(DataError, match="2 class folders, 1 names"):
        open_imagenet(tmp_path, "val", class_names=["tench"])
    with pytest.raises(DataError, match=r"no split 'train'.*there: val"):
        open_imagenet(tmp_path, "train")


@pytest.mark.realdata
def test_real_sets_have_their_counts_and_pixels(real_data: Path) -> None:
    tiny, aid = open_tiny_imagenet(real_data, "val"), open_aid(real_data, "test")
    assert tiny.labels is not None
    assert aid.labels is not None
    assert np.bincount(tiny.labels.values).tolist() == [20] * 200
    assert np.bincount(aid.labels.values).tolist() == [20] * 30
    assert "goldfish" in tiny.labels.class_names
    assert aid.read(np.array([0, 599]))["rgb"].shape == (2, 3, 150, 150)
    assert tiny.read(np.arange(0, 4000, 40))["rgb"].shape == (100, 3, 64, 64)
