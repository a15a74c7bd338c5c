"""EuroSAT in the official layouts: splits by list, B8A last on disk, JPEG = DN / 2750."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import rasterio
from PIL import Image
from rasterio import Affine

from terralign.datasets.class_folders import read_split_list
from terralign.datasets.class_lists import load_class_list
from terralign.datasets.file_set import FileSet
from terralign.datasets.published.scene_classes import (
    ARCHIVES,
    BANDS_ON_DISK,
    open_scene_classes,
)
from terralign.errors import DataError
from terralign.sensors import SENSORS

CLASSES = list(load_class_list("eurosat"))
MS_FOLDER = ARCHIVES["eurosat-ms"].images[0].removeprefix("eurosat_ms/")


def open_eurosat_rgb(root: Path, split: str) -> FileSet:
    return open_scene_classes("eurosat-rgb", root, split)


def open_eurosat_ms(root: Path, split: str) -> FileSet:
    return open_scene_classes("eurosat-ms", root, split)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two tiles of each class as JPEG and GeoTIFF; the GeoTIFF's bands hold their own number."""
    for name in CLASSES:
        for number in (1, 2):
            jpeg = tmp_path / f"eurosat_rgb/2750/{name}/{name}_{number}.jpg"
            jpeg.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (64, 64), (number, 0, 0)).save(jpeg)
            tile = tmp_path / f"eurosat_ms/{MS_FOLDER}/{name}/{name}_{number}.tif"
            tile.parent.mkdir(parents=True, exist_ok=True)
            size = {"count": 13, "height": 64, "width": 64, "dtype": "uint16"}
            with rasterio.open(tile, "w", transform=Affine(10, 0, 0, 0, -10, 0), **size) as file:
                file.write(np.ones((13, 64, 64), np.uint16) * np.arange(1, 14)[:, None, None])
    for folder in ("eurosat_rgb", "eurosat_ms"):
        first = "\n".join(f"{name}_1.jpg" for name in reversed(CLASSES))
        (tmp_path / folder / "eurosat-spatial-val.txt").write_text(first)
        (tmp_path / folder / "eurosat-test.txt").write_text("River_2.jpg\n")
    return tmp_path


def test_a_split_is_what_its_list_names(root: Path) -> None:
    rgb, ms = open_eurosat_rgb(root, "val"), open_eurosat_ms(root, "val")
    assert rgb.keys == ms.keys == tuple(f"{name}/{name}_1" for name in CLASSES)
    assert rgb.labels is not None
    assert rgb.labels.values.tolist() == list(range(10))
    assert rgb.labels.class_names[9] == "sea or lake"
    assert rgb.labels.class_list == "eurosat"
    assert rgb.read(np.arange(10))["rgb"].shape == (10, 3, 64, 64)


def test_random_splits_and_the_whole_set(root: Path) -> None:
    assert open_eurosat_rgb(root, "random-test").keys == ("River/River_2",)
    assert len(open_eurosat_rgb(root, "all")) == 20
    assert len(open_eurosat_ms(root, "all")) == 20


def test_the_archives_on_zenodo_give_the_same(root: Path) -> None:
    rgb, ms = open_eurosat_rgb(root, "val"), open_eurosat_ms(root, "val")
    (root / "eurosat_rgb/2750").rename(root / "eurosat_rgb/EuroSAT_RGB")
    (root / "eurosat_ms" / MS_FOLDER).rename(root / "eurosat_ms/EuroSAT_MS")
    assert open_eurosat_rgb(root, "val").fingerprint == rgb.fingerprint
    assert open_eurosat_ms(root, "val").fingerprint == ms.fingerprint
    assert open_eurosat_ms(root, "random-test").keys == ("River/River_2",)


def test_the_data_root_may_be_the_sets_own_folder(root: Path) -> None:
    assert open_eurosat_rgb(root / "eurosat_rgb", "val").keys == open_eurosat_rgb(root, "val").keys
    assert len(open_eurosat_ms(root / "eurosat_ms", "val")) == 10


