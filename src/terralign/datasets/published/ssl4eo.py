"""SSL4EO-S12 (Wang et al. 2022): 251,079 places in four seasons, Sentinel-1 and -2, no labels.

    ssl4eo_s12/s2a/<location>/<date>/B1.tif ... B8A.tif ... B12.tif, metadata.json      L2A
    ssl4eo_s12/s2c/<location>/<date>/B1.tif ... B12.tif                                 L1C
    ssl4eo_s12/s1/<location>/<product>/VV.tif, VH.tif                                   GRD in dB

One sample is a location in a season. Every band is a GeoTIFF at its own resolution whose pixels
were cut around one point on Sentinel's own grids. The georeference that was added afterwards, in
degrees, places a location but not the bands among each other: by it Sentinel-1 lies four pixels
beside where it correlates best with Sentinel-2, and bands of 20 m half a pixel. Middle on middle,
bands of 20 m fit exactly, Sentinel-1 within about a pixel, bands of 60 m within one of their own
(measured at location 0000200). So that is how bands are brought to one grid: enlarged by 2 or 6,
and of all the middle `SIDE` x `SIDE` pixels of 10 m kept.

The sensors of a sample were not taken on the same day; they are those nearest the middle of the
season, days to weeks apart.

C bands, H = W = 256 pixels of 10 m.
"""

from __future__ import annotations

import datetime as dt
import logging
import re
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from terralign.chips import PixelLayout, Units, Window, make_layout
from terralign.datasets.file_set import FileSet
from terralign.datasets.listing import list_names
from terralign.datasets.published.geotiffs import require_form, window_bounds
from terralign.datasets.sample import Place, require_split
from terralign.errors import DataError, SplitError, StorageError
from terralign.files import read_json
from terralign.scenes.geotiff import open_geotiff
from terralign.scenes.resolution import read_enlarged
from terralign.sensors import OFFSET_FROM_BASELINE, SENSORS, Sensor

logger = logging.getLogger(__name__)

FOLDER = "ssl4eo_s12"
PRODUCTS = {"sentinel2-l2a": "s2a", "sentinel2-l1c": "s2c", "sentinel1-grd": "s1"}
"""Sensor -> the folder of its archive."""

GSD_M = 10

SIDE = 256
"""Pixels of 10 m that are kept; the files have 264, at some locations a few more or less."""

MAX_SIDE = 512
"""A band of more pixels of 10 m than this is refused before it is read."""

SEASONS = {"mar": (3, 20), "jun": (6, 21), "sep": (9, 22), "dec": (12, 21)}
"""Season -> month and day of its middle: a date belongs to the nearest."""

VAL_DIGIT = "9"
"""Locations whose number ends in it are `val`, all others `train`: nine to one, by place."""

SPLITS = ("train", "val", "all")

_LOCATION = re.compile(r"\d{7}")
_START = re.compile(r"(?:^|_)(\d{8}T\d{6})_")


def open_ssl4eo_s12(
    data_root: Path, split: str, *, sensors: Sequence[str] = tuple(PRODUCTS)
) -> FileSet:
    """SSL4EO-S12 with these sensors, of which each needs its archive in `data_root/ssl4eo_s12`.

    `split`: `train`, `val` (a tenth of the locations, see `VAL_DIGIT`: the authors publish no
    split) or `all`. A location or season that one of the sensors lacks is left out, and counted in
    the log. Opening lists the folders and reads none of their files.

    Raises `DataError`: a missing archive, an unknown split or nothing in it
    (`SplitError`).
    """
    name = "ssl4eo-s12" if len(sensors) > 1 else f"ssl4eo-s12-{sensors[0].split('-')[1]}"
    require_split(name, split, SPLITS)
    samples = _find_samples(data_root / FOLDER, split, sensors)
    if not samples:
        raise SplitError(f"data set {name!r}, split {split!r} is empty in {data_root / FOLDER}")
    folders = {sample[sensors[0]]: sample for sample in samples.values()}
    return FileSet(
        name=name,
        split=split,
        layouts={one: _layout(SENSORS[one]) for one in sensors},
        keys=tuple(samples),
        files=tuple(folders),
        decode=partial(_decode, folders),
        more_files={one: tuple(sample[one] for sample in samples.values()) for one in sensors[1:]},
        content=[SIDE, [[one.name for one in sample.values()] for sample in samples.values()]],
        locate=_locate,
    )


def _layout(sensor: Sensor) -> PixelLayout:
    units: Units = "physical" if sensor.nodata is None else "dn"
    return make_layout(sensor, sensor.band_names, units=units, dn_offset=0.0)


def _find_samples(root: Path, split: str, sensors: Sequence[str]) -> dict[str, dict[str, Path]]:
    """location/season -> sensor -> the folder of its bands, where all sensors have one."""
    places = {one: _list_locations(root / PRODUCTS[one], split) for one in sensors}
    samples = {}
    for location in sorted(set.intersection(*places.values())):
        dates = {one: _by_season(root / PRODUCTS[one] / location) for one in sensors}
        for season in SEASONS:
            if all(season in dates[one] for one in sensors):
                samples[f"{location}/{season}"] = {one: dates[one][season] for one in sensors}
    num_places = len(set.union(*places.values()))
    left_out = num_places * len(SEASONS) - len(samples)
    if left_out:
        logger.warning(
            "SSL4EO-S12, split %r: %d of %d seasons at %d locations left out, because %s do not "
            "all have them",
            split, left_out, num_places * len(SEASONS), num_places, ", ".join(sensors),
        )  # fmt: skip
    return samples


