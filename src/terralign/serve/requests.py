"""What is asked of the server, and what it answers, as OpenAPI describes them."""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
    model_validator,
)

from terralign.errors import TerralignError
from terralign.serve.settings import LIMITS

WINDOW_ID = r"[0-9a-f]{8,64}-[0-9]{1,10}-[0-9]{1,10}"
"""An id of a window, as `index.parts.window_id` makes them."""

Text = Annotated[str, Field(max_length=LIMITS.text)]
Name = Annotated[str, Field(min_length=1, max_length=200)]
WindowId = Annotated[str, StringConstraints(pattern=f"^{WINDOW_ID}$")]
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Longitude = Annotated[float, Field(ge=-180, le=180, allow_inf_nan=False)]
Latitude = Annotated[float, Field(ge=-90, le=90, allow_inf_nan=False)]


def _closed(ring: tuple[Any, ...]) -> tuple[Any, ...]:
    if ring[0] != ring[-1]:
        raise ValueError("a ring of a polygon must end where it begins")
    return ring


Ring = Annotated[
    tuple[tuple[Longitude, Latitude], ...],
    Field(min_length=4, max_length=LIMITS.vertices),
    AfterValidator(_closed),
]
Rings = Annotated[tuple[Ring, ...], Field(min_length=1, max_length=100)]
Day = Annotated[dt.date, Field(strict=False)]

_STRICT = ConfigDict(extra="forbid", frozen=True, strict=True, use_attribute_docstrings=True)
_ANSWER = ConfigDict(extra="forbid", use_attribute_docstrings=True)


class Polygon(BaseModel):
    """A polygon of GeoJSON, in degrees of WGS84: longitude, latitude."""

    model_config = _STRICT

    type: Literal["Polygon"]
    coordinates: Rings

    def num_vertices(self) -> int:
        """Points of all rings."""
        return sum(map(len, self.coordinates))


class MultiPolygon(BaseModel):
    """Several polygons of GeoJSON, in degrees of WGS84: longitude, latitude."""

    model_config = _STRICT

    type: Literal["MultiPolygon"]
    coordinates: Annotated[tuple[Rings, ...], Field(min_length=1, max_length=100)]

    def num_vertices(self) -> int:
        """Points of all rings."""
        return sum(len(ring) for rings in self.coordinates for ring in rings)


class Asked(BaseModel):
    """What to search for, and where. Texts and examples are combined into one query."""

    model_config = _STRICT

    query: Text = ""
    """A text to search for; empty: examples alone."""
    against: Text = ""
    """A text to stay away from; it counts half."""
    like: Annotated[tuple[WindowId, ...], Field(max_length=LIMITS.like)] = ()
    """Ids of windows to search for."""
    unlike: Annotated[tuple[WindowId, ...], Field(max_length=LIMITS.like)] = ()
    """Ids of windows to stay away from."""
    bbox: tuple[Longitude, Latitude, Longitude, Latitude] | None = None
    """West, south, east, north in degrees; west above east crosses the antimeridian."""
    polygon: Annotated[Polygon | MultiPolygon, Field(discriminator="type")] | None = None
    """Only windows that touch it; at most 5,000 points."""
    start: Day | None = None
    """The first day, as 2022-07-06."""
    end: Day | None = None
    """The last day, included."""
    sensors: Annotated[tuple[Name, ...], Field(min_length=1, max_length=100)] | None = None
    """Only windows of these sensors."""
    towers: Annotated[tuple[Name, ...], Field(min_length=1, max_length=100)] | None = None
    """Only vectors of these towers."""
    max_cloud: Share | None = None
    """Only windows with at most this share of cloud and shadow."""
    min_valid: Share | None = None
    """Only windows with at least this share of valid pixels."""
    collapse: bool = False
    """Of windows that overlap, keep the best alone."""
    cut: Share | None = None
    """Keep hits for which the query is at least so probable among background texts."""
    k: int = Field(default=200, ge=1, le=LIMITS.k)
    """How many hits, over all pages."""

    @model_validator(mode="after")
    def _check(self) -> Asked:
        if not (self.query.strip() or self.against.strip() or self.like or self.unlike):
            raise ValueError("the query is empty; give a text, or ids of windows (like)")
        for text in (self.query, self.against):
            if any(ord(one) < 32 or 0xD800 <= ord(one) < 0xE000 for one in text):
                raise ValueError("a text holds control characters; leave them out")
        if len(self.like) + len(self.unlike) > LIMITS.like:
            raise ValueError(f"like and unlike have more than {LIMITS.like} ids together")
        if self.polygon is not None and self.polygon.num_vertices() > LIMITS.vertices:
            raise ValueError(f"the polygon has more than {LIMITS.vertices:,} points; simplify it")
        return self


