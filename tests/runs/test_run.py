"""Whole runs: what they leave behind, and what is left to do after a stop."""

from __future__ import annotations

import fcntl
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tomllib
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import rasterio
import torch
from click.testing import CliRunner

from fakes import metrics_of
from small_run import SMALL_RECIPE, small_recipe, small_values
from small_sets import one_thread  # noqa: F401
from terralign.cli import main
from terralign.encoders.space import EmbeddingSpace
from terralign.errors import (
    DataError,
    Interrupted,
    RecipeError,
    SensorError,
    StorageError,
    TerralignError,
)
from terralign.files import hash_file
from terralign.runs.folder import is_untouched, keep_recipe, keep_threads
from terralign.runs.recipe import parse_recipe, recipe_text, single_stage
from terralign.runs.run import run_recipe
from terralign.sensors import find_sensor
from terralign.train import align as align_module
from terralign.train import finetune as finetune_module
from terralign.versions import versions

pytestmark = pytest.mark.usefixtures("figures_undrawn")


def _weights(folder: Path) -> dict[str, str]:
    """The hashes of the final weights."""
    model = folder / "model"
    return {str(path.relative_to(model)): hash_file(path) for path in model.rglob("*.safetensors")}


def _rows(folder: Path) -> list[dict[str, Any]]:
    return list(json.loads((folder / "results.json").read_text())["rows"])


# What a run leaves behind


def test_a_run_leaves_what_it_promises(finished_run: Path) -> None:
    there = {path.name for path in finished_run.iterdir()}
    assert {
        "recipe.toml", "versions.json", "model", "results.json", "report.html", "report.md",
        "figures", "alpha-sweep.csv", "patch", "align", "pretrain",
    } <= there  # fmt: skip
    values = tomllib.loads((finished_run / "recipe.toml").read_text())
    assert values["name"] == "small"
    assert values["patch"]["weight_decay"] == 0.5  # a default, resolved
    kept = json.loads((finished_run / "versions.json").read_text())
    assert kept["threads"] == 1
    assert {"terralign", "torch", "python", "device"} <= kept.keys()
    assert len(list((finished_run / "figures").glob("*.png"))) >= 2
    assert len(metrics_of(finished_run / "patch" / "checkpoints" / "metrics.jsonl")) == 8


def test_the_report_shows_samples_and_what_to_do_next(finished_run: Path) -> None:
    text = (finished_run / "report.md").read_text()
    steps = [shlex.split(line) for line in text.splitlines() if line.startswith("terralign ")]
    assert [words[1] for words in steps] == ["info", "classify", "bench"]
    for _, command, *words in steps:
        known = {option for one in main.commands[command].params for option in one.opts}
        assert {word for word in words if word.startswith("--")} <= known
    for view in ("true-colour", "false-colour", "radar"):
        assert len(list((finished_run / "samples").glob(f"*-{view}.jpg"))) == 6
    header = next(line for line in text.splitlines() if line.startswith("| sample |"))
    assert header.split(" | ")[1:] == ["base", "finetuned", "patched", "s2", "s1 |"]


def test_one_log_holds_the_lines_of_all_stages(finished_run: Path) -> None:
    lines = metrics_of(finished_run / "metrics.jsonl")
    stages = list(dict.fromkeys(line["stage"] for line in lines))
    assert stages == ["align/s1", "align/s2", "patch", "pretrain"]
    own = metrics_of(finished_run / "align" / "s2" / "metrics.jsonl")
    assert [line for line in lines if line["stage"] == "align/s2"] == [
        {"stage": "align/s2", **line} for line in own
    ]


def test_towers_of_the_same_data_share_their_teachers_views(finished_run: Path) -> None:
    assert [path.parent.name for path in finished_run.rglob("views-*.npy")] == ["teacher"]


