"""BigEarthNet: nomenclatures from CORINE codes, the small arrays, the folders of version 1."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import rasterio
from rasterio import Affine

from terralign.datasets.bigearthnet import open_bigearthnet_mini, open_bigearthnet_v1, read_patch
from terralign.datasets.class_lists import read_table
from terralign.datasets.corine import labels_from_names, labels_from_pixels, nomenclature
from terralign.errors import DataError
from terralign.sensors import SENSORS


def test_nomenclatures_have_their_number_of_classes() -> None:
    for num_classes in (43, 19, 5):
        known = nomenclature(num_classes)  # type: ignore[arg-type]
        assert len(set(known.names)) == len(set(known.class_names)) == num_classes
        assert len(known.class_of_code) == 43
    assert nomenclature(19).names[:3] == (
        "Urban fabric",
        "Industrial or commercial units",
        "Arable land",
    )
    assert nomenclature(19).names[-2:] == ("Inland waters", "Marine waters")
    assert nomenclature(43).names[0] == "Continuous urban fabric"


def test_every_prompt_belongs_to_a_class() -> None:
    table = read_table("bigearthnet")
    used = set(nomenclature(43).names) | set(nomenclature(19).names)
    assert set(table["prompts"]) == used
    assert set(table["prompts_level_1"]) == set(table["level_1"].values())


def test_the_19_classes_drop_eleven_of_the_43() -> None:
    dropped = {code for code, index in nomenclature(19).class_of_code.items() if index is None}
    assert dropped == {122, 123, 124, 131, 132, 133, 141, 142, 332, 334, 423}


@pytest.mark.parametrize(
    ("code", "fine", "merged", "coarse"),
    [
        (112, "Discontinuous urban fabric", "Urban fabric", "Artificial surfaces"),
        (213, "Rice fields", "Arable land", "Agricultural areas"),
        (
            241,
            "Annual crops associated with permanent crops",
            "Permanent crops",
            "Agricultural areas",
        ),
        (
            333,
            "Sparsely vegetated areas",
            "Natural grassland and sparsely vegetated areas",
            "Forest and semi-natural areas",
        ),
        (422, "Salines", "Coastal wetlands", "Wetlands"),
        (512, "Water bodies", "Inland waters", "Water bodies"),
        (523, "Sea and ocean", "Marine waters", "Water bodies"),
    ],
)
def test_codes_map_as_published(code: int, fine: str, merged: str, coarse: str) -> None:
    for num_classes, name in ((43, fine), (19, merged), (5, coarse)):
        known = nomenclature(num_classes)  # type: ignore[arg-type]
        index = known.class_of_code[code]
        assert index is not None
        assert known.names[index] == name


def codes(**shares: int) -> np.ndarray:
    """(1, 10, 100) CORINE codes: `c312=30` makes 30 of the 1000 pixels 312; the rest is 211."""
    flat = np.full(1000, 211, np.int16)
    start = 0
    for name, number in shares.items():
        flat[start : start + number] = int(name[1:])
        start += number
    return flat.reshape(1, 10, 100)


def names_of(pixels: np.ndarray, num_classes: int) -> set[str]:
    row = labels_from_pixels(pixels, num_classes)[0]  # type: ignore[arg-type]
    return {nomenclature(num_classes).names[index] for index in np.flatnonzero(row)}  # type: ignore[arg-type]


def test_a_class_is_a_label_from_one_percent_on() -> None:
    assert "Coniferous forest" in names_of(codes(c312=10), 43)
    assert "Coniferous forest" not in names_of(codes(c312=9), 43)


def test_merged_classes_count_their_pixels_together() -> None:
    pixels = codes(c511=6, c512=6)
    assert names_of(pixels, 43) == {"Non-irrigated arable land"}
    assert names_of(pixels, 19) == {"Arable land", "Inland waters"}
    assert names_of(pixels, 5) == {"Agricultural areas", "Water bodies"}


def test_a_patch_of_dropped_or_ignored_codes_has_no_label() -> None:
    assert names_of(codes(c124=1000), 19) == set()
    assert names_of(codes(c124=1000), 5) == {"Artificial surfaces"}
    assert names_of(codes(c335=500, c999=500), 43) == set()


def test_an_unknown_code_is_an_error() -> None:
    with pytest.raises(DataError, match="44 is no CORINE level-3 code"):
        labels_from_pixels(codes(c44=5), 19)


def test_labels_from_names_agree_with_labels_from_pixels() -> None:
    fine = nomenclature(43)
    for code, index in fine.class_of_code.items():
        assert index is not None
        pixels = np.full((1, 4, 4), code)
        for num_classes in (43, 19, 5):
            from_names = labels_from_names([[fine.names[index]]], num_classes)  # type: ignore[arg-type]
            from_pixels = labels_from_pixels(pixels, num_classes)  # type: ignore[arg-type]
            np.testing.assert_array_equal(from_names, from_pixels)
    with pytest.raises(DataError, match="'Tundra' is no class"):
        labels_from_names([["Tundra"]], 19)


@pytest.fixture
def mini(tmp_path: Path) -> Path:
    folder = tmp_path / "bigearthnet_mini"
    folder.mkdir()
    rng = np.random.default_rng(0)
    np.savez_compressed(
        folder / "patches.npz",
        s2_dn=rng.integers(1, 5000, (10, 4, 120, 120), dtype=np.uint16),
        s1_db=rng.normal(-12, 2, (10, 2, 120, 120)).astype(np.float16),
        clc=np.full((10, 120, 120), 312, np.int16),
    )
    return tmp_path


def test_mini_splits_are_disjoint_and_whole(mini: Path) -> None:
    rows = {split: open_bigearthnet_mini(mini, split).rows for split in ("train", "val", "test")}
    assert {split: len(part) for split, part in rows.items()} == {"train": 6, "val": 2, "test": 2}
    assert sorted(np.concatenate(list(rows.values()))) == list(range(10))


def test_mini_pairs_optical_and_radar(mini: Path) -> None:
    samples = open_bigearthnet_mini(mini, "val", num_classes=5)
    assert samples.name == "bigearthnet-mini-5"
    assert samples.layouts["sentinel2-l2a"].bands == ("B02", "B03", "B04", "B08")
    assert samples.layouts["sentinel1-grd"].units == "physical"
    assert samples.labels is not None
    assert samples.labels.multi_label
    assert samples.labels.values.tolist() == [[False, False, True, False, False]] * 2
    with np.load(mini / "bigearthnet_mini" / "patches.npz") as file:
        got = samples.read(np.array([1]))
        np.testing.assert_array_equal(got["sentinel2-l2a"][0], file["s2_dn"][8])
        np.testing.assert_array_equal(got["sentinel1-grd"][0], file["s1_db"][8].astype("f4"))


def write_patch(root: Path, name: str, labels: list[str]) -> Path:
    patch = root / name
    patch.mkdir(parents=True)
    for number, band in enumerate(SENSORS["sentinel2-l2a"].bands, start=1):
        side = round(1200 / (band.gsd_m or 10))
        settings = {"driver": "GTiff", "count": 1, "dtype": "uint16"}
        place = {"height": side, "width": side, "transform": Affine(10, 0, 0, 0, -10, 0)}
        with rasterio.open(patch / f"{name}_{band.name}.tif", "w", **settings, **place) as file:
            file.write(np.full((1, side, side), number * 100, np.uint16))
    (patch / f"{name}_labels_metadata.json").write_text(json.dumps({"labels": labels}))
    return patch


FIRST, SECOND = "S2A_MSIL2A_20170613T101031_1_2", "S2B_MSIL2A_20170924T93020_3_4"


@pytest.fixture
def v1(tmp_path: Path) -> Path:
    write_patch(tmp_path / "BigEarthNet-v1.0", FIRST, ["Pastures", "Airports"])
    write_patch(tmp_path / "BigEarthNet-v1.0", SECOND, ["Water bodies"])
    (tmp_path / "val.csv").write_text(f"{SECOND},S1A_paired\n")
    return tmp_path


def test_v1_patches_come_on_one_grid_with_their_labels(v1: Path) -> None:
    samples = open_bigearthnet_v1(v1, "all")
    assert samples.keys == (FIRST, SECOND)
    pixels = samples.read(np.arange(2))["sentinel2-l2a"]
    assert pixels.shape == (2, 12, 120, 120)
    expected = np.arange(100, 1300, 100)[:, None, None]
    assert (pixels == expected).all()
    assert samples.labels is not None
    names = nomenclature(19).names
    assert [[names[i] for i in np.flatnonzero(row)] for row in samples.labels.values] == [
        ["Pastures"],
        ["Inland waters"],
    ]
    assert samples.layouts["sentinel2-l2a"].dn_offset == 0


def test_v1_splits_are_lists_beside_the_patches(v1: Path) -> None:
    assert open_bigearthnet_v1(v1, "val", num_classes=43).keys == (SECOND,)
    with pytest.raises(DataError, match=r"no split 'test'.*there: all, val"):
        open_bigearthnet_v1(v1, "test")
    with pytest.raises(DataError, match="holds no BigEarthNet v1 patches"):
        open_bigearthnet_v1(v1 / "elsewhere", "all")


def test_v1_faults_are_named(v1: Path) -> None:
    patch = v1 / "BigEarthNet-v1.0" / FIRST
    samples = open_bigearthnet_v1(v1, "all")
    (patch / f"{FIRST}_B8A.tif").write_text("broken")
    with pytest.raises(DataError, match=r"B8A.tif is not a readable GeoTIFF"):
        samples.read(np.array([0]))
    (patch / f"{FIRST}_B8A.tif").unlink()
    with pytest.raises(DataError, match=r"B8A.tif is not there"):
        read_patch(patch)
    (patch / f"{FIRST}_labels_metadata.json").write_text('{"classes": []}')
    with pytest.raises(DataError, match="has no list 'labels'"):
        open_bigearthnet_v1(v1, "all")


@pytest.mark.realdata
def test_real_mini_has_labels_in_every_nomenclature(real_data: Path) -> None:
    for num_classes in (43, 19, 5):
        samples = open_bigearthnet_mini(real_data, "all", num_classes=num_classes)  # type: ignore[arg-type]
        assert samples.labels is not None
        assert samples.labels.values.shape == (70, num_classes)
        assert samples.labels.values.any(axis=1).all()
    assert [len(open_bigearthnet_mini(real_data, one)) for one in ("train", "val", "test")] == [
        42,
        14,
        14,
    ]


@pytest.mark.realdata
def test_real_v1_patches_read_as_rasterio_reads_them(real_data: Path) -> None:
    root = real_data / "formats" / "bigearthnet_v1"
    samples = open_bigearthnet_v1(root, "all", num_classes=43)
    assert len(samples) == 6
    pixels = samples.read(np.arange(6))["sentinel2-l2a"]
    bands = samples.layouts["sentinel2-l2a"].bands
    for patch, got in zip(samples.files, pixels, strict=True):
        for band in ("B02", "B08"):
            with rasterio.open(patch / f"{patch.name}_{band}.tif") as source:
                np.testing.assert_array_equal(got[bands.index(band)], source.read(1))
        with rasterio.open(patch / f"{patch.name}_B8A.tif") as source:
            coarse = source.read(1).astype(float)
        ours = got[bands.index("B8A")].reshape(60, 2, 60, 2).mean((1, 3))
        assert np.corrcoef(ours.ravel(), coarse.ravel())[0, 1] > 0.98
    assert samples.labels is not None
    index = samples.keys.index("S2A_MSIL2A_20170613T101031_87_48")
    assert samples.labels.values[index].sum() == 2
