"""Items of STAC catalogues: which assets hold which bands, and what the catalogue states of them.

STAC 0.9 to 1.1: `eo:bands`, `bands`, `raster:bands`, `eo:common_name`, `raster:scale`. What
catalogues state is a claim: the DN offset is held against the pixels where the scene is opened.

Sources: STAC specification 1.1 and its extensions eo, raster, projection, sar, processing; fields
of Earth Search (`earthsearch:boa_offset_applied`), Planetary Computer (`s2:processing_baseline`),
Copernicus Data Space (`processing:version`), USGS and NASA's HLS.
"""

from __future__ import annotations

import datetime as dt
import logging
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote, urljoin, urlsplit

import shapely
from shapely.errors import ShapelyError

from terralign.errors import DataError, SensorError, first_line, printable
from terralign.files import hash_json
from terralign.limits import require
from terralign.scenes.band_names import band_meant, is_auxiliary
from terralign.scenes.clouds import CloudMask, mask_kind
from terralign.scenes.declared import Declared
from terralign.scenes.geotiff import Place
from terralign.scenes.places import box as box_of
from terralign.scenes.product_metadata import Catalogued
from terralign.scenes.product_names import require_sensor_of_names, sensor_of_names
from terralign.scenes.products import BandFile, Product
from terralign.scenes.remote import RemoteRaster, Signer, require_address
from terralign.scenes.scene import Scene, open_product
from terralign.sensors import OFFSET_FROM_BASELINE, SENTINEL2_DN_OFFSET, Sensor, find_sensor

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class StacItem:
    """One item: `id` and `collection`, its properties, its assets by key, its footprint (a GeoJSON
    geometry).

    `base`: the file or address that it was read from, which relative addresses start from; empty
    where it came as a value. `key`: what results call it.
    """

    id: str
    key: str
    collection: str
    properties: Mapping[str, Any]
    assets: Mapping[str, Mapping[str, Any]]
    footprint: Mapping[str, Any] | None
    base: str = ""
    signer: Signer | None = field(default=None, compare=False)

    def __str__(self) -> str:
        return f"item {printable(self.id)}"

    def stamp(self) -> str:
        """A hash of what the item states, without signatures, and of its files on this machine."""
        places: dict[str, Any] = {}
        for key, asset in self.assets.items():
            href = _text(asset.get("href")).split("?", 1)[0]
            places[key] = [href]
            if "://" not in href and "://" not in self.base and self.base:
                path = Path(self.base).parent / href
                if path.is_file():
                    status = path.stat()
                    places[key] += [status.st_size, status.st_mtime_ns]
        properties = {key: str(value) for key, value in self.properties.items()}
        return hash_json({"id": self.id, "properties": properties, "assets": places})


@dataclass(frozen=True, kw_only=True, slots=True)
class ItemProduct:
    """What an item is: the product of its assets, when it was taken, its cloud cover in per cent,
    and whether its numbers are linear power of radar."""

    product: Product
    datetime: dt.datetime | None
    cloud_cover: float | None
    is_power: bool


def read_item(value: Any, *, origin: str, base: str = "", signer: Signer | None = None) -> StacItem:
    """An item of its JSON values; `DataError` naming `origin` for values of another kind."""
    if not isinstance(value, dict) or value.get("type") != "Feature":
        raise DataError(f"{origin} is no STAC item: its type is not 'Feature'")
    name, assets, properties = (value.get(key) for key in ("id", "assets", "properties"))
    if not isinstance(name, str) or not name.strip() or len(name) > 1000:
        raise DataError(f"{origin} is no STAC item: its id is {str(name)[:100]!r}")
    if not isinstance(properties, dict) or not isinstance(assets, dict):
        raise DataError(f"{origin} is no STAC item: it has no assets or no properties")
    require("stac_assets", len(assets), f"{origin} has")
    return StacItem(
        id=name,
        key=name,
        collection=_text(value.get("collection")),
        properties=properties,
        assets={key: one for key, one in assets.items() if isinstance(one, dict)},
        footprint=_footprint(value, origin),
        base=base,
        signer=signer,
    )


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""


