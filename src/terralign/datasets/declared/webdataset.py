"""Data sets in tars whose members share a key (WebDataset), read once and in order to be packed.

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

[classes]                          # value in the member -> class in prompts
0 = "a wheat field"

[captions]
member = "txt"

[date]
member = "json"
field = "acquired"

[splits]                           # split -> tars, with * or a range in braces
train = "train-{000000..000009}.tar"
test = ["test-*.tar"]

`webdataset` groups the members of a stream that is opened here: it never sees a file name, which it
might take for a command or an address, and never decodes, which unpickles.
"""

from __future__ import annotations

import datetime as dt
import glob
import hashlib
import itertools
import logging
import os
import re
import tarfile
import threading
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator

from terralign.datasets.class_folders import require_inside
from terralign.datasets.declared.columns import Columns
from terralign.datasets.declared.declaration import (
    Declaration,
    LabelKind,
    PixelSettings,
    find_inside,
    pixels_of,
    sensors_of,
)
from terralign.datasets.declared.members import KINDS, PICTURES, TIFFS, MemberDecoder, kind_of
from terralign.datasets.file_set import require_indices, stack_pixels
from terralign.datasets.image_files import LeftOut, is_new
from terralign.datasets.sample import Place
from terralign.datasets.split import Split
from terralign.datasets.tars import MAX_PAX_VALUES, HeaderReader
from terralign.errors import DataError, first_line, nearest, quoted, some
from terralign.files import decode_text, hash_json, parse_json
from terralign.limits import require
from terralign.progress import Progress
from terralign.scenes.pictures import Size, describe_size

logger = logging.getLogger(__name__)

_COMPRESSED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"]\0\0\x80", b"\x28\xb5\x2f\xfd")
"""How gzip, bzip2, xz, lzma and zstd begin; `webdataset` would decompress such a stream."""

MAX_PATTERN = 1000
"""Characters of a pattern; a longer one is refused."""

_RANGE = re.compile(r"\{([0-9]{1,9})\.\.([0-9]{1,9})\}")


class TarSensor(PixelSettings):
    """`[sensors.*]` of tars."""

    member: str = Field(min_length=1)
    """The ending of its members, all that follows the first dot; its last part is their kind."""
    tensor: str | None = None
    """Of safetensors files with several tensors: the one that holds the pixels."""

    @model_validator(mode="after")
    def _settings_have_an_effect(self) -> TarSensor:
        kind = kind_of(self.member)
        if kind in ("pth", "pt", "pickle", "pkl", "pyd"):
            raise ValueError(
                f"no pixels are read from .{kind}, a pickle; write .npy or .safetensors instead"
            )
        if kind not in KINDS:
            raise ValueError(f"no pixels are read from .{kind}; {nearest(kind, KINDS)}")
        if self.tensor is not None and kind != "safetensors":
            raise ValueError(f"tensor has no effect on .{kind}; leave it out")
        return self


