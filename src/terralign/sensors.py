"""Sensors as data: bands, spellings, digital numbers to physical units, RGB composites.

Everything that touches pixels asks a `Sensor`, and always by band name.

Sources: Sentinel-2 bands and GSD, ESA *Sentinel-2 Products Specification* (centre wavelengths of
S2A); quantification 10000 and the RADIO_ADD_OFFSET / BOA_ADD_OFFSET of processing baselines from
04.00 on, the same document, issue 14.9; Landsat 8/9 bands and Collection 2 scale factors, USGS
*Landsat 8-9 Collection 2 Level 2 Science Product Guide*. Composite stretches: the paper
(arXiv 2402.09816) and EuroSAT (Helber et al. 2019).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cache, lru_cache
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Literal, cast, get_type_hints

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, create_model

from terralign.errors import (
    SensorError,
    UnknownOffsetError,
    UnknownSensorError,
    nearest,
    quoted,
    some,
)
from terralign.files import read_toml
from terralign.limits import require
from terralign.toml_values import explain

Unit = Literal["reflectance", "dB", "intensity", "other"]

OFFSET_FROM_BASELINE = 400
"""Sentinel-2 processing baseline (as an integer: 04.00 -> 400) from which DN carry +1000."""

SENTINEL2_DN_OFFSET = -1000.0
"""What is added to the DN of those products (ESA's BOA_ADD_OFFSET and RADIO_ADD_OFFSET)."""


_Name = Annotated[str, Field(min_length=1)]
_Positive = Annotated[float, Field(gt=0)]


@dataclass(frozen=True, kw_only=True, slots=True)
class Band:
    """One band. `center_nm`: centre wavelength in nm (None for radar); `gsd_m`: metres."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    name: _Name
    center_nm: _Positive | None = None
    gsd_m: _Positive | None = None
    aliases: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _check_fields(self)


@dataclass(frozen=True, kw_only=True, slots=True)
class Composite:
    """How a sensor makes a picture: red, green, blue bands; `stretch` is the physical value at 1.

    The picture is `clip(physical / stretch, 0, 1)`.
    """

    __pydantic_config__ = ConfigDict(extra="forbid")

    name: _Name
    bands: tuple[str, str, str]
    stretch: _Positive

    def __post_init__(self) -> None:
        _check_fields(self)


def _check_fields(value: Band | Composite | Sensor) -> None:
    """Hold the fields against their types, lists becoming tuples; `SensorError` for another."""
    kind: Any = type(value)
    given = {field.name: getattr(value, field.name) for field in fields(kind)}
    try:
        checked = _model_of(kind).model_validate(given)
    except ValidationError as error:
        what = kind.__name__ + (f" {quoted(value.name)}" if isinstance(value.name, str) else "")
        raise SensorError(f"{what}: {explain(error, kind)}") from error
    for name in given:
        object.__setattr__(value, name, getattr(checked, name))


@cache
def _model_of(kind: type[Any]) -> type[BaseModel]:
    hints = get_type_hints(kind, include_extras=True)
    definitions: dict[str, Any] = {name: (hint, ...) for name, hint in hints.items()}
    model: type[BaseModel] = create_model(kind.__name__, **definitions)
    return model


def shorten(names: Sequence[str], *, most: int = 6) -> str:
    """Names as a short repr lists them: "B01, B02, ..., B12 (12)" where they are many."""
    if len(names) <= most:
        return ", ".join(names)
    return f"{', '.join(names[:3])}, ..., {names[-1]} ({len(names)})"


@dataclass(frozen=True, kw_only=True, slots=True, repr=False)
class Sensor:
    """A sensor or product level.

    Physical values are `(DN + dn_offset) * dn_scale + add`, in `unit`; `dn_offset` belongs to the
    product (see `sentinel2_dn_offset`), `dn_scale` and `add` to the sensor, unless a file states
    its own. A pixel whose DN is `nodata` in a band is masked; `fill` is the physical value that
    `preprocess.to_physical` gives masked pixels (towers get zero, see `preprocess.holes`).

    `SensorError` for fields that are not what they are declared as, and for two bands that answer
    to one spelling. Composites may name bands in any spelling.
    """

    __pydantic_config__ = ConfigDict(extra="forbid")

    name: _Name
    bands: Annotated[tuple[Band, ...], Field(min_length=1)]
    unit: Unit
    dn_scale: _Positive = 1.0
    add: float = 0.0
    nodata: int | None = None
    fill: float = 0.0
    offset_varies: bool = False
    """True where the DN offset depends on the product and must be declared or read."""
    composites: tuple[Composite, ...] = ()
    """RGB recipes; the first is the default. Empty: the sensor makes no RGB."""
    possible: tuple[float, float] | None = None
    """Least and greatest physical value that a number can have; None: the unit's (see
    `scenes.plausible`)."""

    def __post_init__(self) -> None:
        _check_fields(self)
        named = f"sensor {quoted(self.name)}"
        num_bands = len(self.bands) + len(self.composites)
        require("sensor_bands", num_bands, f"{named} has", fault=SensorError)
        spellings = [
            name
            for band in self.bands
            for name in {_simplify(one) for one in (band.name, *band.aliases)}
        ]
        twice = [name for name, number in Counter(spellings).items() if number > 1]
        if twice:
            raise SensorError(f"{named}: two bands answer to {quoted(twice[0])}")
        if self.possible is not None and not self.possible[0] < self.possible[1]:
            raise SensorError(
                f"{named}: possible = {list(self.possible)}: expected [least, greatest]"
            )
        canonical = (
            replace(one, bands=cast(tuple[str, str, str], self.resolve(one.bands)))
            for one in self.composites
        )
        object.__setattr__(self, "composites", tuple(canonical))

    def __repr__(self) -> str:
        """ "Sensor('sentinel1-grd': VV, VH; dB)"."""
        return f"Sensor({self.name!r}: {shorten(self.band_names)}; {self.unit})"

    @property
    def band_names(self) -> tuple[str, ...]:
        """Canonical band names, in the product's order."""
        return tuple(band.name for band in self.bands)

    def band(self, spelling: str) -> Band:
        """The band that `spelling` means (`B1`, `b01`, `B8a`, `blue`); `SensorError` if none."""
        wanted = _simplify(spelling)
        for band in self.bands:
            if wanted in {_simplify(name) for name in (band.name, *band.aliases)}:
                return band
        raise SensorError(
            f"unknown band {quoted(spelling)} of sensor {self.name!r}; "
            f"known bands: {some(self.band_names, num_shown=60)}"
        )

    def resolve(self, spellings: Iterable[str]) -> tuple[str, ...]:
        """Canonical names of several spellings, in their order; a band named twice is an error."""
        names = tuple(self.band(spelling).name for spelling in spellings)
        twice = {name for name, number in Counter(names).items() if number > 1}
        if twice:
            raise SensorError(f"sensor {self.name!r}: band {', '.join(sorted(twice))} named twice")
        return names

    def composite(self, name: str | None = None) -> Composite:
        """The RGB recipe called `name`, or the default one; `SensorError` without any."""
        if not self.composites:
            raise SensorError(
                f"sensor {self.name!r} makes no RGB composite; "
                "take the optical chip that is paired with it"
            )
        if name is None:
            return self.composites[0]
        for composite in self.composites:
            if composite.name == name:
                return composite
        known = [composite.name for composite in self.composites]
        raise SensorError(
            f"unknown composite {name!r} of sensor {self.name!r}; {nearest(name, known)}"
        )


