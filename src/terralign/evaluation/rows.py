"""A result row: one metric's value, of one model on one split. Runs, benches and studies write it.

`results.json` is `{"rows": [...]}`. A row is checked once, where it is made or read from a file.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, ValidationError

from terralign.errors import DataError, StorageError
from terralign.files import read_kept_json

Status = Literal["measured", "skipped", "failed"]
Role = Literal["patching", "supported", "alignment", "unseen"]
Task = Literal[
    "zero-shot", "multi-label", "linear-head", "retrieval", "linear-probe", "knn", "few-shot",
    "robustness", "decisions", "diagnostics",
]  # fmt: skip
ROLES: tuple[Role, ...] = get_args(Role)

PLAIN = "plain"
"""The variant of rows that nothing was changed for."""

PRIMARY_METRICS = (
    *("top1", "macro_map", "recall@1", "recall@10", "map@10", "few_shot_top1"),
    *("macro_f1", "micro_f1", "expected_calibration_error", "modality_gap", "mean_cosine"),
)
"""What the main tables show."""

SPREAD_METRICS = frozenset({"few_shot_top1"})
"""Whose low and high are the lowest and highest of several seeds, no bootstrap interval."""

PLAIN_NUMBERS = frozenset(
    {"modality_gap", "mean_cosine", "effective_rank", "alignment", "uniformity", "hubness_skewness"}
)
"""Metrics that are no share of anything."""


class Row(BaseModel):
    """One value, or one line on what was skipped or failed (`value` is None, `note` says why)."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False
    )

    status: Status = "measured"
    model: str
    """Of a run: base, finetuned, patched or aligned; of a bench: the model's name in it."""
    model_id: str | None = None
    """Its `space_id`, or an encoder's `tower_id`."""
    entry: str | None = None
    """The suite's entry."""
    dataset: str | None = None
    split: str | None = None
    role: Role | None = None
    task: Task | None = None
    tower: str | None = None
    """The tower that was measured; None where there are two."""
    query_tower: str | None = None
    """Of two modalities (retrieval, diagnostics): "text", "rgb" or a tower."""
    gallery_tower: str | None = None
    sensor: str | None = None
    """The sensor of the tower's pixels; of two that differ "sentinel1-grd and sentinel2-l2a"."""
    level: Literal["instance", "class"] | None = None
    """Of retrieval: the same sample, or the same class."""
    variant: str = PLAIN
    """plain; a hubness correction (prompt-average, centred, csls, qb-norm); for robustness the
    condition ("as is", "without B04", "noise", "offset +1000 left in", "L1C fed as L2A"); for
    few-shot "4 shots"; in a study the recipe's variant."""
    metric: str | None = None
    value: float | None = None
    """Metrics are fractions of 1; distances, ranks and skewness have their own unit. With a
    `reference`, the difference model - reference."""
    low: float | None = None
    high: float | None = None
    """95 % interval; None for metrics without one."""
    num_samples: int | None = None
    chance: float | None = None
    valid_share: float | None = None
    """Share (0-1) of the pixels' numbers that were valid."""
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
    """Name of the measurement's files, which hold its details and the values of every sample."""
    note: str | None = None
    """How it was measured, why not, and what a reader has to know."""

    @property
    def towers(self) -> str:
        """The tower, or "query → gallery"; "" where the row names none."""
        if self.query_tower is None:
            return self.tower or ""
        return f"{self.query_tower} → {self.gallery_tower}"

    @property
    def question(self) -> tuple[str | None, ...]:
        """What distinguishes the rows of a bench: no two measured ones agree in all of it."""
        return (
            *(self.model, self.entry, self.task, self.tower, self.query_tower, self.gallery_tower),
            *(self.level, self.variant, self.metric, self.reference, self.prompts),
        )

    def to_json(self) -> dict[str, Any]:
        """Plain values of the keys that the row was made with."""
        return self.model_dump(mode="json", exclude_unset=True)


COLUMNS = tuple(Row.model_fields)


def check_rows(values: Sequence[Any]) -> list[Row]:
    """Rows from plain values. Raises `DataError`, which names the first fault."""
    rows = []
    for number, value in enumerate(values):
        try:
            rows.append(Row.model_validate(value))
        except ValidationError as error:
            fault = error.errors()[0]
            where = ".".join(map(str, fault["loc"])) or "row"
            raise DataError(
                f"row {number}: {where}: {fault['msg']} ({repr(fault['input'])[:100]})"
            ) from error
    return rows


def read_rows(path: Path) -> list[Row]:
    """The rows of a `results.json`. Raises `StorageError` where it is damaged."""
    kept = read_kept_json(path, todo="delete it and run the same commands again")
    fault = 'expected {"rows": [...]}'
    try:
        if isinstance(kept, dict) and isinstance(kept.get("rows"), list):
            return check_rows(kept["rows"])
    except DataError as error:
        fault = str(error)
    raise StorageError(
        f"{path} is damaged or of another version: {fault}; "
        "delete it and run the same commands again"
    )
