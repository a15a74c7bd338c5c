"""Studies: what runs share, what is left to do, what a failed run does, and the table."""

from __future__ import annotations

import json
import re
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner

import terralign.runs.run as run_module
from small_run import SMALL_RECIPE
from terralign.ablate import differences as differences_module
from terralign.ablate.runs import method_settings, run_study
from terralign.ablate.study import Study, load_study, plan_study
from terralign.ablate.summary import mean_and_spread, study_report, summarise
from terralign.cli import main
from terralign.errors import DataError, Interrupted, RecipeError
from terralign.evaluation.rows import Row
from terralign.files import hash_file, shipped_names
from terralign.report.render import markdown
from terralign.report.run import RunReport
from terralign.train import patch as patch_module
from terralign.train import sweep as sweep_module
from terralign.train import tower as tower_module

pytestmark = pytest.mark.usefixtures("figures_undrawn")

ROOT = Path(__file__).parent.parent.parent

TINY = (
    SMALL_RECIPE.split("[[evaluate]]")[0].replace("epochs = 2", "epochs = 1")
    + """
[[evaluate]]
data = "synthetic-scenes"
split = "test"
role = "patching"
models = ["base", "patched"]
towers = ["s2", "s1"]
limit = 24
"""
)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """One thread, and no reports of runs, whose figures take longer than these runs."""
    monkeypatch.setattr(RunReport, "write", lambda *_: None)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the tiny recipe lies, beside the studies."""
    path = tmp_path_factory.mktemp("studies")
    (path / "tiny.toml").write_text(TINY)
    return path


def _study(folder: Path, text: str) -> Study:
    path = folder / "study.toml"
    path.write_text(f'name = "study"\nrecipe = "tiny.toml"\nseeds = [0]\n{text}')
    return load_study(str(path))


def _counted(monkeypatch: pytest.MonkeyPatch, module: Any, name: str) -> list[Any]:
    """The keywords of a function's calls from now on."""
    calls: list[Any] = []
    original = getattr(module, name)

    def counting(*arguments: Any, **keywords: Any) -> Any:
        calls.append(keywords)
        return original(*arguments, **keywords)

    monkeypatch.setattr(module, name, counting)
    return calls


def test_a_recipe_that_is_unknown_is_told_with_the_study(folder: Path) -> None:
    path = folder / "astray.toml"
    path.write_text('name = "astray"\nrecipe = "quikstart"\nvary = { "patch.lr" = [1e-3] }\n')
    with pytest.raises(RecipeError, match="study astray: unknown recipe 'quikstart'; did you mean"):
        plan_study(load_study(str(path)))


SHARING = """
stage = "patch"
vary = { "patch.max_supported_drop" = [0.5, 0.0] }
[[variants]]
name = "other-alphas"
set = { "patch.alphas" = [0.25] }
[[variants]]
name = "other-training"
set = { "patch.lr" = 2e-3 }
"""


# What runs share


