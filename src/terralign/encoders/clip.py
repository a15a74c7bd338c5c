"""The text and RGB towers, through open_clip: any architecture, tag, hub id or local file.

Size, mean, standard deviation and activation come from the model's own configuration and travel
with it. Weights are held in float32.
"""

from __future__ import annotations

import copy
import logging
import math
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, cast

import open_clip
import torch
from open_clip.pretrained import download_pretrained_from_hf
from open_clip.transform import PreprocessCfg
from torch import Tensor, nn

from terralign.encoders.weights import (
    StateDict,
    check_shapes,
    hash_module,
    read_shapes,
    read_state_dict,
    write_state_dict,
)
from terralign.errors import ModelError, first_line, nearest
from terralign.files import hash_json, read_json, write_json
from terralign.preprocess import InputSpec, rgb_spec

logger = logging.getLogger(__name__)

CONFIG_NAME = "open_clip_config.json"
WEIGHTS_NAME = "open_clip_model.safetensors"

MAX_LAYERS = 1000
"""A configuration with more layers in one tower is refused before it is built."""

_TOKENIZER_OPTIONS = {"clean", "strip_sep_token", "language", "additional_special_tokens"}
"""What a stranger's configuration may tell the tokenizer; others load code or files."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ClipModel:
    """A CLIP: its module, configuration, tokenizer and where it came from.

    `model_cfg` and `preprocess_cfg` are open_clip's; `tokenizer`: list of str -> (N, L) int64.
    """

    model: nn.Module
    model_cfg: dict[str, Any]
    preprocess_cfg: dict[str, Any]
    tokenizer: Callable[[list[str]], Tensor]
    source: str

    @property
    def visual(self) -> nn.Module:
        """The RGB tower, projection included: (B, 3, H, W) normalised float32 -> (B, D)."""
        return cast(nn.Module, self.model.visual)

    @property
    def dim(self) -> int:
        """D of the embedding space."""
        return int(self.model_cfg["embed_dim"])

    @property
    def logit_scale(self) -> float:
        """exp(logit_scale): what cosines are multiplied by to become logits."""
        return float(cast(Tensor, self.model.logit_scale).detach().exp())

    @property
    def input_spec(self) -> InputSpec:
        """What the RGB tower takes; `ModelError` where its configuration is not supported."""
        try:
            return self._read_preprocess_cfg()
        except (KeyError, TypeError, ValueError) as error:
            reason = f"{type(error).__name__}: {first_line(error)}"
            raise ModelError(f"{self.source}: unusable preprocess_cfg ({reason})") from error

    def _read_preprocess_cfg(self) -> InputSpec:
        size = self.preprocess_cfg["size"]
        if isinstance(size, list | tuple):
            if len(set(size)) != 1:
                raise ModelError(f"{self.source}: only square inputs are supported, not {size}")
            size = size[0]
        mode = self.preprocess_cfg.get("resize_mode") or "shortest"
        if mode not in ("shortest", "squash"):
            raise ModelError(f"{self.source}: resize_mode {mode!r} is not supported")
        interpolation = self.preprocess_cfg.get("interpolation") or "bicubic"
        return rgb_spec(
            size=int(size),
            mean=tuple(self.preprocess_cfg["mean"]),
            std=tuple(self.preprocess_cfg["std"]),
            interpolation="bilinear" if interpolation == "bilinear" else "bicubic",
            resize_mode=cast(Literal["shortest", "squash"], mode),
        )

    def with_visual(self, state: StateDict, *, source: str) -> ClipModel:
        """The same text tower with another RGB tower's weights; this model is left as it is."""
        model = copy.deepcopy(self.model)
        visual = cast(nn.Module, model.visual)
        expected = {key: tuple(value.shape) for key, value in visual.state_dict().items()}
        given = {key: tuple(value.shape) for key, value in state.items()}
        check_shapes(expected, given, what=source)
        visual.load_state_dict(state)
        return ClipModel(
            model=model,
            model_cfg=self.model_cfg,
            preprocess_cfg=self.preprocess_cfg,
            tokenizer=self.tokenizer,
            source=source,
        )

    def anchor_id(self) -> str:
        """The name of what anchors a space: text and RGB weights, architecture, preprocessing."""
        config = hash_json({"model": self.model_cfg, "preprocess": self.input_spec.model_dump()})
        return hash_module(self.model, extra=config)

    def text_id(self) -> str:
        """The name of the text tower: every weight that is not of the RGB tower, and its config."""
        text = {key: value for key, value in self.model_cfg.items() if key != "vision_cfg"}
        return hash_module(self.model, extra=hash_json(text), without="visual.")


