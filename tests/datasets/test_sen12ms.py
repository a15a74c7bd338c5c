"""SEN12MS: triplets of files, scenes as splits, land cover as single and as multiple labels."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

import numpy as np
import pytest

from fake_world.files import write_tif
from terralign.datasets.class_lists import read_table
from terralign.datasets.published.sen12ms import open_sen12ms, shares_of, simplified_names
from terralign.errors import DataError
from terralign.sensors import SENSORS

SPRING, SUMMER = "ROIs1158_spring", "ROIs1868_summer"
PATCHES = [(SPRING, 1, 30), (SPRING, 2, 4), (SPRING, 2, 10), (SUMMER, 146, 201), (SUMMER, 146, 202)]
KEYS = [f"{season}_s2_{scene}_p{patch}" for season, scene, patch in PATCHES]
DAMAGED = KEYS[4]


def land_cover(**percent: int) -> np.ndarray:
    """(4, 256, 256): `c1=60` makes 60 % of band 1 IGBP code 1, the rest is 17, water."""
    codes = np.full(256 * 256, 17, np.uint16)
    start = 0
    for name, share in percent.items():
        stop = start + round(codes.size * share / 100)
        codes[start:stop] = int(name[1:])
        start = stop
    others = np.full((3, 256, 256), 99, np.uint16)
    return np.concatenate([codes.reshape(1, 256, 256), others])


COVER = [
    land_cover(c1=20, c5=20, c10=50),
    land_cover(c12=30, c14=26, c16=4),
    land_cover(c10=45, c6=30, c7=25),
    land_cover(c13=100),
    land_cover(c15=100),
]


def path_of(base: Path, kind: str, number: int) -> Path:
    season, scene, patch = PATCHES[number]
    return base / season / f"{kind}_{scene}" / f"{season}_{kind}_{scene}_p{patch}.tif"


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("sen12ms")
    base = root / "sen12ms"
    bands = np.arange(1, 14, dtype=np.uint16)[:, None, None]
    for number, cover in enumerate(COVER):
        optical = np.broadcast_to(bands * 10 + number, (13, 256, 256))
        write_tif(path_of(base, "s2", number), optical.astype(np.uint16))
        radar = np.stack([np.full((256, 256), -10.5 - number), np.full((256, 256), -17.5)])
        write_tif(path_of(base, "s1", number), radar)
        write_tif(path_of(base, "lc", number), cover)
    (base / "SEN12MS_holdOutScenes.txt").write_text(f"{SPRING}/s1_2\n")
    (base / "ValidationScenes.txt").write_text(f"{SPRING}/s2_1")
    return root


@pytest.fixture
def root(template: Path, tmp_path: Path) -> Path:
    shutil.copytree(template, tmp_path, dirs_exist_ok=True)
    return tmp_path


def test_the_simplified_scheme_is_its_authors() -> None:
    table = read_table("sen12ms")
    assert set(table["simplified"]) == set(table["igbp"]) == {str(code) for code in range(1, 18)}
    assert set(table["prompts"]) == set(table["simplified"].values())
    assert simplified_names() == (
        *("Forest", "Shrubland", "Savanna", "Grassland", "Wetlands", "Croplands"),
        *("Urban/Built-up", "Snow/Ice", "Barren", "Water"),
    )
    members = [[1, 2, 3, 4, 5], [6, 7], [8, 9], [10], [11], [12, 14], [13], [15], [16], [17]]
    for index, codes in enumerate(members):
        for code in codes:
            assert shares_of(np.array([code])).tolist() == np.eye(10)[index].tolist()


def test_a_class_of_ten_percent_is_a_label_and_the_largest_the_single_one(root: Path) -> None:
    several = open_sen12ms(root, "all")
    assert list(several.keys) == KEYS[:4]
    assert several.labels is not None
    names = simplified_names()
    assert [{names[i] for i in np.flatnonzero(row)} for row in several.labels.values] == [
        {"Forest", "Grassland", "Water"},
        {"Croplands", "Water"},
        {"Grassland", "Shrubland"},
        {"Urban/Built-up"},
    ]
    one = open_sen12ms(root, "all", multi_label=False)
    assert one.labels is not None
    assert [names[i] for i in one.labels.values] == [
        "Grassland",
        "Croplands",  # 30 % and 26 % of two codes exceed the 40 % of water
        "Shrubland",
        "Urban/Built-up",
    ]
    assert one.labels.class_names[6] == "town or city"
    assert one.fingerprint != several.fingerprint


def test_just_below_ten_percent_is_no_label() -> None:
    codes = np.full(65536, 17)
    codes[:6553] = 16
    assert shares_of(codes)[8] < 0.1
    codes[6553] = 16
    assert shares_of(codes)[8] >= 0.1


def test_pixels_without_a_class_are_part_of_the_whole() -> None:
    assert shares_of(np.array([255, 0, 16, 17])).tolist() == [0] * 8 + [0.25, 0.25]


def test_splits_are_scenes_and_never_share_one(root: Path) -> None:
    keys = {split: open_sen12ms(root, split).keys for split in ("train", "val", "test", "trainval")}
    assert keys == {
        "train": (KEYS[3],),
        "val": (KEYS[0],),
        "test": (KEYS[1], KEYS[2]),
        "trainval": (KEYS[0], KEYS[3]),
    }
    with pytest.raises(DataError, match="splits: train, val, test, trainval, all"):
        open_sen12ms(root, "validation")
    (root / "sen12ms" / "ValidationScenes.txt").unlink()
    assert open_sen12ms(root / "sen12ms", "trainval").keys == keys["trainval"]
    with pytest.raises(DataError, match=r"'train' needs the list .*ValidationScenes.txt"):
        open_sen12ms(root, "train")


def test_the_damaged_patch_is_left_out_and_counted(
    root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        assert DAMAGED not in open_sen12ms(root, "train").keys
    assert "1 of 2 patches left out, because they are damaged" in caplog.text


def test_triplets_are_read_together_with_their_bands_named(root: Path) -> None:
    samples = open_sen12ms(root, "test")
    pixels = samples.read(np.array([1, 0]))
    assert pixels["sentinel2-l1c"].shape == (2, 13, 256, 256)
    assert pixels["sentinel2-l1c"].dtype == np.uint16
    assert pixels["sentinel1-grd"].dtype == np.float32
    assert pixels["sentinel1-grd"][:, :, 3, 3].tolist() == [[-12.5, -17.5], [-11.5, -17.5]]
    optical, radar = samples.layouts["sentinel2-l1c"], samples.layouts["sentinel1-grd"]
    channel = optical.bands.index("B8A")
    assert pixels["sentinel2-l1c"][:, channel, 0, 0].tolist() == [92, 91]
    assert optical.bands == SENSORS["sentinel2-l1c"].band_names
    assert (optical.units, optical.dn_offset, radar.units) == ("dn", 0, "physical")
    assert optical.composite is not None
    assert optical.composite.name == "paper-l1c"


def test_place_is_known_and_time_is_not(root: Path) -> None:
    place = open_sen12ms(root, "val").place(0)
    assert place.datetime is None
    assert place.bounds is not None
    west, south, east, north = place.bounds
    assert 13.71 < west < east < 13.75
    assert 48.20 < south < north < 48.23


@pytest.mark.parametrize("kind", ["s1", "s2", "lc"])
def test_a_file_missing_of_a_triplet_is_named(root: Path, kind: str) -> None:
    missing = path_of(root / "sen12ms", kind, 2)
    missing.unlink()
    message = rf"2 patches, of which 1 .*{missing.name} first; unpack {SPRING}_{kind}.tar.gz again"
    with pytest.raises(DataError, match=message):
        open_sen12ms(root, "test")
    assert len(open_sen12ms(root, "val")) == 1


def test_a_scene_that_a_list_names_must_be_there(root: Path) -> None:
    base = root / "sen12ms"
    (base / "SEN12MS_holdOutScenes.txt").write_text(f"{SPRING}/s1_2\nROIs1970_fall/s1_39\n")
    with pytest.raises(DataError, match=r"2 scenes, of which 1 .*ROIs1970_fall/s2_39 first"):
        open_sen12ms(root, "test")
    (base / "ValidationScenes.txt").write_text("scene 7\n")
    with pytest.raises(DataError, match=r"'scene 7' is no scene such as"):
        open_sen12ms(root, "val")
    with pytest.raises(DataError, match="'sen12ms' not found"):
        open_sen12ms(root / "elsewhere", "val")


def test_faults_of_the_files_are_told(root: Path) -> None:
    base = root / "sen12ms"
    samples = open_sen12ms(root, "val")
    optical = path_of(base, "s2", 0)
    whole = optical.read_bytes()
    optical.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=rf"{optical.name} is (damaged|not a readable GeoTIFF)"):
        samples.read(np.array([0]))
    write_tif(optical, np.zeros((13, 64, 64), np.uint16))
    with pytest.raises(DataError, match=r"is 13x64x64 uint16; expected 13x256x256 uint16"):
        samples.read(np.array([0]))
    cover = land_cover(c1=50)
    cover[0, 7, 7] = 18
    write_tif(path_of(base, "lc", 0), cover)
    with pytest.raises(DataError, match=r"_lc_1_p30.tif: 18 is no IGBP class"):
        open_sen12ms(root, "val")


@pytest.mark.parametrize("multi_label", [True, False])
def test_a_patch_of_unknown_land_cover_is_left_out_and_counted(
    root: Path, multi_label: bool, caplog: pytest.LogCaptureFixture
) -> None:
    write_tif(path_of(root / "sen12ms", "lc", 1), land_cover(c255=60, c0=40))
    with caplog.at_level(logging.INFO):
        samples = open_sen12ms(root, "test", multi_label=multi_label)
    assert samples.keys == (KEYS[2],)
    assert samples.labels is not None
    assert len(samples.labels.values) == 1
    assert "1 of 2 patches left out, because their land cover is unknown" in caplog.text