class TarText(BaseModel):
    """`[captions]` and `[date]` of tars: a member of text, or a field of one of JSON."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    member: str = Field(min_length=1)
    """The ending of the member."""
    field: str | None = None
    """Of JSON: the key of the value."""

    @property
    def ending(self) -> str:
        """The ending in lower case."""
        return self.member.lower()

    @property
    def column(self) -> str:
        """How errors name it."""
        return self.ending if self.field is None else f"{self.ending}:{self.field}"

    @model_validator(mode="after")
    def _field_has_an_effect(self) -> TarText:
        is_json = kind_of(self.member) == "json"
        if is_json and self.field is None:
            raise ValueError(f"member {self.member!r} needs field, the key in its JSON")
        if not is_json and self.field is not None:
            raise ValueError(f"field has no effect on member {self.member!r}; leave it out")
        return self


class TarLabels(TarText):
    """`[labels]` of tars."""

    form: Literal["single", "list", "separated"]
    """One value; a list of JSON; or a text with a separator between values."""
    separator: str | None = Field(default=None, min_length=1)
    """Of "separated": what stands between values; spaces around them do not count."""

    @model_validator(mode="after")
    def _form_has_an_effect(self) -> TarLabels:
        if self.form == "list" and self.field is None:
            raise ValueError('form "list" needs a member of JSON')
        if (self.form == "separated") != (self.separator is not None):
            raise ValueError('separator and form "separated" have an effect only together')
        return self


class TarDeclaration(Declaration):
    """The TOML file of tars."""

    reader: Literal["shards"]
    root: str = Field(min_length=1)
    """The folder of the tars."""
    shards: str | tuple[str, ...] | None = None
    """All tars, where the set has no splits."""
    splits: dict[str, str | tuple[str, ...]] | None = Field(default=None, min_length=1)
    """Split -> its tars, by one pattern or several: `*` and `?`, or `{000..009}`."""
    sensors: dict[str, TarSensor] = Field(min_length=1)
    labels: TarLabels | None = None
    captions: TarText | None = None
    date: TarText | None = None

    @model_validator(mode="after")
    def _settings_have_an_effect(self) -> TarDeclaration:
        self.require_classes(labelled=self.labels is not None, remedy="see [labels]")
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

    def patterns(self, split: str, path: Path) -> list[str]:
        """The patterns of a split's tars; `path`: the declaration's file."""
        entry = self.find_split(split, path)
        given = [entry] if entry is not None else [self.shards or (), *(self.splits or {}).values()]
        return [one for some in given for one in ([some] if isinstance(some, str) else some)]


Sample = Mapping[str, Any]
"""One sample of a tar: "__key__", and ending -> bytes."""


def open_tars(
    declaration: TarDeclaration,
    path: Path,
    data_root: Path,
    split: str,
    *,
    size: Size | None = None,
) -> TarSet:
    """Open one split of a data set in tars; `path`: the declaration's file.

    Every tar is read once for its texts. The fingerprint holds these, and the names and sizes of
    tars and members, not their pixels.
    """
    root = find_inside(declaration.root, path, data_root, what="root")
    tars = find_tars(root, declaration.patterns(split, path), path)
    decoders = _decoders(declaration, path, data_root, size)
    listing = _list_samples(declaration, tars, root, decoders)
    columns = listing.columns()
    captions, date = declaration.captions, declaration.date
    layouts = {
        sensor: decoder.read(listing.first[decoder.member], listing.name_of(0))[0]
        for sensor, decoder in decoders.items()
    }
    return TarSet(
        name=declaration.name,
        split=split,
        layouts=layouts,
        keys=listing.keys,
        tars=tars,
        tar_of=np.array(listing.tar_of, dtype=np.int64),
        decoders=decoders,
        content=[
            describe_size(size) if "rgb" in layouts else None,
            *listing.members,
            hash_json(listing.texts),
        ],
        labels=columns.labels(declaration.labels, declaration, path, split),
        captions=None if captions is None else columns.captions(captions.column),
        prompts=declaration.prompts,
        dates=None if date is None else columns.times(date.column),
    )


def _decoders(
    declaration: TarDeclaration, path: Path, data_root: Path, size: Size | None
) -> dict[str, MemberDecoder]:
    decoders = {}
    for sensor, settings in sensors_of(declaration.sensors, path, data_root):
        origin = f"{path}: sensors.{sensor.name}"
        kind = kind_of(settings.member)
        if kind in PICTURES and sensor.name != "rgb":
            raise DataError(f"{origin}: {settings.member!r} is a picture, which is sensor 'rgb'")
        pictures = sensor.name == "rgb" and kind in (*PICTURES, *TIFFS)
        decoders[sensor.name] = MemberDecoder(
            member=settings.member.lower(),
            pixels=pixels_of(sensor, settings, size=size, origin=origin, pictures=pictures),
            tensor=settings.tensor,
        )
    return decoders


@dataclass(slots=True)
class _Listing:
    """What N samples of some tars are called and hold, apart from pixels.

    `tar_of`: the number of each sample's tar; `texts`: column -> N values; `first`: the first
    sample; `members`: each tar's digest of its members' names and sizes.
    """

    tars: Sequence[Path]
    keys: tuple[str, ...] = ()
    tar_of: list[int] = field(default_factory=list)
    texts: dict[str, list[Any]] = field(default_factory=dict)
    members: list[str] = field(default_factory=list)
    first: Sample = field(default_factory=dict)

    def name_of(self, index: int) -> str:
        """How an error names a sample."""
        return f"{self.tars[self.tar_of[index]]}: {self.keys[index]}"

    def columns(self) -> Columns:
        """The texts; lists where one sample has a list."""
        arrays = {}
        for column, values in self.texts.items():
            if any(isinstance(one, list) for one in values):
                lists = [one if one is None or isinstance(one, list) else [one] for one in values]
                arrays[column] = pa.array(lists, pa.list_(pa.string()))
            else:
                arrays[column] = pa.array(values, pa.string())
        return Columns(origin=self.tars[0].parent, arrays=arrays, name_of=self.name_of)


def _list_samples(
    declaration: TarDeclaration,
    tars: Sequence[Path],
    root: Path,
    decoders: Mapping[str, MemberDecoder],
) -> _Listing:
    """Read all tars once. Keys carry their tar's path below `root` where two tars share one."""
    given = (declaration.labels, declaration.captions, declaration.date)
    wanted = {one.column: one for one in given if one is not None}
    needed = {*(one.member for one in decoders.values()), *(one.ending for one in wanted.values())}
    listing, keys = _Listing(tars), []
    with Progress("reading tars", total=len(tars), unit="tar") as progress:
        for number, tar in enumerate(tars):
            listing.members.append(check_tar(tar, name=declaration.name))
            for sample in stream_samples(tar):
                what = f"{tar}: sample {quoted(sample['__key__'])}"
                if missing := min(needed - sample.keys(), default=None):
                    found = some(sorted(one for one in sample if not one.startswith("__")))
                    raise DataError(f"{what} has no member .{missing}; it has {found}")
                listing.first = listing.first or sample
                listing.tar_of.append(number)
                keys.append(sample["__key__"])
                for column, one in wanted.items():
                    text = _text_of(sample[one.ending], one.field, f"{what}, .{one.ending}")
                    listing.texts.setdefault(column, []).append(text)
            progress.advance()
    if len(set(keys)) < len(keys):
        names = [tar.relative_to(root).with_suffix("").as_posix() for tar in tars]
        keys = [f"{names[tar]}/{key}" for tar, key in zip(listing.tar_of, keys, strict=True)]
    if len(set(keys)) < len(keys):
        twice = next(key for key, count in Counter(keys).items() if count > 1)
        raise DataError(
            f"{root}: two samples have the key {quoted(twice)}; rename one of their tars"
        )
    listing.keys = tuple(keys)
    return listing


