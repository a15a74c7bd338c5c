"""Samples as pictures: which ones, and what is said of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from terralign.datasets.sample import Labels
from terralign.evaluation.shown import (
    Prediction,
    ShownSample,
    ShownSamples,
    choose_shown,
    shown_html,
    shown_markdown,
)

NASTY = '<b>"x" | `y`'


def _labels(values: list[int]) -> Labels:
    return Labels(values=np.array(values), class_names=tuple("abcd"), class_list="letters")


def test_samples_of_as_many_classes_as_there_are_come_first() -> None:
    values = [0] * 50 + [1] * 3 + [2, 3]
    chosen = choose_shown(_labels(values), 4)
    assert sorted(values[index] for index in chosen) == [0, 1, 2, 3]
    assert len(set(choose_shown(_labels(values), 8).tolist())) == 8
    assert (choose_shown(_labels(values), 8) == choose_shown(_labels(values), 8)).all()


def test_of_fewer_samples_than_asked_for_all_are_shown() -> None:
    assert sorted(choose_shown(_labels([0, 0, 1]), 6).tolist()) == [0, 1, 2]


def test_names_are_escaped_and_right_and_wrong_are_told_apart(tmp_path: Path) -> None:
    sample = ShownSample(
        key=NASTY,
        views={"true colour": b"\xff\xd8\xff"},
        class_names=(NASTY,),
        predictions=(
            Prediction(model="base", class_name="forest", is_right=False),
            Prediction(model="patched", class_name=NASTY, is_right=True),
        ),
    )
    shown = ShownSamples(title="d/test", samples=(sample,))
    page = shown_html(shown)
    assert "<b>&quot;" not in page
    assert page.count("class=right") == page.count("class=wrong") == 1
    text = "\n".join(shown_markdown(shown, tmp_path))
    assert "✗ forest" in text
    assert "<b>" not in text.replace(r"\<", "")
    assert (tmp_path / "samples" / "1-true-colour.jpg").read_bytes() == b"\xff\xd8\xff"
