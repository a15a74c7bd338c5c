"""Example retrievals of a bench as pictures: a query, what it finds first, right or wrong.

`DIR/pictures/` keeps JPEGs of the samples that examples show, and `index.json`: entry -> key of a
sample -> sensor -> view -> file name.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, StringConstraints, TypeAdapter, ValidationError

from terralign.bench.data import BenchData
from terralign.bench.suite import Suite, SuiteEntry
from terralign.encoders.space import RGB
from terralign.errors import StorageError, TerralignError
from terralign.evaluation.chip_views import VIEWS_LEGEND, jpeg_bytes, sample_views
from terralign.evaluation.retrieval import TEXT
from terralign.evaluation.rows import Row
from terralign.files import atomic_path, hash_json, read_json, write_json
from terralign.report.document import Answer, Card, Gallery, Picture

logger = logging.getLogger(__name__)

PICTURES = "pictures"
PICTURE_SIZE = 112
"""The side that data sets of pictures are opened at."""
MAX_PICTURE_BYTES = 200_000
MAX_BLOCKS = 24
"""Pairs of modalities of a model that a report shows examples of."""
MAX_QUERIES = 3
"""Of each."""

FileName = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{8,64}\.jpg$")]
Views = dict[str, dict[str, FileName]]
"""Sensor -> view -> file name in the pictures' folder."""

LEGEND = (
    "Queries drawn at random, always the same ones, with what each finds first and the cosine. "
    "✓: of the query's class (of several classes: it shares one; without classes: it is the same "
    "sample)."
)


