"""A folder of parts as a static STAC collection: `collection.json`, and an item beside each part.

STAC 1.0.0 with the extension `embeddings` 0.0.1, whose schema asks for that version. All follows
from the parts: an item from its part, the collection from the items. Addresses are relative to the
folder, but for those of scenes and model. Objects are made by pystac (the extra `stac`).
"""

from __future__ import annotations

import datetime as dt
import importlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote

import shapely
from pydantic import AwareDatetime, BaseModel, Field, ValidationError

from terralign.encoders.vectors import Footprint
from terralign.errors import DataError, StorageError, counted, shown
from terralign.files import claimed, read_json, write_json
from terralign.index.names import CLAIMS, is_part_name, part_paths
from terralign.index.parts import Part, PartFacts, chip_layout, quantization, shapes_of
from terralign.scenes.places import as_wkt2

logger = logging.getLogger(__name__)

COLLECTION = "collection.json"

STAC_VERSION = "1.0.0"
_EMBEDDINGS = "https://stac-extensions.github.io/embeddings/v0.0.1/schema.json"
_PROJECTION = "https://stac-extensions.github.io/projection/v1.1.0/schema.json"
_PROCESSING = "https://stac-extensions.github.io/processing/v1.2.0/schema.json"

_JSON, _PARQUET = "application/json", "application/vnd.apache.parquet"

_FORMAT = 2
"""Raised with every change of what an item holds."""

_UNKNOWN_TIME = (
    dt.datetime(1970, 1, 1, tzinfo=dt.UTC),
    dt.datetime(2099, 12, 31, tzinfo=dt.UTC),
)
"""Between these a scene without a known time was taken: STAC has no word for unknown."""

_MAX_HOMES = 100
"""Folders and catalogues of scenes that a collection links to."""


def check_catalogue(folder: Path) -> None:
    """Raise before any work where no catalogue could be written into a folder.

    `DataError` without pystac; `StorageError` where `collection.json` is not terralign's.
    """
    _pystac()
    path = folder / COLLECTION
    if path.exists() and _read_ours(path, "Collection") is None:
        raise StorageError(
            f"{shown(path)} is no collection that terralign wrote; move it, or choose another "
            "folder (out=, --out)"
        )


def has_catalogue(folder: Path) -> bool:
    """Whether terralign wrote a collection into a folder."""
    path = folder / COLLECTION
    return path.exists() and _read_ours(path, "Collection") is not None


def write_catalogue(folder: Path) -> Path | None:
    """Describe all parts of a folder; returns the collection, None where there are no parts.

    Items of parts that exist are kept, those of parts that are gone are removed. Processes that
    share the folder take turns: the last one describes the parts of all.
    """
    check_catalogue(folder)
    claim = folder / CLAIMS / "stac"
    with claimed(claim, wait=True):
        summary = _Summary()
        for path in part_paths(folder):
            _describe(path, summary)
        _remove_stale(folder, set(summary.names))
        if summary.names:
            _write_changed(folder / COLLECTION, _collection(summary))
        else:
            (folder / COLLECTION).unlink(missing_ok=True)
        (claim / ".lock").unlink(missing_ok=True)
    if not summary.names:
        return None
    logger.info(
        "%s: %s described by %s", shown(folder), counted(len(summary.names), "part"), COLLECTION
    )
    return folder / COLLECTION


def _pystac() -> Any:
    try:
        return importlib.import_module("pystac")
    except ImportError as error:
        raise DataError(
            "a STAC catalogue needs pystac: pip install 'terralign[stac]'; or leave out stac= "
            "(--stac)"
        ) from error


# Files


def _read_ours(path: Path, kind: Literal["Collection", "Feature"]) -> dict[str, Any] | None:
    """A collection, or an item, that terralign wrote; None for any other file."""
    try:
        value = read_json(path)
    except StorageError:
        return None
    if not isinstance(value, dict) or value.get("type") != kind:
        return None
    facts = value.get("properties") if kind == "Feature" else value
    is_ours = isinstance(facts, dict) and isinstance(facts.get("terralign:space_id"), str)
    return value if is_ours else None


