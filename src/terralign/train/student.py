"""A new student tower: its bands, the ranges its inputs are scaled by, and its first weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator

from terralign.chips import PixelLayout
from terralign.datasets.sample import SampleSet
from terralign.encoders.clip import ClipModel
from terralign.encoders.sensor import (
    INFLATE,
    SensorTower,
    TowerConfig,
    build_tower,
    inflate,
    load_initial_weights,
)
from terralign.errors import RecipeError, SensorError
from terralign.evaluate.embed import optical_layout
from terralign.preprocess import InputSpec, scale_composite, to_physical
from terralign.sensors import Composite

NUM_MEASURED = 256
"""Samples per data set from which ranges, means and deviations are taken, evenly spaced."""


class StudentSettings(BaseModel):
    """What the student is, before training."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    backbone: str = INFLATE
    """A timm model's name, or "inflate": the RGB tower over the student's bands."""
    bands: tuple[str, ...] | None = None
    """None: all bands of the training data."""
    missing: Literal["error", "zero"] = "error"
    """What happens to a band that pixels lack: an error, or zero (the paper's B10 of L2A)."""
    others: Literal["zero", "mean"] = "zero"
    """Inflated towers: where the filters of invisible bands start."""
    initial: str | None = None
    """A self-supervised checkpoint (SSL4EO-S12, torchgeo) for a timm backbone."""
    initial_bands: tuple[str, ...] | None = None
    """The checkpoint's bands in order; None: those of the student."""
    drop_path: float = Field(default=0.0, ge=0, lt=1)
    """Stochastic depth of a timm backbone; the paper's is 0.2 (as reported)."""

    @model_validator(mode="after")
    def _settings_have_an_effect(self) -> Self:
        if self.backbone == INFLATE:
            if self.initial is not None:
                raise ValueError("an inflated tower starts from the RGB tower; leave out initial")
            if self.drop_path:
                raise ValueError("drop_path has no effect on an inflated tower; leave it out")
        elif self.others != "zero":
            raise ValueError(f"others = {self.others!r} has no effect on a timm backbone")
        if self.initial_bands is not None and self.initial is None:
            raise ValueError("initial_bands has no effect without initial; leave it out")
        return self


@dataclass(frozen=True, kw_only=True, slots=True)
class _Measured:
    """A band over the training data, in physical units."""

    low: float
    high: float
    mean: float
    deviation: float


def student_layout(samples: SampleSet, sensors: Sequence[str]) -> PixelLayout:
    """The sensor of the samples that the student looks at."""
    for sensor in sensors:
        if sensor in samples.layouts:
            return samples.layouts[sensor]
    raise SensorError(
        f"the student takes {', '.join(sensors)}; data set {samples.name!r} has "
        f"{', '.join(samples.layouts)}"
    )


def new_student(
    name: str,
    clip: ClipModel,
    settings: StudentSettings,
    sensors: Sequence[str],
    data: Sequence[SampleSet],
    *,
    seed: int,
    root: Path | None = None,
) -> tuple[SensorTower, dict[str, list[str]]]:
    """The student before training, and what of its initial checkpoint did not load.

    Inflated towers keep the composite's stretch and the CLIP's normalisation on the visible bands;
    every other band is stretched so that its mean is as bright as the composite's, since the
    filters know pictures of that brightness. Timm towers take reflectance 0-1 (radar: the range of
    the data) and the data's mean and deviation. `root`: what `settings.initial` is relative to.
    """
    layouts = [student_layout(samples, sensors) for samples in data]
    bands = _bands(settings, layouts)
    composites = _composites(sensors, layouts, bands)
    measured = _measure(data, layouts, bands)
    if settings.backbone == INFLATE:
        spec = _inflated_input(clip, sensors, bands, composites, measured, data, settings)
    else:
        spec = _timm_input(clip, sensors, bands, measured, layouts, settings)
    config = TowerConfig(
        name=name,
        backbone=settings.backbone,
        input=spec,
        embed_dim=clip.dim,
        drop_path=settings.drop_path,
    )
    if settings.backbone == INFLATE:
        visible = next(iter(composites.values()), None)
        return inflate(config, clip, visible, others=settings.others), {}
    tower = build_tower(config, clip, seed=seed)
    if settings.initial is None:
        return tower, {}
    path = Path(settings.initial)
    path = path if path.is_absolute() or root is None else root / path
    return tower, load_initial_weights(tower, path, bands=settings.initial_bands or bands)


def _bands(settings: StudentSettings, layouts: Sequence[PixelLayout]) -> tuple[str, ...]:
    widest = max(layouts, key=lambda layout: len(layout.bands))
    known = {band for layout in layouts for band in layout.bands}
    ordered = [band for band in widest.sensor.band_names if band in known]
    bands = tuple(ordered)
    if settings.bands is not None:
        bands = widest.sensor.resolve(settings.bands)
    for layout in layouts:
        absent = [band for band in bands if band not in layout.bands]
        if absent and settings.missing == "error":
            raise SensorError(
                f"training data of {layout.sensor.name} lack {', '.join(absent)}; name the bands "
                'to use, or set missing = "zero"'
            )
    return bands


