"""What the server refuses, and what it never says."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from terralign.encoders.space import EmbeddingSpace
from terralign.errors import TerralignError
from terralign.serve.app import create_app
from terralign.serve.security import check_token
from terralign.serve.served import ServedIndex, without_paths
from terralign.serve.settings import Limits, ServeSettings
from terralign.serve.workers import Overloaded, Workers

TOKEN = "a-token-of-many-letters"
RING = [[0, 0], [1, 0], [1, 1], [0, 0]]


@pytest.fixture(scope="module")
def locked(served_space: EmbeddingSpace, served_folder: Path) -> Iterator[TestClient]:
    """A client, without the token, of a server that asks for one."""
    settings = ServeSettings(title="Locked", token=TOKEN)
    with TestClient(
        create_app(served_folder, served_space, settings),
        base_url="http://localhost",
        follow_redirects=False,
    ) as client:
        yield client


def refused(answer: Any, status: int, words: str = "") -> None:
    assert answer.status_code == status, answer.text
    assert list(answer.json()) == ["error"]
    assert "\n" not in answer.json()["error"]
    assert words in answer.json()["error"]


# Requests that make no sense


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        ("", 422, "EOF"),
        ("[]", 422, "object"),
        ('{"query": "a", "k": NaN}', 422, "k"),
        ('{"query": "a", "cut": NaN}', 422, "cut"),
        ('{"query": "a", "cut": 1e999}', 422, "cut"),
        ('{"query": "a", "bbox": [0, 0, Infinity, 1]}', 422, "bbox"),
        ('{"query": "a", "k": ' + "9" * 5000 + "}", 422, "out of range"),
        ('{"query": "a", "k": "5"}', 422, "k: Input should be a valid integer"),
        ('{"query": "a", "k": true}', 422, "k"),
        ('{"query": "a", "k": 501}', 422, "less than or equal to 500"),
        ('{"query": "a", "page_size": 101}', 422, "page_size"),
        ('{"query": "a", "page": -1}', 422, "page"),
        ('{"query": "a", "nothing": 1}', 422, "nothing: Extra inputs"),
        ('{"query": ' + "[" * 50_000 + "]" * 50_000 + "}", 422, "recursion"),
        ('{"query": "' + "a" * 201 + '"}', 422, "query: String should have at most 200"),
        ('{"query": "a\\nb"}', 422, "control characters"),
        ('{"query": "a\\ud800"}', 422, "JSON"),
        ('{"query": "  "}', 422, "the query is empty"),
        ('{"like": ["../../etc/passwd"]}', 422, "like"),
        ('{"like": ' + json.dumps(["aaaaaaaa-0-0"] * 51) + "}", 422, "like"),
        ('{"like": ["aaaaaaaaaaaaaaaa-0-0"]}', 404, "not found"),
        ('{"query": "a", "bbox": [0, 9, 1, 8]}', 400, "bbox"),
        ('{"query": "a", "start": "2022-13-01"}', 422, "start"),
        ('{"query": "a", "start": "2022-02-01", "end": "2022-01-01"}', 400, "is after end"),
        ('{"query": "a", "sensors": ["nothing"]}', 400, "no windows of sensor"),
        ('{"query": "a", "polygon": {"type": "Point", "coordinates": [0, 0]}}', 422, "polygon"),
        (
            json.dumps({"query": "a", "polygon": {"type": "Polygon", "coordinates": [
                [[0, 0], [1, 1], [1, 0], [0, 1], [0, 0]]]}}),
            400,
            "crosses itself",
        ),
        (
            json.dumps({"query": "a", "polygon": {"type": "Polygon", "coordinates": [
                [[0, 0], [2, 0], [1, 1], [0.5, 1]]]}}),
            422,
            "end where it begins",
        ),
        (
            json.dumps({"query": "a", "polygon": {"type": "MultiPolygon", "coordinates": [
                [RING * 700]] * 3}}),
            422,
            "more than 5,000 points",
        ),
    ],
)  # fmt: skip
def test_a_body_that_makes_no_sense_is_refused_in_one_line(
    client: TestClient, body: str, status: int, words: str
) -> None:
    headers = {"Content-Type": "application/json"}
    refused(client.post("/api/search", content=body, headers=headers), status, words)


@pytest.mark.parametrize("kind", [None, "text/plain", "multipart/form-data; boundary=x"])
def test_a_body_of_another_type_is_refused(client: TestClient, kind: str | None) -> None:
    headers = {} if kind is None else {"Content-Type": kind}
    refused(client.post("/api/search", content='{"query": "a"}', headers=headers), 415, "JSON")


def test_a_body_that_is_too_large_is_refused_before_it_is_read(client: TestClient) -> None:
    def endless() -> Iterator[bytes]:
        for _ in range(100):
            yield b" " * 10_000

    headers = {"Content-Type": "application/json"}
    refused(client.post("/api/search", content=b" " * 300_000, headers=headers), 413, "262,144")
    refused(client.post("/api/search", content=endless(), headers=headers), 413, "262,144")
    headers["Content-Length"] = "-1"
    refused(client.post("/api/search", content=b"{}", headers=headers), 413)


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/api/nothing", 404),
        ("/api/search?x=1", 400),
        ("/api/download?format=exe", 404),
        ("/api/tiles/0/blue/1/0/0.png", 422),
        ("/api/tiles/-1/true/1/0/0.png", 422),
        ("/api/tiles/0/true/23/0/0.png", 422),
        ("/api/tiles/0/true/1/5/0.png", 404),
        ("/api/tiles/0/true/1/0/" + "9" * 400 + ".png", 422),
        ("/api/tiles/0/true/1/0/0.tif", 404),
        ("/api/thumbnails/..%2f..%2fetc%2fpasswd.png", 404),
        ("/api/thumbnails/aaaaaaaa-0-0.png?picture=blue", 422),
        ("/api/thumbnails/aaaaaaaaaaaaaaaa-0-0.png?picture=true&picture=true", 400),
        ("/docs", 404),
        ("/static/%2e%2e/settings.py", 404),
        ("/" + "a" * 3000, 414),
    ],
)
def test_addresses_that_lead_nowhere(client: TestClient, path: str, status: int) -> None:
    method = client.post if path.startswith("/api/download") else client.get
    given = {"json": {"query": "a"}} if path.startswith("/api/download") else {}
    expected = 422 if "download" in path else 405 if path.startswith("/api/search") else status
    refused(method(path, **given), 400 if "x=1" in path else expected)


def test_headers_that_are_too_long_are_refused(client: TestClient) -> None:
    refused(client.get("/health", headers={"X-Long": "a" * 20_000}), 431, "16,384")


@pytest.mark.parametrize("method", ["PUT", "DELETE", "PATCH", "OPTIONS", "TRACE"])
def test_other_methods_are_refused(client: TestClient, method: str) -> None:
    for path in ("/", "/api/search", "/api/index", "/health"):
        refused(client.request(method, path), 405)


# Who may ask


def test_without_the_token_only_the_health_is_told(locked: TestClient) -> None:
    for path in ("/", "/api/index", "/static/index.html", "/api/openapi.json", "/nothing"):
        answer = locked.get(path)
        refused(answer, 401, "token")
        assert answer.headers["www-authenticate"] == "Bearer"
    refused(locked.post("/api/search", json={"query": "a"}), 401)
    assert locked.get("/health").status_code == 200


@pytest.mark.parametrize("scheme", ["Bearer", "bearer"])
def test_the_token_opens_as_a_header(locked: TestClient, scheme: str) -> None:
    answer = locked.get("/api/index", headers={"Authorization": f"{scheme} {TOKEN}"})
    assert answer.status_code == 200
    for wrong in (f"{scheme} {TOKEN}x", f"Basic {TOKEN}", TOKEN, f"{scheme} ", f"{scheme} ü"):
        headers = {"Authorization": wrong.encode("latin-1")}
        refused(locked.get("/api/index", headers=headers), 401)


def test_the_token_opens_as_a_cookie_that_is_not_the_token(locked: TestClient) -> None:
    answer = locked.get(f"/?token={TOKEN}")
    assert (answer.status_code, answer.headers["location"]) == (303, "./")
    cookie = answer.headers["set-cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=Strict" in cookie
    assert "Secure" not in cookie  # over plain HTTP it would not be sent again
    assert TOKEN not in cookie
    assert locked.get("/api/index").status_code == 200  # the client keeps it
    locked.cookies.clear()
    refused(locked.get("/?token=another-token"), 401, "wrong")
    behind = locked.get(f"/?token={TOKEN}", headers={"X-Forwarded-Proto": "https"})
    assert "; Secure" in behind.headers["set-cookie"]
    locked.cookies.clear()
    name = cookie.partition("=")[0]
    for wrong in (f"{name}={TOKEN}", f"{name}=", "a=b; ;;==", f"{name}"):
        refused(locked.get("/api/index", headers={"Cookie": wrong}), 401)


@pytest.mark.parametrize("host", ["evil.example", "localhost.evil.example", "", "[::2]:80"])
def test_other_names_of_the_host_are_refused(client: TestClient, host: str) -> None:
    refused(client.get("/api/index", headers={"Host": host}), 421, "host")
    refused(client.get("/health", headers={"Host": host}), 421)


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:8000", "127.0.0.1:80", "[::1]:8000"])
def test_this_machine_goes_by_its_names(client: TestClient, host: str) -> None:
    assert client.get("/health", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize("token", ["short", "with a space in it", "ümlaut-in-a-token", "a" * 201])
def test_a_token_that_headers_cannot_carry_is_refused(token: str) -> None:
    with pytest.raises(TerralignError, match="8 to 200"):
        check_token(token)


# What answers and logs hold


def test_every_answer_has_the_headers(client: TestClient, locked: TestClient) -> None:
    answers = [
        client.get("/"), client.get("/api/index"), client.get("/nothing"), client.put("/"),
        client.post("/api/search", content=b"{"), locked.get("/"), locked.get(f"/?token={TOKEN}"),
    ]  # fmt: skip
    for answer in answers:
        policy = answer.headers["content-security-policy"]
        assert policy.startswith("default-src 'none'; script-src 'self';")
        assert "unsafe" not in policy
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["referrer-policy"] == "no-referrer"
        assert answer.headers["cross-origin-opener-policy"] == "same-origin"
        assert not any(name.startswith("access-control") for name in answer.headers)


def test_no_answer_names_a_folder(client: TestClient, served_folder: Path) -> None:
    unknown = {"like": ["aaaaaaaaaaaaaaaa-0-0"]}
    texts = [
        client.get("/api/index").text,
        client.post("/api/search", json={"query": "a river"}).text,
        client.post("/api/download", json={"query": "a river"}).text,
        client.post("/api/search", json=unknown).text,
        client.post("/api/search", json={"query": "a", "towers": ["nothing"]}).text,
    ]
    assert not any(str(served_folder.parent) in text for text in texts)
    assert json.loads(texts[3])["error"].startswith("window 'aaaaaaaaaaaaaaaa-0-0' not found")


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("cannot read /home/user/scenes/a b.tif: gone", "cannot read a b.tif: gone"),
        ("'/etc/passwd' is not here", "'passwd' is not here"),
        ("see https://example.org/a/b", "see https://example.org/a/b"),
        ("a share of 1/2", "a share of 1/2"),
        ("two\nlines", "two lines"),
        ("/", "..."),
    ],
)
def test_messages_lose_their_paths(text: str, plain: str) -> None:
    assert without_paths(text, ["/home/user/scenes"]) == plain


def test_a_fault_of_ours_is_logged_in_one_line_and_not_shown(
    served_space: EmbeddingSpace,
    served_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def fail(self: ServedIndex, asked: Any) -> None:
        raise ZeroDivisionError(f"in {served_folder}")

    monkeypatch.setattr(ServedIndex, "search", fail)
    caplog.set_level(logging.INFO, "terralign.serve")
    app = create_app(served_folder, served_space)
    with TestClient(app, base_url="http://localhost", raise_server_exceptions=False) as client:
        answer = client.post("/api/search", json={"query": "a"})
    refused(answer, 500, "unexpected fault")
    assert "ZeroDivisionError" not in answer.text
    assert [one.getMessage() for one in caplog.records] == ["unexpected ZeroDivisionError"]


def test_no_log_has_the_token(locked: TestClient, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    locked.get(f"/?token={TOKEN}")
    locked.get("/api/index", headers={"Authorization": f"Bearer {TOKEN}"})
    locked.get(f"/api/index?token={TOKEN}")
    locked.cookies.clear()
    ours = [one.getMessage() for one in caplog.records if one.name.startswith("terralign")]
    assert [line.rsplit(" ", 2)[0] for line in ours][:2] == ["GET / 303", "GET /api/index 200"]
    assert not any(TOKEN in line for line in ours)
    assert TOKEN not in repr(ServeSettings(title="", token=TOKEN))


# Many at once


def test_more_than_wait_are_refused_with_a_time_to_come_back(
    served_space: EmbeddingSpace, served_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def busy(self: Workers, *given: Any, **others: Any) -> None:
        raise Overloaded

    app = create_app(served_folder, served_space)
    monkeypatch.setattr(Workers, "run", busy)
    with TestClient(app, base_url="http://localhost") as client:
        answer = client.post("/api/search", json={"query": "a"})
    refused(answer, 503, "too many")
    assert int(answer.headers["retry-after"]) > 0


def test_a_pool_holds_as_many_as_it_says() -> None:
    import asyncio
    import threading

    async def fill() -> None:
        workers, gate = Workers("test", 1, waiting=2), threading.Event()
        running = [asyncio.create_task(workers.run(gate.wait)) for _ in range(3)]
        await asyncio.sleep(0)
        with pytest.raises(Overloaded):
            await workers.run(gate.wait)
        gate.set()
        assert await asyncio.gather(*running) == [True] * 3
        assert await workers.run(len, "abc") == 3
        workers.close()

    asyncio.run(fill())


def test_a_body_that_does_not_arrive_is_not_waited_for(
    served_space: EmbeddingSpace, served_folder: Path
) -> None:
    import asyncio

    app = create_app(
        served_folder, served_space, ServeSettings(title="", limits=Limits(seconds=0.05))
    )
    sent: list[Any] = []

    async def receive() -> Any:
        await asyncio.sleep(10)

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {
        "type": "http", "method": "POST", "path": "/api/search", "raw_path": b"/api/search",
        "query_string": b"", "headers": [(b"host", b"localhost")], "http_version": "1.1",
    }  # fmt: skip
    asyncio.run(app(scope, receive, send))
    assert sent[0]["status"] == 408