def _footprint(value: Mapping[str, Any], origin: str) -> Mapping[str, Any] | None:
    """The item's geometry, else its bounding box; None without either."""
    geometry = value.get("geometry")
    if not isinstance(geometry, dict):
        box: Any = value.get("bbox")
        if not _is_box(box):
            return None
        half = len(box) // 2
        return box_of((box[0], box[1], box[half], box[half + 1]))
    require("geometry_points", _num_points(geometry), f"{origin} has a footprint of")
    try:
        shape = shapely.geometry.shape(geometry)
        west, south, east, north = shape.bounds
    except (ShapelyError, ValueError, TypeError, KeyError, AttributeError, IndexError) as error:
        raise DataError(f"{origin}: its geometry is damaged: {first_line(error)}") from error
    within = -360 <= west <= east <= 360 and -90 <= south <= north <= 90
    if shape.is_empty or not within:
        raise DataError(f"{origin}: its geometry lies beyond the globe: {list(shape.bounds)}")
    return geometry


def _is_box(box: Any) -> bool:
    numbers = isinstance(box, list | tuple) and len(box) in (4, 6)
    return numbers and all(isinstance(one, int | float) and math.isfinite(one) for one in box)


def _num_points(geometry: Any) -> int:
    waiting, count = [geometry.get("coordinates")], 0
    while waiting:
        one = waiting.pop()
        if isinstance(one, list | tuple):
            count += 1
            waiting += one
    return count


def open_item(item: StacItem, declared: Declared) -> Scene:
    """The scene of an item's assets; errors as `scenes.scene.open_scene`."""
    described = describe_item(item, declared)
    units = declared.units
    if described.is_power and units is None:
        logger.info("%s is gamma0 in linear power, read in dB", item)
        units = "linear"
    path = Path(item.base) if item.base and "://" not in item.base else Path(item.id)
    scene = open_product(path, described.product, replace(declared, units=units))
    return replace(
        scene,
        datetime=described.datetime or scene.datetime,
        cloud_cover=described.cloud_cover,
        footprint=item.footprint,
    )


def describe_item(item: StacItem, declared: Declared) -> ItemProduct:
    """What an item is, by what it states alone; no asset is opened.

    `SensorError` where its sensor is unknown; `DataError` where no asset is a band, where they are
    raw radar, or where an address is of a kind that is not opened.
    """
    names = _names_of(item)
    sensor = _sensor_of(item, declared.sensor, names)
    if sensor.unit == "dB":
        _refuse_raw_radar(item)
    assets = _band_assets(item, sensor)
    if declared.bands is not None:
        wanted = sensor.resolve(declared.bands)
        missing = [name for name in wanted if name not in assets]
        if missing:
            raise SensorError(
                f"{item} has bands {', '.join(assets) or 'none'}; missing {', '.join(missing)}"
            )
        assets = {name: assets[name] for name in wanted}
    if not assets:
        raise DataError(
            f"{item} has no asset that is a band of sensor {sensor.name!r}; its assets are "
            f"{', '.join(map(repr, list(item.assets)[:8]))}"
        )
    files = tuple(
        BandFile(path=_place(item, asset.key), band=name, index=asset.index)
        for name, asset in assets.items()
    )
    product = Product(
        sensor=sensor,
        files=files,
        names=tuple(names),
        name=item.key,
        clouds=_clouds_of(item),
        catalogued=_catalogued(item, sensor, assets),
    )
    return ItemProduct(
        product=product,
        datetime=_datetime_of(item),
        cloud_cover=_number(item.properties.get("eo:cloud_cover"), 0, 100),
        is_power="rtc" in item.collection.lower().split("-") and sensor.unit == "dB",
    )


