"""A study as data: one recipe, what is varied in it, and seeds, `studies/*.toml`.

Every variant is the study's recipe with other values, parsed and checked before the first of them
is run.
"""

from __future__ import annotations

import itertools
import json
import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, Self

import tomli_w
from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, ValidationError, model_validator

from terralign.datasets.catalog import DATASETS
from terralign.errors import RecipeError, StorageError, nearest
from terralign.files import parse_toml
from terralign.limits import beyond, limit
from terralign.runs.recipe import Recipe, load_recipe, parse_recipe, recipe_text, single_stage
from terralign.toml_paths import TomlPaths
from terralign.toml_values import FolderName, apply_override, explain, read_named, without_none

Method = Literal["recipe", "coop", "lp-ft"]
NAME = r"^[a-z0-9][a-z0-9.+=_-]*$"


class _Strict(BaseModel):
    model_config = ConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False
    )


METRICS = ("top1", "macro_map", "recall@1", "recall@10")
"""What a study's table shows, unless it names others."""


class Variant(_Strict):
    """One arm of a study: the recipe with these values changed."""

    name: FolderName = Field(pattern=NAME)
    """How tables call it, and its folder."""
    set: dict[str, Any] = {}
    """Dotted key of the recipe -> its value, as `--set` names them."""
    drop: tuple[str, ...] = ()
    """Dotted keys to leave out, for which TOML has no value; before `set`."""
    method: Method = "recipe"
    """recipe: the recipe's own stages; else what takes the place of stage 1."""
    settings: dict[str, Any] = {}
    """Of a method other than "recipe"; what it shares with stage 1 it takes from there."""

    @model_validator(mode="after")
    def _settings_have_an_effect(self) -> Self:
        if self.settings and self.method == "recipe":
            raise ValueError("settings are those of a method; a recipe's values go into set")
        return self


class Study(_Strict):
    """What is compared."""

    name: FolderName
    note: str = ""
    """What a reader of the table should know."""
    recipe: str
    """A recipe that ships, or the path of one."""
    stage: Literal["patch", "align"] | None = None
    """Only stage 1, or only stage 2 from the space that base.model names; None: the whole run."""
    towers: tuple[str, ...] | None = None
    """The recipe's towers that are aligned and measured; None: all."""
    set: dict[str, Any] = {}
    """Values of all variants."""
    drop: tuple[str, ...] = ()
    """Keys that all variants leave out; before `set`."""
    vary: dict[str, tuple[Any, ...]] = {}
    """Dotted key -> its values; makes variants, before those that are written out."""
    design: Literal["grid", "one-at-a-time"] = "grid"
    """Every combination of the values; or the first of each, and from there one other at a time."""
    variants: tuple[Variant, ...] = ()
    reference: str | None = None
    """The variant that the others are compared with; None: the first."""
    seeds: tuple[int, ...] = Field(default=(0, 1, 2), min_length=1)
    metrics: tuple[str, ...] = Field(default=METRICS, min_length=1)
    """Those of the table; `results.json` holds all."""

    _paths: TomlPaths = PrivateAttr(default_factory=TomlPaths.here)
    """Where the paths in `set`, `vary` and `variants` are looked for."""

    @model_validator(mode="after")
    def _is_a_comparison(self) -> Self:
        if not self.vary and not self.variants:
            raise ValueError("a study needs vary, or [[variants]]")
        empty = [key for key, values in self.vary.items() if not values]
        if empty:
            raise ValueError(f"vary {empty[0]!r} has no values")
        if len(set(self.seeds)) != len(self.seeds) or min(self.seeds) < 0:
            raise ValueError(f"seeds must differ, and be 0 or more: {list(self.seeds)}")
        self._check_number()
        names = [variant.name for variant in self.all_variants()]
        [(name, count)] = Counter(names).most_common(1)
        if count > 1:
            raise ValueError(f"two variants are called {name!r}; write them out with names")
        if self.reference is not None and self.reference not in names:
            raise ValueError(f"reference: no variant {self.reference!r}; known: {', '.join(names)}")
        if self.stage != "patch" and any(one.method != "recipe" for one in self.variants):
            raise ValueError('methods take the place of stage 1; set stage = "patch"')
        return self

    def _check_number(self) -> None:
        """Before they are made: a few lists have more combinations than fit into memory."""
        lengths = list(map(len, self.vary.values()))
        grid = math.prod(lengths) if self.design == "grid" else sum(lengths)
        number = ((grid if lengths else 0) + len(self.variants)) * len(self.seeds)
        if number > limit("study_runs"):
            what = "vary, variants and seeds make"
            raise ValueError(beyond("study_runs", number, what, todo="leave some out"))

    def all_variants(self) -> tuple[Variant, ...]:
        """Those that `vary` makes, then those written out."""
        return (*self._varied(), *self.variants)

    @property
    def reference_name(self) -> str:
        """The variant that the others are compared with."""
        return self.reference or self.all_variants()[0].name

    def _varied(self) -> Iterator[Variant]:
        if not self.vary:
            return
        if self.design == "grid":
            for values in itertools.product(*self.vary.values()):
                changes = dict(zip(self.vary, values, strict=True))
                yield Variant(name=_name(changes), set=changes)
            return
        first = {key: values[0] for key, values in self.vary.items()}
        yield Variant(name="reference", set=first)
        for key, values in self.vary.items():
            for value in values[1:]:
                yield Variant(name=_name({key: value}), set={**first, key: value})


