"""Damaged and hostile files are read or refused in one line, whatever is in them.

`python tests/fuzz/run.py` runs more cases, and says how one is repeated.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from fuzz.outcome import GOOD

SCRIPT = Path(__file__).parent / "run.py"

pytestmark = pytest.mark.skipif(
    not Path("/proc/self/clear_refs").exists(), reason="memory is measured as Linux shows it"
)


def run(tmp_path: Path, *arguments: object) -> list[dict[str, Any]]:
    """The outcomes of the script's cases, which run in processes of its own."""
    out = tmp_path / "outcomes.json"
    done = subprocess.run(
        [sys.executable, SCRIPT, "--json", out, *map(str, arguments)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert out.is_file(), done.stderr
    found: list[dict[str, Any]] = json.loads(out.read_text())["outcomes"]
    return found


def assert_good(outcomes: list[dict[str, Any]]) -> None:
    bad = [one for one in outcomes if one["kind"] not in GOOD]
    assert not bad, "\n".join(f"{one['case']}: {one['kind']} {one['text']}" for one in bad)


def test_damaged_files_are_read_or_refused_in_one_line(tmp_path: Path) -> None:
    outcomes = run(tmp_path, "--cases", 200, "--seed", 1, "--quick")
    assert len(outcomes) == 200
    assert {"read", "told"} <= {one["kind"] for one in outcomes}
    assert_good(outcomes)


@pytest.mark.slow
def test_the_valid_files_of_every_entry_are_read(tmp_path: Path) -> None:
    outcomes = run(tmp_path, "--intact")
    assert [one["entry"] for one in outcomes if one["kind"] != "read"] == []


@pytest.mark.slow
def test_many_damaged_files_are_read_or_refused_in_one_line(tmp_path: Path) -> None:
    assert_good(run(tmp_path, "--cases", 2000, "--seed", 2))


@pytest.mark.slow
def test_hostile_files_are_read_or_refused_in_one_line(tmp_path: Path) -> None:
    from fuzz.hostile import HOSTILE  # its modules take seconds

    outcomes = run(tmp_path, "--cases", 0, "--hostile")
    assert len(outcomes) == len(HOSTILE)
    assert_good(outcomes)
