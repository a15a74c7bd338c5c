"""What a bench keeps of each measurement, so that none is made twice.

`measurements/<id>.json`: rows and details; `measurements/<id>.safetensors`: the values of every
sample, for comparing models. The id is the hash of all that the rows depend on: the model, the
samples, their labels, words, settings, and the version of the code that measures.

`details` holds what is no single value:

- `per_class`: class name -> {"value", "num_samples"}
- `class_names`, and `confusion`: (K, K) counts, row = true class, column = predicted class
- `reliability`: {"edges", "confidence", "accuracy", "count"}, None in empty bins
- `thresholds`: {"per_class", "overall"}, `platt`: {"scale", "bias"}
- `examples`: per query {"query", "query_index", "label", "results": [{"key", "index", "cosine",
  "right"}]}; for text queries `query` is the class name or caption and `query_index` is None
- `sensors`: of retrieval, tower -> the sensor whose pixels it saw
- `projection`: {"explained", "points": modality -> {"xy"}}
- `chosen`: hyper-parameter -> value chosen on validation data
- `per_seed`: shots -> values of the seeds
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from terralign.bench.folder import keep_versions, set_damaged_aside
from terralign.bench.subject import Job, Subject
from terralign.datasets.sample import labels_id
from terralign.errors import DataError, StorageError
from terralign.evaluation.metrics import Outcomes
from terralign.evaluation.paired import read_outcomes, write_outcomes
from terralign.evaluation.rows import Row, check_rows
from terralign.files import hash_json, read_json
from terralign.toml_values import explain
from terralign.train.stage import Stage, run_stage

ROWS_VERSION = 2
"""Raised with every change of what a row means."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Measurement:
    """A finished measurement. `path`: of its note. `samples`: which ones, at any picture size.
    `has_outcomes`: whether it keeps the values of every sample."""

    path: Path
    rows: list[Row]
    samples: str
    has_outcomes: bool
    made_now: bool = False

    @property
    def outcomes(self) -> Outcomes:
        """The values of every sample, by metric."""
        return read_outcomes(self.path.with_suffix(".safetensors"))

    @property
    def first_rows(self) -> dict[str, Row]:
        """Metric -> its first row: the plain one, which the outcomes belong to."""
        return {str(row.metric): row for row in reversed(self.rows)}


def read_measurement(path: Path) -> Measurement:
    """From its note. Raises `StorageError` where the file is no such note, or is damaged."""
    note = read_json(path)
    try:
        _Note.model_validate(note)
    except ValidationError as error:
        raise StorageError(f"{path} is damaged: {explain(error, _Note)}; delete it") from error
    return _of_note(path, note)


class _Note(BaseModel):
    """Of a measurement. The rows are checked by `check_rows`."""

    samples: str
    has_outcomes: bool
    rows: list[dict[str, Any]]


class _Made(_Note):
    """The note as it is written."""

    versions: dict[str, str]


def _of_note(path: Path, note: Mapping[str, Any]) -> Measurement:
    try:
        rows = check_rows(note["rows"])
    except DataError as error:
        raise StorageError(f"{path} is damaged: {error}; delete it to make it again") from error
    return Measurement(
        path=path,
        rows=rows,
        samples=note["samples"],
        has_outcomes=note["has_outcomes"],
    )


class Measurements:
    """The measurements of a bench folder. `versions`: those that measure now; `cache`: see
    `run_bench`."""

    def __init__(self, out: Path, versions: Mapping[str, str], cache: Path | None) -> None:
        self.out, self.cache, self.versions = out, cache, dict(versions)

    def measure(self, subject: Subject, job: Job) -> Measurement:
        """The measurement of a job: read, or made and kept. Raises as the job does."""
        stage = Stage.named_by_identity(
            "a measurement",
            _depends(subject, job),
            self.out / "measurements",
            suffixes=(".safetensors",),
            form=_Made,
            cache=self.cache,
        )
        made_now = False

        def make() -> dict[str, Any]:
            nonlocal made_now
            made_now, found = True, job.run()
            write_outcomes(stage.note.with_suffix(".safetensors"), found.outcomes)
            shared = {
                **subject.base_row,
                **job.where,
                "note": found.note or None,
                "seed": subject.suite.seed,
                "versions": hash_json(self.versions),
                "measurement": stage.identity,
            }
            rows = [Row.model_validate({**shared, **one}) for one in found.values]
            return {
                "versions": self.versions,
                "samples": _samples_id(subject),
                "rows": [row.model_dump(mode="json") for row in rows],
                "has_outcomes": bool(found.outcomes),
                "details": found.details,
            }

        set_damaged_aside(stage)
        note = run_stage(stage, make, renew=True)
        keep_versions(self.out, note["versions"])
        # A name or a role is how this bench names things: the values do not depend on it.
        names = {key: subject.base_row[key] for key in ("model", "role", "entry")}
        found = _of_note(stage.note, note)
        rows = [row.model_copy(update=names) for row in found.rows]
        return replace(found, rows=rows, made_now=made_now)


def _depends(subject: Subject, job: Job) -> dict[str, Any]:
    encoder = subject.model.encoder
    towers = {name: encoder.tower_id(name) for name in encoder.tower_names}
    named = {job.where.get(key) for key in ("tower", "query_tower", "gallery_tower")}
    return {
        "rows": ROWS_VERSION,
        "code": job.version,
        "model": subject.model.model_id,
        "towers": {name: towers[name] for name in towers if name in named} or towers,
        "samples": subject.samples.fingerprint,
        "labels": labels_id(subject.samples),
        "where": {key: value for key, value in job.where.items() if key != "prompts"},
        "routes": [route.note for route in subject.routes],
        "seed": [subject.suite.seed, subject.suite.num_bootstrap],
        **job.identity,
    }


def _samples_id(subject: Subject) -> str:
    """The name of which samples they are; of the same at any picture size."""
    samples = subject.samples
    return hash_json([samples.name, samples.split, *samples.keys])
