"""What the command line makes of messages and of places to write to."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import pytest
from click.testing import CliRunner

from terralign.cli import main
from terralign.cli.faults import MAX_SHOWN, one_line, report


def test_a_long_message_keeps_its_beginning_and_its_remedy(
    capsys: pytest.CaptureFixture[str],
) -> None:
    report(f"a.toml has a key of {'x' * 10_000_000}; write a shorter one")
    said = capsys.readouterr().err
    assert said.startswith("terralign: a.toml has a key of xxx")
    assert said.endswith("xxx; write a shorter one\n")
    assert len(said) < MAX_SHOWN + 50


def test_a_message_without_excess_is_kept_whole() -> None:
    assert one_line("a.toml  is\nno TOML") == "a.toml is no TOML"
    text = "x" * MAX_SHOWN
    assert one_line(text) == text


def test_control_characters_are_escaped_in_faults_and_in_logs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name = "a\x1b[31m\u202e.toml"
    result = CliRunner().invoke(main, ["run", name, "--out", str(tmp_path / "out")])
    assert "a\\x1b[31m\\u202e.toml" in result.stderr
    CliRunner().invoke(main, ["--quiet", "info", "nothing"])  # which sets the logger up
    handler = logging.getLogger("terralign").handlers[0]
    record = logging.LogRecord("terralign", 30, "", 0, "%s failed", (f"{name}\nagain",), None)
    assert handler.format(record) == "a\\x1b[31m\\u202e.toml again failed"


@pytest.mark.parametrize(
    "command",
    [
        "run quickstart --out", "run quickstart --stores", "quickstart --out",
        "patch --recipe quickstart --out", "align --recipe quickstart --base x --out",
        "bench quick --models x --out", "bench quick --models x --out new --shared",
        "ablate losses --out", "ablate losses --shared", "ablate losses --stores",
    ],
)  # fmt: skip
@pytest.mark.parametrize("kind", ["file", "pipe", "link"])
def test_a_place_for_no_folder_is_refused_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str, kind: str
) -> None:
    monkeypatch.chdir(tmp_path)
    if kind == "pipe":
        os.mkfifo("place")
    elif kind == "link":
        Path("place").symlink_to("gone")
    else:
        Path("place").write_text("")
    result = CliRunner().invoke(main, [*command.split(), "place"])
    assert result.exit_code == 1
    assert result.stderr.startswith("terralign: cannot write into place: place is a ")
    assert result.stderr.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["place"]
