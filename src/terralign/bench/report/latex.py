r"""Tables of a report as LaTeX (booktabs), each no wider than the page.

A table of many columns is cut into panels, one below the other, each with the labels of the lines
that have figures in it. What is too tall for a page breaks over pages (longtable). Names are other
people's text: what LaTeX would read as its own signs is escaped.
"""

from __future__ import annotations

import itertools
import math
import re
import textwrap
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from terralign.bench.report.tables import SIGNS, Cell, Column, Table, TableLine

MAX_LINES = 40
"""A table of more lines, headings among them, breaks over pages."""
TEXT_WIDTH = 345
"""Points that a table may take: a page of the article class at its usual size."""
SEPARATION = 3
"""Points left and right of a column."""
MAX_LABEL = (150, 110)
"""Points of a column of labels, where it is the only one and where there are several; longer
labels have several lines."""
MAX_WORD = 80
"""Points of a word in a column's heading; longer ones are cut."""
LETTER = 4.2
"""Points of a letter on average."""

TEX_HEAD = r"""% Tables of a terralign bench. In the preamble:
% \usepackage[T1]{fontenc}
% \usepackage{array,booktabs,longtable,textcomp}
% A sign that these cannot set is written as ?.
"""

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
_UNKNOWN = frozenset("ĦħĸĿŀŉŦŧſ")
"""Latin letters that T1 lacks."""


def escape_tex(text: str) -> str:
    """Text that LaTeX sets as it is, on one line; control characters are dropped.

    Latin letters stay, since LaTeX reads UTF-8; a sign that it would stop at becomes a question
    mark.
    """
    line = unicodedata.normalize("NFC", " ".join(str(text).split()))
    escaped = "".join(_tex_sign(sign) for sign in line if sign.isprintable())
    return re.sub(r"([-',])(?=\1)", r"\1{}", escaped)


def _tex_sign(sign: str) -> str:
    latin = " " <= sign <= "~" or ("\xa1" <= sign <= "\u017f" and sign not in _UNKNOWN)
    return _TEX.get(sign, sign if latin or sign in _OTHER else "?")


