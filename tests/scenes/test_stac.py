"""STAC items: what real catalogues state of bands, offsets, scales, times and places."""

from __future__ import annotations

import datetime as dt
import json
from pathlib import Path
from typing import Any

import pytest
from sources import item_of, random_bands, write_folder, write_item

from range_server import serve
from terralign.errors import DataError, SensorError, TerralignError
from terralign.scenes.catalogues import is_catalogue, read_items
from terralign.scenes.declared import Declared
from terralign.scenes.scene import open_scene
from terralign.scenes.stac import ItemProduct, describe_item
from terralign.sensors import SENSORS

L2A = ["B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B09", "B11", "B12"]
L1C = [*L2A[:10], "B10", "B11", "B12"]
LANDSAT = ["B1", "B2", "B3", "B4", "B5", "B6", "B7"]
EARTH_SEARCH = "earth-search-v1"
COMPUTER = "planetary-computer"

REAL: dict[str, tuple[str, list[str], float | None, str, float, str | None]] = {
    "cdse/*/*.json": ("sentinel2-l2a", L2A, -1000, "2020-03-22T07:46:09.024", 87.94, "scl"),
    "earth-search-v0/*/*.json": ("sentinel2-l2a", L2A, 0, "2025-07-31T13:19:22", 0, "scl"),
    f"{EARTH_SEARCH}/sentinel-2-l2a/*.json": (
        *("sentinel2-l2a", L2A, 0, "2025-07-31T13:19:22.930", 26.02542, "scl"),
    ),
    f"{EARTH_SEARCH}/sentinel-2-c1-l2a/*.json": (
        *("sentinel2-l2a", L2A, -1000, "2025-07-31T13:19:22.930", 26.02542, "scl"),
    ),
    f"{EARTH_SEARCH}/sentinel-2-l1c/*.json": (
        *("sentinel2-l1c", L1C, -1000, "2025-07-31T13:19:22.930", 0, None),
    ),
    f"{EARTH_SEARCH}/landsat-c2-l2/*.json": (
        *("landsat-oli-l2", LANDSAT, None, "2023-10-08T17:37:26.656958", 0.06, "qa_pixel"),
    ),
    f"{COMPUTER}/landsat-c2-l2/*.json": (
        *("landsat-oli-l2", LANDSAT, None, "2024-04-17T23:46:20.477296", 97.54, "qa_pixel"),
    ),
    f"{COMPUTER}/sentinel-2-l2a/S2B*.json": (
        *("sentinel2-l2a", L2A, 0, "2019-06-29T21:25:29.024", 0.314306, "scl"),
    ),
    f"{COMPUTER}/sentinel-2-l2a/two*.json": (
        *("sentinel2-l2a", L2A, -1000, "2024-08-25T17:39:09.024", 48.747352, "scl"),
    ),
    f"{COMPUTER}/sentinel-2-l2a/itemcoll*.json": (
        *("sentinel2-l2a", L2A, 0, "2020-06-06T08:06:09.024", 0.973945, "scl"),
    ),
    f"{COMPUTER}/sentinel-2-l2a/S2A*.json": (
        *("sentinel2-l2a", L2A, -1000, "2023-11-07T14:47:31.024", 4.217, "scl"),
    ),
    "hls/*.json": (
        *("hls-l30", [*L2A[:7], "B09"], None, "2022-06-14T14:40:27.710686", 73, "fmask"),
    ),
    "usgs/*.json": (
        *("landsat-oli-l2", LANDSAT, None, "2020-01-14T17:05:46.732651", 8.18, "qa_pixel"),
    ),
    "stac-1.1/*.json": ("sentinel2-l2a", L2A[:6], 0, "2021-02-21T10:00:17", 21.22, "scl"),
    "../landsat/*/*_stac.json": ("landsat-oli-l2", LANDSAT, None, "2020-10-31", 99.94, "qa_pixel"),
    "../stac-geoparquet/*.parquet": (
        *("sentinel2-l2a", L2A, -1000, "2024-12-03T17:46:29.024", 0.146308, "scl"),
    ),
}
"""Files -> sensor, bands, DN offset (None: the sensor has none), time, cloud cover, mask."""


