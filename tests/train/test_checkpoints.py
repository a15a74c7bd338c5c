"""The log of a stage, whole and torn."""

from __future__ import annotations

import logging
from contextlib import closing
from pathlib import Path

import pytest

from terralign.train.checkpoints import MetricsLog, read_losses, read_metrics

WHOLE = '{"step": 1, "loss": 2.5}\n{"step": 1, "validation": 0.5}\n{"step": 2, "loss": 1.5}\n'

TORN = [
    b'{"step": 3, "lo', b"\xff\xfe\x00\x01", b"[]\n", b"null\n", b'{"step": []}\n', b"[" * 100_000,
    b'{"step": 1e400, "loss": 1}', b'{"loss": 1}\n', b'{"step": ' + b"9" * 5000 + b"}\n",
    b'{"step": 3, "loss": "low"}\n', b'{"step": 3, "loss": null}\n',
]  # fmt: skip


@pytest.mark.parametrize("torn", TORN)
def test_a_torn_log_is_read_without_its_damaged_lines(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, torn: bytes
) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(WHOLE.encode() + torn)
    with caplog.at_level(logging.WARNING):
        assert read_losses(path) == [2.5, 1.5]
        assert len(read_metrics(path)) == 3
    assert f"{path}: 1 line damaged; skipped" in caplog.text


@pytest.mark.parametrize("torn", TORN)
def test_a_torn_log_is_repaired_on_resume(tmp_path: Path, torn: bytes) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(WHOLE.encode() + torn)
    with closing(MetricsLog(path, keep_steps=2)) as log:
        log.write(3, {"loss": 0.5})
    assert path.read_text() == WHOLE + '{"step": 3, "loss": 0.5}\n'


def test_a_link_in_the_place_of_the_log_is_not_followed(tmp_path: Path) -> None:
    path, victim = tmp_path / "metrics.jsonl", tmp_path / "victim"
    path.symlink_to(victim)
    with closing(MetricsLog(path, keep_steps=0)) as log:
        log.write(1, {"loss": 0.5})
    assert not victim.exists()
    assert read_losses(path) == [0.5]
