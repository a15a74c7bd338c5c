"""Progress of long work."""

from __future__ import annotations

import sys

import pytest

from terralign import progress
from terralign.progress import Progress


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_a_line_now_and_then_with_rate_and_time_left(
    clock: list[float], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO", logger="terralign"), Progress("patch", total=100, done=20) as bar:
        clock[0] += 10
        bar.advance(10)
        assert caplog.text == ""
        clock[0] += 10
        bar.advance(30, note="loss 0.5")
    # 40 steps in 20 seconds; 40 are left.
    assert "patch: 60 of 100 steps, 2 steps/s, 0:20 left, loss 0.5" in caplog.text
    assert len(caplog.records) == 1


@pytest.mark.parametrize(
    ("unit", "said"),
    [("entry", "2 of 3 entries, 0.1 entries/s"), ("batch", "2 of 3 batches, 0.1 batches/s")],
)
def test_several_units_are_named_as_english_does(
    unit: str, said: str, clock: list[float], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO", logger="terralign"), Progress("b", total=3, unit=unit) as bar:
        clock[0] += 20
        bar.advance(2)
    assert said in caplog.text


def test_a_bar_on_a_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with Progress("align", total=4, done=1) as bar:
        bar.advance(note="loss 0.1")
        assert bar.count == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert "align" in err
