"""What files state of their numbers: Sentinel-2's DN offset in its metadata XML and in the items
of a GeoTIFF, and the scale and offset of any sensor's bands.

Sources: ESA *Sentinel-2 Products Specification*, issue 14.9 (`BOA_ADD_OFFSET_VALUES_LIST` of L2A,
`Radiometric_Offset_List` of L1C, band identifiers 0 to 12); the items that GDAL's SENTINEL2 driver
writes; GDAL's scale and offset of a band, as cloud-optimised archives set them. Metadata are
untrusted files: their size is checked before they are read, and XML with a document type or an
entity is refused.
"""

from __future__ import annotations

import json
import math
import re
import xml.etree.ElementTree as ET
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from terralign.errors import DataError, SensorError, UnknownOffsetError, first_line, quoted, shown
from terralign.files import decode_text, read_text
from terralign.limits import limit, require
from terralign.scenes.archives import exists, in_archive, read_member
from terralign.scenes.geotiff import Place, items_of
from terralign.scenes.product_names import eo_browser_day
from terralign.sensors import OFFSET_FROM_BASELINE, SENSORS, Sensor

_BAND_OF_ID = {str(index): name for index, name in enumerate(SENSORS["sentinel2-l1c"].band_names)}
"""The metadata count the 13 bands of L1C, at both levels; B8A comes after B08."""

_FILE_AND_ITEM = {
    "sentinel2-l1c": ("MTD_MSIL1C.xml", "RADIO_ADD_OFFSET"),
    "sentinel2-l2a": ("MTD_MSIL2A.xml", "BOA_ADD_OFFSET"),
}
"""Sensor -> the metadata file in a product's folder, and the item that holds the offset."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Statement:
    value: float
    origin: str


@dataclass(frozen=True, kw_only=True, slots=True)
class FileBands:
    """Bands of one open file: `source` is its rasterio dataset; `names` are canonical, and lie at
    `indexes` in it, counted from 1."""

    path: Place
    source: Any
    sensor: Sensor
    names: tuple[str, ...]
    indexes: tuple[int, ...]

    def dtypes(self) -> Iterable[tuple[str, np.dtype[Any]]]:
        """Each band's name, and the type of its numbers."""
        for name, index in zip(self.names, self.indexes, strict=True):
            yield name, np.dtype(self.source.dtypes[index - 1])


def stated_offset(file: FileBands, *, declared: float | None) -> float | None:
    """What metadata say must be added to a GeoTIFF's DN; None where they do not state it.

    Asked in turn: the product's metadata XML (beside the file, or in the
    product's folder where the file lies in its `GRANULE`), the item `BOA_ADD_OFFSET` (L2A) or
    `RADIO_ADD_OFFSET` (L1C) of the bands or the file, and the bands' own scale and offset, where
    the scale is the sensor's (see `stated_scale` for another). A sensor other than Sentinel-2's is
    looked up for the last only. Earth Engine's `BOA_ADD_OFFSET_B4` is ignored: its harmonised
    images keep it although their pixels were shifted.

    Raises `DataError` where metadata are damaged, where the file's bands have different offsets,
    and where two of these disagree; `SensorError` where `declared` differs, or is None
    and only Earth Engine states one.
    """
    path = file.path
    found = [*_from_xml(file), *_from_items(file), *_from_scale(file)]
    if not found:
        if declared is None:
            _refuse_earth_engine(file)
        return None
    first = found[0]
    for other in found[1:]:
        if other.value != first.value:
            raise DataError(
                f"{shown(path)}: DN offset {first.value:g} after {first.origin}, {other.value:g} "
                f"after {other.origin}; correct the one that is wrong"
            )
    if declared is not None and declared != first.value:
        raise SensorError(
            f"{shown(path)}: dn_offset={declared:g} was declared, but it is {first.value:g} after "
            f"{first.origin}; leave dn_offset out, or, where the offset was removed from the "
            "pixels, take away the metadata that no longer hold"
        )
    return first.value


def _from_xml(bands: FileBands) -> Iterable[_Statement]:
    path, sensor = bands.path, bands.sensor
    if sensor.name not in _FILE_AND_ITEM or not isinstance(path, Path):
        return
    name, item = _FILE_AND_ITEM[sensor.name]
    for folder in _product_folders(path):
        file = folder / name
        if not exists(file):
            continue
        member = in_archive(file)
        status = (file if member is None else member[0]).stat()
        offsets = _read_xml(file, item, status.st_size, status.st_mtime_ns)
        if offsets is not None:
            value = _one_offset(file, {band: offsets.get(band) for band in bands.names})
            yield _Statement(value=value, origin=shown(file))
        return


def _product_folders(path: Path) -> list[Path]:
    """Where a file's product metadata may lie: beside it, above its folder for one resolution
    (`R10m`), and above the `GRANULE` it lies in."""
    above = path.absolute().parents
    whole = above[1:2] if re.fullmatch(r"R\d\dm", above[0].name) else ()
    return [above[0], *whole, *(folder.parent for folder in above if folder.name == "GRANULE")]


