"""Scenes as maps: how well each place fits a text, or which of several classes it is likeliest of.

The windows of one scene, as one tower sees them, from a folder of parts or embedded now, become a
cloud-optimised GeoTIFF on the scene's own grid, some pixels of the scene to one of the map (see
`Blend`). N windows, D dimensions, K classes, H W pixels of the map.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from numpy.typing import NDArray

from terralign.chips import Grid
from terralign.encoders.inputs import Inputs, list_inputs
from terralign.encoders.maps import Map, drawn_map, underlay_of
from terralign.encoders.space import EmbeddingSpace
from terralign.encoders.tables import Shown, Table
from terralign.encoders.vectors import Fault, as_fault, check_same_space
from terralign.encoders.zeroshot import Prompts, as_class_names
from terralign.errors import DataError, SensorError, counted, nearest, quoted, shown, some
from terralign.index.blend import Blend
from terralign.index.cog import MARK, Layer, check_map, write_maps
from terralign.index.embed import embed_scenes
from terralign.index.names import is_folder_of_parts
from terralign.index.parts import Part, PartFacts
from terralign.index.plan import grid_gsd, require_shares
from terralign.index.query import Terms, name_of, query_vector, terms_of
from terralign.index.search import Index, cosines, open_index
from terralign.index.store import NO_TIME
from terralign.limits import require
from terralign.scenes.declared import Declared
from terralign.scenes.geotiff import open_geotiff
from terralign.scenes.scene import Scene, open_declared
from terralign.scenes.stac import StacItem, open_item

PIXELS_A_WINDOW = 8
"""Pixels of a map along a window's side, unless their size is given."""

_MAP_SIDE = 900
"""Pixels, at most, of a map's longer side where a notebook shows it."""

MAX_CLASSES = 65_535
"""Values of the largest type that has a colour table, less no data."""


@dataclass(frozen=True, kw_only=True, slots=True, repr=False, eq=False)
class _Map(Shown):
    """What all maps state. `grid`: of the map. `pixel_m`: metres of its pixels. `covered`: share
    (0-1) of its pixels that have a value."""

    path: Path
    scene: str
    source: str
    tower: str
    grid: Grid
    pixel_m: float | None
    num_windows: int
    covered: float

    def _titled(self, what: str) -> str:
        size = "" if self.pixel_m is None else f" of {self.pixel_m:.3g} m"
        return (
            f"{shown(self.path)}: {what}, {self.grid.height}x{self.grid.width} pixels{size} from "
            f"{counted(self.num_windows, 'window')} of {self.scene} ({self.tower})"
        )

    def _described(self) -> dict[str, Any]:
        return {
            "scene": self.scene,
            "source": self.source,
            "tower": self.tower,
            "height": self.grid.height,
            "width": self.grid.width,
            "pixel_m": self.pixel_m,
            "crs": self.grid.crs,
            "transform": list(self.grid.transform),
            "windows": self.num_windows,
            "covered": self.covered,
        }


