"""Running a bench: every model on every entry of a suite, each measurement kept in the folder.

A bench folder holds `suite.toml` (resolved), `models.json`, `versions.json`, `results.json`
(`{"rows": [...]}`), `results.parquet`, `measurements/` and the caches `embeddings/` and `text/`.
The same call again measures nothing; more models and other prompts add their rows.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from terralign.bench.classify import decision_jobs, zero_shot_jobs
from terralign.bench.compare import compare_rows, moved_job
from terralign.bench.data import NO_BANK, BenchData, Skipped
from terralign.bench.diagnostics import diagnostic_jobs
from terralign.bench.embeddings import Embeddings
from terralign.bench.folder import keep_models, keep_suite, keep_versions, read_names
from terralign.bench.measurements import Measurement, Measurements
from terralign.bench.models import BenchModel, load_model, name_models
from terralign.bench.probes import probe_jobs
from terralign.bench.retrieval import retrieval_jobs
from terralign.bench.robustness import robustness_jobs
from terralign.bench.subject import Job, Subject
from terralign.bench.suite import FITTED, Suite, SuiteEntry
from terralign.datasets.catalog import cannot_open, check_data_root, find_dataset
from terralign.datasets.facts import needs_root
from terralign.encoders.space import RGB
from terralign.encoders.zeroshot import load_prompts
from terralign.errors import (
    DataError,
    RecipeError,
    StorageError,
    TerralignError,
    first_line,
    nearest,
)
from terralign.evaluation.rows import COLUMNS, Row, read_rows
from terralign.files import atomic_path, claimed, require_folder, write_json
from terralign.progress import Progress
from terralign.versions import versions

logger = logging.getLogger(__name__)

_Key = tuple[str, str | None, str]
"""Entry, prompts of the call, and what was asked, of one model."""

JOBS: dict[str, Callable[[Subject], Iterator[Job]]] = {
    "zero-shot": zero_shot_jobs,
    "retrieval": retrieval_jobs,
    "linear-probe": partial(probe_jobs, task="linear-probe"),
    "knn": partial(probe_jobs, task="knn"),
    "few-shot": partial(probe_jobs, task="few-shot"),
    "robustness": robustness_jobs,
    "decisions": decision_jobs,
    "diagnostics": diagnostic_jobs,
}
"""What an entry's task asks for."""


@dataclass(frozen=True, kw_only=True, slots=True)
class BenchResult:
    """A finished bench. `rows`: all of the folder.

    Of this call: `num_measured`, measurements made; `num_failed`, rows of what failed.
    """

    folder: Path
    rows: tuple[Row, ...]
    num_measured: int
    num_failed: int


def run_bench(
    suite: Suite,
    models: Sequence[str],
    out: Path,
    data_root: Path | None = None,
    *,
    prompts: Sequence[str] = (),
    reference: str | None = None,
    device: str = "cpu",
    cache: Path | None = None,
) -> BenchResult:
    """Measure `models` (`NAME=SOURCE` or `SOURCE`) by `suite` into the folder `out`.

    `prompts`: prompt sets to measure with instead of the entries' own. `reference`: the name of the
    model that the others are compared with; None: the first. `cache`: a folder of embeddings and
    measurements, which benches that have some in common share. A model or an entry that fails is a
    row with its reason, and does not end the bench. Raises `RecipeError` for a folder of another
    suite, with the difference, and for names that do not fit; `DataError` where the data of an
    entry lie in files and there is no data root.
    """
    named = _in_order(models, reference)
    for name in prompts:
        load_prompts(name)
    _check_data(suite, data_root)
    if cache is not None:
        require_folder(cache)
    with claimed(out, begins_with=("suite.toml", "versions.json")):
        keep_suite(suite, out, data_root)
        before = _rows_before(out)
        measuring = {**versions(), "device": device, "threads": str(torch.get_num_threads())}
        keep_versions(out, measuring)
        bench = _Bench(
            suite,
            out,
            BenchData(data_root),
            Measurements(out, measuring, cache),
            reference=next(iter(named)),
            prompts=list(prompts) or [None],
        )
        rows = before
        for _ in bench.run(named, device):  # a bench that is stopped has the models it finished
            merged = _merged(before, bench.rows, read_names(out / "models.json"))
            if merged != rows or not (out / "results.parquet").is_file():
                _write(out, merged)
            rows = merged
        return BenchResult(
            folder=out,
            rows=tuple(rows),
            num_measured=bench.num_measured,
            num_failed=sum(row.status == "failed" for row in bench.rows),
        )


