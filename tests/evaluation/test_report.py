"""The report: what its table, pages and figures say, and that nothing in them can break out."""

from __future__ import annotations

import base64
import csv
import html.parser
import io
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from terralign.errors import DataError
from terralign.evaluation.canvas import DARK, LIGHT, MAX_PNG_BYTES, Series, label_points, new_axes
from terralign.evaluation.figures import (
    MAX_CLASSES,
    Bar,
    alpha_curve_figure,
    class_figure,
    comparison_figure,
    loss_figure,
    plot_class_accuracy,
    plot_comparison,
    plot_losses,
)
from terralign.evaluation.page import columns_html
from terralign.evaluation.report import (
    format_table,
    plot_alpha_curve,
    write_report,
    write_sweep_csv,
)
from terralign.evaluation.rows import Row
from terralign.evaluation.table import table_lines

NASTY = '<script>alert(1)</script> | `x` "quoted" & $y$'


def _row(model: str = "base", value: float = 0.5, **changes: Any) -> Row:
    row = {
        "model": model,
        "tower": "rgb",
        "role": "patching",
        "dataset": "eurosat-rgb",
        "split": "val",
        "task": "zero-shot",
        "metric": "top1",
        "value": value,
        "low": value - 0.02,
        "high": value + 0.01,
        "num_samples": 1541,
        "chance": 0.1,
    }
    return Row.model_validate(row | changes)


def _retrieval(query: str, gallery: str, **changes: Any) -> Row:
    towers = {"tower": None, "query_tower": query, "gallery_tower": gallery}
    keys: dict[str, Any] = {"role": "alignment", "task": "retrieval", "metric": "recall@1"}
    return _row("aligned", 0.6, **towers, **keys | changes)


ROWS = [
    _row("aligned", 0.857, role="alignment", dataset="eurosat-ms", tower="sentinel2-labelled"),
    _row("aligned", 0.768, role="alignment", dataset="eurosat-ms", tower="sentinel2"),
    _row("patched", 0.732, role="alignment", dataset="eurosat-ms"),
    _row("base", 0.411, role="alignment", dataset="eurosat-ms"),
    _retrieval("sentinel2", "rgb"),
    _retrieval("rgb", "sentinel2"),
    _row("base", 0.448),
    _row("base", 0.91, metric="top5"),
    _row("finetuned", 0.851),
    _row("patched", 0.827),
    _row("base", 0.2, role="unseen", dataset=NASTY, metric="macro_map", task="multi-label"),
]
SWEEP = [
    {"alpha": a, "patching": {"eurosat": 0.45 + 0.4 * a}, "supported": {"photos": 0.55 - 0.1 * a}}
    for a in (1.0, 0.0, 0.5)
]
CURVES = {"patch": [{"step": i, "loss": 1 / i} for i in range(1, 200)], NASTY: [{"step": 1}]}


def test_table_puts_models_side_by_side_and_fits_a_terminal() -> None:
    text = format_table(ROWS)
    lines = text.splitlines()
    assert max(map(len, lines)) <= 100
    assert re.split(r"\s+", lines[0].strip()) == [
        *("base", "finetuned", "patched", "aligned"),
        *("chance", "n"),
    ]
    one_row = [line.split() for line in lines if line.strip().startswith("rgb ")]
    assert one_row[0] == [
        *("rgb", "top1", "44.8", "±2.0", "85.1", "±2.0", "82.7", "±2.0", "10.0", "1541"),
    ]
    beside = next(line for line in lines if "sentinel2-labelled" in line)
    assert [word for word in beside.split() if "." in word and "±" not in word] == [
        *("41.1", "73.2", "85.7", "10.0"),
    ]
    assert [line.split(":")[0] for line in lines if line.startswith(("p", "a", "u"))] == [
        *("patching", "alignment", "alignment", "unseen"),
    ]
    assert "top5" not in text
    assert "sentinel2 → rgb" in text
    assert "rgb → sentinel2" in text


