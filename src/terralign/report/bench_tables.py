"""Which tables a bench's report has, and which of its rows are in each."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

from terralign.evaluation.rows import PLAIN, Row
from terralign.report.comparison import Names
from terralign.report.tables import (
    ZERO_SHOT,
    PairedTest,
    Plan,
    Table,
    adjust_holm,
    build_table,
    difference_cell,
    metric_text,
    subject_text,
)

SCORES = ("top1", "macro_map")
"""The main metric of single-label and of multi-label classification."""
F1 = ("macro_f1", "micro_f1")
RETRIEVAL = ("recall@1", "recall@5", "recall@10", "map@10")
CORRECTED = ("recall@1", "map@10")
"""Of retrieval, what hubness corrections are shown by."""
MOVED = "mean_cosine"
PROBES = {"linear-probe": "linear probe", "knn": "k-NN"}

NOTES = {
    "zero-shot": "The towers of all models are compared: they look at the same samples, each "
    "through its own bands. Single-label data: top-1 accuracy; multi-label data: macro mAP.",
    "retrieval": "query → gallery. recall@k: the same sample (or a caption of it) is among the k "
    "first; mAP@k: of the same class.",
    "probes": "Top-1 accuracy, of multi-label data macro mAP, of classifiers fitted on labelled "
    "samples. Few-shot: mean over seeds, with the lowest and highest of them in place of an "
    "interval, so none is marked as the best.",
    "decisions": "F1 by thresholds chosen on validation data; calibration error of the "
    "probabilities (single-label: softmax by the model's own scale; multi-label: after Platt "
    "scaling), the lower the better; it has no interval, so none is marked as the best.",
    "differences": "On the same samples, by the paired bootstrap; p, and p adjusted by Holm's "
    "rule for the number of comparisons in the same column and group. *: p < 0.05; **: the "
    "adjusted one too. Below 30 samples p is not reported. A tower that the reference lacks "
    "is compared with its RGB tower.",
    "moved": "Between the RGB embeddings of the same samples by the reference and by the model, "
    "the mean: 1 where patching moved none. Of models that share the reference's text tower.",
    "corrections": "Zero-shot classification and retrieval without (plain) and with each "
    "correction. centred and csls see all samples or queries at once; qb-norm takes queries of "
    "another split.",
    "robustness": "Zero-shot classification with what can go wrong with the pixels.",
    "diagnostics": "Describes the space; neither end of these is the better one.",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class BenchTables:
    """`main`: what a reader came for; `more`: the rest. Without what the bench did not measure."""

    main: tuple[Table, ...]
    more: tuple[Table, ...]


def bench_tables(rows: Sequence[Row], test: PairedTest = lambda one, two: None) -> BenchTables:
    """All tables of a bench's rows. `test`: compares the best of a column with the others."""
    measured = [row for row in rows if row.status == "measured" and row.value is not None]
    values = [row for row in measured if row.reference is None]
    names = Names(measured)

    def tables(plans: Iterable[tuple[Plan, Sequence[Row]]]) -> list[Table]:
        made = (build_table(plan, own, test) for plan, own in plans)
        return [table for table in made if table is not None]

    main = tables(_main_plans(names, values))
    more = tables([*_difference_plans(names, measured), *_more_plans(names, values)])
    folded = tuple(replace(table, folded=True) for table in more)
    return BenchTables(main=tuple(main), more=folded)


def _by_metric(row: Row) -> tuple[str, str]:
    return "", metric_text(row.metric)


def _main_plans(names: Names, values: Sequence[Row]) -> list[tuple[Plan, list[Row]]]:
    """Classification, retrieval, probes, decisions."""
    plain = [row for row in values if row.variant == PLAIN]

    def by_entry(row: Row) -> tuple[str, str]:
        return names.role(row), metric_text(row.metric)

    zero_shot = Plan(
        title="Zero-shot classification",
        heads=("model", "tower"),
        note=NOTES["zero-shot"],
        group=lambda row: "",
        line=lambda row: (row.model, str(row.tower)),
        column=by_entry,
    )
    retrieval = Plan(
        title="Retrieval",
        heads=("model",),
        note=NOTES["retrieval"],
        group=lambda row: f"{names.role(row)}: {subject_text(row)}",
        line=lambda row: (row.model,),
        column=_by_metric,
        about="group",
        order=tuple(map(metric_text, RETRIEVAL)),
    )
    probes = Plan(
        title="Probes of frozen embeddings",
        heads=("model", "tower"),
        note=NOTES["probes"],
        group=names.role,
        line=lambda row: (row.model, str(row.tower)),
        column=lambda row: ("", PROBES.get(str(row.task), row.variant)),
        about="group",
    )
    decisions = Plan(
        title="Decisions and calibration",
        heads=("model", "tower"),
        note=NOTES["decisions"],
        group=names.role,
        line=lambda row: (row.model, subject_text(row)),
        column=_by_metric,
        about="group",
    )
    return [
        (zero_shot, [row for row in plain if row.task in ZERO_SHOT and row.metric in SCORES]),
        (retrieval, [row for row in plain if row.task == "retrieval" and row.metric in RETRIEVAL]),
        (probes, [row for row in values if _is_probe(row)]),
        (decisions, [row for row in values if _is_decision(row)]),
    ]


