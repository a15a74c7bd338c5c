"""What a GeoTIFF calls its bands, which bands of a sensor that means, and which are to be read.

Names come from band descriptions and from the tags that GDAL, SNAP and others write. A name is
understood where it can mean one band only; what is not understood is quoted, never guessed.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rasterio.enums import ColorInterp

from terralign.errors import MAX_SHOWN, DataError, SensorError, shown, some
from terralign.sensors import Band, Sensor

logger = logging.getLogger(__name__)

SKIP = ("-", "skip")
"""What is declared for a band of a file that is left out."""

_TAGS = ("band_name", "bandname", "band", "name", "long_name", "netcdf_varname")
"""Tags of a band that hold its name, in lower case."""

_AUXILIARY = re.compile(
    r"(qa|pixel_qa|bqa)(_?\w+)?|msk_\w+|scl|aot|wvp|tci(_[rgb])?|cld|snw|cloud\w*|clm|clp|clear\w*"
    r"|datamask|data_mask|fmask|mask|valid_?mask|sr_(qa_aerosol|aerosol|atmos_opacity|cloud_qa)"
    r"|(qa_)?(radsat|aerosol)(_qa)?|st_\w+|(local_?|projected_?)?(incidence_?)?angle\w*"
    r"|localincidenceangle|layover\w*|shadow\w*|[sv][az]a|(sun|view|solar|sensor)_?(azimuth|zenith)\w*"
    r"|is_cloud\w*|no_?data_pixels|alpha",
    re.IGNORECASE,
)
"""Names of bands that accompany measured ones: masks, quality, classes, angles."""

_VALIDITY = re.compile(r"(data|valid)_?mask", re.IGNORECASE)
"""Names of bands that are 0 where the others have no data, as Sentinel Hub's `dataMask`."""

_WITH_WAVELENGTH = re.compile(
    r"([^,]+),\s*central wavelength\s*(\d+(?:\.\d*)?)\s*nm", re.IGNORECASE
)
_WITH_GSD = re.compile(r"(B\d{1,2}A?)[_ ]\d\dm", re.IGNORECASE)
# Sigma0_VV and Sigma0_VV_db of SNAP, and the same of gamma0, name the polarisation, which is what
# a band is. Whether the numbers are dB is not taken from the name: linear power is found, and
# refused, where numbers are held against the sensor's unit.
_BACKSCATTER = re.compile(r"(?:sigma|gamma)_?0[_ ](vv|vh|hh|hv)(?:[_ ]db)?", re.IGNORECASE)
_POSITION = re.compile(
    r"(?:b|bands?|layer|channel|ch|bande|raster|image)?[\s_#.:-]*(\d{1,6})", re.IGNORECASE
)
_MAX_SHIFT_NM = 30


@dataclass(frozen=True, kw_only=True, slots=True)
class BandNames:
    """The bands of a file, in its order.

    `texts`: what the file calls each, empty where nothing. `names`: the sensor's band that this
    means, None where none. `extra`: True for a band that measures nothing (a mask, quality,
    alpha). `alpha`: True for one that the file marks as alpha. `only_positions`: the texts only
    count the bands ("B1", "B2"; "Band 1"), so that `names` are all None.
    """

    texts: tuple[str, ...]
    names: tuple[str | None, ...]
    extra: tuple[bool, ...]
    alpha: tuple[bool, ...]
    only_positions: bool

    def quoted(self) -> str:
        """The texts as an error shows them."""
        return some([repr(text) if text else "(no name)" for text in self.texts], num_shown=60)


def read_band_names(source: Any, sensor: Sensor) -> BandNames:
    """What an open GeoTIFF calls its bands, and what that means for `sensor`.

    `DataError` where two names of one band contradict each other.
    """
    found = [_texts_of(source, position) for position in range(1, source.count + 1)]
    alpha = [one == ColorInterp.alpha for one in source.colorinterp]
    texts, names = [], []
    for position, candidates in enumerate(found, start=1):
        named = [text for text in candidates if not _is_position(text, position)]
        meant = _meanings(named, sensor) or _meanings(candidates, sensor)
        if len(set(meant.values())) > 1:
            raise DataError(
                f"{shown(source.name)} calls band {position} {' and '.join(map(repr, meant))}, "
                f"which are different bands of {sensor.name!r}; correct the file's descriptions"
            )
        texts.append(next(iter([*meant, *named, *candidates]), ""))
        names.append(next(iter(meant.values()), None))
    counted = _only_count(texts, alpha, sensor)
    if counted:
        names = [None] * len(names)
    extra = [
        name is None and (is_alpha or is_auxiliary(text.partition(",")[0]))
        for name, is_alpha, text in zip(names, alpha, texts, strict=True)
    ]
    return BandNames(
        texts=tuple(texts),
        names=tuple(names),
        extra=tuple(extra),
        alpha=tuple(alpha),
        only_positions=counted,
    )


def is_auxiliary(name: str) -> bool:
    """Whether a name is that of something that accompanies measured bands."""
    return _AUXILIARY.fullmatch(name) is not None


def is_validity(name: str) -> bool:
    """Whether a name is that of a band that is 0 where the others have no data."""
    return _VALIDITY.fullmatch(name.strip()) is not None


def _texts_of(source: Any, position: int) -> list[str]:
    tags = {key.lower(): str(value) for key, value in source.tags(position).items()}
    texts = [source.descriptions[position - 1] or "", *(tags.get(key, "") for key in _TAGS)]
    cut = (text.strip()[:MAX_SHOWN] for text in texts)  # what is longer names no band
    return list(dict.fromkeys(text for text in cut if text))


def _meanings(texts: Iterable[str], sensor: Sensor) -> dict[str, str]:
    """Those texts that name a band, and its canonical name."""
    return {text: band.name for text in texts if (band := band_meant(text, sensor))}


