"""CIFAR-10 and CIFAR-100: published pickles alone are unpickled, every tenth image validates."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
from torchvision.datasets import CIFAR10, CIFAR100

from fake_world.pictures import write_cifar
from terralign.datasets.catalog import open_dataset
from terralign.datasets.published.photos import open_cifar
from terralign.errors import DataError


@pytest.fixture(autouse=True)
def published_md5s(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the published archives are stays as it was after each test."""
    for source in (CIFAR10, CIFAR100):
        for name in ("train_list", "test_list", "meta"):
            monkeypatch.setattr(source, name, getattr(source, name))


def records(labels: list[int]) -> tuple[np.ndarray, list[int]]:
    """Pictures whose red plane counts from 0 and whose green one is their label."""
    pixels = np.zeros((len(labels), 3, 32, 32), np.uint8)
    pixels[:, 0] = np.arange(1024).reshape(32, 32) % 256
    pixels[:, 1] = np.array(labels)[:, None, None]
    return pixels, labels


@pytest.fixture
def root(tmp_path: Path) -> Path:
    batches = {f"data_batch_{number}": records([number] * 9 + [9]) for number in range(1, 6)}
    write_cifar(tmp_path / "cifar10", CIFAR10, {**batches, "test_batch": records([3, 8])})
    write_cifar(tmp_path, CIFAR100, {"train": records([99, 4]), "test": records([50])})
    return tmp_path


def test_pictures_and_classes_are_those_of_the_archive(root: Path) -> None:
    test = open_dataset("cifar10", data_root=root, split="test")
    assert test.labels is not None
    assert test.labels.values.tolist() == [3, 8]
    assert test.labels.class_names[8] == "ship"
    pixels = test.read(np.array([1]))["rgb"]
    assert (pixels.shape, pixels.dtype) == ((1, 3, 32, 32), np.uint8)
    np.testing.assert_array_equal(pixels[0], records([8])[0][0])


def test_every_tenth_training_image_is_validation(root: Path) -> None:
    train, val = open_cifar("cifar10", root, "train"), open_cifar("cifar10", root, "val")
    assert (len(train), len(val)) == (45, 5)
    assert not set(train.keys) & set(val.keys)
    assert train.labels is not None
    assert val.labels is not None
    assert train.labels.values[[8, 17, 26, 35, 44]].tolist() == [1, 2, 3, 4, 5]
    assert val.labels.values.tolist() == [9] * 5
    assert val.keys[1] == "train-00019"
    assert (val.read(np.array([1]))["rgb"][0, 1] == 9).all()


def test_cifar_100_takes_the_fine_class(root: Path) -> None:
    test, train = open_cifar("cifar100", root, "test"), open_cifar("cifar100", root, "train")
    assert test.labels is not None
    assert train.labels is not None
    assert test.labels.class_names[int(test.labels.values[0])] == "mouse"
    assert train.labels.class_names[int(train.labels.values[0])] == "worm"


class Bomb:
    def __reduce__(self) -> tuple[object, tuple[str, str]]:
        return (open, ("bomb-went-off", "w"))  # type: ignore[return-value]


def test_a_pickle_of_anyone_else_is_not_read(
    root: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    (root / "cifar10" / "cifar-10-batches-py" / "test_batch").write_bytes(pickle.dumps(Bomb()))
    for split in ("train", "test"):
        with pytest.raises(DataError, match=r"is not the published .*unpack cifar-10-python.tar"):
            open_cifar("cifar10", root, split)
    assert not (tmp_path / "bomb-went-off").exists()
    (root / "cifar-100-python" / "train").unlink()
    with pytest.raises(DataError, match="is not the published archive of 'cifar100'"):
        open_cifar("cifar100", root, "test")


def test_a_missing_archive_and_split_are_named(root: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"'cifar10' not found: .*cifar-10-batches-py"):
        open_cifar("cifar10", tmp_path / "elsewhere", "test")
    with pytest.raises(DataError, match="no split 'all'; splits: train, val, test"):
        open_cifar("cifar10", root, "all")
