"""What a bench keeps of each measurement, so that none is made twice.

`measurements/<id>.json`: identity, rows and details; `measurements/<id>.safetensors`: the values of
every sample, for comparing models. The id is the hash of all that the rows depend on: the model,
the samples, their labels, words, settings, and the version of the code that measures.

`details` holds what is no single value:

- `per_class`: class name -> {"value", "num_samples"}
- `class_names`, and `confusion`: (K, K) counts, row = true class, column = predicted class
- `reliability`: {"edges", "confidence", "accuracy", "count"}, None in empty bins
- `thresholds`: {"per_class", "overall"}, `platt`: {"scale", "bias"}
- `examples`: per query {"query", "query_index", "label", "results": [{"key", "index", "cosine",
  "right"}]}; for text queries `query` is the class name or caption and `query_index` is None
- `sensors`: of retrieval, tower -> the sensor whose pixels it saw
- `projection`: {"explained", "points": modality -> {"xy", "labels", "keys"}}
- `chosen`: hyper-parameter -> value chosen on validation data
- `per_seed`: shots -> values of the seeds
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from terralign.bench.subject import Job, Measured, Subject, keys_id, labels_id
from terralign.encoders.clip.weights import read_shapes
from terralign.errors import ModelError, StorageError
from terralign.evaluation.paired import read_outcomes, write_outcomes
from terralign.evaluation.rows import Row, check_rows
from terralign.files import hash_json, read_json, set_aside, write_json

ROWS_VERSION = 1
"""Raised with every change of what a row means."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Kept:
    """A finished measurement. `samples`: which ones, whatever the size of their pictures."""

    name: str
    where: dict[str, Any]
    rows: list[Row]
    samples: str
    has_outcomes: bool
    made_now: bool


class Store:
    """The measurements of a bench folder."""

    def __init__(self, folder: Path, versions: str) -> None:
        self.folder = folder / "measurements"
        self.versions = versions

    def measured(self, subject: Subject, job: Job) -> Kept:
        """The measurement of a job: read, or made and kept. Raises as the job does."""
        identity = self._identity(subject, job)
        name = hash_json(identity)
        path = self.folder / f"{name}.json"
        values = self._read(path, ("where", "rows", "samples", "details"))
        made_now = values is None
        if values is None:
            found = job.run()
            if found.outcomes:
                write_outcomes(path.with_suffix(".safetensors"), found.outcomes)
            rows = [self._row(subject, job, name, found, one) for one in found.figures]
            values = {
                "identity": identity,
                "where": job.where,
                "samples": keys_id(subject.samples),
                "rows": [row.model_dump(mode="json") for row in rows],
                "details": found.details,
            }
            write_json(path, values)
        else:
            rows = check_rows(values["rows"])
        # A name or a role is how this bench calls things: the figures do not depend on it.
        names = {"model": subject.model.name, "role": subject.entry.role,
                 "entry": subject.entry.title}  # fmt: skip
        return Kept(
            name=name,
            where=job.where,
            rows=[row.model_copy(update=names) for row in rows],
            samples=values["samples"],
            has_outcomes=path.with_suffix(".safetensors").is_file(),
            made_now=made_now,
        )

    def outcomes(self, kept: Kept) -> dict[str, NDArray[Any]]:
        """The values of every sample, by metric."""
        return read_outcomes(self.folder / f"{kept.name}.safetensors")

    def compared(self, identity: dict[str, Any]) -> list[dict[str, Any]] | None:
        """The rows of a comparison that was made before."""
        kept = self._read(self._comparison(identity), ("rows",))
        return None if kept is None else list(kept["rows"])

    def keep_comparison(self, identity: dict[str, Any], rows: list[dict[str, Any]]) -> None:
        """Keep the rows of a comparison."""
        write_json(self._comparison(identity), {"identity": identity, "rows": rows})

    def _read(self, path: Path, keys: tuple[str, ...]) -> dict[str, Any] | None:
        """A file of this store; None where it is not there, or damaged, and set aside.

        A measurement whose values of every sample are damaged is damaged too.
        """
        if not path.is_file():
            return None
        outcomes = path.with_suffix(".safetensors")
        try:
            values = read_json(path)
            if outcomes.is_file():
                read_shapes(outcomes)
        except ModelError as error:
            set_aside(outcomes, error)
            return None
        except StorageError as error:
            set_aside(path, error)
            return None
        if not isinstance(values, dict) or not all(key in values for key in keys):
            set_aside(path, f"it lacks {', '.join(keys)}")
            return None
        return values

    def _comparison(self, identity: dict[str, Any]) -> Path:
        return self.folder / f"compare-{hash_json(identity)}.json"

    def _identity(self, subject: Subject, job: Job) -> dict[str, Any]:
        encoder, spec = subject.model.encoder, {}
        for name in encoder.tower_names:
            spec[name] = encoder.tower_id(name)
        towers = {job.where.get(key) for key in ("tower", "query_tower", "gallery_tower")}
        used = {one: spec[one] for one in sorted(str(t) for t in towers) if one in spec}
        where = {key: value for key, value in job.where.items() if key != "prompts"}
        return {
            "rows": ROWS_VERSION,
            "code": job.version,
            "model": subject.model.model_id,
            "towers": used or spec,
            "samples": subject.samples.fingerprint,
            "labels": labels_id(subject.samples),
            "where": where,
            "routes": [route.note for route in subject.routes],
            "seed": [subject.suite.seed, subject.suite.num_bootstrap],
            **job.identity,
        }

    def _row(
        self, subject: Subject, job: Job, name: str, found: Measured, one: dict[str, Any]
    ) -> Row:
        return Row.model_validate(
            {
                **base_row(subject),
                **job.where,
                "note": found.note or None,
                **one,
                "seed": subject.suite.seed,
                "versions": self.versions,
                "measurement": name,
            }
        )


def base_row(subject: Subject) -> dict[str, Any]:
    """The keys that all rows of a subject share."""
    return {
        "model": subject.model.name,
        "model_id": subject.model.model_id,
        "entry": subject.entry.title,
        "dataset": subject.samples.name,
        "split": subject.samples.split,
        "role": subject.entry.role,
    }
