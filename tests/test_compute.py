"""How many threads torch computes with."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest
import torch

from terralign import compute
from terralign.compute import choose_device, choose_threads, set_threads
from terralign.errors import RecipeError


def test_what_is_asked_for_comes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert choose_threads(5) == 5
    assert choose_threads() == 3


@pytest.mark.parametrize(("cores", "expected"), [(1, 1), (2, 1), (8, 7)])
def test_by_default_one_core_is_left_for_reading(
    monkeypatch: pytest.MonkeyPatch, cores: int, expected: int
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(compute, "available_cores", lambda: cores)
    assert choose_threads() == expected
    monkeypatch.setenv("OMP_NUM_THREADS", "many")
    assert choose_threads() == expected


def test_the_number_is_set_and_said(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("DEBUG", logger="terralign"):
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


def test_freed_memory_is_kept_where_glibc_allows_it() -> None:
    """In a process of its own: what is set stays set. Fewer page faults, the same numbers."""
    script = """
import resource, sys, torch
from terralign.compute import keep_freed_memory
if sys.argv[1] == "keep":
    keep_freed_memory()
torch.set_num_threads(1)
def work():
    return sum(float(torch.ones(16_000_000).mul_(2).sum()) for _ in range(5))
total = work()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
total += work()
print(total, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
    totals, faults = {}, {}
    for mode in ("keep", "leave"):
        command = [sys.executable, "-c", script, mode]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
        totals[mode], faults[mode] = said[0], int(said[1])
    assert totals["keep"] == totals["leave"]
    if platform.libc_ver()[0] == "glibc":
        assert faults["keep"] < faults["leave"] / 2
