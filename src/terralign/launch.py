"""Processes that work on one run: their places, and how several are started on this machine.

`torchrun`, or `terralign run --nproc N`, gives every process its place in its environment. Torch is
not imported here.
"""

from __future__ import annotations

import math
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any

from terralign.cores import available_cores
from terralign.errors import RecipeError, TrainingError

LOST = 75
"""The exit code of a process that ended because another one did."""

REPORTED = frozenset({1, 2})
"""Exit codes of a process that has reported a fault itself."""

STOPPED = frozenset({128 + signal.SIGINT, 128 + signal.SIGTERM})
"""Exit codes of a process that was asked to stop, which the first one reports itself."""

LAUNCHER = "TERRALIGN_LAUNCHER"
"""The variable that holds the number of the process that started this one as one of several."""

SECONDS_TO_END = 5.0
"""What a process gets to end by itself after another one has failed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Place:
    """A process among the `size` of a run. `rank`: its number; `local_rank`: that on its machine,
    by which it takes its device."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0


def place() -> Place:
    """The place of this process by RANK, WORLD_SIZE and LOCAL_RANK; without them it is alone.

    `RecipeError` for values that are no place.
    """
    size = _number("WORLD_SIZE", 1)
    if size <= 1:
        return Place()
    rank = _number("RANK", None)
    local_rank = _number("LOCAL_RANK", None)
    if rank >= size:
        raise RecipeError(f"RANK = {rank}, but WORLD_SIZE = {size}: ranks are counted from 0")
    return Place(rank=rank, size=size, local_rank=local_rank)


def _number(name: str, default: int | None) -> int:
    given = os.environ.get(name)
    if given is None and default is not None:
        return default
    if given is None or not (given.isdecimal() and len(given) <= 6):
        raise RecipeError(
            f"the variable {name} is {'missing' if given is None else repr(given[:20])}, expected "
            "a number, as torchrun sets it; start with torchrun or --nproc, or unset WORLD_SIZE"
        )
    return int(given)


def launch(command: Sequence[str], num_processes: int) -> int:
    """Run a command in so many processes on this machine; the exit code of all together.

    SIGINT and SIGTERM are passed on. Where one fails, or is suspended, the others get some seconds
    to end by themselves and are then killed: what they leave, the next run clears. `TrainingError`
    names one that ended without reporting why; a fault is reported by the process itself.
    """
    shared = {
        **os.environ,
        "WORLD_SIZE": str(num_processes),
        "LOCAL_WORLD_SIZE": str(num_processes),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(_free_port()),
        LAUNCHER: str(os.getpid()),
    }
    shared.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    shared.setdefault("OMP_NUM_THREADS", str(max(1, available_cores() // num_processes - 1)))
    children: list[subprocess.Popen[bytes]] = []
    with _passed_on(children) as asked:
        try:
            for rank in range(num_processes):
                own = {**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)}
                children.append(
                    subprocess.Popen(
                        command, env=own, stdin=subprocess.DEVNULL, process_group=0
                    )  # Ctrl-C goes to this process alone, which passes it on once
                )
            if asked:  # by a signal that not all of them got; none has begun anything
                return 128 + asked[0]
            ends = _ends(children, asked)
            suspended = [rank for rank, child in enumerate(children) if _is_suspended(child)]
        finally:
            for child in children:
                if child.poll() is None:
                    child.kill()
                child.wait()
    return _judge(ends, suspended, num_processes, asked)


def _ends(children: Sequence[subprocess.Popen[bytes]], asked: Sequence[int]) -> dict[int, int]:
    """Rank -> exit code, in the order of their ends, once all have ended, or those that do by
    themselves after one has failed or is suspended."""
    ends: dict[int, int] = {}
    latest = math.inf
    while len(ends) < len(children) and time.monotonic() < latest:
        time.sleep(0.05)
        for rank, child in enumerate(children):
            if rank not in ends and (code := child.poll()) is not None:
                ends[rank] = code
        if _failed(ends, asked) or any(map(_is_suspended, children)):
            latest = min(latest, time.monotonic() + SECONDS_TO_END)
        else:
            latest = math.inf
    return ends


def _failed(ends: Mapping[int, int], asked: Sequence[int]) -> dict[int, int]:
    """The processes that failed: neither ended well, nor by a signal that was passed on."""
    well = {0, *(128 + number for number in asked), *(-number for number in asked)}
    return {rank: code for rank, code in ends.items() if code not in well}


def _is_suspended(child: subprocess.Popen[bytes]) -> bool:
    """Whether a process was stopped (SIGSTOP) and has not been continued."""
    if child.poll() is not None or not hasattr(os, "waitid"):
        return False
    look = os.WSTOPPED | os.WNOHANG | os.WNOWAIT
    return os.waitid(os.P_PID, child.pid, look) is not None


def _judge(
    ends: Mapping[int, int], suspended: Sequence[int], size: int, asked: Sequence[int]
) -> int:
    """The exit code of all; `TrainingError` names a process that did not report its own end."""
    if ends.get(0) in STOPPED:
        return ends[0]
    failed = _failed(ends, asked)
    if not failed and not suspended:
        return 128 + asked[0] if any(ends.values()) else 0
    causes = [(rank, code) for rank, code in failed.items() if code != LOST]
    causes += [(rank, 0) for rank in suspended]
    causes += [(rank, code) for rank, code in ends.items() if code == 0]
    rank, code = next(iter(causes), (None, LOST))
    if code in REPORTED:
        return code
    if rank is None:
        found = "the processes of this run lost each other (--debug shows how)"
    else:
        found = f"rank {rank} of {size} {_how(code, suspended=rank in suspended)}"
    raise TrainingError(f"{found}; run the same command again to resume")


def _how(code: int, *, suspended: bool) -> str:
    """How a process ended that others were waiting for."""
    if suspended:
        return "was suspended (SIGSTOP)"
    if code == 0:
        return "ended before the others"
    number = -code if code < 0 else code - 128
    if number in set(signal.Signals):
        return f"was ended by {signal.Signals(number).name}"
    return f"ended with exit code {code}"


@contextmanager
def _passed_on(children: Sequence[subprocess.Popen[bytes]]) -> Iterator[list[int]]:
    """Within the block SIGINT and SIGTERM go to the children; the list holds those that came."""
    received: list[int] = []

    def pass_on(number: int, frame: FrameType | None) -> None:
        received.append(number)
        for child in children:
            if child.poll() is None:
                child.send_signal(number)

    before: dict[signal.Signals, Any] = {
        number: signal.signal(number, pass_on) for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def own_command() -> list[str]:
    """The command line of this process, to be run by another one."""
    return [sys.executable, "-m", "terralign", *sys.argv[1:]]
