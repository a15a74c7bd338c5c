"""Variants against the study's reference, on the same samples: paired bootstrap.

Variants measure the same samples, so what is hard for all of them drops out of their differences,
which are known better than either figure. With several seeds the means over the seeds that both
variants have are compared. The interval is about samples; what chance in training does is the
spread.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from terralign.ablate.summary import FIGURE_KEYS, figure_of
from terralign.errors import ModelError
from terralign.evaluation.metrics import Outcomes
from terralign.evaluation.paired import compare_outcomes
from terralign.evaluation.rows import Row
from terralign.files import hash_json
from terralign.runs.folder import read_measured

logger = logging.getLogger(__name__)

Rows = Mapping[tuple[str, int], Sequence[Row]]
"""(variant, seed) -> the rows of the run."""
Figure = tuple[str, ...]

VERSION = 2
SAME_MODELS = ("base",)
"""Models that no variant changes."""


class Differences:
    """The differences of a study's folder; `known`: those of an earlier call, not made again."""

    def __init__(self, folder: Path, known: Sequence[Mapping[str, Any]] = ()) -> None:
        self.folder = folder
        self._known = {str(one["identity"]): dict(one) for one in known if "identity" in one}

    def of(self, rows: Rows, reference: str, metrics: Sequence[str]) -> list[dict[str, Any]]:
        """One entry for each variant and figure that the reference has too.

        `difference` of the variant to the reference, `low` and `high` (95 %), fractions of 1;
        `p_value`, see `Comparison.reported_p_value`; `seeds` that were compared.
        """
        placed: dict[str, dict[int, dict[Figure, Row]]] = {}
        for (variant, seed), own in rows.items():
            placed.setdefault(variant, {})[seed] = _by_figure(own, metrics)
        theirs = placed.pop(reference, {})
        found = []
        for variant, ours in placed.items():
            pairs: dict[Figure, dict[int, tuple[Row, Row]]] = {}
            for seed in sorted(ours.keys() & theirs.keys()):
                for figure, row in ours[seed].items():
                    if figure in theirs[seed]:
                        pairs.setdefault(figure, {})[seed] = (theirs[seed][figure], row)
            for figure, by_seed in pairs.items():
                compared = self._compared((reference, variant), by_seed)
                if compared is not None:
                    compared |= {"variant": variant, "reference": reference}
                    compared |= dict(zip(FIGURE_KEYS, figure, strict=True))
                    found.append({**compared, "seeds": list(by_seed)})
        return found

    def _compared(
        self, variants: tuple[str, str], pairs: Mapping[int, tuple[Row, Row]]
    ) -> dict[str, Any] | None:
        """A figure of the second variant against the first; None where the two are one model, or
        the values of their samples were not kept or are of other samples.

        `pairs`: seed -> their rows.
        """
        measured = {seed: [row.measurement for row in pair] for seed, pair in pairs.items()}
        if any(None in names for names in measured.values()):
            return None
        if all(first == second for first, second in measured.values()):
            return None
        metric = str(next(iter(pairs.values()))[0].metric)
        identity = hash_json(
            {
                "code": VERSION,
                "variants": list(variants),
                "measured": sorted(measured.items()),
                "metric": metric,
            }
        )
        if identity not in self._known:
            outcomes = [
                [self._outcomes(variant, seed, pair[side]) for seed, pair in pairs.items()]
                for side, variant in enumerate(variants)
            ]
            kept = [[one for one in side if one is not None] for side in outcomes]
            if any(len(one) < len(pairs) for one in kept):
                return None
            compared = compare_outcomes(kept[0], kept[1], metric)
            if compared is None:
                return None
            values = {**asdict(compared), "p_value": compared.reported_p_value}
            self._known[identity] = {"identity": identity, **values}
        return dict(self._known[identity])

    def _outcomes(self, variant: str, seed: int, row: Row) -> Outcomes | None:
        try:
            return read_measured(self.folder / "runs" / variant / str(seed), row)
        except ModelError as error:
            logger.warning("not compared: %s", error)
            return None


def _by_figure(rows: Sequence[Row], metrics: Sequence[str]) -> dict[Figure, Row]:
    return {
        figure_of(row): row
        for row in rows
        if row.metric in metrics and row.model not in SAME_MODELS
    }
