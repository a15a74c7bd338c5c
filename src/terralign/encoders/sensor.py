"""Student towers: a backbone over N bands and a linear projection to D dimensions.

Letters: B batch, C bands, H W pixels, D embedding, F features. A backbone is any timm model
(`TowerConfig.backbone` is its name), the RGB tower itself inflated to C bands ("inflate"), or a
custom encoder that its user builds ("custom"; see `custom`).
"""

from __future__ import annotations

import copy
import difflib
import logging
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal, cast

import timm
import torch
from pydantic import BaseModel, ConfigDict, Field
from timm.layers import resample_abs_pos_embed  # type: ignore[attr-defined]
from torch import Tensor, nn

from terralign.encoders.backbones import CUSTOM as CUSTOM
from terralign.encoders.backbones import INFLATE as INFLATE
from terralign.encoders.backbones import Scaling as Scaling
from terralign.encoders.clip.load import ClipModel
from terralign.encoders.clip.weights import (
    StateDict,
    check_shapes,
    hash_module,
    load_weights,
    read_shapes,
    read_state_dict,
    shared_prefix,
    without_wrappers,
)
from terralign.encoders.trained import TowerTraining
from terralign.errors import ModelError, first_line
from terralign.files import hash_json
from terralign.preprocess import InputSpec
from terralign.sensors import SENSORS, Composite, Sensor

logger = logging.getLogger(__name__)


class TowerConfig(BaseModel):
    """Everything but the weights of a sensor tower."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]*$")
    """The tower's name in its space."""
    backbone: str
    """A timm model's name, "inflate": the space's RGB tower over the tower's bands, or "custom":
    an encoder that its user builds."""
    input: InputSpec
    """Sensors, bands, size and normalisation."""
    embed_dim: int = Field(gt=0)
    """D of the space."""
    drop_path: float = Field(default=0.0, ge=0, lt=1)
    """Stochastic depth while training (timm backbones)."""
    scaling: Scaling | None = None
    """Which scaling `input` holds (timm and custom backbones); None: not recorded, or an inflated
    tower."""
    gsd_m: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    """Metres on the ground of a pixel of `input` in training; None: not recorded."""
    encoder: str | None = None
    """The class of a custom encoder, for people; nothing is imported by it."""
    width: int | None = Field(default=None, gt=0)
    """F of a custom encoder that a linear projection takes to D; None: it gives D itself, and
    there is no projection."""

    def describe_encoder(self) -> str:
        """ "MyNet, 4 bands B02, B03, B04, B08, 64 px": what a custom encoder takes."""
        bands = self.input.bands
        plural = "s" if len(bands) > 1 else ""
        return f"{self.encoder}, {len(bands)} band{plural} {', '.join(bands)}, {self.input.size} px"


class SensorTower(nn.Module):
    """(B, C, H, W) normalised float32 in the bands of `config.input` -> (B, D), not normalised.

    `sensors`: the definitions of those in `config.input` that are not built in. `space_id`: of the
    space that the tower was aligned to or loaded with; None where that is not known. `trained`:
    how `align` trained it; None where that is not known.
    """

    def __init__(self, config: TowerConfig, backbone: nn.Module, projection: nn.Module) -> None:
        super().__init__()
        self.config = config
        self.backbone = backbone
        self.projection = projection
        self.sensors: tuple[Sensor, ...] = ()
        self.space_id: str | None = None
        self.trained: TowerTraining | None = None
        if all(value.ndim != 5 for value in self.parameters()):  # torch refuses those of Conv3d
            self.to(memory_format=torch.channels_last)  # convolutions are faster so

    def forward(self, pixels: Tensor) -> Tensor:
        return cast(Tensor, self.projection(self.backbone(pixels)))

    def __repr__(self) -> str:
        config, spec = self.config, self.config.input
        on_meta = any(value.is_meta for value in self.parameters())
        parts = [
            (config.encoder or CUSTOM) if config.backbone == CUSTOM else config.backbone,
            ", ".join(spec.sensors),
            f"{len(spec.bands)} band{'s' * (len(spec.bands) != 1)} {' '.join(spec.bands)}",
            f"{spec.size} px",
            *([] if on_meta else [f"id {self.tower_id()}"]),
        ]
        return f"SensorTower({config.name!r}: {'; '.join(parts)})"

    def tower_id(self) -> str:
        """The name of these weights with this configuration."""
        values = self.config.model_dump(mode="json")
        for key in ("scaling", "gsd_m", "encoder", "width"):
            if values[key] is None:  # as in spaces from before it was recorded
                del values[key]
        return hash_module(self, extra=hash_json(values))


