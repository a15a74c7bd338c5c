"""Tiny-ImageNet and ImageNet in their folders."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from terralign.datasets.published.photos import open_imagenet, open_tiny_imagenet
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
    with pytest.raises(DataError, match=r"no split 'test'.*splits: val"):
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


def write_official(root: Path) -> Path:
    """The published archive, with two classes."""
    base = root / "tiny-imagenet-200"
    for wnid in ("n02", "n01"):
        for number in (0, 1):
            picture(base / "train" / wnid / "images" / f"{wnid}_{number}.JPEG")
        (base / "train" / wnid / f"{wnid}_boxes.txt").write_text(f"{wnid}_0.JPEG\t0\t0\t9\t7\n")
    for number in range(3):
        picture(base / "val" / "images" / f"val_{number}.JPEG")
    lines = [
        "val_0.JPEG\tn02\t0\t0\t9\t7",
        "val_1.JPEG\tn01\t0\t0\t9\t7",
        "val_2.JPEG\tn02\t1\t1\t2\t2",
    ]
    (base / "val" / "val_annotations.txt").write_text("\n".join(lines) + "\n")
    (base / "wnids.txt").write_text("n02\nn01\n")
    words = ["n00\tentity", "n01\tgoldfish, Carassius auratus", "n02\tbullfrog, Rana catesbeiana"]
    (base / "words.txt").write_text("\n".join(words) + "\n")
    (base / "test" / "images").mkdir(parents=True)
    return base


def test_tiny_imagenet_as_published(tmp_path: Path) -> None:
    base = write_official(tmp_path)
    train, val = (open_tiny_imagenet(tmp_path, split) for split in ("train", "val"))
    assert train.labels is not None
    assert val.labels is not None
    assert train.labels.class_names == val.labels.class_names == ("goldfish", "bullfrog")
    assert train.labels.values.tolist() == [0, 0, 1, 1]
    assert [file.name for file in val.files] == ["val_1.JPEG", "val_0.JPEG", "val_2.JPEG"]
    assert val.labels.values.tolist() == [0, 1, 1]
    assert val.read(np.arange(3))["rgb"].shape == (3, 3, 8, 10)
    with pytest.raises(DataError, match=r"no split 'test'.*splits: train, val"):
        open_tiny_imagenet(tmp_path, "test")
    (base / "words.txt").write_text("n01\tcrane, bird\nn02\tcrane, machine\n")
    labels = open_tiny_imagenet(tmp_path, "val").labels
    assert labels is not None
    assert labels.class_names == ("crane, bird", "crane, machine")


def test_faults_of_the_published_archive_are_named(tmp_path: Path) -> None:
    base = write_official(tmp_path)
    (base / "val" / "images" / "val_1.JPEG").unlink()
    with pytest.raises(DataError, match=r"val_1.JPEG not found"):
        open_tiny_imagenet(tmp_path, "val")
    (base / "val" / "val_annotations.txt").write_text("val_0.JPEG\tn09\t0\t0\t9\t7\n")
    with pytest.raises(DataError, match=r"val_annotations.txt: 'val_0.JPEG.*wnid of wnids.txt"):
        open_tiny_imagenet(tmp_path, "val")
    (base / "wnids.txt").write_text("n01\nn02\nn03\n")
    with pytest.raises(DataError, match=r"cannot list .*train/n03/images"):
        open_tiny_imagenet(tmp_path, "train")
    (base / "train" / "n03" / "images").mkdir(parents=True)
    with pytest.raises(DataError, match=r"words.txt has no name for n03"):
        open_tiny_imagenet(tmp_path, "train")
    (base / "wnids.txt").unlink()
    with pytest.raises(DataError, match=r"cannot read .*wnids.txt"):
        open_tiny_imagenet(tmp_path, "train")


def test_imagenet_classes_are_wnids(tmp_path: Path) -> None:
    picture(tmp_path / "imagenet" / "val" / "n02" / "a.JPEG")
    picture(tmp_path / "imagenet" / "val" / "n01" / "b.JPEG")
    plain = open_imagenet(tmp_path, "val", size=4)
    assert plain.labels is not None
    assert plain.labels.class_names == ("n01", "n02")
    with pytest.raises(DataError, match=r"no split 'train'.*splits: val"):
        open_imagenet(tmp_path, "train")
    picture(tmp_path / "imagenet" / "flat" / "ILSVRC2012_val_00000001.JPEG")
    with pytest.raises(DataError, match="holds no class folders"):
        open_imagenet(tmp_path, "flat")


def test_imagenets_validation_images_have_two_halves(tmp_path: Path) -> None:
    """Alternate images of each class in the order of their names, whatever order they came in."""
    for wnid, numbers in (("n01", (5, 3, 1, 4, 2)), ("n02", (7, 6))):
        for number in numbers:
            picture(tmp_path / "imagenet" / "val" / wnid / f"ILSVRC2012_val_0000000{number}.JPEG")
    whole, select, report = (
        open_imagenet(tmp_path, split, size=4) for split in ("val", "val-select", "val-report")
    )
    numbers = [[key[:3] + key[-1] for key in half.keys] for half in (select, report)]
    assert numbers == [["n011", "n013", "n015", "n026"], ["n012", "n014", "n027"]]
    assert set(select.keys) | set(report.keys) == set(whole.keys)
    assert not set(select.files) & set(report.files)
    assert select.labels is not None
    assert whole.labels is not None
    assert select.labels.class_names == whole.labels.class_names
    assert select.labels.values.tolist() == [0, 0, 0, 1]
    assert (select.split, report.split) == ("val-select", "val-report")
    assert len({one.fingerprint for one in (whole, select, report)}) == 3


def test_halves_of_images_that_are_not_there_are_told(tmp_path: Path) -> None:
    picture(tmp_path / "imagenet" / "train" / "n01" / "a.JPEG")
    with pytest.raises(DataError, match=r"no split 'val' in .*imagenet; splits: train"):
        open_imagenet(tmp_path, "val-report")
    picture(tmp_path / "imagenet" / "val" / "n01" / "a.JPEG")
    picture(tmp_path / "imagenet" / "val-select" / "n01" / "b.JPEG")
    with pytest.raises(DataError, match=r"val-select is a folder, .* rename the folder"):
        open_imagenet(tmp_path, "val-select")


@pytest.mark.realdata
def test_real_photos_have_their_counts_and_pixels(real_data: Path) -> None:
    tiny = open_tiny_imagenet(real_data, "val")
    assert tiny.labels is not None
    assert np.bincount(tiny.labels.values).tolist() == [20] * 200
    assert "goldfish" in tiny.labels.class_names
    assert tiny.read(np.arange(0, 4000, 40))["rgb"].shape == (100, 3, 64, 64)


@pytest.mark.realdata
def test_real_photos_in_the_published_layout_are_the_same(real_data: Path, tmp_path: Path) -> None:
    """The class folders, laid out anew as the archive: same pixels, labels and names."""
    plain = open_tiny_imagenet(real_data, "val")
    assert plain.labels is not None
    base = tmp_path / "tiny-imagenet-200"
    (base / "val" / "images").mkdir(parents=True)
    for file in plain.files:
        (base / "val" / "images" / f"{file.parent.name}_{file.name}").symlink_to(file)
    names = json.loads((real_data / "tiny_imagenet_val" / "classnames.json").read_text())
    lines = [
        f"{file.parent.name}_{file.name}\t{file.parent.name}\t0\t0\t9\t9" for file in plain.files
    ]
    (base / "val" / "val_annotations.txt").write_text("\n".join(reversed(lines)))
    (base / "wnids.txt").write_text("\n".join(reversed(names)))
    (base / "words.txt").write_text("".join(f"{one}\t{names[one]}, x\n" for one in names))
    published = open_tiny_imagenet(tmp_path, "val")
    assert published.labels is not None
    assert published.labels.class_names == plain.labels.class_names
    np.testing.assert_array_equal(published.labels.values, plain.labels.values)
    some = np.arange(0, 4000, 333)
    np.testing.assert_array_equal(published.read(some)["rgb"], plain.read(some)["rgb"])
