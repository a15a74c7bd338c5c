"""The settings of a server, and the limits of what it takes."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

EXAMPLES = (
    *("a river", "a town with houses", "fish ponds", "farmland", "forest", "bare soil"),
    *("a lake", "a road", "an airport", "the coast"),
)
"""Texts that the API proposes; the page shows the first six."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """What one request may ask for. `text`: characters; `like`: examples for and against, together;
    `k`: hits; `page`: hits of a page; `vertices`: of a polygon; `cells`: windows with a score;
    `zoom`: the deepest of tiles; `body`: bytes. `scenes`: how many are listed. `waiting`: requests
    that wait for a thread, `seconds`: how long a body may take to arrive."""

    text: int = 200
    like: int = 50
    k: int = 500
    page: int = 100
    vertices: int = 5_000
    cells: int = 20_000
    zoom: int = 22
    body: int = 256 * 1024
    scenes: int = 5_000
    waiting: int = 128
    seconds: float = 10.0


LIMITS = Limits()


@dataclass(frozen=True, kw_only=True, slots=True)
class ServeSettings:
    """How an index is served.

    `title`: of the page. `token`: what requests must show; None: nothing. `hosts`: names that a
    request may call the server by; None: any. `scenes`: folders from which files of scenes may be
    read; empty: those that the parts name. `refresh_s`: seconds between two looks for new parts.
    """

    title: str
    token: str | None = field(default=None, repr=False)
    hosts: tuple[str, ...] | None = ("localhost", "127.0.0.1", "[::1]")
    scenes: tuple[Path, ...] = ()
    limits: Limits = LIMITS
    refresh_s: float = 5.0
