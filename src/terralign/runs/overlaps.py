"""What a run's training, validation and measurements share, found before anything is trained."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np

from terralign.datasets.overlap import Overlaps, keep_apart, title, warn_of_repeated
from terralign.datasets.sample import SampleSet
from terralign.evaluation.rows import Row
from terralign.runs.data import RunData
from terralign.runs.recipe import AlignRecipe, Recipe, asked

logger = logging.getLogger(__name__)


class RunOverlaps:
    """`notes`: what the recipe allows to be shared, once `check` has found it."""

    def __init__(self, recipe: Recipe, data: RunData) -> None:
        self._recipe, self._data = recipe, data
        self._overlaps = Overlaps()
        self._warned: set[int] = set()
        self.notes: list[str] = []

    def check(self) -> None:
        """Raise `RecipeError` where alpha, or the best weights of a tower, would be chosen on
        samples that are trained on."""
        recipe, notes = self._recipe, []
        allowed = recipe.allow_shared_samples
        if recipe.patch is not None:
            patching = self._data.patching
            judging = [task.samples for task in (*patching.validation, *patching.supported)]
            notes += keep_apart(
                self._overlaps, self._of_stage_1(), judging, chosen="alpha", allowed=allowed
            )
        for tower in recipe.align:
            if tower.validation is not None:
                judging = [self._data.source(tower.validation).samples]
                notes += keep_apart(
                    self._overlaps, self._of_tower(tower), judging,
                    chosen=f"the best step of tower {tower.name!r}", allowed=allowed,
                )  # fmt: skip
        for entry in recipe.evaluate:
            samples = self._data.open(*asked(entry))
            warn_of_repeated(self._overlaps, samples)
        self.notes = list(dict.fromkeys(notes))

    def noted(
        self, rows: list[Row], samples: SampleSet, model: str, towers: Sequence[str | None]
    ) -> list[Row]:
        """Rows of `samples`, with a note where `model` or one of `towers` was trained on them."""
        note = self._note(samples, model, towers)
        return rows if note is None else [row.model_copy(update={"note": note}) for row in rows]

    def _note(self, samples: SampleSet, model: str, towers: Sequence[str | None]) -> str | None:
        sets = self._pretrained()
        if model != "base":
            sets += self._of_stage_1()
        for tower in self._recipe.align:
            if tower.name in towers:
                sets += self._of_tower(tower)
        seen = np.zeros(len(samples), dtype=np.bool_)
        names = []
        for one in {id(one): one for one in sets}.values():
            found = self._overlaps.find(one, samples)
            seen[found.rows] = True
            if len(found):
                names.append(title(one))
        if not names:
            return None
        note = (
            f"{int(seen.sum()):,} of {len(samples):,} samples were trained on "
            f"({', '.join(dict.fromkeys(names))})"
        )
        if id(samples) not in self._warned:
            self._warned.add(id(samples))
            logger.warning("%s: %s", title(samples), note)
        return note

    def _pretrained(self) -> list[SampleSet]:
        one = self._recipe.base.pretrain
        return [] if one is None else [self._data.open(one.data, one.split, one.limit)]

    def _of_stage_1(self) -> list[SampleSet]:
        """What stage 1, and the base before it, is trained on."""
        patching = self._data.patching
        preserved = [] if patching.preserve_on is None else [patching.preserve_on]
        return [*self._pretrained(), *(task.samples for task in patching.tasks), *preserved]

    def _of_tower(self, tower: AlignRecipe) -> list[SampleSet]:
        return [self._data.source(one).samples for one in tower.data]