def _is_position(text: str, position: int) -> bool:
    found = _POSITION.fullmatch(text)
    return found is not None and int(found[1]) in (position, position - 1)


def _only_count(texts: Sequence[str], alpha: Sequence[bool], sensor: Sensor) -> bool:
    """Whether texts are positions alone; not where they are a sensor's own names, all in order."""
    given = [(n, text) for n, text in enumerate(texts, start=1) if text and not alpha[n - 1]]
    if not given or not all(_is_position(text, number) for number, text in given):
        return False
    own = [{name.casefold() for name in (band.name, *band.aliases)} for band in sensor.bands]
    whole = len(given) == len(own) and all(
        text.casefold() in names for (_, text), names in zip(given, own, strict=True)
    )
    return not whole


def band_meant(text: str, sensor: Sensor) -> Band | None:
    """The band that a text names without doubt, as the sensor, GDAL or SNAP spell it."""
    wave = _WITH_WAVELENGTH.fullmatch(text)
    sized, power = _WITH_GSD.fullmatch(text), _BACKSCATTER.fullmatch(text)
    short = wave or sized or power
    try:
        band = sensor.band(short[1].strip() if short else text)
    except SensorError:
        return None
    if wave and band.center_nm is not None and abs(float(wave[2]) - band.center_nm) > _MAX_SHIFT_NM:
        return None
    return band


Chosen = tuple[tuple[str, ...], tuple[int, ...]]
"""Canonical names of the bands to read, and where they are in the file, counted from 1."""


def named_bands(path: Path, found: BandNames, sensor: Sensor) -> Chosen:
    """The bands of a file that names them; those that measure nothing are left out, and logged.

    `DataError` lists what the file calls its bands where that is not enough.
    """
    there = f"{shown(path)} has {len(found.texts)} band(s)"
    folder = "; of a product with a file per band, give the folder" if len(found.texts) == 1 else ""
    offset = ", and dn_offset= unless its name states it" if sensor.offset_varies else ""
    remedy = (
        f"sensor {sensor.name!r} has {len(sensor.bands)} "
        f"({some(sensor.band_names, num_shown=60)}). "
        f"Give bands= in the file's order, '-' for a band to leave out{offset}{folder}"
    )
    if not any(found.texts):
        raise DataError(f"{there} and does not name them; {remedy}")
    if found.only_positions:
        raise DataError(
            f"{there} and does not name them: {found.quoted()} are only positions; {remedy}"
        )
    rows = [n for n, extra in enumerate(found.extra) if not extra]
    unknown = [n for n in rows if found.names[n] is None]
    if unknown or not rows:
        which = some(
            [
                f"{found.texts[n]!r} is not known"
                if found.texts[n]
                else f"band {n + 1} has no name"
                for n in unknown
            ]
        )
        raise DataError(f"{there}, called {found.quoted()}: {which or 'none measures'}; {remedy}")
    names = tuple(name for n in rows if (name := found.names[n]) is not None)
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise DataError(f"{there}, called {found.quoted()}: two of them are {twice}; {remedy}")
    left_out = [found.texts[n] for n, extra in enumerate(found.extra) if extra and found.texts[n]]
    if left_out:
        what = "is no band" if len(left_out) == 1 else "are no bands"
        _warn_once(path, f"{_quote(left_out)} {what} of sensor {sensor.name!r}, left out")
    gamma = [found.texts[n] for n in rows if found.texts[n].lower().startswith("gamma")]
    if gamma and sensor.unit == "dB":
        _warn_once(
            path, f"{_quote(gamma)} by name is gamma0, read as the sigma0 of {sensor.name!r}"
        )
    return names, tuple(n + 1 for n in rows)


_warned: set[str] = set()


def _warn_once(path: Path, text: str) -> None:
    """Once for files that are alike."""
    if text not in _warned:
        _warned.add(text)
        logger.warning("%s: %s", shown(path), text)


def _quote(texts: Iterable[str]) -> str:
    return some([repr(text) for text in texts])


def declared_bands(path: Path, found: BandNames, sensor: Sensor, declared: Sequence[str]) -> Chosen:
    """The bands as declared: one for each of the file's ("-": left out), or some that it names.

    `DataError` where their number does not fit, or the file's own names contradict them.
    """
    kept = [n for n, text in enumerate(declared) if text.strip().lower() not in SKIP]
    try:
        names = sensor.resolve(declared[n] for n in kept)
    except SensorError as error:
        raise SensorError(f"{shown(path)}: {error}") from error
    if not names:
        raise DataError(f"{shown(path)}: every band was declared as left out; name at least one")
    count = len(found.texts)
    opaque = [n for n in range(count) if not found.alpha[n]]
    if len(declared) == count:
        rows = kept
    elif len(declared) == len(opaque) and not any(found.names):
        rows = [opaque[n] for n in kept]
    elif len(kept) == len(declared) and all(found.names.count(name) == 1 for name in names):
        rows = [found.names.index(name) for name in names]
    else:
        called = f", called {found.quoted()}" if any(found.texts) else ""
        raise DataError(
            f"{shown(path)} has {count} band(s){called}, but {len(declared)} were declared "
            f"({', '.join(declared)}); declare one band for each of the file's, in its order, "
            "'-' for one to leave out"
        )
    if any(found.names[n] not in (None, name) for n, name in zip(rows, names, strict=True)):
        called = some([found.names[n] or repr(found.texts[n]) for n in rows], num_shown=60)
        raise DataError(
            f"{shown(path)} calls its bands {called}, but {', '.join(names)} was declared; "
            "correct the declaration or the descriptions in the file"
        )
    return names, tuple(n + 1 for n in rows)
