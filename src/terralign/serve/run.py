"""A server process: its socket, its address, and a clean end."""

from __future__ import annotations

import contextlib
import ipaddress
import logging
import signal
import socket
import threading
import time
from collections.abc import Generator
from types import FrameType
from typing import Any

import uvicorn

from terralign.errors import TerralignError
from terralign.serve.workers import THREADS

STOP_S = 3
"""Seconds that requests have to end when the server is stopped."""

_MOST_CONNECTIONS = 1000


def bind(host: str, port: int) -> socket.socket:
    """A socket that listens; `TerralignError` where the address is taken or unknown.

    `port`: 0 takes any that is free.
    """
    try:
        family, kind, proto, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listening = socket.socket(family, kind, proto)
    except (OSError, UnicodeError) as error:
        raise TerralignError(
            f"host {host!r} is not known; give a name or number of this machine"
        ) from error
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
        listening.listen(128)
    except OSError as error:
        listening.close()
        raise TerralignError(
            f"cannot listen on port {port} of {host} ({error.strerror}); choose another (--port)"
        ) from error
    return listening


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches a host."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def address_of(listening: socket.socket, host: str) -> str:
    """The address to open: http://HOST:PORT/; where it listens on all, by this machine's name."""
    name = socket.gethostname() if host in ("0.0.0.0", "::") else host
    name = f"[{name}]" if ":" in name else name
    return f"http://{name}:{listening.getsockname()[1]}/"


class _Server(uvicorn.Server):
    """Ends by SIGINT and SIGTERM without raising them again: a server is ended that way."""

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """Within the block both ask the server to end."""
        before: dict[int, Any] = {
            number: signal.signal(number, self.handle_exit)
            for number in (signal.SIGINT, signal.SIGTERM)
        }
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """The first signal ends the server, a second one at once."""
        self.force_exit = self.should_exit
        self.should_exit = True


def is_busy(seconds: float = 1.0) -> bool:
    """Whether threads still compute, for a stopped server, after so many seconds."""
    until = time.monotonic() + seconds
    for thread in threading.enumerate():
        if thread.name.startswith(THREADS):
            thread.join(max(0.0, until - time.monotonic()))
            if thread.is_alive():
                return True
    return False


def run(app: Any, listening: socket.socket) -> None:
    """Serve until SIGINT or SIGTERM; requests that run have three seconds to end."""
    for name in ("uvicorn", "uvicorn.error", "uvicorn.asgi"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,  # it has queries, and those tokens
        server_header=False,
        date_header=True,
        proxy_headers=False,
        limit_concurrency=_MOST_CONNECTIONS,
        timeout_keep_alive=15,
        timeout_graceful_shutdown=STOP_S,
        h11_max_incomplete_event_size=16 * 1024,
        ws="none",
        http="h11",
        lifespan="on",
    )
    _Server(config).run(sockets=[listening])