@dataclass(frozen=True, kw_only=True, slots=True)
class Planned:
    """One run of a study: a variant's recipe with one seed."""

    variant: Variant
    seed: int
    recipe: Recipe


def load_study(name_or_path: str, *, data_root: Path | None = None) -> Study:
    """A shipped study by name, or a TOML file; `RecipeError` names the first fault.

    Paths in it are looked for as those of recipes are (see `load_recipe`).
    """
    try:
        study = Study.model_validate(read_named("study", name_or_path))
    except ValidationError as error:
        raise RecipeError(f"study {name_or_path}: {explain(error, Study)}") from error
    study._paths = paths = TomlPaths.named(name_or_path, data_root)
    if study.recipe.endswith(".toml"):
        recipe = paths.find(study.recipe)
        if recipe is None:
            raise RecipeError(f"study {name_or_path}: recipe: {paths.not_found(study.recipe)}")
        return study.model_copy(update={"recipe": str(recipe)})
    return study


def study_text(study: Study, overrides: Sequence[str]) -> str:
    """What a study's folder holds: the study without its seeds, which may become more."""
    values = without_none(study.model_dump(mode="json", exclude={"seeds"}))
    values["recipe"] = _recipe_name(study)
    return tomli_w.dumps({**values, "overrides": list(overrides)})


def only_adds(study: Study, overrides: Sequence[str], text: str) -> bool:
    """Whether every run planned by `text`, an earlier `study_text`, is planned the same way now.

    Variants may be more or fewer, and the note and the table's metrics others. False for a text
    that is damaged.
    """
    try:
        values = parse_toml(text, name="study.toml")
        before_overrides = values.pop("overrides", [])
        before = Study.model_validate(values)
    except (StorageError, ValidationError):
        return False
    of_runs = {"name", "stage", "towers", "set", "drop"}
    if (
        before_overrides != list(overrides)
        or _recipe_name(before) != _recipe_name(study)
        or before.model_dump(include=of_runs) != study.model_dump(include=of_runs)
    ):
        return False
    now = {variant.name: variant for variant in study.all_variants()}
    return all(now.get(old.name, old) == old for old in before.all_variants())


def _recipe_name(study: Study) -> str:
    """A study's recipe, wherever it lies; each run's folder holds its content."""
    path = Path(study.recipe)
    return path.name if path.is_absolute() else study.recipe


def plan_study(
    study: Study,
    *,
    overrides: Sequence[str] = (),
    seeds: Sequence[int] | None = None,
    only: Sequence[str] = (),
) -> list[Planned]:
    """Every run of a study, seed by seed; `RecipeError` where one's recipe is wrong.

    `overrides`: `KEY=VALUE` for all variants; what a variant sets itself stays. `seeds`: instead of
    the study's. `only`: names of the variants to run; empty: all.
    """
    known = {variant.name: variant for variant in study.all_variants()}
    for name in only:
        if name not in known:
            raise RecipeError(f"study {study.name} has no variant {name!r}; {nearest(name, known)}")
    chosen = [variant for name, variant in known.items() if not only or name in only]
    data_root = study._paths.data_root
    try:
        text = recipe_text(load_recipe(study.recipe, data_root=data_root))
    except RecipeError as error:
        raise RecipeError(f"study {study.name}: {error}") from error
    base = parse_toml(text, name=study.recipe, fault=RecipeError)
    if study.towers is not None:
        _keep_towers(base, study.towers)
    _change(base, study.drop, study.set, f"study {study.name}", study._paths)
    here = partial(TomlPaths.here(data_root).resolve, names=DATASETS)
    for override in overrides:
        apply_override(base, override, resolve=here)
    return [
        Planned(variant=variant, seed=seed, recipe=_recipe(study, base, variant, seed))
        for seed in dict.fromkeys(seeds or study.seeds)
        for variant in chosen
    ]


