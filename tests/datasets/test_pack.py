"""Packed stores: the same samples, whatever stopped the packing, and damage that is found."""

from __future__ import annotations

import datetime as dt
import json
import os
import pickle
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import shapely
from PIL import Image

from fakes import Counted
from terralign.datasets.catalog import find_dataset, open_dataset
from terralign.datasets.class_folders import open_folder, read_split_list
from terralign.datasets.class_lists import load_class_list
from terralign.datasets.declared.footprints import box_of
from terralign.datasets.file_set import FileSet
from terralign.datasets.packing import pack_dataset, pack_on_use
from terralign.datasets.pixels import Pixels
from terralign.datasets.sample import Place, SampleSet, Wrapped, only_sensors
from terralign.datasets.store import (
    PackSettings,
    StoreSet,
    pack,
    read_manifest,
    verify_store,
    writing,
)
from terralign.datasets.store.files import MappedTensor
from terralign.datasets.store.writing import footprint
from terralign.datasets.synthetic import open_synthetic_photos, open_synthetic_scenes
from terralign.errors import DataError, StorageError
from terralign.files import claimed, hash_json
from terralign.scenes.pictures import PictureSize, Size, describe_size
from terralign.scenes.places import wgs84_bounds
from terralign.sensors import SENSORS

SMALL = PackSettings(shard_bytes=150_000)


def scenes(split: str = "train", num_samples: int = 40, **options: Any) -> SampleSet:
    return open_synthetic_scenes(split, num_samples=num_samples, size=24, **options)


def assert_same(one: SampleSet, other: SampleSet) -> None:
    assert one.keys == other.keys
    assert one.layouts == other.layouts
    assert (one.name, one.split, one.captions) == (other.name, other.split, other.captions)
    assert (one.labels is None) == (other.labels is None)
    if one.labels is not None and other.labels is not None:
        np.testing.assert_array_equal(one.labels.values, other.labels.values)
        assert one.labels.class_names == other.labels.class_names
        assert one.labels.class_list == other.labels.class_list
    indices = np.random.default_rng(0).permutation(len(one)).astype(np.int64)
    mine, theirs = one.read(indices), other.read(indices)
    assert mine.keys() == theirs.keys()
    for sensor in mine:
        assert mine[sensor].dtype == theirs[sensor].dtype
        np.testing.assert_array_equal(mine[sensor], theirs[sensor])


def content(store: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(store)): path.read_bytes()
        for path in sorted(store.rglob("*"))
        if path.is_file() and path.name != ".lock"
    }


@pytest.mark.parametrize(
    "source",
    [
        scenes(),
        scenes(multi_label=True),
        open_synthetic_photos("val", num_samples=30, size=20),
    ],
    ids=["single-label, two sensors", "multi-label", "pictures with captions"],
)
def test_a_store_holds_the_samples_it_was_made_of(tmp_path: Path, source: SampleSet) -> None:
    pack({source.split: source}, tmp_path / "s", replace(SMALL, shard_bytes=30_000))
    stored = StoreSet(tmp_path / "s", source.split)
    assert len(list((tmp_path / "s" / "shards").iterdir())) > 1
    assert_same(stored, source)
    assert_same(pickle.loads(pickle.dumps(stored)), source)  # noqa: S301
    assert verify_store(tmp_path / "s") == []


def test_the_other_sensors_can_be_left_unread(tmp_path: Path) -> None:
    pack({"train": scenes()}, tmp_path / "s", SMALL)
    whole = StoreSet(tmp_path / "s", "train")
    chosen = whole[np.array([3, 1, 4, 7])]
    sensor = "sentinel1-grd"
    indices = np.array([2, 0, 2])
    expected = chosen.read(indices)
    for found in (
        only_sensors(chosen, [sensor]),
        pickle.loads(pickle.dumps(only_sensors(chosen, [sensor]))),  # noqa: S301
    ):
        pixels = found.read(indices)
        assert list(found.layouts) == list(pixels) == [sensor]
        np.testing.assert_array_equal(pixels[sensor], expected[sensor])
    assert list(chosen.layouts) == list(expected) == list(whole.layouts)