def test_rows_have_the_documented_keys(finished_run: Path) -> None:
    rows = _rows(finished_run)
    keys = {
        "model", "role", "dataset", "split", "task", "metric", "value", "low", "high",
        "num_samples", "chance", "measurement", "valid_share", "sensor",
    }  # fmt: skip
    for row in rows:
        towers = {"query_tower", "gallery_tower"} if row["task"] == "retrieval" else {"tower"}
        assert set(row) == keys | towers
        assert 0 <= row["low"] <= row["value"] <= row["high"] <= 1
    measured = {(row["model"], row.get("tower"), row["dataset"]) for row in rows}
    assert {
        ("base", "rgb", "synthetic-scenes"),
        ("finetuned", "rgb", "synthetic-scenes"),
        ("patched", "rgb", "synthetic-scenes"),
        ("aligned", "s2", "synthetic-scenes"),
        ("aligned", "s1", "synthetic-scenes"),
        ("base", "rgb", "synthetic-photos"),
        ("patched", "rgb", "synthetic-photos"),
    } <= measured
    pairs = {
        (row["model"], row["query_tower"], row["gallery_tower"])
        for row in rows
        if "query_tower" in row
    }
    assert pairs == {("aligned", "s1", "s2"), ("patched", "text", "rgb")}
    assert {row["role"] for row in rows} == {"patching", "supported", "alignment"}


def test_the_final_space_loads(finished_run: Path) -> None:
    space = EmbeddingSpace.load(finished_run / "model")
    assert space.tower_names == ("rgb", "s2", "s1")
    assert space.provenance["recipe"] == "small"
    chosen = json.loads((finished_run / "patch" / "sweep.json").read_text())["chosen"]
    assert space.provenance["alpha"] == chosen["alpha"]
    assert space.prompts is not None
    assert space.space_id != space.provenance["base_id"] or chosen["alpha"] == 0


def test_the_final_space_is_an_open_clip_model(finished_run: Path) -> None:
    space = EmbeddingSpace.load(finished_run / "model")
    model = open_clip.create_model(f"local-dir:{finished_run / 'model'}").eval()
    pixels = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(model.encode_image(pixels), space.clip.visual(pixels))


def test_a_complete_run_does_nothing(finished_run: Path) -> None:
    def times() -> dict[Path, int]:
        files = [path for path in finished_run.rglob("*") if path.name != ".lock"]
        return {path: path.stat().st_mtime_ns for path in files}

    before = times()
    found = run_recipe(small_recipe(), finished_run)
    assert found.complete_before
    assert [row.to_json() for row in found.rows] == _rows(finished_run)
    assert times() == before


def test_another_recipe_in_the_folder_is_refused_with_the_difference(finished_run: Path) -> None:
    values = small_values()
    values["patch"]["lr"] = 0.5
    with pytest.raises(RecipeError, match=r"Different: patch\.lr: 0\.001 -> 0\.5$"):
        run_recipe(small_recipe(patch=values["patch"]), finished_run)


# What is refused before the work


def test_a_folder_of_other_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.doc").write_text("precious")
    with pytest.raises(StorageError, match=r"holds other files \(thesis\.doc\) and no run"):
        run_recipe(small_recipe(), tmp_path)
    assert (tmp_path / "thesis.doc").read_text() == "precious"


