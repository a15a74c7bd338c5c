"""A real server under load, and under malformed requests; prints what it found as JSON.

    python tests/serve/load.py FOLDER [--model SPACE] [--clients 50] [--seconds 60] [--think 0]
                               [--malformed 1000] [--seed 0]

FOLDER: of parts. The server is a process of its own; the clients share this one. `think`: seconds
that a client waits between two requests, on average. A malformed request must be answered with
4xx, and neither answers nor the log may hold a folder's path, a traceback or the token.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import random
import re
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

TOKEN = "token-of-the-load-test-71c3"

WORDS = (
    *("river", "town", "pond", "forest", "road", "field", "airport", "lake", "coast", "quarry"),
    *("bridge", "harbour", "vineyard", "snow", "desert", "village", "canal", "orchard", "dune"),
)


@dataclass
class Server:
    """A running server: its port, process and log."""

    port: int
    process: subprocess.Popen[bytes]
    log: Path

    def memory_mb(self) -> float:
        """Of the process, the most so far."""
        text = Path(f"/proc/{self.process.pid}/status").read_text()
        found = re.search(r"VmHWM:\s+(\d+) kB", text)
        return int(found[1]) / 1024 if found else 0.0


@contextlib.contextmanager
def serving(folder: Path, model: str | None) -> Iterator[Server]:
    """A server of its own process, which is stopped at the end."""
    with tempfile.TemporaryDirectory() as scratch:
        log = Path(scratch) / "log"
        command = [sys.executable, "-m", "terralign", "--verbose", "serve", str(folder)]
        command += ["--port", "0", "--json", *(["--model", model] if model else [])]
        environment = {**os.environ, "TERRALIGN_TOKEN": TOKEN}
        with open(log, "wb") as out:
            process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=out, env=environment)
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            if not line:
                raise SystemExit(f"the server did not start: {log.read_text()}")
            port = int(json.loads(line)["address"].rstrip("/").rpartition(":")[2])
            yield Server(port=port, process=process, log=log)
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                raise
            finally:
                if process.stdout is not None:
                    process.stdout.close()


# Load


@dataclass
class Measured:
    """Seconds of each kind of request, and what went wrong."""

    seconds: dict[str, list[float]] = field(default_factory=dict)
    errors: Counter[str] = field(default_factory=Counter)

    def add(self, kind: str, seconds: float, status: int, wanted: tuple[int, ...]) -> None:
        self.seconds.setdefault(kind, []).append(seconds)
        if status not in wanted:
            self.errors[f"{kind} {status}"] += 1

    def report(self) -> dict[str, Any]:
        every = [one for values in self.seconds.values() for one in values]
        return {
            "requests": len(every),
            "errors": dict(self.errors),
            **_quantiles(every),
            "kinds": {
                kind: {"requests": len(values), **_quantiles(values)}
                for kind, values in sorted(self.seconds.items())
            },
        }


def _quantiles(seconds: list[float]) -> dict[str, float]:
    if len(seconds) < 2:
        return {}
    cuts = statistics.quantiles(seconds, n=100, method="inclusive")
    return {
        "p50_ms": round(1000 * cuts[49], 1),
        "p95_ms": round(1000 * cuts[94], 1),
        "max_ms": round(1000 * max(seconds), 1),
    }


class Client:
    """One connection that is kept, as a browser's."""

    def __init__(self, port: int) -> None:
        self.port, self.reader, self.writer = port, None, None  # type: ignore[var-annotated]

    async def ask(self, method: str, path: str, body: bytes = b"") -> tuple[int, bytes]:
        if self.writer is None:
            self.reader, self.writer = await asyncio.open_connection("127.0.0.1", self.port)
        head = [
            f"{method} {path} HTTP/1.1", f"Host: 127.0.0.1:{self.port}",
            f"Authorization: Bearer {TOKEN}", "Accept-Encoding: gzip",
        ]  # fmt: skip
        if body:
            head += ["Content-Type: application/json", f"Content-Length: {len(body)}"]
        self.writer.write("\r\n".join([*head, "", ""]).encode() + body)
        await self.writer.drain()
        answer = await self.reader.readuntil(b"\r\n\r\n")
        length = re.search(rb"content-length: (\d+)", answer, re.IGNORECASE)
        content = await self.reader.readexactly(int(length[1]) if length else 0)
        if b"connection: close" in answer.lower():
            self.close()
        return int(answer.split(b" ", 2)[1]), content

    def close(self) -> None:
        if self.writer is not None:
            self.writer.close()
            self.reader = self.writer = None


