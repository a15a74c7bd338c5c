"""The hits of a search as one offline page: pictures, scores, dates, and a map."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from terralign.errors import StorageError
from terralign.files import write_text
from terralign.report.render import page
from terralign.svg_map import Place, Ring, SvgMap, draw_map

MAX_CARDS = 50
"""Hits that a page shows."""

_MARK = '<meta name="generator" content="terralign '
"""Marks our pages, so that no other file is overwritten; the name of the command follows."""


@dataclass(frozen=True, kw_only=True, slots=True)
class HitCard:
    """One hit. `pictures`: what each shows, and its JPEG; `missing`: what keeps from showing it.
    `facts`: names and values. `rings`: its outline."""

    rank: int
    score: str
    pictures: tuple[tuple[str, bytes], ...]
    missing: str
    facts: tuple[tuple[str, str], ...]
    rings: tuple[Ring, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class HitPage:
    """All of a page. `lines`: about the search. `num_left_out`: hits that are not shown. `scenes`:
    names and outlines of those that hits lie in. `legend`: what the pictures show."""

    query: str
    lines: tuple[str, ...]
    cards: tuple[HitCard, ...]
    num_left_out: int
    scenes: tuple[tuple[str, tuple[Ring, ...]], ...]
    legend: tuple[str, ...]


def check_page(path: Path) -> None:
    """`StorageError` for a name that does not end in .html, or of a file that is not ours."""
    if path.suffix.lower() not in (".html", ".htm"):
        raise StorageError(f"{path}: choose a name that ends in .html")
    if path.exists():
        with open(path, "rb") as file:
            ours = _MARK.encode() in file.read(2000)
        if not ours:
            raise StorageError(f"{path} exists and was not written by terralign; choose another")


def write_hits(content: HitPage, path: Path) -> Path:
    """Write the page, whole or not at all, in place of an earlier one of ours."""
    check_page(path)
    write_text(path, page("hits.html.j2", content=content, map=_map_of(content)))
    return path


def _map_of(content: HitPage) -> SvgMap | None:
    """The map; None where no hit has a place."""
    return draw_map(
        [
            Place(
                rings=card.rings,
                label=str(card.rank),
                title=f"hit {card.rank}",
                link=f"#hit-{card.rank}",
            )
            for card in content.cards
        ],
        scenes=[Place(rings=own, title=name) for name, own in content.scenes],
        name="Map of the hits",
    )
