"""The embedding space: a text tower, an RGB tower and one tower per aligned sensor, all into D.

On disk a space is one folder: an open_clip model (`open_clip_config.json`,
`open_clip_model.safetensors`: open_clip loads the folder as it is), `towers/NAME.safetensors`, and
`space.json` with the towers' input specifications, prompts, provenance and a SHA-256 of every file.

Letters: N samples, C bands, H W pixels, D embedding, K classes.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from terralign.chips import Chip, PixelLayout, Units
from terralign.compute import as_usual, check_device
from terralign.encoders.answers import (
    Classification,
    Classified,
    Hits,
    gathered,
    nearest_hits,
)
from terralign.encoders.clip.load import ClipModel, load_clip, load_compact_clip, save_clip
from terralign.encoders.clip.weights import check_numbers_of, write_state_dict
from terralign.encoders.custom import Encoder, check_probe, fit_encoder, probe
from terralign.encoders.embedding import EmbeddedChip, Errors, check_count, embed_each
from terralign.encoders.inputs import Inputs, Windowing
from terralign.encoders.pixels import Pixels, encode_ready, ready_pixels
from terralign.encoders.sensor import CUSTOM, SensorTower, TowerConfig, load_tower
from terralign.encoders.sources import is_ms_clip, shipped_model
from terralign.encoders.tables import Shown, Table
from terralign.encoders.trained import TowerTraining
from terralign.encoders.vectors import Embeddings, Fault, as_unit, check_same_space
from terralign.encoders.zeroshot import (
    Prompts,
    PromptSet,
    as_class_names,
    as_prompts,
    embed_text,
    load_prompts,
    zero_shot_weights,
)
from terralign.errors import (
    DataError,
    ModelError,
    SensorError,
    SpaceMismatchError,
    StorageError,
    first_line,
    nearest,
)
from terralign.files import atomic_folder, hash_file, read_json, write_json
from terralign.preprocess import InputSpec
from terralign.scenes.declared import Declared
from terralign.sensors import RGB as RGB
from terralign.sensors import SENSORS, Sensor, describe_sensor, find_sensor, parse_sensor

FORMAT_VERSION = 1
MAX_QUERY = 2_000
"""Characters of a text to search for."""

logger = logging.getLogger(__name__)


@runtime_checkable
class Searchable(Protocol):
    """An index of vectors that lie on disk."""

    @property
    def search(self) -> Callable[..., Hits]:
        """The k best rows: `search(space, query, k, **options)`."""
        ...


class EmbeddingSpace(Shown):
    """Text, RGB and every aligned sensor in one D-dimensional space.

    `space_id` names the anchor (text and RGB tower): vectors are comparable exactly when theirs is
    the same. Adding a tower leaves it as it is.
    """

    def __init__(
        self,
        clip: ClipModel,
        *,
        towers: Mapping[str, SensorTower] | None = None,
        sensors: Mapping[str, Sensor] | None = None,
        prompts: PromptSet | None = None,
        provenance: Mapping[str, Any] | None = None,
        source: str | None = None,
    ) -> None:
        if not isinstance(clip, ClipModel):
            raise ModelError(
                f"an EmbeddingSpace is made of a ClipModel, not of a {type(clip).__name__}; to "
                "load one, write terralign.load(...)"
            )
        self.clip = clip
        self.towers: dict[str, SensorTower] = dict(towers or {})
        self.sensors: dict[str, Sensor] = dict(sensors or {})
        self.prompts = prompts
        self.provenance: dict[str, Any] = dict(provenance or {})
        if clip.fetched:
            self.provenance["fetched"] = dict(clip.fetched)
        self.source = source or clip.source
        self.space_id = clip.anchor_id()
        self.skipped: tuple[TowerConfig, ...] = ()
        """Towers of the folder that were left out, since their custom encoders were not given."""
        self._chosen: set[tuple[str, ...]] = set()
        for tower in self.towers.values():
            tower.eval()
            if tower.trained is not None:
                self._note_training(tower)

    def _title(self) -> str:
        prompts = self.choose_prompts().name
        return (
            f"EmbeddingSpace {self.space_id}: {self.dim} dimensions, default prompts {prompts}, "
            f"from {self.source}"
        )

    def table(self) -> Table:
        """Name, sensors, bands and input size of each tower."""
        names = self.tower_names
        specs = [self.input_spec(name) for name in names]
        return Table.of_rows(
            len(names),
            [
                ("tower", lambda row: names[row]),
                ("sensors", lambda row: ", ".join(specs[row].sensors)),
                ("bands", lambda row: " ".join(specs[row].bands)),
                ("size", lambda row: f"{specs[row].size} px"),
            ],
        )

    @property
    def dim(self) -> int:
        """The number of dimensions, D."""
        return self.clip.dim

    @property
    def tower_names(self) -> tuple[str, ...]:
        """The RGB tower's name and those of the aligned towers, defaults first."""
        return (RGB, *self.towers)

    def tower_id(self, name: str) -> str:
        """The name of a tower's weights; the RGB tower belongs to the anchor: `space_id`."""
        return self.space_id if name == RGB else self._tower(name).tower_id()

    def input_spec(self, name: str = RGB) -> InputSpec:
        """What a tower takes."""
        return self.clip.input_spec if name == RGB else self._tower(name).config.input

    def _tower(self, name: str) -> SensorTower:
        if name not in self.towers:
            raise ModelError(f"the space has no tower {name!r}; {nearest(name, self.tower_names)}")
        return self.towers[name]

    def to(self, device: str | torch.device) -> EmbeddingSpace:
        """Move every tower to a device; returns self. `RecipeError` for one that cannot compute."""
        check_device(device)
        self.clip.model.to(device)
        for tower in self.towers.values():
            tower.to(device)
        return self

    @property
    def device(self) -> torch.device:
        """Where the towers are."""
        return next(self.clip.model.parameters()).device

    # Encoding

    def encode_text(self, texts: Iterable[str]) -> Tensor:
        """(N, D) float32 L2-normalised embeddings of N texts, on the CPU.

        `RecipeError` without a text, or for one that is empty.
        """
        if isinstance(texts, str):
            texts = [texts]
        return embed_text(self.clip, list(texts) if isinstance(texts, Iterable) else [])

    def encode_image(
        self,
        pixels: Pixels | Chip,
        sensor: str | Sensor | None = None,
        bands: Sequence[str] | None = None,
        *,
        units: Units | None = None,
        dn_offset: float | None = None,
        composite: str | None = None,
        tower: str | None = None,
        normalize: bool = True,
        batch_size: int = 256,
    ) -> Tensor:
        """(N, D) float32 embeddings of N chips in memory, on the CPU; see `embed` for files.

        `pixels`: a `Chip`, which has its own sensor; or numbers (N, C, H, W), or (C, H, W) for one
        chip, with their `sensor` and `units`. NaN and the sensor's no-data DN are masked; a custom
        mask goes into a `Chip`. The keywords are those of `embed`.

        Raises `DataError` where the numbers cannot be what is declared (see `scenes.plausible`),
        and for a chip without a valid pixel in the bands that the tower sees.
        """
        declared = self.declare(
            sensor=sensor, bands=bands, units=units, dn_offset=dn_offset, composite=composite
        )
        found = embed_each(
            self, pixels, declared, tower=tower, window="whole", batch_size=batch_size,
            normalize=normalize,
        )  # fmt: skip
        return self._stacked([one.vector for one in found if isinstance(one, EmbeddedChip)])

    def _stacked(self, vectors: list[Tensor]) -> Tensor:
        """(N, D) float32 of N vectors (D,), on the CPU."""
        if vectors:
            return torch.stack(vectors)
        return torch.zeros(0, self.dim, dtype=torch.float32, device="cpu")

    def declare(self, *, sensor: str | Path | Sensor | None = None, **others: Any) -> Declared:
        """What a caller declares of pixels, with the sensor found by its name."""
        if isinstance(sensor, str | Path):
            sensor = self.find_sensor(str(sensor))
        return Declared(sensor=sensor, **others)

    def find_sensor(self, name: str) -> Sensor:
        """A built-in sensor, one that came with the space's towers, or the one of a TOML file."""
        return find_sensor(name, self.sensors)

    def tower_for(self, layout: PixelLayout) -> str:
        """The tower that pixels of this layout go through unless another is named."""
        fitting = [name for name in self.towers if self._takes(name, layout)]
        if len(fitting) > 1 and (layout.sensor.name, *fitting) not in self._chosen:
            self._chosen.add((layout.sensor.name, *fitting))
            logger.info(
                "the towers %s take %s; %s, the first, is used (tower= names another)",
                ", ".join(fitting),
                layout.sensor.name,
                fitting[0],
            )
        return fitting[0] if fitting else RGB

    def _takes(self, name: str, layout: PixelLayout) -> bool:
        spec = self.input_spec(name)
        num_there = len(set(spec.bands) & set(layout.bands))
        enough = num_there == len(spec.bands) or (spec.missing == "zero" and num_there > 0)
        return layout.sensor.name in spec.sensors and enough

    def encode_ready(self, ready: Tensor, *, tower: str) -> Tensor:
        """(B, D) float32 embeddings, not normalised, on the CPU, of one batch of ready pixels."""
        return encode_ready(self.clip.visual if tower == RGB else self._tower(tower), ready)

    def encode_layout(self, pixels: Tensor, layout: PixelLayout, *, tower: str) -> Tensor:
        """The same of one batch of raw pixels (B, C, H, W), on any device."""
        spec = self.input_spec(tower)
        return self.encode_ready(
            ready_pixels(pixels.to(self.device), layout, spec, tower=tower), tower=tower
        )

    # Classifying

    def choose_prompts(self, prompts: Prompts | None = None) -> PromptSet:
        """The prompts given (a set, its name or TOML file, or templates with `{}`), else the
        space's own, else `satellite`."""
        if prompts is None:
            return self.prompts or load_prompts("satellite")
        return as_prompts(prompts)

    def zero_shot_weights(
        self,
        labels: Sequence[str],
        prompts: Prompts | None = None,
        *,
        cache_dir: Path | None = None,
    ) -> Tensor:
        """W (K, D) of these class names; the space's own prompts unless others are given."""
        return zero_shot_weights(
            self.clip, labels, self.choose_prompts(prompts), cache_dir=cache_dir
        )

    def embed(
        self,
        inputs: Inputs,
        *,
        sensor: str | Path | Sensor | None = None,
        bands: Sequence[str] | None = None,
        units: Units | None = None,
        dn_offset: float | None = None,
        composite: str | None = None,
        tower: str | None = None,
        window: Windowing = None,
        errors: Errors = "raise",
        batch_size: int = 32,
    ) -> Embeddings:
        """Vectors (N, D) of imagery, with keys and places.

        `inputs`: a file (picture, GeoTIFF), a product's folder with a file per band, a folder or
        pattern (`tiles/*.tif`) of these, a `Scene`, a `Chip`, a Pillow image, `Samples`, numbers
        (N, C, H, W) or (C, H, W) as an array (NumPy's, xarray's) or tensor, or a list of them.
        `sensor`: a name, `Sensor` or TOML; may be left out for pictures, products and chips, which
        state it. `bands`: the channels' names in order, any known spelling; may be left out where a
        file names them, and where C is the sensor's full list in its order. `units`: "dn" (digital
        numbers; for `rgb` 0-255) or "physical" (`sensor.unit`: reflectance 0-1, dB, RGB intensity
        0-1); left out, whole numbers are DN. `dn_offset`: what is added to Sentinel-2 DN (0 or
        -1000) where name and metadata do not state it. `composite`: the RGB recipe when the RGB
        tower is used. `tower`: by default the first aligned tower that takes these pixels, else the
        RGB tower. `window`: a raster larger than the tower's input is cut into windows of that
        size, or of `window` pixels; "whole" resizes it instead. Pictures, chips and numbers in
        memory are resized as CLIP does, unless `window` is a number. `errors`: "skip" embeds the
        rest and lists what could not be read in `Embeddings.faults`.

        Raises `DataError` and `SensorError` that name the input, what is wrong and what to do.
        """
        found = self._embed_each(
            inputs, sensor=sensor, bands=bands, units=units, dn_offset=dn_offset,
            composite=composite, tower=tower, window=window, errors=errors, batch_size=batch_size,
        )  # fmt: skip
        chips, columns = gathered(list(found))
        return Embeddings(
            vectors=self._stacked([chip.vector for chip in chips]).numpy(),
            space_id=self.space_id,
            tower_ids={name: self.tower_id(name) for name in dict.fromkeys(columns["towers"])},
            model=self.source,
            **columns,
        )

    def _embed_each(
        self,
        inputs: Inputs,
        *,
        tower: str | None = None,
        window: Windowing = None,
        errors: Errors = "raise",
        batch_size: int = 32,
        **declared: Any,
    ) -> Iterator[EmbeddedChip | Fault]:
        return embed_each(
            self, inputs, self.declare(**declared), tower=tower, window=window, errors=errors,
            batch_size=batch_size,
        )  # fmt: skip

    def classify(
        self,
        inputs: Inputs,
        labels: Sequence[str],
        *,
        sensor: str | Path | Sensor | None = None,
        bands: Sequence[str] | None = None,
        units: Units | None = None,
        dn_offset: float | None = None,
        composite: str | None = None,
        tower: str | None = None,
        prompts: Prompts | None = None,
        window: Windowing = None,
        errors: Errors = "raise",
        batch_size: int = 32,
    ) -> Classification:
        """Probabilities (N, K) over `labels`: softmax of logit_scale times the cosines.

        `labels`: K class names. `prompts`: a prompt set's name, TOML or `PromptSet`; None: the
        space's own, else `satellite`. Everything else as for `embed`.
        """
        names, chosen = as_class_names(labels), self.choose_prompts(prompts)
        found = self.classify_each(
            inputs, names, prompts=chosen, sensor=sensor, bands=bands, units=units,
            dn_offset=dn_offset, composite=composite, tower=tower, window=window, errors=errors,
            batch_size=batch_size,
        )  # fmt: skip
        rows, columns = gathered(list(found))
        chances = [[row.probabilities[name] for name in names] for row in rows]
        return Classification(
            labels=names,
            probabilities=np.array(chances, dtype=np.float32).reshape(len(rows), len(names)),
            prompts=chosen.name,
            space_id=self.space_id,
            **columns,
        )

    def classify_each(
        self,
        inputs: Inputs,
        labels: Sequence[str],
        *,
        sensor: str | Path | Sensor | None = None,
        bands: Sequence[str] | None = None,
        units: Units | None = None,
        dn_offset: float | None = None,
        composite: str | None = None,
        tower: str | None = None,
        prompts: Prompts | None = None,
        window: Windowing = None,
        errors: Errors = "raise",
        batch_size: int = 32,
    ) -> Iterator[Classified | Fault]:
        """The rows of `classify` one after another, as they are computed.

        Raises what is wrong with labels, prompts, tower or declaration before the first input is
        read. With errors = "skip", an input that cannot be read is a `Fault` in its place.
        """
        names = as_class_names(labels)
        weights = self.zero_shot_weights(names, self.choose_prompts(prompts))
        found = self._embed_each(
            inputs, sensor=sensor, bands=bands, units=units, dn_offset=dn_offset,
            composite=composite, tower=tower, window=window, errors=errors, batch_size=batch_size,
        )  # fmt: skip
        return (
            one if isinstance(one, Fault) else self._classified(one, names, weights)
            for one in found
        )

    def _classified(self, chip: EmbeddedChip, names: Sequence[str], weights: Tensor) -> Classified:
        """An embedded chip by zero-shot weights (K, D) of K classes."""
        [chances] = (self.clip.logit_scale * chip.vector[None] @ weights.T).softmax(-1).tolist()
        return Classified(
            key=chip.key,
            probabilities=dict(zip(names, chances, strict=True)),
            tower=chip.tower,
            place=chip.place,
            valid_share=chip.valid_share,
            source_key=chip.source_key,
            source_number=chip.source_number,
        )

    def search(
        self,
        embeddings: Embeddings | Searchable,
        query: Any = None,
        k: int = 10,
        *,
        prompts: Prompts | None = None,
        **options: Any,
    ) -> Hits:
        """The k vectors nearest to a text, or to other vectors, by cosine; best first.

        `embeddings`: those that `embed` gives, or an index of scenes (`terralign.open_index`); see
        its `search` for the further `options`.

        `query`: words, taken as they are unless `prompts` names templates to put them in; or
        embeddings (of an example, a chip of another sensor), whose mean is searched for. Raises
        `SpaceMismatchError` for vectors of another space.
        """
        if not isinstance(embeddings, Embeddings) and isinstance(embeddings, Searchable):
            return embeddings.search(self, query, k, prompts=prompts, **options)
        if options:
            raise DataError(
                f"{', '.join(options)}: no effect on embeddings, only on an index of scenes "
                "(terralign.open_index); leave it out"
            )
        if not isinstance(embeddings, Embeddings):
            raise DataError(_not_searchable(embeddings))
        check_same_space(self.space_id, embeddings.space_id, "the vectors")
        embeddings.require_numbers(self.dim)
        check_count("k", k)
        if isinstance(query, Embeddings):
            check_same_space(self.space_id, query.space_id, "the query's vectors")
            query.require_numbers(self.dim)
            changed = [
                name for name, one in query.tower_ids.items()
                if embeddings.tower_ids.get(name, one) != one
            ]  # fmt: skip
            if changed:
                logger.warning(
                    "the query's vectors are of other weights of tower %s than those searched",
                    ", ".join(map(repr, changed)),
                )  # fmt: skip
            if prompts is not None:
                raise DataError("prompts have no effect on vectors; leave them out")
            if not len(query):
                raise DataError("the query has no vectors")
            name = ", ".join(query.keys[:3]) + ("..." if len(query) > 3 else "")
            vector = as_unit(query.vectors.mean(0, keepdims=True))[0]
        else:
            name, vector = query, self.text_vector(query, prompts)
        return nearest_hits(embeddings, vector, query=name, k=k)

    def text_vector(self, query: str, prompts: Prompts | None = None) -> NDArray[np.float32]:
        """(D,) unit vector of a text to search for; `DataError` for one that makes no sense."""
        if not isinstance(query, str):
            raise DataError(
                f"cannot search for a {type(query).__name__}; give a text, or embeddings of an "
                "example: space.search(tiles, space.embed(...))"
            )
        if not query.strip():
            raise DataError("the query is empty; say what to search for")
        if len(query) > MAX_QUERY:
            raise DataError(
                f"the query has {len(query):,} characters, more than the limit of {MAX_QUERY:,}"
            )
        if os.path.exists(query):
            logger.warning(
                "%r is searched for as words, though a file has this name; to search by example, "
                "give space.embed(%r, ...)", query, query,
            )  # fmt: skip
        if prompts is None:
            vector = self.encode_text([query])
        else:
            vector = self.zero_shot_weights([query], self.choose_prompts(prompts))
        found: NDArray[np.float32] = vector[0].numpy()
        return found

    # Growing, saving, loading

    def add(self, tower: SensorTower, sensors: Sequence[Sensor] = ()) -> None:
        """Add or replace an aligned tower; vectors of the other towers stay valid.

        `sensors`: the definitions of its sensors that are not built in, where the tower does not
        carry them itself, as those that `align` makes do. `SpaceMismatchError` for a tower of
        another space, `ModelError` for weights that are not finite.
        """
        if tower.config.embed_dim != self.dim:
            raise SpaceMismatchError(
                f"tower {tower.config.name!r} embeds into {tower.config.embed_dim} dimensions, "
                f"the space has {self.dim}"
            )
        if tower.config.name == RGB:
            raise ModelError("the RGB tower anchors the space; give a new tower another name")
        if tower.space_id is not None and tower.space_id != self.space_id:
            raise SpaceMismatchError(
                f"tower {tower.config.name!r} was aligned to space {tower.space_id}, this one is "
                f"{self.space_id}; align it again"
            )
        state = tower.state_dict()
        check_numbers_of(state, state, what=f"tower {tower.config.name!r}")
        given = (*tower.sensors, *sensors)
        for one in given:
            if one.name in SENSORS and one != SENSORS[one.name]:
                raise SensorError(
                    f"{one.name!r} is a built-in sensor of another definition; give yours another "
                    "name"
                )
            others = [
                name for name, other in self.towers.items()
                if name != tower.config.name and one.name in other.config.input.sensors
            ]  # fmt: skip
            if others and self.sensors.get(one.name, one) != one:
                raise SensorError(
                    f"the space has another sensor {one.name!r}, that of tower {others[0]!r}; give "
                    "one of them another name"
                )
        name = tower.config.name
        if name in self.towers and self.towers[name].tower_id() != tower.tower_id():
            logger.warning(
                "tower %r of the space is replaced; vectors that the old one made stay in the "
                "space, but are not those that the new one makes", name,
            )  # fmt: skip
        own = {one.name: one for one in given if one.name not in SENSORS}
        self.sensors.update(own)
        known = {**self.sensors, **own}
        tower.sensors = tuple(known[name] for name in tower.config.input.sensors if name in known)
        tower.space_id = self.space_id
        self.towers[tower.config.name] = tower.to(self.device).eval()
        self._note_training(tower)

    def _note_training(self, tower: SensorTower) -> None:
        """Keep how a tower was trained in the provenance; of one that it replaces, no longer."""
        noted = dict(self.provenance.get("towers", {}))
        noted.pop(tower.config.name, None)
        if tower.trained is not None:
            noted[tower.config.name] = tower.trained.model_dump(mode="json")
        self.provenance.pop("towers", None)
        if noted:
            self.provenance["towers"] = noted

    def save(self, folder: str | Path, *, overwrite: bool = False) -> Path:
        """Write the space into `folder`: whole, or not at all.

        An existing folder is refused unless `overwrite`, and even then only replaced when the new
        one is complete. `StorageError` where the disk is full.
        """
        folder = Path(folder)
        if folder.exists() and not (overwrite and _is_space(folder)):
            raise StorageError(f"{folder} exists; choose another folder or pass overwrite=True")
        with atomic_folder(folder) as partial:
            self._write(partial)
        return folder

    def _write(self, folder: Path) -> None:
        files = save_clip(self.clip, folder)
        for name, tower in self.towers.items():
            write_state_dict(folder / "towers" / f"{name}.safetensors", tower.state_dict())
            files.append(f"towers/{name}.safetensors")
        write_json(folder / "space.json", self.describe(folder, files))

    def describe(self, folder: Path, files: Sequence[str]) -> dict[str, Any]:
        """What `space.json` holds of the space, with the hashes of its files in `folder`."""
        return {
            "format": FORMAT_VERSION,
            "space_id": self.space_id,
            "dim": self.dim,
            "towers": [_describe_tower(tower) for tower in self.towers.values()],
            "sensors": [describe_sensor(sensor) for sensor in self.sensors.values()],
            "prompts": self.prompts.describe() if self.prompts else None,
            "provenance": self._saved_provenance(),
            "files": {
                name: {"sha256": hash_file(folder / name), "bytes": (folder / name).stat().st_size}
                for name in files
            },
        }

    def _saved_provenance(self) -> dict[str, Any]:
        """Without the training of towers that the space does not hold, as skipped ones."""
        noted = self.provenance.get("towers", {})
        gone = [name for name in noted if name not in self.towers]
        kept = {name: one for name, one in noted.items() if name not in gone}
        return {**self.provenance, "towers": kept} if gone else self.provenance

    @classmethod
    @as_usual()
    def load(
        cls,
        source: str | Path,
        *,
        encoders: Mapping[str, Encoder] | None = None,
        skip_custom: bool = False,
        sha256: str | None = None,
        revisions: Mapping[str, str] | None = None,
    ) -> EmbeddingSpace:
        """A space from its folder, `starter` or `starter:base`, which come with terralign, the
        short name of a published model (`terralign info models`), `ms-clip:FILE`, or what else
        `load_clip` takes (text and RGB only).

        `encoders`: tower name -> custom encoder, a module or a function that builds it, whose
        weights the folder has; a space with such towers needs one for each, unless `skip_custom`,
        which leaves towers without one out. `sha256`: of the file of the text and RGB towers'
        weights; `revisions`: see `load_clip`. Needs no network for a folder. A changed, truncated
        or missing file is refused by its hash, and an encoder by its shapes and by what it computes
        (`ModelError`); nothing is ever searched for, guessed, or imported by name.
        """
        if not isinstance(source, str | Path):
            raise ModelError(
                f"source is a {type(source).__name__}, not the name or folder of a model"
            )
        folder = Path(source)
        described = shipped_model(source) if isinstance(source, str) else None
        if described is None and not _is_space(folder):
            if encoders is not None and (encoders or not isinstance(encoders, Mapping)):
                raise ModelError(
                    f"encoders has no effect on {source}, which has no towers beside its RGB tower"
                )
            if is_ms_clip(str(source)):
                from terralign.encoders.ms_clip import load_ms_clip_from  # it imports this module

                return load_ms_clip_from(str(source), sha256=sha256, revisions=revisions)
            return cls(load_clip(str(source), sha256=sha256, revisions=revisions))
        if described is not None:
            folder, remedy = described.parent, "install terralign again"
        else:
            described, remedy = folder / "space.json", "copy the whole folder again"
        try:
            values = read_json(described)
            if "anchor" in values:
                _refuse_pins(str(source), sha256=sha256, revisions=revisions)
                clip = partial(_load_compact, folder, values)
            else:
                clip = partial(load_clip, str(folder), sha256=sha256, revisions=revisions)
            given = {} if encoders is None else encoders
            return cls._from_values(
                folder, values, given, skip_custom, clip, source=str(source), remedy=remedy
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            reason = f"{type(error).__name__}: {first_line(error)}"
            raise ModelError(f"{described} is not a space ({reason})") from error

    @classmethod
    def _from_values(
        cls,
        folder: Path,
        values: dict[str, Any],
        encoders: Mapping[str, Encoder],
        skip_custom: bool,
        load_anchor: Callable[[], ClipModel],
        *,
        source: str,
        remedy: str,
    ) -> EmbeddingSpace:
        if values["format"] != FORMAT_VERSION:
            raise ModelError(
                f"{folder} has space format {values['format']}; this terralign reads "
                f"{FORMAT_VERSION}"
            )
        configs = [_tower_config(entry) for entry in values["towers"]]
        skipped = _check_encoders(folder, configs, encoders, skip_custom)
        _check_files(folder, values["files"], remedy)
        provenance = dict(values["provenance"])
        clip = replace(load_anchor(), fetched=dict(provenance.get("fetched") or {}) or None)
        sensors = [parse_sensor(one, origin=str(folder)) for one in values["sensors"]]
        prompts = values["prompts"]
        space = cls(
            clip,
            sensors={sensor.name: sensor for sensor in sensors},
            prompts=PromptSet(name=prompts["name"], templates=tuple(prompts["templates"]))
            if prompts
            else None,
            provenance=provenance,
            source=source,
        )
        if space.space_id != values["space_id"]:
            raise ModelError(f"{folder}: its towers are not those of space {values['space_id']}")
        space.skipped = tuple(one for one in configs if one.name in skipped)
        trained = space.provenance.get("towers", {})
        for config, entry in zip(configs, values["towers"], strict=True):
            if config.name in skipped:
                continue
            path = folder / "towers" / f"{config.name}.safetensors"
            if f"towers/{config.name}.safetensors" not in values["files"]:
                raise ModelError(f"{folder}: tower {config.name!r} has no weights listed")
            what = f"encoders[{config.name!r}]"
            own = encoders.get(config.name)
            try:
                module = None if own is None else fit_encoder(own, config, what=what)
                tower = load_tower(config, clip, path, encoder=module)
                if config.name in trained:
                    tower.trained = TowerTraining.model_validate(trained[config.name])
                space.add(tower)
            except ModelError as error:
                if own is None or what in str(error):
                    raise
                raise ModelError(
                    f"{what} is not the encoder that was saved ({config.describe_encoder()}): "
                    f"{error}"
                ) from error
            if own is not None:
                check_probe(space.towers[config.name], entry["probe"], what=what)
            if space.tower_id(config.name) != entry["tower_id"]:
                raise ModelError(
                    f"{folder}: tower {config.name!r} is not {entry['tower_id']} as space.json "
                    f"says; {remedy}"
                )
        return space


def _describe_tower(tower: SensorTower) -> dict[str, Any]:
    entry = {"tower_id": tower.tower_id(), **tower.config.model_dump(mode="json")}
    return {**entry, "probe": probe(tower)} if tower.config.backbone == CUSTOM else entry


def _tower_config(entry: Mapping[str, Any]) -> TowerConfig:
    return TowerConfig.model_validate(
        {key: value for key, value in entry.items() if key not in ("tower_id", "probe")}
    )


def _check_encoders(
    folder: Path,
    configs: Sequence[TowerConfig],
    encoders: Mapping[str, Encoder],
    skip_custom: bool,
) -> set[str]:
    """The names of the custom towers that are left out; `ModelError` where one may not be."""
    custom = {one.name: one for one in configs if one.backbone == CUSTOM}
    if not isinstance(encoders, Mapping):
        name = next(iter(custom), "NAME")
        given = getattr(encoders, "__name__", "")
        raise ModelError(
            "encoders is a mapping from tower name to encoder: "
            f"encoders={{{name!r}: {given if given.isidentifier() else 'my_module'}}}"
        )
    unknown = next((name for name in encoders if name not in custom), None)
    if unknown is not None:
        raise ModelError(
            f"encoders names {unknown!r}; {folder} has "
            + (
                f"custom encoders for {', '.join(custom)}"
                if custom
                else "no tower with a custom encoder"
            )
        )
    missing = {name for name in custom if name not in encoders}
    if missing and not skip_custom:
        name = min(missing)
        raise ModelError(
            f"tower {name!r} of {folder} was made with a custom encoder "
            f"({custom[name].describe_encoder()}); pass encoders={{{name!r}: function that builds "
            "it} to load it, or skip_custom=True to leave it out"
        )
    return missing


def _is_space(folder: Path) -> bool:
    return (folder / "space.json").is_file()


def _load_compact(folder: Path, values: Mapping[str, Any]) -> ClipModel:
    """The text and RGB towers of a space whose weights are in the compact form."""
    names = values["anchor"]
    if not names or not set(names) <= values["files"].keys():
        raise ModelError(f"{folder}: the files of its text and RGB towers are not all listed")
    return load_compact_clip(folder, names)


_PARTS = f"*.{'[0-9a-f]' * 16}.{'[0-9a-f]' * 16}.parquet"
"""Names of parts, which an index is opened of; other Parquet files hold plain vectors."""


def _not_searchable(given: object) -> str:
    """What to do where something that is no vectors was given to be searched."""
    text = f"cannot search a {type(given).__name__}; "
    if not isinstance(given, str | os.PathLike):
        return f"{text}embed the imagery first: space.search(space.embed(...), ...)"
    path = os.fsdecode(given)
    has_parts = False
    with suppress(OSError, ValueError):  # a text that can be no path
        has_parts = path != "" and any(Path(path).glob(_PARTS))
    if has_parts:
        return (
            f"{text}open the folder of embedded scenes: space.search(ta.open_index({path!r}), ...)"
        )
    if path.endswith(".parquet"):
        return f"{text}load the vectors: space.search(ta.Embeddings.load({path!r}), ...)"
    return (
        f"{text}open what was embedded, with ta.open_index(FOLDER) or ta.Embeddings.load(FILE), or "
        "embed the imagery first: space.search(space.embed(...), ...)"
    )


def _refuse_pins(source: str, **pins: object) -> None:
    for name, given in pins.items():
        if given:
            raise ModelError(
                f"{name} has no effect on {source}, whose description pins its own files; leave it "
                "out"
            )


def _check_files(folder: Path, files: dict[str, dict[str, Any]], remedy: str) -> None:
    for name, expected in files.items():
        if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name) or ".." in name:
            raise ModelError(f"{folder}: file name {name!r} points outside the space")
        path = folder / name
        if not path.is_file():
            raise ModelError(f"{folder} lacks {name}; {remedy}")
        size = path.stat().st_size
        if size != expected["bytes"] or hash_file(path) != expected["sha256"]:
            raise ModelError(
                f"{path} was changed or truncated ({size} bytes, expected {expected['bytes']}); "
                f"{remedy}"
            )


def load(
    source: str | Path,
    *,
    encoders: Mapping[str, Encoder] | None = None,
    skip_custom: bool = False,
    sha256: str | None = None,
    revisions: Mapping[str, str] | None = None,
) -> EmbeddingSpace:
    """The `starter`, a space from its folder, an open_clip folder, `hf-hub:ORG/NAME[@REVISION]`,
    `ARCHITECTURE:TAG` or `ARCHITECTURE:FILE`; `encoders` builds its custom encoders, `sha256` and
    `revisions` pin what is loaded. See `EmbeddingSpace.load`."""
    return EmbeddingSpace.load(
        source, encoders=encoders, skip_custom=skip_custom, sha256=sha256, revisions=revisions
    )
