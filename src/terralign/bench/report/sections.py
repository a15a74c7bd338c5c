"""The figures of a bench's report, entry by entry, from its rows and the details it kept."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from terralign.bench.report.figures import (
    MAX_CONFUSION_CLASSES,
    MAX_SERIES,
    class_bar_figure,
    confusion_figure,
    top_confusions,
)
from terralign.errors import StorageError
from terralign.evaluation.calibration import ReliabilityCurve
from terralign.evaluation.canvas import Theme
from terralign.evaluation.diagnostic_figures import (
    MIN_BIN,
    projection_figure,
    reliability_figure,
    retrieval_figure,
)
from terralign.evaluation.diagnostics import Projection
from terralign.evaluation.metrics import Floats, Metric, MetricResult
from terralign.evaluation.page import Picture
from terralign.evaluation.rows import PLAIN, Row

Details = Mapping[str, Mapping[str, Any]]
"""Measurement -> its details, as `bench/rows.py` describes them."""

SCORES = ("top1", "macro_map")
MAX_PROJECTIONS = 4
TEXT = "text"
RGB = "rgb"
BETWEEN_SENSORS = "between sensors"
CURVES = {"recall": "recall@k (the same sample)", "map": "mAP@k (the same class)"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Confusions:
    """The most frequent errors where a matrix would be too large: true, predicted, times, share."""

    caption: str
    lines: tuple[tuple[str, str, int, float], ...]


def entry_pictures(rows: Sequence[Row], details: Details) -> tuple[list[Picture], list[Confusions]]:
    """The figures of one entry. `rows`: its plain measured figures, no differences.

    Raises `StorageError` for damaged details.
    """
    try:
        ranked = _ranked(rows)
        places = _places(rows, ranked)
        confusions: list[Confusions] = []
        pictures = [
            *_class_bars(rows, ranked, details),
            *_confusion(ranked[:1], details, confusions),
            *_reliability(rows, details, places),
            *_retrieval(rows, places),
            *_projections(rows, details),
        ]
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        entry = rows[0].entry if rows else ""
        raise StorageError(
            f"the details of {entry!r} are damaged ({type(error).__name__}: {error}); delete its "
            "files in measurements/ and run the bench again"
        ) from error
    return pictures, confusions


def wanted_measurements(rows: Sequence[Row]) -> list[str]:
    """The measurements whose details the figures and examples of these rows need."""
    tasks = ("zero-shot", "multi-label", "decisions", "diagnostics", "retrieval")
    names = [
        row.measurement for row in rows
        if row.task in tasks and row.variant == PLAIN and row.reference is None
    ]  # fmt: skip
    return list(dict.fromkeys(name for name in names if name is not None))


def _series(row: Row) -> str:
    return f"{row.model}, {row.tower}"


def _ranked(rows: Sequence[Row]) -> list[Row]:
    """The main figure of each model and tower, the best first."""
    scores = [
        row for row in rows if row.metric in SCORES and row.task in ("zero-shot", "multi-label")
    ]
    return sorted(scores, key=lambda row: -(row.value or 0.0))


def _places(rows: Sequence[Row], ranked: Sequence[Row]) -> dict[tuple[str, str], int]:
    """(model, tower) -> the number of its colour: those of the figure of classes come first."""
    best = ranked[:MAX_SERIES]
    keys = [(row.model, str(row.tower)) for row in rows if row in best]
    keys += [
        (row.model, tower)
        for row in rows
        for tower in (row.tower, row.query_tower, row.gallery_tower)
        if tower is not None and tower != TEXT
    ]
    num_best = sum(row in best for row in rows)
    others = [key for key in dict.fromkeys(keys) if key not in keys[:num_best]]
    return {key: keys.index(key) for key in keys[:num_best]} | {
        key: num_best + number for number, key in enumerate(others)
    }


def _class_bars(rows: Sequence[Row], ranked: Sequence[Row], details: Details) -> Iterator[Picture]:
    best = ranked[:MAX_SERIES]
    chosen = [row for row in rows if row in best]  # so that colours are those of other figures
    values = {}
    for row in chosen:
        known = details.get(row.measurement or "", {}).get("per_class")
        if known:
            values[_named(row, ranked)] = {name: one["value"] for name, one in known.items()}
    if not any(v is not None for classes in values.values() for v in classes.values()):
        return
    most = len(ranked) > len(chosen)
    what = "average precision" if chosen[0].metric == "macro_map" else "accuracy"
    yield Picture(
        name="classes",
        caption=f"Zero-shot {what} of each class"
        + (f", the {len(chosen)} best of {len(ranked)}." if most else "."),
        draw=lambda theme: class_bar_figure(values, theme=theme),
    )


def _confusion(
    ranked: Sequence[Row], details: Details, tables: list[Confusions]
) -> Iterator[Picture]:
    for row in ranked:
        kept = details.get(row.measurement or "", {})
        if not kept.get("confusion"):
            continue
        counts = np.array(kept["confusion"], dtype=np.int64)
        names = [str(name) for name in kept["class_names"]]
        if counts.shape != (len(names), len(names)):
            raise ValueError(f"{counts.shape} counts of {len(names)} classes")
        caption = f"Zero-shot, {_series(row)}"
        if len(names) > MAX_CONFUSION_CLASSES:
            lines = tuple(top_confusions(counts, names))
            tables.append(Confusions(caption=f"{caption}: its most frequent errors.", lines=lines))
            continue
        yield Picture(
            name="confusion",
            caption=f"{caption}: confusion matrix, per cent of each true class.",
            draw=lambda theme, c=counts, n=names: confusion_figure(c, n, theme=theme),  # type: ignore[misc]
        )


def _reliability(
    rows: Sequence[Row], details: Details, places: Mapping[tuple[str, str], int]
) -> Iterator[Picture]:
    about = {
        "zero-shot": "the softmax of all classes, by the model's own scale",
        "decisions": "each class on its own, after Platt scaling on validation data",
    }
    for task, what in about.items():
        curves: dict[str, ReliabilityCurve] = {}
        own: dict[str, int] = {}
        for row in rows:
            if row.task != task or row.metric != "expected_calibration_error":
                continue
            kept = details.get(row.measurement or "", {}).get("reliability")
            if kept and len(curves) < MAX_SERIES:
                name = _named(row, rows)
                curves[name], own[name] = _curve(kept), places[row.model, str(row.tower)]
        if curves:
            pale = any(((c.count > 0) & (c.count < MIN_BIN)).any() for c in curves.values())
            yield Picture(
                name=f"reliability-{task}",
                caption=f"Reliability: {what}."
                + (f" Bins of fewer than {MIN_BIN} predictions are pale." if pale else ""),
                draw=_drawer(partial(reliability_figure, places=own), curves),
            )


def _curve(kept: Mapping[str, Any]) -> ReliabilityCurve:
    def floats(key: str) -> Any:
        return np.array([np.nan if v is None else v for v in kept[key]], dtype=np.float64)

    curve = ReliabilityCurve(
        edges=floats("edges"),
        confidence=floats("confidence"),
        accuracy=floats("accuracy"),
        count=np.array(kept["count"], dtype=np.int64),
    )
    bins = len(curve.count)
    if (len(curve.edges), len(curve.confidence), len(curve.accuracy)) != (bins + 1, bins, bins):
        raise ValueError("bins of a reliability curve do not agree")
    return curve


def _retrieval(rows: Sequence[Row], places: Mapping[tuple[str, str], int]) -> Iterator[Picture]:
    """Curves by k: from text, to text, from RGB, to RGB; between sensors where there are none.

    Of each pair recall, or mAP where it has none: class names are of no one sample.
    """
    kept = [row for row in rows if row.task == "retrieval" and row.metric is not None]
    with_recall = {_pair(row) for row in kept if str(row.metric).startswith("recall@")}
    worded = [row for row in kept if row.prompts]
    several = len({(r.model, r.prompts) for r in worded}) > len({r.model for r in worded})
    parts: dict[tuple[str, str], dict[str, list[Metric]]] = {}
    colors: dict[str, int] = {}
    for row in kept:
        pair = _pair(row)
        metric = "recall" if pair in with_recall else "map"
        if str(row.metric).partition("@")[0] != metric or row.value is None or _is_beyond(row):
            continue
        own = Metric(
            name=str(row.metric),
            value=row.value,
            low=row.value if row.low is None else row.low,
            high=row.value if row.high is None else row.high,
            num_samples=row.num_samples or 0,
            chance=row.chance or 0.0,
        )
        more = f", prompts {row.prompts}" if several and row.prompts else ""
        name = f"{row.model}, {pair[0]} → {pair[1]}{more}"
        colors[name] = places[row.model, _sensor(*pair)]
        parts.setdefault((_part(*pair), metric), {}).setdefault(name, []).append(own)
    sides = [one for one in parts if one[0] != BETWEEN_SENSORS] or list(parts)
    for number, (part, metric) in enumerate(sides):
        found = {name: MetricResult(metrics=tuple(o)) for name, o in parts[part, metric].items()}
        shown = dict(list(found.items())[:MAX_SERIES])
        left_out = len(found) - len(shown)
        yield Picture(
            name=f"retrieval-{number + 1}",
            caption=f"Retrieval {part}: {CURVES[metric]} against k, with 95 % intervals"
            + (f"; {left_out} more pairs are in the table." if left_out else "."),
            draw=_drawer(partial(retrieval_figure, metric=metric, places=colors), shown),
        )


def _is_beyond(row: Row) -> bool:
    """Whether a figure@k is of a k that takes in the whole gallery, and so says nothing.

    Between images there are as many in the gallery as queries; to find text or by it there are not,
    but recall by chance is 1 then.
    """
    k = str(row.metric).partition("@")[2]
    whole = k.isdigit() and TEXT not in _pair(row) and int(k) >= (row.num_samples or 0) > 1
    return whole or (str(row.metric).startswith("recall@") and (row.chance or 0.0) >= 1)


def _pair(row: Row) -> tuple[str, str]:
    return str(row.query_tower), str(row.gallery_tower)


def _sensor(query: str, gallery: str) -> str:
    """The tower that a pair's line has its colour from: no text, and RGB only beside text."""
    return query if gallery == TEXT or (gallery == RGB and query != TEXT) else gallery


