"""The report of a bench folder: what it shows, that it is whole, that nothing breaks out of it."""

from __future__ import annotations

import base64
import io
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from report_page import NASTY, Page
from terralign.bench.examples import MAX_QUERIES, choose_blocks, find_examples, views_of
from terralign.bench.report import read_bench, report_bench
from terralign.encoders.clip.weights import write_state_dict
from terralign.errors import StorageError
from terralign.evaluation.rows import Row, check_rows
from terralign.files import write_json, write_text

CLASSES = ["forest", NASTY, "river"]
VIEW = "0123456789abcdef.jpg"
SUITE = f"""name = {json.dumps(NASTY)}
note = "A note."
# ```
[[entries]]
name = "scenes"
data = "synthetic-scenes"
split = "test"
role = "alignment"
tasks = ["retrieval"]
"""


def _row(model: str, value: float, **changes: Any) -> dict[str, Any]:
    row = Row(
        model=model, entry="scenes", dataset="eurosat-ms", split="val", role="alignment",
        task="zero-shot", tower="rgb", metric="top1", value=value, low=value - 0.1,
        high=value + 0.1, num_samples=56, chance=0.1, prompts="satellite", versions="aa",
    )  # fmt: skip
    return row.model_copy(update=changes).model_dump(mode="json")


def _found(model: str, metric: str, value: float, measurement: str) -> dict[str, Any]:
    pair = {"tower": None, "query_tower": "rgb", "gallery_tower": "s2", "level": "instance"}
    return _row(model, value, task="retrieval", metric=metric, measurement=measurement, **pair)


def _rows() -> list[dict[str, Any]]:
    return [
        _row("base", 0.5, measurement="a" * 16, model_id="1" * 16),
        _row("base", 0.1, metric="expected_calibration_error", low=None, high=None,
             measurement="a" * 16),
        _row("m", 0.8, measurement="b" * 16),
        _row("m", 0.3, reference="base", p_value=0.001, measurement="b" * 16),
        _row("m", 0.7, tower="s2", measurement="c" * 16),
        *(_found("m", f"recall@{k}", k / 20, "d" * 16) for k in (1, 5, 10)),
        _row("m", 12.5, task="diagnostics", metric="effective_rank", measurement="e" * 16),
        _row(NASTY, 0.2, entry=NASTY, dataset=NASTY, measurement="f" * 16),
        {**_row("m", 0.2, status="skipped", tower="s1", note=f"needs VV: {NASTY}"), "value": None},
    ]  # fmt: skip


def _zero_shot(first: float) -> dict[str, Any]:
    values = zip(CLASSES, (first, None, 0.4), strict=True)
    return {
        "per_class": {name: {"value": value, "num_samples": 3} for name, value in values},
        "class_names": CLASSES,
        "confusion": [[2, 1, 0], [0, 0, 0], [1, 1, 1]],
        "reliability": {
            "edges": [0, 0.5, 1], "confidence": [0.3, None], "accuracy": [0.2, None],
            "count": [6, 0],
        },
    }  # fmt: skip


def _details() -> dict[str, Any]:
    example = {
        "query": "tile-1", "query_index": 0, "label": [NASTY],
        "results": [
            {"key": f"tile-{n}", "index": n, "label": [CLASSES[n % 3]], "cosine": 0.9 - n / 10,
             "right": n == 1}
            for n in range(1, 6)
        ],
    }  # fmt: skip
    plane = {
        name: {"xy": [[0.1, 0.2], [0.3, x]], "labels": None, "keys": ["a", "b"]}
        for name, x in (("text", 0.5), ("rgb", 0.7), ("s2", 0.9))
    }
    return {
        "a" * 16: _zero_shot(0.25),
        "b" * 16: _zero_shot(0.75),
        "c" * 16: _zero_shot(0.5),
        "d" * 16: {"examples": [example] * 5, "sensors": {"rgb": "sat", "s2": "sat"}},
        "e" * 16: {"projection": {"explained": [0.4, 0.2], "points": plane}},
        "f" * 16: {**_zero_shot(0.1), "confusion": [[0, 3, 0], [0, 0, 0], [3, 0, 0]]},
    }


