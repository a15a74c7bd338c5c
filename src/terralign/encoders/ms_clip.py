"""Llama3-MS-CLIP (Marimo et al. 2025, arXiv 2503.15969): a CLIP over ten Sentinel-2 bands.

Its checkpoint is a plain state dict of the training module of its published code (Apache-2.0). In
it one open_clip ViT-B/16, whose patch embedding takes ten bands, appears under three prefixes
(`clip_base_model.model.`, `image_encoder.model.`, `text_encoder.model.`), beside `temperature`, by
which cosines are divided. The bands are those of L2A in order without the two of 60 m; the first
three filters come from a CLIP's blue, green and red. Pixels are DN, normalised by the mean and
deviation of `MEANS` and `STDS`, which were taken of DN that carry the +1000 offset: 1000 is taken
off the means for DN without it, as physical values here always are.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import open_clip
import torch

from terralign.encoders.clip.hub import check_sha256
from terralign.encoders.clip.load import ClipModel, fetch_weights, hub_for, new_clip
from terralign.encoders.clip.weights import StateDict, check_shapes, load_weights, read_state_dict
from terralign.encoders.published import published_models
from terralign.encoders.sensor import INFLATE, SensorTower, TowerConfig, build_tower
from terralign.encoders.sources import MS_CLIP
from terralign.encoders.space import EmbeddingSpace
from terralign.errors import ModelError
from terralign.preprocess import InputSpec
from terralign.sensors import SENSORS

"""How a model's name says that a file is of this kind: `ms-clip:FILE`."""

ARCHITECTURE = "ViT-B-16"
TOWER = "sentinel2"
BANDS = ("B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B11", "B12")
RED_GREEN_BLUE = ("B04", "B03", "B02")

MEANS = (
    *(1925.161, 2183.128, 2338.041, 2667.254, 3233.633),
    *(3460.96, 3555.569, 3619.542, 3406.497, 2841.645),
)
STDS = (
    *(1205.586, 1223.713, 1399.638, 1403.298, 1378.513),
    *(1434.924, 1491.141, 1454.089, 1473.248, 1365.08),
)
"""Of DN with the offset, per band (the published code's `data_config.yaml`)."""

OFFSET = 1000.0
LOW, HIGH = -0.1, 6.5535
"""Reflectance of the lowest and highest DN: nothing that a product can hold is clipped."""

_PREFIXES = ("clip_base_model.model.", "image_encoder.model.", "text_encoder.model.")
_FIRST = "visual.conv1.weight"


def load_ms_clip(path: Path, *, model_cfg: dict[str, Any] | None = None) -> EmbeddingSpace:
    """The space of a checkpoint: its text tower and the tower `sentinel2` over ten bands.

    A space needs an RGB tower too: it is the same tower with the filters of red, green and blue
    alone, the other bands at their mean. That is not how its authors used it, and `provenance`
    states it. `model_cfg`: open_clip's, of ViT-B/16 unless given. `ModelError` for another file.
    """
    state, temperature = _read(path)
    config = model_cfg or open_clip.get_model_config(ARCHITECTURE)
    clip = new_clip(config, {"mean": _rgb(MEANS, mean=True), "std": _rgb(STDS)}, seed=0)
    filters = state[_FIRST]
    if filters.ndim != 4 or filters.shape[1] != len(BANDS):
        raise ModelError(
            f"{path}: its patch embedding is {tuple(filters.shape)}; expected one of "
            f"{len(BANDS)} bands ({', '.join(BANDS)})"
        )
    visible = filters[:, [BANDS.index(band) for band in RED_GREEN_BLUE]].contiguous()
    towers = {**state, _FIRST: visible, "logit_scale": torch.tensor(-math.log(temperature))}
    expected = {key: tuple(value.shape) for key, value in clip.model.state_dict().items()}
    given = {key: tuple(value.shape) for key, value in towers.items()}
    check_shapes(expected, given, what=f"{path} as {ARCHITECTURE}")
    load_weights(clip.model, towers, what=f"{path} as {ARCHITECTURE}")
    space = EmbeddingSpace(
        replace(clip, source=f"{MS_CLIP}:{path}"),
        provenance={
            "model": "Llama3-MS-CLIP",
            "file": path.name,
            "rgb": "the filters of red, green and blue alone, other bands at their mean",
        },
        source=f"{MS_CLIP}:{path}",
    )
    visual = {key: value for key, value in state.items() if key.startswith("visual.")}
    space.add(_tower(clip, visual))
    return space


