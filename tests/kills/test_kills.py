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


def _run(name: str, *, kills: int, seed: int, seconds: float) -> None:
    script = Path(__file__).with_name(name)
    done = subprocess.run(
        [sys.executable, str(script), "--kills", str(kills), "--seed", str(seed)],
        capture_output=True, text=True, timeout=seconds, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