def _describe(part: Path, summary: _Summary) -> None:
    """Add a part to a summary, by its item, which is written where it is missing, of another
    version, or changed by others; nothing where the part is gone by now."""
    path = part.with_suffix(".json")
    if path.exists():
        kept = _read_ours(path, "Feature")
        if kept is None and not is_part_name(part.name):
            raise StorageError(f"{shown(path)} is no item that terralign wrote; move it")
        if kept is not None and summary.add(part.stem, kept):
            return
    try:
        item = _make_item(part)
    except DataError:
        if part.exists():
            raise
        return
    write_json(path, item)
    summary.add(part.stem, item)


def _write_changed(path: Path, value: dict[str, Any]) -> None:
    if not path.exists() or read_json(path) != value:
        write_json(path, value)


def _remove_stale(folder: Path, names: set[str]) -> None:
    """Remove the items of parts that are gone."""
    for path in folder.glob("*.json"):
        if path.stem not in names and _read_ours(path, "Feature") is not None:
            path.unlink(missing_ok=True)


# Items


def _make_item(path: Path) -> dict[str, Any]:
    pystac = _pystac()
    part = Part(path)
    try:
        facts, num_rows = part.facts, part.num_rows
        shape, when = _extent(part)
    finally:
        part.close()
    bounds = Footprint(shape=shape).bounds
    start, end = (None, None) if when else _UNKNOWN_TIME
    item = pystac.Item(
        id=path.stem,
        geometry=_outline(shape),
        bbox=None if bounds is None else list(bounds),
        datetime=when,
        start_datetime=start,
        end_datetime=end,
        properties={**_properties(facts), "terralign:num_vectors": num_rows},
        stac_extensions=[_EMBEDDINGS, _PROJECTION, _PROCESSING],
        collection=_collection_id(facts.space_id),
    )
    for rel in ("root", "parent", "collection"):
        item.add_link(pystac.Link(rel, f"./{COLLECTION}", _JSON))
    item.add_link(pystac.Link("emb:model", _model_address(facts.model), title=facts.model))
    item.add_link(pystac.Link("emb:source-data", _source_address(facts.source), title=facts.scene))
    asset = pystac.Asset(
        f"./{quote(path.name)}",
        media_type=_PARQUET,
        roles=["data"],
        extra_fields={"proj:epsg": 4326, "data_type": facts.vector_type},
    )
    item.add_asset("embeddings", asset)
    return _as_json(item)


def _as_json(one: Any) -> dict[str, Any]:
    found: dict[str, Any] = one.to_dict(include_self_link=False, transform_hrefs=False)
    return {**found, "stac_version": STAC_VERSION}


def _properties(facts: PartFacts) -> dict[str, Any]:
    """What an item states of its part, without what is None."""
    found: dict[str, Any] = {
        "title": f"{facts.scene}, {facts.tower}",
        "gsd": facts.scene_gsd_m,
        "emb:runtime_parameters": {
            "bands": list(facts.bands),
            "chip_size": facts.window_px,
            "stride": facts.stride_px,
            "min_valid": facts.min_valid,
            "max_cloud": facts.max_cloud,
            "dn_offset": facts.dn_offset,
        },
        "emb:postprocessing": {"format": "text", "expression": "l2_normalize"},
        "emb:quantization": quantization(facts),
        **_projection(facts),
        "terralign:format": _FORMAT,
        "terralign:model": facts.model,
        "terralign:space_id": facts.space_id,
        "terralign:tower": facts.tower,
        "terralign:tower_id": facts.tower_id,
        "terralign:logit_scale": facts.logit_scale,
        "terralign:sensor": facts.sensor,
        "terralign:source": facts.source,
        "terralign:gsd": facts.gsd_m,
        "terralign:dimensions": facts.dim,
    }
    return {name: value for name, value in found.items() if value is not None}


def _projection(facts: PartFacts) -> dict[str, Any]:
    """The scene's grid, in which windows have their rows and columns."""
    grid = facts.grid
    if grid is None:
        return {}
    authority, _, code = grid.crs.partition(":")
    known = authority.upper() == "EPSG" and code.isdecimal()
    return {
        "proj:epsg": int(code) if known else None,
        "proj:wkt2": None if known else as_wkt2(grid.crs, origin=shown(facts.source)),
        "proj:shape": [grid.height, grid.width],
        "proj:transform": list(grid.transform),
    }


def _source_address(source: str) -> str:
    """The address of a scene or of what holds it; of an item of STAC its collection and id."""
    if source.startswith("/"):
        return Path(source).as_uri()
    return quote(source, safe=_SIGNS) if "://" in source else f"stac:{quote(source)}"


