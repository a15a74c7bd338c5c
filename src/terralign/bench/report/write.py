"""The report of a bench folder, with the pictures of its example retrievals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from terralign.bench.data import BenchData
from terralign.bench.report.document import write_bench_report
from terralign.bench.report.pictures import keep_pictures
from terralign.bench.report.results import BenchResults, read_bench
from terralign.bench.suite import parse_suite
from terralign.evaluation.rows import PLAIN
from terralign.files import claimed
from terralign.toml_paths import TomlPaths


def report_bench(folder: Path, data_root: Path | None = None) -> Path:
    """Write `report.html`, `report.md`, `tables.tex`, `figures/` and `pictures/` of a bench folder.

    `data_root`: where the data lie that pictures of samples are made from; those made before are
    kept. Does nothing where the report says all that there is already. Returns the path of the
    page. Raises `StorageError` for a folder that is no bench or is damaged.
    """
    bench = read_bench(folder)
    with claimed(folder):
        path = folder / "suite.toml"
        paths = TomlPaths.beside(path, data_root)
        suite = parse_suite(bench.suite_text, origin=str(path), paths=paths)
        keep_pictures(folder, suite, BenchData(data_root), _examples(bench))
        return write_bench_report(folder)


def _examples(bench: BenchResults) -> dict[str, list[Mapping[str, Any]]]:
    """Entry -> the example retrievals of its plain measurements."""
    found: dict[str, dict[str, Sequence[Mapping[str, Any]]]] = {}
    for row in bench.rows:
        if row.task == "retrieval" and row.variant == PLAIN and row.measurement is not None:
            kept = bench.details.get(row.measurement, {}).get("examples", [])
            found.setdefault(str(row.entry), {})[row.measurement] = kept
    return {
        entry: [example for one in kept.values() for example in one]
        for entry, kept in found.items()
    }
