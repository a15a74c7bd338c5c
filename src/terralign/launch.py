"""Processes that work on one run: their places, and how several are started on this machine.

`torchrun`, or `terralign run --nproc N`, gives every process its place in its environment. Torch is
not imported here.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any

from terralign.cores import available_cores
from terralign.errors import RecipeError, TrainingError

LOST = 75
"""The exit code of a process that ended because another one did."""

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

    SIGINT and SIGTERM are passed on. Where one fails, the others end or are killed within seconds:
    what they leave, the next run clears. `TrainingError` names one that a signal ended, and a fault
    is reported by the process itself.
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
            codes: list[int | None] = [None]
            while None in codes and (asked or not any(codes)):
                time.sleep(0.05)
                codes = [child.poll() for child in children]
            return _exit_code(children, asked)
        finally:
            _end(children)


def _exit_code(children: Sequence[subprocess.Popen[bytes]], asked: Sequence[int]) -> int:
    """What the processes ended with, or the first that failed."""
    if asked:
        return 128 + asked[0]
    time.sleep(0.3)  # a process that is killed has others fail; all count
    latest = time.monotonic() + SECONDS_TO_END
    while True:
        codes = {rank: child.poll() for rank, child in enumerate(children)}
        failed = {rank: code for rank, code in codes.items() if code}
        only_lost = set(failed.values()) == {LOST} and None in codes.values()
        if not only_lost or time.monotonic() > latest:
            break
        time.sleep(0.05)  # those that lost another one may end before it does
    for rank, code in failed.items():
        if code < 0:
            raise TrainingError(
                f"rank {rank} of {len(children)} was ended by {signal.Signals(-code).name}; "
                "run the same command again to resume"
            )
    reported = [code for code in failed.values() if code != LOST]
    if failed and not reported:
        raise TrainingError(
            "the processes of this run lost each other; run the same command again to resume"
        )
    return reported[0] if reported else 0


def _end(children: Sequence[subprocess.Popen[bytes]]) -> None:
    """Wait for those that end by themselves, as having lost another one, and kill the others."""
    latest = time.monotonic() + SECONDS_TO_END
    for child in children:
        try:
            child.wait(max(0.0, latest - time.monotonic()))
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


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
