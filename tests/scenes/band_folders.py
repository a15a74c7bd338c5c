"""Folders with one file per band, as products are delivered, with numbers that tests know."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio import Affine

NAME = "S2A_MSIL2A_20200706T085611_N0214_R007_T33NZA_20200706T153419"
"""A product from before baseline 04.00: its DN carry no offset."""

NEW_NAME = "S2A_MSIL2A_20220706T085611_N0400_R007_T33NZA_20220706T153419"
REPROCESSED = NEW_NAME.replace("N0400", "N9999")


def write_band(
    path: Path,
    pixels: NDArray[Any] | float = 1200,
    *,
    side: int = 12,
    size: float = 10,
    corner: tuple[float, float] = (500_000, 5_000_000),
    crs: str | None = "EPSG:32633",
    dtype: str = "uint16",
    descriptions: Sequence[str] = (),
    scale: tuple[float, float] | None = None,
    nodata: float | None = None,
    **options: Any,
) -> Path:
    """A GeoTIFF of one band, or several: (H, W), (C, H, W), or one number for `side` pixels."""
    if not isinstance(pixels, np.ndarray):
        pixels = np.full((side, side), pixels)
    stack = (pixels if pixels.ndim == 3 else pixels[None]).astype(dtype)
    path.parent.mkdir(parents=True, exist_ok=True)
    with rasterio.open(
        path,
        "w",
        driver="GTiff",
        count=len(stack),
        height=stack.shape[1],
        width=stack.shape[2],
        dtype=dtype,
        crs=crs,
        transform=Affine(size, 0, corner[0], 0, -size, corner[1]),
        nodata=nodata,
        **options,
    ) as file:
        file.write(stack)
        if descriptions:
            file.descriptions = tuple(descriptions)
        if scale is not None:
            file.scales, file.offsets = (scale[0],) * len(stack), (scale[1],) * len(stack)
    return path


def write_product(
    folder: Path, names: Mapping[str, int], *, side: int = 12, least: int = 100, **how: Any
) -> Path:
    """A folder of bands: file name -> pixel size in units of 10 m; `side`: of the 10 m bands;
    `least`: the lowest DN."""
    for number, (name, factor) in enumerate(names.items()):
        rng = np.random.default_rng(number)
        pixels = rng.integers(least, 3000, (side // factor, side // factor))
        write_band(folder / name, pixels, size=10 * factor, **how)
    return folder
