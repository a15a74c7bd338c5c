"""Major-TOM Core: windows of cells out of Parquet, one meaning of DN, hostile parts refused."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import rasterio
from rasterio import Affine
from rasterio.io import MemoryFile

from terralign.datasets.published.majortom import MAX_ROW_BYTES, open_majortom_s2l2a
from terralign.errors import DataError, SplitError
from terralign.sensors import SENSORS

S2 = SENSORS["sentinel2-l2a"]
NEW = "S2A_MSIL2A_20230506T065621_N0509_R063_T40SDE_20230506T104759"
OLD = "S2A_MSIL2A_20190706T085611_N0212_R007_T33NZA_20190706T153419"
MUTE = "S2A_MSIL2A_20200918T065631_N9999_R063_T40SDE_20230310T193948"


def tiff(pixels: np.ndarray, gsd_m: float) -> bytes:
    height, width = pixels.shape
    with MemoryFile() as memory:
        with memory.open(
            driver="GTiff",
            count=1,
            height=height,
            width=width,
            dtype=pixels.dtype,
            crs="EPSG:32633",
            transform=Affine(gsd_m, 0, 500_000, 0, -gsd_m, 5_000_000),
            compress="deflate",
        ) as file:
            file.write(pixels, 1)
        return bytes(memory.getbuffer())


def flat_cell(value: int = 1500) -> dict[str, Any]:
    sizes = {band.name: round(10680 / (band.gsd_m or 10)) for band in S2.bands}
    made = {
        side: tiff(np.full((side, side), value, np.uint16), 10680 / side)
        for side in set(sizes.values())
    }
    return {band: made[side] for band, side in sizes.items()}


def write_part(
    root: Path,
    cells: Sequence[Mapping[str, Any]],
    *,
    part: int = 1,
    row_group_size: int = 1,
    names: Sequence[str] = S2.band_names,
) -> Path:
    path = root / "Core-S2L2A" / "images" / f"part_{part:05d}.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    fields = [(name, pa.string()) for name in ("product_id", "grid_cell", "product_datetime")]
    schema = pa.schema([*fields, *((name, pa.binary()) for name in ("thumbnail", *names))])
    rows = [{name: cell.get(name) for name in schema.names} for cell in cells]
    pq.write_table(pa.Table.from_pylist(rows, schema), path, row_group_size=row_group_size)
    return path


@pytest.fixture(scope="module")
def flat() -> dict[str, Any]:
    return flat_cell()


def named(cell: Mapping[str, Any], product: str, grid_cell: str = "391U_536R") -> dict[str, Any]:
    return {**cell, "product_id": product, "grid_cell": grid_cell}


def test_windows_tile_the_middle_of_a_cell(tmp_path: Path, flat: dict[str, Any]) -> None:
    fine = np.random.default_rng(0).integers(1, 20000, (1068, 1068), dtype=np.uint16)
    cell = named(flat | {"B03": tiff(fine, 10)}, NEW)
    write_part(tmp_path, [cell])
    samples = open_majortom_s2l2a(tmp_path, "all")
    assert len(samples) == 16
    assert samples.keys[:2] == (f"{NEW}/391U_536R/0_0", f"{NEW}/391U_536R/0_1")
    layout = samples.layouts["sentinel2-l2a"]
    assert (layout.bands, layout.dn_offset) == (S2.band_names, -1000)
    pixels = samples.read(np.arange(16))["sentinel2-l2a"]
    assert (pixels.shape, pixels.dtype) == ((16, 12, 224, 224), np.uint16)
    rows = [np.concatenate(list(pixels[4 * row : 4 * row + 4, 2]), axis=1) for row in range(4)]
    np.testing.assert_array_equal(np.concatenate(rows), fine[86:982, 86:982])
    assert (np.delete(pixels, 2, axis=1) == 1500).all()


def bilinear(coarse: np.ndarray, factor: int, row: int, column: int) -> np.ndarray:
    """A window of a band, enlarged: each pixel between the four that are nearest."""
    centres = [(86 + 224 * n + np.arange(224) + 0.5) / factor - 0.5 for n in (row, column)]
    low_y, low_x = (np.floor(centre).astype(int) for centre in centres)
    up, across = (centre - np.floor(centre) for centre in centres)
    rows = coarse[low_y] * (1 - up)[:, None] + coarse[low_y + 1] * up[:, None]
    enlarged: np.ndarray = rows[:, low_x] * (1 - across) + rows[:, low_x + 1] * across
    return enlarged


def test_coarse_bands_are_enlarged_bilinearly_across_windows(
    tmp_path: Path, flat: dict[str, Any]
) -> None:
    coarse = np.random.default_rng(1).integers(1, 20000, (178, 178), dtype=np.uint16)
    write_part(tmp_path, [named(flat | {"B09": tiff(coarse, 60)}, NEW)])
    pixels = open_majortom_s2l2a(tmp_path, "all").read(np.array([5, 15]))["sentinel2-l2a"][:, 9]
    for (row, column), window in zip([(1, 1), (3, 3)], pixels, strict=True):
        assert np.abs(window - bilinear(coarse, 6, row, column)).max() <= 0.5 + 1e-6


def test_all_cells_carry_one_offset_and_no_data_stays(tmp_path: Path, flat: dict[str, Any]) -> None:
    marked = np.full((1068, 1068), 400, np.uint16)
    marked[86, 86:90] = 0, 1, 64535, 65535
    band = tiff(marked, 10)
    write_part(
        tmp_path,
        [named(flat | {"B02": band}, OLD, "1U_1R"), named(flat | {"B02": band}, NEW, "2U_1R")],
    )
    samples = open_majortom_s2l2a(tmp_path, "all")
    old, new = samples.read(np.array([0, 16]))["sentinel2-l2a"][:, 1, 0, :5].tolist()
    assert old == [0, 1001, 65535, 65535, 1400]
    assert new == [0, 1, 64535, 65535, 400]


def test_no_data_does_not_bleed_into_enlarged_bands(tmp_path: Path, flat: dict[str, Any]) -> None:
    holed = np.full((534, 534), 3000, np.uint16)
    holed[100:120, 100:120] = 0
    write_part(tmp_path, [named(flat | {"B11": tiff(holed, 20)}, OLD)])
    pixels = open_majortom_s2l2a(tmp_path, "all").read(np.array([0]))["sentinel2-l2a"]
    assert set(np.unique(pixels[0, 10])) == {0, 4000}


def test_a_product_that_says_nothing_is_refused_or_left_out(
    tmp_path: Path, flat: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    cells = [named(flat, MUTE, "1U_1R"), named(flat, NEW, "2U_1R"), named(flat, MUTE, "3U_1R")]
    write_part(tmp_path, cells)
    with pytest.raises(DataError, match=r"row 0 \(1U_1R\).*N9999.*1 other cells of 3.*-known'"):
        open_majortom_s2l2a(tmp_path, "all")
    samples = open_majortom_s2l2a(tmp_path, "all", leave_out_unknown=True)
    assert {key.split("/")[1] for key in samples.keys} == {"2U_1R"}
    assert samples.name == "majortom-core-s2l2a-known"
    assert "2 of 3 cells left out" in caplog.text


def test_a_window_knows_its_place(tmp_path: Path, flat: dict[str, Any]) -> None:
    write_part(tmp_path, [named(flat, NEW)])
    place = open_majortom_s2l2a(tmp_path, "all").place(6)
    west, north = 500_000 + 10 * (86 + 2 * 224), 5_000_000 - 10 * (86 + 224)
    expected = rasterio.warp.transform_bounds(
        "EPSG:32633", "EPSG:4326", west, north - 2240, west + 2240, north
    )
    assert place.bounds == pytest.approx(expected, abs=1e-6)
    assert place.datetime is not None
    assert place.datetime.isoformat() == "2023-05-06T06:56:21+00:00"


def test_a_cell_is_in_one_split_with_all_its_windows(tmp_path: Path) -> None:
    cells = [{"product_id": NEW, "grid_cell": f"{number}U_5L"} for number in range(60)]
    write_part(tmp_path, cells)
    found = {
        split: {key.split("/")[1] for key in open_majortom_s2l2a(tmp_path, split).keys}
        for split in ("train", "val", "all")
    }
    assert not found["train"] & found["val"]
    assert found["train"] | found["val"] == found["all"]
    assert 1 <= len(found["val"]) <= 15
    assert len(open_majortom_s2l2a(tmp_path, "val")) == 16 * len(found["val"])
    with pytest.raises(SplitError, match="no split 'test'"):
        open_majortom_s2l2a(tmp_path, "test")


def test_parts_that_are_no_parts_are_one_line(tmp_path: Path, flat: dict[str, Any]) -> None:
    with pytest.raises(DataError, match=r"images has no part_\*.parquet"):
        open_majortom_s2l2a(tmp_path, "all")
    path = write_part(tmp_path, [named(flat, NEW)])
    whole = path.read_bytes()
    for content in (whole[: len(whole) // 2], b"", b"PAR1" + b"\xff" * 60 + b"PAR1"):
        path.write_bytes(content)
        with pytest.raises(DataError, match=r"part_00001.parquet is not a readable Parquet"):
            open_majortom_s2l2a(tmp_path, "all")
    write_part(tmp_path, [named(flat, NEW)], names=["B02", "B03"])
    with pytest.raises(DataError, match=r"has no column B01, B04"):
        open_majortom_s2l2a(tmp_path, "all")
    two = [named(flat, NEW, "1U_1R"), named(flat, NEW, "2U_1R")]
    write_part(tmp_path, two, row_group_size=2)
    with pytest.raises(DataError, match=r"has 2 rows in 1 row groups"):
        open_majortom_s2l2a(tmp_path, "all")
    write_part(tmp_path, two)
    write_part(tmp_path, two[1:], part=2)
    with pytest.raises(DataError, match=r"part_00002.*\(2U_1R\) is in .*part_00001.parquet too"):
        open_majortom_s2l2a(tmp_path, "all")


def read_first(root: Path) -> None:
    open_majortom_s2l2a(root, "all").read(np.array([0]))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "B05 holds no bytes"),
        (b"not a picture", "B05 is not a readable GeoTIFF"),
        ("size", "B05 is 1x267x267 uint16; expected 1x534x534 uint16"),
        ("type", "B05 is 1x534x534 float32; expected 1x534x534 uint16"),
        ("cut", "B05 is (damaged|not a readable)"),
        ("huge", "MiB, more than the limit of 64 MiB"),
    ],
)
def test_a_damaged_or_hostile_cell_is_one_line(
    tmp_path: Path, flat: dict[str, Any], content: bytes | str | None, said: str
) -> None:
    noise = np.random.default_rng(2).integers(1, 9000, (534, 534), dtype=np.uint16)
    made = {
        "size": lambda: tiff(np.ones((267, 267), np.uint16), 40),
        "type": lambda: tiff(np.ones((534, 534), np.float32), 20),
        "cut": lambda: tiff(noise, 20)[:100_000],
        "huge": lambda: bytes(MAX_ROW_BYTES + 1),
    }
    band = made[content]() if isinstance(content, str) else content
    write_part(tmp_path, [named(flat | {"B05": band}, NEW)])
    with pytest.raises(DataError, match=said) as fault:
        read_first(tmp_path)
    assert "part_00001.parquet, row 0 (391U_536R)" in str(fault.value)
    assert "\n" not in str(fault.value)


def test_a_band_of_dates_is_one_line(tmp_path: Path, flat: dict[str, Any]) -> None:
    path = write_part(tmp_path, [named(flat, NEW)])
    table = pq.read_table(path)
    dates = pa.array([-(2**30)], pa.date32())
    pq.write_table(table.set_column(table.schema.get_field_index("B05"), "B05", dates), path)
    with pytest.raises(DataError, match=r"row 0 \(391U_536R\) is damaged: days=-1073741824"):
        read_first(tmp_path)


@pytest.mark.realdata
def test_a_real_cell(real_data: Path, tmp_path: Path) -> None:
    scene = next((real_data / "scenes").glob("S2A_MSIL2A_20220706*"))
    cell = {band: (scene / f"{band}.tif").read_bytes() for band in S2.band_names}
    write_part(tmp_path, [named(cell, scene.name)])
    samples = open_majortom_s2l2a(tmp_path, "all")
    pixels = samples.read(np.array([9]))["sentinel2-l2a"][0]
    with rasterio.open(scene / "B04.tif") as file:
        expected = file.read(1)[534:758, 310:534]
    np.testing.assert_array_equal(pixels[3], expected)
    with rasterio.open(scene / "B8A.tif") as file:
        narrow = bilinear(file.read(1), 2, 2, 1)
    assert np.abs(pixels[8] - narrow).max() <= 0.5 + 1e-6
    west, south, east, north = samples.place(9).bounds or (0, 0, 0, 0)
    assert 17 < west < east < 18.2
    assert -1 < south < north < 0.1


def test_a_named_pipe_is_not_waited_for(tmp_path: Path) -> None:
    pipe = tmp_path / "Core-S2L2A/images/part_00001.parquet"
    pipe.parent.mkdir(parents=True)
    os.mkfifo(pipe)
    with pytest.raises(DataError, match=r"part_00001.parquet.*it is no regular file"):
        open_majortom_s2l2a(tmp_path, "all")