def _composites(
    sensors: Sequence[str], layouts: Sequence[PixelLayout], bands: tuple[str, ...]
) -> dict[str, Composite]:
    """Per sensor of the student that makes RGB: the recipe its training data declare."""
    found: dict[str, Composite] = {}
    for layout in layouts:
        composite = layout.composite
        if composite is None:
            continue
        known = found.setdefault(layout.sensor.name, composite)
        if known != composite:
            raise RecipeError(
                f"the data sets of {layout.sensor.name} declare two composites, {known.name!r} and "
                f"{composite.name!r}; one tower keeps one stretch per sensor"
            )
    if found:
        for sensor in sensors:
            if sensor not in found:
                raise RecipeError(f"no training data of sensor {sensor!r}; leave it out")
    return found


def _measure(
    data: Sequence[SampleSet], layouts: Sequence[PixelLayout], bands: tuple[str, ...]
) -> dict[str, _Measured]:
    values: dict[str, list[NDArray[np.float32]]] = {band: [] for band in bands}
    for samples, layout in zip(data, layouts, strict=True):
        raw = torch.from_numpy(samples.read(_spread(len(samples)))[layout.sensor.name])
        physical, valid = to_physical(raw, layout)
        for band in set(bands) & set(layout.bands):
            channel = layout.bands.index(band)
            values[band].append(physical[:, channel][valid[:, channel]].numpy())
    measured = {}
    for band, parts in values.items():
        pixels = np.concatenate(parts) if parts else np.zeros(0, dtype=np.float32)
        if not pixels.size:
            raise SensorError(f"band {band} has no valid pixel in the training data")
        low, high = np.percentile(pixels, [0.5, 99.5])
        measured[band] = _Measured(
            low=float(low),
            high=float(max(high, low + 1e-3)),
            mean=float(pixels.mean()),
            deviation=float(pixels.std()),
        )
    return measured


def _spread(size: int) -> NDArray[np.int64]:
    return np.unique(np.linspace(0, size - 1, min(size, NUM_MEASURED)).astype(np.int64))


def _brightness(data: Sequence[SampleSet]) -> float:
    """The mean of the composites (0-1) of the training data."""
    means = []
    for samples in data:
        layout = optical_layout(samples)
        raw = torch.from_numpy(samples.read(_spread(len(samples)))[layout.sensor.name])
        means.append(float(scale_composite(raw, layout).mean()))
    return float(np.mean(means))


def _rounded(value: float) -> float:
    """Four significant digits: a specification people read."""
    return float(f"{value:.4g}")


def _inflated_input(
    clip: ClipModel,
    sensors: Sequence[str],
    bands: tuple[str, ...],
    composites: dict[str, Composite],
    measured: dict[str, _Measured],
    data: Sequence[SampleSet],
    settings: StudentSettings,
) -> InputSpec:
    rgb = clip.input_spec
    visible = next(iter(composites.values())).bands if composites else ()
    brightness = _brightness(data)

    def other(band: str) -> tuple[float, float]:
        if not composites:
            return (_rounded(measured[band].low), _rounded(measured[band].high))
        return (0.0, _rounded(max(measured[band].mean / brightness, 1e-3)))

    def normal(values: tuple[float, ...], band: str) -> float:
        return values[visible.index(band)] if band in visible else sum(values) / 3

    return InputSpec(
        sensors=tuple(sensors),
        bands=bands,
        ranges={
            sensor: tuple(
                (0.0, composites[sensor].stretch) if band in visible else other(band)
                for band in bands
            )
            for sensor in sensors
        },
        mean=tuple(normal(rgb.mean, band) for band in bands),
        std=tuple(normal(rgb.std, band) for band in bands),
        size=rgb.size,
        missing=settings.missing,
        interpolation=rgb.interpolation,
        resize_mode=rgb.resize_mode,
    )


def _timm_input(
    clip: ClipModel,
    sensors: Sequence[str],
    bands: tuple[str, ...],
    measured: dict[str, _Measured],
    layouts: Sequence[PixelLayout],
    settings: StudentSettings,
) -> InputSpec:
    reflectance = all(layout.sensor.unit == "reflectance" for layout in layouts)

    def limits(band: str) -> tuple[float, float]:
        if reflectance:
            return (0.0, 1.0)
        return (_rounded(measured[band].low), _rounded(measured[band].high))

    ranges = {band: limits(band) for band in bands}
    width = {band: high - low for band, (low, high) in ranges.items()}
    return InputSpec(
        sensors=tuple(sensors),
        bands=bands,
        ranges={sensor: tuple(ranges[band] for band in bands) for sensor in sensors},
        mean=tuple(
            _rounded((measured[band].mean - ranges[band][0]) / width[band]) for band in bands
        ),
        std=tuple(_rounded(max(measured[band].deviation / width[band], 1e-3)) for band in bands),
        size=clip.input_spec.size,
        missing=settings.missing,
        interpolation="bilinear",
    )
