"""Which rows of an index a search looks at: place, dates, shares, sensors and towers."""

from __future__ import annotations

import datetime as dt
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import shapely
from numpy.typing import NDArray

from terralign.errors import DataError, counted, first_line, nearest, shown, some
from terralign.files import read_json
from terralign.index.parts import shapes_of
from terralign.index.store import NO_TIME, ROW, Store
from terralign.limits import require
from terralign.scenes.places import to_wgs84

Day = dt.date | dt.datetime | str


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Filters:
    """Conditions that rows must meet; None: any.

    `bbox`: (west, south, east, north) in degrees, west greater than east across the antimeridian;
    `polygon`: in degrees; windows that touch them are found. `start`, `end`: microseconds since
    1970, the end left out. Windows of unknown time, or cloud, do not meet a condition on it.
    """

    bbox: tuple[float, float, float, float] | None = None
    polygon: Any = None
    start: int | None = None
    end: int | None = None
    max_cloud: float | None = None
    min_valid: float | None = None
    sensors: tuple[str, ...] | None = None
    towers: tuple[str, ...] | None = None

    @property
    def period(self) -> str:
        """The days from start to end, as messages name them."""
        days = [
            "..." if one is None else str(np.datetime64(one, "us").astype("datetime64[D]"))
            for one in (self.start, None if self.end is None else self.end - 1)
        ]
        return days[0] if days[0] == days[1] else f"{days[0]} to {days[1]}"


def make_filters(
    *,
    bbox: Sequence[float] | None = None,
    polygon: Any = None,
    start: Day | None = None,
    end: Day | None = None,
    max_cloud: float | None = None,
    min_valid: float | None = None,
    sensors: str | Sequence[str] | None = None,
    towers: str | Sequence[str] | None = None,
) -> Filters:
    """Filters from what a caller gives; `DataError` for what makes no sense.

    `polygon`: a shapely geometry, GeoJSON (mapping, text or file). `start`, `end`: days, both
    included, or times.
    """
    first, last = _microseconds(start, "start"), _microseconds(end, "end", is_end=True)
    if first is not None and last is not None and first >= last:
        raise DataError(f"start {start} is after end {end}; give the earlier one first")
    for name, value in (("max_cloud", max_cloud), ("min_valid", min_valid)):
        if value is not None and not 0 <= value <= 1:
            raise DataError(f"{name} is {value!r}; expected a share from 0 to 1")
    return Filters(
        bbox=None if bbox is None else _box(bbox),
        polygon=None if polygon is None else read_polygon(polygon),
        start=first,
        end=last,
        max_cloud=max_cloud,
        min_valid=min_valid,
        sensors=_names(sensors),
        towers=_names(towers),
    )


def check_apart(first: Filters, last: Filters) -> None:
    """`DataError` where two periods have a time in common."""
    spans = sorted((one.start or 0, one.end or 0) for one in (first, last))
    if spans[0][1] > spans[1][0]:
        raise DataError(
            f"the periods {first.period} and {last.period} overlap; give two that have no day in "
            "common"
        )


def period_of(given: Day | Sequence[Day], name: str) -> tuple[Day, Day]:
    """The first and the last day, or time, of a period; `DataError` for anything else.

    `given`: a day, two of them or two times in a pair, or as a text with a slash.
    """
    if isinstance(given, str) and "/" in given:
        given = given.split("/")
    if isinstance(given, str | dt.date):
        is_day = len(given) == 10 if isinstance(given, str) else not isinstance(given, dt.datetime)
        if is_day:
            return given, given
    elif isinstance(given, Sequence) and len(given) == 2 and None not in given:
        return given[0], given[1]
    raise DataError(
        f"{name} is {given!r}; expected a day, as 2022-07-06, or a first and a last one, as "
        "2022-07-01/2022-07-31"
    )


def _names(given: str | Sequence[str] | None) -> tuple[str, ...] | None:
    if given is None:
        return None
    return (given,) if isinstance(given, str) else tuple(given)


def _box(given: Sequence[float]) -> tuple[float, float, float, float]:
    try:
        west, south, east, north = (float(one) for one in given)
    except (TypeError, ValueError):
        west = south = east = north = float("nan")
    if not (-180 <= west <= 180 and -180 <= east <= 180 and -90 <= south <= north <= 90):
        raise DataError(
            f"bbox is {given!r}; expected west, south, east, north in degrees, south below north"
        )
    return west, south, east, north


