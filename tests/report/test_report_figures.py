"""Figures of reports: what they draw, where, and that their labels keep apart."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.colors import to_hex

from figure_labels import texts_apart
from terralign.errors import DataError
from terralign.evaluation.rows import Row
from terralign.report.canvas import DARK, LIGHT, MARKERS, png_bytes
from terralign.report.diagnostics import (
    MAX_BARS,
    MAX_CONFUSION_CLASSES,
    class_figure,
    confusion_figure,
    projection_figure,
    reliability_figure,
    retrieval_figure,
    top_confusions,
)
from terralign.report.entries import EntryFigures
from terralign.report.figures import Sweep, alpha_figure, comparison_figure, loss_figure

LONG = "a class whose name is rather long and goes on $x$"
POINTS = [
    {"alpha": a, "patching": {"eurosat": 0.45 + 0.4 * a}, "supported": {"photos": 0.55 - 0.1 * a}}
    for a in (1.0, 0.0, 0.5)
]
CURVE = {
    "edges": np.array([0, 0.25, 0.5, 1.0]),
    "confidence": np.array([0.2, 0.4, np.nan]),
    "accuracy": np.array([0.3, 0.4, np.nan]),
    "count": np.array([60, 3, 0]),
}


def texts(axes: Axes) -> list[str]:
    return [text.get_text() for text in axes.texts]


def row(model: str, value: float = 0.5, **changes: Any) -> Row:
    keys: dict[str, Any] = {
        "model": model, "tower": "rgb", "role": "patching", "dataset": "d", "split": "val",
        "task": "zero-shot", "metric": "top1", "value": value, "low": value - 0.1,
        "high": value + 0.05, "num_samples": 1541, "chance": 0.1,
    }  # fmt: skip
    return Row.model_validate(keys | changes)


def found(query: str, gallery: str, metric: str, value: float = 0.5, **changes: Any) -> Row:
    towers = {"tower": None, "query_tower": query, "gallery_tower": gallery}
    return row(
        "m", value, **towers, **{"task": "retrieval", "metric": metric, "entry": "e"} | changes
    )


# Of a run


def test_the_alpha_curve_labels_the_chosen_alpha_and_the_ends_and_draws_the_bound() -> None:
    axes = alpha_figure(Sweep(points=POINTS, chosen=0.5, max_supported_drop=0.01)).axes[0]
    assert sorted(texts(axes)) == ["0", "0.5", "1"]
    bounds = [line for line in axes.lines if line.get_linestyle() == "--"]
    assert [line.get_xdata()[0] for line in bounds] == pytest.approx([54])
    later = Sweep(points=POINTS, max_supported_drop=0.01, baseline={"photos": 0.57})
    bounds = [x for x in alpha_figure(later).axes[0].lines if x.get_linestyle() == "--"]
    assert bounds[0].get_xdata()[0] == pytest.approx(56)  # of before any patching
    stars = [line for line in axes.lines if line.get_marker() == "*"]
    assert [(s.get_xdata()[0], s.get_ydata()[0]) for s in stars] == [(pytest.approx(50), 65)]


def test_without_a_choice_or_bound_neither_is_drawn() -> None:
    assert [line.get_marker() for line in alpha_figure(Sweep(points=POINTS)).axes[0].lines] == ["o"]
    no_zero = Sweep(points=POINTS[:1], max_supported_drop=0.01)
    assert len(alpha_figure(no_zero).axes[0].lines) == 1


def test_every_supported_task_has_its_curve_and_none_is_no_fault() -> None:
    two = [p | {"supported": {"a": 0.5, "b": 0.6 + p["alpha"] / 10}} for p in POINTS]
    figure = alpha_figure(Sweep(points=two, max_supported_drop=0.02))
    assert len([x for x in figure.axes[0].lines if x.get_linestyle() == "--"]) == 2
    none = Sweep(points=[p | {"supported": {}} for p in POINTS], max_supported_drop=0.02)
    line = alpha_figure(none).axes[0].lines[0]
    np.testing.assert_allclose(line.get_xydata(), [[0, 45], [0.5, 65], [1, 85]])


def test_sweeps_that_make_no_curve_are_refused() -> None:
    with pytest.raises(DataError, match="sweep is empty"):
        Sweep(points=[])
    with pytest.raises(DataError, match="every alpha needs the same tasks"):
        Sweep(points=[POINTS[0], POINTS[1] | {"supported": {"other": 0.1}}])
    with pytest.raises(DataError, match="no patching task"):
        Sweep(points=[{"alpha": 0, "patching": {}, "supported": {"a": 0.1}}])


def test_the_comparison_draws_value_interval_and_chance() -> None:
    rows = [
        row("base", 0.4),
        row("patched", 0.012, dataset="e", chance=0.0005, low=None, high=None),
    ]
    axes = comparison_figure(rows, DARK).axes[0]
    assert [patch.get_width() for patch in axes.patches] == pytest.approx([40, 1.2])
    assert [list(line.get_xdata()) for line in axes.lines] == [
        pytest.approx([30, 45]), pytest.approx([10, 10]), pytest.approx([0.05, 0.05]),
    ]  # fmt: skip
    assert {"40.0", "1.2  (24 times chance)", "patching: d/val, zero-shot, top1"} < set(texts(axes))
    assert len({patch.get_facecolor() for patch in axes.patches}) == 2


def test_losses_have_one_panel_per_stage_and_a_line_per_data_set() -> None:
    two = [{"step": i, "loss": 0.6 if i % 2 else 0.1, "source": "ab"[i % 2]} for i in range(1, 9)]
    figure = loss_figure(
        {"patch": [{"step": 1, "loss": 2.0}, {"step": 2}], "none": [], "align": two}
    )
    assert [axes.get_title() for axes in figure.axes] == ["patch", "align"]
    assert figure.axes[0].lines[0].get_xydata().tolist() == [[1, 2]]
    assert [set(line.get_ydata()) for line in figure.axes[1].lines] == [{0.6}, {0.1}]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["b", "a"]


# Of a bench


def class_values(num_series: int, num_classes: int) -> dict[str, dict[str, float | None]]:
    generator = np.random.default_rng(0)
    return {
        f"{LONG} {s}": {
            f"{LONG[: 5 + c % 40]} {c}": float(generator.random()) for c in range(num_classes)
        }
        for s in range(num_series)
    }


def numbered(names: Any) -> dict[str, int]:
    return {name: number for number, name in enumerate(names)}


def test_labels_keep_apart() -> None:
    generator = np.random.default_rng(1)
    six = class_values(6, 43)
    curves = {f"{LONG} {n}": {k: row("m") for k in (1, 5, 10, 20, 50)} for n in range(2)}
    for figure in (
        class_figure(six, numbered(six), DARK),
        reliability_figure({"one": CURVE, "two": CURVE}, {"one": 0, "two": 3}),
        retrieval_figure(curves, numbered(curves), "recall@k"),
        projection_figure({LONG: generator.random((9, 2)), "rgb": np.ones((1, 2))}, (0.4, 0.2)),
        *(
            confusion_figure(generator.integers(0, 99, (k, k)), [LONG] * k, DARK)
            for k in (2, 12, 14, 24, MAX_CONFUSION_CLASSES)
        ),
    ):
        assert texts_apart(figure)


def test_every_class_has_a_bar_per_series_of_its_value() -> None:
    values = {"a": {"forest": 0.5, "river": None}, "b": {"forest": 0.25, "river": 1.0}}
    axes = class_figure(values, numbered(values)).axes[0]
    assert [bar.get_width() for bar in axes.patches] == pytest.approx([50, 25, 100])
    assert [label.get_text() for label in axes.get_yticklabels()] == ["forest", "river"]
    middles = [bar.get_y() + bar.get_height() / 2 for bar in axes.patches]
    assert middles[0] < 0 < middles[1] < 0.5 < middles[2] < 1.5  # a above b, both at their class


def test_of_too_many_classes_those_that_differ_most_have_bars_and_it_is_said() -> None:
    names = [f"c{number}" for number in range(MAX_BARS)]
    same, differ = names[: MAX_BARS // 2], names[MAX_BARS // 2 :]
    values = {"a": dict.fromkeys(names, 0.5), "b": dict.fromkeys(same, 0.5)}
    values["b"] |= dict.fromkeys(differ, 0.6)
    axes = class_figure(values, numbered(values)).axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == differ
    assert f"{len(same)} classes" in axes.get_xlabel()


def test_lines_of_retrieval_have_the_colour_of_their_tower_among_the_classes() -> None:
    towers = ("rgb", "s2", "s1")
    rows = [
        *(row("m", tower=tower, measurement="a" * 16) for tower in towers),
        *(
            found(query, gallery, "recall@1")
            for query, gallery in (
                ("text", "s1"), ("text", "s2"), ("s1", "text"), ("rgb", "s1"), ("s1", "rgb"),
            )
        ),
    ]  # fmt: skip
    plots = EntryFigures(rows, {"a" * 16: {"per_class": {"forest": {"value": 0.5}}}}).plots
    assert plots[0].name == "classes"
    bars = plots[0].draw(LIGHT).axes[0].patches
    own = {tower: to_hex(bar.get_facecolor()) for tower, bar in zip(towers, bars, strict=True)}
    drawn = {plot.name: plot.draw(LIGHT).axes[0].lines for plot in plots[1:]}
    colors = {name: [line.get_color() for line in lines][:-1] for name, lines in drawn.items()}
    assert colors == {
        "retrieval-1": [own["s1"], own["s2"]],
        "retrieval-2": [own["s1"]],
        "retrieval-3": [own["s1"]],
        "retrieval-4": [own["s1"]],
    }


def test_no_two_lines_of_an_entry_look_alike() -> None:
    looks = [tuple(LIGHT.line(number).values()) for number in range(len(MARKERS) ** 2)]
    assert len(set(looks)) == len(looks)
    assert len({color for color, _ in looks[:6]}) == len({marker for _, marker in looks[:6]}) == 6


def test_pairs_with_classes_alone_have_curves_beside_pairs_of_the_same_sample() -> None:
    rows = [
        *(found("text", "rgb", f"map@{k}", k / 100, prompts="plain") for k in (1, 5, 10)),
        *(found("rgb", "text", f"map@{k}", k / 50, prompts="plain") for k in (1, 5, 10)),
        *(found("rgb", "s2", f"{name}@{k}", k / 20) for name in ("map", "recall") for k in (1, 5)),
    ]
    plots = EntryFigures(rows, {}).plots
    assert [plot.caption.partition(" against")[0] for plot in plots] == [
        "Retrieval from text: mAP@k (the same class)",
        "Retrieval to text: mAP@k (the same class)",
        "Retrieval from rgb: recall@k (the same sample)",
    ]
    figures = [plot.draw(LIGHT) for plot in plots]
    drawn = [figure.axes[0] for figure in figures]
    legend = [text.get_text() for text in figures[0].legends[0].get_texts()]
    assert legend == ["m, text → rgb", "chance"]  # one prompt set needs no name
    assert [axes.get_ylabel() for axes in drawn] == ["mAP@k, %", "mAP@k, %", "recall@k, %"]
    assert list(drawn[0].lines[0].get_ydata()) == pytest.approx([1, 5, 10])
    assert list(drawn[2].lines[0].get_ydata()) == pytest.approx([5, 25])


def test_curves_end_before_the_whole_gallery_is_found() -> None:
    between = [
        found("s2", "rgb", f"recall@{k}", num_samples=48, chance=min(1, k / 48))
        for k in (1, 10, 48, 50)
    ]
    captions = [
        found("text", "rgb", f"recall@{k}", num_samples=48, chance=k / 500) for k in (1, 50, 500)
    ]  # five to an image
    plots = EntryFigures([*between, *captions], {}).plots
    drawn = {one.caption.split(":")[0]: one.draw(LIGHT).axes[0].lines[0] for one in plots}
    assert list(drawn["Retrieval to rgb"].get_xdata()) == [1, 10]
    assert list(drawn["Retrieval from text"].get_xdata()) == [1, 50]


def test_chance_is_drawn_where_it_is_common_and_hidden_lines_are_named() -> None:
    same = {k: row("a", k / 20) for k in (1, 5)}
    other = {k: row("c", k / 10, chance=0.2) for k in (1, 5)}
    curves = {"base": same, "twin": same}
    figure = retrieval_figure(curves, numbered(curves), "recall@k")
    assert figure.axes[0].lines[-1].get_ydata() == pytest.approx([10, 10])
    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    assert legend == ["base (same line as twin)", "twin", "chance"]
    curves |= {"other": other}
    assert len(retrieval_figure(curves, numbered(curves), "recall@k").axes[0].lines) == 3


def test_a_confusion_matrix_shows_the_share_of_each_right_class() -> None:
    counts = np.array([[3, 1, 0], [0, 0, 0], [0, 5, 5]])
    axes = confusion_figure(counts, ["a", "b", "c"]).axes[0]
    assert np.asarray(axes.images[0].get_array()).tolist() == [[75, 25, 0], [0, 0, 0], [0, 50, 50]]
    written = {(t.get_position(), t.get_text()) for t in axes.texts}
    assert written == {((0, 0), "75"), ((1, 0), "25"), ((1, 2), "50"), ((2, 2), "50")}


def test_frequent_errors_come_first_and_are_shares_of_the_right_class() -> None:
    counts = np.array([[9, 1, 0], [6, 4, 0], [0, 3, 97]])
    assert top_confusions(counts, ["a", "b", "c"]) == [
        ("b", "a", 6, 0.6), ("c", "b", 3, 0.03), ("a", "b", 1, 0.1),
    ]  # fmt: skip
    assert len(top_confusions(counts, ["a", "b", "c"], limit=1)) == 1


def test_reliability_is_in_per_cent_with_its_error_and_bins_of_few_are_pale() -> None:
    figure = reliability_figure({"raw": CURVE}, {"raw": 0})
    upper, lower = figure.axes
    joined, pale, _ = upper.lines
    assert joined.get_xydata().tolist() == [[20, 30]]
    assert pale.get_xydata().tolist() == [[40, 40]]
    assert pale.get_linestyle() == "None"
    assert lower.patches[0].get_data().values.sum() == pytest.approx(100)
    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    assert legend == [f"raw: error {10 * 60 / 63:.1f} points", "calibrated"]


def test_small_groups_of_a_projection_lie_on_top_with_larger_marks() -> None:
    generator = np.random.default_rng(0)
    points = {"text": generator.random((19, 2)), "rgb": generator.random((400, 2))}
    axes = projection_figure(points, (0.4, 0.2)).axes[0]
    small, large = axes.lines
    np.testing.assert_array_equal(small.get_xydata(), points["text"])
    assert small.get_zorder() > large.get_zorder()
    assert small.get_markersize() > large.get_markersize()
    assert "40 %" in axes.get_xlabel()


@pytest.mark.parametrize("theme", [LIGHT, DARK])
def test_a_figure_is_the_same_png_each_time(theme: Any) -> None:
    sweep = Sweep(points=POINTS)
    one, two = (png_bytes(alpha_figure(sweep, theme)) for _ in range(2))
    assert one == two
    assert one.startswith(b"\x89PNG")
