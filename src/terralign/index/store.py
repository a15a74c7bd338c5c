"""The vectors of a folder's parts in one memory-mapped file, what its rows are filtered by, and
their outlines.

A cache beside the parts (`.cache`), from which nothing is lost: rows of new parts are appended, and
where a part changed or is gone the whole is made again. Where the folder cannot be written, the
cache is a temporary one. N rows, D dimensions.
"""

from __future__ import annotations

import logging
import shutil
import tempfile
import weakref
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import shapely
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from terralign.encoders.vectors import Footprint
from terralign.errors import DataError, SpaceMismatchError, StorageError, counted, shown
from terralign.files import claimed, not_found, write_text
from terralign.index.names import SUFFIX, is_part_name, part_paths
from terralign.index.parts import Part, PartFacts, vectors_of
from terralign.limits import limit, require
from terralign.progress import Progress

logger = logging.getLogger(__name__)

CACHE = ".cache"
_FORMAT = 2

ROW = np.dtype(
    [
        ("part", "<i4"),
        ("row", "<i4"),
        ("window", "<i4", (4,)),
        ("west", "<f8"),
        ("south", "<f8"),
        ("east", "<f8"),
        ("north", "<f8"),
        ("time", "<i8"),
        ("valid", "<f4"),
        ("cloud", "<f4"),
    ]
)
"""A row: its part and its place in it, window (row, column, height, width), bounds in degrees (west
is greater than east across the antimeridian), microseconds since 1970 (`NO_TIME`: unknown), shares
of valid pixels and of cloud (NaN: unknown)."""

OUTLINE = np.dtype([("first", "<i8"), ("end", "<i8"), ("cell", "S16")])
"""Of a row: where the WKB of its outline lies in the file of outlines, and its Major-TOM cell."""

_MANY = 100_000
"""Vectors that take seconds to read, so that it is reported."""

NO_TIME = np.iinfo(np.int64).min
_FIRST_TIME, _LAST_TIME = -62_135_596_800_000_000, 253_402_300_799_999_999

_READ = (
    *("window_row", "window_column", "window_height", "window_width", "datetime", "valid_share"),
    *("cloud_share", "cell", "bbox", "geometry", "vector"),
)


class _Entry(BaseModel):
    """A part whose rows are in the cache."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    size: int
    mtime_ns: int
    num_rows: int = Field(ge=0)
    facts: PartFacts


class _Contents(BaseModel):
    """What the cache holds, in the order of its rows."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: int
    generation: int
    dtype: str
    wkb_bytes: int = Field(default=0, ge=0)
    parts: tuple[_Entry, ...]

    @property
    def num_rows(self) -> int:
        return sum(one.num_rows for one in self.parts)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Store:
    """`vectors`: (N, D) float16 or float32; `rows`: (N,) of dtype `ROW`; `outlines`: (N,) of dtype
    `OUTLINE`, and `wkb`, the bytes that they lie in; all memory-mapped.

    `facts`, `paths` and `stamps` (name, size, time of change) of the parts; `firsts` (P + 1,): the
    first row of each, and the end. `kept`: what was found of the rows when it was first asked for.
    """

    vectors: NDArray[Any]
    rows: NDArray[Any]
    outlines: NDArray[Any]
    wkb: NDArray[np.uint8]
    facts: tuple[PartFacts, ...]
    paths: tuple[Path, ...]
    stamps: tuple[tuple[str, int, int], ...]
    firsts: NDArray[np.int64]
    temporary: Any = None
    kept: dict[str, Any] = field(default_factory=dict)

    def rows_of(self, part: int) -> range:
        """The rows of a part."""
        return range(int(self.firsts[part]), int(self.firsts[part + 1]))


