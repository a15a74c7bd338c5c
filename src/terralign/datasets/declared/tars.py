"""Data sets in shards: tars of samples whose members share a key (WebDataset).

name = "fields"
reader = "shards"
root = "fields"                    # beside this file, or in the data root

[sensors.sentinel2-l2a]
member = "s2.npy"                  # what follows the key in a member's name
bands = ["B02", "B03", "B04", "B08"]
dn_offset = 0

[sensors.rgb]
member = "jpg"

[labels]
form = "single"                    # or "list", "separated"
member = "json"
field = "crop"                     # of JSON only

[classes]                          # value in the member -> class as prompts say it
0 = "a wheat field"

[captions]
member = "txt"

[date]
member = "json"
field = "acquired"

[splits]                           # split -> shards, with * or a range in braces
train = "train-{000000..000009}.tar"
test = ["test-*.tar"]
"""

from __future__ import annotations

import glob
import hashlib
import itertools
import logging
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from terralign.chips import PixelLayout
from terralign.datasets.class_folders import require_inside
from terralign.datasets.declared.declaration import (
    Declaration,
    LabelKind,
    PixelSettings,
    find_path,
    pixels_of,
    require_classes,
    require_split,
    sensors_of,
)
from terralign.datasets.declared.tar_index import TarIndex, index_tar, read_members
from terralign.datasets.declared.tar_members import KINDS, PICTURES, TENSORS, MemberDecoder
from terralign.datasets.declared.tar_set import ShardSet
from terralign.datasets.declared.tar_texts import ShardLabels, TextMember, Texts
from terralign.datasets.fingerprint import fingerprint
from terralign.datasets.image_files import is_new
from terralign.datasets.sample import require_whole_split, tell_unused
from terralign.errors import DataError, nearest
from terralign.progress import Progress
from terralign.scenes.pictures import Size, describe_size
from terralign.scenes.read import MAX_CHIP_BYTES

logger = logging.getLogger(__name__)

MAX_SHARDS = 1_000_000

_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")


class ShardSensor(PixelSettings):
    """`[sensors.*]` of shards."""

    member: str = Field(min_length=1)
    """The ending of its members, all that follows the first dot; its last part is their kind."""
    tensor: str | None = None
    """Of safetensors and .pth files with several tensors: the one that holds the pixels."""

    @property
    def kind(self) -> str:
        """What a member is: one of `KINDS`."""
        return self.member.lower().rpartition(".")[2]

    @model_validator(mode="after")
    def _settings_have_an_effect(self) -> ShardSensor:
        if self.kind not in KINDS:
            raise ValueError(f"no pixels are read from .{self.kind}; {nearest(self.kind, KINDS)}")
        if self.tensor is not None and self.kind not in TENSORS:
            raise ValueError(f"tensor has no effect on .{self.kind}; leave it out")
        return self


class ShardsDeclaration(Declaration):
    """What the TOML file of shards says."""

    reader: Literal["shards"]
    root: str = Field(min_length=1)
    """The folder of the shards."""
    shards: str | tuple[str, ...] | None = None
    """All shards, where the set has no splits."""
    splits: dict[str, str | tuple[str, ...]] | None = Field(default=None, min_length=1)
    """Split -> its shards, by one pattern or several: `*` and `?`, or `{000..009}`."""
    sensors: dict[str, ShardSensor] = Field(min_length=1)
    labels: ShardLabels | None = None
    captions: TextMember | None = None
    date: TextMember | None = None

    @model_validator(mode="after")
    def _settings_have_an_effect(self) -> ShardsDeclaration:
        require_classes(self, labelled=self.labels is not None, remedy="see [labels]")
        if (self.shards is None) == (self.splits is None):
            raise ValueError("give either shards or [splits]")
        return self

    @property
    def label_kind(self) -> LabelKind:
        if self.labels is not None:
            return "single" if self.labels.form == "single" else "multi"
        return "none" if self.captions is None else "captions"

    @property
    def location(self) -> str:
        return self.root

    def patterns(self, split: str, path: Path) -> tuple[str, ...]:
        """The patterns of a split's shards; `path`: the declaration's file."""
        if self.splits is None:
            require_whole_split(self.name, split)
            assert self.shards is not None
            return _as_tuple(self.shards)
        require_split(self.name, split, tuple(self.splits), path)
        if split in self.splits:
            return _as_tuple(self.splits[split])
        return tuple(one for given in self.splits.values() for one in _as_tuple(given))


def _as_tuple(given: str | tuple[str, ...]) -> tuple[str, ...]:
    return (given,) if isinstance(given, str) else given


