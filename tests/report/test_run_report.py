"""The report of a run: what it says, explains and leaves out."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest

from report_page import NASTY, Page, row
from terralign.report.document import Answer, Card, Gallery
from terralign.report.figures import Sweep
from terralign.report.run import RunReport

ROWS = [
    row("base", 0.448, note=NASTY),
    row("base", 0.91, metric="top5"),
    row("patched", 0.827),
    row("aligned", 0.857, role="unseen", dataset=NASTY, tower=NASTY),
]
POINTS = [
    {"alpha": a, "patching": {"eurosat": 0.45 + 0.4 * a}, "supported": {"photos": 0.55 - 0.1 * a}}
    for a in (1.0, 0.0, 0.5)
]


def report(**changes: Any) -> RunReport:
    empty: dict[str, Any] = {"title": "t", "rows": ROWS, "curves": {}, "recipe_text": "",
                             "versions": {}}  # fmt: skip
    return RunReport(**(empty | changes))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    card = Card(text=NASTY, answers=(Answer(text=NASTY, is_right=True, by="base"),))
    whole = report(
        title=NASTY,
        curves={"patch": [{"step": i, "loss": 1 / i} for i in range(1, 200)], NASTY: [{"step": 1}]},
        recipe_text="lr = 1e-5\n",
        versions={"torch": "2.6", NASTY: NASTY},
        notes=[NASTY],
        sweep=Sweep(points=POINTS, chosen=0.5, max_supported_drop=0.01),
        shown=Gallery(title="Samples", heads=("sample", "base"), cards=(card,), legend="Drawn."),
        next_steps=[("Look", "see `x`")],
    )
    assert whole.write(folder) == folder / "report.html"
    return folder


def test_names_from_outside_are_text(folder: Path) -> None:
    page = Page((folder / "report.html").read_text(encoding="utf-8"))
    assert "script" not in page.tags
    assert page.text.count(NASTY) >= 8
    text = (folder / "report.md").read_text(encoding="utf-8")
    assert "<script" not in text.replace(r"\<", "")


@pytest.mark.parametrize("name", ["report.html", "report.md"])
def test_both_forms_say_what_was_found_and_run(folder: Path, name: str) -> None:
    text = (folder / name).read_text(encoding="utf-8")
    for part in ("lr = 1e-5", "2.6", "82.7", "80.7–83.7", "Drawn.", "see `x`", "91.0"):
        assert part in text
    assert "Look:\n\n```sh\nsee `x`\n```" in text or name == "report.html"


def test_files_of_a_report(folder: Path) -> None:
    names = sorted(path.name for path in (folder / "figures").iterdir())
    assert names == ["alpha-curve.png", "comparison.png", "losses.png"]
    rows = list(csv.reader((folder / "alpha-sweep.csv").read_text(encoding="utf-8").splitlines()))
    assert rows[0] == ["alpha", "patching:eurosat", "supported:photos"]
    assert [float(row[0]) for row in rows[1:]] == [0, 0.5, 1]
    assert [float(value) for value in rows[2]] == pytest.approx([0.5, 0.65, 0.5])


def test_a_report_of_nothing_but_rows_has_one_figure(tmp_path: Path) -> None:
    report().write(tmp_path)
    assert [png.name for png in (tmp_path / "figures").iterdir()] == ["comparison.png"]
    assert not (tmp_path / "alpha-sweep.csv").exists()


def text_of(**changes: Any) -> str:
    return repr(report(**changes).document())


def test_roles_and_alpha_are_explained() -> None:
    assert "Alpha is 1: patched is the fine-tuned" in text_of(sweep=Sweep(points=POINTS, chosen=1))
    assert "Alpha is 0: patched is the base" in text_of(sweep=Sweep(points=POINTS, chosen=0))
    later = text_of(sweep=Sweep(points=POINTS, chosen=0, of_last_task=True))
    assert "Alpha is 0: patched is what the tasks before the last one made" in later
    assert "Alpha is" not in text_of(sweep=Sweep(points=POINTS, chosen=0.5))
    text = text_of(sweep=Sweep(points=POINTS, chosen=0.5, max_supported_drop=0.06))
    assert (
        "alpha 1 would give 85.00 % on the patching tasks, but cost photos 10.00 points, and the "
        "bound is 6." in text
    )
    for role in ("patching", "supported", "alignment", "unseen"):
        assert (f"'{role}: t" in text or f"'{role}: d" in text) == any(r.role == role for r in ROWS)
