"""Zero-shot weights W (K, D): class names times templates, embedded, averaged, cached by hash.

Letters: K classes, T templates, D embedding.
"""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any, cast

import open_clip
import torch
import torch.nn.functional as F
from torch import Tensor

from terralign.encoders.clip import ClipModel
from terralign.encoders.weights import read_state_dict, write_state_dict
from terralign.errors import RecipeError, nearest
from terralign.files import hash_json

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
    """The names `load_prompts` knows."""
    folder = resources.files("terralign.encoders") / "prompts"
    shipped = [path.name.removesuffix(".toml") for path in folder.iterdir()]
    return sorted([*(name for name in shipped if not name.startswith("_")), OPENAI_IMAGENET])


def load_prompts(name: str) -> PromptSet:
    """A prompt set by name, or from a TOML file with `templates = [...]`."""
    if name == OPENAI_IMAGENET:
        templates = tuple(template("{}") for template in open_clip.OPENAI_IMAGENET_TEMPLATES)
        return PromptSet(name=name, templates=templates)
    if name.endswith(".toml"):
        file: Traversable = Path(name)
    elif name in prompt_set_names():
        file = resources.files("terralign.encoders") / "prompts" / f"{name}.toml"
    else:
        raise RecipeError(f"unknown prompt set {name!r}; {nearest(name, prompt_set_names())}")
    try:
        values = tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise RecipeError(f"cannot read prompt file {name}: {error.strerror}") from error
    except ValueError as error:
        raise RecipeError(f"prompt file {name} is not valid TOML: {error}") from error
    templates = values.pop("templates", None)
    if not isinstance(templates, list) or not all(isinstance(one, str) for one in templates):
        raise RecipeError(f'prompt file {name} needs templates = ["...{{}}...", ...]')
    if values:
        raise RecipeError(f"prompt file {name}: unknown key {next(iter(values))!r}")
    return PromptSet(name=Path(name).stem, templates=tuple(templates))


def openai_imagenet_names() -> tuple[str, ...]:
    """OpenAI's 1,000 ImageNet class names, in the order of the sorted WordNet ids."""
    return tuple(open_clip.IMAGENET_CLASSNAMES)


def embed_text(clip: ClipModel, texts: Sequence[str], *, batch_size: int = 256) -> Tensor:
    """(N, D) float32, L2-normalised embeddings of N texts, on the CPU."""
    if not texts or any(not isinstance(text, str) for text in texts):
        raise RecipeError("encode_text takes a list of at least one string")
    device = next(clip.model.parameters()).device
    rows = []
    with torch.inference_mode():
        for start in range(0, len(texts), batch_size):
            tokens = clip.tokenizer(list(texts[start : start + batch_size])).to(device)
            rows.append(cast(Any, clip.model).encode_text(tokens, normalize=True).float().cpu())
    return torch.cat(rows).clone()


_cache: dict[str, Tensor] = {}


def zero_shot_weights(
    clip: ClipModel,
    class_names: Sequence[str],
    prompts: PromptSet,
    *,
    cache_dir: Path | None = None,
) -> Tensor:
    """W (K, D) float32: per class, the normalised mean of its normalised prompt embeddings.

    Equal to open_clip's `build_zero_shot_classifier` (transposed). Cached in memory, and as a file
    in `cache_dir`, by the hash of (text tower, class names, templates), so that a name can never
    stand for other weights.
    """
    if not class_names:
        raise RecipeError("zero-shot weights need at least one class name")
    key = hash_json(
        {"text": clip.text_id(), "classes": list(class_names), "prompts": list(prompts.templates)}
    )
    if key in _cache:
        return _cache[key]
    path = cache_dir / f"zero-shot-{key}.safetensors" if cache_dir else None
    if path and path.is_file():
        weights = read_state_dict(path)["weights"]
    else:
        texts = [
            template.replace("{}", name) for name in class_names for template in prompts.templates
        ]
        embedded = embed_text(clip, texts).reshape(len(class_names), len(prompts.templates), -1)
        weights = F.normalize(embedded.mean(1), dim=-1)
        if path:
            write_state_dict(path, {"weights": weights})
    if len(_cache) >= 64:
        _cache.pop(next(iter(_cache)))
    _cache[key] = weights
    return weights
