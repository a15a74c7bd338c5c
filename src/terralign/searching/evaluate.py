"""How well a search finds what polygons show: `evaluate_search`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from terralign.encoders.space import EmbeddingSpace
from terralign.encoders.tables import Shown, Table
from terralign.errors import DataError, counted, nearest, shown
from terralign.evaluation.hits import hit_metrics
from terralign.evaluation.metrics import Metric
from terralign.index.filters import Filters, check_polygon
from terralign.index.search import Index
from terralign.index.truth import Truth, covers, read_truth

KS = (10, 20, 50)

_OVERLAPPING = (
    "Windows overlap, so that hits repeat one another and the intervals are too narrow; "
    "collapse= counts places."
)


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluatedText:
    """What the search for one text found of one class. `metrics`: `precision@k`, `recall@k`."""

    text: str
    class_name: str
    num_relevant: int
    num_hits: int
    metrics: tuple[Metric, ...]


@dataclass(frozen=True, kw_only=True, slots=True, repr=False)
class SearchEvaluation(Shown):
    """The metrics of a search for several texts over one index.

    `num_searched`: windows that were searched. `min_cover`: the share of a window that polygons
    must cover. `notes`: what a reader has to know.
    """

    truth: str
    space_id: str
    towers: tuple[str, ...]
    num_searched: int
    min_cover: float
    texts: tuple[EvaluatedText, ...]
    notes: tuple[str, ...] = ()

    def _title(self) -> str:
        return (
            f"{self.truth}: {counted(self.num_searched, 'window')} searched, towers: "
            f"{', '.join(self.towers)}; relevant: at least {100 * self.min_cover:g} % covered"
        )

    def table(self) -> Table:
        """Per cent, with exact 95 % intervals, what chance gives, and the number behind each."""
        lines = [(one, metric) for one in self.texts for metric in one.metrics]
        return Table.of_rows(
            len(lines),
            [
                ("text", lambda row: lines[row][0].text),
                ("class", lambda row: lines[row][0].class_name),
                ("metric", lambda row: lines[row][1].name),
                ("value", lambda row: f"{100 * lines[row][1].value:.1f} %"),
                ("interval", lambda row: (
                    f"[{100 * lines[row][1].low:.1f}, {100 * lines[row][1].high:.1f}]")),
                ("chance", lambda row: f"{100 * lines[row][1].chance:.1f} %"),
                ("of", lambda row: f"n = {lines[row][1].num_samples:,}"),
            ],
            max_rows=len(lines),
        )  # fmt: skip

    def to_json(self) -> dict[str, Any]:
        """Plain values, as `terralign evaluate --truth --json` prints them; shares are 0-1."""
        return {
            "truth": self.truth,
            "space_id": self.space_id,
            "towers": list(self.towers),
            "num_searched": self.num_searched,
            "min_cover": self.min_cover,
            "texts": [
                {
                    "text": one.text,
                    "class": one.class_name,
                    "num_relevant": one.num_relevant,
                    "num_hits": one.num_hits,
                    "metrics": {metric.name: metric.value for metric in one.metrics},
                    "intervals": {metric.name: [metric.low, metric.high] for metric in one.metrics},
                    "chance": {metric.name: metric.chance for metric in one.metrics},
                }
                for one in self.texts
            ],
            "notes": list(self.notes),
        }


def evaluate_search(
    space: EmbeddingSpace,
    index: Index,
    truth: str | Path | Mapping[str, Any] | Truth,
    texts: str | Mapping[str, str | Sequence[str]] | None = None,
    *,
    ks: Sequence[int] = KS,
    min_cover: float = 0.5,
    class_property: str = "class",
    **search: Any,
) -> SearchEvaluation:
    """`precision@k` and `recall@k` of searches against polygons of what is really there.

    `truth`: a GeoJSON file of polygons, whose property `class_property` names their class (see
    `read_truth`), or class -> shapely geometry in degrees. `texts`: class -> the text, or several,
    to search for; a text alone where there is one class; by default the names of the classes.
    A window is relevant where polygons of the class cover at least `min_cover` of its area. Windows
    that no polygon covers count as wrong: give `bbox` or `polygon` where only part was mapped.
    `search`: any other setting of `Index.search`.

    Intervals are exact 95 % ones, chance is that of a random order (see `hit_metrics`). Raises
    `DataError` for polygons that are not, an unknown class, or one that no window is covered by.
    """
    if not ks:
        raise DataError("ks is empty; give at least one number of hits to judge")
    if not 0 < min_cover <= 1:
        raise DataError(f"min_cover is {min_cover!r}; expected a share above 0, at most 1")
    if isinstance(truth, str | Path):
        truth = read_truth(truth, class_property=class_property)
    elif not isinstance(truth, Truth):
        shapes = {label: check_polygon(one, f"truth {label!r}") for label, one in truth.items()}
        truth = Truth(name="truth", shapes=shapes)
    wanted = _pairs(texts, truth)
    filters = {name: one for name, one in search.items() if name in Filters.__slots__}
    chosen = {label: truth.shapes[label] for label, _ in wanted}
    numbers, shares = covers(index, chosen, **filters)
    of_label = {label: share >= min_cover for label, share in shares.items()}
    for label, mask in of_label.items():
        if not mask.any():
            raise DataError(_uncovered(label, shares[label], min_cover, index, truth))
    found = []
    for label, text in wanted:
        hits = index.search(space, text, k=max(ks), **search)
        rows = np.array([index.row_of(hit.key) for hit in hits], dtype=np.int64)
        relevant = of_label[label][np.searchsorted(numbers, rows)]
        num_relevant = int(np.count_nonzero(of_label[label]))
        found.append(
            EvaluatedText(
                text=text,
                class_name=label,
                num_relevant=num_relevant,
                num_hits=len(hits),
                metrics=hit_metrics(
                    relevant, num_relevant=num_relevant, num_searched=len(numbers), ks=ks
                ),
            )
        )
    return SearchEvaluation(
        truth=truth.name,
        space_id=space.space_id,
        towers=tuple(index.towers_of(numbers)),
        num_searched=len(numbers),
        min_cover=min_cover,
        texts=tuple(found),
        notes=_notes(index, found, max(ks), collapsed=bool(search.get("collapse"))),
    )


def _uncovered(
    label: str, shares: NDArray[np.float64], min_cover: float, index: Index, truth: Truth
) -> str:
    largest = 100 * float(shares.max(initial=0))
    return (
        f"{truth.name}: no window of {shown(index.folder)} is covered to {100 * min_cover:g} % by "
        f"class {label!r} ({largest:.1f} % at most); "
    ) + (
        "give a smaller share (min_cover=)"
        if largest
        else "its polygons lie elsewhere, or the windows there were filtered out"
    )


def _pairs(
    texts: str | Mapping[str, str | Sequence[str]] | None, truth: Truth
) -> list[tuple[str, str]]:
    """(class, text) pairs."""
    shapes = truth.shapes
    if texts is None:
        return [(label, label) for label in shapes]
    if isinstance(texts, str):
        if len(shapes) > 1:
            raise DataError(
                f"{truth.name} has the classes {', '.join(shapes)}; say which one {texts!r} is for"
            )
        texts = dict.fromkeys(shapes, texts)
    pairs = []
    for label, several in texts.items():
        if label not in shapes:
            raise DataError(f"{truth.name} has no class {label!r}; {nearest(label, shapes)}")
        pairs += [(label, one) for one in ([several] if isinstance(several, str) else several)]
    if not pairs:
        raise DataError("there is no text to search for; give at least one")
    return pairs


def _notes(
    index: Index, found: Sequence[EvaluatedText], k: int, *, collapsed: bool
) -> tuple[str, ...]:
    notes = [
        f"{one.text!r} has {counted(one.num_hits, 'hit')} of the {k} wanted; precision is of these."
        for one in found
        if one.num_hits < k
    ]
    if not collapsed and any(one.stride_px < one.window_px for one in index.facts):
        notes.append(_OVERLAPPING)
    if collapsed:
        notes.append("Places are counted: recall is of all windows, those left out included.")
    return tuple(notes)
