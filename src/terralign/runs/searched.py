"""The end of quickstart: a scene of known land covers is embedded, and searched by their names."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError

from terralign.chips import Window
from terralign.compute import inference_depends
from terralign.datasets.synthetic.landscape import SENSOR, draw_landscape
from terralign.datasets.synthetic.scenes import CLASS_NAMES
from terralign.datasets.synthetic.sets import GENERATOR_VERSION
from terralign.encoders.answers import Hit
from terralign.encoders.space import EmbeddingSpace
from terralign.errors import StorageError
from terralign.evaluation.chip_views import Picture8, chip_views
from terralign.files import read_kept_json
from terralign.index.embed import embed_scenes
from terralign.index.search import open_index
from terralign.index.store import CACHE
from terralign.report.searched import FoundWindow, SearchedText
from terralign.runs.recipe import SearchRecipe
from terralign.scenes.scene import open_scene
from terralign.toml_values import explain
from terralign.train.stage import Stage, run_stage

SEARCHED_VERSION = 1
"""Raised with every change of what is searched, and of what is right."""

SEARCH = "search"
"""The folder, in that of a run, of these files."""
SCENE, PARTS, NOTE = "scene.tif", "parts", "search.json"

_TODO = "delete it and results.json, and run the same command again"


class Searched(BaseModel):
    """What the search found: the note of its stage."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    identity: str
    queries: tuple[SearchedText, ...]


def search_landscape(space: EmbeddingSpace, recipe: SearchRecipe, folder: Path) -> Searched:
    """Embed a landscape with a tower of a space, and search it by the names of all land covers.

    `folder` then holds `scene.tif`, its `parts`, and `search.json`. Complete ones are read.
    """
    stage = Stage(
        what="a searched scene",
        depends={
            "code": [SEARCHED_VERSION, GENERATOR_VERSION],
            "space": space.space_id,
            "tower": space.tower_id(recipe.tower),
            "recipe": recipe.model_dump(mode="json"),
            **inference_depends(),
        },
        note=folder / NOTE,
        files=(SCENE, PARTS),
        form=Searched,
    )
    return Searched.model_validate(run_stage(stage, lambda: _search(space, recipe, folder)))


def read_searched(run: Path) -> tuple[SearchedText, ...]:
    """What the run in a folder found by each query; empty where it searched nothing.

    `StorageError` for a damaged note.
    """
    path = run / SEARCH / NOTE
    if not path.is_file():
        return ()
    try:
        return Searched.model_validate(read_kept_json(path, todo=_TODO)).queries
    except ValidationError as error:
        raise StorageError(f"{path} is damaged: {explain(error, Searched)}; {_TODO}") from error


def picture_of(folder: Path) -> Picture8:
    """(H, W, 3) the scene in true colour."""
    chip = open_scene(folder / SCENE, sensor=SENSOR).read()
    return chip_views(np.asarray(chip.pixels), chip.layout)["true colour"]


def _search(space: EmbeddingSpace, recipe: SearchRecipe, folder: Path) -> Mapping[str, Any]:
    landscape = draw_landscape(recipe.regions)
    landscape.save(folder / SCENE)
    found = embed_scenes(space, folder / SCENE, folder / PARTS, sensor=SENSOR, tower=recipe.tower)
    for fault in found.faults:
        raise fault.as_error()
    index = open_index(folder / PARTS)
    covers = [_cover_of(landscape.covers, hit.place.window) for hit in index.places()]
    queries = []
    for number, name in enumerate(CLASS_NAMES):
        hits = [
            _found(hit, landscape.covers, number) for hit in index.search(space, name, recipe.k)
        ]
        chance = covers.count(number) / len(covers)
        queries.append(SearchedText(text=name, chance=chance, hits=tuple(hits)))
    shutil.rmtree(folder / PARTS / CACHE)  # it holds times, which differ from run to run
    return {"queries": [one.model_dump(mode="json") for one in queries]}


def _cover_of(covers: NDArray[np.int64], window: Window | None) -> int:
    """What covers most of a window."""
    assert window is not None
    rows = slice(window.row, window.row + window.height)
    columns = slice(window.column, window.column + window.width)
    return int(np.bincount(covers[rows, columns].ravel()).argmax())


def _found(hit: Hit, covers: NDArray[np.int64], wanted: int) -> FoundWindow:
    window = hit.place.window
    assert window is not None
    return FoundWindow(
        row=window.row,
        column=window.column,
        height=window.height,
        width=window.width,
        score=round(hit.score, 6),
        is_right=_cover_of(covers, window) == wanted,
    )
