"""Read many damaged files, and list those that did worse than be read or be refused in one line.

    python tests/fuzz/run.py --cases 2000 --seed 1
    python tests/fuzz/run.py --only png --cases 500
    python tests/fuzz/run.py --seed 1 --case png:17 --keep /tmp/case

A case is named ENTRY:NUMBER, or `hostile:NAME` of those made by hand (`--hostile`, all of them).
"""

from __future__ import annotations

import os
import sys

if __name__ == "__main__" and "PYTHONMALLOC" not in os.environ:
    # Every case is forked from this process: in large pages, that takes a quarter less.
    large = {"PYTHONMALLOC": "malloc", "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
    os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **large})

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch: every case is a process of its own
os.environ["HF_HUB_OFFLINE"] = "1"

import argparse
import collections
import gc
import json
import shutil
import tempfile
import time
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

from fuzz import corpus
from fuzz.corpus import ENTRIES, Entry
from fuzz.hostile import HOSTILE
from fuzz.mutations import damage_folder
from fuzz.outcome import GOOD, Outcome, run_case

SLOW = ("run-complete", "run-resumed", "bench", "majortom")
"""Entries that take seconds to write or to read."""

BY_NAME = {entry.name: entry for entry in ENTRIES}


def plan(
    num_cases: int, only: Sequence[str] = (), *, hostile: bool = False, quick: bool = False
) -> list[str]:
    """The names of cases: entries take turns; `quick` leaves out those that train or draw."""
    entries = [
        one.name
        for one in ENTRIES
        if (not only or one.name in only) and not (quick and one.name in SLOW)
    ]
    made = [
        f"hostile:{name}"
        for name, one in HOSTILE.items()
        if hostile and (not only or one.entry in only or name in only)
    ]
    if not entries:
        return made
    return made + [f"{entries[n % len(entries)]}:{n // len(entries)}" for n in range(num_cases)]


class Runner:
    """Templates of the entries that cases need, and a place for each case."""

    def __init__(self, base: Path, names: Iterable[str], seed: int) -> None:
        self.base, self.seed = base, seed
        corpus.prepare(base / "shared")
        self.wanted = sorted({_entry_of(name).name for name in names})
        for name in self.wanted:
            folder = self.template(name)
            folder.mkdir(parents=True)
            os.chdir(folder)
            with _silent():
                BY_NAME[name].write(folder)
        os.chdir(base)
        self.donors = [one for one in sorted(base.glob("templates/*/*")) if one.is_file()]

    def template(self, entry: str) -> Path:
        return self.base / "templates" / entry

    def run(self, case: str, *, intact: bool = False) -> Outcome:
        """One case; `intact`: its files without the damage."""
        entry = _entry_of(case)
        place = self.base / "cases" / case.replace(":", "-")
        rng = Random(f"{self.seed}:{case}")
        if intact:
            damage: Any = lambda folder: ()  # noqa: E731
        elif case.startswith("hostile:"):
            damage = partial(_made_hostile, case.partition(":")[2])
        else:
            damage = partial(damage_folder, rng=rng, kept=entry.kept, donors=self.donors)
        return run_case(case, entry, self.template(entry.name), place, damage)


def _made_hostile(name: str, folder: Path) -> list[str]:
    return [f"{one}: {name}" for one in HOSTILE[name].make(folder)]


def _entry_of(case: str) -> Entry:
    kind, _, name = case.partition(":")
    return BY_NAME[HOSTILE[name].entry if kind == "hostile" else kind]


class _silent:
    """Nothing on stdout and stderr, of this process or of C libraries."""

    def __enter__(self) -> None:
        sys.stdout.flush()
        self.kept = [os.dup(1), os.dup(2)]
        nothing = os.open(os.devnull, os.O_WRONLY)
        for number in (1, 2):
            os.dup2(nothing, number)
        os.close(nothing)

    def __exit__(self, *_: object) -> None:
        sys.stdout.flush()
        for number, file in zip((1, 2), self.kept, strict=True):
            os.dup2(file, number)
            os.close(file)


