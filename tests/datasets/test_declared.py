"""A data set from a TOML file: all of it declared, and every mistake in it named."""

from __future__ import annotations

import datetime as dt
import logging
from pathlib import Path

import numpy as np
import pytest
import rasterio
from PIL import Image
from rasterio import Affine
from rasterio.warp import transform_bounds

from terralign.datasets.catalog import find_dataset, open_dataset
from terralign.datasets.class_lists import load_class_list
from terralign.datasets.file_set import FileSet
from terralign.datasets.sample import NOWHERE
from terralign.errors import DataError, TerralignError

TOML = """
name = "harbours"
reader = "folder"
sensor = "rgb"
root = "harbours/images"
prompts = ["an aerial photo of {}.", "{} from above"]

[classes]
Dock = "a dock with ships"
Yard = "a container yard"

[splits]
train = "train.txt"
test = "test.txt"
"""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name in ("Dock/1.jpg", "Dock/2.jpg", "Yard/3.jpg"):
        path = tmp_path / "data/harbours/images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (9, 7)).save(path)
    (tmp_path / "data/harbours/images/train.txt").write_text("Dock/1.jpg\n3.jpg\n")
    (tmp_path / "test.txt").write_text("Dock/2.jpg\n")
    return tmp_path


def declared(root: Path, old: str = "", new: str = "", split: str = "test"):  # type: ignore[no-untyped-def]
    assert old in TOML
    path = root / "harbours.toml"
    path.write_text(TOML.replace(old, new, 1) if old else TOML)
    return open_dataset(str(path), data_root=root / "data", split=split)


def test_a_declared_set_is_what_its_file_says(root: Path) -> None:
    samples = declared(root)
    assert (samples.name, samples.split) == ("harbours", "test")
    assert samples.keys == ("Dock/2",)
    assert samples.prompts == ("an aerial photo of {}.", "{} from above")
    assert samples.labels.class_names == ("a dock with ships", "a container yard")
    assert samples.labels.class_list == "harbours.toml"
    assert samples.read(np.array([0]))["rgb"].shape == (1, 3, 7, 9)


def test_lists_lie_in_the_root_or_beside_the_declaration(root: Path) -> None:
    assert declared(root, split="train").keys == ("Dock/1", "Yard/3")
    assert declared(root, split="all").keys == ("Dock/1", "Dock/2", "Yard/3")
    entry = find_dataset(str(root / "harbours.toml")).facts
    assert (entry.has_splits, tuple(entry.splits), entry.sensors) == (
        True,
        ("train", "test"),
        ("rgb",),
    )


def test_without_splits_every_name_gives_the_whole(root: Path) -> None:
    splits = TOML[TOML.index("[splits]") :]
    for split in ("all", "train", "val", "test"):
        assert len(declared(root, splits, split=split)) == 3
    assert not find_dataset(str(root / "harbours.toml")).facts.has_splits
    with pytest.raises(DataError, match="has no splits"):
        declared(root, splits, split="validation")