def build_tower(
    config: TowerConfig, clip: ClipModel, *, seed: int = 0, encoder: nn.Module | None = None
) -> SensorTower:
    """A tower with fresh weights: random for timm backbones, the RGB tower's where inflated, those
    that it comes with for a custom `encoder`.

    Inflated towers end with the RGB tower's own projection; the filters of their first layer are
    zero until `inflate` sets them.
    """
    if config.embed_dim != clip.dim:
        raise ModelError(f"tower {config.name!r} has D {config.embed_dim}, the space {clip.dim}")
    if config.backbone == INFLATE:
        if config.drop_path:
            raise ModelError("drop_path has no effect on an inflated tower; leave it out")
        visual = copy.deepcopy(clip.visual)
        _widen(visual, len(config.input.bands))
        return SensorTower(config, visual, nn.Identity()).requires_grad_(True)
    if config.backbone == CUSTOM:
        if encoder is None:
            raise ModelError(
                f"tower {config.name!r} has a custom encoder, which is given in Python: "
                "align(..., encoder=my_module), load(..., encoders={...})"
            )
        return SensorTower(config, encoder, new_projection(config, seed)).requires_grad_(True)
    return _build_timm(config, seed)


def load_tower(
    config: TowerConfig, clip: ClipModel, path: Path, *, encoder: nn.Module | None = None
) -> SensorTower:
    """A tower with the weights of a safetensors file; `ModelError` where they do not fit.

    `encoder`: the module of a custom one, built by its user; its weights are replaced.
    """
    # Shapes first, on the meta device: a hostile configuration takes no memory.
    if encoder is None:
        with torch.device("meta"):
            planned = build_tower(config, clip).state_dict()
    else:
        planned = build_tower(config, clip, encoder=encoder).state_dict()
    expected = {key: tuple(value.shape) for key, value in planned.items()}
    check_shapes(expected, read_shapes(path), what=str(path))
    tower = build_tower(config, clip, encoder=encoder)
    load_weights(tower, read_state_dict(path), what=str(path))
    return tower.requires_grad_(False)


def new_projection(config: TowerConfig, seed: int) -> nn.Module:
    """From a custom encoder's features to D, with fresh weights."""
    if config.width is None:
        return nn.Identity()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Linear(config.width, config.embed_dim, bias=False)


def _build_timm(config: TowerConfig, seed: int) -> SensorTower:
    if ":" in config.backbone or "/" in config.backbone or not timm.is_model(config.backbone):
        close = difflib.get_close_matches(config.backbone, timm.list_models(), n=4)
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
            try:
                backbone = timm.create_model(config.backbone, img_size=config.input.size, **options)
            except TypeError:  # convolutional models have no fixed size
                backbone = timm.create_model(config.backbone, **options)
        except Exception as error:  # each of timm's models refuses in its own way
            raise ModelError(
                f"timm cannot build {config.backbone!r} with {options} at {config.input.size} "
                f"pixels ({first_line(error)})"
            ) from error
        projection = nn.Linear(cast(int, backbone.head_hidden_size), config.embed_dim, bias=False)
    return SensorTower(config, backbone.eval(), projection)


def _first_conv(visual: nn.Module) -> tuple[str, nn.Conv2d]:
    """The convolution that meets the picture: the only one with three input channels."""
    found = [
        (name, layer)
        for name, layer in visual.named_modules()
        if isinstance(layer, nn.Conv2d) and layer.in_channels == 3
    ]
    if len(found) != 1:
        raise ModelError(
            f"cannot inflate this tower: {len(found)} convolutions take 3 channels, expected one"
        )
    return found[0]


def _widen(visual: nn.Module, num_bands: int) -> None:
    _, conv = _first_conv(visual)
    shape = (conv.out_channels, num_bands, *conv.kernel_size)
    conv.weight = nn.Parameter(conv.weight.new_zeros(shape))
    conv.in_channels = num_bands


