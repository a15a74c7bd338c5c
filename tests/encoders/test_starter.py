"""The model that ships: whole, small, with its card, and right about a real picture."""

from __future__ import annotations

from pathlib import Path

import pytest

from terralign.demo import run_demo, scene_path
from terralign.encoders.sources import STARTER
from terralign.encoders.space import EmbeddingSpace
from terralign.index.search import open_index
from terralign.searching.evaluate import evaluate_search

TOWNS = Path(__file__).parents[1] / "data" / "t48que.geojson"
"""Polygons of towns and forests of the scene, drawn by hand."""
DOCS = Path(__file__).parents[2] / "docs"


@pytest.fixture(scope="module")
def space() -> EmbeddingSpace:
    return EmbeddingSpace.load("starter")


def test_it_takes_at_most_fifty_megabytes_and_its_card_is_in_the_docs() -> None:
    assert sum(one.stat().st_size for one in STARTER.rglob("*") if one.is_file()) <= 50e6
    card = (STARTER / "README.md").read_text(encoding="utf-8")
    assert card == (DOCS / "starter.md").read_text(encoding="utf-8")
    assert "@" not in card.replace("recall@1", ""), "no place of the card is left unfilled"


@pytest.mark.shipped
def test_space_and_base_load_and_share_their_text_tower(space: EmbeddingSpace) -> None:
    base = EmbeddingSpace.load("starter:base")
    assert space.tower_names == ("rgb", "sentinel2", "sentinel1")
    assert base.tower_names == ("rgb",)
    assert space.clip.text_id() == base.clip.text_id()
    assert space.space_id in (DOCS / "starter.md").read_text(encoding="utf-8")


@pytest.mark.shipped
def test_it_tells_the_river_from_the_town_in_the_scene_that_ships(space: EmbeddingSpace) -> None:
    found = space.classify(scene_path(), ["river", "residential buildings"], dn_offset=0)
    label = {(one.place.window.row, one.place.window.column): one.label for one in found}
    assert label[128, 448] == "residential buildings"
    assert label[448, 256] == "river"


@pytest.mark.shipped
def test_what_ships_finds_the_towns_of_the_real_scene(
    space: EmbeddingSpace, tmp_path: Path
) -> None:
    found = run_demo(tmp_path / "demo", device="cpu")
    index = open_index(found.folder / "vectors")
    assert found.page.read_text(encoding="utf-8").count('<rect class="cell"') == 144
    texts = {"town": "a town with houses"}
    judged = evaluate_search(space, index, TOWNS, texts, ks=[6], min_cover=0.3, collapse=True)
    [precision] = [one for one in judged.texts[0].metrics if one.name == "precision@6"]
    assert precision.value >= 0.6 > 3 * precision.chance
