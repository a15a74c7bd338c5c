"""Which tables a bench's report has, and which of its rows are in each."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from terralign.bench.report.tables import (
    PairedTest,
    Plan,
    Table,
    build_table,
    difference_cell,
    metric_text,
    subject_text,
)
from terralign.evaluation.rows import PLAIN, Row
from terralign.evaluation.significance import adjust_holm

SCORES = ("top1", "macro_map")
"""The main metric of single-label and of multi-label classification."""
F1 = ("macro_f1", "micro_f1")
RETRIEVAL = ("recall@1", "recall@5", "recall@10", "map@10")
REMEDIED = ("recall@1", "map@10")
"""Of retrieval, what remedies are shown by."""
MOVED = "mean_cosine"
PROBES = {"linear-probe": "linear probe", "knn": "k-NN"}
ZERO_SHOT = ("zero-shot", "multi-label")


@dataclass(frozen=True, kw_only=True, slots=True)
class ReportTables:
    """`main`: what a reader came for; `more`: the rest. Without what the bench did not measure."""

    main: tuple[Table, ...]
    more: tuple[Table, ...]


def report_tables(rows: Sequence[Row], test: PairedTest = lambda one, two: None) -> ReportTables:
    """All tables of a bench's rows. `test`: compares the best of a column with the others."""
    measured = [row for row in rows if row.status == "measured" and row.value is not None]
    figures = [row for row in measured if row.reference is None]
    differences = [row for row in measured if _is_shown_difference(row)]
    names = _Names(measured)

    def table(plan: Plan, chosen: Iterable[Row]) -> list[Table]:
        made = build_table(plan, list(chosen), test)
        return [] if made is None else [made]

    main = [
        *table(_zero_shot(names), filter(_is_main_score, figures)),
        *table(_retrieval(names), filter(_is_retrieval, figures)),
        *table(_probes(names), filter(_is_probe, figures)),
        *table(_decisions(names), filter(_is_decision, figures)),
    ]
    more = [
        *table(_differences(names, differences), differences),
        *table(_remedies(names), _with_remedies(figures, ZERO_SHOT, SCORES)),
    ]
    moved = [row for row in figures if row.metric == MOVED]
    more += table(_moved(names), moved)
    found = _with_remedies(figures, ("retrieval",), REMEDIED)
    for entry in dict.fromkeys(row.entry for row in found):
        more += table(
            _retrieval_remedies(names, str(entry)), (row for row in found if row.entry == entry)
        )
    for entry in dict.fromkeys(row.entry for row in figures):
        own = [row for row in figures if row.entry == entry]
        conditions = [row for row in own if row.task == "robustness" and row.metric in SCORES]
        if conditions:
            more += table(_robustness(names, str(entry)), conditions)
        diagnosed = [row for row in own if row.task == "diagnostics" and row.metric != MOVED]
        more += table(_diagnostics(names, str(entry)), diagnosed)
    return ReportTables(main=tuple(main), more=tuple(more))


class _Names:
    """How rows are called, with what is needed to tell them apart in this bench."""

    def __init__(self, rows: Sequence[Row]) -> None:
        asked: dict[tuple[str | None, str | None], set[str]] = {}
        for row in rows:
            if row.prompts is not None and row.variant == PLAIN:
                asked.setdefault((row.entry, row.task), set()).add(row.prompts)
        self._several = {key: prompts for key, prompts in asked.items() if len(prompts) > 1}

    def prompts(self, row: Row) -> str:
        """Its prompts, where the bench used several sets on its entry and this is one of them."""
        if row.prompts in self._several.get((row.entry, row.task), ()):
            return f"prompts {row.prompts}"
        return ""

    def entry(self, row: Row) -> str:
        """The suite's entry, with `prompts`."""
        return ", ".join(one for one in (str(row.entry), self.prompts(row)) if one)

    def role(self, row: Row) -> str:
        """The entry, and its role in the training of the models."""
        return f"{self.entry(row)} ({row.role})"


def _is_main_score(row: Row) -> bool:
    return row.task in ZERO_SHOT and row.metric in SCORES and row.variant == PLAIN


def _is_retrieval(row: Row) -> bool:
    return row.task == "retrieval" and row.metric in RETRIEVAL and row.variant == PLAIN


def _is_probe(row: Row) -> bool:
    return row.metric == "few_shot_top1" or (row.task in PROBES and row.metric in SCORES)


def _is_decision(row: Row) -> bool:
    calibration = row.metric == "expected_calibration_error" and row.variant == PLAIN
    return row.task == "decisions" or calibration


def _is_shown_difference(row: Row) -> bool:
    if row.reference is None or row.variant != PLAIN:
        return False
    shown = (*SCORES, *F1)
    return row.metric in shown or (row.task == "retrieval" and row.metric in RETRIEVAL)


def _with_remedies(
    figures: Sequence[Row], tasks: Sequence[str], metrics: Sequence[str]
) -> list[Row]:
    """These metrics of these tasks by every variant, where there are others than the plain one."""

    def subject(row: Row) -> tuple[str | None, ...]:
        return row.model, row.entry, row.tower, row.query_tower, row.gallery_tower

    chosen = [row for row in figures if row.task in tasks and row.metric in metrics]
    several = {subject(row) for row in chosen if row.variant != PLAIN}
    return [row for row in chosen if subject(row) in several]


def _zero_shot(names: _Names) -> Plan:
    return Plan(
        name="zero-shot",
        title="Zero-shot classification",
        heads=("model", "tower"),
        note="The towers of all models are compared: they look at the same samples, each through "
        "its own bands. Single-label data: top-1 accuracy; multi-label data: macro mAP.",
        group=lambda row: "",
        line=lambda row: (row.model, str(row.tower)),
        column=lambda row: (names.role(row), metric_text(row)),
    )