def inflate(
    config: TowerConfig,
    clip: ClipModel,
    composite: Composite | None,
    *,
    others: Literal["zero", "mean"] = "zero",
    colours: Tensor | None = None,
) -> SensorTower:
    """The RGB tower over the bands of `config`, so that the student starts as the teacher.

    The filters of red, green and blue go to the bands of `composite`. The other bands start at
    zero, or at the filters' mean over the number of bands (`others`: "zero" or "mean"). A tower
    with no visible band, or of a sensor without a composite, starts at the mean, scaled so that a
    grey picture gives the same response. With `colours` (bands, 3), which estimate a normalised RGB
    picture from the tower's normalised bands, it starts as the RGB tower on that estimate, and
    `composite` and `others` are not looked at. The tower's input must keep the composite's stretch
    and the CLIP's mean and std on the visible bands.
    """
    tower = build_tower(config, clip)
    name, source = _first_conv(clip.visual)
    conv = cast(nn.Conv2d, dict(tower.backbone.named_modules())[name])
    bands = config.input.bands
    order = composite.bands if composite is not None else ()
    visible = [band for band in bands if band in order]
    if colours is not None:
        with torch.no_grad():
            conv.weight.copy_(torch.einsum("ochw,bc->obhw", source.weight, colours))
        return tower
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
    """Start a timm tower from a self-supervised checkpoint; return what did not load.

    Reads SSL4EO-S12's MoCo, DINO and MAE checkpoints and torchgeo's conversions of them (plain
    timm state dicts). `bands`: canonical names of the checkpoint's input channels, in order; the
    tower's bands take the filters of the same name. Returns {"not_loaded": ..., "left_out": ...}:
    tower weights that stayed random, and checkpoint keys of pretraining alone. Any other key that
    does not fit is a `ModelError`.
    """
    own = tower.backbone.state_dict()
    state, left_out = _unwrap(read_state_dict(path), path, own)
    first = f"{cast(Any, tower.backbone).pretrained_cfg['first_conv']}.weight"
    if first in state:
        state[first] = _pick_bands(state[first], bands, tower.config.input.bands, path)
    if "pos_embed" in state and "pos_embed" in own:
        grid = cast(Any, tower.backbone).patch_embed.grid_size
        state["pos_embed"] = _fit_positions(state["pos_embed"], own["pos_embed"], grid, path)
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
    load_weights(tower.backbone, state, what=str(path), strict=False)
    not_loaded = [*sorted(own.keys() - state.keys()), "projection.weight"]
    logger.info("%s: %d tensors loaded, not loaded: %s", path, len(state), ", ".join(not_loaded))
    return {"not_loaded": not_loaded, "left_out": left_out}


def initial_size(path: Path) -> int | None:
    """The side in pixels that the position embeddings of a ViT checkpoint are for.

    None where it has none, or not one per square patch of a square picture.
    """
    state, _ = _unwrap(read_state_dict(path), path)
    positions, filters = state.get("pos_embed"), state.get("patch_embed.proj.weight")
    if positions is None or filters is None or positions.ndim != 3 or filters.ndim != 4:
        return None
    num_prefix = 1 if "cls_token" in state else 0
    side = math.isqrt(max(positions.shape[1] - num_prefix, 0))
    if side == 0 or side * side + num_prefix != positions.shape[1]:
        return None
    return side * int(filters.shape[-1])


def _unwrap(loaded: StateDict, path: Path, own: Iterable[str] = ()) -> tuple[StateDict, list[str]]:
    """The weights of a backbone with names `own`, and what was left out as pretraining's alone."""
    prefix = shared_prefix(loaded)
    if any(key.startswith(prefix) for key in own):
        prefix = ""
    elif prefix and own and not prefix.startswith(_PREFIXES):
        logger.info("%s: the prefix %r is removed from all names", path, prefix)
    state: StateDict = {}
    left_out: list[str] = []
    for key, value in loaded.items():
        plain = without_wrappers(key.removeprefix(prefix))
        if plain.startswith(_PRETRAINING_ONLY):
            left_out.append(key)
            continue
        name = next((plain.removeprefix(p) for p in _PREFIXES if plain.startswith(p)), plain)
        if name.startswith(_PRETRAINING_ONLY):
            left_out.append(key)
        elif name in state:
            raise ModelError(f"{path} has {name!r} under several prefixes, one of them in {key!r}")
        else:
            state[name] = value
    return state, left_out


def _fit_positions(given: Tensor, own: Tensor, grid: tuple[int, int], path: Path) -> Tensor:
    """Position embeddings (1, tokens, width) of another picture size, resampled to `grid`."""
    if given.shape == own.shape:
        return given
    num_prefix = own.shape[1] - grid[0] * grid[1]
    side = math.isqrt(max(given.shape[1] - num_prefix, 0)) if given.ndim == 3 else 0
    if side == 0 or tuple(given.shape) != (1, num_prefix + side * side, own.shape[2]):
        raise ModelError(
            f"{path}: pos_embed is {tuple(given.shape)}, which cannot be resampled to "
            f"{tuple(own.shape)}"
        )
    return cast(
        Tensor,
        resample_abs_pos_embed(given, new_size=list(grid), num_prefix_tokens=num_prefix),
    )


def _pick_bands(
    weight: Tensor, given: tuple[str, ...], wanted: tuple[str, ...], path: Path
) -> Tensor:
    if weight.ndim != 4 or weight.shape[1] != len(given):
        shape = tuple(weight.shape)
        fits = [one.name for one in SENSORS.values() if (len(one.bands),) == shape[1:2]]
        raise ModelError(
            f"{path} has a first layer of shape {shape}, but {len(given)} band names were given "
            f"({', '.join(given)}); say its bands in order"
            + (f" (with {shape[1]}: {', '.join(fits)})" if fits else "")
        )
    missing = [band for band in wanted if band not in given]
    if missing:
        raise ModelError(f"{path} knows no band {', '.join(missing)}; it has {', '.join(given)}")
    return weight[:, [given.index(band) for band in wanted]]
