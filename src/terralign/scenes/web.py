"""Addresses of the web, and JSON from them, bounded in size and time."""

from __future__ import annotations

import http.client
import json
import urllib.error
import urllib.request
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from terralign.errors import DataError, first_line, printable
from terralign.files import parse_json
from terralign.limits import limit, require

TIMEOUT_S = 60
"""Seconds that a server may take to answer."""


def open_address(
    url: str, *, data: bytes | None = None, headers: Mapping[str, str] | None = None
) -> Any:
    """The answer of an http or https address, to be read and closed; `data`: is posted.

    `DataError` for any other address, also where it is redirected to one, or from https to http.
    Else as `urllib`: `HTTPError` for an answer that is an error, `OSError` without an answer.
    """
    try:
        known = urlsplit(url).scheme in ("http", "https")
    except ValueError:
        known = False
    if not known:
        raise DataError(f"{name_of(url)!r} is no http or https address")
    all_headers = {"User-Agent": "terralign", **(headers or {})}
    request = urllib.request.Request(url, data=data, headers=all_headers)
    return _OPENER.open(request, timeout=TIMEOUT_S)


def name_of(url: str) -> str:
    """An address as errors name it: printable, without its query, which may hold a signature."""
    return printable(url.split("?", 1)[0])


def fetch_json(url: str, body: Any = None, *, headers: dict[str, str] | None = None) -> Any:
    """The JSON at an http or https address; `body`: is posted as JSON.

    `DataError` where the server does not answer so, or with more than the limit `json_bytes`.
    """
    what = name_of(url)
    data = None if body is None else json.dumps(body).encode()
    all_headers = {"Accept": "application/geo+json, application/json"}
    if data is not None:
        all_headers["Content-Type"] = "application/json"
    try:
        with open_address(url, data=data, headers={**all_headers, **(headers or {})}) as answer:
            content = answer.read(limit("json_bytes") + 1)
            length = answer.headers.get("Content-Length", "")
    except urllib.error.HTTPError as error:
        raise DataError(f"{what} answers {error.code} {printable(str(error.reason))}") from error
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise DataError(f"{what} does not answer: {first_line(error)}") from error
    if length.isdecimal() and len(content) < min(int(length), limit("json_bytes")):
        raise DataError(f"{what} broke off after {len(content)} of {length} bytes; try again")
    require("json_bytes", len(content), f"{what} answers with")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{what} answers with something other than JSON; {_ITEMS}") from error
    if text.lstrip()[:1] not in ("{", "["):
        raise DataError(f"{what} answers with a page or text, not with JSON; {_ITEMS}")
    return parse_json(text, name=what, fault=DataError)


_ITEMS = "expected STAC items (a raster is opened as an asset of one, or once it is downloaded)"


class _OnlyHttp(urllib.request.HTTPRedirectHandler):
    """Redirections to http and https alone, and from https to https."""

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str):  # type: ignore[no-untyped-def]
        schemes = ("https",) if urlsplit(req.full_url).scheme == "https" else ("http", "https")
        if urlsplit(newurl).scheme not in schemes:
            if fp is not None:
                fp.close()
            raise DataError(
                f"{name_of(req.full_url)} redirects to {printable(newurl[:200])!r}; expected an "
                f"address of {' or '.join(schemes)}"
            )
        return super().redirect_request(req, fp, code, msg, headers, newurl)


_OPENER = urllib.request.build_opener(_OnlyHttp)
