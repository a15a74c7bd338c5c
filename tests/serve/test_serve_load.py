"""A real server process: many clients, malformed requests, and its end."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import time
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


@pytest.mark.slow
def test_a_server_that_computes_ends_within_seconds(
    served_folder: Path, served_space: EmbeddingSpace
) -> None:
    code = (
        "import time\n"
        "from terralign.serve.served import ServedIndex\n"
        "ServedIndex.search = lambda self, request: time.sleep(600)\n"
        "from terralign.cli import main\n"
        "main()\n"
    )
    words = ["serve", str(served_folder), "--model", str(served_space.source), "--no-token"]
    with subprocess.Popen(
        [sys.executable, "-c", code, *words, "--port", "0", "--json"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        port = int(json.loads(process.stdout.readline())["address"].rstrip("/").split(":")[-1])
        with socket.create_connection(("127.0.0.1", port), timeout=60) as client:
            body = b'{"query": "a river"}'
            client.sendall(
                b"POST /api/search HTTP/1.1\r\nHost: localhost\r\n"
                b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n%s"
                % (len(body), body)
            )
            time.sleep(2)
            began = time.monotonic()
            process.send_signal(signal.SIGTERM)
            assert client.recv(4096).startswith(b"HTTP/1.1 503")
            assert process.wait(30) == 0
    assert time.monotonic() - began < 20  # 4 s on a machine that is not busy
