"""What a bench writes: rows, one figure each, and the plain table of them.

Every row has every key of `BenchRow`, None where it has no meaning, so that the rows are one table
(`results.json`, `results.parquet`). What is no single figure (per class, confusion, reliability,
points of a projection, example retrievals) is in `measurements/<measurement>.json` under `details`:

- `per_class`: class name -> {"value", "num_samples"}
- `class_names`, and `confusion`: (K, K) counts, row = true class, column = predicted class
- `reliability`: {"edges", "confidence", "accuracy", "count"}, None in empty bins
- `thresholds`: {"per_class", "overall"}, `platt`: {"scale", "bias"}
- `examples`: per query {"query", "query_index", "label", "results": [{"key", "index", "cosine",
  "right"}]}; for text queries `query` is the class name or caption and `query_index` is None
- `sensors`: of retrieval, tower -> the sensor whose pixels it saw
- `projection`: {"explained", "points": modality -> {"xy", "labels", "keys"}}
- `chosen`: hyper-parameter -> value chosen on validation data
- `per_seed`: shots -> values of the seeds
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from terralign.errors import DataError

Task = Literal[
    "zero-shot", "multi-label", "retrieval", "linear-probe", "knn", "few-shot", "robustness",
    "decisions", "diagnostics",
]  # fmt: skip
Status = Literal["measured", "skipped", "failed"]

SPREAD_METRICS = frozenset({"few_shot_top1"})
"""Whose low and high are the lowest and highest of several seeds, no bootstrap interval."""

PLAIN = "plain"
PRIMARY_METRICS = (
    *("top1", "macro_map", "recall@1", "map@10", "few_shot_top1"),
    *("macro_f1", "micro_f1", "expected_calibration_error", "modality_gap", "mean_cosine"),
)
"""What the plain table shows."""


class BenchRow(BaseModel):
    """One figure, or one line on what was skipped or failed (`value` is None, `note` says why)."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    status: Status = "measured"
    model: str
    """The model's name in this bench."""
    model_id: str | None = None
    """Its `space_id`, or an encoder's `tower_id`."""
    entry: str | None = None
    """The suite's entry."""
    dataset: str | None = None
    split: str | None = None
    role: str | None = None
    """patching, supported, alignment or unseen."""
    task: Task | None = None
    tower: str | None = None
    """What the figure is about: a tower; None where there are two."""
    query_tower: str | None = None
    """For two modalities (retrieval, diagnostics): "text", "rgb" or a tower."""
    gallery_tower: str | None = None
    level: Literal["instance", "class"] | None = None
    """Of retrieval: the same sample, or the same class."""
    variant: str = PLAIN
    """plain; a transductive remedy (prompt-average, centred, csls, qb-norm); for robustness the
    condition ("as is", "without B04", "noise", "offset +1000 left in", "L1C fed as L2A"); for
    few-shot "4 shots"."""
    metric: str | None = None
    value: float | None = None
    """Metrics are fractions of 1; distances, ranks and skewness have their own unit. With a
    `reference`, the difference model - reference."""
    low: float | None = None
    high: float | None = None
    """95 % interval; None where there is none."""
    num_samples: int | None = None
    chance: float | None = None
    reference: str | None = None
    """Set where the row is a difference to this model on the same samples (paired bootstrap)."""
    p_value: float | None = None
    """Two-sided, of a difference."""
    prompts: str | None = None
    prompts_hash: str | None = None
    class_list: str | None = None
    seed: int = 0
    versions: str | None = None
    """Name of the versions in `versions.json` that it was measured with."""
    measurement: str | None = None
    """Name of `measurements/<measurement>.json`, which holds its details."""
    note: str | None = None
    """How it was measured, why not, and what a reader has to know."""


COLUMNS = tuple(BenchRow.model_fields)

QUESTION = (
    *("model", "entry", "task", "tower", "query_tower", "gallery_tower", "level", "variant"),
    *("metric", "reference", "prompts"),
)
"""The columns that tell figures apart: no two measured rows of one bench agree in all of them."""


