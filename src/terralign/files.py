"""Files: atomic writes, content hashes, and text as other programs and systems save it."""

from __future__ import annotations

import codecs
import difflib
import errno
import hashlib
import itertools
import json
import logging
import os
import re
import shutil
import stat
import tomllib
import unicodedata
import zipfile
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import IO, Any

from terralign.errors import (
    MAX_SHOWN,
    DiskFullError,
    StorageError,
    TerralignError,
    first_line,
    shown,
)
from terralign.limits import beyond, limit, require

try:
    import fcntl
except ImportError:
    raise ImportError(
        "terralign runs on Linux and macOS; Windows is not supported, but its Subsystem for Linux "
        "(WSL) is"
    ) from None

logger = logging.getLogger(__name__)

HASH_LENGTH = 16
"""Hex digits kept of a SHA-256 where it serves as a name."""

MAX_NAME_BYTES = 200
"""Of a name that becomes a folder's: file systems take 255, and partial files add to it."""

_KEY_PART = r"""(?:[\w-]++|"[^"\n]*+"|'[^'\n]*+')"""
_DOTTED_KEY = re.compile(rf"(?<![\w-]){_KEY_PART}(?:[ \t]*+\.[ \t]*+{_KEY_PART})++")
"""A dotted key of TOML: what `tomllib` takes for one grows with the square of its parts."""

_BYTE_ORDER_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),  # before UTF-16, whose mark is the beginning of this one
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)


@contextmanager
def atomic_path(path: Path, *, alone: bool = False) -> Iterator[Path]:
    """A path beside `path` to write to; renamed over it when the block ends well.

    When the block raises, nothing of `path` has changed and the part written is removed. A link in
    the place of `path` is replaced, not followed. A full or read-only disk raises `StorageError`.
    `alone`: in a folder of its own, for libraries that write beside a file and rename it themselves
    (safetensors): what is left of theirs is cleared with the folder.
    """
    path = Path(path)
    partial = _partial_of(path)
    begun = partial / path.name if alone else partial
    flags = os.O_RDONLY | os.O_DIRECTORY if alone else os.O_WRONLY | os.O_CREAT | os.O_EXCL
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _begun(partial, flags):
            begun.touch()
            usual = begun.stat().st_mode  # some libraries let the owner alone read their files
            yield begun
            with open(begun, "rb") as written:
                os.fsync(written.fileno())
            begun.chmod(stat.S_IMODE(usual))
            os.replace(begun, path)
            if alone:
                shutil.rmtree(partial, ignore_errors=True)
    except BaseException as error:
        with suppress(OSError):
            _remove(partial)
        storage_error = _as_storage_error(error, path, begun)
        if storage_error is not None:
            raise storage_error from error
        raise