def described(path: Path) -> list[ItemProduct]:
    return [describe_item(item, Declared()) for item in read_items(path)]


@pytest.mark.realdata
@pytest.mark.parametrize("pattern", REAL)
def test_items_of_real_catalogues_are_understood(real_data: Path, pattern: str) -> None:
    sensor, bands, offset, when, cover, mask = REAL[pattern]
    (path,) = (real_data / "formats" / "stac").glob(pattern)
    items = list(read_items(path))
    found = describe_item(items[0], Declared())
    product = found.product
    assert product.sensor == SENSORS[sensor]
    assert [file.band for file in product.files] == bands
    assert len({str(file.path) for file in product.files}) == len(bands)
    assert product.catalogued is not None
    assert product.catalogued.dn_offset == offset
    assert product.catalogued.scale is None  # the sensor's own holds
    assert found.datetime == dt.datetime.fromisoformat(when).replace(tzinfo=dt.UTC)
    assert found.cloud_cover == pytest.approx(cover)
    assert (product.clouds and product.clouds.kind) == mask
    assert items[0].footprint is not None
    assert items[0].footprint["type"] in ("Polygon", "MultiPolygon")
    assert not found.is_power
    for item in items[1:]:
        assert describe_item(item, Declared()).product.sensor == SENSORS[sensor]


@pytest.mark.realdata
@pytest.mark.parametrize(
    ("pattern", "count"),
    [
        ("planetary-computer/sentinel-2-l2a/itemcoll*.json", 9),
        ("planetary-computer/landsat-c2-l2/itemlist.json", 4),
        ("../stac-geoparquet/*.parquet", 100),
    ],
)
def test_collections_give_every_item_a_name(real_data: Path, pattern: str, count: int) -> None:
    (path,) = (real_data / "formats" / "stac").glob(pattern)
    assert is_catalogue(path)
    keys = {item.key for item in read_items(path)}
    assert len(keys) == count
    assert all(key.startswith(f"{path}#") for key in keys)


@pytest.mark.realdata
def test_bands_of_several_resolutions_come_in_their_own(real_data: Path) -> None:
    # the catalogue states 20 m for B07_60m
    (found,) = described(next((real_data / "formats/stac/cdse").rglob("*.json")))
    sizes = {file.band: str(file.path)[-7:-4] for file in found.product.files}
    native = {band.name: f"{band.gsd_m:.0f}m" for band in SENSORS["sentinel2-l2a"].bands}
    assert sizes == native


@pytest.mark.realdata
def test_terrain_corrected_radar_is_power_and_raw_radar_is_refused(real_data: Path) -> None:
    stac = real_data / "formats/stac"
    for found in described(stac / "planetary-computer/sentinel-1-rtc/itemlist.json"):
        assert found.is_power
        assert [file.band for file in found.product.files] == ["VV", "VH"]
    for folder in ("planetary-computer/sentinel-1-grd", "earth-search-v1/sentinel-1-grd"):
        with pytest.raises(DataError, match=r"is Sentinel-1 as ESA delivers it .* Take a terrain"):
            described(next((stac / folder).glob("*.json")))


@pytest.mark.realdata
@pytest.mark.parametrize("path", ["safe/S1A_IW*", "sentinel-1/aws*"])
def test_real_raw_radar_is_refused(real_data: Path, path: str) -> None:
    (folder,) = (real_data / "formats").glob(path)
    with pytest.raises(TerralignError, match="is Sentinel-1 as ESA delivers it"):
        open_scene(folder)


@pytest.mark.realdata
@pytest.mark.parametrize(
    "name",
    ["S2A_MSIL1C_20210908*", "S2A_MSIL2A_20190212*", "S2A_MSIL2A_20240725*", "S2B_MSIL2A_2022*"],
)
def test_real_products_without_images_say_so(real_data: Path, name: str) -> None:
    (folder,) = (real_data / "formats/safe").glob(name)
    with pytest.raises(DataError, match=r"holds no image data .* download the whole product"):
        open_scene(folder)


