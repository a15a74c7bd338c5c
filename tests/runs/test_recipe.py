"""Recipes: what is accepted, what is refused, and how it is said."""

from __future__ import annotations

import copy
import math
import tomllib
from pathlib import Path
from typing import Any

import pytest
import tomli_w

from terralign.datasets.facts import read_facts
from terralign.errors import RecipeError
from terralign.files import shipped_names
from terralign.runs.recipe import (
    Recipe,
    load_recipe,
    parse_recipe,
    recipe_hash,
    recipe_text,
    single_stage,
)
from terralign.toml_values import apply_override, toml_difference

ARCHITECTURE = {"embed_dim": 8, "vision_cfg": {"image_size": 32}, "text_cfg": {"width": 8}}

VALUES: dict[str, Any] = {
    "name": "small",
    "base": {"model": "clip"},
    "patch": {
        "epochs": 2,
        "views": {"flips": True},
        "tasks": [{"data": "eurosat-rgb"}],
        "supported": [{"data": "tiny-imagenet"}],
    },
    "align": [
        {
            "name": "s2",
            "sensors": ["sentinel2-l2a"],
            "student": {"backbone": "inflate"},
            "spectral": {"gain": 0.1},
            "data": [{"data": "s2-l2a"}],
        },
        {"name": "s1", "sensors": ["sentinel1-grd"], "data": [{"data": "bigearthnet-mini"}]},
    ],
    "evaluate": [
        {"data": "eurosat-rgb", "split": "val", "role": "patching", "models": ["base"]},
        {"data": "eurosat-ms", "split": "val", "role": "alignment", "towers": ["s2"]},
    ],
}


def _changed(place: str, value: Any) -> dict[str, Any]:
    """`VALUES` with one value replaced; `place` is dotted, with numbers for entries of lists."""
    values = copy.deepcopy(VALUES)
    current: Any = values
    *parents, last = place.split(".")
    for part in parents:
        current = current[int(part)] if part.isdigit() else current.setdefault(part, {})
    current[last] = value
    return values


def _said(values: dict[str, Any]) -> str:
    with pytest.raises(RecipeError) as told:
        parse_recipe(values, origin="small.toml")
    text = str(told.value)
    assert "\n" not in text
    assert text.startswith("recipe small.toml: ")
    return text


@pytest.mark.parametrize("name", shipped_names("recipes"))
def test_every_shipped_recipe_is_valid_and_survives_being_resolved(name: str) -> None:
    recipe = load_recipe(name)
    assert recipe.name == name
    assert recipe.note
    text = recipe_text(recipe)
    again = parse_recipe(tomllib.loads(text), origin=name)
    assert again == recipe.model_copy(update={"needs": None})
    assert recipe_text(again) == text


def test_what_a_recipe_needs_is_no_part_of_what_it_is() -> None:
    plain = parse_recipe(VALUES, origin="x")
    stated = parse_recipe({**VALUES, "needs": {"disk_gb": 3, "estimated": ["disk_gb"]}}, origin="x")
    assert recipe_hash(stated) == recipe_hash(plain)
    assert recipe_text(stated) == recipe_text(plain)
    assert "unknown key 'needs.disk_gbb'" in _said({**VALUES, "needs": {"disk_gbb": 3}})


@pytest.mark.parametrize("name", ["eurosat-starter", "eurosat-b32"])
def test_what_recipes_for_everyone_read_can_be_fetched(name: str) -> None:
    recipe = load_recipe(name)
    assert recipe.patch is not None
    read = {entry.data for entry in (*recipe.patch.tasks, *recipe.patch.supported)}
    read |= {source.data for tower in recipe.align for source in tower.sources}
    read |= {entry.data for entry in recipe.evaluate}
    facts = [read_facts(data) for data in read]
    assert all(one.files for one in facts)
    assert all(f"fetch {data}" in recipe.note or f" {data}" in recipe.note for data in read)
    num_bytes = sum(file.num_bytes or 0 for one in facts for file in one.files)
    assert recipe.needs is not None
    weights = 0 if name == "eurosat-starter" else 605e6
    assert recipe.needs.download_gb == round((num_bytes + weights) / 1e9, 1)


