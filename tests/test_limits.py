"""Limits of what readers take of one file."""

import re
from pathlib import Path

import pytest

from terralign.errors import DataError, RecipeError
from terralign.files import parse_json, parse_toml
from terralign.limits import LIMITS, beyond, limit, require


def test_the_environment_raises_and_lowers_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERRALIGN_LIMITS", "json_bytes=2GiB, toml_key_parts = 3,json_values=1e3")
    assert limit("json_bytes") == 2 * 2**30
    assert limit("toml_key_parts") == 3
    assert limit("json_values") == 1000
    assert limit("text_bytes") == LIMITS["text_bytes"]


@pytest.mark.parametrize(
    ("setting", "told"),
    [
        ("json_byte=1", "no limit 'json_byte'; did you mean 'json_bytes'"),
        ("json_bytes=much", "json_bytes is 'much'; expected a number, as in 4e8 or 2GiB"),
        ("json_bytes", "json_bytes is ''; expected a number"),
        ("json_bytes=-1", "json_bytes is '-1'; expected a number"),
        ("json_bytes=1e999", "json_bytes is '1e999'; expected a number"),
    ],
)
def test_a_setting_that_is_not_understood_is_refused(
    setting: str, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERRALIGN_LIMITS", setting)
    with pytest.raises(RecipeError, match=told):
        limit("json_bytes")


def test_what_is_at_the_limit_passes_and_what_is_beyond_does_not() -> None:
    most = LIMITS["text_bytes"]
    require("text_bytes", most, "a.txt has")
    with pytest.raises(
        DataError, match=r"a\.txt has 16 MiB, more than the limit of 16 MiB; cut it"
    ):
        require("text_bytes", most + 1, "a.txt has", todo="cut it")


@pytest.mark.parametrize("given", [65, 999, 10_000, 123_456_789, 16 * 2**30 + 1])
def test_the_setting_that_a_message_names_is_enough(
    given: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = beyond("toml_key_parts", given, "x has")
    monkeypatch.setenv("TERRALIGN_LIMITS", told.split("TERRALIGN_LIMITS=")[1].split()[0])
    require("toml_key_parts", given, "x has")


def test_toml_with_a_key_of_many_parts_is_refused() -> None:
    parse_toml(".".join("a" * 64) + " = 1", name="x")
    for key in ("a." * 100 + "a", '"a" . ' * 100 + "a", "'a'." * 100 + "a"):
        for text in (f"{key} = 1", f"[{key}]", f"x = {{ {key} = 1 }}"):
            with pytest.raises(Exception, match="x has a key of 101 parts, more than the limit"):
                parse_toml(text, name="x")


def test_json_of_many_values_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERRALIGN_LIMITS", "json_values=100")
    assert len(parse_json("[" + "1," * 98 + "1]", name="x")) == 99
    with pytest.raises(Exception, match="x holds 102 values, more than the limit of 100 values"):
        parse_json("[" + "[],".join("" for _ in range(51)) + "[]]", name="x")


def test_the_documentation_lists_every_limit_with_its_default() -> None:
    page = (Path(__file__).parents[1] / "docs" / "limits.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| `(\w+)` \| ([^|]+?) \|", page, re.MULTILINE))
    sizes = {"KiB": 2**10, "MiB": 2**20, "GiB": 2**30}

    def number(text: str) -> float:
        value, _, unit = text.replace(",", "").partition(" ")
        return float(value) * sizes.get(unit, 1)

    assert {name: number(text) for name, text in rows.items()} == pytest.approx(LIMITS, rel=1e-3)
