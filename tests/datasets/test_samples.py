"""Sample sets in Python: from arrays, folders and other libraries; indexed, cut and batched."""

from __future__ import annotations

import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch.utils.data import DataLoader

from fake_world import FakeWorld
from fake_world.files import write_tif
from terralign.datasets.catalog import open_dataset
from terralign.datasets.overlap import Overlaps
from terralign.datasets.sample import Located, Subset
from terralign.datasets.samples import Samples, as_words
from terralign.datasets.store.writing import pack
from terralign.datasets.synthetic import open_synthetic_scenes
from terralign.errors import DataError, NumbersError, SensorError
from terralign.sensors import SENSORS

BANDS = ("B02", "B03", "B04", "B08")
RNG = np.random.default_rng(0)


def numbers(size: int = 6, *, bands: int = 4, side: int = 8) -> np.ndarray:
    return np.random.default_rng(3).integers(300, 3000, (size, bands, side, side), np.uint16)


def four_bands(size: int = 6, **options: Any) -> Samples:
    values = {"sensor": "sentinel2-l2a", "bands": BANDS, "dn_offset": 0, **options}
    return Samples.from_arrays(values.pop("pixels", numbers(size)), **values)


def labelled(labels: list[int], names: int = 3) -> Samples:
    return four_bands(len(labels), labels=labels, class_names=[f"class {n}" for n in range(names)])


# What every sample set can do


def test_a_sample_is_its_key_its_pixels_and_its_label() -> None:
    samples = labelled([0, 2, 1, 1, 0, 2])
    sample = samples[1]
    assert list(sample) == ["key", "sentinel2-l2a", "label"]
    assert sample["key"] == "sample-000001"
    assert np.array_equal(sample["sentinel2-l2a"], numbers()[1])
    assert sample["label"] == 2
    assert samples[-1]["key"] == samples[5]["key"]
    assert "label" not in four_bands()[0]
    several = np.array([[True, False], [True, True], [False, False]])
    vector = four_bands(3, labels=several, class_names=["a", "b"])[1]["label"]
    assert vector.tolist() == [True, True]


@pytest.mark.parametrize(
    ("which", "rows"),
    [
        (slice(1, 4), [1, 2, 3]),
        (slice(None, None, -2), [5, 3, 1]),
        ([4, 0, -1], [4, 0, 5]),
        (np.array([False, True, False, False, True, False]), [1, 4]),
        ([], []),
    ],
)
def test_a_part_is_a_sample_set(which: Any, rows: list[int]) -> None:
    samples = labelled([0, 2, 1, 1, 0, 2])
    part = samples[which]
    assert part.keys == tuple(samples.keys[row] for row in rows)
    assert part.labels.values.tolist() == [samples.labels.values[row] for row in rows]
    for index, row in enumerate(rows):
        assert np.array_equal(part[index]["sentinel2-l2a"], samples[row]["sentinel2-l2a"])
    assert part.fingerprint != samples.fingerprint


def test_what_is_no_index_is_refused() -> None:
    samples = four_bands()
    with pytest.raises(IndexError, match="'arrays', split 'all' has 6 samples; index 6 is outside"):
        samples[6]
    with pytest.raises(DataError, match=r"indexed by number, not by 'a'; the keys are in \.keys"):
        samples["a"]  # type: ignore[call-overload]
    with pytest.raises(DataError, match="an index of type float64"):
        samples[[0.5]]  # type: ignore[list-item]


def test_iteration_gives_every_sample_once() -> None:
    samples = open_synthetic_scenes("val", num_samples=5)
    assert [one["key"] for one in samples] == list(samples.keys)


def test_a_set_shows_what_it_holds_in_one_line() -> None:
    samples = labelled([0, 2, 1, 1, 0, 2])
    assert repr(samples) == (
        "Samples('arrays', split 'all': 6 samples of sentinel2-l2a (B02, B03, B04, B08), 3 classes)"
    )
    assert repr(four_bands()[:2]).startswith("Subset('arrays', split 'all': 2 samples of ")
    page = four_bands(2, labels=["<b>", "c"])._repr_html_()
    assert "&lt;b&gt; 1, c 1" in page
    assert "B02, B03, B04, B08 in DN, offset 0" in page


