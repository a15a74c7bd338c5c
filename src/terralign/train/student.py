"""A new student tower: its bands, the ranges its inputs are scaled by, and its first weights."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from terralign.chips import PixelLayout
from terralign.datasets.sample import SampleSet, optical_layout
from terralign.encoders.clip.load import ClipModel
from terralign.encoders.custom import Encoder, make_encoder, measure_width
from terralign.encoders.sensor import (
    INFLATE,
    Scaling,
    SensorTower,
    TowerConfig,
    build_tower,
    inflate,
    initial_size,
    load_initial_weights,
)
from terralign.errors import RecipeError, SensorError
from terralign.preprocess import (
    InputSpec,
    make_ready,
    scale_bands,
    scale_composite,
    to_physical,
)
from terralign.preprocess.spec import layout_composite
from terralign.sensors import SENSORS, Composite, Sensor, find_sensor
from terralign.train.settings import SSL4EO_S1, student_scaling
from terralign.train.settings import StudentSettings as StudentSettings

NUM_MEASURED = 256
"""Samples per data set from which ranges, means and deviations are taken, evenly spaced."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Measured:
    """A band over the training data, in physical units."""

    low: float
    high: float
    mean: float
    deviation: float


_NEVER_THERE = _Measured(low=0.0, high=1.0, mean=0.0, deviation=1.0)
"""A band of reflectance that no training sample has: 0-1 as it is."""


def student_layout(samples: SampleSet, sensors: Sequence[str]) -> PixelLayout:
    """The sensor of the samples that the student looks at."""
    for sensor in sensors:
        if sensor in samples.layouts:
            return samples.layouts[sensor]
    raise SensorError(
        f"the student takes {', '.join(sensors)}; data set {samples.name!r} has "
        f"{', '.join(samples.layouts)}"
    )


def student_bands(
    settings: StudentSettings, sensors: Sequence[Sensor], layouts: Sequence[PixelLayout]
) -> tuple[str, ...]:
    """The bands of a student, in the order of its channels, by canonical name.

    `sensors`: those that the tower declares; a spelling is the band of the first of them that knows
    it. `layouts`: of the training data, whose bands are taken where the settings name none.
    `SensorError` where none of the sensors knows a band, where a sensor has none of the bands, and,
    unless `missing = "zero"`, where a sensor or the training data lack one.
    """
    if settings.bands is not None:
        bands = tuple(_known_band(spelling, sensors) for spelling in settings.bands)
        twice = [band for band, number in Counter(bands).items() if number > 1]
        if twice:
            raise SensorError(f"the student's bands name {twice[0]} twice; leave one out")
    else:
        known = {band for layout in layouts for band in layout.bands}
        by_width = sorted(layouts, key=lambda layout: -len(layout.bands))
        ordered = [name for layout in by_width for name in layout.sensor.band_names]
        bands = tuple(dict.fromkeys(name for name in ordered if name in known))
    for sensor in sensors:
        absent = [band for band in bands if band not in sensor.band_names]
        if len(absent) == len(bands):
            raise SensorError(
                f"sensor {sensor.name!r} has none of the student's bands ({', '.join(bands)}); "
                "leave the sensor out"
            )
        if absent and settings.missing == "error":
            raise SensorError(
                f"sensor {sensor.name!r} has no band {', '.join(absent)}; leave the band or the "
                'sensor out, or set missing = "zero"'
            )
    for layout in layouts:
        absent = [band for band in bands if band not in layout.bands]
        if absent and settings.missing == "error":
            raise SensorError(
                f"training data of {layout.sensor.name} lack {', '.join(absent)}; name the bands "
                'to use, or set missing = "zero"'
            )
    return bands


def _known_band(spelling: str, sensors: Sequence[Sensor]) -> str:
    for sensor in sensors:
        try:
            return sensor.band(spelling).name
        except SensorError as error:
            fault = error
    if len(sensors) == 1:
        raise fault
    known = dict.fromkeys(name for sensor in sensors for name in sensor.band_names)
    raise SensorError(
        f"unknown band {spelling!r}: the tower's sensors ({', '.join(s.name for s in sensors)}) "
        f"have {', '.join(known)}"
    )