def test_rows_are_asked_for_ahead_while_batches_wait_for_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pack({"train": scenes()}, tmp_path / "s")
    asked: list[int] = []
    waits = iter([0, 0, 0, 1, 1, 1, 1, 1, 1, 2, 2, 2])  # the second batch waits, and the fifth
    monkeypatch.setattr("terralign.datasets.store.files.BATCHES_AHEAD", 2)
    monkeypatch.setattr("terralign.datasets.store.files.num_waits", lambda: next(waits))
    monkeypatch.setattr(MappedTensor, "advise", lambda self, rows: asked.append(len(rows)))
    stored = only_sensors(StoreSet(tmp_path / "s", "train"), ["sentinel1-grd"])
    numbers = []
    for _ in range(6):
        stored.read(np.arange(4))
        numbers.append(len(asked))
    assert numbers == [0, 0, 1, 2, 2, 3]


def test_splits_stay_apart(tmp_path: Path) -> None:
    both = {"train": scenes("train", 17), "val": scenes("val", 9)}
    pack(both, tmp_path / "s", SMALL)
    for split, source in both.items():
        assert_same(open_dataset(str(tmp_path / "s"), data_root=None, split=split), source)
    facts = find_dataset(str(tmp_path / "s")).facts
    assert facts.splits == {"train": 17, "val": 9}
    assert facts.labels == "single"
    with pytest.raises(DataError, match=r"has no split 'test' in .*; splits: train, val"):
        StoreSet(tmp_path / "s", "test")


def test_the_number_of_workers_changes_no_byte(tmp_path: Path) -> None:
    for workers in (1, 4):
        pack({"train": scenes()}, tmp_path / str(workers), SMALL, num_workers=workers)
    assert content(tmp_path / "1") == content(tmp_path / "4")


@pytest.mark.parametrize("stop", [0, 13, 39])
def test_what_stopped_the_packing_leaves_no_trace(tmp_path: Path, stop: int) -> None:
    source = scenes()
    pack({"train": source}, tmp_path / "whole", SMALL)
    stopping = Counted(source, stop_at=stop)
    with pytest.raises(KeyboardInterrupt):
        pack({"train": stopping}, tmp_path / "s", SMALL, num_workers=1)
    with pytest.raises(DataError, match="not a packed store"):
        StoreSet(tmp_path / "s", "train")
    kept = len(list((tmp_path / "s").glob("shards/*")))
    counted = Counted(source)
    pack({"train": counted}, tmp_path / "s", SMALL, num_workers=1)
    assert content(tmp_path / "s") == content(tmp_path / "whole")
    if stop == 39:
        assert kept > 0
        assert counted.reads.sum() < len(source), "what was finished is not read again"
    again = pack({"train": source}, tmp_path / "s", SMALL)
    assert again.complete_before


@pytest.mark.slow
def test_kill_9_at_any_moment(tmp_path: Path) -> None:
    script = (
        "import sys; from pathlib import Path\n"
        "from terralign.datasets.store import pack, PackSettings\n"
        "from terralign.datasets.synthetic import open_synthetic_scenes\n"
        "pack({'train': open_synthetic_scenes('train', num_samples=6000)}, Path(sys.argv[1]),"
        " PackSettings(shard_bytes=3_000_000))\n"
    )

    def command(name: str) -> list[str]:
        return [sys.executable, "-c", script, str(tmp_path / name)]

    subprocess.run(command("whole"), check=True)
    for delay in (0.3, 0.7, 1.1, 1.6):
        process = subprocess.Popen(command("s"))
        deadline = time.monotonic() + 60
        while not (tmp_path / "s" / ".pack.json").is_file() and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(delay)
        process.send_signal(signal.SIGKILL)
        process.wait()
    subprocess.run(command("s"), check=True)
    assert content(tmp_path / "s") == content(tmp_path / "whole")


def test_other_data_or_settings_are_refused(tmp_path: Path) -> None:
    pack({"train": scenes()}, tmp_path / "s", SMALL)
    with pytest.raises(DataError, match=r"other data or settings \(shard_bytes: 150000, not 9000"):
        pack({"train": scenes()}, tmp_path / "s", replace(SMALL, shard_bytes=90_000))
    with pytest.raises(DataError, match="split 'train'"):
        pack({"train": scenes(num_samples=39)}, tmp_path / "s", SMALL)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("mine")
    with pytest.raises(DataError, match=r"holds other files \(thesis.txt\)"):
        pack({"train": scenes()}, tmp_path / "other", SMALL)
    with pytest.raises(DataError, match="nothing to pack"):
        pack({}, tmp_path / "none", SMALL)
    with pytest.raises(DataError, match="differ in their sensors or classes"):
        pack({"train": scenes(), "val": scenes("val", multi_label=True)}, tmp_path / "mixed", SMALL)