@lru_cache(maxsize=4096)
def _simplify(spelling: str) -> str:
    """Lower case, without an `SR_` prefix, separators and leading zeros: `B08A` -> `b8a`."""
    text = re.sub(r"[\s_\-]", "", spelling.lower()).removeprefix("sr")
    return re.sub(r"^b(and)?0*(?=\d)", "b", text)


def _sentinel2_bands(*, with_b10: bool) -> tuple[Band, ...]:
    rows: list[tuple[str, float, float, tuple[str, ...]]] = [
        ("B01", 442.7, 60, ("coastal", "coastal aerosol", "aerosol")),
        ("B02", 492.4, 10, ("blue",)),
        ("B03", 559.8, 10, ("green",)),
        ("B04", 664.6, 10, ("red",)),
        ("B05", 704.1, 20, ("rededge1", "rededge", "vre1")),
        ("B06", 740.5, 20, ("rededge2", "vre2")),
        ("B07", 782.8, 20, ("rededge3", "vre3")),
        ("B08", 832.8, 10, ("nir",)),
        ("B8A", 864.7, 20, ("nir08", "nirnarrow", "rededge4", "B08A")),
        ("B09", 945.1, 60, ("nir09", "watervapor", "watervapour")),
        ("B10", 1373.5, 60, ("cirrus",)),
        ("B11", 1613.7, 20, ("swir16", "swir1")),
        ("B12", 2202.4, 20, ("swir22", "swir2")),
    ]
    return tuple(
        Band(name=name, center_nm=center, gsd_m=gsd, aliases=aliases)
        for name, center, gsd, aliases in rows
        if with_b10 or name != "B10"
    )


