"""A plain timm image encoder, without text: for probes of frozen embeddings."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Literal, cast

import timm
import torch
from timm.data import resolve_data_config  # type: ignore[attr-defined]
from torch import Tensor, nn

from terralign.chips import PixelLayout
from terralign.encoders.clip.weights import check_numbers_of
from terralign.encoders.pixels import encode_ready, ready_pixels
from terralign.encoders.sensor import SensorTower, TowerConfig, load_initial_weights
from terralign.encoders.space import RGB
from terralign.errors import ModelError, first_line
from terralign.preprocess import InputSpec, rgb_spec
from terralign.sensors import Sensor, find_sensor

"""How a model's name says that it is of this kind: `timm:NAME`, `timm:NAME[@SENSOR]:FILE`."""

SENTINEL2 = ("sentinel2-l1c", "sentinel2-l2a")
"""Product levels that share their bands, but for B10: an encoder over one takes both."""


class TimmEncoder:
    """One tower, called as the sensor it is laid out over ("rgb" or such as "sentinel2-l1c").

    Its embedding is timm's pooled feature (B, D), before any head.
    """

    def __init__(self, tower: SensorTower, sensor: str) -> None:
        self.tower = tower.eval().requires_grad_(False)
        self.sensor = sensor
        self.model_id = tower.tower_id()

    @property
    def tower_names(self) -> tuple[str, ...]:
        """The one tower."""
        return (self.sensor,)

    @property
    def dim(self) -> int:
        """D, the length of an embedding."""
        return self.tower.config.embed_dim

    def tower_id(self, name: str) -> str:
        """The name of its weights."""
        return self.model_id

    def input_spec(self, name: str = RGB) -> InputSpec:
        """What it takes."""
        return self.tower.config.input

    def to(self, device: str) -> TimmEncoder:
        """Move it to a device; returns self."""
        self.tower.to(device)
        return self

    @property
    def device(self) -> torch.device:
        """Where the encoder is."""
        return next(self.tower.parameters()).device

    def encode_ready(self, ready: Tensor, *, tower: str) -> Tensor:
        """(B, D) float32 features, not normalised, on the CPU, of one batch of ready pixels."""
        return encode_ready(self.tower, ready)

    def encode_layout(self, pixels: Tensor, layout: PixelLayout, *, tower: str) -> Tensor:
        """The same of one batch of raw pixels (B, C, H, W), on any device."""
        spec = self.input_spec(tower)
        return self.encode_ready(
            ready_pixels(pixels.to(self.device), layout, spec, tower=tower), tower=tower
        )


def load_timm_encoder(text: str) -> TimmEncoder:
    """An encoder from `NAME[@REVISION]` (timm's published weights, of that commit of their hub
    model), or `NAME[@SENSOR]:FILE`.

    A file is read as `load_initial_weights` reads it: timm state dicts, and SSL4EO-S12's. With
    SENSOR its first layer takes all bands of that sensor in order, as reflectance clipped to 0-1.
    Over Sentinel-2's bands of one level it takes pixels of both: of L1C over L2A's 12 bands B10 is
    dropped, of L2A over L1C's 13 bands B10 is zero, as any band that pixels lack. Zero is set after
    scaling, before mean and deviation, as in every tower with `missing = "zero"`; these being 0 and
    1 here, zero is also what the network sees. Pictures have the size, mean and standard deviation
    of timm's configuration. Raises `ModelError`.
    """
    name, _, file = text.partition(":")
    name, _, sensor_name = name.partition("@")
    base = name.partition(".")[0]
    if not re.fullmatch(r"[\w.-]+", name) or not timm.is_model(base):
        raise ModelError(f"unknown timm model {name!r}; write timm:NAME or timm:NAME@SENSOR:FILE")
    revision = ""
    if not file and re.fullmatch(r"[0-9a-f]{40}", sensor_name):
        revision, sensor_name = sensor_name, ""
    if not file and sensor_name not in ("", RGB):
        raise ModelError(
            f"timm publishes no weights for {sensor_name}; name a file: timm:{name}@SENSOR:FILE"
        )
    sensor = find_sensor(sensor_name) if sensor_name not in ("", RGB) else None
    num_bands = 3 if sensor is None else len(sensor.bands)
    try:
        overlay = {"hf_hub_id": f"{_hub_model(name)}@{revision}"} if revision else None
        backbone = timm.create_model(
            name, pretrained=not file, pretrained_cfg_overlay=overlay, num_classes=0,
            in_chans=num_bands,
        )  # fmt: skip
    except Exception as error:  # timm, a hub and its network fail in many ways
        raise ModelError(
            f"cannot load timm:{name}: {first_line(error)}. Without a network, give a file: "
            f"timm:{name}:FILE"
        ) from error
    config = TowerConfig(
        name="encoder",
        backbone=name,
        input=_spec(backbone, sensor),
        embed_dim=int(cast(Any, backbone).num_features),
    )
    tower = SensorTower(config, backbone.eval(), nn.Identity())
    if not file:
        check_numbers_of(state := backbone.state_dict(), state, what=f"timm:{text}")
    if file:
        bands = config.input.bands
        found = load_initial_weights(tower, Path(file), bands=bands)
        missing = [key for key in found["not_loaded"] if not key.startswith("projection.")]
        if missing:
            raise ModelError(f"{file} lacks {len(missing)} weights of {name}, such as {missing[0]}")
    return TimmEncoder(tower, RGB if sensor is None else sensor.name)


def _hub_model(name: str) -> str:
    """The hub model of a timm model's weights."""
    config = timm.get_pretrained_cfg(name)
    if config is None or not config.hf_hub_id:
        raise ModelError(f"timm:{name} has no model on the hub; leave the revision out")
    return str(config.hf_hub_id)


def _spec(backbone: nn.Module, sensor: Sensor | None) -> InputSpec:
    values = resolve_data_config({}, model=backbone)  # type: ignore[no-untyped-call]
    size = int(values["input_size"][-1])
    if sensor is None:
        kind: Literal["bicubic", "bilinear"] = (
            "bilinear" if values["interpolation"] == "bilinear" else "bicubic"
        )
        return rgb_spec(
            size=size, mean=tuple(values["mean"]), std=tuple(values["std"]), interpolation=kind
        )
    if sensor.unit != "reflectance":
        raise ModelError(f"how {sensor.name} is scaled for a plain encoder is not known: none here")
    num = len(sensor.bands)
    sensors = SENTINEL2 if sensor.name in SENTINEL2 else (sensor.name,)
    return InputSpec(
        sensors=sensors,
        bands=sensor.band_names,
        ranges=dict.fromkeys(sensors, ((0.0, 1.0),) * num),
        mean=(0.0,) * num,
        std=(1.0,) * num,
        size=size,
        missing="zero",
    )
