"""Data sets that a table lists: what each column says is what samples are, and faults name rows."""

from __future__ import annotations

import datetime as dt
import json
import logging
import math
import os
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
import pytest
import rasterio
from PIL import Image
from rasterio.warp import transform_bounds

from terralign.datasets.catalog import find_dataset, open_dataset
from terralign.datasets.declared.footprints import read_footprints
from terralign.datasets.declared.table import read_table
from terralign.datasets.published.scene_classes import open_scene_classes
from terralign.datasets.sample import Located, only_sensors
from terralign.errors import DataError, TerralignError

TOML = """
name = "fields"
reader = "table"
table = "fields/samples.csv"
root = "fields/images"
prompts = ["a satellite image of {}."]

[sensors.sentinel2-l2a]
column = "s2"
bands = ["B04", "B03", "B02"]
dn_offset = -1000

[sensors.sentinel1-grd]
column = "s1"
bands = ["VH", "VV"]

[labels]
form = "single"
column = "crop"

[classes]
001 = "a wheat field"
2 = "a maize field"

[columns]
key = "id"
split = "fold"
date = "day"
captions = "text"

[splits]
train = ["a", "b"]
test = "c"
"""

ROWS: dict[str, list[Any]] = {
    "id": ["f1", "f2", "f3", "f4"],
    "s2": ["s2/1.tif", "s2/2.tif", "s2/3.tif", "s2/4.tif"],
    "s1": ["s1/1.tif", "s1/2.tif", "s1/3.tif", "s1/4.tif"],
    "crop": ["2", "001", "2", "001"],
    "fold": ["a", "c", "b", "c"],
    "day": ["2024-05-31", "", "2024-05-31T10:20:30+02:00", "20240601"],
    "text": ["one, with a comma", "two", "three\nlines", "four"],
    "unread": ["x", "y", "z", "w"],
}
CRS, WEST, NORTH = "EPSG:32633", 500_000, 5_000_000


def pixels(number: int, num_bands: int) -> np.ndarray[Any, Any]:
    shape = (num_bands, 4, 6)
    return np.random.default_rng(number).integers(1001, 9000, shape).astype(np.uint16)


def geotiff(path: Path, array: np.ndarray[Any, Any], crs: str | None = CRS) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    count, height, width = array.shape
    transform = rasterio.Affine(10, 0, WEST, 0, -10, NORTH)
    with rasterio.open(
        path, "w", driver="GTiff", dtype=array.dtype, count=count, height=height, width=width,
        crs=crs, transform=transform,
    ) as file:  # fmt: skip
        file.write(array)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    images = tmp_path / "fields/images"
    for number in range(1, 5):
        geotiff(images / f"s2/{number}.tif", pixels(number, 3))
        geotiff(images / f"s1/{number}.tif", pixels(number, 2).astype(np.float32) / -100)
    pa_csv.write_csv(pa.table(ROWS), tmp_path / "fields/samples.csv")
    return tmp_path


def opened(root: Path, text: str = TOML, split: str = "train", size: int | None = None) -> Any:
    path = root / "fields.toml"
    path.write_text(text)
    return open_dataset(str(path), data_root=root, split=split, size=size)


def parquet(root: Path, rows: dict[str, Any], **metadata: str) -> str:
    """Write the table as Parquet; the declaration that names it."""
    table = pa.table(rows).replace_schema_metadata(metadata or None)
    pq.write_table(table, root / "fields/samples.parquet")
    return TOML.replace("samples.csv", "samples.parquet")