def test_images_are_resized_where_a_size_is_asked_for(root: Path) -> None:
    declared(root)
    path = str(root / "harbours.toml")
    samples = open_dataset(path, data_root=root / "data", split="test", size=5)
    assert samples.read(np.array([0]))["rgb"].shape == (1, 3, 5, 5)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("prompts", "prompt", r"unknown key 'prompt'; did you mean 'prompts'"),
        ('"rgb"', '"rgbb"', r"harbours.toml: unknown sensor 'rgbb'; did you mean 'rgb'"),
        ('"folder"', "{ a = 1 }", r"unknown reader \"\{'a': 1\}\"; known"),
        ('"folder"', '"zip"', r"unknown reader 'zip'; known: folder, shards, table"),
        ('name = "harbours"', "", r"key .name. is missing"),
        ('name = "harbours"', 'name = "../x"', r"name: String should match"),
        ('reader = "folder"', 'reder = "folder"', r"unknown key 'reder'; did you mean 'reader'"),
        ('"{} from above"', '"from above"', r"'from above' needs {} once"),
        ('"{} from above"', '"{} and {}"', r"needs {} once"),
        ('"rgb"', '"rbg"', r"unknown sensor 'rbg'; did you mean 'rgb'"),
        ('Yard = "a container yard"', "", r"folders without a class: Yard"),
        ("Yard =", 'Quay = "a quay"\nYard =', r"no folder for the classes Quay"),
        (
            '"a container yard"',
            '"a dock with ships"',
            r"'Dock' and 'Yard' both have the class 'a dock",
        ),
        ('"a container yard"', '" "', r"'Yard' has no name"),
        ('"harbours/images"', '"/etc"', r"root: '/etc' leads outside"),
        ('"harbours/images"', '"../x"', r"root: '../x' leads outside"),
        ('"harbours/images"', '"elsewhere"', r"root: .*elsewhere not found; looked in"),
        ('"harbours/images"', f'"{"a" * 300}"', r"root: .*aaa not found; looked in"),
        ('"test.txt"', '"../test.txt"', r"splits.test: '../test.txt' leads outside"),
        ('"test.txt"', '"gone.txt"', r"splits.test: gone.txt not found; looked in"),
        ("test =", "val =", r"no split 'test' in .*harbours.toml; splits: all, train, val"),
        ('sensor = "rgb"', 'sensor = "rgb"\ndn_offset = 0', r"dn_offset has no effect on"),
        ("[classes]", "[classes", r"is not valid TOML"),
    ],
)
def test_every_mistake_is_one_clear_line(root: Path, old: str, new: str, message: str) -> None:
    with pytest.raises(TerralignError, match=message) as caught:
        declared(root, old, new)
    assert "\n" not in str(caught.value)


MS_TOML = """
name = "tiles"
reader = "folder"
sensor = "sentinel2-l1c"
root = "tiles"
bands = ["B4", "B3", "B2", "B8a"]
dn_offset = 0
composite = "eurosat"
classes = { Wood = "wood" }
"""


def write_tile(
    path: Path, num_bands: int, *, crs: str | None = None, value: int = 321, side: int = 4
) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    transform = Affine(10, 0, 500_000, 0, -10, 5_000_000)
    settings = {"driver": "GTiff", "dtype": "uint16", "transform": transform, "crs": crs}
    with rasterio.open(path, "w", count=num_bands, height=side, width=side, **settings) as file:
        file.write(np.full((num_bands, side, side), value, np.uint16))


def test_geotiffs_with_declared_bands(tmp_path: Path) -> None:
    write_tile(tmp_path / "tiles/Wood/a.tif", 4)
    path = tmp_path / "tiles.toml"
    path.write_text(MS_TOML)
    samples = open_dataset(str(path), data_root=tmp_path, split="all", size=32)
    layout = samples.layouts["sentinel2-l1c"]
    assert layout.bands == ("B04", "B03", "B02", "B8A")
    assert layout.composite is not None
    assert layout.composite.name == "eurosat"
    assert samples.read(np.array([0]))["sentinel2-l1c"].shape == (1, 4, 4, 4)
    assert samples.prompts is None


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("bands =", "# bands =", r"a.tif has 4 band\(s\) and does not name them"),
        ('"B8a"', '"B8a", "B9"', r"has 4 band\(s\), but 5 were declared"),
        ('"B8a"', '"B13"', r"a.tif: unknown band 'B13'"),
        ("dn_offset = 0", "", r"offset unknown"),
        ('"eurosat"', '"eurosta"', r"did you mean 'eurosat'"),
    ],
)
def test_what_a_geotiff_does_not_say_must_be_declared(
    tmp_path: Path, old: str, new: str, message: str
) -> None:
    write_tile(tmp_path / "tiles/Wood/a.tif", 4)
    path = tmp_path / "tiles.toml"
    path.write_text(MS_TOML.replace(old, new, 1))
    with pytest.raises(TerralignError, match=message):
        open_dataset(str(path), data_root=tmp_path, split="all")