def test_a_small_disk_is_met_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []

    def too_small(folder: Path, num_bytes: int) -> None:
        asked.append(num_bytes)
        raise StorageError("too small")

    monkeypatch.setattr(writing, "check_free_space", too_small)
    with pytest.raises(StorageError, match="too small"):
        pack({"train": scenes()}, tmp_path / "s", SMALL)
    pixels = scenes().read(np.arange(40))
    assert asked == [sum(one.nbytes for one in pixels.values())]


@pytest.mark.parametrize("dtype", [np.uint64, np.longdouble])
def test_numbers_that_no_store_holds_are_refused(tmp_path: Path, dtype: Any) -> None:
    wide = _Cast(scenes(), dtype)
    with pytest.raises(DataError, match=f"are {np.dtype(dtype)} of shape .*convert the files"):
        pack({"train": wide}, tmp_path / "s", SMALL)


class _Cast(Wrapped):
    def __init__(self, samples: SampleSet, dtype: Any) -> None:
        super().__init__(samples)
        self.dtype = dtype

    def read(self, indices: Any) -> Any:
        return {name: one.astype(self.dtype) for name, one in super().read(indices).items()}


# Damage


@pytest.fixture
def store(tmp_path: Path) -> Path:
    pack({"train": scenes()}, tmp_path / "s", SMALL)
    return tmp_path / "s"


def test_a_flipped_bit_is_found_and_named(store: Path) -> None:
    path = sorted((store / "shards").iterdir())[1]
    damaged = bytearray(path.read_bytes())
    damaged[-100] ^= 1
    path.write_bytes(damaged)
    (fault,) = verify_store(store)
    assert fault.startswith("shards/00001.safetensors has changed")
    path.unlink()
    (fault,) = verify_store(store)
    assert fault == "shards/00001.safetensors is missing"


def test_packing_again_completes_a_store(store: Path) -> None:
    whole = content(store)
    first, second, *_ = sorted((store / "shards").iterdir())
    first.unlink()
    second.write_bytes(second.read_bytes()[:-10])
    counted = Counted(scenes())
    assert not pack({"train": counted}, store, SMALL, num_workers=1).complete_before
    assert counted.reads.sum() < len(counted), "shards that are whole are not made again"
    assert content(store) == whole
    assert pack({"train": scenes()}, store, SMALL).complete_before


def test_a_shard_of_a_changed_source_does_not_complete_a_store(store: Path) -> None:
    sorted((store / "shards").iterdir())[1].unlink()
    with pytest.raises(DataError, match=r"00001.safetensors was made again and differs"):
        pack({"train": _Brighter(scenes())}, store, SMALL)


class _Brighter(Wrapped):
    def read(self, indices: Any) -> Any:
        return {name: one + 1 for name, one in super().read(indices).items()}


def test_a_changed_manifest_is_found(store: Path) -> None:
    text = (store / "manifest.json").read_text()
    name = scenes().labels.class_names[0]  # type: ignore[union-attr]
    (store / "manifest.json").write_text(text.replace(f'"{name}"', '"another"', 1))
    assert StoreSet(store, "train").labels is not None
    assert verify_store(store)[0].startswith("manifest.json has changed")


def test_splits_that_share_samples_are_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pack({"train": scenes(num_samples=5), "val": scenes(num_samples=3)}, tmp_path / "s", SMALL)
    assert "share 3 keys" in caplog.text


def test_numbers_that_nothing_has_are_told_with_the_store(tmp_path: Path) -> None:
    class Wrong(Wrapped):
        def read(self, indices: Any) -> Any:
            pixels = super().read(indices)
            return {name: np.full_like(one, 60_000) for name, one in pixels.items()}

    pack({"train": Wrong(scenes())}, tmp_path / "s", SMALL)
    with pytest.raises(DataError, match=rf"{tmp_path / 's'}\), split .train., sentinel"):
        open_dataset(str(tmp_path / "s"), data_root=None, split="train")


def test_a_truncated_shard_is_named_when_it_is_read(store: Path) -> None:
    path = sorted((store / "shards").iterdir())[0]
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(DataError, match=r"00000.safetensors is damaged or missing"):
        StoreSet(store, "train").read(np.array([0]))
    assert "bytes" in verify_store(store)[0]


