"""Tables of a bench: what is side by side, what is best and what is tied."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from terralign.datasets.catalog import DATASETS
from terralign.evaluation.rows import Row
from terralign.report.bench_tables import bench_tables
from terralign.report.reported import load_reported, reported_table
from terralign.report.tables import Cell, PairedTest, adjust_holm


def row(model: str, value: float, **changes: Any) -> Row:
    keys: dict[str, Any] = {
        "model": model, "entry": "eurosat", "dataset": "eurosat-rgb", "split": "val",
        "role": "unseen", "task": "zero-shot", "tower": "rgb", "metric": "top1", "value": value,
        "low": value - 0.02, "high": value + 0.02, "num_samples": 500, "chance": 0.1,
        "prompts": "satellite",
    }  # fmt: skip
    return Row.model_validate(keys | changes)


def against(one: Row, other: Row, p_value: float) -> Row:
    """The bench's paired comparison of two rows."""
    assert one.value is not None
    assert other.value is not None
    changes = {"value": one.value - other.value, "reference": other.model, "p_value": p_value}
    return one.model_copy(update=changes)


def paired(p_values: dict[tuple[str, str], float]) -> PairedTest:
    """A test that knows the p-values of pairs of models."""
    return lambda one, two: p_values.get((one.model, two.model))


def marks(rows: list[Row], p_values: dict[tuple[str, str], float] | None = None) -> list[str]:
    """Of the first column of the first table."""
    (_, lines), *_ = bench_tables(rows, paired(p_values or {})).main[0].groups
    return [cell.mark if (cell := line.cells[0]) else "none" for line in lines]


def test_the_best_is_marked_and_what_its_interval_overlaps_is_tied() -> None:
    rows = [row("a", 0.80), row("b", 0.77), row("c", 0.75), row("d", 0.80)]
    assert marks(rows) == ["best", "overlap", "", "best"]
    assert marks(rows[:1]) == [""]  # nothing to compare with


@pytest.mark.parametrize(("p_value", "mark"), [(0.05, "paired"), (0.04, ""), (0.9, "paired")])
def test_the_paired_test_of_the_best_with_a_figure_decides(p_value: float, mark: str) -> None:
    rows = [row("b", 0.79), row("a", 0.80), row("c", 0.5), row("d", 0.78)]
    others = {("b", "c"): 0.9, ("a", "c"): 0.01, ("b", "d"): 0.001}
    assert marks(rows, {("a", "b"): p_value, **others}) == [mark, "best", "", "overlap"]


def test_only_what_has_an_interval_has_a_best() -> None:
    error = {"metric": "expected_calibration_error", "low": None, "high": None}
    assert marks([row("a", 0.3, **error), row("b", 0.1, **error)]) == ["", ""]
    shots = {"metric": "few_shot_top1", "task": "few-shot", "variant": "4 shots"}
    few = [row("a", 0.81, **shots), row("b", 0.80, **shots)]
    assert marks(few, {("a", "b"): 0.5}) == ["", ""]
    gaps = [row(m, v, task="diagnostics", metric="modality_gap") for m, v in (("a", 1), ("b", 2))]
    (_, lines), *_ = bench_tables(gaps).more[0].groups
    assert [line.cells[0].mark for line in lines if line.cells[0]] == ["", ""]
    assert [line.cells[0].value for line in lines if line.cells[0]] == ["1.000", "2.000"]


def test_chance_is_told_once_where_it_is_shared_and_else_below_each_column() -> None:
    def f1(model: str, metric: str, chance: float | None) -> Row:
        return row(model, 0.5, task="decisions", metric=metric, chance=chance)

    rows = [f1("a", "macro_f1", 0.25), f1("b", "macro_f1", 0.25), f1("a", "micro_f1", 0.5)]
    rows.append(f1("b", "expected_calibration_error", None))
    ((heading, lines),) = bench_tables(rows).main[0].groups
    assert heading == "eurosat (unseen), n 500"
    assert [line.labels for line in lines] == [("a", "rgb"), ("b", "rgb"), ("chance", "")]
    assert [cell.value if cell else None for cell in lines[-1].cells] == ["25.0", "50.0", None]
    ((heading, lines),) = bench_tables(rows[:2]).main[0].groups
    assert heading == "eurosat (unseen), n 500, chance 25.0"
    assert len(lines) == 2
    other = [f1("a", "macro_f1", 0.25), f1("b", "macro_f1", 0.3)]
    other[1] = other[1].model_copy(update={"num_samples": 490})
    ((heading, lines),) = bench_tables(other).main[0].groups
    assert heading == "eurosat (unseen), n 490–500"
    assert lines[-1].cells[0] == Cell(value="25.0–30.0")


