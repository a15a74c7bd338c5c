"""What the server answers: searches, pictures, files of the page, and faults in one line."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from starlette.testclient import TestClient

from imagery import NO_OFFSET, S2, dn, write_geotiff
from terralign.encoders.space import EmbeddingSpace
from terralign.index.embed import embed_scenes
from terralign.index.search import open_index
from terralign.serve.app import create_app

NAME = "S2A_MSIL2A_20220706T085611_N9999_R007_T33NZA_20220706T153419.tif"


@pytest.fixture(scope="module")
def folder(space: EmbeddingSpace, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two scenes of 25 overlapping windows by two towers; a date for one of them."""
    folder = tmp_path_factory.mktemp("served")
    paths = [
        write_geotiff(folder / name, dn(96, seed=seed), S2.band_names, tags=NO_OFFSET)
        for seed, name in enumerate((NAME, "undated.tif"))
    ]
    embed_scenes(
        space, paths, folder / "out", sensor=S2.name, tower=["s2", "rgb"], stride=16,
        vectors="float32",
    )  # fmt: skip
    return folder / "out"


@pytest.fixture(scope="module")
def client(space: EmbeddingSpace, folder: Path) -> Iterator[TestClient]:
    with TestClient(create_app(folder, space), base_url="http://localhost") as client:
        yield client


def ask(client: TestClient, **asked: Any) -> Any:
    answer = client.post("/api/search", json={"query": "a river", **asked})
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_hits_are_those_of_the_library(
    client: TestClient, space: EmbeddingSpace, folder: Path
) -> None:
    wanted = open_index(folder).search(space, "a river", 30, against="clouds")
    found = ask(client, against="clouds", k=30, page_size=10, page=1)
    assert (found["num_hits"], found["pages"], found["num_searched"]) == (30, 3, 100)
    features = found["hits"]["features"]
    assert [one["id"] for one in features] == [one.key for one in wanted[10:20]]
    assert [one["properties"]["rank"] for one in features] == list(range(11, 21))
    assert features[0]["properties"]["score"] == pytest.approx(wanted[10].score, abs=1e-6)


def test_a_window_is_shown(client: TestClient) -> None:
    hit = ask(client, page_size=1)["hits"]["features"][0]
    for kind in ("true", "false"):
        answer = client.get(f"/api/{hit['properties']['thumbnail']}?picture={kind}")
        assert answer.headers["content-type"] == "image/png"
        image = Image.open(io.BytesIO(answer.content))
        assert image.size == (128, 128)
        assert len(image.convert("RGB").getcolors(2**16) or ()) > 100


def test_no_answer_names_a_folder(client: TestClient, folder: Path) -> None:
    texts = [
        client.get("/api/index").text,
        client.post("/api/search", json={"query": "a river"}).text,
        client.post("/api/download", json={"query": "a river"}).text,
        client.post("/api/search", json={"like": ["aaaaaaaaaaaaaaaa-0-0"]}).text,
    ]
    assert all(NAME in text for text in texts[:3])
    assert not any(str(folder.parent) in text for text in texts)
    assert json.loads(texts[3])["error"].startswith("no window 'aaaaaaaaaaaaaaaa-0-0' here")
