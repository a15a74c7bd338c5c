"""Search over a folder of parts: exact, filtered, fair to towers, refused where it must be."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import rasterio.warp
import shapely
import torch
from click.testing import CliRunner, Result

from imagery import NO_OFFSET, S2, dn, write_geotiff, write_picture
from terralign.cli import main
from terralign.encoders.clip.load import ClipModel
from terralign.encoders.space import EmbeddingSpace
from terralign.encoders.vectors import as_unit
from terralign.errors import DataError, SpaceMismatchError, StorageError
from terralign.index import search as searching
from terralign.index.embed import embed_scenes
from terralign.index.overlaps import without_overlaps
from terralign.index.parts import PartRows, facts_of, write_part
from terralign.index.results import save_hits
from terralign.index.search import Index, cosines, describe_index, open_index

QUERY = "a river"


@pytest.fixture(scope="module")
def scenes(space: EmbeddingSpace, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two scenes of 25 overlapping windows by two towers; a date for one of them."""
    folder = tmp_path_factory.mktemp("scenes")
    paths = [
        write_geotiff(folder / name, dn(96, seed=seed), S2.band_names, tags=NO_OFFSET)
        for seed, name in enumerate(
            ("S2A_MSIL2A_20220706T085611_N9999_R007_T33NZA_20220706T153419.tif", "undated.tif")
        )
    ]
    embed_scenes(
        space, paths, folder / "out", sensor=S2.name, tower=["s2", "rgb"], stride=16,
        vectors="float32",
    )  # fmt: skip
    return folder / "out"


@pytest.fixture(scope="module")
def index(scenes: Path) -> Index:
    return open_index(scenes)


def rows_of(folder: Path) -> list[dict[str, Any]]:
    """The rows of all parts, in the order of the index."""
    return [
        row for path in sorted(folder.glob("*.parquet")) for row in pq.read_table(path).to_pylist()
    ]


def vectors_of(rows: list[dict[str, Any]]) -> np.ndarray[Any, np.dtype[np.float32]]:
    return np.array([row["vector"] for row in rows], dtype=np.float32)


def test_hits_are_those_of_brute_force(space: EmbeddingSpace, index: Index, scenes: Path) -> None:
    rows = rows_of(scenes)
    scores = vectors_of(rows) @ space.text_vector(QUERY)
    order = np.argsort(-scores, kind="stable")
    for k in (1, 7, len(rows), 1000):
        hits = space.search(index, QUERY, k, centre=False)
        assert [hit.key for hit in hits] == [rows[n]["id"] for n in order[:k]]
        assert np.allclose(np.asarray(hits), scores[order[:k]], atol=1e-6)
    assert hits.num_searched == len(rows) == 100
    assert [hit.rank for hit in hits] == list(range(1, 101))


def test_the_table_names_the_scenes_where_they_are_several(
    space: EmbeddingSpace, index: Index
) -> None:
    hits = space.search(index, QUERY, 100)
    table = hits.table(max_rows=100)
    assert table.columns[-1] == "scene"
    cells = [row[-1].removeprefix("...") for row in table.rows]
    assert all(hit.facts["scene"].endswith(cell) for hit, cell in zip(hits, cells, strict=True))
    of_one = space.search(index, QUERY, 100, end="2022-07-06")
    assert "scene" not in of_one.table().columns


def test_pages_are_slices_of_the_hits(space: EmbeddingSpace, index: Index) -> None:
    hits = space.search(index, QUERY, 30)
    assert [one.rank for one in hits[10:20]] == list(range(11, 21))
    assert [one.key for one in space.search(index, QUERY, 10)] == [one.key for one in hits[:10]]


