"""The table of a packed store: one row per sample, as GeoParquet where footprints are known."""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa
import shapely

from terralign.datasets.sample import Place, SampleSet
from terralign.scenes.places import Bounds

_BOUNDS = ("west", "south", "east", "north")


def sample_table(
    splits: Mapping[str, SampleSet], rows: Sequence[tuple[str, int]], places: Sequence[Place]
) -> pa.Table:
    """One row for each of `rows` (split, index in that split), with its place.

    Columns: key, split, labels (class indices), captions, west, south, east, north (degrees,
    WGS84; west is greater than east across the antimeridian), datetime (UTC), and geometry
    (GeoParquet 1.1, the footprint's bounds, see `footprint`) where any is known.
    """
    columns: dict[str, pa.Array] = {
        "key": pa.array([splits[split].keys[index] for split, index in rows], pa.string()),
        "split": pa.array([split for split, _ in rows], pa.string()).dictionary_encode(),
    }
    first = next(iter(splits.values()))
    if first.labels is not None:
        columns["labels"] = pa.array(
            [_labels_of(splits[split], index) for split, index in rows], pa.list_(pa.int32())
        )
    if first.captions is not None:
        texts = [(splits[split].captions or ())[index] for split, index in rows]
        columns["captions"] = pa.array([list(one) for one in texts], pa.list_(pa.string()))
    for position, side in enumerate(_BOUNDS):
        values = [place.bounds and place.bounds[position] for place in places]
        columns[side] = pa.array(values, pa.float64())
    columns["datetime"] = pa.array(
        [_as_utc(place.datetime) for place in places], pa.timestamp("us", tz="UTC")
    )
    if not any(place.bounds for place in places):
        return pa.table(columns)
    shapes = [None if place.bounds is None else footprint(place.bounds) for place in places]
    columns["geometry"] = pa.array(
        [shape and shapely.to_wkb(shape) for shape in shapes], pa.binary()
    )
    kinds = sorted({shape.geom_type for shape in shapes if shape is not None})
    return pa.table(columns).replace_schema_metadata({"geo": json.dumps(_geo(kinds))})


def footprint(bounds: Bounds) -> shapely.Geometry:
    """The box of WGS84 bounds; cut in two at the antimeridian where west is greater than east."""
    west, south, east, north = bounds
    if west <= east:
        return shapely.box(west, south, east, north)
    parts = [(west, south, 180.0, north), (-180.0, south, east, north)]
    return shapely.MultiPolygon([shapely.box(*part) for part in parts])


def _geo(kinds: Sequence[str]) -> dict[str, object]:
    """GeoParquet's file metadata; without a crs it is longitude and latitude of WGS84."""
    return {
        "version": "1.1.0",
        "primary_column": "geometry",
        "columns": {"geometry": {"encoding": "WKB", "geometry_types": list(kinds)}},
    }


def _labels_of(samples: SampleSet, index: int) -> list[int]:
    assert samples.labels is not None
    values = samples.labels.values
    if samples.labels.multi_label:
        return [int(one) for one in np.flatnonzero(values[index])]
    return [int(values[index])]


def _as_utc(time: dt.datetime | None) -> dt.datetime | None:
    if time is None:
        return None
    return time.replace(tzinfo=dt.UTC) if time.tzinfo is None else time.astimezone(dt.UTC)