def test_a_csv_gives_what_it_says(root: Path) -> None:
    samples = opened(root)
    assert samples.keys == ("f1", "f3")
    assert samples.labels.values.tolist() == [1, 1]
    assert samples.labels.class_names == ("a wheat field", "a maize field")
    assert samples.captions == (("one, with a comma",), ("three\nlines",))
    assert samples.prompts == ("a satellite image of {}.",)
    assert list(samples.layouts) == ["sentinel2-l2a", "sentinel1-grd"]
    assert samples.layouts["sentinel2-l2a"].bands == ("B04", "B03", "B02")
    assert samples.layouts["sentinel2-l2a"].dn_offset == -1000
    assert samples.layouts["sentinel1-grd"].bands == ("VH", "VV")
    got = samples.read(np.array([1, 0]))
    np.testing.assert_array_equal(got["sentinel2-l2a"], [pixels(3, 3), pixels(1, 3)])
    np.testing.assert_array_equal(
        got["sentinel1-grd"], np.float32([pixels(3, 2), pixels(1, 2)]) / -100
    )
    facts = find_dataset(str(root / "fields.toml")).facts
    assert facts.sensors == tuple(samples.layouts)
    assert (facts.labels, facts.has_splits, list(facts.splits)) == (
        "single",
        True,
        ["train", "test"],
    )


def test_files_of_other_sensors_can_be_left_unread(root: Path) -> None:
    samples = opened(root)
    indices = np.arange(len(samples))
    expected = samples.read(indices)
    for path in root.rglob("s1/*.tif"):
        path.unlink()
    found = only_sensors(samples, ["sentinel2-l2a"]).read(indices)
    assert list(found) == ["sentinel2-l2a"]
    np.testing.assert_array_equal(found["sentinel2-l2a"], expected["sentinel2-l2a"])
    with pytest.raises(DataError):
        samples.read(indices)


def test_splits_are_values_of_a_column(root: Path) -> None:
    assert opened(root, split="test").keys == ("f2", "f4")
    assert opened(root, split="all").keys == ("f1", "f2", "f3", "f4")


def test_dates_are_utc_and_bounds_are_the_rasters(root: Path) -> None:
    samples = opened(root, split="all")
    assert isinstance(samples, Located)
    utc = dt.UTC
    assert [samples.place(row).datetime for row in range(4)] == [
        dt.datetime(2024, 5, 31, tzinfo=utc),
        None,
        dt.datetime(2024, 5, 31, 8, 20, 30, tzinfo=utc),
        dt.datetime(2024, 6, 1, tzinfo=utc),
    ]
    west, south, east, north = samples.place(0).bounds
    assert west == pytest.approx(15.0, abs=1e-9)  # the central meridian of zone 33
    assert east - west == pytest.approx(60 / (111_320 * np.cos(np.radians(45.15))), rel=2e-3)
    assert north - south == pytest.approx(40 / 111_130, rel=2e-3)
    assert 45.1 < south < north < 45.2


def test_without_columns_and_splits_paths_are_keys_and_every_split_is_the_whole(
    root: Path,
) -> None:
    text = TOML[: TOML.index("[columns]")]
    for split in ("all", "val"):
        assert opened(root, text, split).keys == ("s2/1", "s2/2", "s2/3", "s2/4")
    assert opened(root, text, "all").captions is None
    assert not find_dataset(str(root / "fields.toml")).facts.has_splits


def test_paths_are_relative_to_the_table_without_a_root(root: Path) -> None:
    rows = {**ROWS, **{key: [f"images/{one}" for one in ROWS[key]] for key in ("s2", "s1")}}
    text = parquet(root, rows).replace('root = "fields/images"', "")
    np.testing.assert_array_equal(
        opened(root, text).read(np.array([0]))["sentinel2-l2a"], [pixels(1, 3)]
    )


TAGS = [["001", "2"], [], ["2"], ["001", "001"]]
HOT = [[True, True], [False, False], [False, True], [True, False]]


@pytest.mark.parametrize(
    ("labels", "columns"),
    [
        ('form = "list"\ncolumn = "tags"', {"tags": TAGS}),
        (
            'form = "separated"\ncolumn = "tags"\nseparator = "|"',
            {"tags": ["001 | 2", "", "2", "001|001|"]},
        ),
        ('form = "columns"', {"001": [1, 0, 0, 1], "2": [True, False, True, False]}),
    ],
)
def test_several_labels_in_each_declared_form(
    root: Path, labels: str, columns: dict[str, Any]
) -> None:
    text = parquet(root, {**ROWS, **columns})
    samples = opened(root, text.replace('form = "single"\ncolumn = "crop"', labels), "all")
    assert samples.labels.multi_label
    assert samples.labels.values.tolist() == HOT
    assert find_dataset(str(root / "fields.toml")).facts.labels == "multi"


