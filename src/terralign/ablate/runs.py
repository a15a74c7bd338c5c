"""Running a study: every variant with every seed, each in a run folder of its own.

A study's folder holds `study.toml`, `runs/VARIANT/SEED` (run folders), `shared` (what runs have in
common), `stores` (packed data sets), `results.json` (all rows, each with `variant` and `seed`, and
what failed) and `table.md`. Running the same study again goes on with what is not finished.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from terralign.ablate.baselines import check_settings, run_baseline
from terralign.ablate.sharing import SharedStages
from terralign.ablate.summary import summarise, table_text
from terralign.errors import Interrupted, RecipeError, StorageError, TerralignError, first_line
from terralign.files import claimed, read_json, write_json, write_text
from terralign.run import run_recipe
from terralign.run_folder import keep_recipe
from terralign.study import Planned, Study, plan_study, study_text
from terralign.toml_values import toml_difference

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class StudyResult:
    """A study that was gone through.

    `rows`: those of every run's `results.json`, with `variant` and `seed`. `summary`: mean and
    spread of each figure over seeds. `failures`: `variant`, `seed`, `reason` of runs that did not
    finish. `complete_before`: nothing had to be done.
    """

    folder: Path
    rows: tuple[dict[str, Any], ...]
    summary: tuple[dict[str, Any], ...]
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
) -> StudyResult:
    """Run a study in `folder`, or go on where an earlier call stopped.

    `overrides`, `seeds`, `only`: as for `plan_study`. A run that fails is told of in the result and
    tried again by the next call; the others go on. Raises `RecipeError` where a variant's recipe
    is wrong or the folder holds another study, and `Interrupted` after saving when asked to stop.
    """
    planned = plan_study(study, overrides=overrides, seeds=seeds, only=only)
    for one in planned:
        check_settings(one)
    with claimed(folder):
        _keep_study(study_text(study, overrides), folder)
        progress = _Study(study, folder, data_root, device)
        for number, one in enumerate(planned, start=1):
            logger.info(
                "variant %s, seed %d (%d of %d)", one.variant.name, one.seed, number, len(planned)
            )
            progress.run(one)
        return progress.result()


def _keep_study(text: str, folder: Path) -> None:
    path = folder / "study.toml"
    if not path.is_file():
        others = [one.name for one in folder.iterdir() if not one.name.startswith(".")]
        if others:
            raise StorageError(
                f"{folder} holds other files ({', '.join(sorted(others)[:3])}) and no study; "
                "choose an empty folder"
            )
        write_text(path, text)
        return
    difference = toml_difference(path.read_text(encoding="utf-8"), text)
    if difference:
        raise RecipeError(
            f"{folder} holds another study, or the same with other values; choose another --out. "
            f"Different: {'; '.join(difference)}"
        )


@dataclass
class _Study:
    """A study in progress: what its runs gave so far."""

    study: Study
    folder: Path
    data_root: Path | None
    device: str | None
    rows: list[dict[str, Any]] = field(default_factory=list)
    failures: list[dict[str, Any]] = field(default_factory=list)
    complete_before: bool = True

    def run(self, one: Planned) -> None:
        """One run; what it gave is written before the next begins."""
        where: dict[str, Any] = {"variant": one.variant.name, "seed": one.seed}
        try:
            rows = self._rows(one)
        except Interrupted:
            raise
        except Exception as error:
            reason = _reason(error)
            logger.warning("variant %s, seed %d failed: %s", one.variant.name, one.seed, reason)
            logger.debug("its traceback", exc_info=error)
            self.failures.append({**where, "reason": reason})
            self.complete_before = False
        else:
            self.rows += [{**where, **row} for row in rows]
        self._write()

    def _rows(self, one: Planned) -> list[dict[str, Any]]:
        folder = self.folder / "runs" / one.variant.name / str(one.seed)
        if (folder / "results.json").is_file() and (folder / "recipe.toml").is_file():
            keep_recipe(one.recipe, folder)  # a finished run of the very same recipe, or an error
            return list(read_json(folder / "results.json")["rows"])
        self.complete_before = False
        folder.mkdir(parents=True, exist_ok=True)
        keep_recipe(one.recipe, folder)
        shared, stores = SharedStages(self.folder / "shared"), self.folder / "stores"
        shared.take(one.recipe, folder)
        try:
            if one.variant.method == "recipe":
                result = run_recipe(
                    one.recipe, folder, data_root=self.data_root, device=self.device, stores=stores
                )
                return list(result.rows)
            return run_baseline(
                one, folder,
                data_root=self.data_root, device=self.device, stores=stores, shared=shared,
            )  # fmt: skip
        finally:
            shared.give(one.recipe, folder)

    def _write(self) -> None:
        result = self.result()
        write_json(
            self.folder / "results.json",
            {
                "study": self.study.name,
                "rows": list(result.rows),
                "summary": list(result.summary),
                "failures": list(result.failures),
            },
        )
        write_text(self.folder / "table.md", result.table)

    def result(self) -> StudyResult:
        """What is known so far."""
        summary = summarise(self.rows)
        return StudyResult(
            folder=self.folder,
            rows=tuple(self.rows),
            summary=tuple(summary),
            failures=tuple(self.failures),
            table=table_text(self.study, summary, self.failures),
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
