"""JSON from the web, bounded in size and time."""

from __future__ import annotations

import http.client
import json
import urllib.error
import urllib.request
from typing import Any
from urllib.parse import urlsplit

from terralign.errors import DataError, first_line, printable
from terralign.files import parse_json
from terralign.limits import limit, require

TIMEOUT_S = 60
"""Seconds that a server may take to answer."""


def fetch_json(url: str, body: Any = None, *, headers: dict[str, str] | None = None) -> Any:
    """The JSON at an http or https address; `body`: is posted as JSON.

    `DataError` where the server does not answer so, or with more than the limit `json_bytes`.
    """
    what = printable(url.split("?", 1)[0])
    try:
        known = urlsplit(url).scheme in ("http", "https")
    except ValueError:
        known = False
    if not known:
        raise DataError(f"{what!r} is no http or https address")
    data = None if body is None else json.dumps(body).encode()
    all_headers = {"Accept": "application/geo+json, application/json", "User-Agent": "terralign"}
    if data is not None:
        all_headers["Content-Type"] = "application/json"
    request = urllib.request.Request(url, data=data, headers={**all_headers, **(headers or {})})
    try:
        with _OPENER.open(request, timeout=TIMEOUT_S) as answer:
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
        raise DataError(f"{what} answers with something other than JSON") from error
    return parse_json(text, name=what, fault=DataError)


class _OnlyHttp(urllib.request.HTTPRedirectHandler):
    """Redirections to http and https alone."""

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str):  # type: ignore[no-untyped-def]
        if urlsplit(newurl).scheme not in ("http", "https"):
            raise DataError(f"{printable(req.full_url)} redirects to {printable(newurl[:200])!r}")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


_OPENER = urllib.request.build_opener(_OnlyHttp)