def make_bench(folder: Path) -> Path:
    """A bench folder with everything that a report shows, and a run beside one of its models."""
    run = folder.parent / "run"
    points = [
        {"alpha": a, "patching": {NASTY: 0.4 + a / 2}, "supported": {"photos": 0.6 - a / 10}}
        for a in (0.0, 0.5, 1.0)
    ]
    chosen = {"chosen": {"alpha": 0.5}, "max_supported_drop": 0.01, "points": points}
    write_json(run / "patch" / "sweep.json", chosen)
    write_json(folder / "results.json", {"rows": _rows()})
    models = {"base": "ViT-B-32", "m": str(run / "model"), NASTY: NASTY}
    write_json(
        folder / "models.json",
        {name: {"source": source, "model_id": "1" * 16} for name, source in models.items()},
    )
    write_json(folder / "versions.json", {"aa": {"torch": "2.6", NASTY: NASTY}})
    write_text(folder / "suite.toml", SUITE)
    for name, details in _details().items():
        write_json(folder / "measurements" / f"{name}.json", {"details": details})
    index = {f"tile-{n}": {"sat": {"true colour": VIEW, "false colour": VIEW}} for n in (1, 2)}
    write_json(folder / "pictures" / "index.json", {"scenes": index})
    Image.new("RGB", (8, 8), (9, 99, 9)).save(folder / "pictures" / VIEW)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_bench(tmp_path_factory.mktemp("bench") / "b")
    assert report_bench(folder) == folder / "report.html"
    return folder


@pytest.fixture
def copy(folder: Path, tmp_path: Path) -> Path:
    """A bench folder with its report, to be changed."""
    shutil.copytree(folder, tmp_path / "b")
    return tmp_path / "b"


def test_page_is_whole_in_itself_and_escapes_everything(folder: Path) -> None:
    text = (folder / "report.html").read_text(encoding="utf-8")
    page = Page(text)
    assert "script" not in page.tags
    assert page.text.count(NASTY) >= 6
    assert {source.split(",")[0] for source in page.sources} == {
        "data:image/png;base64", "data:image/jpeg;base64",
    }  # fmt: skip
    for source in set(page.sources):
        data = base64.b64decode(source.split(",")[1], validate=True)
        with Image.open(io.BytesIO(data)) as picture:
            assert picture.size[0] > 0


def test_every_kind_of_figure_is_drawn_in_two_themes(folder: Path) -> None:
    names = sorted(re.sub(r"^\d+-", "", path.name) for path in (folder / "figures").iterdir())
    assert names == [
        "alpha.png", "classes.png", "classes.png", "confusion.png", "confusion.png",
        "projection-1.png", "reliability-zero-shot.png", "retrieval-1.png",
    ]  # fmt: skip
    page = Page((folder / "report.html").read_text(encoding="utf-8"))
    assert page.tags.count("source") == len(names)
    assert len({one for one in page.sources if "png" in one[:20]}) == 2 * len(names)


@pytest.mark.parametrize("name", ["report.html", "report.md"])
def test_the_report_says_what_was_run_on_what_and_with_what(folder: Path, name: str) -> None:
    text = (folder / name).read_text(encoding="utf-8")
    for told in ("A note.", "ViT-B-32", "2.6", "eurosat-ms", "satellite", "needs VV", "+30.0"):
        assert told in text
    marked = "<b>80.0</b>" if name == "report.html" else "**80.0**"
    assert marked in text
    assert "70.0‡" in text
    before, published = text.split("As reported in publications", 1)
    assert "67.90" in published
    assert "67.90" not in before