def test_types_of_parquet_are_taken_as_they_are(root: Path) -> None:
    rows = {
        **ROWS,
        "id": [7, 8, 9, 10],
        "crop": pa.array(ROWS["crop"]).dictionary_encode(),
        "text": [["a", "b"], ["c"], ["d", ""], ["e"]],
        "day": pa.array([dt.datetime(2020, 1, 2, 3, tzinfo=dt.UTC), None, None, None]),
    }
    samples = opened(root, parquet(root, rows), "all")
    assert samples.keys == ("7", "8", "9", "10")
    assert samples.labels.values.tolist() == [1, 0, 1, 0]
    assert samples.captions == (("a", "b"), ("c",), ("d",), ("e",))
    assert samples.place(0).datetime == dt.datetime(2020, 1, 2, 3, tzinfo=dt.UTC)
    assert samples.place(1).datetime is None


def square(west: float, south: float, size: float, *, order: str = "<") -> bytes:
    """A multi-polygon with z, as well-known binary."""
    ring = [(0, 0), (1, 0), (1, 1), (0, 1), (0, 0)]
    points = [value for x, y in ring for value in (west + x * size, south + y * size, 7.0)]
    polygon = struct.pack(f"{order}BIII15d", order == "<", 1003, 1, 5, *points)
    return struct.pack(f"{order}BII", order == "<", 1006, 1) + polygon


def test_footprints_of_geoparquet(root: Path) -> None:
    point = struct.pack("<BI2d", 1, 1, 3.5, -4.5)
    box = {"xmin": 1.0, "ymin": 2.0, "xmax": 3.0, "ymax": 4.0}
    rows = {
        **ROWS,
        "geometry": [square(10, 50, 0.5), square(-20, -30, 2, order=">"), point, None],
        "bbox": [box, None, box, box],
    }
    geo = json.dumps(
        {"version": "1.1.0", "primary_column": "geometry",
         "columns": {"geometry": {"encoding": "WKB", "geometry_types": []}}}
    )  # fmt: skip
    text = parquet(root, rows, geo=geo)
    samples = opened(root, text.replace('key = "id"', 'footprint = "geometry"'), "all")
    assert [samples.place(row).bounds for row in range(4)] == [
        (10, 50, 10.5, 50.5),
        (-20, -30, -18, -28),
        (3.5, -4.5, 3.5, -4.5),
        None,
    ]
    samples = opened(root, text.replace('key = "id"', 'footprint = "bbox"'), "all")
    assert samples.place(0).bounds == (1, 2, 3, 4)
    assert samples.place(1).bounds is None


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (struct.pack("<BI2d", 1, 1, 500, 2), r"bounds \(500.0, .*expected .* in degrees"),
        (struct.pack("<BI2d", 1, 1, math.inf, 2), r"bounds \(inf, .*expected .* in degrees"),
        (struct.pack("<BII", 1, 7, 1) * 100_000 + struct.pack("<BI2d", 1, 1, 1, 2), r"900021 byt"),
        (struct.pack("<BI", 1, 8) + bytes(52), "Nonlinear geometry"),
        ({"xmin": 1.0, "ymin": math.nan, "xmax": 1.0, "ymax": 2.0}, r"bounds \(1.0, nan"),
        ({"xmin": 1.0, "ymin": 3.0, "xmax": 1.0, "ymax": 2.0}, r"bounds \(1.0, 3.0"),
    ],
)
def test_a_geometry_that_is_nowhere_is_one_line(value: Any, message: str) -> None:
    footprints = read_footprints(Path("t.parquet"), "g", pa.array([value]), None)
    with pytest.raises(DataError, match=rf"sample 0: its geometry is damaged \({message}"):
        footprints(0)


def test_a_box_without_numbers_is_none() -> None:
    box = dict.fromkeys(("xmin", "ymin", "xmax", "ymax"), math.nan)
    assert read_footprints(Path("t.parquet"), "g", pa.array([box]), None)(0) is None


