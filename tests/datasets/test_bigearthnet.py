"""BigEarthNet: nomenclatures from CORINE codes, and the small arrays."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from terralign.datasets.class_lists import read_table
from terralign.datasets.published.bigearthnet import open_bigearthnet_mini
from terralign.datasets.published.corine import (
    ANY_PRESENCE,
    labels_from_names,
    labels_from_pixels,
    nomenclature,
)
from terralign.datasets.sample import pixels_id
from terralign.errors import DataError


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


MERGED_AS_PUBLISHED = {
    "Urban fabric": (111, 112),
    "Industrial or commercial units": (121,),
    "Arable land": (211, 212, 213),
    "Permanent crops": (221, 222, 223, 241),
    "Pastures": (231,),
    "Complex cultivation patterns": (242,),
    "Land principally occupied by agriculture, with significant areas of natural vegetation": (
        243,
    ),
    "Agro-forestry areas": (244,),
    "Broad-leaved forest": (311,),
    "Coniferous forest": (312,),
    "Mixed forest": (313,),
    "Natural grassland and sparsely vegetated areas": (321, 333),
    "Moors, heathland and sclerophyllous vegetation": (322, 323),
    "Transitional woodland, shrub": (324,),
    "Beaches, dunes, sands": (331,),
    "Inland wetlands": (411, 412),
    "Coastal wetlands": (421, 422),
    "Inland waters": (511, 512),
    "Marine waters": (521, 522, 523),
}
"""The 19 classes in the published order, with the codes that each was merged from."""


def test_the_19_classes_are_merged_as_published() -> None:
    merged = nomenclature(19)
    assert merged.names == tuple(MERGED_AS_PUBLISHED)
    for index, codes_of_class in enumerate(MERGED_AS_PUBLISHED.values()):
        members = {code for code, target in merged.class_of_code.items() if target == index}
        assert members == set(codes_of_class)


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


def test_where_any_pixel_counts_one_is_enough_and_none_is_not() -> None:
    row = labels_from_pixels(codes(c312=1), 5, ANY_PRESENCE)[0]
    assert row.tolist() == [False, True, True, False, False]


def test_an_unknown_code_is_an_error() -> None:
    with pytest.raises(DataError, match="44 is no CORINE level-3 code"):
        labels_from_pixels(codes(c44=5), 19)
    for stray in (-5, 1000):
        pixels = codes()
        pixels[0, 0, 0] = stray
        with pytest.raises(DataError, match=f"{stray} is no CORINE level-3 code"):
            labels_from_pixels(pixels, 5)


def test_labels_from_names_agree_with_labels_from_pixels() -> None:
    fine = nomenclature(43)
    for code, index in fine.class_of_code.items():
        assert index is not None
        pixels = np.full((1, 4, 4), code)
        for num_classes in (43, 19, 5):
            from_names = labels_from_names([[fine.names[index]]], num_classes, origins=["a"])  # type: ignore[arg-type]
            from_pixels = labels_from_pixels(pixels, num_classes)  # type: ignore[arg-type]
            np.testing.assert_array_equal(from_names, from_pixels)


def test_a_name_outside_the_nomenclature_names_its_file_and_the_nearest() -> None:
    with pytest.raises(
        DataError, match=r"b: 'Rice field' is no class .*did you mean 'Rice fields'"
    ):
        labels_from_names([["Vineyards"], ["Rice field"]], 19, origins=["a", "b"])


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


def test_mini_of_every_nomenclature_has_the_same_pixels(mini: Path) -> None:
    sets = [open_bigearthnet_mini(mini, "val", num_classes=num) for num in (43, 19, 5)]
    assert len({one.fingerprint for one in sets}) == 3
    assert len({pixels_id(one) for one in sets}) == 1
    assert pixels_id(sets[0]) != pixels_id(open_bigearthnet_mini(mini, "test", num_classes=43))


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
