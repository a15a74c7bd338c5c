"""Killed at any moment, or out of space, a command ends in the bytes of an unbroken run."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
def test_twenty_kills_lose_nothing() -> None:
    _run("kills.py", kills=20, seed=7, seconds=1200)


@pytest.mark.slow
def test_a_killed_rank_loses_nothing() -> None:
    _run("kill_ranks.py", kills=3, seed=5, seconds=1800)


@pytest.mark.slow
def test_a_rank_that_fails_is_named_and_ends_all() -> None:
    _run("stress_ranks.py", runs=5, seed=3, seconds=1200)


def _run(name: str, *, seconds: float, **options: int) -> None:
    script = Path(__file__).with_name(name)
    given = [word for key, value in options.items() for word in (f"--{key}", str(value))]
    done = subprocess.run(
        [sys.executable, str(script), *given],
        capture_output=True, text=True, timeout=seconds, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