def test_footprints_of_another_reference_system_are_brought_to_wgs84(root: Path) -> None:
    rows = {**ROWS, "geometry": [square(500_000, 5_000_000, 1000)] * 4}
    projjson = rasterio.crs.CRS.from_epsg(32633).to_dict(projjson=True)
    geo = json.dumps(
        {"primary_column": "geometry",
         "columns": {"geometry": {"encoding": "WKB", "crs": projjson}}}
    )  # fmt: skip
    text = parquet(root, rows, geo=geo).replace('key = "id"', 'footprint = "geometry"')
    expected = transform_bounds("EPSG:32633", "EPSG:4326", 500_000, 5_000_000, 501_000, 5_001_000)
    assert opened(root, text).place(0).bounds == pytest.approx(expected, abs=1e-9)


def test_rows_of_no_declared_split_are_named_once(
    root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    text = TOML.replace('train = ["a", "b"]', 'train = "a"')
    opened(root, text)
    opened(root, text, "test")
    said = [one.getMessage() for one in caplog.records if "in no split" in one.getMessage()]
    assert said == [
        "data set 'fields': 1 rows are in no split: fold is 'b'; [splits] lists the others"
    ]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('column = "s2"', 'colum = "s2"', r"sensors.sentinel2-l2a: unknown key 'colum'; did you m"),
        ('column = "crop"', f'column = "{"x" * 999}"', r"has no column 'x{60}\.\.\.x{60}'"),
        ('column = "crop"', 'column = "corp"', r"has no column 'corp'; did you mean 'crop'"),
        ("[columns]", "[colums]", r"unknown key 'colums'; did you mean 'columns'"),
        ('key = "id"', 'ky = "id"', r"unknown key 'columns.ky'; did you mean 'key'"),
        ("[sensors.sentinel1-grd]", "[sensors.sentinel1]", r"unknown sensor 'sentinel1'"),
        ('column = "crop"', "", r'form "single" needs column'),
        ('form = "single"', 'form = "single"\nseparator = ","', r"separator has no effect on"),
        ('form = "single"', 'form = "separated"', r'form "separated" needs separator'),
        ('form = "single"', 'form = "columns"', r'column has no effect on form "columns"'),
        ('form = "single"', 'form = "one"', r"labels.form: Input should be 'single', 'list'"),
        ('form = "single"', 'form = "list"', r"'crop' is of type string; expected lists"),
        ('split = "fold"', "", r"\[splits\] and columns.split have an effect only together"),
        ('["a", "b"]', '["a", "d"]', r"splits.train: no row of .*samples.csv has 'd' in column"),
        ("train =", "training =", r"has no split 'train' in .*toml; splits: all, training, test"),
        ("2 = ", "3 = ", r"row 1 has label '2', which is not one of \[classes\]"),
        ("001 = ", "1 = ", r"row 2 has label '001', which is not one of"),
        ('key = "id"', 'key = "fold"', r"row 4 has 'c' in column 'fold', as row 2 has"),
        ('key = "id"', 'key = "day"', r"row 2 has nothing in column 'day'"),
        ('date = "day"', 'date = "text"', r"row 1 has 'one, .*' in column 'text'; expected an ISO"),
        ('key = "id"', 'footprint = "id"', r"column 'id' is of type string; expected well-known"),
        (
            "samples.csv",
            "sample.csv",
            r"table: fields/sample.csv not found .*samples.csv\?\); looked in .* and the",
        ),
        ("fields/samples.csv", "../samples.csv", r"table: '../samples.csv' leads outside"),
        ("fields/images", "/images", r"root: '/images' leads outside"),
        ("fields/images", "fields", r"fields/s2/1.tif not found"),
        ("dn_offset = -1000", "", r"offset unknown"),
        ("[sensors.sentinel1-grd]", "[sensors.rgb]", r"sensors.rgb: bands has no effect on"),
    ],
)
def test_every_mistake_is_one_clear_line(root: Path, old: str, new: str, message: str) -> None:
    assert old in TOML
    with pytest.raises(TerralignError, match=message) as caught:
        opened(root, TOML.replace(old, new, 1), "all" if message.startswith("row") else "train")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("column", "values", "message"),
    [
        ("s2", ["s2/1.tif", "../2.tif", "s2/3.tif", "x"], r"row 2, column 's2': '../2.tif' leads"),
        ("s2", ["s2/1.tif", "/2.tif", "s2/3.tif", "x"], r"row 2, column 's2': '/2.tif' leads out"),
        ("s2", ["s2/1.tif", "C:/2.tif", "s2/3.tif", "x"], r"row 2, .*leads outside"),
        ("s2", ["s2/1.tif", "s2\\2.tif", "s2/3.tif", "x"], r"row 2, .*leads outside"),
        ("s2", ["s2/1.tif", "", "s2/3.tif", "x"], r"row 2 has nothing in column 's2'"),
        ("crop", ["2", None, "2", "2"], r"row 2 has no label"),
        ("crop", [1.0, 2.0, 3.0, 4.0], r"column 'crop' is of type double; expected texts"),
        ("text", [["a"], [], ["b"], ["c"]], r"row 2 has no caption in column 'text'"),
    ],
)
def test_a_wrong_value_names_its_row(
    root: Path, column: str, values: list[Any], message: str
) -> None:
    text = parquet(root, {**ROWS, column: values})
    with pytest.raises(DataError, match=message):
        opened(root, text, "all")
    assert len(opened(root, TOML, "all")) == 4


