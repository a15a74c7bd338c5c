"""A run that ends by searching a scene: what it finds, keeps, and makes again after a stop."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import pytest

from small_run import small_recipe
from terralign.cli import main
from terralign.encoders.space import EmbeddingSpace
from terralign.errors import RecipeError, StorageError
from terralign.index.search import open_index
from terralign.runs.recipe import Recipe, SearchRecipe, load_recipe, single_stage
from terralign.runs.run import run_recipe
from terralign.runs.searched import read_searched, search_landscape

SEARCH = SearchRecipe(tower="s2", regions=2, k=4)


def searching(finished_run: Path, tower: str = "s2") -> Recipe:
    """A recipe that only searches, by a space that exists."""
    return small_recipe(
        base={"model": str(finished_run / "model")}, patch=None, align=None, evaluate=None,
        search={"tower": tower, "regions": 2, "k": 4},
    )  # fmt: skip


def contents(folder: Path) -> dict[str, bytes]:
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != ".lock"]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


@pytest.mark.usefixtures("figures_undrawn")
def test_a_run_ends_by_searching_a_scene(finished_run: Path, tmp_path: Path) -> None:
    recipe, folder = searching(finished_run), tmp_path / "run"
    found = run_recipe(recipe, folder, device="cpu")
    index = open_index(folder / "search" / "parts")
    assert (len(index), index.towers) == (36, ("s2",))
    space = EmbeddingSpace.load(index.model)  # as `terralign search` loads it
    for one in found.searched:
        hits = space.search(index, one.text, 4)
        assert [(hit.row, hit.column) for hit in one.hits] == [
            (hit.place.window.row, hit.place.window.column) for hit in hits if hit.place.window
        ]
    assert sum(one.chance for one in found.searched) == pytest.approx(1)
    text = (folder / "report.md").read_text(encoding="utf-8")
    assert "| 1 | evergreen forest |" in text
    assert (folder / "figures" / "search.png").is_file()
    [step] = [line for line in text.splitlines() if line.startswith("terralign search ")]
    main.commands["search"].make_context("search", shlex.split(step)[2:])
    before = contents(folder)
    again = run_recipe(recipe, folder, device="cpu")
    assert (again.complete_before, again.searched) == (True, found.searched)
    assert {name: one for name, one in contents(folder).items() if ".cache" not in name} == {
        name: one for name, one in before.items() if ".cache" not in name
    }


@pytest.fixture(scope="module")
def space(finished_run: Path) -> EmbeddingSpace:
    return EmbeddingSpace.load(finished_run / "model")


@pytest.fixture(scope="module")
def searched(space: EmbeddingSpace, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("search")
    search_landscape(space, SEARCH, folder)
    return folder


@pytest.mark.parametrize("lost", ["search.json", "**/*.*"])
def test_a_stopped_search_ends_in_the_same_files(
    space: EmbeddingSpace, searched: Path, lost: str
) -> None:
    whole = contents(searched)
    assert len(whole) == 3
    for path in [path for path in searched.glob(lost) if path.is_file()]:
        path.unlink()
    search_landscape(space, SEARCH, searched)
    assert contents(searched) == whole


def test_a_complete_search_is_not_repeated(
    space: EmbeddingSpace, searched: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: Any) -> None:
        raise AssertionError

    monkeypatch.setattr("terralign.runs.searched.draw_landscape", fail)
    found = search_landscape(space, SEARCH, searched)
    assert len(found.queries) == 12
    other = SEARCH.model_copy(update={"k": 5})
    with pytest.raises(RecipeError, match="holds a searched scene of other settings"):
        search_landscape(space, other, searched)


def test_damaged_notes_of_a_search_are_told(tmp_path: Path) -> None:
    (tmp_path / "search").mkdir()
    (tmp_path / "search" / "search.json").write_text('{"identity": "x"}')
    with pytest.raises(StorageError, match=r"search\.json is damaged: .*queries"):
        read_searched(tmp_path)


@pytest.mark.parametrize(
    ("tower", "said"),
    [("s3", "search names tower 's3'"), ("s1", "search: tower 's1' takes sentinel1-grd")],
)
def test_towers_that_do_not_take_the_scene_are_refused(
    finished_run: Path, tmp_path: Path, tower: str, said: str
) -> None:
    with pytest.raises(RecipeError, match=said):
        run_recipe(searching(finished_run, tower), tmp_path / "run", device="cpu")


def test_quickstart_searches_by_a_tower_that_it_aligns() -> None:
    recipe = load_recipe("quickstart")
    assert recipe.search is not None
    with pytest.raises(RecipeError, match="search names tower 'sentinel'"):
        load_recipe("quickstart", overrides=["search.tower=sentinel"])
    assert single_stage(recipe, "patch").search is None
    assert single_stage(recipe, "align", base="model").search == recipe.search
