"""BigEarthNet version 1: folders of patches, split lists, Sentinel-1 partners, removals."""

from __future__ import annotations

import datetime as dt
import json
import logging
import shutil
from pathlib import Path

import numpy as np
import pytest
import rasterio

from fake_world.files import write_optical, write_radar, write_v1_json, write_v1_radar_json
from terralign.datasets.file_set import FileSet
from terralign.datasets.published.bigearthnet_v1 import open_bigearthnet_v1
from terralign.datasets.published.corine import NumClasses, nomenclature
from terralign.errors import DataError

FIRST = "S2A_MSIL2A_20170613T101031_1_2"
SECOND = "S2B_MSIL2A_20170924T93020_1_2"
AIRPORT = "S2B_MSIL2A_20170924T93020_3_4"
RADAR = {
    FIRST: "S1A_IW_GRDH_1SDV_20170613T165043_33UUP_1_2",
    SECOND: "S1A_IW_GRDH_1SDV_20170925T043256_33UUP_1_2",
    AIRPORT: "S1A_IW_GRDH_1SDV_20170925T043256_33UUP_3_4",
}
"""FIRST and SECOND lie at the same place: only the JSON tells their partners apart."""


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("v1")
    optical, radar = root / "BigEarthNet-v1.0", root / "BigEarthNet-S1-v1.0"
    labels = {FIRST: ["Pastures", "Airports"], SECOND: ["Water bodies"], AIRPORT: ["Airports"]}
    for number, (patch, names) in enumerate(labels.items(), start=1):
        write_v1_json(optical / patch, names, "33UUP")
        write_optical(optical / patch, step=100 * number)
        write_v1_radar_json(radar / RADAR[patch], patch)
        write_radar(radar / RADAR[patch], decibel=-10.0 * number)
    (root / "val.csv").write_text(f"{SECOND}\n{FIRST}\n")
    (root / "patches_with_seasonal_snow.csv").write_text("S2A_MSIL2A_20180101T000000_9_9\n")
    (root / "patches_with_cloud_and_shadow.csv").write_text("S2A_MSIL2A_20180101T000000_8_8\n")
    return root


@pytest.fixture
def v1(template: Path, tmp_path: Path) -> Path:
    shutil.copytree(template, tmp_path, dirs_exist_ok=True)
    return tmp_path


def label_names(samples: FileSet, num_classes: NumClasses) -> list[list[str]]:
    assert samples.labels is not None
    names = nomenclature(num_classes).names
    return [[names[i] for i in np.flatnonzero(row)] for row in samples.labels.values]


def test_patches_come_on_one_grid_with_their_labels(v1: Path) -> None:
    samples = open_bigearthnet_v1(v1, "all")
    assert samples.keys == (FIRST, SECOND)
    assert label_names(samples, 19) == [["Pastures"], ["Inland waters"]]
    assert set(samples.layouts) == {"sentinel2-l2a"}
    assert samples.layouts["sentinel2-l2a"].dn_offset == 0
    pixels = samples.read(np.arange(2))["sentinel2-l2a"]
    assert pixels.shape == (2, 12, 120, 120)
    assert pixels.dtype == np.uint16
    expected = np.arange(1, 13)[:, None, None]
    np.testing.assert_array_equal(pixels[0], np.broadcast_to(expected * 100, (12, 120, 120)))
    np.testing.assert_array_equal(pixels[1], np.broadcast_to(expected * 200, (12, 120, 120)))


def test_a_patch_without_any_of_the_19_classes_is_left_out_and_counted(
    v1: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        samples = open_bigearthnet_v1(v1, "all")
    assert AIRPORT not in samples.keys
    assert "1 of 3 patches left out, because none of their classes is among the 19" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.INFO):
        fine = open_bigearthnet_v1(v1, "all", num_classes=43)
        coarse = open_bigearthnet_v1(v1, "all", num_classes=5)
    assert fine.keys == coarse.keys == (FIRST, SECOND, AIRPORT)
    assert label_names(fine, 43) == [["Airports", "Pastures"], ["Water bodies"], ["Airports"]]
    assert label_names(coarse, 5) == [
        ["Artificial surfaces", "Agricultural areas"],
        ["Water bodies"],
        ["Artificial surfaces"],
    ]
    assert caplog.text == ""


def test_splits_are_lists_in_their_own_order(v1: Path) -> None:
    assert open_bigearthnet_v1(v1, "val").keys == (SECOND, FIRST)
    with pytest.raises(DataError, match=r"no split 'test'.*splits: all, val$"):
        open_bigearthnet_v1(v1, "test")
    with pytest.raises(DataError, match="no split 'patches_with_seasonal_snow'"):
        open_bigearthnet_v1(v1, "patches_with_seasonal_snow")
    with pytest.raises(DataError, match="'bigearthnet-19' not found"):
        open_bigearthnet_v1(v1 / "elsewhere", "all")