def test_a_folder_that_another_process_uses_is_refused(tmp_path: Path) -> None:
    with open(tmp_path / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(StorageError, match="another process is running in"):
            run_recipe(small_recipe(), tmp_path)


def test_a_folder_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot write into"):
        run_recipe(small_recipe(), tmp_path / "file" / "run")


@pytest.mark.parametrize("fault", ["no model", "no data", "too many warm-up steps", "no device"])
def test_a_run_that_failed_before_its_first_step_leaves_its_folder_free(
    tmp_path: Path, fault: str
) -> None:
    values = small_values()
    if fault == "no model":
        values["base"] = {"model": "nowhere"}
    elif fault == "no data":
        values["patch"]["tasks"] = [{"data": "eurosat-rgb"}]
    elif fault == "too many warm-up steps":
        values["base"]["pretrain"]["warmup_steps"] = 400
    with pytest.raises(TerralignError):
        run_recipe(
            parse_recipe(values, origin="x"),
            tmp_path,
            device="gpu" if fault == "no device" else None,
        )
    keep_recipe(small_recipe(), tmp_path)
    assert (tmp_path / "recipe.toml").read_text() == recipe_text(small_recipe())


def test_a_run_that_computed_something_keeps_its_folder(tmp_path: Path) -> None:
    keep_recipe(small_recipe(), tmp_path)
    (tmp_path / "patch").mkdir()
    (tmp_path / "patch" / "metrics.jsonl").touch()
    assert is_untouched(tmp_path)
    (tmp_path / "patch" / "metrics.jsonl").write_text("{}")
    assert not is_untouched(tmp_path)
    with pytest.raises(RecipeError, match="holds a run of another recipe"):
        keep_recipe(small_recipe(seed=5), tmp_path)


def test_all_missing_data_are_named_in_one_message(tmp_path: Path) -> None:
    values = small_values()
    values["patch"]["tasks"] = [{"data": "eurosat-rgb"}]
    values["patch"]["supported"] = [{"data": "tiny-imagenet"}]
    recipe = parse_recipe(values, origin="x")
    with pytest.raises(DataError) as caught:
        run_recipe(recipe, tmp_path / "a", data_root=tmp_path)
    for name in ("eurosat-rgb", "tiny-imagenet"):
        assert f"see `terralign info {name}`" in str(caught.value)
    with pytest.raises(DataError, match=r"2 data sets cannot be opened: .*data_root=") as caught:
        run_recipe(recipe, tmp_path / "a")
    for name in ("eurosat-rgb", "tiny-imagenet"):
        assert f"`terralign info {name}`" in str(caught.value)


def test_one_missing_data_set_is_named_with_where_it_is_described(tmp_path: Path) -> None:
    values = small_values()
    values["patch"]["supported"] = [{"data": "cifar10", "validation": "test"}]
    with pytest.raises(DataError, match=r"; see `terralign info cifar10`$"):
        run_recipe(parse_recipe(values, origin="x"), tmp_path / "a", data_root=tmp_path)


def test_a_data_root_that_is_not_there_is_told_before_the_base_is_looked_for(
    tmp_path: Path,
) -> None:
    recipe = small_recipe(base={"model": "micro-clip"})
    with pytest.raises(DataError, match=r"data root .*nowhere not found"):
        run_recipe(recipe, tmp_path / "out", data_root=tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("change", "error", "said"),
    [
        ({"towers": ["s3"]}, RecipeError, "evaluate names tower 's3'; known: rgb, s2, text"),
        (
            {"data": "synthetic-photos", "towers": ["s2"]},
            SensorError,
            "the student takes sentinel2-l2a; data set 'synthetic-photos' has rgb",
        ),
        (
            {"composite": "paper-l1c", "models": ["base"], "towers": ["s2"]},
            SensorError,
            "unknown composite 'paper-l1c' of sensor 'sentinel2-l2a'",
        ),
    ],
)
def test_a_tower_that_cannot_be_measured_is_told_before_it_is_trained(
    finished_run: Path, tmp_path: Path, change: dict[str, Any], error: type[Exception], said: str
) -> None:
    entry = {"data": "synthetic-scenes", "split": "test", "role": "alignment", **change}
    recipe = small_recipe(patch=None, align=small_values()["align"][:1], evaluate=[entry])
    aligned = single_stage(recipe, "align", base=str(finished_run / "base"))
    with pytest.raises(error, match=said):
        run_recipe(aligned, tmp_path)
    assert not (tmp_path / "align").exists()


def test_bands_that_a_tower_cannot_do_without_are_looked_for_before_it_is_trained(
    finished_run: Path, tmp_path: Path
) -> None:
    """B10 is no band of L2A."""
    values = small_values()["align"][0]
    values |= {"sensors": ["sentinel2-l2a", "sentinel2-l1c"]}
    values["student"] = {"bands": ["B04", "B10"]}
    recipe = small_recipe(patch=None, align=[values], evaluate=None)
    aligned = single_stage(recipe, "align", base=str(finished_run / "base"))
    with pytest.raises(SensorError, match=r'has no band B10; .* or set missing = "zero"'):
        run_recipe(aligned, tmp_path)
    assert not (tmp_path / "align").exists()


def test_two_measurements_of_one_name_are_refused(finished_run: Path, tmp_path: Path) -> None:
    """They could not be told apart in results.json, nor drawn in one table."""
    entry = {"data": "synthetic-scenes", "split": "test", "role": "unseen", "models": ["base"]}
    other = {**entry, "prompts": "satellite", "models": ["patched", "base"]}
    recipe = small_recipe(base={"model": str(finished_run / "base")}, evaluate=[entry, other])
    with pytest.raises(RecipeError, match="measures base on synthetic-scenes test twice as unseen"):
        run_recipe(recipe, tmp_path)
    other = {**entry, "composite": "eurosat"}
    recipe = small_recipe(base={"model": str(finished_run / "base")}, evaluate=[entry, other])
    said = r"twice as unseen \(composite as declared, and eurosat\)"
    with pytest.raises(RecipeError, match=said):
        run_recipe(recipe, tmp_path / "composite")
    assert not (tmp_path / "patch").exists()


def test_a_recipe_measures_rgb_towers_on_the_composite_it_names(
    finished_run: Path, tmp_path: Path
) -> None:
    measured = {}
    for composite in ("paper-l2a", "eurosat"):
        entry = {
            "data": "synthetic-scenes", "split": "test", "role": "unseen", "models": ["base"],
            "composite": composite,
        }  # fmt: skip
        recipe = small_recipe(
            base={"model": str(finished_run / "base")}, patch=None, align=None, evaluate=[entry]
        )
        run_recipe(recipe, tmp_path / composite)
        (path,) = (tmp_path / composite / "evaluate").glob("*.json")
        values = json.loads(path.read_text())["evaluation"]
        assert f"the {composite} composite" in values["how"]
        measured[composite] = values["per_class"]
    assert measured["paper-l2a"] != measured["eurosat"]


def test_a_rate_that_a_pretrained_transformer_does_not_bear_is_warned_of(
    finished_run: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Of a base that exists, not of one that the recipe pretrains."""
    values = small_values()
    values["patch"]["tasks"][0]["limit"] = 16
    values["patch"] |= {"warmup_steps": 0, "lr": 3e-4, "epochs": 1}
    values["align"] = []
    values["evaluate"] = values["evaluate"][1:2]
    said = {}
    with caplog.at_level("WARNING"):
        for name, base in (("kept", {"model": str(finished_run / "base")}), ("new", None)):
            caplog.clear()
            changed = {**values, **({"base": base} if base else {})}
            run_recipe(parse_recipe(changed, origin="x"), tmp_path / name)
            said[name] = [one for one in caplog.messages if "--set patch.lr=1e-5" in one]
    assert len(said["kept"]) == 1
    assert "lr = 0.0003" in said["kept"][0]
    assert str(finished_run / "base") in said["kept"][0]
    assert said["new"] == []


@pytest.mark.parametrize(
    ("change", "error", "said"),
    [
        ({"data": "eurosat-rgb", "split": "test"}, DataError, "needs a data root"),
        ({"data": "synthetic-scenes", "split": "tset"}, DataError, "splits: train, val, test"),
        (
            {"data": "synthetic-scenes", "split": "test", "classes": "openai-imagenet"},
            RecipeError,
            "does not fit",
        ),
        (
            {"data": "synthetic-scenes", "split": "test", "classes": "imagenet"},
            RecipeError,
            "unknown class list 'imagenet'",
        ),
    ],
)
def test_what_evaluation_lacks_is_told_before_anything_is_trained(
    tmp_path: Path, change: dict[str, str], error: type[Exception], said: str
) -> None:
    entry = {**change, "role": "unseen", "models": ["base"]}
    with pytest.raises(error, match=said):
        run_recipe(small_recipe(evaluate=[entry]), tmp_path)
    assert not (tmp_path / "pretrain").exists()


# Single stages


def test_patching_and_aligning_apart_give_what_a_run_gives(
    finished_run: Path, tmp_path: Path
) -> None:
    base = str(finished_run / "base")
    patched = single_stage(small_recipe(), "patch", base=base)
    found = run_recipe(patched, tmp_path / "patched", device="cpu")
    assert [row.to_json() for row in found.rows] == [
        row for row in _rows(finished_run) if row["model"] in ("base", "finetuned", "patched")
    ]
    assert (
        _weights(tmp_path / "patched")["open_clip_model.safetensors"]
        == _weights(finished_run)["open_clip_model.safetensors"]
    )
    entry = {**small_values()["evaluate"][0], "towers": ["s2"]}
    first = small_recipe(align=small_values()["align"][:1], evaluate=[entry])
    aligned = single_stage(first, "align", base=str(tmp_path / "patched" / "model"))
    found = run_recipe(aligned, tmp_path / "aligned", device="cpu")
    expected_rows = {
        "base": [row for row in _rows(finished_run) if row["model"] == "patched"],
        "aligned": [row for row in _rows(finished_run) if row.get("tower") == "s2"],
    }
    for model, rows in expected_rows.items():
        values = [row["value"] for row in rows if row["role"] == "patching"]
        assert [row.value for row in found.rows if row.model == model] == values
    expected = _weights(finished_run)
    del expected["towers/s1.safetensors"]
    assert _weights(tmp_path / "aligned") == expected


def test_aligning_adds_to_the_towers_that_a_space_has(finished_run: Path, tmp_path: Path) -> None:
    values = small_values()["align"][0]
    recipe = small_recipe(align=[{**values, "name": "third", "epochs": 1}], evaluate=None)
    aligned = single_stage(recipe, "align", base=str(finished_run / "model"))
    run_recipe(aligned, tmp_path / "out", device="cpu")
    before, after = (EmbeddingSpace.load(one / "model") for one in (finished_run, tmp_path / "out"))
    assert after.tower_names == ("rgb", "s2", "s1", "third")
    assert after.space_id == before.space_id
    assert after.tower_id("s2") == before.tower_id("s2")


def test_patching_a_space_says_which_towers_it_leaves_behind(
    finished_run: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    recipe = small_recipe(align=None, evaluate=None)
    patched = single_stage(recipe, "patch", base=str(finished_run / "model"))
    with caplog.at_level("WARNING", logger="terralign"):
        run_recipe(patched, tmp_path / "out", device="cpu")
    assert "the base's towers (s2, s1)" in caplog.text
    assert EmbeddingSpace.load(tmp_path / "out" / "model").tower_names == ("rgb",)


@pytest.mark.parametrize("mode", ["sequential", "parallel"])
def test_several_tasks_are_patched_as_the_recipe_says(
    finished_run: Path, tmp_path: Path, mode: str
) -> None:
    values = small_values()["patch"]
    more = {"data": "synthetic-scenes-multilabel", "limit": 32, "validation_limit": 32}
    change = {"mode": mode, "tasks": [*values["tasks"], more], "warmup_steps": 1}
    entry = {"split": "test", "role": "patching", "models": ["base", "finetuned", "patched"]}
    names = ("synthetic-scenes", "synthetic-scenes-multilabel")
    recipe = small_recipe(
        patch={**values, **change},
        evaluate=[{**entry, "data": name, "limit": 40} for name in names],
    )
    alone = single_stage(recipe, "patch", base=str(finished_run / "base"))
    found = run_recipe(alone, tmp_path, device="cpu")
    tasks = {(row.task, row.model) for row in found.rows}
    assert len(tasks) == 6
    folders = sorted(path.name for path in (tmp_path / "patch").glob("task-*"))
    assert folders == ["task-1-synthetic-scenes", "task-2-synthetic-scenes-multilabel"]
    header = (tmp_path / "alpha-sweep.csv").read_text().splitlines()[0]
    assert "synthetic-scenes/val" in header
    assert "synthetic-scenes-multilabel/val" in header
    assert (tmp_path / "figures" / "alpha-curve.png").is_file()


SENSOR = """
name = "drone"
unit = "reflectance"
dn_scale = 1e-4
nodata = 0
bands = [{ name = "blue" }, { name = "green" }, { name = "red" }, { name = "nir" }]
composites = [{ name = "natural", bands = ["red", "green", "blue"], stretch = 0.3 }]
"""
DECLARED = """
name = "flights"
reader = "folder"
sensor = "drone.toml"
root = "flights"
bands = ["blue", "green", "red", "nir"]
prompts = ["a drone's picture of {}."]
classes = { a = "a meadow", b = "a roof" }
splits = { train = "train.txt", test = "test.txt" }
"""


def test_a_sensor_of_ones_own_is_aligned_measured_and_travels(
    finished_run: Path, tmp_path: Path
) -> None:
    rng = np.random.default_rng(0)
    names = [f"{folder}/{number}.tif" for folder in "ab" for number in range(8)]
    for name in names:
        path = tmp_path / "flights" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with (
            warnings.catch_warnings(action="ignore"),
            rasterio.open(
                path, "w", driver="GTiff", dtype="uint16", count=4, height=32, width=32
            ) as file,
        ):
            file.write(rng.integers(1, 4000, (4, 32, 32)).astype(np.uint16))
    (tmp_path / "train.txt").write_text("\n".join(names[::2]))
    (tmp_path / "test.txt").write_text("\n".join(names[1::2]))
    sensor, data = tmp_path / "drone.toml", tmp_path / "flights.toml"
    sensor.write_text(SENSOR)
    data.write_text(DECLARED)
    tower = {
        "name": "d", "sensors": [str(sensor)], "epochs": 1, "batch_size": 4,
        "data": [{"data": str(data), "split": "train", "labels": True}],
    }  # fmt: skip
    common = {"data": str(data), "split": "test", "role": "alignment", "towers": ["d"]}
    recipe = small_recipe(align=[tower], evaluate=[{**common, "models": ["base"]}])
    aligned = single_stage(recipe, "align", base=str(finished_run / "base"))
    found = run_recipe(aligned, tmp_path / "out", data_root=tmp_path, device="cpu")
    assert {(row.model, row.dataset, row.num_samples) for row in found.rows} == {
        ("base", "flights", 8),
        ("aligned", "flights", 8),
    }
    space = EmbeddingSpace.load(tmp_path / "out" / "model")
    assert space.input_spec("d").sensors == ("drone",)
    assert space.find_sensor("drone") == find_sensor(str(sensor))

    said = CliRunner().invoke(
        main,
        ["classify", str(tmp_path / "out" / "model"), str(tmp_path / "flights" / names[0]),
         "--labels", "meadow,roof", "--sensor", "drone", "--bands", "blue,green,red,nir", "--json"],
    )  # fmt: skip
    assert said.exit_code == 0, said.output
    assert json.loads(said.stdout)[0]["tower"] == "d"


# Stopping and going on


def _stop_at(
    monkeypatch: pytest.MonkeyPatch, module: Any, call: int, act: Callable[[], None]
) -> list[int]:
    """Do `act` at a call of the label loss of a stage; the list counts the calls."""
    calls: list[int] = []
    real = module.label_loss

    def counted(*args: Any, **options: Any) -> Any:
        if len(calls) == call:
            act()
        calls.append(1)
        return real(*args, **options)

    monkeypatch.setattr(module, "label_loss", counted)
    return calls


def _terminate() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def test_a_run_stopped_in_each_stage_goes_on_to_the_same_weights(
    finished_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once in stage 1, once in stage 2; each step of each stage is done once."""
    recipe = small_recipe(evaluate=None)
    with monkeypatch.context() as patched:
        first = _stop_at(patched, finetune_module, 5, _terminate)
        with pytest.raises(Interrupted, match="patch: stopped after step 6 of 8") as stopped:
            run_recipe(recipe, tmp_path)
    assert stopped.value.signal_number == signal.SIGTERM
    with monkeypatch.context() as patched:
        second = _stop_at(patched, finetune_module, -1, _terminate)
        aligned = _stop_at(patched, align_module, 2, _terminate)
        with pytest.raises(Interrupted, match="align s2: stopped after step 3 of 8"):
            run_recipe(recipe, tmp_path)
    assert len(first) + len(second) == 8
    with monkeypatch.context() as patched:
        third = _stop_at(patched, finetune_module, -1, _terminate)
        rest = _stop_at(patched, align_module, -1, _terminate)
        found = run_recipe(recipe, tmp_path)
    assert not found.complete_before
    assert (len(third), len(aligned) + len(rest)) == (0, 8)
    assert _weights(tmp_path) == _weights(finished_run)
    for stage in ("patch/checkpoints", "align/s2", "align/s1", "pretrain"):
        path = Path(stage) / "metrics.jsonl"
        assert metrics_of(tmp_path / path) == metrics_of(finished_run / path), stage


def test_measurements_are_kept_over_a_stop(
    finished_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run whose results were not written yet measures nothing twice."""
    folder = tmp_path / "run"
    shutil.copytree(finished_run, folder)
    (folder / "results.json").unlink()
    monkeypatch.setattr(
        "terralign.runs.run.embed_samples", lambda *args: pytest.fail("measured again")
    )
    found = run_recipe(small_recipe(), folder)
    assert not found.complete_before
    assert [row.to_json() for row in found.rows] == _rows(finished_run)


def test_a_tower_of_another_teacher_is_not_taken_for_this_one(
    finished_run: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(finished_run, folder)
    (folder / "results.json").unlink()
    marker = folder / "align" / "s2" / "tower.json"
    marker.write_text(json.dumps({"identity": "of another teacher"}))
    with pytest.raises(RecipeError, match="holds a tower of other settings, data or weights"):
        run_recipe(small_recipe(), folder)


_KILLED = """
import os, signal, sys
from pathlib import Path
import torch
from terralign.runs.recipe import load_recipe
from terralign.runs.run import run_recipe
from terralign.runs.folder import is_untouched, keep_recipe, keep_threads
from terralign.train import {module} as module
from terralign.train.checkpoints import Checkpoints

Checkpoints.due = lambda self: True
real, calls = module.label_loss, []

def killing(*args, **options):
    if len(calls) == {call}:
        os.kill(os.getpid(), signal.SIGKILL)
    calls.append(1)
    return real(*args, **options)

module.label_loss = killing
run_recipe(load_recipe(sys.argv[1]), Path(sys.argv[2]), device="cpu")
"""


@pytest.mark.parametrize("content", ["[]", "null", "{}", '{"threads": "two"}', '{"threads": 0}'])
def test_versions_of_another_form_are_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "versions.json").write_text(content)
    with pytest.raises(StorageError, match=r"versions\.json is damaged: .*put back a whole copy"):
        keep_threads(tmp_path, None, device="cpu")


@pytest.mark.slow
def test_json_of_another_form_in_a_run_folder_is_refused_by_its_name(
    finished_run: Path, tmp_path: Path
) -> None:
    paths = (path.relative_to(finished_run) for path in sorted(finished_run.rglob("*.json")))
    files = {  # one of those that are named by a hash
        (path.parent, path.name if len(path.name) < 20 else "hash"): path
        for path in paths
        if path.parts[0] not in ("model", "base")
    }
    for number, file in enumerate(files.values()):
        for content in ("[]", None):
            folder = tmp_path / f"{number}-{content}"
            shutil.copytree(finished_run, folder)
            path = folder / file
            if content is None:  # of the same stage, but without its other keys
                content = json.dumps({"identity": json.loads(path.read_text()).get("identity")})
            path.write_text(content)
            if file.name != "results.json":
                (folder / "results.json").unlink()
            said = f"{file.name} delete it"
            try:
                run_recipe(small_recipe(), folder, device="cpu")
            except TerralignError as error:
                said = str(error)
            assert file.name in said
            assert "delete it" in said
            shutil.rmtree(folder)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("module", "call", "stage"),
    [("finetune", 5, "patch/checkpoints"), ("align", 3, "align/s2")],
)
def test_killed_at_any_moment_a_run_goes_on_to_the_same_weights(
    finished_run: Path, tmp_path: Path, module: str, call: int, stage: str
) -> None:
    recipe = tmp_path / "small.toml"
    recipe.write_text(SMALL_RECIPE)
    folder = tmp_path / "run"
    script = _KILLED.format(module=module, call=call)
    killed = subprocess.run(
        [sys.executable, "-c", script, recipe, folder],
        env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, timeout=120, check=False,
    )  # fmt: skip
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    # Written by a thread of its own, which the kill may have ended before the last one was there.
    step = torch.load(folder / stage / "last.pt", weights_only=True)["step"]
    assert call - 1 <= step <= call
    run_recipe(small_recipe(), folder, device="cpu")
    assert _weights(folder) == _weights(finished_run)
    assert _rows(folder) == _rows(finished_run)
    assert list(folder.rglob("*.partial*")) == []


def test_versions_name_what_a_result_depends_on() -> None:
    found = versions()
    assert found["torch"].startswith(torch.__version__.split("+")[0])
    assert {"python", "machine", "terralign", "open_clip_torch", "timm"} <= found.keys()
    assert {"scipy", "scikit-learn"} <= found.keys()  # which probes and their intervals come from
