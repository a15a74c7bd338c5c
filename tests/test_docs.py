"""README and documentation match the code: their code runs, their commands parse."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import stat
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import click
import numpy as np
import pytest
import rasterio
import yaml
from click.testing import CliRunner

import terralign
from fakes import input_spec
from imagery import NEW_PRODUCT, ORIGIN, write_geotiff, write_product
from terralign.bench.suite import parse_suite
from terralign.cli import main
from terralign.datasets.catalog import DATASETS
from terralign.datasets.declared import read_declaration
from terralign.datasets.facts import read_facts
from terralign.encoders.clip.load import new_clip
from terralign.encoders.sensor import TowerConfig, inflate
from terralign.encoders.space import EmbeddingSpace
from terralign.files import shipped_names
from terralign.runs.recipe import load_recipe, parse_recipe
from terralign.sensors import SENSORS, parse_sensor

ROOT = Path(__file__).parent.parent
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
]
FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"`((?:terralign) [a-z][^`\n]*)`")


def blocks(language: str) -> list[Any]:
    """Every fenced block of a language, as a test parameter named after its page."""
    found = []
    for page in PAGES:
        texts = [text for kind, text in FENCE.findall(page.read_text()) if kind == language]
        for number, text in enumerate(texts, start=1):
            found.append(pytest.param(text, id=f"{page.relative_to(ROOT)}-{number}"))
    return found


def commands() -> Iterator[Any]:
    """Every terralign command of shell blocks and inline code that names its arguments."""
    for page in PAGES:
        text = page.read_text()
        lines = [
            part
            for kind, block in FENCE.findall(text)
            if kind == "sh"
            for line in block.splitlines()
            for part in line.split(" && ")
        ]
        lines += [code for code in INLINE.findall(text) if " " in code.removeprefix("terralign ")]
        for number, line in enumerate(lines, start=1):
            words = shlex.split(line, comments=True)
            if words and Path(words[0]).name == "terralign":
                yield pytest.param(words[1:], id=f"{page.relative_to(ROOT)}-{number}")


[_PLANETSCOPE] = [
    text
    for kind, text in FENCE.findall((ROOT / "docs" / "imagery.md").read_text())
    if kind == "toml" and 'name = "planetscope"' in text
]


@pytest.fixture(scope="module")
def documented(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the Python blocks read: spaces with a Sentinel-2 tower, a scene, tiles and chips."""
    folder = tmp_path_factory.mktemp("documented")
    clip = new_clip(
        {
            "embed_dim": 16,
            "vision_cfg": {
                "timm_model_name": "test_convnext3",
                "timm_model_pretrained": False,
                "timm_pool": "avg",
                "timm_proj": "linear",
                "image_size": 32,
            },
            "text_cfg": {"context_length": 20, "width": 16, "heads": 2, "layers": 1},
        },
        {"mean": [0.5] * 3, "std": [0.5] * 3, "resize_mode": "shortest"},
        seed=0,
    )
    sensor = SENSORS["sentinel2-l2a"]
    spec = input_spec(sensor.name, sensor.band_names)
    config = TowerConfig(name="sentinel2", backbone="inflate", input=spec, embed_dim=clip.dim)
    space = EmbeddingSpace(
        clip, towers={"sentinel2": inflate(config, clip, sensor.composite(), others="mean")}
    )
    for name in ("terralign-quickstart", "runs/m", "runs/b32"):
        space.save(folder / name / "model")
    rng = np.random.default_rng(0)
    pixels = rng.integers(1001, 5000, (len(spec.bands), 40, 40)).astype(np.uint16)
    write_geotiff(folder / "scene.tif", pixels, sensor.band_names)
    write_product(
        folder / NEW_PRODUCT, rng.integers(1001, 5000, (len(spec.bands), 60, 60)).astype(np.uint16)
    )
    for number in range(3):
        write_geotiff(
            folder / "tiles" / f"{number}.tif", np.roll(pixels, number)[:, :32, :32],
            sensor.band_names,
        )  # fmt: skip
    bands = ("blue", "green", "red", "nir")
    for kind, level in (("Field", 900), ("Lake", 300)):
        for number in range(6):
            chip = (rng.integers(0, 300, (4, 32, 32)) + level).astype(np.uint16)
            write_geotiff(folder / "planet" / kind / f"{number}.tif", chip, bands, gsd_m=3)
    for split, numbers in {"train": range(4), "val": range(4, 6)}.items():
        names = [f"{kind}/{number}.tif" for kind in ("Field", "Lake") for number in numbers]
        (folder / f"{split}.txt").write_text("\n".join(names))
    (folder / "planetscope.toml").write_text(_PLANETSCOPE)
    _write_polygons(folder)
    return folder