async def load(port: int, clients: int, seconds: float, think: float, seed: int) -> Measured:
    """`clients` at once: searches, refinements, pages, scores, thumbnails and tiles."""
    measured = Measured()
    first = Client(port)
    listed = json.loads(_plain((await first.ask("GET", "/api/index"))[1]))
    first.close()
    until = time.perf_counter() + seconds
    await asyncio.gather(
        *(
            _one_client(Client(port), measured, listed, until, think, random.Random(seed + number))
            for number in range(clients)
        )
    )
    return measured


def _plain(content: bytes) -> bytes:
    import gzip

    return gzip.decompress(content) if content.startswith(b"\x1f\x8b") else content


async def _one_client(
    client: Client,
    measured: Measured,
    listed: dict[str, Any],
    until: float,
    think: float,
    chance: random.Random,
) -> None:
    ids: list[str] = []
    while time.perf_counter() < until:
        kind, method, path, body, wanted = _next(listed, ids, chance)
        began = time.perf_counter()
        try:
            status, content = await asyncio.wait_for(client.ask(method, path, body), 60)
        except (OSError, asyncio.IncompleteReadError, TimeoutError) as error:
            measured.errors[f"{kind} {type(error).__name__}"] += 1
            client.close()
            continue
        measured.add(kind, time.perf_counter() - began, status, wanted)
        if kind == "search" and status == 200:
            ids = [one["id"] for one in json.loads(_plain(content))["hits"]["features"]]
        if think:
            await asyncio.sleep(chance.uniform(0, 2 * think))
    client.close()


def _next(
    listed: dict[str, Any], ids: list[str], chance: random.Random
) -> tuple[str, str, str, bytes, tuple[int, ...]]:
    """Kind, method, path and body of a request, and what it may be answered with."""
    draw = chance.random()
    text = (
        f"a {chance.choice(WORDS)} {chance.choice(('by', 'near', 'with'))} a {chance.choice(WORDS)}"
    )
    asked: dict[str, Any] = {"query": text}
    if draw < 0.35 or not ids:
        return "search", "POST", "/api/search", json.dumps(asked).encode(), (200,)
    if draw < 0.45:
        asked |= {"like": chance.sample(ids, min(2, len(ids))), "unlike": ids[-1:]}
        return "refine", "POST", "/api/search", json.dumps(asked).encode(), (200,)
    if draw < 0.5:
        west, south, east, north = listed["bounds"]
        asked |= {"bbox": [west, south, (west + east) / 2, (south + north) / 2], "page": 1}
        return "page", "POST", "/api/search", json.dumps(asked).encode(), (200,)
    if draw < 0.55:
        return "scores", "POST", "/api/scores", json.dumps(asked).encode(), (200,)
    if draw < 0.85:
        return "thumbnail", "GET", f"/api/thumbnails/{chance.choice(ids)}.png", b"", (200, 404)
    scene = chance.choice(listed["scenes"])
    west, south, east, north = scene["bounds"]
    zoom = chance.randint(9, 15)
    x, y = tile_at(chance.uniform(west, east), chance.uniform(south, north), zoom)
    kind = chance.choice(("true", "false"))
    return "tile", "GET", f"/api/tiles/{scene['id']}/{kind}/{zoom}/{x}/{y}.png", b"", (200, 404)


def tile_at(longitude: float, latitude: float, zoom: int) -> tuple[int, int]:
    """Column and row of the tile of the web map that a place lies in."""
    import math

    y = math.asinh(math.tan(math.radians(latitude)))
    return (
        int((longitude + 180) / 360 * 2**zoom),
        int((1 - y / math.pi) / 2 * 2**zoom),
    )


