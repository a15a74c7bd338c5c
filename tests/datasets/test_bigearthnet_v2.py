"""BigEarthNet version 2: the table of labels and splits, nested folders, reference maps."""

from __future__ import annotations

import datetime as dt
import logging
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import rasterio

from fake_world.files import write_optical, write_radar, write_tif
from terralign.datasets.published.bigearthnet_v2 import locate_patch, open_bigearthnet_v2
from terralign.datasets.published.corine import nomenclature
from terralign.errors import DataError

TILES = (
    "S2A_MSIL2A_20170613T101031_N9999_R022_T33UUP",
    "S2B_MSIL2A_20180204T094156_N9999_R036_T35VPK",
)
PATCHES = (f"{TILES[0]}_26_57", f"{TILES[0]}_75_43", f"{TILES[1]}_00_10")
SCENES = ("S1A_IW_GRDH_1SDV_20170613T165043", "S1B_IW_GRDH_1SDV_20180204T043253")
RADAR = (f"{SCENES[0]}_33UUP_26_57", f"{SCENES[0]}_33UUP_70_48", f"{SCENES[1]}_35VPK_0_10")

ROWS: dict[str, list[Any]] = {
    "patch_id": list(PATCHES),
    "labels": [["Pastures", "Mixed forest"], ["Urban fabric"], ["Marine waters"]],
    "split": ["train", "validation", "train"],
    "country": ["Austria", "Austria", "Finland"],
    "s1_name": list(RADAR),
    "s2v1_name": ["a", "b", "c"],
    "contains_seasonal_snow": [False, False, False],
    "contains_cloud_or_shadow": [False, False, False],
}


def write_table(root: Path, **changes: Any) -> None:
    columns = {name: values for name, values in (ROWS | changes).items() if values is not None}
    pq.write_table(pa.table(columns), root / "metadata.parquet")


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("v2") / "bigearthnet_v2"
    for number, (patch, radar) in enumerate(zip(PATCHES, RADAR, strict=True), start=1):
        tile = patch.rsplit("_", 2)[0]
        write_optical(root / "BigEarthNet-S2" / tile / patch, step=100 * number)
        scene = radar.rsplit("_", 3)[0]
        write_radar(root / "BigEarthNet-S1" / scene / radar, decibel=-10.0 * number)
        codes = np.full((1, 120, 120), (231, 112, 523)[number - 1], np.uint16)
        codes[0, 0, 0] = (313, 999, 124)[number - 1]
        path = root / "Reference_Maps" / tile / patch / f"{patch}_reference_map.tif"
        write_tif(path, codes)
    write_table(root)
    return root.parent


@pytest.fixture
def v2(template: Path, tmp_path: Path) -> Path:
    shutil.copytree(template, tmp_path, dirs_exist_ok=True)
    return tmp_path


def test_splits_and_labels_are_the_tables(v2: Path) -> None:
    train = open_bigearthnet_v2(v2, "train")
    assert train.keys == (PATCHES[0], PATCHES[2])
    assert open_bigearthnet_v2(v2, "val").keys == (PATCHES[1],)
    assert open_bigearthnet_v2(v2 / "bigearthnet_v2", "all").keys == PATCHES
    assert train.labels is not None
    names = nomenclature(19).names
    assert [[names[i] for i in np.flatnonzero(row)] for row in train.labels.values] == [
        ["Pastures", "Mixed forest"],
        ["Marine waters"],
    ]
    with pytest.raises(DataError, match=r"no split 'validation'; splits: train, val, test, all"):
        open_bigearthnet_v2(v2, "validation")
    with pytest.raises(DataError, match=r"split 'test' is empty"):
        open_bigearthnet_v2(v2, "test")


