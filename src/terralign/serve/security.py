"""What stands before the application: who may ask, how much, and what every answer says.

Refused here: names of hosts that the server is not called by (DNS rebinding), requests without the
token, addresses and bodies that are too long or too slow, unknown parameters. What is refused, and
every fault, is one line of JSON. Logged is the path alone: a query may hold the token.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import logging
import time
from collections.abc import Awaitable, Callable, MutableMapping
from http import HTTPStatus
from http.cookies import CookieError, SimpleCookie
from typing import Any
from urllib.parse import parse_qsl

from terralign.errors import TerralignError, printable
from terralign.serve.served import as_json
from terralign.serve.settings import ServeSettings

logger = logging.getLogger(__name__)

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Message, Receive, Send], Awaitable[None]]

CONTENT_SECURITY_POLICY = "; ".join(
    (
        "default-src 'none'", "script-src 'self'", "worker-src 'self'", "style-src 'self'",
        "img-src 'self' data: blob:", "connect-src 'self'", "base-uri 'none'",
        "form-action 'none'", "frame-ancestors 'none'",
    )
)  # fmt: skip

HEADERS = {
    "content-security-policy": CONTENT_SECURITY_POLICY,
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
}
"""Of every answer."""

MIN_TOKEN = 8
MAX_TOKEN = 200
_MAX_ADDRESS = 2048
_MAX_HEADERS = 16 * 1024
"""Bytes of a path with its query, and of all headers."""
_MAX_SHOWN = 120

_PARAMETERS = frozenset({"format", "picture"})
"""Those that an address of the API may have."""


def check_token(token: str) -> str:
    """The token, where headers and cookies can carry it; else `TerralignError`."""
    plain = all(33 <= ord(one) < 127 for one in token)
    if not (MIN_TOKEN <= len(token) <= MAX_TOKEN and plain):
        raise TerralignError(
            f"the token must have {MIN_TOKEN} to {MAX_TOKEN} letters, digits or signs, without "
            "spaces; or leave it out, and one is generated"
        )
    return token


class Guard:
    """The application behind all of this."""

    def __init__(self, app: Application, settings: ServeSettings) -> None:
        self._app, self._settings = app, settings
        self._token = None if settings.token is None else settings.token.encode()
        if self._token is not None:
            # Neither the token itself, nor under the name of another server's on this machine.
            digest = hashlib.sha256(b"terralign cookie " + self._token).hexdigest()
            self._cookie, self._value = f"terralign_{digest[:8]}", digest[8:]

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
        elif scope["type"] == "http":
            await self._answer(scope, receive, send)

    async def _answer(self, scope: Message, receive: Receive, send: Send) -> None:
        began, status = time.perf_counter(), 0

        async def guarded(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                given = {name.lower() for name, _ in message.get("headers", ())}
                message["headers"] = [
                    *message.get("headers", ()),
                    *(
                        (name.encode(), value.encode())
                        for name, value in HEADERS.items()
                        if name.encode() not in given
                    ),
                ]
            await send(message)

        try:
            answered = await self._refused(scope, guarded)
            if not answered:
                await self._app(scope, await self._body(scope, receive), guarded)
        except _Refused as refused:
            await refuse(guarded, refused.status, refused.text)
        except asyncio.CancelledError:
            if not status:
                await refuse(guarded, 503, "the server is stopping", {"retry-after": "10"})
            raise
        except Exception as error:  # the last resort: nothing of it is shown
            logger.error("unexpected %s", type(error).__name__)
            logger.debug("traceback", exc_info=error)
            if not status:
                await refuse(guarded, 500, "unexpected fault; the server's log has more")
        logger.debug(
            "%s %s %d %.0f ms",
            printable(scope["method"][:16]), printable(scope["path"][:_MAX_SHOWN]), status,
            1000 * (time.perf_counter() - began),
        )  # fmt: skip

    async def _refused(self, scope: Message, send: Send) -> bool:
        """Whether the request was answered already; `_Refused` where it is not taken."""
        raw, query = scope.get("raw_path") or b"", scope.get("query_string", b"")
        if len(raw) + len(query) > _MAX_ADDRESS:
            raise _Refused(414, f"the address is longer than {_MAX_ADDRESS} bytes")
        if sum(len(name) + len(value) for name, value in scope["headers"]) > _MAX_HEADERS:
            raise _Refused(431, f"the headers are longer than {_MAX_HEADERS:,} bytes")
        headers = _headers_of(scope)
        self._check_host(headers)
        parameters = parse_qsl(query.decode("latin-1"), keep_blank_values=True)
        if scope["path"].startswith("/api/"):
            unknown = {name for name, _ in parameters} - _PARAMETERS
            if unknown or len({name for name, _ in parameters}) < len(parameters):
                raise _Refused(400, "a parameter of the address is unknown or given twice")
        if self._token is None or scope["path"] == "/health":
            return False
        given = dict(parameters).get("token")
        if scope["path"] == "/" and scope["method"] in ("GET", "HEAD") and given is not None:
            if not hmac.compare_digest(given.encode(), self._token):
                raise _Refused(401, "the token is wrong; open the address that the server printed")
            await self._enter(scope, send)
            return True
        if not self._is_known(headers):
            raise _Refused(
                401, "a token is needed: open the address that the server printed, or send it as "
                "Authorization: Bearer TOKEN",
            )  # fmt: skip
        return False

    def _check_host(self, headers: dict[str, str]) -> None:
        hosts = self._settings.hosts
        if hosts is None:
            return
        name = headers.get("host", "").lower()
        if not name.endswith("]"):
            name = name.rpartition(":")[0] if name.rpartition(":")[2].isdecimal() else name
        if name not in hosts:
            raise _Refused(421, "unknown Host; start the server with --allow-host NAME to allow it")

    def _is_known(self, headers: dict[str, str]) -> bool:
        assert self._token is not None
        scheme, _, given = headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer":
            return hmac.compare_digest(given.strip().encode(), self._token)
        try:
            found = SimpleCookie(headers.get("cookie", "")).get(self._cookie)
        except CookieError:
            found = None
        return found is not None and hmac.compare_digest(found.value.encode(), self._value.encode())

    async def _enter(self, scope: Message, send: Send) -> None:
        """Set the cookie, and lead to the address without the token."""
        schemes = {scope.get("scheme"), _headers_of(scope).get("x-forwarded-proto")}
        secure = "; Secure" if "https" in schemes else ""
        cookie = f"{self._cookie}={self._value}; HttpOnly; SameSite=Strict{secure}"
        headers = {"location": "./", "set-cookie": cookie, "cache-control": "no-store"}
        await _send(send, 303, b"", headers)

    async def _body(self, scope: Message, receive: Receive) -> Receive:
        """The body, read as a whole within the limits, for the application to receive."""
        most = self._settings.limits.body
        headers = _headers_of(scope)
        length = headers.get("content-length", "0")
        if not (length.isascii() and length.isdecimal()) or len(length) > 12 or int(length) > most:
            raise _Refused(413, f"the body is larger than {most:,} bytes")
        if scope["method"] not in ("POST", "PUT", "PATCH"):
            return receive
        content = bytearray()
        try:
            async with asyncio.timeout(self._settings.limits.seconds):
                while True:
                    message = await receive()
                    if message["type"] != "http.request":
                        raise _Refused(400, "the body is not complete")
                    content += message.get("body", b"")
                    if len(content) > most:
                        raise _Refused(413, f"the body is larger than {most:,} bytes")
                    if not message.get("more_body", False):
                        break
        except TimeoutError:
            raise _Refused(408, "the body took too long to arrive") from None
        given = False

        async def whole() -> Message:
            nonlocal given
            if given:
                return await receive()
            given = True
            return {"type": "http.request", "body": bytes(content), "more_body": False}

        return whole


class _Refused(Exception):
    """An answer that is a fault."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status, self.text = status, text


def _headers_of(scope: Message) -> dict[str, str]:
    return {name.decode("latin-1").lower(): value.decode("latin-1")
            for name, value in scope.get("headers", ())}  # fmt: skip


async def refuse(send: Send, status: int, text: str, headers: dict[str, str] | None = None) -> None:
    """Answer with a fault, as JSON."""
    others = {"content-type": "application/json", "cache-control": "no-store", **(headers or {})}
    if status == 401:
        others["www-authenticate"] = "Bearer"
    await _send(send, status, as_json({"error": text or HTTPStatus(status).phrase}), others)


async def _send(send: Send, status: int, body: bytes, headers: dict[str, str]) -> None:
    every = {**headers, "content-length": str(len(body))}
    await send(
        {
            "type": "http.response.start",
            "status": status,
            "headers": [(name.encode(), value.encode()) for name, value in every.items()],
        }
    )
    await send({"type": "http.response.body", "body": body})
