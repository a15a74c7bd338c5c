"""The page of `terralign serve` in a real browser without a network: a person's steps, end to end.

Needs Chromium (Debian: apt-get install chromium) and Playwright (the extra `dev`).
"""

from __future__ import annotations

import json
import math
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pyarrow.parquet as pq
import pytest
import shapely

import terralign as ta
from terralign.demo import SCENE, STRIDE, scene_path

playwright = pytest.importorskip(
    "playwright.sync_api", reason="Playwright is not installed: pip install 'terralign[dev]'"
)
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium: apt-get install chromium"),
]

FLAGS = [
    *("--no-sandbox", "--disable-dev-shm-usage"),
    # WebGL in software, where a machine has no graphics card.
    *("--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"),
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
]

# What lies where in the scene that ships, drawn by eye: (column, row) of its 720 x 720 pixels.
RIVER = shapely.LineString(
    [
        *((0, 399), (59, 429), (125, 468), (165, 501), (208, 555), (244, 534), (277, 508)),
        *((283, 471), (270, 442), (244, 425), (241, 389), (264, 349), (297, 290), (313, 224)),
        *((323, 171), (349, 119), (379, 73), (405, 63), (417, 86), (415, 152), (399, 231)),
        *((356, 290), (323, 343), (320, 409), (330, 455), (363, 469), (409, 448), (455, 422)),
        *((501, 369), (547, 333), (580, 330), (603, 356), (593, 396), (560, 448), (527, 501)),
        *((511, 560), (521, 607), (560, 659), (597, 719)),
    ]
)
TOWN = shapely.union_all(
    [
        shapely.box(412, 30, 490, 215),
        shapely.box(500, 30, 595, 115),
        shapely.box(605, 285, 690, 415),
    ]
)
PONDS = shapely.union_all(
    [
        *(shapely.box(5, 455, 105, 660), shapely.box(435, 450, 520, 500)),  # a moat, a reservoir
        *(shapely.box(170, 565, 240, 615), shapely.box(180, 650, 295, 719)),  # basins
    ]
)
WINDOW = 64


@dataclass
class Tab:
    """A page in a browser, with everything that must not happen in it."""

    page: Any
    home: str
    strays: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.page, name)

    def settle(self) -> None:
        """Wait until no search runs."""
        self.page.wait_for_function(
            "() => !document.querySelector('#results').hasAttribute('aria-busy')"
        )

    def open(self, address: str = "") -> Tab:
        self.page.goto("about:blank")
        self.page.goto(self.home + address)
        self.page.wait_for_selector("#empty:not([hidden]), .hit .pick")
        self.settle()
        return self

    def ask(self, text: str) -> list[str]:
        self.page.fill("#query", text)
        self.page.press("#query", "Enter")
        self.page.wait_for_function(
            "text => document.querySelector('#heading').textContent.startsWith(text)", arg=text
        )
        self.settle()
        return self.ids()

    def ids(self) -> list[str]:
        """Of the windows that are listed."""
        found = self.page.eval_on_selector_all(".hit", "all => all.map(one => one.dataset.id)")
        return list(found)

    def status(self) -> str:
        return str(self.page.inner_text("#status"))

    def changed(self, act: Callable[[], Any]) -> list[str]:
        """The ids after something that must change them."""
        before = self.ids()
        act()
        self.page.wait_for_function(
            """before => {
              const ids = [...document.querySelectorAll('.hit')].map(one => one.dataset.id);
              return ids.join() !== before;
            }""",
            arg=",".join(before),
        )
        self.settle()
        return self.ids()


def window_of(key: str) -> Any:
    """The pixels of a window, by its id: ...-ROW-COLUMN."""
    row, column = map(int, key.split("-")[-2:])
    return shapely.box(column, row, column + WINDOW, row + WINDOW)


def num_on(place: Any, keys: list[str]) -> int:
    """How many windows show a place: at least 12 pixels of it."""
    shown = (window_of(key).intersection(place) for key in keys)
    return sum(max(one.length, math.sqrt(one.area)) >= 12 for one in shown)


