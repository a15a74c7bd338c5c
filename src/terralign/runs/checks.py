"""What a recipe would only fail at after hours of work, met before them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Self

from terralign.datasets.sample import SampleSet, optical_layout
from terralign.datasets.synthetic.landscape import SENSOR
from terralign.encoders.sensor import SensorTower
from terralign.encoders.space import RGB
from terralign.errors import RecipeError, SensorError, nearest
from terralign.evaluation.retrieval import TEXT
from terralign.preprocess import InputSpec
from terralign.runs.recipe import Recipe, asked
from terralign.sensors import find_sensor
from terralign.train.settings import student_scaling
from terralign.train.student import student_bands, student_layout

Open = Callable[[str, str, int | None, str | None], SampleSet]
"""(data set, split, limit, composite) -> its samples."""


def check_towers(recipe: Recipe, of_base: Mapping[str, SensorTower], open_samples: Open) -> None:
    """Raise where a tower cannot be made of its data, and where a measurement names a tower that
    does not exist, or that does not take the data. `of_base`: the base's towers."""
    kept = {} if recipe.patch is not None else of_base
    towers = {name: _Tower.of(tower.config.input) for name, tower in kept.items()}
    for tower in recipe.align:
        sensors = [find_sensor(name) for name in tower.sensors]
        names = tuple(sensor.name for sensor in sensors)
        layouts = [student_layout(open_samples(*asked(one)), names) for one in tower.data]
        student_scaling(tower.student, sensors)
        bands = student_bands(tower.student, sensors, layouts)
        towers[tower.name] = _Tower(names, bands, tower.student.missing)
        if tower.validation is not None:
            samples = open_samples(*asked(tower.validation))
            towers[tower.name].check(tower.name, samples)
    for entry in recipe.evaluate:
        samples = open_samples(*asked(entry))
        for name in (*entry.towers, entry.query, entry.gallery, *(RGB for _ in entry.models)):
            if name in towers:
                towers[name].check(name, samples)
            elif name == RGB:
                optical_layout(samples)
            elif name not in (None, TEXT):
                hint = nearest(str(name), [*towers, RGB, TEXT])
                raise RecipeError(f"evaluate names tower {name!r}; {hint}")
    if recipe.search is not None:
        name = recipe.search.tower
        if name not in towers:
            raise RecipeError(f"search names tower {name!r}; {nearest(name, towers)}")
        if SENSOR not in towers[name].sensors:
            taken = ", ".join(towers[name].sensors)
            raise RecipeError(
                f"search: tower {name!r} takes {taken}; the scene has {SENSOR}: name another tower"
            )


@dataclass(frozen=True, slots=True)
class _Tower:
    """What a tower takes."""

    sensors: tuple[str, ...]
    bands: tuple[str, ...]
    missing: str

    @classmethod
    def of(cls, spec: InputSpec) -> Self:
        return cls(spec.sensors, spec.bands, spec.missing)

    def check(self, name: str, samples: SampleSet) -> None:
        """Raise where the samples lack the tower's sensors, or bands that it needs."""
        layout = student_layout(samples, self.sensors)
        absent = [band for band in self.bands if band not in layout.bands]
        if absent and (self.missing == "error" or len(absent) == len(self.bands)):
            raise SensorError(
                f"tower {name!r} needs {', '.join(absent)}; {samples.name} has "
                f"{', '.join(layout.bands)} of {layout.sensor.name}"
            )


def check_figures_differ(recipe: Recipe, open_samples: Open) -> None:
    """Raise where two measurements bear one name in results and tables."""
    seen: dict[tuple[Any, ...], str | None] = {}
    for entry in recipe.evaluate:
        samples = open_samples(*asked(entry))
        multi_label = samples.labels is not None and samples.labels.multi_label
        where = (samples.name, samples.split, entry.role, entry.task, multi_label)
        retrieval = [f"{entry.query} -> {entry.gallery}"] if entry.task == "retrieval" else []
        for who in (*entry.models, *entry.towers, *retrieval):
            if (*where, who) in seen:
                other = seen[(*where, who)]
                composites = (
                    f" (composite {other or 'as declared'}, and {entry.composite or 'as declared'})"
                    if other != entry.composite
                    else ""
                )
                raise RecipeError(
                    f"evaluate measures {who} on {samples.name} {samples.split} twice as "
                    f"{entry.role}{composites}; results cannot show both: leave one out"
                )
            seen[(*where, who)] = entry.composite