def new_student(
    name: str,
    clip: ClipModel,
    settings: StudentSettings,
    sensors: Sequence[Sensor | str],
    data: Sequence[SampleSet],
    *,
    seed: int,
    root: Path | None = None,
    encoder: Encoder | None = None,
) -> tuple[SensorTower, dict[str, list[str]]]:
    """The student before training, and what of its initial checkpoint did not load.

    `sensors`: those that the tower takes, whether or not it is trained on data of each; one without
    training data has its own default composite and the ranges of the others. Inflated towers keep
    the composite's stretch and the CLIP's normalisation on the visible bands; every other band is
    stretched so that its mean is as bright as the composite's, since the filters know pictures of
    that brightness. Timm and custom towers are scaled as `settings.scaling` says. A band that no
    training sample has is not measured where `missing = "zero"`. `root`: what `settings.initial`
    is relative to. `encoder`: the custom one of `backbone = "custom"`, tried on a batch of zeros;
    features of another number than D get a linear projection. The tower carries its sensors'
    definitions and the name of its space.
    """
    declared = [find_sensor(one) if isinstance(one, str) else one for one in sensors]
    layouts = [student_layout(samples, [one.name for one in declared]) for samples in data]
    bands = student_bands(settings, declared, layouts)
    scaling = student_scaling(settings, declared)
    _check_units(declared, layouts)
    path = _initial_path(settings, root)
    composites: dict[str, Composite] = {}
    pixels = [samples.read(_spread(len(samples))) for samples in data]
    raw = [
        torch.from_numpy(one[layout.sensor.name])
        for one, layout in zip(pixels, layouts, strict=True)
    ]
    if settings.backbone == INFLATE:
        composites = _composites(declared, layouts)
        measured = _measure(raw, layouts, bands, settings)
        brightness = _brightness(data, pixels)
        spec = _inflated_input(clip, declared, bands, composites, measured, brightness, settings)
    else:
        size = settings.size or (initial_size(path) if path is not None else None)
        measured = _measure(raw, layouts, bands, settings, any_range=scaling == "ssl4eo-s1")
        spec = _timm_input(
            declared, bands, measured, settings, scaling, size=size or clip.input_spec.size
        )
    module, class_name, width = _custom(encoder, spec, clip.dim)
    config = TowerConfig(
        name=name,
        backbone=settings.backbone,
        input=spec,
        embed_dim=clip.dim,
        drop_path=settings.drop_path,
        scaling=scaling,
        gsd_m=_trained_gsd(raw, layouts, [len(samples) for samples in data], spec),
        encoder=class_name,
        width=width,
    )
    if settings.backbone == INFLATE:
        visible = next(iter(composites.values()), None)
        if settings.others == "fitted":
            colours = _fit_colours(spec, clip.input_spec, visible, data, pixels)
            tower = inflate(config, clip, visible, colours=colours)
        else:
            tower = inflate(config, clip, visible, others=settings.others)
    else:
        tower = build_tower(config, clip, seed=seed, encoder=module)
    tower.sensors = tuple(one for one in declared if one.name not in SENSORS)
    tower.space_id = clip.anchor_id()
    if path is None:
        return tower, {}
    return tower, load_initial_weights(tower, path, bands=_initial_bands(settings, declared, bands))


def _trained_gsd(
    raw: Sequence[Tensor], layouts: Sequence[PixelLayout], nums: Sequence[int], spec: InputSpec
) -> float | None:
    """Metres of the tower's pixels as most training samples have them, once resized to its input.

    `raw`: pixels (B, C, H, W) of each data set; `nums`: its samples. A sample's pixels are as fine
    as the finest of its bands; None where one of the sensors does not state that.
    """
    found = []
    for pixels, layout in zip(raw, layouts, strict=True):
        sizes = [layout.sensor.band(name).gsd_m for name in layout.bands]
        known = [one for one in sizes if one]
        if not known:
            return None
        found.append(min(known) * min(pixels.shape[-2:]) / spec.size)
    return round(float(np.quantile(np.repeat(found, nums), 0.5, method="lower")), 6)


def _custom(
    encoder: Encoder | None, spec: InputSpec, dim: int
) -> tuple[nn.Module | None, str | None, int | None]:
    """A custom encoder's module, its class, and its features where they are not D."""
    if encoder is None:
        return None, None, None
    module = make_encoder(encoder, what="encoder")
    what = f"encoder {type(module).__name__}"
    width = measure_width(module, num_bands=len(spec.bands), size=spec.size, what=what)
    return module, type(module).__name__, None if width == dim else width


def _initial_path(settings: StudentSettings, root: Path | None) -> Path | None:
    if settings.initial is None:
        return None
    path = Path(settings.initial)
    return path if path.is_absolute() or root is None else root / path


def _initial_bands(
    settings: StudentSettings, sensors: Sequence[Sensor], bands: tuple[str, ...]
) -> tuple[str, ...]:
    """The checkpoint's bands in order, by canonical name."""
    if settings.initial_bands is None:
        return bands
    return tuple(_known_band(spelling, sensors) for spelling in settings.initial_bands)


