"""Footprints of grids as GeoJSON."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import shapely
from band_folders import write_band
from rasterio.warp import transform
from shapely.geometry import shape

from terralign.chips import Grid
from terralign.errors import DataError
from terralign.scenes.places import geotiff_bounds, wgs84_bounds, wgs84_footprint


def grid(
    crs: str | None, corner: tuple[float, float], size: float, height: int, width: int
) -> Grid:
    return Grid(
        crs=crs,
        transform=(size, 0, corner[0], 0, -size, corner[1]),
        height=height,
        width=width,
    )


def footprint(*args: Any) -> dict[str, Any]:
    found = wgs84_footprint(grid(*args), origin="scene.tif")
    assert found is not None
    return found


def test_a_window_is_its_four_corners_counter_clockwise() -> None:
    found = footprint("EPSG:32648", (362_612, 1_987_088), 10, 64, 64)
    (ring,) = found["coordinates"]
    assert found["type"] == "Polygon"
    assert len(ring) == 5
    assert ring[0] == ring[-1]
    assert shapely.LinearRing(ring).is_ccw
    xs, ys = [362_612, 362_612 + 640], [1_987_088 - 640, 1_987_088]
    corners = transform("EPSG:32648", "EPSG:4326", [xs[0], xs[0], *xs[1:] * 2], [*ys, *ys])
    expected = sorted(zip(*corners, strict=True))
    np.testing.assert_allclose(sorted(set(ring)), expected, rtol=0, atol=1e-8)


def test_long_edges_follow_the_grid() -> None:
    polygon = shape(footprint("EPSG:32633", (499_980, 8_300_040), 10, 10_980, 10_980))
    along = np.linspace(0, 109_800, 12)[1:-1]
    longitudes, latitudes = transform(
        "EPSG:32633", "EPSG:4326", (499_980 + along).tolist(), [8_300_040.0] * len(along)
    )
    points = shapely.points(longitudes, latitudes)
    off_m = shapely.distance(polygon.exterior, points) * 111_000
    assert off_m.max() < 5  # half a pixel


def test_it_is_cut_at_the_antimeridian() -> None:
    found = footprint("EPSG:32660", (780_000, 100_000), 10, 10_980, 10_980)
    west, east = (shape({"type": "Polygon", "coordinates": part}) for part in found["coordinates"])
    assert found["type"] == "MultiPolygon"
    for part in (west, east):
        assert part.exterior.is_ccw
        assert part.is_valid
    bounds = sorted([west.bounds, east.bounds])
    assert bounds[0][0] == -180
    assert bounds[1][2] == 180
    assert bounds[0][2] - bounds[0][0] + bounds[1][2] - bounds[1][0] == pytest.approx(0.987, 0.01)
    degrees = footprint("EPSG:4326", (175, 10), 0.1, 20, 100)
    assert shape(degrees).area == pytest.approx(2 * 10)


def test_it_may_hold_a_pole() -> None:
    polygon = shape(footprint("EPSG:3413", (-500_000, 500_000), 1000, 1000, 1000))
    assert polygon.is_valid
    assert polygon.bounds[0] == -180
    assert polygon.bounds[2:] == (180, 90)
    assert polygon.covers(shapely.Point(-45, 89))
    assert not polygon.covers(shapely.Point(-45, 80))


def test_the_whole_globe_is_no_sliver() -> None:
    for west in (-180, 0):
        found = shape(footprint("EPSG:4326", (west, 90), 1, 180, 360))
        assert found.area == pytest.approx(360 * 180)


def test_without_a_reference_system_there_is_none() -> None:
    assert wgs84_footprint(grid(None, (0, 0), 1, 4, 4), origin="scene.png") is None


def test_what_leaves_the_globe_is_refused() -> None:
    with pytest.raises(DataError, match=r"^scene\.tif: its outline cannot be brought to WGS84"):
        wgs84_footprint(grid("EPSG:32648", (0, 0), 1e8, 64, 64), origin="scene.tif")


def test_latitudes_beyond_a_pole_are_refused() -> None:
    beyond = grid("EPSG:4326", (10, 100), 0.1, 20, 20)
    with pytest.raises(DataError, match=r"^scene\.tif lies beyond the poles .*latitude 100"):
        wgs84_footprint(beyond, origin="scene.tif")
    with pytest.raises(DataError, match=r"^scene\.tif lies beyond the poles"):
        wgs84_bounds(beyond.bounds, "EPSG:4326", origin="scene.tif")


def test_pixels_centred_on_a_pole_are_cut_there() -> None:
    centred = shape(footprint("EPSG:4326", (-180, 90.05), 0.1, 1801, 3600))
    assert centred.bounds == (-180, -90, 180, 90)


@pytest.mark.parametrize("crs", ["EPSG:4326", "EPSG:32633"])
def test_pixels_of_no_size_are_refused(crs: str) -> None:
    with pytest.raises(DataError, match=r"^scene\.tif covers no area of the globe"):
        footprint(crs, (0, 0), 0, 20, 20)


LOCAL = 'LOCAL_CS["a field",UNIT["metre",1]]'


@pytest.mark.parametrize(
    ("crs", "reason"), [(LOCAL, "is a local one"), ("EPSG:9999999", "is not known")]
)
def test_without_a_place_on_the_globe_there_is_none_and_a_warning(
    crs: str, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(3):
        found = wgs84_footprint(grid(crs, (0, 0), 10, 64, 64), origin="scene.tif")
        assert found is None
    (record,) = caplog.records
    assert f"scene.tif: its reference system {reason}" in record.getMessage()


def test_a_geotiff_of_a_local_system_has_no_bounds(tmp_path: Path) -> None:
    assert geotiff_bounds(write_band(tmp_path / "a.tif", crs=LOCAL)) is None
    assert geotiff_bounds(write_band(tmp_path / "b.tif")) is not None