def _write_polygons(folder: Path) -> None:
    """Water over the left of the scene."""
    west, south, east, north = ORIGIN[0], ORIGIN[1] - 600, ORIGIN[0] + 400, ORIGIN[1]
    ring = [[west, south], [east, south], [east, north], [west, north], [west, south]]
    geometry = {"type": "Polygon", "coordinates": [ring]}
    value = {
        "type": "FeatureCollection",
        "crs": {"type": "name", "properties": {"name": "EPSG:32633"}},
        "features": [{"type": "Feature", "properties": {"class": "water"}, "geometry": geometry}],
    }
    (folder / "polygons.geojson").write_text(json.dumps(value))


@pytest.fixture
def working_folder(documented: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of these as the working directory."""
    shutil.copytree(documented, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.usefixtures("working_folder")
@pytest.mark.parametrize("text", blocks("python"))
def test_python_blocks_run(text: str) -> None:
    for name in ("duckdb", "lancedb"):
        if f"import {name}" in text:
            pytest.importorskip(name, reason=f"{name} is not in the extra dev")
    if "import psycopg" in text:
        pytest.skip("the next test runs it, without a server")
    exec(compile(text, "block", "exec"), {"__name__": "__main__"})


def test_the_pgvector_block_fills_its_table(
    working_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    rows: list[list[Any]] = []
    server = MagicMock()
    connection = server.connect.return_value.__enter__.return_value
    connection.execute.side_effect = lambda sql, values=None: asked.append(sql) or []
    copying = connection.cursor.return_value.copy.return_value.__enter__.return_value
    copying.write_row.side_effect = rows.append
    monkeypatch.setitem(sys.modules, "psycopg", server)
    page = (ROOT / "docs" / "howto" / "databases.md").read_text()
    [text] = [one for kind, one in FENCE.findall(page) if "import psycopg" in one]
    exec(compile(text, "block", "exec"), {})
    [table] = [sql for sql in asked if sql.startswith("CREATE TABLE")]
    columns = [one.split()[:2] for one in re.split(r", (?=\w)", table.split("(", 1)[1])]
    index = terralign.open_index("scenes")
    assert len(rows) == len(index)
    for row in rows:
        values = dict(zip((name for name, _ in columns), row, strict=True))
        west, south, east, north = (values[one] for one in ("west", "south", "east", "north"))
        assert west < east
        assert south < north
        vector = np.array(json.loads(values["vector"]))
        expected = index.search(terralign.load("runs/b32/model"), k=1, like=values["id"])[0]
        assert np.linalg.norm(vector) == pytest.approx(1, abs=1e-2)
        assert (expected.key, len(vector)) == (values["id"], index.dim)
    assert columns[-1] == ["vector", f"halfvec({index.dim}))"]


def test_the_readmes_python_gives_what_its_command_does(working_folder: Path) -> None:
    """`classify` on the same scene, with no data where a chip without its mask would be bright."""
    with rasterio.open(working_folder / "scene.tif", "r+") as file:
        pixels = file.read()
        pixels[:, :5] = 65535
        file.write(pixels)
        file.nodata = 65535
    names: dict[str, Any] = {}
    text = next(
        text
        for kind, text in FENCE.findall((ROOT / "README.md").read_text())
        if "scene.tif" in text
    )
    exec(compile(text, "block", "exec"), names)
    by_python = np.asarray(names["found"])
    words = ["classify", "runs/b32/model", "scene.tif", "--labels", "forest,a river"]
    how = ["--sensor", "sentinel2-l2a", "--dn-offset", "-1000", "--json", "--device", "cpu"]
    found = CliRunner().invoke(main, [*words, *how])
    assert found.exit_code == 0, found.output
    (row,) = json.loads(found.stdout)
    by_command = [list(one["probabilities"].values()) for one in row["windows"]]
    assert np.array_equal(np.array(by_command, dtype=np.float32), by_python)
    assert row["valid_share"] < 1


@pytest.mark.parametrize("words", list(commands()))
def test_commands_parse(words: list[str]) -> None:
    name, *rest = words
    command = main.commands[name]
    context = command.make_context(name, list(rest))  # parses without running
    given = context.params
    recipe = given.get("recipe")
    if recipe and not recipe.endswith(".toml") and recipe.islower():
        load_recipe(recipe, overrides=given.get("overrides", ()))


@pytest.mark.parametrize("text", blocks("toml"))
def test_toml_blocks_are_what_they_look_like(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    _write_named_blocks(tmp_path)
    values = tomllib.loads(text)
    if "reader" in values:
        path = tmp_path / "data.toml"
        path.write_text(text)
        read_declaration(path)
    elif "entries" in values:
        parse_suite(text, origin="docs")
    elif "base" in values:
        parse_recipe(values, origin="docs")
    else:
        parse_sensor(values)


def _write_named_blocks(folder: Path) -> None:
    """The TOML blocks of the how-to that begin with their file's name, and its sensor."""
    (folder / "planetscope.toml").write_text(_PLANETSCOPE)
    for kind, text in FENCE.findall((ROOT / "docs" / "imagery.md").read_text()):
        if kind == "toml" and text.startswith("# "):
            name = text.split()[1].rstrip(":")
            (folder / name).write_text(text)


@pytest.mark.usefixtures("figures_undrawn")
def test_the_recipe_for_your_own_sensor_runs(working_folder: Path) -> None:
    _write_named_blocks(working_folder)
    text = (working_folder / "planet.toml").read_text()
    [words] = re.findall(r"terralign (run planet.toml .*)", text)
    result = CliRunner().invoke(
        main, [*shlex.split(words), "--set", "align.0.epochs=2", "--device", "cpu", "--json"]
    )
    assert result.exit_code == 0, result.output
    rows = json.loads(result.stdout)["rows"]
    assert {row["model"] for row in rows} == {"base", "aligned"}
    assert "planet" in terralign.load("runs/planet/model").tower_names
    report = Path("runs/planet/report.html").read_text(encoding="utf-8")
    assert "--sensor planetscope" in report


@pytest.mark.parametrize("name", sorted(main.commands))
def test_every_command_has_a_section_that_names_its_options(name: str) -> None:
    text = (ROOT / "docs" / "cli.md").read_text()
    sections = re.split(r"^## ", text, flags=re.MULTILINE)
    [section] = [one for one in sections if one.startswith(f"`terralign {name}`")]
    for parameter in main.commands[name].params:
        if isinstance(parameter, click.Option):
            assert f"`{parameter.opts[0]}" in section, f"{name} {parameter.opts[0]}"


@pytest.mark.parametrize("name", sorted(main.commands))
def test_every_command_has_help_with_an_example(name: str) -> None:
    assert f"terralign {name}" in (main.commands[name].help or "")


def test_the_first_page_of_the_site_names_every_command() -> None:
    text = (ROOT / "docs" / "index.md").read_text()
    [row] = [line for line in text.splitlines() if line.startswith("| commands |")]
    assert re.findall(r"`(\w+)`", row) == list(main.list_commands(click.Context(main)))


def test_every_recipe_is_described() -> None:
    text = (ROOT / "docs" / "recipes.md").read_text()
    assert [name for name in shipped_names("recipes") if f"`{name}`" not in text] == []


@pytest.mark.parametrize("name", DATASETS)
def test_every_data_set_is_in_the_table_and_in_a_section(name: str) -> None:
    table, sections = (ROOT / "docs" / "data.md").read_text().split("\n## ", 1)
    rows = [line.strip("| ").split(" | ") for line in table.splitlines() if f"`{name}`" in line]
    [(_, sensors, counts, labels, licence)] = rows
    facts = read_facts(name)
    assert sensors == ", ".join(facts.sensors)
    assert labels.split(",")[0] == facts.labels
    splits = ["train", "val", "test"] if facts.has_splits else ["all"]
    published = [facts.splits[split] for split in splits if facts.splits.get(split)]
    assert [one for one in published if f"{one:,}" not in counts] == []
    assert not facts.licence or licence.split(";")[0].split()[-1] in facts.licence
    assert f"`{name}`" in sections or f"terralign pack {name} " in sections


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_relative_links_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)\s]+)\)", page.read_text())
    dead = [
        link
        for link in links
        if not link.startswith(("http", "#")) and not (page.parent / link.split("#")[0]).exists()
    ]
    assert dead == []


