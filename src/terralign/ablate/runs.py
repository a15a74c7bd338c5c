"""Running a study: every variant with every seed, each in its own run folder.

A study's folder holds `study.toml`, `runs/VARIANT/SEED` (run folders), `shared` (what runs have in
common, by identity), `stores` (packed data sets), `results.json` (all rows, each with `variant` and
`seed`, and what failed) and `table.md`. Running the same study again resumes what is not finished.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from terralign.ablate.differences import Differences
from terralign.ablate.study import Planned, Study, only_adds, plan_study, study_text
from terralign.ablate.summary import study_report, summarise
from terralign.baselines.run import baseline_settings, run_baseline
from terralign.datasets.catalog import cannot_open, check_data_root, open_dataset
from terralign.encoders.sensor import SensorTower
from terralign.errors import (
    DataError,
    Interrupted,
    RecipeError,
    SensorError,
    StorageError,
    TerralignError,
    first_line,
)
from terralign.evaluation.rows import Row, read_rows
from terralign.files import (
    claimed,
    read_json,
    read_text,
    require_folder,
    write_json,
    write_text,
)
from terralign.report.render import markdown
from terralign.runs.checks import check_towers
from terralign.runs.data import RunData, named_data
from terralign.runs.folder import is_untouched, keep_recipe
from terralign.runs.recipe import BaseRecipe, Recipe
from terralign.runs.run import load_base, run_recipe
from terralign.toml_values import keep_toml
from terralign.train.settings import PictureSettings

logger = logging.getLogger(__name__)


CHECKED_SIZE = 32
"""The side that pictures are opened at where only their being there matters."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StudyResult:
    """The outcome of a study.

    `rows`: those of every finished run in the folder, with `variant` and `seed`. `summary`: mean
    and spread of each figure over seeds. `differences`: of the variants to the study's reference,
    see `differences.py`. `failures`: `variant`, `seed`, `reason` of runs that did
    not finish. `complete_before`: nothing had to be done.
    """

    folder: Path
    rows: tuple[Row, ...]
    summary: tuple[dict[str, Any], ...]
    differences: tuple[dict[str, Any], ...]
    failures: tuple[dict[str, Any], ...]
    table: str
    complete_before: bool


def run_study(
    study: Study,
    folder: Path,
    *,
    data_root: Path | None = None,
    device: str | None = None,
    overrides: Sequence[str] = (),
    seeds: Sequence[int] | None = None,
    only: Sequence[str] = (),
    shared: Path | None = None,
    stores: Path | None = None,
) -> StudyResult:
    """Run a study in `folder`, or resume an earlier call.

    `overrides`, `seeds`, `only`: as for `plan_study`. `shared`, `stores`: folders of what runs have
    in common and of packed data sets, which several studies may use, also at the same time; None:
    in `folder`. A run that fails is listed in the result and tried again by the next call; the
    others continue. More variants may come to a folder. Raises `RecipeError` where a variant's
    recipe is wrong or the folder holds another study, and `Interrupted` after saving when asked to
    stop.
    """
    planned = plan_study(study, overrides=overrides, seeds=seeds, only=only)
    for one in planned:
        method_settings(one)
    check_data_root(data_root)
    for place in (shared, stores):
        if place is not None:
            require_folder(place)
    with claimed(folder, begins_with=("study.toml",)):
        progress = _Study(
            study, folder, data_root, device,
            cache=shared or folder / "shared", stores=stores or folder / "stores",
        )  # fmt: skip
        progress.find_finished(overrides)
        progress.check_data(planned)
        _keep_study(study, overrides, folder / "study.toml")
        for number, one in enumerate(planned, start=1):
            logger.info(
                "variant %s, seed %d (%d of %d)", one.variant.name, one.seed, number, len(planned)
            )
            progress.run(one)
        return progress.result()