@dataclass(frozen=True, kw_only=True, slots=True, repr=False, eq=False)
class ScoreMap(_Map):
    """A map of scores: its file, scene and tower. `grid`: of the map. `pixel_m`: metres of its
    pixels. `lowest`, `highest`: cosines, NaN without any. `covered`: share (0-1) of its pixels with
    a score."""

    query: str
    lowest: float
    highest: float

    def _title(self) -> str:
        return self._titled(f"scores of {self.query!r}")

    def table(self) -> Table:
        """The lowest and the highest score, and the share of the map that has one."""
        cells = [
            ("lowest", f"{self.lowest:.4f}"),
            ("highest", f"{self.highest:.4f}"),
            ("covered", f"{100 * self.covered:.1f} %"),
        ]
        return Table(columns=tuple(one for one, _ in cells), rows=(tuple(one for _, one in cells),))

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "out": str(self.path),
            "query": self.query,
            **self._described(),
            "lowest": self.lowest if self.covered else None,
            "highest": self.highest if self.covered else None,
        }

    def to_map(self) -> Map:
        """The scores in colours, from dark, the lowest, to bright, on a map that a notebook shows.

        `DataError` where the file is gone or has no reference system.
        """
        with open_geotiff(self.path) as file:
            side = max(file.height, file.width)
            step = max(1, math.ceil(side / _MAP_SIDE))
            values = file.read(1)[::step, ::step]
        if self.grid.crs is None:
            raise DataError(f"{shown(self.path)} is not georeferenced; a map needs that")
        shares = (values - self.lowest) / max(self.highest - self.lowest, 1e-6)
        colours = matplotlib.colormaps["viridis"](np.nan_to_num(shares), bytes=True)
        colours[..., 3] = np.where(np.isfinite(values), 255, 0)
        picture = underlay_of(colours, self.grid, origin=shown(self.path))
        line = f"Dark to bright: {self.lowest:.4f} to {self.highest:.4f}."
        return drawn_map(f"Scores of {self.query!r}: {self.scene}", [], [picture], [line])


@dataclass(frozen=True, kw_only=True, slots=True, repr=False, eq=False)
class ClassMap(_Map):
    """A map of classes, and one of the probability of the class of each pixel. `shares`: of each
    label, of the pixels with a class (0-1)."""

    probability_path: Path
    labels: tuple[str, ...]
    shares: tuple[float, ...]

    def _title(self) -> str:
        return self._titled(f"{len(self.labels)} classes") + f"; {shown(self.probability_path)}"

    def table(self) -> Table:
        """Value, name and share of each class."""
        return Table.of_rows(
            len(self.labels),
            [
                ("value", lambda row: str(row + 1)),
                ("class", lambda row: self.labels[row]),
                ("share", lambda row: f"{100 * self.shares[row]:.1f} %"),
            ],
        )

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        classes = enumerate(zip(self.labels, self.shares, strict=True), start=1)
        return {
            "out": str(self.path),
            "probability": str(self.probability_path),
            **self._described(),
            "classes": [
                {"value": value, "label": label, "share": share}
                for value, (label, share) in classes
            ],
        }


def score_map(
    space: EmbeddingSpace,
    source: Index | Inputs,
    query: Terms,
    out: str | Path,
    *,
    against: Terms = None,
    prompts: Prompts | None = None,
    scene: str | None = None,
    tower: str | None = None,
    pixel_m: float | None = None,
    min_valid: float | None = None,
    max_cloud: float | None = None,
    **reading: Any,
) -> ScoreMap:
    """Write a GeoTIFF of how well each place of a scene fits a query, by cosine.

    `source`: an index or its folder, of which `scene` (its name, source, or the name of its part)
    and `tower` choose one part where there are several; or one scene, which is embedded first, in
    windows that overlap by half unless `stride` is given. `query`, `against`, `prompts`: as for
    `Index.search`. `out`: ends in .tif. `pixel_m`: metres of the map's pixels; left out, an eighth
    of a window. `min_valid`, `max_cloud`: leave out windows with a smaller share of valid pixels,
    or with more cloud. `reading`: of a scene, as for `embed_scenes`: `sensor`, `bands`, `units`,
    `dn_offset`, `composite`, `window`, `stride`, `gsd_m`, `batch_size`.

    The values are cosines (float32), the same as the scores of a search; overlapping windows are
    blended (see `Blend`). NaN, which is the file's no-data value, where no window lies, or nothing
    valid. The grid is the scene's own, reference system and rotation included.

    Raises `DataError` where several parts are meant or a part lacks its grid, `SpaceMismatchError`
    for vectors of another space, `StorageError` where another file has the name.
    """
    path = Path(out)
    check_map(path)
    positive = terms_of(space, query, prompts=prompts)
    negative = terms_of(space, against, prompts=prompts)
    vector, name = query_vector(positive, negative), name_of(positive, negative)
    with _Windows.opened(
        space, source, scene=scene, tower=tower, min_valid=min_valid, max_cloud=max_cloud, **reading
    ) as windows:
        raster = windows.raster(pixel_m)
        seen = _Seen()

        def strips() -> Iterator[tuple[int, list[NDArray[Any]]]]:
            for first, values in raster.blend.strips(
                1, lambda numbers: windows.cosines(numbers, vector)
            ):
                seen.add(values[0])
                yield first, [values[0]]

        layer = Layer(
            path=path,
            dtype="float32",
            nodata=math.nan,
            description=f"score of {name}",
            tags={
                MARK: "score map",
                "QUERY": name,
                "VALUES": "cosine of the window and the query, -1 to 1",
                **windows.tags(),
            },
            resampling="AVERAGE",
        )
        write_maps([layer], raster.grid, strips())
        return ScoreMap(
            path=path,
            query=name,
            lowest=seen.lowest,
            highest=seen.highest,
            covered=seen.num / (raster.grid.height * raster.grid.width),
            **windows.described(raster),
        )


