"""Suites as data: those that ship are sound, and nothing is chosen on what is reported."""

from __future__ import annotations

from pathlib import Path

import pytest

from terralign.bench.suite import FITTED, load_suite, parse_suite, suite_text
from terralign.datasets.catalog import DATASETS, find_dataset
from terralign.errors import RecipeError
from terralign.files import shipped_names

ENTRY = """
name = "s"
[[entries]]
data = "eurosat-rgb"
split = "test"
role = "unseen"
tasks = ["zero-shot", "linear-probe", "decisions"]
"""


def test_six_suites_ship() -> None:
    assert shipped_names("suites") == [
        "micro",
        "multispectral",
        "paper",
        "quick",
        "retrieval",
        "rgb",
    ]


@pytest.mark.parametrize("name", shipped_names("suites"))
def test_a_shipped_suite_survives_being_written_and_read(name: str) -> None:
    suite = load_suite(name)
    assert suite.name == name
    assert parse_suite(suite_text(suite), origin="again") == suite
    assert all(entry.data in DATASETS for entry in suite.entries)


@pytest.mark.parametrize("name", shipped_names("suites"))
def test_shipped_suites_fit_and_choose_elsewhere_than_they_report(name: str) -> None:
    for entry in load_suite(name).entries:
        assert entry.split not in (entry.fit, entry.validation)
        if entry.fit is None and FITTED & set(entry.tasks):
            # Only where the data have no other split that could be named.
            assert entry.data == "aid"


@pytest.mark.parametrize("name", shipped_names("suites"))
def test_shipped_suites_with_qb_norm_name_a_bank_wherever_there_are_splits(name: str) -> None:
    suite = load_suite(name)
    for entry in suite.entries if "qb-norm" in suite.variants else ():
        if "retrieval" in entry.tasks and find_dataset(entry.data).facts.has_splits:
            assert entry.fit or entry.validation, entry.title


def test_the_paper_suite_has_the_data_sets_of_the_paper() -> None:
    data = {entry.data for entry in load_suite("paper").entries}
    assert {f"bigearthnet-{k}" for k in (5, 19, 43)} <= data
    assert {"sen12ms", "eurosat-rgb", "resisc45", "imagenet"} <= data


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (
            'composite = "eurosat"\ntowers = ["s2"]',
            "composite has no effect where towers leave out rgb",
        ),
        ('fit = "test"', r"fit = 'test' holds samples of the split that is reported"),
        ('validation = "all"', r"validation = 'all' holds samples of the split that is reported"),
        ('fit = "train"\nvalidation = "train"', "fit and validation are both 'train'"),
        ('fit = "random-train"', "two ways to divide eurosat-rgb and overlap"),
        ('fits = "train"', r"unknown key 'entries.0.fits'; did you mean 'fit'"),
        ('prompts = "satelite"', "did you mean 'satellite'"),
        ("shots = [2]", "shots is for few-shot, not one of the tasks; leave it out"),
        ("num_seeds = 2", "num_seeds is for few-shot"),
        ("robustness_limit = 9", "robustness_limit is for robustness"),
    ],
)
def test_a_faulty_entry_is_refused_in_one_line(more: str, said: str) -> None:
    with pytest.raises(RecipeError, match=said) as fault:
        parse_suite(ENTRY + more + "\n", origin="mine.toml")
    assert "\n" not in str(fault.value)
    parse_suite(ENTRY + 'fit = "train"\nvalidation = "val"\n', origin="mine.toml")


def test_splits_may_overlap_by_name_where_the_suite_allows_it() -> None:
    text = ENTRY.replace("[[entries]]", "allow_shared_samples = true\n[[entries]]", 1)
    assert parse_suite(text + 'fit = "test"\n', origin="mine.toml").allow_shared_samples


def test_a_task_is_spelt_right_and_its_settings_make_sense() -> None:
    text = ENTRY.replace("linear-probe", "linear-prob")
    with pytest.raises(RecipeError, match=r"entries.0.tasks.1: .*; did you mean 'linear-probe'\?"):
        parse_suite(text, origin="mine.toml")
    few = ENTRY.replace("linear-probe", "few-shot")
    with pytest.raises(RecipeError, match="1 or more"):
        parse_suite(f"{few}shots = [0]", origin="mine.toml")
    assert parse_suite(f"{few}shots = [2]", origin="mine.toml").entries[0].shots == (2,)


def test_a_set_without_splits_is_not_fitted_on_what_it_reports() -> None:
    text = ENTRY.replace("eurosat-rgb", "aid") + 'fit = "train"\n'
    with pytest.raises(RecipeError, match="aid has no splits"):
        parse_suite(text, origin="mine.toml")


def test_validation_without_a_task_that_chooses_has_no_effect() -> None:
    text = ENTRY.replace(', "linear-probe", "decisions"', "") + 'validation = "val"\n'
    with pytest.raises(RecipeError, match="validation is for"):
        parse_suite(text, origin="mine.toml")


def test_two_entries_of_one_name_are_refused() -> None:
    entry = ENTRY.partition("[[entries]]")[2]
    with pytest.raises(RecipeError, match="two entries are called 'eurosat-rgb/test'"):
        parse_suite(f"{ENTRY}\n[[entries]]{entry}", origin="mine.toml")


def test_an_unknown_suite_is_told_with_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="did you mean 'micro'"):
        load_suite("mikro")
    with pytest.raises(RecipeError, match="cannot read suite"):
        load_suite(str(tmp_path / "none.toml"))


def test_values_of_a_suite_are_overridden_by_name_and_by_number() -> None:
    overrides = ["num_bootstrap=7", "entries.aid.limit=9", "entries.0.fit_limit=5"]
    suite = load_suite("micro", overrides=overrides)
    entries = {entry.title: entry for entry in suite.entries}
    assert suite.num_bootstrap == 7
    assert entries["aid"].limit == 9
    assert suite.entries[0].fit_limit == 5
    unchanged = load_suite("micro")
    assert [e.limit for e in unchanged.entries if e.title != "aid"] == [
        e.limit for e in suite.entries if e.title != "aid"
    ]


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("num_bootstraps=7", "unknown key 'num_bootstraps'; did you mean 'num_bootstrap'"),
        ("entries.adi.limit=9", "no entry 'adi'; did you mean 'aid'"),
        ("entries.aid.fit=all", "aid has no splits"),
        ("num_bootstrap", "expected KEY=VALUE"),
    ],
)
def test_a_faulty_override_of_a_suite_is_refused(override: str, said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        load_suite("micro", overrides=[override])