def open_store(folder: Path) -> Store:
    """The rows of all parts of a folder, with the cache brought up to date.

    `DataError` where the folder has no parts, or a part is damaged; `SpaceMismatchError` where
    parts are of several spaces.
    """
    if folder.suffix == SUFFIX and folder.is_file():
        raise DataError(f"{shown(folder)} is {_what_file(folder)}")
    if folder.exists() and not folder.is_dir():
        raise DataError(f"{shown(folder)} is a file; expected the folder of `terralign embed`")
    if not folder.is_dir():
        raise DataError(f"{not_found(folder)}; expected the folder of `terralign embed`")
    paths = part_paths(folder)
    if not paths:
        raise DataError(
            f"{shown(folder)} holds no parts of embedded scenes (*.parquet); make them: terralign "
            f"embed SCENES --model SPACE --out {shown(folder)}"
        )
    cache = folder / CACHE
    try:
        contents = _read_contents(cache)
        if contents is None or not _is_of(contents, paths):
            with claimed(cache, wait=True):
                contents = _updated(cache, paths)
        return _mapped(cache, folder, contents)
    except StorageError as error:
        logger.warning("%s; the vectors are read into a temporary folder", error)
        temporary = _Temporary()
        contents = _updated(temporary.folder, paths)
        return _mapped(temporary.folder, folder, contents, temporary)


def _what_file(path: Path) -> str:
    """What a Parquet file is that was given in place of a folder of parts."""
    if is_part_name(path.name):
        return f"one part of a folder; give the folder, {shown(path.parent)}"
    return (
        "one file; expected a folder of parts (terralign embed SCENES --model SPACE --out FOLDER). "
        "Files of vectors are searched with `terralign search`, and in Python with Embeddings.load"
    )