def class_map(
    space: EmbeddingSpace,
    source: Index | Inputs,
    labels: Sequence[str],
    out: str | Path,
    *,
    prompts: Prompts | None = None,
    scene: str | None = None,
    tower: str | None = None,
    pixel_m: float | None = None,
    min_valid: float | None = None,
    max_cloud: float | None = None,
    **reading: Any,
) -> ClassMap:
    """Write a GeoTIFF of the likeliest of K classes at each place, and one of its probability.

    `labels`, `prompts`: as for `EmbeddingSpace.classify`; everything else as for `score_map`. The
    probabilities of overlapping windows are blended, and the greatest decides. `out` holds 1 to K
    in the order of the labels, uint8 or, of more than 255 classes, uint16, with a colour table; 0
    is no data. The names are in the tag CLASSES, and beside `out` in .tif.aux.xml, where GDAL looks
    for them, and in .qml for QGIS. `out` with `_probability` before its ending holds the
    probability (0-1, float32) of the class of each pixel.
    """
    path = Path(out)
    probability_path = path.with_name(f"{path.stem}_probability{path.suffix}")
    for one in (path, probability_path):
        check_map(one)
    names, chosen = as_class_names(labels), space.choose_prompts(prompts)
    if len(names) > MAX_CLASSES:
        raise DataError(f"{len(names):,} classes are more than a map holds; give {MAX_CLASSES:,}")
    weights = space.zero_shot_weights(names, chosen).numpy()
    with _Windows.opened(
        space, source, scene=scene, tower=tower, min_valid=min_valid, max_cloud=max_cloud, **reading
    ) as windows:
        raster = windows.raster(pixel_m)
        counts = np.zeros(len(names) + 1, dtype=np.int64)
        dtype = np.uint8 if len(names) <= 255 else np.uint16

        def strips() -> Iterator[tuple[int, list[NDArray[Any]]]]:
            for first, values in raster.blend.strips(
                len(names), lambda numbers: windows.probabilities(numbers, weights)
            ):
                there = np.isfinite(values[0])
                codes = np.where(there, values.argmax(0) + 1, 0).astype(dtype)
                counts[:] += np.bincount(codes.ravel(), minlength=len(counts))
                yield first, [codes, values.max(0)]

        tags = {**windows.tags(), "CLASSES": ", ".join(names), "PROMPTS": chosen.name}
        layers = [
            Layer(
                path=path,
                dtype=np.dtype(dtype).name,
                nodata=0,
                description="class",
                tags={MARK: "class map", "VALUES": "1 is the first of CLASSES", **tags},
                resampling="MODE",
                classes=names,
            ),
            Layer(
                path=probability_path,
                dtype="float32",
                nodata=math.nan,
                description="probability of the class",
                tags={MARK: "probability map", "VALUES": "probability, 0 to 1", **tags},
                resampling="AVERAGE",
            ),
        ]
        write_maps(layers, raster.grid, strips())
        num = max(1, int(counts[1:].sum()))
        return ClassMap(
            path=path,
            probability_path=probability_path,
            labels=names,
            shares=tuple((counts[1:] / num).tolist()),
            covered=int(counts[1:].sum()) / (raster.grid.height * raster.grid.width),
            **windows.described(raster),
        )