def _is_probe(row: Row) -> bool:
    return row.metric == "few_shot_top1" or (row.task in PROBES and row.metric in SCORES)


def _is_decision(row: Row) -> bool:
    calibration = row.metric == "expected_calibration_error" and row.variant == PLAIN
    return row.task == "decisions" or calibration


def _difference_plans(names: Names, measured: Sequence[Row]) -> list[tuple[Plan, list[Row]]]:
    """Differences to the reference, and how far a model moved its embeddings."""
    shown = [row for row in measured if _is_shown_difference(row)]

    def group(row: Row) -> str:
        task = "zero-shot" if row.task in ZERO_SHOT else PROBES.get(str(row.task), str(row.task))
        return f"Against {row.reference}: {task}"

    adjusted = _adjusted(shown, lambda row: (group(row), str(row.metric)))
    differences = Plan(
        title="Differences to the reference",
        heads=("model", "on"),
        note=NOTES["differences"],
        legend="Points, with 95 % intervals.",
        group=group,
        line=lambda row: (row.model, f"{names.role(row)}: {subject_text(row)}"),
        column=_by_metric,
        marked=False,
        about="group",
        order=tuple(map(metric_text, (*SCORES, *F1, *RETRIEVAL))),
        form=lambda row: difference_cell(row, adjusted.get(id(row))),
    )
    moved = Plan(
        title="Cosine before and after",
        heads=("model",),
        note=NOTES["moved"],
        legend="As it is; no intervals.",
        group=lambda row: str(row.note).partition(":")[0].replace("against", "Against", 1),
        line=lambda row: (row.model,),
        column=lambda row: (names.role(row), metric_text(row.metric)),
        marked=False,
    )
    values = [row for row in measured if row.reference is None]
    return [(differences, shown), (moved, [row for row in values if row.metric == MOVED])]


def _is_shown_difference(row: Row) -> bool:
    if row.reference is None or row.variant != PLAIN:
        return False
    of_retrieval = row.task == "retrieval" and row.metric in RETRIEVAL
    return of_retrieval or row.metric in (*SCORES, *F1)


def _adjusted(rows: Sequence[Row], family: Callable[[Row], tuple[str, str]]) -> dict[int, float]:
    """`id` of a row -> its p-value, adjusted for the number of those in its family."""
    families: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        if row.p_value is not None:
            families.setdefault(family(row), []).append(row)
    return {
        id(row): value
        for own in families.values()
        for row, value in zip(own, adjust_holm([row.p_value or 0.0 for row in own]), strict=True)
    }


def _more_plans(names: Names, values: Sequence[Row]) -> list[tuple[Plan, list[Row]]]:
    """Hubness corrections, robustness, diagnostics."""

    def subject(row: Row) -> str:
        of = ", ".join(one for one in (row.model, row.towers, names.prompts(row)) if one)
        return f"{row.entry} ({row.role}): {of}"

    corrections = Plan(
        title="Hubness correction",
        heads=("variant",),
        note=NOTES["corrections"],
        group=subject,
        line=lambda row: (row.variant,),
        column=_by_metric,
        about="group",
        order=tuple(map(metric_text, (*SCORES, *CORRECTED))),
    )
    robustness = Plan(
        title="Robustness",
        heads=("condition",),
        note=NOTES["robustness"],
        group=names.role,
        line=lambda row: (row.variant,),
        column=lambda row: (f"{row.model}, {row.tower}", metric_text(row.metric)),
        marked=False,
        about="group",
    )
    diagnostics = Plan(
        title="Diagnostics of the space",
        heads=("model", "of"),
        note=NOTES["diagnostics"],
        legend="Shares and separability in per cent, the others as they are; no intervals.",
        group=names.role,
        line=lambda row: (row.model, subject_text(row)),
        column=_by_metric,
        marked=False,
        about="group",
    )
    conditions = [row for row in values if row.task == "robustness" and row.metric in SCORES]
    diagnosed = [row for row in values if row.task == "diagnostics" and row.metric != MOVED]
    return [
        (corrections, _with_variants(values)),
        (robustness, conditions),
        (diagnostics, diagnosed),
    ]


def _with_variants(values: Sequence[Row]) -> list[Row]:
    """Classification and retrieval by every variant, where there are others than the plain one."""

    def subject(row: Row) -> tuple[str | None, ...]:
        return row.model, row.entry, row.towers

    chosen = [
        row
        for row in values
        if (row.task in ZERO_SHOT and row.metric in SCORES)
        or (row.task == "retrieval" and row.metric in CORRECTED)
    ]
    several = {subject(row) for row in chosen if row.variant != PLAIN}
    return [row for row in chosen if subject(row) in several]
