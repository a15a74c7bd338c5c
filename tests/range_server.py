"""A local web server that gives parts of files, as object storage does."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit


@dataclass
class Served:
    """A running server: its address, what it was asked for, and the token that it wants, if any.

    `redirects`: path -> address; `knows_ranges`: False for one that always sends whole files;
    `cuts`: after how many bytes it closes its next connections, one after the other.
    """

    root: Path
    url: str = ""
    token: str = ""
    answers: dict[str, bytes] = field(default_factory=dict)
    asked: list[tuple[str, str]] = field(default_factory=list)
    redirects: dict[str, str] = field(default_factory=dict)
    knows_ranges: bool = True
    cuts: list[int] = field(default_factory=list)


class _Handler(BaseHTTPRequestHandler):
    def __init__(self, *arguments: object, served: Served) -> None:
        self.served = served
        super().__init__(*arguments)  # type: ignore[arg-type]

    def log_message(self, format: str, *arguments: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, *, body: bool) -> None:
        parts = urlsplit(self.path)
        wanted = self.headers.get("Range", "")
        self.served.asked.append((self.path, wanted))
        if self.served.token and self.served.token not in parts.query:
            self._send(403, b"denied", {}, body)
            return
        if parts.path in self.served.redirects:
            self._send(302, b"", {"Location": self.served.redirects[parts.path]}, body)
            return
        content = self.served.answers.get(parts.path)
        path = self.served.root / parts.path.lstrip("/")
        if content is None and path.is_file():
            content = path.read_bytes()
        if content is None:
            self._send(404, b"", {}, body)
            return
        found = re.fullmatch(r"bytes=(\d+)-(\d*)", wanted)
        if found is None or not self.served.knows_ranges:
            self._send(200, content, {"Accept-Ranges": "bytes"}, body)
            return
        first = int(found[1])
        if first >= len(content):
            self._send(416, b"", {}, body)
            return
        last = min(int(found[2] or len(content)), len(content) - 1)
        of_all = {"Content-Range": f"bytes {first}-{last}/{len(content)}"}
        self._send(206, content[first : last + 1], of_all, body)

    def _send(self, code: int, content: bytes, headers: dict[str, str], body: bool) -> None:
        self.send_response(code)
        for key, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(key, value)
        self.end_headers()
        if body:
            most = self.served.cuts.pop(0) if self.served.cuts else len(content)
            self.wfile.write(content[:most])


@contextmanager
def serve(root: Path) -> Iterator[Served]:
    """Serve the files of a folder on this machine alone."""
    served = Served(root=root)
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Handler, served=served))
    served.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield served
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