@pytest.mark.realdata
def test_a_real_tile_of_aws_is_known_by_its_metadata(real_data: Path) -> None:
    folder = real_data / "formats/aws-tile/19UDP-2017-07-29-L2A"
    scene = open_scene(folder)
    assert scene.sensor == SENSORS["sentinel2-l2a"]
    assert scene.bands == ("B02", "B03", "B04", "B08", "B11")
    assert (scene.layout.dn_offset, scene.datetime) == (
        0,
        dt.datetime(2017, 7, 29, 15, 36, 1, tzinfo=dt.UTC),
    )
    assert scene.clouds is not None


@pytest.mark.realdata
def test_a_real_export_with_a_mask_band_gives_its_clouds(real_data: Path) -> None:
    scene = open_scene(
        real_data / "formats/stack/20231217.tif",
        sensor="sentinel2-l2a",
        units="dn",
        dn_offset=-1000,
    )
    assert scene.bands == (*L2A[:9], "B11", "B12")
    chip = scene.read(clouds=True)
    assert chip.clouds is not None


# What is refused


def item(**changes: Any) -> dict[str, Any]:
    hrefs = {name: f"https://host/{name}.tif" for name in random_bands()}
    return {**item_of(random_bands(), hrefs), **changes}


@pytest.mark.parametrize(
    ("value", "match"),
    [
        ({}, "its type is not 'Feature'"),
        ([], "holds no items"),
        ([1], "its type is not 'Feature'"),
        ({"type": "FeatureCollection", "features": 3}, "has no list of features"),
        (item(id=3), "its id is '3'"),
        (item(assets=[1]), "it has no assets or no properties"),
        (item(assets={"B04": 3}), "has no asset that is a band"),
        (item(assets={"a": {"href": "a.txt"}}), "has no asset that is a band .* 'a'"),
        (item(geometry={"type": "Polygon", "coordinates": [[[1, 2]]]}), "its geometry is damaged"),
        (item(geometry={"type": "Point", "coordinates": [1, 99]}), "lies beyond the globe"),
        (item(collection="modis", properties={"platform": "terra"}, id="a"), "no built-in sensor"),
        ([item(), item(id="b")], "holds several items"),
    ],
)
def test_values_that_are_no_item_are_refused(tmp_path: Path, value: Any, match: str) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps(value), encoding="utf-8")
    with pytest.raises(TerralignError, match=match) as caught:
        open_scene(path)
    assert "\n" not in str(caught.value)


def test_counts_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERRALIGN_LIMITS", "stac_items=1,stac_assets=3,geometry_points=4")
    path = tmp_path / "a.json"
    path.write_text(json.dumps([{}, {}]), encoding="utf-8")
    with pytest.raises(DataError, match="has 2 items, more than the limit of 1"):
        list(read_items(path))
    with pytest.raises(DataError, match="assets, more than the limit of 3"):
        list(read_items(item()))
    ring = [[[0, 0], [1, 0], [1, 1], [0, 1], [0, 0]]]
    shape = {"type": "Polygon", "coordinates": ring}
    with pytest.raises(DataError, match="points, more than the limit of 4"):
        list(read_items(item(assets={}, geometry=shape)))


def test_an_item_without_a_place_needs_whole_addresses() -> None:
    value = item_of(random_bands(), {"B04": "B04.tif"})
    with pytest.raises(DataError, match=r"relative address 'B04.tif', but the item came without"):
        open_scene(value)


def test_an_item_on_the_web_names_no_files_of_this_machine(tmp_path: Path) -> None:
    bands = random_bands()
    folder = write_folder(tmp_path / "private", bands)
    hrefs = {"B04": str(folder / "B04.tif")}
    (tmp_path / "item.json").write_text(json.dumps(item_of(bands, hrefs)), encoding="utf-8")
    with serve(tmp_path) as served, pytest.raises(DataError, match="not found"):
        open_scene(f"{served.url}/item.json")


