"""A finished evaluation: what was measured, on what, with which prompts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from terralign.evaluate.metrics import MetricResult

Task = Literal["zero-shot", "multi-label", "retrieval"]


@dataclass(frozen=True, kw_only=True, slots=True)
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

    def to_json(self) -> dict[str, Any]:
        """Plain values, as `terralign evaluate --json` prints them."""
        metrics = self.result.metrics
        per_class = None
        if self.result.per_class and self.class_names:
            per_class = {
                self.class_names[score.index]: {
                    "value": score.value,
                    "num_samples": score.num_samples,
                }
                for score in self.result.per_class
            }
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
            "per_class": per_class,
            "notes": list(self.result.notes),
        }

    def to_rows(self, *, model: str, role: str) -> list[dict[str, Any]]:
        """One row per figure, as `results.json` holds them."""
        query, arrow, gallery = self.tower.partition(" -> ")
        towers = (
            {"query_tower": query, "gallery_tower": gallery} if arrow else {"tower": self.tower}
        )
        seen = {} if self.sensor is None else {"sensor": self.sensor}
        return [
            {
                "model": model,
                **towers,
                **seen,
                "role": role,
                "dataset": self.dataset,
                "split": self.split,
                "task": self.task,
                "metric": metric.name,
                "value": metric.value,
                "low": metric.low,
                "high": metric.high,
                "num_samples": metric.num_samples,
                "chance": metric.chance,
                "valid_share": self.valid_share,
            }
            for metric in self.result.metrics
        ]
