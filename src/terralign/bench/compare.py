"""Models against each other on the same samples: paired bootstrap, moved embeddings.

A bench compares every model with its reference, and its report the best figure of a column with
the others. Both are made from the values of every sample that a measurement keeps, and are kept
themselves: what was compared is not compared again.
"""

from __future__ import annotations

import logging
from dataclasses import asdict
from pathlib import Path

import torch

from terralign.bench.store import Kept, Store
from terralign.bench.subject import Subject
from terralign.encoders.space import RGB
from terralign.errors import DataError, ModelError
from terralign.evaluation.diagnostics import mean_cosine
from terralign.evaluation.paired import compare_outcomes, compared_metrics
from terralign.evaluation.rows import Row, check_rows
from terralign.evaluation.significance import MIN_SAMPLES, Comparison
from terralign.files import read_json

logger = logging.getLogger(__name__)

VERSION = 2


def compare_rows(
    store: Store, own: Kept, reference: Kept, name: str, *, num_bootstrap: int, through: str = ""
) -> list[Row]:
    """Rows of the differences of one measurement to the same one of the model `name`.

    `num_bootstrap`: of the suite; a comparison takes twice as many. `through`: the reference's
    tower, where it lacks the one that is compared with it. Nothing is compared where the samples or
    what was asked of them differ.
    """
    told = f" (the {through} tower of {name})" if through else ""
    rows = []
    by_metric = _first_rows(own)
    for metric, found in compare_kept(store, reference, own, num_bootstrap).items():
        row = by_metric.get(metric)
        if row is None:
            continue
        note = f"{found.value_b:.6g} - {found.value_a:.6g}, paired bootstrap{told}"
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
        rows.append(row.model_copy(update=changed))
    return rows


class PairedTests:
    """p-values of the differences between any two figures of a bench folder.

    A pair is compared where it is asked for first, and its comparison kept in the folder.
    `num_bootstrap`: of the suite.
    """

    def __init__(self, folder: Path, num_bootstrap: int) -> None:
        self._store, self._num_bootstrap = Store(folder, ""), num_bootstrap
        self._kept: dict[str, Kept | None] = {}

    def __call__(self, one: Row, two: Row) -> float | None:
        """Two-sided; None where the two cannot be compared, or on too few samples.

        Not every figure has the values of its samples: the spread of few-shot's seeds has none.
        """
        kept = [self._measurement(row) for row in (one, two)]
        if kept[0] is None or kept[1] is None or one.metric != two.metric:
            return None
        found = compare_kept(self._store, kept[0], kept[1], self._num_bootstrap)
        own = found.get(str(one.metric))
        return None if own is None else own.reported_p_value

    def _measurement(self, row: Row) -> Kept | None:
        """What was kept of a row's measurement, if its values are those of this very row."""
        if row.measurement is None:
            return None
        if row.measurement not in self._kept:
            self._kept[row.measurement] = _read_kept(self._store.folder, row.measurement)
        kept = self._kept[row.measurement]
        first = None if kept is None else _first_rows(kept).get(str(row.metric))
        return kept if first is not None and first.variant == row.variant else None


def _read_kept(folder: Path, name: str) -> Kept | None:
    path = folder / f"{name}.json"
    if not path.is_file() or not path.with_suffix(".safetensors").is_file():
        return None
    values = read_json(path)
    try:
        return Kept(
            name=name,
            where=values["where"],
            rows=check_rows(values["rows"]),
            samples=values["samples"],
            has_outcomes=True,
            made_now=False,
        )
    except (DataError, KeyError, TypeError):
        logger.warning("%s is no measurement of a bench; it is not compared", path)
        return None


def _first_rows(kept: Kept) -> dict[str, Row]:
    """Metric -> its first row: the plain one, which the values of the samples belong to."""
    return {str(row.metric): row for row in reversed(kept.rows)}


def compare_kept(store: Store, a: Kept, b: Kept, num_bootstrap: int) -> dict[str, Comparison]:
    """Metric -> measurement b against a; empty where they are not of the same samples.

    `num_bootstrap`: of the suite; a comparison takes twice as many. A damaged file of values is
    warned about, and not compared.
    """
    if not (a.has_outcomes and b.has_outcomes and a.rows and b.rows) or a.samples != b.samples:
        return {}
    first, second = sorted((a, b), key=lambda one: one.name)
    identity = {"code": VERSION, "a": first.name, "b": second.name, "num": num_bootstrap}
    rows = store.compared(identity)
    if rows is None:
        try:
            old, new = store.outcomes(first), store.outcomes(second)
        except ModelError as error:
            logger.warning("not compared: %s; delete it with the .json beside it, run again", error)
            return {}
        told = _first_rows(first).keys() & _first_rows(second).keys()
        settings = {"seed": first.rows[0].seed, "num_bootstrap": 2 * num_bootstrap}
        compared = {
            metric: compare_outcomes([old], [new], metric, **settings)
            for metric in compared_metrics(old)
            if metric in told
        }
        rows = [{"metric": metric, **asdict(own)} for metric, own in compared.items() if own]
        store.keep_comparison(identity, rows)
    found = {
        row["metric"]: Comparison(**{k: v for k, v in row.items() if k != "metric"}) for row in rows
    }
    return found if first is a else {metric: own.turned() for metric, own in found.items()}


def moved_rows(store: Store, own: Subject, reference: Subject) -> list[Row]:
    """How far a model moved the RGB embeddings of the reference, where they share a text tower.

    The mean cosine between before and after patching, of the same samples.
    """
    if own.model.space is None or reference.model.space is None:
        return []
    before, after = reference.model.space, own.model.space
    routes = [next((r for r in one.routes if r.tower == RGB), None) for one in (reference, own)]
    if before.clip.text_id() != after.clip.text_id() or None in routes:
        return []
    identity = {
        "code": VERSION,
        "moved": [before.space_id, after.space_id],
        "samples": [reference.samples.fingerprint, own.samples.fingerprint],
    }
    rows = store.compared(identity)
    if rows is None:
        vectors = [
            torch.nn.functional.normalize(
                one.embeddings.get(one.model.encoder, one.samples, route).vectors, dim=-1
            ).numpy()
            for one, route in zip((reference, own), routes, strict=True)
            if route is not None
        ]
        row = Row(
            model=own.model.name,
            model_id=own.model.model_id,
            dataset=own.samples.name,
            split=own.samples.split,
            task="diagnostics",
            tower=RGB,
            metric="mean_cosine",
            value=mean_cosine(*vectors),
            num_samples=len(own.samples),
            seed=own.suite.seed,
            versions=store.versions,
            note="between the embeddings before and after, of the same samples",
        )
        rows = [row.model_dump(mode="json")]
        store.keep_comparison(identity, rows)
    names = {"model": own.model.name, "role": own.entry.role, "entry": own.entry.title}
    told = f"against {reference.model.name}: mean cosine of the same samples before and after"
    return [row.model_copy(update={**names, "note": told}) for row in check_rows(rows)]
