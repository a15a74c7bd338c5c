"""A bench folder, read for its report: rows, what they were measured with, details, sweeps."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from terralign.bench.report.examples import Views, read_picture_index
from terralign.bench.report.sections import wanted_measurements
from terralign.bench.suite import Suite
from terralign.encoders.zeroshot import load_prompts
from terralign.errors import StorageError, TerralignError
from terralign.evaluation.rows import Row, read_rows
from terralign.files import hash_json, read_json, read_text

REPORT_VERSION = 4
"""Raised with every change of what a report shows of the same folder."""

MEASUREMENT_NAME = re.compile(r"[0-9a-f]{8,64}")


class _Point(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")

    alpha: float = Field(allow_inf_nan=False)
    patching: dict[str, float]
    supported: dict[str, float]


class _Choice(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")

    alpha: float


class Sweep(BaseModel):
    """The alpha sweep of a run, `patch/sweep.json` beside its space."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    points: tuple[_Point, ...] = Field(min_length=1)
    chosen: _Choice | None = None
    max_supported_drop: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class BenchResults:
    """What a report is made from.

    `models`: name -> source and id. `versions`: name -> software -> version. `suite_text`: the
    resolved TOML. `details`: of the measurements that figures need. `pictures`: entry -> key ->
    views. `sweeps`: model -> its run's sweep. `folder`: where the pictures lie.
    """

    folder: Path
    rows: tuple[Row, ...]
    models: Mapping[str, Mapping[str, str]]
    versions: Mapping[str, Mapping[str, str]]
    suite_text: str
    details: Mapping[str, Mapping[str, Any]]
    pictures: Mapping[str, Mapping[str, Views]]
    sweeps: Mapping[str, Sweep]

    def suite(self, key: str) -> str:
        """A text of the suite itself, such as its name; "" where it has none."""
        value = self._suite().get(key, "")
        return value if isinstance(value, str) else ""

    @property
    def num_bootstrap(self) -> int:
        """The suite's number of resamples."""
        value = self._suite().get("num_bootstrap")
        return value if isinstance(value, int) else Suite.model_fields["num_bootstrap"].default

    def _suite(self) -> dict[str, Any]:
        try:
            return tomllib.loads(self.suite_text)
        except tomllib.TOMLDecodeError:
            return {}

    def stamp(self) -> str:
        """Changes with anything that the report shows."""
        return hash_json(
            {
                "version": REPORT_VERSION,
                "rows": [row.model_dump(mode="json") for row in self.rows],
                "models": {name: dict(one) for name, one in self.models.items()},
                "versions": {name: dict(one) for name, one in self.versions.items()},
                "suite": self.suite_text,
                "pictures": {name: dict(one) for name, one in self.pictures.items()},
                "sweeps": {name: one.model_dump(mode="json") for name, one in self.sweeps.items()},
            }
        )


def read_bench(folder: Path) -> BenchResults:
    """Everything but the pictures' bytes. Raises `StorageError`."""
    path = folder / "results.json"
    if not path.is_file():
        raise StorageError(f"{folder} holds no results.json; give the folder of a bench")
    rows = tuple(read_rows(path))
    models = _table(folder / "models.json")
    suite = folder / "suite.toml"
    return BenchResults(
        folder=folder,
        rows=rows,
        models=models,
        versions=_table(folder / "versions.json"),
        suite_text=read_text(suite) if suite.is_file() else "",
        details={name: _details(folder, name) for name in wanted_measurements(rows)},
        pictures=read_picture_index(folder),
        sweeps={
            name: sweep
            for name, one in models.items()
            if (sweep := read_sweep(Path(one.get("source", "")))) is not None
        },
    )


def read_sweep(space: Path) -> Sweep | None:
    """The sweep beside a space that a run made; None where there is none that can be read."""
    path = space.parent / "patch" / "sweep.json"
    try:
        return Sweep.model_validate(read_json(path)) if path.is_file() else None
    except (StorageError, ValidationError, OSError):
        return None


def _table(path: Path) -> dict[str, dict[str, str]]:
    """Name -> key -> text; empty where the file is not there."""
    if not path.is_file():
        return {}
    kept = read_json(path)
    if not isinstance(kept, dict) or not all(isinstance(one, dict) for one in kept.values()):
        raise StorageError(f"{path} is damaged: expected names with keys and values")
    return {name: {key: str(value) for key, value in one.items()} for name, one in kept.items()}


def _details(folder: Path, name: str) -> dict[str, Any]:
    """The details of a measurement, empty where its file is gone."""
    if not MEASUREMENT_NAME.fullmatch(name):
        raise StorageError(f"{name!r} is no name of a measurement")
    path = folder / "measurements" / f"{name}.json"
    if not path.is_file():
        return {}
    kept = read_json(path)
    details = kept.get("details") if isinstance(kept, dict) else None
    if not isinstance(details, dict):
        raise StorageError(f"{path} is damaged: it has no details; delete it and run again")
    return details


def prompt_texts(name: str, told_hash: str | None) -> tuple[str, ...]:
    """The templates of a shipped prompt set, if they are still those that were used."""
    try:
        prompts = load_prompts(name)
    except TerralignError:
        return ()
    return tuple(prompts.templates) if prompts.describe()["hash"] == told_hash else ()
