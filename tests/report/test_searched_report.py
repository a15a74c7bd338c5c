"""What texts found in a scene: table and picture."""

from __future__ import annotations

import numpy as np

from report_page import NASTY
from terralign.report.canvas import png_bytes
from terralign.report.searched import (
    FoundWindow,
    SearchedText,
    format_searched,
    searched_figure,
    searched_table,
)


def text(name: str, *rights: bool, chance: float = 0.25) -> SearchedText:
    hits = [
        FoundWindow(row=0, column=16 * n, height=16, width=16, score=0.5, is_right=one)
        for n, one in enumerate(rights)
    ]
    return SearchedText(text=name, chance=chance, hits=tuple(hits))


TEXTS = [text("snow", True, True, False, True), text(NASTY, False, False, True, False, chance=0.5)]


def test_precision_is_the_share_of_right_hits_beside_chance() -> None:
    lines = searched_table(TEXTS).lines
    values = [[cell.value for cell in one.cells if cell] for one in lines]
    assert values == [["75.0", "25.0"], ["25.0", "50.0"], ["50.0", "37.5"]]
    assert "precision@4" in format_searched(TEXTS)
    assert text("nothing").precision == 0


def test_every_hit_is_outlined_with_the_number_of_its_query() -> None:
    figure = searched_figure(np.zeros((32, 64, 3), np.uint8), TEXTS)
    [axes] = figure.axes
    assert [one.get_text() for one in axes.texts] == ["1"] * 4 + ["2"] * 4
    assert len(axes.patches) == 8
    styles = [one.get_linestyle() for one in axes.patches]
    assert styles == ["-", "-", "--", "-", "--", "--", "-", "--"]
    assert len({(one.get_x(), one.get_y()) for one in axes.patches}) == 8  # none covers another
    assert png_bytes(figure)[:4] == b"\x89PNG"