@contextmanager
def growing_file(path: Path) -> Iterator[IO[bytes]]:
    """A file that is written piece by piece, over several processes one after the other: open at
    its end, for this one alone. A full or read-only disk, or another process, is a `StorageError`.
    """
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        while True:
            with open(path, "r+b", opener=lambda name, _: os.open(name, flags, 0o666)) as file:
                if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                    raise StorageError(f"{path} is not a file; delete it")
                _take(file.fileno(), path.parent, wait=False)
                if _is_at(file.fileno(), path):  # or another process has finished and removed it
                    file.seek(0, os.SEEK_END)
                    yield file
                    return
    except Exception as error:
        storage_error = _as_storage_error(error, path, path)
        if storage_error is not None:
            raise storage_error from error
        raise


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """A new folder beside `path`, which takes its place when the block ends well.

    When the block raises, nothing of `path` has changed; what is left of a folder that is replaced
    is its copy `.NAME.PROCESS.old`, where the process is killed between two renames.
    """
    partial = _partial_of(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _begun(partial, os.O_RDONLY | os.O_DIRECTORY):
            yield partial
            if not path.exists():
                os.replace(partial, path)
                return
            old = partial.with_suffix(".old")
            os.replace(path, old)
            try:
                os.replace(partial, path)
            except OSError:
                os.replace(old, path)
                raise
            shutil.rmtree(old, ignore_errors=True)
    except OSError as error:
        raise StorageError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


_PARTIAL = re.compile(r"\..+\.\d+\.partial")


def _partial_of(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}.partial")


@contextmanager
def _begun(partial: Path, flags: int) -> Iterator[int]:
    """A new file, or with `O_DIRECTORY` a folder, that is locked until the block ends: so others
    know that its process is alive. What has its name is of a process that is gone."""
    while True:
        _remove(partial)
        if flags & os.O_DIRECTORY:
            partial.mkdir()
        lock = os.open(partial, flags | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
        try:
            with suppress(OSError):  # disks without locks
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_at(lock, partial):  # or it was cleared before it was locked
                yield lock
                return
        finally:
            os.close(lock)


def clear_partials(folder: Path) -> None:
    """Remove what killed processes left of files and folders that they had begun below `folder`.

    What a living process writes is locked, and stays.
    """
    for parent, folders, files in os.walk(folder):
        for name in filter(_PARTIAL.fullmatch, [*folders, *files]):
            _clear(Path(parent, name))
        folders[:] = [name for name in folders if not _PARTIAL.fullmatch(name)]


def clear_partials_of(path: Path) -> None:
    """The same of what was begun for one file or folder."""
    if path.parent.is_dir():
        for name in filter(_PARTIAL.fullmatch, os.listdir(path.parent)):
            if name.startswith(f".{path.name}."):
                _clear(path.with_name(name))


def _clear(path: Path) -> None:
    with suppress(OSError):
        if path.is_symlink() or not _is_locked(path):
            _remove(path)


def _is_locked(path: Path) -> bool:
    lock = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(lock)
    return False


def _is_at(descriptor: int, path: Path) -> bool:
    """Whether an open file is still the one at `path`."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.lstat(path))
    except FileNotFoundError:
        return False


def _remove(path: Path) -> None:
    """A file, a link (not what it leads to) or a folder, where there is one."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _as_storage_error(error: BaseException, path: Path, begun: Path) -> StorageError | None:
    """A failed write: OSErrors of the disk, and the libraries' own wrapping of them.

    None for a fault of something else, such as an input that is missing.
    """
    if isinstance(error, StorageError) or not isinstance(error, Exception):
        return None
    text = str(error)
    full = (isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)) or any(
        sign in text
        for sign in ("No space left", "os error 28", "PytorchStreamWriter", "inline_container")
    )
    if full:
        return DiskFullError(
            f"no space left while writing {path} ({_free_mb(path)} MB free); "
            "free some space and run the same command again"
        )
    if isinstance(error, OSError) and (
        error.filename is None or Path(str(error.filename)) in (path, begun, *begun.parents)
    ):
        return StorageError(f"cannot write {path}: {error.strerror or error}")
    return None


def _free_mb(path: Path) -> int:
    folder = path.parent
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free // 1_000_000


def write_text(path: Path, text: str) -> None:
    """Write `text` as UTF-8, atomically."""
    with atomic_path(path) as partial:
        partial.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, atomically."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_text(
    path: Path,
    *,
    what: str = "",
    fault: type[TerralignError] = StorageError,
    size: str = "text_bytes",
) -> str:
    """A file's text, decoded as `decode_text` does it. `size`: the limit of its bytes.

    `fault`, which names `what` ("recipe") and the file, where it is missing, too large or no text;
    with `missing_hint` where there is a `what`, which says that a user named the file.
    """
    name = f"{what} {path}".strip()
    try:
        with open(path, "rb", opener=_open_at_once) as file:
            data = file.read(limit(size) + 1)
    except OSError as error:
        is_hinted = what and isinstance(error, FileNotFoundError)
        hint = missing_hint(path) if is_hinted else ""
        raise fault(f"cannot read {name}: {error.strerror or error}{hint}") from error
    if len(data) > limit(size):
        raise fault(beyond(size, None, f"{name} has"))
    try:
        return decode_text(data)
    except ValueError as error:
        raise fault(f"cannot read {name}: {error}") from error


def _open_at_once(path: str, flags: int) -> int:
    """Opens a named pipe that nothing writes to as an empty file, where `open` would wait."""
    descriptor = os.open(path, flags | os.O_NONBLOCK)
    os.set_blocking(descriptor, True)  # of one that is written to, everything is read
    return descriptor


