"""The samples of a bench's example retrievals, kept as pictures for its report.

`DIR/pictures/`: JPEGs, and `index.json`: entry -> key of a sample -> sensor -> view -> file name.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from terralign.bench.data import BenchData
from terralign.bench.examples import PICTURES, Example, ExampleBlock, read_picture_index
from terralign.bench.suite import Suite, SuiteEntry
from terralign.datasets.sample import SampleSet
from terralign.errors import TerralignError
from terralign.evaluation.chip_views import jpeg_bytes, sample_views
from terralign.files import atomic_path, hash_json, write_json

logger = logging.getLogger(__name__)

PICTURE_SIZE = 112
"""The side that data sets of pictures are opened at."""


def keep_pictures(
    folder: Path,
    suite: Suite,
    data: BenchData,
    blocks: Sequence[ExampleBlock],
) -> None:
    """Make the pictures of examples that are missing.

    Data that cannot be opened any more are skipped with a warning: the report names the samples
    instead.
    """
    index = read_picture_index(folder)
    before = sum(map(len, index.values()))
    for entry in suite.entries:
        known = index.setdefault(entry.title, {})
        wanted = {
            key: place
            for block in blocks
            if block.entry == entry.title
            for example in block.examples
            for key, place in _samples_of(example)
            if key not in known
        }
        if not wanted:
            continue
        try:
            known |= _make(folder, entry, data, wanted)
        except TerralignError as error:
            logger.warning("no pictures of %s in the report: %s", entry.title, error)
    if sum(map(len, index.values())) > before:
        write_json(folder / PICTURES / "index.json", index)


def _samples_of(example: Example) -> Iterator[tuple[str, int]]:
    """(key, index) of the samples that an example shows."""
    if example.query_index is not None:
        yield example.query, example.query_index
    for result in example.results:
        if result.index is not None:
            yield result.key, result.index


def _make(
    folder: Path, entry: SuiteEntry, data: BenchData, wanted: Mapping[str, int]
) -> dict[str, dict[str, dict[str, str]]]:
    samples = data.open(entry.data, entry.split, entry.limit, PICTURE_SIZE, entry.composite)
    found: dict[str, dict[str, dict[str, str]]] = {}
    for key, place in wanted.items():
        if place >= len(samples) or samples.keys[place] != key:
            logger.warning("%s: sample %r is no longer where it was", entry.title, key)
            continue
        found[key] = {}
        for sensor, views in _views(samples, place).items():
            for view, picture in views.items():
                name = hash_json([entry.title, samples.fingerprint, key, sensor, view]) + ".jpg"
                with atomic_path(folder / PICTURES / name) as partial:
                    partial.write_bytes(jpeg_bytes(picture))
                found[key].setdefault(sensor, {})[view] = name
    return found


def _views(samples: SampleSet, place: int) -> dict[str, Any]:
    pixels = samples.read(np.array([place], dtype=np.int64))
    return sample_views({name: values[0] for name, values in pixels.items()}, samples.layouts)