def test_examples_show_query_results_and_whether_they_are_right(folder: Path) -> None:
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert page.count('<div class="query">') == MAX_QUERIES
    assert page.count('<li class="right">') == MAX_QUERIES
    assert page.count('<li class="wrong">') == 4 * MAX_QUERIES
    # The query went through the RGB tower: true colour alone. tile-1 and tile-2 were found by s2.
    alts = Page(page).alts
    views = [alt.rpartition(", ")[2] for alt in alts if "Interpolation" not in alt]
    assert views.count("true colour") == 3 * MAX_QUERIES  # there is no picture of tile-3
    assert views.count("false colour") == 2 * MAX_QUERIES
    text = (folder / "report.md").read_text(encoding="utf-8")
    assert text.count(f"](pictures/{VIEW})") == 5 * MAX_QUERIES


def test_pictures_of_the_markdown_are_there(folder: Path) -> None:
    text = (folder / "report.md").read_text(encoding="utf-8")
    assert "\n````toml\n" in text
    outside = text.split("````")[0]
    links = re.findall(r"\]\((\S+)\)", outside)
    assert len(links) > 8
    assert all((folder / link).is_file() for link in links)


def test_latex_has_every_table(folder: Path) -> None:
    text = (folder / "tables.tex").read_text(encoding="utf-8")
    assert re.findall(r"\\label\{tab:([a-z-]+)\}", text) == [
        "zero-shot-classification", "retrieval", "decisions-and-calibration",
        "as-reported-in-publications-not-measured-here", "differences-to-the-reference",
        "diagnostics-of-the-space",
    ]  # fmt: skip


def test_the_same_results_write_nothing_and_others_write_anew(copy: Path) -> None:
    def seen() -> dict[str, tuple[int, int]]:
        files = [copy / "report.html", copy / "report.md", *(copy / "figures").iterdir()]
        return {path.name: (path.stat().st_mtime_ns, path.stat().st_ino) for path in files}

    before = seen()
    report_bench(copy)
    assert seen() == before
    write_json(copy / "results.json", {"rows": [_row("base", 0.123, measurement="a" * 16)]})
    report_bench(copy)
    assert "12.3" in (copy / "report.html").read_text(encoding="utf-8")
    names = {path.name for path in (copy / "figures").iterdir()}
    assert {"2-classes.png", "2-confusion.png"} == {n for n in names if n.startswith("2-")}
    assert "2-retrieval-1.png" not in names  # figures of before are gone


def test_a_report_is_the_same_bytes_whenever_it_is_written(folder: Path, copy: Path) -> None:
    (copy / "report.html").unlink()
    report_bench(copy)
    for name in ("report.html", "report.md", "tables.tex"):
        assert (copy / name).read_bytes() == (folder / name).read_bytes()


def test_what_is_no_bench_or_damaged_is_one_clear_line(copy: Path, tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"no results\.json"):
        report_bench(tmp_path / "nothing")
    assert not (tmp_path / "nothing").exists()
    measurement = copy / "measurements" / f"{'b' * 16}.json"
    damages: list[tuple[Path, Any, str]] = [
        (measurement, {"details": {**_zero_shot(0.5), "confusion": [[1]]}}, "scenes.*damaged"),
        (measurement, {"details": {"per_class": {"x": 3}}}, "scenes.*damaged"),
        (measurement, [1], "has no details"),
        (copy / "measurements" / f"{'d' * 16}.json", {"details": {"examples": [3]}}, "examples"),
        (copy / "pictures" / "index.json", {"e": {"k": {"s": {"v": "../x.jpg"}}}}, "no picture"),
        (copy / "models.json", [1], "models.json is damaged"),
    ]
    for path, value, told in damages:
        kept = path.read_bytes()
        write_json(path, value)
        (copy / "report.html").unlink(missing_ok=True)
        with pytest.raises(StorageError, match=told):
            report_bench(copy)
        path.write_bytes(kept)
    write_json(copy / "results.json", {"rows": [{"model": "m", "wrong": 1}]})
    with pytest.raises(StorageError, match="damaged or of another version"):
        report_bench(copy)


