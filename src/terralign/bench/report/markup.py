"""Tables of a report as Markdown and as HTML.

Names in them are other people's text: each form escapes what it would read as its own signs.
"""

from __future__ import annotations

from terralign.bench.report.tables import SIGNS, Cell, Column, Table
from terralign.evaluation.page import escape_html, escape_markdown, markdown_row


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
    return value + (f" ({escape_markdown(cell.details)})" if cell.details else "")


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
    if cell.interval:
        value += f" <span>{escape_html(cell.interval)}</span>"
    return value + (f" <span class=p>{escape_html(cell.p_values)}</span>" if cell.p_values else "")


def _column_text(column: Column) -> str:
    name = ", ".join(text for text in (column.heading, column.metric) if text)
    return f"{name} ({column.about})" if column.about else name