def test_ci_runs_the_two_commands_of_the_readme_word_for_word() -> None:
    readme = (ROOT / "README.md").read_text().splitlines()
    script = (ROOT / ".ci" / "run").read_text()
    commands = re.findall(r'^(?:quickstart|tests)="(.*)"$', script, re.MULTILINE)
    assert len(commands) == 2
    for command in commands:
        assert command in readme
    assert "[dev]" not in commands[0]


def test_contributing_names_the_tests_that_ci_runs_besides() -> None:
    script = (ROOT / ".ci" / "run").read_text()
    markers = re.findall(r'^\w+="\.venv/bin/pytest -m (\w+)"$', script, re.MULTILINE)
    assert markers == ["shipped", "slow"]
    text = (ROOT / "CONTRIBUTING.md").read_text()
    assert [one for one in markers if f"`pytest -m {one}`" not in text] == []


def test_ci_installs_a_browser_before_the_tests_that_open_one() -> None:
    command = [str(ROOT / ".ci" / "run"), "--dry-run"]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    [browser] = [
        number for number, line in enumerate(lines) if "install" in line and "chromium" in line
    ]
    assert browser < lines.index(".venv/bin/pytest -m slow")


@pytest.mark.parametrize("name", ["run", "gate"])
def test_ci_scripts_are_executable(name: str) -> None:
    assert (ROOT / ".ci" / name).stat().st_mode & stat.S_IXUSR


def test_the_citation_names_this_version() -> None:
    values = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert values["version"] == terralign.__version__
    assert values["license"] == "Apache-2.0"
