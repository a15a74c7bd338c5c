"""Coarse bands on the fine grid, held against GDAL's own bilinear resampling."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from rasterio import Affine
from rasterio.enums import Resampling
from rasterio.warp import reproject

from terralign.scenes import resolution
from terralign.scenes.resolution import enlarge


def by_gdal(pixels: NDArray[Any], into: NDArray[Any], factor: int, top: int, left: int) -> None:
    reproject(
        pixels,
        into,
        src_transform=Affine.scale(factor),
        dst_transform=Affine.translation(left, top),
        src_crs="EPSG:3857",
        dst_crs="EPSG:3857",
        src_nodata=into.flat[0].item(),
        dst_nodata=into.flat[0].item(),
        resampling=Resampling.bilinear,
    )


@pytest.mark.parametrize("factor", [2, 3, 6])
@pytest.mark.parametrize(("dtype", "nothing"), [("uint16", 0), ("int16", -9999), ("float32", None)])
@pytest.mark.parametrize("holes", [0.0, 0.2])
def test_bands_are_enlarged_as_gdal_does(
    factor: int, dtype: str, nothing: int | None, holes: float
) -> None:
    rng = np.random.default_rng(factor)
    pixels = rng.integers(1, 9000, (30, 25)).astype(dtype)
    mark = np.nan if nothing is None else nothing
    pixels[rng.random(pixels.shape) < holes] = mark
    valid = np.isfinite(pixels) & (pixels != mark)
    shape = (30 * factor - 9, 25 * factor - 7)
    ours, gdals = (np.full(shape, mark, dtype) for _ in range(2))
    enlarge(pixels, valid, ours, factor=factor, top=3, left=5, origin="a.tif")
    by_gdal(pixels, gdals, factor, 3, 5)
    there = np.isfinite(gdals) & (gdals != mark)
    np.testing.assert_array_equal(np.isfinite(ours) & (ours != mark), there)
    difference = np.abs(ours[there].astype(float) - gdals[there])
    if factor == 2 or nothing is None:
        assert difference.max() < 1e-3
    else:  # halves, which GDAL rounds either way
        assert difference.max() <= 1
        assert (difference > 0).mean() < 0.02


def test_a_part_is_enlarged_as_the_whole_is(monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = np.random.default_rng(0).integers(1, 9000, (20, 20), np.uint16)
    whole, by_rows = np.zeros((2, 120, 120), np.uint16)
    enlarge(pixels, pixels > 0, whole, factor=6, top=0, left=0, origin="a.tif")
    monkeypatch.setattr(resolution, "_ROWS", 7)
    enlarge(pixels, pixels > 0, by_rows, factor=6, top=0, left=0, origin="a.tif")
    np.testing.assert_array_equal(by_rows, whole)
    part = np.zeros((31, 40), np.uint16)
    cut = pixels[3:12, 4:14]
    enlarge(cut, cut > 0, part, factor=6, top=29 - 18, left=35 - 24, origin="a.tif")
    np.testing.assert_array_equal(part, whole[29:60, 35:75])