def _recipe(study: Study, base: Mapping[str, Any], variant: Variant, seed: int) -> Recipe:
    where = f"study {study.name}, variant {variant.name}"
    values = json.loads(json.dumps(base))
    _change(values, variant.drop, variant.set, where, study._paths)
    recipe = parse_recipe({**values, "seed": seed}, origin=f"{study.recipe} ({where})")
    if study.stage is None:
        return recipe
    if study.stage == "align" and recipe.base.model is None:
        raise RecipeError(f"{where}: a study of stage 2 alone needs base.model, a patched space")
    return single_stage(recipe, study.stage, base=recipe.base.model)


def _change(
    values: dict[str, Any],
    drop: Sequence[str],
    changes: Mapping[str, Any],
    where: str,
    paths: TomlPaths,
) -> None:
    """Leave out and set values of a recipe, in place."""
    resolve = partial(paths.resolve, names=DATASETS)
    for key in drop:
        _leave_out(values, key, where)
    for key, value in changes.items():
        try:
            apply_override(values, f"{key}={_inline(value)}", resolve=resolve)
        except RecipeError as error:
            raise RecipeError(f"{where}: {error}") from error


def _leave_out(values: dict[str, Any], key: str, where: str) -> None:
    *parents, last = key.split(".")
    current: Any = values
    for part in parents:
        current = _below(current, part, key, where)
    _below(current, last, key, where)
    if isinstance(current, dict):
        del current[last]
    else:
        current.remove(_below(current, last, key, where))


def _below(current: Any, part: str, key: str, where: str) -> Any:
    """What lies under one part of a dotted key; entries of lists by number or `name`."""
    entries: dict[str, Any] = {}
    if isinstance(current, dict):
        entries = current
    elif isinstance(current, list):
        entries = {str(number): one for number, one in enumerate(current)}
        entries |= {one["name"]: one for one in current if isinstance(one, dict) and "name" in one}
    if part not in entries:
        raise RecipeError(f"{where}: drop {key!r}: nothing there; {nearest(part, entries)}")
    return entries[part]


def _keep_towers(values: dict[str, Any], towers: Sequence[str]) -> None:
    """Leave out the other towers of a recipe, and what it measures of them."""
    known = [tower["name"] for tower in values.get("align", [])]
    for name in towers:
        if name not in known:
            raise RecipeError(f"towers: the recipe has no {name!r}; {nearest(name, known)}")
    gone = set(known) - set(towers)
    values["align"] = [tower for tower in values["align"] if tower["name"] in towers]
    kept = []
    for entry in values.get("evaluate", []):
        left = [name for name in entry.get("towers", []) if name not in gone]
        asked = {entry.get("query"), entry.get("gallery")}
        if asked & gone or not (left or entry.get("models") or entry.get("query")):
            continue
        kept.append({**entry, "towers": left})
    values["evaluate"] = kept


def _inline(value: Any) -> str:
    """A value as TOML in one line."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, Mapping):
        pairs = (f"{json.dumps(key)} = {_inline(one)}" for key, one in value.items())
        return f"{{ {', '.join(pairs)} }}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_inline, value))}]"
    return repr(value)


def _name(changes: Mapping[str, Any]) -> str:
    """`preserve=8_lr=0.001`: the last parts of the keys, and the values in plain letters."""
    parts = []
    for key, value in changes.items():
        plain = re.sub(r"[^a-z0-9.]+", "-", _inline(value).lower()).strip("-.")
        parts.append(f"{key.split('.')[-1].replace('_', '-').lower()}={plain}")
    return "_".join(parts)