@given(
    labels=st.lists(st.integers(0, 2), min_size=2, max_size=40),
    share=st.floats(0.05, 0.95),
    seed=st.integers(0, 9),
)
def test_split_off_gives_two_parts_with_every_class_alike(
    labels: list[int], share: float, seed: int
) -> None:
    samples = labelled(labels)
    rest, part = samples.split_off(share, seed=seed)
    assert sorted(rest.keys + part.keys) == sorted(samples.keys)
    assert len(part) == min(max(round(share * len(labels)), 1), len(labels) - 1)
    for number in set(labels):
        wanted = labels.count(number) * len(part) / len(labels)
        assert abs(int((part.labels.values == number).sum()) - wanted) <= 1.5
    assert samples.split_off(share, seed=seed)[1].keys == part.keys


def test_split_off_depends_on_the_seed() -> None:
    samples = four_bands(40, pixels=numbers(40))
    parts = {samples.split_off(0.5, seed=seed)[1].keys for seed in range(3)}
    assert len(parts) == 3
    with pytest.raises(DataError, match=r"share = 1\.5 of the samples; expected a number between"):
        samples.split_off(1.5)


def test_a_data_loader_makes_batches_in_worker_processes() -> None:
    samples = labelled([0, 2, 1, 1, 0, 2])
    [batch] = DataLoader(samples, batch_size=6, num_workers=1)  # type: ignore[arg-type]
    assert batch["key"] == list(samples.keys)
    assert torch.equal(batch["sentinel2-l2a"].int(), torch.from_numpy(numbers().astype(np.int32)))
    assert batch["label"].tolist() == [0, 2, 1, 1, 0, 2]


OPENED = (
    ("eurosat-rgb", "val"),
    ("eurosat-ms", "val"),
    ("bigearthnet-19", "test"),
    ("bigearthnet-v2-mm-19", "test"),
    ("bigearthnet-mini", "val"),
    ("sen12ms", "test"),
    ("s2-l2a", "val"),
    ("tiny-imagenet", "val"),
    ("cifar100", "test"),
    ("rsicd", "test"),
    ("synthetic-scenes", "val"),
)


@pytest.mark.parametrize(("name", "split"), OPENED)
def test_every_set_goes_to_another_process(fake_world: FakeWorld, name: str, split: str) -> None:
    fake_world.add_data([name])
    samples = Samples.open(name, data_root=fake_world.root, split=split)
    again = pickle.loads(pickle.dumps(samples))[:2]  # noqa: S301
    assert again.keys == samples.keys[:2]
    for sensor in samples.layouts:
        assert np.array_equal(again[1][sensor], samples[1][sensor])


def test_a_packed_store_is_indexed_and_goes_to_another_process(tmp_path: Path) -> None:
    samples = open_synthetic_scenes("val", num_samples=4)
    pack({"val": samples}, tmp_path / "store")
    stored = Samples.open(tmp_path / "store", split="val")
    again = pickle.loads(pickle.dumps(stored))  # noqa: S301
    for sensor in samples.layouts:
        assert np.array_equal(again[3][sensor], samples[3][sensor])


def test_datasets_do_not_import_torch() -> None:
    code = "import sys, terralign.datasets.samples; print('torch' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "False"


# Arrays


def test_arrays_and_tensors_are_the_same_samples() -> None:
    one, other = four_bands(), four_bands(pixels=torch.from_numpy(numbers().astype(np.int32)))
    for a, b in zip(one, other, strict=True):
        assert np.array_equal(a["sentinel2-l2a"], b["sentinel2-l2a"])
    half = Samples.from_arrays(
        torch.full((2, 2, 8, 8), -12.5, dtype=torch.bfloat16, requires_grad=True),
        sensor="sentinel1-grd",
    )
    assert (half[0]["sentinel1-grd"] == -12.5).all()
    assert half.layouts["sentinel1-grd"].units == "physical"


def test_a_masked_array_without_a_masked_number_stays_whole() -> None:
    pixels = np.full((2, 3, 8, 8), 90, np.uint8)
    masked = np.ma.masked_array(pixels, mask=False)
    assert np.array_equal(Samples.from_arrays(masked, sensor="rgb")[1]["rgb"], pixels[1])
    masked[1, :, 0, 0] = np.ma.masked
    with pytest.raises(DataError, match="units"):
        Samples.from_arrays(masked, sensor="rgb")
    found = Samples.from_arrays(masked, sensor="rgb", units="dn")[1]["rgb"]
    assert np.isnan(found).sum() == 3