def method_settings(one: Planned) -> PictureSettings | None:
    """The settings of a variant's method, checked; None for the recipe's own stages."""
    if one.variant.method == "recipe":
        return None
    try:
        return baseline_settings(one.variant.method, one.recipe, one.variant.settings)
    except RecipeError as error:
        raise RecipeError(f"variant {one.variant.name}, {error}") from error


def _keep_study(study: Study, overrides: Sequence[str], path: Path) -> None:
    """Write the study, also over one that only has other variants; else refuse the folder."""
    text = study_text(study, overrides)
    with suppress(StorageError):  # reported below
        if only_adds(study, overrides, read_text(path)):
            write_text(path, text)
    try:
        keep_toml(path, text, kind="set of runs", what="study")
    except RecipeError:
        if _has_begun(path.parent):
            raise
        write_text(path, text)


def _has_begun(folder: Path) -> bool:
    """Whether `folder` is another study's: unless all its runs failed before they computed
    anything."""
    results = folder / "results.json"
    if results.is_file() and read_rows(results):
        return True
    runs = list((folder / "runs").glob("*/*"))
    return not runs or not all(map(is_untouched, runs))


class _Compared(BaseModel):
    identity: str
    value_a: float
    value_b: float
    difference: float
    low: float
    high: float
    p_value: float | None
    num_samples: int


class _Kept(BaseModel):
    """What is read of `results.json`."""

    differences: list[_Compared]