def load_clip(source: str) -> ClipModel:
    """A CLIP in eval mode on the CPU, from

    - a folder in the layout of open_clip's hub models (`open_clip_config.json` beside
      `open_clip_model.safetensors`),
    - `hf-hub:ORG/NAME`,
    - `ARCHITECTURE:TAG` as open_clip names them (`ViT-B-32-quickgelu:openai`),
    - `ARCHITECTURE:FILE` for a local state dict (`.pt`, loaded safely, or `.safetensors`).

    `ModelError` where it is not there, damaged, or its activation does not fit its tag.
    """
    if Path(source).is_dir():
        return _load_folder(Path(source))
    if source.startswith("hf-hub:"):
        return _load_hub(source)
    architecture, separator, rest = source.partition(":")
    if not separator or architecture not in open_clip.list_models():
        raise _unknown_model(source, architecture, separator)
    tags = open_clip.list_pretrained_tags_by_model(architecture)
    if rest in tags:
        return _load_tag(architecture, rest)
    path = Path(rest)
    if path.suffix in (".pt", ".pth", ".bin", ".ckpt", ".safetensors") or path.exists():
        return _load_file(architecture, path)
    raise ModelError(f"{architecture} has no weights tagged {rest!r}; {nearest(rest, tags)}")


def _unknown_model(source: str, architecture: str, separator: str) -> ModelError:
    if Path(source).is_file():
        return ModelError(
            f"{source} is a file of weights; name its architecture too, as in ViT-B-32:{source}"
        )
    if separator:
        hint = nearest(architecture, open_clip.list_models())
        return ModelError(f"unknown architecture {architecture!r} in {source!r}; {hint}")
    if architecture in open_clip.list_models():
        tags = ", ".join(open_clip.list_pretrained_tags_by_model(architecture)[:6])
        return ModelError(f"{source!r} names no weights; write {source}:TAG with TAG of {tags}")
    return ModelError(
        f"no model at {source!r}: expected a space or open_clip folder, hf-hub:ORG/NAME, "
        "ARCHITECTURE:TAG (as ViT-B-32-quickgelu:openai) or ARCHITECTURE:FILE"
    )


def _load_folder(folder: Path) -> ClipModel:
    if not (folder / CONFIG_NAME).is_file():
        raise ModelError(f"{folder} is no space and no open_clip folder: it lacks {CONFIG_NAME}")
    model_cfg = _read_model_cfg(folder / CONFIG_NAME, str(folder))
    weights = folder / WEIGHTS_NAME
    if not weights.is_file():
        raise ModelError(f"{folder} lacks its weights, {WEIGHTS_NAME}")
    # Shapes first, on the meta device: a hostile configuration takes no memory.
    what = str(weights)
    check_shapes(_meta_shapes(model_cfg, what), read_shapes(weights), what=what)
    model = _create(f"local-dir:{folder}", what=str(folder))
    return _finish(model, model_cfg, f"local-dir:{folder}", source=str(folder))


def _read_model_cfg(path: Path, what: str) -> dict[str, Any]:
    config = read_json(path)
    model_cfg = config.get("model_cfg") if isinstance(config, dict) else None
    if not isinstance(model_cfg, dict) or not all(
        isinstance(model_cfg.get(part), dict) for part in ("vision_cfg", "text_cfg")
    ):
        raise ModelError(f"{what}: {CONFIG_NAME} has no model_cfg with vision_cfg and text_cfg")
    _check_parts(model_cfg, what)
    return model_cfg


