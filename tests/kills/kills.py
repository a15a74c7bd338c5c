"""Commands that are killed, or whose disk fills up, again and again: what they leave in the end.

    python tests/kills/kills.py --kills 100 --seed 1

A trial runs one command in a child process, which is killed (SIGKILL) at a random time, or just
before a random rename, or is refused space from a random write on (ENOSPC). The same command then
runs again, killed once more at times, until it ends. Its folder must hold the bytes of the run that
nothing happened to, and no partial file. Two kinds of files are compared by what they hold: lines
of `metrics.jsonl` without the keys that are times, and checkpoints, in which torch writes the name
of the partial file, and with it the number of the process.
"""

from __future__ import annotations

import argparse
import errno
import hashlib
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

from small_run import SMALL_RECIPE

TIMES = ("samples_per_second", "seconds_waiting", "cpu_seconds")
"""Keys of `metrics.jsonl` that differ from run to run."""

COMMANDS = ["pack", "run", "quickstart", "bench", "ablate"]
KINDS = ["time", "rename", "full"]

RECIPE = (
    SMALL_RECIPE.split("[[evaluate]]")[0]
    .replace("epochs = 2", "epochs = 1")
    .replace("warmup_steps = 2", "warmup_steps = 0")
    .replace("limit = 64", "limit = 32")
    .replace("validation_limit = 32", "validation_limit = 16")
    + """
[[evaluate]]
data = "synthetic-scenes"
split = "test"
role = "patching"
models = ["base", "patched"]
towers = ["s2"]
limit = 12
"""
)

STUDY = """
name = "study"
recipe = "tiny.toml"
stage = "patch"
seeds = [0]
vary = { "patch.max_supported_drop" = [0.5, 0.0] }
"""

SUITE = """
name = "tiny"
num_bootstrap = 20
[[entries]]
data = "synthetic-scenes"
split = "test"
role = "unseen"
tasks = ["zero-shot", "retrieval"]
limit = 12
"""

LIMITS = {"epochs": 1, "warmup_steps": 0, "limit": 16, "validation_limit": 16, "batch_size": 16}
"""Values of the shortened quickstart, wherever it has such a key."""


def shortened(value: Any, key: str = "") -> list[str]:
    """Overrides that make a recipe short."""
    found: list[str] = []
    if isinstance(value, dict):
        limits = {**LIMITS, "alphas": "[0.5]"} if "epochs" in value else LIMITS
        for name, one in value.items():
            place = f"{key}.{name}" if key else name
            found += [f"{place}={limits[name]}"] if name in limits else shortened(one, place)
        if isinstance(value.get("data"), str):
            limit = "validation_limit" if ".supported." in key else "limit"
            found += [] if limit in value else [f"{key}.{limit}=16"]
    elif isinstance(value, list):
        for number, one in enumerate(value):
            found += shortened(one, f"{key}.{number}")
    return found


def prepare(world: Path) -> dict[str, list[str]]:
    """Files that commands need, and the commands; each gets `--out` or a store as its last word."""
    from terralign.files import read_shipped

    (world / "tiny.toml").write_text(RECIPE)
    (world / "study.toml").write_text(STUDY)
    (world / "suite.toml").write_text(SUITE)
    quick = ["run", "quickstart"]
    for override in ["threads=1", *shortened(read_shipped("recipes", "quickstart"))]:
        quick += ["--set", override]
    models = [str(world / "model" / name) for name in ("base", "model")]
    return {
        "pack": [
            "pack",
            "synthetic-photos",
            "--split",
            "test",
            "--shard-mb",
            "1",
            "--workers",
            "2",
        ],
        "run": ["run", str(world / "tiny.toml"), "--out"],
        "quickstart": [*quick, "--out"],
        "bench": ["bench", str(world / "suite.toml"), "--models", *models, "--out"],
        "ablate": ["ablate", str(world / "study.toml"), "--out"],
    }


