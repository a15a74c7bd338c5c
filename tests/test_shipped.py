"""Every recipe, suite and study that ships runs to its end, on a fake world in official layouts.

What runs is the shipped TOML, by the command line. Only base model, paths and sizes are changed, by
`--set`. The figures mean nothing: models are small and their weights random.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

from fake_world import FakeWorld
from fake_world.models import (
    STUDENT,
    STUDENT_SIZE,
    openai_clip,
    serve_openai,
    student_weights,
    write_clip,
)
from fake_world.shrink import FEW, data_names, shrink
from fakes import input_spec
from small_sets import one_thread  # noqa: F401
from terralign.ablate.study import Planned, load_study, plan_study
from terralign.bench.suite import Suite, SuiteEntry, load_suite
from terralign.cli import main
from terralign.datasets.catalog import find_dataset
from terralign.encoders.clip.weights import read_state_dict
from terralign.encoders.sensor import TowerConfig, build_tower
from terralign.encoders.space import EmbeddingSpace
from terralign.files import shipped_names
from terralign.report import canvas
from terralign.report.run import RunReport
from terralign.runs.recipe import Recipe, load_recipe
from terralign.sensors import SENSORS
from terralign.toml_paths import SHIPPED_MODELS

Figure = tuple[str, ...]
"""What names a figure: model, role, data set, split, task, tower or "query -> gallery"."""

IN_THE_DEFAULT_RUN = ("paper-vit-b32",)

KNOWN_WARNINGS = dict.fromkeys(("efficiency", "student-init"), "every batch is of one sensor")
"""Studies that try a random start on two product levels, and what is warned of there."""

RGB_ONLY = ("eurosat-rgb", "resisc45", "imagenet")
"""Data sets of pictures, which no sensor tower takes."""


@pytest.fixture(autouse=True)
def coarse_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reports with all their figures, in few pixels: drawing them sharp takes longest of all."""
    monkeypatch.setattr(canvas, "DPI", 20)


def invoke(*words: str, known: str | None = None) -> str:
    """What a command prints; it must succeed, and warn of nothing but what is `known`."""
    result = CliRunner().invoke(main, ["--quiet", *words])
    assert result.exit_code == 0, result.output
    warnings = result.stderr.splitlines()
    assert [line for line in warnings if known is None or known not in line] == []
    return result.stdout


def settings(overrides: list[str]) -> list[str]:
    return [word for override in overrides for word in ("--set", override)]


def prepare(world: FakeWorld, recipe: Recipe) -> list[str]:
    """Write what a recipe reads; what its base model is called here, as `--set` takes it."""
    world.add_data(data_names(recipe))
    for tower in recipe.align:
        if tower.student.initial is not None:
            bands = tower.student.initial_bands or tower.student.bands
            sensor = SENSORS[tower.sensors[0]]
            world.add_checkpoint(tower.student.initial, len(bands or sensor.bands))
    model = recipe.base.model
    if model is None:
        return []
    architecture, colon, _ = model.partition(":")
    if not colon or model in SHIPPED_MODELS:
        world.add_micro_clip()
        return ["base.model=micro-clip"]
    if not (world.root / architecture).is_dir():
        write_clip(openai_clip(architecture), world.root / architecture)
    return [f"base.model={architecture}"]


def asked_of(recipe: Recipe, world: FakeWorld) -> dict[Figure, int]:
    """What a recipe measures, and on how many samples."""
    asked = {}
    for entry in recipe.evaluate:
        multi = entry.task == "zero-shot" and find_dataset(entry.data).facts.labels == "multi"
        where = (entry.role, entry.data, entry.split, "multi-label" if multi else entry.task)
        num_samples = min(entry.limit or 10**9, world.size(entry.data, entry.split))
        for model in entry.models:
            asked[(model, *where, "rgb")] = num_samples
        for tower in entry.towers:
            asked[("aligned", *where, tower)] = num_samples
        if entry.task == "retrieval":
            towers = {entry.query, entry.gallery} - {"rgb", "text"}
            model = "aligned" if towers else "patched"
            asked[(model, *where, f"{entry.query} -> {entry.gallery}")] = num_samples
    return asked


def figure_of(row: dict[str, Any]) -> Figure:
    tower = row.get("tower") or f"{row['query_tower']} -> {row['gallery_tower']}"
    return (row["model"], row["role"], row["dataset"], row["split"], row["task"], tower)


def measured(rows: list[dict[str, Any]]) -> dict[Figure, int]:
    """What was measured, and on how many samples at most: some metrics leave out classes."""
    counts: dict[Figure, int] = {}
    for row in rows:
        assert 0 <= row["value"] <= 1
        assert row["low"] <= row["high"]
        figure = figure_of(row)
        counts[figure] = max(counts.get(figure, 0), row["num_samples"])
    return counts


