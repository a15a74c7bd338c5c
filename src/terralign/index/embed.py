"""Scenes into parts: `embed_scenes`, which can be stopped, run again, and run in many processes.

The unit of work is a scene and a tower. Its part is written whole or not at all, so that the folder
of parts is the whole state: what is there is not made again, and a claim (a lock) on each scene
lets several processes share the folder. N windows, B batch, C bands, D dimensions.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from terralign.chips import PixelLayout, Window, make_layout
from terralign.compute import computing
from terralign.encoders.embedding import check_count, check_fit, read_chips
from terralign.encoders.inputs import Inputs, Source, list_inputs, open_sources
from terralign.encoders.pixels import ready_pixels
from terralign.encoders.space import EmbeddingSpace
from terralign.encoders.tables import Shown, Table, short_keys
from terralign.encoders.vectors import Fault, as_fault, not_read
from terralign.errors import (
    DataError,
    SensorError,
    SpaceMismatchError,
    StorageError,
    counted,
    shown,
)
from terralign.feed import Raw, feed_drawn
from terralign.files import claimed, clear_partials, hash_json, require_folder
from terralign.index.names import CLAIMS, part_name, part_paths
from terralign.index.parts import (
    FORMAT_VERSION,
    VECTOR_TYPES,
    Part,
    PartFacts,
    PartRows,
    SceneGrid,
    VectorType,
    facts_of,
    write_part,
)
from terralign.index.plan import (
    WindowPlan,
    plan_windows,
    require_shares,
    sensor_gsd,
    window_shapes,
)
from terralign.index.stac import check_catalogue, has_catalogue, write_catalogue
from terralign.index.stamps import source_name, stamps_of
from terralign.precision import PRECISIONS, Precision
from terralign.progress import Progress
from terralign.scenes.declared import Declared
from terralign.scenes.scene import Scene
from terralign.scenes.stac import StacItem
from terralign.sensors import RGB, describe_sensor

logger = logging.getLogger(__name__)

READ_AHEAD = 4
"""Batches that are read before the model takes them."""

SECONDS_BETWEEN_LOOKS = 1.0
"""How often it is looked whether another process is done with a scene."""

Engine = Literal["local", "ray"]


@dataclass(frozen=True, kw_only=True, slots=True)
class EmbedSettings:
    """How scenes are cut and their vectors stored; see `embed_scenes`."""

    window: int | None = None
    stride: int | None = None
    gsd_m: float | None = None
    min_valid: float = 0.0
    max_cloud: float | None = None
    vectors: VectorType = "float16"
    precision: Precision = "fp32"

    def __post_init__(self) -> None:
        for name in ("window", "stride"):
            value = getattr(self, name)
            whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
            if value is not None and not (whole and value > 0):
                raise DataError(f"{name} must be a number of pixels, 1 or more, not {value!r}")
        if self.gsd_m is not None and not 0 < self.gsd_m < 1e6:
            raise DataError(f"gsd_m must be a number of metres above 0, not {self.gsd_m!r}")
        if self.vectors not in VECTOR_TYPES:
            raise DataError(
                f"vectors are stored as {', '.join(VECTOR_TYPES)}, not as {self.vectors!r}"
            )
        if self.precision not in PRECISIONS:
            raise DataError(
                f"precision must be one of {', '.join(PRECISIONS)}, not {self.precision!r}"
            )
        require_shares(self.min_valid, self.max_cloud)

    def for_key(self) -> dict[str, Any]:
        """What vectors depend on; parts of before there were precisions keep their key."""
        values = asdict(self)
        if self.precision == "fp32":
            del values["precision"]
        return values


@dataclass(frozen=True, kw_only=True, slots=True)
class EmbeddedScene:
    """One part: its file, scene and tower. `was_done`: it existed already."""

    path: Path
    facts: PartFacts
    num_vectors: int
    was_done: bool


@dataclass(frozen=True, kw_only=True, slots=True, repr=False, eq=False)
class EmbeddedScenes(Shown):
    """What `embed_scenes` did: the parts, and the scenes that failed."""

    folder: Path
    scenes: tuple[EmbeddedScene, ...]
    faults: tuple[Fault, ...] = field(default=())

    @property
    def num_vectors(self) -> int:
        """Of all parts."""
        return sum(one.num_vectors for one in self.scenes)

    @property
    def num_new(self) -> int:
        """Vectors that were embedded now."""
        return sum(one.num_vectors for one in self.scenes if not one.was_done)

    def __len__(self) -> int:
        return len(self.scenes)

    def _title(self) -> str:
        done = sum(one.was_done for one in self.scenes)
        before = f", {counted(done, 'part')} of them made before" if done else ""
        return (
            f"{shown(self.folder)}: {counted(self.num_vectors, 'vector')} in "
            f"{counted(len(self), 'part')}{before}{not_read(self.faults)}"
        )

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "out": str(self.folder),
            "vectors": self.num_vectors,
            "parts": [
                {
                    "file": str(one.path),
                    "source": one.facts.source,
                    "tower": one.facts.tower,
                    "vectors": one.num_vectors,
                    "invalid": one.facts.num_invalid,
                    "cloudy": one.facts.num_cloudy,
                    "made_before": one.was_done,
                    "notes": list(one.facts.notes),
                }
                for one in self.scenes
            ],
            "faults": [{"file": one.key, "error": one.error} for one in self.faults],
        }

    def table(self) -> Table:
        """Scene, tower, vectors and what was left out, of each part."""
        sources = [one.facts.source for one in self.scenes]
        names = (
            short_keys(sources) if len(sources) > 1 else [one.facts.scene for one in self.scenes]
        )

        def facts(row: int) -> PartFacts:
            return self.scenes[row].facts

        return Table.of_rows(
            len(self),
            [
                ("scene", lambda row: names[row]),
                ("tower", lambda row: facts(row).tower),
                ("vectors", lambda row: f"{self.scenes[row].num_vectors:,}"),
                ("invalid", lambda row: f"{facts(row).num_invalid:,}"),
                ("cloudy", lambda row: f"{facts(row).num_cloudy:,}"),
                ("made", lambda row: "before" if self.scenes[row].was_done else "now"),
            ],
        )


def embed_scenes(
    space: EmbeddingSpace,
    inputs: Inputs,
    out: str | Path,
    *,
    sensor: Any = None,
    bands: Sequence[str] | None = None,
    units: Any = None,
    dn_offset: float | None = None,
    composite: str | None = None,
    tower: str | Sequence[str] | None = None,
    window: int | None = None,
    stride: int | None = None,
    gsd_m: float | None = None,
    min_valid: float = 0.0,
    max_cloud: float | None = None,
    vectors: VectorType = "float16",
    precision: Precision = "fp32",
    part: tuple[int, int] = (1, 1),
    batch_size: int = 64,
    engine: Engine = "local",
    num_workers: int | None = None,
    stac: bool = False,
) -> EmbeddedScenes:
    """Embed scenes into a folder of GeoParquet parts, one per scene and tower.

    `inputs`: files, products, folders, patterns, `Scene`s, or a list of them; `sensor`, `bands`,
    `units`, `dn_offset`, `composite` as for `EmbeddingSpace.embed`. `tower`: one or several; left
    out, the one that fits each scene. `window`, `stride`: pixels of the tower's GSD, by default the
    tower's input size, without overlap; every pixel is covered, and windows at the far edges are
    shifted inwards. `gsd_m`: metres of these pixels; left out, those that the tower was trained on,
    or the sensor's where it does not record them; a scene at another GSD is resampled. Windows
    without a valid number, with a smaller share than `min_valid`, or with more than `max_cloud`
    (0-1) of cloud and shadow, are left out. `vectors`: how numbers are stored. `precision`: what
    the tower computes in; "tf32" and "bf16" are faster on recent CUDA devices and less exact:
    bfloat16's vectors of a scene had cosines of 0.995 and more to those of float32. `part`: (i, n),
    the i-th of n shares of the scenes, from 1.

    A part that exists with the same scene, settings and tower is not made again; one whose scene or
    tower changed is replaced. Scenes that another process works on are left to it, and looked for
    at the end. A scene that fails is a fault of the result, and does not stop the others. `engine`:
    "ray" spreads the scenes over `num_workers` actors (see `ray_engine`). `stac`: describe all
    parts of `out` by a STAC collection, `collection.json`, and an item beside each part (see
    `index.stac`); the extra `stac`.

    Raises `DataError` for settings that make no sense, `SpaceMismatchError` where `out` has parts
    of another space, `StorageError` where the disk is full.
    """
    settings = EmbedSettings(
        window=window, stride=stride, gsd_m=gsd_m, min_valid=min_valid, max_cloud=max_cloud,
        vectors=vectors, precision=precision,
    )  # fmt: skip
    names = [tower] if isinstance(tower, str) or tower is None else list(tower)
    for name in filter(None, names):
        space.input_spec(name)
    if not 1 <= part[0] <= part[1]:
        raise DataError(f"part is {part[0]} of {part[1]}; expected 1 of N to N of N")
    check_count("batch_size", batch_size)
    declared = space.declare(
        sensor=sensor, bands=bands, units=units, dn_offset=dn_offset, composite=composite
    )
    out = Path(out)
    require_folder(out)
    if stac:
        check_catalogue(out)
    elif has_catalogue(out):
        logger.warning(
            "%s has a STAC collection, which is not brought up to date; give stac= (--stac)",
            shown(out),
        )
    found = _listed(inputs, declared)
    mine = found[part[0] - 1 :: part[1]]
    if engine not in ("local", "ray"):
        raise DataError(f"engine is 'local' or 'ray', not {engine!r}")
    if engine == "ray":
        from terralign.index.ray_engine import embed_by_actors

        options = dict(
            sensor=sensor, bands=bands, units=units, dn_offset=dn_offset, composite=composite,
            tower=tower, batch_size=batch_size, **asdict(settings),
        )  # fmt: skip
        done = embed_by_actors(space, mine, out, options, num_workers=num_workers)
    elif num_workers is not None:
        raise DataError("num_workers has no effect on engine 'local'; leave it out")
    else:
        work = _Work(space, out, declared, settings, batch_size)
        done = work.run([(one, name) for one in mine for name in names])
    if stac:
        write_catalogue(out)
    return done


Listed = Path | Scene | StacItem | Fault


def _listed(inputs: Inputs, declared: Declared) -> list[Listed]:
    """The scenes that inputs stand for, each once, in order; `DataError` for other things."""
    found: list[Listed] = []
    seen: set[str] = set()
    for _, one in list_inputs(inputs, declared):
        if not isinstance(one, Path | Scene | StacItem | Fault):
            raise DataError(
                f"cannot embed a {type(one).__name__} as a scene; give files, folders, Scenes or "
                "STAC items, or use space.embed, which takes chips and numbers too"
            )
        if isinstance(one, Path | StacItem):
            name = source_name(one)
            if name in seen:
                logger.info("%s was given more than once; it is embedded once", shown(name))
                continue
            seen.add(name)
        found.append(one)
    return found


class _Work:
    """Scenes and towers that become parts of one folder."""

    def __init__(
        self,
        space: EmbeddingSpace,
        out: Path,
        declared: Declared,
        settings: EmbedSettings,
        batch_size: int,
    ) -> None:
        self.space, self.out, self.declared = space, out, declared
        self.settings, self.batch_size = settings, batch_size
        self.parts = _PartsByKey(out)
        self.parts.check_space(space.space_id)
        clear_partials(out)

    def run(self, jobs: Sequence[tuple[Listed, str | None]]) -> EmbeddedScenes:
        """Every job: in order, then those that other processes had claimed."""
        found: dict[int, EmbeddedScene | Fault] = {}
        waiting, announced = list(enumerate(jobs)), False
        with Progress("embed scenes", total=len(jobs), unit="scene") as progress:
            start, num_new = time.monotonic(), 0
            while waiting:
                busy = []
                for number, (one, tower) in waiting:
                    outcome = self._attempt(one, tower)
                    if outcome is None:
                        busy.append((number, (one, tower)))
                        continue
                    found[number] = outcome
                    if isinstance(outcome, EmbeddedScene) and not outcome.was_done:
                        num_new += outcome.facts.num_windows
                    rate = num_new / max(1e-9, time.monotonic() - start)
                    progress.advance(note=f"{num_new:,} windows, {rate:.3g} windows/s")
                waiting = busy
                if busy:
                    if not announced:
                        logger.info(
                            "%s: waiting for other processes, which embed %s",
                            shown(self.out), counted(len(busy), "scene"),
                        )  # fmt: skip
                    announced = True
                    time.sleep(SECONDS_BETWEEN_LOOKS)
                    self.parts.look()
        outcomes = [found[number] for number in sorted(found)]
        made = [one for one in outcomes if isinstance(one, EmbeddedScene) and not one.was_done]
        twice = self.parts.twice([one.facts for one in made])
        if twice is not None:
            logger.warning(
                "%s: %s was embedded by the same tower with other settings before, and searches "
                "list its windows twice; remove one of the two parts (%s, %s) or embed into "
                "another folder",
                shown(self.out), shown(twice[0].scene), *(path.name for path in twice[1]),
            )  # fmt: skip
        with suppress(OSError):
            (self.out / CLAIMS).rmdir()
        return EmbeddedScenes(
            folder=self.out,
            scenes=tuple(one for one in outcomes if isinstance(one, EmbeddedScene)),
            faults=tuple(one for one in outcomes if isinstance(one, Fault)),
        )

    def _attempt(self, one: Listed, tower: str | None) -> EmbeddedScene | Fault | None:
        """A job's part, made before or now; None where another process has it in hand."""
        if isinstance(one, Fault):
            return one
        name = str(one) if isinstance(one, Path) else one.key
        try:
            stamps = stamps_of(one)
            key = self._key(one, tower)
            done = self._done(key, stamps, tower)
            if done is not None:
                return done
            claim = self.out / CLAIMS / key
            try:
                with claimed(claim):
                    self.parts.look()
                    made = self._done(key, stamps, tower) or self._make(one, tower, key, stamps)
                    (claim / ".lock").unlink(missing_ok=True)
                    return made
            except StorageError as error:
                if isinstance(error.__cause__, BlockingIOError):
                    return None
                raise
        except (DataError, SensorError, OSError) as error:
            return as_fault(name, error)

    def _key(self, one: Path | Scene | StacItem, tower: str | None) -> str:
        """Names a source, what is declared of it, the tower asked for, and the settings."""
        declared: dict[str, Any] = {
            name: getattr(self.declared, name) for name in ("units", "dn_offset", "composite")
        }
        if self.declared.sensor is not None:
            declared["sensor"] = describe_sensor(self.declared.sensor)
        if self.declared.bands is not None:
            declared["bands"] = list(self.declared.bands)
        opened = repr(one.layout) if isinstance(one, Scene) else ""
        return hash_json(
            {
                "format": FORMAT_VERSION,
                "source": source_name(one),
                "opened": opened,
                "declared": declared,
                "tower": tower,
                "settings": self.settings.for_key(),
            }
        )

    def _chosen(self, facts: PartFacts) -> str | None:
        """The tower that the scene of a part goes through unless one is named."""
        try:
            sensor = self.declared.sensor or self.space.find_sensor(facts.sensor)
            return self.space.tower_for(make_layout(sensor, facts.bands, units="physical"))
        except SensorError:
            return None

    def _done(self, key: str, stamps: str, tower: str | None) -> EmbeddedScene | None:
        """The part of a key, where it is of these files and of the tower that the space has."""
        path = self.parts.of(key)
        if path is None:
            return None
        try:
            part = Part(path)
        except DataError as error:
            logger.warning("%s; it is made again", error)
            return None
        facts, num_vectors = part.facts, part.num_rows
        part.close()
        name = facts.tower
        same = facts.stamps == stamps and facts.space_id == self.space.space_id
        if not same or name not in self.space.tower_names:
            return None
        if self.space.tower_id(name) != facts.tower_id:
            return None
        if tower is None and self._chosen(facts) != name:
            return None  # a tower that fits better was added to the space
        return EmbeddedScene(path=path, facts=facts, num_vectors=num_vectors, was_done=True)

    def _make(
        self, one: Path | Scene | StacItem, tower: str | None, key: str, stamps: str
    ) -> EmbeddedScene:
        source = self._opened(one)
        name = tower or self.space.tower_for(source.layout)
        check_fit(self.space, name, source.layout)
        plan = self._plan(source, name)
        for note in filter(None, (plan.note,)):
            logger.info("%s: %s", shown(source.key), note)
        embedded = self._embed(source, name, plan)
        layout = source.layout
        tower_id = self.space.tower_id(name)
        facts = PartFacts(
            format=FORMAT_VERSION,
            key=key,
            identity=hash_json({"key": key, "stamps": stamps, "tower_id": tower_id}),
            stamps=stamps,
            source=source_name(one),
            scene=Path(source.key).name,
            sensor=layout.sensor.name,
            bands=layout.bands,
            dn_offset=layout.dn_offset if layout.units == "dn" else None,
            notes=tuple(filter(None, (*source.notes, plan.note))),
            space_id=self.space.space_id,
            tower=name,
            tower_id=tower_id,
            model=_model_name(self.space.source),
            dim=self.space.dim,
            vector_type=self.settings.vectors,
            precision=self.settings.precision,
            logit_scale=self.space.clip.logit_scale,
            self_check=self_check(self.space, name),
            window_px=plan.window_px,
            stride_px=plan.stride_px,
            gsd_m=plan.gsd_m,
            scene_gsd_m=plan.scene_gsd_m,
            min_valid=self.settings.min_valid,
            max_cloud=self.settings.max_cloud,
            num_windows=len(plan.windows),
            num_invalid=embedded.num_invalid,
            num_cloudy=embedded.num_cloudy,
            grid=_scene_grid(source),
        )
        path = self.out / part_name(facts)
        facts = write_part(path, embedded.rows, facts)
        self.parts.replace(key, path)
        num_vectors = len(embedded.rows)
        return EmbeddedScene(path=path, facts=facts, num_vectors=num_vectors, was_done=False)

    def _opened(self, one: Path | Scene | StacItem) -> Source:
        # What a caller declares of files is not declared of a scene that is open already.
        declared = (
            replace(self.declared, sensor=None, bands=None, units=None, dn_offset=None)
            if isinstance(one, Scene)
            else self.declared
        )
        [source] = open_sources([(0, one)], declared, alone=True)
        if isinstance(source, Fault):
            raise source.as_error()
        return source

    def _plan(self, source: Source, tower: str) -> WindowPlan:
        assert source.grid is not None
        spec = self.space.input_spec(tower)
        trained = None if tower == RGB else self.space.towers[tower].config.gsd_m
        gsd = self.settings.gsd_m or trained or sensor_gsd(spec, source.layout, tower=tower)
        return plan_windows(
            source.grid,
            size=spec.size,
            window=self.settings.window,
            stride=self.settings.stride,
            gsd_m=gsd,
            origin=shown(source.key),
        )

    def _embed(self, source: Source, tower: str, plan: WindowPlan) -> _Embedded:
        """The vectors of a scene's windows: read in a thread ahead of the tower."""
        assert source.grid is not None
        stored = np.float16 if self.settings.vectors == "float16" else np.float32
        chosen: list[int] = []
        shares: list[float] = []
        cells: list[int] = []
        clouds: list[float] = []
        blocks: list[NDArray[Any]] = []
        num_invalid = num_cloudy = 0
        shaping: Future[tuple[NDArray[np.object_], NDArray[np.float64]]] | None = None
        spec = self.space.input_spec(tower)
        label = f"embed {shown(source.key)} with {tower}"

        def make(raw: Raw[_Batch]) -> tuple[_Batch, Tensor | None]:
            batch, pixels = raw.known, raw.tensors.get("pixels")
            if pixels is None or batch.layout is None:
                return batch, None
            return batch, ready_pixels(pixels, batch.layout, spec, tower=tower)

        stream = feed_drawn(
            self._read(source, tower, plan.windows), make,
            device=self.space.device, depth=READ_AHEAD,
        )  # fmt: skip
        with (
            ThreadPoolExecutor(1) as aside,
            Progress(label, total=len(plan.windows), unit="window") as progress,
            closing(stream) as batches,
        ):
            for batch, ready in batches:
                if shaping is None:  # beside the tower, which waits for the first batch alone
                    shaping = aside.submit(
                        window_shapes, source.grid, plan.windows, origin=shown(source.key)
                    )
                elif shaping.done():
                    shaping.result()  # raises before the tower is through all windows
                num_invalid += batch.num_invalid
                num_cloudy += batch.num_cloudy
                if ready is not None:
                    with computing(inference=self.settings.precision, deterministic=False):
                        vectors = self.space.encode_ready(ready, tower=tower)
                    numbers = F.normalize(vectors, dim=-1).numpy()
                    if not np.isfinite(numbers).all():
                        raise DataError(
                            f"{shown(source.key)}: tower {tower!r} gives vectors that are not "
                            "finite; check its weights"
                        )
                    blocks.append(numbers.astype(stored))
                    chosen += batch.numbers
                    shares += batch.shares
                    cells += batch.cells
                    clouds += batch.clouds
                progress.advance(len(batch.numbers) + batch.num_invalid + batch.num_cloudy)
        if num_invalid == len(plan.windows):
            raise DataError(
                f"{shown(source.key)} has no window with enough valid pixels: there is nothing to "
                "embed; leave it out"
            )
        windows = [plan.windows[number] for number in chosen]
        assert shaping is not None  # or there was no batch
        shapes, centres = shaping.result()
        empty = np.zeros((0, self.space.dim), dtype=stored)
        rows = PartRows(
            windows=windows,
            shapes=shapes[chosen],
            centres=centres[chosen],
            valid_shares=np.array(shares, dtype=np.float32),
            valid_cells=np.array(cells, dtype=np.uint64),
            clouds=np.array(clouds, dtype=np.float32),
            vectors=np.concatenate(blocks) if blocks else empty,
            datetime=source.datetime,
        )
        return _Embedded(rows=rows, num_invalid=num_invalid, num_cloudy=num_cloudy)

    def _read(
        self, source: Source, tower: str, windows: Sequence[Window]
    ) -> Generator[Raw[_Batch], None, None]:
        """Batches of the windows that are to be embedded, in the scene's order."""
        max_cloud = self.settings.max_cloud
        if max_cloud is not None and source.cloud_shares is None:
            raise DataError(
                f"{shown(source.key)} has no cloud mask (SCL, Fmask or a mask band) to hold "
                "max_cloud against; leave max_cloud out, or give a product that has one"
            )
        unknown = (float("nan") for _ in windows)
        shares = unknown if source.cloud_shares is None else source.cloud_shares(windows)
        batch = _Batch()
        chips = read_chips(self.space, source, windows, tower)
        for number, ((_, chip, layout, share, cells), cloud) in enumerate(
            zip(chips, shares, strict=True)
        ):
            if share == 0 or share < self.settings.min_valid:
                batch.num_invalid += 1
            elif max_cloud is not None and cloud > max_cloud:
                batch.num_cloudy += 1
            else:
                batch.add(number, chip, layout, share, cells, cloud)
            if len(batch.numbers) == self.batch_size or batch.num_seen >= _MAX_SEEN:
                yield batch.stacked()
                batch = _Batch()
        if batch.num_seen:
            yield batch.stacked()