@dataclass(kw_only=True, slots=True)
class _Seen:
    """The numbers of a map, counted strip by strip."""

    num: int = 0
    lowest: float = math.nan
    highest: float = math.nan

    def add(self, values: NDArray[np.float32]) -> None:
        known = values[np.isfinite(values)]
        if len(known):
            self.num += len(known)
            self.lowest = float(np.fmin(self.lowest, known.min()))
            self.highest = float(np.fmax(self.highest, known.max()))


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class _Raster:
    """The grid of a map, and how windows are blended into it."""

    grid: Grid
    blend: Blend
    pixel_m: float | None


class _Windows:
    """The windows of one part that a map is made of, by number."""

    def __init__(
        self,
        space: EmbeddingSpace,
        index: Index,
        part: int,
        *,
        min_valid: float | None,
        max_cloud: float | None,
    ) -> None:
        check_same_space(space.space_id, index.space_id, "the index's vectors")
        require_shares(0 if min_valid is None else min_valid, max_cloud)
        self._space, self._store = space, index.store
        self.facts: PartFacts = index.facts[part]
        self._path = self._store.paths[part]
        first, end = self._store.firsts[part : part + 2].tolist()
        rows = self._store.rows[first:end]
        keep = np.ones(len(rows), dtype=bool)
        if min_valid is not None:
            keep &= rows["valid"] >= min_valid
        if max_cloud is not None:
            keep &= rows["cloud"] <= max_cloud
        if not keep.any():
            raise DataError(
                f"{shown(self.facts.source)} has no window to map: none of {len(rows):,} has "
                "enough valid pixels and few enough clouds (min_valid=, max_cloud=)"
            )
        self._rows, self._inner = rows[keep], np.flatnonzero(keep)
        self._numbers = first + self._inner

    @classmethod
    @contextmanager
    def opened(
        cls,
        space: EmbeddingSpace,
        source: Index | Inputs,
        *,
        scene: str | None,
        tower: str | None,
        min_valid: float | None,
        max_cloud: float | None,
        **reading: Any,
    ) -> Iterator[_Windows]:
        """The windows of a part of an index, or of a scene that is embedded into a temporary one.

        `DataError` for options that have no effect.
        """
        if isinstance(source, str | Path) and is_folder_of_parts(Path(source)):
            source = open_index(source)
        if isinstance(source, Index):
            given = [f"{name}=" for name, one in reading.items() if one is not None]
            if given:
                raise DataError(
                    f"{', '.join(given)}: no effect on scenes that are embedded already; leave it "
                    "out"
                )
            part = choose_part(source, scene=scene, tower=tower)
            yield cls(space, source, part, min_valid=min_valid, max_cloud=max_cloud)
            return
        if scene is not None:
            raise DataError("scene= has no effect on a scene, only on a folder of parts")
        with tempfile.TemporaryDirectory(prefix="terralign-") as folder:
            _embed_alone(space, source, folder, tower=tower, max_cloud=max_cloud, **reading)
            index = open_index(folder)
            yield cls(space, index, 0, min_valid=min_valid, max_cloud=max_cloud)

    def raster(self, pixel_m: float | None) -> _Raster:
        """The grid of the map; `DataError` where the part cannot have one."""
        origin = shown(self.facts.source)
        if self.facts.grid is None:
            raise DataError(
                f"{shown(self._path)} is of an early version of terralign and does not state the "
                "scene's grid; remove it, and embed its scene again"
            )
        grid = Grid(**self.facts.grid.model_dump())
        gsd_m = grid_gsd(grid, origin)
        boxes = self._rows["window"].astype(np.int64)
        ends = boxes[:, :2] + boxes[:, 2:]
        if (boxes < [0, 0, 1, 1]).any() or (ends > [grid.height, grid.width]).any():
            raise DataError(
                f"{shown(self._path)} is damaged: its windows do not lie within the scene; remove "
                "it, and embed its scene again"
            )
        side = int(boxes[:, 2:].max())
        pixel_px = max(1, round(side / PIXELS_A_WINDOW))
        if pixel_m is not None:
            if not 0.9 * gsd_m <= pixel_m <= side * gsd_m:
                raise DataError(
                    f"pixel_m={pixel_m:g}: expected metres from {gsd_m:.3g}, the scene's, to "
                    f"{side * gsd_m:.4g}, a window's"
                )
            pixel_px = max(1, round(pixel_m / gsd_m))
        blend = Blend(
            windows=boxes,
            cells=self._valid_cells(),
            height=grid.height,
            width=grid.width,
            pixel_px=pixel_px,
        )
        height, width = blend.shape
        require(
            "map_pixels", height * width, f"the map of {origin} has",
            todo="give larger ones (pixel_m=)",
        )  # fmt: skip
        a, b, c, d, e, f = grid.transform
        coarse = Grid(
            crs=grid.crs,
            transform=(a * pixel_px, b * pixel_px, c, d * pixel_px, e * pixel_px, f),
            height=height,
            width=width,
        )
        return _Raster(grid=coarse, blend=blend, pixel_m=pixel_px * gsd_m)

    def _valid_cells(self) -> NDArray[np.uint64]:
        part = Part(self._path)
        try:
            batches = [
                one.column(0).fill_null(0).to_numpy() for one in part.batches(["valid_cells"])
            ]
        finally:
            part.close()
        cells: NDArray[np.uint64] = np.concatenate(batches)[self._inner]
        if not cells.any():
            raise DataError(
                f"{shown(self._path)} is damaged: no window has a valid cell; remove it, and embed "
                "its scene again"
            )
        return cells

    def cosines(
        self, numbers: NDArray[np.int64], vector: NDArray[np.float32]
    ) -> NDArray[np.floating[Any]]:
        """(n, 1) of some windows with a query (D,)."""
        rows = self._numbers[numbers]
        return cosines(self._store.vectors, vector, rows, device=self._space.device)[:, None]

    def probabilities(
        self, numbers: NDArray[np.int64], weights: NDArray[np.float32]
    ) -> NDArray[np.floating[Any]]:
        """(n, K) of some windows by zero-shot weights (K, D)."""
        found = np.empty((len(numbers), len(weights)), dtype=np.float32)
        for first in range(0, len(numbers), _BLOCK_ROWS):
            rows = self._numbers[numbers[first : first + _BLOCK_ROWS]]
            vectors = self._store.vectors[rows].astype(np.float32)
            logits = self._space.clip.logit_scale * (vectors @ weights.T)
            powers = np.exp(logits - logits.max(1, keepdims=True))
            found[first : first + _BLOCK_ROWS] = powers / powers.sum(1, keepdims=True)
        return found

    def tags(self) -> dict[str, str]:
        """What files state of where the values are from."""
        facts, when = self.facts, int(self._rows["time"][0])
        acquired = "" if when == NO_TIME else f"{np.datetime64(when, 'us').item().isoformat()}Z"
        return {
            "SCENE": facts.scene,
            "SOURCE": facts.source,
            "SENSOR": facts.sensor,
            "ACQUIRED": acquired or "unknown",
            "MODEL": facts.model,
            "SPACE_ID": facts.space_id,
            "TOWER": facts.tower,
            "TOWER_ID": facts.tower_id,
            "WINDOW": f"{facts.window_px} pixels of the tower, every {facts.stride_px}",
        }

    def described(self, raster: _Raster) -> dict[str, Any]:
        """The fields that both kinds of maps have."""
        return {
            "scene": self.facts.scene,
            "source": self.facts.source,
            "tower": self.facts.tower,
            "grid": raster.grid,
            "pixel_m": raster.pixel_m,
            "num_windows": len(self._rows),
        }


