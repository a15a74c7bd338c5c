"""Declared against measured: whether numbers can be what is declared of them.

A range that the unit does not allow is refused; one that it allows but that hardly occurs is warned
of once. What a sensor's numbers may be is the sensor's own data (`Sensor.possible`), else that of
its unit. C bands, H W pixels.

Sources: sigma0 of land and sea in C band is between about -30 and 10 dB (ESA *Sentinel-1 Product
Specification*); reflectance of land, water, snow and cloud between 0 and about 1.5; Sentinel-2's DN
offset, see `sensors`.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Iterable
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from terralign.chips import PixelLayout
from terralign.errors import NumbersError, counted
from terralign.sensors import SENTINEL2_DN_OFFSET, Sensor

logger = logging.getLogger(__name__)

NUM_CHECKED = 32
"""Samples of a set, evenly spaced, that are judged together."""

MAX_NUMBERS = 200_000
"""Numbers per band and sample set that shares and percentiles are taken from, evenly spaced."""

MAX_SHARE = 1e-3
"""Largest share of impossible numbers that is let through (dead pixels, resampling)."""

NUM_OF_SAMPLE = 1000
"""Numbers per band that `check_sample` looks at."""

MAX_SHARE_OF_SAMPLE = 0.01
"""`MAX_SHARE` of those, a few of which may be dead."""

MAX_ZEROS = 0.01
"""Share of pixels that are 0 in every band, above which 0 may be what marks no data."""

_POSSIBLE = {"reflectance": (-0.5, 10.0), "dB": (-100.0, 60.0), "intensity": (0.0, 1.0)}
"""Unit -> least and greatest physical value that a number can have; 10.0 leaves room for saturated
DN."""

_FLOOR = 0.001
"""The share of the darkest pixels whose brightest one is a band's floor."""

_DARK_DN = 700.0
"""With DN that carry 1000, a smaller one is a reflectance below -0.03: ESA's products have
slightly negative pixels, but hardly such ones."""

_LEAST_FLOOR, _DARKEST_FLOOR, _GREATEST_FLOOR = 900.0, 1150.0, 1300.0
"""Where DN carry 1000, no band's floor is below the first, the darkest band's is up to the second,
and the floors of five in six bands up to the third. Of 1,572 EuroSAT tiles and L2A patches without
the offset none looks like that."""

_BRIGHT_FLOOR = 0.5
"""A reflectance that some number is below in every band of a scene of land or water. Landsat's DN,
scaled as Sentinel-2's, have none; of the 1,200 L2A patches above, the brightest has 0.06."""

_SHORTWAVE = 0.05
"""A reflectance in B12 above which it shows a wrong order of bands: water is darker, and noise."""

_CROSS_ABOVE_CO = 2.0
"""dB. Cross-polarised backscatter is the weaker one; of 70 BigEarthNet patches one has a VH above
its VV, by 0.8 dB."""

_WRAPPED = 5000
"""Whole numbers this close below the largest of their type were negative."""

_MAX_DARK = 0.002
_DARK = 0.03
"""A reflectance that brightest pixels exceed; 255 as DN of Sentinel-2 are 0.0255."""

_REMOVED = (
    "The offset was removed already: declare dn_offset=0; where the file's bands or metadata state "
    "it, correct those (gdal_edit.py -scale 1 -offset 0)"
)
_TO_DECIBEL = "Linear power becomes dB by 10 * log10(power), amplitude by 20 * log10(amplitude)"
_VISIBLE = ("B02", "B03", "B04")

Verdict = Literal["agrees", "contradicts", "undecidable"]

_warned: set[tuple[str, ...]] = set()
_lock = threading.Lock()