@pytest.mark.parametrize(
    "file", ["patches_with_seasonal_snow.csv", "patches_with_cloud_and_shadow.csv"]
)
@pytest.mark.parametrize(("split", "total"), [("val", 2), ("all", 3)])
def test_patches_under_snow_and_cloud_are_left_out_and_counted(
    v1: Path, file: str, split: str, total: int, caplog: pytest.LogCaptureFixture
) -> None:
    (v1 / file).write_text(f"{FIRST}\n")
    with caplog.at_level(logging.INFO):
        assert FIRST not in open_bigearthnet_v1(v1, split, num_classes=5).keys
    assert f"1 of {total} patches left out, because snow, cloud or shadow" in caplog.text


def test_all_without_the_lists_says_that_snow_and_cloud_are_in_it(
    v1: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (v1 / "patches_with_cloud_and_shadow.csv").unlink()
    open_bigearthnet_v1(v1, "val")
    assert caplog.text == ""
    open_bigearthnet_v1(v1, "all")
    assert "are included; to leave them out, put patches_with_cloud_and_shadow.csv" in caplog.text


def check_pairs(samples: FileSet) -> None:
    pixels = samples.read(np.arange(len(samples)))
    radar = {key: pixels["sentinel1-grd"][row, :, 5, 7] for row, key in enumerate(samples.keys)}
    for number, patch in enumerate((FIRST, SECOND), start=1):
        assert radar[patch].tolist() == [-10.0 * number, -10.0 * number - 6]
    assert pixels["sentinel1-grd"].dtype == np.float32
    assert samples.layouts["sentinel1-grd"].bands == ("VV", "VH")
    assert samples.layouts["sentinel1-grd"].units == "physical"


def test_a_radar_patch_is_the_partner_that_its_json_says(v1: Path) -> None:
    check_pairs(open_bigearthnet_v1(v1, "all", radar=True))
    check_pairs(open_bigearthnet_v1(v1, "val", radar=True))


def test_a_list_of_pairs_needs_no_json_of_the_radar_patches(v1: Path) -> None:
    for patch in RADAR.values():
        next((v1 / "BigEarthNet-S1-v1.0" / patch).glob("*.json")).unlink()
    (v1 / "pairs.csv").write_text(f"{FIRST},{RADAR[FIRST]}\n{RADAR[SECOND]},{SECOND}\n")
    check_pairs(open_bigearthnet_v1(v1, "pairs", radar=True))
    with pytest.raises(
        DataError, match=r"cannot read .*1_2_labels_metadata.json.*unpack the archive again"
    ):
        open_bigearthnet_v1(v1, "val", radar=True)


def test_a_missing_partner_is_named(v1: Path) -> None:
    radar = v1 / "BigEarthNet-S1-v1.0"
    shutil.rmtree(radar / RADAR[SECOND])
    missing = rf"1 of 2 patches have no Sentinel-1 partner .*, {SECOND} first; unpack BigEarthNet"
    with pytest.raises(DataError, match=missing):
        open_bigearthnet_v1(v1, "val", radar=True)
    (v1 / "pairs.csv").write_text(f"{SECOND},{RADAR[SECOND]}\n")
    with pytest.raises(DataError, match=rf"{RADAR[SECOND]} first; unpack BigEarthNet-S1"):
        open_bigearthnet_v1(v1, "pairs", radar=True)
    radar.rename(v1 / "elsewhere")
    with pytest.raises(DataError, match="no Sentinel-1 patches beside"):
        open_bigearthnet_v1(v1, "val", radar=True)
    assert len(open_bigearthnet_v1(v1, "val")) == 2


def test_the_pairing_is_part_of_the_fingerprint(v1: Path) -> None:
    prints = []
    for partner in (RADAR[FIRST], RADAR[SECOND]):
        (v1 / "pairs.csv").write_text(f"{FIRST},{partner}\n")
        prints.append(open_bigearthnet_v1(v1, "pairs", radar=True).fingerprint)
        assert open_bigearthnet_v1(v1, "pairs", radar=True).fingerprint == prints[-1]
    assert prints[0] != prints[1]
    assert open_bigearthnet_v1(v1, "pairs").fingerprint not in prints


def test_a_half_unpacked_archive_is_told(v1: Path) -> None:
    (v1 / "train.csv").write_text(f"{FIRST}\nS2A_MSIL2A_20170613T101031_5_5\n")
    with pytest.raises(
        DataError, match=r"train.csv names 2 patches, of which 1 .*T101031_5_5 first; unpack"
    ):
        open_bigearthnet_v1(v1, "train")
    (v1 / "broken.csv").write_text("patch_name\n")
    with pytest.raises(DataError, match="'patch_name' names no patch"):
        open_bigearthnet_v1(v1, "broken")
    folder = v1 / "BigEarthNet-v1.0" / FIRST
    next(folder.glob("*.json")).unlink()
    with pytest.raises(
        DataError, match=r"cannot read .*_labels_metadata.json.*unpack the archive again"
    ):
        open_bigearthnet_v1(v1, "val")


def test_damaged_and_missing_bands_are_named_when_they_are_read(v1: Path) -> None:
    patch = v1 / "BigEarthNet-v1.0" / FIRST
    samples = open_bigearthnet_v1(v1, "all", radar=True)
    band = patch / f"{FIRST}_B03.tif"
    whole = band.read_bytes()
    band.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"B03.tif is (damaged|not a readable GeoTIFF)"):
        samples.read(np.array([0]))
    shutil.copy(patch / f"{FIRST}_B8A.tif", band)
    with pytest.raises(DataError, match=r"B03.tif is 1x60x60 uint16; expected 1x120x120"):
        samples.read(np.array([0]))
    band.unlink()
    with pytest.raises(DataError, match=r"B03.tif not found"):
        samples.read(np.array([0]))
    (v1 / "BigEarthNet-S1-v1.0" / RADAR[SECOND] / f"{RADAR[SECOND]}_VH.tif").unlink()
    with pytest.raises(DataError, match=r"_VH.tif not found"):
        samples.read(np.array([1]))