def read_polygon(given: Any) -> Any:
    """A polygon, or several, in degrees; `DataError` for others, or one that crosses itself.

    `given`: a shapely geometry, or GeoJSON as a mapping, its text or a file, in degrees of WGS84 or
    in what its member `crs` names.
    """
    name = "the polygon"
    if isinstance(given, str | Path):
        text = str(given)
        if text.lstrip().startswith("{"):
            try:
                given = json.loads(text)
            except (ValueError, RecursionError) as error:
                raise DataError(f"the polygon is no GeoJSON: {first_line(error)}") from error
        else:
            name = f"polygon {shown(text)}"
            given = read_json(Path(text), what="polygon", fault=DataError)
    if isinstance(given, Mapping):
        given = _shape_of(given, name)
    return check_polygon(given, name)


def check_polygon(given: Any, name: str) -> Any:
    """A shapely polygon, or several, in degrees, as it is; `DataError`, which begins with
    `name`, for anything else and for one that crosses itself."""
    if getattr(given, "geom_type", None) not in ("Polygon", "MultiPolygon") or given.is_empty:
        kind = getattr(given, "geom_type", type(given).__name__)
        raise DataError(f"{name} is a {kind}; give a Polygon or MultiPolygon in degrees")
    if not given.is_valid:
        reason = shapely.is_valid_reason(given)
        raise DataError(
            f"{name} is not valid ({reason}), as where it crosses itself; correct it (QGIS: Fix "
            "geometries)"
        )
    west, south, east, north = given.bounds
    if not (-180 <= west <= east <= 180 and -90 <= south <= north <= 90):
        raise DataError(
            f"{name} extends over {west:g}, {south:g}, {east:g}, {north:g}; expected degrees of "
            "WGS84 (EPSG:4326)"
        )
    return given


def crs_of(value: Mapping[str, Any], name: str) -> str | None:
    """What the member `crs` of GeoJSON 2008 names, as QGIS and ogr2ogr write it; None: WGS84."""
    given = value.get("crs")
    if given is None:
        return None
    properties = given.get("properties") if isinstance(given, Mapping) else None
    named = properties.get("name") if isinstance(properties, Mapping) else None
    if not isinstance(named, str):
        raise DataError(
            f'{name}: its member crs is not understood; expected {{"type": "name", "properties": '
            '{"name": "EPSG:..."}}, or none for degrees of WGS84'
        )
    return named


def geometry_of(value: Any, crs: str | None, what: str) -> Any:
    """A geometry of GeoJSON as a shapely one in degrees; `crs`: that of its coordinates, None for
    degrees. `DataError`, which begins with `what`, for others."""
    try:
        shape = shapely.geometry.shape(value)
        num_points = int(shapely.get_num_coordinates(shape))
    except (
        *(KeyError, IndexError, TypeError, ValueError, AttributeError, OverflowError),
        shapely.errors.ShapelyError,
    ) as error:
        raise DataError(f"{what} is no GeoJSON of a polygon: {first_line(error)}") from error
    require("geometry_points", num_points, f"{what} has", todo="simplify it")
    if crs is None or shape.is_empty:
        return shape
    return to_wgs84(shape, crs, origin=what)


def _shape_of(value: Mapping[str, Any], name: str) -> Any:
    crs = crs_of(value, name)
    features = value.get("features") if value.get("type") == "FeatureCollection" else [value]
    if not (isinstance(features, list) and all(isinstance(one, Mapping) for one in features)):
        raise DataError(f"{name} is no GeoJSON of a polygon: its features are no list of objects")
    if not features:
        raise DataError(f"{name} has no features; draw at least one polygon")
    shapes = [geometry_of(one.get("geometry", one), crs, name) for one in features]
    if len(shapes) == 1:
        return shapes[0]
    return shapely.union_all([check_polygon(one, name) for one in shapes])


def _microseconds(given: Day | None, name: str, *, is_end: bool = False) -> int | None:
    if given is None:
        return None
    try:
        when = given
        if isinstance(when, str):
            when = dt.date.fromisoformat(when) if len(when) == 10 else dt.datetime.fromisoformat(
                when
            )  # fmt: skip
        if not isinstance(when, dt.datetime):
            day = when + dt.timedelta(days=1) if is_end else when
            when = dt.datetime(day.year, day.month, day.day, tzinfo=dt.UTC)
        elif when.tzinfo is None:
            when = when.replace(tzinfo=dt.UTC)
    except (TypeError, ValueError, OverflowError) as error:
        raise DataError(
            f"{name} is {given!r}; expected a day or a time, as 2022-07-06 or 2022-07-06T08:56:11Z"
        ) from error
    delta = when - dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
    return delta // dt.timedelta(microseconds=1)


