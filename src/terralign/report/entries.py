"""The figures of one entry of a bench, from its rows and the details that measurements kept."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from terralign.errors import StorageError
from terralign.evaluation.rows import PLAIN, Row
from terralign.report.diagnostics import (
    MAX_CONFUSION_CLASSES,
    MAX_SERIES,
    MIN_BIN,
    class_figure,
    confusion_figure,
    projection_figure,
    reliability_figure,
    retrieval_figure,
    top_confusions,
)
from terralign.report.document import Plot
from terralign.report.tables import ZERO_SHOT, Table, text_table

Details = Mapping[str, Mapping[str, Any]]
"""Measurement -> its details, as `bench/measurements.py` describes them."""

SCORES = ("top1", "macro_map")
MAX_PROJECTIONS = 4
TEXT, RGB = "text", "rgb"
BETWEEN_SENSORS = "between sensors"
CURVES = {"recall": "recall@k (the same sample)", "map": "mAP@k (the same class)"}


class EntryFigures:
    """The figures of one entry. `rows`: its plain measured values, no differences.

    Raises `StorageError` for damaged details. One number, of a colour and marker, belongs to a
    model's tower in all figures; those of the best classifiers come first.
    """

    def __init__(self, rows: Sequence[Row], details: Details) -> None:
        self._rows, self._details = rows, details
        scores = [row for row in rows if row.metric in SCORES and row.task in ZERO_SHOT]
        self._ranked = sorted(scores, key=lambda row: -(row.value or 0.0))
        best = self._ranked[:MAX_SERIES]
        keys = [(row.model, row.tower) for row in rows if row in best]
        for row in rows:
            towers = (row.tower, row.query_tower, row.gallery_tower)
            keys += [(row.model, tower) for tower in towers if tower not in (None, TEXT)]
        self._numbers = {key: number for number, key in enumerate(dict.fromkeys(keys))}
        self.confusions: Table | None = None
        """The most frequent errors, where a matrix would be too large."""
        try:
            self.plots = tuple(self._plots())
        except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
            entry = rows[0].entry if rows else ""
            raise StorageError(
                f"the details of {entry!r} are damaged ({type(error).__name__}: {error}); delete "
                "its files in measurements/ and run the bench again"
            ) from error

    def _plots(self) -> Iterator[Plot]:
        yield from self._classes()
        yield from self._confusion()
        yield from self._reliability()
        yield from self._retrieval()
        yield from self._projections()

    def _kept(self, row: Row, key: str) -> Any:
        return self._details.get(row.measurement or "", {}).get(key)

    def _named(self, row: Row) -> str:
        """Model and tower, and the prompts where they alone tell two rows apart."""
        same = {
            (other.prompts, other.prompts_hash)
            for other in self._rows
            if (other.model, other.tower, other.task, other.metric)
            == (row.model, row.tower, row.task, row.metric)
        }
        name = f"{row.model}, {row.tower}"
        return f"{name}, {row.prompts}" if len(same) > 1 else name

    def _classes(self) -> Iterator[Plot]:
        best = self._ranked[:MAX_SERIES]
        values: dict[str, dict[str, float | None]] = {}
        numbers: dict[str, int] = {}
        for row in self._rows:
            if row in best and (known := self._kept(row, "per_class")):
                name = self._named(row)
                values[name] = {label: _number(one["value"]) for label, one in known.items()}
                numbers[name] = self._numbers[row.model, row.tower]
        if any(v is not None for classes in values.values() for v in classes.values()):
            what = "average precision" if best[0].metric == "macro_map" else "accuracy"
            most = f", the {len(best)} best of {len(self._ranked)}"
            yield Plot(
                name="classes",
                caption=f"Zero-shot {what} of each class"
                + (f"{most}." if len(self._ranked) > len(best) else "."),
                draw=partial(class_figure, values, numbers),
            )

    def _confusion(self) -> Iterator[Plot]:
        """Of the best classifier."""
        for row in self._ranked[:1]:
            if not self._kept(row, "confusion"):
                continue
            counts = np.array(self._kept(row, "confusion"), dtype=np.int64)
            names = [str(name) for name in self._kept(row, "class_names")]
            if counts.shape != (len(names), len(names)):
                raise ValueError(f"{counts.shape} counts of {len(names)} classes")
            caption = f"Zero-shot, {row.model}, {row.tower}"
            if len(names) <= MAX_CONFUSION_CLASSES:
                yield Plot(
                    name="confusion",
                    caption=f"{caption}: confusion matrix, per cent of each true class.",
                    draw=partial(confusion_figure, counts, names),
                )
                continue
            self.confusions = text_table(
                f"{caption}: its most frequent errors",
                ("true class", "predicted class", "times", "of the true class, %"),
                [
                    (true, predicted, str(times), f"{100 * share:.1f}")
                    for true, predicted, times, share in top_confusions(counts, names)
                ],
                folded=False,
            )

    def _reliability(self) -> Iterator[Plot]:
        about = {
            "zero-shot": "the softmax of all classes, by the model's own scale",
            "decisions": "each class on its own, after Platt scaling on validation data",
        }
        for task, what in about.items():
            curves: dict[str, dict[str, NDArray[Any]]] = {}
            numbers: dict[str, int] = {}
            for row in self._rows:
                if row.task != task or row.metric != "expected_calibration_error":
                    continue
                if (kept := self._kept(row, "reliability")) and len(curves) < MAX_SERIES:
                    curves[name := self._named(row)] = _reliability_curve(kept)
                    numbers[name] = self._numbers[row.model, row.tower]
            if curves:
                yield Plot(
                    name=f"reliability-{task}",
                    caption=f"Reliability: {what}. Bins of fewer than {MIN_BIN} predictions are "
                    "pale.",
                    draw=partial(reliability_figure, curves, numbers),
                )

    def _retrieval(self) -> Iterator[Plot]:
        """Curves by k: from text, to text, from RGB, to RGB; between sensors without any of these.

        Of each pair recall, or mAP where it has none: class names are of no one sample.
        """
        kept = [row for row in self._rows if row.task == "retrieval" and row.metric is not None]
        with_recall = {row.towers for row in kept if str(row.metric).startswith("recall@")}
        worded = {(row.model, row.prompts) for row in kept if row.prompts}
        several = len(worded) > len({model for model, _ in worded})
        parts: dict[tuple[str, str], dict[str, dict[int, Row]]] = {}
        numbers: dict[str, int] = {}
        for row in kept:
            metric, _, k = str(row.metric).partition("@")
            wanted = "recall" if row.towers in with_recall else "map"
            if metric != wanted or not k.isdigit() or _is_beyond(row, int(k)):
                continue
            more = f", prompts {row.prompts}" if several and row.prompts else ""
            name = f"{row.model}, {row.towers}{more}"
            numbers[name] = self._numbers[row.model, _sensor_side(row)]
            parts.setdefault((_part(row), metric), {}).setdefault(name, {})[int(k)] = row
        sides = [one for one in parts if one[0] != BETWEEN_SENSORS] or list(parts)
        for number, (part, metric) in enumerate(sides, start=1):
            curves = parts[part, metric]
            shown = dict(list(curves.items())[:MAX_SERIES])
            more = f"; {len(curves) - len(shown)} more pairs are in the table"
            label = "mAP@k" if metric == "map" else "recall@k"
            yield Plot(
                name=f"retrieval-{number}",
                caption=f"Retrieval {part}: {CURVES[metric]} against k, with 95 % intervals"
                + (f"{more}." if len(curves) > len(shown) else "."),
                draw=partial(retrieval_figure, shown, numbers, label),
            )

    def _projections(self) -> Iterator[Plot]:
        found = {
            str(row.measurement): (row, kept)
            for row in self._rows
            if row.task == "diagnostics" and (kept := self._kept(row, "projection"))
        }
        left_out = len(found) - MAX_PROJECTIONS
        more = f"; {left_out} more models have one" if left_out > 0 else ""
        for number, (row, kept) in enumerate([*found.values()][:MAX_PROJECTIONS], start=1):
            points = {
                name: np.array(one["xy"], dtype=np.float64).reshape(-1, 2)
                for name, one in kept["points"].items()
            }
            first, second = (float(share) for share in kept["explained"])
            prompts = f", prompts {row.prompts}" if row.prompts else ""
            if len(points) > 1:
                yield Plot(
                    name=f"projection-{number}",
                    caption=f"The space of {row.model}{prompts}: {', '.join(points)} on their "
                    f"common plane{more}.",
                    draw=partial(projection_figure, points, (first, second)),
                )


def wanted_measurements(rows: Sequence[Row]) -> list[str]:
    """The measurements whose details the figures and examples of these rows need."""
    tasks = (*ZERO_SHOT, "decisions", "diagnostics", "retrieval")
    names = [row.measurement for row in plain_rows(rows) if row.task in tasks]
    return list(dict.fromkeys(name for name in names if name is not None))


def plain_rows(rows: Sequence[Row]) -> list[Row]:
    """Measured values without corrections, no differences."""
    return [
        row
        for row in rows
        if row.status == "measured" and row.reference is None and row.variant == PLAIN
    ]


def _number(value: Any) -> float | None:
    return None if value is None else float(value)


def _reliability_curve(kept: Mapping[str, Any]) -> dict[str, NDArray[Any]]:
    curve: dict[str, NDArray[Any]] = {
        key: np.array([np.nan if v is None else v for v in kept[key]], dtype=np.float64)
        for key in ("edges", "confidence", "accuracy")
    }
    curve["count"] = np.array(kept["count"], dtype=np.int64)
    bins = len(curve["count"])
    if [len(one) for one in curve.values()] != [bins + 1, bins, bins, bins]:
        raise ValueError("bins of a reliability curve do not agree")
    return curve


def _is_beyond(row: Row, k: int) -> bool:
    """Whether k takes in the whole gallery, so that the value means nothing.

    Between images there are as many in the gallery as queries; to find text or by it there are not,
    but recall by chance is 1 then.
    """
    of_images = TEXT not in (row.query_tower, row.gallery_tower)
    whole = of_images and k >= (row.num_samples or 0) > 1
    return whole or (str(row.metric).startswith("recall@") and (row.chance or 0.0) >= 1)


def _sensor_side(row: Row) -> str | None:
    """The tower that a pair's line has its colour from: no text, and RGB only beside text."""
    query, gallery = row.query_tower, row.gallery_tower
    return query if gallery == TEXT or (gallery == RGB and query != TEXT) else gallery


def _part(row: Row) -> str:
    if row.query_tower == TEXT:
        return "from text"
    if row.gallery_tower == TEXT:
        return "to text"
    if row.query_tower == RGB:
        return "from rgb"
    return "to rgb" if row.gallery_tower == RGB else BETWEEN_SENSORS
