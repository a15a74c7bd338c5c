"""The map of a page of hits: degrees keep their shape, and the antimeridian is no border."""

from __future__ import annotations

import pytest

from terralign.report.hits import HitCard, HitPage, Ring, _map_of


def box(west: float, south: float, east: float, north: float) -> Ring:
    return [(west, south), (east, south), (east, north), (west, north), (west, south)]


def content(scene: Ring, *hits: Ring) -> HitPage:
    cards = tuple(
        HitCard(rank=rank, score="", pictures=(), missing="", facts=(), rings=(one,))
        for rank, one in enumerate(hits, 1)
    )
    return HitPage(
        query="", lines=(), cards=cards, num_left_out=0, scenes=(("scene", (scene,)),), legend=()
    )


def corners(points: str) -> list[tuple[float, float]]:
    return [(float(x), float(y)) for x, y in (one.split(",") for one in points.split())]


def test_north_is_up_and_a_square_on_the_ground_is_one_on_the_map() -> None:
    found = _map_of(content(box(10, 59.5, 12, 60.5), box(11, 60, 11.2, 60.1)))
    assert found is not None
    (x0, y0), (x1, _), (_, y1), *_ = corners(found.hits[0].polygons[0])
    assert x1 - x0 == pytest.approx(y0 - y1, rel=0.02)  # a degree of longitude is half as long
    assert found.hits[0].x > found.width / 2
    assert found.hits[0].y < found.height / 2


def test_a_scene_across_the_antimeridian_is_small_on_the_map() -> None:
    found = _map_of(content(box(179.5, 0, 180, 1), box(-180, 0.4, -179.9, 0.5)))
    assert found is not None
    assert found.edges[0].endswith("E")
    assert found.edges[2].endswith("W")
    assert found.hits[0].x > found.width / 2


def test_hits_too_small_to_see_get_a_square() -> None:
    found = _map_of(content(box(0, 0, 40, 40), box(20, 20, 20.001, 20.001)))
    assert found is not None
    (x0, _), (x1, _), *_ = corners(found.hits[0].polygons[0])
    assert x1 - x0 == pytest.approx(7)


def test_the_best_hit_is_drawn_last() -> None:
    found = _map_of(content(box(0, 0, 4, 4), box(0, 0, 1, 1), box(2, 2, 3, 3)))
    assert found is not None
    assert [one.label for one in found.hits] == ["2", "1"]


def test_without_places_there_is_no_map() -> None:
    empty = HitPage(query="", lines=(), cards=(), num_left_out=0, scenes=(), legend=())
    assert _map_of(empty) is None
