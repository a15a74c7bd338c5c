"""Figures of diagnostics: what they draw, where, and that labels keep apart."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from figure_labels import texts_apart
from terralign.errors import DataError
from terralign.evaluation.calibration import reliability_curve
from terralign.evaluation.canvas import DARK, LIGHT, MAX_PNG_BYTES
from terralign.evaluation.diagnostic_figures import (
    MAX_POINTS,
    plot_projection,
    plot_reliability,
    plot_retrieval,
    projection_figure,
    reliability_figure,
    retrieval_figure,
)
from terralign.evaluation.diagnostics import Projection, project
from terralign.evaluation.metrics import MetricResult
from terralign.evaluation.ranking import recall_metrics


def _projection() -> Projection:
    generator = np.random.default_rng(0)
    return project(
        {
            "text (19 class names)": generator.normal(size=(19, 16)) + 1,
            "rgb": generator.normal(size=(3000, 16)),
            "sentinel2-l2a $x$": generator.normal(size=(1500, 16)) + 2 * np.eye(16)[0],
        }
    )


def _curve(power: float):  # type: ignore[no-untyped-def]
    generator = np.random.default_rng(1)
    probabilities = generator.random(5000)
    return reliability_curve(probabilities, generator.random(5000) < probabilities**power)


def _result(noise: float, ks: tuple[int, ...] = (1, 2, 3, 5, 10, 11, 20, 50)) -> MetricResult:
    generator = np.random.default_rng(2)
    gallery = generator.normal(size=(200, 16))
    query = gallery + noise * generator.normal(size=(200, 16))
    return recall_metrics(query, gallery, ks=ks, num_bootstrap=50)


def test_labels_keep_apart() -> None:
    curves = {"zero-shot, as it is": _curve(2), "after Platt scaling": _curve(1)}
    for figure in (
        projection_figure(_projection(), theme=DARK),
        reliability_figure(curves),
        retrieval_figure({"rgb -> sentinel2": _result(1), "CSLS": _result(0.5)}),
        retrieval_figure({"one": _result(1, ks=tuple(range(1, 51)))}),
        retrieval_figure({"one": _result(1, ks=(10,))}),
    ):
        assert texts_apart(figure)


def test_a_projection_shows_every_group_in_part_where_it_is_large() -> None:
    projection = _projection()
    lines = projection_figure(projection).axes[0].lines
    assert [len(line.get_xydata()) for line in lines] == [19, MAX_POINTS, MAX_POINTS]
    assert lines[0].get_xydata() == pytest.approx(projection.points["text (19 class names)"])
    assert lines[0].get_zorder() > lines[1].get_zorder()
    assert lines[0].get_markersize() > lines[1].get_markersize()


def test_reliability_is_drawn_in_per_cent_with_its_error() -> None:
    curve = _curve(2)
    figure = reliability_figure({"raw": curve})
    upper, lower = figure.axes
    points = upper.lines[1].get_xydata()
    assert points == pytest.approx(100 * np.stack([curve.confidence, curve.accuracy], axis=1))
    values = lower.patches[0].get_data().values
    assert values.sum() == pytest.approx(100)
    texts = [text.get_text() for text in figure.legends[0].get_texts()]
    assert texts[0] == f"raw: error {100 * curve.expected_calibration_error:.1f} points"


def test_bins_of_few_predictions_are_pale_and_not_joined() -> None:
    generator = np.random.default_rng(3)
    probabilities = np.append(generator.uniform(0, 0.25, 100), [0.75, 0.76, 0.95])
    curve = reliability_curve(probabilities, probabilities > 0.1, num_bins=10)
    assert curve.count[[7, 9]].tolist() == [2, 1]
    upper = reliability_figure({"raw": curve}).axes[0]
    _, joined, pale = upper.lines
    assert joined.get_xdata() == pytest.approx(100 * curve.confidence[:3])
    assert pale.get_xdata() == pytest.approx(100 * curve.confidence[[7, 9]])
    assert pale.get_linestyle() == "None"
    assert pale.get_alpha() < 0.5


def test_names_keep_their_colours_from_figure_to_figure() -> None:
    assert LIGHT.places("abc") == [0, 1, 2]
    assert LIGHT.places("abc", {"a": 4, "c": 0}) == [4, 1, 0]
    assert LIGHT.places("ab", {"a": 1, "b": 1 + len(LIGHT.series)}) == [1, 0]  # never twice
    assert sorted(LIGHT.places("abcdef", dict.fromkeys("abcdef", 3))) == list(range(6))
    assert len(LIGHT.places("abcdefgh")) == 8
    figure = retrieval_figure({"a": _result(1), "b": _result(2)}, places={"a": 5, "b": 2})
    colors = [line.get_color() for line in figure.axes[0].lines[:2]]
    assert colors == [LIGHT.series[5], LIGHT.series[2]]


def test_retrieval_is_drawn_against_k_with_chance_where_it_is_common() -> None:
    result = _result(1)
    axes = retrieval_figure({"a": result}).axes[0]
    assert axes.lines[0].get_xdata().tolist() == [1, 2, 3, 5, 10, 11, 20, 50]
    assert axes.lines[0].get_ydata() == pytest.approx([100 * m.value for m in result.metrics])
    assert axes.lines[1].get_ydata() == pytest.approx([100 * m.chance for m in result.metrics])
    other = _result(1, ks=(1, 7))
    assert len(retrieval_figure({"a": result, "b": other}).axes[0].lines) == 2


def test_a_line_that_lies_under_another_is_named_in_the_legend() -> None:
    """Two models of one tower: the first line cannot be seen, and a reader looks for it."""
    same, other = _result(1), _result(2)
    figure = retrieval_figure({"base": same, "twin": same, "other": other})
    texts = [text.get_text() for text in figure.legends[0].get_texts()]
    assert texts[:3] == ["base (same line as ◆)", "twin", "other"]
    assert [line.get_marker() for line in figure.axes[0].lines[:3]] == ["o", "D", "s"]
    curve = _curve(1)
    texts = [
        text.get_text()
        for text in reliability_figure({"a": curve, "b": curve}).legends[0].get_texts()
    ]
    assert [text.endswith("(same line as ◆)") for text in texts] == [True, False, False]


def test_figures_are_written_small(tmp_path: Path) -> None:
    plot_projection(tmp_path / "a.png", _projection())
    plot_reliability(tmp_path / "b.png", {"raw": _curve(1)})
    plot_retrieval(tmp_path / "c.png", {"one": _result(1)})
    for name in "abc":
        path = tmp_path / f"{name}.png"
        assert path.stat().st_size < MAX_PNG_BYTES
        with Image.open(path) as picture:
            assert len(np.unique(np.asarray(picture.convert("L")))) > 10


def test_figures_without_anything_to_draw_are_refused() -> None:
    with pytest.raises(DataError, match="no points"):
        projection_figure(Projection(points={}, explained=(0, 0)))
    with pytest.raises(DataError, match="at least one"):
        reliability_figure({})
    with pytest.raises(DataError, match="map@k"):
        retrieval_figure({"one": _result(1)}, metric="map")
