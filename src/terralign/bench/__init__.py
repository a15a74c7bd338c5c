"""The benchmark: models against a suite, on the same samples with the same prompts.

`bench.run.run_bench` measures, `bench.report.report_bench` writes the report. `evaluation/rows.py`
describes what a bench writes.
"""