# The sensor


def _names_of(item: StacItem) -> list[str]:
    """Names of products that an item states: its own, and those of its properties."""
    keys = ("s2:product_uri", "sentinel:product_id", "s1:product_identifier", "title")
    return [item.id, *(text for key in keys if (text := _text(item.properties.get(key))))]


_LEVELS = (
    (re.compile(r"S2MSI1C|sentinel-?2-l1c|sentinel-s2-l1c", re.IGNORECASE), "sentinel2-l1c"),
    (re.compile(r"S2MSI2A|sentinel-?2-(c1-)?l2a|sentinel-s2-l2a", re.IGNORECASE), "sentinel2-l2a"),
    (re.compile(r"\bHLSL30|hls2?-l30", re.IGNORECASE), "hls-l30"),
    (re.compile(r"\bHLSS30|hls2?-s30", re.IGNORECASE), "hls-s30"),
    (re.compile(r"sentinel-?1", re.IGNORECASE), "sentinel1-grd"),
)
"""Product types and collections of catalogues."""


def _sensor_of(item: StacItem, declared: Sensor | None, names: Sequence[str]) -> Sensor:
    if declared is not None:
        require_sensor_of_names(declared, names, origin=str(item))
        return declared
    stated = sensor_of_names(names, origin=str(item))
    if stated is None:
        of_landsat = re.match(r"L[CO]0[89]_L2S[PR]_", item.id)
        stated = "landsat-oli-l2" if of_landsat else None
    if stated is None:
        keys = ("s2:product_type", "product:type", "hls:product", "constellation")
        texts = [_text(item.properties.get(key)) for key in keys] + [item.collection]
        found = (sensor for text in texts for pattern, sensor in _LEVELS if pattern.search(text))
        stated = next(found, None)
    if stated is None:
        platform = _text(item.properties.get("platform")) or "no platform"
        raise SensorError(
            f"{item} of collection {item.collection!r} ({platform}) is of no built-in sensor by "
            "its names and properties; name the sensor (sensor=)"
        )
    return find_sensor(stated)


def _refuse_raw_radar(item: StacItem) -> None:
    properties = item.properties
    texts = (item.id.lower(), item.collection.lower())
    corrected = any("rtc" in re.split(r"[-_.]", text) for text in texts)
    if _text(properties.get("sar:product_type")).upper() in ("GRD", "SLC") and not corrected:
        raise DataError(
            f"{item} is Sentinel-1 as ESA delivers it ({properties['sar:product_type']}): "
            "uncalibrated amplitude in radar geometry. Take a terrain-corrected collection "
            "(sentinel-1-rtc), or make sigma0 in dB of it (SNAP: calibration, terrain correction, "
            "linear to dB)"
        )


# Bands


@dataclass(frozen=True, kw_only=True, slots=True)
class _BandAsset:
    """An asset that holds a band: its key, the band's position in it (from 1), metres, and what it
    states of the numbers."""

    key: str
    index: int
    gsd_m: float | None
    is_jp2: bool
    scale: float | None
    offset: float | None


_SKIPPED_ROLES = {"thumbnail", "overview", "visual", "metadata", "tiles", "saturation"}
_RASTER = re.compile(r"image/(tiff|jp2|vnd\.stac\.geotiff)", re.IGNORECASE)
_ENDINGS = (".tif", ".tiff", ".jp2")


def _is_raster(asset: Mapping[str, Any]) -> bool:
    kind, href = _text(asset.get("type")), _text(asset.get("href"))
    stated = _RASTER.match(kind) if kind else None
    return bool(stated) or _path_of(href).lower().endswith(_ENDINGS)


def _path_of(href: str) -> str:
    """The path in an address; a text that is no address as it is."""
    try:
        return urlsplit(href).path
    except ValueError:
        return href


