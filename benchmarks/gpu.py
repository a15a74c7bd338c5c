"""Every GPU test and benchmark in one go, in under eight minutes, with data it makes itself.

`python benchmarks/gpu.py [--out FILE]` writes one JSON object: the device, what is missing, the
outcome of the tests marked `gpu`, and the result of each benchmark. Without a GPU it says so and
ends with status 0.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
BENCHMARKS = ("feed", "stage2", "sweep", "preprocess")
NEEDED = (
    "torch",
    "torchvision",
    "open_clip",
    "timm",
    "rasterio",
    "pyarrow",
    "safetensors",
    "sklearn",
    "threadpoolctl",
    "pytest",
    "xdist",
    "hypothesis",
)
TESTS_S, EACH_S = 180, 70
"""Seconds that the tests, and each benchmark, may take."""


def main() -> None:
    """Run and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="where the JSON goes; default: standard output")
    out: Path | None = parser.parse_args().out
    start = time.monotonic()
    result: dict[str, Any] = {"missing": [one for one in NEEDED if not _installed(one)]}
    if result["missing"]:
        result["device"] = None
    else:
        result |= _device()
    if result["device"] is None:
        why = f"not installed: {', '.join(result['missing'])}" if result["missing"] else "no GPU"
        print(f"nothing was measured: {why}", file=sys.stderr)
    else:
        result["tests"] = _tests()
        result["benchmarks"] = {name: _benchmark(name) for name in BENCHMARKS}
    result["seconds"] = round(time.monotonic() - start, 1)
    text = json.dumps(result, indent=2)
    if out is None:
        print(text)
    else:
        out.write_text(text + "\n", encoding="utf-8")


def _installed(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


def _device() -> dict[str, Any]:
    import torch

    if not torch.cuda.is_available():
        return {"device": None, "torch": torch.__version__}
    properties = torch.cuda.get_device_properties(0)
    return {
        "device": properties.name,
        "memory_gib": round(properties.total_memory / 2**30, 1),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "cores": os.cpu_count(),
    }


def _tests() -> dict[str, Any]:
    found = _run([sys.executable, "-m", "pytest", "-q", "-n", "0", "-m", "gpu", "tests"], TESTS_S)
    lines = found["output"].strip().splitlines()
    return {
        "status": found["status"],
        "summary": lines[-1] if lines else "",
        "failures": [line for line in lines if line.startswith(("FAILED", "ERROR"))],
    }


def _benchmark(name: str) -> Any:
    command = [sys.executable, str(HERE / f"{name}.py"), "--quick"]
    found = _run(command, EACH_S)
    if found["status"] == 0:
        return json.loads(found["output"])
    return {"status": found["status"], "output": found["output"][-2000:]}


def _run(command: list[str], seconds: float) -> dict[str, Any]:
    """What a command printed, and its status ("stopped" where it took longer than `seconds`)."""
    try:
        done = subprocess.run(
            command, cwd=HERE.parent, capture_output=True, text=True, timeout=seconds, check=False
        )
    except subprocess.TimeoutExpired:
        return {"status": f"stopped after {seconds:g} s", "output": ""}
    return {"status": done.returncode, "output": done.stdout or done.stderr}


if __name__ == "__main__":
    main()