def _check_parts(model_cfg: dict[str, Any], what: str) -> None:
    """Refuse what is not supported, and what would fetch or run something from elsewhere."""
    vision, text = model_cfg["vision_cfg"], model_cfg["text_cfg"]
    if "multimodal_cfg" in model_cfg:
        raise ModelError(f"{what}: captioning models (CoCa) are not supported")
    if "hf_model_name" in text:
        raise ModelError(f"{what}: text towers of transformers are not supported")
    timm_name = str(vision.get("timm_model_name") or "")
    if ":" in timm_name or "/" in timm_name:
        raise ModelError(f"{what}: timm model {timm_name!r} points outside the model's own files")
    options = text.get("tokenizer_kwargs") or {}
    if not isinstance(options, dict) or options.keys() - _TOKENIZER_OPTIONS:
        raise ModelError(
            f"{what}: tokenizer_kwargs may only say {', '.join(sorted(_TOKENIZER_OPTIONS))}"
        )
    for part in (vision, text):
        layers = part.get("layers", 0)
        if any(
            not isinstance(one, int) or one > MAX_LAYERS
            for one in (layers if isinstance(layers, list) else [layers])
        ):
            raise ModelError(f"{what}: layers {layers!r}; at most {MAX_LAYERS} are supported")


def _build(model_cfg: dict[str, Any], what: str) -> nn.Module:
    """open_clip's module for a configuration, with random weights."""
    config = copy.deepcopy(model_cfg)
    kind = open_clip.CustomTextCLIP if config.pop("custom_text", False) else open_clip.CLIP
    if "timm_model_name" in config["vision_cfg"]:
        config["vision_cfg"]["timm_model_pretrained"] = False
    try:
        return cast(nn.Module, kind(**config))
    except Exception as error:  # whatever a wrong configuration makes a constructor raise
        raise ModelError(
            f"{what}: open_clip cannot build this model_cfg ({first_line(error)})"
        ) from error