@pytest.mark.parametrize(
    ("options", "keep"),
    [
        ({"towers": "rgb"}, lambda row: row["tower"] == "rgb"),
        ({"sensors": [S2.name]}, lambda row: True),
        ({"start": "2022-07-06", "end": "2022-07-06"}, lambda row: row["datetime"] is not None),
        ({"end": "2022-07-05"}, lambda row: False),
        ({"start": "2022-07-06T09:00:00"}, lambda row: False),
        ({"max_cloud": 0.5}, lambda row: False),  # unknown
        ({"min_valid": 1.0}, lambda row: row["valid_share"] == 1),
    ],
)
def test_filters_leave_the_rows_that_meet_them(
    space: EmbeddingSpace, index: Index, scenes: Path, options: Any, keep: Any
) -> None:
    wanted = {row["id"] for row in rows_of(scenes) if keep(row)}
    hits = space.search(index, QUERY, 1000, **options)
    assert {one.key for one in hits} == wanted
    assert hits.num_searched == len(wanted)
    assert ("nothing" in hits.how) == (not wanted)


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"end": "2022-07-05"}, "meets end=; they are of 2022-07-06"),
        ({"max_cloud": 0.5, "min_valid": 0.5}, "meets max_cloud=; none has a mask"),
        ({"bbox": (0, 0, 1, 1)}, "meets bbox=; they lie within "),
        ({"bbox": (0, 0, 1, 1), "start": "2030-01-01"}, "meets bbox= or start=; "),
        ({"cut": 1.0}, "none of 100 windows passes cut=1; lower it"),
    ],
)
def test_a_search_that_finds_nothing_states_why(
    space: EmbeddingSpace, index: Index, options: Any, why: str
) -> None:
    hits = space.search(index, QUERY, **options)
    assert not hits
    assert why in hits.how["nothing"]
    assert why in str(hits)


def test_a_place_is_met_by_the_outlines_that_touch_it(
    space: EmbeddingSpace, index: Index, scenes: Path
) -> None:
    rows = rows_of(scenes)
    shapes = shapely.from_wkb([row["geometry"] for row in rows])
    west, south, east, north = shapes[0].bounds
    boxes = [
        (west, south, (west + east) / 2, north),
        (east, north, east + 1e-4, north + 1e-4),
        (-180, -90, 180, 90),
    ]
    for box in boxes:
        wanted = {
            row["id"]
            for row, one in zip(rows, shapes, strict=True)
            if one.intersects(shapely.box(*box))
        }
        assert {one.key for one in space.search(index, QUERY, 1000, bbox=box)} == wanted
    triangle = shapely.Polygon([(west, south), (east, south), (west, north)])
    wanted = {row["id"] for row, one in zip(rows, shapes, strict=True) if one.intersects(triangle)}
    found = space.search(index, QUERY, 1000, polygon=triangle)
    assert {one.key for one in found} == wanted
    geojson = {"type": "Feature", "geometry": shapely.geometry.mapping(triangle), "properties": {}}
    assert len(space.search(index, QUERY, 1000, polygon=geojson)) == len(wanted)
    points = rasterio.warp.transform("EPSG:4326", "EPSG:3857", *triangle.exterior.xy)
    mercator = shapely.geometry.mapping(shapely.Polygon(np.transpose(points)))
    crs = {"type": "name", "properties": {"name": "urn:ogc:def:crs:EPSG::3857"}}
    moved = {
        "type": "FeatureCollection",
        "crs": crs,
        "features": [{"type": "Feature", "geometry": mercator, "properties": {}}],
    }
    assert len(space.search(index, QUERY, 1000, polygon=moved)) == len(wanted)


