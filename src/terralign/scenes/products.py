"""Products that are delivered with one file per band: which files of a folder hold which band.

Folders and zips of ESA (SAFE), the AWS tiles (`R10m`, `R20m`, `R60m`), and flat ones.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from terralign.errors import DataError, SensorError, quoted, shown
from terralign.limits import limit, require
from terralign.scenes.archives import is_archive, members
from terralign.scenes.clouds import CloudMask, mask_kind
from terralign.scenes.geotiff import Place, require_file
from terralign.scenes.product_metadata import Catalogued, earth_engine_product, tile_product
from terralign.scenes.product_names import (
    NamedBand,
    band_of_name,
    is_auxiliary_name,
    require_sensor_of_names,
    sensor_of_names,
    tile_and_day,
)
from terralign.sensors import SENSORS, Sensor, find_sensor

logger = logging.getLogger(__name__)

_ENDINGS = (".tif", ".tiff", ".jp2")
_RESOLUTION_FOLDER = re.compile(r"R(\d\d)m", re.IGNORECASE)
_METADATA = {"MTD_MSIL1C.xml": "sentinel2-l1c", "MTD_MSIL2A.xml": "sentinel2-l2a"}


@dataclass(frozen=True, kw_only=True, slots=True)
class BandFile:
    """A file that holds one band, whose canonical name is `band`; `index`: where in it, from 1."""

    path: Place
    band: str
    index: int = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class Product:
    """The band files of one product, in the sensor's order, and the names that identify it.

    `name`: of an item of a catalogue; `clouds`: the mask of clouds that comes with it;
    `catalogued`: what a catalogue states of it.
    """

    sensor: Sensor
    files: tuple[BandFile, ...]
    names: tuple[str, ...]
    name: str = ""
    clouds: CloudMask | None = None
    catalogued: Catalogued | None = None


def is_product(folder: Path, *, sensor: Sensor | None = None) -> bool:
    """Whether a folder is one product: of ESA, one with the files of two bands or more, or one with
    the name of a standard product and the file of a band.

    Decided by names alone. The bands of any built-in sensor but `rgb` count, and those of `sensor`.
    """
    if not folder.is_dir():
        return False
    if folder.suffix.upper() == ".SAFE" or any((folder / name).is_file() for name in _METADATA):
        return True
    try:
        rasters = [stem_of(path) for path in _rasters(folder)]
        is_named = sensor_of_names([folder.absolute().name], origin=shown(folder)) is not None
    except DataError:
        return False
    least = 1 if is_named else 2
    known = {**SENSORS, sensor.name: sensor} if sensor else SENSORS
    return any(_num_bands(rasters, one) >= least for one in known.values() if one.name != "rgb")


def _num_bands(stems: Iterable[str], sensor: Sensor) -> int:
    found = (band_of_name(stem, sensor) for stem in stems)
    return len({one.band for one in found if one is not None})


def find_product(folder: Path, sensor: Sensor | None) -> Product:
    """The bands of a product's folder, each in its native resolution where it comes in several.

    `sensor`: may be left out where standard names or ESA's metadata state it. Raises `DataError`
    where no bands are found, where the folder holds files of several products or a band twice, or
    is no folder that is read; `SensorError` where the sensor is unknown or another than stated.
    """
    if is_archive(folder):
        rasters, names, of_metadata = _in_archive(folder)
    else:
        rasters, names = _rasters(folder), _identifying_names(folder)
        of_metadata = _sensor_of_metadata(folder)
    return _product_of(folder, rasters, names, of_metadata, sensor)


def product_of_files(files: Sequence[Path], sensor: Sensor | None) -> Product:
    """The product whose bands are these files, one each; errors as `find_product`."""
    if not files:
        raise DataError("a list of band files is empty; give one file for each band")
    require("product_files", len(files), "a list of band files has")
    for path in files:
        require_file(path)
        if path.suffix.lower() not in _ENDINGS:
            raise DataError(
                f"{shown(path)} is no band: expected a file that ends in {', '.join(_ENDINGS)}"
            )
    folder = files[0].absolute().parent
    product = _product_of(folder, sorted(files), _identifying_names(folder), None, sensor)
    left = set(files) - {file.path for file in product.files}
    if product.clouds is not None:
        left.discard(Path(str(product.clouds.place)))
    if left:
        raise DataError(
            f"{shown(min(left))} is no band of sensor {product.sensor.name!r} by its name, or one "
            "that another file holds; leave it out"
        )
    return product


def _product_of(
    folder: Path,
    rasters: list[Path],
    names: tuple[str, ...],
    of_metadata: str | None,
    sensor: Sensor | None,
) -> Product:
    given = [*names, *(path.name for path in rasters)]
    stated = sensor_of_names(given, origin=shown(folder)) or of_metadata
    if sensor is None:
        if stated is None:
            raise SensorError(
                f"{shown(folder)} does not say which sensor made it: neither its name nor its "
                "files' are those of a standard product; name the sensor (sensor=)"
            )
        sensor = find_sensor(stated)
    elif stated is not None and sensor.name in SENSORS and sensor.name != stated:
        raise SensorError(
            f"{shown(folder)} is a product of sensor {stated!r} by its names, not of "
            f"{sensor.name!r}; leave out the sensor, or correct it"
        )
    require_sensor_of_names(sensor, given, origin=shown(folder))
    named = {path: band_of_name(stem_of(path), sensor) for path in rasters}
    bands = {path: found for path, found in named.items() if found is not None}
    if not bands:
        raise DataError(_no_bands(folder, sensor, rasters))
    _require_one_product(folder, names, bands)
    files = _one_file_per_band(folder, sensor, bands)
    _log_left_out(folder, sensor, [path for path in rasters if path not in bands])
    others = [path for path in rasters if path not in bands]
    return Product(sensor=sensor, files=files, names=names, clouds=_mask_of(others))


def _mask_of(others: Iterable[Path]) -> CloudMask | None:
    """The finest mask of clouds among files that are no bands."""
    found = [
        (_resolution_of(path), path, kind)
        for path in others
        if (kind := mask_kind(stem_of(path))) is not None
    ]
    if not found:
        return None
    _, path, kind = min(found)
    return CloudMask(place=path, kind=kind)


def _resolution_of(path: Path) -> int:
    """Metres, as the name of a file or its folder states; 0 where neither does."""
    sized = re.search(r"[_-](\d\d)m$", stem_of(path))
    return int(sized[1]) if sized else _resolution_of_folder(path) or 0


def stem_of(path: Path) -> str:
    """A raster's name without its ending; `..._(Raw).tiff` keeps its dots."""
    return path.name[: -len(path.suffix)] if path.suffix else path.name


