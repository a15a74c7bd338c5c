"""Rows: checked once, the same after a file, refused with the place of the fault."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from terralign.errors import DataError, StorageError
from terralign.evaluation.rows import Row, check_rows, read_rows
from terralign.files import write_json

VALUES = {"model": "base", "query_tower": "text", "gallery_tower": "rgb", "value": 0.5}


def test_a_row_is_the_same_after_a_file(tmp_path: Path) -> None:
    (row,) = check_rows([VALUES])
    assert row.to_json() == VALUES
    assert row.towers == "text → rgb"
    noted = row.model_copy(update={"note": "of 3 samples"})
    assert noted.to_json() == VALUES | {"note": "of 3 samples"}
    write_json(tmp_path / "results.json", {"rows": [noted.to_json()]})
    assert read_rows(tmp_path / "results.json") == [noted]
    assert (Row(model="a").towers, Row(model="a", tower="rgb").towers) == ("", "rgb")


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"rolle": "unseen"}, "row 1: rolle: Extra inputs"),
        ({"role": "seen"}, "row 1: role: .*'unseen' .*'seen'"),
        ({"value": "high"}, "row 1: value: .*'high'"),
        ({"value": math.nan}, "row 1: value: .*finite number"),
    ],
)
def test_the_row_and_key_of_a_fault_are_named(change: dict[str, object], fault: str) -> None:
    with pytest.raises(DataError, match=fault):
        check_rows([VALUES, VALUES | change])


@pytest.mark.parametrize("value", [[], {"rows": 3}, {"rows": [{"foreign": 1}]}, {"rows": [1]}])
def test_a_file_of_something_else_is_refused(tmp_path: Path, value: object) -> None:
    write_json(tmp_path / "results.json", value)
    with pytest.raises(StorageError, match=r"results\.json is"):
        read_rows(tmp_path / "results.json")