def test_retrieval_is_compared_within_a_pair_and_metrics_stand_in_order() -> None:
    def found(model: str, value: float, query: str, gallery: str, metric: str) -> Row:
        pair = {"tower": None, "query_tower": query, "gallery_tower": gallery}
        return row(model, value, task="retrieval", metric=metric, level="instance", **pair)

    rows = [
        found("a", 0.9, "rgb", "s2", "map@10"),
        found("a", 0.2, "rgb", "s2", "recall@1"),
        found("b", 0.4, "rgb", "s2", "recall@1"),
        found("a", 0.7, "s2", "rgb", "recall@1"),
    ]
    table = bench_tables(rows).main[0]
    assert [column.metric for column in table.columns] == ["recall@1", "mAP@10"]
    assert [heading for heading, _ in table.groups] == [
        "eurosat (unseen): rgb → s2, n 500, chance 10.0",
        "eurosat (unseen): s2 → rgb, n 500, chance 10.0",
    ]
    first = [[c.mark if c else None for c in line.cells] for line in table.groups[0][1]]
    assert first == [["", ""], ["best", None]]


def test_several_prompt_sets_are_told_apart_and_other_variants_stand_apart() -> None:
    rows = [
        row("a", 0.5), row("a", 0.6, prompts="plain"),
        row("a", 0.7, variant="csls"), row("a", 0.4, task="robustness", variant="noise"),
    ]  # fmt: skip
    tables = bench_tables(rows)
    assert [column.heading for column in tables.main[0].columns] == [
        "eurosat, prompts satellite (unseen)", "eurosat, prompts plain (unseen)",
    ]  # fmt: skip
    assert [table.title for table in tables.more] == [
        "Hubness correction", "Robustness",
    ]  # fmt: skip
    variants = [line.labels[0] for line in tables.more[0].lines]
    assert variants == ["plain", "csls", "plain"]  # of the other prompts


def test_hubness_corrections_stand_below_the_plain_values_of_their_pair() -> None:
    def found(model: str, value: float, query: str, metric: str, **changes: Any) -> Row:
        keys = {"tower": None, "query_tower": query, "gallery_tower": "s2", "prompts": None}
        return row(model, value, task="retrieval", metric=metric, **(keys | changes))

    rows = [
        *(
            found(model, value, "rgb", metric, variant=variant, chance=chance)
            for model, first in (("a", 0.2), ("b", 0.3))
            for variant, value in (("plain", first), ("csls", first + 0.1))
            for metric, chance in (("map@10", 0.1), ("recall@1", 0.02))
        ),
        found("a", 0.6, "text", "map@10", prompts="plain"),
        found("a", 0.7, "text", "map@10", prompts="satellite"),
        found("a", 0.8, "text", "map@10", prompts="satellite", variant="centred"),
        found("a", 0.9, "s1", "map@10"),  # no correction
        found("b", 0.9, "rgb", "recall@5", variant="csls"),
        found("a", 0.1, "rgb", "recall@1", variant="csls", entry="two"),
    ]
    (table,) = [one for one in bench_tables(rows).more if one.title == "Hubness correction"]
    assert [column.metric for column in table.columns] == ["recall@1", "mAP@10"]
    groups = dict(table.groups)
    assert list(groups) == [
        "eurosat (unseen): a, rgb → s2, n 500",
        "eurosat (unseen): b, rgb → s2, n 500",
        "eurosat (unseen): a, text → s2, prompts plain, n 500, chance 10.0",
        "eurosat (unseen): a, text → s2, prompts satellite, n 500, chance 10.0",
        "two (unseen): a, rgb → s2, n 500, chance 10.0",
    ]
    first = {
        line.labels[0]: [(cell.value, cell.mark) if cell else None for cell in line.cells]
        for line in groups["eurosat (unseen): b, rgb → s2, n 500"]
    }
    assert first == {
        "plain": [("30.0", ""), ("30.0", "")],
        "csls": [("40.0", "best"), ("40.0", "best")],
        "chance": [("2.0", ""), ("10.0", "")],
    }
    last = groups["eurosat (unseen): a, text → s2, prompts satellite, n 500, chance 10.0"]
    assert [line.labels[0] for line in last] == ["plain", "centred"]


