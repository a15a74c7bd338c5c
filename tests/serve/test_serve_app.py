"""What the server answers: searches, scores, pictures, files, and the folder as it changes."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import rasterio
import shapely
from numpy.typing import NDArray
from PIL import Image
from rasterio import Affine
from rasterio.warp import transform_bounds
from starlette.testclient import TestClient

from imagery import NO_OFFSET, S2, dn, write_geotiff
from terralign.encoders.space import EmbeddingSpace
from terralign.errors import SpaceMismatchError, StorageError
from terralign.index.embed import embed_scenes
from terralign.index.search import open_index
from terralign.scenes.scene import open_scene
from terralign.serve import pictures as drawing
from terralign.serve.app import create_app
from terralign.serve.pictures import Pictures
from terralign.serve.requests import Asked
from terralign.serve.served import KeepingSpace, ServedIndex
from terralign.serve.settings import Limits, ServeSettings
from terralign.serve.static_export import MARK, export_static


def ask(client: TestClient, path: str = "/api/search", **asked: Any) -> Any:
    answer = client.post(path, json={"query": "a river", **asked})
    assert answer.status_code == 200, answer.text
    return answer.json()


def opened(path: Path) -> Image.Image:
    return Image.open(io.BytesIO(path.read_bytes()))


@pytest.fixture
def own(served_space: EmbeddingSpace, tmp_path: Path) -> tuple[Path, Path]:
    """A scene and the folder of its part, to change."""
    scene = write_geotiff(tmp_path / "own.tif", dn(64, seed=5), S2.band_names, tags=NO_OFFSET)
    embed_scenes(served_space, [scene], tmp_path / "out", sensor=S2.name, tower="s2")
    return scene, tmp_path / "out"


# Searches


def test_hits_are_those_of_the_library(
    client: TestClient, served_space: EmbeddingSpace, served_folder: Path
) -> None:
    wanted = open_index(served_folder).search(served_space, "a river", 30, against="clouds")
    found = ask(client, against="clouds", k=30, page_size=10, page=1)
    assert (found["num_hits"], found["pages"], found["num_searched"]) == (30, 3, 100)
    features = found["hits"]["features"]
    assert [one["id"] for one in features] == [one.key for one in wanted[10:20]]
    assert [one["properties"]["rank"] for one in features] == list(range(11, 21))
    first = features[0]["properties"]
    assert first["score"] == pytest.approx(wanted[10].score, abs=1e-6)
    assert first["ranked_by"] == pytest.approx(wanted[10].facts["ranked_by"], abs=1e-6)


def test_examples_refine(client: TestClient) -> None:
    before = [one["id"] for one in ask(client, k=20)["hits"]["features"]]
    liked = ask(client, k=20, like=[before[-1]], unlike=[before[0]])["hits"]["features"]
    after = [one["id"] for one in liked]
    assert after.index(before[-1]) < 5
    assert before[0] not in after[:5]
    alone = ask(client, query="", like=[before[3]], towers=["s2"], k=3)["hits"]["features"]
    assert all(one["properties"]["tower"] == "s2" for one in alone)


def test_conditions_leave_out_what_does_not_meet_them(client: TestClient) -> None:
    every = ask(client, k=100, page_size=100)["hits"]["features"]
    west, south, east, north = shapely.geometry.shape(every[0]["geometry"]).bounds
    inner = [west + (east - west) / 3, south + (north - south) / 3] * 2
    ring = [[west, south], [east, south], [east, north], [west, north], [west, south]]
    assert 0 < ask(client, bbox=inner)["num_searched"] < 100
    polygon = {"type": "Polygon", "coordinates": [ring]}
    assert 0 < ask(client, polygon=polygon)["num_searched"] < 100
    assert ask(client, start="2022-07-06", end="2022-07-06")["num_searched"] == 50
    assert ask(client, end="2022-07-05")["num_searched"] == 0
    assert ask(client, towers=["rgb"])["num_searched"] == 50
    collapsed = ask(client, collapse=True)
    assert collapsed["num_hits"] < 100 == collapsed["num_searched"]


def test_scores_are_of_every_window(client: TestClient) -> None:
    found = ask(client, "/api/scores", towers=["s2"])
    features = found["cells"]["features"]
    scores = [one["properties"]["score"] for one in features]
    assert (len(scores), found["thinned"], found["num_searched"]) == (50, 1, 50)
    assert (min(scores), max(scores)) == pytest.approx((found["min"], found["max"]), abs=1e-4)
    best = ask(client, towers=["s2"], page_size=1)["hits"]["features"][0]
    cells = [shapely.geometry.shape(one["geometry"]) for one in features]
    window = shapely.geometry.shape(best["geometry"])
    assert window.centroid.distance(cells[np.argmax(scores)].centroid) < 1e-5
    assert cells[0].area == pytest.approx(window.area / 4, rel=0.01)  # of half the side
    assert ask(client, "/api/scores", end="1999-01-01")["cells"]["features"] == []


def test_many_scores_are_thinned_evenly(served_space: EmbeddingSpace, served_folder: Path) -> None:
    settings = ServeSettings(title="", limits=Limits(cells=30))
    with TestClient(
        create_app(served_folder, served_space, settings), base_url="http://localhost"
    ) as client:
        found = ask(client, "/api/scores")
        assert (found["thinned"], len(found["cells"]["features"])) == (4, 25)


@pytest.mark.parametrize("form", ["geojson", "geoparquet"])
def test_hits_are_downloaded(client: TestClient, form: str, tmp_path: Path) -> None:
    answer = client.post(f"/api/download?format={form}", json={"query": "a river", "k": 7})
    wanted = [one["id"] for one in ask(client, k=7)["hits"]["features"]]
    assert "attachment" in answer.headers["content-disposition"]
    if form == "geojson":
        properties = [one["properties"] for one in answer.json()["features"]]
        assert [one["key"] for one in properties] == wanted
        assert not any("/" in one["source"] for one in properties)
    else:
        table = pq.read_table(io.BytesIO(answer.content))
        assert table["key"].to_pylist() == wanted
        assert not any("/" in one for one in table["source"].to_pylist())


def test_a_text_is_embedded_once(served_space: EmbeddingSpace) -> None:
    space = KeepingSpace(served_space)
    assert space.space_id == served_space.space_id
    wanted = served_space.text_vector("a lake")
    threads = [threading.Thread(target=space.text_vector, args=("a lake",)) for _ in range(4)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    np.testing.assert_array_equal(space.text_vector("a lake"), wanted)
    assert space._keep.cache_info().currsize == 1


# Pictures


def test_a_window_is_shown(client: TestClient) -> None:
    hit = ask(client, page_size=1)["hits"]["features"][0]
    seen = []
    for kind in ("true", "false"):
        answer = client.get(f"/{hit['properties']['thumbnail']}?picture={kind}")
        assert answer.headers["content-type"] == "image/png"
        image = Image.open(io.BytesIO(answer.content))
        assert image.size == (128, 128)
        seen.append(np.asarray(image.convert("RGB")))
        assert seen[-1].std() > 20
    assert (seen[0] != seen[1]).any()
    tag = {"If-None-Match": answer.headers["etag"]}
    assert client.get(answer.request.url.path + "?picture=false", headers=tag).status_code == 304


def middle_tile(path: Path, zoom: int) -> tuple[tuple[float, ...], int, int]:
    """West, south, east and north of a raster, and column and row of the tile of its middle."""
    with rasterio.open(path) as source:
        west, south, east, north = transform_bounds(source.crs, "EPSG:4326", *source.bounds)
    latitude = np.radians((south + north) / 2)
    column = int((west + east) / 2 / 360 * 2**zoom + 2 ** (zoom - 1))
    row = int((1 - np.arcsinh(np.tan(latitude)) / np.pi) / 2 * 2**zoom)
    return (west, south, east, north), column, row


def test_tiles_show_the_scene_where_it_lies(client: TestClient, served_folder: Path) -> None:
    scene = client.get("/api/index").json()["scenes"][0]
    path = served_folder.parent / scene["name"]
    zoom = 14
    (west, _, east, _), column, row = middle_tile(path, zoom)
    answer = client.get(f"/api/tiles/{scene['id']}/true/{zoom}/{column}/{row}.png")
    image = np.asarray(Image.open(io.BytesIO(answer.content)))
    assert image.shape == (256, 256, 4)
    left = column / 2**zoom * 360 - 180
    width = 360 / 2**zoom
    covered = image[..., 3] > 0
    columns = left + (np.flatnonzero(covered.any(0)) + 0.5) / 256 * width
    pixel = width / 256
    assert columns.min() == pytest.approx(max(west, left), abs=2 * pixel)
    assert columns.max() == pytest.approx(min(east, left + width), abs=2 * pixel)
    assert client.get(f"/api/tiles/{scene['id']}/true/{zoom}/0/0.png").status_code == 404
    assert client.get("/api/tiles/99/true/1/0/0.png").status_code == 404


def test_tiles_finer_than_the_overview_come_from_the_files(
    client: TestClient, served_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    served = served_folder.parent / "undated.tif"
    scene = open_scene(served, sensor=S2.name)
    whole = Pictures(lambda key: scene)
    zoom = 16
    _, column, row = middle_tile(served, zoom)
    from_memory = whole.tile("a", "true", zoom, column, row)
    monkeypatch.setattr(drawing, "OVERVIEW_PX", 48)
    from_files = Pictures(lambda key: scene).tile("a", "true", zoom, column, row)
    seen = [
        np.asarray(Image.open(io.BytesIO(one)).convert("RGBA")).astype(float)
        for one in (from_memory, from_files)
    ]
    both = (seen[0][..., 3] > 0) & (seen[1][..., 3] > 0)
    assert both.mean() > 0.1
    assert np.corrcoef(seen[0][both][:, 0], seen[1][both][:, 0])[0, 1] > 0.9


def _whole(path: Path) -> NDArray[np.float64]:
    """The picture of a scene in false colour, (H, W, 4)."""
    scene = open_scene(path, sensor=S2.name)
    content, _ = Pictures(lambda key: scene).whole("a", "false", 96)
    return np.asarray(Image.open(io.BytesIO(content)).convert("RGBA")).astype(float)


def test_an_overview_read_in_strips_is_that_read_at_once(
    served_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = served_folder.parent / "undated.tif"
    at_once = _whole(path)
    monkeypatch.setattr(drawing, "_STRIP_ROWS", 20)
    np.testing.assert_array_equal(_whole(path), at_once)


def test_a_south_up_scene_is_shown_north_up(served_folder: Path, tmp_path: Path) -> None:
    path = served_folder.parent / "undated.tif"
    with rasterio.open(path) as source:
        profile, pixels, tags = source.profile, source.read(), source.tags()
        names = source.descriptions
        a, b, c, d, e, f = tuple(source.transform)[:6]
        height = source.height
    profile["transform"] = Affine(a, b, c, d, -e, f + e * height)
    with rasterio.open(tmp_path / "south-up.tif", "w", **profile) as turned:
        turned.write(pixels[:, ::-1])
        turned.update_tags(**tags)
        turned.descriptions = names
    shown, wanted = _whole(tmp_path / "south-up.tif"), _whole(path)
    inner = (slice(8, -8), slice(8, -8), 0)
    assert shown.shape == wanted.shape
    assert np.corrcoef(shown[inner].ravel(), wanted[inner].ravel())[0, 1] > 0.95


def test_a_scene_that_is_gone_or_changed_is_not_shown_but_searched(
    served_space: EmbeddingSpace, own: tuple[Path, Path]
) -> None:
    scene, folder = own
    for change, why in (
        (lambda: os.utime(scene, (1, 1)), "its file changed since it was embedded; embed it again"),
        (lambda: scene.unlink(), "its file is not found here, or not in a folder that may be read"),
    ):
        change()
        app = create_app(folder, served_space)
        with TestClient(app, base_url="http://localhost") as client:
            listed = client.get("/api/index").json()["scenes"][0]
            assert (listed["pictures"], listed["why"]) == ([], why)
            hit = ask(client)["hits"]["features"][0]
            answer = client.get(f"/{hit['properties']['thumbnail']}")
            assert (answer.status_code, answer.json()) == (404, {"error": why})


def test_scenes_are_read_from_declared_folders_alone(
    served_space: EmbeddingSpace, own: tuple[Path, Path], tmp_path: Path
) -> None:
    scene, folder = own
    inside, outside = tmp_path / "inside", tmp_path / "outside"
    inside.mkdir()
    outside.mkdir()

    def pictures() -> list[str]:
        settings = ServeSettings(title="", scenes=(inside,))
        listed = ServedIndex(folder, served_space, settings).describe()["scenes"]
        kinds: list[str] = listed[0]["pictures"]
        return kinds

    assert pictures() == []  # where its part names it
    (inside / scene.name).symlink_to(scene)
    assert pictures() == []  # by a link that leads out
    (inside / scene.name).unlink()
    shutil.move(scene, inside / scene.name)
    assert pictures() == ["true", "false"]


def test_a_static_export_holds_the_page_and_one_result(
    served_space: EmbeddingSpace, served_folder: Path, tmp_path: Path
) -> None:
    served = ServedIndex(served_folder, served_space, ServeSettings(title="Static"))
    asked = Asked(query="a river", k=5)
    out = tmp_path / "out"
    for _ in range(2):  # an export is replaced
        found = export_static(served, asked, out)
    assert (found.num_hits, found.num_pictures, found.num_missing) == (5, 4, 0)
    assert MARK in (out / "index.html").read_text()
    index = json.loads((out / "data" / "index.json").read_text())
    assert index["is_static"] is True
    for scene in index["scenes"]:
        west, south, east, north = scene["bounds"]
        assert scene["image_bounds"] == pytest.approx([west, south, east, north], abs=1e-3)
        for url in scene["images"].values():
            assert np.asarray(opened(out / url))[..., 3].mean() > 200
    found_again = json.loads((out / "data" / "search.json").read_text())
    for one in found_again["hits"]["features"]:
        assert opened(out / one["properties"]["thumbnail"]).size == (128, 128)
    assert len(json.loads((out / "data" / "scores.json").read_text())["cells"]["features"]) == 100
    texts = [one.read_text() for one in (out / "data").iterdir()]
    assert not any(str(served_folder.parent) in text for text in texts)


def test_an_export_draws_the_scenes_that_hold_hits(
    served_space: EmbeddingSpace, served_folder: Path, tmp_path: Path
) -> None:
    served = ServedIndex(served_folder, served_space, ServeSettings(title=""))
    assert export_static(served, Asked(query="a river", k=1), tmp_path / "out").num_pictures == 2
    [hit] = json.loads((tmp_path / "out/data/search.json").read_text())["hits"]["features"]
    scenes = json.loads((tmp_path / "out/data/index.json").read_text())["scenes"]
    for scene in scenes:
        is_drawn = scene["id"] == hit["properties"]["scene"]
        assert (list(scene["images"]), bool(scene["why"])) == (scene["pictures"], not is_drawn)


def test_an_export_replaces_no_other_folder(
    served_space: EmbeddingSpace, served_folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "index.html").write_text("<head></head>")
    served = ServedIndex(served_folder, served_space, ServeSettings(title=""))
    with pytest.raises(StorageError, match="was not written by terralign"):
        export_static(served, Asked(query="a river"), tmp_path)
    assert os.listdir(tmp_path) == ["index.html"]


# The folder as it changes


def test_a_stopped_server_does_not_wait_for_new_parts_to_open(
    served_space: EmbeddingSpace, served_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, ended = threading.Event(), threading.Event()

    def slow(self: ServedIndex) -> None:
        begun.set()
        ended.wait(20)

    monkeypatch.setattr(ServedIndex, "refresh", slow)
    settings = ServeSettings(title="", refresh_s=0.01)
    with TestClient(create_app(served_folder, served_space, settings)):
        assert begun.wait(10)
        stopped = time.monotonic()
    assert time.monotonic() - stopped < 10
    ended.set()


def test_new_parts_are_taken_up(
    served_space: EmbeddingSpace, own: tuple[Path, Path], tmp_path: Path
) -> None:
    _, folder = own
    served = ServedIndex(folder, served_space, ServeSettings(title=""))
    before = len(served.index)
    other = write_geotiff(tmp_path / "new.tif", dn(64, seed=6), S2.band_names, tags=NO_OFFSET)
    embed_scenes(served_space, [other], folder, sensor=S2.name, tower="s2")
    served.refresh()
    assert len(served.index) == 2 * before
    assert [one["id"] for one in served.describe()["scenes"]] == [0, 1]


def test_parts_that_cannot_be_opened_leave_the_former_ones_served(
    served_space: EmbeddingSpace, own: tuple[Path, Path]
) -> None:
    _, folder = own
    served = ServedIndex(folder, served_space, ServeSettings(title=""))
    (folder / "damaged.parquet").write_bytes(b"PAR1 nothing")
    served.refresh()
    answer = served.describe()
    assert answer["windows"] == len(served.index) > 0
    assert "damaged.parquet" in answer["warning"]
    assert str(folder) not in answer["warning"]
    (folder / "damaged.parquet").unlink()
    served.refresh()
    assert served.warning == ""


def test_a_part_replaced_between_two_looks_is_found(
    served_space: EmbeddingSpace, own: tuple[Path, Path]
) -> None:
    scene, folder = own
    settings = ServeSettings(title="", refresh_s=3600)
    with TestClient(
        create_app(folder, served_space, settings), base_url="http://localhost"
    ) as client:
        before = ask(client)["hits"]["features"][0]["id"]
        write_geotiff(scene, dn(64, seed=9), S2.band_names, tags=NO_OFFSET)
        embed_scenes(served_space, [scene], folder, sensor=S2.name, tower="s2")
        after = ask(client, query="a lake")["hits"]["features"][0]["id"]
        assert before.split("-")[0] != after.split("-")[0]


def test_a_part_that_is_removed_is_no_longer_found(
    served_space: EmbeddingSpace, own: tuple[Path, Path], tmp_path: Path
) -> None:
    _, folder = own
    [first] = folder.glob("*.parquet")
    other = write_geotiff(tmp_path / "new.tif", dn(64, seed=6), S2.band_names, tags=NO_OFFSET)
    embed_scenes(served_space, [other], folder, sensor=S2.name, tower="s2")
    settings = ServeSettings(title="", refresh_s=3600)
    with TestClient(
        create_app(folder, served_space, settings), base_url="http://localhost"
    ) as client:
        first.unlink()
        names = {one["properties"]["scene_name"] for one in ask(client)["hits"]["features"]}
        assert names == {"new.tif"}
        for path in folder.glob("*.parquet"):
            path.unlink()
        answer = client.post("/api/search", json={"query": "a lake"})
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "10")
        assert str(folder) not in answer.text


def test_parts_of_another_space_are_refused(tiny_starter: Path, served_folder: Path) -> None:
    other = EmbeddingSpace.load("starter:base")
    with pytest.raises(SpaceMismatchError, match="of space"):
        create_app(served_folder, other)


# Descriptions


def test_openapi_describes_requests_and_answers(client: TestClient) -> None:
    schema = client.get("/api/openapi.json").json()
    models = schema["components"]["schemas"]
    for name in ("SearchRequest", "Asked", "Polygon", "SearchAnswer", "IndexAnswer", "Fault"):
        assert name in models
    text = json.dumps(schema)
    assert set(re.findall(r'"#/components/schemas/([^"]+)"', text)) <= set(models)
    body = schema["paths"]["/api/search"]["post"]["requestBody"]["content"]["application/json"]
    assert body["schema"]["$ref"].endswith("/SearchRequest")
    undescribed = [
        name for name, one in models["SearchRequest"]["properties"].items()
        if "description" not in one
    ]  # fmt: skip
    assert undescribed == []


def test_answers_are_as_described(client: TestClient) -> None:
    from terralign.serve.requests import Health, IndexAnswer, ScoresAnswer, SearchAnswer

    Health.model_validate(client.get("/health").json())
    IndexAnswer.model_validate(client.get("/api/index").json())
    SearchAnswer.model_validate(ask(client))
    ScoresAnswer.model_validate(ask(client, "/api/scores"))


def test_the_page_is_served_with_its_files(client: TestClient) -> None:
    answer = client.get("/")
    assert answer.headers["content-type"].startswith("text/html")
    assert client.get("/", headers={"If-None-Match": answer.headers["etag"]}).status_code == 304
    assert client.get("/static/index.html").content == answer.content
    for path in ("/static/nothing.js", "/static/../app.py", "/static/%2e%2e/app.py", "/static//"):
        assert client.get(path).status_code == 404
