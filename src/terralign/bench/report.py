"""The report of a bench folder: what the folder holds, read and handed to `terralign.report`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from terralign.bench.compare import PairedTests
from terralign.bench.data import BenchData
from terralign.bench.examples import choose_blocks, find_examples, galleries, keep_pictures
from terralign.bench.folder import read_names
from terralign.bench.suite import parse_suite
from terralign.encoders.prompt_sets import load_prompts
from terralign.errors import DataError, StorageError, TerralignError
from terralign.evaluation.rows import Row, read_rows
from terralign.files import claimed, hash_file, hash_json, read_json, read_text
from terralign.report.bench import BenchReport
from terralign.report.entries import plain_rows, wanted_measurements
from terralign.report.figures import Sweep
from terralign.toml_paths import TomlPaths

REPORT_VERSION = 6
"""Raised with every change of what a report shows of the same folder."""

MEASUREMENT_NAME = re.compile(r"[0-9a-f]{8,64}")


def report_bench(folder: Path, data_root: Path | None = None) -> Path:
    """Write `report.html`, `report.md`, `tables.tex`, `figures/` and `pictures/` of a bench folder.

    `data_root`: where the data lie that pictures of samples are made from; those made before are
    kept. Does nothing where the report is of the same results already. Returns the path of the
    page. Raises `StorageError` for a folder that is no bench or is damaged.
    """
    _require_results(folder)
    with claimed(folder):
        report = read_bench(folder, data_root)
        page, stamp = folder / "report.html", f"<!-- results {_stamp(folder, report)} -->\n"
        if page.is_file() and stamp in page.read_text(encoding="utf-8", errors="replace")[-200:]:
            return page
        return report.write(folder, end=stamp)


def read_bench(folder: Path, data_root: Path | None = None) -> BenchReport:
    """All that the report of a bench folder shows; pictures that are missing are made."""
    rows = read_rows(_require_results(folder))
    models = read_names(folder / "models.json")
    for name, one in models.items():
        if not all(isinstance(one.get(key), str) for key in ("source", "model_id")):
            raise StorageError(
                f"{folder / 'models.json'} is damaged: {name!r} has no source and model_id; delete "
                "it and run the bench again"
            )
    details = {name: _details(folder, name) for name in wanted_measurements(rows)}
    blocks = choose_blocks(find_examples(plain_rows(rows), details))
    suite_path = folder / "suite.toml"
    suite_text = read_text(suite_path)
    paths = TomlPaths.beside(suite_path, data_root)
    suite = parse_suite(suite_text, origin=str(suite_path), paths=paths)
    keep_pictures(folder, suite, BenchData(data_root), blocks)
    sweeps = {name: read_sweep(Path(one.get("source", ""))) for name, one in models.items()}
    return BenchReport(
        title=f"Bench: {suite.name}",
        note=suite.note,
        rows=rows,
        test=PairedTests(folder, suite.num_bootstrap),
        details=details,
        galleries=galleries(blocks, folder),
        sweeps={name: sweep for name, sweep in sweeps.items() if sweep is not None},
        models=models,
        versions=read_names(folder / "versions.json"),
        prompts=_prompts(rows),
        suite_text=suite_text,
    )


def _require_results(folder: Path) -> Path:
    path = folder / "results.json"
    if not path.is_file():
        raise StorageError(f"{folder} holds no results.json; give the folder of a bench")
    return path


class _Point(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")

    alpha: float = Field(allow_inf_nan=False)
    patching: dict[str, float]
    supported: dict[str, float]


class _KeptSweep(BaseModel):
    """`patch/sweep.json` of a run."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    points: tuple[_Point, ...]
    chosen: dict[str, Any] = {}
    max_supported_drop: float | None = None


def read_sweep(space: Path) -> Sweep | None:
    """The alpha sweep beside a space that a run made; None where none can be read."""
    path = space.parent / "patch" / "sweep.json"
    try:
        if not path.is_file():
            return None
        kept = _KeptSweep.model_validate(read_json(path))
        return Sweep(
            points=[point.model_dump() for point in kept.points],
            chosen=kept.chosen.get("alpha"),
            max_supported_drop=kept.max_supported_drop,
        )
    except (DataError, StorageError, ValidationError, OSError):
        return None


def _details(folder: Path, name: str) -> dict[str, Any]:
    """The details of a measurement, empty where its file is missing."""
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


def _prompts(rows: Sequence[Row]) -> dict[tuple[str, str], tuple[str, ...]]:
    """The templates of the prompt sets of these rows, where they ship and are still the same."""
    used = dict.fromkeys((str(row.prompts), row.prompts_hash) for row in rows if row.prompts_hash)
    found: dict[tuple[str, str], tuple[str, ...]] = {}
    for name, digest in used:
        found[name, str(digest)] = ()
        with suppress(TerralignError):
            prompts = load_prompts(name)
            if prompts.describe()["hash"] == digest:
                found[name, str(digest)] = tuple(prompts.templates)
    return found


def _stamp(folder: Path, report: BenchReport) -> str:
    """Changes with anything that the report shows."""
    names = ("results.json", "models.json", "versions.json", "suite.toml", "pictures/index.json")
    files = [hash_file(folder / name) for name in names if (folder / name).is_file()]
    return hash_json([REPORT_VERSION, *files, *map(repr, report.sweeps.items())])
