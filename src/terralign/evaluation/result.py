"""A finished evaluation: what was measured, on what, with which prompts."""

from __future__ import annotations

import html
from dataclasses import dataclass
from typing import Any

from terralign.encoders.tables import Table
from terralign.evaluation.metrics import MetricResult
from terralign.evaluation.rows import Role, Row, Task


@dataclass(frozen=True, kw_only=True, slots=True, repr=False)
class Evaluation:
    """Figures (fractions of 1) of one space on one split, and everything that names them.

    For retrieval `tower` is "QUERY -> GALLERY".
    """

    task: Task
    dataset: str
    split: str
    space_id: str
    tower: str
    note: str
    prompts: dict[str, Any] | None
    class_names: tuple[str, ...] | None
    result: MetricResult
    valid_share: float = 1.0
    """Share (0-1) of the numbers that were valid, of two sides the smaller one."""
    sensor: str | None = None
    """What the tower looked at, such as "sentinel1-grd"; of two sides that look at different
    sensors both: "sentinel1-grd and sentinel2-l2a"."""

    def __repr__(self) -> str:
        lines = [self._title(), self.table().text(), *self.result.notes]
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        notes = "".join(f"<p>{html.escape(note)}</p>" for note in self.result.notes)
        return self.table().html(self._title()) + notes

    def _title(self) -> str:
        title = f"{self.dataset} {self.split}, {self.task}, {self.note}"
        if self.prompts is None:
            return title
        number = len(self.prompts["templates"])
        return f"{title}, prompts {self.prompts['name']} ({number} template{'s' * (number != 1)})"

    def table(self) -> Table:
        """Per cent, with 95 % intervals, what chance gives, and the number of samples."""
        return Table(
            columns=("metric", "value", "interval", "chance", "samples"),
            rows=tuple(
                (
                    metric.name,
                    f"{100 * metric.value:.2f} %",
                    f"[{100 * metric.low:.2f}, {100 * metric.high:.2f}]",
                    f"{100 * metric.chance:.2f} %",
                    f"n = {metric.num_samples:,}",
                )
                for metric in self.result.metrics
            ),
        )

    def to_json(self) -> dict[str, Any]:
        """Plain values, as `terralign evaluate --json` prints them."""
        metrics = self.result.metrics
        per_class = self.result.class_values(self.class_names) if self.class_names else {}
        return {
            "task": self.task,
            "dataset": self.dataset,
            "split": self.split,
            "space_id": self.space_id,
            "tower": self.tower,
            "how": self.note,
            "prompts": self.prompts,
            "num_samples": max(metric.num_samples for metric in metrics),
            "valid_share": self.valid_share,
            "metrics": {metric.name: metric.value for metric in metrics},
            "intervals": {metric.name: [metric.low, metric.high] for metric in metrics},
            "chance": {metric.name: metric.chance for metric in metrics},
            "per_class": per_class or None,
            "notes": list(self.result.notes),
        }

    def to_rows(self, *, model: str, role: Role) -> list[Row]:
        """One row per metric, as `results.json` holds them."""
        query, arrow, gallery = self.tower.partition(" -> ")
        towers = (
            {"query_tower": query, "gallery_tower": gallery} if arrow else {"tower": self.tower}
        )
        seen = {} if self.sensor is None else {"sensor": self.sensor}
        return [
            Row.model_validate(
                {
                    "model": model,
                    **towers,
                    **seen,
                    "role": role,
                    "dataset": self.dataset,
                    "split": self.split,
                    "task": self.task,
                    **metric.to_row(),
                    "valid_share": self.valid_share,
                }
            )
            for metric in self.result.metrics
        ]