def _text_of(content: bytes, field: str | None, what: str) -> Any:
    """The text of a member, or a text or list of texts in its JSON; None for null."""
    require("text_bytes", len(content), f"{what} has")
    try:
        text = decode_text(content)
    except ValueError as error:
        raise DataError(f"{what} is damaged: {first_line(error)}") from error
    if field is None:
        return text.strip()
    parsed = parse_json(text, name=what, fault=DataError)
    if not isinstance(parsed, dict):
        raise DataError(f"{what} is no object of JSON")
    if field not in parsed:
        raise DataError(f"{what} has no key {field!r}; {nearest(field, parsed)}")
    value = parsed[field]
    return [_plain(one, what) for one in value] if isinstance(value, list) else _plain(value, what)


def _plain(value: Any, what: str) -> str | None:
    if isinstance(value, bool):
        return "true" if value else "false"
    if value is None or isinstance(value, int | str):
        return None if value is None else str(value)
    raise DataError(f"{what} has {str(value)[:50]}; expected a text or a whole number")


@dataclass(frozen=True, kw_only=True, slots=True, repr=False)
class TarSet(Split):
    """One split of a data set in tars, to be packed. See `SampleSet`.

    `tar_of`: (N,) int64, the number of each sample's tar. Samples come in the order of the tars: a
    thread that reads ascending indices reads on where it stopped, any other order begins a tar
    anew.
    """

    tars: Sequence[Path]
    tar_of: NDArray[np.int64]
    decoders: Mapping[str, MemberDecoder]
    dates: Sequence[dt.datetime | None] | None = None
    _at: Any = field(init=False, default_factory=threading.local)

    def read(self, indices: NDArray[np.int64]) -> dict[str, NDArray[Any]]:
        """Sensor name -> (B, C, H, W); a sensor's pixels must have one shape in all of a batch."""
        require_indices(self.name, indices)
        found = {index: self._decode(index) for index in np.unique(indices).tolist()}
        names = [self._name_of(index) for index in indices.tolist()]
        return {
            sensor: stack_pixels(names, [found[index][sensor] for index in indices.tolist()])
            for sensor in self.layouts
        }

    def _decode(self, index: int) -> dict[str, NDArray[Any]]:
        """Sensor name -> (C, H, W) of one sample."""
        sample, what = self._next(index), self._name_of(index)
        pixels = {}
        for sensor, decoder in self.decoders.items():
            layout, pixels[sensor] = decoder.read(sample[decoder.member], what)
            if layout != self.layouts[sensor]:
                raise DataError(
                    f"{what} and {self._name_of(0)} differ in bands, units or DN offset of "
                    f"{sensor}; declare them for the whole data set"
                )
        return pixels

    def _next(self, index: int) -> Sample:
        """A sample, by reading on from this thread's last one where that comes before it."""
        at, tar = self._at, int(self.tar_of[index])
        if getattr(at, "tar", None) != tar or at.index > index:
            at.tar, at.index = tar, int(np.searchsorted(self.tar_of, tar))
            at.samples = stream_samples(self.tars[tar])
        sample: Sample = next(itertools.islice(at.samples, index - at.index, None), {})
        at.index = index + 1
        if not self.keys[index].endswith(sample.get("__key__", "/")):
            raise DataError(f"shard {self.tars[tar]} has changed while it was in use")
        return sample

    def _name_of(self, index: int) -> str:
        return f"{self.tars[self.tar_of[index]]}: {self.keys[index]}"

    def place(self, index: int) -> Place:
        """When a sample was taken, where the declaration names a member that states it."""
        return Place(datetime=None if self.dates is None else self.dates[index])