# Malformed requests


def malformed(seed: int, port: int) -> Iterator[tuple[str, bytes]]:
    """Names and bytes of requests that make no sense, without end."""
    chance = random.Random(seed)
    makers = (
        *(_bad_body,) * 5, *(_bad_path,) * 3, _bad_method, _bad_type, _bad_query, _bad_token,
        _bad_host, _bad_http, _too_large,
    )  # fmt: skip
    while True:
        make = chance.choice(makers)
        yield make.__name__.lstrip("_"), make(chance, port)


def _request(
    method: str, target: str, port: int, body: bytes = b"", **headers: str | None
) -> bytes:
    """The bytes of a request; a header that is None is left out."""
    every: dict[str, str | None] = {
        "Host": f"127.0.0.1:{port}", "Authorization": f"Bearer {TOKEN}", "Connection": "close",
        "Content-Type": "application/json" if body else None,
        "Content-Length": str(len(body)) if body else None,
    }  # fmt: skip
    every |= {name.replace("_", "-").title(): value for name, value in headers.items()}
    lines = [f"{name}: {value}" for name, value in every.items() if value is not None]
    text = "\r\n".join([f"{method} {target} HTTP/1.1", *lines, "", ""])
    return text.encode("utf-8", "surrogatepass") + body


def _bad_body(chance: random.Random, port: int) -> bytes:
    deep = chance.choice(("[", '{"a":', '{"polygon":')) * chance.randint(200, 20_000)
    number = chance.choice(
        ("NaN", "-Infinity", "1e400", "9" * 4000, '"5"', "true", "[]", "{}", "0.5", "-1", "1e9")
    )
    ring = [[chance.uniform(-400, 400), chance.uniform(-200, 200)] for _ in range(4)]
    crossed = [[0, 0], [1, 1], [1, 0], [0, 1], [0, 0]]
    shape = {"type": "Polygon", "coordinates": [chance.choice((ring, crossed))]}
    bodies = (
        deep.encode(),
        f'{{"query": "a river", "k": {number}}}'.encode() if number != "1e9" else b"[]",
        f'{{"query": "a river", "cut": {number if number != "0.5" else "2"}}}'.encode(),
        f'{{"query": "a river", "page_size": {number}}}'.encode(),
        b'{"query": "a river", "bbox": [0, 0, NaN, 1]}',
        b'{"query": "a river", "bbox": [0, 1, 1, 0]}',
        b'{"query": "a river", "bbox": [1, 2, 3]}',
        json.dumps({"query": "x" * chance.randint(201, 100_000)}).encode(),
        json.dumps({"query": "a" + chr(chance.randint(0, 31))}).encode(),
        json.dumps({"query": " " * chance.randint(0, 200)}).encode(),
        json.dumps({"query": "a", "like": [f"../../etc/passwd{chance.random()}"]}).encode(),
        json.dumps({"query": "a", "like": ["a" * 16 + "-0-0"] * chance.randint(1, 60)}).encode(),
        json.dumps({"query": "a", "like": ["0" * 64 + "-9999999999-9999999999"]}).encode(),
        json.dumps({"query": "a", chance.choice(WORDS): chance.random()}).encode(),
        json.dumps({"query": "a", "sensors": [chance.choice(WORDS)]}).encode(),
        json.dumps({"query": "a", "towers": []}).encode(),
        json.dumps({"query": "a", "start": chance.choice(("", "x", "2022-02-30", 5))}).encode(),
        json.dumps({"query": "a", "start": "2022-02-02", "end": "2022-02-01"}).encode(),
        json.dumps({"query": "a", "polygon": shape}).encode(),
        json.dumps({"query": "a", "polygon": {"type": "Point", "coordinates": [0, 0]}}).encode(),
        json.dumps({"query": "a", "polygon": "/etc/passwd"}).encode(),
        b'{"query": "a\\ud800"}', b"\xff\xfe\x00", b"null", b"5", b'{"query": "a"', b'{"query": 5}',
        bytes(chance.randrange(256) for _ in range(chance.randint(1, 400))),
    )  # fmt: skip
    body = chance.choice(bodies)
    target = chance.choice(("/api/search", "/api/search", "/api/scores", "/api/download"))
    if target != "/api/search" and b"page_size" in body:
        target = "/api/search"
    return _request("POST", target, port, body)


