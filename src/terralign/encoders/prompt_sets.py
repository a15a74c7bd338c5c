"""Prompt sets: templates that class names are put into. Read without torch."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from terralign.errors import ModelError, RecipeError, quoted
from terralign.files import hash_json, shipped_names
from terralign.limits import require
from terralign.toml_values import read_named

OPENAI_IMAGENET = "openai-imagenet"
"""The templates (and class names) that OpenAI published for ImageNet; open_clip ships them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PromptSet:
    """Templates with `{}` for the class name, and the name that results carry."""

    name: str
    templates: tuple[str, ...]

    def __post_init__(self) -> None:
        wrong = [template for template in self.templates if template.count("{}") != 1]
        if wrong or not self.templates:
            raise RecipeError(
                f"prompt set {self.name!r}: every template needs one {{}}, {wrong[0]!r} has not"
                if wrong
                else f"prompt set {self.name!r} has no template"
            )

    def describe(self) -> dict[str, Any]:
        """Name, templates and hash, as results carry them."""
        templates = list(self.templates)
        return {"name": self.name, "templates": templates, "hash": hash_json(templates)}


def prompt_set_names() -> list[str]:
    """The names that `load_prompts` takes."""
    return sorted([*shipped_names("encoders/prompts"), OPENAI_IMAGENET])


def load_prompts(name: str) -> PromptSet:
    """A prompt set by name, or from a TOML file with `templates = [...]`."""
    if name == OPENAI_IMAGENET:
        templates = _openai_imagenet().OPENAI_IMAGENET_TEMPLATES
        return PromptSet(name=name, templates=tuple(template("{}") for template in templates))
    values = read_named("prompt set", name, others=[OPENAI_IMAGENET])
    templates = values.pop("templates", None)
    if not isinstance(templates, list) or not all(isinstance(one, str) for one in templates):
        raise RecipeError(f'prompt file {name} needs templates = ["...{{}}...", ...]')
    require("prompt_templates", len(templates), f"prompt file {name} has", fault=RecipeError)
    longest = max((len(word) for one in templates for word in one.split()), default=0)
    require("word_characters", longest, f"prompt file {name} has a word of", fault=RecipeError)
    if values:
        raise RecipeError(f"prompt file {name}: unknown key {quoted(next(iter(values)))}")
    return PromptSet(name=Path(name).stem, templates=tuple(templates))


def openai_imagenet_names() -> tuple[str, ...]:
    """OpenAI's 1,000 ImageNet class names, in the order of the sorted WordNet ids."""
    return tuple(_openai_imagenet().IMAGENET_CLASSNAMES)


@cache
def _openai_imagenet() -> Any:
    """open_clip's module of OpenAI's names and templates, by its file: the package takes seconds to
    import, this module imports nothing."""
    package = importlib.util.find_spec("open_clip")
    if package is None or package.origin is None:
        raise ModelError("open_clip is not installed; install it again (open_clip_torch)")
    path = Path(package.origin).with_name("zero_shot_metadata.py")
    spec = importlib.util.spec_from_file_location("open_clip.zero_shot_metadata", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
