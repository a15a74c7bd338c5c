"""What a recipe would only fail at after hours of work, met before them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from terralign.datasets.sample import SampleSet
from terralign.encoders.space import RGB, EmbeddingSpace
from terralign.errors import RecipeError, nearest
from terralign.evaluate.embed import optical_layout
from terralign.evaluate.retrieval import TEXT
from terralign.recipe import Recipe
from terralign.sensors import find_sensor
from terralign.train.student import student_layout

Open = Callable[[str, str, int | None], SampleSet]
"""(data set, split, limit) -> its samples."""


def check_towers(recipe: Recipe, base: EmbeddingSpace, open_samples: Open) -> None:
    """Raise where a measurement names a tower that is not there, or that does not take the data."""
    kept = {} if recipe.patch is not None else base.towers
    sensors = {name: tower.config.input.sensors for name, tower in kept.items()}
    for tower in recipe.align:
        sensors[tower.name] = tuple(find_sensor(name).name for name in tower.sensors)
    for entry in recipe.evaluate:
        samples = open_samples(entry.data, entry.split, entry.limit)
        for name in (*entry.towers, entry.query, entry.gallery, *(RGB for _ in entry.models)):
            if name in sensors:
                student_layout(samples, sensors[name])
            elif name == RGB:
                optical_layout(samples)
            elif name not in (None, TEXT):
                hint = nearest(str(name), [*sensors, RGB, TEXT])
                raise RecipeError(f"evaluate names tower {name!r}; {hint}")


def check_figures_differ(recipe: Recipe, open_samples: Open) -> None:
    """Raise where two measurements bear one name in results and tables."""
    seen: set[tuple[Any, ...]] = set()
    for entry in recipe.evaluate:
        samples = open_samples(entry.data, entry.split, entry.limit)
        multi_label = samples.labels is not None and samples.labels.multi_label
        where = (samples.name, samples.split, entry.role, entry.task, multi_label)
        retrieval = [f"{entry.query} -> {entry.gallery}"] if entry.task == "retrieval" else []
        for who in (*entry.models, *entry.towers, *retrieval):
            if (*where, who) in seen:
                raise RecipeError(
                    f"evaluate measures {who} on {samples.name} {samples.split} twice as "
                    f"{entry.role}; results could not tell the two apart: leave one out"
                )
            seen.add((*where, who))
