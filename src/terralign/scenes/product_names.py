"""Standard product names: which sensor, tile and time they state, and which band a file holds.

Sources: ESA *Sentinel-2 Products Specification* and *Sentinel-1 Product Specification* (naming
conventions), USGS *Landsat Collection 2 Level 2 Data Format Control Book*, NASA *HLS User Guide*
v2.0; the names under which Planetary Computer, Earth Search, CDSE, Major-TOM, BigEarthNet and
SSL4EO deliver bands, and Sentinel Hub's EO Browser exports them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from terralign.errors import DataError, SensorError, quoted
from terralign.scenes.band_names import band_meant, is_auxiliary
from terralign.sensors import RGB, SENSORS, Sensor

_START = r"(?:^|[^A-Za-z0-9])"

_SENSORS = (
    (re.compile(_START + r"S2[A-D]_MSIL1C_\d{8}T\d"), "sentinel2-l1c"),
    (re.compile(_START + r"S2[A-D]_MSIL2A_\d{8}T\d"), "sentinel2-l2a"),
    (re.compile(_START + r"S2[A-D]_OPER_(?:MSI_L1C|PRD_MSIL1C)_"), "sentinel2-l1c"),
    (re.compile(_START + r"S2[A-D]_(?:OPER_MSI|USER_MSI|USER_PRD_MSI)_?L2A_"), "sentinel2-l2a"),
    (re.compile(_START + r"T\d\d[A-Z]{3}_\d{8}T\d{6}_\w{3}_[126]0m\b"), "sentinel2-l2a"),
    (re.compile(r"Sentinel-2_L1C_"), "sentinel2-l1c"),
    (re.compile(r"Sentinel-2_L2A_"), "sentinel2-l2a"),
    (re.compile(_START + r"HLS\.L30\.T\d\d[A-Z]{3}\.\d{7}T\d{6}\."), "hls-l30"),
    (re.compile(_START + r"HLS\.S30\.T\d\d[A-Z]{3}\.\d{7}T\d{6}\."), "hls-s30"),
    (re.compile(_START + r"L[CO]0[89]_L1(?:TP|GT|GS)_\d{6}_\d{8}_"), "landsat-oli-l1"),
    (re.compile(_START + r"L[CO]0[89]_L2S[PR]_\d{6}_\d{8}_"), "landsat-oli-l2"),
    (
        re.compile(_START + r"S1[A-D]_(?:IW|EW|WV|S\d)_GRD[FHM]_\dS\w\w_\d{8}T\d{6}"),
        "sentinel1-grd",
    ),
)
"""Only L2A files of ESA name their resolution (`..._B04_10m`)."""

_FOREIGN = (
    (re.compile(_START + r"L[TEM]0[1-7]_L[12]\w{2}_\d{6}_\d{8}_"), "Landsat 1 to 7"),
    (re.compile(_START + r"S3[A-D]_(?:OL|SL|SY)_"), "Sentinel-3"),
    (re.compile(_START + r"M[OYC]D\d\d\w{0,3}\.A\d{7}\."), "MODIS"),
)
"""Products of no built-in sensor, some with bands of the same names: B4 of Landsat 5 is infrared,
of Landsat 8 red."""

_TILE_AND_DAY = (
    re.compile(
        _START + r"S2[A-D]_MSIL(?:1C|2A)_(?P<day>\d{8})T\d+(?:_\w+)?_T(?P<tile>\d\d[A-Z]{3})"
    ),
    re.compile(_START + r"T(?P<tile>\d\d[A-Z]{3})_(?P<day>\d{8})T\d{6}"),
    re.compile(r"HLS\.[LS]30\.T(?P<tile>\d\d[A-Z]{3})\.(?P<day>\d{7})T"),
    re.compile(_START + r"L[COTEM]\d\d_L\w{3}_(?P<tile>\d{6})_(?P<day>\d{8})_"),
)

_PREVIEW = re.compile(r"visual|thumbnail|preview|browse|overview|pvi|l2a_pvi", re.IGNORECASE)

_EO_BROWSER = re.compile(r"(\d{4}-\d\d-\d\d)-00[:_]00_.*Sentinel-2_L(?:1C|2A)_\w+_\(Raw\)\.tiff?$")


def sensor_of_names(names: Iterable[str], *, origin: str) -> str | None:
    """The built-in sensor that standard product names state; None where none does.

    `DataError` naming `origin` where they state different ones.
    """
    found = {sensor: name for name in names for pattern, sensor in _SENSORS if pattern.search(name)}
    if len(found) > 1:
        stated = " and ".join(
            f"{quoted(name)} is {sensor}" for sensor, name in sorted(found.items())
        )
        raise DataError(f"{origin}: product names contradict each other: {stated}; name the sensor")
    return next(iter(found), None)


def require_sensor_of_names(sensor: Sensor, names: Iterable[str], *, origin: str) -> None:
    """Raise `SensorError` where standard product names state another sensor than a built-in one.

    Nothing is known of sensors of your own, and a picture (`rgb`) can be made of any product.
    """
    if sensor.name == RGB or sensor != SENSORS.get(sensor.name):
        return
    given = list(names)
    stated = {other: name for name in given for pattern, other in _SENSORS if pattern.search(name)}
    if stated and sensor.name not in stated:
        other, name = next(iter(stated.items()))
        raise SensorError(
            f"{origin}: {quoted(name)} is a product of sensor {other!r}, not of {sensor.name!r}; "
            "leave out the sensor, or correct it (of numbers that were processed further, "
            "rename the file)"
        )
    for pattern, other in _FOREIGN:
        name = next((one for one in given if pattern.search(one)), "")
        if name and not stated:
            raise SensorError(
                f"{origin}: {quoted(name)} is a product of {other}, whose bands are not those of "
                f"{sensor.name!r}; describe its sensor in a TOML file (sensor=)"
            )


def tile_and_day(name: str) -> tuple[str, str] | None:
    """(tile, day) as a standard name of Sentinel-2, Landsat or HLS writes them; None without."""
    for pattern in _TILE_AND_DAY:
        match = pattern.search(name)
        if match:
            return match["tile"], match["day"]
    return None


def eo_browser_day(name: str) -> str | None:
    """The day, as 2018-12-01, where a raw band was exported by Sentinel Hub's EO Browser."""
    match = _EO_BROWSER.search(name)
    return match[1] if match else None


