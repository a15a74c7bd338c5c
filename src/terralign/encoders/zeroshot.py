"""Zero-shot weights W (K, D): class names times templates, embedded, averaged, cached by hash.

Letters: K classes, T templates, D embedding.
"""

from __future__ import annotations

import logging
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from terralign.encoders.clip.load import ClipModel
from terralign.encoders.clip.text_tower import shortened_texts
from terralign.encoders.clip.weights import read_state_dict, write_state_dict
from terralign.encoders.prompt_sets import OPENAI_IMAGENET as OPENAI_IMAGENET
from terralign.encoders.prompt_sets import PromptSet as PromptSet
from terralign.encoders.prompt_sets import load_prompts as load_prompts
from terralign.encoders.prompt_sets import openai_imagenet_names as openai_imagenet_names
from terralign.encoders.prompt_sets import prompt_set_names as prompt_set_names
from terralign.errors import DataError, ModelError, RecipeError, is_blank, quoted
from terralign.files import hash_json, set_aside
from terralign.limits import require
from terralign.progress import Progress

logger = logging.getLogger(__name__)

Prompts = PromptSet | str | Sequence[str]
"""A prompt set, its name or TOML file, or templates with `{}`."""


def as_prompts(prompts: Prompts) -> PromptSet:
    """The prompt set that is meant; `RecipeError` for anything else, or a template without `{}`."""
    if isinstance(prompts, PromptSet):
        return prompts
    if isinstance(prompts, str):
        return load_prompts(prompts)
    wanted = "give the name of a prompt set, its .toml file, or a list of templates with {}"
    if not isinstance(prompts, Iterable) or isinstance(prompts, bytes | Mapping):
        raise RecipeError(f"prompts = {prompts!r:.100}; {wanted}")
    templates = tuple(prompts)
    for template in templates:
        if not isinstance(template, str):
            raise RecipeError(f"prompts: the template {template!r:.100} is not text; {wanted}")
    return PromptSet(name="given", templates=templates)


NUM_QUICK = 256
"""Up to so many texts are embedded without showing progress."""


def embed_text(clip: ClipModel, texts: Sequence[str], *, batch_size: int = 256) -> Tensor:
    """(N, D) float32, L2-normalised embeddings of N texts, on the CPU.

    A text that is longer than the text tower's context is cut to it, with one warning for all.
    `RecipeError` for a text that is empty.
    """
    if not texts or any(not isinstance(text, str) for text in texts):
        raise RecipeError("encode_text takes a list of at least one string")
    empty = next((index for index, text in enumerate(texts) if is_blank(text)), None)
    if empty is not None:
        raise RecipeError(f"text {empty + 1} of {len(texts)} is empty; leave it out")
    device = next(clip.model.parameters()).device
    tokens = tokenize(clip, texts).to(device)
    rows: list[Tensor] = []
    with torch.inference_mode(), ExitStack() as stack:
        progress = None
        if len(texts) > NUM_QUICK:
            progress = stack.enter_context(Progress("texts", total=len(texts), unit="text"))
        for start in range(0, len(tokens), batch_size):
            part = tokens[start : start + batch_size]
            rows.append(cast(Any, clip.model).encode_text(part, normalize=True).float().cpu())
            if progress is not None:
                progress.advance(len(part))
    return finite(torch.cat(rows).clone(), what="the text tower", source=clip.source)


def finite(vectors: Tensor, *, what: str, source: str) -> Tensor:
    """The vectors; `ModelError` where finite weights gave some that are not."""
    if not bool(torch.isfinite(vectors).all()):
        raise ModelError(
            f"{source}: {what} gives embeddings that are not finite, as weights of training that "
            "diverged do; take an earlier checkpoint"
        )
    return vectors