def open_shards(
    declaration: ShardsDeclaration,
    path: Path,
    data_root: Path,
    split: str,
    *,
    size: Size | None = None,
) -> ShardSet:
    """Open one split of a data set in shards; `path`: the declaration's file.

    Every shard's headers and its members of text are read once; its pixels when they are asked for.
    The fingerprint holds the names and sizes of shards and members, not their content.
    """
    require_inside(declaration.root, origin=f"{path}: root")
    folder = find_path(declaration.root, path, data_root, what="root")
    shards = find_shards(folder, declaration.patterns(split, path), path)
    indices = []
    with Progress("indexing shards", total=len(shards), unit="shard") as progress:
        for shard in shards:
            indices.append(index_tar(shard))
            progress.advance()
    _warn_of_left_out(declaration.name, indices)
    keys = _keys(indices)
    shard_of = np.repeat(np.arange(len(indices)), [len(one.keys) for one in indices])
    places: dict[str, NDArray[np.int64]] = {}
    decoders: dict[str, MemberDecoder] = {}
    for sensor, settings in sensors_of(declaration.sensors, path, data_root):
        origin = f"{path}: sensors.{sensor.name}"
        if settings.kind in PICTURES and sensor.name != "rgb":
            raise DataError(f"{origin}: {settings.member!r} is a picture, which is sensor 'rgb'")
        is_rgb_file = sensor.name == "rgb" and settings.kind in (*PICTURES, "tif", "tiff")
        pixels = pixels_of(sensor, settings, size=size, pictures=is_rgb_file, origin=origin)
        decoders[sensor.name] = MemberDecoder(
            kind=settings.kind, pixels=pixels, tensor=settings.tensor
        )
        places[sensor.name] = _places(indices, settings.member)
    texts = Texts(indices, (declaration.labels, declaration.captions, declaration.date))
    labels = texts.labels(declaration.labels, declaration.classes, class_list=path.name)
    if labels is not None:
        tell_unused(labels, name=declaration.name, split=split)
    layouts = {
        sensor: _first_layout(decoder, indices[0], places[sensor])
        for sensor, decoder in decoders.items()
    }
    content = [
        describe_size(size) if "rgb" in layouts else None,
        *([one.path.name, one.num_bytes] for one in indices),
        *(hashlib.sha256(one.tobytes()).hexdigest() for one in places.values()),
    ]
    return ShardSet(
        name=declaration.name,
        split=split,
        layouts=layouts,
        keys=keys,
        shards=tuple(shards),
        shard_of=shard_of,
        places=places,
        decoders=decoders,
        fingerprint=fingerprint(
            name=declaration.name, split=split, keys=keys, layouts=layouts, content=content
        ),
        labels=labels,
        captions=texts.captions(declaration.captions),
        prompts=declaration.prompts,
        dates=texts.dates(declaration.date),
    )


def _keys(indices: Sequence[TarIndex]) -> tuple[str, ...]:
    """The samples' keys, with their shard's name before them where two shards share one."""
    keys = [key for one in indices for key in one.keys]
    if len(set(keys)) < len(keys):
        keys = [f"{one.path.stem}/{key}" for one in indices for key in one.keys]
    if len(set(keys)) < len(keys):
        keys = [f"{one.path.as_posix()}/{key}" for one in indices for key in one.keys]
    return tuple(keys)


def _warn_of_left_out(name: str, indices: Sequence[TarIndex]) -> None:
    number = sum(one.num_left_out for one in indices)
    first = next((one for one in indices if one.num_left_out), None)
    if first is not None and is_new(first.path, f"{number} left out"):
        logger.warning(
            "data set %r: left out: %d members of its shards whose names have no ending, so that "
            "they belong to no sample, such as %s in %s",
            name, number, first.left_out, first.path,
        )  # fmt: skip


def _places(indices: Sequence[TarIndex], member: str) -> NDArray[np.int64]:
    ending = member.lower()
    for one in indices:
        places = one.places(ending)
        largest = int(places[:, 1].argmax())
        if places[largest, 1] > MAX_CHIP_BYTES:
            raise DataError(
                f"{one.path}: {one.keys[largest]}.{ending} has more than the limit of "
                f"{MAX_CHIP_BYTES // 2**20} MiB"
            )
    return np.concatenate([one.places(ending) for one in indices])


def _first_layout(
    decoder: MemberDecoder, index: TarIndex, places: NDArray[np.int64]
) -> PixelLayout:
    [(_, content)] = read_members(index.path, places[:1])
    return decoder.read(content, f"{index.path}: {index.keys[0]}")[0]


def find_shards(root: Path, patterns: Sequence[str], path: Path) -> list[Path]:
    """The shards below `root` that patterns name, in their order, each once.

    `*`, `?` and `[...]` match what is there, sorted; `{000..009}` names every number of a range,
    and one that is missing is an error, as is a pattern that matches nothing. `path`: the
    declaration's file, for errors.
    """
    if not root.is_dir():
        raise DataError(f"{root} is not there; it should hold the shards")
    found: dict[Path, None] = {}
    for pattern in patterns:
        require_inside(pattern, origin=f"{path}: shards")
        for name in _expand_ranges(pattern, path):
            if glob.has_magic(name):
                matched = sorted(root.glob(name))
                if not matched:
                    raise DataError(f"{path}: no shard in {root} matches {name!r}")
                found.update(dict.fromkeys(matched))
            elif not (root / name).is_file():
                raise DataError(f"shard {root / name} is not there; {path} names {pattern!r}")
            else:
                found[root / name] = None
    return list(found)


def _expand_ranges(pattern: str, path: Path) -> list[str]:
    """`a-{08..10}` -> a-08, a-09, a-10."""
    parts: list[list[str]] = []
    end, num_names = 0, 1
    for match in _RANGE.finditer(pattern):
        first, last, width = int(match[1]), int(match[2]), len(match[1])
        num_names *= max(last - first + 1, 0)
        if not 0 < num_names <= MAX_SHARDS:
            raise DataError(f"{path}: shards {pattern!r} are none, or more than {MAX_SHARDS}")
        parts += [
            [pattern[end : match.start()]],
            [f"{number:0{width}d}" for number in range(first, last + 1)],
        ]
        end = match.end()
    return ["".join(one) for one in itertools.product(*parts, [pattern[end:]])]