class SearchRequest(Asked):
    """A search, and the page of its hits that is wanted."""

    page: int = Field(default=0, ge=0, lt=LIMITS.k)
    """Counted from 0."""
    page_size: int = Field(default=24, ge=1, le=LIMITS.page)
    """Hits of a page."""

    def asked(self) -> Asked:
        """The search without its page."""
        return Asked.model_construct(**{name: getattr(self, name) for name in Asked.model_fields})


Asks = TypeVar("Asks", bound=Asked)


def check_asked(model: type[Asks], values: dict[str, Any] | bytes) -> Asks:
    """A request from plain values, or from JSON; `RequestError` in one line for others."""
    try:
        if isinstance(values, bytes):
            return model.model_validate_json(values)
        return model.model_validate(values)
    except ValidationError as error:
        raise RequestError(first_fault(error.errors(include_url=False))) from None


def first_fault(faults: Sequence[Any]) -> str:
    """The first fault of a request, and where it is; nothing of what was given."""
    first = faults[0]
    loc = first["loc"]
    inner = loc[1:] if len(loc) > 1 and loc[0] in ("path", "query") else loc  # of FastAPI's own
    place = ".".join(map(str, inner))
    message = str(first["msg"]).removeprefix("Value error, ")
    return f"{place[:100]}: {message}" if place else message


class RequestError(TerralignError):
    """A request with a field that is unknown, missing, or not as expected."""


class Fault(BaseModel):
    """Why a request was refused."""

    model_config = _ANSWER

    error: str
    """One line."""


class Health(BaseModel):
    """That the server runs."""

    model_config = _ANSWER

    status: Literal["ok"]
    windows: int
    version: str


class SceneAnswer(BaseModel):
    """A scene of the index."""

    model_config = _ANSWER

    id: int
    """Its number in addresses of tiles, as long as the server runs."""
    name: str
    sensor: str
    towers: list[str]
    """Those that made vectors of it."""
    datetime: str | None
    """Acquisition, ISO 8601."""
    bounds: tuple[float, float, float, float]
    """West, south, east, north; west above east across the antimeridian."""
    windows: int
    pictures: list[Literal["true", "false"]]
    """What it can be shown in: true colour (radar: VV, VH and their difference), false colour."""
    why: str = ""
    """Why it cannot be shown."""


class IndexAnswer(BaseModel):
    """What is served."""

    model_config = _ANSWER

    title: str
    model: str
    """The space that made the vectors."""
    space_id: str
    windows: int
    towers: list[str]
    sensors: list[str]
    dates: tuple[str, str] | None
    """The first and the last day."""
    bounds: tuple[float, float, float, float]
    num_scenes: int
    """All of them; `scenes` lists the first 5,000."""
    scenes: list[SceneAnswer]
    examples: list[str]
    """Texts to begin with."""
    limits: dict[str, int]
    """What a request may ask for at most."""
    warning: str = ""
    """What is wrong with parts that were added since; those before are searched."""
    is_static: bool = False


class Properties(BaseModel):
    """What is known of a hit."""

    model_config = _ANSWER

    rank: int
    """From 1."""
    score: float
    """The cosine to the query, -1 to 1."""
    ranked_by: float
    """What decided the order: the cosine, or among several towers how many standard deviations it
    is above the usual one."""
    scene: int
    scene_name: str
    sensor: str
    tower: str
    datetime: str | None
    cloud_share: float | None
    valid_share: float
    source: str | None
    """An address where the scene has one; never a path."""
    thumbnail: str | None
    """The address of its picture, relative to the page; None: it has no picture (static)."""


class Hit(BaseModel):
    """A window that was found, as a feature of GeoJSON."""

    model_config = _ANSWER

    type: Literal["Feature"]
    id: str
    geometry: dict[str, Any]
    properties: Properties


class HitsAnswer(BaseModel):
    """Windows that were found, best first."""

    model_config = _ANSWER

    type: Literal["FeatureCollection"]
    features: list[Hit]


class SearchAnswer(BaseModel):
    """A page of hits."""

    model_config = _ANSWER

    query: str
    num_searched: int
    """Windows that meet the conditions."""
    num_hits: int
    """On all pages."""
    page: int
    pages: int
    took_ms: float
    hits: HitsAnswer


class ScoresAnswer(BaseModel):
    """The score of every window that meets the conditions, for a layer of a map."""

    model_config = _ANSWER

    min: float | None
    max: float | None
    num_searched: int
    thinned: int
    """1: every window is listed; n: every n-th."""
    cells: dict[str, Any]
    """A FeatureCollection: the middle of each window, so large that cells lie beside one another,
    with the property `score`."""
