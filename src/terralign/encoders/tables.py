"""Values shown as tables: text for terminals and `repr`, HTML for notebooks."""

from __future__ import annotations

import html
from collections.abc import Callable, Sequence
from dataclasses import dataclass

MAX_ROWS = 10
MAX_CELL = 60
"""Characters of a cell; a longer one is cut at its beginning, since paths differ at their end."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Table:
    """Column names and the cells that are shown; `num_more`: rows that are not."""

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    num_more: int = 0

    @classmethod
    def of_rows(
        cls,
        num_rows: int,
        cells: Sequence[tuple[str, Callable[[int], str]]],
        *,
        max_rows: int = MAX_ROWS,
    ) -> Table:
        """The first rows of `num_rows`; `cells`: column names, each with its cell in a row."""
        shown = range(min(num_rows, max_rows))
        return cls(
            columns=tuple(_cut(name) for name, _ in cells),
            rows=tuple(tuple(_cut(cell(row)) for _, cell in cells) for row in shown),
            num_more=num_rows - len(shown),
        )

    def text(self) -> str:
        """Aligned columns, without control characters."""
        lines = [self.columns, *self.rows]
        widths = [max(len(line[n]) for line in lines) for n in range(len(self.columns))]
        shown = [
            "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
            for line in lines
        ]
        if self.num_more:
            shown.append(f"... and {self.num_more:,} more rows")
        return "\n".join(shown)

    def html(self, caption: str) -> str:
        """A table whose cells and caption are escaped."""
        head = "".join(f"<th>{html.escape(name)}</th>" for name in self.columns)
        body = "".join(
            "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>"
            for row in self.rows
        )
        more = f"<p>... and {self.num_more:,} more rows</p>" if self.num_more else ""
        return (
            f"<p>{html.escape(caption)}</p><table><thead><tr>{head}</tr></thead>"
            f"<tbody>{body}</tbody></table>{more}"
        )


class Shown:
    """A value that is shown as a title and a table, in terminals and notebooks."""

    def _title(self) -> str:
        raise NotImplementedError

    def table(self) -> Table:
        """The first rows."""
        raise NotImplementedError

    def __repr__(self) -> str:
        return f"{self._title()}\n{self.table().text()}"

    def _repr_html_(self) -> str:
        return self.table().html(self._title())


def short_keys(keys: Sequence[str]) -> list[str]:
    """Keys without the folder that those in the first rows share."""
    shown = keys[:MAX_ROWS]
    if len(shown) < 2:
        return list(keys)
    first, last = min(shown), max(shown)  # what these two share, all between them do
    length = next(
        (n for n, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), len(first)
    )
    folder = first[: first.rfind("/", 0, length) + 1]
    return [key.removeprefix(folder) for key in keys]


def _cut(text: str) -> str:
    clean = "".join(one if one.isprintable() else "?" for one in text)
    return clean if len(clean) <= MAX_CELL else f"...{clean[3 - MAX_CELL :]}"