def test_a_sensor_file_lies_beside_the_declaration(tmp_path: Path) -> None:
    write_tile(tmp_path / "tiles/Wood/a.tif", 2)
    (tmp_path / "mine.toml").write_text(
        'name = "mine"\nunit = "other"\ndn_scale = 0.5\nbands = [{ name = "x" }, { name = "y" }]\n'
    )
    (tmp_path / "tiles.toml").write_text(
        'name = "tiles"\nreader = "folder"\nsensor = "mine.toml"\nroot = "tiles"\n'
        'bands = ["y", "x"]\nclasses = { Wood = "wood" }\n'
    )
    samples = open_dataset(str(tmp_path / "tiles.toml"), data_root=tmp_path, split="all")
    assert samples.layouts["mine"].bands == ("y", "x")
    assert samples.layouts["mine"].composite is None


PAIRS = """
name = "pairs"
reader = "folder"
root = "pairs"
unlabelled = true

[sensors.rgb]
root = "jpg"

[sensors.sentinel2-l2a]
root = "s2"
bands = ["B04", "B03"]
dn_offset = 0

[splits]
train = "train.txt"
"""


def write_pair(root: Path, stem: str, number: int) -> None:
    picture = root / f"pairs/jpg/{stem}.png"
    picture.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 4), (number, 0, 0)).save(picture)
    tile = root / f"pairs/s2/{stem}.tif"
    write_tile(tile, 2, crs="EPSG:32633", value=number)


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    for number, stem in enumerate(["b/x", "a/y", "a/S2A_MSIL2A_20200102T030405_N0214_R1_T33"], 1):
        write_pair(tmp_path, stem, number)
    (tmp_path / "pairs/train.txt").write_text("b/x.png\na/y.png\n")
    return tmp_path


def open_pairs(root: Path, text: str = PAIRS, split: str = "all"):  # type: ignore[no-untyped-def]
    (root / "pairs.toml").write_text(text)
    return open_dataset(str(root / "pairs.toml"), data_root=root, split=split)


def test_sensors_in_parallel_folders_are_paired_by_path(pairs: Path) -> None:
    samples = open_pairs(pairs)
    assert samples.keys == ("a/S2A_MSIL2A_20200102T030405_N0214_R1_T33", "a/y", "b/x")
    assert samples.labels is None
    got = samples.read(np.arange(3))
    assert got["rgb"][:, 0, 0, 0].tolist() == [3, 2, 1]
    assert got["sentinel2-l2a"][:, 1, 0, 0].tolist() == [3, 2, 1]
    assert open_pairs(pairs, split="train").keys == ("a/y", "b/x")
    facts = find_dataset(str(pairs / "pairs.toml")).facts
    assert (facts.sensors, facts.labels, facts.class_list) == (
        ("rgb", "sentinel2-l2a"),
        "none",
        None,
    )


def test_class_folders_are_paired_as_well(pairs: Path) -> None:
    text = PAIRS.replace("unlabelled = true", 'classes = { a = "class a", b = "class b" }')
    samples = open_pairs(pairs, text)
    assert samples.labels.values.tolist() == [0, 0, 1]
    assert samples.read(np.arange(3))["sentinel2-l2a"][:, 1, 0, 0].tolist() == [3, 2, 1]


def test_files_say_where_and_when(pairs: Path) -> None:
    samples = open_pairs(pairs)
    product, plain = samples.place(0), samples.place(1)
    assert product.datetime == dt.datetime(2020, 1, 2, 3, 4, 5, tzinfo=dt.UTC)
    assert plain.datetime is None
    expected = transform_bounds("EPSG:32633", "EPSG:4326", 500_000, 4_999_960, 500_040, 5_000_000)
    assert plain.bounds == pytest.approx(expected, abs=1e-9)
    (pairs / "s2.toml").write_text(
        'name = "s2"\nreader = "folder"\nroot = "pairs/s2"\nsensor = "sentinel2-l2a"\n'
        'bands = ["B04", "B03"]\ndn_offset = 0\nclasses = { a = "class a", b = "class b" }\n'
    )
    labelled = open_dataset(str(pairs / "s2.toml"), data_root=pairs, split="all")
    assert labelled.place(1).bounds == plain.bounds


def test_a_grid_without_a_reference_system_has_no_place(pairs: Path) -> None:
    write_tile(pairs / "pairs/s2/a/y.tif", 2)
    assert open_pairs(pairs).place(1) == NOWHERE


