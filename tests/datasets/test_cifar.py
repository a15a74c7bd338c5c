"""CIFAR-10 and CIFAR-100 in files of their official lengths, mostly zeros."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from fake_world.pictures import write_cifar_records
from terralign.datasets.catalog import open_dataset
from terralign.datasets.published.cifar import open_cifar
from terralign.errors import DataError

RED = np.arange(1024, dtype=np.uint8)


def write(path: Path, num_records: int, label_bytes: int, records: dict[int, list[int]]) -> None:
    """A file of `num_records`; those given have these label bytes, and RED as their red plane."""
    pixels = RED.tobytes() + b"\x07" * 1024 + b"\x09" * 1024
    whole = {row: bytes(labels) + pixels for row, labels in records.items()}
    write_cifar_records(path, num_records, label_bytes, whole)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = tmp_path_factory.mktemp("cifar")
    for number in range(1, 6):
        path = base / f"cifar10/cifar-10-batches-bin/data_batch_{number}.bin"
        write(path, 10_000, 1, {8: [number], 9: [9]})
    write(base / "cifar10/cifar-10-batches-bin/test_batch.bin", 10_000, 1, {3: [8]})
    folder = base / "cifar100/cifar-100-binary"
    write(folder / "train.bin", 50_000, 2, {0: [19, 99]})
    write(folder / "test.bin", 10_000, 2, {1: [4, 50]})
    return base


def test_records_are_labels_and_planes(root: Path) -> None:
    test = open_dataset("cifar10", data_root=root, split="test")
    assert len(test) == 10_000
    assert test.labels is not None
    assert test.labels.values[2:5].tolist() == [0, 8, 0]
    assert test.labels.class_names[8] == "ship"
    pixels = test.read(np.array([3, 0]))["rgb"]
    assert pixels.shape == (2, 3, 32, 32)
    assert pixels.dtype == np.uint8
    np.testing.assert_array_equal(pixels[0, 0], RED.reshape(32, 32))
    assert (pixels[0, 1] == 7).all()
    assert (pixels[0, 2] == 9).all()
    assert not pixels[1].any()


def test_every_tenth_training_image_is_validation(root: Path) -> None:
    train, val = open_cifar("cifar10", root, "train"), open_cifar("cifar10", root, "val")
    assert (len(train), len(val)) == (45_000, 5_000)
    assert not set(train.keys) & set(val.keys)
    assert train.labels is not None
    assert val.labels is not None
    # Row 8 of each batch trains, with the batch's own label; row 9 validates.
    assert train.labels.values[[8, 9008, 18008, 27008, 36008]].tolist() == [1, 2, 3, 4, 5]
    assert val.labels.values[[0, 1000, 4000]].tolist() == [9, 9, 9]
    assert val.keys[1] == "train-00019"
    np.testing.assert_array_equal(
        train.read(np.array([36008]))["rgb"][0, 0], RED.reshape(32, 32)
    )  # fmt: skip


def test_cifar_100_takes_the_fine_class(root: Path) -> None:
    test, train = open_cifar("cifar100", root, "test"), open_cifar("cifar100", root, "train")
    assert test.labels is not None
    assert train.labels is not None
    assert test.labels.class_names[int(test.labels.values[1])] == "mouse"
    assert train.labels.class_names[int(train.labels.values[0])] == "worm"
    np.testing.assert_array_equal(test.read(np.array([1]))["rgb"][0, 0], RED.reshape(32, 32))


def test_a_truncated_or_missing_file_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "cifar100/cifar-100-binary"
    write(folder / "test.bin", 10_000, 2, {})
    with pytest.raises(DataError, match=r"cannot read .*train.bin: No such file"):
        open_cifar("cifar100", tmp_path, "train")
    os.truncate(folder / "test.bin", 3074 * 9_999)
    with pytest.raises(
        DataError, match=r"test.bin has 30,736,926 bytes, its official length is 30,740,000"
    ):
        open_cifar("cifar100", tmp_path, "test")
    write(folder / "test.bin", 10_000, 2, {7: [0, 100]})
    with pytest.raises(DataError, match="image 7 has label 100, there are 100 classes"):
        open_cifar("cifar100", tmp_path, "test")


def test_the_pickled_version_is_not_read(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"cifar-10-batches-bin is not there; unpack cifar-10-bin"):
        open_cifar("cifar10", tmp_path, "test")
    for folder in (tmp_path / "cifar10", tmp_path):
        (folder / "cifar-10-batches-py").mkdir(parents=True)
        (folder / "cifar-10-batches-py" / "test_batch").write_bytes(b"cos\nsystem\n(S'true'\ntR.")
        with pytest.raises(DataError, match=r"is the pickled .* fetch cifar-10-binary.tar.gz"):
            open_cifar("cifar10", tmp_path, "test")
        (folder / "cifar-10-batches-py" / "test_batch").unlink()
        (folder / "cifar-10-batches-py").rmdir()


def test_a_split_that_is_not_there(root: Path) -> None:
    with pytest.raises(DataError, match="no split 'all'; there: train, val, test"):
        open_cifar("cifar10", root, "all")
