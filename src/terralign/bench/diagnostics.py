"""Diagnostics of the space on one entry: its modalities, their gaps, their hubs, a projection.

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
"""Points of a modality in the projection."""
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
    values: list[dict[str, Any]] = []

    def add(metric: str, value: float, num_samples: int, *towers: str, **more: float) -> None:
        keys = ("tower",) if len(towers) == 1 else ("query_tower", "gallery_tower")
        where = dict(zip(keys, towers, strict=True))
        row = {"metric": metric, "value": value, "num_samples": num_samples}
        values.append({**where, **row, **more})

    for name, vectors in groups.items():
        add("effective_rank", effective_rank(vectors), len(vectors), name)
        if len(vectors) > 1:
            add("uniformity", uniformity(vectors), len(vectors), name)
    for (a, one), (b, two) in combinations(groups.items(), 2):
        add("modality_gap", modality_gap(one, two), len(two), a, b)
        if min(len(one), len(two)) >= MIN_ROWS:
            apart = linear_separability(one, two, seed=subject.suite.seed)
            add("linear_separability", apart, len(two), a, b, chance=0.5)
        if TEXT not in (a, b):
            add("alignment", alignment(one, two), len(two), a, b)
        for query, gallery in ((a, b), (b, a)):
            found = k_occurrences(groups[query], groups[gallery], k=HUB_DEPTH)
            never, num_queries = float(np.mean(found == 0)), len(groups[query])
            add("hubness_skewness", hubness_skewness(found), num_queries, query, gallery)
            add("share_never_found", never, num_queries, query, gallery)
    return Measured(
        values=values,
        details={"projection": _projection(subject, groups)},
        note=f"cosines; hubness at k = {HUB_DEPTH}",
    )


def _projection(subject: Subject, groups: dict[str, Floats]) -> dict[str, Any]:
    """The same samples of every modality on one plane, at most `NUM_POINTS` of each."""
    drawn = np.random.default_rng(subject.suite.seed).permutation(len(subject.samples))
    rows = np.sort(drawn[:NUM_POINTS])
    projected, explained = project(
        {name: vectors if name == TEXT else vectors[rows] for name, vectors in groups.items()}
    )
    points = {name: {"xy": np.round(xy, 6).tolist()} for name, xy in projected.items()}
    return {"explained": list(explained), "points": points}
