"""One scene in every form that it may come in: the same pixels in each."""

from __future__ import annotations

import json
import shutil
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from band_folders import write_band
from numpy.typing import NDArray
from rasterio import Affine

from terralign.scenes.scene import Scene

PRODUCT = "S2A_MSIL2A_20200706T085611_N0214_R007_T33NZA_20200706T153419"
"""From before baseline 04.00."""

TILE = "T33NZA_20200706T085611"
FACTORS = {"B02": 1, "B03": 1, "B04": 1, "B08": 1, "B05": 2, "B8A": 2, "B11": 2, "B01": 6}
CORNER = (500_000.0, 5_000_000.0)

Bands = dict[str, NDArray[Any]]


def random_bands(side: int = 96) -> Bands:
    """DN of each band at its own resolution, some without data; `SCL` marks some as cloud."""
    rng = np.random.default_rng(0)
    bands: Bands = {}
    for name, factor in FACTORS.items():
        pixels = rng.integers(100, 4000, (side // factor, side // factor), np.uint16)
        pixels[rng.random(pixels.shape) < 0.05] = 0
        bands[name] = pixels
    classes = rng.choice([4, 5, 6, 8, 3], (side // 2, side // 2), p=[0.5, 0.2, 0.1, 0.1, 0.1])
    bands["SCL"] = classes.astype(np.uint8)
    return bands


def factor_of(bands: Bands, name: str) -> int:
    """How many pixels of the finest band one of this band is wide."""
    return int(max(one.shape[0] for one in bands.values()) // bands[name].shape[0])


def _write(path: Path, bands: Bands, name: str, **how: Any) -> Path:
    pixels = bands[name]
    size = 10 * factor_of(bands, name)
    return write_band(path, pixels, size=size, dtype=str(pixels.dtype), corner=CORNER, **how)


def write_folder(root: Path, bands: Bands, **how: Any) -> Path:
    """A folder with a GeoTIFF per band."""
    for name in bands:
        _write(root / PRODUCT / f"{name}.tif", bands, name, **how)
    return root / PRODUCT


def write_jp2(path: Path, pixels: NDArray[Any], size: float) -> Path:
    """A lossless JPEG 2000 file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    height, width = pixels.shape
    with rasterio.open(
        path, "w", driver="JP2OpenJPEG", count=1, height=height, width=width,
        dtype=str(pixels.dtype), crs="EPSG:32633", quality="100", reversible="yes",
        transform=Affine(size, 0, CORNER[0], 0, -size, CORNER[1]),
    ) as file:  # fmt: skip
        file.write(pixels, 1)
    return path


def write_safe(root: Path, bands: Bands) -> Path:
    """ESA's layout, in JPEG 2000."""
    safe = root / f"{PRODUCT}.SAFE"
    images = safe / "GRANULE" / "L2A_T33NZA_A016978_20200706T090000" / "IMG_DATA"
    for name, pixels in bands.items():
        gsd = 10 * factor_of(bands, name)
        write_jp2(images / f"R{gsd}m" / f"{TILE}_{name}_{gsd}m.jp2", pixels, gsd)
    (safe / "MTD_MSIL2A.xml").write_text(
        "<r><PROCESSING_BASELINE>02.14</PROCESSING_BASELINE></r>", encoding="utf-8"
    )
    return safe


def zip_folder(folder: Path, target: Path, *, deflate: bool = True) -> Path:
    """A folder as a zip, with its own name at the top."""
    kind = zipfile.ZIP_DEFLATED if deflate else zipfile.ZIP_STORED
    with zipfile.ZipFile(target, "w", kind) as archive:
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                archive.write(path, path.relative_to(folder.parent))
    return target


def write_stack(path: Path, scene: Scene, *, cog: bool = False) -> Path:
    """All bands of a scene in one GeoTIFF, on its grid."""
    plain = path.with_suffix(".plain.tif") if cog else path
    chip = scene.read()
    write_band(plain, chip.pixels, descriptions=chip.bands, nodata=0, corner=CORNER)
    if cog:
        from rasterio.shutil import copy

        copy(plain, path, driver="COG", blocksize="64", compress="deflate")
        plain.unlink()
    return path


def item_of(bands: Bands, hrefs: dict[str, str], **properties: Any) -> dict[str, Any]:
    """A STAC item whose assets are the bands."""
    assets: dict[str, Any] = {}
    for name, href in hrefs.items():
        assets[name] = {
            "href": href,
            "type": "image/tiff; application=geotiff; profile=cloud-optimized",
            "roles": ["data"],
            "gsd": 10 * factor_of(bands, name),
        }
        if name != "SCL":
            assets[name]["eo:bands"] = [{"name": name}]
    return {
        "type": "Feature",
        "stac_version": "1.0.0",
        "id": "S2A_33NZA_20200706_0_L2A",
        "collection": "sentinel-2-l2a",
        "geometry": None,
        "bbox": [15.0, 45.1, 15.01, 45.2],
        "properties": {
            "datetime": "2020-07-06T08:56:11.024Z",
            "eo:cloud_cover": 12.5,
            "s2:processing_baseline": "02.14",
            **properties,
        },
        "assets": assets,
        "links": [],
    }


def write_item(folder: Path, bands: Bands, **properties: Any) -> Path:
    """An item beside a folder of bands, with relative addresses."""
    path = folder.parent / "item.json"
    hrefs = {name: f"./{folder.name}/{name}.tif" for name in bands}
    path.write_text(json.dumps(item_of(bands, hrefs, **properties)), encoding="utf-8")
    return path


def copy_bands(source: Path, target: Path, side: int) -> Bands:
    """The upper left part of a real scene's bands, `side` pixels of the finest."""
    with rasterio.open(source / "B02.tif") as file:
        finest = file.height
    bands: Bands = {}
    for path in sorted(source.glob("B*.tif")):
        with rasterio.open(path) as file:
            count = side * file.height // finest
            bands[path.stem] = file.read(1)[:count, :count]
    shutil.rmtree(target, ignore_errors=True)
    return bands
