"""Training data are not validation data: refused before anything is trained, allowed by one key."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from small_run import small_values
from terralign.cli import main
from terralign.errors import RecipeError
from terralign.evaluation.rows import Row
from terralign.runs.recipe import Recipe, parse_recipe, recipe_text
from terralign.runs.run import run_recipe

pytestmark = pytest.mark.usefixtures("figures_undrawn")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Class folders `one` and `two` of eight pictures each; two of `two` are also in `one`."""
    root = tmp_path / "data"
    for seed, name in enumerate(("one", "two", "three")):
        for number in range(8):
            folder = root / name / ("Forest", "River")[number % 2]
            folder.mkdir(parents=True, exist_ok=True)
            rng = np.random.default_rng(100 * seed + number)
            noise = rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)
            Image.fromarray(noise).save(folder / f"{number}.png")
        (root / f"{name}.toml").write_text(
            f'name = "{name}"\nreader = "folder"\nsensor = "rgb"\nroot = "{name}"\n'
            '[classes]\nForest = "forest"\nRiver = "river"\n'
            '[splits]\npart = "part.txt"\n'
        )
        (root / name / "part.txt").write_text("Forest/0.png\nRiver/1.png\n")
    for number in (0, 2):
        shutil.copy(root / "one/Forest" / f"{number}.png", root / "two/River/" / f"x{number}.png")
    return root


def _values(data: Path, finished_run: Path, name: str, **task: Any) -> dict[str, Any]:
    """The small recipe's stage 1 on class folders."""
    values = small_values()
    values["base"] = {"model": str(finished_run / "base")}
    values["patch"] |= {
        "epochs": 1,
        "warmup_steps": 0,
        "tasks": [{"data": str(data / f"{name}.toml"), **task}],
    }
    values["align"], values["evaluate"] = [], []
    return values


def _run(values: dict[str, Any], data: Path, folder: Path) -> list[Row]:
    recipe = parse_recipe(values, origin="test")
    return list(run_recipe(recipe, folder, data_root=data, device="cpu").rows)


def _refused(values: dict[str, Any], data: Path, folder: Path) -> str:
    """What a run says that ends before anything is trained."""
    with pytest.raises(RecipeError) as caught:
        _run(values, data, folder)
    assert not (folder / "patch").exists()
    assert not (folder / "pretrain").exists()
    assert not (folder / "align").exists()
    return str(caught.value)


def test_pictures_that_judge_the_tower_under_another_name_are_refused(
    data: Path, finished_run: Path, tmp_path: Path
) -> None:
    values = _values(data, finished_run, "one", train="all", validation="part")
    values["allow_shared_samples"] = False
    assert "'all' and 'part'" in _said(values)
    (data / "one" / "other.txt").write_text("Forest/2.png\nForest/4.png\nRiver/1.png\n")
    toml = data / "one.toml"
    toml.write_text(toml.read_text() + 'other = "other.txt"\n')
    values = _values(data, finished_run, "one", train="part", validation="other")
    said = _refused(values, data, tmp_path / "lists")
    assert "1 of the 3 samples of one/other are also in one/part, such as 'River/1'" in said
    assert "alpha is chosen on samples that are trained on" in said
    assert "allow_shared_samples = true" in said


def _said(values: dict[str, Any]) -> str:
    with pytest.raises(RecipeError) as caught:
        parse_recipe(values, origin="test")
    return str(caught.value)


@pytest.mark.parametrize("pack", [False, True])
def test_a_supported_task_of_training_pictures_is_refused(
    data: Path, finished_run: Path, tmp_path: Path, pack: bool
) -> None:
    (data / "one" / "val.txt").write_text("Forest/4.png\nForest/6.png\nRiver/3.png\n")
    (data / "one" / "train.txt").write_text("Forest/0.png\nForest/2.png\nRiver/1.png\n")
    toml = data / "one.toml"
    toml.write_text(toml.read_text() + 'val = "val.txt"\ntrain = "train.txt"\n')
    values = _values(data, finished_run, "one")
    values["pack"] = pack
    values["patch"]["supported"] = [{"data": str(data / "two.toml"), "validation": "all"}]
    said = _refused(values, data, tmp_path / "run")
    assert "2 of the 10 samples of two/all are also in one/train" in said
    assert "'River/x0' ('Forest/0' there)" in said
    # A part of the training pictures without those two is no overlap.
    (data / "one" / "train.txt").write_text("River/5.png\nRiver/7.png\nRiver/1.png\n")
    _run(values, data, tmp_path / "apart")


def test_pictures_to_preserve_on_may_not_judge_by_content_either(
    data: Path, finished_run: Path, tmp_path: Path
) -> None:
    values = _values(data, finished_run, "three", train="part", validation="all")
    values["patch"]["tasks"] = [{"data": "synthetic-scenes", "limit": 16, "validation_limit": 16}]
    values["patch"]["preserve_on"] = {"data": str(data / "one.toml"), "split": "all"}
    values["patch"]["supported"] = [{"data": str(data / "two.toml"), "validation": "all"}]
    assert "samples of two/all are also in one/all" in _refused(values, data, tmp_path / "run")


