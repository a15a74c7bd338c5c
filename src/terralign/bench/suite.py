"""A suite as data: which data sets, splits and tasks a bench measures, `suites/*.toml`.

Nothing is fitted or chosen on the samples that are reported: probes are fitted on `fit`, and what
is free (C, k, thresholds) is chosen on `validation`. Where one of them is left out, its samples are
a fixed part of another split, which the rows note.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, Self

import tomli_w
from pydantic import Field, ValidationError, model_validator

from terralign.datasets.catalog import DATASETS, find_dataset
from terralign.encoders.prompt_sets import load_prompts
from terralign.errors import RecipeError, TerralignError
from terralign.evaluation.rows import Role
from terralign.files import parse_toml
from terralign.toml_paths import TomlPaths
from terralign.toml_values import (
    Strict,
    apply_override,
    explain,
    read_named,
    without_none,
)

EntryTask = Literal[
    "zero-shot", "retrieval", "linear-probe", "knn", "few-shot", "robustness", "decisions",
    "diagnostics",
]  # fmt: skip
Variant = Literal["prompt-average", "centred", "csls", "qb-norm"]
FITTED = frozenset({"linear-probe", "knn", "few-shot"})
"""Tasks that are fitted on labelled samples."""


class SuiteEntry(Strict):
    """One split of one data set, and what is measured on it."""

    name: str | None = Field(default=None, pattern=r"^[a-z0-9][a-z0-9./-]*$")
    """How rows call it; None: DATA/SPLIT."""
    data: str
    """A data set's name, a packed store, or the path of a TOML that declares one."""
    split: str
    """The split that is reported."""
    role: Role
    tasks: tuple[EntryTask, ...] = Field(min_length=1)
    prompts: str | None = None
    """A prompt set; None: the data set's own."""
    classes: str | None = None
    """OpenAI's class names for ImageNet ("openai-imagenet"); None: the data set's own."""
    composite: str | None = None
    """The RGB recipe that RGB towers see; None: that which the data set declares."""
    limit: int | None = Field(default=None, ge=1)
    """At most this many samples, always the same; of `fit` and `validation`: `fit_limit`."""
    fit: str | None = None
    """The split that probes are fitted on."""
    validation: str | None = None
    """The split that thresholds and hyper-parameters are chosen on."""
    fit_limit: int | None = Field(default=None, ge=1)
    towers: tuple[str, ...] = ()
    """Towers to use, "rgb" among them; none named: every tower that takes the data."""
    shots: tuple[int, ...] = (1, 4, 16)
    """Of few-shot: samples per class."""
    num_seeds: int = Field(default=5, ge=1, le=1000)
    """Of few-shot: draws of the samples."""
    robustness_limit: int | None = Field(default=512, ge=1)
    """Robustness is measured on at most this many samples."""

    @property
    def title(self) -> str:
        """How rows call this entry."""
        data = Path(self.data)
        return self.name or f"{data.name if data.is_absolute() else data}/{self.split}"

    @model_validator(mode="after")
    def _settings_have_an_effect(self) -> Self:
        if len(set(self.tasks)) != len(self.tasks):
            raise ValueError(f"tasks {list(self.tasks)} name one twice")
        chosen = FITTED | {"decisions"}
        if self.validation is not None and not chosen & set(self.tasks):
            raise ValueError(f"validation is for {', '.join(sorted(chosen))}; leave it out")
        for key, task in (
            ("shots", "few-shot"),
            ("num_seeds", "few-shot"),
            ("robustness_limit", "robustness"),
        ):
            if (
                task not in self.tasks
                and getattr(self, key) != type(self).model_fields[key].default
            ):
                raise ValueError(f"{key} is for {task}, not one of the tasks; leave it out")
        if self.composite is not None and self.towers and "rgb" not in self.towers:
            raise ValueError("composite has no effect where towers leave out rgb; leave it out")
        if not self.shots or min(self.shots) < 1:
            raise ValueError("shots are numbers of samples per class, 1 or more")
        return self


