"""Fixtures shared by all tests."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real pixels that `TERRALIGN_DATA` names; skips where it is missing."""
    folder = os.environ.get("TERRALIGN_DATA")
    if not folder:
        pytest.skip("TERRALIGN_DATA is not set: no real data to test on")
    path = Path(folder)
    if not path.is_dir():
        pytest.skip(f"TERRALIGN_DATA names {folder}, which is not there")
    return path