_MAX_SEEN = 4096
"""Windows after which progress is reported, though hardly any of them was embedded."""


@dataclass(kw_only=True, slots=True)
class _Batch:
    """Windows of a scene by number, with their shares, valid cells and pixels (C, H, W)."""

    numbers: list[int] = field(default_factory=list)
    shares: list[float] = field(default_factory=list)
    cells: list[int] = field(default_factory=list)
    clouds: list[float] = field(default_factory=list)
    chips: list[Tensor] = field(default_factory=list)
    layout: PixelLayout | None = None
    num_invalid: int = 0
    num_cloudy: int = 0

    @property
    def num_seen(self) -> int:
        return len(self.numbers) + self.num_invalid + self.num_cloudy

    def add(
        self,
        number: int,
        chip: Tensor,
        layout: PixelLayout,
        share: float,
        cells: int,
        cloud: float,
    ) -> None:
        self.numbers.append(number)
        self.shares.append(share)
        self.cells.append(cells)
        self.clouds.append(cloud)
        self.chips.append(chip)
        self.layout = layout

    def stacked(self) -> Raw[_Batch]:
        """With the pixels (B, C, H, W) in one tensor, where there are any."""
        if not self.chips:
            return Raw(self, {})
        # Of chips that lack data some may be floating point, among whole numbers.
        kind = max((one.dtype for one in self.chips), key=lambda one: one.is_floating_point)
        pixels = torch.stack([one.to(kind) for one in self.chips])
        self.chips = []
        return Raw(self, {"pixels": pixels})