def _model_address(model: str) -> str:
    """The address of a model; of one of open_clip its name."""
    if model.startswith("/"):
        return Path(model).as_uri()
    if model.startswith("hf-hub:"):
        return f"https://huggingface.co/{quote(model.removeprefix('hf-hub:').partition('@')[0])}"
    return quote(model, safe=_SIGNS)


_SIGNS = "/:@?&=%+,;#~"
"""What addresses are made of, and keep."""


def _extent(part: Part) -> tuple[Any, dt.datetime | None]:
    """The convex hull of a part's windows (None without any), split at the antimeridian where they
    cross it, and when their scene was taken."""
    west: list[Any] = []
    east: list[Any] = []
    when = None
    for batch in part.batches(["geometry", "datetime"]):
        pieces = shapely.get_parts(shapes_of(batch.column(0).to_pylist(), shown(part.path)))
        in_east = shapely.get_x(shapely.centroid(pieces)) > 0
        for side, chosen in ((west, pieces[~in_east]), (east, pieces[in_east])):
            side[:] = [_hull([*side, *chosen])] if len(side) + len(chosen) else []
        when = batch.column(1)[0].as_py() if len(batch) else when
    sides = [*west, *east]
    if not sides:
        return None, when
    low, _, high, _ = shapely.total_bounds(sides)
    if len(sides) == 2 and (low, high) == (-180, 180):
        return shapely.MultiPolygon(sides), when
    return _hull(sides), when


def _outline(shape: Any) -> dict[str, Any] | None:
    """GeoJSON of a hull without the points on sides that are straight but for a 10,000th."""
    if shape is None:
        return None
    west, south, east, north = shape.bounds
    tolerance = 1e-4 * max(east - west, north - south)
    return Footprint(shape=shapely.simplify(shape, tolerance)).geometry


def _hull(shapes: Sequence[Any]) -> Any:
    """Counter-clockwise, as GeoJSON wants it."""
    return shapely.geometry.polygon.orient(shapely.GeometryCollection(list(shapes)).convex_hull)


# The collection


class _Parameters(BaseModel):
    chip_size: int
    stride: int


def _ours(name: str) -> Any:
    return Field(validation_alias=f"terralign:{name}")


class _Described(BaseModel):
    """What a collection needs of an item: its properties, its box, and the type of its asset."""

    datetime: AwareDatetime | None
    parameters: _Parameters = Field(validation_alias="emb:runtime_parameters")
    format: int = _ours("format")
    space_id: str = _ours("space_id")
    tower: str = _ours("tower")
    sensor: str = _ours("sensor")
    model: str = _ours("model")
    source: str = _ours("source")
    dimensions: int = _ours("dimensions")
    data_type: str
    num_vectors: int = _ours("num_vectors")
    gsd: float | None = Field(default=None, validation_alias="terralign:gsd")
    bbox: tuple[float, float, float, float] | None


@dataclass(kw_only=True, slots=True)
class _Summary:
    """What the items of a folder have in common, one after the other."""

    names: list[str] = field(default_factory=list)
    space_ids: set[str] = field(default_factory=set)
    towers: set[str] = field(default_factory=set)
    sensors: set[str] = field(default_factory=set)
    models: set[str] = field(default_factory=set)
    homes: set[str] = field(default_factory=set)
    dims: set[int] = field(default_factory=set)
    types: set[str] = field(default_factory=set)
    gsds: set[float] = field(default_factory=set)
    layouts: set[tuple[int, int]] = field(default_factory=set)
    boxes: list[Sequence[float]] = field(default_factory=list)
    times: set[dt.datetime] = field(default_factory=set)
    num_vectors: int = 0

    def add(self, name: str, item: dict[str, Any]) -> bool:
        """Add an item by its name; False for one that lacks what others have."""
        try:
            kind = item["assets"]["embeddings"]["data_type"]
            of_asset = {"bbox": item.get("bbox"), "data_type": kind}
            found = _Described.model_validate({**item["properties"], **of_asset})
        except (ValidationError, KeyError, TypeError):
            return False
        if found.format != _FORMAT:
            return False
        self.names.append(name)
        self.space_ids.add(found.space_id)
        self.towers.add(found.tower)
        self.sensors.add(found.sensor)
        self.models.add(found.model)
        self.homes.add(found.source.rpartition("/")[0] or found.source)
        self.dims.add(found.dimensions)
        self.types.add(found.data_type)
        self.layouts.add((found.parameters.chip_size, found.parameters.stride))
        self.num_vectors += found.num_vectors
        if found.gsd is not None:
            self.gsds.add(found.gsd)
        if found.bbox is not None:
            self.boxes.append(found.bbox)
        if found.datetime is not None:
            self.times.add(found.datetime)
        return True