def decode_text(data: bytes) -> str:
    """Text of UTF-8, or of UTF-8, UTF-16 or UTF-32 with a byte order mark.

    Line ends (CRLF, CR) become LF; a Ctrl-Z at the end, as DOS programs leave it, is dropped.
    `ValueError` names the line and the byte that are not UTF-8.
    """
    encoding = "utf-8"
    for mark, marked in _BYTE_ORDER_MARKS:
        if data.startswith(mark):
            data, encoding = data[len(mark) :], marked
            break
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        raise ValueError(_not_decoded(data, encoding, error.start)) from error
    if "\0" in text:
        raise ValueError("it holds zero bytes: no text, or UTF-16 without a byte order mark")
    return text.replace("\r\n", "\n").replace("\r", "\n").removesuffix("\x1a")


def _not_decoded(data: bytes, encoding: str, position: int) -> str:
    if encoding != "utf-8":
        return f"it begins as {encoding.upper()} text and is damaged; save it as UTF-8"
    byte = data[position : position + 1]
    if b"\0" in data:
        return "it is not UTF-8 text; save it as UTF-8"
    line = data[:position].replace(b"\r\n", b"\n").replace(b"\r", b"\n").count(b"\n") + 1
    letter = byte.decode("cp1252", errors="ignore")
    meant = f", {letter!r} in Windows-1252" if letter else ""
    return f"it is not UTF-8 text: line {line} has the byte 0x{byte.hex()}{meant}; save it as UTF-8"


def read_lines(
    path: Path, *, what: str = "", fault: type[TerralignError] = StorageError
) -> list[str]:
    """The lines of a text file, without their ends; as `read_text`."""
    return read_text(path, what=what, fault=fault).removesuffix("\n").split("\n")


def read_json(
    path: Path,
    *,
    what: str = "",
    fault: type[TerralignError] = StorageError,
    size: str = "json_bytes",
) -> Any:
    """The value of a JSON file; `fault` names one that is missing, too large or damaged.

    `size`: the limit of its bytes.
    """
    return parse_json(
        read_text(path, what=what, fault=fault, size=size),
        name=f"{what} {path}".strip(),
        fault=fault,
    )


def read_kept_json(path: Path, *, todo: str) -> Any:
    """The value of a JSON file that terralign wrote; `todo`: what to do where it is damaged."""
    try:
        return read_json(path)
    except StorageError as error:
        if isinstance(error.__cause__, OSError):
            raise
        raise StorageError(f"{error}; {todo}") from error


def parse_json(text: str, *, name: str, fault: type[TerralignError] = StorageError) -> Any:
    """The value of a JSON text. `name`: what it is and where it is from, for `fault`.

    `fault` where it is damaged, nested too deeply, of more values than the limit, or holds half of
    a surrogate pair, which no file can be written with.
    """
    num_values = text.count(",") + text.count("[") + text.count("{")
    require("json_values", num_values, f"{name} holds", fault=fault)
    try:
        return _whole_json(text)
    except (ValueError, RecursionError) as error:
        raise fault(f"{name} is not valid JSON: {first_line(error)}") from error


def _whole_json(text: str) -> Any:
    value = json.loads(text)
    if re.search(r"\\u[dD][89a-fA-F]", text):
        json.dumps(value, ensure_ascii=False).encode()
    return value


def set_aside(path: Path, reason: object) -> None:
    """Rename a damaged file that can be made again to `NAME.damaged`, with a warning.

    A file that may not be read is not damaged: `reason` is raised again.
    """
    if isinstance(reason, Exception) and isinstance(reason.__cause__, PermissionError):
        raise reason
    logger.warning("%s is damaged (%s); it is set aside and made again", path, reason)
    path.replace(path.with_name(f"{path.name}.damaged"))


def read_toml(
    path: Path, *, what: str = "", fault: type[TerralignError] = StorageError
) -> dict[str, Any]:
    """The values of a TOML file; `fault` as for `read_text`, or with the line that is no TOML."""
    return parse_toml(
        read_text(path, what=what, fault=fault, size="toml_bytes"),
        name=f"{what} {path}".strip(),
        fault=fault,
    )