def test_a_box_across_the_antimeridian_finds_both_sides(
    space: EmbeddingSpace, index: Index, scenes: Path, tmp_path: Path
) -> None:
    [path, *_] = sorted(scenes.glob("*.parquet"))
    facts = facts_of(path).model_copy(update={"vector_type": "float16"})
    shapes = np.array(
        [
            shapely.box(179.0, 0, 179.5, 0.5),
            shapely.MultiPolygon(
                [shapely.box(179.8, 0, 180, 0.4), shapely.box(-180, 0, -179.8, 0.4)]
            ),
            shapely.box(-179.5, 0, -179.2, 0.5),
            shapely.box(10, 0, 10.5, 0.5),
        ],
        dtype=object,
    )
    rng = np.random.default_rng(0)
    rows = PartRows(
        windows=[_window(n) for n in range(4)],
        shapes=shapes,
        centres=np.array([[179.2, 0.2], [180, 0.2], [-179.3, 0.2], [10.2, 0.2]]),
        valid_shares=np.ones(4, np.float32),
        clouds=np.array([0, 0.2, 0.4, np.nan], np.float32),
        vectors=as_unit(rng.normal(size=(4, space.dim))),
        datetime=None,
    )
    write_part(tmp_path / "a.parquet", rows, facts)
    other = open_index(tmp_path)
    boxes = {
        (179.4, 0, -179.4, 1): {0, 1, 2},
        (179.9, 0, 180, 1): {1},
        (-180, 0, -179.9, 1): {1},
        (0, 0, 20, 1): {3},
        (-170, 0, 170, 1): {3},
    }
    for box, wanted in boxes.items():
        hits = space.search(other, QUERY, 10, bbox=box)
        assert {int(one.key.split("-")[1]) for one in hits} == wanted, box
    assert len(space.search(other, QUERY, 10, max_cloud=0.3)) == 2


def _window(row: int) -> Any:
    from terralign.chips import Window

    return Window(row=row, column=0, height=4, width=4)


def test_queries_combine_texts_examples_and_weights(
    space: EmbeddingSpace, index: Index, scenes: Path
) -> None:
    rows = rows_of(scenes)
    vectors = vectors_of(rows)
    like, unlike = rows[3], rows[70]
    river, lake, cloud = (space.text_vector(one) for one in ("a river", "a lake", "clouds"))
    unit = [as_unit(np.float32(one["vector"])[None])[0] for one in (like, unlike)]
    total = (2 * river + lake + unit[0]) / 4 - 0.5 * (cloud + unit[1]) / 2
    order = np.argsort(-(vectors @ as_unit(total)), kind="stable")[:10]
    hits = space.search(
        index, [("a river", 2), "a lake"], against="clouds", like=like["id"], unlike=[unlike["id"]],
        centre=False,
    )  # fmt: skip
    assert [one.key for one in hits] == [rows[n]["id"] for n in order]
    assert hits.query.startswith("a river, a lake, ")
    assert "not: clouds" in hits.query
    assert space.search(index, like=like["id"], k=1)[0].key == like["id"]


def test_a_picture_and_a_chip_are_examples(
    space: EmbeddingSpace, index: Index, tmp_path: Path
) -> None:
    path = write_picture(tmp_path / "a.png", size=32)
    by_path = space.search(index, path, 5)
    by_vectors = space.search(index, space.embed(path), 5)
    assert [one.key for one in by_path] == [one.key for one in by_vectors]


def test_towers_are_ranked_fairly(space: EmbeddingSpace, scenes: Path, tmp_path: Path) -> None:
    """One tower's vectors are all nearer to texts by a constant: centred, both are found."""
    bias = space.text_vector(QUERY)
    for path in sorted(scenes.glob("*.parquet")):
        facts = facts_of(path)
        table = pq.read_table(path).to_pylist()
        vectors = vectors_of(table)
        if facts.tower == "rgb":
            vectors = as_unit(vectors + 2 * bias)  # nearer, and less spread
        rows = PartRows(
            windows=[_window(n) for n in range(len(table))],
            shapes=shapely.from_wkb([row["geometry"] for row in table]),
            centres=np.zeros((len(table), 2)),
            valid_shares=np.ones(len(table), np.float32),
            clouds=np.full(len(table), np.nan, np.float32),
            vectors=vectors,
            datetime=None,
        )
        write_part(tmp_path / path.name, rows, facts)
    other = open_index(tmp_path)
    raw = [one.tower for one in space.search(other, QUERY, 20, centre=False)]
    fair = [one.tower for one in space.search(other, QUERY, 20)]
    assert raw.count("rgb") == 20
    assert 5 <= fair.count("rgb") <= 15


