"""Hits and scores in a notebook: a map without scripts, and frames of geopandas."""

from __future__ import annotations

import io
import json
import sys
import xml.etree.ElementTree as ET
from base64 import b64decode
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from imagery import NO_OFFSET, S2, dn, write_geotiff
from report_page import NASTY, Page
from terralign.encoders.answers import Hits
from terralign.encoders.space import EmbeddingSpace
from terralign.encoders.vectors import Footprint
from terralign.errors import DataError
from terralign.index.embed import embed_scenes
from terralign.index.score import score_map
from terralign.index.search import Index, open_index

NAME = "{http://www.w3.org/2000/svg}"
SIDE = 192


@pytest.fixture(scope="module")
def index(space: EmbeddingSpace, tmp_path_factory: pytest.TempPathFactory) -> Index:
    """A scene whose right half is bright."""
    folder = tmp_path_factory.mktemp("scenes")
    pixels = dn(SIDE, seed=0) // 8
    pixels[:, :, SIDE // 2 :] += 3000
    path = write_geotiff(folder / "scene.tif", pixels, S2.band_names, tags=NO_OFFSET)
    embed_scenes(space, path, folder / "out", sensor=S2.name)
    return open_index(folder / "out")


@pytest.fixture
def hits(space: EmbeddingSpace, index: Index) -> Hits:
    return index.search(space, NASTY, k=5)


def drawing(text: str) -> ET.Element:
    return ET.fromstring(text[text.index("<svg") : text.index("</svg>") + 6])


def test_a_map_shows_hits_over_their_scene_and_runs_nothing(hits: Hits) -> None:
    found = hits.to_map()
    text = found._repr_html_()
    page = Page(text)
    assert {"script", "iframe", "link", "style"}.isdisjoint(page.tags)
    assert "http" not in text.replace('xmlns="http://www.w3.org/2000/svg"', "")
    assert '<script>alert("1")</script>' in page.text  # as text
    svg = drawing(text)
    assert [one.text for one in svg.iter(f"{NAME}text")] == ["5", "4", "3", "2", "1"]
    titles = [one.text or "" for one in svg.iter(f"{NAME}title")]
    assert all(f"{hit.score:.4f}" in "".join(titles) for hit in hits)
    [image] = svg.iter(f"{NAME}image")
    picture = Image.open(io.BytesIO(b64decode(image.attrib["href"].split(",")[1])))
    assert picture.mode == "RGB"
    assert found.lines == ()


def test_the_picture_lies_where_the_scene_does(space: EmbeddingSpace, index: Index) -> None:
    every = index.search(space, "a river", k=100)
    svg = drawing(every.to_map().html)
    [image] = svg.iter(f"{NAME}image")
    numbers = image.attrib["transform"].removeprefix("matrix(").removesuffix(")").split()
    a, b, c, d, x, y = map(float, numbers)
    points = [
        tuple(map(float, point.split(",")))
        for polygon in svg.iter(f"{NAME}polygon")
        for point in polygon.attrib["points"].split()
    ]
    corners = [(x, y), (x + a, y + b), (x + c, y + d), (x + a + c, y + b + d)]
    for corner in corners:  # windows cover the scene, so that each corner is one of a window
        assert min(np.hypot(*np.subtract(corner, point)) for point in points) < 1
    picture = Image.open(io.BytesIO(b64decode(image.attrib["href"].split(",")[1])))
    grey = np.asarray(picture.convert("L"), dtype=float)
    middle = grey.shape[1] // 2
    assert grey[:, : middle - 4].mean() + 100 < grey[:, middle + 4 :].mean()


def test_a_scene_that_is_gone_is_named_below_the_map(hits: Hits) -> None:
    gone = replace(
        hits,
        hits=tuple(
            replace(hit, place=replace(hit.place, source="/nowhere/gone.tif")) for hit in hits
        ),
    )
    found = gone.to_map()
    [line] = found.lines
    assert line.startswith("No picture of gone.tif: ")
    assert "<image" not in found.html
    assert gone.to_map(pictures=False).lines == ()


def test_hits_without_a_place_have_no_map(hits: Hits) -> None:
    nowhere = replace(hits, hits=tuple(replace(hit, place=Footprint()) for hit in hits))
    with pytest.raises(DataError, match="no place on a map is known for 5 results"):
        nowhere.to_map()


def test_scores_are_a_picture_with_their_range(
    space: EmbeddingSpace, index: Index, tmp_path: Path
) -> None:
    scores = score_map(space, index, "a river", tmp_path / "scores.tif")
    text = scores.to_map()._repr_html_()
    [image] = drawing(text).iter(f"{NAME}image")
    assert image.attrib["href"].startswith("data:image/png;base64,")
    picture = Image.open(io.BytesIO(b64decode(image.attrib["href"].split(",")[1])))
    assert picture.size == (scores.grid.width, scores.grid.height)
    assert f"{scores.lowest:.4f} to {scores.highest:.4f}" in text


def test_frames_of_geopandas_say_what_geojson_says(hits: Hits) -> None:
    frame = hits.to_geodataframe()
    assert frame.crs.to_epsg() == 4326
    assert frame["rank"].tolist() == [1, 2, 3, 4, 5]
    ours = json.loads(json.dumps(hits.to_geojson()))["features"]
    theirs = json.loads(frame.to_json())["features"]
    for one, other in zip(ours, theirs, strict=True):
        assert np.allclose(one["geometry"]["coordinates"], other["geometry"]["coordinates"])
        for name in ("rank", "key", "score", "scene", "tower", "query"):
            assert one["properties"][name] == other["properties"][name]


def test_embeddings_and_classes_are_frames_too(space: EmbeddingSpace, index: Index) -> None:
    path = index.facts[0].source
    found = space.embed(path, sensor=S2.name)
    frame = found.to_geodataframe()
    assert frame["key"].tolist() == list(found.keys)
    assert [
        one.equals(place.shape) for one, place in zip(frame.geometry, found.places, strict=True)
    ]
    classes = space.classify(path, ["river", "forest"], sensor=S2.name).to_geodataframe()
    assert len(classes) == len(frame)
    assert np.allclose(classes["p_river"] + classes["p_forest"], 1)
    assert classes.total_bounds.tolist() == frame.total_bounds.tolist()


def test_no_hits_are_an_empty_frame(space: EmbeddingSpace, index: Index) -> None:
    frame = index.search(space, "a river", max_cloud=0.1).to_geodataframe()
    assert len(frame) == 0
    assert {"rank", "key", "score", "geometry"} <= set(frame.columns)
    assert frame.crs.to_epsg() == 4326


def test_without_geopandas_one_line_says_how_to_get_it(
    hits: Hits, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "geopandas", None)
    with pytest.raises(DataError, match=r"needs geopandas: pip install 'terralign\[geopandas\]'"):
        hits.to_geodataframe()