def rows_meeting(store: Store, filters: Filters) -> NDArray[np.int64] | None:
    """The rows that meet all conditions, ascending; None where there are no conditions.

    Parts of which no row, or every row, can meet them are not looked into. `DataError` for a sensor
    or tower that the index does not have.
    """
    if all(getattr(filters, name) is None for name in Filters.__slots__):
        return None
    some, every = _parts_meeting(store, filters)
    none = np.zeros(0, np.int64)
    found, border = [none], [none]
    for first, end, is_whole in _runs(store, some, every):
        if is_whole:
            found.append(np.arange(first, end))
            continue
        rows = store.rows[first:end]
        places = np.flatnonzero(_meets(rows, filters))
        if filters.bbox is not None and filters.polygon is None:
            inside = _within_box(rows[places], filters.bbox)
            border.append(first + places[~inside])
            places = places[inside]
        found.append(first + places)
    sure, doubtful = np.concatenate(found), np.concatenate(border)
    shape = filters.polygon
    if filters.bbox is not None:
        west, south, east, north = filters.bbox
        box = (
            shapely.box(west, south, east, north)
            if west <= east
            else shapely.union_all(
                [shapely.box(west, south, 180, north), shapely.box(-180, south, east, north)]
            )
        )
        shape = box if shape is None else shapely.intersection(shape, box)
    if shape is None:
        return sure
    if filters.polygon is None:
        return np.sort(np.concatenate([sure, _touching(store, doubtful, shape)]))
    return _touching(store, sure, shape)


def why_none(store: Store, filters: Filters) -> str:
    """Which conditions no row meets, alone or else together, and what rows there are.

    The period counts as one condition. Of a large index only the ranges of its parts are looked at,
    and all conditions are named where these do not tell which it is.
    """
    given: dict[str, dict[str, Any]] = {}
    period = "/".join(f"{one}=" for one in _PERIOD if getattr(filters, one) is not None)
    for name in Filters.__slots__:
        if (value := getattr(filters, name)) is not None:
            given.setdefault(period if name in _PERIOD else f"{name}=", {})[name] = value
    of_all = f"of {counted(len(store.rows), 'window')}"
    unmet = [
        name
        for name, one in given.items()
        if len(given) == 1 or not _may_be_met(store, Filters(**one))
    ]
    if unmet:
        text = f"none {of_all} meets {' or '.join(unmet)}"
    else:
        pairs = itertools.combinations(given, 2)
        conflict: tuple[str, ...] = next(
            (
                (one, other)
                for one, other in pairs
                if len(given) == 2 or not _may_be_met(store, Filters(**given[one], **given[other]))
            ),
            tuple(given),
        )
        text = f"none {of_all} meets {' and '.join(conflict)} together; leave one of them out"
        unmet = [name for name in conflict if name == period]
    known = "; ".join(
        dict.fromkeys(filter(None, (_known(store, next(iter(given[name]))) for name in unmet)))
    )
    return text + (f"; {known}" if known else "")


_PERIOD = ("start", "end")

_MAX_TRIED = 1_000_000
_MAX_OUTLINES = 10_000
"""Rows that are tried for why nothing is found; more of them may meet a condition."""


def _may_be_met(store: Store, filters: Filters) -> bool:
    """Whether some row meets the conditions, as far as it is known without much work."""
    filled = np.diff(store.firsts) > 0
    some, every = _parts_meeting(store, filters)
    if (every & filled).any():
        return True
    some &= filled
    if int(np.diff(store.firsts)[some].sum()) > _MAX_TRIED:
        return True
    num = sum(
        int(_meets(store.rows[first:end], filters).sum())
        for first, end, _ in _runs(store, some, every & some)
    )
    if not num or num > _MAX_OUTLINES or (filters.bbox is None and filters.polygon is None):
        return num > 0
    rows = rows_meeting(store, filters)
    return rows is not None and len(rows) > 0