def tokenize(clip: ClipModel, texts: Sequence[str]) -> Tensor:
    """(N, L) int64 tokens of N texts, with the warning of `embed_text`.

    `DataError` for a word whose length, which tokenizers square, is beyond the limit.
    """
    for text in texts:
        longest = max(map(len, text.split()), default=0)
        require("word_characters", longest, f"the text {quoted(text)} has a word of")
    tokens = clip.tokenizer(list(texts))
    shortened = shortened_texts(clip.tokenizer, texts, tokens)
    if shortened:
        index, num_tokens = next(iter(shortened.items()))
        more = f", and {len(shortened) - 1} more" if len(shortened) > 1 else ""
        logger.warning(
            "longer than the %d tokens that the text tower takes, and cut to them: %s "
            "(%d tokens)%s",
            tokens.shape[1], _beginning(texts[index]), num_tokens, more,
        )  # fmt: skip
    return tokens


def _beginning(text: str) -> str:
    return repr(text if len(text) <= 60 else text[:57] + "...")


def as_class_names(labels: Iterable[str]) -> tuple[str, ...]:
    """At least two class names to choose from, as given; `DataError` where they cannot be."""
    if isinstance(labels, str):
        raise DataError(f"labels are one text, {labels!r}; give a list of at least two class names")
    if not isinstance(labels, Iterable) or isinstance(labels, bytes | Mapping):
        raise DataError(f"labels = {labels!r:.100}; give a list of at least two class names")
    # Strings of NumPy are shown otherwise.
    names: tuple[str, ...] = tuple(str(one) if isinstance(one, str) else one for one in labels)
    seen: set[str] = set()
    for name in names:
        if not isinstance(name, str):
            raise DataError(f"label {name!r:.100} is no text; give the names of classes")
        if name.strip() in seen:
            raise DataError(f"label {name!r} is given more than once; name each class once")
        seen.add(name.strip())
    if len(names) < 2:
        raise DataError(f"labels are {list(names)}; give at least two class names, as a list")
    return names


def _warn_of_alike(class_names: Sequence[str]) -> None:
    """Warn of two names that differ in case, spaces or the coding of accents alone.

    A text tower hardly distinguishes them, so that each gets half of the probability.
    """
    first: dict[str, str] = {}
    for name in class_names:
        key = " ".join(unicodedata.normalize("NFKC", name).casefold().split())
        if key in first:
            logger.warning(
                "classes %r and %r are the same text but for case and spaces, and share their "
                "probability; name each class once",
                first[key], name,
            )  # fmt: skip
            return
        first[key] = name


_cache: dict[str, Tensor] = {}


def _kept(path: Path, shape: tuple[int, int]) -> Tensor | None:
    """The weights in a file of the cache; a damaged one is set aside, and made again."""
    if not path.is_file():
        return None
    try:
        weights = read_state_dict(path).get("weights")
        if weights is None or tuple(weights.shape) != shape or not weights.isfinite().all():
            raise ModelError("it holds other weights")
    except ModelError as error:
        set_aside(path, error)
        return None
    return weights


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
    stand for other weights. A prompt that is longer than the text tower's context is cut to it
    (see `embed_text`); `RecipeError` for an empty class name.
    """
    if not class_names or isinstance(class_names, str):
        raise RecipeError("zero-shot weights need a list of at least one class name")
    empty = next((index for index, name in enumerate(class_names) if is_blank(name)), None)
    if empty is not None:
        raise RecipeError(f"class name {empty + 1} of {len(class_names)} is empty; name the class")
    if tuple(class_names) != openai_imagenet_names():  # which has "missile" twice, as published
        _warn_of_alike(class_names)
    key = hash_json(
        {"text": clip.text_id(), "classes": list(class_names), "prompts": list(prompts.templates)}
    )
    if key in _cache:
        return _cache[key].clone()
    path = cache_dir / f"zero-shot-{key}.safetensors" if cache_dir else None
    weights = _kept(path, (len(class_names), clip.dim)) if path else None
    if weights is None:
        texts = [
            template.replace("{}", name) for name in class_names for template in prompts.templates
        ]
        embedded = embed_text(clip, texts).reshape(len(class_names), len(prompts.templates), -1)
        weights = F.normalize(embedded.mean(1), dim=-1)
        if path:
            write_state_dict(path, {"weights": weights})
    if len(_cache) >= 64:
        _cache.pop(next(iter(_cache)))
    _cache[key] = weights.clone()
    return weights
