"""SSL4EO-S12: seasons paired by date, bands brought to one grid, nothing missing unsaid."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import rasterio
from rasterio import Affine

from terralign.datasets.published.ssl4eo import open_ssl4eo_s12
from terralign.errors import DataError, SplitError

L2A, L1C, S1 = "sentinel2-l2a", "sentinel2-l1c", "sentinel1-grd"
SIZES = {1: 44, 9: 44, 10: 44, 2: 264, 3: 264, 4: 264, 8: 264}
L2A_BANDS = [f"B{one}" for one in (1, 2, 3, 4, 5, 6, 7, 8, "8A", 9, 11, 12)]
JUNE = "20200604T054639_20200604T054831_T43RCP"


def write_band(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    height, width = pixels.shape
    with rasterio.open(
        path,
        "w",
        driver="GTiff",
        count=1,
        height=height,
        width=width,
        dtype=pixels.dtype,
        crs="EPSG:4326",
        transform=Affine(0.0264 / width, 0, 70.0, 0, -0.0264 / height, 30.0),
    ) as file:
        file.write(pixels, 1)


def side_of(band: str) -> int:
    return 132 if band == "B8A" else SIZES.get(int(band[1:]), 132)


def write_s1(root: Path, location: str, start: str, value: float = -10.0) -> None:
    product = f"S1A_IW_GRDH_1SDV_{start}_20200607T010825_032904_03CFBA_D457"
    for band in ("VV", "VH"):
        path = root / "ssl4eo_s12" / "s1" / location / product / f"{band}.tif"
        write_band(path, np.full((264, 264), value, np.float32))


def write_l2a(root: Path, name: str = JUNE, bands: Mapping[str, np.ndarray] | None = None) -> Path:
    folder = root / "ssl4eo_s12" / "s2a" / "0000000" / name
    for band in L2A_BANDS:
        side = side_of(band)
        default = np.full((side, side), 1000, np.uint16)
        write_band(folder / f"{band}.tif", (bands or {}).get(band, default))
    return folder


def read_l2a(root: Path) -> np.ndarray:
    return open_ssl4eo_s12(root, "all", sensors=(L2A,)).read(np.array([0]))[L2A][0]


@pytest.mark.realdata
def test_real_bands_of_three_sensors(real_data: Path, caplog: pytest.LogCaptureFixture) -> None:
    samples = open_ssl4eo_s12(real_data / "formats", "train")
    assert samples.keys == ("0000200/jun", "0000200/sep")
    assert "2 of 4 seasons at 1 locations left out" in caplog.text
    assert [len(layout.bands) for layout in samples.layouts.values()] == [12, 13, 2]
    assert {layout.dn_offset for layout in samples.layouts.values()} == {0}
    pixels = samples.read(np.array([0, 1]))
    assert {sensor: (one.shape, str(one.dtype)) for sensor, one in pixels.items()} == {
        L2A: ((2, 12, 256, 256), "uint16"),
        L1C: ((2, 13, 256, 256), "uint16"),
        S1: ((2, 2, 256, 256), "float32"),
    }
    archive = real_data / "formats" / "ssl4eo_s12"
    raw = rasterio.open(archive / "s2a" / "0000200" / JUNE / "B4.tif").read(1)
    np.testing.assert_array_equal(pixels[L2A][0, 3], raw[4:260, 4:260])
    autumn = next((archive / "s1" / "0000200").glob("*_20200903T131212_*"))
    raw = rasterio.open(autumn / "VH.tif").read(1)
    np.testing.assert_array_equal(pixels[S1][1, 1], raw[4:260, 4:260])
    place = samples.place(0)
    assert place.datetime is not None
    assert place.datetime.isoformat() == "2020-06-04T05:46:39+00:00"
    assert place.bounds == pytest.approx((73.29295, 30.45270, 73.31891, 30.47522), abs=1e-5)


@pytest.mark.realdata
def test_real_bands_of_20_m_lie_on_those_of_10_m(real_data: Path) -> None:
    folder = real_data / "formats"
    pixels = open_ssl4eo_s12(folder, "all", sensors=(L2A,)).read(np.array([0]))[L2A][0]
    near_infrared, narrow = pixels[7].astype(float), pixels[8].astype(float)

    def correlation(right: int, down: int) -> float:
        moved = np.roll(narrow, (down, right), axis=(0, 1))[8:-8, 8:-8]
        return float(np.corrcoef(near_infrared[8:-8, 8:-8].ravel(), moved.ravel())[0, 1])

    shifts = [(right, down) for right in range(-2, 3) for down in range(-2, 3)]
    assert max(shifts, key=lambda shift: correlation(*shift)) == (0, 0)


def test_bands_are_enlarged_bilinearly_about_the_middle(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(1, 9000, (132, 132), dtype=np.uint16)
    large = np.random.default_rng(1).integers(1, 9000, (266, 265), dtype=np.uint16)
    write_l2a(tmp_path, bands={"B8A": noise, "B4": large})
    pixels = read_l2a(tmp_path)
    np.testing.assert_array_equal(pixels[3], large[5:261, 4:260])
    position = (np.arange(4, 260) + 0.5) / 2 - 0.5
    low = np.floor(position).astype(int)
    share = position - low
    rows = noise[low] * (1 - share)[:, None] + noise[low + 1] * share[:, None]
    expected = rows[:, low] * (1 - share) + rows[:, low + 1] * share
    assert np.abs(pixels[8] - expected).max() <= 0.5 + 1e-6


def test_no_data_is_not_mixed_into_its_neighbours(tmp_path: Path) -> None:
    holed = np.full((132, 132), 3000, np.uint16)
    holed[60:70, 60:70] = 0
    write_l2a(tmp_path, bands={"B5": holed})
    assert set(np.unique(read_l2a(tmp_path)[4])) == {0, 3000}


def test_radar_without_a_value_stays_without_one(tmp_path: Path) -> None:
    write_s1(tmp_path, "0000000", "20200607T010800", value=float("nan"))
    samples = open_ssl4eo_s12(tmp_path, "all", sensors=(S1,))
    assert np.isnan(samples.read(np.array([0]))[S1]).all()


def test_sensors_meet_by_season_and_not_by_order(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for start in ("20200320", "20200620", "20200920", "20191225", "20200105"):
        write_s1(tmp_path, "0000000", f"{start}T010800", value=-float(start[4:6]))
    for start in ("20210701", "20200101"):
        write_l2a(tmp_path, JUNE.replace("20200604", start))
    samples = open_ssl4eo_s12(tmp_path, "all", sensors=(L2A, S1))
    assert samples.keys == ("0000000/jun", "0000000/dec")
    assert [file.name[:8] for file in samples.files] == ["20210701", "20200101"]
    radar = samples.read(np.array([0, 1]))[S1]
    assert (radar[0] == -6).all()
    assert (radar[1] == -12).all()
    assert "2 of 4 seasons at 1 locations left out" in caplog.text


def test_a_tenth_of_the_locations_is_for_validation(tmp_path: Path) -> None:
    for number in (0, 8, 9, 19, 90):
        write_s1(tmp_path, f"{number:07d}", "20200607T010800")
    keys = {
        split: set(open_ssl4eo_s12(tmp_path, split, sensors=(S1,)).keys)
        for split in ("train", "val", "all")
    }
    assert keys["val"] == {"0000009/jun", "0000019/jun"}
    assert keys["train"] | keys["val"] == keys["all"]
    assert len(keys["all"]) == 5
    with pytest.raises(SplitError, match=r"'ssl4eo-s12-grd' has no split 'test'; splits: train"):
        open_ssl4eo_s12(tmp_path, "test", sensors=(S1,))


def test_a_split_without_samples_is_said(tmp_path: Path) -> None:
    write_s1(tmp_path, "0000000", "20200607T010800")
    with pytest.raises(SplitError, match=r"split 'val' is empty in .*ssl4eo_s12"):
        open_ssl4eo_s12(tmp_path, "val", sensors=(S1,))


def test_an_archive_that_is_not_there_is_named(tmp_path: Path) -> None:
    write_s1(tmp_path, "0000000", "20200607T010800")
    with pytest.raises(DataError, match=r"s2a holds no locations.*unpack the archive"):
        open_ssl4eo_s12(tmp_path, "all")


def test_bands_that_are_missing_or_damaged_are_one_line(tmp_path: Path) -> None:
    folder = write_l2a(tmp_path)
    whole = (folder / "B11.tif").read_bytes()
    (folder / "B11.tif").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"B11.tif is (damaged|not a readable)"):
        read_l2a(tmp_path)
    (folder / "B11.tif").unlink()
    with pytest.raises(DataError, match=r"B11.tif not found"):
        read_l2a(tmp_path)
    write_band(folder / "B11.tif", np.zeros((132, 132), np.float32))
    with pytest.raises(
        DataError, match=r"1x132x132 float32; expected 1x\(128 to 256\)x\(128 to 256\) uint16"
    ):
        read_l2a(tmp_path)
    write_band(folder / "B11.tif", np.zeros((100, 132), np.uint16))
    with pytest.raises(DataError, match=r"B11.tif is 1x100x132 uint16"):
        read_l2a(tmp_path)
    write_band(folder / "B11.tif", np.zeros((132, 600), np.uint16))
    with pytest.raises(DataError, match=r"B11.tif is 1x132x600 uint16"):
        read_l2a(tmp_path)


def test_a_baseline_whose_numbers_carry_an_offset_is_refused(tmp_path: Path) -> None:
    folder = write_l2a(tmp_path)
    metadata = folder / "metadata.json"
    metadata.write_text(json.dumps({"PROCESSING_BASELINE": "02.14"}))
    assert read_l2a(tmp_path).shape == (12, 256, 256)
    metadata.write_text(json.dumps({"PROCESSING_BASELINE": "05.00"}))
    with pytest.raises(DataError, match=r"metadata.json names processing baseline 05.00"):
        read_l2a(tmp_path)
    metadata.write_text("{")
    with pytest.raises(DataError, match=r"metadata.json"):
        read_l2a(tmp_path)
