"""The harness: models against a suite, on the same samples with the same prompts.

`run_bench` is all that others need. What it writes is described in `evaluate/bench_rows.py`.
"""

from terralign.bench.run import BenchResult, run_bench

__all__ = ["BenchResult", "run_bench"]
