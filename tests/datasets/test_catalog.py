"""The catalog: what it says of a data set is what opening it gives."""

from __future__ import annotations

import tomllib
from importlib import resources
from pathlib import Path

import numpy as np
import pytest

from terralign.datasets.catalog import DATASETS, find_dataset, open_dataset
from terralign.datasets.facts import read_facts
from terralign.errors import DataError
from terralign.sensors import SENSORS

REAL = {
    "eurosat-rgb": "val",
    "eurosat-ms": "val",
    "aid": "test",
    "tiny-imagenet": "val",
    "s2-l2a": "val",
    "bigearthnet-mini": "val",
    "bigearthnet-mini-43": "val",
    "bigearthnet-mini-5": "val",
}


def check(name: str, data_root: Path | None, split: str) -> None:
    facts = read_facts(name)
    samples = open_dataset(name, data_root=data_root, split=split)
    again = open_dataset(name, data_root=data_root, split=split)
    assert tuple(samples.layouts) == facts.sensors
    assert split in facts.splits
    assert samples.fingerprint == again.fingerprint
    assert len(samples) == len(samples.keys) == len(set(samples.keys))
    assert (samples.labels and samples.labels.class_list) == facts.class_list
    if samples.labels is not None:
        assert len(samples.labels.values) == len(samples)
    indices = np.array([len(samples) - 1, 0])
    pixels = samples.read(indices)
    for sensor, layout in samples.layouts.items():
        assert layout.sensor.name == sensor
        assert pixels[sensor].ndim == 4
        assert pixels[sensor].shape[:2] == (2, len(layout.bands))
        np.testing.assert_array_equal(samples.read(indices[::-1])[sensor], pixels[sensor][::-1])


@pytest.mark.parametrize(
    "name", ["synthetic-photos", "synthetic-scenes", "synthetic-scenes-multilabel"]
)
def test_synthetic_entries_need_no_data_root(name: str) -> None:
    check(name, None, "val")


def test_multilabel_scenes_are_multilabel() -> None:
    many = open_dataset("synthetic-scenes-multilabel", data_root=None, split="val").labels
    one = open_dataset("synthetic-scenes", data_root=None, split="val").labels
    assert many is not None
    assert one is not None
    assert (many.multi_label, one.multi_label) == (True, False)


@pytest.mark.realdata
@pytest.mark.parametrize(("name", "split"), REAL.items())
def test_real_entries_are_as_the_catalog_says(real_data: Path, name: str, split: str) -> None:
    check(name, real_data, split)


@pytest.mark.realdata
@pytest.mark.parametrize("num_classes", [19, 43, 5])
def test_real_bigearthnet_entries(real_data: Path, num_classes: int) -> None:
    root = real_data / "formats" / "bigearthnet_v1"
    samples = open_dataset(f"bigearthnet-{num_classes}", data_root=root, split="all")
    assert samples.labels is not None
    assert samples.labels.values.shape == (6, num_classes)
    assert samples.labels.class_list == read_facts(f"bigearthnet-{num_classes}").class_list


def test_sets_without_splits_say_so() -> None:
    assert not read_facts("aid").has_splits
    assert read_facts("eurosat-rgb").has_splits


def test_every_data_set_has_an_entry_and_every_entry_a_data_set() -> None:
    folder = resources.files("terralign.datasets") / "entries"
    entries = {
        name: values
        for file in folder.iterdir()
        for name, values in tomllib.loads(file.read_text(encoding="utf-8")).items()
    }
    assert set(entries) == set(DATASETS)
    for name in DATASETS:
        facts = read_facts(name)
        assert all(sensor in SENSORS for sensor in facts.sensors)
        assert (facts.labels in ("single", "multi")) == (facts.class_list is not None)


def test_an_unknown_name_names_the_nearest() -> None:
    with pytest.raises(DataError, match=r"unknown data set 'eurosat'; did you mean 'eurosat-"):
        find_dataset("eurosat")


def test_a_data_root_that_is_not_given_or_not_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="data_root="):
        open_dataset("aid", data_root=None, split="test")
    with pytest.raises(DataError, match=r"data root .*nowhere not found"):
        open_dataset("aid", data_root=tmp_path / "nowhere", split="test")
    with pytest.raises(DataError, match=r"nowhere.toml"):
        open_dataset(str(tmp_path / "nowhere.toml"), data_root=tmp_path, split="test")


def test_a_size_below_one_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="size is 0"):
        open_dataset("aid", data_root=tmp_path, split="test", size=0)
