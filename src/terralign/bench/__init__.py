"""The harness: models against a suite, on the same samples with the same prompts.

`run_bench` measures, `report_bench` writes the report: they are all that others need. What a bench
writes is described in `bench/rows.py`.
"""

from terralign.bench.report import report_bench
from terralign.bench.run import BenchResult, run_bench

__all__ = ["BenchResult", "report_bench", "run_bench"]