@lru_cache(maxsize=64)
def _read_xml(file: Path, item: str, size: int, mtime_ns: int) -> Mapping[str, float] | None:
    """Band -> offset, as the metadata list them; size and time are there to notice a change.

    Products from before baseline 04.00 list none: 0 for every band. None where the list is absent
    and the baseline does not explain it.
    """
    root = _parse_xml(file)
    offsets: dict[str, float] = {}
    for element in root.iter(item):
        band = _BAND_OF_ID.get(element.get("band_id", ""))
        if band is None or band in offsets:
            raise DataError(
                f"{shown(file)}: {item} of band_id {quoted(element.get('band_id', ''))}; "
                "expected 0-12, once"
            )
        offsets[band] = _number(file, item, element.text)
    if offsets:
        return offsets
    stated = (root.findtext(".//PROCESSING_BASELINE") or "").strip()
    baseline = re.fullmatch(r"(\d\d)\.(\d\d)", stated)
    if baseline and int(baseline[1] + baseline[2]) < OFFSET_FROM_BASELINE:
        return dict.fromkeys(_BAND_OF_ID.values(), 0.0)
    return None


def _parse_xml(file: Path) -> ET.Element:
    member = in_archive(file)
    if member is None:
        size = file.stat().st_size
        require("xml_bytes", size, f"{shown(file)} has", todo="check that it is product metadata")
        text = read_text(file, fault=DataError, size="xml_bytes")
    else:
        try:
            text = decode_text(read_member(*member, size="xml_bytes"))
        except ValueError as error:
            raise DataError(f"{shown(file)}: {error}") from error
    for declaration in ("<!DOCTYPE", "<!ENTITY"):
        if declaration in text:
            raise DataError(
                f"{shown(file)} holds {declaration}, which product metadata never do; refused"
            )
    try:
        return ET.fromstring(text)
    except (ET.ParseError, ValueError) as error:
        raise DataError(f"{shown(file)} is damaged: {first_line(error)}") from error


def _from_items(file: FileBands) -> Iterable[_Statement]:
    """From GDAL metadata items of the bands, or of the file for all of them."""
    path, source = file.path, file.source
    if file.sensor.name not in _FILE_AND_ITEM:
        return
    _, item = _FILE_AND_ITEM[file.sensor.name]
    of_file = source.tags().get(item)
    offsets: dict[str, float | None] = {}
    for position, band in zip(file.indexes, file.names, strict=True):
        text = source.tags(position).get(item, of_file)
        offsets[band] = None if text is None else _number(path, item, text)
    if any(value is not None for value in offsets.values()):
        yield _Statement(value=_one_offset(path, offsets), origin=f"its own {item}")


def _refuse_earth_engine(file: FileBands) -> None:
    path, source, sensor = file.path, file.source, file.sensor
    if sensor.name not in _FILE_AND_ITEM:
        return
    prefix = f"{_FILE_AND_ITEM[sensor.name][1]}_B"
    item = next((key for key in source.tags() if key.startswith(prefix)), None)
    if item is not None:
        raise UnknownOffsetError(
            f"{shown(path)}: Sentinel-2 DN offset unknown: {item} is Earth Engine's, which "
            "harmonised images keep after their offset was removed; declare it (dn_offset=0 for a "
            "HARMONIZED collection, else what the item says)"
        )


def earth_engine_product(folder: Path) -> tuple[str, ...]:
    """The product's name in the `metadata.json` beside bands from Earth Engine (SSL4EO), if any.

    From baseline 04.00 on its baseline is taken out (N9999): harmonised images keep it after their
    offset was removed.
    """
    path = folder / "metadata.json"
    try:
        if not path.is_file() or path.stat().st_size > limit("xml_bytes"):
            return ()
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError):
        return ()  # of something else
    name = content.get("PRODUCT_ID") if isinstance(content, dict) else None
    if not isinstance(name, str) or "\n" in name:
        return ()
    found = re.search(r"_N(\d{4})_", name)
    if found and int(found[1]) >= OFFSET_FROM_BASELINE:
        name = name.replace(found[0], "_N9999_")
    return (name,)


def tile_product(folder: Path) -> tuple[str, ...]:
    """The product's name in the `tileInfo.json` of a tile as AWS keeps it, if any."""
    path = folder / "tileInfo.json"
    try:
        if not path.is_file() or path.stat().st_size > limit("xml_bytes"):
            return ()
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, ValueError):
        return ()  # of something else
    found = re.search(r'"products/[\d/]+/(S2[A-D]_MSIL(?:1C|2A)_\w{15,80})/', text)
    return () if found is None else (found[1],)