def _rasters(folder: Path) -> list[Path]:
    """The GeoTIFF and JPEG 2000 files that may hold a product's bands, sorted."""
    base = _image_folder(folder)
    found: list[Path] = []
    for entry in _entries(base):
        path = Path(entry.path)
        if entry.name.startswith("."):
            continue
        if _RESOLUTION_FOLDER.fullmatch(entry.name) and entry.is_dir():
            inner = (Path(one.path) for one in _entries(path) if not one.name.startswith("."))
            found += [one for one in inner if _is_raster(one)]
        elif _is_raster(path):
            found.append(path)
    return sorted(found)


def _in_archive(archive: Path) -> tuple[list[Path], tuple[str, ...], str | None]:
    """The rasters that may hold bands, names that identify the product, and the sensor after ESA's
    metadata, of a product in a zip."""
    files = [archive / name for name in members(archive)]
    require("product_files", len(files), f"{shown(archive)} has")
    folders = {path.parent.name for path in files}
    if "annotation" in folders and any(path.name == "manifest.safe" for path in files):
        raise DataError(_radar(archive))
    rasters = [path for path in files if path.suffix.lower() in _ENDINGS]
    rasters = [path for path in rasters if not path.name.startswith(".")]
    if any("GRANULE" in path.parts for path in files):
        images = {path: _above(path, "IMG_DATA") for path in rasters if "IMG_DATA" in path.parts}
        several = sorted({folder for folder in images.values() if folder is not None})
        if len(several) != 1:
            raise DataError(_granules(archive, several))
        rasters = list(images)
    tops = {path.relative_to(archive).parts[0] for path in files if path.parent != archive}
    names = (archive.name.removesuffix(archive.suffix), *sorted(tops))
    found = {_METADATA[path.name] for path in files if path.name in _METADATA}
    return sorted(rasters), names, found.pop() if len(found) == 1 else None


def _above(path: Path, name: str) -> Path | None:
    """The folder of this name that a path leads through."""
    return next((folder for folder in path.parents if folder.name == name), None)


def _granules(folder: Path, images: list[Path]) -> str:
    """Why a product with no folder of images, or several, is not read."""
    if images:
        return (
            f"{shown(folder)} holds {len(images)} granules, which are scenes of their own; give "
            f"the folder of one, such as {shown(images[0].parent)}"
        )
    return f"{shown(folder)} holds no image data (GRANULE/*/IMG_DATA); download the whole product"


def _radar(folder: Path) -> str:
    return (
        f"{shown(folder)} is Sentinel-1 as ESA delivers it: uncalibrated amplitude in radar "
        "geometry. Make sigma0 in dB of it first (SNAP: calibration, terrain correction, "
        "linear to dB)"
    )


def _is_raster(path: Path) -> bool:
    return path.suffix.lower() in _ENDINGS and path.is_file()


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as listing:
            found = list(islice(listing, limit("product_files") + 1))
    except OSError as error:
        raise DataError(f"{shown(folder)} cannot be listed: {error.strerror}") from error
    require(
        "product_files",
        len(found),
        f"{shown(folder)} has at least",
        todo="give the product's own folder, which holds a file per band",
    )
    return found