def test_a_sample_lacks_no_sensor(pairs: Path) -> None:
    write_pair(pairs, "a/z", 4)
    (pairs / "pairs/jpg/a/z.png").unlink()
    with pytest.raises(DataError, match=r"pairs/jpg has no image a/z, but .*s2/a/z.tif exists"):
        open_pairs(pairs)
    assert len(open_pairs(pairs, split="train")) == 2
    (pairs / "pairs/s2/a/y.tif").unlink()
    with pytest.raises(DataError, match=r"pairs/s2 has no image a/y, but .*jpg/a/y.png exists"):
        open_pairs(pairs, split="train")
    write_pair(pairs, "a/y", 1)
    write_tile(pairs / "pairs/s2/a/y.tiff", 2)
    with pytest.raises(DataError, match=r"a/y.tiff? and .*a/y.tiff? differ in their ending only"):
        open_pairs(pairs, split="train")


def test_the_fingerprint_follows_every_sensor(pairs: Path) -> None:
    first = open_pairs(pairs).fingerprint
    assert open_pairs(pairs).fingerprint == first
    rest = open_pairs(pairs, PAIRS.replace('["B04", "B03"]', '["B03", "B04"]')).fingerprint
    write_tile(pairs / "pairs/s2/a/y.tif", 2, side=5)
    assert len({first, rest, open_pairs(pairs).fingerprint}) == 3


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("unlabelled = true", "", r"\[classes\] is missing; images with labels need"),
        ("unlabelled = true", "unlabelled = false", r"unlabelled: Input should be True"),
        ("[splits]", '[classes]\na = "a"\n[splits]', r"classes has no effect on samples with"),
        ("unlabelled", 'prompts = ["{}"]\nunlabelled', r"prompts has no effect on samples with"),
        ("unlabelled", 'sensor = "rgb"\nunlabelled', r"sensor has no effect beside \[sensors\]"),
        ("unlabelled", "dn_offset = 0\nunlabelled", r"dn_offset has no effect beside"),
        ('root = "s2"', 'rot = "s2"', r"sensors.sentinel2-l2a: unknown key 'rot'; did you mean"),
        ('root = "s2"', 'root = "../s2"', r"sensors.sentinel2-l2a.root: '../s2' leads outside"),
        ('root = "s2"', 'root = "s3"', r"pairs/s3 not found"),
        ('root = "jpg"', 'root = "jpg"\nunits = "dn"', r"units has no effect on sensor 'rgb'"),
        ("[sensors.rgb]", "[sensors.rbg]", r"unknown sensor 'rbg'"),
        ('"train.txt"', '"pairs.txt"', r"splits.train: pairs.txt not found .*; looked in"),
    ],
)
def test_a_wrong_declaration_of_pairs_is_one_clear_line(
    pairs: Path, old: str, new: str, message: str
) -> None:
    with pytest.raises(TerralignError, match=message) as caught:
        open_pairs(pairs, PAIRS.replace(old, new, 1), split="train")
    assert "\n" not in str(caught.value)


def test_a_list_names_images_that_are_there(pairs: Path) -> None:
    (pairs / "pairs/train.txt").write_text("a/y.jpg\n")
    with pytest.raises(DataError, match=r"train.txt: 'a/y.jpg' is no image below"):
        open_pairs(pairs, split="train")


def test_hidden_files_are_passed_over_and_none_at_all_is_an_error(tmp_path: Path) -> None:
    text = 'name = "x"\nreader = "folder"\nsensor = "rgb"\nroot = "pairs"\nunlabelled = true\n'
    for name in (".hidden/a.png", "b/.c.png"):
        file = tmp_path / "pairs" / name
        file.parent.mkdir(parents=True)
        Image.new("RGB", (4, 4)).save(file)
    with pytest.raises(DataError, match=r"no image found below .*pairs"):
        open_pairs(tmp_path, text)
    Image.new("RGB", (4, 4)).save(tmp_path / "pairs/d.png")
    Image.new("RGB", (4, 4)).save(tmp_path / "pairs/d.JPG")
    assert open_pairs(tmp_path, text).keys == ("d.JPG", "d.png")