@dataclass
class _Study:
    """A study in progress: what its runs gave so far, by variant and seed."""

    study: Study
    folder: Path
    data_root: Path | None
    device: str | None
    cache: Path
    stores: Path
    rows: dict[tuple[str, int], list[Row]] = field(default_factory=dict)
    failures: dict[tuple[str, int], str] = field(default_factory=dict)
    complete_before: bool = True
    _base: tuple[BaseRecipe, Mapping[str, SensorTower]] | None = None

    @cached_property
    def differences(self) -> Differences:
        """What was compared before is read from the folder."""
        known = []
        with suppress(StorageError, ValidationError):  # damaged: compared again
            kept = read_json(self.folder / "results.json")
            _Kept.model_validate(kept)
            known = kept["differences"]
        return Differences(self.folder, known)

    def find_finished(self, overrides: Sequence[str]) -> None:
        """The runs of earlier calls, of variants and seeds not asked for now too."""
        found = (self.folder / "runs").glob("*/*/results.json")
        seeds = sorted({int(path.parent.name) for path in found if path.parent.name.isdigit()})
        for one in plan_study(self.study, overrides=overrides, seeds=seeds) if seeds else ():
            with suppress(RecipeError, StorageError):  # reported where the run is asked for
                rows = self._kept(one)
                if rows is not None:
                    self.rows[one.variant.name, one.seed] = rows

    def check_data(self, planned: Sequence[Planned]) -> None:
        """One error that names all data that are missing, where no run could do without them."""
        faults: dict[str, TerralignError] = {}
        opened: set[tuple[str, str]] = set()
        left = [one for one in planned if (one.variant.name, one.seed) not in self.rows]
        for data, split in (asked[:2] for one in left for asked in named_data(one.recipe)):
            if data in faults or (data, split) in opened:
                continue
            opened.add((data, split))
            try:
                open_dataset(data, data_root=self.data_root, split=split, size=CHECKED_SIZE)
            except DataError as error:
                faults[data] = error
        if faults and all(
            any(data in faults for data, *_ in named_data(one.recipe)) for one in left
        ):
            raise cannot_open(faults)
        for one in {one.variant.name: one for one in left}.values():
            if not any(data in faults for data, *_ in named_data(one.recipe)):
                self.check_variant(one)

    def check_variant(self, one: Planned) -> None:
        """What the run itself checks of its data, towers and settings before it trains."""
        recipe = one.recipe.model_copy(update={"pack": False})
        try:
            data = RunData(recipe, self.data_root, self.stores, CHECKED_SIZE)
            data.open_everything()
            if one.variant.method == "recipe":
                check_towers(recipe, self.towers_of_base(recipe), data.open)
        except (RecipeError, SensorError) as error:
            raise RecipeError(f"variant {one.variant.name}: {error}") from error

    def towers_of_base(self, recipe: Recipe) -> Mapping[str, SensorTower]:
        """Those that a variant keeps; a base that several start from is loaded once."""
        if recipe.patch is not None or recipe.base.model is None:
            return {}
        if self._base is None or self._base[0] != recipe.base:
            self._base = recipe.base, load_base(recipe, self.data_root).towers
        return self._base[1]

    def run(self, one: Planned) -> None:
        """One run; what it gave is written before the next begins."""
        key = (one.variant.name, one.seed)
        try:
            self.rows[key] = self._rows(one)
        except Interrupted:
            raise
        except Exception as error:
            self.failures[key] = _reason(error)
            logger.warning("variant %s, seed %d failed: %s", *key, self.failures[key])
            logger.debug("its traceback", exc_info=error)
            self.complete_before = False
        self._write()

    def _folder(self, one: Planned) -> Path:
        return self.folder / "runs" / one.variant.name / str(one.seed)

    def _kept(self, one: Planned) -> list[Row] | None:
        """The rows of a finished run of this very recipe; an error where it is of another."""
        folder = self._folder(one)
        if not ((folder / "results.json").is_file() and (folder / "recipe.toml").is_file()):
            return None
        keep_recipe(one.recipe, folder, self.data_root)
        return read_rows(folder / "results.json")

    def _rows(self, one: Planned) -> list[Row]:
        kept = self._kept(one)
        if kept is not None:
            return kept
        self.complete_before = False
        folder = self._folder(one)
        folder.mkdir(parents=True, exist_ok=True)
        keep_recipe(one.recipe, folder, self.data_root)
        settings = method_settings(one)
        places: dict[str, Any] = {
            "data_root": self.data_root, "device": self.device,
            "stores": self.stores, "cache": self.cache,
        }  # fmt: skip
        if settings is None:
            return list(run_recipe(one.recipe, folder, **places).rows)
        return run_baseline(one.variant.method, settings, one.recipe, folder, **places)

    def _write(self) -> None:
        result = self.result()
        write_json(
            self.folder / "results.json",
            {
                "study": self.study.name,
                "rows": [row.to_json() for row in result.rows],
                "summary": list(result.summary),
                "differences": list(result.differences),
                "failures": list(result.failures),
            },
        )
        write_text(self.folder / "table.md", result.table)

    def result(self) -> StudyResult:
        """What is known so far."""
        order = [variant.name for variant in self.study.all_variants()]

        def place(key: tuple[str, int]) -> tuple[int, int]:
            return order.index(key[0]), key[1]

        rows = [
            row.model_copy(update={"variant": key[0], "seed": key[1]})
            for key in sorted(self.rows, key=place)
            for row in self.rows[key]
        ]
        failures = [
            {"variant": key[0], "seed": key[1], "reason": self.failures[key]}
            for key in sorted(self.failures, key=place)
        ]
        summary = summarise(rows)
        ordered = {key: self.rows[key] for key in sorted(self.rows, key=place)}
        study = self.study
        differences = self.differences.of(ordered, study.reference_name, study.metrics)
        return StudyResult(
            folder=self.folder,
            rows=tuple(rows),
            summary=tuple(summary),
            differences=tuple(differences),
            failures=tuple(failures),
            table=markdown(study_report(study, summary, differences, failures)),
            complete_before=self.complete_before,
        )


def _reason(error: Exception) -> str:
    """What went wrong, in one line."""
    if isinstance(error, TerralignError):
        return " ".join(str(error).split())
    if isinstance(error, OSError) and error.strerror:
        where = f" ({error.filename})" if error.filename else ""
        return f"{error.strerror}{where}"
    return f"unexpected {type(error).__name__}: {first_line(error)}"
