"""Cutting a scene into windows of one size."""

from __future__ import annotations

from terralign.chips import Window
from terralign.errors import DataError


def cut_windows(height: int, width: int, size: int, *, stride: int | None = None) -> list[Window]:
    """Windows of `size` pixels that cover every pixel of a scene, row by row from the upper left.

    `stride`: pixels from one window to the next; left out, `size`. Windows at the far edges are
    shifted inwards, so that all are whole and some overlap; a side shorter than `size` gives one
    window of that side. `DataError` where `stride` would leave pixels out.
    """
    stride = size if stride is None else stride
    if not 1 <= stride <= size:
        raise DataError(
            f"stride is {stride} for windows of {size} pixels; expected 1 to {max(size, 1)}, so "
            "that every pixel is covered"
        )
    return [
        Window(row=row, column=column, height=min(size, height), width=min(size, width))
        for row in _starts(height, size, stride)
        for column in _starts(width, size, stride)
    ]


def _starts(length: int, size: int, stride: int) -> list[int]:
    last = max(0, length - size)
    return [*range(0, last, stride), last]
