"""Indexing that is killed, or has no space: the next run ends in a whole index, hits stay right."""

from __future__ import annotations

import os
import random
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_ann import write

from terralign.encoders.space import EmbeddingSpace
from terralign.index import planner
from terralign.index.approximate import FOLDER, read_state
from terralign.index.search import open_index

pytestmark = pytest.mark.slow

LIMIT_BYTES = 300_000
"""Of one file of a process without space: less than the vectors of the folder."""


@pytest.fixture
def folder(space: EmbeddingSpace, tmp_path: Path) -> Path:
    path = tmp_path / "scenes"
    for number in range(4):
        write(path, space, number, tower="s2", rows=5000)
    open_index(path)  # its cache is not what is tested
    return path


def start(folder: Path, **options: Any) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "terralign", "index", str(folder), "--force"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"}, **options,
    )  # fmt: skip


def end_of(child: subprocess.Popen[str]) -> tuple[int, str]:
    """The exit code of a process, and what it wrote to stderr."""
    _, text = child.communicate(timeout=600)
    return child.returncode, text


def check_hits(folder: Path, space: EmbeddingSpace, monkeypatch: pytest.MonkeyPatch) -> str:
    """The way of a search, whose hits must be right: exact scores, and nearly all of the best."""
    monkeypatch.setattr(planner, "EXACT_ROWS", 100)
    index = open_index(folder)
    found, exact = (index.search(space, "a river", 20, exact=one) for one in (None, True))
    scores = {one.key: one.score for one in index.search(space, "a river", 1000, exact=True)}
    assert all(np.isclose(one.score, scores[one.key], atol=1e-6) for one in found)
    assert len({one.key for one in found} & {one.key for one in exact}) >= 14
    way: str = found.how["steps"][0]["way"]
    return way


def test_killed_at_any_moment(
    space: EmbeddingSpace, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = time.monotonic()
    assert end_of(start(folder))[0] == 0
    seconds = time.monotonic() - begun
    chance = random.Random(3)
    killed = 0
    for trial in range(8):
        # New rows are added to the index, or it is made again.
        write(folder, space, 10 + trial, tower="s2", rows=(600, 9000)[trial % 2])
        child = start(folder)
        time.sleep(chance.uniform(0.2, 1.0) * seconds)
        child.send_signal(signal.SIGKILL)
        killed += end_of(child)[0] == -signal.SIGKILL
        assert check_hits(folder, space, monkeypatch) == "index"
    assert killed >= 3
    assert end_of(start(folder))[0] == 0
    state = read_state(folder)
    assert state is not None
    assert state.towers[0].num_rows == 20_000 + 4 * 9600
    assert [one.stem for one in (folder / FOLDER).glob("*.lance")] == [state.towers[0].table]
    assert check_hits(folder, space, monkeypatch) == "index"


def test_without_space(
    space: EmbeddingSpace, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def few_bytes() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (LIMIT_BYTES, LIMIT_BYTES))

    code, text = end_of(start(folder, preexec_fn=few_bytes))
    assert code == 1
    assert "no space left" in text.splitlines()[-1]
    assert "Traceback" not in text
    assert check_hits(folder, space, monkeypatch) == "exact"
    assert end_of(start(folder))[0] == 0
    assert len(list((folder / FOLDER).glob("*.lance"))) == 1
    assert check_hits(folder, space, monkeypatch) == "index"


def test_interrupted_it_ends_in_a_line(folder: Path) -> None:
    child = start(folder)
    time.sleep(6)
    child.send_signal(signal.SIGINT)
    code, text = end_of(child)
    assert code in (0, 130)
    assert "Traceback" not in text
