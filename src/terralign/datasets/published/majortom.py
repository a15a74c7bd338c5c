"""Major-TOM Core-S2L2A (Francis and Czerkawski 2024): Sentinel-2 L2A of almost all land, no labels.

    Core-S2L2A/images/part_00001.parquet, part_00002.parquet, ...

One row is a grid cell, seen once: `product_id`, `grid_cell`, and in `B01` to `B12` (without B10)
the bytes of a GeoTIFF each, uint16 DN as ESA delivered them, 1068 pixels wide at 10 m, 534 at 20 m
and 178 at 60 m. Every row is a row group, so that one cell is read without its neighbours.

One sample is a window of a cell: 224 x 224 pixels of 10 m, of which a cell has `PER_SIDE` x
`PER_SIDE`, in its middle, because cells overlap at their edges. Bands of 20 and 60 m are enlarged.

Cells come from products of many processing baselines. They are given one meaning: the DN of all
samples carry +1000 (the layout's offset is -1000). 1000 is added, exactly, to the DN of products
from before baseline 04.00, DN 0 staying what it is, no data; the few above 64,535, which is a
reflectance of 6.4, become 65,535. A product whose name (`N9999`) does not state its baseline is
refused.

What it costs to open: two short columns of every part. Windows of one cell that are read one after
another read the cell once, so reading in order (`terralign pack`) is cheap, at random is not.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from terralign.chips import Window, make_layout
from terralign.datasets.file_set import FileSet
from terralign.datasets.parquet import open_parquet, require_small
from terralign.datasets.published.geotiffs import require_form, window_bounds
from terralign.datasets.sample import Place, require_split
from terralign.errors import DataError, SensorError, SplitError, first_line
from terralign.scenes.geotiff import open_geotiff_bytes
from terralign.scenes.places import product_datetime
from terralign.scenes.resolution import read_enlarged
from terralign.sensors import SENSORS, SENTINEL2_DN_OFFSET, sentinel2_dn_offset

logger = logging.getLogger(__name__)

FOLDER = "Core-S2L2A"
SENSOR = SENSORS["sentinel2-l2a"]
GSD_M = 10

CELL_SIDE = 1068
WINDOW = 224
PER_SIDE = CELL_SIDE // WINDOW
MARGIN = (CELL_SIDE - PER_SIDE * WINDOW) // 2
"""Pixels of 10 m: a cell's side, a sample's, windows along a side, what is left at the edges."""

MAX_ROW_BYTES = 64 * 1024**2
"""A row whose bands take more than this is refused before they are read; real ones have 10 MB."""

MAX_NAMES_BYTES = 64 * 1024**2
"""The same for the names in a part."""

NAMES = ["product_id", "grid_cell"]
DOWNLOAD = "download the part of Core-S2L2A again"

SPLITS = ("train", "val", "all")
VAL_PERIOD = 10
"""One cell in ten, by the hash of its name, is `val` with all of its windows."""


def open_majortom_s2l2a(data_root: Path, split: str, *, leave_out_unknown: bool = False) -> FileSet:
    """The cells in the parts that are in `data_root/Core-S2L2A/images`, in windows.

    `split`: `train`, `val` (see `VAL_PERIOD`: the authors publish no split) or `all`.
    `leave_out_unknown`: cells of products whose name does not state the DN offset are left out, and
    counted in the log; otherwise one of them is an error.

    Raises `DataError`: no parts, a part that is damaged or has other columns, a cell in two parts,
    an unknown split or nothing in it (`SplitError`).
    """
    name = "majortom-core-s2l2a-known" if leave_out_unknown else "majortom-core-s2l2a"
    require_split(name, split, SPLITS)
    folder = data_root / FOLDER / "images"
    parts = sorted(folder.glob("*.parquet"))
    if not parts:
        raise DataError(f"{folder} has no part_*.parquet; download parts of Core-S2L2A into it")
    cells = [cell for part in parts for cell in _list_cells(part) if _is_in(cell, split)]
    cells = _with_known_offset(cells, leave_out_unknown=leave_out_unknown)
    if not cells:
        raise SplitError(f"data set {name!r}, split {split!r} is empty in {folder}")
    _require_different(cells)
    windows = {
        cell.part / cell.key / f"{row}_{column}": (cell, _window(row, column))
        for cell in cells
        for row in range(PER_SIDE)
        for column in range(PER_SIDE)
    }
    layout = make_layout(SENSOR, SENSOR.band_names, units="dn", dn_offset=SENTINEL2_DN_OFFSET)
    return FileSet(
        name=name,
        split=split,
        layouts={SENSOR.name: layout},
        keys=tuple(f"{cell.key}/{path.name}" for path, (cell, _) in windows.items()),
        files=tuple(windows),
        decode=partial(_decode, windows),
        content=[CELL_SIDE, WINDOW],
        locate=partial(_locate, windows),
    )


@dataclass(frozen=True, slots=True)
class _Cell:
    """A row of a part; `group`: its row group."""

    part: Path
    group: int
    product_id: str
    grid_cell: str

    @property
    def key(self) -> str:
        return f"{self.product_id}/{self.grid_cell}"

    def __str__(self) -> str:
        return f"{self.part}, row {self.group} ({self.grid_cell})"


Windows = Mapping[Path, tuple[_Cell, Window]]
"""A sample's path, which exists by name only -> its cell, and where it lies there."""


