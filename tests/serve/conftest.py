"""A small index that is served, shared by the tests of the server."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from imagery import NO_OFFSET, S2, dn, space_of, write_geotiff
from terralign.encoders.clip.load import ClipModel
from terralign.encoders.space import EmbeddingSpace
from terralign.index.embed import embed_scenes
from terralign.serve.app import create_app
from terralign.serve.settings import ServeSettings

NAMES = ("S2A_MSIL2A_20220706T085611_N9999_R007_T33NZA_20220706T153419.tif", "undated.tif")


@pytest.fixture(scope="session")
def served_space(tiny_clip: ClipModel, tmp_path_factory: pytest.TempPathFactory) -> EmbeddingSpace:
    """A space of random weights with a Sentinel-2 tower, from its folder."""
    return EmbeddingSpace.load(space_of(tiny_clip).save(tmp_path_factory.mktemp("model") / "model"))


@pytest.fixture(scope="session")
def served_folder(served_space: EmbeddingSpace, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two scenes of 25 overlapping windows by two towers; a date for one of them."""
    folder = tmp_path_factory.mktemp("served")
    paths = [
        write_geotiff(folder / name, dn(96, seed=seed), S2.band_names, tags=NO_OFFSET)
        for seed, name in enumerate(NAMES)
    ]
    embed_scenes(
        served_space, paths, folder / "out", sensor=S2.name, tower=["s2", "rgb"], stride=16,
        vectors="float32",
    )  # fmt: skip
    return folder / "out"


@pytest.fixture(scope="module")
def client(served_space: EmbeddingSpace, served_folder: Path) -> Iterator[TestClient]:
    """A client of a server without a token."""
    settings = ServeSettings(title="Two scenes")
    app = create_app(served_folder, served_space, settings)
    with TestClient(app, base_url="http://localhost") as client:
        yield client