def read_rows(folder: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads((folder / "results.json").read_text())["rows"]
    return rows


# Recipes


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[] if name in IN_THE_DEFAULT_RUN else [pytest.mark.shipped])
        for name in shipped_names("recipes")
    ],
)
def test_a_recipe_measures_all_that_it_names(
    name: str, fake_world: FakeWorld, tmp_path: Path
) -> None:
    shipped = load_recipe(name)
    overrides = [*prepare(fake_world, shipped), *shrink(shipped)]
    recipe = load_recipe(name, overrides=overrides)
    folder = tmp_path / "run"
    words = ["run", name, "--data-root", str(fake_world.root), "--out", str(folder),
             "--device", "cpu", *settings(overrides)]  # fmt: skip
    table = invoke(*words)
    asked = asked_of(recipe, fake_world)
    assert measured(read_rows(folder)) == asked
    for model, role, data, split, task, tower in asked:
        assert f"{role}: {data}/{split}, {task}" in table
        assert tower.replace("->", "→") in table or (tower == "rgb" and model in table)
    report = (folder / "report.html").read_text()
    assert [data for data in data_names(recipe) if data not in report] == []
    check_training(recipe, fake_world, folder)
    assert "is already complete" in invoke(*words)


def check_training(recipe: Recipe, world: FakeWorld, folder: Path) -> None:
    """Training moved the RGB tower and every student; the text tower is still the base's."""
    model = recipe.base.model
    base = EmbeddingSpace.load(folder / "base" if model is None else world.root / model)
    space = EmbeddingSpace.load(folder / "model")
    finetuned = read_state_dict(folder / "patch" / "finetuned.safetensors")
    theta_0 = base.clip.visual.state_dict()
    assert finetuned.keys() == theta_0.keys()
    assert any(not torch.equal(value, theta_0[key]) for key, value in finetuned.items())
    assert space.clip.text_id() == base.clip.text_id()
    assert sorted(space.towers) == sorted(tower.name for tower in recipe.align)
    for tower in recipe.align:
        if tower.student.initial is not None:
            num_bands = len(space.towers[tower.name].config.input.bands)
            start = student_weights(num_bands)
            now = space.towers[tower.name].backbone.state_dict()
            assert now.keys() == start.keys()
            assert not torch.equal(now["blocks.0.mlp.fc1.weight"], start["blocks.0.mlp.fc1.weight"])
            assert torch.equal(now["pos_embed"], start["pos_embed"])  # frozen, as in pretraining


PAPER = {
    *("bigearthnet-19", "bigearthnet-43", "bigearthnet-5", "sen12ms", "eurosat-rgb", "eurosat-ms"),
    *("resisc45", "imagenet"),
}


@pytest.mark.parametrize(
    ("name", "tower", "data"),
    [
        ("paper-vit-b32", "sentinel2", PAPER),
        ("paper-vit-l14", "sentinel2", PAPER),
        ("paper-vit-b32-s1", "sentinel1", {"bigearthnet-mm-19", "imagenet"}),
    ],
)
def test_the_papers_recipes_name_all_that_the_paper_measures(
    name: str, tower: str, data: set[str]
) -> None:
    recipe = load_recipe(name)
    classified = [entry for entry in recipe.evaluate if entry.task == "zero-shot"]
    assert {entry.data for entry in classified} == data
    for entry in classified:
        assert entry.models == ("base", "finetuned", "patched")
        assert entry.towers == (() if entry.data in RGB_ONLY else (tower,))
    retrieval = [(e.query, e.gallery) for e in recipe.evaluate if e.task == "retrieval"]
    assert Counter(retrieval) == Counter([("rgb", tower), (tower, "rgb")])
    assert recipe.patch is not None
    chosen_on = {one.validation for one in recipe.patch.supported}
    assert chosen_on.isdisjoint(e.split for e in recipe.evaluate if e.data == "imagenet")


# Suites