def _known(store: Store, name: str) -> str:
    """What the rows have in place of what a condition asks for."""
    filled = np.diff(store.firsts) > 0
    if not filled.any():
        return ""
    if name in _PERIOD:
        return f"they are of {days_of(store)}"
    if name in ("sensors", "towers"):
        parts = itertools.compress(store.facts, filled)
        return f"their {name}: {some(sorted({getattr(one, name[:-1]) for one in parts}))}"
    ranges = _ranges(store)
    if name in ("bbox", "polygon"):
        ends = [ranges["west"][filled].min(), ranges["south"][filled].min(),
                ranges["east"][filled].max(), ranges["north"][filled].max()]  # fmt: skip
        if not np.isfinite(ends).all():
            return "some have no place"
        return f"they lie within {','.join(f'{one:.6g}' for one in ends)}"
    if name == "max_cloud":
        least = np.fmin.reduce(ranges["least_cloud"][filled])
        return "none has a mask" if np.isnan(least) else f"the least cloud share is {least:.3g}"
    most = np.fmax.reduce(ranges["most_valid"][filled])
    return f"the greatest share of valid pixels is {most:.3g}"


def days_of(store: Store) -> str:
    """The days of the rows, the first few of many; of a large index whose parts have several, the
    first and the last."""
    filled = np.diff(store.firsts) > 0
    low, high = (_ranges(store)[one]["time"][filled] for one in ("low", "high"))
    is_one_each = bool((low == high).all())
    if is_one_each:
        times = low
    elif len(store.rows) <= _MAX_TRIED:
        times = store.rows["time"]
    else:
        times = np.concatenate([low, high])
    days = np.unique(times[times != NO_TIME].astype("datetime64[us]").astype("datetime64[D]"))
    if not len(days):
        return "no day"
    if not is_one_each and len(store.rows) > _MAX_TRIED:
        return f"{days[0]} to {days[-1]}"
    return some([str(day) for day in days])


def _parts_meeting(store: Store, filters: Filters) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """(P,) parts of which some rows may meet all conditions, and those of which every row does."""
    some = _of_names(store, filters)
    if all(getattr(filters, name) is None for name in _OF_ROWS):
        return some, some
    ranges = _ranges(store)
    low, high = ranges["low"], ranges["high"]
    every = some & (filters.polygon is None)
    if filters.max_cloud is not None:
        some &= ranges["least_cloud"] <= filters.max_cloud
        every &= high["cloud"] <= filters.max_cloud
    if filters.min_valid is not None:
        some &= ranges["most_valid"] >= filters.min_valid
        every &= low["valid"] >= filters.min_valid
    if filters.start is not None:
        some &= high["time"] >= filters.start
        every &= low["time"] >= filters.start
    if filters.end is not None:
        some &= low["time"] < filters.end
        every &= (high["time"] < filters.end) & (low["time"] != NO_TIME)
    for box in (filters.bbox, None if filters.polygon is None else filters.polygon.bounds):
        if box is not None:
            some &= _touches_box(ranges, box) | ranges["across"]
            every &= _within_box(ranges, box) & ~ranges["across"] & (box[0] <= box[2])
    return some, every & some


_OF_ROWS = ("bbox", "polygon", "start", "end", "max_cloud", "min_valid")
"""Conditions in which the rows of a part differ."""


def _ranges(store: Store) -> dict[str, Any]:
    """Of the rows of each part (P,): what place, time and shares lie between, found once.

    An empty part, and one across the antimeridian, may meet any place.
    """
    if "ranges" not in store.kept:
        rows = store.rows
        filled = np.flatnonzero(np.diff(store.firsts))
        low, high = (np.zeros(len(store.facts), ROW) for _ in range(2))
        found: dict[str, Any] = {"low": low, "high": high}
        for name in ("west", "south", "east", "north", "time", "valid", "cloud"):
            if len(filled):
                low[name][filled] = np.minimum.reduceat(rows[name], store.firsts[filled])
                high[name][filled] = np.maximum.reduceat(rows[name], store.firsts[filled])
        for name, field, least in (
            ("least_cloud", "cloud", np.fmin), ("most_valid", "valid", np.fmax),
        ):  # fmt: skip
            found[name] = np.zeros(len(store.facts), np.float32)
            if len(filled):
                found[name][filled] = least.reduceat(rows[field], store.firsts[filled])
        found |= {"west": low["west"], "south": low["south"], "east": high["east"],
                  "north": high["north"]}  # fmt: skip
        found["across"] = np.zeros(len(store.facts), dtype=bool)
        if len(filled):
            found["across"][filled] = np.logical_or.reduceat(
                rows["west"] > rows["east"], store.firsts[filled]
            )
        store.kept["ranges"] = found
    ranges: dict[str, Any] = store.kept["ranges"]
    return ranges


