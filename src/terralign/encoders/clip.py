"""The text and RGB towers, through open_clip: any architecture, tag, hub id or local file.

Size, mean, standard deviation and activation come from the model's own configuration and travel
with it. Weights are held in float32.
"""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import open_clip
import torch
from torch import Tensor, nn

from terralign.encoders.weights import (
    StateDict,
    check_shapes,
    hash_state,
    read_shapes,
    read_state_dict,
    write_state_dict,
)
from terralign.errors import ModelError, nearest
from terralign.files import hash_json, read_json, write_json
from terralign.preprocess import InputSpec, rgb_spec

logger = logging.getLogger(__name__)

CONFIG_NAME = "open_clip_config.json"
WEIGHTS_NAME = "open_clip_model.safetensors"


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
        """What the RGB tower takes."""
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
        return hash_state(self.model.state_dict(), extra=config)

    def text_id(self) -> str:
        """The name of the text tower: every weight that is not of the RGB tower, and its config."""
        state = {
            key: value
            for key, value in self.model.state_dict().items()
            if not key.startswith("visual.")
        }
        text = {key: value for key, value in self.model_cfg.items() if key != "vision_cfg"}
        return hash_state(state, extra=hash_json(text))


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
    config = read_json(folder / CONFIG_NAME) if (folder / CONFIG_NAME).is_file() else None
    if not isinstance(config, dict) or not isinstance(config.get("model_cfg"), dict):
        raise ModelError(f"{folder} is no open_clip folder: it lacks {CONFIG_NAME} with model_cfg")
    model_cfg = config["model_cfg"]
    _refuse_remote_parts(model_cfg, folder)
    weights = folder / WEIGHTS_NAME
    if not weights.is_file():
        raise ModelError(f"{folder} lacks its weights, {WEIGHTS_NAME}")
    # Shapes first, on the meta device: a hostile configuration takes no memory.
    what = str(weights)
    check_shapes(_meta_shapes(model_cfg, folder), read_shapes(weights), what=what)
    model = _create(f"local-dir:{folder}", what=str(folder))
    return _finish(model, model_cfg, f"local-dir:{folder}", source=str(folder))


def _refuse_remote_parts(model_cfg: dict[str, Any], folder: Path) -> None:
    """A configuration from a stranger may not make timm fetch a model from elsewhere."""
    timm_name = str(model_cfg.get("vision_cfg", {}).get("timm_model_name", ""))
    if ":" in timm_name or "/" in timm_name:
        raise ModelError(f"{folder}: timm model {timm_name!r} points outside the folder")


def _meta_shapes(model_cfg: dict[str, Any], folder: Path) -> dict[str, tuple[int, ...]]:
    config = copy.deepcopy(model_cfg)
    custom = config.pop("custom_text", False) or "hf_model_name" in config.get("text_cfg", {})
    kind = open_clip.CustomTextCLIP if custom else open_clip.CLIP
    if "multimodal_cfg" in config:
        raise ModelError(f"{folder}: captioning models (CoCa) are not supported")
    config.get("vision_cfg", {}).update(
        {"timm_model_pretrained": False} if "timm_model_name" in config["vision_cfg"] else {}
    )
    try:
        with torch.device("meta"):
            model = kind(**config)
    except Exception as error:  # whatever a wrong configuration makes a constructor raise
        raise ModelError(f"{folder}: open_clip cannot build this model_cfg ({error})") from error
    return {key: tuple(value.shape) for key, value in model.state_dict().items()}


def _load_hub(source: str) -> ClipModel:
    model = _create(source, what=source)
    from open_clip.factory import _get_hf_config

    model_cfg = _get_hf_config(source.removeprefix("hf-hub:"))["model_cfg"]
    return _finish(model, model_cfg, source, source=source)


def _load_tag(architecture: str, tag: str) -> ClipModel:
    model_cfg = open_clip.get_model_config(architecture)
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
    state = read_state_dict(path)
    model = _create(architecture, what=architecture)
    expected = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    # Old checkpoints carry text position ids, which no architecture here has as weights.
    state = {key: value for key, value in state.items() if not key.endswith("position_ids")}
    given = {key: tuple(value.shape) for key, value in state.items()}
    check_shapes(expected, given, what=f"{path} as {architecture}")
    model.load_state_dict(state)
    return _finish(model, model_cfg, architecture, source=f"{architecture}:{path}")


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
                    require_pretrained=pretrained is not None or ":" in name,
                ),
            )
    except Exception as error:  # open_clip wraps network and file faults in many ways
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ModelError(
            f"cannot load {what}: {first}. Without a network, give a local folder or file"
        ) from error


def _finish(
    model: nn.Module, model_cfg: dict[str, Any], tokenizer_name: str, *, source: str
) -> ClipModel:
    preprocess_cfg = dict(open_clip.get_model_preprocess_cfg(model))
    model.eval().requires_grad_(False)
    return ClipModel(
        model=model,
        model_cfg=copy.deepcopy(model_cfg),
        preprocess_cfg={
            key: list(value) if isinstance(value, tuple) else value
            for key, value in preprocess_cfg.items()
        },
        tokenizer=open_clip.get_tokenizer(tokenizer_name),
        source=source,
    )


def new_clip(model_cfg: dict[str, Any], preprocess_cfg: dict[str, Any], *, seed: int) -> ClipModel:
    """A CLIP with random weights from an open_clip `model_cfg`; BPE tokenizer of open_clip."""
    config = copy.deepcopy(model_cfg)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = open_clip.CLIP(**config)
    model.eval().requires_grad_(False)
    return ClipModel(
        model=model,
        model_cfg=copy.deepcopy(model_cfg),
        preprocess_cfg={"size": config["vision_cfg"]["image_size"], **preprocess_cfg},
        tokenizer=open_clip.SimpleTokenizer(context_length=config["text_cfg"]["context_length"]),
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