@pytest.fixture(scope="module")
def vectors(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The scene that ships, embedded by the starter model."""
    folder = tmp_path_factory.mktemp("vectors")
    ta.embed_scenes(ta.load("starter"), scene_path(), folder, stride=STRIDE, dn_offset=0)
    return folder


@pytest.fixture(scope="module")
def expected(vectors: Path) -> Callable[..., list[str]]:
    """The ids that the library lists first."""
    space, index = ta.load("starter"), ta.open_index(vectors)
    return lambda text, **options: [
        hit.key for hit in index.search(space, text, k=24, **{"collapse": True, **options})
    ]


@pytest.fixture(scope="module")
def served(vectors: Path) -> Iterator[tuple[str, str]]:
    """The address of a running `terralign serve`, and its token."""
    command = [sys.executable, "-m", "terralign", "serve", str(vectors), "--port", "0", "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            told = json.loads(process.stdout.readline())
            yield told["address"], told["token"]
        finally:
            process.terminate()
            assert process.wait(30) == 0


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def tab_of(browser: Any) -> Iterator[Callable[..., Tab]]:
    """Makes tabs of a site; none of them may ask another, or meet a fault."""
    tabs: list[Tab] = []

    def make(home: str, **context: Any) -> Tab:
        context.setdefault("viewport", {"width": 1000, "height": 680})
        window = browser.new_context(reduced_motion="reduce", **context)
        tab = Tab(page=window.new_page(), home=home)
        tabs.append(tab)

        def check(route: Any) -> None:
            if route.request.url.startswith(tab.home):
                route.fallback()
            else:
                tab.strays.append(route.request.url)
                route.abort()

        window.route("**/*", check)
        tab.page.on("console", lambda one: one.type == "error" and tab.faults.append(one.text))
        tab.page.on("pageerror", lambda one: tab.faults.append(str(one)))
        return tab

    yield make
    for tab in tabs:
        tab.page.context.close()
    assert [tab.strays for tab in tabs if tab.strays] == []
    assert [tab.faults for tab in tabs if tab.faults] == []


@pytest.fixture
def entered(served: tuple[str, str], tab_of: Callable[..., Tab]) -> Callable[..., Tab]:
    """Makes tabs of the server that have shown the token."""

    def make(**context: Any) -> Tab:
        address, token = served
        tab = tab_of(address, **context)
        tab.page.context.request.get(f"{address}?token={token}")  # which sets the cookie
        return tab.open()

    return make


@pytest.fixture
def tab(entered: Callable[..., Tab]) -> Tab:
    return entered()


def test_texts_find_the_river_the_town_and_the_ponds(tab: Tab) -> None:
    assert num_on(RIVER, tab.ask("a river")[:6]) == 6
    assert re.fullmatch(r"Best \d+ of 484 windows, .* ms", tab.status())
    assert num_on(TOWN, tab.ask("a town with houses")[:6]) >= 5
    assert num_on(PONDS, tab.ask("fish ponds")[:6]) >= 3
    assert tab.eval_on_selector_all(".hit img", "all => all.map(one => one.alt)").count("") == 24


def test_a_text_typed_before_the_page_is_ready_is_searched(tab: Tab) -> None:
    def late(route: Any) -> None:
        tab.page.wait_for_timeout(300)
        route.continue_()

    tab.page.route("**/countries-50m.json", late)
    tab.page.goto("about:blank")
    tab.page.goto(tab.home, wait_until="domcontentloaded")
    tab.page.fill("#query", "a river")
    tab.page.press("#query", "Enter")
    tab.page.wait_for_selector(".hit .pick")
    assert tab.page.input_value("#query") == "a river"


def mark(tab: Tab, key: str, sign: str) -> None:
    tab.click(f"[data-id='{key}'] .{sign}")


def test_two_clicks_refine_the_list(tab: Tab, expected: Callable[..., list[str]]) -> None:
    before = tab.ask("fish ponds")
    mark(tab, before[1], "plus")
    assert tab.ids() == before  # nothing moves while hits are marked
    after = tab.changed(lambda: tab.click("#refine"))
    assert after == expected("fish ponds", like=[before[1]])
    assert tab.inner_text("#heading") == "fish ponds, refined"
    tab.go_back()
    tab.wait_for_function("() => document.querySelector('#heading').textContent === 'fish ponds'")
    tab.settle()
    assert tab.ids() == before
    assert tab.locator("#marks").is_hidden()


def test_marks_stay_on_other_pages_and_for_other_texts(
    tab: Tab, expected: Callable[..., list[str]]
) -> None:
    first = tab.ask("fish ponds")[1]
    mark(tab, first, "plus")
    second = tab.changed(lambda: tab.click("#next"))[0]
    mark(tab, second, "plus")
    assert tab.ask("a river") == expected("a river")
    assert tab.locator("#marked li").count() == 2
    assert tab.inner_text("#refine") == "Refine"
    after = tab.changed(lambda: tab.click("#refine"))
    assert after == expected("a river", like=[first, second])
    tab.changed(lambda: tab.click("#examples button >> text=fish ponds"))
    assert tab.locator("#marks").is_hidden()


def test_marks_bring_more_ponds(tab: Tab) -> None:
    before = tab.ask("fish ponds")
    by_place = {key.split("-", 1)[1]: key for key in before}
    for place in ("480-64", "480-0"):  # parts of the moat
        mark(tab, by_place[place], "plus")
    mark(tab, by_place["224-480"], "minus")  # a forest
    after = tab.changed(lambda: tab.click("#refine"))
    assert num_on(PONDS, after[:6]) == num_on(PONDS, before[:6]) + 1 == 5
    assert by_place["224-480"] not in after
    tab.changed(lambda: tab.click("#clear-marks"))
    assert tab.ids() == before


def test_more_like_one_hit(tab: Tab) -> None:
    found = tab.ask("a river")
    after = tab.changed(lambda: tab.click(".hit >> nth=1 >> .similar"))
    assert after[0] == found[1]
    assert tab.input_value("#query") == ""
    assert num_on(RIVER, after[:6]) >= 5


# The map


def test_a_hit_across_the_antimeridian_lies_where_it_is(tab: Tab) -> None:
    """Its outline has a part on either side."""
    found = tab.evaluate(
        """async () => {
          const box = (west, east) => [[[west, 1], [east, 1], [east, 2], [west, 2], [west, 1]]];
          const hit = (...parts) => ({ geometry: { type: "MultiPolygon", coordinates: parts } });
          const { boundsOf } = await import("./static/map.js");
          const { placeOf } = await import("./static/hits.js");
          const across = hit(box(179, 180), box(-180, -177));
          return [boundsOf([across]), placeOf(across), boundsOf([hit(box(-3, -2), box(4, 5))])];
        }"""
    )
    assert found == [[179, 1, 183, 2], "1.5000 N, 179.0000 W", [-3, 1, 5, 2]]


AT = (17.93, 103.76, 12.5)


def pixel_of(tab: Tab, longitude: float, latitude: float) -> tuple[float, float]:
    """Where a place is drawn on a map that looks at `AT`: Web Mercator, 512 pixels at zoom 0."""
    box = tab.locator("#map canvas").bounding_box()
    size = 512 * 2 ** AT[2]

    def world(x: float, y: float) -> tuple[float, float]:
        return (x + 180) / 360 * size, (
            0.5 - math.asinh(math.tan(math.radians(y))) / (2 * math.pi)
        ) * size

    (x, y), (middle_x, middle_y) = world(longitude, latitude), world(AT[1], AT[0])
    return (
        box["x"] + box["width"] / 2 + x - middle_x,
        box["y"] + box["height"] / 2 + y - middle_y,
    )


def looking_at(question: str) -> str:
    return f"#{question}&at={AT[0]},{AT[1]},{AT[2]}"


BOX = (103.745, 17.915, 103.765, 17.93)
"""West, south, east, north."""


def assert_within_box(tab: Tab, expected: Callable[..., list[str]]) -> None:
    """Every hit touches the box that the address states, which is `BOX` to a pixel or two."""
    [given] = re.findall(r"bbox=([^&]*)", tab.url)
    box = [float(one) for one in given.replace("%2C", ",").split(",")]
    assert box == pytest.approx(BOX, abs=2e-4)
    assert tab.ids() == expected("a river", bbox=box)
    assert 0 < len(tab.ids()) < 24


def test_a_drawn_box_restricts_the_search(tab: Tab, expected: Callable[..., list[str]]) -> None:
    tab.open(looking_at("q=a+river"))
    tab.click("#draw")
    assert "Drag a box" in tab.inner_text("#hint")
    tab.mouse.move(*pixel_of(tab, BOX[0], BOX[3]))
    tab.mouse.down()
    tab.mouse.move(*pixel_of(tab, 103.75, 17.92), steps=3)
    tab.mouse.move(*pixel_of(tab, BOX[2], BOX[1]), steps=3)
    tab.changed(tab.mouse.up)
    assert_within_box(tab, expected)
    assert tab.locator("#hint").is_hidden()
    assert tab.inner_text("#num-filters").strip() == "(1 set)"
    assert tab.get_attribute("#draw", "aria-pressed") == "false"


def test_two_taps_draw_a_box_too(
    entered: Callable[..., Tab], expected: Callable[..., list[str]]
) -> None:
    tab = entered(has_touch=True)
    tab.open(looking_at("q=a+river"))
    tab.tap("#draw")
    tab.touchscreen.tap(*pixel_of(tab, BOX[0], BOX[1]))
    tab.changed(lambda: tab.touchscreen.tap(*pixel_of(tab, BOX[2], BOX[3])))
    assert_within_box(tab, expected)


def test_a_finger_draws_a_box_without_moving_the_map(
    entered: Callable[..., Tab], expected: Callable[..., list[str]]
) -> None:
    tab = entered(viewport={"width": 700, "height": 900}, has_touch=True, is_mobile=True)
    tab.open(looking_at("q=a+river"))
    tab.tap("#draw")
    finger = tab.context.new_cdp_session(tab.page)

    def touch(kind: str, *places: tuple[float, float]) -> None:
        pixels = [pixel_of(tab, *place) for place in places]
        points = [{"x": x, "y": y} for x, y in pixels]
        finger.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})

    west, south, east, north = BOX
    touch("touchStart", (west, north))
    for share in (0.3, 0.7, 1.0):
        touch("touchMove", (west + share * (east - west), north + share * (south - north)))
    tab.changed(lambda: touch("touchEnd"))
    assert_within_box(tab, expected)
    assert tab.evaluate("scrollY") == 0


def test_escape_ends_drawing(tab: Tab) -> None:
    tab.open(looking_at("q=a+river"))
    tab.click("#draw")
    tab.mouse.move(*pixel_of(tab, BOX[0], BOX[3]))
    tab.mouse.down()
    tab.keyboard.press("Escape")
    tab.mouse.up()
    assert tab.locator("#hint").is_hidden()
    assert "bbox" not in tab.url


def test_a_typed_box_restricts_and_a_wrong_one_is_refused(
    tab: Tab, expected: Callable[..., list[str]]
) -> None:
    tab.ask("a river")
    tab.click("#filters > summary")
    for name, value in zip(("west", "south", "east", "north"), BOX, strict=True):
        tab.fill(f"#{name}", str(value))
    tab.fill("#north", "-3")  # below the south
    tab.press("#north", "Enter")
    assert tab.get_attribute("#north", "aria-invalid") == "true"
    assert "south below north" in tab.eval_on_selector("#west", "one => one.validationMessage")
    assert "bbox" not in tab.url
    tab.fill("#north", str(BOX[3]))
    tab.changed(lambda: tab.press("#north", "Enter"))
    assert_within_box(tab, expected)


def test_the_map_and_the_list_point_at_each_other(tab: Tab) -> None:
    tab.open(looking_at("q=a+river&picture=none"))
    plain = tab.locator("#map canvas").screenshot()
    tab.hover(".hit >> nth=0")
    tab.wait_for_timeout(300)
    assert tab.locator("#map canvas").screenshot() != plain
    tab.mouse.move(5, 5)
    found = tab.evaluate(
        """async () => {
          const body = JSON.stringify({query: 'a river', collapse: true, page_size: 24});
          const headers = {'content-type': 'application/json'};
          const answer = await fetch('api/search', {method: 'POST', body, headers});
          return (await answer.json()).hits.features[3];
        }"""
    )
    middle = shapely.geometry.shape(found["geometry"]).centroid
    tab.mouse.move(*pixel_of(tab, middle.x, middle.y))
    tab.wait_for_selector(".hit.hovered")
    assert tab.get_attribute(".hit.hovered", "data-id") == found["id"]
    tab.mouse.click(*pixel_of(tab, middle.x, middle.y))
    tab.wait_for_selector(".hit.open")
    assert tab.get_attribute(".hit.open", "data-id") == found["id"]
    assert found["id"] in tab.inner_text(".hit.open dl")
    assert SCENE in tab.inner_text(".hit.open dl")
    tab.keyboard.press("Escape")
    assert tab.locator(".hit.open").count() == 0


def test_a_hit_out_of_sight_is_flown_to_and_back(tab: Tab) -> None:
    tab.open("#q=a+river&at=48,2,5")
    tab.click(".hit >> nth=0 >> .pick")
    tab.wait_for_function("() => /at=17\\.9\\d*%2C103\\.7\\d*%2C13/.test(location.hash)")
    tab.click("#fit")
    tab.wait_for_function("() => /at=17\\.9\\d*%2C103\\.7\\d*%2C1[12]\\./.test(location.hash)")


def test_layers_change_the_map_and_scores_have_a_legend(tab: Tab) -> None:
    tab.open(looking_at("q=a+river"))
    canvas = tab.locator("#map canvas")
    tab.wait_for_load_state("networkidle")
    shown = [canvas.screenshot()]
    for step in ("[value=false]", "[value=none]", "#show-scores", "#show-hits"):
        tab.click(step)
        tab.wait_for_load_state("networkidle")
        tab.wait_for_timeout(400)
        shown.append(canvas.screenshot())
    assert len(set(shown)) == len(shown)
    least, most = float(tab.inner_text("#least")), float(tab.inner_text("#most"))
    assert -1 <= least < most <= 1
    assert most == pytest.approx(float(tab.inner_text(".hit .score")), abs=2e-3)
    assert "picture=none&scores=1" in tab.url


# What a person may do besides


def test_an_address_repeats_the_question_without_the_token(
    tab: Tab, entered: Callable[..., Tab], served: tuple[str, str]
) -> None:
    tab.ask("farmland")
    tab.click(".hit >> nth=2 >> .plus")
    tab.changed(lambda: tab.click("#refine"))
    tab.click("#next")
    tab.wait_for_function("() => document.querySelector('#page-number').textContent[5] === '2'")
    tab.settle()
    address = tab.url
    assert served[1] not in address
    other = entered().open(urlsplit(address).fragment and "#" + urlsplit(address).fragment)
    assert other.ids() == tab.ids()
    assert other.input_value("#query") == "farmland"


def test_an_address_that_makes_no_sense_is_an_empty_page(tab: Tab) -> None:
    tab.open("#bbox=9,9,x,1&from=yesterday&cloud=-4&page=-1&at=900,0,99&like=<b>&sensor=<img>&q=")
    assert "Type what to look for" in tab.inner_text("#empty")


def test_pages_of_hits(tab: Tab) -> None:
    first = tab.ask("a river")
    assert tab.is_disabled("#previous")
    second = tab.changed(lambda: tab.click("#next"))
    assert not set(first) & set(second)
    assert tab.inner_text(".hit .rank") == "25"
    assert tab.changed(lambda: tab.click("#previous")) == first


def test_hits_are_downloaded(tab: Tab, tmp_path: Path) -> None:
    keys = tab.ask("a river")
    for kind in ("geojson", "geoparquet"):
        with tab.expect_download() as told:
            tab.click(f"[data-format={kind}]")
        told.value.save_as(tmp_path / told.value.suggested_filename)
    features = json.loads((tmp_path / "hits.geojson").read_text())["features"]
    table = pq.read_table(tmp_path / "hits.parquet")
    assert [one["properties"].get("key") for one in features][: len(keys)] == keys
    assert table["key"].to_pylist()[: len(keys)] == keys


def test_filters_are_asked_for(tab: Tab) -> None:
    def add_sensor(route: Any) -> None:
        answer = route.fetch()
        found = answer.json()
        found["sensors"].append("sentinel1-grd")
        route.fulfill(response=answer, json=found)

    tab.route("**/api/index", add_sensor)
    tab.open("#q=a+river")
    tab.click("#filters > summary")
    tab.fill("#against", "a lake")
    tab.fill("#start", "2020-02-01")
    tab.fill("#end", "2020-02-29")
    tab.check("[value='sentinel2-l2a']")
    tab.fill("#cloud", "20")
    tab.uncheck("#collapse")
    with tab.expect_request("**/api/search") as told:
        tab.click("#filters [type=submit]")
    asked = told.value.post_data_json
    assert {name: asked[name] for name in ("against", "start", "end", "sensors")} == {
        "against": "a lake",
        "start": "2020-02-01",
        "end": "2020-02-29",
        "sensors": ["sentinel2-l2a"],
    }
    assert (asked["max_cloud"], asked["collapse"], asked["bbox"]) == (0.2, False, None)
    tab.settle()
    assert tab.inner_text("#num-filters").strip() == "(6 set)"
    tab.fill("#start", "2020-03-01")  # after the end
    tab.press("#start", "Enter")
    assert tab.get_attribute("#start", "aria-invalid") == "true"
    tab.changed(lambda: tab.click("#clear-filters"))
    assert tab.inner_text("#num-filters") == ""


def test_what_cannot_be_found_is_said(tab: Tab) -> None:
    tab.ask("a river")
    tab.click("#filters > summary")
    tab.fill("#start", "2020-02-24")
    tab.press("#start", "Enter")
    tab.wait_for_selector("#empty:not([hidden])")
    assert "No window meets the filters" in tab.inner_text("#empty")
    assert tab.ids() == []
    tab.click("#clear-filters")
    tab.wait_for_selector(".hit .pick")


def test_waiting_and_faults_are_shown_and_can_be_tried_again(tab: Tab) -> None:
    tab.ask("a river")
    waiting: list[Any] = []
    tab.route("**/api/search", lambda route: waiting.append(route))
    tab.fill("#query", "a lake")
    tab.press("#query", "Enter")
    tab.wait_for_selector(".hit.waiting")
    assert tab.inner_text("#status") == "Searching …"
    answer = {"error": "the index is being rebuilt; try again"}
    waiting[0].fulfill(status=503, json=answer)
    tab.wait_for_selector("#error:not([hidden])")
    assert tab.inner_text("#error p") == answer["error"]
    tab.unroute("**/api/search")
    tab.faults.clear()  # the browser's own line about status 503
    tab.click("#again")
    tab.wait_for_selector(".hit .pick")
    assert tab.locator("#error").is_hidden()


def test_a_server_that_is_gone_is_named(tab: Tab) -> None:
    tab.route("**/api/search", lambda route: route.abort())
    tab.fill("#query", "a lake")
    tab.press("#query", "Enter")
    tab.wait_for_selector("#error:not([hidden])")
    assert "does not answer" in tab.inner_text("#error p")
    tab.faults.clear()


def test_names_from_files_are_text(tab: Tab) -> None:
    evil = '<img src=x onerror="document.title=1">'

    def spoil(route: Any) -> None:
        answer = route.fetch()
        found = answer.json()
        for one in found["hits"]["features"]:
            one["properties"].update(scene_name=evil, sensor=evil, source="javascript:alert(1)")
        route.fulfill(response=answer, json=found)

    tab.route("**/api/search", spoil)
    tab.ask("a river")
    tab.click(".hit >> nth=0 >> .pick")
    assert evil in tab.inner_text(".hit.open dl")
    assert tab.locator(".hit.open a[href]").count() == 0
    assert tab.locator("img[onerror]").count() == 0


def test_a_scene_that_is_not_at_hand_says_so(tab: Tab) -> None:
    def spoil(route: Any) -> None:
        answer = route.fetch()
        found = answer.json()
        found["scenes"][0] |= {"pictures": [], "why": "its file is not at hand"}
        route.fulfill(response=answer, json=found)

    tab.route("**/api/index", spoil)
    tab.open("#q=a+river")
    tab.click(".hit >> nth=0 >> .pick")
    assert "its file is not at hand" in tab.inner_text(".hit.open dl")
    assert tab.locator(".hit.no-picture").count() == 24
    assert tab.locator("#pictures").is_hidden()


def test_hits_without_place_or_date_are_listed(tab: Tab) -> None:
    def spoil(route: Any) -> None:
        answer = route.fetch()
        found = answer.json()
        for one in found["hits"]["features"]:
            one["geometry"] = one["properties"]["datetime"] = None
        route.fulfill(response=answer, json=found)

    tab.route("**/api/search", spoil)
    assert len(tab.ask("a river")) == 24
    tab.click(".hit >> nth=0 >> .pick")
    assert tab.locator(".hit.open .zoom").is_hidden()
    assert "Place" not in tab.inner_text(".hit.open dl")
    assert SCENE in tab.inner_text(".hit >> nth=1 >> .caption")
    tab.click("#fit")


def test_without_the_token_there_is_no_page(
    served: tuple[str, str], tab_of: Callable[..., Tab]
) -> None:
    tab = tab_of(served[0])
    assert tab.goto(served[0]).status == 401
    tab.faults.clear()  # the browser's own line about it


# Who uses it


def focused(tab: Tab) -> str:
    return str(tab.evaluate("document.activeElement.id || document.activeElement.className"))


def tab_to(tab: Tab, name: str, most: int = 60) -> None:
    for _ in range(most):
        tab.keyboard.press("Tab")
        if focused(tab) == name:
            break
    assert focused(tab) == name
    style = "getComputedStyle(document.activeElement)"
    assert tab.evaluate(f"{style}.outlineStyle !== 'none' && parseFloat({style}.outlineWidth) >= 2")


def test_everything_works_by_keyboard(tab: Tab) -> None:
    tab_to(tab, "skip", 1)
    tab_to(tab, "query", 1)
    tab.keyboard.type("a river")
    tab.keyboard.press("Enter")
    tab.wait_for_selector(".hit .pick")
    tab.settle()
    before = tab.ids()
    tab_to(tab, "pick")
    tab.keyboard.press("Enter")
    tab.wait_for_selector(".hit.open")
    assert tab.get_attribute(".hit.open .pick", "aria-expanded") == "true"
    tab_to(tab, "zoom", 1)
    tab_to(tab, "plus", 2)
    tab.keyboard.press("Space")
    assert tab.get_attribute(".hit.open .plus", "aria-pressed") == "true"
    tab_to(tab, "refine", 120)
    assert tab.changed(lambda: tab.keyboard.press("Enter")) != before
    assert focused(tab) == "heading"
    # A box by its numbers, from the top of the page.
    tab.evaluate("document.activeElement.blur(); document.querySelector('#skip').focus()")
    for _ in range(30):
        tab.keyboard.press("Tab")
        if tab.evaluate("document.activeElement.matches('#filters > summary')"):
            break
    tab.keyboard.press("Enter")
    tab_to(tab, "west", 3)
    for at, value in enumerate(BOX):
        tab.keyboard.type(str(value))
        if at < 3:
            tab.keyboard.press("Tab")
    tab.changed(lambda: tab.keyboard.press("Enter"))
    assert "bbox=" in tab.url


def test_parts_have_names_and_results_are_announced(tab: Tab) -> None:
    tab.ask("a river")
    tree = tab.locator("body").aria_snapshot()
    for name in ("search", "main", "banner"):
        assert re.search(rf"^ *- {name}\b", tree, re.MULTILINE), name
    for name in ("Map", "Pages of results", "Hits", "Download the hits", "Refine by hit 1"):
        assert f'"{name}"' in tree
    assert tab.get_attribute("#status", "aria-live") == "polite"
    nameless = """() => [...document.querySelectorAll('button, input, a')]
      .filter(one => one.checkVisibility() && !one.labels?.length && !one.textContent.trim()
        && !one.ariaLabel && !one.title).map(one => one.outerHTML)"""
    assert tab.evaluate(nameless) == []
    assert tab.evaluate("document.documentElement.lang") == "en"


def test_a_phone_shows_the_map_above_the_list_without_scrolling_sideways(
    entered: Callable[..., Tab],
) -> None:
    tab = entered(viewport={"width": 360, "height": 740}, has_touch=True, is_mobile=True)
    tab.ask("a river")
    tab.tap("#filters > summary")
    tab.tap("#layers > summary")
    tab.tap(".hit >> nth=2 >> .pick")
    tab.tap(".hit >> nth=2 >> .plus")
    sizes = tab.evaluate("[document.documentElement.scrollWidth, innerWidth]")
    assert sizes == [360, 360]
    small = """() => [...document.querySelectorAll('button, summary, input, .check, .switch label')]
      .filter(one => one.checkVisibility() && !one.closest('label > *, .maplibregl-ctrl-attrib'))
      .map(one => [one.id || one.className || one.textContent, one.getBoundingClientRect()])
      .filter(([name, box]) => box.height < 43.5 || box.width < 43.5)
      .map(([name, box]) => `${name}: ${box.width} x ${box.height}`)"""
    assert tab.evaluate(small) == []
    top = "document.querySelector('{}').getBoundingClientRect().top"
    assert tab.evaluate(f"{top.format('#map')} < {top.format('#hits')}")
    tab.evaluate("scrollTo(0, 2500)")
    assert tab.evaluate(f"{top.format('#map')}") == 0  # it stays in sight


CONTRAST = """() => {
  const numbers = (text) => text.match(/[\\d.]+/g).map(Number);
  const light = (colour) => {
    const [r, g, b] = colour.map((one) => {
      const share = one / 255;
      return share <= 0.04045 ? share / 12.92 : ((share + 0.055) / 1.055) ** 2.4;
    });
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const behind = (one) => {
    for (let at = one; at; at = at.parentElement) {
      const [r, g, b, a = 1] = numbers(getComputedStyle(at).backgroundColor);
      if (a === 1) return [r, g, b];
      if (a > 0) return null;  // over a picture
    }
    return [255, 255, 255];
  };
  const found = [];
  for (const one of document.querySelectorAll('body *')) {
    const isText = [...one.childNodes].some((node) => node.nodeType === 3 && node.data.trim());
    if (!isText || !one.checkVisibility() || one.closest('.maplibregl-map, :disabled')) continue;
    const back = behind(one);
    if (!back) continue;
    const levels = [numbers(getComputedStyle(one).color).slice(0, 3), back].map(light);
    const ratio = (Math.max(...levels) + 0.05) / (Math.min(...levels) + 0.05);
    if (ratio < 4.5) found.push(`${one.outerHTML.slice(0, 80)} ${ratio.toFixed(2)}`);
  }
  return [found, light(behind(document.body))];
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_can_be_read_in_light_and_dark(scheme: str, entered: Callable[..., Tab]) -> None:
    tab = entered(color_scheme=scheme)
    tab.ask("a river")
    tab.click("#filters > summary")
    tab.click(".hit >> nth=0 >> .pick")
    tab.click(".hit >> nth=1 >> .plus")
    found, level = tab.evaluate(CONTRAST)
    assert found == []
    assert (level > 0.5) == (scheme == "light")


def test_the_list_works_where_no_map_can_be_drawn(served: tuple[str, str], browser: Any) -> None:
    other = browser.browser_type.launch(
        executable_path=CHROMIUM, args=["--no-sandbox", "--disable-3d-apis"]
    )
    try:
        tab = Tab(page=other.new_page(), home=served[0])
        tab.page.goto(f"{served[0]}?token={served[1]}")
        tab.page.wait_for_selector("#no-map:not([hidden])")
        assert "needs WebGL 2" in tab.inner_text("#no-map")
        assert num_on(RIVER, tab.ask("a river")[:6]) == 6
    finally:
        other.close()


# Without a server of ours


@pytest.fixture
def exported(vectors: Path, tmp_path: Path) -> Iterator[str]:
    """The address of an export that another web server shows below a prefix."""
    out = tmp_path / "maps" / "a river"
    command = ["serve", str(vectors), "--static", str(out), "--query", "a river", "-k", "40"]
    subprocess.run([sys.executable, "-m", "terralign", *command], check=True, capture_output=True)
    command = [*("-u", "-m", "http.server", "0"), "--bind", "127.0.0.1", "--directory"]
    with subprocess.Popen(
        [sys.executable, *command, str(tmp_path)],
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
    ) as process:  # fmt: skip
        try:
            assert process.stdout is not None
            [address] = re.findall(r"http://[\d.:]+", process.stdout.readline())
            yield f"{address}/maps/a%20river/"
        finally:
            process.kill()


def test_an_export_is_a_page_of_any_web_server(
    exported: str, tab_of: Callable[..., Tab], expected: Callable[..., list[str]], tmp_path: Path
) -> None:
    tab = tab_of(exported).open()
    first = tab.ids()
    assert first == expected("a river", collapse=False)
    assert tab.inner_text("#heading") == "a river"
    for hidden in ("#query", ".hit .plus", ".hit .similar", "[data-format=geoparquet]", "#draw"):
        assert tab.locator(hidden).first.is_hidden(), hidden
    second = tab.changed(lambda: tab.click("#next"))
    assert len(first + second) == len({*first, *second}) == 40
    tab.wait_for_load_state("networkidle")
    canvas = tab.locator("#map canvas")
    shown = [canvas.screenshot()]
    for step in ("[value=false]", "[value=none]", "#show-scores"):
        tab.click(step)
        tab.wait_for_load_state("networkidle")
        tab.wait_for_timeout(400)
        shown.append(canvas.screenshot())
    assert len(set(shown)) == len(shown)
    with tab.expect_download() as told:
        tab.click("[data-format=geojson]")
    told.value.save_as(tmp_path / "hits.geojson")
    assert len(json.loads((tmp_path / "hits.geojson").read_text())["features"]) == 40
