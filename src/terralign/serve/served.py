"""The index that is served: searched, described and shown; opened again when its parts change.

Everything here computes, and may be called from several threads.
"""

from __future__ import annotations

import datetime as dt
import json
import logging
import os
import re
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import shapely
from numpy.typing import NDArray

from terralign.chips import Grid, make_layout
from terralign.encoders.answers import Hit, Hits
from terralign.encoders.space import EmbeddingSpace
from terralign.encoders.vectors import as_utf8, check_same_space
from terralign.errors import DataError, SensorError, TerralignError, counted
from terralign.index.approximate import FOLDER as INDEX
from terralign.index.filters import outlines_of
from terralign.index.names import part_paths
from terralign.index.parts import PartFacts
from terralign.index.results import save_hits
from terralign.index.search import Index, open_index
from terralign.index.stamps import stamps_of
from terralign.index.store import NO_TIME, stamp_of
from terralign.scenes.scene import Scene, open_scene
from terralign.serve.pictures import Kind, Pictures, kinds_of
from terralign.serve.requests import Asked, SearchRequest
from terralign.serve.settings import EXAMPLES, ServeSettings

logger = logging.getLogger(__name__)

T = TypeVar("T")

_LOOKED_S = 5.0
_LISTED_S = 60.0
"""Seconds for which it is believed that the files of a scene are as they were: where it is shown,
and where many are listed."""

_NUM_TEXTS = 1024
_NUM_ANSWERS = 32
_NUM_SCENES = 64
"""Texts and searches whose results are kept, and scenes whose headers are."""


class NotFound(DataError):
    """A scene, window or picture that the index does not have."""


class Unavailable(TerralignError):
    """The parts changed, and cannot be opened now."""


class KeepingSpace(EmbeddingSpace):
    """The same space, which keeps the vectors of the latest texts; one text is embedded at a
    time."""

    def __init__(self, space: EmbeddingSpace) -> None:
        vars(self).update(vars(space))
        lock = threading.Lock()

        @lru_cache(maxsize=_NUM_TEXTS)
        def keep(texts: tuple[str, ...]) -> Any:
            with lock:
                return EmbeddingSpace.encode_text(self, texts)

        self._keep = keep

    def encode_text(self, texts: Iterable[str]) -> Any:
        """(n, D) unit vectors."""
        return self._keep(tuple(texts))

    def text_vector(self, query: str, prompts: Any = None) -> NDArray[np.float32]:
        """(D,) unit vector of a text; unlike the library's, no file of this name is looked for."""
        found: NDArray[np.float32] = self.encode_text([query])[0].numpy()
        return found


@dataclass(frozen=True, kw_only=True, slots=True)
class ServedScene:
    """A scene of the index. `parts`: one for each tower; `rows`: where their windows are."""

    number: int
    source: str
    parts: tuple[PartFacts, ...]
    datetime: str | None
    bounds: tuple[float, float, float, float]
    num_windows: int

    @property
    def facts(self) -> PartFacts:
        """Of its first part."""
        return self.parts[0]