def test_faults_of_the_json_name_the_file(v1: Path) -> None:
    path = v1 / "BigEarthNet-v1.0" / FIRST / f"{FIRST}_labels_metadata.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | {"labels": ["Pasture"]}))
    with pytest.raises(DataError, match=rf"{path.name}: 'Pasture' .*did you mean 'Pastures'"):
        open_bigearthnet_v1(v1, "val")
    path.write_text(json.dumps({"classes": []}))
    with pytest.raises(DataError, match=rf"{path.name} has no list 'labels'"):
        open_bigearthnet_v1(v1, "val")
    path.write_text('{"labels": ')
    with pytest.raises(DataError, match=rf"{path.name} is not valid JSON"):
        open_bigearthnet_v1(v1, "val")


def test_place_and_time_come_from_the_json(v1: Path) -> None:
    samples = open_bigearthnet_v1(v1, "all")
    place = samples.place(0)
    assert place.datetime == dt.datetime(2017, 6, 13, 10, 10, 31, tzinfo=dt.UTC)
    assert place.bounds is not None
    west, south, east, north = place.bounds
    assert 13.71 < west < east < 13.73
    assert 48.21 < south < north < 48.23
    path = samples.files[0] / f"{FIRST}_labels_metadata.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | {"projection": "nowhere"}))
    with pytest.raises(DataError, match=rf"{path.name}: its bounds cannot be brought to WGS84"):
        samples.place(0)
    path.write_text(json.dumps(content | {"acquisition_date": "yesterday"}))
    with pytest.raises(DataError, match="'yesterday' is no date"):
        samples.place(0)


@pytest.mark.realdata
def test_real_patches_read_as_rasterio_reads_them(real_data: Path) -> None:
    root = real_data / "formats" / "bigearthnet_v1"
    samples = open_bigearthnet_v1(root, "all", num_classes=43, radar=True)
    assert len(samples) == 6
    read = samples.read(np.arange(6))
    bands = samples.layouts["sentinel2-l2a"].bands
    for row, patch in enumerate(samples.files):
        got = read["sentinel2-l2a"][row]
        for band in ("B02", "B08"):
            with rasterio.open(patch / f"{patch.name}_{band}.tif") as source:
                np.testing.assert_array_equal(got[bands.index(band)], source.read(1))
        with rasterio.open(patch / f"{patch.name}_B8A.tif") as source:
            coarse = source.read(1).astype(float)
        ours = got[bands.index("B8A")].reshape(60, 2, 60, 2).mean((1, 3))
        assert np.corrcoef(ours.ravel(), coarse.ravel())[0, 1] > 0.98
        radar = [
            path
            for path in (root / "BigEarthNet-S1-Example").glob("*/*.json")
            if json.loads(path.read_text())["corresponding_s2_patch"] == patch.name
        ]
        with rasterio.open(str(radar[0]).replace("labels_metadata.json", "VH.tif")) as source:
            np.testing.assert_array_equal(read["sentinel1-grd"][row, 1], source.read(1))
    assert samples.labels is not None
    index = samples.keys.index("S2A_MSIL2A_20170613T101031_87_48")
    assert samples.labels.values[index].sum() == 2


@pytest.mark.realdata
def test_real_patches_lie_where_their_bands_do(real_data: Path) -> None:
    samples = open_bigearthnet_v1(real_data / "formats" / "bigearthnet_v1", "all")
    for index, patch in enumerate(samples.files):
        with rasterio.open(patch / f"{patch.name}_B02.tif") as source:
            expected = rasterio.warp.transform_bounds(source.crs, "EPSG:4326", *source.bounds)
        place = samples.place(index)
        assert place.bounds == pytest.approx(expected, abs=1e-9)
        assert place.datetime is not None
        assert place.datetime.strftime("%Y%m%d") in patch.name
