"""What pages of reports are made of: escaping, tables, pictures in two themes, the page's style.

Everything that came from outside is escaped; a page needs nothing but itself.
"""

from __future__ import annotations

import base64
import html
import io
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from matplotlib.figure import Figure
from PIL import Image

from terralign.evaluate.canvas import Theme

CAPTION_HEIGHT = 0.12
"""Of a figure's caption, as a share of the figure's width."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Picture:
    """A figure of the report: `draw` makes it in a theme."""

    name: str
    caption: str
    draw: Callable[[Theme], Figure]


def page_html(title: str, body: Sequence[str], *, style: str = "") -> str:
    """The whole page. `style`: more CSS, of ours."""
    filled = PAGE.replace("@STYLE@", style).replace("@TITLE@", escape_html(title))
    return filled.replace("@BODY@", "\n".join(body))


def plain_table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of texts that can be scrolled sideways."""
    out = "".join(f"<th scope=col>{escape_html(head)}</th>" for head in heads)
    body = "".join(
        "<tr>" + "".join(f"<td>{escape_html(cell)}</td>" for cell in row) + "</tr>" for row in rows
    )
    return (
        f"<div class=scroll><table><thead><tr>{out}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def picture_html(picture: Picture, light: bytes, dark: bytes) -> str:
    """A figure whose PNG follows the reader's theme."""
    one, other = (f"data:image/png;base64,{base64.b64encode(d).decode()}" for d in (light, dark))
    caption = escape_html(picture.caption)
    return (
        f'<figure><picture><source media="(prefers-color-scheme: dark)" srcset="{other}">'
        f'<img alt="{caption}" src="{one}"></picture><figcaption>{caption}</figcaption></figure>'
    )


def columns_html(pictures: Sequence[tuple[str, bytes]]) -> str:
    """Figures in two columns of about the same height; on a narrow page one after another.

    `pictures`: (HTML, PNG) of each. The order is kept within a column, and the first figure is the
    first of the left one.
    """
    heights = [_height_to_width(png) + CAPTION_HEIGHT for _, png in pictures]
    columns: tuple[list[int], list[int]] = ([], [])
    for number in sorted(range(len(pictures)), key=lambda place: -heights[place]):
        min(columns, key=lambda column: sum(heights[place] for place in column)).append(number)
    parts = (
        "".join(pictures[n][0] for n in sorted(one)) for one in sorted(columns, key=sorted) if one
    )
    return f"<div class=figures>{''.join(f'<div>{part}</div>' for part in parts)}</div>"


def _height_to_width(png: bytes) -> float:
    width, height = Image.open(io.BytesIO(png)).size
    return float(height / width)


def escape_html(text: str) -> str:
    """Text as it is, in an element or a quoted attribute."""
    return html.escape(str(text), quote=True)


def escape_markdown(text: str) -> str:
    """Text that Markdown shows as it is: on one line, its signs escaped."""
    return re.sub(r"([\\`*_\[\]<>|#~$&!])", r"\\\1", " ".join(str(text).split()))


def markdown_row(cells: Sequence[str], *, raw: bool = False) -> list[str]:
    """One row of a table, as a list of one line; `raw`: the cells are Markdown already."""
    return ["| " + " | ".join(cell if raw else escape_markdown(cell) for cell in cells) + " |"]


def markdown_code(text: str, language: str) -> list[str]:
    """A block of code, fenced by more ticks than it has in a row."""
    fence = "`" * max(3, 1 + max(map(len, re.findall(r"`+", text)), default=0))
    return [f"{fence}{language}", text.rstrip("\n"), fence]


PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>@TITLE@</title>
<style>
:root { --bg: #ffffff; --fg: #1c2127; --muted: #5a636e; --line: #dfe3e8; --soft: #f4f6f8;
  --right: #1a7f4b; --wrong: #b3392f; }
@media (prefers-color-scheme: dark) {
  :root { --bg: #161b22; --fg: #e6edf3; --muted: #9aa4af; --line: #30363d; --soft: #1f262e;
    --right: #4cc98a; --wrong: #f0827a; }
}
body { background: var(--bg); color: var(--fg); margin: 0 auto; max-width: 72rem;
  padding: 1rem; font: 16px/1.5 system-ui, sans-serif; overflow-wrap: break-word; }
h1 { font-size: 1.5rem; line-height: 1.25; }
h2 { font-size: 1.15rem; margin-top: 2rem; }
.small, figcaption, td span { color: var(--muted); font-size: .85rem; }
table { border-collapse: collapse; width: 100%; font-size: .92rem; }
th, td { text-align: left; padding: .3rem .5rem; border-bottom: 1px solid var(--line); }
td.n { text-align: right; font-variant-numeric: tabular-nums; }
td span, td.n, .results td:nth-child(2) { white-space: nowrap; }
thead th { color: var(--muted); font-weight: 500; }
.results thead th:nth-child(n+3) { text-align: right; }
.group th { background: var(--soft); font-weight: 400; }
.scroll, pre { overflow-x: auto; }
pre { background: var(--soft); padding: .8rem; font-size: .85rem; }
p, .notes, dl { max-width: 60rem; }
figure { margin: 1.5rem 0; }
img { width: 100%; height: auto; }
.figures { display: flex; gap: 2rem; }
.figures > div { flex: 1; min-width: 0; max-width: 40rem; }
.figures figure { margin: 0; padding: .8rem 0; }
.chips { display: flex; gap: 2px; }
img.chip { width: 50%; max-width: 5.5rem; min-width: 0; aspect-ratio: 1; object-fit: cover; }
.right b { color: var(--right); }
.wrong b { color: var(--wrong); }
.cards { display: grid; gap: 1.2rem 1.5rem;
  grid-template-columns: repeat(auto-fill, minmax(18rem, 1fr)); }
.card img.chip { flex: 1; max-width: 7rem; }
.card p { margin: .3rem 0 0; }
.card dl { margin: 0; grid-template-columns: minmax(0, 10.5rem) 1fr; }
.card dt { font-weight: 400; color: var(--muted); }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .15rem .8rem; font-size: .92rem; }
dt { font-weight: 600; }
dd { margin: 0; }
pre.command { white-space: pre-wrap; overflow-wrap: anywhere; }
details { margin: .6rem 0; }
summary { cursor: pointer; }
@media (max-width: 55rem) {
  .figures { display: block; }
}
@media (max-width: 40rem) {
  .results thead { display: none; }
  .results, .results tbody { display: block; }
  .results tr { display: grid; grid-template-columns: 1fr 1fr; padding: .35rem 0;
    border-bottom: 1px solid var(--line); }
  .results tr.group { display: block; padding: .6rem 0 0; border: 0; }
  .results tr.group th { display: block; }
  .results td, .results td.n { min-width: 0; border: 0; padding: .1rem .5rem;
    text-align: left; white-space: normal; }
  .results td:nth-child(-n+2) { white-space: normal; font-weight: 600; }
  .results td:empty { display: none; }
  .results td[data-label]::before { content: attr(data-label) " "; color: var(--muted); }
}
@STYLE@</style></head><body>
@BODY@
</body></html>
"""