def _band_assets(item: StacItem, sensor: Sensor) -> dict[str, _BandAsset]:
    """Canonical band -> the asset that holds it best, in the sensor's order."""
    found: dict[str, list[_BandAsset]] = {}
    for key, asset in item.assets.items():
        roles = asset.get("roles")
        skipped = isinstance(roles, list) and _SKIPPED_ROLES & {str(role) for role in roles}
        if skipped or not _is_raster(asset) or is_auxiliary(PurePosixPath(key).stem):
            continue
        for index, stated in enumerate(_stated_bands(item, asset), start=1):
            band = _band_of(key, stated, sensor)
            if band is not None:
                found.setdefault(band, []).append(_band_asset(key, index, asset, stated))
    return {
        band.name: min(found[band.name], key=lambda one: _rank(one, band.gsd_m))
        for band in sensor.bands
        if band.name in found
    }


def _rank(asset: _BandAsset, native: float | None) -> tuple[Any, ...]:
    """The band's own resolution first, then the finest; GeoTIFF before JPEG 2000."""
    gsd = asset.gsd_m or native or 0
    return (native is not None and gsd != native, asset.is_jp2, gsd, asset.key)


def _stated_bands(item: StacItem, asset: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """What an asset states of each of its bands, eo and raster fields together; one band without
    a list of them."""
    eo, raster = asset.get("eo:bands"), asset.get("raster:bands")
    listed = asset.get("bands") if isinstance(asset.get("bands"), list) else None
    eo = listed or (eo if isinstance(eo, list) else [])
    raster = raster if isinstance(raster, list) else []
    of_item = item.properties.get("eo:bands")
    bands: list[Mapping[str, Any]] = []
    for number in range(max(1, len(eo), len(raster))):
        one = eo[number] if number < len(eo) else {}
        if isinstance(one, int) and isinstance(of_item, list) and 0 <= one < len(of_item):
            one = of_item[one]  # STAC before 0.9: a position in the item's list
        measured = raster[number] if number < len(raster) else {}
        parts = [asset if number == 0 and len(eo) < 2 else {}, one, measured]
        known = (part for part in parts if isinstance(part, dict))
        bands.append({key: value for part in known for key, value in part.items()})
    return bands


def _band_of(key: str, stated: Mapping[str, Any], sensor: Sensor) -> str | None:
    """The band that an asset's metadata name, by its name, its key, or its common name."""
    stem = re.sub(r"\.tiff?$|\.jp2$", "", key, flags=re.IGNORECASE)
    common = _text(stated.get("common_name")) or _text(stated.get("eo:common_name"))
    texts = [_text(stated.get("name")), stem, re.sub(r"[-_](jp2|\d\dm)$", "", stem), common]
    for text in texts:
        short = re.sub(r"^(OLI|MSI|TIRS)_", "", text)
        if text.startswith("TIRS"):
            return None
        band = band_meant(short, sensor) if short else None
        if band is not None:
            return band.name
        if re.fullmatch(r"B\d{1,2}A?", short):
            return None  # a band of its own that the sensor does not have, such as a thermal one
    return None


_SIZED = re.compile(r"[_-](\d{2,3})m(?:$|[_.])")


def _band_asset(
    key: str, index: int, asset: Mapping[str, Any], stated: Mapping[str, Any]
) -> _BandAsset:
    path = _path_of(_text(asset.get("href")))
    sized = _SIZED.search(key) or _SIZED.search(PurePosixPath(path).name)
    gsd = sized[1] if sized else next(
        (
            stated[name]
            for name in ("gsd", "spatial_resolution", "raster:spatial_resolution")
            if name in stated
        ),
        asset.get("gsd"),
    )  # fmt: skip
    is_jp2 = path.lower().endswith(".jp2") or "jp2" in _text(asset.get("type"))
    return _BandAsset(
        key=key,
        index=index,
        gsd_m=_number(gsd, 0.01, 100_000),
        is_jp2=is_jp2,
        scale=_number(_first(stated, "scale", "raster:scale"), 0, 1e6),
        offset=_number(_first(stated, "offset", "raster:offset"), -1e9, 1e9),
    )


def _first(stated: Mapping[str, Any], *keys: str) -> Any:
    return next((stated[key] for key in keys if key in stated), None)


def _number(value: Any, least: float, most: float) -> float | None:
    """A finite number within limits, also one written as text; None for anything else."""
    try:
        number = float(value) if not isinstance(value, bool) else math.nan
    except (TypeError, ValueError):
        return None
    return number if least <= number <= most else None


# Numbers


def _catalogued(
    item: StacItem, sensor: Sensor, assets: Mapping[str, _BandAsset]
) -> Catalogued | None:
    """What an item states of its bands' scale and offset."""
    pairs = {(one.scale, one.offset) for one in assets.values()}
    if len(pairs) > 1:
        shown_pairs = ", ".join(
            f"{band} {one.scale} and {one.offset}" for band, one in list(assets.items())[:4]
        )
        raise DataError(
            f"{item}: its bands state different scales and offsets ({shown_pairs}, ...); choose "
            "bands that agree (bands=)"
        )
    scale, offset = next(iter(pairs))
    if not sensor.offset_varies:
        pair = None if scale in (None, 1.0) else (float(scale or 1), float(offset or 0))
        same = pair is None or (
            math.isclose(pair[0], sensor.dn_scale, rel_tol=1e-6)
            and math.isclose(pair[1], sensor.add, abs_tol=1e-9)
        )
        return Catalogued(scale=None if same else pair, origin=f"{item} (raster:bands)")
    if scale not in (None, 1.0) and not math.isclose(scale or 1, sensor.dn_scale, rel_tol=1e-6):
        pair = (float(scale or 1), float(offset or 0))
        return Catalogued(scale=pair, origin=f"{item} (raster:bands)")
    stated = None if scale in (None, 1.0) or offset is None else round(offset / sensor.dn_scale, 3)
    return _offset_of(item, stated, is_jp2=any(one.is_jp2 for one in assets.values()))


_BASELINE = ("s2:processing_baseline", "sentinel:processing_baseline", "processing:baseline")


def _offset_of(item: StacItem, stated: float | None, *, is_jp2: bool) -> Catalogued:
    """The DN offset that an item means.

    `stated`: by `raster:bands` or `raster:offset`, as DN. In this order: 0 where the catalogue took
    it off its own GeoTIFFs (`boa_offset_applied`; ESA's JPEG 2000 files are as they were), what is
    `stated`, what the processing baseline implies. None where nothing states it.
    """
    properties = item.properties
    applied_keys = ("earthsearch:boa_offset_applied", "sentinel:boa_offset_applied")
    applied = next((key for key in applied_keys if key in properties), None)
    if applied is not None and properties[applied] is True and not is_jp2:
        return Catalogued(dn_offset=0.0, origin=f"{applied} of {item}")
    baseline = _baseline_of(item)
    implied = None
    if baseline is not None:
        implied = SENTINEL2_DN_OFFSET if baseline >= OFFSET_FROM_BASELINE else 0.0
    if stated is not None:
        if implied is not None and stated != implied:
            logger.warning(
                "%s contradicts itself: its bands state a DN offset of %g, its processing baseline "
                "%.2f means %g; the bands' is held against the pixels",
                item, stated, (baseline or 0) / 100, implied,
            )  # fmt: skip
        return Catalogued(dn_offset=stated, origin=f"the offset of the bands of {item}")
    if implied is not None:
        origin = f"processing baseline {(baseline or 0) / 100:05.2f} of {item}"
        return Catalogued(dn_offset=implied, origin=origin)
    return Catalogued(origin=str(item))


def _baseline_of(item: StacItem) -> int | None:
    """The processing baseline as a number, 05.11 -> 511; None where it is not stated, or N9999."""
    texts = [_text(item.properties.get(key)) for key in (*_BASELINE, "processing:version")]
    found = [re.fullmatch(r"N?(\d\d)\.?(\d\d)", text) for text in texts]
    named = [re.search(r"_N(\d\d)(\d\d)_", name) for name in _names_of(item)]
    for match in (*found, *named):
        if match is not None and match[1] != "99":
            return int(match[1] + match[2])
    return None


# Time, clouds, places


def _datetime_of(item: StacItem) -> dt.datetime | None:
    """When it was taken, UTC: `datetime`, else the start of its range."""
    for key in ("datetime", "start_datetime"):
        value = item.properties.get(key)
        if isinstance(value, dt.datetime):
            return value.astimezone(dt.UTC)
        try:
            when = dt.datetime.fromisoformat(_text(value).strip().upper())
            return when.replace(tzinfo=when.tzinfo or dt.UTC).astimezone(dt.UTC)
        except (ValueError, OverflowError):  # no date, or none of these years in UTC
            continue
    return None


def _clouds_of(item: StacItem) -> CloudMask | None:
    """The finest mask of clouds among the assets whose address can be opened."""
    found: list[tuple[bool, float, str, str]] = []
    for key, asset in item.assets.items():
        stem = re.sub(r"\.tiff?$|\.jp2$", "", key, flags=re.IGNORECASE)
        is_jp2 = stem.endswith("-jp2")
        kind = mask_kind(stem.removesuffix("-jp2")) if _is_raster(asset) else None
        if kind is not None:
            gsd = _band_asset(key, 1, asset, asset).gsd_m
            found.append((is_jp2, gsd or 0, key, kind))
    for _, _, key, kind in sorted(found):
        try:
            return CloudMask(place=_place(item, key), kind=kind)
        except DataError as error:
            logger.warning("%s: its mask of clouds is left out: %s", item, error)
    return None


def _place(item: StacItem, key: str) -> Place:
    """Where an asset's raster is; relative addresses start from where the item was read."""
    asset = item.assets[key]
    href = _text(asset.get("href"))
    what = f"{item}: asset {key!r}"
    if not href:
        raise DataError(f"{what} has no address (href)")
    is_remote = "://" in item.base
    if is_remote and "://" not in href:
        href = urljoin(item.base, href)
    if "://" in href:
        require_address(href)
        schemes = asset.get("storage:requester_pays", item.properties.get("storage:requester_pays"))
        return RemoteRaster(
            href=href,
            signer=item.signer,
            requester_pays=schemes is True,
            region=_region(asset.get("storage:region", item.properties.get("storage:region"))),
        )
    if href.startswith(("/vsi", "\\")) or "\0" in href or re.match(r"[A-Za-z][\w+.-]+:", href):
        raise DataError(
            f"{what} has the address {printable(href[:200])!r}, which is not opened; expected a "
            "file, or an https, http or s3 address"
        )
    if not item.base:
        if not Path(href).is_absolute():
            raise DataError(
                f"{what} has the relative address {href!r}, but the item came without a place; "
                "give the item's file"
            )
        return Path(href)
    path = Path(item.base).parent / href
    decoded = path if "%" not in href else Path(item.base).parent / unquote(href)
    return decoded if decoded.is_file() and not path.is_file() else path


def _region(value: Any) -> str | None:
    return value if isinstance(value, str) and re.fullmatch(r"[a-z0-9-]{2,30}", value) else None


def each_feature(value: Any, *, origin: str) -> Iterator[Any]:
    """The items of JSON values: an item itself, an item collection, or a list of items."""
    features: Any = [value]
    if isinstance(value, dict) and value.get("type") == "FeatureCollection":
        features = value.get("features")
    elif isinstance(value, list):
        features = value
    if not isinstance(features, list):
        raise DataError(f"{origin} is no item collection: it has no list of features")
    require("stac_items", len(features), f"{origin} has")
    yield from features