def run(command: list[str], folder: Path, log: Path, before: Callable[[], object] = int) -> int:
    """Start a command in a child process, which calls `before` first; its number."""
    child = os.fork()
    if child:
        return child
    code = 70
    try:
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(output, 1)
        os.dup2(output, 2)
        os.chdir(folder.parent)
        before()
        from terralign.cli import main

        main([*command, str(folder)], prog_name="terralign")
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def finish(child: int) -> int:
    """The exit code of a child; negative: the signal that ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def count_renames(report: Path) -> None:
    """In a child: write down how many renames, and how many flushes to the disk, there were."""
    counts = Counter[str]()

    def counted(name: str) -> None:
        original = getattr(os, name)

        def counting(*arguments: Any) -> Any:
            counts[name] += 1
            report.write_text(json.dumps(counts))
            return original(*arguments)

        setattr(os, name, counting)

    counted("replace")
    counted("fsync")


def kill_before_rename(number: int) -> None:
    """In a child: be killed before this rename."""
    original, left = os.replace, [number]

    def replace(*arguments: Any) -> None:
        left[0] -= 1
        if left[0] <= 0:
            os.kill(os.getpid(), signal.SIGKILL)
        original(*arguments)

    os.replace = replace  # type: ignore[assignment]


def fill_disk(number: int) -> None:
    """In a child: let the disk be full from this flush on."""
    original, left = os.fsync, [number]

    def fsync(descriptor: int) -> None:
        left[0] -= 1
        if left[0] <= 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        original(descriptor)

    os.fsync = fsync  # type: ignore[assignment]


def contents(folder: Path) -> dict[str, str]:
    """Path -> hash of what a file holds, of all but locks."""
    return {
        str(path.relative_to(folder)): _hash(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != ".lock"
    }


def _hash(path: Path) -> str:
    data = path.read_bytes()
    if path.name == "metrics.jsonl":
        lines = [json.loads(line) for line in data.splitlines()]
        kept = [{key: one[key] for key in one if key not in TIMES} for one in lines]
        data = json.dumps(kept).encode()
    elif path.suffix == ".pt":
        import torch

        data = _plain(torch.load(path, weights_only=True)).encode()
    return hashlib.sha256(data).hexdigest()


def _plain(value: Any) -> str:
    import torch

    if isinstance(value, dict):
        return repr({str(key): _plain(one) for key, one in value.items()})
    if isinstance(value, list | tuple):
        return repr(list(map(_plain, value)))
    if isinstance(value, torch.Tensor):
        return hashlib.sha256(value.contiguous().numpy().tobytes()).hexdigest()
    return repr(value)


class Harness:
    """Commands, their unbroken folders, and trials."""

    def __init__(self, world: Path, names: list[str]) -> None:
        self.world = world
        commands = prepare(world)
        self.expected: dict[str, dict[str, str]] = {}
        self.seconds: dict[str, float] = {}
        self.counts: dict[str, dict[str, int]] = {}
        made = ["run", *names] if "bench" in names and "run" not in names else names
        self.commands = {name: commands[name] for name in commands if name in made}
        for name in self.commands:
            folder, report = world / name / "out", world / f"{name}.json"
            folder.parent.mkdir()
            start = time.monotonic()
            count = partial(count_renames, report)
            child = run(self.commands[name], folder, world / "log", count)
            if finish(child) != 0:
                raise AssertionError(f"{name}: {(world / 'log').read_text()}")
            self.seconds[name] = time.monotonic() - start
            self.counts[name] = json.loads(report.read_text())
            self.expected[name] = contents(folder)
            if name == "run":
                shutil.copytree(folder, world / "model")
            shutil.rmtree(folder)

    def trial(self, name: str, kind: str, chance: random.Random) -> tuple[int, list[str]]:
        """Break a command, run it to its end: how often it was broken, and what is wrong then."""
        folder, log = self.world / name / "out", self.world / "log"
        shutil.rmtree(folder, ignore_errors=True)
        broken = 0
        for _ in range(1 + (chance.random() < 0.3)):
            child = self._break(name, kind, chance, folder, log)
            code = finish(child)
            if code == 0:
                break
            broken += 1
            said = log.read_text()
            if kind == "full" and (code != 1 or "no space left" not in said):
                return broken, [f"a full disk ended with {code}: {said[-300:]}"]
            if kind == "full" and list(folder.rglob("*.partial")):
                return broken, ["a full disk left partial files"]
        code = finish(run(self.commands[name], folder, log))
        wrong = [] if code == 0 else [f"exit {code}: {log.read_text()[-300:]}"]
        found, expected = contents(folder), self.expected[name]
        for path in sorted(found.keys() | expected.keys()):
            if found.get(path) != expected.get(path):
                kinds = {path in found, path in expected}
                wrong.append(f"{path} {'differs' if kinds == {True} else 'is missing or too much'}")
        wrong += [f"{path.name} is left" for path in folder.rglob("*.partial")]
        return broken, wrong

    def _break(self, name: str, kind: str, chance: random.Random, folder: Path, log: Path) -> int:
        command = self.commands[name]
        if kind == "rename":
            number = chance.randint(1, self.counts[name]["replace"])
            return run(command, folder, log, lambda: kill_before_rename(number))
        if kind == "full":
            number = chance.randint(1, self.counts[name]["fsync"])
            return run(command, folder, log, lambda: fill_disk(number))
        child = run(command, folder, log)
        time.sleep(chance.uniform(0, self.seconds[name]))
        os.kill(child, signal.SIGKILL)
        return child


def warm_up() -> None:
    """Import what commands need, so that children start at once, and draw figures blank."""
    os.environ["OMP_NUM_THREADS"] = "1"
    import torch
    from matplotlib.figure import Figure
    from PIL import Image

    import terralign.ablate.runs
    import terralign.bench.report
    import terralign.cli
    import terralign.runs.run  # noqa: F401

    torch.set_num_threads(1)

    def save_blank(figure: Figure, out: Any, **options: Any) -> None:
        Image.new("RGB", (8, 8)).save(out, format="PNG")

    Figure.savefig = save_blank  # type: ignore[method-assign, assignment]


def kill(num_kills: int, seed: int, names: list[str], kinds: list[str]) -> tuple[int, list[str]]:
    """Trials until there were so many kills: their number, and what was wrong."""
    warm_up()
    chance, faults, done, turn = random.Random(seed), [], 0, 0
    by_name = Counter[str]()
    with tempfile.TemporaryDirectory(prefix="kills-") as world:
        harness = Harness(Path(world), names)
        print({name: round(seconds, 1) for name, seconds in harness.seconds.items()}, flush=True)
        while done < num_kills and turn < 10 * num_kills:
            name, kind = names[turn % len(names)], kinds[turn // len(names) % len(kinds)]
            turn += 1
            broken, wrong = harness.trial(name, kind, chance)
            done += broken
            by_name[f"{name}, {kind}"] += broken
            faults += [f"{name}, {kind}: {one}" for one in wrong]
            if wrong:
                print(name, kind, *wrong, sep="\n  ", flush=True)
    print(f"{done} kills in {turn} trials, {len(faults)} faults: {dict(by_name)}")
    return done, faults


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--only", nargs="*", default=["pack", "run", "quickstart", "bench", "ablate"]
    )
    parser.add_argument("--kinds", nargs="*", default=["time", "rename", "full"])
    given = parser.parse_args()
    _, faults = kill(given.kills, given.seed, given.only, given.kinds)
    sys.exit(bool(faults))


if __name__ == "__main__":
    main()
