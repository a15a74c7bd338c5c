"""Variants against the study's reference, on the same samples: paired bootstrap.

Variants measure the same samples, so what is hard for all of them drops out of their differences,
which are known better than either figure. With several seeds the means over the seeds that both
variants have are compared. The interval is about samples; what chance in training does is the
spread.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from terralign.ablate.summary import FIGURE_KEYS, figure_of
from terralign.errors import ModelError
from terralign.evaluate.metrics import Outcomes
from terralign.evaluate.paired import compare_outcomes
from terralign.evaluate.significance import MIN_SAMPLES
from terralign.files import hash_json
from terralign.run_folder import read_measured

logger = logging.getLogger(__name__)

Rows = Mapping[tuple[str, int], Sequence[Mapping[str, Any]]]
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
        `p_value`, None of fewer than `MIN_SAMPLES` samples; `seeds` that were compared.
        """
        placed = {key: _by_figure(own, metrics) for key, own in rows.items()}
        variants = dict.fromkeys(variant for variant, _ in rows)
        found: list[dict[str, Any]] = []
        for variant in variants:
            if variant == reference:
                continue
            seeds = sorted(
                seed for name, seed in rows if name == variant and (reference, seed) in rows
            )
            figures = dict.fromkeys(one for seed in seeds for one in placed[variant, seed])
            for figure in figures:
                pairs = {
                    seed: (placed[reference, seed][figure], placed[variant, seed][figure])
                    for seed in seeds
                    if figure in placed[reference, seed] and figure in placed[variant, seed]
                }
                found += self._difference(variant, reference, figure, pairs)
        return found

    def _difference(
        self,
        variant: str,
        reference: str,
        figure: Figure,
        pairs: Mapping[int, tuple[Mapping[str, Any], Mapping[str, Any]]],
    ) -> Iterator[dict[str, Any]]:
        measured = {seed: [row.get("measurement") for row in pair] for seed, pair in pairs.items()}
        if not pairs or any(None in names for names in measured.values()):
            return
        if all(names[0] == names[1] for names in measured.values()):
            return  # one model: what the variants share
        row = next(iter(pairs.values()))[1]
        identity = hash_json(
            {
                "code": VERSION,
                "variants": [reference, variant],
                "measured": sorted(measured.items()),
                "metric": row["metric"],
            }
        )
        if identity not in self._known:
            ours = [self._outcomes(variant, seed, pair[1]) for seed, pair in pairs.items()]
            theirs = [self._outcomes(reference, seed, pair[0]) for seed, pair in pairs.items()]
            known = [one for one in (*ours, *theirs) if one is not None]
            if len(known) < 2 * len(pairs):
                return
            compared = compare_outcomes(known[len(pairs) :], known[: len(pairs)], row["metric"])
            if compared is None:
                return
            values = asdict(compared)
            if compared.num_samples < MIN_SAMPLES:
                values["p_value"] = None
            self._known[identity] = {"identity": identity, **values}
        yield {
            **self._known[identity],
            "variant": variant,
            "reference": reference,
            **dict(zip(FIGURE_KEYS, figure, strict=True)),
            "seeds": sorted(pairs),
        }

    def _outcomes(self, variant: str, seed: int, row: Mapping[str, Any]) -> Outcomes | None:
        try:
            return read_measured(self.folder / "runs" / variant / str(seed), row)
        except ModelError as error:
            logger.warning("not compared: %s", error)
            return None


def _by_figure(
    rows: Sequence[Mapping[str, Any]], metrics: Sequence[str]
) -> dict[Figure, Mapping[str, Any]]:
    return {
        figure_of(row): row
        for row in rows
        if row["metric"] in metrics and row["model"] not in SAME_MODELS
    }