def _image_folder(folder: Path) -> Path:
    """Where the bands lie: `GRANULE/*/IMG_DATA` of a SAFE folder, else the folder itself."""
    of_esa = (folder / "manifest.safe").is_file() and (folder / "annotation").is_dir()
    of_aws = (folder / "productInfo.json").is_file() and (folder / "measurement").is_dir()
    if of_esa or of_aws:
        raise DataError(_radar(folder))
    if (folder / "IMG_DATA").is_dir():
        return folder / "IMG_DATA"
    granules = folder / "GRANULE"
    if not granules.is_dir():
        return folder
    images = sorted(
        Path(entry.path) / "IMG_DATA"
        for entry in _entries(granules)
        if (Path(entry.path) / "IMG_DATA").is_dir()
    )
    if len(images) != 1:
        raise DataError(_granules(folder, images))
    return images[0]


def _identifying_names(folder: Path) -> tuple[str, ...]:
    """The folder's own name, above a `GRANULE` that it lies in the product's, and the one that
    metadata of Earth Engine or AWS state."""
    whole = folder.absolute()
    names = [whole.name]
    for above in whole.parents:
        if above.name == "GRANULE":
            names.append(above.parent.name)
    return (*names, *earth_engine_product(whole), *tile_product(whole))


def _sensor_of_metadata(folder: Path) -> str | None:
    whole = folder.absolute()
    places = [whole, *(above.parent for above in whole.parents if above.name == "GRANULE")]
    found = {
        sensor for place in places for name, sensor in _METADATA.items() if (place / name).is_file()
    }
    return found.pop() if len(found) == 1 else None


def _no_bands(folder: Path, sensor: Sensor, rasters: list[Path]) -> str:
    there = "no GeoTIFF or JPEG 2000 file"
    if rasters:
        examples = ", ".join(repr(path.name) for path in rasters[:3])
        there = f"{len(rasters)} GeoTIFF or JPEG 2000 file(s) ({examples}), but none named after a"
        there += f" band of sensor {sensor.name!r}"
    first, second = sensor.band_names[0], sensor.band_names[-1]
    return (
        f"{shown(folder)} holds {there}; expected a file per band, such as {first}.tif and "
        f"{second}.tif, or SCENE_{first}.tif and SCENE_{second}.tif"
    )


def _require_one_product(
    folder: Path, names: tuple[str, ...], bands: dict[Path, NamedBand]
) -> None:
    products = sorted({found.product for found in bands.values()})
    if len(products) > 1:
        raise DataError(
            f"{shown(folder)} holds bands of {len(products)} products ({quoted(products[0])}, "
            f"{quoted(products[1])}{', ...' if len(products) > 2 else ''}); put each product "
            "into a folder of its own"
        )
    stated = tile_and_day(products[0])
    if stated is None:
        return
    for name in names:
        other = tile_and_day(name)
        if other is not None and other != stated:
            raise DataError(
                f"{shown(folder)} is called {quoted(name)}, but its files are of tile "
                f"{stated[0]}, day {stated[1]} ({quoted(products[0])}); put each product into a "
                "folder of its own"
            )


def _one_file_per_band(
    folder: Path, sensor: Sensor, bands: dict[Path, NamedBand]
) -> tuple[BandFile, ...]:
    chosen = []
    for band in sensor.bands:
        files = {
            path: found.gsd_m or _resolution_of_folder(path)
            for path, found in bands.items()
            if found.band == band.name
        }
        if not files:
            continue
        sizes = list(files.values())
        if len(files) > 1 and (None in sizes or len(set(sizes)) < len(sizes)):
            first, second = sorted(files)[:2]
            raise DataError(
                f"{shown(folder)} holds band {band.name} twice ({first.name!r}, {second.name!r}); "
                "remove one"
            )
        best = min(files, key=lambda path: (files[path] != band.gsd_m, files[path] or 0))
        chosen.append(BandFile(path=best, band=band.name))
    return tuple(chosen)


def _resolution_of_folder(path: Path) -> int | None:
    found = _RESOLUTION_FOLDER.fullmatch(path.parent.name)
    return int(found[1]) if found else None


_warned: set[str] = set()


def _log_left_out(folder: Path, sensor: Sensor, others: list[Path]) -> None:
    unknown = [path.name for path in others if not is_auxiliary_name(stem_of(path))]
    text = f"{sensor.name}: {[name[-12:] for name in unknown]}"
    if unknown and text not in _warned:  # once for products that are alike
        _warned.add(text)
        logger.warning(
            "%s: left out, no band of sensor %r by name: %s%s",
            shown(folder),
            sensor.name,
            ", ".join(map(repr, unknown[:5])),
            f" and {len(unknown) - 5} more" if len(unknown) > 5 else "",
        )
