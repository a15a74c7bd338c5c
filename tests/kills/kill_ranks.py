"""A run of several processes, one of which is killed again and again: what it leaves in the end.

    python tests/kills/kill_ranks.py --kills 10 --processes 3 --seed 1

A trial starts the run, kills one of its ranks (SIGKILL) at a random time, and starts the same
command again, which must end in the bytes of the run that nothing happened to. The killed run must
end within seconds, with one line that names the rank. Trials whose run ended before the kill do not
count.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from kills import RECIPE, contents

SECONDS_TO_END = 15.0
"""From the kill to the end of the command, on a machine that is busy."""


def start(recipe: Path, folder: Path, num_processes: int) -> subprocess.Popen[str]:
    """The command, in the background."""
    return subprocess.Popen(
        [
            sys.executable, "-m", "terralign", "run", str(recipe), "--out", str(folder),
            "--nproc", str(num_processes),
        ],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=folder.parent,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip


def ranks_of(launcher: int) -> list[int]:
    """The processes that a launcher has started and that still run, by rank."""
    found = Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split()
    return [int(one) for one in found]


def trial(
    recipe: Path, folder: Path, num_processes: int, seconds: float, chance: random.Random
) -> tuple[bool, str, list[str]]:
    """Kill one rank and run again: whether it was killed, when and which, and what was wrong."""
    shutil.rmtree(folder, ignore_errors=True)
    after, rank = chance.uniform(0.05, 0.95) * seconds, chance.randrange(num_processes)
    broken = start(recipe, folder, num_processes)
    time.sleep(after)
    children, wrong = ranks_of(broken.pid), []
    if killed := len(children) == num_processes:
        os.kill(children[rank], signal.SIGKILL)
    began = time.monotonic()
    _, said = broken.communicate()
    took = time.monotonic() - began
    killed = killed and broken.returncode != 0
    if killed:
        faults = [line for line in said.splitlines() if line.startswith("terralign:")]
        if len(faults) != 1 or f"rank {rank} of {num_processes} was ended by SIGKILL" not in said:
            wrong.append(f"it reports {faults}")
        if took > SECONDS_TO_END:
            wrong.append(f"it ended after {took:.0f} s")
    again = start(recipe, folder, num_processes)
    _, said = again.communicate()
    if again.returncode:
        wrong.append(f"exit {again.returncode}: {said[-300:]}")
    what = f"rank {rank} after {after:.1f} s" if killed else f"nothing after {after:.1f} s"
    return killed, f"{what}, ended {took:.1f} s later with {broken.returncode}", wrong


def kill(num_kills: int, num_processes: int, seed: int) -> list[str]:
    """Trials until so many ranks were killed: what was wrong."""
    chance, faults = random.Random(seed), []
    with tempfile.TemporaryDirectory(prefix="kill-ranks-") as world:
        recipe, folder = Path(world, "tiny.toml"), Path(world, "out")
        recipe.write_text(RECIPE)
        began = time.monotonic()
        whole = start(recipe, folder, num_processes)
        _, said = whole.communicate()
        if whole.returncode:
            raise AssertionError(said)
        seconds, expected = time.monotonic() - began, contents(folder)
        print(f"unbroken: {seconds:.1f} s", flush=True)
        done = trials = 0
        while done < num_kills and trials < 3 * num_kills:
            trials += 1
            killed, what, wrong = trial(recipe, folder, num_processes, seconds, chance)
            done += killed
            found = contents(folder)
            wrong += [
                f"{path} differs"
                for path in sorted(found.keys() | expected.keys())
                if found.get(path) != expected.get(path)
            ]
            print(f"{trials}: {what}: {wrong or 'the same bytes'}", flush=True)
            faults += wrong
        print(f"{done} kills in {trials} trials, {len(faults)} faults")
        if done < num_kills:
            faults.append(f"only {done} of {num_kills} kills came in time")
    return faults


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--processes", type=int, default=3)
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    sys.exit(bool(kill(given.kills, given.processes, given.seed)))


if __name__ == "__main__":
    main()
