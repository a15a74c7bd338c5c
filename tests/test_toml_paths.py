"""One rule for paths in TOML files: relative to the file, then to the data root."""

from __future__ import annotations

import shutil
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from terralign.ablate.study import load_study, plan_study
from terralign.bench.suite import load_suite, suite_text
from terralign.datasets.catalog import find_dataset, open_dataset
from terralign.errors import DataError, RecipeError
from terralign.runs.folder import keep_recipe
from terralign.runs.recipe import load_recipe, recipe_hash, recipe_text
from terralign.toml_paths import TomlPaths, identity_of

DATA = """
name = "mine"
reader = "folder"
sensor = "rgb"
root = "pictures"

[classes]
Forest = "forest"
River = "river"
"""

RECIPE = """
name = "r"
base = { model = "clip" }

[patch]
epochs = 1

[[patch.tasks]]
data = "mine.toml"
train = "train"
validation = "val"
prompts = "words/words.toml"
"""

RECIPE_DATA = DATA.replace("[classes]", '[splits]\ntrain = "a.txt"\nval = "b.txt"\n\n[classes]')


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder `project` with a recipe and its data, a data root beside it; the working directory
    is neither."""
    project, root, elsewhere = (tmp_path / name for name in ("project", "data", "elsewhere"))
    for folder in (project / "words", project / "pictures", root / "clip", elsewhere):
        folder.mkdir(parents=True)
    (project / "r.toml").write_text(RECIPE)
    (project / "mine.toml").write_text(RECIPE_DATA)
    (project / "words" / "words.toml").write_text('templates = ["a {}"]\n')
    for name in ("Forest", "River"):
        (project / "pictures" / name).mkdir()
        Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(project / "pictures" / name / "a.png")
    (project / "a.txt").write_text("Forest/a.png\n")
    (project / "b.txt").write_text("River/a.png\n")
    monkeypatch.chdir(elsewhere)
    return project


def test_the_folder_of_the_file_comes_before_the_data_root(tmp_path: Path) -> None:
    for name in ("own", "root"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "both").touch()
    (tmp_path / "root" / "one").touch()
    paths = TomlPaths.beside(tmp_path / "own" / "x.toml", tmp_path / "root")
    assert paths.find("both") == tmp_path / "own" / "both"
    assert paths.find("one") == tmp_path / "root" / "one"
    assert paths.find("absent") is None
    assert paths.not_found("absent") == (
        f"absent not found; looked in {tmp_path / 'own'} and the data root {tmp_path / 'root'}"
    )
    (tmp_path / "root" / "mine.toml").touch()
    assert paths.not_found("mien.toml").startswith(
        f"mien.toml not found (did you mean {tmp_path / 'root' / 'mine.toml'}?); looked in "
    )
    assert paths.not_found("elsewhere/a.toml").startswith("elsewhere/a.toml not found; looked in ")
    slip = tmp_path / "root" / "mien.toml"
    assert paths.not_found(slip).startswith(f"{slip} not found (did you mean ")


def test_a_path_that_is_not_found_is_shown_in_printable_characters(tmp_path: Path) -> None:
    paths = TomlPaths.beside(tmp_path / "x.toml")
    assert paths.not_found("a\n\u202eb").startswith(r"a\n\u202eb not found; looked in")


def test_a_recipe_finds_its_files_from_any_working_directory(project: Path) -> None:
    recipe = load_recipe(str(project / "r.toml"), data_root=project.parent / "data")
    assert recipe.patch is not None
    (task,) = recipe.patch.tasks
    assert task.data == str(project / "mine.toml")
    assert task.prompts == str(project / "words" / "words.toml")
    assert recipe.base.model == str(project.parent / "data" / "clip")


def test_the_run_folders_recipe_is_the_same_recipe(project: Path) -> None:
    root = project.parent / "data"
    recipe = load_recipe(str(project / "r.toml"), data_root=root)
    run = project / "runs" / "r"
    run.mkdir(parents=True)
    keep_recipe(recipe, run, root)
    kept = tomllib.loads((run / "recipe.toml").read_text())
    assert kept["base"]["model"] == "clip"
    assert kept["patch"]["tasks"][0]["data"] == "../../mine.toml"
    again = load_recipe(str(run / "recipe.toml"), data_root=root)
    assert again == recipe
    assert recipe_hash(again) == recipe_hash(recipe)
    (run / "metrics.jsonl").write_text("{}\n")
    keep_recipe(again, run, root)  # the folder takes it back


@pytest.mark.parametrize("what", ["project", "run"])
def test_what_is_moved_is_the_same_recipe(project: Path, what: str) -> None:
    root = project.parent / "data"
    recipe = load_recipe(str(project / "r.toml"), data_root=root)
    run = project / "runs" / "r"
    run.mkdir(parents=True)
    keep_recipe(recipe, run, root)
    (run / "metrics.jsonl").write_text("{}\n")
    moved = project.parent / "moved"
    if what == "project":
        shutil.move(project, moved)
        run = moved / "runs" / "r"
        now = load_recipe(str(moved / "r.toml"), data_root=root)
    else:
        shutil.move(run, moved)
        run, now = moved, recipe
    keep_recipe(now, run, root)
    assert recipe_hash(now) == recipe_hash(recipe)


def test_another_file_of_the_same_name_is_another_recipe(project: Path) -> None:
    run = project / "run"
    run.mkdir()
    keep_recipe(load_recipe(str(project / "r.toml")), run)
    (run / "metrics.jsonl").write_text("{}\n")
    other = project.parent / "other"
    shutil.copytree(project, other)
    with pytest.raises(RecipeError, match=r"Different: patch.tasks.0.data: "):
        keep_recipe(load_recipe(str(other / "r.toml")), run)


def test_overrides_are_relative_to_the_working_directory(project: Path) -> None:
    Path("here.toml").write_text(RECIPE_DATA.replace("mine", "here"))
    recipe = load_recipe(str(project / "r.toml"), overrides=["patch.tasks.0.data=here.toml"])
    assert recipe.patch is not None
    assert recipe.patch.tasks[0].data == str(Path.cwd() / "here.toml")
    with pytest.raises(RecipeError, match=r"data: mine.toml not found; looked in .*elsewhere"):
        load_recipe(str(project / "r.toml"), overrides=["patch.tasks.0.data=mine.toml"])


def test_a_missing_file_is_named_with_the_places_that_were_searched(project: Path) -> None:
    (project / "mine.toml").unlink()
    root = project.parent / "data"
    with pytest.raises(RecipeError) as caught:
        load_recipe(str(project / "r.toml"), data_root=root)
    assert f"looked in {project} and the data root {root}" in str(caught.value)
    with pytest.raises(RecipeError, match="no data root was given to look in"):
        load_recipe(str(project / "r.toml"))


def test_the_name_of_a_data_set_is_no_path(project: Path) -> None:
    (project / "aid").mkdir()
    text = RECIPE.replace("mine.toml", "eurosat-rgb")
    (project / "r.toml").write_text(text)
    (project / "eurosat-rgb").mkdir()
    recipe = load_recipe(str(project / "r.toml"))
    assert recipe.patch is not None
    assert recipe.patch.tasks[0].data == "eurosat-rgb"


def test_a_suite_finds_its_files_and_names_entries_by_them(project: Path) -> None:
    (project / "s.toml").write_text(
        'name = "s"\n[[entries]]\ndata = "mine.toml"\nsplit = "val"\nrole = "unseen"\n'
        'tasks = ["zero-shot"]\nprompts = "words/words.toml"\n'
    )
    suite = load_suite(str(project / "s.toml"))
    (entry,) = suite.entries
    assert (entry.data, entry.title) == (str(project / "mine.toml"), "mine.toml/val")
    bench = TomlPaths.beside(project / "bench" / "suite.toml")
    assert 'data = "../mine.toml"' in suite_text(suite, bench)


def test_a_study_and_its_recipe_each_find_their_own(project: Path) -> None:
    studies = project / "studies"
    studies.mkdir()
    (studies / "other.toml").write_text(RECIPE_DATA.replace("mine", "other"))
    (studies / "s.toml").write_text(
        'name = "s"\nrecipe = "../r.toml"\n'
        'vary = { "patch.tasks.0.data" = ["other.toml"], "patch.epochs" = [1, 2] }\n'
    )
    shutil.copytree(project / "pictures", studies / "pictures")
    planned = plan_study(load_study(str(studies / "s.toml")), seeds=[0])
    assert [one.variant.name for one in planned] == [
        "data=other.toml_epochs=1", "data=other.toml_epochs=2"
    ]  # fmt: skip
    assert planned[0].recipe.patch is not None
    (task,) = planned[0].recipe.patch.tasks
    assert task.data == str(studies / "other.toml")
    assert task.prompts == str(project / "words" / "words.toml")


def test_a_declared_set_beside_its_file_needs_no_data_root(project: Path) -> None:
    assert not find_dataset(str(project / "mine.toml")).facts.needs_root
    samples = open_dataset(str(project / "mine.toml"), data_root=None, split="train", size=8)
    assert len(samples) == 1


def test_a_declared_set_in_the_data_root_is_found_there(project: Path) -> None:
    root = project.parent / "data"
    shutil.move(project / "pictures", root / "pictures")
    shutil.move(project / "a.txt", root / "a.txt")
    samples = open_dataset(str(project / "mine.toml"), data_root=root, split="train", size=8)
    assert len(samples) == 1
    with pytest.raises(DataError, match=r"needs a data root: give the folder .*data_root="):
        open_dataset(str(project / "mine.toml"), data_root=None, split="train")


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ({"model": "/a/b/clip"}, {"model": "clip"}),
        ({"model": "ViT-B-32:/a/w.pt"}, {"model": "ViT-B-32:w.pt"}),
        ({"model": "hf-hub:org/name"}, {"model": "hf-hub:org/name"}),
        (
            {"align": [{"data": [{"data": "/a/x.toml"}]}]},
            {"align": [{"data": [{"data": "x.toml"}]}]},
        ),
        ({"sensors": ["/a/s.toml", "rgb"]}, {"sensors": ["s.toml", "rgb"]}),
        ({"note": "/a/b"}, {"note": "/a/b"}),
    ],
)
def test_identities_hold_no_folders(value: dict[str, Any], expected: dict[str, Any]) -> None:
    assert identity_of(value) == expected


@pytest.mark.parametrize("written", ["x" * 5000, "a\0b"])
def test_what_can_be_no_path_is_not_found(tmp_path: Path, written: str) -> None:
    paths = TomlPaths(folder=tmp_path, data_root=tmp_path)
    assert paths.find(written) is None
    assert paths.resolve({"model": written}) == {"model": written}


def test_plain_names_of_a_recipe_stay(project: Path) -> None:
    recipe = load_recipe("micro-real", data_root=project)
    assert recipe.base.model == "micro-clip"
    assert 'model = "micro-clip"' in recipe_text(recipe, TomlPaths.beside(project / "r.toml"))
