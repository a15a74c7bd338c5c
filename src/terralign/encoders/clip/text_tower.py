"""Text towers and tokenizers of Hugging Face's transformers, the extra `transformers`.

Their files come from strangers: of a tower's configuration only numbers and a few known words are
kept, of a tokenizer only its own files, both are read from a folder, and no code of theirs is run.
"""

from __future__ import annotations

import importlib.util
import math
import re
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

import open_clip
from open_clip.hf_configs import arch_dict
from open_clip.tokenizer import DEFAULT_CONTEXT_LENGTH, HFTokenizer
from torch import Tensor

from terralign.encoders.clip.hub import Hub
from terralign.errors import ModelError, TerralignError, first_line, quoted
from terralign.files import read_json, write_json
from terralign.limits import require

TEXT_CONFIG_NAME = "text_config.json"
"""The configuration of a space's text tower, so that it is built again with no network."""

Tokenizer = Callable[[list[str]], Tensor]

_WORDS = {"model_type", "hidden_act", "activation_function", "feed_forward_proj"}
"""Keys of a configuration whose values may be words; others name code, kernels or files."""

_LIMITS = {"context_length": "model_tokens"}

_TOKENIZER_FILES = [
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "*.model",
]
_HUB_CONFIG = "config.json"
_HUB_FILES = [*_TOKENIZER_FILES, _HUB_CONFIG]


def check_text_cfg(text_cfg: dict[str, Any], what: str) -> None:
    """Refuse what transformers would take from a path or address, and anything of it without it."""
    part = r"[A-Za-z0-9][\w.-]*"
    for key, use in (("hf_model_name", "text tower"), ("hf_tokenizer_name", "tokenizer")):
        name = text_cfg.get(key)
        if not name:
            continue
        if not isinstance(name, str) or not re.fullmatch(rf"{part}(/{part})?", name):
            raise ModelError(f"{what}: {key} {name!r} is not the name of a model on the hub")
        if importlib.util.find_spec("transformers") is None:
            raise ModelError(
                f"the {use} of {what} needs the package transformers; install it with "
                "pip install 'terralign[transformers]'"
            )


def read_text_config(
    text_cfg: dict[str, Any], *, folder: Path | None, hub: Hub, what: str
) -> dict[str, Any] | None:
    """The configuration of a text tower from transformers; None where open_clip has its own.

    From `folder`, where it was saved with the model, else from the hub by its name.
    """
    name = text_cfg.get("hf_model_name")
    if not name:
        return None
    if folder is not None and (folder / TEXT_CONFIG_NAME).is_file():
        return clean_text_config(read_json(folder / TEXT_CONFIG_NAME), what)
    return clean_text_config(read_json(hub.folder(name, _HUB_FILES) / _HUB_CONFIG), what)


def clean_text_config(config: Any, what: str) -> dict[str, Any]:
    """What is needed of an untrusted configuration to build the tower; `ModelError` for others."""
    kind = config.get("model_type") if isinstance(config, dict) else None
    if not isinstance(kind, str) or kind not in arch_dict:
        raise ModelError(
            f"{what}: a text tower of model_type {kind!r} is not supported, only "
            f"{', '.join(sorted(arch_dict))}"
        )
    kept = {
        key: value
        for key, value in config.items()
        if not key.startswith("_")
        and (value is None or isinstance(value, bool | int | float) or key in _WORDS)
    }
    for key, value in kept.items():
        if key in _WORDS and not isinstance(value, str):
            raise ModelError(f"{what}: {key} of its text tower is {value!r}, expected a word")
    check_sizes(kept, f"{what}: its text tower")
    return kept


def check_sizes(values: Mapping[str, Any], what: str) -> None:
    """Refuse a configuration that asks for more than a model has, before it is built."""
    for key, value in values.items():
        if isinstance(value, dict):
            check_sizes(value, what)
            continue
        layers = key == "layers" or key.endswith("_layers")
        name = "model_layers" if layers else _LIMITS.get(key, "model_numbers")
        for one in value if isinstance(value, list) else [value]:
            if layers and not isinstance(one, int):
                raise ModelError(f"{what}: {key} is {one!r:.100}, expected a whole number")
            if isinstance(one, int | float):
                counted = int(min(abs(one), 2**63)) if math.isfinite(one) else 2**63
                require(name, counted, f"{what} has {quoted(key)} of", fault=ModelError)


@contextmanager
def local_text_cfg(
    text_cfg: dict[str, Any], text_config: dict[str, Any] | None
) -> Iterator[dict[str, Any]]:
    """A `text_cfg` from which open_clip builds the tower with random weights, fetching nothing."""
    if text_config is None:
        yield dict(text_cfg)
        return
    with TemporaryDirectory() as folder:
        write_json(Path(folder) / _HUB_CONFIG, text_config)
        yield {**text_cfg, "hf_model_name": folder, "hf_model_pretrained": False}