@dataclass(frozen=True, kw_only=True, slots=True)
class _Embedded:
    rows: PartRows
    num_invalid: int
    num_cloudy: int


def _model_name(source: str) -> str:
    """What a space was loaded from: a folder by its absolute path, so that it is found again."""
    return os.path.abspath(source) if os.path.isdir(source) else source


def _scene_grid(source: Source) -> SceneGrid:
    grid = source.grid
    assert grid is not None
    assert grid.crs is not None  # or it had no windows
    return SceneGrid(crs=grid.crs, transform=grid.transform, height=grid.height, width=grid.width)


def self_check(space: EmbeddingSpace, tower: str) -> tuple[float, ...]:
    """(D,) unit vector that a tower makes of one fixed picture, rounded to 5 decimal places.

    The picture is ready for the network (scaled, normalised): number n of its (C, H, W) in order is
    sin(0.37 n).
    """
    spec = space.input_spec(tower)
    shape = (1, len(spec.bands), spec.size, spec.size)
    num = shape[1] * shape[2] * shape[3]
    picture = torch.sin(torch.arange(num, dtype=torch.float64) * 0.37).float().reshape(shape)
    module: torch.nn.Module = space.clip.visual if tower == RGB else space.towers[tower]
    with torch.inference_mode():
        found = F.normalize(module(picture.to(space.device)).float(), dim=-1)[0].cpu()
    return tuple(round(value, 5) + 0.0 for value in found.tolist())


