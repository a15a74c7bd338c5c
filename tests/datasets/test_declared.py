"""A data set from a TOML file: all of it declared, and every mistake in it named."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import rasterio
from PIL import Image
from rasterio import Affine

from terralign.datasets.catalog import find_dataset, open_dataset
from terralign.datasets.class_lists import load_class_list
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
        ('"folder"', '"zip"', r"reader: Input should be 'folder'"),
        ('name = "harbours"', "", r"key .name. is missing"),
        ('name = "harbours"', 'name = "../x"', r"name: String should match"),
        ('reader = "folder"', 'reder = "folder"', r"unknown key 'reder'; did you mean 'reader'"),
        ('"{} from above"', '"from above"', r"'from above' needs {} once"),
        ('"{} from above"', '"{} and {}"', r"needs {} once"),
        ('"rgb"', '"rbg"', r"unknown sensor 'rbg'; did you mean 'rgb'"),
        ('Yard = "a container yard"', "", r"folders without a class: Yard"),
        ("Yard =", 'Quay = "a quay"\nYard =', r"no folder for the classes Quay"),
        ('"a container yard"', '"a dock with ships"', r"two folders have the class 'a dock"),
        ('"a container yard"', '" "', r"'Yard' has no name"),
        ('"harbours/images"', '"/etc"', r"root: '/etc' leads outside"),
        ('"harbours/images"', '"../x"', r"root: '../x' leads outside"),
        ('"harbours/images"', '"elsewhere"', r"elsewhere is not there"),
        ('"test.txt"', '"../test.txt"', r"splits.test: '../test.txt' leads outside"),
        ('"test.txt"', '"gone.txt"', r"splits.test: gone.txt is neither in"),
        ("test =", "val =", r"no split 'test'; .*harbours.toml declares train, val"),
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


def write_tile(path: Path, num_bands: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    settings = {"driver": "GTiff", "dtype": "uint16", "transform": Affine(10, 0, 0, 0, -10, 0)}
    with rasterio.open(path, "w", count=num_bands, height=4, width=4, **settings) as file:
        file.write(np.full((num_bands, 4, 4), 321, np.uint16))


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
        ('"B8a"', '"B13"', r"unknown band 'B13'"),
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
