"""Running a bench: every model on every entry of a suite, each measurement kept in the folder.

A bench folder holds `suite.toml` (resolved), `models.json`, `versions.json`, `results.json`
(`{"rows": [...]}`), `results.parquet`, `measurements/` and the caches `embeddings/`, `pixels/` and
`text/`. The same call again measures nothing; more models and other prompts add their rows.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from terralign.bench.classify import decision_jobs, zero_shot_jobs
from terralign.bench.compare import compare_rows, moved_rows
from terralign.bench.diagnostics import diagnostic_jobs
from terralign.bench.embeddings import Embeddings
from terralign.bench.folder import keep_models, keep_suite, keep_versions, known_models
from terralign.bench.models import BenchModel, load_model, name_models
from terralign.bench.probes import probe_jobs
from terralign.bench.retrieval import retrieval_jobs
from terralign.bench.robustness import robustness_jobs
from terralign.bench.store import Kept, Store, base_row
from terralign.bench.subject import NO_BANK, BenchData, Job, Skipped, Subject
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
from terralign.evaluation.rows import Row, read_rows
from terralign.files import atomic_path, claimed, read_json, write_json
from terralign.progress import Progress

logger = logging.getLogger(__name__)

_Key = tuple[str, str | None, str]
"""Entry, prompts of the call, and what was asked, of one model."""

JOBS: dict[str, Callable[[Subject], Iterator[Job]]] = {
    "zero-shot": zero_shot_jobs,
    "retrieval": retrieval_jobs,
    "linear-probe": lambda subject: probe_jobs(subject, "linear-probe"),
    "knn": lambda subject: probe_jobs(subject, "knn"),
    "few-shot": lambda subject: probe_jobs(subject, "few-shot"),
    "robustness": robustness_jobs,
    "decisions": decision_jobs,
    "diagnostics": diagnostic_jobs,
}
"""What an entry's task asks for."""


@dataclass(frozen=True, kw_only=True, slots=True)
class BenchResult:
    """A finished bench. `rows`: all of the folder.

    Of this call: `num_measured`, measurements made; `num_failed`, rows that say what failed.
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
) -> BenchResult:
    """Measure `models` (`NAME=SOURCE` or `SOURCE`) by `suite` into the folder `out`.

    `prompts`: prompt sets to measure with instead of the entries' own. `reference`: the name of the
    model that the others are compared with; None: the first. A model or an entry that fails is a
    row with its reason, and does not end the bench. Raises `RecipeError` for a folder of another
    suite, with the difference, and for names that do not fit; `DataError` where the data of an
    entry lie in files and there is no data root.
    """
    named = name_models(models)
    if not named:
        raise RecipeError("name at least one model to measure")
    first = reference or next(iter(named))
    if first not in named:
        raise RecipeError(f"the reference {first!r} is none of the models; {nearest(first, named)}")
    for name in prompts:
        load_prompts(name)
    _check_data(suite, data_root)
    with claimed(out):
        keep_suite(suite, out, data_root)
        _rows_before(out)
        versions = keep_versions(out, device)
        order = {first: named[first]} | named  # the reference is measured first
        bench = _Bench(suite, out, data_root, versions, first, list(prompts) or [None])
        bench.run(order, device)
        rows = _merged(out, bench.rows)
        _write(out, rows)
        return BenchResult(
            folder=out,
            rows=tuple(rows),
            num_measured=bench.num_measured,
            num_failed=sum(row.status == "failed" for row in bench.rows),
        )


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
        data_root: Path | None,
        versions: str,
        reference: str,
        prompts: Sequence[str | None],
    ) -> None:
        self.suite, self.out, self.reference, self.prompts = suite, out, reference, prompts
        self.data = BenchData(data_root)
        self.embeddings = Embeddings(out)
        self.store = Store(out, versions)
        self.rows: list[Row] = []
        self.num_measured = 0
        self._checked = False
        self._references: dict[_Key, Kept] = {}
        self._reference_model: BenchModel | None = None

    def run(self, named: dict[str, str], device: str) -> None:
        """Measure every model on every entry."""
        total = len(named) * len(self.suite.entries) * len(self.prompts)
        with Progress("bench", total=total, unit="entry") as progress:
            for name, source in named.items():
                model = self._load(name, source, device)
                if model is not None:
                    self._check_data(model)
                for entry in self.suite.entries if model is not None else ():
                    for prompts in self.prompts:
                        assert model is not None
                        self._entry(model, entry, prompts)
                        progress.advance(note=f"{name}, {entry.title}")
                    self.embeddings.forget()
                if name == self.reference:
                    self._reference_model = model
                _write(self.out, _merged(self.out, self.rows))

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
        try:
            subject = self._subject(model, entry, prompts)
        except Exception as error:
            self.rows.append(_failed(where, error))
            return
        where, rows_before = base_row(subject), len(self.rows)
        for tower, reason in subject.reasons.items():
            self._skip({**where, "tower": tower}, reason)
        if "qb-norm" in self.suite.variants and "qb-norm" not in subject.variants:
            self._skip({**where, "variant": "qb-norm"}, NO_BANK)
        for task in entry.tasks:
            try:
                jobs = list(JOBS[task](subject)) if subject.routes else []
            except Skipped as reason:
                self._skip({**where, "task": task}, str(reason))
                continue
            except Exception as error:
                self.rows.append(_failed({**where, "task": task}, error))
                continue
            for job in jobs:
                self._job(subject, job, prompts if task not in FITTED else None)
        if model.name != self.reference and any(map(_embeds_rgb, self.rows[rows_before:])):
            self._moved(subject, prompts)

    def _subject(self, model: BenchModel, entry: SuiteEntry, prompts: str | None) -> Subject:
        return Subject(
            model, entry, self.suite, self.data, self.embeddings,
            prompts=prompts, text_cache=self.out / "text",
        )  # fmt: skip

    def _job(self, subject: Subject, job: Job, prompts: str | None) -> None:
        try:
            kept = self.store.measured(subject, job)
        except Skipped as reason:
            self._skip({**base_row(subject), **job.where}, str(reason))
            return
        except Exception as error:
            self.rows.append(_failed({**base_row(subject), **job.where}, error))
            return
        self.num_measured += kept.made_now
        self.rows += kept.rows
        if subject.model.name == self.reference:
            self._references[_key(subject, job, prompts)] = kept
            return
        for tower in (None, RGB):
            found = self._references.get(_key(subject, job, prompts, tower))
            if found is not None:
                self.rows += compare_rows(
                    self.store,
                    kept,
                    found,
                    self.reference,
                    num_bootstrap=self.suite.num_bootstrap,
                    through=tower or "",
                )
                return

    def _moved(self, subject: Subject, prompts: str | None) -> None:
        if self._reference_model is None:
            return
        try:
            before = self._subject(self._reference_model, subject.entry, prompts)
            self.rows += moved_rows(self.store, subject, before)
        except Exception as error:
            where = {**base_row(subject), "task": "diagnostics", "metric": "mean_cosine"}
            self.rows.append(_failed(where, error))

    def _skip(self, where: dict[str, Any], reason: str) -> None:
        row = Row.model_validate({**where, "status": "skipped", "note": reason})
        if row not in self.rows:
            self.rows.append(row)


def _embeds_rgb(row: Row) -> bool:
    """Whether this figure is of all samples' RGB embeddings, which a bench keeps.

    Robustness has those of changed pixels, and of fewer samples.
    """
    towers = (row.tower, row.query_tower, row.gallery_tower)
    return row.status == "measured" and RGB in towers and row.task != "robustness"


def _key(subject: Subject, job: Job, prompts: str | None, tower: str | None = None) -> _Key:
    """What two models are compared on; `tower`: asked of this one instead of the job's own."""
    told = {key: value for key, value in job.where.items() if key != "prompts_hash"}
    if tower is not None and told.get("tower") is not None and told["task"] != "robustness":
        told["tower"] = tower
    return (subject.entry.title, prompts, repr(sorted(told.items())))