def test_a_missing_split_lists_those_that_are_there(root: Path) -> None:
    with pytest.raises(DataError, match=r"no split 'train'.*splits: all, val, random-test$"):
        open_eurosat_rgb(root, "train")
    with pytest.raises(DataError, match="holds no eurosat_rgb/2750"):
        open_eurosat_rgb(root / "nowhere", "val")


def test_a_listed_file_that_is_missing_is_named(root: Path) -> None:
    (root / "eurosat_rgb/2750/Forest/Forest_1.jpg").unlink()
    with pytest.raises(DataError, match=r"'Forest_1.jpg' is no image below"):
        open_eurosat_rgb(root, "val")
    (root / "eurosat_rgb/eurosat-spatial-val.txt").write_text("Tundra_1.jpg")
    with pytest.raises(DataError, match=r"'Tundra_1.jpg' is no image below"):
        open_eurosat_rgb(root, "val")


def test_bands_are_named_in_their_order_on_disk(root: Path) -> None:
    samples = open_eurosat_ms(root, "val")
    layout = samples.layouts["sentinel2-l1c"]
    assert layout.bands == BANDS_ON_DISK
    assert layout.bands[-1] == "B8A"
    assert sorted(layout.bands) == sorted(SENSORS["sentinel2-l1c"].band_names)
    assert (layout.dn_offset, layout.units) == (0.0, "dn")
    assert layout.composite == SENSORS["sentinel2-l1c"].composite("eurosat")
    pixels = samples.read(np.array([0]))["sentinel2-l1c"][0]
    assert pixels[layout.bands.index("B8A"), 0, 0] == 13
    assert pixels[layout.bands.index("B09"), 0, 0] == 9


@pytest.mark.realdata
@pytest.mark.parametrize("split", ["train", "val"])
def test_real_splits_hold_what_their_lists_name(real_data: Path, split: str) -> None:
    rgb, ms = open_eurosat_rgb(real_data, split), open_eurosat_ms(real_data, split)
    for samples, folder in ((rgb, "eurosat_rgb"), (ms, "eurosat_ms")):
        named = read_split_list(real_data / folder / f"eurosat-spatial-{split}.txt")
        assert sorted(key.split("/")[1] for key in samples.keys) == sorted(
            Path(entry).stem for entry in named
        )
    assert len(rgb) > 1000
    assert len(set(ms.keys) & set(rgb.keys)) > 0.5 * len(ms)


@pytest.mark.realdata
def test_the_composite_of_a_real_tile_is_its_jpeg(real_data: Path) -> None:
    rgb, ms = open_eurosat_rgb(real_data, "val"), open_eurosat_ms(real_data, "val")
    layout = ms.layouts["sentinel2-l1c"]
    assert layout.composite is not None
    both = [key for key in ms.keys if key in set(rgb.keys)]
    jpegs = rgb.read(np.array([rgb.keys.index(key) for key in both]))["rgb"].astype(float)
    rows = np.array([ms.keys.index(key) for key in both])
    dn = ms.read(rows)["sentinel2-l1c"].astype(float)
    order = [layout.bands.index(name) for name in layout.composite.bands]
    physical = dn * layout.sensor.dn_scale
    ours = np.clip(physical[:, order] / layout.composite.stretch, 0, 1) * 255
    assert np.abs(ours - jpegs).mean() < 4
    for wrong in ([order[1], order[0], order[2]], [one + 1 for one in order]):
        other = np.clip(physical[:, wrong] / layout.composite.stretch, 0, 1) * 255
        assert np.abs(other - jpegs).mean() > 8


@pytest.mark.realdata
def test_b8a_of_real_tiles_is_the_band_beside_b08(real_data: Path) -> None:
    """Over land B8A is B08's neighbour in wavelength; B09, in the water vapour band, is darker."""
    ms = open_eurosat_ms(real_data, "train")
    bands = ms.layouts["sentinel2-l1c"].bands
    dn = ms.read(np.arange(0, len(ms), 3))["sentinel2-l1c"].astype(float)
    mean = dict(zip(bands, dn.mean((0, 2, 3)), strict=True))
    assert abs(mean["B8A"] - mean["B08"]) < 0.2 * mean["B08"]
    assert mean["B09"] < 0.6 * mean["B8A"]
    assert mean["B10"] < 50
