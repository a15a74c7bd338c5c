"""Why no window meets the conditions of a search, of rows made up for it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from terralign.index import filters
from terralign.index.filters import make_filters, why_none
from terralign.index.store import ROW, Store

TRIANGLE = {"type": "Polygon", "coordinates": [[[0, 0], [3, 3], [0, 3], [0, 0]]]}


def _store(parts: list[list[dict[str, Any]]], sensors: str = "ab") -> Store:
    rows = np.zeros(sum(map(len, parts)), ROW)
    for row, values in zip(rows, (one for part in parts for one in part), strict=True):
        day = np.datetime64(values.get("day", "2022-07-06"), "us").astype(np.int64)
        west = values.get("west", 0.0)
        row["west"], row["south"], row["east"], row["north"] = west, 0, west + 0.1, 0.1
        row["time"], row["valid"], row["cloud"] = day, 0.5, values.get("cloud", np.nan)
    facts = [SimpleNamespace(sensor=one, tower="t") for one, _ in zip(sensors, parts, strict=True)]
    none: Any = np.zeros(0)
    return Store(
        vectors=none, rows=rows, outlines=none, wkb=none, facts=tuple(facts),  # type: ignore[arg-type]
        paths=(), stamps=(), firsts=np.cumsum([0, *map(len, parts)]),
    )  # fmt: skip


@pytest.mark.parametrize("large", [False, True])
def test_a_period_is_one_condition_and_the_days_are_listed(
    large: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = _store([[{"day": "2022-03-01"}] * 2, [{"day": "2024-03-01"}]])
    monkeypatch.setattr(filters, "_MAX_TRIED", 0 if large else 10)
    period = {"start": "2023-01-01", "end": "2023-02-01"}
    reason = "none of 3 windows meets start=/end=; they are of 2022-03-01, 2024-03-01"
    assert why_none(store, make_filters(**period)) == reason
    assert why_none(store, make_filters(**period, min_valid=0.1)) == reason


def test_days_of_a_large_index_are_the_first_and_the_last(monkeypatch: pytest.MonkeyPatch) -> None:
    days = ["2022-03-01", "2023-03-01", "2024-03-01"]
    store = _store([[{"day": day} for day in days]], "a")
    condition = make_filters(start="2030-01-01")
    assert why_none(store, condition).endswith("they are of 2022-03-01, 2023-03-01, 2024-03-01")
    monkeypatch.setattr(filters, "_MAX_TRIED", 2)
    assert why_none(store, condition).endswith("they are of 2022-03-01 to 2024-03-01")


def test_the_first_pair_that_conflicts_is_named() -> None:
    store = _store(
        [[{"day": "2022-03-01", "cloud": 0.9}, {"day": "2024-03-01", "cloud": 0.1}]], "a"
    )
    given = make_filters(min_valid=0.1, start="2022-01-01", end="2022-12-31", max_cloud=0.2)
    assert why_none(store, given) == (
        "none of 2 windows meets start=/end= and max_cloud= together; leave one of them out; they "
        "are of 2022-03-01, 2024-03-01"
    )


def test_a_polygon_is_only_tried_where_few_windows_are_near(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    store = _store([[{"west": 2.0}]], "a")  # within the bounds of the triangle, not in it
    read: list[int] = []
    monkeypatch.setattr(filters, "outlines_of", lambda _, rows: read.append(len(rows)) or [])
    given = make_filters(polygon=TRIANGLE, min_valid=0.1)
    monkeypatch.setattr(filters, "_MAX_OUTLINES", 0)
    assert "meets polygon= and min_valid= together" in why_none(store, given)
    assert not read
    monkeypatch.setattr(filters, "_MAX_OUTLINES", 1)
    assert "meets polygon=; they lie within 2,0,2.1,0.1" in why_none(store, given)


@pytest.mark.parametrize("wanted", [[], "b"])
def test_sensors_without_windows_are_answered_with_those_that_have_some(wanted: Any) -> None:
    store = _store([[{}], []])
    reason = why_none(store, make_filters(sensors=wanted, min_valid=0.1))
    assert reason == "none of 1 window meets sensors=; their sensors: a"
    assert why_none(_store([[], []]), make_filters(towers=[])) == "none of 0 windows meets towers="