# The tars


def find_tars(root: Path, patterns: Sequence[str], path: Path) -> list[Path]:
    """The tars below `root` that patterns name, in their order, each once.

    `*`, `?` and `[...]` match files that exist, sorted; `{000..009}` names every number of a range,
    and one that is missing is an error, as is a pattern that matches nothing. `path`: the
    declaration's file, for errors.
    """
    found: dict[Path, None] = {}
    for pattern in patterns:
        require_inside(pattern, origin=f"{path}: shards")
        if len(pattern) > MAX_PATTERN or re.search(r"[^/]\*\*|\*\*[^/]|\*\*/.*\*\*", pattern):
            raise DataError(
                f"{path}: shards {quoted(pattern)} is no pattern of tars; write at most "
                f"{MAX_PATTERN} characters, and ** once, as a folder of its own"
            )
        for name in _expand_ranges(pattern, path):
            if glob.has_magic(name):
                try:
                    matched = sorted(root.glob(name))
                except OSError as error:
                    raise DataError(
                        f"{path}: shards {quoted(name)} cannot be looked for: {error.strerror}"
                    ) from error
                if not matched:
                    raise DataError(f"{path}: no shard in {root} matches {name!r}")
                if others := [one for one in matched if not one.is_file()]:
                    raise DataError(f"shard {others[0]} is no file; {path} names {pattern!r}")
                found.update(dict.fromkeys(matched))
            elif not os.path.isfile(root / name):
                raise DataError(
                    f"shard {root}/{quoted(name)[1:-1]} not found; {path} names {quoted(pattern)}"
                )
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
        if not num_names:
            raise DataError(f"{path}: shards {pattern!r} names no tar: {match[0]} counts down")
        require("tars", num_names, f"{path}: shards {pattern!r} names")
        parts += [
            [pattern[end : match.start()]],
            [f"{number:0{width}d}" for number in range(first, last + 1)],
        ]
        end = match.end()
    return ["".join(one) for one in itertools.product(*parts, [pattern[end:]])]


def stream_samples(path: Path) -> Iterator[Sample]:
    """The samples of a tar that `check_tar` passed, in its order, their endings in lower case."""
    from webdataset.tariterators import group_by_keys, tar_file_expander  # imports torch

    try:
        with open(path, "rb") as file:
            members = tar_file_expander([{"url": path.name, "stream": file}])
            yield from group_by_keys(members, keys=split_name)
    except (tarfile.TarError, ValueError, EOFError, OSError, OverflowError) as error:
        raise DataError(f"shard {path} cannot be read: {first_line(error)}") from error


def split_name(name: str) -> tuple[str, str] | tuple[None, None]:
    """A member's key and ending; None for one that belongs to no sample.

    Those are hidden files, files without an ending, and what `webdataset` keeps for itself:
    `__name__` and all below it, and endings `__name__`.
    """
    if re.match(r"__[^/]*__($|/)", name):
        return (None, None)
    folder, slash, base = name.removeprefix("./").rpartition("/")
    stem, _, ending = base.partition(".")
    if not stem or not ending or ending.startswith("__"):
        return (None, None)
    return (folder + slash + stem, ending.lower())