class Suite(Strict):
    """What a bench measures."""

    name: str = Field(min_length=1)
    note: str = ""
    """What a reader of the results should know."""
    seed: int = Field(default=0, ge=0, lt=2**63)
    num_bootstrap: int = Field(default=1000, ge=1, le=1_000_000)
    """Resamples of every interval; average precision and F1 are slower and use a fifth."""
    allow_shared_samples: bool = False
    """Measure although what is fitted or chosen on shares samples with what is reported; the rows
    note it."""
    variants: tuple[Variant, ...] = ()
    """Hubness corrections at query time, measured beside the plain metrics."""
    average_prompts: tuple[str, ...] = ("satellite", "satellite-centered", "plain")
    """The prompt sets whose zero-shot weights the variant prompt-average averages."""
    entries: tuple[SuiteEntry, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _titles_differ(self) -> Self:
        [(title, count)] = Counter(entry.title for entry in self.entries).most_common(1)
        if count > 1:
            raise ValueError(f"two entries are called {title!r}; give one another name")
        return self


def load_suite(
    name_or_path: str, *, overrides: Sequence[str] = (), data_root: Path | None = None
) -> Suite:
    """A shipped suite by name, or a TOML file, with `KEY=VALUE` overrides applied.

    Paths are looked for as those of recipes are (see `load_recipe`). Raises `RecipeError`, also for
    unknown keys, data sets and prompt sets, and fitting or choosing on the split that is reported.
    """
    values = read_named("suite", name_or_path)
    paths = TomlPaths.named(name_or_path, data_root)
    here = partial(TomlPaths.here(data_root).resolve, names=DATASETS)
    for override in overrides:
        apply_override(values, override, resolve=here)
    return _checked(values, origin=name_or_path, paths=paths)


def parse_suite(text: str, *, origin: str, paths: TomlPaths | None = None) -> Suite:
    """A suite from TOML, checked. `paths`: of the file that it is from."""
    values = parse_toml(text, name=f"suite {origin}", fault=RecipeError)
    return _checked(values, origin=origin, paths=paths)


def _checked(values: Mapping[str, Any], *, origin: str, paths: TomlPaths | None) -> Suite:
    try:
        resolved = paths.resolve(values, names=DATASETS) if paths else values
    except RecipeError as error:
        raise RecipeError(f"suite {origin}: {error}") from error
    try:
        suite = Suite.model_validate(resolved)
    except ValidationError as error:
        raise RecipeError(f"suite {origin}: {explain(error, Suite)}") from error
    try:
        for name in suite.average_prompts:
            load_prompts(name)
        for entry in suite.entries:
            _check_entry(entry, apart=not suite.allow_shared_samples)
    except TerralignError as error:
        raise RecipeError(f"suite {origin}: {error}") from error
    return suite


def _check_entry(entry: SuiteEntry, *, apart: bool) -> None:
    """`apart`: whether splits may not overlap by their names; the bench compares their samples."""
    facts = find_dataset(entry.data).facts
    if entry.prompts is not None:
        load_prompts(entry.prompts)
    for what, split in (("fit", entry.fit), ("validation", entry.validation)):
        if split is None or not apart:
            continue
        if not facts.has_splits:
            raise RecipeError(
                f"{entry.title}: {entry.data} has no splits, so that {what} = {split!r} are the "
                "samples that are reported; leave it out, and parts of the set are kept apart"
            )
        if split == entry.split or "all" in (split, entry.split):
            raise RecipeError(
                f"{entry.title}: {what} = {split!r} holds samples of the split that is reported "
                f"({entry.split!r}); name another, or leave it out"
            )
        alternative = facts.alternative_splits
        if (split in alternative) != (entry.split in alternative):
            raise RecipeError(
                f"{entry.title}: {split!r} and {entry.split!r} are of two ways to divide "
                f"{entry.data} and overlap; name splits of one"
            )
    if apart and entry.fit is not None and entry.fit == entry.validation:
        raise RecipeError(
            f"{entry.title}: fit and validation are both {entry.fit!r}; leave validation out, and "
            "a fifth of it is kept apart"
        )


def suite_text(suite: Suite, paths: TomlPaths | None = None) -> str:
    """The resolved suite as TOML: every value, defaults included.

    `paths`: of the file that it goes to, which the paths in it are then relative to.
    """
    values = suite.model_dump(mode="json")
    return tomli_w.dumps(without_none(paths.portable(values) if paths else values))