def load_tokenizer(
    text_cfg: dict[str, Any], *, folder: Path | None, hub: Hub, what: str
) -> Tokenizer:
    """list of str -> (N, L) int64, as open_clip's `get_tokenizer` makes it.

    One of transformers is read from `folder`, where the model is a folder, else from the hub.
    """
    length = text_cfg.get("context_length") or DEFAULT_CONTEXT_LENGTH
    options = text_cfg.get("tokenizer_kwargs") or {}
    name = text_cfg.get("hf_tokenizer_name")
    try:
        if not name:
            return cast(Tokenizer, open_clip.SimpleTokenizer(context_length=length, **options))
        with TemporaryDirectory() as temporary, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            _copy_tokenizer(folder or hub.folder(name, _HUB_FILES), Path(temporary))
            tokenizer = HFTokenizer(
                temporary,
                context_length=length,
                tokenizer_mode=text_cfg.get("tokenizer_mode"),
                trust_remote_code=False,
                local_files_only=True,
                **options,
            )
    except TerralignError:
        raise
    except Exception as error:  # a damaged tokenizer makes its reader raise nearly anything
        raise ModelError(f"cannot load the tokenizer of {what}: {first_line(error)}") from error
    tokenizer.tokenizer.name_or_path = name
    return cast(Tokenizer, tokenizer)


def shortened_texts(tokenizer: Tokenizer, texts: Sequence[str], tokens: Tensor) -> dict[int, int]:
    """Which of `texts` the tokenizer cut to its context length: index -> number of its tokens.

    `tokens` (N, L) int64: what it made of them. Only texts that fill their row are counted again,
    so that long lists cost nothing more. Empty for a tokenizer that is neither open_clip's own
    nor one of transformers.
    """
    length = tokens.shape[1]
    if isinstance(tokenizer, open_clip.SimpleTokenizer):
        full = tokens[:, -1] == tokenizer.eot_token_id
    elif isinstance(tokenizer, HFTokenizer):
        # What ends a text may be the token that pads it, and two more may be set apart.
        full = (tokens == tokenizer.tokenizer.pad_token_id).sum(1) <= 3
    else:
        return {}
    counts = {
        index: _count_tokens(tokenizer, texts[index]) for index in full.nonzero()[:, 0].tolist()
    }
    return {index: count for index, count in counts.items() if count > length}


def _count_tokens(tokenizer: Any, text: str) -> int:
    """Tokens of a text with those that begin and end it, nothing cut."""
    if isinstance(tokenizer, open_clip.SimpleTokenizer):
        return len(tokenizer.encode(text)) + 2
    apart = tokenizer.tokenizer_mode == "clips"
    ids = tokenizer.tokenizer(
        tokenizer.clean_fn(text), add_special_tokens=not apart, truncation=False, verbose=False
    ).input_ids
    return len(ids) + (3 if apart else 0)


def save_tokenizer(tokenizer: Tokenizer, folder: Path) -> list[str]:
    """Write a tokenizer of transformers into `folder`; names what it wrote (open_clip's: none)."""
    inner = getattr(tokenizer, "tokenizer", None)
    if inner is None or not hasattr(inner, "save_pretrained"):
        return []
    written = {Path(name).name for name in inner.save_pretrained(folder)}
    return sorted(name for name in written if (folder / name).is_file())


def _copy_tokenizer(source: Path, target: Path) -> None:
    """A tokenizer's own files, without what in them points to code or to files elsewhere."""
    found = {path for pattern in _TOKENIZER_FILES for path in source.glob(pattern)}
    if not found:
        raise FileNotFoundError(f"{source} has no tokenizer.json or the like")
    for path in found:
        require("json_bytes", path.stat().st_size, f"{path} has", fault=ModelError)
        shutil.copyfile(path, target / path.name)
    config_path = target / "tokenizer_config.json"
    config = read_json(config_path) if config_path.is_file() else {}
    kind = config.get("tokenizer_class")
    if kind is not None and not re.fullmatch(r"\w*Tokenizer(Fast|sBackend)?", str(kind)):
        raise ValueError(f"{kind!r} is not a tokenizer of transformers")
    outside = {key for key in config if key.endswith("_file") or key == "auto_map"}
    write_json(config_path, {key: config[key] for key in config.keys() - outside})
    # Older tokenizers are identified by the model beside them.
    if (source / _HUB_CONFIG).is_file():
        model_type = read_json(source / _HUB_CONFIG).get("model_type")
        write_json(target / _HUB_CONFIG, {"model_type": model_type} if model_type else {})