def _part(query: str, gallery: str) -> str:
    if query == TEXT:
        return "from text"
    if gallery == TEXT:
        return "to text"
    if query == RGB:
        return "from rgb"
    return "to rgb" if gallery == RGB else BETWEEN_SENSORS


def _projections(rows: Sequence[Row], details: Details) -> Iterator[Picture]:
    found: dict[str, tuple[Row, Projection]] = {}
    for row in rows:
        kept = details.get(row.measurement or "", {}).get("projection")
        if row.task != "diagnostics" or not kept or row.measurement in found:
            continue
        points: dict[str, Floats] = {
            name: np.array(one["xy"], dtype=np.float64).reshape(-1, 2)
            for name, one in kept["points"].items()
        }
        first, second = (float(share) for share in kept["explained"])
        if len(points) > 1:
            plane = Projection(points=points, explained=(first, second))
            found[str(row.measurement)] = row, plane
    for number, (row, plane) in enumerate(list(found.values())[:MAX_PROJECTIONS]):
        more = f"; {len(found) - MAX_PROJECTIONS} more models have one"
        prompts = f", prompts {row.prompts}" if row.prompts else ""
        yield Picture(
            name=f"projection-{number + 1}",
            caption=f"The space of {row.model}{prompts}: {', '.join(plane.points)} on their common "
            f"plane{more if len(found) > MAX_PROJECTIONS else ''}.",
            draw=_drawer(projection_figure, plane),
        )


def _named(row: Row, among: Sequence[Row]) -> str:
    """Model and tower, and the prompts where they alone tell two rows apart."""
    same = {
        (other.prompts, other.prompts_hash) for other in among
        if (other.model, other.tower, other.task, other.metric)
        == (row.model, row.tower, row.task, row.metric)
    }  # fmt: skip
    return f"{_series(row)}, {row.prompts}" if len(same) > 1 else _series(row)


def _drawer(figure: Callable[..., Figure], value: Any) -> Callable[[Theme], Figure]:
    return lambda theme: figure(value, theme=theme)
