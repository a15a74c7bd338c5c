"""The place of a process among several, by its environment."""

from __future__ import annotations

import pytest

from terralign.errors import RecipeError
from terralign.launch import Place, place


def _set(monkeypatch: pytest.MonkeyPatch, **values: str) -> None:
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in values.items():
        monkeypatch.setenv(name, value)


def test_a_process_is_alone_or_at_the_place_that_it_was_given(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    _set(monkeypatch, RANK="3")
    assert place() == Place()
    _set(monkeypatch, RANK="5", LOCAL_RANK="1", WORLD_SIZE="8")
    assert place() == Place(rank=5, size=8, local_rank=1)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE is 'two', expected a number"),
        ({"WORLD_SIZE": "2"}, "RANK is missing"),
        ({"WORLD_SIZE": "2", "RANK": "2", "LOCAL_RANK": "0"}, "RANK = 2, but WORLD_SIZE = 2"),
        ({"WORLD_SIZE": "2", "RANK": "1" * 5000, "LOCAL_RANK": "0"}, "expected a number"),
    ],
)
def test_an_environment_that_names_no_place_is_refused(
    monkeypatch: pytest.MonkeyPatch, values: dict[str, str], message: str
) -> None:
    _set(monkeypatch, **values)
    with pytest.raises(RecipeError, match=message):
        place()