def _runs(
    store: Store, some: NDArray[np.bool_], every: NDArray[np.bool_]
) -> Iterator[tuple[int, int, bool]]:
    """First and end row of parts beside each other of one kind; and whether every row meets the
    conditions."""
    kinds = some.astype(np.int8) + every
    edges = np.flatnonzero(np.diff(kinds, prepend=-1))
    for first, end in zip(edges, [*edges[1:], len(kinds)], strict=True):
        if kinds[first]:
            yield int(store.firsts[first]), int(store.firsts[end]), bool(kinds[first] == 2)


def _meets(rows: NDArray[Any], filters: Filters) -> NDArray[np.bool_]:
    """(n,) whether rows meet the conditions on them, as far as their bounds tell."""
    mask = np.ones(len(rows), dtype=bool)
    if filters.max_cloud is not None:
        mask &= rows["cloud"] <= filters.max_cloud
    if filters.min_valid is not None:
        mask &= rows["valid"] >= filters.min_valid
    if filters.start is not None:
        mask &= rows["time"] >= filters.start
    if filters.end is not None:
        mask &= (rows["time"] < filters.end) & (rows["time"] != NO_TIME)
    if filters.bbox is not None:
        mask &= _touches_box(rows, filters.bbox)
    if filters.polygon is not None:
        mask &= _touches_box(rows, filters.polygon.bounds)
    return mask


def _of_names(store: Store, filters: Filters) -> NDArray[np.bool_]:
    """Of each part: whether its sensor and tower are among those wanted."""
    found = np.ones(len(store.facts), dtype=bool)
    for name, wanted in (("sensor", filters.sensors), ("tower", filters.towers)):
        if wanted is None:
            continue
        there = {getattr(one, name) for one in store.facts}
        for one in wanted:
            if one not in there:
                raise DataError(f"no windows of {name} {one!r} here; {nearest(one, there)}")
        found &= np.array([getattr(one, name) in wanted for one in store.facts])
    return found


def _touches_box(rows: Any, box: tuple[float, float, float, float]) -> NDArray[np.bool_]:
    west, south, east, north = box
    found: NDArray[np.bool_] = (rows["south"] <= north) & (rows["north"] >= south)
    parts = [(west, east)] if west <= east else [(west, 180.0), (-180.0, east)]
    left, right = rows["west"], rows["east"]
    across = left > right
    beside = np.zeros(len(left), dtype=bool)
    for low, high in parts:
        plain = (left <= high) & (right >= low) & ~across
        beside |= plain | (across & ((left <= high) | (right >= low)))
    return found & beside


def _within_box(rows: Any, box: tuple[float, float, float, float]) -> NDArray[np.bool_]:
    """Rows that lie within a box that does not cross the antimeridian."""
    west, south, east, north = box
    found: NDArray[np.bool_] = (rows["west"] >= west) & (rows["east"] <= east)
    found &= (rows["south"] >= south) & (rows["north"] <= north) & (rows["west"] <= rows["east"])
    return found


def _touching(store: Store, found: NDArray[np.int64], shape: Any) -> NDArray[np.int64]:
    """Those rows whose window touches a shape: by their bounds where these lie within it, else by
    their outlines."""
    if not len(found):
        return found
    rows = store.rows[found]
    boxes = shapely.box(rows["west"], rows["south"], rows["east"], rows["north"])
    across = rows["west"] > rows["east"]
    shapely.prepare(shape)
    inside = shapely.contains(shape, boxes) & ~across
    doubtful = np.flatnonzero(~inside & (across | shapely.intersects(shape, boxes)))
    outlines = np.array(outlines_of(store, found[doubtful]), dtype=object)
    inside[doubtful] = shapely.intersects(shape, outlines) if len(doubtful) else []
    chosen: NDArray[np.int64] = found[inside]
    return chosen


def outlines_of(store: Store, numbers: NDArray[np.int64]) -> list[Any]:
    """The outlines (shapely, degrees) of rows, in their order."""
    spans = store.outlines[numbers]
    return list(
        shapes_of(
            [
                store.wkb[first:end].tobytes() or None
                for first, end in zip(spans["first"].tolist(), spans["end"].tolist(), strict=True)
            ],
            "a part",
        )
    )