TREE = 'name = "x"\nreader = "folder"\nsensor = "rgb"\nroot = "pairs"\nunlabelled = true\n'


def test_files_of_a_tree_that_are_left_out_are_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("a.png", "deep/er/b.webp", "deep/c.bmp"):
        (tmp_path / "pairs" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4)).save(tmp_path / "pairs" / name)
    for name in ("a.npy", "deep/er/d.jp2", "deep/er/notes.txt"):
        (tmp_path / "pairs" / name).write_bytes(b"x")
    (tmp_path / "linked").mkdir()
    Image.new("RGB", (4, 4)).save(tmp_path / "linked" / "e.png")
    (tmp_path / "pairs" / "link").symlink_to(tmp_path / "linked")
    with caplog.at_level(logging.WARNING):
        assert open_pairs(tmp_path, TREE).keys == ("a", "deep/c", "deep/er/b", "link/e")
    assert "left out: 2 files" in caplog.text
    assert ".npy 1" in caplog.text
    assert ".jp2 1" in caplog.text
    (tmp_path / "pairs" / "broken.png").symlink_to(tmp_path / "nowhere.png")
    with pytest.raises(DataError, match=r"broken.png is a link to .*nowhere.png, which is missing"):
        open_pairs(tmp_path, TREE)


def test_a_list_of_a_tree_names_each_image_once_and_as_it_is_called(tmp_path: Path) -> None:
    (tmp_path / "pairs" / "a").mkdir(parents=True)
    Image.new("RGB", (4, 4)).save(tmp_path / "pairs" / "a" / "x.JPG")
    listed = tmp_path / "pairs" / "train.txt"
    text = TREE + '[splits]\ntrain = "train.txt"\n'
    listed.write_text("a/x.JPG\na//x.JPG\n")
    with pytest.raises(DataError, match=r"'a//x.JPG' names x.JPG a second time"):
        open_pairs(tmp_path, text, split="train")
    listed.write_text("a/x.jpg\n")
    with pytest.raises(DataError, match=r"'a/x.jpg' is no image below .*did you mean 'a/x.JPG'"):
        open_pairs(tmp_path, text, split="train")


@pytest.mark.realdata
def test_the_real_aid_folder_with_class_names_of_ones_own(real_data: Path, tmp_path: Path) -> None:
    classes = "\n".join(
        f'{folder} = "my {name}"' for folder, name in load_class_list("aid").items()
    )
    path = tmp_path / "my-aid.toml"
    path.write_text(
        'name = "my-aid"\nreader = "folder"\nsensor = "rgb"\nroot = "aid"\n'
        f'prompts = ["{{}} seen from a plane"]\n[classes]\n{classes}\n'
    )
    samples = open_dataset(str(path), data_root=real_data, split="test", size=64)
    assert len(samples) == 600
    assert samples.labels is not None
    assert samples.labels.class_names[0] == "my airport"
    assert samples.read(np.array([0, 599]))["rgb"].shape == (2, 3, 64, 64)


@pytest.mark.realdata
def test_real_geotiffs_below_a_folder_without_labels(real_data: Path, tmp_path: Path) -> None:
    path = tmp_path / "patches.toml"
    path.write_text(
        'name = "patches"\nreader = "folder"\nroot = "formats/s2_l2a_224"\nunlabelled = true\n'
        'sensor = "sentinel2-l2a"\ndn_offset = 0\nbands = ["B01", "B02", "B03", "B04", "B05", '
        '"B06", "B07", "B08", "B8A", "B09", "B11", "B12"]\n'
    )
    samples = open_dataset(str(path), data_root=real_data, split="all")
    assert isinstance(samples, FileSet)
    assert samples.keys[0] == "282D_485L_3_3"
    got = samples.read(np.arange(5))["sentinel2-l2a"]
    for index, name in enumerate(samples.keys):
        with rasterio.open(real_data / f"formats/s2_l2a_224/{name}.tif") as file:
            np.testing.assert_array_equal(got[index], file.read())
            expected = transform_bounds(file.crs, "EPSG:4326", *file.bounds)
        assert samples.place(index).bounds == pytest.approx(expected, abs=1e-9)
