"""Filters of an index against the same conditions tested row by row."""

from __future__ import annotations

import datetime as dt
from typing import Any

import numpy as np
import pytest
import shapely

from terralign.chips import Window
from terralign.index.filters import make_filters, rows_meeting
from terralign.index.parts import PartFacts, PartRows, write_part
from terralign.index.search import Index, open_index

NUM_PARTS, ROWS = 7, 40


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Index:
    """Parts here and there, one across the antimeridian, one without a date, one without rows;
    shares of cloud are unknown in some and of some rows."""
    folder = tmp_path_factory.mktemp("filters")
    rng = np.random.default_rng(0)
    for number in range(NUM_PARTS):
        rows = 0 if number == 5 else ROWS
        west = (179.0 if number == 3 else 3.0 * number) + rng.random(rows) * 2
        south, side = rng.random(rows) * 2, 0.1
        boxes = [
            shapely.box(w - 360, s, w - 360 + side, s + side)
            if w >= 180
            else shapely.MultiPolygon(
                [shapely.box(w, s, 180, s + side), shapely.box(-180, s, w + side - 360, s + side)]
            )
            if w + side > 180
            else shapely.box(w, s, w + side, s + side)
            for w, s in zip(west.tolist(), south.tolist(), strict=True)
        ]
        clouds = rng.random(rows).astype(np.float32)
        clouds[rng.random(rows) < 0.2 * (number % 3)] = np.nan
        facts = PartFacts(
            format=1, key=f"{number:016x}", identity=f"{number:016x}", stamps="",
            source=f"{number}", scene=f"{number}", sensor="sentinel2-l2a", bands=("B02",),
            dn_offset=0.0, space_id="0" * 16, tower=("s2", "rgb")[number % 2], tower_id="1" * 16,
            model="", dim=4, vector_type="float16", logit_scale=1.0, self_check=(1.0,),
            window_px=64, stride_px=64, gsd_m=10, scene_gsd_m=10, min_valid=0, max_cloud=None,
            num_windows=rows, num_invalid=0, num_cloudy=0,
        )  # fmt: skip
        write_part(
            folder / f"{number}.parquet",
            PartRows(
                windows=[Window(row=0, column=n, height=1, width=1) for n in range(rows)],
                shapes=np.array(boxes, dtype=object),
                centres=np.stack([(west + 180) % 360 - 180, south], 1),
                valid_shares=rng.random(rows).astype(np.float32),
                clouds=clouds,
                vectors=np.eye(4, dtype=np.float32)[rng.integers(0, 4, rows)],
                datetime=None if number == 4 else dt.datetime(2020 + number, 7, 1, tzinfo=dt.UTC),
            ),
            facts,
        )
    return open_index(folder)


CONDITIONS: list[dict[str, Any]] = [
    {"bbox": (-180, -90, 180, 90)},
    {"bbox": (2.5, 0, 8, 1)},
    {"bbox": (0, -1, 2.5, 4)},
    {"bbox": (179.5, 0.5, -179.5, 1.5)},
    {"bbox": (0, 0, 0, 0)},
    {"start": "2021-01-01"},
    {"end": "2022-12-31"},
    {"start": "2020-07-01", "end": "2021-07-01"},
    {"max_cloud": 1.0},
    {"max_cloud": 0.3},
    {"min_valid": 0.0},
    {"min_valid": 0.7, "max_cloud": 0.9},
    {"towers": "rgb", "bbox": (2.5, 0, 8, 1), "end": "2023-01-01"},
    {"polygon": shapely.Polygon([(0, 0), (8, 0), (0, 2)])},
    {"polygon": shapely.Polygon([(0, 0), (8, 0), (0, 2)]), "bbox": (0, 0, 4, 1), "min_valid": 0.2},
]


@pytest.mark.parametrize("conditions", CONDITIONS)
def test_rows_are_those_that_meet_each_condition(index: Index, conditions: dict[str, Any]) -> None:
    rows, filters = index.store.rows, make_filters(**conditions)
    shapes = [hit.place.shape for hit in index.places()]
    wanted = np.ones(len(rows), dtype=bool)
    towers = np.array([one.tower for one in index.facts])[rows["part"]]
    unknown = np.iinfo(np.int64).min
    if filters.towers:
        wanted &= np.isin(towers, filters.towers)
    if filters.start is not None:
        wanted &= rows["time"] >= filters.start
    if filters.end is not None:
        wanted &= (rows["time"] < filters.end) & (rows["time"] != unknown)
    if filters.max_cloud is not None:
        wanted &= rows["cloud"] <= filters.max_cloud
    if filters.min_valid is not None:
        wanted &= rows["valid"] >= filters.min_valid
    if filters.bbox is not None:
        west, south, east, north = filters.bbox
        boxes = [(west, east)] if west <= east else [(west, 180.0), (-180.0, east)]
        places = shapely.union_all([shapely.box(w, south, e, north) for w, e in boxes])
        wanted &= shapely.intersects(places, shapes)
    if filters.polygon is not None:
        wanted &= shapely.intersects(filters.polygon, shapes)
    found = rows_meeting(index.store, filters)
    assert found is not None
    assert found.tolist() == np.flatnonzero(wanted).tolist()


def test_no_condition_is_no_list_of_rows(index: Index) -> None:
    assert rows_meeting(index.store, make_filters()) is None