def check_tar(path: Path, *, name: str) -> str:
    """Check a tar by its headers alone; a digest of its members' names and sizes.

    `webdataset` skips what it cannot use and stops where a header is damaged, so this comes first.
    `DataError` naming the tar where it is compressed, cut short, damaged or empty, where it holds a
    link, a device, a sparse file, a member above the limit or the same member twice, and where the
    members of a sample do not lie side by side. Members that belong to no sample are counted in one
    warning, which names `name`, the data set.
    """
    digest, left_out = hashlib.sha256(), LeftOut(Path())
    last, endings, seen = None, set[str | None](), set[str]()
    try:
        with open(path, "rb") as file:
            for info in _headers(path, file):
                key, ending = split_name(info.name)
                if key is None:
                    left_out.add(Path(info.name.lstrip("/")))
                    continue
                if key != last and key in seen:
                    raise DataError(
                        f"shard {path}: the members of sample {quoted(key)} do not lie side by "
                        "side; write the tar again, sorted by name (tar --sort=name)"
                    )
                if key != last:
                    last, endings = key, set()
                    seen.add(key)
                if ending in endings:
                    raise DataError(
                        f"shard {path} has two members {quoted(f'{key}.{ending}')}; write it again"
                    )
                endings.add(ending)
                digest.update(f"{key}.{ending} {info.size}\n".encode())
    except UnicodeEncodeError as error:
        raise DataError(
            f"shard {path} has a member named {quoted(info.name)}, which is not UTF-8; rename it"
        ) from error
    except OSError as error:
        raise DataError(f"shard {path} cannot be read: {error.strerror or error}") from error
    if not seen:
        raise DataError(f"shard {path} holds no samples (members named key.ending)")
    if left_out and is_new(path, f"{left_out} left out"):
        logger.warning(
            "data set %r: left out of %s: %d members that belong to no sample, such as %s",
            name, path, len(left_out), left_out.example,
        )  # fmt: skip
    return digest.hexdigest()


def _headers(path: Path, file: IO[bytes]) -> Iterator[tarfile.TarInfo]:
    """The header of every file of a tar, whose end is checked as well."""
    num_bytes = path.stat().st_size
    reader: Any = HeaderReader(file)
    archive: Any
    if file.read(8).startswith(_COMPRESSED):
        raise DataError(f"shard {path} is compressed; unpack it to a plain .tar")
    file.seek(0)
    try:
        with tarfile.open(fileobj=reader, mode="r:") as archive:
            while (info := archive.next()) is not None:
                archive.members.clear()  # or they would all be kept
                if info.isdir():
                    continue
                if not info.isreg() or info.issparse():
                    raise DataError(
                        f"shard {path} holds {quoted(info.name)}, which is a link, a device or a "
                        "sparse file; write the tar again with plain files only"
                    )
                if info.size < 0 or info.offset_data + info.size > num_bytes:
                    raise DataError(
                        _cut_short(path, f"its member {quoted(info.name)} is not whole")
                    )
                require("chip_bytes", info.size, f"{path}: {quoted(info.name)} has")
                if len(archive.pax_headers) > MAX_PAX_VALUES:
                    raise ValueError("too many values that hold for all members")
                yield info
            last = archive.offset
    except (tarfile.TarError, ValueError, EOFError, OverflowError, RecursionError) as error:
        if num_bytes < tarfile.BLOCKSIZE or "unexpected end" in str(error):
            raise DataError(_cut_short(path, first_line(error))) from error
        raise DataError(
            f"shard {path} is damaged, compressed or no tar ({first_line(error)}); unpack it to a "
            "plain .tar, or download it again"
        ) from error
    file.seek(last)
    closing = file.read(tarfile.BLOCKSIZE)
    if len(closing) < tarfile.BLOCKSIZE:
        raise DataError(_cut_short(path, "the mark of its end is missing"))
    if closing.strip(b"\0"):
        raise DataError(f"shard {path} is damaged: no header at byte {last}")


def _cut_short(path: Path, fault: str) -> str:
    return f"shard {path} is cut short ({fault}); download it again"
