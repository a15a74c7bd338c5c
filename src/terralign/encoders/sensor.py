"""Student towers: a backbone over N bands and a linear projection to D dimensions.

Letters: B batch, C bands, H W pixels, D embedding. A backbone is either any timm model
(`TowerConfig.backbone` is its name) or the RGB tower itself inflated to C bands ("inflate").
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import timm
import torch
from pydantic import BaseModel, ConfigDict, Field
from timm.layers import resample_abs_pos_embed  # type: ignore[attr-defined]
from torch import Tensor, nn

from terralign.encoders.clip import ClipModel
from terralign.encoders.weights import StateDict, hash_state, read_checkpoint
from terralign.errors import ModelError
from terralign.files import hash_json
from terralign.preprocess import InputSpec
from terralign.sensors import Composite

logger = logging.getLogger(__name__)

INFLATE = "inflate"


class TowerConfig(BaseModel):
    """Everything but the weights of a sensor tower."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]*$")
    """The tower's name in its space."""
    backbone: str
    """A timm model's name, or "inflate": the space's RGB tower over the tower's bands."""
    input: InputSpec
    """Sensors, bands, size and normalisation."""
    embed_dim: int = Field(gt=0)
    """D of the space."""
    drop_path: float = Field(default=0.0, ge=0, lt=1)
    """Stochastic depth while training (timm backbones)."""


class SensorTower(nn.Module):
    """(B, C, H, W) normalised float32 in the bands of `config.input` -> (B, D), not normalised."""

    def __init__(self, config: TowerConfig, backbone: nn.Module, projection: nn.Module) -> None:
        super().__init__()
        self.config = config
        self.backbone = backbone
        self.projection = projection

    def forward(self, pixels: Tensor) -> Tensor:
        return cast(Tensor, self.projection(self.backbone(pixels)))

    def tower_id(self) -> str:
        """The name of these weights with this configuration."""
        extra = hash_json(self.config.model_dump(mode="json"))
        return hash_state(self.state_dict(), extra=extra)


def build_tower(config: TowerConfig, clip: ClipModel, *, seed: int = 0) -> SensorTower:
    """A tower with fresh weights: random for timm backbones, the RGB tower's where inflated.

    Inflated towers end with the RGB tower's own projection; `fill_inflated` sets the filters of
    the first layer.
    """
    if config.embed_dim != clip.dim:
        raise ModelError(f"tower {config.name!r} has D {config.embed_dim}, the space {clip.dim}")
    if config.backbone == INFLATE:
        if config.drop_path:
            raise ModelError("drop_path has no effect on an inflated tower; leave it out")
        visual = copy.deepcopy(clip.visual)
        _widen(visual, len(config.input.bands))
        return SensorTower(config, visual, nn.Identity()).requires_grad_(True)
    return _build_timm(config, seed)


def _build_timm(config: TowerConfig, seed: int) -> SensorTower:
    if ":" in config.backbone or "/" in config.backbone or not timm.is_model(config.backbone):
        close = timm.list_models(f"*{config.backbone[:6].replace('*', '')}*")[:4]
        raise ModelError(
            f"unknown timm model {config.backbone!r}"
            + (f"; near it: {', '.join(close)}" if close else "")
        )
    options: dict[str, Any] = {"in_chans": len(config.input.bands), "num_classes": 0}
    if config.drop_path:
        options["drop_path_rate"] = config.drop_path
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            backbone = timm.create_model(config.backbone, img_size=config.input.size, **options)
        except TypeError:  # convolutional models have no fixed size
            backbone = timm.create_model(config.backbone, **options)
        example = torch.zeros(1, options["in_chans"], config.input.size, config.input.size)
        with torch.no_grad():
            width = backbone.eval()(example).shape[-1]
        projection = nn.Linear(width, config.embed_dim, bias=False)
    return SensorTower(config, backbone, projection)


def _first_conv(module: nn.Module, channels: int = 3) -> tuple[str, nn.Conv2d]:
    """The convolution that meets the pixels: the only one with three input channels."""
    found = [
        (name, layer)
        for name, layer in module.named_modules()
        if isinstance(layer, nn.Conv2d) and layer.in_channels == channels
    ]
    if len(found) != 1:
        raise ModelError(
            f"cannot inflate this tower: {len(found)} convolutions take {channels} channels, "
            "expected one"
        )
    return found[0]


def _widen(visual: nn.Module, num_bands: int) -> nn.Conv2d:
    _, conv = _first_conv(visual)
    shape = (conv.out_channels, num_bands, *conv.kernel_size)
    conv.weight = nn.Parameter(torch.zeros(shape))
    conv.in_channels = num_bands
    return conv