@dataclass(frozen=True, kw_only=True, slots=True)
class Catalogued:
    """What a catalogue states of a product's numbers; None: nothing.

    `dn_offset`: what is added to Sentinel-2's DN; `scale`: (scale, offset) of physical values;
    `origin`: who states it, as errors name it.
    """

    dn_offset: float | None = None
    scale: tuple[float, float] | None = None
    origin: str


def stated_scale(file: FileBands) -> tuple[float, float] | None:
    """(scale, offset) that a GeoTIFF states for bands: physical = DN * scale + offset.

    From GDAL's scale and offset of the bands and from items `scale_factor` and `add_offset` of the
    bands or the file (HLS); 1/65535 for raw bands that Sentinel Hub's EO Browser exported with 16
    bits. None where nothing is stated; a scale of 1 with offset 0 is what GDAL
    reports of bands without any. Raises `DataError` where bands differ, or the two ways do.
    """
    path, source, sensor, indexes = file.path, file.source, file.sensor, file.indexes
    exported = _scale_of_export(path, source)
    if exported is not None:
        return exported
    pairs = {(source.scales[index - 1], source.offsets[index - 1]) for index in indexes}
    pairs = set() if pairs == {(1.0, 0.0)} else pairs
    for position in indexes:
        tags = items_of(source, position)
        if "scale_factor" in tags or "add_offset" in tags:
            scale = _number(path, "scale_factor", tags.get("scale_factor", "1"))
            offset = _number(path, "add_offset", tags.get("add_offset", "0"))
            if (scale, offset) != (1.0, 0.0):
                pairs.add((scale, offset))
    if not pairs:
        return None
    first = min(pairs)
    if not all(_same_pair(first, pair) for pair in pairs):
        pairs_text = ", ".join(f"{scale:g} and {offset:g}" for scale, offset in sorted(pairs))
        raise DataError(
            f"{shown(path)}: its bands state scale and offset {pairs_text}; the bands of one file "
            f"must share one pair (sensor {sensor.name!r} has {sensor.dn_scale:g} and "
            f"{sensor.add:g}): write those that differ into files of their own"
        )
    scale, offset = first
    if not (math.isfinite(scale) and math.isfinite(offset) and scale > 0):
        raise DataError(
            f"{shown(path)}: its bands state scale {scale:g} and offset {offset:g}; expected a "
            "scale above 0 and finite numbers"
        )
    return first


def _scale_of_export(path: Place, source: Any) -> tuple[float, float] | None:
    """EO Browser writes a reflectance of 1 as the largest number of 16 bits."""
    if eo_browser_day(path.name) is None or source.dtypes[0] == "float32":
        return None
    if source.dtypes[0] != "uint16":
        raise DataError(
            f"{shown(path)} is an export of Sentinel Hub's EO Browser in {source.dtypes[0]}; "
            "export the raw bands as TIFF of 16 bits"
        )
    return (1 / 65535, 0.0)


def _same_pair(a: tuple[float, float], b: tuple[float, float]) -> bool:
    return all(math.isclose(x, y, rel_tol=1e-6, abs_tol=1e-12) for x, y in zip(a, b, strict=True))


def is_sensors_scale(pair: tuple[float, float], sensor: Sensor) -> bool:
    """Whether a stated scale is the sensor's own, so that the offset alone may differ."""
    return math.isclose(pair[0], sensor.dn_scale, rel_tol=1e-6)


def _from_scale(file: FileBands) -> Iterable[_Statement]:
    """From the bands' scale and offset: scale 0.0001 and offset -0.1 are a DN offset of -1000."""
    sensor = file.sensor
    pair = stated_scale(file)
    if pair is None or not is_sensors_scale(pair, sensor):
        return
    value = round((pair[1] - sensor.add) / sensor.dn_scale, 3)
    yield _Statement(value=value, origin=f"the offset {pair[1]:g} of its bands")


def states_scale_alone(file: FileBands) -> bool:
    """Whether all that a file states of its DN offset is that its bands' is 0, as GDAL reports also
    of bands with a scale and no offset."""
    texts = (key for index in file.indexes for key in items_of(file.source, index))
    return not any((*_from_xml(file), *_from_items(file))) and "add_offset" not in texts


def _one_offset(origin: Place, offsets: Mapping[str, float | None]) -> float:
    values = set(offsets.values())
    value = next(iter(values))
    if len(values) > 1 or value is None:
        offsets_text = ", ".join(
            f"{band} {'none' if offset is None else format(offset, 'g')}"
            for band, offset in offsets.items()
        )
        raise DataError(
            f"{shown(origin)}: DN offsets of bands differ ({offsets_text}); the bands of one file "
            "must share one: write those of different offset into files of their own"
        )
    return value


def _number(origin: Place, item: str, text: str | None) -> float:
    try:
        value = float(text or "")
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise DataError(f"{shown(origin)}: {item} is {quoted(text or '')}; expected a number")
    return value