def test_a_shard_that_is_not_as_the_manifest_says(store: Path) -> None:
    manifest = json.loads((store / "manifest.json").read_text())
    manifest["sensors"]["sentinel1-grd"]["shape"] = [2, 24, 12]
    (store / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(DataError, match=r"sentinel1-grd is float32 of shape .*the manifest has"):
        StoreSet(store, "train").read(np.array([0]))


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"version": 2}, "of version 2, this program reads 1"),
        ({"format": "zip"}, "is damaged: format"),
        ({"shards": []}, "shards hold"),
        ({"surprise": 1}, "surprise"),
        ({"splits": {"train": 3}}, "shards hold"),
    ],
)
def test_a_wrong_manifest_is_one_line(store: Path, change: dict[str, Any], match: str) -> None:
    manifest = json.loads((store / "manifest.json").read_text())
    (store / "manifest.json").write_text(json.dumps(manifest | change))
    with pytest.raises(DataError, match=match) as caught:
        StoreSet(store, "train")
    assert "\n" not in str(caught.value)


def test_a_shard_outside_the_store_is_refused(store: Path) -> None:
    manifest = json.loads((store / "manifest.json").read_text())
    manifest["shards"][0]["file"] = "../elsewhere.safetensors"
    (store / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(DataError, match="leads outside the store"):
        StoreSet(store, "train")


def test_a_damaged_table_is_one_line(store: Path) -> None:
    (store / "samples.parquet").write_bytes(b"PAR1 no PAR1")
    with pytest.raises(DataError, match=r"samples.parquet is damaged"):
        StoreSet(store, "train")


@pytest.mark.parametrize(
    ("column", "values", "match"),
    [
        ("key", None, "key"),
        ("datetime", None, "datetime"),
        ("key", pa.array([None] * 40, pa.string()), "'key' has empty entries"),
        ("labels", pa.array([["a"]] * 40), "is damaged"),
        ("labels", pa.array([1] * 40), "is damaged"),
        ("labels", pa.array([[1.5]] * 40), "is damaged"),
        ("labels", pa.array([[1, 2], [], *[[1]] * 38]), "no label, or several"),
        ("labels", pa.array([[None], *[[1]] * 39], pa.list_(pa.int32())), "has empty entries"),
    ],
)
def test_a_table_of_other_columns_is_one_line(
    store: Path, column: str, values: Any, match: str
) -> None:
    table = pq.read_table(store / "samples.parquet")
    if values is None:
        table = table.drop_columns([column])
    else:
        table = table.set_column(table.column_names.index(column), column, values)
    pq.write_table(table, store / "samples.parquet")
    with pytest.raises(DataError, match=match) as caught:
        StoreSet(store, "train")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("column", "values", "match"),
    [
        ("datetime", pa.array([2**62] * 40, pa.timestamp("us", "UTC")), "times or bounds"),
        ("west", pa.array([float("nan")] * 40), "times or bounds"),
        (
            "key",
            pa.Array.from_buffers(
                pa.string(),
                40,
                [None, pa.py_buffer(np.arange(41, dtype=np.int32)), pa.py_buffer(b"\xff" * 40)],
            ),
            "UTF8",
        ),
    ],
)
def test_values_that_cannot_be_are_one_line(
    store: Path, column: str, values: pa.Array, match: str
) -> None:
    table = pq.read_table(store / "samples.parquet")
    table = table.set_column(table.column_names.index(column), column, values)
    pq.write_table(table, store / "samples.parquet")
    with pytest.raises(DataError, match=match):
        StoreSet(store, "train")


@pytest.mark.parametrize(
    ("limits", "refused"),
    [
        ("table_rows=39", r"samples.parquet has 40 rows, more than the limit"),
        ("table_values=79", r"samples.parquet has \d+ values, more than the limit"),
        ("table_bytes=1000", r"samples.parquet has .* KiB, more than the limit"),
        ("label_values=39", r"samples.parquet has \d+ values, more than the limit"),
    ],
)
def test_a_table_is_read_whose_samples_take_as_much_in_the_shards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limits: str, refused: str
) -> None:
    pack({"train": scenes(multi_label=True)}, tmp_path / "s", SMALL)
    monkeypatch.setenv("TERRALIGN_LIMITS", limits)
    assert len(StoreSet(tmp_path / "s", "train")) == 40
    for shard in (tmp_path / "s" / "shards").iterdir():
        size = shard.stat().st_size
        shard.write_bytes(b"")
        os.truncate(shard, size)  # as large as before, but a hole
    with pytest.raises(DataError, match=refused):
        StoreSet(tmp_path / "s", "train")


