"""A report as a value: sections of texts, tables, figures and pictures. `render.py` writes it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import ClassVar

from matplotlib.figure import Figure

from terralign.report.canvas import Theme
from terralign.report.tables import Table


@dataclass(frozen=True, kw_only=True, slots=True)
class Text:
    """A paragraph; `small`: one that explains."""

    kind: ClassVar[str] = "text"

    text: str
    small: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Notes:
    """A list of sentences."""

    kind: ClassVar[str] = "notes"

    items: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Code:
    """Text to be copied. `title`: what it is; `folded`: a page shows it on demand."""

    kind: ClassVar[str] = "code"

    title: str
    text: str
    language: str
    folded: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Plot:
    """A figure. `name`: of its file, without ending; `draw` makes it in a theme."""

    name: str
    caption: str
    draw: Callable[[Theme], Figure]


@dataclass(frozen=True, kw_only=True, slots=True)
class Plots:
    """Figures beside one another."""

    kind: ClassVar[str] = "plots"

    plots: tuple[Plot, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Picture:
    """A view of a sample: JPEG bytes, and their path in the report's folder."""

    view: str
    path: str
    data: bytes


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """What a model answered about a card: a predicted class, or a retrieved item.

    `by`: who answered; `detail`: more about it, such as the cosine.
    """

    text: str
    is_right: bool
    by: str = ""
    detail: str = ""
    pictures: tuple[Picture, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Card:
    """A sample, or a query of words, with the answers."""

    text: str
    answers: tuple[Answer, ...]
    pictures: tuple[Picture, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Gallery:
    """Cards with as many answers each.

    `heads`: of the columns of a table of them. `legend`: how they were drawn, and what their views
    show.
    """

    kind: ClassVar[str] = "gallery"

    title: str
    heads: tuple[str, ...]
    cards: tuple[Card, ...]
    legend: str = ""
    folded: bool = False

    @property
    def is_retrieval(self) -> bool:
        """Whether the answers are items of a gallery, no predictions of models."""
        return not any(answer.by for card in self.cards for answer in card.answers)

    @property
    def pictures(self) -> list[Picture]:
        """Those of its cards and answers."""
        return [
            picture
            for card in self.cards
            for pictures in (card.pictures, *(answer.pictures for answer in card.answers))
            for picture in pictures
        ]


Block = Text | Notes | Code | Plots | Gallery | Table


@dataclass(frozen=True, kw_only=True, slots=True)
class Section:
    """`title` "" for the one that opens the report."""

    title: str
    blocks: tuple[Block, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Document:
    """A whole report."""

    title: str
    sections: tuple[Section, ...]

    @property
    def tables(self) -> list[Table]:
        """All tables that hold values, in their order."""
        return [one for one in self._blocks() if isinstance(one, Table) and one.columns]

    @property
    def plots(self) -> list[Plot]:
        """All figures."""
        return [plot for one in self._blocks() if isinstance(one, Plots) for plot in one.plots]

    @property
    def pictures(self) -> list[Picture]:
        """All pictures of samples."""
        shown = [one for one in self._blocks() if isinstance(one, Gallery)]
        return [picture for one in shown for picture in one.pictures]

    def _blocks(self) -> Iterator[Block]:
        for section in self.sections:
            yield from section.blocks
