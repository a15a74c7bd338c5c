"""`terralign run --nproc` and `torchrun`: one run by several processes, from the command line."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from fakes import losses_of
from small_run import SMALL_RECIPE
from terralign.cli import main
from terralign.launch import LAUNCHER

SHORT = SMALL_RECIPE.split("[[evaluate]]")[0].replace("drop_path = 0.2", "drop_path = 0.0")
"""Without dropout, which draws other numbers in several processes."""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "small.toml"
    path.write_text(SHORT)
    return path


def _start(*command: str, cwd: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", *command], cwd=cwd, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        env={**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "100"},
    )  # fmt: skip


def _faults(stderr: str) -> list[str]:
    return [line for line in stderr.splitlines() if line.startswith("terralign:")]


def test_processes_that_were_started_already_start_no_more(
    recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv(LAUNCHER, raising=False)
    found = CliRunner().invoke(main, ["run", str(recipe), "--nproc", "2"])
    assert found.exit_code == 1
    assert "rank 1 of 2: --nproc 2 within 2 processes that were started already" in found.output


def test_a_recipe_is_checked_before_processes_are_started(tmp_path: Path) -> None:
    found = CliRunner().invoke(main, ["run", "quickstrat", "--nproc", "2"])
    assert found.exit_code == 1
    assert "did you mean 'quickstart'?" in found.output


@pytest.mark.slow
def test_the_launcher_and_torchrun_give_the_losses_of_one_process(
    recipe: Path, tmp_path: Path
) -> None:
    commands: dict[str, list[str]] = {
        "one": ["terralign", "run", str(recipe)],
        "two": ["terralign", "run", str(recipe), "--nproc", "2"],
        "torchrun": [
            "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
            "-m", "terralign", "run", str(recipe),
        ],
    }  # fmt: skip
    said: dict[str, Any] = {}
    for name, command in commands.items():
        process = _start(*command, "--out", name, cwd=tmp_path)
        said[name] = process.communicate()
        assert process.returncode == 0, said[name]
    one = losses_of(tmp_path / "one" / "align") + losses_of(tmp_path / "one" / "patch")
    assert len(one) == 24
    for name in ("two", "torchrun"):
        folder = tmp_path / name
        losses = losses_of(folder / "align") + losses_of(folder / "patch")
        assert losses == pytest.approx(one, rel=1e-5)
        assert said[name][0].replace(name, "one") == said["one"][0], "printed once"
    assert said["two"][1] == said["one"][1]
    again = _start("terralign", "run", str(recipe), "--nproc", "2", "--out", "one", cwd=tmp_path)
    assert "already complete" in again.communicate()[0]


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_the_launcher_saves_and_ends_all(
    recipe: Path, tmp_path: Path, number: int
) -> None:
    recipe.write_text(SHORT.replace("epochs = 2", "epochs = 400"))
    process = _start("terralign", "run", str(recipe), "--nproc", "2", "--out", "r", cwd=tmp_path)
    log = tmp_path / "r" / "patch" / "checkpoints" / "metrics.jsonl"
    while not (log.is_file() and log.read_text()):
        assert process.poll() is None, process.communicate()
        time.sleep(0.1)
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    (line,) = _faults(said)
    assert "and saved; run the same command again to resume" in line
    assert log.with_name("last.pt").is_file()


@pytest.mark.slow
def test_a_fault_is_one_line_of_the_rank_whose_it_is(recipe: Path, tmp_path: Path) -> None:
    recipe.write_text(SHORT.replace("lr = 1e-3\nwarmup_steps = 2", "lr = 1e30\nwarmup_steps = 2"))
    process = _start("terralign", "run", str(recipe), "--nproc", "3", "--out", "r", cwd=tmp_path)
    _, said = process.communicate()
    assert process.returncode == 1
    (line,) = _faults(said)
    assert " of 3: patch: step " in line
    assert "Traceback" not in said
    assert "[W" not in said, "torch warns of nothing"