def test_what_pretrains_the_base_may_not_choose_alpha(data: Path, tmp_path: Path) -> None:
    values = small_values()
    values["patch"]["supported"] = [
        {"data": "synthetic-photos", "validation": "train", "validation_limit": 16_000}
    ]
    said = _refused(values, data, tmp_path / "run")
    assert "48 of the 16,000 samples of synthetic-photos/train" in said


def test_a_tower_is_not_kept_by_its_training_data(finished_run: Path, tmp_path: Path) -> None:
    values = small_values()
    values["base"], values["evaluate"] = {"model": str(finished_run / "base")}, []
    del values["patch"]
    values["align"] = values["align"][:1]
    values["align"][0] |= {
        "keep": "best",
        "validate_every": 2,
        "validation": {"data": "synthetic-scenes-multilabel", "split": "train", "limit": 16},
    }
    values["align"][0]["data"][0]["limit"] = 16
    said = _refused(values, tmp_path, tmp_path / "run")
    assert "16 of the 16 samples of synthetic-scenes-multilabel/train are also in" in said
    assert "the best step of tower 's2' is chosen on samples that are trained on" in said


def test_what_is_allowed_is_noted_in_results_report_and_log(
    data: Path, finished_run: Path, tmp_path: Path
) -> None:
    values = _values(data, finished_run, "one", train="all", validation="part")
    values["evaluate"] = [
        {
            "data": str(data / "two.toml"), "split": "all", "role": "patching",
            "models": ["base", "patched"],
        }
    ]  # fmt: skip
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(
        recipe_text(parse_recipe({**values, "allow_shared_samples": True}, origin="x"))
    )
    text = recipe.read_text()
    recipe.write_text(text.replace("allow_shared_samples = true", "allow_shared_samples = false"))
    folder = tmp_path / "run"
    arguments = [
        "run",
        str(recipe),
        "--data-root",
        str(data),
        "--out",
        str(folder),
        "--device",
        "cpu",
    ]
    refused = CliRunner().invoke(main, arguments)
    assert refused.exit_code == 1
    assert "allow_shared_samples = true" in refused.output
    done = CliRunner().invoke(main, [*arguments, "--set", "allow_shared_samples=true"])
    assert done.exit_code == 0, done.output
    results = json.loads((folder / "results.json").read_text())
    [note] = results["notes"]
    assert note.startswith("2 of the 2 samples of one/part are also in one/all")
    report = (folder / "report.md").read_text()
    assert "2 of the 2 samples of one/part" in report.replace("\\", "")
    assert "(allow_shared_samples)" in done.stderr
    notes = {row["model"]: row.get("note") for row in results["rows"]}
    assert notes == {"base": None, "patched": "2 of 10 samples were trained on (one/all)"}
    assert "two/all: 2 of 10 samples were trained on" in done.stdout
    assert "two/all: 2 of 10 samples were trained on" in report.replace("\\", "")
    assert done.stderr.count("two/all: 2 of 10 samples were trained on") == 1


def test_measuring_a_training_split_is_noted_and_not_refused(
    finished_run: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    values = small_values()
    values["base"] = {"model": str(finished_run / "base")}
    values["patch"] |= {
        "epochs": 1,
        "warmup_steps": 0,
        "tasks": [{**values["patch"]["tasks"][0], "limit": 16}],
    }
    values["align"] = [{**values["align"][0], "epochs": 1, "warmup_steps": 0}]
    values["align"][0]["data"][0] |= {"limit": 32}
    values["evaluate"] = [
        {
            "data": "synthetic-scenes", "split": "train", "role": "alignment", "limit": 32,
            "models": ["base", "patched"], "towers": ["s2"],
        }
    ]  # fmt: skip
    with caplog.at_level(logging.WARNING):
        rows = _run(values, tmp_path, tmp_path / "run")
    notes = {row.model: row.note for row in rows}
    assert notes["base"] is None
    assert notes["aligned"] == "32 of 32 samples were trained on (synthetic-scenes/train)"
    assert notes["patched"].endswith("of 32 samples were trained on (synthetic-scenes/train)")
    assert not notes["patched"].startswith("32 ")
    assert caplog.text.count("were trained on") == 1
    assert all(
        "note" not in row for row in json.loads((finished_run / "results.json").read_text())["rows"]
    )


def test_rows_say_how_many_samples_a_limit_leaves(finished_run: Path) -> None:
    rows = json.loads((finished_run / "results.json").read_text())["rows"]
    assert {row["num_samples"] for row in rows if row["task"] != "retrieval"} == {40}


def test_the_setting_is_recorded_and_lets_names_overlap() -> None:
    values = small_values()
    values["patch"]["tasks"][0]["validation"] = "train"
    assert "set allow_shared_samples = true" in _said(values)
    recipe: Recipe = parse_recipe({**values, "allow_shared_samples": True}, origin="x")
    assert "allow_shared_samples = true" in recipe_text(recipe)