@dataclass(frozen=True, kw_only=True, slots=True)
class _Panel:
    """Columns of a table that fit side by side. `labels`, `widths`: points of their columns."""

    table: Table
    columns: tuple[int, ...]
    labels: tuple[float, ...]
    widths: tuple[float, ...]
    only: bool

    @property
    def width(self) -> float:
        """Points of the whole."""
        parts = (*self.labels, *self.widths)
        return sum(parts) + 2 * SEPARATION * len(parts)

    @property
    def specification(self) -> str:
        """The columns as LaTeX has them."""
        limit = _max_label(self.table)
        labels = [
            rf">{{\raggedright\arraybackslash}}p{{{limit}pt}}" if width >= limit else "l"
            for width in self.labels
        ]
        return "".join(labels) + "r" * len(self.columns)

    def heads(self) -> list[str]:
        """The rows above the figures: headings over rules, metrics, what the columns share."""
        columns = [self.table.columns[one] for one in self.columns]
        out = []
        if any(column.heading for column in columns):
            spans = [
                (heading, [place for place, _ in group])
                for heading, group in itertools.groupby(
                    enumerate(columns), key=lambda one: one[1].heading
                )
            ]
            texts = [(text, sum(self.widths[i] for i in places)) for text, places in spans]
            sizes = [len(places) for _, places in spans]
            out += self._wrapped(
                texts, lambda text, i: rf"\multicolumn{{{sizes[i]}}}{{c}}{{{text}}}"
            )
            out.append("".join(self._rules(sizes)))
        names = [(column.metric, width) for column, width in zip(columns, self.widths, strict=True)]
        out += self._wrapped(names, lambda text, _: text, labels=self.table.heads)
        shared = [
            (column.about.replace("chance ", "chance\N{NO-BREAK SPACE}"), width)
            for column, width in zip(columns, self.widths, strict=True)
        ]
        if any(text for text, _ in shared):
            out += self._wrapped(shared, lambda text, _: rf"{{\scriptsize {text}}}" if text else "")
        return out

    def _rules(self, sizes: Sequence[int]) -> Iterator[str]:
        place = len(self.labels) + 1
        for size in sizes:
            yield rf"\cmidrule(lr){{{place}-{place + size - 1}}}"
            place += size

    def _wrapped(
        self,
        texts: Sequence[tuple[str, float]],
        form: Callable[[str, int], str],
        labels: Sequence[str] = (),
    ) -> list[str]:
        """Rows of texts, each broken to its width, their last lines side by side."""
        broken = [_wrap(text, width) for text, width in texts]
        height = max(map(len, broken))
        rows = []
        for row in range(height):
            first = labels if row == height - 1 and labels else [""] * len(self.labels)
            cells = [escape_tex(label) for label in first]
            for place, lines in enumerate(broken):
                line = row - height + len(lines)
                cells.append(form(escape_tex(lines[line]) if line >= 0 else "", place))
            rows.append(" & ".join(cells) + r" \\")
        return rows

    def body(self) -> tuple[list[str], int]:
        """The rows of figures, and how many lines of text they take."""
        rows: list[str] = []
        height = 0
        for heading, lines in self.table.groups:
            shown = [line for line in lines if self.only or any(self._cells(line))]
            if not shown:
                continue
            if rows:
                rows.append(r"\addlinespace")
            if heading:
                rows.append(self._heading(heading))
                height += math.ceil(_width(heading) / self.width)
            for line in shown:
                cells = [_breakable(escape_tex(label)) for label in line.labels]
                rows.append(" & ".join([*cells, *map(_tex_cell, self._cells(line))]) + r" \\")
                pairs = zip(line.labels, self.labels, strict=True)
                height += max(math.ceil(_width(text) / max(own, 1)) for text, own in pairs)
        return rows, height

    def _cells(self, line: TableLine) -> list[Cell | None]:
        return [line.cells[one] for one in self.columns]

    def _heading(self, heading: str) -> str:
        span = len(self.labels) + len(self.columns)
        room = self.width - 2 * SEPARATION
        text = rf"\emph{{{escape_tex(heading)}}}"
        if _width(heading) <= room:
            return rf"\multicolumn{{{span}}}{{l}}{{{text}}} \\*"
        return rf"\multicolumn{{{span}}}{{p{{{room:.0f}pt}}}}{{\raggedright {text}}} \\*"


def tex_table(table: Table, *, caption: str = "") -> str:
    """One table. `caption`: more to say below the title."""
    panels = _panels(table)
    title = escape_tex(table.title)
    text = escape_tex(_sentence(table.title, table.explanation, caption))
    name = re.sub(r"[^a-z0-9]+", "-", table.name.lower()).strip("-")
    about = rf"\caption[{title}]{{{text}}}\label{{tab:{name}}}"
    parts = [(panel, panel.heads(), *panel.body()) for panel in panels]
    small = rf"\footnotesize\setlength{{\tabcolsep}}{{{SEPARATION}pt}}"
    if sum(len(heads) + height for _, heads, _, height in parts) > MAX_LINES:
        out = ["{" + small + r"\setlength{\LTcapwidth}{\linewidth}"]
        for number, (panel, heads, body, _) in enumerate(parts):
            top = [r"\toprule", *heads, r"\midrule"]
            if number:
                out.append(r"\addtocounter{table}{-1}")
            out.append(rf"\begin{{longtable}}{{{panel.specification}}}")
            if not number:
                out += [about + r"\\", *top, r"\endfirsthead"]
            out += [*top, r"\endhead", *body, r"\bottomrule", r"\end{longtable}"]
        return "\n".join([*out, "}"]) + "\n"
    out = [r"\begin{table}[htbp]", r"\centering", about, r"\par\smallskip", small]
    for number, (panel, heads, body, _) in enumerate(parts):
        if number:
            out.append(r"\par\medskip")
        out.append(rf"\begin{{tabular}}{{{panel.specification}}}")
        out += [r"\toprule", *heads, r"\midrule", *body, r"\bottomrule", r"\end{tabular}"]
    return "\n".join([*out, r"\end{table}"]) + "\n"


