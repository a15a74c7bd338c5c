"""Maps in SVG: degrees keep their shape, the antimeridian is no border, and text stays text."""

from __future__ import annotations

import xml.etree.ElementTree as ET

import pytest

from terralign.svg_map import Place, Ring, SvgMap, Underlay, draw_map

NAME = "{http://www.w3.org/2000/svg}"


def box(west: float, south: float, east: float, north: float) -> Ring:
    return [(west, south), (east, south), (east, north), (west, north), (west, south)]


def drawn(scene: Ring, *hits: Ring) -> tuple[SvgMap, ET.Element]:
    places = [Place(rings=(one,), label=str(rank)) for rank, one in enumerate(hits, 1)]
    found = draw_map(places, scenes=[Place(rings=(scene,), title="scene")], name="map")
    assert found is not None
    return found, ET.fromstring(found.svg)


def corners(svg: ET.Element, label: str) -> list[tuple[float, float]]:
    for group in svg.iter(f"{NAME}g"):
        if group.findtext(f"{NAME}text") == label:
            polygon = group.find(f"{NAME}polygon")
            assert polygon is not None
            points = polygon.attrib["points"].split()
            return [(float(x), float(y)) for x, y in (one.split(",") for one in points)]
    raise AssertionError(f"no place {label}")


def size(svg: ET.Element) -> tuple[float, float]:
    width, height = svg.attrib["viewBox"].split()[2:]
    return float(width), float(height)


def test_north_is_up_and_a_square_on_the_ground_is_one_on_the_map() -> None:
    _, svg = drawn(box(10, 59.5, 12, 60.5), box(11, 60, 11.2, 60.1))
    (x0, y0), (x1, _), (_, y1), *_ = corners(svg, "1")
    assert x1 - x0 == pytest.approx(y0 - y1, rel=0.02)  # a degree of longitude is half as long
    width, height = size(svg)
    assert x0 > width / 2 - 1
    assert y0 < height / 2 + 1


def test_a_scene_across_the_antimeridian_is_small_on_the_map() -> None:
    found, svg = drawn(box(179.5, 0, 180, 1), box(-180, 0.4, -179.9, 0.5))
    assert found.edges[0].endswith("E")
    assert found.edges[2].endswith("W")
    assert corners(svg, "1")[0][0] > size(svg)[0] / 2


def test_places_too_small_to_see_get_a_square() -> None:
    _, svg = drawn(box(0, 0, 40, 40), box(20, 20, 20.001, 20.001))
    (x0, _), (x1, _), *_ = corners(svg, "1")
    assert x1 - x0 == pytest.approx(7, abs=0.11)


def test_the_first_place_is_drawn_last() -> None:
    _, svg = drawn(box(0, 0, 4, 4), box(0, 0, 1, 1), box(2, 2, 3, 3))
    assert [one.text for one in svg.iter(f"{NAME}text")] == ["2", "1"]


def test_without_places_there_is_no_map() -> None:
    assert draw_map([], name="map") is None


def test_a_picture_lies_between_its_corners_turned_too() -> None:
    turned = Underlay(data=b"\x89PNG", upper_left=(1, 1), upper_right=(1, 0), lower_left=(0, 1))
    found = draw_map([Place(rings=(box(0, 0, 1, 1),), label="1")], underlays=[turned], name="map")
    assert found is not None
    svg = ET.fromstring(found.svg)
    image = svg.find(f"{NAME}image")
    assert image is not None
    numbers = image.attrib["transform"].removeprefix("matrix(").removesuffix(")").split()
    a, b, c, d, x, y = map(float, numbers)
    points = corners(svg, "1")
    south_west, south_east, north_east, north_west = points[:4]
    assert (x, y) == pytest.approx(north_east, abs=0.1)
    assert (x + a, y + b) == pytest.approx(south_east, abs=0.1)
    assert (x + c, y + d) == pytest.approx(north_west, abs=0.1)
    assert (x + a + c, y + b + d) == pytest.approx(south_west, abs=0.1)
    assert image.attrib["href"].startswith("data:image/png;base64,")


def test_titles_labels_and_links_are_text() -> None:
    evil = '"><script>alert(1)</script>\x00'
    place = Place(rings=(box(0, 0, 1, 1),), label=evil, title=evil, link=evil)
    found = draw_map([place], scenes=[place], name=evil)
    assert found is not None
    names = {one.tag.removeprefix(NAME) for one in ET.fromstring(found.svg).iter()}
    assert names == {"svg", "g", "title", "polygon", "text", "a"}