def question(row: Mapping[str, Any]) -> tuple[Any, ...]:
    """What a row answers."""
    return tuple(row.get(key) for key in QUESTION)


def check_rows(rows: Sequence[Mapping[str, Any]]) -> list[BenchRow]:
    """Rows of a results file, checked. Raises `DataError`."""
    try:
        return [BenchRow.model_validate(row) for row in rows]
    except ValueError as error:
        raise DataError(f"these are no rows of a bench: {str(error).splitlines()[0]}") from error


def format_bench_table(rows: Sequence[Mapping[str, Any]], *, every: bool = False) -> str:
    """The primary metrics side by side, a column per model, plain text.

    Values in per cent but for distances and ranks; `*` marks a difference to the reference that is
    significant at 5 %. Without `every`: no remedies, and no conditions but the plain one.
    """
    checked = check_rows(rows)
    shown = [
        row
        for row in checked
        if row.status == "measured" and row.reference is None and (every or _is_primary(row))
    ]
    significant = {
        _cell(row)
        for row in checked
        if row.reference is not None and row.p_value is not None and row.p_value < 0.05
    }
    models = list(dict.fromkeys(row.model for row in checked))
    asked: dict[tuple[str | None, str], set[str]] = {}
    for row in shown:
        if row.prompts is not None:
            asked.setdefault((row.entry, row.model), set()).add(row.prompts)
    several = {entry for (entry, _), prompts in asked.items() if len(prompts) > 1}
    lines: dict[tuple[str, str], dict[str, BenchRow]] = {}
    for row in shown:
        label = _label(row) + (f", {row.prompts}" if row.entry in several and row.prompts else "")
        lines.setdefault((_heading(row), label), {})[row.model] = row
    headings = list(dict.fromkeys(heading for heading, _ in lines))
    lines = dict(sorted(lines.items(), key=lambda item: headings.index(item[0][0])))
    width = max((len(label) for _, label in lines), default=0) + 2
    columns = [max(len(model), 8) for model in models]
    out = [
        " " * width + "".join(f"  {m:>{w}}" for m, w in zip(models, columns, strict=True)) + "  n"
    ]
    last = ""
    for (heading, label), cells in lines.items():
        if heading != last:
            out.append(heading)
            last = heading
        texts = []
        for model, size in zip(models, columns, strict=True):
            row_ = cells.get(model)
            star = "*" if row_ is not None and _cell(row_) in significant else " "
            texts.append(f"  {_value(row_) + star:>{size}}")
        count = "/".join(dict.fromkeys(str(row.num_samples) for row in cells.values()))
        out.append(f"  {label:{width - 2}}{''.join(texts)}  {count}")
    for row in checked:
        if row.status != "measured":
            where = " ".join(str(one) for one in (row.entry, row.task, row.tower) if one)
            what = f"{row.model}: {where}" if where else row.model
            out.append(f"{row.status}: {what}: {row.note}")
    return "\n".join(out) + "\n"


def _is_primary(row: BenchRow) -> bool:
    plain = row.variant == PLAIN or row.task == "few-shot"
    return row.metric in PRIMARY_METRICS and plain and row.task != "robustness"


def _heading(row: BenchRow) -> str:
    return f"{row.role}: {row.entry} ({row.split}), {row.task}"


def _label(row: BenchRow) -> str:
    where = row.tower or f"{row.query_tower} → {row.gallery_tower}"
    variant = "" if row.variant == PLAIN else f" [{row.variant}]"
    return f"{where}{variant} {row.metric}"


def _cell(row: BenchRow) -> tuple[Any, ...]:
    return tuple(getattr(row, key) for key in QUESTION if key != "reference")


PLAIN_NUMBERS = frozenset(
    {"modality_gap", "mean_cosine", "effective_rank", "alignment", "uniformity", "hubness_skewness"}
)
"""Metrics that are no share of anything."""


def _value(row: BenchRow | None) -> str:
    if row is None or row.value is None:
        return ""
    return f"{row.value:.3f}" if row.metric in PLAIN_NUMBERS else f"{100 * row.value:.1f}"