@dataclass(frozen=True, kw_only=True, slots=True)
class NamedBand:
    """What a file's name states: `band` (canonical), `gsd_m` in metres where it does, and
    `product`, what the names of the other bands begin with too."""

    product: str
    band: str
    gsd_m: int | None


_RESOLUTION = re.compile(r"(.+?)[_-](\d{2,3})m", re.IGNORECASE)
_SEPARATOR = re.compile(r"[_.\- ]")
_OF_A_BAND = re.compile(r"(?:^|[_.\- ])(?:qa|msk|mask)(?:[_.\- ]|$)", re.IGNORECASE)
"""What a mask or quality file of a band has before the band's name."""


def band_of_name(stem: str, sensor: Sensor) -> NamedBand | None:
    """The band of `sensor` that a file's name without its ending is, or ends in; None if none.

    `B04`, `red`, `T33XWJ_20220413T150759_B04_10m`, `HLS.L30.T19LDD.2022165T144027.v2.0.B04`,
    `LC08_L2SP_..._SR_B4`, `Sigma0_VV_db`, `..._Sentinel-2_L2A_B04_(Raw)`.
    """
    text = stem.removesuffix("(Raw)").rstrip("_ ")
    sized = _RESOLUTION.fullmatch(text)
    for product, ending in _endings(text):
        band = band_meant(ending, sensor)
        if band is not None and not _OF_A_BAND.search(product):
            return NamedBand(
                product=product, band=band.name, gsd_m=int(sized[2]) if sized else None
            )
    return None


def _endings(stem: str) -> Iterator[tuple[str, str]]:
    """A name without its resolution, cut in two at its beginning and at each separator."""
    sized = _RESOLUTION.fullmatch(stem)
    text = sized[1] if sized else stem
    for start in (0, *(match.end() for match in _SEPARATOR.finditer(text))):
        yield text[:start].rstrip("_.- "), text[start:]


def is_auxiliary_name(stem: str) -> bool:
    """Whether a file's name without its ending is, or ends in, what accompanies bands: masks,
    quality, classes, angles, previews."""
    return any(is_auxiliary(end) or _PREVIEW.fullmatch(end) for _, end in _endings(stem))