def test_the_recipes_of_the_readme_ship() -> None:
    assert {"quickstart", "micro-real", "paper-vit-b32", "paper-vit-b32-s1"} <= set(
        shipped_names("recipes")
    )


def test_the_resolved_text_says_every_default() -> None:
    values = tomllib.loads(recipe_text(parse_recipe(VALUES, origin="x")))
    assert values["patch"]["max_supported_drop"] == 0.01
    assert values["align"][0]["views"]["turns"] is True
    assert values["patch"]["tasks"][0] == {
        "data": "eurosat-rgb", "train": "train", "validation": "val",
    }  # fmt: skip


# Misspelt keys


@pytest.mark.parametrize(
    ("place", "nearest"),
    [
        ("patc", "patch"),
        ("base.modle", "model"),
        ("patch.epoch", "epochs"),
        ("patch.views.flip", "flips"),
        ("patch.photometric.jiter", "jitter"),
        ("patch.tasks.0.validaton", "validation"),
        ("patch.supported.0.promts", "prompts"),
        ("align.0.sensor", "sensors"),
        ("align.1.student.backbon", "backbone"),
        ("align.0.spectral.band_droput", "band_dropout"),
        ("align.0.data.0.repeat", "repeats"),
        ("evaluate.1.spilt", "split"),
    ],
)
def test_a_misspelt_key_names_the_nearest_at_any_depth(place: str, nearest: str) -> None:
    said = _said(_changed(place, 1))
    assert f"unknown key {place!r}; did you mean {nearest!r}?" in said


@pytest.mark.parametrize(
    ("place", "value", "said"),
    [
        ("patch.epochs", 0, "patch.epochs: Input should be greater than or equal to 1 (given: 0)"),
        ("patch.lr", "fast", "(given: 'fast')"),
        ("patch.lr", math.inf, "patch.lr: Input should be a finite number"),
        ("patch.alphas", [math.nan], "Input should be a finite number"),
        ("seed", 2**64, "seed: Input should be less than"),
        ("name", "../../elsewhere", "name: '../../elsewhere' cannot be the name of a folder"),
        ("patch.mode", "both", "'joint', 'sequential', 'parallel' or 'ties' (given: 'both')"),
        ("patch.density", 0.5, 'density = 0.5 has no effect with mode = "joint"'),
        ("align.0.losses", {"infonse": 1.0}, "unknown loss 'infonse'; did you mean 'infonce'?"),
        ("align.0.student.drop_path", 0.1, "drop_path has no effect on an inflated tower"),
        ("base", {}, "base needs either model or pretrain"),
        ("base.pretrain", {"architecture": ARCHITECTURE}, "base needs either model or pretrain"),
        ("base", {"pretrain": {"architecture": {}}}, "expected embed_dim, vision_cfg = {...} and"),
        (
            "base",
            {"pretrain": {"architecture": {**ARCHITECTURE, "vision_cfg": {}}}},
            "vision_cfg.image_size must be a whole number, not None",
        ),
        ("align.1.name", "s2", "tower names must differ"),
        ("align.1.name", "rgb", "not be rgb or text"),
        ("evaluate.1.towers", ["s3"], "evaluate names tower 's3'"),
        ("evaluate.0.models", [], "name the models (base, finetuned, patched) or towers"),
        ("evaluate.0.query", "text", "query and gallery have no effect on zero-shot"),
        ("evaluate.0.task", "retrieval", "retrieval needs query and gallery"),
        ("evaluate.0.role", "main", "(given: 'main')"),
        ("evaluate.1.composite", "eurosat", "composite has no effect where no RGB tower"),
        (
            "align.0.validation",
            {"data": "s2-l2a", "split": "val", "labels": True, "composite": "eurosat"},
            "composite has no effect on validation with labels",
        ),
        (
            "align.0.validation",
            {"data": "s2-l2a", "split": "val", "repeats": 2},
            "repeats has no effect on validation",
        ),
        ("align.0.student.scaling", "reflectance", "scaling has no effect on an inflated tower"),
        (
            "align.1.student",
            {"backbone": "test_vit", "scaling": "reflectance"},
            "is for reflectance; sentinel1-grd is in dB",
        ),
    ],
)
def test_wrong_values_are_told_with_their_place(place: str, value: Any, said: str) -> None:
    assert said in _said(_changed(place, value))


