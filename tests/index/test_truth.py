"""Searches measured by polygons: which windows they cover, and what is no ground truth."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import shapely
from click.testing import CliRunner, Result
from rasterio.features import rasterize, shapes
from rasterio.warp import transform, transform_geom

from imagery import NO_OFFSET, ORIGIN, S2, dn, write_geotiff
from terralign.cli import main
from terralign.encoders.space import EmbeddingSpace
from terralign.errors import DataError
from terralign.index.embed import embed_scenes
from terralign.index.search import Index, open_index
from terralign.index.truth import covers, read_truth
from terralign.searching.evaluate import evaluate_search

DRAWN = Path(__file__).parents[1] / "data" / "t48que.geojson"
SIZE, STRIDE = 96, 16


@pytest.fixture(scope="module")
def index(space: EmbeddingSpace, tmp_path_factory: pytest.TempPathFactory) -> Index:
    """One scene of 25 overlapping windows of 32 pixels."""
    folder = tmp_path_factory.mktemp("scenes")
    path = write_geotiff(folder / "scene.tif", dn(SIZE), S2.band_names, tags=NO_OFFSET)
    embed_scenes(space, path, folder / "out", sensor=S2.name, stride=STRIDE)
    return open_index(folder / "out")


def in_metres(*corners: tuple[float, float]) -> list[list[float]]:
    """A closed ring of (column, row) pixels of the scene, in its own coordinates."""
    ring = [[ORIGIN[0] + 10 * column, ORIGIN[1] - 10 * row] for column, row in corners]
    return [*ring, ring[0]]


def in_degrees(*corners: tuple[float, float]) -> list[list[float]]:
    xs, ys = zip(*in_metres(*corners), strict=True)
    return [list(one) for one in zip(*transform("EPSG:32633", "EPSG:4326", xs, ys), strict=True)]


def polygon(ring: list[list[float]], **properties: Any) -> dict[str, Any]:
    geometry = {"type": "Polygon", "coordinates": [ring]}
    return {"type": "Feature", "properties": properties, "geometry": geometry}


def write_truth(path: Path, *features: Any, **members: Any) -> Path:
    value = {"type": "FeatureCollection", **members, "features": list(features)}
    path.write_text(json.dumps(value))
    return path


LEFT = ((0, 0), (40, 0), (40, SIZE), (0, SIZE))
"""Columns 0 to 40: of windows of 32 pixels from 0, 16, 32, 48, 64 it covers 1, 3/4, 1/4, 0, 0."""


def test_a_windows_share_is_that_of_its_area(index: Index, tmp_path: Path) -> None:
    path = write_truth(tmp_path / "truth.json", polygon(in_degrees(*LEFT)))
    truth = read_truth(path)
    numbers, shares = covers(index, truth.shapes)
    columns = index.store.rows["window"][numbers, 1]
    expected = {0: 1, 16: 0.75, 32: 0.25, 48: 0, 64: 0}
    assert shares["polygons"] == pytest.approx([expected[one] for one in columns], abs=1e-3)


def test_overlapping_polygons_count_once(index: Index, tmp_path: Path) -> None:
    left = polygon(in_degrees(*LEFT))
    once = covers(index, read_truth(write_truth(tmp_path / "1.json", left)).shapes)[1]
    halves = (
        polygon(in_degrees((0, 0), (30, 0), (30, SIZE), (0, SIZE))),
        polygon(in_degrees((10, 0), (40, 0), (40, SIZE), (10, SIZE))),
    )
    twice = covers(index, read_truth(write_truth(tmp_path / "2.json", *halves)).shapes)[1]
    assert twice["polygons"] == pytest.approx(once["polygons"], abs=1e-4)


def test_coordinates_are_of_the_reference_system_that_the_file_names(
    index: Index, tmp_path: Path
) -> None:
    crs = {"type": "name", "properties": {"name": "urn:ogc:def:crs:EPSG::32633"}}
    metres = write_truth(tmp_path / "m.json", polygon(in_metres(*LEFT), kind="a"), crs=crs)
    degrees = write_truth(tmp_path / "d.json", polygon(in_degrees(*LEFT), kind="a"))
    found, expected = (
        covers(index, read_truth(path, class_property="kind").shapes)[1]["a"]
        for path in (metres, degrees)
    )
    assert found == pytest.approx(expected, abs=1e-6)


def test_a_search_is_judged_by_the_windows_that_polygons_cover(
    space: EmbeddingSpace, index: Index, tmp_path: Path
) -> None:
    truth = write_truth(tmp_path / "truth.json", polygon(in_degrees(*LEFT), **{"class": "left"}))
    found = evaluate_search(space, index, truth, {"left": ["a river", "a town"]}, ks=(5, 100))
    for one in found.texts:
        hits = index.search(space, one.text, k=25)
        right = [hit.place.window is not None and hit.place.window.column <= 16 for hit in hits]
        values = {metric.name: metric.value for metric in one.metrics}
        assert values == {
            "precision@5": sum(right[:5]) / 5, "recall@5": sum(right[:5]) / 10,
            "precision@100": 10 / 25, "recall@100": 1,
        }  # fmt: skip
        assert one.metrics[0].chance == 10 / 25
    assert any("25 hits of the 100 wanted" in note for note in found.notes)
    assert any("overlap" in note for note in found.notes)
    assert evaluate_search(space, index, truth, ks=(5,)).texts[0].text == "left"


def test_filters_of_the_search_hold_for_its_judgement(
    space: EmbeddingSpace, index: Index, tmp_path: Path
) -> None:
    truth = {"left": shapely.Polygon(in_degrees(*LEFT))}
    area = shapely.Polygon(in_degrees((20, 1), (30, 1), (30, 5), (20, 5)))
    found = evaluate_search(space, index, truth, "a river", ks=(2,), polygon=area)
    assert (found.num_searched, found.texts[0].num_relevant) == (2, 2)
    assert {one.name: one.value for one in found.texts[0].metrics} == {
        "precision@2": 1, "recall@2": 1,
    }  # fmt: skip
    elsewhere = shapely.Polygon(in_degrees((80, 80), (90, 80), (90, 90), (80, 90)))
    with pytest.raises(DataError, match="filtered out"):
        evaluate_search(space, index, truth, "a river", polygon=elsewhere)


def _call(*words: Any) -> Result:
    return CliRunner().invoke(main, ["evaluate", *map(str, words)])


def test_the_command_prints_what_python_gives(
    space: EmbeddingSpace, index: Index, tmp_path: Path
) -> None:
    truth = write_truth(
        tmp_path / "truth.json",
        polygon(in_degrees(*LEFT), **{"class": "left"}),
        polygon(in_degrees((60, 0), (SIZE, 0), (SIZE, SIZE)), **{"class": "right"}),
    )
    words = (index.folder, "--truth", truth, "--text", "left=a river", "--text", "right")
    result = _call(*words, "-k", "3,6", "--min-cover", "0.4", "--json")
    assert result.exit_code == 0, result.output
    texts = {"left": ["a river"], "right": "right"}
    expected = evaluate_search(space, index, truth, texts, ks=(3, 6), min_cover=0.4)
    assert json.loads(result.stdout) == json.loads(json.dumps(expected.to_json()))
    result = _call(*words)
    assert result.exit_code == 0, result.output
    assert "precision@10" in result.stdout
    assert "a river" in result.stdout


TRIANGLE = [[15.0, 45.0], [15.1, 45.0], [15.0, 45.1], [15.0, 45.0]]
CROSSED = [[15.0, 45.0], [15.1, 45.1], [15.1, 45.0], [15.0, 45.1], [15.0, 45.0]]


@pytest.mark.parametrize(
    ("features", "members", "message"),
    [
        ([], {}, "no features"),
        ([{"geometry": {"type": "Point", "coordinates": [1, 2]}}], {}, "feature 1 is a Point"),
        ([{"geometry": None}], {}, "feature 1 has no geometry"),
        (
            [{"geometry": {"type": "Polygon", "coordinates": "x"}}],
            {},
            "is no GeoJSON of a polygon",
        ),
        ([polygon([[0, 10**400]] * 4)], {}, "no GeoJSON of a polygon: int too large"),
        ([polygon(CROSSED, **{"class": "a"})], {}, r"feature 1 \(a\) is not valid .*crosses"),
        ([polygon(TRIANGLE, **{"class": "a"}), polygon(TRIANGLE)], {}, "feature 2 has no text as"),
        ([polygon([[5e5, 0.0], [6e5, 0.0], [5e5, 1.0], [5e5, 0.0]])], {}, "expected degrees"),
        ([polygon(TRIANGLE, **{"class": 3})], {}, "feature 1 has 3 as property 'class'"),
        ([polygon(TRIANGLE)], {"crs": "EPSG:4326"}, "member crs is not understood"),
        (
            [polygon(TRIANGLE)],
            {"crs": {"type": "name", "properties": {"name": "EPSG:99999"}}},
            "cannot be brought to WGS84",
        ),
    ],
)
def test_what_is_no_ground_truth_is_refused_in_one_line(
    tmp_path: Path, features: list[Any], members: dict[str, Any], message: str
) -> None:
    path = write_truth(tmp_path / "truth.json", *features, **members)
    with pytest.raises(DataError, match=message) as caught:
        read_truth(path)
    assert "truth.json" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["[1]", '{"type": "Polygon"}', '{"features": [3]}', "no JSON"])
def test_another_file_is_no_ground_truth(tmp_path: Path, text: str) -> None:
    path = tmp_path / "truth.json"
    path.write_text(text)
    with pytest.raises(DataError, match="truth"):
        read_truth(path)


def test_classes_and_texts_that_do_not_meet_are_reported(
    space: EmbeddingSpace, index: Index, tmp_path: Path
) -> None:
    far = [[x + 40, y] for x, y in TRIANGLE]
    truth = write_truth(
        tmp_path / "t.json",
        polygon(in_degrees(*LEFT), **{"class": "left"}), polygon(far, **{"class": "far"}),
    )  # fmt: skip
    with pytest.raises(DataError, match=r"no class 'lefd'.*left"):
        evaluate_search(space, index, truth, {"lefd": "a river"})
    with pytest.raises(DataError, match="say which one 'a river' is for"):
        evaluate_search(space, index, truth, "a river")
    with pytest.raises(DataError, match=r"class 'far' .*0\.0 % at most.*elsewhere"):
        evaluate_search(space, index, truth)
    with pytest.raises(DataError, match="ks is empty"):
        evaluate_search(space, index, truth, {"left": "a river"}, ks=())
    with pytest.raises(DataError, match="min_cover is 0"):
        evaluate_search(space, index, truth, min_cover=0)
    words = (index.folder, "--truth", truth)
    for options, message in (
        (("--text", "a river"), "say which class it means"),
        (("--text", "lefd=a river"), "one of the classes left, far"),
        (("-k", "0"), "whole numbers from 1"),
        (("--data", "eurosat-ms"), "no effect with --truth"),
        (("--split", "test"), "--split: no effect with --truth"),
        (("--task", "retrieval"), "--task: no effect with --truth"),
    ):
        result = _call(*words, *options)
        assert result.exit_code == 2
        assert message in result.stderr
    result = _call(index.folder, "--data", "eurosat-ms", "--min-cover", "0.3")
    assert (result.exit_code, "only with --truth" in result.stderr) == (2, True)


# Real pixels

SCENE = "S2B_MSIL2A_20200223T032739_N9999_R018_T48QUE_20230924T183543"


@pytest.fixture(scope="module")
def reflectances(real_data: Path) -> tuple[dict[str, Any], Any]:
    """Bands of 10 m of the cut that the polygons were drawn on, and its georeference."""
    bands = {}
    for name in ("B03", "B04", "B08"):
        with rasterio.open(real_data / "scenes" / SCENE / f"{name}.tif") as file:
            bands[name], profile = file.read(1).astype(np.float32), file.profile
    return bands, profile


@pytest.mark.realdata
def test_polygons_drawn_by_hand_agree_with_the_pixels(
    reflectances: tuple[dict[str, Any], Any],
) -> None:
    """Forest is green, towns are less so, neither is water, and all are within the scene."""
    bands, profile = reflectances
    ndvi = (bands["B08"] - bands["B04"]) / (bands["B08"] + bands["B04"])
    water = bands["B03"] > bands["B08"]  # NDWI above 0
    ranges = {"town": (0.25, 0.65), "forest": (0.65, 1.0)}
    seen = dict.fromkeys(ranges, 0)
    for feature in json.loads(DRAWN.read_text())["features"]:
        label = feature["properties"]["class"]
        shape = transform_geom("EPSG:4326", profile["crs"], feature["geometry"])
        inside = rasterize(
            [shape], (profile["height"], profile["width"]), transform=profile["transform"]
        ).astype(bool)
        assert inside.sum() * 100 == pytest.approx(shapely.geometry.shape(shape).area, rel=0.02)
        low, high = ranges[label]
        assert low < np.median(ndvi[inside]) < high
        assert water[inside].mean() < 0.02
        seen[label] += 1
    assert seen == {"town": 16, "forest": 25}


@pytest.mark.realdata
def test_water_of_a_real_scene_is_judged_as_its_pixels_are(
    space: EmbeddingSpace,
    real_data: Path,
    reflectances: tuple[dict[str, Any], Any],
    tmp_path: Path,
) -> None:
    """Shares of windows that polygons of NDWI cover are those of the pixels in them."""
    bands, profile = reflectances
    water = (bands["B03"] > bands["B08"]).astype(np.uint8)
    crs = {"type": "name", "properties": {"name": profile["crs"].to_string()}}
    found = shapes(water, mask=water == 1, transform=profile["transform"])
    features = [{"type": "Feature", "properties": {"class": "water"}, "geometry": one}
                for one, _ in found]  # fmt: skip
    path = write_truth(tmp_path / "water.geojson", *features, crs=crs)
    scene = real_data / "scenes" / SCENE
    embed_scenes(
        space, scene, tmp_path / "out", dn_offset=0, bands=("B02", "B03", "B04", "B08"), window=64
    )
    index = open_index(tmp_path / "out")
    numbers, shares = covers(index, read_truth(path).shapes)
    windows = index.store.rows["window"][numbers]
    expected = [
        water[row : row + height, column : column + width].mean()
        for row, column, height, width in windows.tolist()
    ]
    assert len(numbers) == 17 * 17
    assert shares["water"] == pytest.approx(expected, abs=1e-3)
    result = _call(tmp_path / "out", "--truth", DRAWN, "--text", "town=a town with houses",
                   "--min-cover", "0.3", "--json")  # fmt: skip
    assert result.exit_code == 0, result.output
    (town,) = json.loads(result.stdout)["texts"]
    assert town["num_relevant"] > 10
    assert town["chance"]["precision@20"] == town["num_relevant"] / (17 * 17)
    assert town["intervals"]["precision@20"][0] <= town["metrics"]["precision@20"]