def test_pixels_of_both_sensors_belong_to_the_patch(v2: Path) -> None:
    samples = open_bigearthnet_v2(v2, "train", radar=True)
    assert samples.name == "bigearthnet-v2-mm-19"
    pixels = samples.read(np.array([1, 0]))
    assert pixels["sentinel2-l2a"].shape == (2, 12, 120, 120)
    assert (
        pixels["sentinel2-l2a"] == np.arange(1, 13)[:, None, None] * [[[[300]]], [[[100]]]]
    ).all()
    assert pixels["sentinel1-grd"][:, :, 9, 9].tolist() == [[-30.0, -36.0], [-10.0, -16.0]]
    assert samples.layouts["sentinel2-l2a"].dn_offset == 0
    assert set(open_bigearthnet_v2(v2, "train").layouts) == {"sentinel2-l2a"}


def test_five_classes_count_every_pixel_of_the_reference_map(v2: Path) -> None:
    samples = open_bigearthnet_v2(v2, "all", num_classes=5)
    assert samples.labels is not None
    assert samples.labels.values.tolist() == [
        [False, True, True, False, False],
        [True, False, False, False, False],
        [True, False, False, False, True],  # one pixel of an airport, which the 19 dropped
    ]
    tile_map = next((v2 / "bigearthnet_v2" / "Reference_Maps" / TILES[1]).glob("*/*.tif"))
    write_tif(tile_map, np.full((1, 120, 120), 44, np.uint16))
    with pytest.raises(DataError, match=r"_reference_map.tif: 44 is no CORINE level-3 code"):
        open_bigearthnet_v2(v2, "all", num_classes=5)
    shutil.rmtree(v2 / "bigearthnet_v2" / "Reference_Maps")
    with pytest.raises(DataError, match="made from the reference maps"):
        open_bigearthnet_v2(v2, "all", num_classes=5)


def test_patches_marked_as_covered_are_left_out_and_counted(
    v2: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_table(
        v2 / "bigearthnet_v2",
        contains_seasonal_snow=[True, False, False],
        contains_cloud_or_shadow=[True, True, False],
    )
    with caplog.at_level(logging.INFO):
        assert open_bigearthnet_v2(v2, "all").keys == (PATCHES[2],)
    assert "2 of 3 patches left out, because snow, cloud or shadow covers them" in caplog.text


def test_a_patch_without_a_label_is_left_out_with_its_partner(v2: Path) -> None:
    write_table(v2 / "bigearthnet_v2", labels=[[], ["Urban fabric"], ["Marine waters"]])
    samples = open_bigearthnet_v2(v2, "all", radar=True)
    assert samples.keys == PATCHES[1:]
    assert samples.labels is not None
    assert np.argwhere(samples.labels.values).tolist() == [[0, 0], [1, 18]]
    assert samples.read(np.array([0]))["sentinel1-grd"][0, 0, 0, 0] == -20


def test_patches_that_the_table_lists_but_are_not_there(v2: Path) -> None:
    root = v2 / "bigearthnet_v2"
    shutil.rmtree(root / "BigEarthNet-S1" / SCENES[1])
    assert len(open_bigearthnet_v2(v2, "val", radar=True)) == 1
    with pytest.raises(DataError, match=rf"of which 1 .*{RADAR[2]} first; unpack BigEarthNet-S1"):
        open_bigearthnet_v2(v2, "train", radar=True)
    shutil.rmtree(root / "BigEarthNet-S2" / TILES[0] / PATCHES[0])
    with pytest.raises(
        DataError, match=rf"2 patches of the split, of which 1 .*{PATCHES[0]} first; unpack"
    ):
        open_bigearthnet_v2(v2, "train")
    shutil.rmtree(root / "BigEarthNet-S2")
    with pytest.raises(DataError, match="'bigearthnet-v2-19' not found"):
        open_bigearthnet_v2(v2, "train")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labels": [["Pastures"], ["Town"], ["Pastures"]]}, rf"'Town', a label of {PATCHES[1]}"),
        ({"s1_name": None}, "has no column s1_name; download"),
        ({"split": ["train", None, "train"]}, "column split has empty entries"),
        ({"labels": ["Pastures", "Pastures", "Pastures"]}, "is not a readable Parquet file"),
        ({"patch_id": ["../../etc_1_1", *PATCHES[1:]]}, r"'../../etc_1_1' in column patch_id"),
        ({"patch_id": [PATCHES[1], *PATCHES[1:]]}, "names a patch twice"),
    ],
)
def test_faults_of_the_table_are_told(v2: Path, changes: dict[str, Any], message: str) -> None:
    write_table(v2 / "bigearthnet_v2", **changes)
    with pytest.raises(DataError, match=message):
        open_bigearthnet_v2(v2, "all", radar=True)