def test_a_missing_key_is_told() -> None:
    values = copy.deepcopy(VALUES)
    del values["align"][0]["sensors"]
    assert "key 'align.0.sensors' is missing" in _said(values)


def test_models_have_no_effect_on_retrieval() -> None:
    entry = {**VALUES["evaluate"][0], "task": "retrieval", "query": "text", "gallery": "rgb"}
    assert "have no effect on retrieval" in _said(_changed("evaluate", [entry]))


def test_models_of_a_stage_that_is_not_there_are_refused() -> None:
    values = copy.deepcopy(VALUES)
    del values["patch"]
    values["evaluate"][0]["models"] = ["patched"]
    assert "there is no patch stage" in _said(values)


# Names that a run would only meet after hours


@pytest.mark.parametrize(
    ("place", "value", "said"),
    [
        ("patch.tasks.0.data", "eurosat-rbg", "did you mean 'eurosat-rgb'?"),
        ("patch.supported.0.data", "imagnet", "did you mean 'imagenet'?"),
        ("align.0.data.0.data", "s2-l2b", "did you mean 's2-l2a'?"),
        ("align.0.sensors", ["sentinel2-l2b"], "sentinel2-l2"),
        ("evaluate.1.data", "nowhere.toml", "nowhere.toml"),
        ("patch.tasks.0.prompts", "satelite", "did you mean 'satellite'?"),
        ("evaluate.0.prompts", "photos", "did you mean 'photo'?"),
        ("align.0.data.0.prompts", "fotos", "unknown prompt set 'fotos'"),
        (
            "base",
            {"pretrain": {"data": "synthetic-photo", "architecture": ARCHITECTURE}},
            "did you mean 'synthetic-photos'?",
        ),
    ],
)
def test_unknown_names_are_refused_with_the_nearest(place: str, value: Any, said: str) -> None:
    assert said in _said(_changed(place, value))


@pytest.mark.parametrize(
    "task",
    [
        {"data": "eurosat-rgb", "train": "val"},
        {"data": "aid", "train": "train", "validation": "val"},
        {"data": "s2-l2a", "train": "all", "validation": "val"},
    ],
)
def test_data_are_not_validated_on_themselves(task: dict[str, str]) -> None:
    said = _said(_changed("patch.tasks", [task]))
    assert "trained and validated on the same samples" in said


@pytest.mark.parametrize("split", ["train", "all"])
def test_a_tower_is_not_validated_on_its_training_data(split: str) -> None:
    values = _changed("align.0.validation", {"data": "s2-l2a", "split": split})
    assert "tower 's2' would be validated on samples of s2-l2a" in _said(values)
    other = _changed("align.0.validation", {"data": "s2-l2a", "split": "val"})
    assert parse_recipe(other, origin="x").align[0].validation is not None


def test_pictures_to_preserve_on_may_not_judge() -> None:
    values = _changed("patch.preserve_on", {"data": "tiny-imagenet", "split": "val"})
    assert "preserve_on would train on the pictures that judge tiny-imagenet" in _said(values)
    parse_recipe(_changed("patch.preserve_on", {"data": "tiny-imagenet"}), origin="x")


# Overrides