def test_a_wrong_row_of_another_split_is_no_concern(root: Path) -> None:
    text = parquet(root, {**ROWS, "crop": ["2", "none", "2", None]})
    assert len(opened(root, text, "train")) == 2
    with pytest.raises(DataError, match=r"row 2 has label 'none'"):
        opened(root, text, "test")


def test_flags_are_0_or_1(root: Path) -> None:
    text = parquet(root, {**ROWS, "001": [1, 0, 2, 0], "2": [0, 0, 0, 0]})
    text = text.replace('form = "single"\ncolumn = "crop"', 'form = "columns"')
    with pytest.raises(DataError, match=r"row 3 has '2' in column '001'; expected 0 or 1"):
        opened(root, text, "all")


def test_a_damaged_table_is_one_line(root: Path) -> None:
    path = root / "fields/samples.parquet"
    text = parquet(root, ROWS)
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(DataError, match=r"samples.parquet is damaged: ") as caught:
        opened(root, text)
    assert "\n" not in str(caught.value)
    path.write_text("no table")
    with pytest.raises(DataError, match=r"neither Parquet nor a .csv"):
        opened(root, text)
    (root / "fields/samples.csv").write_text("id,s2,s1,crop,fold,day,text\na,b\n")
    with pytest.raises(DataError, match=r"samples.csv cannot be read with ','"):
        opened(root)
    (root / "fields/samples.csv").write_text("id,s2,s1,crop,fold,day,text\n")
    with pytest.raises(DataError, match=r"samples.csv has no rows"):
        opened(root)


def test_texts_of_parquet_that_are_no_utf8_are_refused(root: Path) -> None:
    offsets = pa.array([0, 1], pa.int32()).buffers()[1]
    text = pa.Array.from_buffers(pa.string(), 1, [None, offsets, pa.py_buffer(b"\xff")])
    pq.write_table(pa.table({"a": text}), root / "a.parquet")
    with pytest.raises(DataError, match=r"a.parquet is damaged: .*UTF8"):
        read_table(root / "a.parquet", ["a"])


@pytest.mark.parametrize("store_schema", [True, False])
def test_a_small_table_of_huge_texts_is_refused(
    root: Path, monkeypatch: pytest.MonkeyPatch, store_schema: bool
) -> None:
    monkeypatch.setenv("TERRALIGN_LIMITS", "table_bytes=1MiB")
    indices = pa.array(np.zeros(9000, np.int32))
    bomb = pa.DictionaryArray.from_arrays(indices, pa.array(["x" * 1000]))
    path = root / "a.parquet"
    pq.write_table(pa.table({"a": bomb}), path, store_schema=store_schema)
    assert path.stat().st_size < 8192
    with pytest.raises(DataError, match=r"a.parquet has .* MiB, more than the limit of 1 MiB"):
        read_table(path, ["a"])


