"""Whether what is written in a figure keeps apart."""

from __future__ import annotations

import itertools

from matplotlib.figure import Figure


def texts_apart(figure: Figure) -> bool:
    """No tick or axis label, no text in the axes and no legend touches another."""
    figure.draw_without_rendering()
    boxes = []
    for axes in figure.axes:
        frame = axes.get_window_extent().padded(20)
        for axis in (axes.xaxis, axes.yaxis):
            texts = [t for t in axis.get_ticklabels() if t.get_visible() and t.get_text()]
            boxes += [b for t in texts if frame.overlaps(b := t.get_window_extent())]
            if axis.label.get_text():
                boxes.append(axis.label.get_window_extent())
        boxes += [text.get_window_extent() for text in axes.texts]
    boxes += [t.get_window_extent() for legend in figure.legends for t in legend.get_texts()]
    assert len(boxes) > 5
    return not any(one.overlaps(two) for one, two in itertools.combinations(boxes, 2))
