"""The command `terralign serve`: what it refuses before a model is loaded, and how it exports."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from terralign.cli import main
from terralign.encoders.space import EmbeddingSpace
from terralign.serve import app as serving
from terralign.serve import run as running
from terralign.serve.security import Guard


def serve(*words: object, **variables: str) -> Result:
    return CliRunner().invoke(main, ["serve", *map(str, words)], env=variables)


@pytest.mark.parametrize(
    ("words", "fault"),
    [
        (
            ["--no-token", "--host", "0.0.0.0"],
            "everybody who reaches this machine would have access",
        ),
        (["--no-token", "--token", "a-long-token"], "exclude each other"),
        (["--token", "short"], "8 to 200"),
        (["--query", "a river"], "--query: only with --static"),
        (["--static", "out"], "--static needs --query"),
        (["--static", "out", "--query", " "], "--static needs --query"),
        (["--static", "out", "--query", "a", "--port", "1"], "--port: no effect with --static"),
        (["--scenes", "nowhere"], "no such folder"),
        (["--host", "nowhere.invalid"], "is not known"),
    ],
)
def test_options_that_make_no_sense_are_refused(
    served_folder: Path, words: list[str], fault: str
) -> None:
    found = serve(served_folder, *words)
    assert found.exit_code in (1, 2)
    assert fault in found.stderr
    assert "Traceback" not in found.stderr


def test_a_folder_without_parts_is_refused(tmp_path: Path) -> None:
    found = serve(tmp_path)
    assert (found.exit_code, found.stdout) == (1, "")
    assert "holds no parts" in found.stderr
    assert "not found" in serve(tmp_path / "nowhere").stderr


def test_a_port_in_use_is_said_in_one_line(served_folder: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        found = serve(served_folder, "--port", port)
    assert found.exit_code == 1
    assert f"cannot listen on port {port} of 127.0.0.1" in found.stderr
    assert len(found.stderr.splitlines()) == 1


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The applications that would have been served."""
    apps: list[Any] = []

    def run(app: Any, listening: socket.socket) -> None:
        listening.close()
        apps.append(app)

    monkeypatch.setattr(running, "run", run)
    return apps


@pytest.fixture
def loaded(served_space: EmbeddingSpace, monkeypatch: pytest.MonkeyPatch) -> None:
    """The model need not be loaded again."""
    monkeypatch.setattr("terralign.cli.serve._load", lambda *given: served_space)


@pytest.mark.usefixtures("loaded")
def test_a_token_is_generated_and_printed_unless_it_was_given(
    served_folder: Path, started: list[Guard]
) -> None:
    words = (served_folder, "--port", 0)
    tokens = [json.loads(serve(*words, "--json").stdout)["token"] for _ in range(2)]
    assert len({*tokens}) == 2
    assert min(map(len, tokens)) >= 32
    assert started[1]._settings.token == tokens[1]
    given = serve(*words, TERRALIGN_TOKEN="a-token-of-mine")
    assert "a-token-of-mine" not in given.stdout + given.stderr
    assert started[2]._settings.token == "a-token-of-mine"
    serve(*words, "--no-token")
    assert started[3]._settings.token is None


@pytest.mark.usefixtures("loaded")
@pytest.mark.parametrize(
    ("words", "hosts"),
    [
        ([], {"localhost", "127.0.0.1", "[::1]"}),
        (["--allow-host", "Maps.Example.org"], {"maps.example.org", "localhost", "127.0.0.1"}),
        (["--host", "0.0.0.0"], None),
        (["--host", "0.0.0.0", "--allow-host", "a.example"], {"a.example", "localhost"}),
    ],
)
def test_names_of_the_host(
    served_folder: Path, started: list[Guard], words: list[str], hosts: set[str] | None
) -> None:
    found = serve(served_folder, "--port", 0, *words)
    assert found.exit_code == 0, found.stderr
    named = started[0]._settings.hosts
    assert named is None if hosts is None else hosts <= set(named or ())


@pytest.mark.usefixtures("loaded")
def test_a_browser_gets_the_token_by_a_page_that_is_removed(
    served_folder: Path, started: list[Guard], monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[tuple[Path, str]] = []

    def browse(address: str) -> bool:
        page = Path(address.removeprefix("file://"))
        assert page.stat().st_mode & 0o077 == 0
        opened.append((page, page.read_text()))
        return True

    monkeypatch.setattr("webbrowser.open", browse)
    found = serve(served_folder, "--port", 0, "--open", TERRALIGN_TOKEN="a-token-of-mine")
    assert found.exit_code == 0, found.stderr
    [(page, text)] = opened
    assert "/?token=a-token-of-mine" in text
    assert not page.exists()


def test_a_model_of_another_space_is_refused(
    served_folder: Path, tiny_starter: Path, started: list[Guard]
) -> None:
    found = serve(served_folder, "--model", "starter:base", "--port", 0)
    assert (found.exit_code, started) == (1, [])
    assert "of space" in found.stderr
    assert len(found.stderr.splitlines()) == 1


def test_a_model_that_moved_is_asked_for(
    served_folder: Path, monkeypatch: pytest.MonkeyPatch, started: list[Guard]
) -> None:
    from terralign.index.search import Index

    monkeypatch.setattr(Index, "model", "/nowhere/model")
    found = serve(served_folder, "--port", 0)
    assert (found.exit_code, started) == (1, [])
    assert "if it is elsewhere, name it: --model" in found.stderr
    assert len(found.stderr.splitlines()) == 1


def test_an_export_says_how_to_show_it(
    served_folder: Path, served_space: EmbeddingSpace, tmp_path: Path
) -> None:
    words = (served_folder, "--model", served_space.source, "--query", "a river", "-k", 3)
    found = serve(*words, "--static", tmp_path / "out")
    assert found.exit_code == 0, found.stderr
    assert "3 hits, 4 pictures" in found.stdout
    assert "http.server" in found.stdout
    assert len(list((tmp_path / "out" / "thumbnails").iterdir())) == 3


def test_without_the_extra_it_is_named(
    served_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "rio_tiler", None)
    found = serve(served_folder)
    assert found.exit_code == 1
    assert "pip install 'terralign[serve]'" in found.stderr


def test_the_page_is_among_the_files_of_the_package() -> None:
    names = set(serving.page_files())
    assert {"index.html", "app.js", "style.css"} <= names