def test_a_dictionary_of_long_texts_below_the_limit_is_read(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERRALIGN_LIMITS", "table_bytes=1MiB")
    texts = ["x" * 100_000, None, *"abcdefgh" * 1000]
    lists = pa.array([[one] for one in texts])
    pq.write_table(pa.table({"a": texts, "b": lists}), root / "a.parquet", row_group_size=3000)
    found = read_table(root / "a.parquet", ["a", "b"])
    assert found.arrays["a"].to_pylist() == texts
    assert found.arrays["b"].to_pylist() == [[one] for one in texts]


@pytest.mark.parametrize("column", [pa.array(["ab"] * 40), pa.array([["ab"] * 38])])
def test_few_bytes_of_many_values_are_refused(
    root: Path, monkeypatch: pytest.MonkeyPatch, column: pa.Array
) -> None:
    monkeypatch.setenv("TERRALIGN_LIMITS", "table_rows=39,table_values=37")
    pq.write_table(pa.table({"a": column}), root / "a.parquet")
    with pytest.raises(DataError, match=r"a.parquet has (40 rows|38 values), more than the limit"):
        read_table(root / "a.parquet", ["a"])


def test_the_rows_of_a_csv_are_bounded(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERRALIGN_LIMITS", "table_rows=3")
    with pytest.raises(DataError, match=r"samples.csv has 4 rows, more than the limit of 3 rows"):
        read_table(root / "fields/samples.csv", ["id"])


def test_a_footer_beyond_the_limit_is_not_parsed(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pq.write_table(pa.table({str(number): [1] for number in range(99)}), root / "a.parquet")
    monkeypatch.setenv("TERRALIGN_LIMITS", "parquet_footer_bytes=1KiB")
    with pytest.raises(DataError, match=r"a.parquet has a footer of .* KiB, more than the limit"):
        read_table(root / "a.parquet", ["1"])


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
@pytest.mark.parametrize(
    ("text", "line"),
    [
        ('id,b\nf1,"1\nf2,2\nf3,3\n', 2),
        ('id,b\nf1,"1, ""2"""\nf2,x"y"\nf3,"3\nf4,4\n', 4),
        ('"id,b\nf1,1\n', 1),
        ('id,b\n"f1,1\nf2,2\n', 2),
    ],
)
def test_a_quote_that_is_not_closed_is_told(
    root: Path, text: str, line: int, encoding: str
) -> None:
    (root / "a.csv").write_text(text, encoding=encoding)
    with pytest.raises(DataError, match=rf"a.csv: the quote in line {line} is not closed"):
        read_table(root / "a.csv", ["id"])


def test_quotes_within_values_are_not_taken_for_open_ones(root: Path) -> None:
    (root / "a.csv").write_text('id,b\nf1,5" pipe\nf2,"two\nlines, ""quoted"""\n')
    assert read_table(root / "a.csv", ["b"]).arrays["b"].to_pylist() == [
        '5" pipe',
        'two\nlines, "quoted"',
    ]


def test_a_row_of_megabytes_is_told(root: Path) -> None:
    (root / "a.csv").write_text("id,b\nf1," + "x" * 3 * 2**20 + "\n")
    with pytest.raises(DataError, match=r"a.csv cannot be read .*: a row is longer than 1 MiB"):
        read_table(root / "a.csv", ["id"])


@pytest.mark.parametrize("text", ["0001-01-01T00:00+23:59", "9999-12-31T23:59-23:59", "9" * 9000])
def test_a_date_at_the_end_of_time_is_told(root: Path, text: str) -> None:
    pq.write_table(pa.table({"a": [text]}), root / "a.parquet")
    columns = read_table(root / "a.parquet", ["a"]).take(np.array([0]))
    with pytest.raises(DataError, match=r"row 1 has '.*' in column 'a'; expected an ISO") as caught:
        columns.times("a")
    assert len(str(caught.value)) < 400


def test_a_path_that_no_system_opens_is_told(root: Path) -> None:
    rows = {**ROWS, "s2": ["s2/1.tif", "x" * 10**6, "s2/3.tif", "s2/4.tif"]}
    parquet(root, rows)
    with pytest.raises(DataError, match=r"row 2 has a text of more than 4096 bytes in column 's2'"):
        opened(root, TOML.replace("samples.csv", "samples.parquet"), "all")


def test_a_time_outside_the_calendar_is_refused(root: Path) -> None:
    pq.write_table(pa.table({"a": pa.array([2**62], pa.timestamp("us"))}), root / "a.parquet")
    columns = read_table(root / "a.parquet", ["a"]).take(np.array([0]))
    with pytest.raises(DataError, match=r"column 'a' has a time outside the years 1 to 9999"):
        columns.times("a")


def test_a_csv_with_another_delimiter(root: Path) -> None:
    table = root / "fields/samples.csv"
    options = pa_csv.WriteOptions(delimiter=";")
    pa_csv.write_csv(pa.table(ROWS), table, options)
    with pytest.raises(DataError, match=r"samples.csv cannot be read with ',' between columns"):
        opened(root)
    text = TOML.replace("root =", 'delimiter = ";"\nroot =')
    assert opened(root, text).keys == ("f1", "f3")
    parquet(root, ROWS)
    with pytest.raises(DataError, match=r"Parquet: delimiter has no effect"):
        opened(root, text.replace("samples.csv", "samples.parquet"))


def test_missing_and_truncated_files_are_named_when_they_are_read(root: Path) -> None:
    images = root / "fields/images"
    (images / "s1/3.tif").unlink()
    whole = (images / "s2/4.tif").read_bytes()
    (images / "s2/4.tif").write_bytes(whole[:-20])
    samples = opened(root, split="all")
    samples.read(np.array([0, 1]))
    with pytest.raises(DataError, match=r"s1/3.tif not found"):
        samples.read(np.array([2]))
    with pytest.raises(DataError, match=r"s2/4.tif is "):
        samples.read(np.array([3]))


def test_unused_classes_are_counted(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        opened(root)
    assert "no sample of 1 of 2 classes: a wheat field" in caplog.text


def test_the_fingerprint_follows_the_table_and_files_sizes(root: Path) -> None:
    first = opened(root).fingerprint
    assert opened(root).fingerprint == first
    prints = {first, opened(root, split="test").fingerprint}
    prints.add(opened(root, TOML.replace("-1000", "0")).fingerprint)
    geotiff(root / "fields/images/s2/3.tif", pixels(3, 3)[:, :2])
    prints.add(opened(root).fingerprint)
    pa_csv.write_csv(pa.table({**ROWS, "text": ["a", "b", "c", "d"]}), root / "fields/samples.csv")
    prints.add(opened(root).fingerprint)
    assert len(prints) == 5


def test_opening_does_not_ask_for_every_file(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    num = 5000
    rows = {
        "s2": ["s2/1.tif"] * num,
        "s1": ["s1/1.tif"] * num,
        "crop": ["2", "001"] * (num // 2),
        "id": list(range(num)),
    }
    text = parquet(root, rows)
    text = text[: text.index("[columns]")] + '[columns]\nkey = "id"\n'
    asked = []
    stat = os.stat

    def counted(path: Any, **options: Any) -> Any:
        asked.append(path)
        return stat(path, **options)

    monkeypatch.setattr(os, "stat", counted)
    samples = opened(root, text, "all")
    assert len(samples) == num
    assert len(asked) < num


def test_rgb_pictures_are_resized(root: Path) -> None:
    for number in range(1, 5):
        Image.new("RGB", (9, 7)).save(root / f"fields/images/{number}.jpg")
    text = parquet(root, {**ROWS, "jpg": [f"{number}.jpg" for number in range(1, 5)]})
    text = text.replace("[labels]", '[sensors.rgb]\ncolumn = "jpg"\n\n[labels]')
    got = opened(root, text, size=5).read(np.array([0]))
    assert got["rgb"].shape == (1, 3, 5, 5)
    assert got["sentinel2-l2a"].shape == (1, 3, 4, 6)


def test_without_labels(root: Path) -> None:
    start, end = TOML.index("[labels]"), TOML.index("[columns]")
    bare = (TOML[:start] + TOML[end:]).replace('prompts = ["a satellite image of {}."]\n', "")
    assert opened(root, bare).labels is None
    assert find_dataset(str(root / "fields.toml")).facts.labels == "captions"
    with pytest.raises(DataError, match=r"prompts has no effect on samples without labels"):
        opened(root, TOML[:start] + TOML[end:])
    with pytest.raises(DataError, match=r"\[classes\] is missing"):
        opened(root, TOML[: TOML.index("[classes]")] + TOML[end:])


@pytest.mark.realdata
def test_eurosat_ms_from_a_table_is_eurosat_ms(real_data: Path, tmp_path: Path) -> None:
    expected = open_scene_classes("eurosat-ms", real_data, "val")
    base = real_data / "eurosat_ms/ds/images/remote_sensing/otherDatasets/sentinel_2/tif"
    files = [file.relative_to(base).as_posix() for file in expected.files]
    assert expected.labels is not None
    folders = [file.split("/")[0] for file in files]
    names = expected.labels.class_names
    classes = {
        folder: names[value] for folder, value in zip(folders, expected.labels.values, strict=True)
    }
    pq.write_table(pa.table({"file": files, "class": folders}), tmp_path / "list.parquet")
    lines = "\n".join(f'{folder} = "{classes[folder]}"' for folder in classes)
    (tmp_path / "ms.toml").write_text(
        f'name = "ms"\nreader = "table"\ntable = "list.parquet"\n'
        f'root = "{base.relative_to(real_data).as_posix()}"\n'
        '[sensors.sentinel2-l1c]\ncolumn = "file"\ndn_offset = 0\ncomposite = "eurosat"\n'
        'bands = ["B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B09", "B10", "B11", '
        '"B12", "B8A"]\n[labels]\nform = "single"\ncolumn = "class"\n'
        f"[classes]\n{lines}\n"
    )
    got = open_dataset(str(tmp_path / "ms.toml"), data_root=real_data, split="val")
    assert got.keys == expected.keys
    assert got.layouts == expected.layouts
    assert got.labels is not None
    assert [got.labels.class_names[one] for one in got.labels.values] == [
        names[one] for one in expected.labels.values
    ]
    rows = np.arange(len(expected))
    np.testing.assert_array_equal(
        got.read(rows)["sentinel2-l1c"], expected.read(rows)["sentinel2-l1c"]
    )


@pytest.mark.realdata
def test_real_geotiffs_without_labels_know_their_places(real_data: Path, tmp_path: Path) -> None:
    names = sorted(path.name for path in (real_data / "formats/s2_l2a_224").glob("*.tif"))
    (tmp_path / "list.csv").write_text("path\n" + "\n".join(names) + "\n")
    (tmp_path / "patches.toml").write_text(
        'name = "patches"\nreader = "table"\ntable = "list.csv"\nroot = "formats/s2_l2a_224"\n'
        '[sensors.sentinel2-l2a]\ncolumn = "path"\ndn_offset = 0\n'
        'bands = ["B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B09", "B11", '
        '"B12"]\n'
    )
    samples = open_dataset(str(tmp_path / "patches.toml"), data_root=real_data, split="all")
    assert samples.labels is None
    got = samples.read(np.arange(5))["sentinel2-l2a"]
    assert (got.shape, got.dtype) == ((5, 12, 224, 224), np.int16)
    assert isinstance(samples, Located)
    for index, name in enumerate(names):
        with rasterio.open(real_data / "formats/s2_l2a_224" / name) as file:
            np.testing.assert_array_equal(got[index], file.read())
            expected = transform_bounds(file.crs, "EPSG:4326", *file.bounds)
        assert samples.place(index).bounds == pytest.approx(expected, abs=1e-9)


def test_an_unknown_band_is_told_with_the_file(root: Path) -> None:
    with pytest.raises(TerralignError, match=r"s2/1.tif: unknown band 'B,04' of sensor"):
        opened(root, TOML.replace('"B04"', '"B,04"'), "all")