def _landsat_bands(*, level: Literal[1, 2]) -> tuple[Band, ...]:
    rows: list[tuple[str, float, float, tuple[str, ...]]] = [
        ("B1", 443.0, 30, ("coastal", "coastal aerosol")),
        ("B2", 482.0, 30, ("blue",)),
        ("B3", 561.4, 30, ("green",)),
        ("B4", 654.6, 30, ("red",)),
        ("B5", 864.7, 30, ("nir", "nir08")),
        ("B6", 1608.9, 30, ("swir16", "swir1")),
        ("B7", 2200.7, 30, ("swir22", "swir2")),
        ("B8", 589.5, 15, ("pan",)),
        ("B9", 1373.4, 30, ("cirrus",)),
    ]
    return tuple(
        Band(name=name, center_nm=center, gsd_m=gsd, aliases=aliases)
        for name, center, gsd, aliases in rows
        if level == 1 or name not in ("B8", "B9")
    )


def _hls_bands(*, satellite: Literal["L30", "S30"]) -> tuple[Band, ...]:
    """NASA's HLS v2.0 (its *User Guide*, tables of bands): all at 30 m, L30's without its thermal
    ones."""
    if satellite == "S30":
        return tuple(replace(band, gsd_m=30) for band in _sentinel2_bands(with_b10=True))
    return tuple(
        replace(band, name=f"B0{band.name[1:]}")
        for band in _landsat_bands(level=1)
        if band.name != "B8"
    )


_S2_RGB = ("B04", "B03", "B02")
_EUROSAT = Composite(name="eurosat", bands=_S2_RGB, stretch=0.2750)


class _Sensors(dict[str, Sensor]):
    """Sensors by name; `SENSORS["sentinel2"]` names the nearest right one."""

    def __missing__(self, name: str) -> Sensor:
        raise UnknownSensorError(f"unknown sensor {name!r}; {nearest(str(name), self)}")


SENSORS: dict[str, Sensor] = _Sensors(
    {
        "sentinel2-l1c": Sensor(
            name="sentinel2-l1c",
            bands=_sentinel2_bands(with_b10=True),
            unit="reflectance",
            dn_scale=1e-4,
            nodata=0,
            offset_varies=True,
            composites=(Composite(name="paper-l1c", bands=_S2_RGB, stretch=0.3558), _EUROSAT),
        ),
        "sentinel2-l2a": Sensor(
            name="sentinel2-l2a",
            bands=_sentinel2_bands(with_b10=False),
            unit="reflectance",
            dn_scale=1e-4,
            nodata=0,
            offset_varies=True,
            composites=(Composite(name="paper-l2a", bands=_S2_RGB, stretch=0.2000), _EUROSAT),
        ),
        "sentinel1-grd": Sensor(
            name="sentinel1-grd",
            bands=(Band(name="VV", gsd_m=10), Band(name="VH", gsd_m=10)),
            unit="dB",
            fill=-35.0,
        ),
        "landsat-oli-l1": Sensor(
            name="landsat-oli-l1",
            bands=_landsat_bands(level=1),
            unit="reflectance",
            dn_scale=2e-5,
            add=-0.1,
            nodata=0,
            composites=(Composite(name="true-colour", bands=("B4", "B3", "B2"), stretch=0.35),),
        ),
        "landsat-oli-l2": Sensor(
            name="landsat-oli-l2",
            bands=_landsat_bands(level=2),
            unit="reflectance",
            dn_scale=2.75e-5,
            add=-0.2,
            nodata=0,
            composites=(Composite(name="true-colour", bands=("B4", "B3", "B2"), stretch=0.25),),
        ),
        "hls-l30": Sensor(
            name="hls-l30",
            bands=_hls_bands(satellite="L30"),
            unit="reflectance",
            dn_scale=1e-4,
            nodata=-9999,
            composites=(Composite(name="true-colour", bands=_S2_RGB, stretch=0.25),),
        ),
        "hls-s30": Sensor(
            name="hls-s30",
            bands=_hls_bands(satellite="S30"),
            unit="reflectance",
            dn_scale=1e-4,
            nodata=-9999,
            composites=(Composite(name="true-colour", bands=_S2_RGB, stretch=0.25),),
        ),
        "rgb": Sensor(
            name="rgb",
            bands=(
                Band(name="red", center_nm=650, aliases=("R",)),
                Band(name="green", center_nm=550, aliases=("G",)),
                Band(name="blue", center_nm=470, aliases=("B",)),
            ),
            unit="intensity",
            dn_scale=1 / 255,
            composites=(Composite(name="as-is", bands=("red", "green", "blue"), stretch=1.0),),
        ),
    }
)
"""The built-in sensors by name. `sentinel1-grd` is sigma0 in dB and has no DN."""