def test_radar_is_not_put_beside_what_the_rgb_tower_makes_of_optical_pixels() -> None:
    def row(model: str, sensor: str, **changes: Any) -> Row:
        return _row(model, role="alignment", dataset="pairs", sensor=sensor, **changes)

    pair = _retrieval("s1", "s2", sensor="sentinel1-grd and sentinel2-l2a")
    lines = table_lines(
        [
            row("base", "sentinel2-l2a"),
            row("patched", "sentinel2-l2a"),
            row("aligned", "sentinel2-l2a", tower="s2"),
            row("aligned", "sentinel1-grd", tower="s1"),
            pair,
        ]
    )
    assert [(line.tower, line.sensor, sorted(line.cells)) for line in lines] == [
        ("s2", "", ["aligned", "base", "patched"]),
        ("s1", "sentinel1-grd", ["aligned"]),
        ("s1 → s2", "sentinel1-grd and sentinel2-l2a", ["aligned"]),
    ]
    assert len({line.heading for line in lines}) == 3


def test_a_chance_of_less_than_a_tenth_of_a_per_cent_is_not_shown_as_none() -> None:
    assert "0.05" in format_table([_row(metric="recall@1", chance=1 / 2000)]).split()


def test_table_without_rows_says_so_and_shows_only_the_models_there_are() -> None:
    assert format_table([]) == "no results\n"
    assert format_table([_row("base", metric="top5")]) == "no results\n"
    assert "finetuned" not in format_table([_row()])


def test_a_tower_with_a_long_name_is_cut_in_the_terminal_only() -> None:
    name = "sentinel2-" + "x" * 80
    rows = [_row("aligned", tower=name)]
    assert max(map(len, format_table(rows).splitlines())) <= 100
    assert table_lines(rows)[0].tower == name


def test_differing_numbers_of_samples_are_both_shown() -> None:
    rows = [_row("base", num_samples=10), _row("patched", num_samples=20)]
    assert "10/20" in format_table(rows)


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        ([_row("bse")], "unknown model 'bse'.*did you mean 'base'"),
        ([_row(low=None)], "lacks low"),
        ([_row(tower=None)], "lacks tower"),
        ([_row(), _row(value=0.6)], "two rows for model 'base'"),
    ],
)
def test_rows_that_cannot_be_shown_are_refused(rows: list[Row], told: str) -> None:
    with pytest.raises(DataError, match=told):
        format_table(rows)