def test_overlapping_windows_collapse_to_the_best(space: EmbeddingSpace, index: Index) -> None:
    every = space.search(index, QUERY, 1000)
    kept = space.search(index, QUERY, 1000, collapse=True)
    assert kept[0].key == every[0].key
    assert 4 <= len(kept) < 30
    boxes = [shapely.box(*one.place.bounds) for one in kept]
    for number, one in enumerate(boxes):
        assert all(one.intersection(other).area < 0.25 * one.area for other in boxes[:number])
    for hit in every:
        box = shapely.box(*hit.place.bounds)
        assert any(box.intersection(one).area >= 0.25 * one.area for one in boxes)


def test_boxes_across_the_antimeridian_overlap() -> None:
    boxes = np.array(
        [[179.5, 0, -179.5, 1], [-180, 0, -179, 1], [170, 0, 171, 1], [179, 0, 180, 1]]
    )
    assert without_overlaps(boxes).tolist() == [0, 2]


def test_a_cut_keeps_what_the_query_explains_best(space: EmbeddingSpace, index: Index) -> None:
    every = space.search(index, QUERY, 1000)
    kept = space.search(index, QUERY, 1000, cut=0.1)
    assert len(kept) < len(every)
    assert len(space.search(index, QUERY, 1000, cut=0.0)) == len(every)
    ids = {one.key for one in kept}
    texts = space.encode_text(searching.BACKGROUND).numpy()
    query = space.text_vector(QUERY)
    texts = texts[texts @ query < 0.9]
    for hit in every:
        vector = index._store.vectors[index.row_of(hit.key)].astype(np.float32)
        logits = space.clip.logit_scale * np.concatenate([[vector @ query], texts @ vector])
        chance = np.exp(logits[0] - logits.max()) / np.exp(logits - logits.max()).sum()
        assert (hit.key in ids) == (chance >= 0.1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"k": 0}, "k must be a whole number, 1 to 100,000, not 0"),
        ({"k": 100_001}, "k must be"),
        ({"query": " "}, "the query is empty"),
        ({"query": None}, "the query is empty"),
        ({"query": "a" * 10_000}, "10,000 characters, more than the limit of 2,000"),
        ({"query": ("a river", -1)}, "the weight of 'a river' is -1"),
        ({"query": "a river", "against": [("a river", 1)]}, None),
        ({"like": "beef"}, "no window 'beef'"),
        ({"bbox": (0, 0, 1)}, "bbox is (0, 0, 1)"),
        ({"bbox": (0, 5, 1, 2)}, "south below north"),
        ({"start": "2022-13-01"}, "start is '2022-13-01'"),
        ({"start": "2023-01-01", "end": "2022-01-01"}, "is after end"),
        ({"towers": "s3"}, "no windows of tower 's3' here; known: rgb, s2"),
        ({"polygon": shapely.Polygon([(0, 0), (1, 1), (1, 0), (0, 1)])}, "crosses itself"),
        ({"polygon": shapely.box(500_000, 0, 600_000, 1)}, "expected degrees"),
        ({"polygon": {"type": "Point", "coordinates": [0, 0]}}, "is a Point"),
        ({"polygon": "{]"}, "no GeoJSON"),
        ({"polygon": {"type": "Polygon", "coordinates": [[[0, 10**400]] * 4]}}, "no GeoJSON"),
        ({"cut": 2}, "cut is 2"),
        ({"max_cloud": 7}, "max_cloud is 7"),
    ],
)
def test_what_makes_no_sense_has_one_line(
    space: EmbeddingSpace, index: Index, options: dict[str, Any], message: str | None
) -> None:
    given = {"query": QUERY, **options}
    if message is None:
        assert len(space.search(index, **given)) == 10
        return
    with pytest.raises(DataError) as fault:
        space.search(index, **given)
    assert message in str(fault.value)
    assert "\n" not in str(fault.value)


