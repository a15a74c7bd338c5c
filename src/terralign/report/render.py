"""Documents as files: one offline page, Markdown with its figures, LaTeX tables.

Names in a document are other people's text. In HTML jinja2 escapes whatever is put in; in Markdown
and LaTeX every expression of a template passes the escaping function here.
"""

from __future__ import annotations

import base64
import re
import unicodedata
from collections.abc import Callable
from functools import partial
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

from terralign.files import atomic_path, write_text
from terralign.report.canvas import DARK, LIGHT, png_bytes
from terralign.report.document import Document

MAX_TABULAR_LINES = 40
"""A LaTeX table of more lines breaks over pages."""

_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
"""Characters that act on a terminal, turn the direction of a text or are no text: left out."""


class Safe(str):
    """Text that is markup already."""


def write_document(document: Document, folder: Path, *, end: str = "") -> Path:
    """Write `report.html`, `report.md`, `figures/*.png` and missing pictures into `folder`.

    `end`: a comment at the end of the page. Returns the path of the page.
    """
    for old in (folder / "figures").glob("*.png"):
        old.unlink()
    figures: dict[str, tuple[str, str]] = {}
    for plot in document.plots:
        light, dark = (png_bytes(plot.draw(theme)) for theme in (LIGHT, DARK))
        _write(folder / "figures" / f"{plot.name}.png", light)
        figures[plot.name] = _data_uri("png", light), _data_uri("png", dark)
    for picture in document.pictures:
        if not (folder / picture.path).is_file():
            _write(folder / picture.path, picture.data)
    write_text(folder / "report.md", markdown(document))
    page = folder / "report.html"
    write_text(page, html(document, figures) + end)
    return page


def html(document: Document, figures: dict[str, tuple[str, str]]) -> str:
    """The page. `figures`: name of a plot -> data URIs, light and dark."""
    return page("page.html.j2", document=document, figures=figures)


def page(template: str, **values: object) -> str:
    """A template of HTML with values, all of which are escaped."""
    environment = _environment(autoescape=True)
    environment.filters["jpeg"] = partial(_data_uri, "jpeg")
    return _CONTROLS.sub("", environment.get_template(template).render(**values))


def markdown(document: Document) -> str:
    """The same as Markdown, for folders of a repository."""
    environment = _environment(finalize=_finalized(escape_markdown))
    environment.filters["fenced"] = _fenced
    text = environment.get_template("report.md.j2").render(document=document)
    return _CONTROLS.sub("", re.sub(r"\n{3,}", "\n\n", text))


def latex(document: Document) -> str:
    """All tables of a document, as `tables.tex`."""
    environment = _environment(
        finalize=_finalized(escape_tex),
        variable_start_string="<<", variable_end_string=">>",
        block_start_string="<%", block_end_string="%>",
        comment_start_string="<#", comment_end_string="#>",
    )  # fmt: skip
    environment.filters["minus"] = _with_minus
    environment.filters["slug"] = _slug
    template = environment.get_template("tables.tex.j2")
    return template.render(document=document, max_lines=MAX_TABULAR_LINES)


def _environment(**options: object) -> Environment:
    return Environment(
        loader=PackageLoader("terralign.report"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        **options,  # type: ignore[arg-type]
    )


def _finalized(escape: Callable[[str], str]) -> Callable[[object], str]:
    return lambda value: value if isinstance(value, Safe) else escape(str(value))


def _data_uri(kind: str, data: bytes) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def _write(path: Path, data: bytes) -> None:
    with atomic_path(path) as partial_path:
        partial_path.write_bytes(data)


def escape_markdown(text: str) -> str:
    """Text that Markdown shows as it is: on one line, its signs escaped.

    An underscore within a word is no sign of Markdown's.
    """
    signs = r"([\\`*\[\]<>|#~$&!]|(?<![^\W_])_|_(?![^\W_]))"
    return re.sub(signs, r"\\\1", " ".join(text.split()))


def _fenced(text: str, language: str) -> Safe:
    """A block of code, fenced by more ticks than it has in a row."""
    fence = "`" * max(3, 1 + max(map(len, re.findall(r"`+", text)), default=0))
    return Safe(f"{fence}{language}\n{text.rstrip()}\n{fence}")


_TEX = {
    "\\": r"\textbackslash{}",
    **{sign: f"\\{sign}" for sign in "{}$&#_%"},
    "^": r"\textasciicircum{}",
    "~": r"\textasciitilde{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"\textquotedbl{}",
    "`": r"\textasciigrave{}",
    "→": r"$\rightarrow$",
    "≥": r"$\geq$",
    "≤": r"$\leq$",
    "−": r"$-$",
    "†": r"$^{\dagger}$",
    "‡": r"$^{\ddagger}$",
    "…": r"\ldots{}",
    "–": r"\textendash{}",
    "[": "{[}",
    "]": "{]}",
    "*": "{*}",  # a star after \\ would be taken for the end of the line's own
}
_OTHER = frozenset("—‘’“”€™")
_NOT_IN_T1 = frozenset("ĦħĸĿŀŉŦŧſ")


def escape_tex(text: str) -> str:
    """Text that LaTeX sets as it is, on one line; control characters are dropped.

    Latin letters stay, since LaTeX reads UTF-8; a sign that it would stop at becomes a question
    mark.
    """
    line = unicodedata.normalize("NFC", " ".join(text.split()))
    escaped = "".join(_tex_sign(sign) for sign in line if sign.isprintable())
    return re.sub(r"([-',])(?=\1)", r"\1{}", escaped)


def _with_minus(text: str) -> str:
    """A hyphen before a number is a minus sign."""
    return re.sub(r"(?<![\w–-])-(?=\d)", "−", text)


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def _tex_sign(sign: str) -> str:
    latin = " " <= sign <= "~" or ("\xa1" <= sign <= "\u017f" and sign not in _NOT_IN_T1)
    return _TEX.get(sign, sign if latin or sign in _OTHER else "?")