def _bad_path(chance: random.Random, port: int) -> bytes:
    number = chance.choice(("-1", "x", "1.5", "9" * 300, "%00", "..", "1e3", "99999", "0x1"))
    tile = ["0", "true", "3", "1", "1"]
    tile[chance.randrange(5)] = number
    target = chance.choice(
        (
            f"/api/tiles/{'/'.join(tile)}.png",
            "/api/tiles/0/true/5/31/0.png",
            f"/api/thumbnails/{number}.png",
            "/api/thumbnails/..%2f..%2f..%2fetc%2fpasswd.png",
            f"/static/{'../' * chance.randint(1, 9)}etc/passwd",
            f"/static/{'%2e%2e%2f' * chance.randint(1, 9)}etc/passwd",
            "/static//etc/passwd", "/static/%00", "/static/page/index.html", "//etc/passwd",
            "/api/index/", "/api//index", "/api/../api/nothing", "/%2e%2e/", "/.git/config",
            f"/{chance.choice(WORDS)}", "/docs", "/redoc", "/openapi.json",
            "/" + "a" * chance.randint(2050, 9000),
        )
    )  # fmt: skip
    return _request("GET", target, port)


def _bad_method(chance: random.Random, port: int) -> bytes:
    method = chance.choice(("PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "PROPFIND", "X" * 20))
    target = chance.choice(("/", "/health", "/api/index", "/api/search", "/static/index.html"))
    return _request(method, target, port)


def _bad_type(chance: random.Random, port: int) -> bytes:
    kind = chance.choice(
        (None, "text/plain", "application/xml", "multipart/form-data; boundary=a", "x" * 900)
    )
    return _request("POST", "/api/search", port, b'{"query": "a river"}', content_type=kind)


def _bad_query(chance: random.Random, port: int) -> bytes:
    if chance.random() < 0.5:
        target = chance.choice(("format=exe", "format=", "format=geojson&format=geojson", "a=b"))
        return _request("POST", f"/api/download?{target}", port, b'{"query": "a river"}')
    target = chance.choice(("picture=blue", "x=1", "picture=true&picture=false", "token=x", "="))
    return _request("GET", f"/api/thumbnails/{'a' * 16}-0-0.png?{target}", port)


def _bad_token(chance: random.Random, port: int) -> bytes:
    given = chance.choice(
        (None, "Bearer", "Bearer x", f"Basic {TOKEN}", f"Bearer {TOKEN}x", f"Bearer {TOKEN[:-1]}")
    )
    cookie = chance.choice((None, f"terralign={TOKEN}", "a=b", ";;=", "terralign_00000000=x"))
    target = chance.choice(("/", "/api/index", "/static/index.html", "/?token=wrong", "/nothing"))
    return _request("GET", target, port, authorization=given, cookie=cookie)


def _bad_host(chance: random.Random, port: int) -> bytes:
    host = chance.choice(("evil.example", "localhost.evil.example:80", "0", "169.254.169.254"))
    return _request("GET", chance.choice(("/", "/health", "/api/index")), port, host=host)


def _bad_http(chance: random.Random, port: int) -> bytes:
    good = f"Host: 127.0.0.1:{port}\r\nAuthorization: Bearer {TOKEN}\r\nConnection: close\r\n"
    return chance.choice(
        (
            b"nothing at all\r\n\r\n",
            b"GET / HTTP/9.9\r\nConnection: close\r\n\r\n",
            b"GET  /  HTTP/1.1\r\n\r\n",
            b"GET /health HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
            f"POST /api/search HTTP/1.1\r\n{good}Content-Length: -5\r\n\r\n".encode(),
            f"POST /api/search HTTP/1.1\r\n{good}Content-Length: 5\r\n"
            "Content-Length: 6\r\n\r\nabcde".encode(),
            f"POST /api/search HTTP/1.1\r\n{good}Transfer-Encoding: chunked\r\n"
            "\r\nzz\r\nabc\r\n".encode(),
            f"GET /health HTTP/1.1\r\n{good}Bad Header: 1\r\n\r\n".encode(),
            f"GET /health HTTP/1.1\r\n{good}A: {'b' * 40_000}\r\n\r\n".encode(),
            bytes(chance.randrange(1, 256) for _ in range(200)) + b"\r\n\r\n",
        )
    )


def _too_large(chance: random.Random, port: int) -> bytes:
    if chance.random() < 0.5:
        return _request(
            "POST", "/api/search", port, b"{}", content_length=str(chance.randint(300_000, 10**15))
        )
    chunk = b"10000\r\n" + b" " * 0x10000 + b"\r\n"
    return (
        _request("POST", "/api/search", port, transfer_encoding="chunked",
                 content_type="application/json")
        + chunk * 6 + b"0\r\n\r\n"
    )  # fmt: skip


def send(port: int, content: bytes) -> bytes:
    """What the server answers to these bytes, whole."""
    with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
        with contextlib.suppress(OSError):  # refused before it was sent as a whole
            connection.sendall(content)
        answer = b""
        with contextlib.suppress(ConnectionResetError):
            while block := connection.recv(65536):
                answer += block
    return answer


LEAKS = ("Traceback", 'File "', "site-packages", TOKEN)


def leaks(text: str, folders: list[str]) -> list[str]:
    """What of a text must not be said."""
    return [one for one in (*LEAKS, *folders) if one in text]


def refusals(server: Server, folder: Path, num: int, seed: int) -> dict[str, Any]:
    """Send malformed requests one after another, and look at answers and log."""
    folders = sorted({str(folder.resolve()), str(Path(__file__).resolve().parents[2])})
    statuses, wrong = Counter[str](), list[str]()
    requests = malformed(seed, server.port)
    for number in range(num):
        name, content = next(requests)
        answer = send(server.port, content)
        found = re.match(rb"HTTP/1\.1 (\d{3})", answer)
        status = found[1].decode() if found else "none"
        statuses[status] += 1
        text = answer.decode("utf-8", "replace")
        if not status.startswith("4"):
            wrong.append(f"{number} {name}: {status} for {content[:200]!r}")
        for leak in leaks(text, folders):
            wrong.append(f"{number} {name}: the answer holds {leak!r}")
    for line in server.log.read_text(errors="replace").splitlines():
        wrong += [f"the log holds {leak!r}: {line[:500]}" for leak in leaks(line, folders)]
    return {"requests": num, "statuses": dict(sorted(statuses.items())), "wrong": wrong}


def main(arguments: list[str] | None = None) -> int:
    """Run both; 1 where anything went wrong."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model")
    parser.add_argument("--clients", type=int, default=50)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--think", type=float, default=0)
    parser.add_argument("--malformed", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args(arguments)
    found: dict[str, Any] = {"cores": len(os.sched_getaffinity(0)), "clients": given.clients,
                             "seconds": given.seconds, "think_s": given.think}  # fmt: skip
    with serving(given.folder, given.model) as server:
        if given.seconds:
            measured = asyncio.run(
                load(server.port, given.clients, given.seconds, given.think, given.seed)
            )
            found["load"] = measured.report()
            found["load"]["per_second"] = round(found["load"]["requests"] / given.seconds, 1)
        if given.malformed:
            found["malformed"] = refusals(server, given.folder, given.malformed, given.seed)
        found["server_mb"] = round(server.memory_mb())
        began = time.perf_counter()
    found["stopped_s"] = round(time.perf_counter() - began, 2)
    found["exit_code"] = server.process.returncode
    sys.stdout.write(json.dumps(found, indent=2) + "\n")
    failed = (
        found.get("load", {}).get("errors")
        or found.get("malformed", {}).get("wrong")
        or server.process.returncode
    )
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