def test_several_sensors_of_the_same_places() -> None:
    radar = np.full((6, 2, 8, 8), -14.0, np.float32)
    samples = Samples.from_arrays(
        {"sentinel2-l2a": numbers(), "sentinel1-grd": radar},
        bands={"sentinel2-l2a": BANDS},
        dn_offset={"sentinel2-l2a": 0},
    )
    assert list(samples.layouts) == ["sentinel2-l2a", "sentinel1-grd"]
    assert samples[0]["sentinel1-grd"].shape == (2, 8, 8)
    with pytest.raises(DataError, match="of the same samples, in one order; found"):
        Samples.from_arrays(
            {"sentinel2-l2a": numbers(), "sentinel1-grd": radar[:5]},
            bands={"sentinel2-l2a": BANDS},
            dn_offset={"sentinel2-l2a": 0},
        )


def test_class_names_are_those_of_the_labels() -> None:
    assert labelled([0, 1]).class_names == labelled([0, 1])[:1].class_names
    assert labelled([0, 1]).class_names == ("class 0", "class 1", "class 2")
    assert four_bands(2).class_names is None


def test_labels_are_numbers_names_or_bools() -> None:
    by_name = four_bands(3, labels=["river", "forest", "river"])
    assert by_name.labels.class_names == ("forest", "river")
    assert by_name.labels.values.tolist() == [1, 0, 1]
    ordered = four_bands(3, labels=["river", "forest", "river"], class_names=["river", "forest"])
    assert ordered.labels.values.tolist() == [0, 1, 0]
    tensors = four_bands(3, labels=torch.tensor([1, 0, 1]), class_names=["a", "b"])
    assert tensors.labels.values.tolist() == [1, 0, 1]
    several = four_bands(2, labels=[[1, 0], [1, 1]], class_names=["a", "b"])
    assert several.labels.multi_label


