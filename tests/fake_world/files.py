"""Files in the formats of published data sets, small enough for tests."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import rasterio
from numpy.typing import NDArray
from PIL import Image
from rasterio import Affine

from terralign.sensors import SENSORS

WEST, NORTH = 404400, 5342400
"""The upper left corner of the patches written here, in UTM 33 N."""

PATCH_M = 1200
"""The side of a patch of BigEarthNet."""


def write_tif(path: Path, pixels: NDArray[np.generic], gsd_m: float = 10.0) -> None:
    """A georeferenced GeoTIFF of (C, H, W)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    place = {"crs": "EPSG:32633", "transform": Affine(gsd_m, 0, WEST, 0, -gsd_m, NORTH)}
    count, height, width = pixels.shape
    size = {"count": count, "height": height, "width": width, "dtype": pixels.dtype}
    with rasterio.open(path, "w", driver="GTiff", **size, **place) as file:
        file.write(pixels)


def write_picture(path: Path, pixels: NDArray[np.uint8]) -> None:
    """A picture of (3, H, W), in the format of its ending."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.ascontiguousarray(pixels.transpose(1, 2, 0))).save(path, quality=95)


def write_bands(patch: Path, bands: Mapping[str, NDArray[np.generic]]) -> None:
    """A patch of BigEarthNet: each band (H, W) in a file of its own, at its own resolution."""
    for name, pixels in bands.items():
        write_tif(patch / f"{patch.name}_{name}.tif", pixels[None], PATCH_M / len(pixels))


def band_side(gsd_m: float | None) -> int:
    """Pixels to a side of a patch of BigEarthNet."""
    return round(PATCH_M / (gsd_m or 10))


def write_optical(patch: Path, step: int = 100) -> None:
    """Twelve bands at their own resolutions; the n-th is `n * step` everywhere."""
    bands = {}
    for number, band in enumerate(SENSORS["sentinel2-l2a"].bands, start=1):
        side = band_side(band.gsd_m)
        bands[band.name] = np.full((side, side), number * step, np.uint16)
    write_bands(patch, bands)


def write_radar(patch: Path, decibel: float) -> None:
    """VV as given, VH six below."""
    values = {"VV": decibel, "VH": decibel - 6}
    bands = {band: np.full((120, 120), value, np.float32) for band, value in values.items()}
    write_bands(patch, bands)


def write_v1_json(patch: Path, labels: list[str], tile: str) -> None:
    """The label file of a Sentinel-2 patch of version 1."""
    with rasterio.Env():
        projection = rasterio.crs.CRS.from_epsg(32633).to_wkt()
    content = {
        "labels": labels,
        "coordinates": {
            "ulx": WEST,
            "uly": NORTH,
            "lrx": WEST + PATCH_M,
            "lry": NORTH - PATCH_M,
        },
        "projection": projection,
        "tile_source": f"S2A_MSIL1C_20170613T101031_N0205_R022_T{tile}_20170613T101608.SAFE",
        "acquisition_date": "2017-06-13 10:10:31",
    }
    patch.mkdir(parents=True, exist_ok=True)
    (patch / f"{patch.name}_labels_metadata.json").write_text(json.dumps(content))


def write_v1_radar_json(patch: Path, partner: str) -> None:
    """The label file of a Sentinel-1 patch of version 1."""
    content = {"labels": [], "corresponding_s2_patch": partner}
    patch.mkdir(parents=True, exist_ok=True)
    (patch / f"{patch.name}_labels_metadata.json").write_text(json.dumps(content))
