"""A real server process: many clients, malformed requests, and its end."""

from __future__ import annotations

import json
from pathlib import Path

import load
import pytest

from terralign.encoders.space import EmbeddingSpace


@pytest.mark.slow
def test_a_server_under_load_makes_no_error_and_says_nothing_it_must_not(
    served_folder: Path, served_space: EmbeddingSpace, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [str(served_folder), "--model", str(served_space.source)]
    status = load.main([*given, "--clients", "10", "--seconds", "5", "--malformed", "300"])
    found = json.loads(capsys.readouterr().out)
    assert found["load"]["errors"] == {}
    assert found["load"]["requests"] > 20
    assert found["malformed"]["wrong"] == []
    assert (status, found["exit_code"]) == (0, 0)