class _Page(html.parser.HTMLParser):
    """Collects the tags, the sources of pictures and the text of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.sources: list[str] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.sources += [v for k, v in attrs if k in ("src", "srcset", "href") and v]

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    path = write_report(
        folder,
        title=NASTY,
        rows=ROWS,
        sweep=SWEEP,
        curves=CURVES,
        recipe_text=f'name = "{NASTY}"\n```\nlr = 1e-5\n',
        versions={"torch": "2.6", NASTY: NASTY},
        notes=[NASTY],
        chosen_alpha=0.5,
        max_supported_drop=0.01,
        per_class={NASTY: {"base": {NASTY: 0.4, "forest": None}, "patched": {NASTY: 0.7}}},
        reported=[
            {
                "model": "B/32",
                "dataset": "EuroSAT",
                "metric": "top1",
                "value": 0.697,
                "source": NASTY,
            }
        ],
    )
    assert path == folder / "report.html"
    return folder


def test_page_is_self_contained_and_escapes_everything(folder: Path) -> None:
    text = (folder / "report.html").read_text(encoding="utf-8")
    page = _Page(text)
    assert "script" not in page.tags
    assert page.text.count(NASTY) >= 8
    assert "@BODY@" not in text
    assert page.tags.count("img") == page.tags.count("source") == 4
    assert len(page.sources) == 8
    for source in page.sources:
        kind, data = source.split(",", 1)
        assert kind == "data:image/png;base64"
        picture = Image.open(io.BytesIO(base64.b64decode(data, validate=True)))
        assert picture.format == "PNG"
    assert len(set(page.sources)) == 8  # each figure in a light and in a dark version


def test_page_says_what_was_run_and_labels_published_numbers(folder: Path) -> None:
    for name in ("report.html", "report.md"):
        text = (folder / name).read_text(encoding="utf-8")
        assert "lr = 1e-5" in text
        assert "2.6" in text
        assert "85.7" in text
        assert "(83.7–86.7)" in text
        before, published = text.split("As reported in publications", 1)
        assert "69.7" in published
        assert "69.7" not in before
        assert "as reported" in published


def test_markdown_keeps_its_shape_whatever_the_names(folder: Path) -> None:
    text = (folder / "report.md").read_text(encoding="utf-8")
    assert "\n````toml\n" in text  # a longer fence than any in the recipe
    outside = text.split("````")[0]
    assert "<script" not in outside.replace(r"\<", "")
    for block in re.findall(r"(?:^\|.*\n)+", outside, flags=re.MULTILINE):
        widths = {len(re.findall(r"(?<!\\)\|", row)) for row in block.splitlines()}
        assert len(widths) == 1
    for link in re.findall(r"\]\((\S+)\)", outside):
        assert (folder / link).is_file()


def test_files_of_a_report(folder: Path) -> None:
    pngs = sorted((folder / "figures").iterdir())
    assert [png.name for png in pngs] == [
        *("alpha-curve.png", "classes-1.png", "comparison.png", "losses.png"),
    ]
    for png in pngs:
        assert 2_000 < png.stat().st_size < MAX_PNG_BYTES
    rows = list(csv.reader((folder / "alpha-sweep.csv").read_text(encoding="utf-8").splitlines()))
    assert rows[0] == ["alpha", "patching:eurosat", "supported:photos"]
    assert [float(row[0]) for row in rows[1:]] == [0, 0.5, 1]
    assert [float(value) for value in rows[2]] == pytest.approx([0.5, 0.65, 0.5])


def test_a_report_of_nothing_but_rows_has_one_figure(tmp_path: Path) -> None:
    write_report(
        tmp_path, title="t", rows=ROWS, sweep=[], curves={}, recipe_text="", versions={}, notes=[]
    )
    assert [png.name for png in (tmp_path / "figures").iterdir()] == ["comparison.png"]
    assert not (tmp_path / "alpha-sweep.csv").exists()
    assert _Page((tmp_path / "report.html").read_text(encoding="utf-8")).tags.count("img") == 1


def test_the_same_report_is_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        plot_alpha_curve(tmp_path / name, SWEEP, chosen_alpha=0.5)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_large_figures_stay_small_files(tmp_path: Path) -> None:
    bars = [Bar(group=f"g{i // 3}", label=NASTY * 3, model="base", value=0.5) for i in range(48)]
    generator = np.random.default_rng(0)
    noise = {
        f"s{k}": [{"step": i, "loss": float(v)} for i, v in enumerate(generator.random(5000))]
        for k in range(4)
    }
    classes = {
        m: {f"c{i}": float(generator.random()) for i in range(200)} for m in ("base", "patched")
    }
    plot_comparison(tmp_path / "bars.png", bars)
    plot_losses(tmp_path / "losses.png", noise)
    plot_class_accuracy(tmp_path / "classes.png", classes)
    assert [png.name for png in tmp_path.iterdir() if png.stat().st_size >= MAX_PNG_BYTES] == []
    with Image.open(tmp_path / "bars.png") as picture:
        assert picture.width > 400


def _texts(axes: Any) -> list[str]:
    return [text.get_text() for text in axes.texts]


def test_alpha_curve_labels_every_alpha_and_draws_the_bound() -> None:
    axes = alpha_curve_figure(SWEEP, chosen_alpha=0.5, max_supported_drop=0.01).axes[0]
    assert sorted(_texts(axes)) == ["0", "0.5", "1"]
    bounds = [line for line in axes.lines if line.get_linestyle() == "--"]
    assert [line.get_xdata()[0] for line in bounds] == pytest.approx([54])
    stars = [line for line in axes.lines if line.get_marker() == "*"]
    assert [(s.get_xdata()[0], s.get_ydata()[0]) for s in stars] == [(pytest.approx(50), 65)]


def test_without_a_choice_or_bound_neither_is_drawn() -> None:
    lines = alpha_curve_figure(SWEEP).axes[0].lines
    assert [line.get_marker() for line in lines] == ["o"]
    lines = alpha_curve_figure(SWEEP[:1], max_supported_drop=0.01).axes[0].lines  # no alpha 0
    assert len(lines) == 1


def test_every_supported_task_has_its_curve_and_none_is_no_fault() -> None:
    two = [p | {"supported": {"a": 0.5, "b": 0.6 + p["alpha"] / 10}} for p in SWEEP]
    figure = alpha_curve_figure(two, max_supported_drop=0.02)
    assert len([x for x in figure.axes[0].lines if x.get_linestyle() == "--"]) == 2
    none = [p | {"supported": {}} for p in SWEEP]
    line = alpha_curve_figure(none, max_supported_drop=0.02).axes[0].lines[0]
    np.testing.assert_allclose(line.get_xydata(), [[0, 45], [0.5, 65], [1, 85]])


@pytest.mark.parametrize("crowd", [1, 3, 21, 61])
def test_labels_of_points_never_overlap(crowd: int) -> None:
    figure, axes = new_axes(LIGHT, height=3)
    alphas = list(np.linspace(0, 1, crowd))
    axes.plot(alphas, [0.0] * crowd)
    curve = Series(alphas=alphas, xs=alphas, ys=[0.0] * crowd, color="black")
    label_points(figure, axes, [curve], chosen=alphas[crowd // 2])
    boxes = [text.get_window_extent() for text in axes.texts]
    assert 1 <= len(boxes) <= crowd
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])
    assert f"{alphas[crowd // 2]:.2g}" in _texts(axes)


def test_sweeps_that_make_no_curve_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="sweep is empty"):
        write_sweep_csv(tmp_path / "x.csv", [])
    with pytest.raises(DataError, match="every alpha needs the same tasks"):
        alpha_curve_figure([SWEEP[0], SWEEP[1] | {"supported": {"other": 0.1}}])
    with pytest.raises(DataError, match="no patching task"):
        alpha_curve_figure([{"alpha": 0, "patching": {}, "supported": {"a": 0.1}}])


def test_comparison_draws_value_interval_and_chance() -> None:
    bars = [
        Bar(group="g", label="base", model="base", value=0.4, low=0.3, high=0.45, chance=0.1),
        Bar(group="h", label="patched", model="patched", value=0.7),
    ]
    axes = comparison_figure(bars, theme=DARK).axes[0]
    assert [patch.get_width() for patch in axes.patches] == pytest.approx([40, 70])
    assert [list(line.get_xdata()) for line in axes.lines] == [
        pytest.approx([30, 45]),
        pytest.approx([10, 10]),
    ]
    assert _texts(axes) == ["40.0", "70.0", "g", "h"]
    assert len({patch.get_facecolor() for patch in axes.patches}) == 2


def test_no_line_crosses_a_heading_and_short_bars_say_how_chance_compares() -> None:
    bars = [
        Bar(group="a long heading of two lines " * 3, label="x", model="aligned", value=0.4),
        Bar(group="recall@1", label="s1", model="aligned", value=0.012, chance=0.0005),
    ]
    axes = comparison_figure(bars).axes[0]
    assert not axes.spines["left"].get_visible()
    heights = [text.get_position()[1] for text in axes.texts[-2:]]
    spans = [path.vertices[:, 1] for one in axes.collections for path in one.get_paths()]
    assert spans
    assert not any(min(span) < y < max(span) for span in spans for y in heights)
    assert "1.2  (24 times chance)" in _texts(axes)


def test_of_too_many_classes_those_that_differ_most_are_drawn_and_it_is_said() -> None:
    names = [f"c{i}" for i in range(MAX_CLASSES + 5)]
    values = {"base": dict.fromkeys(names, 0.1), "patched": dict.fromkeys(names[:5], 0.1)}
    values["patched"] |= dict.fromkeys(names[5:], 0.6)
    axes = class_figure(values).axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == names[5:]
    assert "5 classes" in axes.get_xlabel()


def test_losses_have_one_panel_per_stage_that_has_any() -> None:
    figure = loss_figure(CURVES | {"align": [{"step": 1, "loss": 2.0}, {"step": 2, "lr": 0.1}]})
    assert [axes.get_title() for axes in figure.axes] == ["patch", "align"]
    assert figure.axes[1].lines[0].get_xydata().tolist() == [[1, 2]]


def test_losses_of_alternating_data_sets_are_apart() -> None:
    rows = [{"step": i, "loss": 0.6 if i % 2 else 0.1, "source": "ab"[i % 2]} for i in range(1, 9)]
    figure = loss_figure({"align": rows})
    values = [set(line.get_ydata()) for line in figure.axes[0].lines]
    assert values == [{0.6}, {0.1}]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["b", "a"]


def _report_text(folder: Path, **changes: Any) -> str:
    empty: dict[str, Any] = {
        "sweep": [], "curves": {}, "recipe_text": "", "versions": {}, "notes": [],
    }  # fmt: skip
    write_report(folder, title="t", rows=ROWS, **(empty | changes))
    return (folder / "report.md").read_text(encoding="utf-8")


def test_a_report_explains_roles_and_an_alpha_of_one_and_says_what_next(tmp_path: Path) -> None:
    text = _report_text(tmp_path, sweep=SWEEP, chosen_alpha=1.0, next_steps=[("Look", "see `x`")])
    assert "Alpha is 1: patched is the fine-tuned model" in text
    assert "Alpha is" not in _report_text(tmp_path, sweep=SWEEP, chosen_alpha=0.5)
    for role in ("patching", "supported", "alignment", "unseen"):
        assert (f"- {role}: " in text) == any(row.role == role for row in ROWS)
    assert "Look:\n\n```sh\nsee `x`\n```" in text


def test_a_curve_that_begins_at_zero_is_explained(tmp_path: Path) -> None:
    copied = [{"step": i, "loss": 0.0 if i == 1 else 0.1} for i in range(1, 60)]
    usual = [{"step": i, "loss": 1 / i} for i in range(1, 600)]
    told = "copy of its teacher"
    assert told in _report_text(tmp_path, curves={"align/s2": copied, "patch": usual})
    assert told not in _report_text(tmp_path, curves={"patch": usual})


def test_figures_without_anything_to_draw_are_refused() -> None:
    for draw, nothing in (
        (comparison_figure, []),
        (class_figure, {"base": {"forest": None}}),
        (loss_figure, {"patch": [{"step": 1}]}),
    ):
        with pytest.raises(DataError):
            draw(nothing)  # type: ignore[operator]


def test_columns_of_figures_are_of_about_the_same_height() -> None:
    def png(height: int) -> bytes:
        data = io.BytesIO()
        Image.new("L", (100, height)).save(data, "PNG")
        return data.getvalue()

    page = columns_html([(f"[{n}]", png(n)) for n in (50, 60, 200, 70, 40)])
    columns = [re.findall(r"\[(\d+)\]", column) for column in page.split("</div><div>")]
    assert [list(map(int, column)) for column in columns] == [[50, 60, 70], [200, 40]]
    assert columns_html([("[1]", png(50))]).count("<div>") == 1
