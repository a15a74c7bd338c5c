"""Zero-shot classification and multi-label decisions, plain and with hubness corrections.

N samples, K classes, D embedding dimensions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from terralign.bench.data import Part, Skipped
from terralign.bench.hubness import TRANSDUCTIVE, correct, csls_penalty
from terralign.bench.subject import Job, Measured, Subject, measured
from terralign.bench.text import ClassText
from terralign.datasets.sample import labels_id
from terralign.evaluation.bootstrap import Floats
from terralign.evaluation.calibration import (
    ReliabilityCurve,
    choose_thresholds,
    decide,
    fit_platt,
    reliability_curve,
    top_label_curve,
)
from terralign.evaluation.embed import Route
from terralign.evaluation.metrics import f1_metrics
from terralign.evaluation.rows import PLAIN

ZERO_SHOT_VERSION = 4
DECISIONS_VERSION = 3

NO_QUERY_BANK = (
    "qb-norm penalises the scores of some samples and leaves the others as they are, so that "
    "samples cannot be ranked by them within a class, which is what mAP of several labels does"
)

TRANSDUCTIVE_NOTE = "transductive: it sees all reported samples at once"

MAX_CONFUSION = 256
"""A confusion matrix of more classes is not kept."""


def zero_shot_jobs(subject: Subject) -> Iterator[Job]:
    """A job for each tower and variant."""
    text, multi_label = subject.text(), subject.data.labels.multi_label
    for route in subject.routes:
        for variant in subject.variants:
            identity: dict[str, Any] = {"text": text.identity(variant)}
            if variant == "qb-norm" and not multi_label:
                identity["bank"] = subject.data.bank().fingerprint
            yield Job(
                where={
                    "task": "multi-label" if multi_label else "zero-shot",
                    "tower": route.tower,
                    "variant": variant,
                    **text.keys(variant),
                },
                identity=identity,
                version=ZERO_SHOT_VERSION,
                run=partial(_zero_shot, subject, text, route, variant),
            )


def class_scores(
    vectors: Floats,
    weights: Floats,
    variant: str,
    *,
    multi_label: bool,
    bank: Callable[[], Floats],
) -> Floats:
    """Scores (N, K) of vectors (N, D) for weights (K, D): cosines, or what a variant makes of them.

    Of several labels, samples are ranked within a class too: CSLS takes off what its own formula
    takes off each sample, and QB-Norm, which has no such scores, raises `Skipped`. `bank`: the
    vectors of its bank of queries.
    """
    if variant == "qb-norm" and multi_label:
        raise Skipped(NO_QUERY_BANK)
    vectors, weights, penalty = correct(vectors, weights, variant, bank)
    scores = cosines(vectors, weights)
    if penalty is None:
        return scores
    scores = np.asarray(scores.astype(np.float64) - penalty.of(slice(None)))
    if variant == "csls" and multi_label:
        return scores - csls_penalty(weights, vectors).values[:, None]
    return scores


def cosines(vectors: Floats, weights: Floats) -> Floats:
    """(N, K) float32, of L2-normalised rows."""
    return np.asarray(vectors @ weights.T, dtype=np.float32)


def _zero_shot(subject: Subject, text: ClassText, route: Route, variant: str) -> Measured:
    labels, names = subject.data.labels, text.class_names
    scores = class_scores(
        subject.vectors(route),
        text.weights(variant),
        variant,
        multi_label=labels.multi_label,
        bank=lambda: subject.vectors(route, subject.data.bank()),
    )
    result = subject.score(scores, labels.values)
    values: list[dict[str, Any]] = []
    details: dict[str, Any] = {}
    if not labels.multi_label:
        if len(names) <= MAX_CONFUSION:
            confusion = np.zeros((len(names), len(names)), dtype=np.int64)
            np.add.at(confusion, (labels.values, scores.argmax(axis=1)), 1)
            details["confusion"] = confusion.tolist()
        if variant in (PLAIN, "prompt-average"):
            logits = text.space.clip.logit_scale * scores.astype(np.float64)
            chances = np.exp(logits - logits.max(axis=1, keepdims=True))
            curve = top_label_curve(chances / chances.sum(axis=1, keepdims=True), labels.values)
            details["reliability"] = curve.to_json()
            values.append(_error_row(curve, len(scores)))
    if variant in TRANSDUCTIVE:
        result = replace(result, notes=(*result.notes, TRANSDUCTIVE_NOTE))
    notes = subject.notes_of(route)
    return measured(result, notes, class_names=names, values=values, details=details)


def _error_row(curve: ReliabilityCurve, num_samples: int) -> dict[str, Any]:
    return {
        "metric": "expected_calibration_error",
        "value": curve.expected_calibration_error,
        "num_samples": num_samples,
    }


def decision_jobs(subject: Subject) -> Iterator[Job]:
    """Multi-label decisions by thresholds from validation data, a job for each tower."""
    if not subject.data.labels.multi_label:
        raise Skipped("decisions are about samples of several labels; this set has one per sample")
    text = subject.text()
    chosen, reported, note = subject.data.choosing_parts()
    for route in subject.routes:
        yield Job(
            where={"task": "decisions", "tower": route.tower, **text.keys()},
            identity={
                "text": text.identity(),
                "parts": [chosen.describe(), reported.describe()],
                "labels": labels_id(chosen.samples),
            },
            version=DECISIONS_VERSION,
            run=partial(_decisions, subject, text, route, chosen, reported, note),
        )


def _decisions(
    subject: Subject, text: ClassText, route: Route, chosen: Part, reported: Part, note: str
) -> Measured:
    weights, names = text.weights(), text.class_names
    validation = cosines(subject.part_vectors(route, chosen), weights)
    scores = cosines(subject.part_vectors(route, reported), weights)
    right = reported.labels.astype(np.bool_)
    thresholds = choose_thresholds(validation, chosen.labels.astype(np.bool_))
    platt = fit_platt(validation, chosen.labels.astype(np.bool_))
    decisions = decide(scores, thresholds.per_class)
    result = f1_metrics(decisions, right, **subject.slow_resampling)
    overall = f1_metrics(decide(scores, thresholds.overall), right, **subject.slow_resampling)
    curve = reliability_curve(platt.probabilities(scores), right)
    notes = [*subject.notes_of(route), f"thresholds and Platt scaling {note}"]
    num_unseen = thresholds.num_classes_without_positives
    if num_unseen:
        notes.append(
            f"{num_unseen} of {right.shape[1]} classes have no positives there and take the "
            "threshold of all classes"
        )
    one = "one threshold for all classes"
    return measured(
        result,
        notes,
        class_names=names,
        values=[
            *(metric.to_row() | {"variant": one} for metric in overall.metrics),
            _error_row(curve, len(scores)),
        ],
        details={
            "thresholds": {
                "per_class": thresholds.per_class.tolist(),
                "overall": thresholds.overall,
            },
            "platt": {"scale": platt.scale, "bias": platt.bias},
            "reliability": curve.to_json(),
        },
    )