def run_all(
    cases: Sequence[str], seed: int, *, jobs: int, keep: Path | None = None, intact: bool = False
) -> list[Outcome]:
    """The outcome of every case, in order; `jobs` processes share them."""
    base = Path(tempfile.mkdtemp(prefix="fuzz-"))
    runner = Runner(base, cases, seed)
    gc.collect()
    gc.freeze()  # children then share its pages
    started = []
    for job in range(jobs):
        worker = os.fork() if jobs > 1 else 0
        if worker == 0:
            with open(base / f"outcomes-{job}", "w") as file:
                for number in range(job, len(cases), jobs):
                    outcome = runner.run(cases[number], intact=intact)
                    file.write(json.dumps([number, outcome.to_json()]) + "\n")
                    if keep is None or len(cases) > 1:
                        shutil.rmtree(base / "cases" / cases[number].replace(":", "-"))
            if jobs > 1:
                os._exit(0)
        started.append(worker)
    for worker in started if jobs > 1 else ():
        os.waitpid(worker, 0)
    found: dict[int, Outcome] = {}
    for job in range(jobs):
        for line in (base / f"outcomes-{job}").read_text().splitlines():
            number, values = json.loads(line)
            found[number] = Outcome(**{**values, "done": tuple(values["done"])})
    if keep is not None and len(cases) == 1:
        shutil.copytree(base / "cases", keep, symlinks=True, dirs_exist_ok=True)
    os.chdir("/")
    shutil.rmtree(base)
    return [found[number] for number in sorted(found)]


def table(outcomes: Sequence[Outcome]) -> str:
    """How the cases of each entry ended."""
    kinds = [*GOOD, *sorted({one.kind for one in outcomes} - set(GOOD))]
    names = list(dict.fromkeys(one.entry for one in outcomes))
    lines = [
        f"{'entry':24}{'cases':>7}" + "".join(f"{kind:>11}" for kind in kinds) + "   max s  max MB"
    ]
    for name in [*names, "all"]:
        of = [one for one in outcomes if name in (one.entry, "all")]
        counts = collections.Counter(one.kind for one in of)
        lines.append(
            f"{name:24}{len(of):>7}" + "".join(f"{counts[kind] or '':>11}" for kind in kinds)
            + f"{max(one.cpu_s for one in of):>8.1f}{max(one.growth_mb for one in of):>8}"
        )  # fmt: skip
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--cases", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", action="append", default=[], help="entry; repeatable")
    parser.add_argument("--case", action="append", default=[], help="one case; repeatable")
    parser.add_argument("--quick", action="store_true", help="without entries that take seconds")
    parser.add_argument("--hostile", action="store_true", help="also all files made by hand")
    parser.add_argument("--intact", action="store_true", help="read the valid files")
    parser.add_argument("--keep", type=Path, help="keep the files of a single case here")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--json", type=Path, help="write all outcomes to this file")
    given = parser.parse_args()
    keep = given.keep.absolute() if given.keep else None
    num_cases = len(given.only or ENTRIES) if given.intact else given.cases
    cases = given.case or plan(num_cases, given.only, hostile=given.hostile, quick=given.quick)
    out = given.json.absolute() if given.json else None
    start = time.monotonic()
    outcomes = run_all(cases, given.seed, jobs=given.jobs, keep=keep, intact=given.intact)
    failures = [one for one in outcomes if one.kind not in GOOD]
    if given.intact:
        failures = [one for one in outcomes if one.kind != "read"]
    if out is not None:
        values = [one.to_json() for one in outcomes]
        out.write_text(json.dumps({"seed": given.seed, "outcomes": values}, indent=1))
    print(table(outcomes))
    for one in failures if not given.case else outcomes:
        print(f"\n{one.kind} [{one.part}] {one.text}\n  {'; '.join(one.done)}"
              f"\n  {one.cpu_s} s, {one.growth_mb} MB: "
              f"python tests/fuzz/run.py --seed {given.seed} --case {one.case}")  # fmt: skip
    print(f"\n{len(outcomes)} cases, {len(failures)} failures, {time.monotonic() - start:.0f} s")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