def tex_file(tables: Sequence[Table], *, legend: str, marks: str) -> str:
    """`tables.tex`: all tables, each caption with a legend (`legend` where it has none of its own),
    and the marks where it has any."""
    out = [TEX_HEAD]
    for table in tables:
        more = ("" if table.legend else legend, marks if table.is_marked else "")
        out.append(tex_table(table, caption=" ".join(filter(None, more))))
    return "\n".join(out)


def _panels(table: Table) -> list[_Panel]:
    """The table's columns in order, as many side by side as fit."""
    lines = [line for _, group in table.groups for line in group]
    limit = _max_label(table)
    labels = tuple(
        min(limit, max(map(_width, (head, *(line.labels[place] for line in lines)))))
        for place, head in enumerate(table.heads)
    )
    widths = [
        max(_heading_width(column), *(_cell_width(line.cells[place]) for line in lines))
        for place, column in enumerate(table.columns)
    ]
    room = TEXT_WIDTH - sum(labels) - 2 * SEPARATION * len(labels)
    parts = _fill(widths, room)
    while room > 0 and len(even := _fill(widths, room - 5)) == len(parts):  # of like widths
        parts, room = even, room - 5
    return [
        _Panel(
            table=table,
            columns=tuple(part),
            labels=labels,
            widths=tuple(widths[place] for place in part),
            only=len(parts) == 1,
        )
        for part in parts
    ]


def _fill(widths: Sequence[float], room: float) -> list[list[int]]:
    """Places of columns in order, in as many parts as it takes to fit each into the room."""
    parts: list[list[int]] = [[]]
    left = room
    for place, width in enumerate(widths):
        left -= width + 2 * SEPARATION
        if left < 0 and parts[-1]:
            parts.append([])
            left = room - width - 2 * SEPARATION
        parts[-1].append(place)
    return parts


def _max_label(table: Table) -> int:
    return MAX_LABEL[len(table.heads) > 1]


def _width(text: str) -> float:
    """About how many points a text takes in a table."""
    return sum(
        2.7 if sign in " .,:;'!|()[]iljtf-" else 6.4 if sign.isupper() or sign in "mw%→†‡" else 4.25
        for sign in text
    )


def _wrap(text: str, width: float) -> list[str]:
    """A text's lines: whole words, unless they are longer than `MAX_WORD`."""
    words = max(map(len, _words(text)), default=1)
    letters = max(int(width / LETTER), min(words, int(MAX_WORD / LETTER)))
    return textwrap.wrap(text, letters) or [""]


def _words(text: str) -> list[str]:
    return re.findall(r"[^\s-]+-?", text)


def _heading_width(column: Column) -> float:
    words = _words(f"{column.heading} {column.metric} {column.about}")
    return min(MAX_WORD, max(map(_width, words), default=0.0))


def _cell_width(cell: Cell | None) -> float:
    if cell is None:
        return _width("--")
    bold = 1.15 if cell.mark == "best" else 1.0
    interval = 0.94 * _width(f" ({cell.details})") if cell.details else 0.0
    return bold * _width(cell.value) + _width(SIGNS.get(cell.mark, "")) + interval


def _tex_cell(cell: Cell | None) -> str:
    if cell is None:
        return "--"
    value = _number(cell.value)
    if cell.mark == "best":
        value = rf"\textbf{{{value}}}"
    value += escape_tex(SIGNS.get(cell.mark, ""))
    return value + (rf" {{\scriptsize ({_number(cell.details)})}}" if cell.details else "")


def _number(text: str) -> str:
    """A hyphen before a number is a minus sign."""
    return escape_tex(re.sub(r"(?<![\w–-])-(?=\d)", "−", text))


def _breakable(escaped: str) -> str:
    """Names of models and files may break where their words do."""
    return re.sub(r"(\\_|/|:)(?=\S)", r"\1\\allowbreak{}", escaped)


def _sentence(*parts: str) -> str:
    """Sentences in a row, each with a full stop."""
    return " ".join(part if part.endswith(".") else part + "." for part in parts if part)
