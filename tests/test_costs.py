"""The costs that docs/scale.md shows are those that tools/costs.py computes."""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import replace
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
_spec = importlib.util.spec_from_file_location("costs", ROOT / "tools" / "costs.py")
assert _spec is not None
assert _spec.loader is not None
costs = importlib.util.module_from_spec(_spec)
sys.modules["costs"] = costs  # its dataclasses look themselves up
_spec.loader.exec_module(costs)


def test_the_page_shows_what_the_script_computes() -> None:
    page = costs.PAGE.read_text("utf-8")
    assert costs.page_with(costs.text(costs.Machine()), page) == page, (
        "run python tools/costs.py --write"
    )


def test_a_part_takes_as_long_as_its_slowest_resource() -> None:
    """By hand: 100 TFLOP at 989 * 0.3, 3 GB at 2 GB/s."""
    machine = costs.Machine()
    work = costs.Work(name="some", tflop=100, samples=3 / costs.SAMPLE_GB, bf16=True)
    seconds = work.seconds(machine, 1)
    assert seconds["tower"] == pytest.approx(0.337, abs=1e-3)
    assert max(seconds, key=lambda name: seconds[name]) == "disk"
    assert seconds["disk"] == pytest.approx(1.5)
    eight = work.seconds(machine, 8)
    assert eight["disk"] == seconds["disk"]
    assert 8 * eight["tower"] == pytest.approx(seconds["tower"])


def test_gradients_travel_only_between_several() -> None:
    work = costs.Work(name="some", tflop=0, samples=0, bf16=True, steps=100, gradients_gb=1)
    machine = replace(costs.Machine(), step_seconds=0.01)
    assert work.seconds(machine, 1)["tower"] == pytest.approx(1)
    assert work.seconds(machine, 2)["tower"] == pytest.approx(1 + 100 * 2 / 100)


def test_the_price_changes_the_money_alone() -> None:
    cheap, costly = (costs.Machine(gpu_usd_per_hour=price) for price in (3, 30))
    money = [costs.training_table(one)[-1] for one in (cheap, costly)]
    hours = [[cell.split(",")[0] for cell in line.split("|")] for line in money]
    assert hours[0] == hours[1]
    assert money[0] != money[1]
