"""Tables of a report as LaTeX (booktabs), as Markdown and as HTML.

Names in them are other people's text: each form escapes what it would read as its own signs.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence

from terralign.bench.report.tables import Cell, Column, Table
from terralign.evaluate.page import escape_html, escape_markdown, markdown_row

MAX_LINES = 40
"""A LaTeX table of more lines breaks over pages (longtable)."""

SIGNS = {"paired": "†", "overlap": "‡"}

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
    "−": r"$-$",
    "†": r"$^{\dagger}$",
    "‡": r"$^{\ddagger}$",
    "…": r"\ldots{}",
    "–": r"\textendash{}",
    "[": "{[}",
    "]": "{]}",
}

TEX_HEAD = r"""% Tables of a terralign bench. In the preamble:
% \usepackage[T1]{fontenc}
% \usepackage{booktabs,longtable,textcomp}
"""


def escape_tex(text: str) -> str:
    """Text that LaTeX sets as it is, on one line; control characters are dropped.

    Letters outside ASCII stay: LaTeX reads UTF-8.
    """
    line = " ".join(str(text).split())
    visible = "".join(sign for sign in line if sign.isprintable())
    return re.sub(r"-(?=-)", "-{}", "".join(_TEX.get(sign, sign) for sign in visible))


def tex_table(table: Table, *, caption: str = "") -> str:
    """One table. `caption`: more to say below the title."""
    heads, columns = table.heads, table.columns
    spec = "l" * len(heads) + "r" * len(columns)
    title = _sentence(table.title, table.note, caption)
    name = re.sub(r"[^a-z0-9]+", "-", table.name.lower()).strip("-")
    about = f"\\caption{{{escape_tex(title)}}}\\label{{tab:{name}}}"
    head = _tex_head(table)
    body = []
    for number, (heading, lines) in enumerate(table.groups):
        if number:
            body.append(r"\addlinespace")
        if heading:
            width = len(heads) + len(columns)
            body.append(rf"\multicolumn{{{width}}}{{l}}{{\emph{{{escape_tex(heading)}}}}} \\")
        for line in lines:
            cells = [escape_tex(label) for label in line.labels]
            cells += [_tex_cell(cell) for cell in line.cells]
            body.append(" & ".join(cells) + r" \\")
    if table.num_lines > MAX_LINES:
        out = ["{\\small", f"\\begin{{longtable}}{{{spec}}}", about + r"\\", r"\toprule"]
        out += [*head, r"\midrule", r"\endhead", *body, r"\bottomrule", r"\end{longtable}", "}"]
    else:
        out = [r"\begin{table}[tbp]", r"\centering\small", about, f"\\begin{{tabular}}{{{spec}}}"]
        out += [r"\toprule", *head, r"\midrule", *body, r"\bottomrule"]
        out += [r"\end{tabular}", r"\end{table}"]
    return "\n".join(out) + "\n"


def _tex_head(table: Table) -> list[str]:
    out = []
    indent = len(table.heads)
    if any(column.heading for column in table.columns):
        cells, rules, place = [""] * indent, [], indent + 1
        for heading, group in itertools.groupby(table.columns, key=lambda column: column.heading):
            width = len(list(group))
            cells.append(rf"\multicolumn{{{width}}}{{c}}{{{escape_tex(heading)}}}")
            rules.append(rf"\cmidrule(lr){{{place}-{place + width - 1}}}")
            place += width
        out += [" & ".join(cells) + r" \\", "".join(rules)]
    names = [*table.heads, *(column.metric for column in table.columns)]
    out.append(" & ".join(escape_tex(name) for name in names) + r" \\")
    if any(column.about for column in table.columns):
        small = [
            rf"{{\scriptsize {escape_tex(c.about)}}}" if c.about else "" for c in table.columns
        ]
        out.append(" & ".join([""] * indent + small) + r" \\")
    return out


def _tex_cell(cell: Cell | None) -> str:
    if cell is None:
        return "--"
    value = escape_tex(cell.value)
    if cell.mark == "best":
        value = rf"\textbf{{{value}}}"
    value += escape_tex(SIGNS.get(cell.mark, ""))
    return value + (rf" {{\scriptsize ({escape_tex(cell.interval)})}}" if cell.interval else "")


def markdown_table(table: Table) -> list[str]:
    """The lines of one table, its title not among them."""
    width = len(table.heads) + len(table.columns)
    names = [*table.heads, *(_column_text(column) for column in table.columns)]
    out = markdown_row(names)
    aligned = ["---"] * len(table.heads) + ["---:"] * len(table.columns)
    out += markdown_row(aligned, raw=True)
    for heading, lines in table.groups:
        if heading:
            title = f"*{escape_markdown(heading)}*"
            out += markdown_row([title, *[""] * (width - 1)], raw=True)
        for line in lines:
            cells = [escape_markdown(label) for label in line.labels]
            out += markdown_row([*cells, *map(_markdown_cell, line.cells)], raw=True)
    return [*out, ""]


def _markdown_cell(cell: Cell | None) -> str:
    if cell is None:
        return ""
    value = escape_markdown(cell.value)
    if cell.mark == "best":
        value = f"**{value}**"
    value += SIGNS.get(cell.mark, "")
    return value + (f" ({escape_markdown(cell.interval)})" if cell.interval else "")


def html_table(table: Table) -> str:
    """One table, its title not in it; on a phone each of its lines becomes a card."""
    heads = "".join(f"<th scope=col>{escape_html(head)}</th>" for head in table.heads)
    for column in table.columns:
        parts = [escape_html(text) for text in (column.heading, column.metric) if text]
        if column.about:
            parts.append(f"<small>{escape_html(column.about)}</small>")
        heads += f"<th scope=col class=n>{'<br>'.join(parts)}</th>"
    kind = "one" if len(table.heads) == 1 else "two"
    out = [
        f'<div class=scroll><table class="results {kind}"><thead><tr>{heads}</tr></thead><tbody>'
    ]
    width = len(table.heads) + len(table.columns)
    for heading, lines in table.groups:
        if heading:
            title = escape_html(heading)
            out.append(f"<tr class=group><th colspan={width} scope=rowgroup>{title}</th></tr>")
        for line in lines:
            out.append("<tr>" + "".join(f"<td>{escape_html(label)}</td>" for label in line.labels))
            for column, cell in zip(table.columns, line.cells, strict=True):
                name = escape_html(_column_text(column))
                out.append(f'<td class=n data-label="{name}">{_html_cell(cell)}</td>')
            out.append("</tr>")
    return "".join(out) + "</tbody></table></div>"


def _html_cell(cell: Cell | None) -> str:
    if cell is None:
        return ""
    value = escape_html(cell.value)
    if cell.mark == "best":
        value = f"<b>{value}</b>"
    value += SIGNS.get(cell.mark, "")
    return value + (f" <span>{escape_html(cell.interval)}</span>" if cell.interval else "")


def _column_text(column: Column) -> str:
    name = ", ".join(text for text in (column.heading, column.metric) if text)
    return f"{name} ({column.about})" if column.about else name


def _sentence(*parts: str) -> str:
    """Sentences in a row, each with a full stop."""
    return " ".join(part if part.endswith(".") else part + "." for part in parts if part)


def tex_file(tables: Sequence[Table], *, legend: str, marks: str) -> str:
    """`tables.tex`: all tables, each caption with the legend, and the marks where it has any."""
    out = [TEX_HEAD]
    for table in tables:
        more = f"{legend} {marks}" if table.is_marked else legend
        out.append(tex_table(table, caption=more))
    return "\n".join(out)