def _check_units(sensors: Sequence[Sensor], layouts: Sequence[PixelLayout]) -> None:
    """A sensor without training data takes the ranges of the others: in the same unit alone."""
    trained = {layout.sensor.name: layout.sensor.unit for layout in layouts}
    for sensor in sensors:
        if sensor.name not in trained and sensor.unit not in trained.values():
            raise RecipeError(
                f"no training data of sensor {sensor.name!r}, and its unit ({sensor.unit}) is not "
                f"that of {', '.join(trained)}, whose ranges it would take; leave it out"
            )


def _composites(sensors: Sequence[Sensor], layouts: Sequence[PixelLayout]) -> dict[str, Composite]:
    """Per sensor of the student: the recipe its training data declare, else its own default.

    Empty where no training data make RGB.
    """
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
    for sensor in sensors if found else ():
        if sensor.name not in found:
            if not sensor.composites:
                raise RecipeError(
                    f"sensor {sensor.name!r} makes no RGB composite and "
                    f"{', '.join(found)} do; an inflated tower cannot serve both: leave it out"
                )
            found[sensor.name] = sensor.composite()
    visible = {composite.bands for composite in found.values()}
    if len(visible) > 1:
        shown = "; ".join(f"{name}: {', '.join(one.bands)}" for name, one in found.items())
        raise RecipeError(
            f"the tower's sensors make RGB of different bands ({shown}); an inflated tower has one "
            "filter per band: align a tower for each"
        )
    return found


def _measure(
    raw: Sequence[Tensor],
    layouts: Sequence[PixelLayout],
    bands: tuple[str, ...],
    settings: StudentSettings,
    *,
    any_range: bool = False,
) -> dict[str, _Measured]:
    """Each band over the training data, of which `raw` are samples (B, C, H, W) per data set.

    `any_range`: whether ranges come from elsewhere.
    """
    values: dict[str, list[NDArray[np.float32]]] = {band: [] for band in bands}
    for own, layout in zip(raw, layouts, strict=True):
        physical, valid = to_physical(own, layout)
        for band in set(bands) & set(layout.bands):
            channel = layout.bands.index(band)
            values[band].append(physical[:, channel][valid[:, channel]].numpy())
    any_range |= all(layout.sensor.unit == "reflectance" for layout in layouts)
    measured = {}
    for band, parts in values.items():
        pixels = np.concatenate(parts) if parts else np.zeros(0, dtype=np.float32)
        if not pixels.size:
            measured[band] = _never_there(band, settings, any_range)
            continue
        low, high = np.percentile(pixels, [0.5, 99.5])
        measured[band] = _Measured(
            low=float(low),
            high=float(max(high, low + 1e-3)),
            mean=float(pixels.mean()),
            deviation=float(pixels.std()),
        )
    return measured


def _never_there(band: str, settings: StudentSettings, any_range: bool) -> _Measured:
    """What is taken for a band of which the training data have no valid pixel."""
    if settings.missing == "error":
        raise SensorError(
            f"band {band} has no valid pixel in the training data; name the bands to use, or set "
            'missing = "zero"'
        )
    if not any_range:
        raise SensorError(
            f"band {band} has no valid pixel in the training data, so that its range is not known; "
            "leave the band out"
        )
    return _NEVER_THERE


def _spread(size: int) -> NDArray[np.int64]:
    return np.unique(np.linspace(0, size - 1, min(size, NUM_MEASURED)).astype(np.int64))


def _brightness(
    data: Sequence[SampleSet], pixels: Sequence[dict[str, NDArray[np.generic]]]
) -> float:
    """The mean of the composites (0-1) of `pixels` of each data set, over valid pixels."""
    means = []
    for samples, own in zip(data, pixels, strict=True):
        layout = optical_layout(samples)
        picture = scale_composite(torch.from_numpy(own[layout.sensor.name]), layout)
        if bool(picture.isnan().all()):
            raise SensorError(
                f"the {layout_composite(layout).name} composite of {samples.name!r} has no valid "
                "pixel, so that its brightness is not known; leave the data set out"
            )
        means.append(float(picture.nanmean()))
    return float(np.mean(means))