def _meta_shapes(model_cfg: dict[str, Any], what: str) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the weights of a configuration; takes no memory for them."""
    with torch.device("meta"):
        model = _build(model_cfg, what)
    return {key: tuple(value.shape) for key, value in model.state_dict().items()}


def _load_hub(source: str) -> ClipModel:
    name = source.removeprefix("hf-hub:")
    try:
        config = Path(download_pretrained_from_hf(name, filename=CONFIG_NAME))
        weights = Path(download_pretrained_from_hf(name))
    except Exception as error:  # a hub and its network fail in many ways
        raise _not_loaded(source, error) from error
    model_cfg = _read_model_cfg(config, source)
    # open_clip converts some of the hub's weights while loading, so only sizes can be compared:
    # no format of theirs has less than one byte per weight.
    num_weights = sum(math.prod(shape) for shape in _meta_shapes(model_cfg, source).values())
    if num_weights > weights.stat().st_size:
        raise ModelError(
            f"{source}: its configuration has {num_weights} weights, {weights.name} only "
            f"{weights.stat().st_size} bytes"
        )
    return _finish(_create(source, what=source), model_cfg, source, source=source)


def _load_tag(architecture: str, tag: str) -> ClipModel:
    model_cfg = open_clip.get_model_config(architecture)
    _check_parts(model_cfg, architecture)
    pretrained = open_clip.get_pretrained_cfg(architecture, tag)
    wants = bool(pretrained.get("quick_gelu", False))
    has = bool(model_cfg.get("quick_gelu", False))
    if wants != has:
        other = architecture.removesuffix("-quickgelu") + ("-quickgelu" if wants else "")
        raise ModelError(
            f"{architecture}:{tag} was trained with {'QuickGELU' if wants else 'GELU'}, but the "
            f"architecture uses {'QuickGELU' if has else 'GELU'}; use {other}:{tag}"
        )
    model = _create(architecture, pretrained=tag, what=f"{architecture}:{tag}")
    return _finish(model, model_cfg, architecture, source=f"{architecture}:{tag}")


def _load_file(architecture: str, path: Path) -> ClipModel:
    model_cfg = open_clip.get_model_config(architecture)
    _check_parts(model_cfg, architecture)
    state = read_state_dict(path)
    # Old checkpoints carry text position ids, which no architecture here has as weights.
    state = {key: value for key, value in state.items() if not key.endswith("position_ids")}
    given = {key: tuple(value.shape) for key, value in state.items()}
    what = f"{path} as {architecture}"
    check_shapes(_meta_shapes(model_cfg, what), given, what=what)
    model = _build(model_cfg, what)
    model.load_state_dict(state)
    size = cast(Any, model.visual).image_size
    open_clip.set_model_preprocess_cfg(model, {**_published_preprocess(architecture), "size": size})
    return _finish(model, model_cfg, architecture, source=f"{architecture}:{path}")


def _published_preprocess(architecture: str) -> dict[str, Any]:
    """Preprocessing of an architecture's published weights where all agree, else open_clip's own.

    A file of weights says nothing of it (SigLIP, for one, does not use OpenAI's mean).
    """
    default = asdict(PreprocessCfg())
    tags = open_clip.list_pretrained_tags_by_model(architecture)
    published = [open_clip.get_pretrained_cfg(architecture, tag) for tag in tags]
    found = [
        {key: one[key] for key in default if one.get(key) is not None and key != "size"}
        for one in published
    ]
    return {**default, **found[0]} if found and all(one == found[0] for one in found) else default


def _create(name: str, *, what: str, pretrained: str | None = None) -> nn.Module:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return cast(
                nn.Module,
                open_clip.create_model(
                    name,
                    pretrained=pretrained,
                    precision="fp32",
                    pretrained_image=False,
                    pretrained_text=False,
                    require_pretrained=True,
                ),
            )
    except Exception as error:  # open_clip wraps network and file faults in many ways
        raise _not_loaded(what, error) from error


def _not_loaded(what: str, error: Exception) -> ModelError:
    remedy = "" if Path(what).exists() else ". Without a network, give a local folder or file"
    return ModelError(f"cannot load {what}: {first_line(error)}{remedy}")


def _finish(
    model: nn.Module, model_cfg: dict[str, Any], tokenizer_name: str, *, source: str
) -> ClipModel:
    preprocess_cfg = dict(open_clip.get_model_preprocess_cfg(model))
    model.eval().requires_grad_(False)
    try:
        tokenizer = open_clip.get_tokenizer(tokenizer_name)
    except Exception as error:  # the tokenizer may need transformers, a network, its own files
        raise _not_loaded(f"the tokenizer of {source}", error) from error
    clip = ClipModel(
        model=model,
        model_cfg=copy.deepcopy(model_cfg),
        preprocess_cfg={
            key: list(value) if isinstance(value, tuple) else value
            for key, value in preprocess_cfg.items()
        },
        tokenizer=tokenizer,
        source=source,
    )
    _ = clip.input_spec  # unusable preprocessing is told at once
    return clip


def new_clip(model_cfg: dict[str, Any], preprocess_cfg: dict[str, Any], *, seed: int) -> ClipModel:
    """A CLIP with random weights from an open_clip `model_cfg`; BPE tokenizer of open_clip."""
    _check_parts(model_cfg, "architecture")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = _build(model_cfg, "architecture")
    model.eval().requires_grad_(False)
    return ClipModel(
        model=model,
        model_cfg=copy.deepcopy(model_cfg),
        preprocess_cfg={"size": cast(Any, model.visual).image_size, **preprocess_cfg},
        tokenizer=open_clip.SimpleTokenizer(context_length=cast(Any, model).context_length),
        source="random weights",
    )


def save_clip(clip: ClipModel, folder: Path) -> list[str]:
    """Write a CLIP into `folder` in the layout of open_clip's hub models; names what it wrote.

    `open_clip.create_model("local-dir:FOLDER")` loads the result.
    """
    write_json(
        folder / CONFIG_NAME,
        {"model_cfg": clip.model_cfg, "preprocess_cfg": clip.preprocess_cfg},
    )
    write_state_dict(folder / WEIGHTS_NAME, clip.model.state_dict())
    written = [CONFIG_NAME, WEIGHTS_NAME]
    hf_tokenizer = getattr(clip.tokenizer, "tokenizer", None)
    if hf_tokenizer is not None and hasattr(hf_tokenizer, "save_pretrained"):
        before = set(folder.iterdir())
        hf_tokenizer.save_pretrained(folder)
        written += sorted(path.name for path in set(folder.iterdir()) - before)
    return written
