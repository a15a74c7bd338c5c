"""The pictures of a bench's examples: of the right samples, made once, missed without harm."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from terralign.bench.data import BenchData
from terralign.bench.examples import (
    PICTURE_SIZE,
    Example,
    ExampleBlock,
    keep_pictures,
    read_picture_index,
)
from terralign.bench.report import report_bench
from terralign.bench.suite import Suite, parse_suite
from terralign.evaluation.chip_views import MAX_SIDE, sample_views
from terralign.evaluation.rows import Row
from terralign.files import write_json, write_text

SUITE = """
name = "pictures"

[[entries]]
name = "scenes"
data = "synthetic-scenes"
split = "test"
role = "alignment"
tasks = ["retrieval"]
limit = 12
"""


@pytest.fixture(scope="module")
def suite() -> Suite:
    return parse_suite(SUITE, origin="test")


@pytest.fixture(scope="module")
def data() -> BenchData:
    return BenchData(None)


def _example(data: BenchData, query: int, found: int) -> dict[str, Any]:
    keys = data.open("synthetic-scenes", "test", 12, PICTURE_SIZE).keys
    result = {"key": keys[found], "index": found, "label": [], "cosine": 0.5, "right": True}
    words = {"key": "forest", "index": None, "label": [], "cosine": 0.4, "right": False}
    return {"query": keys[query], "query_index": query, "label": [], "results": [result, words]}


def _blocks(example: dict[str, Any]) -> list[ExampleBlock]:
    row = Row(model="m", entry="scenes", query_tower="rgb", gallery_tower="s2")
    return [ExampleBlock(row=row, examples=(Example.model_validate(example),), sensors={})]


def test_pictures_are_of_the_samples_by_sensor_and_view(
    suite: Suite, data: BenchData, tmp_path: Path
) -> None:
    example = _example(data, 3, 7)
    keep_pictures(tmp_path, suite, data, _blocks(example))
    index = read_picture_index(tmp_path)
    assert set(index) == {"scenes"}
    assert set(index["scenes"]) == {example["query"], example["results"][0]["key"]}
    kept = index["scenes"][example["results"][0]["key"]]
    assert {sensor: list(views) for sensor, views in kept.items()} == {
        "sentinel2-l2a": ["true colour", "false colour"], "sentinel1-grd": ["radar"],
    }  # fmt: skip
    samples = data.open("synthetic-scenes", "test", 12, PICTURE_SIZE)
    wanted = sample_views(samples, 7)["sentinel2-l2a"]["true colour"]
    with Image.open(tmp_path / "pictures" / kept["sentinel2-l2a"]["true colour"]) as image:
        assert max(image.size) <= MAX_SIDE
        factor = image.width // wanted.shape[1]
        larger = wanted.repeat(factor, axis=0).repeat(factor, axis=1)
        assert np.abs(np.asarray(image).astype(int) - larger).mean() < 6  # JPEG's own loss


def test_pictures_are_made_once(suite: Suite, data: BenchData, tmp_path: Path) -> None:
    keep_pictures(tmp_path, suite, data, _blocks(_example(data, 0, 1)))
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "pictures").iterdir()}
    keep_pictures(tmp_path, suite, data, _blocks(_example(data, 1, 0)))
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "pictures").iterdir()} == before
    keep_pictures(tmp_path, suite, data, _blocks(_example(data, 2, 0)))
    assert len(read_picture_index(tmp_path)["scenes"]) == 3


def test_samples_that_moved_and_data_that_are_gone_are_told_and_passed_over(
    suite: Suite, data: BenchData, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    moved = _example(data, 0, 1) | {"query": "another"}
    with caplog.at_level(logging.WARNING):
        keep_pictures(tmp_path, suite, data, _blocks(moved))
        assert "'another' is no longer where it was" in caplog.text
        assert len(read_picture_index(tmp_path)["scenes"]) == 1
        gone = parse_suite(
            SUITE.replace("synthetic-scenes", "eurosat-ms").replace('"test"', '"val"'), origin="t"
        )
        keep_pictures(tmp_path / "b", gone, BenchData(tmp_path), _blocks(moved))
    assert "no pictures of scenes" in caplog.text
    assert read_picture_index(tmp_path / "b") == {}


def test_the_report_of_a_bench_shows_them(data: BenchData, tmp_path: Path) -> None:
    row = Row(
        model="m", entry="scenes", dataset="synthetic-scenes", split="test", role="alignment",
        task="retrieval", query_tower="rgb", gallery_tower="s1", level="instance",
        metric="recall@1", value=0.5, low=0.4, high=0.6, num_samples=12, measurement="a" * 16,
    )  # fmt: skip
    write_json(tmp_path / "results.json", {"rows": [row.model_dump(mode="json")]})
    write_text(tmp_path / "suite.toml", SUITE)
    details = {
        "examples": [_example(data, 3, 7)],
        "sensors": {"rgb": "sentinel2-l2a", "s1": "sentinel1-grd"},
    }
    write_json(tmp_path / "measurements" / f"{'a' * 16}.json", {"details": details})
    text = report_bench(tmp_path).read_text(encoding="utf-8")
    query, found = (details["examples"][0][k] for k in ("query", "results"))
    assert text.count("data:image/jpeg") == 2
    assert f'alt="{query}, true colour"' in text
    assert f'alt="{found[0]["key"]}, radar"' in text