_Stamp = tuple[tuple[str, int, int], ...]
"""Name, size and time of change of each part, and of the index beside them."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class _Opened:
    """An index, its scenes by their sources and by their numbers, and the stamp of its parts.
    `found`: the hits of a search of this index, of which the latest are kept."""

    index: Index
    scenes: dict[str, ServedScene]
    numbered: dict[int, ServedScene]
    stamp: _Stamp
    found: Callable[[Asked], Hits]

    def scene(self, number: int) -> ServedScene:
        found = self.numbered.get(number)
        if found is None:
            raise NotFound(f"scene {number} not found; api/index lists the scenes")
        return found


class ServedIndex:
    """An index for a server. `space`: of its vectors; `SpaceMismatchError` for another one."""

    def __init__(self, folder: Path, space: EmbeddingSpace, settings: ServeSettings) -> None:
        self.folder, self.settings = folder, settings
        self.space = KeepingSpace(space)
        self.pictures = Pictures(lru_cache(maxsize=_NUM_SCENES)(self._scene_of))
        self.warning = ""
        self._numbers: dict[str, int] = {}
        self._looked: dict[str, tuple[float, str]] = {}
        self._refreshing = threading.Lock()
        self._now = self._reopened()

    # The index and its scenes

    def _reopened(self) -> _Opened:
        stamp = _stamp_of(self.folder)
        index = open_index(self.folder)
        check_same_space(self.space.space_id, index.space_id, "the index's vectors")

        @lru_cache(maxsize=_NUM_ANSWERS)
        def found(asked: Asked) -> Hits:
            return self._search(index, asked)

        scenes = self._scenes_of(index)
        numbered = {one.number: one for one in scenes.values()}
        return _Opened(index=index, scenes=scenes, numbered=numbered, stamp=stamp, found=found)

    def _with_index(self, use: Callable[[_Opened], T]) -> T:
        """What is made of the index; made again where its parts changed meanwhile. `Unavailable`
        where they cannot be opened."""
        opened = self._now
        try:
            return use(opened)
        except (DataError, OSError) as error:
            self.refresh()
            if self._now is opened:
                if set(opened.stamp) - set(_stamp_of(self.folder)):
                    raise Unavailable(self.warning or "parts of the index are gone") from error
                raise
        return use(self._now)

    @property
    def index(self) -> Index:
        """As it was last opened."""
        return self._now.index

    def refresh(self) -> None:
        """Open the index again where its parts changed; where that fails, the former is served."""
        with self._refreshing:
            warning = ""
            try:
                if _stamp_of(self.folder) != self._now.stamp:
                    self._now = self._reopened()
                    logger.info("%s: opened again", counted(len(self.index), "window"))
            except (TerralignError, OSError) as error:
                warning = f"the parts changed and cannot be opened: {self.plain(str(error))}"
                if warning != self.warning:
                    logger.warning("%s; the former ones are served", warning)
            self.warning = warning

    def _scenes_of(self, index: Index) -> dict[str, ServedScene]:
        firsts, rows = index.store.firsts, index.store.rows
        parts: dict[str, list[int]] = {}
        for number, facts in enumerate(index.facts):
            parts.setdefault(facts.source, []).append(number)
        found = {}
        for source, numbers in parts.items():
            own = np.concatenate([rows[firsts[one] : firsts[one + 1]] for one in numbers])
            times = own["time"][own["time"] != NO_TIME]
            found[source] = ServedScene(
                number=self._numbers.setdefault(source, len(self._numbers)),
                source=source,
                parts=tuple(index.facts[one] for one in numbers),
                datetime=_iso(int(times[0])) if len(times) else None,
                bounds=_bounds_of(own),
                num_windows=len(own),
            )
        return found

    def plain(self, text: str) -> str:
        """A message without paths of this machine, on one line."""
        sources = (os.path.dirname(one) for one in self._numbers if os.path.isabs(one))
        folders = {str(self.folder), str(self.folder.absolute()), str(self.folder.resolve())}
        return without_paths(text, [*folders, *sources])

    # What is answered

    def health(self) -> dict[str, Any]:
        """That it runs."""
        return {"status": "ok", "windows": len(self.index), "version": version("terralign")}

    def describe(self) -> dict[str, Any]:
        """What is served (`IndexAnswer`)."""
        opened = self._now
        index, limits = opened.index, self.settings.limits
        times = index.store.rows["time"]
        known = times[times != NO_TIME]
        scenes = [opened.numbered[one] for one in sorted(opened.numbered)]
        return {
            "title": self.settings.title,
            "model": os.path.basename(index.model) if os.path.isabs(index.model) else index.model,
            "space_id": index.space_id,
            "windows": len(index),
            "towers": list(index.towers),
            "sensors": list(index.sensors),
            "dates": [_iso(int(one))[:10] for one in (known.min(), known.max())]
            if len(known)
            else None,
            "bounds": _bounds_of(index.store.rows),
            "num_scenes": len(scenes),
            "scenes": [self._describe(one) for one in scenes[: limits.scenes]],
            "examples": list(EXAMPLES),
            "limits": {
                name: getattr(limits, name)
                for name in ("text", "like", "k", "page", "vertices", "cells", "zoom")
            },
            "warning": self.warning,
            "is_static": False,
        }

    def _describe(self, scene: ServedScene) -> dict[str, Any]:
        kinds, why = self._kinds_of(scene, believed_s=_LISTED_S)
        return {
            "id": scene.number,
            "name": as_utf8(scene.facts.scene),
            "sensor": scene.facts.sensor,
            "towers": sorted({one.tower for one in scene.parts}),
            "datetime": scene.datetime,
            "bounds": list(scene.bounds),
            "windows": scene.num_windows,
            "pictures": list(kinds),
            "why": why,
        }

    def search(self, request: SearchRequest) -> dict[str, Any]:
        """A page of hits (`SearchAnswer`)."""
        began = time.perf_counter()
        asked, first = request.asked(), request.page * request.page_size

        def page(opened: _Opened) -> dict[str, Any]:
            hits = opened.found(asked)
            chosen = hits[first : first + request.page_size]
            return {
                "query": hits.query,
                "num_searched": hits.num_searched,
                "num_hits": len(hits),
                "page": request.page,
                "pages": -(-len(hits) // request.page_size),
                "took_ms": round(1000 * (time.perf_counter() - began), 1),
                "hits": {
                    "type": "FeatureCollection",
                    "features": [_feature(opened, hit) for hit in chosen],
                },
            }

        return self._with_index(page)

    def scores(self, asked: Asked) -> dict[str, Any]:
        """The score of every window that meets the conditions (`ScoresAnswer`)."""
        return self._with_index(lambda opened: self._scores(opened.index, asked))

    def _scores(self, index: Index, asked: Asked) -> dict[str, Any]:
        _check_ids(index, asked)
        found = index.scores(self.space, **_terms(asked), **_conditions(asked))
        step = max(1, -(-len(found.scores) // self.settings.limits.cells))
        numbers, scores = found.numbers[::step], found.scores[::step]
        cells = _cells_of(index, numbers)
        return {
            "min": float(found.scores.min()) if len(found.scores) else None,
            "max": float(found.scores.max()) if len(found.scores) else None,
            "num_searched": len(found.scores),
            "thinned": step,
            "cells": {
                "type": "FeatureCollection",
                "features": [
                    {
                        "type": "Feature",
                        "geometry": dict(shapely.geometry.mapping(shape)),
                        "properties": {"score": round(score, 4)},
                    }
                    for shape, score in zip(cells, scores.tolist(), strict=True)
                ],
            },
        }

    def download(self, asked: Asked, form: Literal["geojson", "geoparquet"]) -> bytes:
        """All hits as a file."""

        def public(opened: _Opened) -> Hits:
            hits = opened.found(asked)
            return replace(hits, hits=tuple(_public(opened, hit) for hit in hits))

        ending = "geojson" if form == "geojson" else "parquet"
        with tempfile.TemporaryDirectory(prefix="terralign-") as folder:
            return save_hits(self._with_index(public), Path(folder) / f"hits.{ending}").read_bytes()

    def tile(self, number: int, kind: Kind, zoom: int, x: int, y: int) -> bytes:
        """PNG of a tile; `NotFound` where the scene cannot be shown."""
        scene = self._now.scene(number)
        return self._shown(
            scene, kind, lambda: self.pictures.tile(scene.facts.identity, kind, zoom, x, y)
        )

    def thumbnail(self, window_id: str, kind: Kind) -> bytes:
        """PNG of a window; `NotFound` where its scene cannot be shown."""
        opened = self._now
        row = _row_of(opened.index, window_id)
        facts = opened.index.facts[int(opened.index.store.rows["part"][row])]
        if facts.grid is None:
            raise NotFound("the part of this window has no grid; embed its scene again")
        grid, window = Grid(**facts.grid.model_dump()), opened.index.window_of(row)
        scene = opened.scenes[facts.source]
        return self._shown(
            scene, kind,
            lambda: self.pictures.thumbnail(scene.facts.identity, kind, grid, window),
        )  # fmt: skip

    def whole(
        self, number: int, kind: Kind, side: int
    ) -> tuple[bytes, tuple[float, float, float, float]]:
        """PNG of a scene as the web map shows it, its longer side at most `side` pixels, and its
        bounds; `NotFound` where it cannot be shown."""
        scene = self._now.scene(number)
        return self._shown(
            scene, kind, lambda: self.pictures.whole(scene.facts.identity, kind, side)
        )

    def identity(self, number: int) -> str:
        """What the pictures of a scene depend on."""
        return self._now.scene(number).facts.identity

    # Within

    def _search(self, index: Index, asked: Asked) -> Hits:
        _check_ids(index, asked)
        return index.search(
            self.space, k=asked.k, collapse=asked.collapse, cut=asked.cut,
            **_terms(asked), **_conditions(asked),
        )  # fmt: skip

    # Scenes that can be shown

    def _shown(self, scene: ServedScene, kind: Kind, draw: Callable[[], T]) -> T:
        """A picture of a scene; `NotFound` where it cannot be drawn, with the reason."""
        kinds, why = self._kinds_of(scene)
        if kind not in kinds:
            raise NotFound(why or f"this scene has no picture {kind!r}; it has {', '.join(kinds)}")
        try:
            return draw()
        except NotFound:
            raise
        except (TerralignError, OSError) as error:
            raise NotFound(self.plain(str(error))) from error

    def _kinds_of(
        self, scene: ServedScene, *, believed_s: float = _LOOKED_S
    ) -> tuple[tuple[Kind, ...], str]:
        """The pictures of a scene, or () and the reason."""
        why = self._missing(scene, believed_s)
        if why:
            return (), why
        facts = scene.facts
        try:
            sensor = self.space.find_sensor(facts.sensor)
            kinds = kinds_of(make_layout(sensor, facts.bands, units="physical"))
        except SensorError:
            return (), f"the model does not know the sensor {facts.sensor!r}"
        return kinds, "" if kinds else f"{facts.sensor} has no bands for a picture"

    def _missing(self, scene: ServedScene, believed_s: float) -> str:
        """Why the files of a scene cannot be shown; "" where they can."""
        identity, now = scene.facts.identity, time.monotonic()
        when, why = self._looked.get(identity, (now - believed_s, ""))
        if now - when >= believed_s:
            why = self._look(scene)
            self._looked[identity] = (now, why)
        return why

    def _look(self, scene: ServedScene) -> str:
        path = self._path_of(scene)
        if path is None:
            return (
                "its files are on another machine"
                if _link(scene.source) or not os.path.isabs(scene.source)
                else "its file is not found here, or not in a folder that may be read"
            )
        try:
            changed = stamps_of(path) != scene.facts.stamps
        except TerralignError:
            return "its file cannot be read"
        return "its file changed since it was embedded; embed it again" if changed else ""

    def _path_of(self, scene: ServedScene) -> Path | None:
        """The file or folder of a scene: where its part says, or of the same name in a folder that
        may be read. Links are followed before it is decided what lies within a folder."""
        if not os.path.isabs(scene.source):
            return None
        named = Path(scene.source)
        folders = [one.resolve() for one in self.settings.scenes]
        for path in (named, *(one / named.name for one in folders)):
            try:
                whole = path.resolve(strict=True)
            except (OSError, RuntimeError, ValueError):
                continue
            if not folders or any(whole.is_relative_to(one) for one in folders):
                return path
        return None

    def _scene_of(self, identity: str) -> Scene:
        """The scene of the part of an identity, read as it was embedded."""
        opened = self._now
        served = next(
            (one for one in opened.scenes.values() if one.facts.identity == identity), None
        )
        path = None if served is None else self._path_of(served)
        if served is None or path is None:
            raise NotFound("the scene's file is not found")
        facts = served.facts
        return open_scene(
            path,
            sensor=self.space.find_sensor(facts.sensor),
            bands=facts.bands,
            dn_offset=facts.dn_offset,
        )


def _terms(asked: Asked) -> dict[str, Any]:
    return {
        "query": asked.query.strip() or None,
        "against": asked.against.strip() or None,
        "like": asked.like,
        "unlike": asked.unlike,
    }


def _conditions(asked: Asked) -> dict[str, Any]:
    polygon = asked.polygon
    return {
        "bbox": asked.bbox,
        "polygon": None if polygon is None else polygon.model_dump(),
        "start": asked.start,
        "end": asked.end,
        "sensors": asked.sensors,
        "towers": asked.towers,
        "max_cloud": asked.max_cloud,
        "min_valid": asked.min_valid,
    }


def _check_ids(index: Index, asked: Asked) -> None:
    for one in (*asked.like, *asked.unlike):
        _row_of(index, one)


def _row_of(index: Index, window_id: str) -> int:
    try:
        return index.row_of(window_id)
    except DataError as error:
        raise NotFound(f"window {window_id[:100]!r} not found; give the id of a hit") from error


def _cells_of(index: Index, numbers: NDArray[np.int64]) -> NDArray[np.object_]:
    """(n,) the middle of each window, as large as the step to the next one: windows may overlap,
    these do not."""
    shapes = np.array(outlines_of(index.store, numbers), dtype=object)
    shares = np.array([one.stride_px / one.window_px for one in index.facts])
    share = shares[index.store.rows["part"][numbers]]
    share[shapely.get_type_id(shapes) != shapely.GeometryType.POLYGON] = (
        1  # in parts: left as it is
    )
    points, owners = shapely.get_coordinates(shapes, return_index=True)
    centres = shapely.get_coordinates(shapely.centroid(shapes))[owners]
    moved = centres + (points - centres) * share[owners][:, None]
    found: NDArray[np.object_] = shapely.set_coordinates(shapes, moved.round(6))
    return found


def _feature(opened: _Opened, hit: Hit) -> dict[str, Any]:
    source = str(hit.place.source)
    scene = opened.scenes[source]
    geometry = shapely.transform(hit.place.shape, lambda points: points.round(7))
    when = hit.place.datetime
    return {
        "type": "Feature",
        "id": hit.key,
        "geometry": dict(shapely.geometry.mapping(geometry)),
        "properties": {
            "rank": hit.rank,
            "score": round(hit.score, 6),
            "ranked_by": hit.facts["ranked_by"],
            "scene": scene.number,
            "scene_name": as_utf8(hit.facts["scene"]),
            "sensor": hit.facts["sensor"],
            "tower": hit.tower,
            "datetime": None if when is None else when.isoformat(),
            "cloud_share": hit.facts["cloud_share"],
            "valid_share": hit.facts["valid_share"],
            "source": _link(source),
            "thumbnail": f"api/thumbnails/{hit.key}.png",
        },
    }


def _public(opened: _Opened, hit: Hit) -> Hit:
    """A hit as strangers may see it: without the path of its scene."""
    source = str(hit.place.source)
    name = _link(source) or opened.scenes[source].facts.scene
    return replace(hit, place=replace(hit.place, source=name))


def _link(source: str) -> str | None:
    """The address of a scene that has one."""
    return source if source.startswith(("https://", "http://")) else None


def _stamp_of(folder: Path) -> _Stamp:
    index = folder / INDEX / "state.json"  # of `terralign index`
    paths = (*part_paths(folder), *([index] if index.is_file() else []))
    return tuple(map(stamp_of, paths))


def _iso(microseconds: int) -> str:
    when = dt.datetime(1970, 1, 1, tzinfo=dt.UTC) + dt.timedelta(microseconds=microseconds)
    return when.isoformat()


def _bounds_of(rows: NDArray[Any]) -> tuple[float, float, float, float]:
    """West, south, east, north of rows, west above east where they lie across the antimeridian."""
    if not len(rows):
        return (-180.0, -90.0, 180.0, 90.0)
    west, east = np.asarray(rows["west"]), np.asarray(rows["east"])
    south, north = float(rows["south"].min()), float(rows["north"].max())
    if (west > east).any():
        left, right = float((west % 360).min()), float((east % 360).max())
        west_of, east_of = (one - 360 if one > 180 else one for one in (left, right))
        return west_of, south, east_of, north
    return float(west.min()), south, float(east.max()), north


_PATH = re.compile(r"(?<![\w:/.<>-])(?:file://)?/(?:[^\s/'\"`;,:()<>]+/)*([^\s/'\"`;,:()<>]*)")


def without_paths(text: str, folders: Sequence[str] = ()) -> str:
    """A message with the last name of each absolute path in place of it, on one line."""
    for folder in sorted({one for one in folders if len(one) > 1}, key=len, reverse=True):
        text = text.replace(f"{folder}/", "").replace(folder, os.path.basename(folder))
    return " ".join(_PATH.sub(lambda match: match[1] or "...", text).split())


def as_json(value: Any) -> bytes:
    """JSON, in UTF-8."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()