_BLOCK_ROWS = 16_384
"""Windows whose probabilities are computed at a time."""


def choose_part(index: Index, *, scene: str | None, tower: str | None) -> int:
    """The one part of a scene and tower, by number; `DataError` with the names where there are
    several, or none."""
    parts = list(range(len(index.facts)))
    where = shown(index.folder)

    def names_of(part: int) -> tuple[str, ...]:
        facts = index.facts[part]
        return facts.scene, facts.source, index.store.paths[part].name

    if scene is not None:
        mine = [one for one in parts if scene in names_of(one)]
        if not mine:
            known = {index.facts[one].scene for one in parts}
            raise DataError(f"{where} has no scene {quoted(scene)}; {nearest(scene, known)}")
        parts = mine
    sources = {index.facts[one].source: index.facts[one].scene for one in parts}
    if len(sources) > 1:
        scenes = list(sources.values())
        names = scenes if len(set(scenes)) == len(scenes) else list(sources)
        raise DataError(
            f"{where} has {len(sources)} scenes: {some(sorted(names))}; name one of them (scene=)"
        )
    towers = {index.facts[one].tower for one in parts}
    if tower is not None:
        if tower not in towers:
            raise DataError(f"no windows by tower {quoted(tower)} here; {nearest(tower, towers)}")
        parts = [one for one in parts if index.facts[one].tower == tower]
    elif len(towers) > 1:
        raise DataError(
            f"{shown(index.facts[parts[0]].scene)} was embedded by {some(sorted(towers))}; name "
            "one of these towers (tower=)"
        )
    if len(parts) > 1:
        kinds = [
            f"{index.store.paths[one].name} (windows of {index.facts[one].window_px}, every "
            f"{index.facts[one].stride_px}, {index.facts[one].precision})"
            for one in parts
        ]
        raise DataError(
            f"{shown(index.facts[parts[0]].scene)} was embedded with several settings; name one "
            f"part (scene=): {some(kinds)}"
        )
    return parts[0]