def _failed(where: dict[str, Any], error: Exception) -> Row:
    reason = " ".join(str(error).split())
    if not isinstance(error, TerralignError):
        reason = f"unexpected {type(error).__name__}: {first_line(error)}"
        logger.debug("what failed unexpectedly", exc_info=error)
    told = " ".join(str(where[key]) for key in ("model", "entry", "task", "tower") if key in where)
    logger.warning("%s failed: %s", told, reason)
    return Row.model_validate({**where, "status": "failed", "note": reason})


def _merged(out: Path, rows: list[Row]) -> list[Row]:
    """The rows of this call, and those of earlier calls that it did not ask again.

    A row on what failed or was skipped is told anew by each call that asks for it. What is skipped
    now has no figures of before. A name that no model was ever loaded by is forgotten: it was
    mistyped, or is called otherwise now.
    """
    skipped = {_measurement(row) for row in rows if row.status == "skipped"}
    before = [row for row in _rows_before(out) if _measurement(row) not in skipped]
    asked = {row.question for row in rows}
    tried = {(row.model, entry) for row in rows for entry in (row.entry, None)}
    known = known_models(out)
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
    """What a row's measurement asks of its model, whatever the figure."""
    return row.model_copy(update={"metric": None, "level": None, "reference": None}).question


def _rows_before(out: Path) -> list[Row]:
    """The rows that earlier calls left. Raises `StorageError` where they are damaged."""
    path = out / "results.json"
    if not path.is_file():
        return []
    try:
        return read_rows(path)
    except StorageError as error:
        raise StorageError(
            f"{first_line(error)}; delete it and run the same commands again: what was measured is "
            "kept in measurements/"
        ) from error


def _write(out: Path, rows: list[Row]) -> None:
    """`results.json` and `results.parquet`; files that say the same already stay."""
    path = out / "results.json"
    table = out / "results.parquet"
    values = [row.model_dump(mode="json") for row in rows]
    if path.is_file() and table.is_file() and read_json(path) == {"rows": values}:
        return
    write_json(path, {"rows": values})
    kinds = {"value": pa.float64(), "low": pa.float64(), "high": pa.float64(),
             "chance": pa.float64(), "valid_share": pa.float64(), "p_value": pa.float64(),
             "num_samples": pa.int64(), "seed": pa.int64()}  # fmt: skip
    schema = pa.schema([(name, kinds.get(name, pa.string())) for name in Row.model_fields])
    with atomic_path(table) as partial:
        pq.write_table(pa.Table.from_pylist(values, schema=schema), partial)
