"""Rasters on the web and in object storage, opened by GDAL in ranges; how their addresses are
signed.

Only `https`, `http` and `s3` addresses are opened. GDAL's settings for them hold while a file is
opened, and give way to those of the environment (`GDAL_HTTP_TIMEOUT`, `AWS_...`).
"""

from __future__ import annotations

import datetime as dt
import os
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from urllib.parse import SplitResult, parse_qs, urlsplit

from terralign.errors import DataError, printable
from terralign.scenes.gdal_files import plain_damage
from terralign.scenes.web import fetch_json

Signer = Callable[[str], str]
"""An address as a catalogue has it -> the one to open, with a signature or a token."""

_HTTP = {
    "GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR",
    "GDAL_HTTP_CONNECTTIMEOUT": "20",
    "GDAL_HTTP_LOW_SPEED_LIMIT": "1",
    "GDAL_HTTP_LOW_SPEED_TIME": "60",
    "GDAL_HTTP_MAX_RETRY": "4",
    "GDAL_HTTP_RETRY_DELAY": "1",
    "CPL_VSIL_CURL_USE_S3_REDIRECT": "NO",
}
"""No listing of folders, and an end to servers that do not answer."""

_CDSE = {
    "AWS_S3_ENDPOINT": "eodata.dataspace.copernicus.eu",
    "AWS_VIRTUAL_HOSTING": "FALSE",
    "AWS_HTTPS": "YES",
}
"""Where Copernicus Data Space keeps its bucket `eodata`."""

REQUESTER_PAYS = frozenset(
    {"sentinel-s1-l1c", "sentinel-s2-l1c", "sentinel-s2-l2a", "usgs-landsat"}
)
"""Buckets whose readers are charged, also where a catalogue does not state it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RemoteRaster:
    """A raster at an `http`, `https` or `s3` address. `requester_pays`, `region`: of its bucket, as
    the catalogue states them. `DataError` for any other address."""

    href: str
    signer: Signer | None = field(default=None, compare=False)
    requester_pays: bool = False
    region: str | None = None

    def __post_init__(self) -> None:
        require_address(self.href)

    @property
    def name(self) -> str:
        """The file's own name."""
        return PurePosixPath(urlsplit(self.href).path).name

    def __str__(self) -> str:
        """The address without a signature."""
        return self.href.split("?", 1)[0]

    def address(self) -> tuple[str, dict[str, str]]:
        """What GDAL opens, and its settings; signed anew each time."""
        href = (self.signer or sign)(self.href)
        parts = require_address(href)
        _require_not_expired(str(self), parts)
        if parts.scheme == "s3":
            return f"/vsis3/{parts.netloc}{parts.path}", self._of_bucket(parts.netloc)
        return f"/vsicurl/{href}", _HTTP

    def _of_bucket(self, bucket: str) -> dict[str, str]:
        settings = dict(_HTTP)
        if bucket == "eodata" and "AWS_S3_ENDPOINT" not in os.environ:
            if not has_aws_keys():
                raise DataError(
                    f"{self} is in Copernicus Data Space, which needs keys: make them at "
                    "https://eodata-s3keysmanager.dataspace.copernicus.eu, and set "
                    "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
                )
            return settings | _CDSE
        if self.region is not None:
            settings["AWS_REGION"] = self.region
        if self.requester_pays or bucket in REQUESTER_PAYS:
            if os.environ.get("AWS_REQUEST_PAYER", "").lower() != "requester":
                raise DataError(
                    f"{self}: Amazon charges whoever reads from the bucket {bucket!r}; to agree, "
                    "set AWS_REQUEST_PAYER=requester and your AWS keys"
                )
        elif not has_aws_keys():
            settings["AWS_NO_SIGN_REQUEST"] = "YES"
        return settings


def require_address(href: str) -> SplitResult:
    """The parts of an `http`, `https` or `s3` address; `DataError` for any other."""
    shown = printable(href[:200])
    try:
        parts = urlsplit(href)
        host = parts.hostname
    except ValueError as error:
        raise DataError(f"{shown!r} is no address: {error}") from error
    if parts.scheme not in ("http", "https", "s3") or not host:
        raise DataError(f"{shown!r} is not opened; expected an https, http or s3 address")
    if parts.username or parts.password or not href.isprintable() or set(href) & set(' "<>\\^`{|}'):
        raise DataError(f"{shown!r} is not opened: it holds characters or a login that none needs")
    if parts.scheme == "s3" and (parts.query or ".." in parts.path):
        raise DataError(f"{shown!r} is no address of an object in a bucket")
    return parts


