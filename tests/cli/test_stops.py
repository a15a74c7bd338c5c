"""Ctrl-C at any moment of the command's life: at most one line, and an exit code that says so."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent

_STOP_AT = """
import builtins, os, signal, sys

original = builtins.__import__


def stop():
    os.kill(os.getpid(), signal.SIGINT)


def importing(name, *arguments, **keywords):
    if name == os.environ["STOP_AT"]:
        builtins.__import__ = original
        stop()
    return original(name, *arguments, **keywords)


builtins.__import__ = importing
if os.environ["STOP_AT"] == "exit":
    import atexit

    atexit.register(stop)
"""
"""A `sitecustomize` that sends SIGINT where a module is imported, or when Python ends."""


def script(folder: Path) -> list[str]:
    """The command as pip installs it."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    module, function = project["scripts"]["terralign"].split(":")
    path = folder / "terralign"
    path.write_text(f"import sys\nfrom {module} import {function}\nsys.exit({function}())\n")
    return [sys.executable, str(path)]


def check_clean(code: int, said: str) -> None:
    assert code == 130, said
    assert re.fullmatch(r"(terralign: interrupted(; [^\n]*)?\n)?", said)


@pytest.mark.parametrize("module", ["terralign.files", "click", "tqdm", "terralign.cli.info"])
@pytest.mark.parametrize("kind", ["module", "script"])
def test_an_interrupted_import_says_no_more_than_a_line(
    tmp_path: Path, module: str, kind: str
) -> None:
    (tmp_path / "sitecustomize.py").write_text(_STOP_AT)
    command = [sys.executable, "-m", "terralign"] if kind == "module" else script(tmp_path)
    paths = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [*command, "info"], env={**os.environ, "PYTHONPATH": paths, "STOP_AT": module},
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    check_clean(done.returncode, done.stderr)
    assert done.stdout == ""


def test_an_interrupt_while_python_ends_leaves_the_result(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(_STOP_AT)
    paths = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-m", "terralign", "--version"],
        env={**os.environ, "PYTHONPATH": paths, "STOP_AT": "exit"},
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.stdout.startswith("terralign, version")
    assert (done.returncode, done.stderr) == (0, "")


def test_an_ignored_interrupt_stays_ignored() -> None:
    ignoring = "import os, signal, sys; signal.signal(signal.SIGINT, signal.SIG_IGN)\n"
    ignoring += "os.execv(sys.executable, [sys.executable, '-m', 'terralign', 'info'])"
    child = subprocess.Popen([sys.executable, "-c", ignoring], stdout=subprocess.PIPE)
    time.sleep(0.3)
    child.send_signal(signal.SIGINT)
    output, _ = child.communicate(timeout=60)
    assert child.returncode == 0
    assert output


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["module", "script"])
def test_an_interrupt_at_any_time_says_no_more_than_a_line(tmp_path: Path, kind: str) -> None:
    command = [sys.executable, "-m", "terralign"] if kind == "module" else script(tmp_path)
    num_stopped = 0
    for number in range(20):
        child = subprocess.Popen(
            [*command, "info"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        time.sleep(0.02 + 0.12 * number)
        child.send_signal(signal.SIGINT)
        _, said = child.communicate(timeout=60)
        if child.returncode == 0:
            assert said == ""
        elif "/terralign/cli" in said or child.returncode == 130:  # else Python itself was starting
            check_clean(child.returncode, said)
            num_stopped += 1
    assert num_stopped