_MAX_ALIKE = 16
"""Parts of scenes of one name that are read, to see whether windows are there twice."""


class _PartsByKey:
    """Which file of a folder is the part of a key."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._paths: dict[str, list[Path]] = {}
        self.look()

    def look(self) -> None:
        """List the folder again."""
        self._paths = {}
        for path in part_paths(self.folder):
            words = path.name.split(".")
            if len(words) >= 4:
                self._paths.setdefault(words[-3], []).append(path)

    def of(self, key: str) -> Path | None:
        """The newest part of a key."""
        paths = [path for path in self._paths.get(key, []) if path.is_file()]
        return max(paths, key=lambda path: path.stat().st_mtime_ns, default=None)

    def replace(self, key: str, path: Path) -> None:
        """`path` is the part of a key from now on; older ones are removed."""
        for other in self._paths.get(key, []):
            if other != path:
                other.unlink(missing_ok=True)
        self._paths[key] = [path]

    def twice(self, made: Sequence[PartFacts]) -> tuple[PartFacts, tuple[Path, Path]] | None:
        """The first of new parts that has another one of its source, tower and size of windows
        beside it, and both files."""
        by_scene: dict[str, list[Path]] = {}
        for paths in self._paths.values():
            by_scene.setdefault(paths[0].name.split(".")[0], []).append(paths[0])
        for facts in made:
            name = part_name(facts)
            for path in by_scene.get(name.split(".")[0], [])[:_MAX_ALIKE]:
                with suppress(DataError):
                    other = facts_of(path)
                    same = ("source", "tower", "window_px", "gsd_m")
                    if path.name != name and all(
                        getattr(other, one) == getattr(facts, one) for one in same
                    ):
                        return facts, (path, self.folder / name)
        return None

    def check_space(self, space_id: str) -> None:
        """`SpaceMismatchError` where the folder has parts of another space.

        Every part was checked so when it was written: the first one stands for all.
        """
        for paths in self._paths.values():
            try:
                found = facts_of(paths[0]).space_id
            except DataError:
                continue  # damaged: made again, or reported when the folder is opened
            if found != space_id:
                raise SpaceMismatchError(
                    f"{shown(self.folder)} has vectors of space {found}, not of {space_id}; choose "
                    "another folder (out=, --out), or remove its parts"
                )
            return