def _list_locations(folder: Path, split: str) -> set[str]:
    found = {name for name in list_names(folder, "folders") if _LOCATION.fullmatch(name)}
    if not found:
        raise DataError(
            f"{folder} holds no locations (0000000, 0000001, ...); unpack the archive there, or "
            "take the data set of another sensor"
        )
    if split == "all":
        return found
    return {name for name in found if (name[-1] == VAL_DIGIT) == (split == "val")}


def _by_season(location: Path) -> dict[str, Path]:
    """Season -> the folder whose date is nearest its middle."""
    found: dict[str, tuple[int, Path]] = {}
    for name in sorted(list_names(location, "folders")):
        date = _start(name)
        if date is None:
            continue
        season, distance = _season_of(date)
        if season not in found or distance < found[season][0]:
            found[season] = (distance, location / name)
    return {season: folder for season, (_, folder) in found.items()}


def _season_of(date: dt.datetime) -> tuple[str, int]:
    """The season of a date, and how many days its middle is away."""

    def days_to(season: str) -> int:
        month, day = SEASONS[season]
        away = abs((date - dt.datetime(date.year, month, day, tzinfo=dt.UTC)).days)
        return min(away, 365 - away)

    nearest = min(SEASONS, key=days_to)
    return nearest, days_to(nearest)


def _start(name: str) -> dt.datetime | None:
    """When sensing began, from the name of a date's folder: Earth Engine's or ESA's."""
    match = _START.search(name)
    try:
        return match and dt.datetime.strptime(match[1], "%Y%m%dT%H%M%S").replace(tzinfo=dt.UTC)
    except ValueError:
        return None


def _decode(folders: Mapping[Path, Mapping[str, Path]], file: Path) -> dict[str, NDArray[Any]]:
    return {one: _read_bands(SENSORS[one], folder) for one, folder in folders[file].items()}


def _locate(folder: Path) -> Place:
    """From a 10 m band, and from the name of its folder."""
    path = next((folder / name for name in ("B2.tif", "VV.tif") if (folder / name).is_file()), None)
    if path is None:
        raise DataError(f"{folder} has neither B2.tif nor VV.tif; unpack its archive again")
    with open_geotiff(path) as source:
        row, column = (source.height - SIDE) // 2, (source.width - SIDE) // 2
        middle = Window(row=row, column=column, height=SIDE, width=SIDE)
        return Place(bounds=window_bounds(source, middle, path), datetime=_start(folder.name))


def _read_bands(sensor: Sensor, folder: Path) -> NDArray[Any]:
    """(C, SIDE, SIDE): uint16 DN, no data 0, or float32 dB, no data NaN."""
    if sensor.nodata is None:
        pixels = np.full((len(sensor.bands), SIDE, SIDE), np.nan, dtype=np.float32)
    else:
        _require_no_offset(folder)
        pixels = np.full((len(sensor.bands), SIDE, SIDE), sensor.nodata, dtype=np.uint16)
    for band, channel in zip(sensor.bands, pixels, strict=True):
        factor = round((band.gsd_m or GSD_M) / GSD_M)
        _read_band(folder / f"{_spell(band.name)}.tif", channel, factor)
    return pixels


def _spell(band: str) -> str:
    """`B01` -> `B1`, as the files are named; `B8A`, `B11` and `VV` stay."""
    return re.sub(r"^B0", "B", band)


def _read_band(path: Path, into: NDArray[Any], factor: int) -> None:
    """Read the middle of a band into an array filled with the number for no data."""
    with open_geotiff(path) as source:
        sides = (-(-SIDE // factor), MAX_SIDE // factor)
        require_form(source, path, count=1, sides=sides, dtypes=(str(into.dtype),))
        top, left = ((factor * n - SIDE) // 2 for n in (source.height, source.width))
        read_enlarged(source, into, factor=factor, top=top, left=left, origin=str(path))


def _require_no_offset(folder: Path) -> None:
    """Raise `DataError` where the metadata beside the bands name a baseline whose DN carry +1000.

    The published set is of 2019 to 2021, from before baseline 04.00; one made anew may not be.
    """
    path = folder / "metadata.json"
    if not path.is_file():
        return
    try:
        content = read_json(path)
    except StorageError as error:
        raise DataError(str(error)) from error
    stated = content.get("PROCESSING_BASELINE") if isinstance(content, dict) else None
    match = re.fullmatch(r"(\d\d)\.(\d\d)", stated) if isinstance(stated, str) else None
    if match and int(match[1] + match[2]) >= OFFSET_FROM_BASELINE:
        raise DataError(
            f"{path} names processing baseline {stated}, whose DN carry +1000; SSL4EO-S12 has no "
            "such files: declare them in a TOML file with dn_offset = -1000"
        )
