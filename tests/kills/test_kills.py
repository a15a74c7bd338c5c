"""Killed at any moment, or out of space, a command ends in the bytes of an unbroken run."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
def test_twenty_kills_lose_nothing() -> None:
    script = Path(__file__).with_name("kills.py")
    done = subprocess.run(
        [sys.executable, str(script), "--kills", "20", "--seed", "7"],
        capture_output=True, text=True, timeout=1200, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
def test_a_killed_rank_loses_nothing() -> None:
    script = Path(__file__).with_name("kill_ranks.py")
    done = subprocess.run(
        [sys.executable, str(script), "--kills", "3", "--seed", "5"],
        capture_output=True, text=True, timeout=1800, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