def _fit_colours(
    spec: InputSpec,
    rgb: InputSpec,
    composite: Composite | None,
    data: Sequence[SampleSet],
    pixels: Sequence[dict[str, NDArray[np.generic]]],
) -> Tensor:
    """(bands, 3) float32: the least-squares estimate of the RGB tower's input from the tower's.

    Over pixels that are valid in the composite, without a constant, which a filter cannot add.
    `pixels`: those of some samples of each data set, by sensor.
    """
    seen = set(spec.bands) & set(composite.bands if composite is not None else ())
    if seen:
        raise RecipeError(
            f'others = "fitted" is for towers without visible bands; this one has '
            f"{', '.join(sorted(seen))}: leave it out"
        )
    products = torch.zeros(len(spec.bands), len(spec.bands) + 3, dtype=torch.float64)
    for samples, own in zip(data, pixels, strict=True):
        layout, optical = student_layout(samples, spec.sensors), optical_layout(samples)
        bands = torch.from_numpy(own[layout.sensor.name])
        picture = torch.from_numpy(own[optical.sensor.name])
        if bands.shape[2:] != picture.shape[2:]:
            raise RecipeError(
                f'others = "fitted" needs pixels of {layout.sensor.name} on those of '
                f"{optical.sensor.name}; {samples.name} has {tuple(bands.shape[2:])} and "
                f"{tuple(picture.shape[2:])}: leave it out"
            )
        for part, colours in zip(torch.split(bands, 16), torch.split(picture, 16), strict=True):
            composed = scale_composite(colours, optical)
            valid = ~composed.isnan().any(1)
            x, y = (
                ready.movedim(1, -1)[valid].double()
                for ready in (
                    make_ready(scale_bands(part, layout, spec), spec),
                    make_ready(composed, rgb),
                )
            )
            products += x.T @ torch.cat([x, y], 1)
    num = len(spec.bands)
    found: Tensor = torch.linalg.lstsq(
        products[:, :num], products[:, num:], driver="gelsd"
    ).solution
    return found.float()


def _rounded(value: float) -> float:
    """Four significant digits: a specification people read."""
    return float(f"{value:.4g}")


def _inflated_input(
    clip: ClipModel,
    sensors: Sequence[Sensor],
    bands: tuple[str, ...],
    composites: dict[str, Composite],
    measured: dict[str, _Measured],
    brightness: float,
    settings: StudentSettings,
) -> InputSpec:
    rgb = clip.input_spec
    visible = next(iter(composites.values())).bands if composites else ()

    def other(band: str) -> tuple[float, float]:
        one = measured[band]
        if not composites or one is _NEVER_THERE:
            return (_rounded(one.low), _rounded(one.high))
        return (0.0, _rounded(max(one.mean / brightness, 1e-3)))

    def normal(values: tuple[float, ...], band: str, never_there: float) -> float:
        if measured[band] is _NEVER_THERE:
            return never_there
        return values[visible.index(band)] if band in visible else sum(values) / 3

    return InputSpec(
        sensors=tuple(sensor.name for sensor in sensors),
        bands=bands,
        ranges={
            sensor.name: tuple(
                (0.0, composites[sensor.name].stretch) if band in visible else other(band)
                for band in bands
            )
            for sensor in sensors
        },
        mean=tuple(normal(rgb.mean, band, 0.0) for band in bands),
        std=tuple(normal(rgb.std, band, 1.0) for band in bands),
        size=rgb.size,
        missing=settings.missing,
        interpolation=rgb.interpolation,
        resize_mode=rgb.resize_mode,
    )


def _timm_input(
    sensors: Sequence[Sensor],
    bands: tuple[str, ...],
    measured: dict[str, _Measured],
    settings: StudentSettings,
    scaling: Scaling | None,
    *,
    size: int,
) -> InputSpec:
    optical = all(sensor.unit == "reflectance" for sensor in sensors)

    def limits(band: str) -> tuple[float, float]:
        if scaling == "ssl4eo-s1":
            mean, deviation = SSL4EO_S1[band]
            return (mean - 2 * deviation, mean + 2 * deviation)
        if optical:
            return (0.0, 1.0)
        return (_rounded(measured[band].low), _rounded(measured[band].high))

    def normal(band: str) -> tuple[float, float]:
        """Mean and deviation after scaling to 0-1."""
        if scaling != "standardised":
            return (0.0, 1.0)
        one, (low, high) = measured[band], ranges[band]
        return (
            _rounded((one.mean - low) / (high - low)),
            _rounded(max(one.deviation / (high - low), 1e-3)),
        )

    ranges = {band: limits(band) for band in bands}
    return InputSpec(
        sensors=tuple(sensor.name for sensor in sensors),
        bands=bands,
        ranges={sensor.name: tuple(ranges[band] for band in bands) for sensor in sensors},
        mean=tuple(normal(band)[0] for band in bands),
        std=tuple(normal(band)[1] for band in bands),
        size=size,
        missing=settings.missing,
        interpolation="bilinear",
    )