def test_a_shard_of_many_names_counts_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pack({"train": scenes()}, tmp_path / "s", replace(SMALL, shard_bytes=33_000))
    monkeypatch.setenv("TERRALIGN_LIMITS", "table_rows=39")
    first, *others = sorted((tmp_path / "s" / "shards").iterdir())
    first.write_bytes(bytes(1000))
    for other in others:
        other.unlink()
        other.hardlink_to(first)
    with pytest.raises(DataError, match="has 40 rows, more than the limit"):
        StoreSet(tmp_path / "s", "train")


def test_a_store_of_more_shards_than_could_be_opened_is_not_begun(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERRALIGN_LIMITS", "manifest_bytes=2000")
    with pytest.raises(DataError, match=r"would hold 40 shards, .*pack in larger shards"):
        pack({"train": scenes()}, tmp_path / "s", replace(SMALL, shard_bytes=33_000))
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize("name", ["../../x", "/tmp/x", "", ".", "a/b", "a\nb", "x" * 300])
def test_a_store_is_named_as_a_folder_may_be(store: Path, name: str) -> None:
    values = json.loads((store / "manifest.json").read_text())
    (store / "manifest.json").write_text(json.dumps({**values, "name": name}))
    with pytest.raises(DataError, match=r"manifest.json is damaged: name: String should"):
        StoreSet(store, "train")


def test_a_manifest_of_wrong_values_is_refused_at_the_first(
    store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = json.loads((store / "manifest.json").read_text())
    (store / "manifest.json").write_text(json.dumps({**values, "shards": [1] * 500_000}))
    with pytest.raises(DataError, match=r"manifest.json is damaged: shards.0"):
        read_manifest(store)
    monkeypatch.setenv("TERRALIGN_LIMITS", "manifest_bytes=1MiB")
    with pytest.raises(DataError, match=r"manifest.json has more than the limit of 1 MiB"):
        read_manifest(store)


def test_swapped_shards_are_found_when_they_are_read(store: Path) -> None:
    first, second = sorted((store / "shards").iterdir())[:2]
    content = first.read_bytes()
    first.write_bytes(second.read_bytes())
    second.write_bytes(content)
    with pytest.raises(DataError, match=r"00000.safetensors .*not the one that was packed here"):
        StoreSet(store, "train").read(np.arange(40))


def test_a_store_from_before_probes_is_read_and_verified(store: Path) -> None:
    values = json.loads((store / "manifest.json").read_text())
    for shard in values["shards"]:
        del shard["probe"]
    del values["checksum"]
    values["checksum"] = hash_json(values)
    (store / "manifest.json").write_text(json.dumps(values))
    assert verify_store(store) == []
    assert len(StoreSet(store, "train").read(np.arange(40))["sentinel2-l2a"]) == 40


def test_a_shard_whose_header_takes_memory_is_refused(
    store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERRALIGN_LIMITS", "safetensors_header_bytes=64")
    with pytest.raises(DataError, match=r"shard .*00000.safetensors has a header of \d+ bytes"):
        StoreSet(store, "train").read(np.arange(1))


def _open_files(folder: Path) -> list[Path]:
    """This process's open files below a folder; others may come and go meanwhile."""
    targets = (Path(os.path.realpath(one)) for one in Path("/proc/self/fd").iterdir())
    return [target for target in targets if target.is_relative_to(folder.resolve())]


def test_a_mapped_shard_keeps_no_file_open(store: Path) -> None:
    samples = StoreSet(store, "train")
    pixels = samples.read(np.arange(len(samples)))
    assert len(list((store / "shards").iterdir())) > 3
    assert _open_files(store) == []
    with open(store / "manifest.json") as file:
        assert _open_files(store) == [Path(file.name)]
    np.testing.assert_array_equal(
        pixels["sentinel2-l2a"], scenes().read(np.arange(40))["sentinel2-l2a"]
    )


# Pictures


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    root, rng = tmp_path / "pictures", np.random.default_rng(3)
    for number in range(12):
        folder = root / ("dock" if number % 2 else "yard")
        folder.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 256, (30 + number, 33, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.jpg", quality=90)
    return root


def opened(root: Path, size: Size | None) -> FileSet:
    return open_folder(
        root,
        name="pictures",
        split="all",
        classes={"dock": "a dock", "yard": "a yard"},
        class_list="pictures",
        pixels=Pixels(sensor=SENSORS["rgb"], size=size),
    )


def test_a_store_keeps_the_way_in_which_pictures_were_resized(
    tmp_path: Path, pictures: Path
) -> None:
    squash = PictureSize(16, "squash", "bilinear")
    settings = PackSettings(size=describe_size(squash))
    pack({"all": opened(pictures, squash)}, tmp_path / "s", settings)
    store = StoreSet(tmp_path / "s", "all", size=squash)
    assert_same(store, opened(pictures, squash))
    copied = pickle.loads(pickle.dumps(store))  # noqa: S301  (made on the line itself)
    assert_same(copied, opened(pictures, squash))
    assert store.is_mapped
    assert verify_store(tmp_path / "s") == []
    with pytest.raises(DataError, match=r"size 16-squash-bilinear, 16 is needed; .*--size 16"):
        StoreSet(tmp_path / "s", "all", size=16)
    with pytest.raises(DataError, match="other data or settings"):
        pack({"all": opened(pictures, 16)}, tmp_path / "s", PackSettings(size=16))
    pack({"all": opened(pictures, None)}, tmp_path / "encoded", PackSettings(images="encoded"))
    encoded = StoreSet(tmp_path / "encoded", "all", size=squash)
    assert_same(encoded, opened(pictures, squash))
    assert (
        len({encoded.fingerprint, StoreSet(tmp_path / "encoded", "all", size=16).fingerprint}) == 2
    )
    used = pack_on_use(opened(pictures, squash), tmp_path / "stores", size=squash)
    assert_same(used, opened(pictures, squash))


def test_pictures_decoded_or_as_bytes_are_the_same(tmp_path: Path, pictures: Path) -> None:
    source = opened(pictures, 16)
    pack({"all": source}, tmp_path / "pixels", PackSettings(size=16))
    assert_same(StoreSet(tmp_path / "pixels", "all"), source)
    settings = PackSettings(images="encoded", shard_bytes=2_000)
    pack({"all": opened(pictures, None)}, tmp_path / "encoded", settings)
    assert len(list((tmp_path / "encoded" / "shards").iterdir())) > 2
    for size in (16, 24):
        assert_same(StoreSet(tmp_path / "encoded", "all", size=size), opened(pictures, size))
    with pytest.raises(DataError, match=r"size="):
        StoreSet(tmp_path / "encoded", "all").read(np.arange(12))
    with pytest.raises(DataError, match="size has no effect"):
        pack({"all": source}, tmp_path / "both", PackSettings(images="encoded", size=16))
    with pytest.raises(DataError, match="holds pictures of size 16, 24 is needed"):
        StoreSet(tmp_path / "pixels", "all", size=24)
    with pytest.raises(DataError, match="give RGB images a size"):
        pack({"all": opened(pictures, None)}, tmp_path / "mixed", PackSettings())


def test_pictures_of_one_size_are_resized_as_their_files_are(tmp_path: Path) -> None:
    root = tmp_path / "pictures"
    for name, seed in (("dock", 0), ("yard", 1)):
        (root / name).mkdir(parents=True)
        pixels = np.random.default_rng(seed).integers(0, 256, (40, 40, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(root / name / "a.png")
    pack({"all": opened(root, None)}, tmp_path / "s")
    assert_same(StoreSet(tmp_path / "s", "all", size=16), opened(root, 16))


def test_damaged_samples_stop_the_packing_or_are_left_out_and_counted(
    tmp_path: Path, pictures: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (pictures / "dock" / "3.jpg").write_bytes(b"not a picture")
    source = opened(pictures, 16)
    with pytest.raises(DataError, match=r"3.jpg is not an image"):
        pack({"all": source}, tmp_path / "s", PackSettings(size=16))
    for settings in (
        PackSettings(size=16, skip_damaged=True),
        PackSettings(images="encoded", skip_damaged=True),
    ):
        images = settings.images
        packed = pack({"all": source}, tmp_path / images, settings)
        assert packed.manifest.num_skipped == 1
        stored = StoreSet(tmp_path / images, "all", size=16)
        assert set(source.keys) - set(stored.keys) == {"dock/3"}
        kept = np.array([index for index, key in enumerate(source.keys) if key != "dock/3"])
        np.testing.assert_array_equal(stored.read(np.arange(11))["rgb"], source.read(kept)["rgb"])
        assert stored.labels is not None
        assert source.labels is not None
        np.testing.assert_array_equal(stored.labels.values, source.labels.values[kept])
    assert "left out dock/3" in caplog.text


def test_renamed_classes_and_other_prompts_are_other_data(tmp_path: Path, pictures: Path) -> None:
    """The files, and with them the fingerprint, stay the same."""
    source = opened(pictures, 16)
    assert isinstance(source, FileSet)
    assert source.labels is not None
    swapped = replace(source.labels, class_names=source.labels.class_names[::-1])
    for other in (replace(source, labels=swapped), replace(source, prompts=("a map of {}.",))):
        pack({"all": source}, tmp_path / "s", PackSettings(size=16))
        with pytest.raises(DataError, match="other data or settings"):
            pack({"all": other}, tmp_path / "s", PackSettings(size=16))
        one, two = (pack_on_use(this, tmp_path / "stores", size=16) for this in (source, other))
        assert_same(one, source)
        assert_same(two, other)
        assert (one.prompts, two.prompts) == (source.prompts, other.prompts)


def test_what_a_killed_process_was_writing_goes(tmp_path: Path) -> None:
    pack({"train": scenes()}, tmp_path / "whole", SMALL)
    stopping = Counted(scenes(), stop_at=39)
    with pytest.raises(KeyboardInterrupt):
        pack({"train": stopping}, tmp_path / "s", SMALL, num_workers=1)
    for name in ("shards/.00002.safetensors.7.partial", ".parts/.2.json.7.partial", ".m.7.partial"):
        (tmp_path / "s" / name).write_bytes(b"half")
    pack({"train": scenes()}, tmp_path / "s", SMALL)
    assert content(tmp_path / "s") == content(tmp_path / "whole")


def test_a_whole_store_is_used_by_several_processes_at_once(store: Path) -> None:
    with claimed(store):
        assert pack({"train": scenes()}, store, SMALL).complete_before
        sorted((store / "shards").iterdir())[0].unlink()
        with pytest.raises(StorageError, match="another process"):
            pack({"train": scenes()}, store, SMALL)


def test_a_store_without_its_table_is_not_complete(store: Path) -> None:
    whole = content(store)
    (store / "samples.parquet").unlink()
    assert not pack({"train": scenes()}, store, SMALL).complete_before
    assert content(store) == whole


def test_packing_goes_on_without_the_damaged_samples_it_met(tmp_path: Path, pictures: Path) -> None:
    (pictures / "dock" / "3.jpg").write_bytes(b"not a picture")
    source = opened(pictures, 16)
    strict = PackSettings(size=16, shard_bytes=2000)
    lenient = replace(strict, skip_damaged=True)
    with pytest.raises(DataError, match=r"3.jpg is not an image"):
        pack({"all": source}, tmp_path / "s", strict, num_workers=1)
    pack({"all": source}, tmp_path / "s", lenient)
    pack({"all": source}, tmp_path / "whole", lenient)
    assert content(tmp_path / "s") == content(tmp_path / "whole")
    with pytest.raises(DataError, match="holds the data without 1 damaged samples"):
        pack({"all": source}, tmp_path / "s", strict)


def test_a_size_without_effect_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="size 64 has no effect on 'synthetic-scenes'"):
        pack({"train": scenes()}, tmp_path / "s", replace(SMALL, size=64))
    small = open_synthetic_photos("val", num_samples=5, size=20)
    with pytest.raises(DataError, match="size 64 has no effect on 'synthetic-photos'"):
        pack({"val": small}, tmp_path / "p", replace(SMALL, size=64))
    assert_same(pack_on_use(small, tmp_path / "stores", size=64), small)


# Where and when


def test_a_set_without_splits_has_none_in_its_store_either(tmp_path: Path, pictures: Path) -> None:
    pack({"all": opened(pictures, 16)}, tmp_path / "s", PackSettings(size=16), has_splits=False)
    for split in ("all", "test"):
        assert len(open_dataset(str(tmp_path / "s"), data_root=None, split=split)) == 12
    assert set(find_dataset(str(tmp_path / "s")).facts.splits) == {"all", "train", "val", "test"}
    with pytest.raises(DataError, match="has no splits"):
        StoreSet(tmp_path / "s", "validation")


def test_places_are_kept_as_geoparquet(tmp_path: Path, pictures: Path) -> None:
    time = dt.datetime(2022, 7, 6, 8, 56, 11, tzinfo=dt.UTC)
    where = (13.0, 52.0, 13.1, 52.1)

    def locate(path: Path) -> Place:
        return Place(bounds=where, datetime=time) if path.stem != "0" else Place()

    source = replace(opened(pictures, 16), locate=locate)
    pack({"all": source}, tmp_path / "s", PackSettings(size=16))
    stored = StoreSet(tmp_path / "s", "all")
    for index in range(len(stored)):
        assert stored.place(index) == source.place(index)
    schema = pq.read_schema(tmp_path / "s" / "samples.parquet")
    geo = json.loads(schema.metadata[b"geo"])
    assert geo["columns"][geo["primary_column"]]["encoding"] == "WKB"
    polygon = pq.read_table(tmp_path / "s" / "samples.parquet")["geometry"][1].as_py()
    assert shapely.from_wkb(polygon).equals(shapely.box(*where))


def test_a_footprint_across_the_antimeridian_is_cut_in_two() -> None:
    shape = footprint((179.99, -17.0, -179.99, -16.9))
    assert [part.bounds for part in shape.geoms] == [
        (179.99, -17.0, 180.0, -16.9),
        (-180.0, -17.0, -179.99, -16.9),
    ]
    assert box_of(shapely.to_wkb(shape), in_degrees=True) == (179.99, -17.0, -179.99, -16.9)
    assert wgs84_bounds((179.9, -17, 180.1, -16), "EPSG:4326", origin="x")[2] == pytest.approx(
        -179.9
    )


@pytest.mark.parametrize(
    "boxes",
    [
        [(500_000, 5_000_000, 501_000, 5_001_000)],  # metres
        [(-300_000, 0, -200_000, 1), (200_000, 0, 300_000, 1)],
        [(-10, 40, -9, 41), (175, 40, 176, 41)],  # two places
        [(-180, -60, 180, 60)],
    ],
)
def test_other_footprints_in_parts_are_not_cut_at_the_antimeridian(
    boxes: list[tuple[float, float, float, float]],
) -> None:
    shape = shapely.MultiPolygon([shapely.box(*box) for box in boxes])
    assert box_of(shapely.to_wkb(shape), in_degrees=False) == shape.bounds


@pytest.mark.realdata
def test_real_geotiffs_give_the_same_samples(tmp_path: Path, real_data: Path) -> None:
    packed = pack_dataset("eurosat-ms", tmp_path / "s", data_root=real_data)
    base = real_data / "eurosat_ms"
    assert packed.manifest.splits == {
        split: len(read_split_list(base / f"eurosat-spatial-{split}.txt"))
        for split in ("train", "val")
    }
    for split in ("train", "val"):
        source = open_dataset("eurosat-ms", data_root=real_data, split=split)
        assert_same(StoreSet(tmp_path / "s", split), source)


def test_splits_that_are_not_there_are_passed_over_and_a_damaged_one_is_not(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    base = tmp_path / "eurosat_rgb"
    for folder in load_class_list("eurosat"):
        (base / "2750" / folder).mkdir(parents=True)
    for number, folder in enumerate(("Forest", "River")):
        pixels = np.full((8, 8, 3), 20 * number, dtype=np.uint8)
        Image.fromarray(pixels).save(base / "2750" / folder / f"{folder}_1.jpg")
    (base / "eurosat-spatial-val.txt").write_text("Forest_1.jpg\nRiver_1.jpg\n")
    packed = pack_dataset("eurosat-rgb", tmp_path / "s", data_root=tmp_path)
    assert packed.manifest.splits == {"val": 2}
    assert "split 'test' is not packed" in caplog.text
    (base / "eurosat-spatial-train.txt").write_text("Forest_1.jpg\nForest_2.jpg\n")
    with pytest.raises(DataError, match=r"'Forest_2\.jpg' is no image below"):
        pack_dataset("eurosat-rgb", tmp_path / "t", data_root=tmp_path)
    with pytest.raises(DataError, match="has no split 'test'"):
        pack_dataset("eurosat-rgb", tmp_path / "t", data_root=tmp_path, splits=["test"])