def _window(row: int, column: int) -> Window:
    corner = {"row": MARGIN + row * WINDOW, "column": MARGIN + column * WINDOW}
    return Window(**corner, height=WINDOW, width=WINDOW)


def _list_cells(part: Path) -> list[_Cell]:
    with open_parquet(part, [*NAMES, *SENSOR.band_names], todo=DOWNLOAD) as file:
        num_groups, num_rows = file.metadata.num_row_groups, file.metadata.num_rows
        if num_groups != num_rows:
            raise DataError(
                f"{part} has {num_rows} rows in {num_groups} row groups; expected one row in each, "
                "as published: download the part as it is"
            )
        require_small(file, range(num_groups), NAMES, MAX_NAMES_BYTES, part)
        rows = file.read(columns=NAMES).to_pylist()
    return [
        _Cell(part, group, *(str(row[name]) for name in NAMES)) for group, row in enumerate(rows)
    ]


def _is_in(cell: _Cell, split: str) -> bool:
    if split == "all":
        return True
    number = int.from_bytes(hashlib.sha256(cell.grid_cell.encode()).digest()[:8], "big")
    return (number % VAL_PERIOD == 0) == (split == "val")


def _with_known_offset(cells: list[_Cell], *, leave_out_unknown: bool) -> list[_Cell]:
    unknown = [cell for cell in cells if _dn_offset(cell) is None]
    if unknown and not leave_out_unknown:
        raise DataError(
            f"{unknown[0]}: product {unknown[0].product_id} does not state whether its DN carry "
            f"+1000, nor do those of {len(unknown) - 1} other cells of {len(cells)}; take the data "
            "set 'majortom-core-s2l2a-known', which leaves them out"
        )
    if unknown:
        logger.warning(
            "Core-S2L2A: %d of %d cells left out, because the names of their products do not state "
            "whether their DN carry +1000",
            len(unknown), len(cells),
        )  # fmt: skip
    return [cell for cell in cells if _dn_offset(cell) is not None]


def _dn_offset(cell: _Cell) -> float | None:
    try:
        return sentinel2_dn_offset(product_name=cell.product_id)
    except SensorError:
        return None


def _require_different(cells: Sequence[_Cell]) -> None:
    seen: dict[str, _Cell] = {}
    for cell in cells:
        first = seen.setdefault(cell.key, cell)
        if first is not cell:
            raise DataError(f"{cell} is in {first.part} too; remove one of the two parts")


def _decode(windows: Windows, file: Path) -> dict[str, NDArray[Any]]:
    """(12, 224, 224) uint16 DN that carry +1000, no data 0."""
    cell, window = windows[file]
    contents = _read_bands(cell, SENSOR.band_names)
    pixels = np.zeros((len(SENSOR.bands), WINDOW, WINDOW), dtype=np.uint16)
    for band, channel in zip(SENSOR.bands, pixels, strict=True):
        factor, origin = round((band.gsd_m or GSD_M) / GSD_M), f"{cell}, {band.name}"
        with _open_band(contents[band.name], CELL_SIDE // factor, origin) as source:
            top, left = window.row, window.column
            read_enlarged(source, channel, factor=factor, top=top, left=left, origin=origin)
    if _dn_offset(cell) == 0:
        pixels = _with_offset(pixels)
    return {SENSOR.name: pixels}


def _with_offset(pixels: NDArray[np.uint16]) -> NDArray[np.uint16]:
    """DN without offset -> DN that carry +1000."""
    shift = round(-SENTINEL2_DN_OFFSET)
    highest = np.iinfo(np.uint16).max - shift
    shifted = np.minimum(pixels, highest) + np.uint16(shift)
    return np.where(pixels == SENSOR.nodata, pixels, shifted)


@lru_cache(maxsize=4)
def _read_bands(cell: _Cell, bands: tuple[str, ...]) -> Mapping[str, bytes]:
    """Band -> the bytes of its GeoTIFF; a few cells are kept, whose windows follow one another."""
    with open_parquet(cell.part, bands, todo=DOWNLOAD) as file:
        require_small(file, [cell.group], bands, MAX_ROW_BYTES, cell)
        table = file.read_row_group(cell.group, columns=list(bands))
    try:
        [row] = table.to_pylist()
    except (ValueError, OverflowError) as error:  # texts and dates that Python cannot hold
        raise DataError(f"{cell} is damaged: {first_line(error)}; {DOWNLOAD}") from error
    for band in bands:
        if not isinstance(row[band], bytes):
            raise DataError(f"{cell}: {band} holds no bytes; {DOWNLOAD}")
    return dict(row)


@contextmanager
def _open_band(content: bytes, side: int, origin: str) -> Iterator[Any]:
    with open_geotiff_bytes(content, origin=origin) as source:
        require_form(source, origin, count=1, sides=(side, side), dtypes=("uint16",))
        yield source


def _locate(windows: Windows, file: Path) -> Place:
    cell, window = windows[file]
    origin = f"{cell}, B02"
    with _open_band(_read_bands(cell, ("B02",))["B02"], CELL_SIDE, origin) as source:
        bounds = window_bounds(source, window, origin)
    return Place(bounds=bounds, datetime=product_datetime(cell.product_id))