def _in_order(models: Sequence[str], reference: str | None) -> dict[str, str]:
    """Name -> source, the reference first: the others are compared with it."""
    named = name_models(models)
    if not named:
        raise RecipeError("name at least one model to measure")
    first = reference or next(iter(named))
    if first not in named:
        raise RecipeError(
            f"the reference {first!r} is not one of the models; {nearest(first, named)}"
        )
    return {first: named[first]} | named


def _check_data(suite: Suite, data_root: Path | None) -> None:
    check_data_root(data_root)
    if data_root is not None:
        return
    names = dict.fromkeys(entry.data for entry in suite.entries)
    in_files = [name for name in names if find_dataset(name).facts.needs_root]
    if in_files:
        raise cannot_open({name: needs_root(name) for name in in_files})


class _Bench:
    """One call in progress."""

    def __init__(
        self,
        suite: Suite,
        out: Path,
        data: BenchData,
        measurements: Measurements,
        *,
        reference: str,
        prompts: Sequence[str | None],
    ) -> None:
        self.suite, self.out, self.reference, self.prompts = suite, out, reference, prompts
        self.data, self.measurements = data, measurements
        self.embeddings = Embeddings(out / "embeddings", measurements.cache)
        self.rows: list[Row] = []
        self.num_measured = 0
        self._checked = False
        self._references: dict[_Key, Measurement] = {}
        self._reference_model: BenchModel | None = None

    def run(self, named: dict[str, str], device: str) -> Iterator[None]:
        """Measure every model on every entry; yields after each model."""
        total = len(named) * len(self.suite.entries) * len(self.prompts)
        with Progress("bench", total=total, unit="entry") as progress:
            for name, source in named.items():
                model = self._load(name, source, device)
                if model is not None:
                    self._measure_all(model, progress)
                yield

    def _measure_all(self, model: BenchModel, progress: Progress) -> None:
        self._check_data(model)
        for entry in self.suite.entries:
            for prompts in self.prompts:
                self._entry(model, entry, prompts)
                progress.advance(note=f"{model.name}, {entry.title}")
            self.embeddings.forget()
        if model.name == self.reference:
            self._reference_model = model

    def _check_data(self, model: BenchModel) -> None:
        """Open all data sets, once; a warning names all that cannot be opened, or, where that is
        all of them, an error."""
        if self._checked:
            return
        self._checked = True
        faults: dict[str, TerralignError] = {}
        size = model.picture_size()
        for entry in self.suite.entries:
            try:
                self.data.open(entry.data, entry.split, entry.limit, size, entry.composite)
            except DataError as error:
                faults.setdefault(entry.data, error)
        if faults and faults.keys() == {entry.data for entry in self.suite.entries}:
            raise cannot_open(faults)
        if len(faults) > 1:
            logger.warning("%s", cannot_open(faults))

    def _load(self, name: str, source: str, device: str) -> BenchModel | None:
        try:
            model = load_model(name, source, device=device)
        except Exception as error:
            self.rows.append(_failed({"model": name}, error))
            return None
        keep_models(self.out, name, source, model.model_id)
        return model

    def _entry(self, model: BenchModel, entry: SuiteEntry, prompts: str | None) -> None:
        where = {"model": model.name, "model_id": model.model_id, "entry": entry.title,
                 "split": entry.split, "role": entry.role}  # fmt: skip
        with self._reported(where):
            self._measure(self._subject(model, entry, prompts), prompts)

    def _measure(self, subject: Subject, prompts: str | None) -> None:
        rows_before = len(self.rows)
        for tower, reason in subject.reasons.items():
            self._skip({**subject.base_row, "tower": tower}, reason)
        if "qb-norm" in self.suite.variants and "qb-norm" not in subject.variants:
            self._skip({**subject.base_row, "variant": "qb-norm"}, NO_BANK)
        for task in subject.entry.tasks if subject.routes else ():
            asked = prompts if task not in FITTED else None
            with self._reported({**subject.base_row, "task": task}):
                for job in list(JOBS[task](subject)):
                    with self._reported({**subject.base_row, **job.where}):
                        self._job(subject, job, asked)
        if subject.model.name != self.reference and any(map(_embeds_rgb, self.rows[rows_before:])):
            where = {**subject.base_row, "task": "diagnostics", "metric": "mean_cosine"}
            with self._reported(where):
                self._moved(subject, prompts)

    def _subject(self, model: BenchModel, entry: SuiteEntry, prompts: str | None) -> Subject:
        return Subject(
            model, entry, self.suite, self.data, self.embeddings,
            prompts=prompts, text_cache=self.out / "text",
        )  # fmt: skip

    def _job(self, subject: Subject, job: Job, prompts: str | None) -> None:
        found = self.measurements.measure(subject, job)
        self.num_measured += found.made_now
        self.rows += found.rows
        if subject.model.name == self.reference:
            self._references[_key(subject, job, prompts)] = found
            return
        for tower in (None, RGB):
            reference = self._references.get(_key(subject, job, prompts, tower))
            if reference is not None:
                self.rows += compare_rows(
                    found,
                    reference,
                    self.reference,
                    num_bootstrap=self.suite.num_bootstrap,
                    through=tower or "",
                    cache=self.measurements.cache,
                )
                return

    def _moved(self, subject: Subject, prompts: str | None) -> None:
        if self._reference_model is not None:
            before = self._subject(self._reference_model, subject.entry, prompts)
            if (job := moved_job(subject, before)) is not None:
                self.rows += self.measurements.measure(subject, job).rows

    @contextmanager
    def _reported(self, where: dict[str, Any]) -> Iterator[None]:
        """What is skipped or fails within is a row, and does not end the bench."""
        try:
            yield
        except Skipped as reason:
            self._skip(where, str(reason))
        except Exception as error:
            self.rows.append(_failed(where, error))

    def _skip(self, where: dict[str, Any], reason: str) -> None:
        row = Row.model_validate({**where, "status": "skipped", "note": reason})
        if row not in self.rows:
            self.rows.append(row)