MISTAKES: list[tuple[dict[str, Any], str]] = [
    ({"pixels": numbers().transpose(0, 2, 3, 1)}, r"channels last.*np\.moveaxis\(pixels, -1, -3\)"),
    ({"pixels": numbers()[0]}, r"shape \(4, 8, 8\).*\(N, C, H, W\)"),
    ({"bands": None}, r"4 channels, but 12 bands.*bands="),
    ({"bands": "B02"}, "is one text; give a list of names"),
    ({"bands": ("B02", "B03", "B04", "B99")}, "B99"),
    ({"dn_offset": None}, "need dn_offset: 0, or -1000"),
    ({"dn_offset": 1000}, "dn_offset=1000"),
    ({"pixels": numbers() / 10_000}, "digital numbers or reflectance.*Declare units"),
    ({"pixels": numbers() / 10_000, "units": "dn"}, "declared to be DN"),
    ({"units": "physical", "dn_offset": None}, "digital numbers or per cent"),
    ({"units": "reflectance"}, 'units must be "dn", "physical" or "linear"'),
    ({"sensor": "sentinel2"}, "sentinel2"),
    ({"sensor": None}, "sensor is missing"),
    ({"labels": [0] * 6}, "class_names is missing"),
    ({"labels": [0] * 5, "class_names": ["a"]}, "5 labels for 6 samples"),
    ({"labels": [0, 1, 2, 0, 1, 2], "class_names": ["a", "b"]}, "expected 0 to 1"),
    ({"labels": [-1] * 6, "class_names": ["a", "b"]}, "go from -1"),
    (
        {"labels": ["a"] * 5 + ["c"], "class_names": ["a", "b"]},
        "'c' is not one of class_names",
    ),
    ({"labels": [0.5] * 6, "class_names": ["a"]}, "class numbers or names"),
    ({"labels": [[0, 2]] * 6, "class_names": ["a", "b"]}, "True and False"),
    ({"labels": [0] * 6, "class_names": ["a", "a"]}, "'a' twice"),
    ({"labels": [0] * 6, "class_names": "forest"}, r"class_names is 'forest' \(one text\)"),
    ({"class_names": ["a"]}, "no effect without labels"),
    ({"keys": ["a"] * 6}, "keys name 'a' twice"),
    ({"captions": ["a"] * 5}, "5 captions for 6 samples"),
    ({"captions": [["a"]] * 5 + [[]]}, "a sample has no caption"),
    ({"prompts": ["a photo"]}, r"needs \{\} once"),
    ({"prompts": 3}, r"prompts is 3 \(int\); expected a list of texts"),
    ({"prompts": [3]}, r"prompts\[0\] is 3 \(int\)"),
    ({"labels": [None] * 6}, r"labels\[0\] is None; every sample needs a label"),
    ({"labels": ["a", 1] * 3}, r"labels\[1\] is 1 \(int\); expected a text"),
    ({"labels": np.array(["a", None] * 3, object)}, r"labels\[1\] is None; expected a text"),
    ({"labels": ["a", np.nan] * 3}, r"labels\[1\] is nan \(float\)"),
    ({"labels": ["a", ""] * 3}, r"labels\[1\] is an empty text"),
    ({"labels": [0, np.nan] * 3, "class_names": ["a", "b"]}, "type float64; expected"),
    ({"labels": "forest"}, r"labels is 'forest' \(one text\); expected a list or an array"),
    ({"labels": 3}, r"labels is 3 \(int\)"),
    ({"labels": torch.tensor(3)}, r"labels is tensor\(3\)"),
    ({"labels": [0] * 6, "class_names": 3}, r"class_names is 3 \(int\); expected a list of texts"),
    ({"labels": [0] * 6, "class_names": {"a": 0}}, "class_names is .*dict"),
    ({"labels": [0] * 6, "class_names": ["", "a"]}, r"class_names\[0\] is an empty text"),
    ({"labels": [0] * 6, "class_names": ["a", None]}, r"class_names\[1\] is None"),
    ({"captions": [""] * 6}, r"captions\[0\]\[0\] is an empty text"),
    ({"captions": [["a"]] * 5 + [[1]]}, r"captions\[5\]\[0\] is 1 \(int\); expected a text"),
    ({"captions": [3] * 6}, r"captions\[0\] is 3 \(int\); expected a text or a list of texts"),
    ({"captions": [None] * 6}, r"captions\[0\] is None"),
    ({"captions": "abcdef"}, r"captions is 'abcdef' \(one text\)"),
    ({"keys": "abcdef"}, r"keys is 'abcdef' \(one text\); expected a list of names"),
    ({"keys": [None] * 6}, r"keys\[0\] is None"),
    ({"pixels": [[1, 2], [3]]}, "pixels are no array.*all samples of one size"),
    ({"pixels": {3: numbers()}, "sensor": None}, "pixels name 3 for a sensor"),
    ({"pixels": numbers()[..., :0]}, r"shape \(6, 4, 8, 0\).*one pixel"),
    ({"sensor": 3}, r"sensor = 3 \(int\); expected a sensor's name"),
    ({"name": "../x"}, r"name = '\.\./x': results and folders are named by it"),
    ({"name": "a\nb"}, r"name = 'a\\nb': results"),
    ({"name": 3}, "name = 3: results"),
]


@pytest.mark.parametrize(("given_", "message"), MISTAKES)
def test_mistakes_are_named(given_: dict[str, Any], message: str) -> None:
    with pytest.raises((DataError, SensorError), match=message):
        four_bands(**given_)


def test_labels_of_objects_are_what_they_hold() -> None:
    texts = four_bands(4, labels=np.array(["b", "a", "b", "a"], object))
    assert texts.labels.class_names == ("a", "b")
    whole = four_bands(4, labels=np.array([1, 0, 1, 0], object), class_names=["a", "b"])
    assert whole.labels.values.tolist() == texts.labels.values.tolist() == [1, 0, 1, 0]
    assert four_bands(2, labels=range(2), class_names=["a", "b"]).labels.values.tolist() == [0, 1]


def test_one_sample_of_another_kind_is_found_among_many() -> None:
    pixels = numbers(40).astype(np.float32)
    pixels[17] /= 10_000
    with pytest.raises(NumbersError, match="sample-000017"):
        four_bands(40, pixels=pixels, units="dn")


def test_a_fingerprint_changes_with_pixels_labels_and_order() -> None:
    base = labelled([0, 2, 1, 1, 0, 2])
    assert base.fingerprint == labelled([0, 2, 1, 1, 0, 2]).fingerprint
    changed = numbers()
    changed[5, 3, 7, 7] += 1
    others = [
        labelled([0, 2, 1, 1, 0, 1]),
        four_bands(pixels=changed),
        four_bands(pixels=numbers()[::-1]),
        four_bands(bands=("B04", "B03", "B02", "B08")),
    ]
    assert len({one.fingerprint for one in (base, four_bands(), *others)}) == 6