class _Kept(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class _Result(_Kept):
    key: str
    index: int | None
    label: tuple[str, ...] = ()
    cosine: float
    right: bool


class Example(_Kept):
    """A query and what it found first. `query_index`: None for words."""

    query: str
    query_index: int | None
    label: tuple[str, ...] = ()
    results: tuple[_Result, ...]

    @property
    def samples(self) -> dict[str, int]:
        """Key -> index of the samples that it shows."""
        shown = [(self.query, self.query_index), *((one.key, one.index) for one in self.results)]
        return {key: index for key, index in shown if index is not None}


_EXAMPLES = TypeAdapter(tuple[Example, ...])
_SENSORS = TypeAdapter(dict[str, str])
_INDEX = TypeAdapter(dict[str, dict[str, Views]])


@dataclass(frozen=True, kw_only=True, slots=True)
class ExampleBlock:
    """Examples of one pair of modalities under one model: those of the measurement behind `row`.

    `sensors`: tower -> what it saw.
    """

    row: Row
    examples: tuple[Example, ...]
    sensors: Mapping[str, str]

    @property
    def entry(self) -> str:
        """The suite's entry."""
        return str(self.row.entry)

    @property
    def title(self) -> str:
        """Pair, model, and the prompts where words are one side."""
        prompts = f", prompts {self.row.prompts}" if self.row.prompts else ""
        return f"{self.row.towers}, {self.row.model}{prompts}"


def find_examples(
    rows: Sequence[Row], details: Mapping[str, Mapping[str, Any]]
) -> list[ExampleBlock]:
    """The examples that measurements of plain rows kept, one block each.

    `details`: measurement -> its details. `StorageError` for details that are no examples.
    """
    blocks: dict[str, ExampleBlock] = {}
    for row in rows:
        name = str(row.measurement)
        kept = details.get(name, {})
        if row.task != "retrieval" or name in blocks or not kept.get("examples"):
            continue
        try:
            examples = _EXAMPLES.validate_python(kept["examples"])
            sensors = _SENSORS.validate_python(kept.get("sensors", {}))
        except ValidationError as error:
            raise StorageError(f"measurement {name} has damaged examples: {error}") from error
        blocks[name] = ExampleBlock(row=row, examples=examples, sensors=sensors)
    return list(blocks.values())


def choose_blocks(blocks: Sequence[ExampleBlock], limit: int = MAX_BLOCKS) -> list[ExampleBlock]:
    """At most `limit` blocks: entries take turns, the pairs of most interest first.

    Those are words that find a sensor's images, then sensors that find RGB and back, then the rest.
    """

    def rank(block: ExampleBlock) -> int:
        query, gallery = block.row.query_tower, block.row.gallery_tower
        if query == TEXT:
            return 0 if gallery != RGB else 1
        return 2 if RGB in (query, gallery) and gallery != TEXT else 3

    entries: dict[str, list[ExampleBlock]] = {}
    for block in blocks:
        entries.setdefault(block.entry, []).append(block)
    rounds = zip_longest(*(sorted(own, key=rank) for own in entries.values()))
    chosen = [block for one in rounds for block in one if block is not None][:limit]
    return sorted(chosen, key=lambda block: list(entries).index(block.entry))


# Pictures of samples


def read_picture_index(folder: Path) -> dict[str, dict[str, Views]]:
    """Entry -> key -> sensor -> view -> file name, of `folder/pictures`; empty without an index.

    `StorageError` where it names anything but pictures in that folder.
    """
    path = folder / PICTURES / "index.json"
    try:
        return _INDEX.validate_python(read_json(path)) if path.is_file() else {}
    except ValidationError as error:
        fault = error.errors()[0]["input"]
        raise StorageError(f"{path}: {fault!r} is no picture's name; delete the file") from error


def keep_pictures(
    folder: Path, suite: Suite, data: BenchData, blocks: Sequence[ExampleBlock]
) -> None:
    """Make the pictures of examples that are missing.

    Data that cannot be opened any more are skipped with a warning: the report names the samples
    instead.
    """
    index = read_picture_index(folder)
    before = sum(map(len, index.values()))
    for entry in suite.entries:
        known = index.setdefault(entry.title, {})
        shown = [one for block in blocks if block.entry == entry.title for one in block.examples]
        wanted = {key: place for one in shown for key, place in one.samples.items()}
        missing = {key: place for key, place in wanted.items() if key not in known}
        try:
            known |= _make_pictures(folder, entry, data, missing) if missing else {}
        except TerralignError as error:
            logger.warning("no pictures of %s in the report: %s", entry.title, error)
    if sum(map(len, index.values())) > before:
        write_json(folder / PICTURES / "index.json", index)


def _make_pictures(
    folder: Path, entry: SuiteEntry, data: BenchData, wanted: Mapping[str, int]
) -> dict[str, Views]:
    samples = data.open(entry.data, entry.split, entry.limit, PICTURE_SIZE, entry.composite)
    found: dict[str, Views] = {}
    for key, place in wanted.items():
        if place >= len(samples) or samples.keys[place] != key:
            logger.warning("%s: sample %r is no longer where it was", entry.title, key)
            continue
        found[key] = {}
        for sensor, views in sample_views(samples, place).items():
            for view, picture in views.items():
                name = hash_json([entry.title, samples.fingerprint, key, sensor, view]) + ".jpg"
                with atomic_path(folder / PICTURES / name) as partial:
                    partial.write_bytes(jpeg_bytes(picture))
                found[key].setdefault(sensor, {})[view] = name
    return found


def views_of(
    sensors: Mapping[str, Mapping[str, str]], tower: str, sensor: str | None
) -> dict[str, str]:
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

    def shown(tower: str | None, key: str, index: int | None) -> tuple[Picture, ...]:
        if index is None or tower is None:
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
            pictures=shown(block.row.gallery_tower, one.key, one.index),
        )
        for one in example.results
    )
    is_sample = example.query_index is not None
    return Card(
        text=(_labels(example.label) if is_sample else "") or example.query,
        answers=answers,
        pictures=shown(block.row.query_tower, example.query, example.query_index),
    )


def _read_picture(path: Path) -> bytes | None:
    if not path.is_file() or path.stat().st_size > MAX_PICTURE_BYTES:
        return None
    data = path.read_bytes()
    return data if data.startswith(b"\xff\xd8\xff") else None


def _labels(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (", …" if len(names) > 3 else "")
