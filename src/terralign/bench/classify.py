"""Zero-shot classification and multi-label decisions, plain and with remedies at query time."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from terralign.bench.hubness import centre, csls_penalty, query_bank_penalty
from terralign.bench.subject import (
    Job,
    Measured,
    Part,
    Skipped,
    Subject,
    figure,
    in_sentences,
    labels_id,
)
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
from terralign.evaluation.metrics import MetricResult, f1_metrics
from terralign.evaluation.rows import PLAIN
from terralign.evaluation.similarity import GalleryPenalty

ZERO_SHOT_VERSION = 4
DECISIONS_VERSION = 3

NO_QUERY_BANK = (
    "qb-norm penalises the scores of some samples and leaves the others as they are, so that "
    "samples cannot be ranked by them within a class, which is what mAP of several labels does"
)

MAX_CONFUSION = 256
"""A confusion matrix of more classes is not kept."""


def zero_shot_jobs(subject: Subject) -> Iterator[Job]:
    """A job for each tower and variant."""
    task = "multi-label" if subject.labels.multi_label else "zero-shot"
    _ = subject.space
    for route in subject.routes:
        for variant in subject.variants:
            identity: dict[str, Any] = {"text": subject.text_identity(variant)}
            if variant == "qb-norm" and not subject.labels.multi_label:
                identity["bank"] = subject.bank().fingerprint
            yield Job(
                where={
                    "task": task,
                    "tower": route.tower,
                    "variant": variant,
                    **subject.text_keys(variant),
                },
                identity=identity,
                version=ZERO_SHOT_VERSION,
                run=lambda route=route, variant=variant: _zero_shot(subject, route, variant),  # type: ignore[misc]
            )


def class_scores(subject: Subject, route: Route, variant: str = PLAIN) -> Floats:
    """Scores (N, K) of the reported samples: cosines, or what a variant makes of them.

    Of several labels, samples are ranked within a class too: CSLS takes off what its own formula
    takes off each sample, and QB-Norm, which has no such scores, raises `Skipped`.
    """
    multi_label = subject.labels.multi_label
    if variant == "qb-norm" and multi_label:
        raise Skipped(NO_QUERY_BANK)
    vectors, weights = subject.vectors(route), subject.class_weights()
    if variant == "prompt-average":
        return cosines(vectors, subject.averaged_weights())
    if variant == "centred":
        return cosines(centre(vectors), centre(weights))
    if variant == "csls":
        scores = _penalised(vectors, weights, csls_penalty(vectors, weights))
        return scores - csls_penalty(weights, vectors).values[:, None] if multi_label else scores
    if variant == "qb-norm":
        queries = subject.vectors(route, subject.bank())
        return _penalised(vectors, weights, query_bank_penalty(vectors, weights, queries))
    return cosines(vectors, weights)


def cosines(vectors: Floats, weights: Floats) -> Floats:
    """(N, K) float32, of L2-normalised rows."""
    return np.asarray(vectors @ weights.T, dtype=np.float32)


def per_class(result: MetricResult, names: tuple[str, ...]) -> dict[str, Any]:
    """Class name -> value and number of samples."""
    return {
        names[one.index]: {"value": one.value, "num_samples": one.num_samples}
        for one in result.per_class
    }


def curve_json(curve: ReliabilityCurve) -> dict[str, Any]:
    """A reliability curve as plain values."""
    return {
        "edges": curve.edges.tolist(),
        "confidence": [None if np.isnan(v) else float(v) for v in curve.confidence],
        "accuracy": [None if np.isnan(v) else float(v) for v in curve.accuracy],
        "count": curve.count.tolist(),
    }


def _zero_shot(subject: Subject, route: Route, variant: str) -> Measured:
    scores = class_scores(subject, route, variant)
    labels, names = subject.labels, subject.class_names
    result = subject.score(scores, labels.values)
    figures = [figure(metric) for metric in result.metrics]
    details: dict[str, Any] = {
        "per_class": per_class(result, names),
        "class_names": list(names),
    }
    if not labels.multi_label:
        if len(names) <= MAX_CONFUSION:
            confusion = np.zeros((len(names), len(names)), dtype=np.int64)
            np.add.at(confusion, (labels.values, scores.argmax(axis=1)), 1)
            details["confusion"] = confusion.tolist()
        if variant in (PLAIN, "prompt-average"):
            logits = subject.space.clip.logit_scale * scores.astype(np.float64)
            chances = np.exp(logits - logits.max(axis=1, keepdims=True))
            curve = top_label_curve(chances / chances.sum(axis=1, keepdims=True), labels.values)
            details["reliability"] = curve_json(curve)
            figures.append(_error_figure(curve, len(scores)))
    note = [*subject.notes_of(route), *result.notes]
    if variant in ("centred", "csls"):
        note.append("transductive: it sees all reported samples at once")
    return Measured(
        figures=figures,
        details=details,
        outcomes=result.outcomes,
        note=in_sentences(note),
    )


def _penalised(vectors: Floats, weights: Floats, penalty: GalleryPenalty) -> Floats:
    scores = cosines(vectors, weights).astype(np.float64)
    return np.asarray(scores - penalty.of(slice(None)))


def _error_figure(curve: ReliabilityCurve, num_samples: int) -> dict[str, Any]:
    return {
        "metric": "expected_calibration_error",
        "value": curve.expected_calibration_error,
        "num_samples": num_samples,
    }


def decision_jobs(subject: Subject) -> Iterator[Job]:
    """Multi-label decisions by thresholds from validation data, a job for each tower."""
    if not subject.labels.multi_label:
        raise Skipped("decisions are about samples of several labels; this set has one per sample")
    _ = subject.space
    chosen, reported, text = subject.choosing_parts()
    for route in subject.routes:
        yield Job(
            where={"task": "decisions", "tower": route.tower, **subject.text_keys()},
            identity={
                "text": subject.text_identity(),
                "parts": [chosen.describe(), reported.describe()],
                "labels": labels_id(chosen.samples),
            },
            version=DECISIONS_VERSION,
            run=lambda route=route: _decisions(subject, route, chosen, reported, text),  # type: ignore[misc]
        )


def _decisions(subject: Subject, route: Route, chosen: Part, reported: Part, text: str) -> Measured:
    weights = subject.class_weights()
    validation = cosines(subject.part_vectors(route, chosen), weights)
    scores = cosines(subject.part_vectors(route, reported), weights)
    right = reported.labels.astype(np.bool_)
    thresholds = choose_thresholds(validation, chosen.labels.astype(np.bool_))
    platt = fit_platt(validation, chosen.labels.astype(np.bool_))
    decisions = decide(scores, thresholds.per_class)
    result = f1_metrics(decisions, right, **subject.dear_resampling)
    overall = f1_metrics(decide(scores, thresholds.overall), right, **subject.dear_resampling)
    curve = reliability_curve(platt.probabilities(scores), right)
    notes = [*subject.notes_of(route), f"thresholds and Platt scaling {text}"]
    num_unseen = thresholds.num_classes_without_positives
    if num_unseen:
        notes.append(
            f"{num_unseen} of {right.shape[1]} classes have no positives there and take the "
            "threshold of all classes"
        )
    one = "one threshold for all classes"
    return Measured(
        figures=[
            *(figure(metric) for metric in result.metrics),
            *(figure(metric, variant=one) for metric in overall.metrics),
            _error_figure(curve, len(scores)),
        ],
        details={
            "per_class": per_class(result, subject.class_names),
            "class_names": list(subject.class_names),
            "thresholds": {
                "per_class": thresholds.per_class.tolist(),
                "overall": thresholds.overall,
            },
            "platt": {"scale": platt.scale, "bias": platt.bias},
            "reliability": curve_json(curve),
        },
        outcomes=result.outcomes,
        note=in_sentences([*notes, *result.notes]),
    )
