"""Make the scene that ships with terralign, `src/terralign/scene`, from a Major TOM cell.

    python tools/cut_scene.py CELL

CELL is the folder of S2B_MSIL2A_20200223T032739_N9999_R018_T48QUE_20230924T183543. Its twelve
bands are cropped to `WINDOW` and compressed without loss; no number is changed.
Files are named as they were. `LICENSE` in the folder is kept.
"""

from __future__ import annotations

import sys
from pathlib import Path

import rasterio
from rasterio.windows import Window

PACKAGE = Path(__file__).resolve().parents[1] / "src" / "terralign" / "scene"
WINDOW = (252, 72, 720)
"""First column, first row and side of the crop, in pixels of 10 m: whole pixels of 60 m."""
SIDE = 1068
"""Of the cell, in pixels of 10 m."""


def main(cell: str) -> None:
    """Crop each band."""
    folder = PACKAGE / Path(cell).name
    folder.mkdir(parents=True, exist_ok=True)
    for path in sorted(Path(cell).glob("B*.tif")):
        crop(path, folder / path.name)
    print(f"{folder}: {sum(one.stat().st_size for one in folder.iterdir()):,} bytes")


def crop(source: Path, target: Path) -> None:
    """Write the window of one band."""
    with rasterio.open(source) as band:
        factor = SIDE // band.width
        window = Window(*(one // factor for one in (WINDOW[0], WINDOW[1], WINDOW[2], WINDOW[2])))
        profile = {
            "driver": "GTiff", "count": 1, "dtype": band.dtypes[0], "crs": band.crs,
            "width": window.width, "height": window.height,
            "transform": band.window_transform(window),
            "compress": "deflate", "predictor": 2, "zlevel": 9,
        }  # fmt: skip
        with rasterio.open(target, "w", **profile) as out:
            out.write(band.read(1, window=window), 1)


if __name__ == "__main__":
    main(*sys.argv[1:])