def test_another_space_is_refused(
    space: EmbeddingSpace, norm_clip: ClipModel, index: Index, scenes: Path, tmp_path: Path
) -> None:
    with pytest.raises(
        SpaceMismatchError, match=f"the index's vectors are of space {index.space_id}"
    ):
        EmbeddingSpace(norm_clip).search(index, QUERY)
    tile = write_geotiff(tmp_path / "a.tif", dn(32), S2.band_names, tags=NO_OFFSET)
    [one] = embed_scenes(
        EmbeddingSpace(norm_clip), tile, tmp_path / "other", sensor=S2.name, tower="rgb"
    ).scenes
    for path in sorted(scenes.glob("*.parquet")):
        (tmp_path / "other" / path.name).write_bytes(path.read_bytes())
    with pytest.raises(SpaceMismatchError, match="vectors of several spaces"):
        open_index(one.path.parent)


def test_folders_that_are_no_index_are_refused(
    space: EmbeddingSpace, scenes: Path, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match="not found"):
        open_index(tmp_path / "missing")
    with pytest.raises(DataError, match="holds no parts"):
        open_index(tmp_path)
    (tmp_path / "tiles.parquet").touch()
    with pytest.raises(DataError, match=r"is one file; .*`terralign search`.*Embeddings.load"):
        open_index(tmp_path / "tiles.parquet")
    with pytest.raises(DataError, match=r"is one part of a folder; give the folder"):
        open_index(min(scenes.glob("*.parquet")))
    path = sorted(scenes.glob("*.parquet"))[0]
    whole = path.read_bytes()
    for name, content in (("cut", whole[: len(whole) // 2]), ("none", b"PAR1")):
        (tmp_path / name).mkdir()
        (tmp_path / name / path.name).write_bytes(content)
        with pytest.raises(DataError, match="truncated or damaged"):
            open_index(tmp_path / name)
    space.embed(np.zeros((1, 3, 32, 32), np.uint8) + 9, sensor="rgb").save(tmp_path / "a.parquet")
    with pytest.raises(DataError, match="is no part of embedded scenes"):
        open_index(tmp_path)
    flipped = bytearray(whole)
    flipped[len(whole) // 3] ^= 0xFF
    (tmp_path / "flipped").mkdir()
    (tmp_path / "flipped" / path.name).write_bytes(flipped)
    with pytest.raises(DataError):
        open_index(tmp_path / "flipped")


def test_the_cache_follows_the_parts(space: EmbeddingSpace, scenes: Path, tmp_path: Path) -> None:
    paths = sorted(scenes.glob("*.parquet"))
    for path in paths[:2]:
        (tmp_path / path.name).write_bytes(path.read_bytes())
    assert len(open_index(tmp_path)) == 50
    (tmp_path / paths[2].name).write_bytes(paths[2].read_bytes())
    with open(tmp_path / ".cache" / "vectors.1", "ab") as file:
        file.write(b"left by a killed process")
    grown = open_index(tmp_path)
    assert len(grown) == 75
    assert (tmp_path / ".cache" / "vectors.1").exists(), "appended, not made again"
    fresh = rows_of(tmp_path)
    ids = {one.key for one in space.search(grown, QUERY, 1000)}
    assert ids == {row["id"] for row in fresh}
    (tmp_path / paths[0].name).unlink()
    shrunk = open_index(tmp_path)
    assert len(shrunk) == 50
    assert {one.key for one in space.search(shrunk, QUERY, 1000)} < ids
    with pytest.raises(DataError, match="open the index again"):
        space.search(grown, QUERY, 1000)
    (tmp_path / ".cache" / "contents.json").write_text("{")
    assert len(open_index(tmp_path)) == 50


def test_a_folder_that_cannot_be_written_is_searched_all_the_same(
    space: EmbeddingSpace, scenes: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = sorted(scenes.glob("*.parquet"))[0]
    (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / ".cache").write_text("a file in the place of the cache")
    assert len(space.search(open_index(tmp_path), QUERY, 5)) == 5
    assert "temporary folder" in caplog.text


@pytest.mark.parametrize("num", [0, 1, 1000])
def test_blocked_products_equal_one_product(num: int) -> None:
    rng = np.random.default_rng(0)
    vectors = as_unit(rng.normal(size=(5000, 96))).astype(np.float16)
    query = as_unit(rng.normal(size=(1, 96)))[0]
    exact = vectors.astype(np.float32) @ query
    assert np.allclose(cosines(vectors, query, None), exact, atol=1e-6)
    some = np.sort(rng.choice(5000, num, replace=False))
    assert np.allclose(cosines(vectors, query, some), exact[some], atol=1e-6)
    expected = cosines(vectors, query, None)
    torch.set_default_dtype(torch.float64)
    try:
        assert np.array_equal(cosines(vectors, query, None), expected)
    finally:
        torch.set_default_dtype(torch.float32)


# Files and the command


def test_hits_are_written_for_maps(space: EmbeddingSpace, index: Index, tmp_path: Path) -> None:
    hits = space.search(index, QUERY, 7)
    features = json.loads(save_hits(hits, tmp_path / "a.geojson").read_text())["features"]
    assert [one["properties"]["rank"] for one in features] == list(range(1, 8))
    table = pq.read_table(save_hits(hits, tmp_path / "a.parquet"))
    assert table["key"].to_pylist() == [one.key for one in hits]
    connection = sqlite3.connect(save_hits(hits, tmp_path / "a.gpkg"))
    rows = connection.execute('SELECT "rank", key, score, datetime, geom FROM windows').fetchall()
    bounds = connection.execute("SELECT min_x, max_y FROM gpkg_contents").fetchone()
    connection.close()
    assert [row[1] for row in rows] == [one.key for one in hits]
    assert shapely.from_wkb(rows[0][4][40:]).equals(hits[0].place.shape)
    assert bounds[0] == min(one.place.bounds[0] for one in hits)
    save_hits(hits[:2], tmp_path / "a.gpkg")  # an earlier one of ours is replaced
    (tmp_path / "b.gpkg").write_bytes(b"a map of others")
    with pytest.raises(StorageError, match="was not written by terralign"):
        save_hits(hits, tmp_path / "b.gpkg")
    with pytest.raises(StorageError, match=r"ends in \.geojson"):
        save_hits(hits, tmp_path / "b.shp")


def test_other_programs_read_the_geopackage(
    space: EmbeddingSpace, index: Index, tmp_path: Path
) -> None:
    geopandas = pytest.importorskip("geopandas")
    hits = space.search(index, QUERY, 7)
    for name in ("a.gpkg", "a.geojson"):
        frame = geopandas.read_file(save_hits(hits, tmp_path / name))
        assert (len(frame), frame.crs.to_epsg()) == (7, 4326)
        assert frame.geometry.iloc[0].equals(hits[0].place.shape)
    assert len(geopandas.read_parquet(save_hits(hits, tmp_path / "a.parquet"))) == 7


def _call(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["--quiet", *(str(one) for one in arguments)])


def test_the_command_gives_what_python_gives(
    space: EmbeddingSpace, index: Index, scenes: Path, model: Path, tmp_path: Path
) -> None:
    out = tmp_path / "hits.gpkg"
    result = _call(
        "search", scenes, QUERY, "--for", "0.5*a lake", "--against", "clouds", "--towers", "s2,rgb",
        "--start", "2022-07-06", "-k", 12, "--page", 2, "--page-size", 10, "--out", out, "--json",
        "--device", "cpu",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    wanted = space.search(
        index, [QUERY, ("a lake", 0.5)], 12, against="clouds", start="2022-07-06"
    )  # fmt: skip
    assert [one["key"] for one in json.loads(result.stdout)] == [one.key for one in wanted[10:]]
    connection = sqlite3.connect(out)
    assert connection.execute("SELECT count(*) FROM windows").fetchone() == (12,)
    connection.close()
    page = tmp_path / "page.html"
    nothing = _call(
        "search", scenes, QUERY, "--start", "2030-01-01", "--report", page, "--device", "cpu"
    )
    assert "nothing found: none of 100 windows meets --start; they are of" in nothing.stderr
    assert "Nothing found: none of 100 windows" in page.read_text()
    shown = _call("search", scenes, "--like", wanted[0].key, "--device", "cpu")
    assert wanted[0].key in shown.output.splitlines()[1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-k", 0, QUERY], "0 is not in the range"),
        ([], "the query is empty"),
        ([QUERY, "--bbox", "1,2,3"], "expected WEST,SOUTH,EAST,NORTH"),
        ([QUERY, "--start", "yesterday"], "start is 'yesterday'"),
        ([QUERY, "--sensor", "rgb"], "no effect without --image"),
        ([QUERY, "--out", "hits.shp"], "ends in"),
        ([QUERY, "--for", "0*clouds"], "expected WEIGHT*TEXT"),
    ],
)
def test_slips_of_the_command_have_one_line(
    scenes: Path, arguments: list[Any], message: str
) -> None:
    result = _call("search", scenes, *arguments, "--device", "cpu")
    assert result.exit_code in (1, 2)
    assert message in result.stderr.splitlines()[-1]


def test_hits_are_not_written_among_the_parts(scenes: Path) -> None:
    before = sorted(scenes.iterdir())
    result = _call("search", scenes, QUERY, "--out", scenes / "hits.parquet", "--device", "cpu")
    assert result.exit_code == 2
    assert "holds parts" in result.stderr
    assert sorted(scenes.iterdir()) == before


def test_options_of_folders_are_refused_elsewhere(tmp_path: Path) -> None:
    write_picture(tmp_path / "a.png")
    result = _call("search", tmp_path / "a.png", QUERY, "--bbox", "0,0,1,1", "--model", "m")
    assert "only for a folder of parts" in result.stderr
    slip = _call("search", tmp_path / "b.png", QUERY, "--bbox", "0,0,1,1", "--model", "m")
    assert "b.png not found" in slip.stderr


def test_what_was_embedded_is_opened_before_it_is_searched(
    space: EmbeddingSpace, scenes: Path
) -> None:
    for given, remedy in {
        str(scenes): "ta.open_index('",
        "tiles.parquet": "ta.Embeddings.load('tiles.parquet')",
        "nowhere": "ta.open_index(FOLDER)",
        "": "ta.open_index(FOLDER)",
        "x" * 5000: "ta.open_index(FOLDER)",
    }.items():
        with pytest.raises(DataError, match="cannot search a str") as caught:
            space.search(given, QUERY)  # type: ignore[arg-type]
        assert remedy in str(caught.value)


def test_embed_fills_a_folder_and_maps_it(model: Path, tmp_path: Path) -> None:
    path = write_geotiff(tmp_path / "a.tif", dn(64), S2.band_names, tags=NO_OFFSET)
    (tmp_path / "b.tif").write_bytes(b"no picture")
    out = tmp_path / "out"
    arguments = ["embed", path, tmp_path / "b.tif", "--model", model, "--sensor", S2.name]
    arguments += ["--out", out, "--tower", "s2,rgb", "--format", "gpkg", "--device", "cpu"]
    result = _call(*arguments, "--json")
    assert result.exit_code == 1
    found = json.loads(result.stdout)
    assert [one["vectors"] for one in found["parts"]] == [4, 4]
    assert [Path(one["file"]).name for one in found["faults"]] == ["b.tif", "b.tif"]
    connection = sqlite3.connect(out / "windows.gpkg")
    assert connection.execute("SELECT count(*) FROM windows").fetchone() == (8,)
    connection.close()
    assert "2 parts of them made before" in _call(*arguments).output
    usage = _call("embed", path, "--model", model, "--out", tmp_path / "a.parquet", "--stride", 8)
    assert "no effect on one file" in usage.stderr


def test_an_index_describes_itself(index: Index, space: EmbeddingSpace) -> None:
    assert (index.towers, index.sensors) == (("rgb", "s2"), (S2.name,))
    assert "100 windows of 2 scenes" in repr(index)
    values = describe_index(index)
    assert (values["windows"], values["space_id"]) == (100, space.space_id)
    assert values["dates"][0].startswith("2022-07-06")
