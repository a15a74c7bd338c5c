"""Example retrievals of a bench as pictures: a query, what it finds first, right or wrong."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from terralign.encoders.space import RGB
from terralign.errors import StorageError
from terralign.evaluation.chip_views import VIEWS_LEGEND
from terralign.evaluation.rows import PLAIN, Row
from terralign.files import read_json
from terralign.report.document import Answer, Card, Gallery, Picture

PICTURES = "pictures"
PICTURE_NAME = re.compile(r"[0-9a-f]{8,64}\.jpg")
MAX_PICTURE_BYTES = 200_000
MAX_BLOCKS = 24
"""Pairs of modalities of a model that a report shows examples of."""
MAX_QUERIES = 3
"""Of each."""

Views = Mapping[str, Mapping[str, str]]
"""Sensor -> view -> file name in the pictures' folder."""

LEGEND = (
    "Queries drawn at random, always the same ones, with what each finds first and the cosine. "
    "✓: of the query's class (of several classes: it shares one; without classes: it is the same "
    "sample)."
)


class _Result(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")

    key: str
    index: int | None
    label: tuple[str, ...] = ()
    cosine: float
    right: bool


class Example(BaseModel):
    """A query and what it found first. `query_index`: None for words."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    query: str
    query_index: int | None
    label: tuple[str, ...] = ()
    results: tuple[_Result, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class ExampleBlock:
    """Examples of one pair of modalities under one model. `sensors`: tower -> what it saw."""

    entry: str
    model: str
    query_tower: str
    gallery_tower: str
    examples: tuple[Example, ...]
    sensors: Mapping[str, str]
    prompts: str | None = None

    @property
    def title(self) -> str:
        """Pair, model, and the prompts where words are one side."""
        prompts = f", prompts {self.prompts}" if self.prompts else ""
        return f"{self.query_tower} → {self.gallery_tower}, {self.model}{prompts}"


def find_examples(
    rows: Sequence[Row], details: Mapping[str, Mapping[str, Any]]
) -> list[ExampleBlock]:
    """The examples that measurements kept, plain retrieval only, one block each.

    `details`: measurement -> its details. `StorageError` for details that are no examples.
    """
    blocks: dict[str, ExampleBlock] = {}
    for row in rows:
        name = row.measurement
        if row.task != "retrieval" or row.variant != PLAIN or name is None or name in blocks:
            continue
        if row.reference is not None or not details.get(name, {}).get("examples"):
            continue
        kept = details[name]
        try:
            examples = tuple(Example.model_validate(one) for one in kept["examples"])
        except (ValidationError, TypeError) as error:
            raise StorageError(f"measurement {name} has damaged examples: {error}") from error
        blocks[name] = ExampleBlock(
            entry=str(row.entry),
            model=row.model,
            query_tower=str(row.query_tower),
            gallery_tower=str(row.gallery_tower),
            examples=examples,
            sensors=kept.get("sensors", {}),
            prompts=row.prompts,
        )
    return list(blocks.values())


def choose_blocks(blocks: Sequence[ExampleBlock], limit: int = MAX_BLOCKS) -> list[ExampleBlock]:
    """At most `limit` blocks: entries take turns, the pairs of most interest first.

    Those are words that find a sensor's images, then sensors that find RGB and back, then the rest.
    """

    def rank(block: ExampleBlock) -> int:
        towers = (block.query_tower, block.gallery_tower)
        if towers[0] == "text":
            return 0 if towers[1] != RGB else 1
        return 2 if RGB in towers and "text" not in towers else 3

    entries: dict[str, list[ExampleBlock]] = {}
    for block in sorted(blocks, key=rank):
        entries.setdefault(block.entry, []).append(block)
    chosen: list[ExampleBlock] = []
    while len(chosen) < limit and any(entries.values()):
        for own in entries.values():
            if own and len(chosen) < limit:
                chosen.append(own.pop(0))
    order = [block.entry for block in blocks]
    return sorted(chosen, key=lambda block: order.index(block.entry))


def read_picture_index(folder: Path) -> dict[str, dict[str, dict[str, dict[str, str]]]]:
    """Entry -> key -> sensor -> view -> file name, of `folder/pictures`; empty without an index.

    `StorageError` where it names anything but pictures in that folder.
    """
    path = folder / PICTURES / "index.json"
    if not path.is_file():
        return {}
    index: dict[str, dict[str, dict[str, dict[str, str]]]] = read_json(path)
    try:
        names = [
            name
            for keys in index.values()
            for sensors in keys.values()
            for views in sensors.values()
            for name in views.values()
        ]
        wrong = [name for name in names if not PICTURE_NAME.fullmatch(name)]
    except (AttributeError, TypeError) as error:
        raise StorageError(f"{path} is no index of pictures; delete it") from error
    if wrong:
        raise StorageError(f"{path} names {wrong[0]!r}, which is no picture; delete it")
    return index


def views_of(sensors: Views, tower: str, sensor: str | None) -> dict[str, str]:
    """What to show for a sample that went through `tower`: view -> file name.

    `sensor`: what the tower looked at; None: not known, and all views are shown.
    """
    if tower == RGB:
        for views in sensors.values():
            for view in ("picture", "true colour"):
                if view in views:
                    return {view: views[view]}
        return {}
    if sensor is not None and sensor in sensors:
        return dict(sensors[sensor])
    return {f"{name} {view}": file for name, own in sensors.items() for view, file in own.items()}


def galleries(blocks: Sequence[ExampleBlock], folder: Path) -> dict[str, list[Gallery]]:
    """Entry -> its example retrievals, for the report; all but the first are folded away."""
    index = read_picture_index(folder)
    found: dict[str, list[Gallery]] = {}
    for block in blocks:
        pictures = index.get(block.entry, {})
        cards = tuple(_card(block, one, pictures, folder) for one in block.examples[:MAX_QUERIES])
        depth = max((len(card.answers) for card in cards), default=0)
        views = {view for sensors in pictures.values() for own in sensors.values() for view in own}
        legends = [LEGEND, *(text for view, text in VIEWS_LEGEND.items() if view in views)]
        own = found.setdefault(block.entry, [])
        own.append(
            Gallery(
                title=block.title,
                heads=("query", *(str(place + 1) for place in range(depth))),
                cards=cards,
                legend=" ".join(legends),
                folded=bool(own),
            )
        )
    return found


def _card(
    block: ExampleBlock, example: Example, pictures: Mapping[str, Views], folder: Path
) -> Card:
    """A query and what it found."""

    def shown(tower: str, key: str, index: int | None) -> tuple[Picture, ...]:
        if index is None:
            return ()
        views = views_of(pictures.get(key, {}), tower, block.sensors.get(tower))
        read = (
            (view, name, _read_picture(folder / PICTURES / name)) for view, name in views.items()
        )
        return tuple(
            Picture(view=view, path=f"{PICTURES}/{name}", data=data)
            for view, name, data in read
            if data is not None
        )

    answers = tuple(
        Answer(
            text=_labels(one.label) or one.key,
            is_right=one.right,
            detail=f"{one.cosine:.2f}",
            pictures=shown(block.gallery_tower, one.key, one.index),
        )
        for one in example.results
    )
    is_sample = example.query_index is not None
    return Card(
        text=(_labels(example.label) if is_sample else "") or example.query,
        answers=answers,
        pictures=shown(block.query_tower, example.query, example.query_index),
    )


def _read_picture(path: Path) -> bytes | None:
    if not path.is_file() or path.stat().st_size > MAX_PICTURE_BYTES:
        return None
    data = path.read_bytes()
    return data if data.startswith(b"\xff\xd8\xff") else None


def _labels(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (", …" if len(names) > 3 else "")