def test_arrays_of_one_content_are_known_as_the_same_samples() -> None:
    one, two = four_bands(), four_bands(pixels=numbers()[2:4].copy(), name="others")
    assert len(Overlaps().find(one, two)) == 2
    assert len(Overlaps().find(one[:2], one[2:])) == 0


def test_pictures_in_memory_are_resized_as_those_in_files(tmp_path: Path) -> None:
    picture = RNG.integers(0, 255, (20, 30, 3), np.uint8)
    Image.fromarray(picture).save(tmp_path / "a.png")
    in_memory = Samples.from_arrays(picture.transpose(2, 0, 1)[None], sensor="rgb")
    assert in_memory[0]["rgb"].shape == (3, 20, 30)
    in_file = Samples.from_folder(tmp_path)
    for samples in (in_memory, in_file):
        assert np.array_equal(
            samples.at_size(16).read(np.array([0]))["rgb"],
            open_tree_at(tmp_path, 16),
        )
        part = samples[:1].at_size(16)
        assert part.read(np.array([0]))["rgb"].shape == (1, 3, 16, 16)
        assert part.fingerprint != samples[:1].fingerprint


def open_tree_at(folder: Path, size: int) -> np.ndarray:
    toml = folder.parent / "declared.toml"
    toml.write_text(
        f'name = "t"\nreader = "folder"\nsensor = "rgb"\nroot = "{folder.name}"\nunlabelled = true'
    )
    samples = open_dataset(str(toml), data_root=folder.parent, split="all", size=size)
    return np.asarray(samples.read(np.array([0]))["rgb"])


# Folders


@pytest.fixture
def tiles(tmp_path: Path) -> Path:
    """Two class folders of two located four-band GeoTIFFs each."""
    for number, name in enumerate(("SeaLake/1", "SeaLake/2", "old_town/1", "old_town/deep/2")):
        path = tmp_path / "tiles" / f"{name}.tif"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_tif(path, numbers(4)[number])
    return tmp_path / "tiles"


def from_tiles(tiles: Path, **options: Any) -> Samples:
    return Samples.from_folder(tiles, sensor="sentinel2-l2a", bands=BANDS, dn_offset=0, **options)


@pytest.mark.parametrize("labels", [True, False])
def test_a_folder_is_the_set_that_a_toml_declares(tiles: Path, labels: bool) -> None:
    toml = tiles.parent / "tiles.toml"
    classes = '[classes]\nSeaLake = "sea lake"\nold_town = "old town"\n'
    toml.write_text(
        'name = "tiles"\nreader = "folder"\nsensor = "sentinel2-l2a"\nroot = "tiles"\n'
        'bands = ["B02", "B03", "B04", "B08"]\ndn_offset = 0\n'
        + (classes if labels else "unlabelled = true\n")
    )
    declared = open_dataset(str(toml), data_root=tiles.parent, split="all")
    samples = from_tiles(tiles, labels="auto" if labels else None)
    assert samples.fingerprint == declared.fingerprint
    assert (samples.keys, samples.layouts) == (declared.keys, declared.layouts)
    rows = np.arange(4)
    [(sensor, pixels)] = samples.read(rows).items()
    assert np.array_equal(pixels, declared.read(rows)[sensor])
    assert isinstance(declared, Located)
    assert samples.place(2) == declared.place(2) == samples[2:].place(0)
    if labels:
        assert samples.labels.class_names == declared.labels.class_names
        assert np.array_equal(samples.labels.values, declared.labels.values)


def test_class_names_by_folder_or_in_the_folders_order(tiles: Path) -> None:
    names = ("open water", "a town")
    by_folder = {"SeaLake": names[0], "old_town": names[1]}
    assert from_tiles(tiles, class_names=names).labels.class_names == names
    assert from_tiles(tiles, class_names=by_folder).labels.class_names == names
    with pytest.raises(DataError, match=r"1 class names for 2 class folders \(SeaLake, old_town\)"):
        from_tiles(tiles, class_names=["water"])


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("SeaLake", "sea lake"),
        ("Forest", "forest"),
        ("annual_crop", "annual crop"),
        ("dense-residential", "dense residential"),
        ("USA", "USA"),
        ("a forest", "a forest"),
        ("__", "__"),
    ],
)
def test_folder_names_become_words(name: str, words: str) -> None:
    assert as_words(name) == words


