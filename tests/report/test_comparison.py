"""Models side by side, as commands print them and reports open with."""

from __future__ import annotations

from typing import Any

import pytest

from report_page import row
from terralign.errors import DataError
from terralign.evaluation.rows import Row
from terralign.report.comparison import comparison_table, format_table


def retrieval(query: str, gallery: str, **changes: Any) -> Row:
    towers = {"tower": None, "query_tower": query, "gallery_tower": gallery}
    keys: dict[str, Any] = {"role": "alignment", "task": "retrieval", "metric": "recall@1"}
    return row("aligned", 0.6, **towers, **keys | changes)


ROWS = [
    row("aligned", 0.857, role="alignment", dataset="eurosat-ms", tower="sentinel2-labelled"),
    row("aligned", 0.768, role="alignment", dataset="eurosat-ms", tower="sentinel2"),
    row("patched", 0.732, role="alignment", dataset="eurosat-ms"),
    row("base", 0.411, role="alignment", dataset="eurosat-ms"),
    retrieval("sentinel2", "rgb"),
    retrieval("rgb", "sentinel2"),
    row("base", 0.448),
    row("base", 0.91, metric="top5"),
    row("finetuned", 0.851),
    row("patched", 0.827),
    row("base", 0.2, role="unseen", dataset="d", metric="macro_map", task="multi-label"),
]


def test_models_of_a_run_are_side_by_side_and_fit_a_terminal() -> None:
    text = format_table(ROWS)
    lines = text.splitlines()
    assert max(map(len, lines)) <= 100
    assert lines[0].split() == [
        "tower", "metric", "base", "finetuned", "patched", "aligned", "chance", "n",
    ]  # fmt: skip
    plain = next(line.split() for line in lines if line.split()[:2] == ["rgb", "top1"])
    assert plain == [
        "rgb", "top1", "44.8", "±2.0", "85.1", "±2.0", "82.7", "±2.0", "10.0", "1541",
    ]  # fmt: skip
    beside = next(line for line in lines if "sentinel2-labelled" in line)
    assert [word for word in beside.split() if "." in word and "±" not in word] == [
        "41.1", "73.2", "85.7", "10.0",
    ]  # fmt: skip
    assert [line for line in lines if ": " in line][:4] == [
        "patching: eurosat-rgb/val, zero-shot",
        "alignment: eurosat-ms/val, zero-shot",
        "alignment: eurosat-rgb/val, retrieval",
        "unseen: d/val, multi-label",
    ]
    assert "top5" not in text
    assert "sentinel2 → rgb" in text
    assert "rgb → sentinel2" in text


def test_radar_is_not_put_beside_what_the_rgb_tower_makes_of_optical_pixels() -> None:
    def seen(model: str, sensor: str, **changes: Any) -> Row:
        return row(model, role="alignment", dataset="pairs", sensor=sensor, **changes)

    table = comparison_table(
        [
            seen("base", "sentinel2-l2a"),
            seen("patched", "sentinel2-l2a"),
            seen("aligned", "sentinel2-l2a", tower="s2"),
            seen("aligned", "sentinel1-grd", tower="s1"),
            retrieval("s1", "s2", sensor="sentinel1-grd and sentinel2-l2a"),
        ],
        "t",
    )
    assert table is not None
    models = [column.metric for column in table.columns]
    assert models == ["base", "patched", "aligned", "chance", "n"]
    found = [
        (heading, line.labels[0], [m for m, c in zip(models, line.cells[:3], strict=False) if c])
        for heading, lines in table.groups
        for line in lines
    ]
    assert found == [
        ("alignment: pairs/val, zero-shot", "s2", ["base", "patched", "aligned"]),
        ("alignment: pairs/val, zero-shot, sentinel1-grd", "s1", ["aligned"]),
        (
            "alignment: eurosat-rgb/val, retrieval, sentinel1-grd and sentinel2-l2a",
            "s1 → s2", ["aligned"],
        ),
    ]  # fmt: skip


def test_without_rows_there_is_no_result_and_models_that_are_missing_have_no_column() -> None:
    assert format_table([]) == "no results\n"
    assert format_table([row(metric="top5")]) == "no results\n"
    assert "finetuned" not in format_table([row()])


def test_small_chance_and_differing_numbers_of_samples_are_shown() -> None:
    assert "0.05" in format_table([row(metric="recall@1", chance=1 / 2000)]).split()
    assert "10–20" in format_table([row(num_samples=10), row("patched", num_samples=20)])


def test_a_long_name_is_cut_in_the_terminal_only() -> None:
    rows = [row("aligned", tower="sentinel2-" + "x" * 80)]
    assert max(map(len, format_table(rows).splitlines())) <= 120
    table = comparison_table(rows, "t")
    assert table is not None
    assert table.lines[0].labels[0] == rows[0].tower
    both = [*rows, row("aligned", tower=f"{rows[0].tower}y")]  # cut, they would be the same
    assert all(f" {one.tower} " in format_table(both) for one in both)


def test_two_rows_of_one_value_are_refused() -> None:
    with pytest.raises(DataError, match=r"two rows of one value: .*zero-shot, rgb, top1, base"):
        format_table([row(), row(value=0.6)])


def test_notes_of_a_run_and_what_was_not_measured_are_below_the_table() -> None:
    noted = [row(note="of training data"), row("patched", note="of training data")]
    skipped = row("m", low=None, high=None, entry="e", status="skipped", note="no bands")
    lines = format_table([*noted, skipped, row("m", entry="e", note="how it was measured")])
    assert "base, rgb: eurosat-rgb/val: of training data." in lines
    assert "skipped: m: e, zero-shot, rgb: no bands" in lines
    assert "how it was measured" not in lines


def test_models_of_a_bench_keep_their_order_and_significant_differences_have_a_star() -> None:
    def of(model: str, value: float, **changes: Any) -> Row:
        return row(model, value, entry="e", prompts="plain", **changes)

    rows = [
        of("patched", 0.5), of("base", 0.6), of("c", 0.7),
        of("base", 0.1, reference="patched", p_value=0.01),
        of("c", 0.2, reference="patched", p_value=0.3),
        of("c", 0.3, variant="csls"), of("c", 0.3, task="robustness"),
    ]  # fmt: skip
    lines = format_table(rows).splitlines()
    assert lines[0].split() == ["tower", "metric", "patched", "base", "c", "chance", "n"]
    assert lines[2].split()[2:8] == ["50.0", "±2.0", "60.0", "±2.0*", "70.0", "±2.0"]
    assert len(lines) == 4
    both = [*rows, of("c", 0.4).model_copy(update={"prompts": "satellite"})]
    assert "rgb, prompts satellite" in format_table(both)
