"""How a scene is cut into windows: as large on the ground as what the tower was trained on."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import shapely
from numpy.typing import NDArray
from rasterio._err import CPLE_BaseError
from rasterio.errors import RasterioError
from rasterio.warp import transform

from terralign.chips import Grid, PixelLayout, Window
from terralign.errors import DataError, first_line
from terralign.limits import require
from terralign.preprocess import InputSpec
from terralign.preprocess.spec import layout_composite
from terralign.scenes.places import WGS84, is_geographic, wgs84_footprint
from terralign.scenes.windows import cut_windows
from terralign.sensors import RGB

SAME_GSD = 0.1
"""Pixels of a scene that differ less than this share from the tower's are taken as they are."""

_METRES_A_DEGREE = 111_320.0


@dataclass(frozen=True, kw_only=True, slots=True)
class WindowPlan:
    """The windows of a scene, in its own pixels, and what they are for the tower.

    `window_px`, `stride_px`: in the tower's pixels of `gsd_m` metres (None: unknown, the scene's).
    `scene_gsd_m`: metres of the scene's pixels. `note`: what was concluded, "" where nothing.
    """

    windows: tuple[Window, ...]
    window_px: int
    stride_px: int
    gsd_m: float | None
    scene_gsd_m: float | None
    note: str


def sensor_gsd(spec: InputSpec, layout: PixelLayout, *, tower: str) -> float | None:
    """Metres of the pixels of the finest of the bands that a tower sees of `layout`: what it takes
    where its training was not recorded. None for sensors without GSD."""
    names = layout_composite(layout).bands if tower == RGB else spec.bands
    sizes = [band.gsd_m for band in layout.sensor.bands if band.name in names and band.gsd_m]
    return min(sizes) if sizes else None


def plan_windows(
    grid: Grid,
    *,
    size: int,
    window: int | None,
    stride: int | None,
    gsd_m: float | None,
    origin: str,
) -> WindowPlan:
    """Cut a grid into windows that cover every pixel; those at the far edges are shifted inwards.

    `size`: of the tower's input, the default of `window`; both, and `stride` (default: as the
    window), in pixels of `gsd_m` metres. Raises `DataError` for a grid without reference system,
    a stride that leaves pixels out, or too many windows.
    """
    scene_gsd = grid_gsd(grid, origin)
    window_px = window or size
    stride_px = stride or window_px
    if stride_px > window_px:
        raise DataError(
            f"stride is {stride_px} for windows of {window_px} pixels; expected 1 to {window_px}, "
            "so that every pixel is covered"
        )
    ratio, notes = 1.0, []
    if gsd_m is not None and abs(gsd_m / scene_gsd - 1) > SAME_GSD:
        ratio = gsd_m / scene_gsd
        notes.append(
            f"pixels of {scene_gsd:.4g} m are resampled to the tower's {gsd_m:g} m: windows of "
            f"{max(1, round(window_px * ratio))} pixels"
        )
    side = max(1, round(window_px * ratio))
    step = min(side, max(1, round(stride_px * ratio)))
    if max(grid.height, grid.width) < side:
        notes.append(
            f"the scene of {grid.height}x{grid.width} pixels is smaller than a window of {side}"
        )
    num = math.ceil(grid.height / step) * math.ceil(grid.width / step)
    require(
        "scene_windows", num, f"{origin} in steps of {step} pixels has",
        todo="give a larger stride",
    )  # fmt: skip
    return WindowPlan(
        windows=tuple(cut_windows(grid.height, grid.width, side, stride=step)),
        window_px=window_px,
        stride_px=stride_px,
        gsd_m=gsd_m,
        scene_gsd_m=scene_gsd,
        note="; ".join(notes),
    )


def grid_gsd(grid: Grid, origin: str) -> float:
    """Metres of a grid's pixels, the mean of both sides.

    As its map units say, or as measured on the ground at its centre: where these are degrees or
    feet, or not true to scale, as those of web maps.
    """
    if grid.crs is None:
        raise DataError(
            f"{origin} has no reference system, so that its windows have no place on the map; "
            "assign it (gdal_edit.py -a_srs EPSG:...), or embed it into one file "
            "(space.embed, --out FILE.parquet)"
        )
    a, b, _, d, e, f = grid.transform
    across, down = math.hypot(a, d), math.hypot(b, e)
    if is_geographic(grid.crs):
        latitude = d * grid.width / 2 + e * grid.height / 2 + f
        across *= _METRES_A_DEGREE * max(1e-3, math.cos(math.radians(latitude)))
        down *= _METRES_A_DEGREE
    found = math.sqrt(across * down)
    if found > 0 and abs((measured := _measured_gsd(grid)) / found - 1) > SAME_GSD:
        found = measured
    if not (math.isfinite(found) and found > 0):
        raise DataError(
            f"{origin} has pixels of size 0 by its georeferencing; correct it "
            "(gdal_edit.py -a_ullr)"
        )
    return found