@pytest.mark.parametrize(
    ("override", "place", "value"),
    [
        ("patch.lr=2e-5", ("patch", "lr"), 2e-5),
        ("seed=7", ("seed",), 7),
        ("patch.alphas=[0.5, 1.0]", ("patch", "alphas"), [0.5, 1.0]),
        ("patch.views.flips=false", ("patch", "views", "flips"), False),
        ("patch.photometric={}", ("patch", "photometric"), {}),
        ("align.s1.epochs=3", ("align", 1, "epochs"), 3),
        ("align.0.epochs=4", ("align", 0, "epochs"), 4),
        ("align.s2.data.0.repeats=2", ("align", 0, "data", 0, "repeats"), 2),
        ("base.model=ViT-B-32:file=x.pt", ("base", "model"), "ViT-B-32:file=x.pt"),
        ('note="a = b"', ("note",), "a = b"),
        ("patch.mode=joint", ("patch", "mode"), "joint"),
    ],
)
def test_one_value_is_overridden(override: str, place: tuple[Any, ...], value: Any) -> None:
    values = copy.deepcopy(VALUES)
    apply_override(values, override)
    current: Any = values
    for part in place:
        current = current[part]
    assert current == value
    parse_recipe(values, origin="x")


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("patch.lr", "expected KEY=VALUE"),
        ("=1", "expected KEY=VALUE"),
        ("align.s3.lr=1", "no entry 's3'"),
        ("align.2.lr=1", "no entry '2'"),
        ("align.0=1", "name the entry of the list"),
        ("name.lr=1", "name is not a table"),
        ("name.lr.x=1", "nothing lies below 'lr'"),
        ("patch.alphas.0.x=1", "patch.alphas"),
        ("evaluate.zero.data=aid", "no entry 'zero'"),
    ],
)
def test_an_override_without_a_place_is_refused(override: str, said: str) -> None:
    values = _changed("patch.alphas", [0.0, 1.0])
    with pytest.raises(RecipeError) as told:
        apply_override(values, override)
    assert said in str(told.value)


def test_a_misspelt_override_names_the_nearest_key(tmp_path: Path) -> None:
    path = tmp_path / "small.toml"
    path.write_text(tomli_w.dumps(VALUES))
    changed = load_recipe(str(path), overrides=["patch.lr=0.5"])
    assert changed.patch is not None
    assert changed.patch.settings.lr == 0.5
    with pytest.raises(RecipeError, match=r"unknown key 'patch\.epoch'; did you mean 'epochs'"):
        load_recipe(str(path), overrides=["patch.epoch=2"])


# Files


def test_recipes_that_cannot_be_read_are_told(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"unknown recipe 'quikstart'; did you mean 'quickstart'"):
        load_recipe("quikstart")
    with pytest.raises(RecipeError, match=r"cannot read recipe nowhere\.toml: No such file"):
        load_recipe("nowhere.toml")
    (tmp_path / "a.toml").write_text("name = ")
    with pytest.raises(RecipeError, match=r"a\.toml is not valid TOML"):
        load_recipe(str(tmp_path / "a.toml"))
    (tmp_path / "b.toml").write_bytes(b'name = "\xff"')
    with pytest.raises(RecipeError, match="it is not UTF-8 text"):
        load_recipe(str(tmp_path / "b.toml"))


# Differences and single stages


def test_the_difference_of_two_recipes_names_every_key() -> None:
    old = recipe_text(parse_recipe(VALUES, origin="x"))
    values = _changed("patch.lr", 0.5)
    values["align"][1]["epochs"] = 9
    values["patch"]["tasks"][0]["limit"] = 5
    new = recipe_text(parse_recipe(values, origin="x"))
    assert toml_difference(old, old) == []
    assert toml_difference(old, new) == [
        "align.s1.epochs: 1 -> 9",
        "patch.lr: 1e-05 -> 0.5",
        "patch.tasks.0.limit: not set -> 5",
    ]


def test_a_tower_less_is_a_difference() -> None:
    old = recipe_text(parse_recipe(VALUES, origin="x"))
    values = copy.deepcopy(VALUES)
    del values["align"][1]
    found = toml_difference(old, recipe_text(parse_recipe(values, origin="x")))
    assert "align.s1.name: 's1' -> not set" in found


def _recipe(**change: Any) -> Recipe:
    return parse_recipe({**VALUES, **change}, origin="x")