@pytest.fixture(scope="module")
def models(fake_world: FakeWorld, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """A base model, and a space with towers of Sentinel-2 (both levels) and Sentinel-1."""
    [override] = prepare(fake_world, load_recipe("paper-vit-b32"))
    source = fake_world.root / override.removeprefix("base.model=")
    base = EmbeddingSpace.load(source)
    sensors = {
        "sentinel2": ("sentinel2-l1c", "sentinel2-l2a"),
        "sentinel1": ("sentinel1-grd",),
    }
    towers = {}
    for name, takes in sensors.items():
        bands = SENSORS[takes[0]].band_names
        low, high = (0.0, 1.0) if name == "sentinel2" else (-25.0, 0.0)
        spec = input_spec(
            takes, bands, (low, high), mean=0.0, std=1.0, size=STUDENT_SIZE, missing="zero"
        )
        config = TowerConfig(name=name, backbone=STUDENT, input=spec, embed_dim=base.clip.dim)
        towers[name] = build_tower(config, base.clip)
    folder = tmp_path_factory.mktemp("aligned") / "aligned"
    EmbeddingSpace(base.clip, towers=towers).save(folder)
    return [f"base={source}", f"aligned={folder}"]


def shrink_suite(suite: Suite) -> list[str]:
    """Few resamples and draws, and few samples of what is large by its format."""
    overrides = ["num_bootstrap=20"]
    for number, entry in enumerate(suite.entries):
        if "few-shot" in entry.tasks:
            overrides.append(f"entries.{number}.num_seeds=2")
        if entry.data == "cifar100":
            overrides.append(f"entries.{number}.limit={FEW}")
    return overrides


@pytest.mark.shipped
@pytest.mark.parametrize("name", shipped_names("suites"))
def test_a_suite_measures_all_that_it_names(
    name: str, fake_world: FakeWorld, models: list[str], tmp_path: Path
) -> None:
    overrides = shrink_suite(load_suite(name))
    suite = load_suite(name, overrides=overrides)
    fake_world.add_data(entry.data for entry in suite.entries)
    folder = tmp_path / "bench"
    words = ["bench", name, "--models", *models, "--out", str(folder), "--device", "cpu",
             "--data-root", str(fake_world.root), *settings(overrides)]  # fmt: skip
    table = invoke(*words)
    rows = read_rows(folder)
    assert [row for row in rows if row["status"] == "failed"] == []
    report = (folder / "report.html").read_text()
    for entry in suite.entries:
        own = [row for row in rows if row["entry"] == entry.title and row["reference"] is None]
        check_entry(entry, own, fake_world)
        assert entry.title in table
        assert entry.data in report
    assert "\n0 new measurements" in invoke(*words)


def check_entry(entry: SuiteEntry, rows: list[dict[str, Any]], world: FakeWorld) -> None:
    """Every task of every model is measured on all samples, or skipped where the base has one
    modality only."""
    multi_label = find_dataset(entry.data).facts.labels == "multi"
    for asked in entry.tasks:
        task = "multi-label" if asked == "zero-shot" and multi_label else asked
        for model in ("base", "aligned"):
            own = [row for row in rows if (row["model"], row["task"]) == (model, task)]
            numbers = {row["num_samples"] for row in own if row["status"] == "measured"}
            if asked == "zero-shot":
                size = world.size(entry.data, entry.split)
                assert max(numbers) == min(entry.limit or size, size)
            elif not numbers:
                assert model == "base"
                assert own
                assert all("has one modality that the model takes" in row["note"] for row in own)


# Studies


@pytest.fixture
def no_reports(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs of a study without their reports, whose figures take longer than the runs."""
    monkeypatch.setattr(RunReport, "write", lambda *_: None)


def shrink_study(planned: list[Planned]) -> list[str]:
    """As a recipe; a variant's own warm-up needs a few epochs more."""
    warmup = max(int(plan.variant.set.get("patch.warmup_steps", 1)) for plan in planned)
    return [*shrink(planned[0].recipe), f"patch.epochs={warmup + 1}"]


@pytest.mark.shipped
@pytest.mark.usefixtures("no_reports")
@pytest.mark.parametrize("name", shipped_names("studies"))
def test_a_study_runs_every_variant(
    name: str, fake_world: FakeWorld, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = load_study(name)
    planned = plan_study(study, seeds=[0])
    overrides = shrink_study(planned)
    serve_openai(fake_world.root, monkeypatch)
    for plan in planned:
        prepare(fake_world, plan.recipe)
    folder = tmp_path / "study"
    words = ["ablate", name, "--out", str(folder), "--data-root", str(fake_world.root),
             "--seed", "0", "--device", "cpu", *settings(overrides)]  # fmt: skip
    table = invoke(*words, known=KNOWN_WARNINGS.get(name))
    rows = read_rows(folder)
    for plan in plan_study(study, overrides=overrides, seeds=[0]):
        own = [row for row in rows if row["variant"] == plan.variant.name]
        check_variant(plan, own, fake_world)
        assert plan.variant.name in table
    assert "is already complete" in invoke(*words)


def check_variant(plan: Planned, rows: list[dict[str, Any]], world: FakeWorld) -> None:
    asked = asked_of(plan.recipe, world)
    if plan.variant.method != "recipe":
        # A method takes the place of stage 1: what it trained is called "patched".
        asked = {figure: size for figure, size in asked.items() if figure[0] != "finetuned"}
        rows = [row for row in rows if row["task"] != "linear-head"]
    assert measured(rows) == asked