def test_what_variants_train_alike_is_trained_once_per_seed(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fits = _counted(monkeypatch, patch_module, "finetune")
    curves = _counted(monkeypatch, sweep_module, "task_values")
    pretrained = _counted(monkeypatch, run_module, "pretrain")
    study = _study(folder, SHARING)
    run_study(study, tmp_path, device="cpu")
    result = run_study(study, tmp_path, device="cpu", seeds=[1], only=["other-alphas"])
    assert result.failures == ()
    assert [call["seed"] for call in fits] == [0, 0, 1]  # two trainings, and that of a new seed
    assert len(curves) == 2 * 4  # of two tasks: three curves, and one more
    assert [call["seed"] for call in pretrained] == [0, 1]
    names = ("max-supported-drop=0.5", "max-supported-drop=0.0", "other-alphas", "other-training")
    weights = [
        hash_file(tmp_path / "runs" / name / "0" / "patch" / "finetuned.safetensors")
        for name in names
    ]
    assert weights[0] == weights[1] == weights[2] != weights[3]
    bound = json.loads((tmp_path / "runs" / names[1] / "0" / "patch" / "sweep.json").read_text())
    assert bound["max_supported_drop"] == 0.0  # a shared curve, a choice of its own


def test_a_run_that_shares_gives_what_a_run_alone_gives(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = """
    towers = ["s2"]
    [[variants]]
    name = "first"
    [[variants]]
    name = "second"
    set = { "align.s2.lr" = 1e-2 }
    """
    study = _study(folder, text)
    run_study(study, tmp_path / "both", device="cpu")
    alone = run_study(study, tmp_path / "alone", device="cpu", only=["second"])
    [views] = (tmp_path / "both" / "shared").glob("*/views-*.npy")
    aligned = _counted(monkeypatch, tower_module, "align")
    elsewhere = run_study(
        study, tmp_path / "elsewhere", device="cpu", only=["second"],
        shared=tmp_path / "both" / "shared",
    )  # fmt: skip
    assert elsewhere.rows == alone.rows
    assert aligned == []
    taken = tmp_path / "elsewhere" / "runs" / "second" / "0"
    own = tmp_path / "both" / "runs" / "second" / "0"
    weights = Path("align") / "s2" / "tower.safetensors"
    assert (taken / weights).samefile(own / weights)  # another study's, whose views are not needed
    for name in ("first", "second"):
        linked = tmp_path / "both" / "runs" / name / "0" / "teacher" / views.name
        assert linked.samefile(views)
    both = json.loads((tmp_path / "both" / "results.json").read_text())["rows"]
    assert [row for row in both if row["variant"] == "second"] == [
        row.to_json() for row in alone.rows
    ]
    measured = {(row.model, row.tower) for row in alone.rows}
    assert measured == {("base", "rgb"), ("patched", "rgb"), ("aligned", "s2")}  # and no s1


# Resuming, and failing


TWO = """
stage = "patch"
[[variants]]
name = "bad"
set = { "patch.lr" = 1e30 }
[[variants]]
name = "good"
"""


def test_a_failed_run_does_not_end_the_study(folder: Path, tmp_path: Path) -> None:
    _study(folder, TWO)
    words = ["ablate", str(folder / "study.toml"), "--out", str(tmp_path), "--device", "cpu"]
    told = CliRunner().invoke(main, [*words, "--json"])
    assert told.exit_code == 1
    found = json.loads(told.stdout)
    [failure] = found["failures"]
    assert (failure["variant"], failure["seed"]) == ("bad", 0)
    assert "the loss is nan" in failure["reason"]
    assert "\n" not in failure["reason"]
    assert {row["variant"] for row in found["rows"]} == {"good"}
    assert f"| bad | 0 | {failure['reason']} |" in (tmp_path / "table.md").read_text()
    cured = CliRunner().invoke(main, [*words, "--only", "good"])
    assert cured.exit_code == 0
    assert "nothing to do" in cured.stdout


def test_a_study_whose_runs_all_lack_data_names_it_and_leaves_its_folder_free(
    folder: Path, tmp_path: Path
) -> None:
    study = _study(folder, TWO)
    missing = ["patch.tasks.0.data=eurosat-rgb", "patch.supported.0.data=cifar10"]
    with pytest.raises(DataError) as caught:
        run_study(study, tmp_path / "s", overrides=missing)
    for name in ("eurosat-rgb", "cifar10"):
        assert f"`terralign info {name}`" in str(caught.value)
    result = run_study(study, tmp_path / "s", only=["good"])
    assert {row.variant for row in result.rows} == {"good"}
    with pytest.raises(RecipeError, match="holds a set of runs of another study"):
        run_study(study, tmp_path / "s", overrides=["seed=3"])


def test_finished_runs_are_not_run_again_and_more_seeds_add_to_them(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = _study(folder, SHARING)
    first = run_study(study, tmp_path, device="cpu", only=["other-alphas"])
    assert {row.variant for row in first.rows} == {"other-alphas"}
    assert not first.complete_before
    fits = _counted(monkeypatch, patch_module, "finetune")
    again = run_study(study, tmp_path, device="cpu", only=["other-alphas"])
    assert again.complete_before
    assert fits == []
    assert again.rows == first.rows
    more = run_study(study, tmp_path, device="cpu", only=["other-alphas"], seeds=[3])
    assert [call["seed"] for call in fits] == [3]
    assert {row.seed for row in more.rows} == {0, 3}
    assert {entry["num_seeds"] for entry in more.summary} == {2}


def test_a_stop_keeps_what_is_finished_and_goes_on_from_there(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = _study(folder, 'stage = "patch"\nvary = { "patch.lr" = [1e-3, 2e-3] }')
    original = patch_module.finetune

    def stopped(*arguments: Any, **keywords: Any) -> Any:
        if arguments[2].lr == 2e-3:
            raise Interrupted("stopped and saved")
        return original(*arguments, **keywords)

    monkeypatch.setattr(patch_module, "finetune", stopped)
    with pytest.raises(Interrupted):
        run_study(study, tmp_path, device="cpu")
    kept = json.loads((tmp_path / "results.json").read_text())
    assert {row["variant"] for row in kept["rows"]} == {"lr=0.001"}
    assert kept["failures"] == []
    monkeypatch.setattr(patch_module, "finetune", original)
    fits = _counted(monkeypatch, patch_module, "finetune")
    assert {row.variant for row in run_study(study, tmp_path, device="cpu").rows} == {
        "lr=0.001", "lr=0.002",
    }  # fmt: skip
    assert len(fits) == 1


def test_another_study_in_the_folder_is_refused(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "study.toml").write_text('name = "another"\n')
    with pytest.raises(RecipeError, match="another study"):
        run_study(_study(folder, TWO), tmp_path, device="cpu")


def test_variants_may_be_added_to_a_folder_but_not_changed(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = 'stage = "patch"\nvary = { "patch.lr" = [1e-3] }\n'
    first = run_study(_study(folder, text), tmp_path, device="cpu")
    added = text + '[[variants]]\nname = "soft"\nmethod = "coop"\nsettings = { num_tokens = 2 }\n'
    fits = _counted(monkeypatch, patch_module, "finetune")
    more = run_study(_study(folder, added), tmp_path, device="cpu")
    assert fits == []
    assert more.rows[: len(first.rows)] == first.rows
    assert {row.variant for row in more.rows} == {"lr=0.001", "soft"}
    changed = added.replace("num_tokens = 2", "num_tokens = 1")
    with pytest.raises(RecipeError, match="another study"):
        run_study(_study(folder, changed), tmp_path, device="cpu")


# Methods that take the place of stage 1


def test_methods_stand_beside_patching(folder: Path, tmp_path: Path) -> None:
    study = _study(
        folder,
        """
        stage = "patch"
        set = { "patch.epochs" = 2 }
        variants = [
          { name = "patch" },
          { name = "coop", method = "coop", settings = { num_tokens = 2 } },
          { name = "one", method = "coop", settings = { num_tokens = 1 } },
          { name = "lp-ft", method = "lp-ft" },
        ]
        """,
    )
    result = run_study(study, tmp_path, device="cpu")
    assert result.failures == ()
    top1 = {
        (row.variant, row.model, row.task): row.value for row in result.rows if row.metric == "top1"
    }
    assert len({top1[name, "base", "zero-shot"] for name, *_ in top1}) == 1
    assert {name for name, model, _ in top1 if model == "patched"} == {
        "patch", "coop", "one", "lp-ft",
    }  # fmt: skip
    assert {name for name, _, task in top1 if task == "linear-head"} == {"lp-ft"}
    differences = {
        one["variant"]: one["difference"] for one in result.differences if one["metric"] == "top1"
    }
    assert {"coop", "one", "lp-ft"} <= differences.keys()
    for name, difference in differences.items():
        own, reference = (top1[one, "patched", "zero-shot"] for one in (name, "patch"))
        assert difference == pytest.approx(own - reference)


def test_a_setting_that_a_method_does_not_have_is_refused(folder: Path) -> None:
    text = (
        'stage = "patch"\nvariants = [{ name = "a", method = "coop", settings = { tokens = 2 } }]'
    )
    [planned] = plan_study(_study(folder, text))
    with pytest.raises(RecipeError, match="unknown key 'tokens'; did you mean 'num_tokens'"):
        method_settings(planned)


# Studies as data


def test_overrides_hold_for_all_variants_but_not_for_what_they_vary(folder: Path) -> None:
    study = _study(
        folder,
        """
        set = { "patch.lr" = 5e-4, "patch.weight_decay" = 0.3 }
        design = "one-at-a-time"
        [vary]
        "patch.batch_size" = [8, 16]
        "align.s2.losses" = [{ cosine = 1.0, label = 0.5 }, "paper"]
        """,
    )
    planned = plan_study(study, overrides=["patch.weight_decay=0.2", "patch.batch_size=4"])
    found = [
        (
            one.variant.name,
            one.recipe.patch.settings.batch_size,
            one.recipe.align[0].settings.losses,
        )
        for one in planned
        if one.recipe.patch is not None
    ]
    cosine = {"cosine": 1.0, "label": 0.5}
    assert found == [
        ("reference", 8, cosine), ("batch-size=16", 16, cosine), ("losses=paper", 8, "paper"),
    ]  # fmt: skip
    settings = [one.recipe.patch.settings for one in planned if one.recipe.patch is not None]
    assert {one.lr for one in settings} == {5e-4}
    assert {one.weight_decay for one in settings} == {0.2}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "vary, or"),
        ('vary = { "patch.lrr" = [1.0] }', "did you mean 'lr'"),
        ('vary = { "patch.lr" = [1e-3] }\ndrop = ["patch.preserve_one"]', "preserve"),
        ('vary = { "patch.lr" = [1e-3] }\ntowers = ["s3"]', "no 's3'"),
        ('vary = { "patch.lr" = [1e-3] }\nstage = "align"', "needs base.model"),
        ('variants = [{ name = "a" }, { name = "a" }]', "two variants are called 'a'"),
        ('variants = [{ name = "a", method = "coop" }]', 'stage = "patch"'),
        ('variants = [{ name = "../a" }]', "pattern"),
    ],
)
def test_wrong_studies_are_refused_before_anything_is_run(
    folder: Path, text: str, said: str
) -> None:
    with pytest.raises(RecipeError, match=re.escape(said)):
        plan_study(_study(folder, text))


@pytest.mark.parametrize("name", shipped_names("studies"))
def test_shipped_studies_plan_and_are_described(name: str) -> None:
    study = load_study(name)
    assert study.name == name
    planned = plan_study(study)
    assert len(planned) == len(study.seeds) * len(study.all_variants())
    for one in planned:
        method_settings(one)
    recipes = [one.recipe.model_dump_json() for one in planned if one.variant.method == "recipe"]
    assert len(set(recipes)) == len(recipes)
    assert f"| `{name}` |" in (ROOT / "docs" / "ablations.md").read_text()


def test_the_study_of_the_documentation_plans(tmp_path: Path) -> None:
    text = (ROOT / "docs" / "ablations.md").read_text()
    [block] = re.findall(r"^```TOML\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    path = tmp_path / "study.toml"
    path.write_text(block)
    names = [one.variant.name for one in plan_study(load_study(str(path)), seeds=[0])]
    assert names == [
        "preserve=0.0_lr=0.0001", "preserve=0.0_lr=0.0003",
        "preserve=8.0_lr=0.0001", "preserve=8.0_lr=0.0003", "colour", "coop",
    ]  # fmt: skip


# The table


def _row(variant: str, seed: int, value: float) -> Row:
    return Row.model_validate({
        "variant": variant, "seed": seed, "model": "patched", "tower": "rgb", "role": "patching",
        "dataset": "d", "split": "val", "task": "zero-shot", "metric": "top1", "value": value,
        "low": value - 0.1, "high": value + 0.1, "num_samples": 50, "chance": 0.1,
    })  # fmt: skip


def test_mean_and_spread_are_those_of_the_statistics_module() -> None:
    values = np.random.default_rng(0).random(7).tolist()
    mean, spread = mean_and_spread(values)
    assert mean == pytest.approx(statistics.mean(values))
    assert spread == pytest.approx(statistics.stdev(values))
    assert mean_and_spread([0.25]) == (0.25, None)


def test_the_table_has_mean_spread_and_the_best(folder: Path) -> None:
    study = _study(folder, 'variants = [{ name = "a" }, { name = "b" }, { name = "c" }]')
    rows = [_row("a", 0, 0.5), _row("a", 1, 0.6), _row("b", 0, 0.65), _row("b", 1, 0.75)]
    summary = summarise([*rows, _row("c", 0, 0.75)])
    found = {entry["variant"]: (entry["mean"], entry["num_seeds"]) for entry in summary}
    assert found == {
        "a": (pytest.approx(0.55), 2), "b": (pytest.approx(0.7), 2), "c": (0.75, 1),
    }  # fmt: skip
    text = markdown(study_report(study, summary[:2], [], []))
    assert "top-1 patched (n 50, chance 10.0)" in text
    assert "| a | 55.0‡ (45.0–65.0; ± 7.1 over 2 seeds) |" in text
    assert "| b | **70.0** (60.0–80.0; ± 7.1 over 2 seeds) |" in text
    assert "| c | 75.0 (65.0–85.0) |" in markdown(study_report(study, summary[2:], [], []))


def test_variants_are_compared_with_the_reference_on_the_same_samples(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = 'stage = "patch"\nreference = "lr=0.002"\nvary = { "patch.lr" = [1e-3, 2e-3] }'
    study = _study(folder, text)
    first = run_study(study, tmp_path, device="cpu")
    [found] = [one for one in first.differences if one["metric"] == "top1"]
    values = {
        row.variant: row for row in first.rows
        if row.metric == "top1" and row.model == "patched"
    }  # fmt: skip
    assert (found["variant"], found["reference"]) == ("lr=0.001", "lr=0.002")
    expected = values["lr=0.001"].value - values["lr=0.002"].value
    assert found["difference"] == pytest.approx(expected)
    assert found["low"] <= found["difference"] <= found["high"]
    assert found["p_value"] is None  # of 24 samples
    assert f"| lr=0.001 | {100 * expected:+.1f} (" in first.table
    assert "### Against lr=0.002\n\n| variant | top-1 patched (n 24) |" in first.table

    compared = _counted(monkeypatch, differences_module, "compare_outcomes")
    run_study(study, tmp_path, device="cpu", seeds=[0])
    assert compared == []  # read from the folder
    more = run_study(study, tmp_path, device="cpu", seeds=[1])
    assert compared
    assert {tuple(one["seeds"]) for one in more.differences} == {(0, 1)}


def test_a_study_says_which_data_root_is_missing_before_it_writes(
    folder: Path, tmp_path: Path
) -> None:
    study = _study(folder, SHARING)
    with pytest.raises(DataError, match="nowhere not found"):
        run_study(study, tmp_path / "out", device="cpu", data_root=tmp_path / "nowhere")
    assert not (tmp_path / "out").exists()


def test_more_runs_than_anyone_waits_for_are_refused_before_they_are_planned(folder: Path) -> None:
    lists = (f'"patch.k{number}" = [{", ".join(map(str, range(20)))}]' for number in range(12))
    with pytest.raises(RecipeError, match=r"seeds make 4,096,000,000,000,000 runs, more than the"):
        _study(folder, f"vary = {{ {', '.join(lists)} }}")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ('"align.s2.losses" = { cosine = 1.0 }', "labels = true has no effect"),
        ('"patch.warmup_steps" = 400', "patch: warmup_steps = 400, but the run has only"),
        ('"align.s1.warmup_steps" = 400', "align s1: warmup_steps = 400, but the run has only"),
        ('"align.s1.keep" = "best"', 'align s1: keep = "best" needs validation data'),
        ('"patch.validate_every" = 3', 'patch: validate_every has no effect with keep = "last"'),
        ('"patch.epochs" = 9223372036854775807', "patch: its epochs take .* more than the limit"),
        (
            '"evaluate.0.data" = "synthetic-photos"',
            "takes sentinel2-l2a; data set 'synthetic-photos' has rgb",
        ),
    ],
)
def test_every_variant_is_checked_before_the_first_runs(
    folder: Path, tmp_path: Path, change: str, said: str
) -> None:
    text = f"""
    [[variants]]
    name = "runs"
    [[variants]]
    name = "cannot"
    set = {{ {change} }}
    """
    with pytest.raises(RecipeError, match=f"variant cannot: .*({said})"):
        run_study(_study(folder, text), tmp_path / "out", device="cpu")
    assert not (tmp_path / "out").exists()
