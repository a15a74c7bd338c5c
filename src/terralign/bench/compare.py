"""Models against each other on the same samples: paired bootstrap, moved embeddings.

A bench compares every model with its reference, and its report the best value of a column with
the others. Both use the values of every sample that a measurement keeps, and are kept themselves:
what was compared is not compared again.
"""

from __future__ import annotations

import logging
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from terralign.bench.measurements import Measurement, read_measurement
from terralign.bench.subject import Job, Measured, Subject
from terralign.encoders.space import RGB
from terralign.errors import ModelError, StorageError
from terralign.evaluation.diagnostics import mean_cosine
from terralign.evaluation.paired import MIN_SAMPLES, Comparison, compare_outcomes, statistics_of
from terralign.evaluation.rows import Row
from terralign.train.stage import Stage, run_stage

logger = logging.getLogger(__name__)

VERSION = 3
MOVED = "mean cosine of the same samples before and after"


def compare_rows(
    own: Measurement,
    reference: Measurement,
    name: str,
    *,
    num_bootstrap: int,
    through: str = "",
    cache: Path | None = None,
) -> list[Row]:
    """Rows of the differences of one measurement to the same one of the model `name`.

    `num_bootstrap`: of the suite; a comparison takes twice as many. `through`: the reference's
    tower, where it lacks the one that is compared with it. Nothing is compared where the samples or
    what was asked of them differ.
    """
    tower = f" (the {through} tower of {name})" if through else ""
    rows = []
    for metric, found in compare(reference, own, num_bootstrap, cache=cache).items():
        note = f"{found.value_b:.6g} - {found.value_a:.6g}, paired bootstrap{tower}"
        if found.reported_p_value is None:
            note += f"; no p-value with fewer than {MIN_SAMPLES} samples"
        changed = {
            "value": found.difference,
            "low": found.low,
            "high": found.high,
            "p_value": found.reported_p_value,
            "num_samples": found.num_samples,
            "chance": None,
            "reference": name,
            "note": note,
        }
        rows.append(own.first_rows[metric].model_copy(update=changed))
    return rows


class PairedTests:
    """p-values of the differences between any two values of a bench folder.

    A pair is compared when it is first asked for, and its comparison kept in the folder.
    `num_bootstrap`: of the suite.
    """

    def __init__(self, folder: Path, num_bootstrap: int) -> None:
        self._folder, self._num_bootstrap = folder / "measurements", num_bootstrap
        self._read: dict[str, Measurement | None] = {}

    def __call__(self, one: Row, two: Row) -> float | None:
        """Two-sided; None where the two cannot be compared, or on too few samples.

        Not every row has the values of its samples: the spread of few-shot's seeds has none.
        """
        a, b = self._measurement(one), self._measurement(two)
        if a is None or b is None or one.metric != two.metric:
            return None
        found = compare(a, b, self._num_bootstrap).get(str(one.metric))
        return None if found is None else found.reported_p_value

    def _measurement(self, row: Row) -> Measurement | None:
        """The row's measurement, if its outcomes are those of this very row."""
        if row.measurement is None:
            return None
        if row.measurement not in self._read:
            self._read[row.measurement] = _read(self._folder / f"{row.measurement}.json")
        found = self._read[row.measurement]
        first = None if found is None else found.first_rows.get(str(row.metric))
        return found if first is not None and first.variant == row.variant else None


def _read(path: Path) -> Measurement | None:
    if not path.is_file() or not path.with_suffix(".safetensors").is_file():
        return None
    try:
        return read_measurement(path)
    except StorageError as error:
        logger.warning("%s; it is not compared", error)
        return None


class _Note(BaseModel):
    """Of a comparison: metric -> what was found."""

    comparisons: dict[str, Comparison]


def compare(
    a: Measurement, b: Measurement, num_bootstrap: int, *, cache: Path | None = None
) -> dict[str, Comparison]:
    """Metric -> measurement b against a; empty where they are not of the same samples.

    `num_bootstrap`: of the suite; a comparison takes twice as many. A damaged file of outcomes is
    warned about, and not compared.
    """
    if not (a.has_outcomes and b.has_outcomes and a.rows and b.rows) or a.samples != b.samples:
        return {}
    first, second = sorted((a, b), key=lambda one: one.path.stem)

    def make() -> dict[str, Any]:
        old, new = first.outcomes, second.outcomes
        settings = {"seed": first.rows[0].seed, "num_bootstrap": 2 * num_bootstrap}
        shared = first.first_rows.keys() & second.first_rows.keys()
        found = {
            metric: compare_outcomes([old], [new], metric, **settings)
            for metric in statistics_of(old)
            if metric in shared
        }
        return {"comparisons": {metric: asdict(one) for metric, one in found.items() if one}}

    stage = Stage.named_by_identity(
        "a comparison",
        {"code": VERSION, "a": first.path.stem, "b": second.path.stem, "num": num_bootstrap},
        first.path.parent,
        prefix="compare-",
        form=_Note,
        cache=cache,
    )
    try:
        note = run_stage(stage, make, renew=True)
    except ModelError as error:
        logger.warning("not compared: %s; delete it with the .json beside it, run again", error)
        return {}
    found = {metric: Comparison(**one) for metric, one in note["comparisons"].items()}
    return found if first is a else {metric: one.turned() for metric, one in found.items()}


def moved_job(own: Subject, reference: Subject) -> Job | None:
    """How far a model moved the RGB embeddings of the reference, where they share a text tower.

    The mean cosine between before and after patching, of the same samples.
    """
    before, after = reference.model.space, own.model.space
    seen = [(one, r) for one in (reference, own) for r in one.routes if r.tower == RGB]
    if before is None or after is None or len(seen) < 2:
        return None
    if before.clip.text_id() != after.clip.text_id():
        return None

    def run() -> Measured:
        vectors = [one.vectors(route) for one, route in seen]
        value = {"value": mean_cosine(*vectors), "num_samples": len(own.samples)}
        return Measured(values=[value], note=f"against {reference.model.name}: {MOVED}")

    return Job(
        where={"task": "diagnostics", "tower": RGB, "metric": "mean_cosine"},
        identity={"moved_from": [reference.model.name, before.space_id]},
        version=VERSION,
        run=run,
    )
