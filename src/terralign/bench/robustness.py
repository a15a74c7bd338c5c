"""Robustness: the zero-shot metrics under each condition of `degrade.py`, on the same samples."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import numpy as np

from terralign.bench.classify import cosines
from terralign.bench.data import Skipped
from terralign.bench.degrade import Condition, Degraded, as_l2a, conditions
from terralign.bench.models import bands_used
from terralign.bench.subject import Job, Measured, Subject, measured
from terralign.bench.text import ClassText
from terralign.datasets.sample import SampleSet, require_labels
from terralign.datasets.subset import limit_samples
from terralign.encoders.space import RGB
from terralign.evaluation.embed import Route

VERSION = 3


def robustness_jobs(subject: Subject) -> Iterator[Job]:
    """A job for each tower and condition."""
    text = subject.text()
    samples = limit_samples(subject.samples, subject.entry.robustness_limit)
    for route in subject.routes:
        spec = subject.model.encoder.input_spec(route.tower)
        is_rgb = route.tower == RGB
        takes_l2a = is_rgb or "sentinel2-l2a" in spec.sensors
        bands = bands_used(route, spec)
        for condition in conditions(route.layout, bands, takes_l2a=takes_l2a, as_picture=is_rgb):
            if condition.kind == "without" and len(bands) == 1:
                continue
            yield Job(
                where={
                    "task": "robustness",
                    "tower": route.tower,
                    "variant": condition.title,
                    **text.keys(),
                },
                identity={
                    "text": text.identity(),
                    "samples": samples.fingerprint,
                    "condition": condition.identity,
                },
                version=VERSION,
                run=partial(_under, subject, text, samples, route, condition),
            )


def _under(
    subject: Subject, text: ClassText, samples: SampleSet, route: Route, condition: Condition
) -> Measured:
    layout = route.layout
    worse = Degraded(samples, condition, seed=subject.suite.seed)
    if condition.kind == "level":
        layout = as_l2a(layout)
        if route.tower == RGB and layout.composite is None:
            raise Skipped("the data lack a band of L2A's RGB recipe")
    changed = Route(tower=route.tower, layout=layout, note=route.note)
    embedded = subject.embeddings.images(subject.model.encoder, worse, changed).vectors.numpy()
    norms = np.linalg.norm(embedded, axis=1, keepdims=True)
    scores = cosines(embedded / norms, text.weights())
    result = subject.score(scores, require_labels(samples).values)
    return measured(result, [route.note, condition.title])
