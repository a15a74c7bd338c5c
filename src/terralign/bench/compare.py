"""Every model against the reference on the same samples: paired bootstrap, moved embeddings."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from terralign.bench.rows import BenchRow
from terralign.bench.store import Kept, Store, ordered
from terralign.bench.subject import Subject
from terralign.encoders.space import RGB
from terralign.evaluate.diagnostics import mean_cosine
from terralign.evaluate.significance import (
    Average,
    Comparison,
    compare_average_precision,
    compare_f1,
    compare_means,
)

VERSION = 1
_AVERAGES: tuple[Average, ...] = ("macro", "micro")


def compare_rows(
    store: Store, own: Kept, reference: Kept, name: str, *, num_bootstrap: int, through: str = ""
) -> list[dict[str, Any]]:
    """Rows of the differences of one measurement to the same one of the model `name`.

    `through`: the reference's tower, where it lacks the one that is compared with it. Nothing is
    compared where the samples or what was asked of them differ.
    """
    if not (own.has_outcomes and reference.has_outcomes) or own.samples != reference.samples:
        return []
    identity = {"code": VERSION, "a": reference.name, "b": own.name, "num": num_bootstrap}
    rows = store.compared(identity)
    if rows is None:
        rows = _compare(store, own, reference, name, 2 * num_bootstrap)
        store.keep_comparison(identity, rows)
    names = {key: own.rows[0][key] for key in ("model", "role", "entry")} if own.rows else {}
    told = f" (the {through} tower of {name})" if through else ""
    return [{**row, **names, "reference": name, "note": f"{row['note']}{told}"} for row in rows]


def _compare(
    store: Store, own: Kept, reference: Kept, name: str, num_bootstrap: int
) -> list[dict[str, Any]]:
    a, b = store.outcomes(reference), store.outcomes(own)
    by_metric = {row["metric"]: row for row in reversed(own.rows)}  # the plain ones come first
    rows = []
    for metric, found in _comparisons(a, b, own.rows[0]["seed"], num_bootstrap):
        row = by_metric.get(metric)
        if row is None:
            continue
        changed = BenchRow.model_validate(
            {
                **row,
                "value": found.difference,
                "low": found.low,
                "high": found.high,
                "p_value": found.p_value,
                "num_samples": found.num_samples,
                "chance": None,
                "reference": name,
                "note": f"{found.value_b:.6g} - {found.value_a:.6g}, paired bootstrap",
            }
        )
        rows.append(ordered(changed))
    return rows


def _comparisons(
    a: dict[str, NDArray[Any]], b: dict[str, NDArray[Any]], seed: int, num: int
) -> Iterator[tuple[str, Comparison]]:
    if "decisions" in a and "decisions" in b:
        labels = b["labels"].astype(np.bool_)
        if a["decisions"].shape == labels.shape and (a["labels"] == labels).all():
            one, two = (outcomes["decisions"].astype(np.bool_) for outcomes in (a, b))
            for average in _AVERAGES:
                yield (
                    f"{average}_f1",
                    compare_f1(one, two, labels, average=average, seed=seed, num_bootstrap=num),
                )
        return
    if "scores" in a and "scores" in b:
        labels = b["labels"].astype(np.bool_)
        if a["scores"].shape == b["scores"].shape and (a["labels"] == labels).all():
            yield (
                "macro_map",
                compare_average_precision(
                    a["scores"], b["scores"], labels, seed=seed, num_bootstrap=num
                ),
            )
        return
    for metric in (key for key in b if key in a):
        if a[metric].shape == b[metric].shape:
            yield metric, compare_means(a[metric], b[metric], seed=seed, num_bootstrap=num)


def moved_rows(store: Store, own: Subject, reference: Subject) -> list[dict[str, Any]]:
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
                one.embeddings.get(one.model.encoder, one.samples, route), dim=-1
            ).numpy()
            for one, route in zip((reference, own), routes, strict=True)
            if route is not None
        ]
        row = BenchRow(
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
        rows = [ordered(row)]
        store.keep_comparison(identity, rows)
    names = {"model": own.model.name, "role": own.entry.role, "entry": own.entry.title}
    told = f"against {reference.model.name}: mean cosine of the same samples before and after"
    return [{**row, **names, "note": told} for row in rows]
