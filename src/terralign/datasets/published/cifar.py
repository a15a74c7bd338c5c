"""CIFAR-10 and CIFAR-100 (Krizhevsky 2009): photos of 32x32 in their official binary files.

A record is one label byte (CIFAR-100: the coarse class, then the fine one, which is used) and 3,072
bytes of pixels: red, green, blue, each row by row. The pickled Python version of the same data is
never read: a pickle can run code.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from terralign.chips import make_layout
from terralign.datasets.array_set import ArraySet
from terralign.datasets.class_lists import load_class_list
from terralign.datasets.published.arrays import choose_rows
from terralign.datasets.sample import Labels
from terralign.errors import DataError, SplitError
from terralign.files import hash_file
from terralign.scenes.pictures import Size, describe_size
from terralign.sensors import SENSORS

PIXEL_BYTES = 3 * 32 * 32

PERIOD = 10
SPLITS: dict[str, tuple[int, ...]] = {"train": tuple(range(9)), "val": (9,)}
"""Of the published training images every tenth is validation; none was published for that."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CifarArchive:
    """One of the two.

    `folders`: where its files may lie below the data root. `label_bytes`: label bytes of a record,
    the last of them used. `records`: records of every training and of the test file. `pickled`:
    the folder of the version that is not read. `download`: what to fetch.
    """

    folders: tuple[str, ...]
    train_files: tuple[str, ...]
    test_file: str
    label_bytes: int
    records: tuple[int, int]
    pickled: str
    download: str


ARCHIVES: dict[str, CifarArchive] = {
    "cifar10": CifarArchive(
        folders=("cifar10/cifar-10-batches-bin", "cifar-10-batches-bin"),
        train_files=tuple(f"data_batch_{number}.bin" for number in range(1, 6)),
        test_file="test_batch.bin",
        label_bytes=1,
        records=(10_000, 10_000),
        pickled="cifar-10-batches-py",
        download="cifar-10-binary.tar.gz",
    ),
    "cifar100": CifarArchive(
        folders=("cifar100/cifar-100-binary", "cifar-100-binary"),
        train_files=("train.bin",),
        test_file="test.bin",
        label_bytes=2,
        records=(50_000, 10_000),
        pickled="cifar-100-python",
        download="cifar-100-binary.tar.gz",
    ),
}


def open_cifar(name: str, data_root: Path, split: str, *, size: Size | None = None) -> ArraySet:
    """`cifar10` or `cifar100`, of 32x32 or resized to `size`.

    Splits: `train` (45,000), `val` (5,000) or `test` (10,000).

    Raises `DataError`: a file that is missing or not of its official length, the pickled version,
    a label outside the classes.
    """
    archive = ARCHIVES[name]
    if split not in (*SPLITS, "test"):
        known = ", ".join((*SPLITS, "test"))
        raise SplitError(f"data set {name!r} has no split {split!r}; there: {known}")
    folder = _find_folder(name, archive, data_root)
    is_test = split == "test"
    files = [folder / one for one in ([archive.test_file] if is_test else archive.train_files)]
    parts = [_read_records(file, archive, archive.records[is_test]) for file in files]
    records = parts[0] if len(parts) == 1 else np.concatenate(parts)
    rows = np.arange(len(records), dtype=np.int64)
    if not is_test:
        rows = choose_rows(name, split, len(records), SPLITS, PERIOD)
    pixels = records[:, archive.label_bytes :].reshape(len(records), 3, 32, 32)
    classes = load_class_list(name)
    sensor = SENSORS["rgb"]
    layouts = {sensor.name: make_layout(sensor, sensor.band_names, units="dn")}
    keys = tuple(f"{'test' if is_test else 'train'}-{row:05d}" for row in rows)
    return ArraySet(
        name=name,
        split=split,
        layouts=layouts,
        keys=keys,
        arrays={sensor.name: pixels},
        rows=rows,
        content=[describe_size(size), *(hash_file(file) for file in files)],
        labels=Labels(
            values=_labels(records, archive, len(classes), folder)[rows],
            class_names=tuple(classes.values()),
            class_list=name,
        ),
        size=size,
    )


def _find_folder(name: str, archive: CifarArchive, data_root: Path) -> Path:
    for place in archive.folders:
        folder = data_root / place
        if folder.is_dir():
            return folder
        if (folder.parent / archive.pickled).is_dir():
            raise DataError(
                f"{folder.parent / archive.pickled} is the pickled version of {name!r}, which is "
                f"not read because a pickle can run code; fetch {archive.download} in its place"
            )
    raise DataError(
        f"data set {name!r}: {data_root / archive.folders[0]} is not there; unpack "
        f"{archive.download} there"
    )


def _read_records(file: Path, archive: CifarArchive, num_records: int) -> NDArray[np.uint8]:
    """(N, label bytes + 3072) uint8, memory-mapped."""
    shape = (num_records, archive.label_bytes + PIXEL_BYTES)
    try:
        found, wanted = file.stat().st_size, shape[0] * shape[1]
        if found != wanted:
            raise DataError(
                f"{file} has {found:,} bytes, its official length is {wanted:,}; unpack "
                f"{archive.download} again"
            )
        return np.memmap(file, dtype=np.uint8, mode="r", shape=shape)
    except OSError as error:
        raise DataError(
            f"cannot read {file}: {error.strerror}; unpack {archive.download} again"
        ) from error


def _labels(
    records: NDArray[Any], archive: CifarArchive, num_classes: int, folder: Path
) -> NDArray[np.int64]:
    labels = records[:, archive.label_bytes - 1].astype(np.int64)
    if labels.max() >= num_classes:
        row = int(labels.argmax())
        raise DataError(
            f"{folder}: image {row} has label {labels[row]}, there are {num_classes} classes; "
            f"unpack {archive.download} again"
        )
    return labels
