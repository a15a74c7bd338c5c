"""Progress of long work."""

from __future__ import annotations

import sys

import pytest

from terralign import progress
from terralign.progress import Progress, Stage, Stages


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
    [("entry", "2 of 3 entries, 10 s/entry"), ("batch", "2 of 3 batches, 10 s/batch")],
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


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (4, "0.25 steps/s"),
        (5, "0.2 steps/s"),
        (6, "6 s/step"),
        (7200, "7.2e+03 s/step, 2:00:00 left"),
    ],
)
def test_slow_work_shows_seconds_per_step(
    seconds: int, said: str, clock: list[float], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO", logger="terralign"), Progress("a", total=5) as bar:
        clock[0] += 4 * seconds
        bar.advance(4)
    assert said in caplog.text


def _stages() -> Stages:
    # 10 steps of 8 samples, then 20 steps; what follows does not train.
    stages = [Stage(name="patch", samples=80), Stage(name="align s2", samples=160)]
    return Stages([*stages, Stage(name="evaluate")])


def test_a_run_says_which_stage_it_is_and_how_long_all_training_takes(
    clock: list[float], caplog: pytest.LogCaptureFixture
) -> None:
    stages = _stages()
    with caplog.at_level("INFO", logger="terralign"):
        with stages.within("patch"), Progress("patch", total=10, samples=8) as bar:
            clock[0] += 20
            bar.advance(5)  # 4 seconds a step: 5 steps are left here, 20 in the next stage
        with stages.within("align s2"), Progress("s2", total=20, samples=8) as bar:
            clock[0] += 20
            bar.advance(5)
        with stages.within("evaluate"), Progress("embed", total=2, unit="sample") as bar:
            clock[0] += 20
            bar.advance(1)
    started, patch, _, align, _, embed = [record.getMessage() for record in caplog.records]
    assert started == "stage 1 of 3: patch"
    assert patch == (
        "stage 1 of 3, patch: 5 of 10 steps, 0.25 steps/s, 0:20 left, "
        "about 1:40 until all stages are trained"
    )
    assert align == "stage 2 of 3, s2: 5 of 20 steps, 0.25 steps/s, 1:00 left"
    assert embed == "stage 3 of 3, embed: 1 of 2 samples, 20 s/sample, 0:20 left"


def test_several_trainings_of_one_stage_are_added(
    clock: list[float], caplog: pytest.LogCaptureFixture
) -> None:
    stages = Stages([Stage(name="patch", samples=160)])
    with caplog.at_level("INFO", logger="terralign"), stages.within("patch"):
        for _ in range(2):
            with Progress("task", total=10, samples=8) as bar:
                clock[0] += 20
                bar.advance(5)
                bar.advance(5)
    assert "0:20 left, about 1:00 until all stages are trained" in caplog.text
    assert caplog.text.count("about") == 1


def test_what_is_unknown_is_not_estimated(
    clock: list[float], caplog: pytest.LogCaptureFixture
) -> None:
    stages = Stages([Stage(name="patch", samples=80), Stage(name="align", samples=None)])
    with caplog.at_level("INFO", logger="terralign"), stages.within("patch"):
        with Progress("patch", total=10, samples=8) as bar:
            clock[0] += 20
            bar.advance(5)
        with Progress("sweep", total=10) as bar:
            clock[0] += 20
            bar.advance(5)
    assert "about" not in caplog.text


def test_outside_a_run_there_are_no_stages(caplog: pytest.LogCaptureFixture) -> None:
    stages = _stages()
    with stages.within("patch"):
        pass
    assert Progress("x", total=1)._title() == "x"