def inflate(
    config: TowerConfig, clip: ClipModel, composite: Composite | None, *, others: str = "zero"
) -> SensorTower:
    """The RGB tower over the bands of `config`, so that the student starts as the teacher.

    The filters of red, green and blue go to the bands of `composite`; the other bands start at
    zero or at the filters' mean (`others`: "zero" or "mean"). A tower with no visible band, or of
    a sensor without a composite, starts at the mean, scaled so that a grey picture gives the same
    response. The tower's input must keep
    the composite's stretch and the CLIP's mean and std on the visible bands.
    """
    tower = build_tower(config, clip)
    name, source = _first_conv(clip.visual)
    conv = cast(nn.Conv2d, dict(tower.backbone.named_modules())[name])
    bands = config.input.bands
    order = composite.bands if composite is not None else ()
    visible = [band for band in bands if band in order]
    mean = source.weight.detach().mean(1)
    with torch.no_grad():
        for channel, band in enumerate(bands):
            if band in order:
                filters = source.weight[:, order.index(band)]
            elif not visible:
                filters = mean * 3 / len(bands)
            else:
                filters = mean / len(bands) if others == "mean" else torch.zeros_like(mean)
            conv.weight[:, channel] = filters
    return tower


# The wrappings of published self-supervised checkpoints (SSL4EO-S12: MoCo, DINO, MAE), and the
# parts of theirs that belong to pretraining alone.
_PREFIXES = (
    "module.base_encoder.",
    "module.encoder_q.",
    "base_encoder.",
    "encoder_q.",
    "module.backbone.",
    "backbone.",
    "module.",
    "encoder.",
)
_PRETRAINING_ONLY = (
    "decoder_",
    "mask_token",
    "head.",
    "fc.",
    "momentum_encoder.",
    "encoder_k.",
    "predictor.",
    "queue",
    "module.momentum_encoder.",
    "module.encoder_k.",
    "module.predictor.",
    "module.queue",
    "projector.",
)


def load_initial_weights(
    tower: SensorTower, path: Path, *, bands: tuple[str, ...]
) -> dict[str, list[str]]:
    """Start a timm tower from a self-supervised checkpoint; say what did not load.

    Reads SSL4EO-S12's MoCo, DINO and MAE checkpoints and torchgeo's conversions of them (plain
    timm state dicts). `bands`: canonical names of the checkpoint's input channels, in order; the
    tower's bands take the filters of the same name. Returns {"not_loaded": ..., "left_out": ...}:
    tower weights that stayed random, and checkpoint keys of pretraining alone. Any other key that
    does not fit is a `ModelError`.
    """
    state, left_out = _unwrap(read_checkpoint(path), path)
    own = tower.backbone.state_dict()
    name, _ = _first_conv(tower.backbone, channels=len(tower.config.input.bands))
    first = f"{name}.weight"
    if first in state:
        state[first] = _pick_bands(state[first], bands, tower.config.input.bands, path)
    if "pos_embed" in state and state["pos_embed"].shape != own["pos_embed"].shape:
        grid = cast(Any, tower.backbone).patch_embed.grid_size
        state["pos_embed"] = resample_abs_pos_embed(state["pos_embed"], new_size=list(grid))
    unexpected = sorted(state.keys() - own.keys())
    if unexpected:
        raise ModelError(
            f"{path} has {len(unexpected)} keys that {tower.config.backbone!r} lacks, such as "
            f"{unexpected[0]!r}; is it the checkpoint of another architecture?"
        )
    for key, value in state.items():
        if value.shape != own[key].shape:
            raise ModelError(
                f"{path}: {key} is {tuple(value.shape)}, {tower.config.backbone!r} has "
                f"{tuple(own[key].shape)}"
            )
    tower.backbone.load_state_dict(state, strict=False)
    not_loaded = [*sorted(own.keys() - state.keys()), "projection.weight"]
    logger.info("%s: %d tensors loaded, not loaded: %s", path, len(state), ", ".join(not_loaded))
    return {"not_loaded": not_loaded, "left_out": left_out}


def _unwrap(loaded: Any, path: Path) -> tuple[StateDict, list[str]]:
    for key in ("state_dict", "model", "teacher", "student"):
        if isinstance(loaded, Mapping) and isinstance(loaded.get(key), Mapping):
            loaded = loaded[key]
            break
    if not isinstance(loaded, Mapping) or not loaded:
        raise ModelError(f"{path} holds no state dict")
    state: StateDict = {}
    left_out: list[str] = []
    for key, value in loaded.items():
        if key.startswith(_PRETRAINING_ONLY):
            left_out.append(key)
            continue
        name = next((key.removeprefix(p) for p in _PREFIXES if key.startswith(p)), key)
        if name.startswith(_PRETRAINING_ONLY):
            left_out.append(key)
        elif not isinstance(value, Tensor):
            raise ModelError(f"{path} is no state dict: {key!r} is not a tensor")
        else:
            state[name] = value
    return state, left_out


def _pick_bands(
    weight: Tensor, given: tuple[str, ...], wanted: tuple[str, ...], path: Path
) -> Tensor:
    if weight.shape[1] != len(given):
        raise ModelError(
            f"{path} takes {weight.shape[1]} channels, but {len(given)} band names were given "
            f"({', '.join(given)}); say its bands in order"
        )
    missing = [band for band in wanted if band not in given]
    if missing:
        raise ModelError(f"{path} knows no band {', '.join(missing)}; it has {', '.join(given)}")
    return weight[:, [given.index(band) for band in wanted]]