def load_ms_clip_from(
    source: str, *, sha256: str | None = None, revisions: Mapping[str, str] | None = None
) -> EmbeddingSpace:
    """The same from `ms-clip:FILE`, or by its short name from the hub.

    `sha256` and `revisions` as for `load_clip`.
    """
    published = published_models().get(source)
    hub = hub_for(published, revisions)
    if published is None:
        path = Path(source.removeprefix(f"{MS_CLIP}:"))
    else:
        path, sha256 = fetch_weights(source, published, hub), sha256 or published.sha256
    hub.check_revisions()
    if sha256 is not None and path.is_file():
        check_sha256(path, sha256)
    space = load_ms_clip(path)
    if hub.fetched:
        space.provenance["fetched"] = dict(hub.fetched)
    return space


def ms_clip_spec(size: int) -> InputSpec:
    """What the ten-band tower takes: reflectance without offset, not clipped."""
    span = HIGH - LOW
    sensors = ("sentinel2-l2a", "sentinel2-l1c")
    return InputSpec(
        sensors=sensors,
        bands=BANDS,
        ranges={sensor: ((LOW, HIGH),) * len(BANDS) for sensor in sensors},
        mean=tuple(((mean - OFFSET) * 1e-4 - LOW) / span for mean in MEANS),
        std=tuple(std * 1e-4 / span for std in STDS),
        size=size,
    )


def _tower(clip: ClipModel, visual: StateDict) -> SensorTower:
    size = clip.input_spec.size
    config = TowerConfig(name=TOWER, backbone=INFLATE, input=ms_clip_spec(size), embed_dim=clip.dim)
    tower = build_tower(config, clip)
    tower.backbone.load_state_dict(
        {key.removeprefix("visual."): value for key, value in visual.items()}
    )
    return tower.requires_grad_(False)


def _rgb(values: tuple[float, ...], *, mean: bool = False) -> list[float]:
    """Statistics of red, green and blue in pictures whose white is L2A's default stretch."""
    stretch = SENSORS["sentinel2-l2a"].composite().stretch
    offset = OFFSET if mean else 0.0
    return [(values[BANDS.index(band)] - offset) * 1e-4 / stretch for band in RED_GREEN_BLUE]


def _read(path: Path) -> tuple[StateDict, float]:
    """The one CLIP in a checkpoint, and its temperature."""
    loaded = read_state_dict(path)
    temperature = loaded.pop("temperature", None)
    parts: dict[str, StateDict] = {prefix: {} for prefix in _PREFIXES}
    for key, value in loaded.items():
        prefix = next((one for one in _PREFIXES if key.startswith(one)), None)
        if prefix is None:
            raise ModelError(f"{path} is no checkpoint of Llama3-MS-CLIP: it has a key {key!r}")
        parts[prefix][key.removeprefix(prefix)] = value
    state = parts[_PREFIXES[0]]
    if _FIRST not in state or temperature is None or temperature.numel() != 1:
        raise ModelError(
            f"{path} is no checkpoint of Llama3-MS-CLIP: expected {_PREFIXES[0]}{_FIRST} and "
            "temperature"
        )
    if not 0 < float(temperature) < math.inf:
        raise ModelError(f"{path}: temperature is {float(temperature)}; expected more than 0")
    for prefix, other in parts.items():
        if other and not _same(other, state):
            raise ModelError(f"{path}: {prefix} and {_PREFIXES[0]} hold different weights")
    return state, float(temperature)


def _same(a: StateDict, b: StateDict) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)