def test_a_damaged_table_and_a_missing_band_are_told(v2: Path) -> None:
    samples = open_bigearthnet_v2(v2, "all", radar=True)
    (samples.files[1] / f"{PATCHES[1]}_B12.tif").unlink()
    with pytest.raises(DataError, match=rf"{PATCHES[1]}_B12.tif not found"):
        samples.read(np.array([1]))
    table = v2 / "bigearthnet_v2" / "metadata.parquet"
    table.write_bytes(table.read_bytes()[:-20])
    with pytest.raises(DataError, match=r"metadata.parquet is not a readable Parquet"):
        open_bigearthnet_v2(v2, "all")


def test_a_name_with_an_impossible_time_is_told(tmp_path: Path) -> None:
    patch = tmp_path / "S2A_MSIL2A_99999999T999999_N9999_R065_T34VER_50_32"
    with pytest.raises(DataError, match=r"99999999T999999 in its name is no time"):
        locate_patch(patch)


def test_place_comes_from_the_grid_and_time_from_the_name(v2: Path) -> None:
    place = open_bigearthnet_v2(v2, "all").place(2)
    assert place.datetime == dt.datetime(2018, 2, 4, 9, 41, 56, tzinfo=dt.UTC)
    assert place.bounds is not None
    west, south, east, north = place.bounds
    assert 13.71 < west < east < 13.73
    assert 48.21 < south < north < 48.23


@pytest.mark.realdata
def test_real_patches_read_as_rasterio_reads_them(real_data: Path, tmp_path: Path) -> None:
    source = real_data / "formats" / "bigearthnet_v2"
    for folder in ("BigEarthNet-S2", "BigEarthNet-S1"):
        (tmp_path / folder).symlink_to(source / folder)
    radar = next((source / "BigEarthNet-S1").glob("*/*"))
    row = {name: values[1:2] for name, values in ROWS.items()} | {"s1_name": [radar.name]}
    pq.write_table(pa.table(row), tmp_path / "metadata.parquet")
    samples = open_bigearthnet_v2(tmp_path, "val", radar=True)
    pixels = samples.read(np.array([0]))
    with rasterio.open(samples.files[0] / f"{PATCHES[1]}_B04.tif") as band:
        np.testing.assert_array_equal(pixels["sentinel2-l2a"][0, 3], band.read(1))
    with rasterio.open(radar / f"{radar.name}_VV.tif") as band:
        np.testing.assert_array_equal(pixels["sentinel1-grd"][0, 0], band.read(1))


@pytest.mark.realdata
def test_real_numbers_come_below_an_offset_of_1000(real_data: Path) -> None:
    patch = next((real_data / "formats" / "bigearthnet_v2" / "BigEarthNet-S2").glob("*/*"))
    for name in ("B02", "B03", "B04", "B8A"):
        with rasterio.open(patch / f"{patch.name}_{name}.tif") as band:
            assert 0 < band.read(1).min() < 200


@pytest.mark.realdata
def test_a_real_reference_map_holds_corine_codes(real_data: Path) -> None:
    from terralign.datasets.published.corine import ANY_PRESENCE, labels_from_pixels

    path = next((real_data / "formats" / "bigearthnet_v2" / "Reference_Maps").glob("*/*/*.tif"))
    with rasterio.open(path) as source:
        codes = source.read()
    values = labels_from_pixels(codes, 5, ANY_PRESENCE)
    assert set(np.flatnonzero(values[0])) == {int(code) // 100 - 1 for code in np.unique(codes)}