def test_contradictions_of_an_item_are_reported(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    value = item()
    for asset in value["assets"].values():
        asset["raster:bands"] = [{"scale": 0.0001, "offset": -0.1}]
    (found,) = (describe_item(one, Declared()) for one in read_items(value))
    assert found.product.catalogued is not None
    assert found.product.catalogued.dn_offset == -1000
    assert "contradicts itself: its bands state a DN offset of -1000" in caplog.text
    value["assets"]["B04"]["raster:bands"] = [{"scale": 0.0001, "offset": 0}]
    with pytest.raises(DataError, match="its bands state different scales and offsets"):
        [describe_item(one, Declared()) for one in read_items(value)]


def test_bands_are_chosen_by_name(tmp_path: Path) -> None:
    bands = random_bands()
    path = write_item(write_folder(tmp_path, bands), bands)
    assert open_scene(path, bands=["red", "B02"]).bands == ("B04", "B02")
    with pytest.raises(SensorError, match="missing B12"):
        open_scene(path, bands=["B12"])


# Pages, searches and pystac


def test_pages_of_a_search_are_followed(tmp_path: Path) -> None:
    with serve(tmp_path) as served:

        def page(number: int, following: str | None) -> bytes:
            links = [{"rel": "next", "href": f"{served.url}{following}"}] if following else []
            features = [item(id=f"{number}-{one}") for one in range(2)]
            value = {"type": "FeatureCollection", "features": features, "links": links}
            return json.dumps(value).encode()

        served.answers = {"/search": page(0, "/next"), "/next": page(1, None)}
        ids = [one.id for one in read_items(f"{served.url}/search?collections=a&limit=2")]
        assert ids == ["0-0", "0-1", "1-0", "1-1"]
        with pytest.raises(DataError, match="answers 404"):
            list(read_items(f"{served.url}/none"))
        served.answers["/text"] = b"<html>"
        with pytest.raises(DataError, match="/text"):
            list(read_items(f"{served.url}/text"))
    with pytest.raises(DataError, match="does not answer"):
        list(read_items(f"{served.url}/search"))


def test_an_api_is_searched(tmp_path: Path) -> None:
    pytest.importorskip("pystac_client")
    with serve(tmp_path) as served:
        core = "https://api.stacspec.org/v1.0.0"
        root = {
            "type": "Catalog",
            "id": "api",
            "stac_version": "1.0.0",
            "description": "of a test",
            "conformsTo": [f"{core}/core", f"{core}/item-search"],
            "links": [
                {"rel": "self", "href": served.url},
                {"rel": "root", "href": served.url},
                {
                    "rel": "search",
                    "href": f"{served.url}/search",
                    "method": "GET",
                    "type": "application/geo+json",
                },
            ],
        }
        found = {"type": "FeatureCollection", "features": [item()], "links": []}
        served.answers = {"/": json.dumps(root).encode(), "/search": json.dumps(found).encode()}
        source = f"stac:{served.url}/?collections=sentinel-2-l2a&bbox=1,2,3,4&max_items=5"
        assert [one.id for one in read_items(source)] == ["S2A_33NZA_20200706_0_L2A"]
        asked = next(path for path, _ in served.asked if path.startswith("/search"))
        assert "collections=sentinel-2-l2a" in asked
    with pytest.raises(DataError, match="does not search"):
        list(read_items(source))


@pytest.mark.parametrize(
    ("query", "match"),
    [
        ("", "names no collections"),
        ("collection=a", "did you mean 'collections'"),
        ("collections=a&bbox=1,2,3", "expected west,south,east,north"),
        ("collections=a&max_items=0", "expected a number from 1"),
    ],
)
def test_a_search_that_is_not_understood_says_so(query: str, match: str) -> None:
    pytest.importorskip("pystac_client")
    with pytest.raises(DataError, match=match):
        list(read_items(f"stac:https://host/v1?{query}"))


def test_items_of_pystac_are_taken(tmp_path: Path) -> None:
    pystac = pytest.importorskip("pystac")
    bands = random_bands()
    path = write_item(write_folder(tmp_path, bands), bands)
    whole = open_scene(path).read()
    one = pystac.Item.from_file(str(path))
    assert (open_scene(one).read().pixels == whole.pixels).all()
    assert len(list(read_items(pystac.ItemCollection([one, one])))) == 2