def test_numbers_of_wordnet_are_no_class_names(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for folder in ("n01440764", "n01443537"):
        (tmp_path / folder).mkdir()
        Image.new("RGB", (8, 8)).save(tmp_path / folder / "a.png")
    Samples.from_folder(tmp_path, class_names=["tench", "goldfish"])
    assert not caplog.messages
    assert Samples.from_folder(tmp_path).class_names == ("n01440764", "n01443537")
    assert "numbers of WordNet for names, such as n01440764" in caplog.text
    assert "class_names=" in caplog.text


def test_mistakes_with_folders_are_named(tiles: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"holds GeoTIFFs, such as .*name the sensor"):
        Samples.from_folder(tiles)
    with pytest.raises(DataError, match="no effect on samples without labels"):
        from_tiles(tiles, labels=None, class_names=["a", "b"])
    with pytest.raises(DataError, match='expected "folders", "auto" or None'):
        from_tiles(tiles, labels="file")
    with pytest.raises(DataError, match="not found"):
        Samples.from_folder(tmp_path / "nothing")
    with pytest.raises(SensorError, match="bands = 'B02,B03' is one text; give a list of names"):
        Samples.from_folder(tiles, sensor="sentinel2-l2a", bands="B02,B03")
    for band in ("B02", "B03"):
        (tmp_path / "product").mkdir(exist_ok=True)
        write_tif(tmp_path / "product" / f"{band}.tif", numbers(1, bands=1)[0])
    with pytest.raises(DataError, match=r"one file per band.*use space\.embed\(.*open_scene"):
        Samples.from_folder(tmp_path / "product", sensor="sentinel2-l2a")
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    with pytest.raises(DataError, match="bands has no effect on pictures"):
        Samples.from_folder(tmp_path, sensor="rgb", bands=["red"])
    with pytest.raises(DataError, match=r"Samples\(\) wraps an open sample set, not a str; use"):
        Samples("tiles")  # type: ignore[arg-type]


# Other libraries


class GeoItems:
    """What torchgeo's data sets look like: dictionaries with float tensors, and `classes`."""

    classes = ("SeaLake", "Forest")
    split = "train"

    def __init__(self, labels: list[Any], *, targets: bool = False) -> None:
        self.labels = labels
        self.num_read = 0
        if targets:
            self.targets = labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        self.num_read += 1
        image = torch.from_numpy(numbers(20)[index].astype(np.float32))
        return {"image": image, "label": torch.tensor(self.labels[index])}


def geo(dataset: Any, **options: Any) -> Samples:
    values = {"sensor": "sentinel2-l2a", "bands": BANDS, "dn_offset": 0, **options}
    return Samples.from_torchgeo(dataset, **values)


@pytest.mark.parametrize("targets", [True, False])
def test_a_torchgeo_set_gives_its_pixels_and_labels(targets: bool) -> None:
    samples = geo(GeoItems([0, 1, 1, 0], targets=targets))
    assert (samples.name, samples.split, len(samples)) == ("geoitems", "train", 4)
    assert samples.labels.class_names == ("sea lake", "forest")
    assert samples.labels.values.tolist() == [0, 1, 1, 0]
    assert np.array_equal(samples[2]["sentinel2-l2a"], numbers(20)[2].astype(np.float32))
    same = four_bands(4, pixels=numbers(20)[:4].astype(np.float32), units="dn")
    assert len(Overlaps().find(same, samples)) == 4
    assert pickle.loads(pickle.dumps(samples)).fingerprint == samples.fingerprint  # noqa: S301


def test_targets_spare_reading_and_are_not_believed_where_items_differ() -> None:
    dataset = GeoItems([0, 1] * 10, targets=True)
    geo(dataset)
    assert dataset.num_read < 130
    dataset.targets = [1] * 20
    assert geo(dataset).labels.values.tolist() == [0, 1] * 10


def test_a_part_of_a_torchgeo_set_has_its_classes() -> None:
    part = torch.utils.data.Subset(GeoItems([0, 1, 1, 0], targets=True), [3, 1])  # type: ignore
    samples = geo(part)
    assert samples.labels.values.tolist() == [0, 1]
    assert (samples.name, samples.split) == ("geoitems", "train")


def test_a_torchgeo_set_with_several_labels_or_none() -> None:
    several = geo(GeoItems([[1, 0], [1, 1]]))
    assert several.labels.values.tolist() == [[True, False], [True, True]]
    assert geo(GeoItems([0, 1]), label_key=None).labels is None
    assert geo(GeoItems([0, 1]), label_key="mask").labels is None


def test_errors_name_what_a_torchgeo_set_must_provide() -> None:
    with pytest.raises(DataError, match=r"no 'pixels', but 'image', 'label'.*must provide len\("):
        geo(GeoItems([0, 1]), image_key="pixels")
    with pytest.raises(DataError, match="cannot be indexed: a data set must provide"):
        geo(iter([1]))
    with pytest.raises(DataError, match=r"not a dictionary.*must provide"):
        geo([(1, 2)])
    with pytest.raises(DataError, match=r"4 channels and does not name them .*\(bands=\)"):
        geo(GeoItems([0, 1]), bands=None)

    class Damaged(GeoItems):
        def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
            if index == 1:
                raise OSError("no such tile")
            return super().__getitem__(index)

    with pytest.raises(DataError, match=r"sample 1 cannot be read \(OSError: no such tile\)"):
        geo(Damaged([0, 1, 1], targets=True))


@pytest.mark.parametrize(
    ("attributes", "expected"),
    [
        ({"all_band_names": ("B02", "B03", "B04", "B08")}, BANDS),
        ({"all_bands": ["B8", "B4", "B3", "B2"]}, BANDS[::-1]),
        ({"bands": ("B03", "B02", "B04", "B08"), "all_bands": BANDS}, ("B03", "B02", "B04", "B08")),
        ({"bands": "all", "all_bands": (*BANDS, "B11"), "all_band_names": BANDS}, BANDS),
        ({"bands": ("a", "b", "c", "d"), "all_bands": BANDS}, None),
        ({"all_bands": (*BANDS, "B11")}, None),
        ({"all_bands": 4}, None),
    ],
)
def test_a_torchgeo_set_that_names_its_bands_is_believed(
    attributes: dict[str, Any], expected: tuple[str, ...] | None
) -> None:
    dataset = GeoItems([0, 1])
    for name, value in attributes.items():
        setattr(dataset, name, value)
    part = torch.utils.data.Subset(dataset, [1, 0])  # type: ignore[arg-type,var-annotated]
    for one in (dataset, part):
        if expected is None:
            with pytest.raises(DataError, match="does not name them as bands of 'sentinel2-l2a'"):
                geo(one, bands=None)
        else:
            assert geo(one, bands=None).layouts["sentinel2-l2a"].bands == expected
    assert geo(dataset, bands=BANDS[::-1]).layouts["sentinel2-l2a"].bands == BANDS[::-1]


def test_items_of_bfloat16_are_float32() -> None:
    class Half(GeoItems):
        def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
            item = super().__getitem__(index)
            return {**item, "image": item["image"].bfloat16()}

    pixels = geo(Half([0, 1]))[1]["sentinel2-l2a"]
    assert pixels.dtype == np.float32
    assert np.allclose(pixels, numbers()[1], rtol=1 / 128)


@pytest.mark.parametrize(
    ("length", "said"),
    [
        (-1, r"len\(Wrong\) fails \(ValueError: .*must provide len\(dataset\)"),
        (2**70, r"len\(Wrong\) fails \(OverflowError"),
        (2**62, r"len\(Wrong\) is 4,611,686,018,427,387,904, and at most 10,000,000 samples"),
        ("two", r"len\(Wrong\) fails \(TypeError"),
        (None, r"len\(Wrong\) fails \(OSError: no index\)"),
        (0, "Wrong has no sample"),
    ],
)
def test_a_length_that_cannot_be_is_named(length: Any, said: str) -> None:
    class Wrong(GeoItems):
        def __len__(self) -> int:
            if length is None:
                raise OSError("no index\nat all")
            return length  # type: ignore[no-any-return]

    with pytest.raises(DataError, match=said) as error:
        geo(Wrong([0, 1]))
    assert "\n" not in str(error.value)


def test_a_stream_of_items_is_refused() -> None:
    class Stream(torch.utils.data.IterableDataset):  # type: ignore[type-arg]
        def __len__(self) -> int:
            return 2

        def __iter__(self) -> Any:
            return iter([])

    with pytest.raises(DataError, match=r"Stream cannot be indexed: .*give a list of its items"):
        geo(Stream())


def test_targets_and_classes_that_are_no_lists() -> None:
    dataset: Any = GeoItems([0, 1, 1])
    for targets in (3, "011", {0: 1, 1: 1, 2: 1}, iter([0, 1, 1]), torch.tensor(1)):
        dataset.targets = targets
        assert geo(dataset).labels.values.tolist() == [0, 1, 1]
    for classes in (3, "ab"):
        dataset.classes = classes
        with pytest.raises(DataError, match=r"GeoItems\.classes is .*, not a list of class names"):
            geo(dataset)
        assert geo(dataset, class_names=["a", "b"]).labels.class_names == ("a", "b")


class Pictures:
    """What torchvision's data sets look like: pairs (Pillow image, class number)."""

    classes = ("cat", "aeroplane")

    def __len__(self) -> int:
        return 3

    def __getitem__(self, index: int) -> tuple[Any, int]:
        size = (40, 30) if index else (30, 30)
        return Image.new("RGB" if index else "L", size, color=index), index % 2


def test_a_torchvision_set_gives_pictures_of_their_size_or_of_a_towers() -> None:
    samples = Samples.from_torchvision(Pictures())
    assert samples.labels.class_names == ("cat", "aeroplane")
    assert samples[0]["rgb"].shape == (3, 30, 30)
    with pytest.raises(DataError, match=r"must be of one size: give RGB images a size \(size=\)"):
        samples.read(np.array([0, 1]))
    assert samples.at_size(16).read(np.arange(3))["rgb"].shape == (3, 3, 16, 16)
    assert Samples.from_torchvision(Pictures(), size=8)[1]["rgb"].shape == (3, 8, 8)


def test_a_torchvision_set_of_tensors_is_refused() -> None:
    with pytest.raises(DataError, match="not a Pillow image; leave out the transform"):
        Samples.from_torchvision([(torch.zeros(3, 8, 8), 0)])


def test_torchvisions_own_folder_set(tiles: Path) -> None:
    for name in ("a/1", "a/2", "b/1"):
        path = tiles.parent / "pictures" / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(RNG.integers(0, 255, (12, 9, 3), np.uint8)).save(path)
    folder = pytest.importorskip("torchvision.datasets").ImageFolder(tiles.parent / "pictures")
    samples, files = (
        Samples.from_torchvision(folder),
        Samples.from_folder(tiles.parent / "pictures"),
    )
    for size in (None, 6):
        one, other = (s if size is None else s.at_size(size) for s in (samples, files))
        assert np.array_equal(one.read(np.arange(3))["rgb"], other.read(np.arange(3))["rgb"])
    assert samples.labels.values.tolist() == files.labels.values.tolist()


@pytest.mark.realdata
def test_torchgeos_eurosat_is_the_eurosat_of_the_catalog(real_data: Path, tmp_path: Path) -> None:
    eurosat = pytest.importorskip("torchgeo.datasets").EuroSAT
    (tmp_path / "ds").symlink_to(real_data / "eurosat_ms" / "ds")
    split = (real_data / "eurosat_ms" / "eurosat-spatial-val.txt").read_text()
    (tmp_path / "eurosat-val.txt").write_text(split)
    bands = eurosat.all_band_names
    dataset = eurosat(str(tmp_path), split="val")
    samples = geo(dataset, sensor="sentinel2-l1c", bands=bands)
    own = Samples.open("eurosat-ms", data_root=real_data, split="val")
    assert bands == own.layouts["sentinel2-l1c"].bands
    unnamed = geo(dataset, sensor="sentinel2-l1c", bands=None)
    assert unnamed.fingerprint == samples.fingerprint
    keys = {Path(file).stem: index for index, (file, _) in enumerate(dataset.samples)}
    for one in own:
        other = samples[keys[Path(one["key"]).name]]
        assert np.array_equal(one["sentinel2-l1c"], other["sentinel2-l1c"])
        assert one["label"] == other["label"]


def test_a_set_of_the_catalog_is_opened_by_name(tmp_path: Path) -> None:
    samples = Samples.open("synthetic-scenes", split="val")
    assert samples.at_size(64) is samples, "sets without pictures are not opened again"
    whole = open_synthetic_scenes("val")
    assert (samples.keys, samples.fingerprint) == (whole.keys, whole.fingerprint)
    with pytest.raises(DataError, match="did you mean 'synthetic-scenes'"):
        Samples.open("synthetic-scene")
    assert isinstance(samples[:3], Subset)
    assert SENSORS["sentinel2-l2a"].name in samples.layouts