def _embeds_rgb(row: Row) -> bool:
    """Whether this value is of all samples' RGB embeddings, which a bench keeps.

    Robustness has those of changed pixels, and of fewer samples.
    """
    towers = (row.tower, row.query_tower, row.gallery_tower)
    return row.status == "measured" and RGB in towers and row.task != "robustness"


def _key(subject: Subject, job: Job, prompts: str | None, tower: str | None = None) -> _Key:
    """What two models are compared on; `tower`: asked of this one instead of the job's own."""
    where = {key: value for key, value in job.where.items() if key != "prompts_hash"}
    if tower is not None and where.get("tower") is not None and where["task"] != "robustness":
        where["tower"] = tower
    return (subject.entry.title, prompts, repr(sorted(where.items())))


def _failed(where: dict[str, Any], error: Exception) -> Row:
    reason = " ".join(str(error).split())
    if not isinstance(error, TerralignError):
        reason = f"unexpected {type(error).__name__}: {first_line(error)}"
        logger.debug("what failed unexpectedly", exc_info=error)
    what = " ".join(str(where[key]) for key in ("model", "entry", "task", "tower") if key in where)
    logger.warning("%s failed: %s", what, reason)
    return Row.model_validate({**where, "status": "failed", "note": reason})


def _merged(before: list[Row], rows: list[Row], known: Collection[str]) -> list[Row]:
    """The rows of this call, and those `before` it that it did not ask again.

    A row on what failed or was skipped is made again by each call that asks for it. What is skipped
    now keeps no values from earlier. A name that no model was ever loaded by, as it is not `known`,
    is forgotten: it was mistyped, or has changed.
    """
    skipped = {_measurement(row) for row in rows if row.status == "skipped"}
    before = [row for row in before if _measurement(row) not in skipped]
    asked = {row.question for row in rows}
    tried = {(row.model, entry) for row in rows for entry in (row.entry, None)}
    kept = [
        row
        for row in before
        if row.question not in asked
        and (row.entry is not None or row.model in known)
        and (row.status == "measured" or (row.model, row.entry) not in tried)
    ]
    models = list(dict.fromkeys(row.model for row in [*before, *rows]))
    entries = list(dict.fromkeys(row.entry for row in [*rows, *before]))
    merged = {(*row.question, row.status): row for row in [*kept, *rows]}
    return sorted(
        merged.values(),
        key=lambda row: (models.index(row.model), entries.index(row.entry)),
    )


def _measurement(row: Row) -> tuple[Any, ...]:
    """What a row's measurement asks of its model, whatever the metric."""
    return row.model_copy(update={"metric": None, "level": None, "reference": None}).question


def _rows_before(out: Path) -> list[Row]:
    """The rows that earlier calls left. Raises `StorageError` where they are damaged."""
    path = out / "results.json"
    if not path.is_file():
        return []
    try:
        return read_rows(path)
    except StorageError as error:
        raise StorageError(f"{error}: what was measured is kept in measurements/") from error


def _write(out: Path, rows: list[Row]) -> None:
    """`results.json`, and the same rows as `results.parquet`."""
    values = [row.model_dump(mode="json") for row in rows]
    write_json(out / "results.json", {"rows": values})
    numbers = {"num_samples": pa.int64(), "seed": pa.int64()} | dict.fromkeys(
        ("value", "low", "high", "chance", "valid_share", "p_value"), pa.float64()
    )
    schema = pa.schema([(name, numbers.get(name, pa.string())) for name in COLUMNS])
    with atomic_path(out / "results.parquet") as partial_path:
        pq.write_table(pa.Table.from_pylist(values, schema=schema), partial_path)