def test_cosines_before_and_after_stand_in_one_table_of_all_entries() -> None:
    def moved(model: str, value: float, **changes: Any) -> Row:
        keys = {"low": None, "high": None, "prompts": None, "note": "against ViT: mean cosine of"}
        return row(
            model, value, task="diagnostics", metric="mean_cosine", chance=None, **keys, **changes
        )

    rows = [moved("a", 0.99), moved("a", 0.8, entry="photos"), moved("b", 0.7)]
    (table,) = bench_tables(rows).more
    assert table.title == "Cosine before and after"
    assert [column.heading for column in table.columns] == ["eurosat (unseen)", "photos (unseen)"]
    ((heading, lines),) = table.groups
    assert heading == "Against ViT"
    assert [[cell.value if cell else None for cell in line.cells] for line in lines] == [
        ["0.990", "0.800"], ["0.700", None],
    ]  # fmt: skip


def test_differences_are_signed_points_with_stars_where_significant() -> None:
    a, b = row("a", 0.5), row("b", 0.62)
    changes = {"model": "c", "low": -0.2, "high": 0.04, "entry": "two"}
    down = against(a, b, 0.04).model_copy(update=changes)
    few = against(b, a, 0.5).model_copy(update={"entry": "three", "p_value": None})
    probe = against(b, a, 0.04).model_copy(update={"task": "knn"})  # a family of its own
    more = down.model_copy(update={"entry": "four"})
    tables = bench_tables([a, b, against(b, a, 0.0001), down, more, few, probe])
    cells = [line.cells[0] for _, lines in tables.more[0].groups for line in lines]
    assert [(c.value, c.interval, c.p_values) for c in cells if c] == [
        ("+12.0**", "+60.0 to +64.0", "p < 0.001, Holm < 0.001"),
        ("+12.0", "+60.0 to +64.0", ""),
        *[("-12.0*", "-20.0 to +4.0", "p 0.040, Holm 0.080")] * 2,
        ("+12.0**", "+60.0 to +64.0", "p 0.040, Holm 0.040"),
    ]


def test_what_was_skipped_is_in_no_table() -> None:
    skipped = row("a", 0.5, status="skipped", note="no bands")
    tables = bench_tables([skipped, row("b", 0.4, status="failed")])
    assert tables.main == tables.more == ()


def test_published_figures_stand_beside_the_best_on_the_same_data_only() -> None:
    rows = [
        row("a", 0.5), row("b", 0.873), row("b", 0.99, variant="csls"),
        row("c", 0.3, dataset="aid"), row("c", 0.95, task="linear-probe"),
    ]  # fmt: skip
    table = reported_table(rows)
    assert table is not None
    headings = [heading for heading, _ in table.groups]
    assert headings == [
        "eurosat-rgb, top-1, gain in points",
        "eurosat-rgb, top-1; best measured here: 87.3 (b, rgb, split val)",
    ]
    shown = {line.labels[0]: line.cells[0] for line in table.groups[1][1]}
    assert shown["Llama3-MS-CLIP, multispectral"] == Cell(value="67.90")
    assert "not measured here" in table.title
    assert [column.metric for column in table.columns] == ["as reported"]
    assert reported_table(rows[3:4]) is None


def test_published_retrieval_is_compared_in_its_own_direction() -> None:
    keys = {"dataset": "bigearthnet-19", "task": "retrieval", "metric": "recall@1", "tower": None}
    rows = [
        row("m", 0.3, query_tower="rgb", gallery_tower="s2", **keys),
        row("m", 0.9, query_tower="text", gallery_tower="rgb", **keys),
    ]
    table = reported_table(rows)
    assert table is not None
    lines = dict(table.groups)
    forth = lines[
        "bigearthnet-19, recall@1, rgb → sensor; best measured here: 30.0 (m, rgb → s2, split val)"
    ]
    assert forth[0].cells[0] == Cell(value="24.86")
    assert lines["bigearthnet-19, recall@1, sensor → rgb"][0].cells[0] == Cell(value="6.14")


def test_published_figures_are_of_data_sets_that_there_are() -> None:
    assert {name for one in load_reported() for name in one.data} <= set(DATASETS)


def test_holm_rejects_what_its_steps_reject() -> None:
    assert adjust_holm([0.04, 0.01, 0.03, 0.5]) == pytest.approx([0.09, 0.04, 0.09, 0.5])
    assert adjust_holm([0.9, 0.8]) == [1, 1]
    assert adjust_holm([]) == []
    p_values = np.random.default_rng(9).random(12) ** 4
    adjusted = np.array(adjust_holm(list(p_values)))
    for level in (0.01, 0.05, 0.2, 0.6):
        rejected = set()
        for step, place in enumerate(np.argsort(p_values)):  # step by step, as it is defined
            if p_values[place] > level / (12 - step):
                break
            rejected.add(int(place))
        assert set(np.flatnonzero(adjusted <= level).tolist()) == rejected
