"""Example retrievals of a bench as pictures: a query, what it finds first, right or wrong."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from terralign.encoders.space import RGB
from terralign.errors import StorageError
from terralign.evaluation.chip_views import VIEWS_LEGEND
from terralign.evaluation.page import escape_html, escape_markdown, markdown_row
from terralign.evaluation.rows import PLAIN, Row
from terralign.files import read_json

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


def legend(pictures: Mapping[str, Views]) -> str:
    """What the marks mean, and the views that there are."""
    there = {view for sensors in pictures.values() for own in sensors.values() for view in own}
    return " ".join([LEGEND, *(text for view, text in VIEWS_LEGEND.items() if view in there)])


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
    """Entry -> key -> sensor -> view -> file name, of `folder/pictures`; empty where there is none.

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

    `sensor`: what the tower looked at; None: not known, and all that there is is shown.
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


def example_html(block: ExampleBlock, pictures: Mapping[str, Views], folder: Path) -> str:
    """One block of a page. `pictures`: key of a sample -> its views."""
    out = []
    for example in block.examples[:MAX_QUERIES]:
        images = ""
        if example.query_index is not None:
            images = _images(block, block.query_tower, example.query, pictures, folder)
        about = _labels(example.label) if example.query_index is not None else example.query
        out.append(
            f"<div class=query><div class=asked><small>query</small>{images}"
            f"<p>{escape_html(_clip(about or example.query, 60))}</p></div><ol class=found>"
        )
        for result in example.results:
            shown = ""
            if result.index is not None:
                shown = _images(block, block.gallery_tower, result.key, pictures, folder)
            mark, word = ("✓", "right") if result.right else ("✗", "wrong")
            name = _labels(result.label) or result.key
            out.append(
                f'<li class={word}>{shown}<p><b title="{word}">{mark}</b> '
                f"{escape_html(_clip(name, 60))} <small>{result.cosine:.2f}</small></p></li>"
            )
        out.append("</ol></div>")
    return "".join(out)


def _images(
    block: ExampleBlock, tower: str, key: str, pictures: Mapping[str, Views], folder: Path
) -> str:
    out = ""
    views = views_of(pictures.get(key, {}), tower, block.sensors.get(tower))
    for view, name in views.items():
        data = _read_picture(folder / PICTURES / name)
        if data is not None:
            source = f"data:image/jpeg;base64,{base64.b64encode(data).decode()}"
            text = escape_html(f"{key}, {view}")
            out += f'<img class=chip alt="{text}" title="{text}" src="{source}">'
    return f"<div class=chips>{out}</div>" if out else ""


def _read_picture(path: Path) -> bytes | None:
    if not path.is_file() or path.stat().st_size > MAX_PICTURE_BYTES:
        return None
    data = path.read_bytes()
    return data if data.startswith(b"\xff\xd8\xff") else None


def example_markdown(block: ExampleBlock, pictures: Mapping[str, Views]) -> Iterator[str]:
    """The lines of one block, pictures by their paths in the bench folder."""

    def shown(tower: str, key: str) -> str:
        views = views_of(pictures.get(key, {}), tower, block.sensors.get(tower))
        return " ".join(f"![{escape_markdown(v)}]({PICTURES}/{name})" for v, name in views.items())

    depth = max((len(example.results) for example in block.examples), default=0)
    yield from markdown_row(["query", *(str(place + 1) for place in range(depth))])
    yield from markdown_row(["---"] * (depth + 1), raw=True)
    for example in block.examples[:MAX_QUERIES]:
        is_sample = example.query_index is not None
        about = _labels(example.label) if is_sample else example.query
        images = shown(block.query_tower, example.query) if is_sample else ""
        cells = [f"{images} {escape_markdown(about or example.query)}".strip()]
        for result in example.results:
            images = shown(block.gallery_tower, result.key) if result.index is not None else ""
            name = escape_markdown(_labels(result.label) or result.key)
            mark = "✓" if result.right else "✗"
            cells.append(f"{images} {mark} {name} {result.cosine:.2f}".strip())
        yield from markdown_row([*cells, *[""] * (depth + 1 - len(cells))], raw=True)
    yield ""


def _labels(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (", …" if len(names) > 3 else "")


def _clip(text: str, length: int) -> str:
    """Text on one line of at most `length` characters."""
    line = " ".join(text.split())
    return line if len(line) <= length else line[: length - 1] + "…"
