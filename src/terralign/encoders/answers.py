"""Results for imagery: classes with probabilities, and hits of a search.

N chips or windows, K classes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, overload

import numpy as np
from numpy.typing import DTypeLike, NDArray

from terralign.encoders.geodata import geodataframe
from terralign.encoders.tables import MAX_ROWS, Shown, Table, short_keys
from terralign.encoders.vectors import (
    Embeddings,
    Fault,
    Footprint,
    as_utf8,
    choose_rows,
    not_read,
)
from terralign.errors import DataError, StorageError, counted, nearest
from terralign.files import write_text

if TYPE_CHECKING:
    import geopandas

    from terralign.encoders.maps import Map

GENERATOR = "terralign"
"""Marks GeoJSON files, so that no other file is overwritten."""


@dataclass(frozen=True, kw_only=True, slots=True, repr=False)
class Classified:
    """One chip or window: class name -> probability (they sum to 1), tower, place, valid share.

    `source_key`, `source_number`: which input it is of, counted from 0.
    """

    key: str
    probabilities: dict[str, float]
    tower: str
    place: Footprint
    valid_share: float
    source_key: str = ""
    source_number: int = 0

    @property
    def label(self) -> str:
        """The likeliest class."""
        return max(self.probabilities, key=lambda name: self.probabilities[name])

    @property
    def probability(self) -> float:
        """Of the likeliest class."""
        return self.probabilities[self.label]

    def __repr__(self) -> str:
        return f"Classified({self.key!r}: {self.label}, {100 * self.probability:.1f} %)"

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "label": self.label,
            "probability": self.probability,
            "probabilities": self.probabilities,
            "tower": self.tower,
            "valid_share": self.valid_share,
        }


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Classification(Shown):
    """Zero-shot probabilities of N chips or windows over K labels.

    `probabilities`: (N, K) float32 in the order of `labels`, each row sums to 1; `np.asarray` gives
    them. `keys`, `towers`, `places`, `valid_shares`: of each row (see `Embeddings`). `prompts`: the
    prompt set's name. `faults`: inputs that could not be read. Iterating gives `Classified` rows.
    """

    labels: tuple[str, ...]
    probabilities: NDArray[np.float32]
    keys: tuple[str, ...]
    towers: tuple[str, ...]
    places: tuple[Footprint, ...]
    valid_shares: NDArray[np.float32]
    prompts: str
    space_id: str
    faults: tuple[Fault, ...] = field(default=())

    @property
    def predicted(self) -> tuple[str, ...]:
        """(N,) the likeliest label of each."""
        return tuple(self.labels[one] for one in self.probabilities.argmax(-1).tolist())

    def __len__(self) -> int:
        return len(self.keys)

    def __array__(self, dtype: DTypeLike | None = None, copy: bool | None = None) -> NDArray[Any]:
        return np.array(self.probabilities, dtype=dtype, copy=copy)

    @overload
    def __getitem__(self, row: int) -> Classified: ...
    @overload
    def __getitem__(self, row: str) -> NDArray[np.float32]: ...
    @overload
    def __getitem__(self, row: Any) -> Classification: ...

    def __getitem__(self, row: Any) -> Any:
        """A number gives that row, a label's name (N,) its probabilities, a slice or mask the same
        for some rows."""
        if isinstance(row, str):
            if row not in self.labels:
                raise DataError(f"no label {row!r}; {nearest(row, self.labels)}")
            return self.probabilities[:, self.labels.index(row)]
        if not isinstance(row, int | np.integer):
            rows = choose_rows(len(self), row)
            return replace(
                self,
                probabilities=self.probabilities[rows],
                keys=tuple(self.keys[one] for one in rows),
                towers=tuple(self.towers[one] for one in rows),
                places=tuple(self.places[one] for one in rows),
                valid_shares=self.valid_shares[rows],
                faults=(),
            )
        row = range(len(self))[row]
        return Classified(
            key=self.keys[row],
            probabilities=dict(zip(self.labels, self.probabilities[row].tolist(), strict=True)),
            tower=self.towers[row],
            place=self.places[row],
            valid_share=float(self.valid_shares[row]),
        )

    def __iter__(self) -> Iterator[Classified]:
        return (self[row] for row in range(len(self)))

    def _title(self) -> str:
        return (
            f"Classification: {counted(len(self), 'row')}, {len(self.labels)} labels, prompts "
            f"{self.prompts!r}{not_read(self.faults)}"
        )

    def table(self) -> Table:
        """Key, predicted label, and the probability of every label (at most six of them)."""
        keys = short_keys(self.keys)
        shown = list(enumerate(self.labels))[:6]
        predicted = self.predicted
        return Table.of_rows(
            len(self),
            [
                ("key", lambda row: keys[row]),
                ("label", lambda row: predicted[row]),
                *((label, _percent_of(self.probabilities, column)) for column, label in shown),
            ],
        )

    def to_geojson(self) -> dict[str, Any]:
        """One feature per chip or window, in degrees of WGS84; `DataError` where none has a place.

        Properties: source, key, label, probability, tower, valid_share, datetime, and the
        probability of every label under `p_LABEL`.
        """
        return feature_collection([geojson_row(row) for row in self])

    def save_geojson(self, path: str | Path) -> Path:
        """Write `to_geojson` for QGIS and GDAL; whole, or not at all."""
        return write_geojson(path, self.to_geojson())

    def to_geodataframe(self) -> geopandas.GeoDataFrame:
        """One row per chip or window in EPSG:4326, with the columns of `to_geojson`.

        `DataError` where geopandas is not installed.
        """
        return _geodataframe([geojson_row(row) for row in self], ["key", "label", "probability"])


def _geodataframe(
    rows: Sequence[tuple[Footprint, Mapping[str, Any]]], columns: Sequence[str]
) -> geopandas.GeoDataFrame:
    """Places and their properties, as `feature_collection` has them."""
    return geodataframe(
        [
            {"source": place.source, **properties, "datetime": place.datetime}
            for place, properties in rows
        ],
        [place.shape for place, _ in rows],
        ["source", *columns, "datetime"],
    )


def gathered(found: Sequence[Any]) -> tuple[list[Any], dict[str, Any]]:
    """The rows among embedded or classified chips and faults, and what `Embeddings` and
    `Classification` hold of each row; raises the first fault where there are only faults."""
    faults = tuple(one for one in found if isinstance(one, Fault))
    rows = [one for one in found if not isinstance(one, Fault)]
    if faults and not rows:
        others = f" (and {counted(len(faults) - 1, 'more input')} failed)" if faults[1:] else ""
        raise faults[0].kind(f"{faults[0].error}{others}")
    return rows, {
        "keys": tuple(row.key for row in rows),
        "towers": tuple(row.tower for row in rows),
        "places": tuple(row.place for row in rows),
        "valid_shares": np.array([row.valid_share for row in rows], dtype=np.float32),
        "faults": faults,
    }


def _percent_of(numbers: NDArray[np.float32], column: int) -> Callable[[int], str]:
    return lambda row: f"{100 * float(numbers[row, column]):.1f} %"


@dataclass(frozen=True, kw_only=True, slots=True, repr=False)
class Hit:
    """One result of a search. `score`: its cosine to the query (-1 to 1), of two dates the rise of
    it. `facts`: what else is known of a window of an index. `before`: of two dates, the earlier
    window over the same place."""

    rank: int
    key: str
    score: float
    place: Footprint
    tower: str
    facts: Mapping[str, Any] = field(default_factory=dict)
    before: Hit | None = None

    def __repr__(self) -> str:
        place = centre_of(self.place)
        return f"Hit({self.rank}: {self.key!r}, score {self.score:.4f}{place and f', {place}'})"

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "rank": self.rank,
            "key": self.key,
            "score": self.score,
            "source": self.place.source,
            **self.place.describe(),
            "tower": self.tower,
            **self.facts,
        }


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Hits(Shown, Sequence[Hit]):
    """The k best of a search, best first; `np.asarray` gives their scores (k,).

    `num_searched`: how many vectors were compared, or searched through an index. `how`: of a search
    of an index of scenes, plain values of what was done (see `terralign search --explain`).
    """

    query: str
    hits: tuple[Hit, ...]
    num_searched: int
    how: Mapping[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.hits)

    @overload
    def __getitem__(self, index: int) -> Hit: ...
    @overload
    def __getitem__(self, index: slice) -> Self: ...

    def __getitem__(self, index: Any) -> Any:
        found = self.hits[index]
        if isinstance(found, tuple):
            return replace(self, hits=found)
        return found

    def __array__(self, dtype: DTypeLike | None = None, copy: bool | None = None) -> NDArray[Any]:
        return np.array([hit.score for hit in self.hits], dtype=dtype or np.float32)

    def _title(self) -> str:
        why = f"; {self.how['nothing']}" if "nothing" in self.how else ""
        return f"Hits: {len(self):,} of {self.num_searched:,} for {self.query!r}{why}"

    def table(self, max_rows: int = MAX_ROWS) -> Table:
        """Rank, score, key and the centre of the place; the scene where hits are of several."""
        keys = short_keys([hit.key for hit in self.hits])
        columns: list[tuple[str, Callable[[int], str]]] = [
            ("rank", lambda row: str(self.hits[row].rank)),
            ("score", lambda row: f"{self.hits[row].score:.4f}"),
            ("key", lambda row: keys[row]),
            ("place", lambda row: centre_of(self.hits[row].place)),
        ]
        if len({hit.facts.get("scene") for hit in self.hits}) > 1:
            columns.append(("scene", lambda row: str(self.hits[row].facts.get("scene", ""))))
        return Table.of_rows(len(self), columns, max_rows=max_rows)

    def _rows(self) -> list[tuple[Footprint, dict[str, Any]]]:
        return [
            (
                hit.place,
                {
                    "rank": hit.rank,
                    "key": hit.key,
                    "score": round(hit.score, 6),
                    "tower": hit.tower,
                    **hit.facts,
                    "query": self.query,
                },
            )
            for hit in self.hits
        ]

    def to_geojson(self) -> dict[str, Any]:
        """One feature per hit, in degrees of WGS84; `DataError` where none has a place."""
        return feature_collection(self._rows())

    def to_geodataframe(self) -> geopandas.GeoDataFrame:
        """One row per hit in EPSG:4326, best first, with the columns of `to_geojson`.

        `DataError` where geopandas is not installed.
        """
        return _geodataframe(self._rows(), ["rank", "key", "score"])

    def to_map(self, *, pictures: bool = True) -> Map:
        """The hits outlined on a map that a notebook shows, by rank, offline.

        `pictures`: read the pictures of the first four scenes around their hits, where the files
        are at hand; the map states which are not. `DataError` where no hit has a place.
        """
        from terralign.encoders.maps import map_of  # which takes the readers of scenes

        rows = [
            (hit.place, str(hit.rank), f"{hit.rank}: {hit.score:.4f}, {hit.key}")
            for hit in self.hits
        ]
        sensors = {
            hit.place.source: hit.facts["sensor"]
            for hit in self.hits
            if hit.place.source is not None and "sensor" in hit.facts
        }
        return map_of(self._title(), rows, pictures=pictures, sensors=sensors)

    def save_geojson(self, path: str | Path) -> Path:
        """Write `to_geojson` for QGIS and GDAL; whole, or not at all."""
        return write_geojson(path, self.to_geojson())


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Changes(Hits):
    """The k places whose score rose most from one date to another, most first.

    Each hit is of the later window, and its `score` the rise; its `facts` have `score_before`,
    `score_after`, and of the earlier window `key_before`, `scene_before`, `source_before` and
    `datetime_before`. `num_searched`: how many pairs were compared.
    """

    def _title(self) -> str:
        return f"Changes: {len(self):,} of {self.num_searched:,} pairs for {self.query!r}"

    def table(self, max_rows: int = MAX_ROWS) -> Table:
        """Rank, rise, both scores and dates, key, the centre of the place, and both scenes."""
        keys = short_keys([hit.key for hit in self.hits])

        def day(when: object) -> str:
            return str(when)[:10] if when else ""

        return Table.of_rows(
            len(self),
            [
                ("rank", lambda row: str(self.hits[row].rank)),
                ("rise", lambda row: f"{self.hits[row].score:.4f}"),
                ("before", lambda row: f"{self.hits[row].facts['score_before']:.4f}"),
                ("on", lambda row: day(self.hits[row].facts["datetime_before"])),
                ("after", lambda row: f"{self.hits[row].facts['score_after']:.4f}"),
                ("on", lambda row: day(self.hits[row].place.datetime)),
                ("key", lambda row: keys[row]),
                ("place", lambda row: centre_of(self.hits[row].place)),
                ("scene before", lambda row: self.hits[row].facts["scene_before"]),
                ("scene after", lambda row: self.hits[row].facts["scene"]),
            ],
            max_rows=max_rows,
        )


def nearest_hits(
    embeddings: Embeddings, vector: NDArray[np.float32], *, query: str, k: int
) -> Hits:
    """The k rows with the greatest cosine to `vector` (D,), equal ones in their order."""
    scores = embeddings.vectors @ vector
    best = np.argsort(-scores, kind="stable")[:k].tolist()
    return Hits(
        query=query,
        hits=tuple(
            Hit(
                rank=rank,
                key=embeddings.keys[row],
                score=float(scores[row]),
                place=embeddings.places[row],
                tower=embeddings.towers[row],
            )
            for rank, row in enumerate(best, start=1)
        ),
        num_searched=len(embeddings),
    )


def centre_of(place: Footprint) -> str:
    """The middle of a place, as "17.9652 N, 103.7044 E"; empty where it is unknown."""
    bounds = place.bounds
    if bounds is None:
        return ""
    west, south, east, north = bounds
    east += 360 if west > east else 0
    longitude, latitude = (west + east) / 2, (south + north) / 2
    longitude -= 360 if longitude > 180 else 0
    return (
        f"{abs(latitude):.4f} {'N' if latitude >= 0 else 'S'}, "
        f"{abs(longitude):.4f} {'E' if longitude >= 0 else 'W'}"
    )


def geojson_row(row: Classified) -> tuple[Footprint, dict[str, Any]]:
    """The place and the properties of a classified chip or window."""
    chances = {f"p_{name}": round(chance, 6) for name, chance in row.probabilities.items()}
    return row.place, {
        "key": row.key,
        "label": row.label,
        "probability": round(row.probability, 6),
        **chances,
        "tower": row.tower,
        "valid_share": round(row.valid_share, 6),
    }


def feature_collection(rows: Sequence[tuple[Footprint, Mapping[str, Any]]]) -> dict[str, Any]:
    """GeoJSON (RFC 7946) of places and their properties; `DataError` where no place is known."""
    if rows and all(place.shape is None for place, _ in rows):
        raise DataError(
            f"no place on a map is known for {counted(len(rows), 'result')}; GeoJSON needs "
            "georeferenced GeoTIFFs or products"
        )
    return {
        "type": "FeatureCollection",
        "generator": GENERATOR,
        "features": [
            {
                "type": "Feature",
                "geometry": place.geometry,
                "properties": {
                    "source": place.source,
                    **properties,
                    "datetime": None if place.datetime is None else place.datetime.isoformat(),
                },
            }
            for place, properties in rows
        ],
    }


def check_geojson(path: str | Path) -> None:
    """`StorageError` for a file that exists and was not written by `write_geojson`."""
    path = Path(path)
    if not path.exists():
        return
    with open(path, "rb") as file:
        ours = f'"generator": "{GENERATOR}"'.encode() in file.read(200)
    if not ours:
        raise StorageError(f"{path} exists and was not written by terralign; choose another name")


def write_geojson(path: str | Path, values: Mapping[str, Any]) -> Path:
    """Write GeoJSON as UTF-8, in place of an earlier one of terralign's.

    `StorageError` where another file has the name, or the disk is full.
    """
    path = Path(path)
    check_geojson(path)
    write_text(path, as_utf8(json.dumps(values, ensure_ascii=False, allow_nan=False)) + "\n")
    return path
