"""How errors show what other libraries say, and names that hold any character."""

from __future__ import annotations

from pathlib import Path

import pytest
from rasterio.errors import RasterioIOError

from terralign.errors import first_line, shown

POINTER = "Read failed. See previous exception for details."


def test_control_characters_are_escaped() -> None:
    assert first_line(ValueError("\x1b[31mred\a\tbell\nsecond line")) == r"\x1b[31mred\x07 bell"
    assert shown(Path("a\nb\x1b.tif")) == r"a\nb\x1b.tif"
    assert shown("caf\udce9.tif") == r"caf\udce9.tif"
    assert shown("Ünïcode 東京.tif") == "Ünïcode 東京.tif"


def test_an_error_without_text_is_its_type() -> None:
    assert first_line(KeyError()) == "KeyError"


def test_a_pointer_to_an_earlier_error_gives_that_ones_text() -> None:
    cause = RasterioIOError("IReadBlock failed")
    cause.__cause__ = RasterioIOError("ZIPDecode: decoding error at scanline 0")
    error = RasterioIOError(POINTER)
    error.__cause__ = cause
    assert first_line(error) == "ZIPDecode: decoding error at scanline 0"


@pytest.mark.parametrize("text", [POINTER, "Reprojection failed, err = 3"])
def test_a_pointer_to_nothing_says_what_to_do(text: str) -> None:
    assert first_line(RasterioIOError(text)) == "a part of it cannot be read; copy it again"
    of_another = RasterioIOError(text)
    of_another.__context__ = KeyError("other")
    assert first_line(of_another) == "a part of it cannot be read; copy it again"