def _retrieval(names: _Names) -> Plan:
    return Plan(
        name="retrieval",
        title="Retrieval",
        heads=("model",),
        note="query → gallery. recall@k: the same sample (or a caption of it) is among the k "
        "first; mAP@k: of the same class.",
        group=lambda row: f"{names.role(row)}: {subject_text(row)}",
        line=lambda row: (row.model,),
        column=lambda row: ("", metric_text(row)),
        about="group",
        order=RETRIEVAL,
    )


def _probes(names: _Names) -> Plan:
    return Plan(
        name="probes",
        title="Probes of frozen embeddings",
        heads=("model", "tower"),
        note="Top-1 accuracy, of multi-label data macro mAP, of classifiers fitted on labelled "
        "samples. Few-shot: mean over seeds, with the lowest and highest of them in place of an "
        "interval, so none is marked as the best.",
        group=names.role,
        line=lambda row: (row.model, str(row.tower)),
        column=lambda row: ("", PROBES.get(str(row.task), row.variant)),
        about="group",
    )


def _decisions(names: _Names) -> Plan:
    return Plan(
        name="decisions",
        title="Decisions and calibration",
        heads=("model", "tower"),
        note="F1 by thresholds chosen on validation data; calibration error of the probabilities "
        "(single-label: softmax by the model's own scale; multi-label: after Platt scaling), the "
        "lower the better; it has no interval, so none is marked as the best.",
        group=names.role,
        line=lambda row: (row.model, subject_text(row)),
        column=lambda row: ("", metric_text(row)),
        about="group",
    )


def _differences(names: _Names, rows: Sequence[Row]) -> Plan:
    def group(row: Row) -> str:
        task = "zero-shot" if row.task in ZERO_SHOT else PROBES.get(str(row.task), str(row.task))
        return f"Against {row.reference}: {task}"

    families: dict[tuple[str, str | None], list[Row]] = {}
    for row in rows:
        if row.p_value is not None:
            families.setdefault((group(row), row.metric), []).append(row)
    adjusted = {
        id(row): value
        for family in families.values()
        for row, value in zip(
            family, adjust_holm([row.p_value or 0.0 for row in family]), strict=True
        )
    }
    return Plan(
        name="differences",
        title="Differences to the reference",
        heads=("model", "on"),
        note="On the same samples, by the paired bootstrap; p, and p adjusted by Holm's "
        "rule for the number of comparisons in the same column and group. *: p < 0.05; **: the "
        "adjusted one too. Below 30 samples p is not reported. A tower that the reference lacks "
        "is compared with its RGB tower.",
        legend="Points, with 95 % intervals.",
        group=group,
        line=lambda row: (row.model, f"{names.role(row)}: {subject_text(row)}"),
        column=lambda row: ("", metric_text(row)),
        marked=False,
        about="group",
        form=lambda row: difference_cell(row, adjusted.get(id(row))),
        order=(*SCORES, *F1, *RETRIEVAL),
    )


def _moved(names: _Names) -> Plan:
    return Plan(
        name="moved",
        title="Cosine before and after",
        heads=("model",),
        note="Between the RGB embeddings of the same samples by the reference and by the model, "
        "the mean: 1 where patching moved none. Of models that share the reference's text tower.",
        legend="As it is; no intervals.",
        group=lambda row: str(row.note).partition(":")[0].replace("against", "Against", 1),
        line=lambda row: (row.model,),
        column=lambda row: (names.role(row), metric_text(row)),
        marked=False,
    )


def _remedies(names: _Names) -> Plan:
    return Plan(
        name="remedies",
        title="Remedies at query time",
        heads=("variant",),
        note="Zero-shot classification as it is (plain) and by each remedy; centred and csls see "
        "all reported samples at once.",
        group=lambda row: f"{row.model}, {row.tower}",
        line=lambda row: (row.variant,),
        column=lambda row: (names.role(row), metric_text(row)),
    )


def _retrieval_remedies(names: _Names, entry: str) -> Plan:
    def group(row: Row) -> str:
        pair = f"{row.query_tower} → {row.gallery_tower}"
        return ", ".join(one for one in (pair, names.prompts(row)) if one)

    return Plan(
        name=f"retrieval-remedies-{entry}",
        title=f"Remedies in retrieval: {entry}",
        heads=("variant",),
        note="Retrieval as it is (plain) and by each remedy, query → gallery; the best of each "
        "model is marked. centred and csls see all queries at once; qb-norm takes queries of "
        "another split.",
        group=group,
        line=lambda row: (row.variant,),
        column=lambda row: (row.model, metric_text(row)),
        about="group",
        order=REMEDIED,
    )


def _robustness(names: _Names, entry: str) -> Plan:
    return Plan(
        name=f"robustness-{entry}",
        title=f"Robustness: {entry}",
        heads=("condition",),
        note="Zero-shot classification with what can go wrong with the pixels.",
        group=lambda row: "",
        line=lambda row: (row.variant,),
        column=lambda row: (f"{row.model}, {row.tower}", metric_text(row)),
        marked=False,
    )


def _diagnostics(names: _Names, entry: str) -> Plan:
    return Plan(
        name=f"diagnostics-{entry}",
        title=f"Diagnostics of the space: {entry}",
        heads=("model", "of"),
        note="Describes the space; neither end of these is the better one.",
        legend="Shares and separability in per cent, the others as they are; no intervals.",
        group=lambda row: "",
        line=lambda row: (row.model, subject_text(row)),
        column=lambda row: ("", metric_text(row)),
        marked=False,
        about="group",
    )
