"""The place of a process among several, by its environment, and how several end together."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from typing import Any

import pytest

from terralign import launch as launch_module
from terralign.errors import RecipeError, TrainingError
from terralign.launch import LOST, Place, launch, place


def _set(monkeypatch: pytest.MonkeyPatch, **values: str) -> None:
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in values.items():
        monkeypatch.setenv(name, value)


def test_a_process_is_alone_or_at_the_place_that_it_was_given(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    _set(monkeypatch, RANK="3")
    assert place() == Place()
    _set(monkeypatch, RANK="5", LOCAL_RANK="1", WORLD_SIZE="8")
    assert place() == Place(rank=5, size=8, local_rank=1)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE is 'two', expected a number"),
        ({"WORLD_SIZE": "2"}, "RANK is missing"),
        ({"WORLD_SIZE": "2", "RANK": "2", "LOCAL_RANK": "0"}, "RANK = 2, but WORLD_SIZE = 2"),
        ({"WORLD_SIZE": "2", "RANK": "1" * 5000, "LOCAL_RANK": "0"}, "expected a number"),
    ],
)
def test_an_environment_that_names_no_place_is_refused(
    monkeypatch: pytest.MonkeyPatch, values: dict[str, str], message: str
) -> None:
    _set(monkeypatch, **values)
    with pytest.raises(RecipeError, match=message):
        place()


# How several end: each rank is a line of Python


def _launched(*lines: str) -> int:
    prelude = "import os, signal, time; line = os.environ['RANK']; me = os.getpid()\n"
    work = "\n".join(f"if line == '{rank}': {line}" for rank, line in enumerate(lines))
    return launch([sys.executable, "-I", "-S", "-c", prelude + work], len(lines))


WAITS = "time.sleep(60)"
LOSES = f"time.sleep(0.2); os._exit({LOST})"


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ((LOSES, "os._exit(3)", LOSES), "rank 1 of 3 ended with exit code 3"),
        ((WAITS, "os.kill(me, signal.SIGKILL)"), "rank 1 of 2 was ended by SIGKILL"),
        ((WAITS, "os._exit(143)"), "rank 1 of 2 was ended by SIGTERM"),
        ((WAITS, WAITS, "os.kill(me, signal.SIGSTOP)"), r"rank 2 of 3 was suspended \(SIGSTOP\)"),
        ((LOSES, "os._exit(0)"), "rank 1 of 2 ended before the others"),
        ((LOSES, LOSES), "the processes of this run lost each other "),
        ((f"os._exit({LOST})", "time.sleep(0.2); os.kill(me, signal.SIGABRT)"), "SIGABRT"),
    ],
)
def test_a_rank_that_does_not_report_its_end_is_named(
    monkeypatch: pytest.MonkeyPatch, lines: tuple[str, ...], message: str
) -> None:
    if WAITS in lines:
        monkeypatch.setattr(launch_module, "SECONDS_TO_END", 0.5)
    began = time.monotonic()
    with pytest.raises(TrainingError, match=message):
        _launched(*lines)
    assert time.monotonic() - began < 10


@pytest.mark.parametrize(
    ("lines", "code"),
    [
        (("pass", "pass"), 0),
        ((f"os._exit({LOST})", "time.sleep(0.2); os._exit(1)"), 1),
        (("time.sleep(0.2); os._exit(143)", "os._exit(143)"), 143),
    ],
)
def test_a_rank_that_reports_its_end_gives_the_exit_code(lines: tuple[str, ...], code: int) -> None:
    assert _launched(*lines) == code


def test_a_signal_while_the_processes_start_ends_all(monkeypatch: pytest.MonkeyPatch) -> None:
    start = subprocess.Popen

    def asked_before(*given: Any, **options: Any) -> Any:
        os.kill(os.getpid(), signal.SIGTERM)
        return start(*given, **options)

    monkeypatch.setattr(subprocess, "Popen", asked_before)
    began = time.monotonic()
    assert _launched(WAITS, WAITS) == 128 + signal.SIGTERM
    assert time.monotonic() - began < 10
