"""Processes that share work without end, one of which fails at a random moment: how they all end.

    python tests/kills/stress_ranks.py --runs 30 --processes 3 --seed 1

In each run one rank raises, exits, is killed, suspended or asked to stop. The launcher must end
within seconds, with a fault, one line that names the rank, and no process left. One moment in five
comes while the ranks still import and meet.
"""

from __future__ import annotations

import argparse
import itertools
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any

import click

sys.path.insert(0, str(Path(__file__).parent))

from kill_ranks import SECONDS_TO_END, ranks_of

from terralign.cli.faults import OneLineFaults
from terralign.launch import launch

KINDS = {
    "raise": signal.SIGUSR1,
    "exit": signal.SIGUSR2,
    "kill": signal.SIGKILL,
    "suspend": signal.SIGSTOP,
    "stop": signal.SIGTERM,
}
"""What happens to a rank, and the signal by which it does."""

SECONDS = 2.0
"""In which the moment lies, from when the ranks have met; of those in five, from the start until
about then."""


@click.group(cls=OneLineFaults)
def group() -> None:
    """As the command line reports faults."""


@group.command("launch")
@click.argument("num_processes", type=int)
@click.argument("met")
def start(num_processes: int, met: str) -> None:
    """Start the ranks, which write the file `met` once they work together."""
    sys.exit(launch([sys.executable, __file__, "work", met], num_processes))


@group.command()
@click.argument("met", type=Path)
def work(met: Path) -> None:
    """A rank: all that ranks do together, until something happens."""

    def pull(number: int, frame: Any) -> None:
        raise OSError("cable pulled")

    signal.signal(signal.SIGUSR1, pull)
    signal.signal(signal.SIGUSR2, lambda number, frame: os._exit(3))
    import torch

    from terralign import ranks

    def embed(pieces: Sequence[int]) -> Generator[ranks.Found, None, None]:
        for piece in pieces:
            time.sleep(0.002)
            yield (torch.full((8, 4), float(piece)),)

    with ranks.joined("cpu"):
        for step in itertools.count():
            ranks.sum_parts([torch.ones(100_000)], in_order=step % 2 == 0)
            assert ranks.greatest(step) == [step]
            met.touch()
            if step % 5 == 0:
                ranks.by_first(lambda: time.sleep(0.02))
                ranks.gather(step)
                found = [int(one[0, 0]) for (one,) in ranks.share_out(range(7), embed)]
                assert found == list(range(7)) * ranks.is_first()


def run(
    num_processes: int, kind: str, rank: int, after: float, *, met: Path, early: bool
) -> tuple[float, list[str], str, float | None]:
    """One run: seconds from the fault to the end, what was wrong, what was reported, and seconds
    until the ranks had met.

    `met`: a file that they write then, from when `after` counts unless it is `early`.
    """
    process = subprocess.Popen(
        [sys.executable, __file__, "launch", str(num_processes), str(met)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    while len(children := ranks_of(process.pid)) < num_processes:
        time.sleep(0.01)
    started = time.monotonic()
    while not (early or met.exists()):
        time.sleep(0.01)
    meeting = None if early else time.monotonic() - started
    time.sleep(after)
    os.kill(children[rank], KINDS[kind])
    began = time.monotonic()
    try:
        _, said = process.communicate(timeout=120)
    except subprocess.TimeoutExpired:
        process.kill()
        return 120.0, ["it did not end"], "", meeting
    took = time.monotonic() - began
    wrong = [] if process.returncode else ["it ended with 0"]
    lines = said.splitlines()
    named = f"rank {rank} of {num_processes}" in said or (kind, rank) == ("stop", 0)
    if len(lines) != 1 or not named:
        wrong.append(f"it reports {lines}")
    if took > SECONDS_TO_END:
        wrong.append(f"it ended after {took:.0f} s")
    wrong += [f"process {child} is left" for child in children if Path(f"/proc/{child}").exists()]
    return took, wrong, said.strip(), meeting


def stress(num_runs: int, num_processes: int, seed: int) -> list[str]:
    """So many runs, of each kind in turn: what was wrong."""
    chance, faults, meeting = random.Random(seed), [], 1.0
    for number, kind in zip(range(num_runs), itertools.cycle(KINDS), strict=False):
        rank, early = chance.randrange(num_processes), number > 0 and chance.random() < 0.2
        after = chance.uniform(0, 1.1 * meeting if early else SECONDS)
        with tempfile.TemporaryDirectory() as folder:
            met = Path(folder, "met")
            took, wrong, said, found = run(num_processes, kind, rank, after, met=met, early=early)
        meeting = found or meeting
        when = f"{after:.1f} s after the {'start' if early else 'meeting'}"
        print(f"{number + 1}: {kind} rank {rank} {when}: {took:.1f} s, {said}")
        print(*(f"  {one}" for one in wrong), sep="\n", end="\n" * bool(wrong), flush=True)
        faults += wrong
    print(f"{num_runs} runs, {len(faults)} faults")
    return faults


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--runs", type=int, default=30)
    parser.add_argument("--processes", type=int, default=3)
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    sys.exit(bool(stress(given.runs, given.processes, given.seed)))


if __name__ == "__main__":
    if sys.argv[1:2] in (["launch"], ["work"]):
        group()
    main()