def parse_toml(
    text: str, *, name: str, fault: type[TerralignError] = StorageError
) -> dict[str, Any]:
    """The values of a TOML text. `name`: what it is and where it is from, for `fault`."""
    most = limit("toml_key_parts")
    if text.count(".") >= most:  # a key lies on one line; few lines have so many
        lines = [line for line in text.split("\n") if line.count(".") >= most]
        keys = (key for line in lines for key in _DOTTED_KEY.findall(line))
        num_parts = max((key.count(".") + 1 for key in keys), default=1)
        require("toml_key_parts", num_parts, f"{name} has a key of", fault=fault)
    try:
        values = tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise fault(f"{name} is not valid TOML: {error}{_typographic(text, str(error))}") from error
    require_plain(values, name=name, fault=fault)
    return values


def require_plain(value: Any, *, name: str, fault: type[TerralignError]) -> None:
    """Raise `fault` where values of TOML are nested too deeply, or hold integers beyond 64 bits."""
    level, depth, most = [value], 0, limit("toml_levels")
    while level:
        if depth > most:
            require("toml_levels", depth, f"{name} is nested in", fault=fault)
        inner: list[Any] = []
        for one in level:
            kind = type(one)
            if kind is dict:
                inner += one.values()
            elif kind is list:
                inner += one
            elif kind is int and not -(2**63) <= one < 2**63:
                raise fault(f"{name} holds an integer of more than 64 bits; write a smaller one")
        level, depth = inner, depth + 1


def _typographic(text: str, error: str) -> str:
    """Names a character that word processors and web pages put in place of a plain one."""
    place = re.search(r"at line (\d+)", error)
    lines = text.split("\n")
    numbers = [int(place[1])] if place else range(1, len(lines) + 1)
    for number in numbers:
        for letter in lines[number - 1] if number <= len(lines) else "":
            quote = letter in "\u2018\u2019\u201a\u201c\u201d\u201e\u00ab\u00bb\u2032\u2033"
            space = letter == "\ufeff" or (letter != " " and unicodedata.category(letter) == "Zs")
            if quote or space or letter in "\u200b\u2013\u2014\u2212":
                named = f"U+{ord(letter):04X} {unicodedata.name(letter, '')}".strip()
                plain = "quote" if quote else "space" if space else "character"
                return f"; line {number} holds {named}: write a plain {plain}"
    return ""


def shipped_names(folder: str) -> list[str]:
    """The names of the TOML files in a folder of the package ("recipes"), sorted."""
    files = (path.name for path in resources.files("terralign").joinpath(folder).iterdir())
    return sorted(
        name.removesuffix(".toml")
        for name in files
        if name.endswith(".toml") and not name.startswith("_")
    )


def read_shipped(folder: str, name: str) -> dict[str, Any]:
    """The values of the package's own TOML file `name` in `folder`."""
    file = resources.files("terralign").joinpath(folder, f"{name}.toml")
    return tomllib.loads(file.read_text(encoding="utf-8"))


def hash_file(path: Path) -> str:
    """SHA-256 of a file's bytes, as 64 hex digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def zip_index_bytes(file: IO[bytes]) -> int:
    """Size of the index of a zip archive, which `zipfile.ZipFile` reads whole.

    Found as `zipfile` finds it, with ZIP64, and so before it is read; `BadZipFile` where it is
    missing.
    """
    end = zipfile._EndRecData(file)  # type: ignore[attr-defined]
    if end is None:
        raise zipfile.BadZipFile("it is cut off, or something else")
    return int(end[_ZIP_INDEX_BYTES])


_ZIP_INDEX_BYTES = 5
"""Where `zipfile` keeps that size, among what it reads at an archive's end."""


