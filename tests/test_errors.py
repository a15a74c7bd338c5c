"""How errors show what other libraries say, and names that hold any character."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from rasterio.errors import RasterioIOError

from terralign.errors import first_line, nearest, quoted, shown, some

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


def test_names_of_files_are_quoted_in_one_line_without_their_middle() -> None:
    assert quoted("B04") == "'B04'"
    assert quoted("a\nb\x1b") == r"'a\nb\x1b'"
    long = quoted("first" + "x" * 10**7 + "last")
    assert len(long) < 140
    assert long.startswith("'firstx")
    assert long.endswith("xlast'")


def test_of_many_names_some_are_listed() -> None:
    names = [f"name-{number:06d}" for number in range(100_000)]
    assert some(names[:5]) == ", ".join(names[:5])
    assert some(names) == f"{', '.join(names[:5])} and 99,995 more"
    assert len(some(["y" * 10**6] * 60, num_shown=60)) < 1500


def test_the_nearest_of_a_hundred_thousand_names_is_not_looked_for() -> None:
    names = [f"name-{number:06d}" for number in range(100_000)]
    start = time.process_time()
    told = nearest("name-00000x", names)
    assert time.process_time() - start < 1
    assert told.startswith("known: name-000000, name-000001")
    assert len(told) < 2000
    assert nearest("NAME-000007", names) == "did you mean 'name-000007'?"


def test_a_name_of_megabytes_has_no_nearest() -> None:
    start = time.process_time()
    assert nearest("x" * 10**7, ["B04", "y" * 10**7]).startswith("known: B04, yyy")
    assert time.process_time() - start < 1


def test_a_very_long_path_is_shown_without_its_middle() -> None:
    assert shown("/a/b\n") == "/a/b\\n"
    path = "/".join(["x" * 100] * 39)
    assert shown(path) == f"{path[:500]}...{path[-500:]}"


def test_a_beginning_or_a_part_of_a_few_names_is_answered_with_these() -> None:
    names = ["sentinel2-l1c", "sentinel2-l2a", "sentinel1-grd", "rgb"]
    assert nearest("sentinel2", names) == "did you mean 'sentinel2-l1c' or 'sentinel2-l2a'?"
    assert nearest("Sentinel1", names) == "did you mean 'sentinel1-grd'?"
    assert nearest("sentinel2-l2b", names) == "did you mean 'sentinel2-l2a'?"
    scenes = ["S2A_MSIL2A_20220706T085611", "S2B_MSIL2A_20200223T032739"]
    assert nearest("S2B", scenes) == f"did you mean {scenes[1]!r}?"
    assert nearest("20220706", scenes) == f"did you mean {scenes[0]!r}?"
    assert nearest("S2", scenes).startswith("known: ")
    assert nearest("quokka", scenes).startswith("known: ")