def check_numbers(
    samples: Iterable[tuple[NDArray[Any], NDArray[np.bool_]]], layout: PixelLayout, *, origin: str
) -> None:
    """Hold pixels against their layout; `samples`: pairs of pixels and valid, (C, H, W) each.

    All samples are judged together, so give a whole scene, or some samples of a whole data set.
    Raises `NumbersError` where the type or range of the numbers is impossible for what is declared;
    logs a warning where it is unlikely, once per sensor and reason for the files of one folder, and
    for each data set.
    """
    parts = list(samples)
    known = _numbers_by_band(parts, layout)
    if not known:
        return
    dtype = np.result_type(*(pixels.dtype for pixels, _ in parts))
    judge = _Judge(layout, origin)
    for band, numbers in known.items():
        judge.fractions(dtype, numbers, where=f" in {band}")
    judge.wrapped(dtype, known)
    if layout.sensor.name.startswith("sentinel2-"):
        judge.sentinel2_offset(known)
    judge.positive_offset()
    judge.zeros(parts)
    judge.stretched(dtype, known)
    judge.order(known)
    _judge_all(judge, dtype, known, max_share=MAX_SHARE)


def check_sample(pixels: NDArray[Any], layout: PixelLayout, *, origin: str) -> None:
    """Refuse one sample (C, H, W) for what `check_numbers` refuses, whatever others of its set are.

    Numbers without data are not finite or the sensor's no-data DN. Some numbers of each band are
    looked at, so that every sample of a data set can be; nothing is warned of.
    """
    flat = pixels.reshape(len(pixels), -1)
    some = flat[:, :: -(-flat.shape[1] // NUM_OF_SAMPLE)]
    known = _numbers_by_band([(some, np.isfinite(some))], layout, extremes=False)
    if not known:
        return
    judge = _Judge(layout, origin, warns=False)
    judge.fractions(pixels.dtype, np.concatenate(list(known.values())))  # one band may be dark
    if layout.units == "dn" and layout.sensor.name.startswith("sentinel2-"):
        judge.offset_of_sample(known)
    _judge_all(judge, pixels.dtype, known, max_share=MAX_SHARE_OF_SAMPLE)


def _judge_all(
    judge: _Judge,
    dtype: np.dtype[Any],
    known: dict[str, NDArray[np.float64]],
    *,
    max_share: float,
) -> None:
    layout = judge.layout
    everything = np.concatenate(list(known.values()))
    judge.type(dtype)
    physical = judge.physical(everything)
    judge.limits(physical, max_share)
    if layout.sensor.unit == "reflectance":
        judge.reflectance(physical)
        judge.floors(known)
    elif layout.sensor.unit == "dB":
        judge.decibel(physical)
    elif layout.sensor.unit == "intensity":
        judge.intensity(physical)


def possible_range(sensor: Sensor) -> tuple[float, float] | None:
    """Least and greatest physical value that a number of the sensor can have; None: any."""
    return sensor.possible or _POSSIBLE.get(sensor.unit)


def sentinel2_offset_verdict(visible: NDArray[np.floating[Any]], dn_offset: float) -> Verdict:
    """Whether valid DN of the visible bands (any shape) fit a DN offset of 0 or -1000.

    Dark pixels decide: water, shadow and forest have a red reflectance near zero in every clear
    scene. A hazy or cloudy scene has none, and nothing follows from that.
    """
    dark = float(np.mean(visible < _DARK_DN))
    if dn_offset == 0:
        return "agrees" if dark > _MAX_DARK else "undecidable"
    if dark > _MAX_DARK:
        return "contradicts"
    floor = float(np.quantile(visible, _FLOOR))
    return "agrees" if floor < 1000 - SENTINEL2_DN_OFFSET * 0.3 else "undecidable"


def offset_verdict(
    samples: Iterable[tuple[NDArray[Any], NDArray[np.bool_]]], layout: PixelLayout
) -> Verdict:
    """`sentinel2_offset_verdict` of the visible bands of samples, as for `check_numbers`."""
    known = _numbers_by_band(list(samples), layout)
    visible = [known[band] for band in _VISIBLE if band in known]
    if not visible:
        return "undecidable"
    return sentinel2_offset_verdict(np.concatenate(visible), layout.dn_offset)


def concluded_offset(
    samples: Iterable[tuple[NDArray[Any], NDArray[np.bool_]]], layout: PixelLayout
) -> tuple[float, str] | None:
    """The DN offset of Sentinel-2 that the pixels leave possible, and why; None if both are.

    `samples`: of a whole scene, as for `check_numbers`. Of 0 and -1000, only -1000 can be
    contradicted: dark pixels of the visible bands would have a clearly negative reflectance.
    """
    known = _numbers_by_band(list(samples), layout)
    visible = [known[band] for band in _VISIBLE if band in known]
    if not visible:
        return None
    dn = np.concatenate(visible)
    if sentinel2_offset_verdict(dn, SENTINEL2_DN_OFFSET) != "contradicts":
        return None
    share = 100 * float(np.mean(dn < _DARK_DN))
    return 0.0, (
        f"the pixels rule out {SENTINEL2_DN_OFFSET:g} ({share:.3g} % of the "
        f"visible bands' DN are below {_DARK_DN:g}, down to {dn.min():g}); using 0"
    )


def _numbers_by_band(
    parts: list[tuple[NDArray[Any], NDArray[np.bool_]]],
    layout: PixelLayout,
    *,
    extremes: bool = True,
) -> dict[str, NDArray[np.float64]]:
    """Valid raw numbers of bands that have any, at most about MAX_NUMBERS each.

    `extremes`: with the least and the greatest of each sample, always.
    """
    found: dict[str, NDArray[np.float64]] = {}
    share = max(1, MAX_NUMBERS // max(1, len(parts)))
    nodata = layout.sensor.nodata if layout.units == "dn" else None
    for channel, band in enumerate(layout.bands):
        pieces = []
        for pixels, valid in parts:
            flat = pixels[channel][valid[channel]]
            if nodata is not None:
                flat = flat[flat != nodata]
            if len(flat):
                spread = flat[:: -(-len(flat) // share)]
                ends = [flat.min(), flat.max()] if extremes else []
                pieces.append(np.append(spread, ends).astype(np.float64))
        if pieces:
            found[band] = np.concatenate(pieces)
    return found


class _Judge:
    """The rules, and how a fault or a doubt is reported."""

    def __init__(self, layout: PixelLayout, origin: str, *, warns: bool = True) -> None:
        self.layout, self.sensor, self.origin = layout, layout.sensor, origin
        self.warns = warns

    def refuse(self, what: str) -> None:
        raise NumbersError(f"{self.origin}: {what}")

    def doubt(self, reason: str, what: str) -> None:
        if not self.warns:
            return
        key = (self.sensor.name, reason, os.path.dirname(self.origin) or self.origin)
        with _lock:
            known = key in _warned
            _warned.add(key)
        if not known:
            logger.warning("%s: %s", self.origin, what)

    def physical(self, numbers: NDArray[np.float64]) -> NDArray[np.float64]:
        """Numbers in the sensor's unit."""
        layout = self.layout
        if layout.units == "physical":
            return numbers
        return (numbers + layout.dn_offset) * layout.dn_scale + layout.add

    def wrapped(self, dtype: np.dtype[Any], known: dict[str, NDArray[np.float64]]) -> None:
        """Numbers below zero that became the largest of an unsigned type; saturated ones, which are
        the largest, do not count."""
        if self.sensor.unit != "reflectance" or dtype != np.uint16:
            return
        largest = float(np.iinfo(dtype).max)
        numbers = np.concatenate(list(known.values()))
        wrapped = (numbers > largest - _WRAPPED) & (numbers < largest)
        if float(wrapped.mean()) > MAX_SHARE and self.physical(numbers[wrapped]).min() > 3:
            self.refuse(
                f"{100 * wrapped.mean():.3g} % of the numbers lie just below {largest:g}, such as "
                f"{numbers[wrapped].min():g}, as numbers below zero do in {dtype} (was an offset "
                "subtracted in it?); subtract in int32, or give the original DN and dn_offset"
            )

    def stretched(self, dtype: np.dtype[Any], known: dict[str, NDArray[np.float64]]) -> None:
        """Fractions that reach from exactly 0 to exactly 1 in every band."""
        fractions = self.layout.units == "physical" and np.issubdtype(dtype, np.floating)
        if not fractions or self.sensor.unit != "reflectance" or len(known) < 2:
            return
        if all(numbers.min() == 0 and numbers.max() == 1 for numbers in known.values()):
            self.doubt(
                "stretched",
                "every band reaches from exactly 0 to exactly 1, as numbers do that were stretched "
                "or clipped to that; give reflectance as it was measured",
            )

    def order(self, known: dict[str, NDArray[np.float64]]) -> None:
        """Pairs of bands of which one is nearly always the brighter one."""
        middle = {band: float(np.median(self.physical(one))) for band, one in known.items()}
        if self.sensor.unit == "dB" and {"VV", "VH"} <= middle.keys():
            if middle["VH"] > middle["VV"] + _CROSS_ABOVE_CO:
                self.doubt_order("VH", "VV", "are the two exchanged?")
        elif self.sensor.name.startswith("sentinel2-"):
            last = "do they come in another order (EuroSAT has B8A last)?"
            if {"B09", "B10"} <= middle.keys() and middle["B10"] > 1.5 * middle["B09"]:
                self.doubt_order("B10", "B09", last)
            elif middle.get("B12", 0) > max(_SHORTWAVE, 1.2 * middle.get("B11", np.inf)):
                self.doubt_order("B12", "B11", last)

    def doubt_order(self, band: str, other: str, todo: str) -> None:
        self.doubt(
            "order",
            f"{band} is brighter than {other}, which it hardly ever is; check the bands: {todo}",
        )

    def floors(self, known: dict[str, NDArray[np.float64]]) -> None:
        """Some number of each band is dark, unless the scale is another sensor's."""
        num = sum(map(len, known.values()))
        if not self.warns or len(known) < 3 or num < 1000:
            return
        for numbers in known.values():
            if float(np.mean(self.physical(numbers) <= _BRIGHT_FLOOR)) > _FLOOR:
                return
        self.doubt(
            "bright floor",
            f"hardly a number is a reflectance below {_BRIGHT_FLOOR:g}, as those of water, shadow "
            "and plants are; are these DN of another sensor or scale (as Landsat's)?",
        )

    def type(self, dtype: np.dtype[Any]) -> None:
        """A type whose largest number is dark cannot hold what is declared."""
        if self.layout.units != "dn" or not np.issubdtype(dtype, np.integer):
            return
        largest = float(np.iinfo(dtype).max)
        physical = (largest + self.layout.dn_offset) * self.layout.dn_scale + self.layout.add
        if self.sensor.unit == "reflectance" and physical < 0.05:
            self.refuse(
                f"{dtype} numbers reach {largest:g}, which is a reflectance of {physical:.3g} as "
                f"DN of {self.sensor.name!r}; {dtype} cannot hold them. Are these a stretched "
                "picture? Give the original DN, or declare sensor 'rgb'"
            )

    def fractions(self, dtype: np.dtype[Any], raw: NDArray[np.float64], *, where: str = "") -> None:
        """Fractions below 2 are no DN, unless the sensor's own scale is of that size."""
        floating = np.issubdtype(dtype, np.floating)
        if self.layout.units != "dn" or not floating or self.layout.dn_scale > 0.01:
            return
        if np.abs(raw).max() <= 2 and (raw != np.round(raw)).any():
            self.refuse(
                f"fractions from {raw.min():.3g} to {raw.max():.3g}{where} are declared to be DN, "
                f"which are whole numbers; declare units='physical' ({self.sensor.unit}), or give "
                "bands that all hold DN"
            )

    def zeros(self, parts: list[tuple[NDArray[Any], NDArray[np.bool_]]]) -> None:
        """Pixels of 0 in every band, where 0 is a legal number, hardly occur in nature."""
        marked = self.layout.units == "dn" and self.sensor.nodata is not None
        if marked or self.sensor.unit not in ("reflectance", "dB"):
            return
        num_zero = num_valid = 0
        for pixels, valid in parts:
            step = -(-pixels[0].size // max(1, MAX_NUMBERS // len(parts)))
            some = pixels.reshape(len(pixels), -1)[:, ::step]
            known = valid.reshape(len(pixels), -1)[:, ::step]
            num_zero += int(((some == 0) & known).all(0).sum())
            num_valid += int(known.any(0).sum())
        if num_zero > MAX_ZEROS * num_valid:
            self.doubt(
                "zeros",
                f"{100 * num_zero / num_valid:.3g} % of the pixels are exactly 0 in every band and "
                "count as valid; if 0 marks no data, state it as the file's nodata value "
                "(gdal_edit.py -a_nodata 0), or make it NaN",
            )

    def positive_offset(self) -> None:
        if self.layout.dn_offset > 0 and self.sensor.unit == "reflectance":
            self.doubt(
                "positive offset",
                f"dn_offset={self.layout.dn_offset:g} is added to the DN; an offset that the DN "
                "carry is removed by a negative one",
            )

    def limits(self, physical: NDArray[np.float64], max_share: float) -> None:
        limits = possible_range(self.sensor)
        if limits is None:
            return
        low, high = limits
        slack = 1e-3 * (high - low) if self.sensor.unit == "intensity" else 0.0
        outside = (physical < low - slack) | (physical > high + slack)
        share = float(outside.mean())
        if not share:
            return
        shown = physical[outside]
        worst = float(shown[np.argmax(np.abs(shown))])
        text = (
            f"{100 * share:.3g} % of the numbers lie outside {low:g} to {high:g} "
            f"{self.sensor.unit}, such as {worst:.6g}{self._as_dn(worst)}; {self._remedy(worst)}"
        )
        if share > max_share or self.sensor.unit == "intensity":
            self.refuse(text)
        self.doubt("limits", text)

    def _as_dn(self, physical: float) -> str:
        if self.layout.units != "dn":
            return ""
        dn = (physical - self.layout.add) / self.layout.dn_scale - self.layout.dn_offset
        return f" (DN {dn:.6g})"

    def _remedy(self, worst: float) -> str:
        if self.sensor.unit == "intensity":
            if self.layout.units == "physical":
                return "physical RGB is 0-1: scale the numbers, or declare units='dn' (0-255)"
            return (
                "RGB numbers are 8-bit, 0 to 255: these are of 16 bits or of another kind; declare "
                "their sensor, or convert them to 8 bits"
            )
        low = possible_range(self.sensor) or (0.0, 0.0)
        if worst < low[0]:
            return (
                "declare the number that marks no data (as the file's nodata value or the "
                "sensor's), or correct units, scale or offset"
            )
        if self.sensor.unit == "dB":
            return f"these are no dB. {_TO_DECIBEL}"
        if self.layout.units == "physical" and self.sensor.unit == "reflectance":
            return "are these digital numbers or per cent? Declare units='dn', or divide them"
        return "correct units, scale or offset, or name the sensor that made them"

    def reflectance(self, physical: NDArray[np.float64]) -> None:
        middle = float(np.median(physical))
        if middle > 2:
            self.refuse(
                f"half of the numbers are a reflectance above {middle:.3g}, which no surface has; "
                "correct units, scale or offset (is it per cent?)"
            )
        if middle < -0.05:
            self.refuse(
                f"half of the numbers are a reflectance below {middle:.3g}, which no surface has; "
                "the scale or offset is not that of these numbers"
            )
        if float(np.mean(physical > 1.6)) > 0.25:
            self.doubt(
                "bright",
                "more than a quarter of the reflectance is above 1.6; check units and scale",
            )
        if float(np.mean(physical < -0.05)) > 0.05:
            self.doubt(
                "negative", "more than 5 % of the reflectance is below -0.05; check the offset"
            )
        top = float(np.quantile(physical, 0.999))
        if 0 < top < _DARK:
            self.doubt(
                "dark",
                f"the brightest pixels have a reflectance of {top:.3g}; check units and scale",
            )

    def decibel(self, physical: NDArray[np.float64]) -> None:
        low, middle, high = np.quantile(physical, (0.01, 0.5, 0.99)).tolist()
        if physical.min() == physical.max() == 0:
            self.doubt("zero", "all numbers are 0; is 0 the number that marks no data?")
        elif low >= 0:
            self.refuse(
                f"the numbers lie between {physical.min():.3g} and {physical.max():.3g}; sigma0 in "
                f"dB is mostly negative. {_TO_DECIBEL}"
            )
        if low > -3 and high < 3:
            self.doubt(
                "narrow",
                f"98 % of the numbers lie between {low:.3g} and {high:.3g} dB, which sigma0 hardly "
                "does; are they normalised or linear?",
            )
        elif not -45 < middle < 5:
            self.doubt("middle", f"the median is {middle:.3g} dB, which sigma0 hardly has")

    def intensity(self, physical: NDArray[np.float64]) -> None:
        if self.layout.units == "physical" or physical.max() > 1.5 / 255 or physical.max() == 0:
            return
        self.doubt(
            "dark picture",
            "no number is above 1 of 255; if these are fractions, declare units='physical'",
        )

    def offset_of_sample(self, known: dict[str, NDArray[np.float64]]) -> None:
        """Of one sample most visible numbers decide, since one of water alone may be all dark."""
        visible = [known[band] for band in _VISIBLE if band in known]
        middle = float(np.median(np.concatenate(visible))) if visible else _DARK_DN
        if self.layout.dn_offset < 0 and middle < _DARK_DN:
            self.refuse(
                f"an offset of {self.layout.dn_offset:g} contradicts the pixels: half of the "
                f"visible bands' DN are below {middle:.4g} and would become clearly negative. "
                f"{_REMOVED}"
            )

    def sentinel2_offset(self, known: dict[str, NDArray[np.float64]]) -> None:
        offset = self.layout.dn_offset
        in_dn = self.layout.units == "dn"
        if not in_dn:
            known = {band: numbers / self.sensor.dn_scale for band, numbers in known.items()}
        visible = [known[band] for band in _VISIBLE if band in known]
        if not visible:
            return
        dn = np.concatenate(visible)
        if offset < 0 and sentinel2_offset_verdict(dn, offset) == "contradicts":
            share = 100 * float(np.mean(dn < _DARK_DN))
            self.refuse(
                f"an offset of {offset:g} contradicts the pixels: {share:.3g} % of the visible "
                f"bands' DN are below {_DARK_DN:g}, down to {dn.min():g}, and would become clearly "
                f"negative. {_REMOVED}"
            )
        if offset == 0 and len(visible) == len(_VISIBLE) and len(dn) > 1000:
            floors = self._floors_with_offset(known)
            if floors and not in_dn:
                self.doubt(
                    "offset",
                    f"the darkest numbers of {len(floors)} of {counted(len(known), 'band')} lie "
                    f"between {floors[0] * 1e-4:.3f} and {floors[-1] * 1e-4:.3f}, and none lower, "
                    "as where Sentinel-2's offset was left in; if it was, subtract 0.1",
                )
            elif floors:
                self.doubt(
                    "offset",
                    f"the darkest DN of {len(floors)} of {counted(len(known), 'band')} lie between "
                    f"{floors[0]:g} and {floors[-1]:g}, and none lower, as where DN carry "
                    "Sentinel-2's offset of 1000; if they do, declare the offset: -1000 "
                    "(dn_offset=, --dn-offset)",
                )

    def _floors_with_offset(self, known: dict[str, NDArray[np.float64]]) -> list[float]:
        """The bands' floors, sorted, where DN seem to carry the offset, without the few that lie
        above it (water vapour, desert, vegetation); empty where they do not."""
        low: list[float] = []
        num_above = 0
        for values in known.values():
            floor = float(np.quantile(values, _FLOOR))
            if floor <= _GREATEST_FLOOR:
                low.append(floor)
            else:
                num_above += 1
            if floor < _LEAST_FLOOR or 6 * num_above > len(known):
                return []  # of most scenes after few bands: quantiles take a while
        return sorted(low) if low and min(low) <= _DARKEST_FLOOR else []
