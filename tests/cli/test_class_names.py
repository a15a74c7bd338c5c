"""Class names on the command line: nothing is split, dropped or guessed without a word."""

from __future__ import annotations

from pathlib import Path

import click
import pytest

from terralign.cli.class_names import read_class_names, split_list
from terralign.errors import DataError

LAND = "Land principally occupied by agriculture, with significant areas of natural vegetation"


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("forest,river", ["forest", "river"]),
        (" forest , a river ,town", ["forest", "a river", "town"]),
        (f'"{LAND}",Pastures', [LAND, "Pastures"]),
        (f'Pastures, "{LAND}"', ["Pastures", LAND]),
        ('"a ""quoted"" name",b', ['a "quoted" name', "b"]),
        ("forêt,Straße", ["forêt", "Straße"]),
    ],
)
def test_a_list_is_csv(text: str, names: list[str]) -> None:
    assert read_class_names([text], [], None) == tuple(names)


def test_names_are_given_one_by_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert read_class_names([], [LAND, "Pastures"], None) == (LAND, "Pastures")
    assert capsys.readouterr().err == ""
    assert read_class_names([LAND, "Pastures"], [], None) == (LAND, "Pastures")
    assert f"each is one name: {LAND!r}" in capsys.readouterr().err
    assert read_class_names(["a,b"], ["c, d"], None) == ("a", "b", "c, d")


@pytest.mark.parametrize(
    ("lists", "names", "said"),
    [
        (["forest,,river"], [], "entry 2 of 3 is empty"),
        (["forest,river,"], [], "entry 3 of 3 is empty"),
        (['forest,"",river'], [], "entry 2 of 3 is empty"),
        ([""], [], "entry 1 of 1 is empty|is empty"),
        (['"forest,river'], [], "quotes are not balanced"),
        (['forest",river'], [], "quotes are not balanced"),
        (['forest, "river'], [], "quotes are not balanced"),
        (['"forest"x,river'], [], "quotes are not balanced"),
        (["forest\nriver"], [], "several lines"),
        (["forest"], [], "one class is given, 'forest'; give at least two"),
        ([], ["forest"], "one class is given"),
        ([], [], "name the classes: --labels"),
        ([], ["forest", " "], "--label ' ' is empty"),
        (["forest", ""], [], "--labels '' is empty"),
        (["forest,river,forest"], [], "'forest' is given more than once"),
        (["forest,river"], ["river"], "'river' is given more than once"),
    ],
)
def test_what_is_wrong_with_names_is_a_usage_error(
    lists: list[str], names: list[str], said: str
) -> None:
    with pytest.raises(click.UsageError, match=said):
        read_class_names(lists, names, None)


def test_a_file_has_one_name_a_line(tmp_path: Path) -> None:
    path = tmp_path / "names.txt"
    path.write_bytes(f'\ufeffforest\r\n\r\n  {LAND}\n"a, b"\nStraße\n'.encode())
    assert read_class_names([], [], path) == ("forest", LAND, "a, b", "Straße")
    assert read_class_names(["x"], ["y"], path)[:3] == ("x", "y", "forest")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"forest\n\nriver\nforest\n", r"lines 1 and 4 are both 'forest'"),
        ("wald\nfl\u00fcsse\n".encode("cp1252"), "line 2 has the byte 0xfc, 'ü' in Windows-1252"),
        (b"\n \n", "names no class"),
        (b'"forest\nriver\n', "line 1.*quotes are not balanced"),
        (b'"a","b"\n', "line 1: one name a line"),
        (b'{"0": "forest", "1": "river"}', "looks like JSON"),
        (b'[\n"forest",\n"river"]', "looks like JSON"),
    ],
)
def test_what_is_wrong_with_a_file_is_said_with_its_line(
    tmp_path: Path, content: bytes, said: str
) -> None:
    path = tmp_path / "names.txt"
    path.write_bytes(content)
    with pytest.raises(click.UsageError, match=said):
        read_class_names([], [], path)


def test_a_table_is_no_list_of_names(tmp_path: Path) -> None:
    path = tmp_path / "names.csv"
    path.write_text("id,name\n0,forest\n1,river\n")
    with pytest.raises(click.UsageError, match=r"names.csv looks like a table"):
        read_class_names([], [], path)
    path.write_text('name\nforest\n"a, b"\n')
    assert read_class_names([], [], path) == ("name", "forest", "a, b")


def test_a_name_of_one_very_long_word_is_refused_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "names.txt"
    path.write_text("forest\n" + "x" * 1001 + "\n")
    with pytest.raises(DataError, match=r"names.txt, line 2, has a word of 1,001 characters"):
        read_class_names([], [], path)


def test_a_file_of_very_many_names_is_refused_by_its_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "names.txt"
    path.write_text("forest\nriver\ntown\n")
    monkeypatch.setenv("TERRALIGN_LIMITS", "class_names=2")
    with pytest.raises(DataError, match=r"names.txt has 3 names, more than the limit of 2 names"):
        read_class_names([], [], path)


def test_names_are_utf8_also_where_the_locale_is_ascii() -> None:
    given = "森林,Fluß".encode().decode("ascii", errors="surrogateescape")
    assert read_class_names([given], [], None) == ("森林", "Fluß")
    with pytest.raises(click.UsageError, match="is not UTF-8 text"):
        read_class_names([b"a,\xff".decode("ascii", errors="surrogateescape")], [], None)


def test_an_empty_band_is_an_error() -> None:
    assert split_list("B02,-,B04", "--bands") == ["B02", "-", "B04"]
    with pytest.raises(click.UsageError, match="--bands 'B02,,B04': entry 2 of 3 is empty"):
        split_list("B02,,B04", "--bands")
