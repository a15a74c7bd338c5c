"""Samples as pictures: which ones, with what is predicted for them."""

from __future__ import annotations

import numpy as np

from terralign.datasets.sample import Labels
from terralign.runs.shown import choose_shown


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
