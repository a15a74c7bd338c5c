"""Paired comparisons of a bench: of any two figures, once, and only where they mean something."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from terralign.bench.compare import PairedTests
from terralign.encoders.clip.weights import write_state_dict
from terralign.evaluation.paired import MIN_SAMPLES, compare_outcomes
from terralign.evaluation.rows import Row
from terralign.files import write_json

NUM = 40


def keep(folder: Path, letter: str, outcomes: dict[str, Any], **changes: Any) -> Row:
    """A measurement in the folder; its row."""
    name = letter * 16
    metric = changes.pop("metric", "top1")
    row = Row(
        model=letter, entry="e", task="zero-shot", tower="rgb", metric=metric, value=0.5,
        measurement=name, seed=3,
    )  # fmt: skip
    second = row.model_copy(update={"variant": "other"})
    values = {
        "samples": "same", "details": {}, "has_outcomes": bool(outcomes),
        "rows": [one.model_dump(mode="json") for one in (row, second)],
    }  # fmt: skip
    write_json(folder / "measurements" / f"{name}.json", values | changes)
    if outcomes:
        tensors = {key: torch.from_numpy(np.asarray(value)) for key, value in outcomes.items()}
        write_state_dict(folder / "measurements" / f"{name}.safetensors", tensors)
    return row


def draw(seed: int, share: float, number: int = NUM) -> np.ndarray:
    return (np.random.default_rng(seed).random(number) < share).astype(np.float64)


def test_any_two_figures_are_compared_once_whichever_comes_first(tmp_path: Path) -> None:
    values = draw(0, 0.5), draw(1, 0.6)
    a, b = (keep(tmp_path, n, {"top1": v}) for n, v in zip("ab", values, strict=True))
    outcomes = [[{"top1": one}] for one in values]
    compared = compare_outcomes(*outcomes, "top1", num_bootstrap=100, seed=3)
    assert compared is not None
    wanted = compared.p_value
    assert 0.02 < wanted < 0.98
    assert PairedTests(tmp_path, 50)(b, a) == wanted
    files = {path: path.stat().st_mtime_ns for path in (tmp_path / "measurements").iterdir()}
    (tmp_path / "measurements" / f"{'a' * 16}.safetensors").write_bytes(b"not read again")
    assert PairedTests(tmp_path, 50)(a, b) == wanted
    assert set(files) == set((tmp_path / "measurements").iterdir())
    assert sum(path.name.startswith("compare-") for path in files) == 1


def test_decisions_are_compared_by_f1_of_the_plain_row_alone(tmp_path: Path) -> None:
    labels, one, two = (draw(s, 0.4, 3 * NUM).reshape(NUM, 3) > 0 for s in range(3))
    rows = [
        keep(tmp_path, name, {"decisions": own, "labels": labels}, metric="macro_f1")
        for name, own in (("a", one), ("b", two))
    ]
    outcomes = [[{"decisions": own, "labels": labels}] for own in (one, two)]
    compared = compare_outcomes(*outcomes, "macro_f1", num_bootstrap=100, seed=3)
    tests = PairedTests(tmp_path, 50)
    assert compared is not None
    assert tests(*rows) == compared.p_value
    assert tests(rows[0], rows[1].model_copy(update={"variant": "other"})) is None
    assert tests(rows[0], rows[1].model_copy(update={"metric": "micro_f1"})) is None


def test_what_cannot_be_compared_has_no_p_value(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    a = keep(tmp_path, "a", {"top1": draw(0, 0.5)})
    missing = draw(1, 0.5)
    missing[0] = np.nan
    others = {
        "no values": keep(tmp_path, "b", {}),
        "other samples": keep(tmp_path, "c", {"top1": draw(1, 0.5)}, samples="others"),
        "another number": keep(tmp_path, "d", {"top1": draw(1, 0.5, NUM - 1)}),
        "a query without a value": keep(tmp_path, "e", {"top1": missing}),
        "no measurement": a.model_copy(update={"measurement": None}),
        "a measurement that is gone": a.model_copy(update={"measurement": "f" * 16}),
    }
    tests = PairedTests(tmp_path, 20)
    assert {name: tests(a, row) for name, row in others.items()} == dict.fromkeys(others)
    few = [
        keep(tmp_path, name, {"top1": draw(seed, 0.5, MIN_SAMPLES - 1)})
        for seed, name in enumerate("gh")
    ]
    assert tests(*few) is None
    damaged = keep(tmp_path, "i", {"top1": draw(1, 0.5)})
    (tmp_path / "measurements" / f"{'i' * 16}.safetensors").write_bytes(b"damaged")
    with caplog.at_level(logging.WARNING):
        assert tests(a, damaged) is None
    assert "not compared" in caplog.text


def test_accuracies_of_other_labels_are_not_compared(tmp_path: Path) -> None:
    labels = np.arange(NUM) % 3
    a, b, c = (
        keep(tmp_path, name, {"top1": draw(seed, 0.6), "labels": own}, metric="top1")
        for seed, (name, own) in enumerate((("a", labels), ("b", labels), ("c", (labels + 1) % 3)))
    )
    tests = PairedTests(tmp_path, 20)
    assert tests(a, b) is not None
    assert tests(a, c) is None