def _embed_alone(
    space: EmbeddingSpace,
    inputs: Inputs,
    folder: str,
    *,
    tower: str | None,
    window: int | None = None,
    stride: int | None = None,
    composite: str | None = None,
    max_cloud: float | None = None,
    gsd_m: float | None = None,
    batch_size: int = 64,
    **declaring: Any,
) -> None:
    """Embed one scene, in windows that overlap by half unless `stride` says otherwise."""
    declared = space.declare(composite=composite, **declaring)
    listed = [one for _, one in list_inputs(inputs, declared)]
    if len(listed) != 1:
        raise DataError(
            f"a map is of one scene, and {len(listed)} are given; give one, or embed them into a "
            "folder and name the scene (scene=)"
        )
    scene = _as_scene(listed[0], declared)
    name = tower or space.tower_for(scene.layout)
    side = window or space.input_spec(name).size
    found = embed_scenes(
        space, scene, folder, tower=name, window=window, stride=stride or max(1, side // 2),
        max_cloud=max_cloud, gsd_m=gsd_m, batch_size=batch_size, vectors="float32",
    )  # fmt: skip
    if found.faults:
        raise found.faults[0].as_error()


def _as_scene(one: Any, declared: Declared) -> Scene:
    """One input, opened."""
    if isinstance(one, Fault):
        raise one.as_error()
    if isinstance(one, Scene):
        declared.refuse("a scene", "sensor", "bands", "units", "dn_offset")
        return replace(one, layout=one.layout.with_composite(declared.composite))
    if not isinstance(one, Path | StacItem):
        raise DataError(
            f"cannot map a {type(one).__name__}; give a folder of parts, or a scene: a file, a "
            "product, a Scene or a STAC item"
        )
    try:
        return open_declared(one, declared) if isinstance(one, Path) else open_item(one, declared)
    except (DataError, SensorError, OSError) as error:
        raise as_fault(str(one) if isinstance(one, Path) else one.key, error).as_error() from error
