"""What ranks share between CUDA devices (NCCL): by two where there are as many, else by one.

TERRALIGN_GPU_TESTS=cpu runs the same tests on the CPU (gloo), to try the tests themselves.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

DEVICE = os.environ.get("TERRALIGN_GPU_TESTS", "cuda")

pytestmark = [] if DEVICE == "cpu" else [pytest.mark.gpu]


@pytest.mark.parametrize("size", [1, 2])
def test_ranks_share_and_train_as_one(tmp_path: Path, size: int) -> None:
    if DEVICE != "cpu" and torch.cuda.device_count() < size:
        pytest.skip(f"needs {size} CUDA devices")
    script = Path(__file__).with_name("shared_on_device.py")
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path), DEVICE, str(size)],
        capture_output=True, text=True, timeout=400, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    found = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(size)]
    numbers = range(size)
    for rank, one in enumerate(found):
        assert one["sum"] == [size * number + sum(numbers) for number in range(5)]
        assert one["in_order"] == [3 * value for value in one["sum"]]
        assert one["rows"] == list(range(7))
        assert one["gradient"] == pytest.approx(list(range(7))[rank::size])
        assert one["first"] == [0.0] * 4
        assert one["greatest"] == [size - 1, 0]
        assert one["gathered"] == list(numbers)
        assert one["shared"] == (list(range(5)) if rank == 0 else [])
        assert one["backend"] == ("gloo" if DEVICE == "cpu" else "nccl")
    alone = json.loads((tmp_path / "alone.json").read_text())
    assert len(alone) == 8
    assert found[0]["losses"] == pytest.approx(alone, rel=1e-5 if DEVICE == "cpu" else 1e-3)