RGB = "rgb"
"""The sensor of pictures, and the tower that takes them."""


def find_sensor(name: str, own: Mapping[str, Sensor] = MappingProxyType({})) -> Sensor:
    """The built-in sensor `name`, the one of `own` (those of a space), or that of a TOML file."""
    known = {**SENSORS, **own}
    if name in known:
        return known[name]
    if name.endswith(".toml"):
        return load_sensor(Path(name))
    raise UnknownSensorError(
        f"unknown sensor {quoted(name)}; {nearest(name, known)} (or the path of a .toml file)"
    )


def as_sensor(sensor: Sensor | str) -> Sensor:
    """A sensor, given or found by its name or TOML file (see `find_sensor`)."""
    return find_sensor(sensor) if isinstance(sensor, str) else sensor


_PLAIN = TypeAdapter(Sensor)


def parse_sensor(values: Mapping[str, Any], *, origin: str = "sensor") -> Sensor:
    """A sensor from plain values (TOML or JSON); `SensorError` names what is wrong and where."""
    try:
        sensor = _PLAIN.validate_python(dict(values))
    except ValidationError as error:
        raise SensorError(f"{origin}: {explain(error, Sensor)}") from error
    except SensorError as error:
        raise SensorError(f"{origin}: {error}") from error
    if sensor.name in SENSORS and dict(values) != describe_sensor(SENSORS[sensor.name]):
        raise SensorError(
            f"{origin}: {sensor.name!r} is a built-in sensor; give yours another name"
        )
    return sensor


def load_sensor(path: Path) -> Sensor:
    """A user-defined sensor from a TOML file whose keys are the fields of `Sensor`."""
    if str(path) in SENSORS and not Path(path).exists():
        raise SensorError(
            f"{str(path)!r} is a built-in sensor, not a TOML file; write SENSORS[{str(path)!r}]"
        )
    values = read_toml(Path(path), what="sensor file", fault=SensorError)
    return parse_sensor(values, origin=str(path))


def describe_sensor(sensor: Sensor) -> dict[str, Any]:
    """A sensor as plain JSON values; `parse_sensor` makes the same sensor of them."""
    values: dict[str, Any] = _PLAIN.dump_python(sensor, mode="json")
    if sensor.possible is None:  # as in spaces from before it was recorded
        del values["possible"]
    return values


def sentinel2_dn_offset(
    *,
    product_name: str | None = None,
    metadata_add_offset: float | None = None,
    declared: float | None = None,
) -> float:
    """What must be added to a Sentinel-2 product's DN before scaling: 0 or -1000.

    In this order: `metadata_add_offset` (the product's own BOA_ADD_OFFSET / RADIO_ADD_OFFSET),
    `declared` (the data set's declaration, for archives that removed the offset already), then the
    processing baseline in a standard `product_name` (`..._N0400_...`). A date decides nothing, and
    `N9999` (reprocessed by a third party) states nothing: it raises `SensorError`.
    """
    if metadata_add_offset is not None:
        return float(metadata_add_offset)
    if declared is not None:
        return float(declared)
    match = re.search(r"S2[A-D]_MSIL(?:1C|2A)_\d{8}T\d{6}_N(\d{4})_", product_name or "")
    if match and match[1] != "9999":
        return SENTINEL2_DN_OFFSET if int(match[1]) >= OFFSET_FROM_BASELINE else 0.0
    said = f"the name {product_name!r} says nothing" if product_name else "nothing was said"
    raise UnknownOffsetError(
        f"Sentinel-2 DN offset unknown: {said} about the processing baseline; "
        "declare it (-1000 for baseline 04.00 and later as ESA delivers it, "
        "0 for older products and for archives that removed it)"
    )