def test_the_best_is_compared_with_the_others_by_the_values_of_their_samples(copy: Path) -> None:
    before = (copy / "report.md").read_text(encoding="utf-8")
    assert "70.0‡" in before
    marks = []
    for wrong in (1, 20):  # of 56 samples
        for row in _rows():
            if row["measurement"] in ("b" * 16, "c" * 16):
                name = copy / "measurements" / row["measurement"]
                kept = {"samples": "s", "has_outcomes": True, "rows": [row], "details": {}}
                write_json(name.with_suffix(".json"), kept)
                values = torch.ones(56, dtype=torch.float64)
                values[: wrong if row["tower"] == "s2" else 0] = 0
                write_state_dict(name.with_suffix(".safetensors"), {"top1": values})
        for path in (copy / "report.html", *(copy / "measurements").glob("compare-*")):
            path.unlink()
        report_bench(copy)
        text = (copy / "report.md").read_text(encoding="utf-8")
        marks.append(re.findall(r"70\.0(\S?) ", text)[0])
        kept_files = {path: path.stat().st_mtime_ns for path in (copy / "measurements").iterdir()}
        (copy / "report.html").unlink()
        report_bench(copy)
        assert (copy / "report.md").read_text(encoding="utf-8") == text
        now = {path: path.stat().st_mtime_ns for path in (copy / "measurements").iterdir()}
        assert now == kept_files  # not compared again
    assert marks == ["†", ""]


def test_a_measurement_is_no_path(copy: Path) -> None:
    write_json(copy / "results.json", {"rows": [_row("m", 0.5, measurement="../../secret")]})
    with pytest.raises(StorageError, match="no name of a measurement"):
        read_bench(copy)


def test_a_damaged_sweep_beside_a_model_is_no_sweep(copy: Path) -> None:
    write_json(copy.parent / "run" / "patch" / "sweep.json", {"points": []})
    models = {"m": {"source": str(copy.parent / "run" / "model"), "model_id": "1"}}
    write_json(copy / "models.json", models)
    assert read_bench(copy).sweeps == {}


def test_pictures_are_of_what_the_tower_saw() -> None:
    optical = {"true colour": "t.jpg", "false colour": "f.jpg"}
    sensors = {"s1": {"radar": "r.jpg"}, "s2": optical}
    assert views_of(sensors, "rgb", "s2") == {"true colour": "t.jpg"}
    assert views_of(sensors, "tower", "s2") == optical
    assert views_of(sensors, "tower", "s1") == {"radar": "r.jpg"}
    assert list(views_of(sensors, "tower", None)) == [
        "s1 radar", "s2 true colour", "s2 false colour",
    ]  # fmt: skip
    assert views_of({}, "rgb", None) == {}


def test_of_many_examples_entries_take_turns_and_words_come_first() -> None:
    rows, details = [], {}
    for number, (entry, query, gallery) in enumerate(
        (entry, query, gallery)
        for entry in ("one", "two")
        for query, gallery in (("s2", "text"), ("rgb", "s2"), ("text", "rgb"), ("text", "s2"))
    ):
        name = f"{number:08d}"
        towers = {"tower": None, "query_tower": query, "gallery_tower": gallery}
        rows.append(_row("m", 0.5, task="retrieval", entry=entry, measurement=name, **towers))
        details[name] = _details()["d" * 16]
    blocks = find_examples(check_rows(rows), details)
    assert len(blocks) == 8
    chosen = choose_blocks(blocks, limit=5)
    assert [(block.entry, block.row.query_tower, block.row.gallery_tower) for block in chosen] == [
        ("one", "text", "s2"), ("one", "text", "rgb"), ("one", "rgb", "s2"),
        ("two", "text", "s2"), ("two", "text", "rgb"),
    ]  # fmt: skip