def hash_json(value: Mapping[str, Any] | list[Any]) -> str:
    """Name of a JSON value: `HASH_LENGTH` hex digits of the SHA-256 of its canonical form."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()[:HASH_LENGTH]


def as_bytes(number: int, *, none: str = "0 bytes") -> str:
    """A number of bytes for people: "94.7 MB"; `none`: for 0."""
    for unit, size in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if number >= size:
            return f"{number / size:.3g} {unit}"
    return f"{number} bytes" if number else none


def check_free_space(folder: Path, num_bytes: int) -> None:
    """Raise `DiskFullError` where the disk of `folder` has less than `num_bytes` free."""
    free = _free_mb(folder / "x")
    if free * 1_000_000 < num_bytes:
        raise DiskFullError(
            f"{folder} needs {num_bytes // 1_000_000} MB but its disk has {free} MB free; "
            "free some space or choose another folder"
        )


_RESERVED = re.compile(r"(?:con|prn|aux|nul|com\d|lpt\d)(?:\..*)?", re.IGNORECASE)
"""Names that Windows has for devices."""


def name_of_folder(name: str) -> str:
    """The name, where a folder may have it on every system; else `ValueError`, which says why."""
    fault = ""
    if not name or name[0] in ". " or name[-1] in ". ":
        fault = "begins or ends with a dot or a space, or is empty"
    elif "/" in name or "\\" in name or not name.isprintable():
        fault = "holds a slash, a backslash or a control character"
    elif len(name.encode()) > MAX_NAME_BYTES:
        fault = f"is longer than {MAX_NAME_BYTES} bytes"
    elif _RESERVED.fullmatch(name):
        fault = "is the name of a device on Windows"
    if fault:
        short = name if len(name) <= 40 else f"{name[:40]}..."
        raise ValueError(f"{short!r} cannot be the name of a folder: it {fault}")
    return name


def require_folder(folder: Path) -> None:
    """Raise `StorageError` where nothing can be written into `folder`, which need not exist yet."""
    fault = ""
    try:
        for path in (folder, *folder.parents):
            if path.is_symlink() and not path.exists():
                fault = f"{path} is a link to nothing"
            elif path.exists() and not path.is_dir():
                fault = f"{path} is a file, not a folder"
            elif path.exists() and not os.access(path, os.W_OK | os.X_OK):
                fault = f"{path} is read-only"
            if fault or path.exists():
                break
    except (OSError, ValueError) as error:
        fault = first_line(error) if isinstance(error, ValueError) else str(error.strerror)
    if fault:
        raise StorageError(f"cannot write into {shown(folder)}: {fault}; choose another folder")


def not_found(path: Path | str) -> str:
    """What errors say of a path that does not exist, with `missing_hint`."""
    return f"{shown(path)} not found{missing_hint(path)}"


def missing_hint(path: Path | str) -> str:
    """What `find_missing` knows, as it follows a path in an error; "" where that is nothing."""
    return find_missing(path).hint


def hint_of_name(name: str) -> str:
    """`missing_hint` of what may be a name or a path; "" for a plain word."""
    return missing_hint(name) if os.sep in name or Path(name).suffix else ""


@dataclass(frozen=True, slots=True)
class Missing:
    """What is known of a path that does not exist.

    `folder`: the first of its folders that does not exist. `file`: what is a file there, where a
    folder should be. `near`: the path beside the missing one that was probably meant. `is_address`:
    it is an address, or a name of GDAL's, which is no path.
    """

    folder: Path | None = None
    file: Path | None = None
    near: Path | None = None
    is_address: bool = False

    def __str__(self) -> str:
        if self.is_address:
            return (
                "expected a path of this machine: addresses, and names that GDAL alone knows, are "
                "opened as assets of STAC items only"
            )
        if self.file is not None:
            return f"{shown(self.file)} is a file, not a folder"
        parts = [] if self.folder is None else [f"there is no folder {shown(self.folder)}"]
        parts += [] if self.near is None else [f"did you mean {shown(self.near)}?"]
        return "; ".join(parts)

    @property
    def hint(self) -> str:
        """The same in brackets; "" where nothing is known."""
        return f" ({self})" if str(self) else ""


def find_missing(path: Path | str) -> Missing:
    """Of a path that does not exist the folder that is missing, and the name beside it that was
    probably meant.

    A folder's first `_MAX_NAMES` names are looked at. Names whose digits, codes (`T33NZA`, `S2A`)
    or polarisations differ are of different things (bands, dates, tiles), not slips. Nothing is
    known of an address, or of a home folder that the shell did not fill in.
    """
    if "://" in str(path) or str(path).startswith("~"):
        return Missing()
    if _ADDRESS.match(str(path)):
        return Missing(is_address=True)
    wanted = Path(path)
    try:
        while not wanted.parent.is_dir() and wanted != wanted.parent:
            wanted = wanted.parent
        is_file = wanted != Path(path) and wanted.exists()
        with os.scandir(wanted.parent) as entries:
            names = [one.name for one in itertools.islice(entries, _MAX_NAMES)]
    except (OSError, ValueError):  # a folder that may not be listed, a name that is too long
        return Missing()
    if is_file:
        return Missing(file=wanted)
    near = _near_name(wanted.name, names)
    return Missing(
        folder=None if wanted == Path(path) else wanted,
        near=wanted.with_name(near) if near else None,
    )


_ADDRESS = re.compile(
    r"[A-Za-z][A-Za-z0-9+.-]+:/|/vsi\w+/|(?:GTIFF_\w+|NETCDF|HDF[45]|SENTINEL2_\w+|ZARR|GPKG):"
)
"""`https:/...` (a path has no `//`), `/vsizip/...` and `NETCDF:a.nc:B4`."""

_MAX_NAMES = 1000


def _near_name(given: str, names: Iterable[str]) -> str | None:
    """Of names in a folder the one that is most like `given`: by its letters, in any case, or with
    an ending that was left out."""
    plain = given.casefold()
    best: tuple[float, str | None] = (_LEAST_LIKENESS, None)
    if not 0 < len(given) <= MAX_SHOWN:
        return None
    for name in sorted(names):
        other = name.casefold()
        if len(name) > MAX_SHOWN or (name[0] == "." and given[0] != "."):
            continue
        if other == plain or Path(other).stem == plain:
            return name
        if _codes_in(plain) != _codes_in(other):
            continue
        first, second = plain, other
        if Path(plain).suffix == Path(other).suffix:  # which would make short names alike
            first, second = Path(plain).stem, Path(other).stem
        likeness = difflib.SequenceMatcher(None, first, second).ratio()
        if likeness > best[0]:
            best = (likeness, name)
    return best[1]


_LEAST_LIKENESS = 0.7


def _codes_in(name: str) -> list[str]:
    """The words of a name that tell things apart: those with digits, and polarisations."""
    words = re.findall(r"[^\W_]+", name)
    return [one for one in words if one in _POLARISATIONS or re.search(r"\d", one)]


_POLARISATIONS = frozenset({"vv", "vh", "hh", "hv"})


@contextmanager
def claimed(
    folder: Path, *, begins_with: Collection[str] = (), wait: bool = False
) -> Iterator[None]:
    """The folder for this process alone; what killed processes left in it is cleared.

    Where another process has it, `StorageError`; with `wait`, a line in the log and its turn. A
    folder that was made for a block that raises a `TerralignError` is removed again where it holds
    nothing but empty files and those named in `begins_with`.
    """
    require_folder(folder)
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        with _locked(folder, wait=wait):
            clear_partials(folder)
            try:
                yield
            except TerralignError:
                if folder in made:
                    _remove_unused(folder, {".lock", *begins_with})
                raise
    finally:
        for path in made:
            with suppress(OSError):
                path.rmdir()  # where it is empty


@contextmanager
def _locked(folder: Path, *, wait: bool) -> Iterator[None]:
    path = folder / ".lock"
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    while True:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            lock = os.open(path, flags, 0o666)
        except OSError as error:
            if os.path.lexists(path):
                raise StorageError(
                    f"{path} cannot be opened as a file ({error.strerror}); delete it"
                ) from error
            raise StorageError(f"cannot write into {folder}: {error.strerror}") from error
        try:
            if not stat.S_ISREG(os.fstat(lock).st_mode):
                raise StorageError(f"{path} is not a file; delete it")
            _take(lock, folder, wait=wait)
            if _is_at(lock, path):  # or its holder removed the folder that was made for it
                yield
                return
        finally:
            os.close(lock)


def _take(lock: int, folder: Path, *, wait: bool) -> None:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return
    except BlockingIOError as error:
        if not wait:
            raise StorageError(f"another process is running in {folder}; wait for it") from error
    except OSError as error:
        raise StorageError(f"cannot lock {folder}: {error.strerror}") from error
    logger.info("waiting for another process, which works in %s", folder)
    fcntl.flock(lock, fcntl.LOCK_EX)  # signals interrupt it


def _remove_unused(folder: Path, names: Collection[str]) -> None:
    files = [path for path in folder.rglob("*") if path.is_symlink() or not path.is_dir()]
    if all(path.name in names or path.lstat().st_size == 0 for path in files):
        shutil.rmtree(folder, ignore_errors=True)