def _measured_gsd(grid: Grid) -> float:
    """Metres on the ground of the pixel at a grid's centre; NaN where it has no place."""
    a, b, c, d, e, f = grid.transform
    columns = grid.width / 2 + np.array([-0.5, 0.5, 0, 0])
    rows = grid.height / 2 + np.array([0, 0, -0.5, 0.5])
    xs, ys = a * columns + b * rows + c, d * columns + e * rows + f
    try:
        longitudes, latitudes = map(np.array, transform(grid.crs, WGS84, xs, ys))
    except (RasterioError, CPLE_BaseError, ValueError):
        return math.nan
    with np.errstate(invalid="ignore"):
        east = (np.diff(longitudes)[::2] + 180) % 360 - 180
        sides = np.hypot(
            east * np.cos(np.radians(latitudes.mean())), np.diff(latitudes)[::2]
        )  # of the pixel, in degrees of latitude
        return float(math.sqrt(sides.prod()) * _METRES_A_DEGREE)


def window_shapes(
    grid: Grid, windows: Sequence[Window], *, origin: str
) -> tuple[NDArray[np.object_], NDArray[np.float64]]:
    """(N,) outlines of windows in degrees of WGS84, and (N, 2) longitudes and latitudes of their
    centres.

    An outline has four corners; more points, and several parts, where its edges bend or it crosses
    the antimeridian. `DataError` where the grid has no place on the globe.
    """
    if not len(windows):
        return np.zeros(0, dtype=object), np.zeros((0, 2))
    box = np.array([(one.row, one.column, one.height, one.width) for one in windows], np.float64)
    top, left, bottom, right = box[:, 0], box[:, 1], box[:, 0] + box[:, 2], box[:, 1] + box[:, 3]
    columns = np.stack([left, left, right, right, (left + right) / 2], axis=1)
    rows = np.stack([top, bottom, bottom, top, (top + bottom) / 2], axis=1)
    a, b, c, d, e, f = grid.transform
    xs, ys = a * columns + b * rows + c, d * columns + e * rows + f
    try:
        longitudes, latitudes = (
            np.asarray(one).reshape(xs.shape)
            for one in transform(grid.crs, WGS84, xs.ravel(), ys.ravel())
        )
    except (RasterioError, CPLE_BaseError, ValueError) as error:
        raise DataError(
            f"{origin}: its windows cannot be brought to WGS84: {first_line(error)}"
        ) from error
    centres = np.stack([(longitudes[:, 4] + 180) % 360 - 180, latitudes[:, 4].clip(-90, 90)], 1)
    if not np.isfinite(longitudes).all() or not np.isfinite(latitudes).all():
        raise DataError(f"{origin}: its windows leave the globe by its georeferencing")
    corners = np.stack([longitudes[:, :4], latitudes[:, :4]], axis=2).round(8)
    after = np.roll(corners, -1, axis=1)
    areas = (corners[..., 0] * after[..., 1] - after[..., 0] * corners[..., 1]).sum(1)
    corners[areas < 0] = corners[areas < 0, ::-1]  # counter-clockwise
    shapes = shapely.polygons(corners)
    special = _is_special(grid, windows, longitudes, latitudes, origin)
    for number in np.flatnonzero(special).tolist():
        geometry = wgs84_footprint(grid.window(windows[number]), origin=origin)
        shapes[number] = shapely.geometry.shape(geometry)
    return shapes, centres


def _is_special(
    grid: Grid,
    windows: Sequence[Window],
    longitudes: NDArray[np.float64],
    latitudes: NDArray[np.float64],
    origin: str,
) -> NDArray[np.bool_]:
    """(N,) windows whose outline is more than four corners: at the antimeridian, near a pole, or
    all of them where edges bend by more than half a pixel."""
    span = longitudes.max(1) - longitudes.min(1)
    beyond = (np.abs(longitudes) > 180).any(1) | (np.abs(latitudes) > 89).any(1)
    special: NDArray[np.bool_] = (span > 90) | beyond
    plain = np.flatnonzero(~special)
    for number in {
        *plain[:1].tolist(),
        *plain[-1:].tolist(),
        *plain[len(plain) // 2 :][:1].tolist(),
    }:
        geometry = wgs84_footprint(grid.window(windows[number]), origin=origin)
        if geometry is None:
            raise DataError(
                f"{origin}: its reference system has no place on the globe; assign the right one "
                "(gdal_edit.py -a_srs EPSG:...)"
            )
        if geometry["type"] != "Polygon" or len(geometry["coordinates"][0]) > 5:
            special[:] = True
    return special


def require_shares(min_valid: float, max_cloud: float | None) -> None:
    """`DataError` unless both are shares."""
    given: dict[str, Any] = {"min_valid": min_valid, "max_cloud": max_cloud}
    for name, value in given.items():
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if value is not None and not (is_number and 0 <= value <= 1):
            raise DataError(f"{name} is {value!r}; expected a share from 0 to 1")