def test_single_stages() -> None:
    patched = single_stage(_recipe(), "patch", base="other")
    assert (patched.base.model, patched.align) == ("other", ())
    assert single_stage(_recipe(), "patch").base.model == "clip"
    aligned = single_stage(_recipe(), "align", base="runs/p/model")
    assert (aligned.patch, aligned.base.model) == (None, "runs/p/model")
    assert [one.name for one in aligned.align] == ["s2", "s1"]


def test_single_stages_measure_what_is_theirs() -> None:
    both = {"data": "eurosat-ms", "split": "val", "role": "alignment"}
    recipe = _recipe(
        evaluate=[
            {"data": "aid", "split": "all", "role": "unseen", "models": ["base", "patched"]},
            {**both, "models": ["base", "finetuned", "patched"], "towers": ["s2"]},
            {**both, "task": "retrieval", "query": "rgb", "gallery": "s2"},
            {**both, "task": "retrieval", "query": "text", "gallery": "rgb"},
        ]
    )
    patched = single_stage(recipe, "patch").evaluate
    assert [(one.data, one.models, one.towers, one.query) for one in patched] == [
        ("aid", ("base", "patched"), (), None),
        ("eurosat-ms", ("base", "finetuned", "patched"), (), None),
        ("eurosat-ms", (), (), "text"),
    ]
    aligned = single_stage(recipe, "align", base="x")
    assert [(one.models, one.towers, one.gallery) for one in aligned.evaluate] == [
        (("base",), ("s2",), None),
        ((), (), "s2"),
    ]
    again = parse_recipe(tomllib.loads(recipe_text(aligned)), origin="resolved")
    assert again == aligned


def test_single_stages_that_are_not_there() -> None:
    with pytest.raises(RecipeError, match="name it with --base"):
        single_stage(_recipe(), "align")
    with pytest.raises(RecipeError, match="has no align stage"):
        single_stage(_recipe(align=[], evaluate=[]), "align", base="x")
    bare = {key: value for key, value in VALUES.items() if key != "patch"}
    with pytest.raises(RecipeError, match="has no patch stage"):
        single_stage(parse_recipe(bare, origin="x"), "patch")


@pytest.mark.parametrize(
    ("key", "said"),
    [
        ("patch.lrr", r"unknown key 'patch\.lrr'; did you mean 'lr'\?"),
        ("patch.supportd", r"unknown key 'patch\.supportd'; did you mean 'supported'\?"),
        ("patch.settings", r"unknown key 'patch\.settings'"),
        ("patch.views.flipz", r"unknown key 'patch\.views\.flipz'; did you mean 'flips'\?"),
    ],
)
def test_the_settings_that_a_table_holds_are_named_as_the_file_has_them(
    key: str, said: str
) -> None:
    with pytest.raises(RecipeError, match=said):
        load_recipe("quickstart", overrides=[f"{key}=1"])
    with pytest.raises(RecipeError, match=r"patch\.lr: .*greater than 0"):
        load_recipe("quickstart", overrides=["patch.lr=-1"])


def test_a_recipe_is_written_flat(tmp_path: Path) -> None:
    recipe = load_recipe("quickstart")
    values = tomllib.loads(recipe_text(recipe))
    assert values["patch"]["lr"] == recipe.patch.settings.lr  # type: ignore[union-attr]
    assert "settings" not in values["patch"]
    written = parse_recipe(values, origin="written")
    assert written == recipe.model_copy(update={"needs": None})


@pytest.mark.parametrize(
    "override",
    [
        f"note={'[' * 5000}", f"patch.lr={'9' * 4500}", f"seed={'9' * 4000}",
        f"{'a.' * 5000}b=1", f"note={{{'a.' * 5000}b = 1}}",
    ],
)  # fmt: skip
def test_an_override_beyond_measure_is_refused(override: str) -> None:
    with pytest.raises(RecipeError, match=r"^--set .* (is not valid TOML|integer|parts)"):
        load_recipe("quickstart", overrides=[override])
