"""Diagnostics of the space on one entry: its modalities, their gaps, their hubs, a picture.

N samples, D embedding dimensions.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from itertools import combinations
from typing import Any

import numpy as np

from terralign.bench.subject import Job, Measured, Subject
from terralign.bench.text import ClassText
from terralign.evaluation.bootstrap import Floats
from terralign.evaluation.diagnostics import (
    alignment,
    effective_rank,
    hubness_skewness,
    k_occurrences,
    linear_separability,
    modality_gap,
    project,
    uniformity,
)
from terralign.evaluation.retrieval import TEXT

VERSION = 2
HUB_DEPTH = 10
NUM_POINTS = 400
"""Points of a modality in the picture."""
MIN_ROWS = 10
"""Modalities of fewer vectors have no separability: there is nothing to validate on."""


def diagnostic_jobs(subject: Subject) -> Iterator[Job]:
    """One job: all modalities together."""
    has_names = subject.model.space is not None and subject.samples.labels is not None
    text = subject.text() if has_names else None
    identity: dict[str, Any] = {"towers": [route.tower for route in subject.routes]}
    yield Job(
        where={"task": "diagnostics", **(text.keys() if text else {})},
        identity=identity | ({"text": text.identity()} if text else {}),
        version=VERSION,
        run=partial(_diagnose, subject, text),
    )


def _diagnose(subject: Subject, text: ClassText | None) -> Measured:
    groups: dict[str, Floats] = {TEXT: text.weights()} if text else {}
    groups |= {route.tower: subject.vectors(route) for route in subject.routes}
    figures: list[dict[str, Any]] = []
    for name, vectors in groups.items():
        figures.append(_one(name, "effective_rank", effective_rank(vectors), vectors))
        if len(vectors) > 1:
            figures.append(_one(name, "uniformity", uniformity(vectors), vectors))
    for (a, one), (b, two) in combinations(groups.items(), 2):
        figures.append(_pair(a, b, "modality_gap", modality_gap(one, two), two))
        if min(len(one), len(two)) >= MIN_ROWS:
            apart = linear_separability(one, two, seed=subject.suite.seed)
            figures.append(_pair(a, b, "linear_separability", apart, two) | {"chance": 0.5})
        if TEXT not in (a, b):
            figures.append(_pair(a, b, "alignment", alignment(one, two), two))
        for query, gallery in ((a, b), (b, a)):
            found = k_occurrences(groups[query], groups[gallery], k=HUB_DEPTH)
            for metric, value in (
                ("hubness_skewness", hubness_skewness(found)),
                ("share_never_found", float(np.mean(found == 0))),
            ):
                figures.append(_pair(query, gallery, metric, value, groups[query]))
    return Measured(
        figures=figures,
        details={"projection": _picture(subject, groups)},
        note=f"cosines; hubness at k = {HUB_DEPTH}",
    )


def _one(name: str, metric: str, value: float, vectors: Floats) -> dict[str, Any]:
    return {"tower": name, "metric": metric, "value": value, "num_samples": len(vectors)}


def _pair(a: str, b: str, metric: str, value: float, vectors: Floats) -> dict[str, Any]:
    return {
        "query_tower": a,
        "gallery_tower": b,
        "metric": metric,
        "value": value,
        "num_samples": len(vectors),
    }


def _picture(subject: Subject, groups: dict[str, Floats]) -> dict[str, Any]:
    """The same samples of every modality on one plane, at most `NUM_POINTS` of each."""
    drawn = np.random.default_rng(subject.suite.seed).permutation(len(subject.samples))
    rows = np.sort(drawn[:NUM_POINTS])
    shown = {name: vectors if name == TEXT else vectors[rows] for name, vectors in groups.items()}
    projected, explained = project(shown)
    labels = subject.samples.labels
    points = {}
    for name, xy in projected.items():
        if name == TEXT:
            names: Any = list(subject.class_names)
            keys = names
        else:
            single = labels is not None and not labels.multi_label
            names = (
                [subject.class_names[int(labels.values[row])] for row in rows]
                if labels is not None and single
                else None
            )
            keys = [subject.samples.keys[row] for row in rows]
        points[name] = {"xy": np.round(xy, 6).tolist(), "labels": names, "keys": keys}
    return {"explained": list(explained), "points": points}