class _Temporary:
    """A folder that is removed with the index that holds it."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="terralign-"))
        self._remove = weakref.finalize(self, shutil.rmtree, self.folder, ignore_errors=True)


def stamp_of(path: Path) -> tuple[str, int, int]:
    """Name, size and time of change of a part; `OSError` where it is gone."""
    status = path.stat()
    return path.name, status.st_size, status.st_mtime_ns


def _is_of(contents: _Contents, paths: Sequence[Path]) -> bool:
    """Whether a cache holds just these parts, as they are."""
    return sorted((one.name, one.size, one.mtime_ns) for one in contents.parts) == sorted(
        stamp_of(path) for path in paths
    )


def _read_contents(cache: Path) -> _Contents | None:
    path = cache / "contents.json"
    try:
        if path.stat().st_size > limit("json_bytes"):
            return None
        found = _Contents.model_validate_json(path.read_bytes())
        whole = all(
            path.stat().st_size >= num_bytes
            for path, num_bytes in zip(_paths(cache, found), _sizes(found), strict=True)
        )
    except (OSError, ValidationError, ValueError, TypeError):
        return None
    return found if whole and found.format == _FORMAT else None


_FILES = ("vectors", "rows", "outlines", "wkb")


def _paths(cache: Path, contents: _Contents) -> list[Path]:
    return [cache / f"{name}.{contents.generation}" for name in _FILES]


def _sizes(contents: _Contents) -> tuple[int, ...]:
    """Bytes of each file that are of the contents: what a killed process appended is not."""
    dim = contents.parts[0].facts.dim if contents.parts else 1
    each = (dim * np.dtype(contents.dtype).itemsize, ROW.itemsize, OUTLINE.itemsize)
    return *(contents.num_rows * one for one in each), contents.wkb_bytes


def _updated(cache: Path, paths: Sequence[Path]) -> _Contents:
    """The contents of a cache after the rows of new parts were appended, or all made again."""
    old = _read_contents(cache)
    stamps = {stamp_of(path): path for path in paths}
    known = {(one.name, one.size, one.mtime_ns) for one in old.parts} if old else set()
    opened = [Part(path) for stamp, path in stamps.items() if stamp not in known]
    facts = [one.facts for one in old.parts] if old else []
    facts += [one.facts for one in opened]
    wide = any(one.vector_type == "float32" for one in facts)
    dtype = "float32" if wide else "float16"
    if old is None or old.dtype != dtype or not known <= stamps.keys():
        for part in opened:
            part.close()
        opened = [Part(path) for path in paths]
        generation = 1 if old is None else old.generation + 1
        contents = _Contents(format=_FORMAT, generation=generation, dtype=dtype, parts=())
        for path in (one for name in _FILES for one in cache.glob(f"{name}.*")):
            path.unlink(missing_ok=True)  # who has them mapped keeps them
    else:
        contents = old
    _check_spaces([*(one.facts for one in contents.parts), *(one.facts for one in opened)])
    require(
        "index_rows",
        contents.num_rows + sum(one.num_rows for one in opened),
        f"{shown(cache.parent)} holds",
    )
    return _append(cache, contents, opened)


def _check_spaces(facts: Sequence[PartFacts]) -> None:
    first = facts[0]
    for one in facts:
        if (one.space_id, one.dim) != (first.space_id, first.dim):
            raise SpaceMismatchError(
                f"the folder has vectors of several spaces: {shown(first.source)} of "
                f"{first.space_id}, {shown(one.source)} of {one.space_id}; move those of one into "
                "a folder of their own"
            )


def _append(cache: Path, contents: _Contents, opened: Sequence[Part]) -> _Contents:
    entries = list(contents.parts)
    wkb_bytes = contents.wkb_bytes
    total = sum(one.num_rows for one in opened)
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with (
            ExitStack() as stack,
            Progress("read vectors", total=total, unit="vector") as progress,
        ):
            files = [stack.enter_context(open(path, "ab")) for path in _paths(cache, contents)]
            for file, size in zip(files, _sizes(contents), strict=True):
                file.truncate(size)
            vectors, rows, outlines, wkb = files
            for part in opened:
                first = 0
                for batch in part.batches(_READ):
                    numbers = vectors_of(batch, part.facts)
                    if part.facts.scale != 1:
                        numbers = numbers * np.float32(part.facts.scale)
                    if not np.isfinite(numbers).all():
                        raise DataError(
                            f"{shown(part.path)} is damaged: vectors that are not finite; embed "
                            "its scene again"
                        )
                    numbers.astype(contents.dtype).tofile(vectors)
                    _rows_of(batch, part, len(entries), first).tofile(rows)
                    places, text = _outlines_of(batch, part, wkb_bytes)
                    places.tofile(outlines)
                    wkb.write(text)
                    wkb_bytes += len(text)
                    first += len(batch)
                    progress.advance(len(batch))
                part.close()
                name, size, mtime_ns = stamp_of(part.path)
                entries.append(
                    _Entry(
                        name=name, size=size, mtime_ns=mtime_ns, num_rows=first, facts=part.facts
                    )
                )
    except OSError as error:
        raise StorageError(f"cannot write into {cache}: {error.strerror or error}") from error
    contents = contents.model_copy(update={"parts": tuple(entries), "wkb_bytes": wkb_bytes})
    write_text(cache / "contents.json", contents.model_dump_json())
    if total >= _MANY:
        logger.info(
            "%s: %s of %s read into its cache",
            shown(cache.parent), counted(total, "vector"), counted(len(opened), "part"),
        )  # fmt: skip
    return contents


def _rows_of(batch: pa.RecordBatch, part: Part, number: int, first: int) -> NDArray[Any]:
    rows = np.zeros(len(batch), dtype=ROW)
    rows["part"], rows["row"] = number, np.arange(first, first + len(batch))
    columns = {name: batch.column(batch.schema.get_field_index(name)) for name in _READ}
    try:
        for place, name in enumerate(("row", "column", "height", "width")):
            rows["window"][:, place] = columns[f"window_{name}"].to_numpy(zero_copy_only=False)
        box = columns["bbox"]
        for name, corner in zip(("west", "south", "east", "north"), _CORNERS, strict=True):
            rows[name] = box.field(corner).to_numpy(zero_copy_only=False)
        times = columns["datetime"].cast(pa.int64())
        rows["time"] = times.fill_null(int(NO_TIME)).to_numpy(zero_copy_only=False)
        rows["valid"] = columns["valid_share"].to_numpy(zero_copy_only=False)
        rows["cloud"] = columns["cloud_share"].to_numpy(zero_copy_only=False)
        wide = np.flatnonzero(rows["east"] - rows["west"] > 180)
        for row in wide.tolist():
            shape = shapely.from_wkb(columns["geometry"][row].as_py())
            bounds = Footprint(shape=shape).bounds
            assert bounds is not None
            rows["west"][row], rows["east"][row] = bounds[0], bounds[2]
    except (ValueError, TypeError, KeyError, pa.ArrowException) as error:
        raise DataError(f"{shown(part.path)} is damaged: {error}; embed its scene again") from error
    _check_rows(rows, part)
    return rows


def _check_rows(rows: NDArray[Any], part: Part) -> None:
    """`DataError` for windows and times that cannot be."""
    times = rows["time"][rows["time"] != NO_TIME]
    windows = rows["window"]
    if (windows[:, :2] < 0).any() or (windows[:, 2:] < 1).any():
        raise DataError(
            f"{shown(part.path)} is damaged: windows of no size, or before the first pixel; embed "
            "its scene again"
        )
    if ((times < _FIRST_TIME) | (times > _LAST_TIME)).any():
        raise DataError(
            f"{shown(part.path)} is damaged: times that are not of the years 1 to 9999; embed its "
            "scene again"
        )


def _outlines_of(batch: pa.RecordBatch, part: Part, first: int) -> tuple[NDArray[Any], bytes]:
    """Places and cells (n,) of outlines whose bytes follow those up to `first`; and these bytes."""
    found = np.zeros(len(batch), dtype=OUTLINE)
    try:
        shapes, cells = (
            batch.column(batch.schema.get_field_index(name)).to_pylist()
            for name in ("geometry", "cell")
        )
        shapes = [one or b"" for one in shapes]
        ends = first + np.cumsum([len(one) for one in shapes], dtype=np.int64)
        found["end"], found["first"] = ends, np.concatenate([[first], ends[:-1]])
        found["cell"] = [(one or "").encode("ascii") for one in cells]
    except (ValueError, TypeError, KeyError, pa.ArrowException) as error:
        raise DataError(f"{shown(part.path)} is damaged: {error}; embed its scene again") from error
    return found, b"".join(shapes)


_CORNERS = ("xmin", "ymin", "xmax", "ymax")


def _mapped(cache: Path, folder: Path, contents: _Contents, temporary: Any = None) -> Store:
    facts = tuple(one.facts for one in contents.parts)
    num, dim = contents.num_rows, facts[0].dim
    # Copy on write: torch takes no arrays that are read-only, and nothing is written.
    dtypes = (np.dtype(contents.dtype), ROW, OUTLINE, np.dtype(np.uint8))
    shapes: tuple[tuple[int, ...], ...] = ((num, dim), (num,), (num,), (contents.wkb_bytes,))
    vectors, rows, outlines, wkb = (
        np.asarray(np.memmap(path, dtype, "c", shape=shape) if shape[0] else np.zeros(shape, dtype))
        for path, dtype, shape in zip(_paths(cache, contents), dtypes, shapes, strict=True)
    )
    lengths = np.array([one.num_rows for one in contents.parts], dtype=np.int64)
    return Store(
        vectors=vectors,
        rows=rows,
        outlines=outlines,
        wkb=wkb,
        facts=facts,
        paths=tuple(folder / one.name for one in contents.parts),
        stamps=tuple((one.name, one.size, one.mtime_ns) for one in contents.parts),
        firsts=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        temporary=temporary,
    )
