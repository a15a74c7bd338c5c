"""A folder of parts as a STAC collection: valid, whole, the same for the same parts."""

from __future__ import annotations

import json
import logging
import os
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import shapely

from imagery import NEW_PRODUCT, NO_OFFSET, S2, dn, write_geotiff, write_product
from terralign.chips import Window
from terralign.encoders.space import EmbeddingSpace
from terralign.errors import DataError, StorageError
from terralign.files import claimed
from terralign.index.embed import EmbeddedScenes, embed_scenes
from terralign.index.names import CLAIMS
from terralign.index.parts import PartRows, facts_of, write_part
from terralign.index.search import open_index
from terralign.index.stac import COLLECTION, _union, write_catalogue

pystac = pytest.importorskip("pystac")


@pytest.fixture(scope="module")
def described(space: EmbeddingSpace, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of three parts: a dated product by two towers, and an undated file as int8."""
    world = tmp_path_factory.mktemp("world")
    product = write_product(world / NEW_PRODUCT, dn(48, offset=1000))
    embed(space, product, world / "out", tower=["s2", "rgb"], stride=16)
    scene = write_scene(world / "a scene.tif")
    embed(space, scene, world / "out", sensor=S2.name, vectors="int8", stac=True)
    return world / "out"


def write_scene(path: Path, *, seed: int = 0) -> Path:
    return write_geotiff(path, dn(48, seed=seed), S2.band_names, tags=NO_OFFSET)


def embed(space: EmbeddingSpace, inputs: Any, out: Path, **options: Any) -> EmbeddedScenes:
    return embed_scenes(space, inputs, out, **options)


def described_by(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.json"))}


def values(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def validators(schemas: Path) -> Iterator[Any]:
    """Of the extension `embeddings`; STAC's own schemas are those that pystac ships, of 1.1.0."""
    jsonschema = pytest.importorskip("jsonschema")
    referencing = pytest.importorskip("referencing")
    shipped = Path(pystac.__file__).parent / "validation" / "jsonschemas"

    def retrieve(uri: str) -> Any:
        name = uri.removeprefix("https://schemas.stacspec.org/").split("/", 1)
        if uri.startswith("https://geojson.org/"):
            path = shipped / "geojson" / Path(uri).name
        elif uri.startswith("https://schemas.stacspec.org/"):
            path = shipped / "stac-spec" / "v1.1.0" / Path(name[1]).name
        else:  # of an extension that is not at hand
            return referencing.Resource.from_contents(
                {"$schema": "http://json-schema.org/draft-07/schema#", **_ANY_PROCESSING}
            )
        text = path.read_text(encoding="utf-8").replace("v1.1.0", "v1.0.0")
        return referencing.Resource.from_contents(json.loads(text.replace('"1.1.0"', '"1.0.0"')))

    schema = values(schemas / "stac-emb" / "json-schema" / "schema.json")
    registry = referencing.Registry(retrieve=retrieve)
    yield jsonschema.Draft7Validator(schema, registry=registry)


_EXPRESSION = {"type": "object", "required": ["format", "expression"]}
_ANY_PROCESSING: dict[str, Any] = {
    "definitions": {"fields": {"properties": {"processing:expression": _EXPRESSION}}}
}


def test_collection_and_items_are_valid_by_the_extensions_schema(
    described: Path, real_data: Path
) -> None:
    [validator] = validators(real_data / "formats" / "schemas")
    paths = sorted(described.glob("*.json"))
    assert len(paths) == 4
    for path in paths:
        # STAC's schema and that of items each are one of several: the deepest fault is the one.
        faults = sorted(validator.iter_errors(values(path)), key=lambda one: len(one.path))
        assert faults == [], path.name
    damaged = values(described / COLLECTION)
    del damaged["extent"]
    assert not validator.is_valid(damaged)
    assert not validator.is_valid({**values(described / COLLECTION), "emb:type": "scene"})


def test_every_part_has_an_item_that_states_what_it_is(
    described: Path, space: EmbeddingSpace
) -> None:
    collection = pystac.Collection.from_file(str(described / COLLECTION))
    items = {item.id: item for item in collection.get_items()}
    parts = {path.stem: path for path in described.glob("*.parquet")}
    assert items.keys() == parts.keys()
    for name, item in items.items():
        facts, table = facts_of(parts[name]), pq.read_table(parts[name], columns=["id"])
        asset = item.assets["embeddings"]
        assert (described / Path(asset.href).name).resolve() == parts[name].resolve()
        assert Path(asset.get_absolute_href()) == parts[name]
        geo = json.loads(pq.read_schema(parts[name]).metadata[b"geo"])["columns"]["geometry"]
        assert item.bbox == pytest.approx(geo["bbox"], abs=1e-6)
        outline = shapely.geometry.shape(item.geometry)
        assert outline.exterior.is_ccw
        assert len(outline.exterior.coords) == 5
        assert item.properties["terralign:num_vectors"] == len(table)
        assert item.properties["terralign:tower_id"] == space.tower_id(facts.tower)
        written = values(parts[name].with_suffix(".json"))["properties"]
        assert (written["proj:epsg"], written["proj:shape"]) == (32633, [48, 48])
        [source] = item.get_links("emb:source-data")
        assert source.href.startswith("file:///")
        assert item.get_collection().id == collection.id == f"terralign-{space.space_id}"
    quantized = [one for one in items.values() if "emb:quantization" in one.properties]
    [undated] = [one for one in items.values() if one.datetime is None]
    assert quantized == [undated]
    assert "a%20scene.tif" in undated.get_links("emb:source-data")[0].href
    assert undated.properties["start_datetime"] < undated.properties["end_datetime"]
    [[start, end]] = collection.extent.temporal.intervals
    assert start == end
    assert start.isoformat() == "2022-07-06T08:56:11+00:00"
    assert values(described / COLLECTION)["data_type"] == "other"  # float16 and int8


def test_the_same_parts_are_described_by_the_same_bytes(
    described: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = described_by(described)
    times = {path: path.stat().st_mtime_ns for path in described.glob("*.json")}
    write_catalogue(described)
    assert {path: path.stat().st_mtime_ns for path in described.glob("*.json")} == times
    for path in described.glob("*.json"):
        path.unlink()
    write_catalogue(described)
    assert described_by(described) == before
    assert not (described / CLAIMS).exists()


@pytest.mark.parametrize(
    "change",
    [
        lambda item: item["properties"].pop("terralign:tower"),
        lambda item: item.update(bbox="everywhere"),
        lambda item: item["properties"].update(datetime="2022-07-06T08:56:11"),  # in no time zone
        lambda item: item["properties"].update({"terralign:format": 0}),
        lambda item: item.update(type="Collection", **{"terralign:space_id": "0"}),
        lambda item: item.clear(),
    ],
)
def test_an_item_that_was_changed_is_written_again(described: Path, change: Any) -> None:
    before = described_by(described)
    path = next(described.glob("a_scene*.json"))
    item = values(path)
    change(item)
    path.write_text(json.dumps(item))
    write_catalogue(described)
    assert described_by(described) == before


def test_a_replaced_part_takes_its_item_along(space: EmbeddingSpace, tmp_path: Path) -> None:
    out = tmp_path / "out"
    scene = write_scene(tmp_path / "scene.tif")
    embed(space, scene, out, sensor=S2.name, stac=True)
    first = described_by(out)
    write_scene(scene, seed=1)
    os.utime(scene, (1, 1))
    [made] = embed(space, scene, out, sensor=S2.name, stac=True).scenes
    now = described_by(out)
    assert now.keys() == {COLLECTION, f"{made.path.stem}.json"}
    assert now.keys() & first.keys() == {COLLECTION}
    (out / "mine.json").write_text("{}")
    made.path.unlink()
    assert write_catalogue(out) is None
    assert described_by(out) == {"mine.json": b"{}"}


def test_a_collection_that_is_not_kept_up_is_told(
    space: EmbeddingSpace, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    scene = write_scene(tmp_path / "scene.tif")
    embed(space, scene, tmp_path / "out", sensor=S2.name, stac=True)
    with caplog.at_level(logging.WARNING):
        embed(space, scene, tmp_path / "out", sensor=S2.name, stac=True)
        assert caplog.messages == []
        embed(space, scene, tmp_path / "out", sensor=S2.name)
    assert "has a STAC collection, which is not brought up to date" in caplog.text


def test_files_of_others_stay_and_are_told_before_any_work(
    space: EmbeddingSpace, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / COLLECTION).write_text('{"type": "Collection", "id": "mine"}')
    with pytest.raises(StorageError, match=r"collection\.json is no collection that terralign"):
        embed(space, write_scene(tmp_path / "scene.tif"), out, sensor=S2.name, stac=True)
    assert [path.name for path in out.iterdir()] == [COLLECTION]


def test_without_pystac_it_is_refused_before_any_work(
    space: EmbeddingSpace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pystac", None)
    with pytest.raises(DataError, match=r"needs pystac: pip install 'terralign\[stac\]'"):
        embed(space, tmp_path / "none.tif", tmp_path / "out", stac=True)


def test_processes_take_turns(space: EmbeddingSpace, tmp_path: Path) -> None:
    out = tmp_path / "out"
    embed(space, write_scene(tmp_path / "one.tif"), out, sensor=S2.name)
    other = threading.Thread(target=write_catalogue, args=[out])
    with claimed(out / CLAIMS / "stac"):
        other.start()
        embed(space, write_scene(tmp_path / "two.tif"), out, sensor=S2.name)
        assert not (out / COLLECTION).exists()
    other.join(timeout=30)
    links = values(out / COLLECTION)["links"]
    assert len([one for one in links if one["rel"] == "item"]) == 2


def test_a_scene_across_the_antimeridian_is_split(described: Path, tmp_path: Path) -> None:
    facts = facts_of(next(described.glob("a_scene*.parquet")))
    west, east = shapely.box(-180, 10, -179, 11), shapely.box(179, 10, 180, 11)
    shapes = np.array([shapely.box(178, 10, 179, 11), shapely.MultiPolygon([east, west])])
    rows = PartRows(
        windows=[Window(row=0, column=column, height=8, width=8) for column in (0, 8)],
        shapes=shapes,
        centres=np.array([[178.5, 10.5], [180.0, 10.5]]),
        valid_shares=np.ones(2, np.float32),
        clouds=np.full(2, np.nan, np.float32),
        vectors=np.eye(2, facts.dim, dtype=np.float32),
        datetime=None,
    )
    write_part(tmp_path / "crossing.parquet", rows, facts)
    write_catalogue(tmp_path)
    item = values(tmp_path / "crossing.json")
    assert item["bbox"] == [178, 10, -179, 11]
    outline = shapely.geometry.shape(item["geometry"])
    assert outline.equals(shapely.MultiPolygon([shapely.box(178, 10, 180, 11), west]))
    [box] = values(tmp_path / COLLECTION)["extent"]["spatial"]["bbox"]
    assert box == item["bbox"]


def test_a_reference_system_without_epsg_code_is_stated_as_wkt(
    described: Path, tmp_path: Path
) -> None:
    part = next(described.glob("a_scene*.parquet"))
    table = pq.read_table(part)
    footer = json.loads(table.schema.metadata[b"terralign"])
    for crs in ("ESRI:54009", "junk"):
        footer["grid"]["crs"] = crs
        metadata = {**table.schema.metadata, b"terralign": json.dumps(footer).encode()}
        (tmp_path / crs).mkdir()
        pq.write_table(table.replace_schema_metadata(metadata), tmp_path / crs / part.name)
    write_catalogue(tmp_path / "ESRI:54009")
    properties = values(tmp_path / "ESRI:54009" / f"{part.stem}.json")["properties"]
    assert properties["proj:wkt2"].startswith('PROJCRS["World_Mollweide"')
    assert "proj:epsg" not in properties
    with pytest.raises(DataError, match="its reference system is not known"):
        write_catalogue(tmp_path / "junk")


def test_an_outline_that_is_none_is_one_clear_line(described: Path, tmp_path: Path) -> None:
    part = next(described.glob("a_scene*.parquet"))
    table = pq.read_table(part)
    place = table.schema.get_field_index("geometry")
    junk = pa.array([b"junk"] * len(table), pa.binary())
    pq.write_table(table.set_column(place, table.schema.field(place), junk), tmp_path / part.name)
    for use in (write_catalogue, lambda folder: open_index(folder).places()):
        with pytest.raises(DataError, match="is damaged: an outline is no WKB"):
            use(tmp_path)


@pytest.mark.parametrize(
    ("boxes", "wanted"),
    [
        ([], None),
        ([[10, 1, 20, 2], [15, 0, 30, 1]], [10, 0, 30, 2]),
        ([[-10, 0, -5, 1], [5, 0, 10, 1]], [-10, 0, 10, 1]),
        ([[170, 0, 175, 1], [-175, 0, -170, 1]], [170, 0, -170, 1]),
        ([[170, 0, -170, 1], [-172, 0, -160, 1]], [170, 0, -160, 1]),
        ([[170, 0, -170, 1], [-180, 0, -175, 1]], [170, 0, -170, 1]),
        ([[-180, -90, 180, 90], [0, 0, 1, 1]], [-180, -90, 180, 90]),
    ],
)
def test_the_extent_goes_around_the_globe_by_the_shorter_way(
    boxes: list[list[float]], wanted: list[float] | None
) -> None:
    assert _union(boxes) == wanted