_KEYS = (
    *("AWS_ACCESS_KEY_ID", "AWS_PROFILE", "AWS_NO_SIGN_REQUEST", "AWS_WEB_IDENTITY_TOKEN_FILE"),
    *("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI", "AWS_SHARED_CREDENTIALS_FILE"),
)


def has_aws_keys() -> bool:
    """Whether the environment or the home folder holds keys for S3."""
    return any(os.environ.get(name) for name in _KEYS) or os.path.exists(
        os.path.expanduser("~/.aws/credentials")
    )


def _require_not_expired(what: str, parts: SplitResult) -> None:
    """`DataError` where the signature in an address states that it has expired."""
    end = expiry_of(parts)
    if end is not None and end < dt.datetime.now(dt.UTC):
        raise DataError(
            f"{what}: its signature expired on {end:%Y-%m-%d at %H:%M} UTC; search the catalogue "
            "again, or sign its items again"
        )


def expiry_of(parts: SplitResult) -> dt.datetime | None:
    """When a signature in an address ends (Azure's `se`, Amazon's date and seconds), if stated."""
    query = {key: values[0] for key, values in parse_qs(parts.query, max_num_fields=100).items()}
    try:
        if "se" in query and "sig" in query:
            return _aware(dt.datetime.fromisoformat(query["se"].replace("Z", "+00:00")))
        if "X-Amz-Date" in query and "X-Amz-Expires" in query:
            start = dt.datetime.strptime(query["X-Amz-Date"], "%Y%m%dT%H%M%SZ")
            return _aware(start) + dt.timedelta(seconds=int(query["X-Amz-Expires"]))
        if "Expires" in query and "Signature" in query:
            return dt.datetime.fromtimestamp(int(query["Expires"]), dt.UTC)
    except (ValueError, OverflowError):
        return None
    return None


def _aware(when: dt.datetime) -> dt.datetime:
    return when if when.tzinfo else when.replace(tzinfo=dt.UTC)


def explain_remote(raster: RemoteRaster, text: str) -> str:
    """What a failed opening of a remote raster means, from what GDAL reports of it."""
    code = re.search(r"HTTP response code(?: on [^:]*)?: (\d{3})|HTTP error code ?: (\d{3})", text)
    number = (code[1] or code[2]) if code else ""
    if number in ("401", "403") or "AccessDenied" in text or "InvalidCredentials" in text:
        return (
            f"{raster}: access is denied ({number or 'no valid keys'}); where it needs a "
            "signature, it is missing or has expired: sign the item again (signer=)"
        )
    if number == "404":
        return f"{raster} not found (404)"
    return text


def explain_reading(origin: str, text: str) -> str:
    """What a failed reading of an open raster means; `origin`: its path or address."""
    if "://" not in origin:
        return f"{origin} is damaged: {plain_damage(text)}"
    return (
        f"{origin} cannot be read further: {text}; where its signature has expired meanwhile, or "
        "the server failed, run the same again"
    )


TOKENS = "https://planetarycomputer.microsoft.com/api/sas/v1/token"
"""Where Planetary Computer gives tokens for reading: `/ACCOUNT/CONTAINER`."""

_BLOB = re.compile(r"([a-z0-9]{3,24})\.blob\.core\.windows\.net")
_tokens: dict[tuple[str, str], tuple[str, dt.datetime]] = {}
_lock = threading.Lock()


def sign(href: str) -> str:
    """The address that is opened for a catalogue's: with a token of Planetary Computer where it
    lies in Azure's storage and has none; others as they are."""
    parts = require_address(href)
    found = _BLOB.fullmatch(parts.hostname or "")
    container = parts.path.lstrip("/").split("/", 1)[0]
    if found is None or "sig=" in parts.query or not container:
        return href
    return f"{href}{'&' if parts.query else '?'}{_token(found[1], container)}"


def _token(account: str, container: str) -> str:
    """A token for a container; the same one until five minutes before it ends."""
    soon = dt.datetime.now(dt.UTC) + dt.timedelta(minutes=5)
    with _lock:
        token, end = _tokens.get((account, container), ("", soon))
        if end <= soon:
            answer = fetch_json(f"{TOKENS}/{account}/{container}")
            token, end = _read_token(answer, account)
            _tokens[account, container] = (token, end)
        return token


def _read_token(answer: object, account: str) -> tuple[str, dt.datetime]:
    token = answer.get("token") if isinstance(answer, dict) else None
    if not isinstance(token, str) or not re.fullmatch(r"[\w%&=.:+/-]+", token):
        raise DataError(f"Planetary Computer gave no token for the storage account {account!r}")
    end = expiry_of(urlsplit(f"https://host/?{token}"))
    return token, end or dt.datetime.now(dt.UTC)
