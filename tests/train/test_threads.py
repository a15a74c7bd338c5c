"""How many threads torch computes with."""

from __future__ import annotations

import pytest
import torch

from terralign.errors import RecipeError
from terralign.train import threads
from terralign.train.threads import choose_device, choose_threads, set_threads


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
    assert "computing with 2 threads; one more reads ahead" in caplog.text


def test_a_gpu_is_taken_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    for there, expected in ((True, "cuda"), (False, "cpu")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda there=there: there)
        assert choose_device() == expected
    assert choose_device("cpu") == "cpu"


@pytest.mark.parametrize("device", ["gpu", "cuda:99", "meta-physics"])
def test_a_device_that_is_not_there_is_told(device: str) -> None:
    with pytest.raises(RecipeError, match=f"cannot compute on device '{device}'") as told:
        choose_device(device)
    assert "\n" not in str(told.value)
