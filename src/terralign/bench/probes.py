"""Probes of frozen embeddings: linear, nearest neighbours, few-shot. No words are needed."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np

from terralign.bench.data import Part, Skipped
from terralign.bench.subject import Job, Measured, Subject, measured
from terralign.evaluation.embed import Route
from terralign.evaluation.probes import (
    DEFAULT_CS,
    DEFAULT_NEIGHBOURS,
    few_shot,
    fit_linear_probe,
    fit_neighbour_probe,
)

VERSION = 4
FEW_SHOT_VERSION = 3


def probe_jobs(subject: Subject, task: str) -> Iterator[Job]:
    """A job for each tower. `task`: linear-probe, knn or few-shot."""
    labels = subject.data.labels
    if labels.multi_label and task != "linear-probe":
        raise Skipped(f"{task} is for one label per sample; this set has several")
    fit, chosen, reported, note = subject.data.fitting_parts()
    identity: dict[str, Any] = {
        "parts": [part.describe() for part in (fit, chosen, reported)],
        "cs": list(DEFAULT_CS),
        "ks": list(DEFAULT_NEIGHBOURS),
    }
    if task == "few-shot":
        identity |= {"shots": list(subject.entry.shots), "seeds": subject.entry.num_seeds}
    for route in subject.routes:
        yield Job(
            where={"task": task, "tower": route.tower, "class_list": labels.class_list},
            identity=identity,
            version=FEW_SHOT_VERSION if task == "few-shot" else VERSION,
            run=partial(_probe, subject, route, task, (fit, chosen, reported), note),
        )


def _probe(
    subject: Subject, route: Route, task: str, parts: tuple[Part, Part, Part], note: str
) -> Measured:
    vectors = [subject.part_vectors(route, part) for part in parts]
    labels = [part.labels for part in parts]
    num_classes = len(subject.class_names)
    note = f"{route.note}. {len(parts[0].rows)} samples: {note}"
    if task == "few-shot":
        return _few_shot(subject, vectors, labels, num_classes, note)
    fit = fit_neighbour_probe if task == "knn" else fit_linear_probe
    probe = fit(vectors[0], labels[0], vectors[1], labels[1], num_classes=num_classes)
    result = subject.score(probe.scores(vectors[2]), labels[2])
    settings = ", ".join(f"{name} = {value:g}" for name, value in probe.chosen.items())
    return measured(
        result,
        [note, settings],
        class_names=subject.class_names,
        details={"chosen": probe.chosen},
    )


def _few_shot(
    subject: Subject, vectors: list[Any], labels: list[Any], num_classes: int, note: str
) -> Measured:
    found = few_shot(
        *(value for pair in zip(vectors, labels, strict=True) for value in pair),
        num_classes=num_classes,
        shots=subject.entry.shots,
        num_seeds=subject.entry.num_seeds,
        seed=subject.suite.seed,
    )
    note = f"{note}. C is chosen on {np.size(labels[1], 0)} labelled validation samples"
    sizes, values = np.bincount(labels[0], minlength=num_classes), []
    for shots, accuracies in found.items():
        num_short = int(np.count_nonzero(sizes < shots))
        short = f". {num_short} of {num_classes} classes have fewer samples" if num_short else ""
        spread = float(np.std(accuracies, ddof=1)) if len(accuracies) > 1 else 0.0
        values.append(
            {
                "metric": "few_shot_top1",
                "value": float(np.mean(accuracies)),
                "low": min(accuracies),
                "high": max(accuracies),
                "num_samples": len(labels[2]),
                "chance": 1 / num_classes,
                "variant": f"{shots} shot{'' if shots == 1 else 's'}",
                "note": f"{note}. Mean of {len(accuracies)} draws; low and high are the lowest and "
                f"highest, the standard deviation is {spread:.4f}{short}",
            }
        )
    per_seed = {str(shots): accuracies for shots, accuracies in found.items()}
    return Measured(values=values, details={"per_seed": per_seed}, note=note)