def _collection_id(space_id: str) -> str:
    return f"terralign-{space_id}"


def _collection(summary: _Summary) -> dict[str, Any]:
    pystac = _pystac()
    if len(summary.space_ids) > 1:
        raise DataError(
            "the folder has vectors of several spaces "
            f"({', '.join(sorted(summary.space_ids))}); move those of one into a folder of their "
            "own"
        )
    [space_id] = summary.space_ids
    times = [min(summary.times), max(summary.times)] if summary.times else [None, None]
    spatial = pystac.SpatialExtent([_union(summary.boxes) or [-180.0, -90.0, 180.0, 90.0]])
    temporal = pystac.TemporalExtent([times])
    collection = pystac.Collection(
        id=_collection_id(space_id),
        title=f"Embeddings of the space {space_id}",
        description=(
            f"{counted(summary.num_vectors, 'vector')} of {counted(len(summary.names), 'part')}: "
            f"{', '.join(sorted(summary.sensors))} by the towers "
            f"{', '.join(sorted(summary.towers))} of {', '.join(sorted(summary.models))}."
        ),
        extent=pystac.Extent(spatial, temporal),
        license="other",
        stac_extensions=[_EMBEDDINGS],
        extra_fields=_shared_fields(summary, space_id),
        summaries=pystac.Summaries(
            {
                "emb:type": ["chip"],
                "emb:dimensions": sorted(summary.dims),
                "data_type": sorted(summary.types),
                "terralign:tower": sorted(summary.towers),
                "terralign:sensor": sorted(summary.sensors),
            }
        ),
    )
    for model in sorted(summary.models):
        collection.add_link(pystac.Link("emb:model", _model_address(model), title=model))
    for home in sorted(summary.homes)[:_MAX_HOMES]:
        collection.add_link(pystac.Link("emb:source-data", _source_address(home), title=home))
    for name in summary.names:
        collection.add_link(pystac.Link("item", f"./{quote(name)}.json", "application/geo+json"))
    found = _as_json(collection)
    own = {"rel": "root", "href": f"./{COLLECTION}", "type": _JSON}
    return {**found, "links": [own, *(one for one in found["links"] if one["rel"] != "root")]}


def _shared_fields(summary: _Summary, space_id: str) -> dict[str, Any]:
    """Fields of the extension, those in which parts differ left out where they may be."""
    found: dict[str, Any] = {
        "emb:type": "chip",
        "emb:dimensions": max(summary.dims),
        "data_type": min(summary.types) if len(summary.types) == 1 else "other",
        "emb:temporal_resolution": "single_acquisition",
        "terralign:space_id": space_id,
    }
    if len(summary.gsds) == 1:
        [found["gsd"]] = summary.gsds
    if len(summary.layouts) == 1:
        [layout] = summary.layouts
        found["emb:chip_layout"] = chip_layout(*layout)
    return found


def _union(boxes: Sequence[Sequence[float]]) -> list[float] | None:
    """[west, south, east, north] around boxes: of the ways around the globe the shorter one, so
    that west is greater than east where they lie on both sides of the antimeridian."""
    if not boxes:
        return None
    south, north = min(one[1] for one in boxes), max(one[3] for one in boxes)
    spans = sorted(
        span
        for west, _, east, _ in boxes
        for span in ([(west, east)] if west <= east else [(west, 180.0), (-180.0, east)])
    )
    merged = [list(spans[0])]
    for west, east in spans[1:]:
        if west <= merged[-1][1]:
            merged[-1][1] = max(merged[-1][1], east)
        else:
            merged.append([west, east])
    after = [*merged[1:], [merged[0][0] + 360, 0.0]]
    gaps = [following[0] - one[1] for one, following in zip(merged, after, strict=True)]
    widest = max(range(len(gaps)), key=lambda place: gaps[place])
    if gaps[widest] <= 0:
        return [-180.0, south, 180.0, north]
    west, east = after[widest][0], merged[widest][1]
    return [west if west <= 180 else west - 360, south, east, north]
