"""The demo: a page of a scene's answers, lines that do the same, and no file of others touched."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
import rasterio
from click.testing import CliRunner
from rasterio.windows import Window

from terralign.cli import main
from terralign.demo import CLASS_NAMES, NUM_HITS, QUESTIONS, SCENE, Demo, run_demo, scene_path
from terralign.errors import StorageError
from terralign.index.search import open_index
from terralign.scenes.scene import open_scene

SIDE = 192
"""Pixels of 10 m of a corner of the scene that these tests take for the whole."""


def crop(source: Path, target: Path) -> None:
    with rasterio.open(source) as band:
        side = SIDE * band.width // 720
        profile = {**band.profile, "height": side, "width": side}
        with rasterio.open(target, "w", **profile) as out:
            out.write(band.read(1, window=Window(0, 0, side, side)), 1)


@pytest.fixture(scope="module")
def demo(tiny_starter: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Demo]:
    """The demo of a small model of random weights, on a corner of the scene."""
    folder = tmp_path_factory.mktemp("demo")
    corner = folder / SCENE
    corner.mkdir()
    for path in scene_path().iterdir():
        crop(path, corner / path.name)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("terralign.demo.scene_path", lambda: corner)
        yield run_demo(folder / "out", device="cpu")


def test_the_scene_is_a_product_of_twelve_bands_under_five_megabytes() -> None:
    scene = open_scene(scene_path(), dn_offset=0)
    assert (scene.grid.height, scene.grid.width, len(scene.layout.bands)) == (720, 720, 12)
    assert scene.layout.sensor.name == "sentinel2-l2a"
    assert sum(one.stat().st_size for one in scene_path().iterdir()) < 5e6
    licence = (scene_path().parent / "LICENSE").read_text(encoding="utf-8")
    for words in ("CC-BY-SA-4.0", "contains modified Copernicus Sentinel data 2020", "cropped"):
        assert words.lower() in " ".join(licence.lower().split())


def test_the_page_shows_every_hit_and_every_classified_window(demo: Demo) -> None:
    text = demo.page.read_text(encoding="utf-8")
    assert text.count('<rect class="edge"') == len(QUESTIONS) * NUM_HITS
    assert text.count('<rect class="cell"') == len(demo.classes)
    assert text.count("data:image/jpeg") == 1 + 2 + 1 + 2 * len(QUESTIONS) * NUM_HITS
    addresses = re.findall(r"(?:src|href)=\"(?!data:|#)", text)
    assert not addresses, "offline"
    for hit in demo.searches[0]:
        window = hit.place.window
        assert window is not None
        assert f'x="{window.column}" y="{window.row}" width="{window.width}"' in text
    assert sum(demo.counts().values()) == len(demo.classes)


def test_a_second_run_takes_the_vectors_and_writes_the_same_page(demo: Demo) -> None:
    before = demo.page.read_bytes()
    [part] = (demo.folder / "vectors").glob("*.parquet")
    written = part.stat().st_mtime_ns
    assert run_demo(demo.folder, device="cpu").page.read_bytes() == before
    assert part.stat().st_mtime_ns == written


def test_the_lines_of_python_do_the_same(demo: Demo, capsys: pytest.CaptureFixture[str]) -> None:
    exec(demo.python, {})
    printed = capsys.readouterr().out
    for hits in demo.searches:
        assert all(f"{hit.score:.4f}" in printed for hit in hits)
    assert demo.classes.table().text() in printed
    assert str(demo.scores) in printed


def test_the_commands_are_ones_that_terralign_has(demo: Demo) -> None:
    for line in demo.commands.splitlines():
        words = shlex.split(line)
        main.commands[words[1]].make_context(words[1], words[2:])
    assert open_index(demo.folder / "vectors").model == "starter"


@pytest.mark.parametrize("name", ["report.html", "scores.tif"])
def test_a_file_of_others_is_left_as_it_is(tiny_starter: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("mine")
    with pytest.raises(StorageError, match=name):
        run_demo(tmp_path)
    assert [(one.name, one.read_text()) for one in tmp_path.iterdir()] == [(name, "mine")]


def test_the_command_prints_what_it_found(
    demo: Demo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("terralign.demo.run_demo", lambda out, device: demo)
    found = CliRunner().invoke(main, ["demo"])
    assert found.exit_code == 0, found.output
    assert demo.python in found.stdout
    for text in QUESTIONS:
        assert repr(text) in found.stdout
    values = json.loads(CliRunner().invoke(main, ["demo", "--json"]).stdout)
    assert values["classes"].keys() <= set(CLASS_NAMES)
    assert [one["query"] for one in values["searches"]] == list(QUESTIONS)
