"""open_clip's model configurations: checked, built without weights, reduced to the two towers."""

from __future__ import annotations

import copy
import itertools
import warnings
from typing import Any, cast

import open_clip
import torch
from torch import nn

from terralign.encoders.clip.text_tower import check_sizes, check_text_cfg, local_text_cfg
from terralign.errors import ModelError, first_line
from terralign.limits import require

Shapes = dict[str, tuple[int, ...]]

_TOKENIZER_OPTIONS = {"clean", "strip_sep_token", "language", "additional_special_tokens"}
"""Keys of a tokenizer's configuration that are taken; others load code or files."""

_PATCH_SIZE = 16
"""open_clip's own, where a configuration states none."""

_DECODER = "text_decoder."
"""Where a captioning model (CoCa) holds what is not of its towers."""


def check_model_cfg(model_cfg: dict[str, Any], what: str) -> None:
    """Refuse what is not supported, and what would fetch or run something from elsewhere."""
    vision, text = model_cfg["vision_cfg"], model_cfg["text_cfg"]
    check_text_cfg(text, what)
    timm_name = str(vision.get("timm_model_name") or "")
    if ":" in timm_name or "/" in timm_name:
        raise ModelError(f"{what}: timm model {timm_name!r} points outside the model's own files")
    options = text.get("tokenizer_kwargs") or {}
    if not isinstance(options, dict) or options.keys() - _TOKENIZER_OPTIONS:
        raise ModelError(
            f"{what}: tokenizer_kwargs may only say {', '.join(sorted(_TOKENIZER_OPTIONS))}"
        )
    decoder = model_cfg.get("multimodal_cfg", {})
    if not isinstance(decoder, dict):
        raise ModelError(f"{what}: multimodal_cfg is {decoder!r}, expected a table")
    check_sizes(model_cfg, f"{what}: its model_cfg")
    size, patch = vision.get("image_size", 0), vision.get("patch_size", _PATCH_SIZE)
    sides = [one for one in (size if isinstance(size, list) else [size]) if isinstance(one, int)]
    patch = patch if isinstance(patch, int) else _PATCH_SIZE
    num_patches = (max(sides, default=0) // max(patch, 1)) ** 2
    require("model_patches", num_patches, f"{what}: its pictures have", fault=ModelError)


def towers_cfg(model_cfg: dict[str, Any]) -> dict[str, Any]:
    """The configuration of the two towers alone; most models are nothing else.

    A captioning model (CoCa) loses its decoder, and its towers give one vector, no tokens.
    """
    towers = copy.deepcopy(model_cfg)
    for part in ("vision_cfg", "text_cfg"):
        if towers[part].get("output_tokens"):
            towers[part]["output_tokens"] = False
    if towers.pop("multimodal_cfg", None) is not None:
        towers.pop("pad_id", None)
        towers["custom_text"] = True
    return towers


def towers_state(state: dict[str, Any]) -> dict[str, Any]:
    """The weights (or shapes) of the two towers among those of a captioning model."""
    return {key: value for key, value in state.items() if not key.startswith(_DECODER)}


def build(model_cfg: dict[str, Any], text_config: dict[str, Any] | None, what: str) -> nn.Module:
    """open_clip's module for a configuration, with random weights; fetches nothing."""
    config = copy.deepcopy(model_cfg)
    kind: Any = open_clip.CLIP
    if config.pop("custom_text", False) or "hf_model_name" in config["text_cfg"]:
        kind = open_clip.CoCa if "multimodal_cfg" in config else open_clip.CustomTextCLIP
    if "timm_model_name" in config["vision_cfg"]:
        config["vision_cfg"]["timm_model_pretrained"] = False
    try:
        with local_text_cfg(config["text_cfg"], text_config) as text_cfg, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return cast(nn.Module, kind(**{**config, "text_cfg": text_cfg}))
    except Exception as error:  # whatever a wrong configuration makes a constructor raise
        raise ModelError(
            f"{what}: open_clip cannot build this model_cfg ({first_line(error)})"
        ) from error


def meta_shapes(model_cfg: dict[str, Any], text_config: dict[str, Any] | None, what: str) -> Shapes:
    """Names and shapes of the weights of a configuration; takes no memory for them."""
    with torch.device("meta"):
        model = build(model_cfg, text_config, what)
    state = model.state_dict()
    num_unsaved = sum(
        value.numel()
        for name, value in itertools.chain(model.named_parameters(), model.named_buffers())
        if name not in state
    )
    beside = f"{what}: its masks and positions, beside its weights, have"
    require("model_numbers", num_unsaved, beside, fault=ModelError)
    return {key: tuple(value.shape) for key, value in state.items()}
