"""How many threads torch computes with."""

from __future__ import annotations

import pytest
import torch

from terralign.train import threads
from terralign.train.threads import choose_threads, set_threads


def test_what_is_asked_for_comes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert choose_threads(5) == 5
    assert choose_threads() == 3


@pytest.mark.parametrize(("cores", "expected"), [(1, 1), (2, 1), (8, 7)])
def test_by_default_one_core_is_left_for_reading(
    monkeypatch: pytest.MonkeyPatch, cores: int, expected: int
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(threads, "available_cores", lambda: cores)
    assert choose_threads() == expected
    monkeypatch.setenv("OMP_NUM_THREADS", "many")
    assert choose_threads() == expected


def test_the_number_is_set_and_said(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", logger="terralign"):
        set_threads(2)
    assert torch.get_num_threads() == 2
    assert "computing with 2 threads" in caplog.text
