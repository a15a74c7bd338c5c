"""Files from the web: resumed where a connection was cut, held to the catalog's size and hash."""

from __future__ import annotations

import hashlib
import http.client
import os
import re
import ssl
import time
import urllib.error
from pathlib import Path
from typing import IO, Any

from terralign.datasets.facts import RemoteFile
from terralign.errors import DataError, first_line, printable
from terralign.files import as_bytes, check_free_space, growing_file
from terralign.limits import limit
from terralign.progress import Progress
from terralign.scenes.web import name_of, open_address

_CHUNK = 2**18
_MEGABYTE = 10**6

_ATTEMPTS = 4
"""Answers in a row that bring nothing new, after which the download ends, to be resumed."""

_WAIT_S = 1.0
"""Seconds to wait after one such answer; twice as long after each further one."""

_BROKEN_OFF = (
    *(http.client.HTTPException, urllib.error.URLError, ssl.SSLError),
    *(TimeoutError, ConnectionError),
)

_BEYOND_ITS_END = 416
_PASSING = (408, 425, 429, 500, 502, 503, 504)
"""Errors of a server that it may get over."""


def download(file: RemoteFile, part: Path) -> None:
    """Fetch `file` into `part`, after what an earlier download has left there, and check its hash.

    `DataError` where it is not found, is another file than the catalog states, or breaks off (what
    came of it is kept); `StorageError` for a full disk.
    """
    with growing_file(part) as target:
        try:
            _download(file, target)
        finally:
            target.flush()
            if not os.fstat(target.fileno()).st_size:
                part.unlink()


def _download(file: RemoteFile, target: IO[bytes]) -> None:
    have = target.tell()
    if file.num_bytes is not None:
        check_free_space(Path(target.name).parent, max(0, file.num_bytes - have))
    most = max(1, (file.num_bytes or limit("text_bytes")) // _MEGABYTE)
    with Progress(file.name, total=most, done=have // _MEGABYTE, unit="megabyte") as progress:
        _receive_all(file, target, progress)
    target.flush()
    os.fsync(target.fileno())
    fault = hash_fault(file, target)
    if fault:
        _empty(target)
        raise DataError(
            f"{name_of(file.url)}: {fault}; it was discarded, run the same command again"
        )


def hash_fault(file: RemoteFile, opened: IO[bytes]) -> str:
    """Both hashes in words where an open file is not the published one; else an empty text."""
    kind, expected = file.digest
    opened.seek(0)
    found = hashlib.new(kind, usedforsecurity=False)
    while chunk := opened.read(_CHUNK):
        found.update(chunk)
    if found.hexdigest() == expected:
        return ""
    name = {"sha256": "SHA-256", "md5": "MD5"}[kind]
    return f"its {name} is {found.hexdigest()}, expected {expected}"


def _receive_all(file: RemoteFile, target: IO[bytes], progress: Progress) -> None:
    failures = 0
    while file.num_bytes is None or target.tell() < file.num_bytes:
        before = target.tell()
        try:
            if _receive(file, target, progress):
                return
            reason = "the connection was closed"
        except urllib.error.HTTPError as error:
            error.close()
            reason = f"it answers {error.code} {printable(str(error.reason))[:100]}"
            if error.code == _BEYOND_ITS_END and before:
                _empty(target)
            elif error.code not in _PASSING:
                raise DataError(
                    f"{name_of(file.url)}: {reason}; if the file has moved, fetch it by hand "
                    f"into {Path(target.name).parent}"
                ) from error
        except _BROKEN_OFF as error:
            reason = first_line(error)
        failures = 0 if target.tell() > before else failures + 1
        if failures == _ATTEMPTS:
            raise DataError(
                f"{name_of(file.url)} broke off after {as_bytes(target.tell())} ({reason}); run "
                "the same command again to resume"
            )
        time.sleep(_WAIT_S * 2 ** (failures - 1) if failures else 0)


def _receive(file: RemoteFile, target: IO[bytes], progress: Progress) -> bool:
    """Append one answer of the server to the target; whether the file is whole then."""
    have = target.tell()
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={have}-"} if have else {})
    with open_address(file.url, headers=headers) as answer:
        first, total = _span(answer)
        if first != have:  # a server that knows no ranges begins anew
            if first != 0:
                raise DataError(f"{name_of(file.url)} answers from byte {first}, expected {have}")
            _empty(target)
            progress.advance(-(have // _MEGABYTE))
        if file.num_bytes is not None and total not in (None, file.num_bytes):
            raise DataError(
                f"{name_of(file.url)} has {total:,} bytes, expected {file.num_bytes:,}: the "
                "publisher has changed the file"
            )
        most = limit("text_bytes") if file.num_bytes is None else file.num_bytes
        while chunk := answer.read(_CHUNK):
            megabytes = target.tell() // _MEGABYTE
            if target.tell() + len(chunk) > most:
                raise DataError(f"{name_of(file.url)} sends more than {most:,} bytes")
            target.write(chunk)
            progress.advance(target.tell() // _MEGABYTE - megabytes)
    whole = total if file.num_bytes is None else file.num_bytes
    return whole is None or target.tell() >= whole


def _empty(target: IO[bytes]) -> None:
    target.seek(0)
    target.truncate()


def _span(answer: Any) -> tuple[int, int | None]:
    """The first byte that an answer holds, and the number of bytes of the whole file."""
    if answer.status == 206:
        found = re.fullmatch(
            r"bytes (\d{1,18})-\d{1,18}/(\d{1,18}|\*)", answer.headers.get("Content-Range", "")
        )
        if found is None:
            raise http.client.HTTPException("an answer in part that does not state which")
        return int(found[1]), None if found[2] == "*" else int(found[2])
    length = answer.headers.get("Content-Length", "")
    return 0, int(length) if re.fullmatch(r"\d{1,18}", length) else None
